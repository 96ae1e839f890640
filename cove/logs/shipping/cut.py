"""Records to messages: one for each line, several for a line over LINE_BYTES. No I/O.

As in Docker, a message has no newline, and the pieces of a long line share an id and are counted.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import msgspec

from cove.logs.files import FileKey
from cove.logs.model import STDERR, STDOUT
from cove.logs.shipping.position import Mark

LINE_BYTES = 16384  # of a message, as Docker's


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """A record of the local format, and where it is."""

    file: FileKey
    offset: int
    after: int  # where the next record begins
    skip: int  # bytes of the payload that were sent before
    stream: int
    time_ns: int
    payload: bytes


class Partial(msgspec.Struct, frozen=True, gc=False):
    """A piece of a line; `ordinal` counts from 1."""

    id: str
    ordinal: int
    last: bool


class Message(msgspec.Struct, frozen=True, gc=False):
    stream: int
    time_ns: int
    data: bytes
    partial: Partial | None = None


class _Tail:
    """What a stream has begun and not ended."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.size = 0
        self.start: Mark | None = None
        self.time_ns = 0
        self.partial_id = ""
        self.ordinal = 0


class Cutter:
    """Cuts the chunks of a log in their order.

    `marks` says what has been cut, as of the message that was yielded last.
    """

    def __init__(self) -> None:
        self._tails = {STDOUT: _Tail(), STDERR: _Tail()}
        self._chunk: Chunk | None = None
        self._next = 0  # in its payload

    def cut(self, chunk: Chunk) -> Iterator[Message]:
        tail = self._tails[chunk.stream]
        payload, size = chunk.payload, len(chunk.payload)
        self._chunk, at = chunk, chunk.skip
        while at < size:
            room = LINE_BYTES - tail.size
            end = payload.find(b"\n", at, at + room)
            whole = end >= 0
            if not whole:
                end = at + room
                if end > size:
                    break
            if not tail.pieces and not tail.ordinal:
                tail.time_ns = chunk.time_ns
            data = payload[at:end]
            if tail.pieces:
                data = b"".join((*tail.pieces, data))
                tail.pieces.clear()
                tail.size = 0
            tail.start = None
            at = self._next = end + 1 if whole else end
            yield self._message(chunk.stream, tail, data, whole=whole)
        if at < size:
            if not tail.pieces:
                tail.start = Mark(chunk.file, chunk.offset, at)
                if not tail.ordinal:
                    tail.time_ns = chunk.time_ns
            tail.pieces.append(payload[at:])
            tail.size += size - at
        self._next = size

    def flush(self) -> Iterator[Message]:
        """The lines that have no end, once nothing follows."""
        for stream, tail in sorted(self._tails.items(), key=lambda item: item[1].time_ns):
            if tail.pieces:
                data = b"".join(tail.pieces)
                tail.pieces.clear()
                tail.size = 0
                tail.start = None
                yield self._message(stream, tail, data, whole=True)
            tail.ordinal = 0

    def marks(self) -> dict[int, Mark]:
        """By stream, what need not be cut again; nothing before the first chunk."""
        chunk = self._chunk
        if chunk is None:
            return {}
        after = Mark(chunk.file, chunk.after)
        found = {stream: tail.start or after for stream, tail in self._tails.items()}
        if self._next < len(chunk.payload):
            found[chunk.stream] = Mark(chunk.file, chunk.offset, self._next)
        return found

    def _message(self, stream: int, tail: _Tail, data: bytes, *, whole: bool) -> Message:
        if whole and not tail.ordinal:
            return Message(stream, tail.time_ns, data)
        if not tail.ordinal:
            tail.partial_id = secrets.token_hex(32)
        tail.ordinal += 1
        partial = Partial(tail.partial_id, tail.ordinal, whole)
        if whole:
            tail.ordinal = 0
        return Message(stream, tail.time_ns, data, partial)
