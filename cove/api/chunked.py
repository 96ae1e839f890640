"""Decode a chunked HTTP/1.1 body (RFC 9112, section 7.1) piece by piece. No I/O.

Own code and not the parser library's, because a connection that may turn into a raw stream
must know the exact byte at which a body ends. Strict on purpose: what two parsers could read
in two ways is refused, so no request can hide in another one's body.

    SIZE ──n>0──> DATA ──> DATA_END ──> SIZE
      └────0────> TRAILER ──empty line──> done
"""

from __future__ import annotations

MAX_LINE = 4096
MAX_TRAILERS = 64
_HEX = frozenset(b"0123456789abcdefABCDEF")


class MalformedChunk(ValueError):
    """The bytes aren't a chunked body; the message says which part isn't."""


class ChunkedDecoder:
    """Feed it bytes, take payload out; `done` once the last chunk and its trailers were seen."""

    __slots__ = ("_left", "_line", "_state", "_trailers", "done")

    def __init__(self) -> None:
        self.done = False
        self._state = "size"
        self._left = 0
        self._line = bytearray()
        self._trailers = 0

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Payload pieces found in `data`, and what follows the body's end (b"" before it).

        Raises MalformedChunk; the decoder is of no use afterwards.
        """
        out: list[bytes] = []
        at, end = 0, len(data)
        while at < end and not self.done:
            if self._state == "data":
                take = min(self._left, end - at)
                out.append(data[at : at + take])
                at += take
                self._left -= take
                if not self._left:
                    self._state = "data end"
                continue
            newline = data.find(b"\n", at)
            stop = end if newline < 0 else newline + 1
            self._line += data[at:stop]
            at = stop
            if len(self._line) > MAX_LINE:
                raise MalformedChunk(f"a line of a chunked body is longer than {MAX_LINE} bytes")
            if newline >= 0:
                line = bytes(self._line)
                self._line.clear()
                if not line.endswith(b"\r\n"):
                    raise MalformedChunk("a line of a chunked body must end in CR LF")
                self._take_line(line[:-2])
        return out, data[at:]

    def _take_line(self, line: bytes) -> None:
        if self._state == "size":
            digits = line.split(b";", 1)[0]
            if not 0 < len(digits) <= 15 or not _HEX.issuperset(digits):
                raise MalformedChunk("a chunk's size must be a hexadecimal number of 1 to 15 digits")
            self._left = int(digits, 16)
            self._state = "data" if self._left else "trailer"
        elif self._state == "data end":
            if line:
                raise MalformedChunk("a chunk is longer than its size says")
            self._state = "size"
        elif not line:
            self.done = True
        else:
            self._trailers += 1
            if self._trailers > MAX_TRAILERS:
                raise MalformedChunk(f"a chunked body has more than {MAX_TRAILERS} trailer lines")
