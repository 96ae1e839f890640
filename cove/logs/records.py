"""The formats of log files: bytes to lines, forwards, and to records, backwards. No I/O.

Owns the joining of chunks to lines and the search for the next whole record after damage. The formats
are the contract with cove-init (docs/architecture.md, "Log files").
"""

from __future__ import annotations

import calendar
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Protocol

import msgspec

from cove.logs.model import STDERR, STDOUT, LogLine, LogQuery

MAX_PAYLOAD_BYTES = 1 << 20  # of a record; a greater length is damage
MAX_LINE_BYTES = 1 << 20  # a longer line is delivered in pieces

_HEADER = struct.Struct("<IBBHQ")  # length of the payload, stream, 0, 0, time
_LENGTH = struct.Struct("<I")
RECORD_BYTES = _HEADER.size + _LENGTH.size  # of a record besides its payload
_MIDDLE = re.compile(rb"[\x01\x02]\0\0\0")  # of a header, behind the length


class Record(msgspec.Struct, frozen=True, gc=False):
    """What a search backwards needs to know of a record."""

    offset: int  # in the buffer
    stream: int
    time_ns: int
    newlines: int


class LineJoiner:
    """Joins chunks to lines per stream, and keeps those that a query asks for."""

    def __init__(self, query: LogQuery) -> None:
        self._since = query.since_ns
        self._until = query.until_ns or 1 << 64
        self._wanted = (False, query.stdout, query.stderr)
        self._pieces: tuple[list[bytes], ...] = ([], [], [])  # of the line that hasn't ended, by stream
        self._sizes = [0, 0, 0]
        self._starts = [0, 0, 0]
        self.past_until = False  # a chunk from after `until` was seen

    def add(self, stream: int, time_ns: int, chunk: bytes, lines: list[LogLine]) -> None:
        """Append to `lines` what this chunk completes."""
        if time_ns > self._until:
            self.past_until = True
            return
        if not self._wanted[stream]:
            return
        whole = time_ns >= self._since
        pieces = self._pieces[stream]
        end = chunk.find(b"\n") + 1
        if pieces and end:
            pieces.append(chunk[:end])
            self._emit(stream, lines)
            chunk = chunk[end:]
            end = chunk.find(b"\n") + 1
        if end:
            if end == len(chunk):
                if whole:
                    lines.append(LogLine(stream, time_ns, chunk))
                return
            *full, chunk = chunk.split(b"\n")
            if whole:
                lines += [LogLine(stream, time_ns, line + b"\n") for line in full]
        if chunk:
            if not pieces:
                self._starts[stream] = time_ns
            pieces.append(chunk)
            self._sizes[stream] += len(chunk)
            if self._sizes[stream] >= MAX_LINE_BYTES:
                self._emit(stream, lines)

    def forget(self, streams: Iterable[int]) -> None:
        """Drop what these streams left unfinished."""
        for stream in streams:
            self._pieces[stream].clear()
            self._sizes[stream] = 0

    def flush(self, lines: list[LogLine]) -> None:
        """Append the lines that haven't ended, in the order in which they started."""
        for stream in sorted((STDOUT, STDERR), key=lambda stream: self._starts[stream]):
            if self._pieces[stream]:
                self._emit(stream, lines)

    def _emit(self, stream: int, lines: list[LogLine]) -> None:
        pieces, start = self._pieces[stream], self._starts[stream]
        if start >= self._since:
            lines.append(LogLine(stream, start, b"".join(pieces)))
        pieces.clear()
        self._sizes[stream] = 0


class Format(Protocol):
    """How a driver's files are read."""

    def parse(self, data: bytes, final: bool, joiner: LineJoiner, lines: list[LogLine]) -> tuple[int, int]:
        """Take the whole records at the start of `data`: (bytes taken, how much of them was damage).

        `final`: nothing will ever follow, so that an unfinished record at the end is taken, too.
        """
        ...

    def backwards(self, data: bytes) -> Iterator[Record]:
        """The whole records at the end of `data`, last first; stops at what isn't one (or begins earlier)."""
        ...

    def whole_bytes(self, data: bytes) -> int:
        """How much of `data`, which reaches to the end of a file, is there before an unfinished record."""
        ...


class LocalFormat:
    """Records with their length at both ends."""

    def parse(self, data: bytes, final: bool, joiner: LineJoiner, lines: list[LogLine]) -> tuple[int, int]:
        offset = damaged = 0
        size = len(data)
        unpack, add = _HEADER.unpack_from, joiner.add
        while size - offset >= RECORD_BYTES:
            length, stream, zero, zeros, time_ns = unpack(data, offset)
            start = offset + 16
            stop = start + length
            if stream in (1, 2) and not zero and not zeros and length <= MAX_PAYLOAD_BYTES:
                if stop + 4 <= size:
                    if data[stop : stop + 4] == data[offset : offset + 4]:
                        add(stream, time_ns, data[start:stop], lines)
                        offset = stop + 4
                        continue
                elif not final:
                    break
            found = _next_record(data, offset + 1)
            if found is None:
                if final:
                    break
                # A record may have begun in the last bytes: keep as many as one can have.
                found = max(offset, size - MAX_PAYLOAD_BYTES - RECORD_BYTES)
                if found == offset:
                    break
            damaged += found - offset
            offset = found
        return (size if final else offset), damaged

    def backwards(self, data: bytes) -> Iterator[Record]:
        end = len(data)
        while end >= RECORD_BYTES:
            (length,) = _LENGTH.unpack_from(data, end - 4)
            offset = end - RECORD_BYTES - length
            if offset < 0 or not _is_record(data, offset):
                return
            _, stream, _, _, time_ns = _HEADER.unpack_from(data, offset)
            yield Record(offset, stream, time_ns, data.count(b"\n", offset + 16, end - 4))
            end = offset

    def whole_bytes(self, data: bytes) -> int:
        return len(data)


