"""As much of an ELF file as leads to its sections and segments (elf(5)). Pure, bounded.

What is damaged or claims too much is Malformed; a file that isn't ELF is None.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from cove.scan.model import LayerFile, Malformed

MAX_HEADERS = 4096
_NAMES_MAX = 1 << 20
_LOAD, _WRITE, _EXECUTE = 1, 2, 1
_NO_BITS = 8


class Section(NamedTuple):
    name: bytes
    offset: int
    size: int


class Segment(NamedTuple):
    address: int
    offset: int
    size: int  # in the file
    writable: bool


class Elf:
    """An ELF file's sections and loaded segments."""

    def __init__(self, file: LayerFile) -> None:
        self.file = file
        head = file.read(0, 64)
        if len(head) < 52 or head[4] not in (1, 2) or head[5] not in (1, 2):
            raise Malformed("its ELF header is damaged")
        self.wide = head[4] == 2
        self.order = "<" if head[5] == 1 else ">"
        try:
            if self.wide:
                phoff, shoff = struct.unpack_from(self.order + "QQ", head, 32)
                phsize, phnum, shsize, shnum, names = struct.unpack_from(self.order + "5H", head, 54)
            else:
                phoff, shoff = struct.unpack_from(self.order + "II", head, 28)
                phsize, phnum, shsize, shnum, names = struct.unpack_from(self.order + "5H", head, 42)
        except struct.error:
            raise Malformed("its ELF header is damaged") from None
        self.segments = self._read_segments(phoff, phsize, phnum)
        self.sections = self._read_sections(shoff, shsize, shnum, names)

    def _table(self, offset: int, size: int, count: int, least: int) -> list[bytes]:
        if not count or not offset:
            return []
        if count > MAX_HEADERS or size < least:
            raise Malformed(f"it has {count} ELF headers of {size} bytes; up to {MAX_HEADERS} are read")
        data = self.file.read(offset, size * count)
        return [data[start : start + size] for start in range(0, len(data) - size + 1, size)]

    def _read_segments(self, offset: int, size: int, count: int) -> list[Segment]:
        found = []
        for row in self._table(offset, size, count, 56 if self.wide else 32):
            if self.wide:
                kind, flags, place, address, _, length = struct.unpack_from(self.order + "IIQQQQ", row)
            else:
                kind, place, address, _, length, _, flags = struct.unpack_from(self.order + "7I", row)
            if kind == _LOAD:
                writable = flags & (_WRITE | _EXECUTE) == _WRITE
                found.append(Segment(address, place, length, writable))
        return found

    def _read_sections(self, offset: int, size: int, count: int, names: int) -> list[Section]:
        rows = self._table(offset, size, count, 64 if self.wide else 40)
        found = []
        for row in rows:
            if self.wide:
                name, kind, _, _, place, length = struct.unpack_from(self.order + "IIQQQQ", row)
            else:
                name, kind, _, _, place, length = struct.unpack_from(self.order + "6I", row)
            found.append((name, place, 0 if kind == _NO_BITS else length))
        if names >= len(found):
            return []
        text = self.file.read(found[names][1], min(found[names][2], _NAMES_MAX))
        return [Section(text[n : n + 64].partition(b"\0")[0], place, length) for n, place, length in found]

    def find_section(self, name: bytes) -> Section | None:
        return next((section for section in self.sections if section.name == name), None)

    def read_address(self, address: int, length: int) -> bytes:
        """So many bytes at an address of the running program; fewer where the segment ends."""
        for segment in self.segments:
            within = address - segment.address
            if 0 <= within < segment.size:
                return self.file.read(segment.offset + within, min(length, segment.size - within))
        return b""


def is_elf(head: bytes) -> bool:
    """Whether a file that begins so is ELF."""
    return head[:4] == b"\x7fELF"