class JsonFormat:
    """Docker's json-file: one JSON object in a line."""

    def __init__(self) -> None:
        decoder = msgspec.json.Decoder(_JsonRecord)
        self._decode = decoder.decode
        self._decode_lines = decoder.decode_lines
        self._second = ""
        self._second_ns = 0

    def parse(self, data: bytes, final: bool, joiner: LineJoiner, lines: list[LogLine]) -> tuple[int, int]:
        end = data.rfind(b"\n") + 1
        damaged = 0
        try:
            records: list[_JsonRecord | None] = list(self._decode_lines(data[:end]))
        except (ValueError, msgspec.MsgspecError):
            records = [self._decode_any(line) for line in data[:end].split(b"\n")[:-1]]
        for record in records:
            try:
                if record is None:
                    raise ValueError
                stream = STDERR if record.stream == "stderr" else STDOUT
                joiner.add(stream, self._time_ns(record.time), record.log.encode("utf-8", "replace"), lines)
            except ValueError:
                damaged += 1
        return (len(data) if final else end), damaged

    def backwards(self, data: bytes) -> Iterator[Record]:
        end = len(data)
        while end > 0 and data[end - 1] == 0x0A:
            offset = data.rfind(b"\n", 0, end - 1) + 1
            record = self._decode_any(data[offset : end - 1])
            if record is None:
                return
            try:
                time_ns = self._time_ns(record.time)
            except ValueError:
                return
            stream = STDERR if record.stream == "stderr" else STDOUT
            yield Record(offset, stream, time_ns, record.log.endswith("\n"))
            end = offset

    def whole_bytes(self, data: bytes) -> int:
        return data.rfind(b"\n") + 1

    def _decode_any(self, line: bytes) -> _JsonRecord | None:
        """The record of a line, also with bytes that aren't UTF-8; None when it isn't one."""
        try:
            return self._decode(line.decode("utf-8", "replace"))
        except (ValueError, msgspec.MsgspecError):
            return None

    def _time_ns(self, text: str) -> int:
        """Nanoseconds of an RFC 3339 time in UTC; consecutive lines mostly share their second."""
        second, fraction = text[:19], text[19:]
        if second != self._second:
            self._second_ns = _seconds(second) * 1_000_000_000
            self._second = second
        if not fraction.endswith("Z") or (len(fraction) > 1 and fraction[0] != "."):
            raise ValueError(f"not a time: {text!r}")
        return self._second_ns + int(fraction[1:-1].ljust(9, "0")[:9] or 0)


class _JsonRecord(msgspec.Struct, gc=False):
    log: str
    stream: str
    time: str


def file_format(driver: str) -> Format:
    """The format of a driver's files; formats have a memory of their own, so each reader takes one."""
    return JsonFormat() if driver == "json-file" else LocalFormat()


def iter_records(data: bytes, final: bool) -> Iterator[tuple[int, int, int, bytes]]:
    """The whole records of the local format in `data`: offset, stream, time, payload. Passes over damage;
    `final` as in `Format.parse`."""
    offset, size = 0, len(data)
    while size - offset >= RECORD_BYTES:
        if _is_record(data, offset):
            length, stream, _, _, time_ns = _HEADER.unpack_from(data, offset)
            yield offset, stream, time_ns, data[offset + 16 : offset + 16 + length]
            offset += length + RECORD_BYTES
            continue
        if not final and _may_grow(data, offset):
            return
        found = _next_record(data, offset + 1)
        if found is None:
            return
        offset = found


def _may_grow(data: bytes, offset: int) -> bool:
    """A record begins here that reaches beyond the end of `data`."""
    length, stream, zero, zeros, _ = _HEADER.unpack_from(data, offset)
    whole = length <= MAX_PAYLOAD_BYTES and stream in (1, 2) and not zero and not zeros
    return whole and offset + length + RECORD_BYTES > len(data)


def _is_record(data: bytes, offset: int) -> bool:
    """A whole record starts at this offset."""
    if len(data) - offset < RECORD_BYTES:
        return False
    length, stream, zero, zeros, _ = _HEADER.unpack_from(data, offset)
    stop = offset + 16 + length
    return (
        stream in (1, 2)
        and not zero
        and not zeros
        and length <= MAX_PAYLOAD_BYTES
        and data[stop : stop + 4] == data[offset : offset + 4]
    )


def _next_record(data: bytes, start: int) -> int | None:
    """Where the next whole record starts, at `start` or behind it."""
    for match in _MIDDLE.finditer(data, start + 4):
        offset = match.start() - 4
        if _is_record(data, offset):
            return offset
    return None


def _seconds(text: str) -> int:
    """Seconds since the epoch of "2026-01-02T03:04:05"."""
    if len(text) != 19 or text[10] != "T":
        raise ValueError(f"not a time: {text!r}")
    fields = (text[:4], text[5:7], text[8:10], text[11:13], text[14:16], text[17:19])
    return calendar.timegm((*map(int, fields), 0, 0, 0))
