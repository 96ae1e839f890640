"""Packed log files: what rotation put away, compressed, and still read from any place.

A packed file is gzip's (`zcat` reads it): one member for each MEMBER_BYTES, whose header says in an extra field of
ours (RFC 1952, 2.3.1.1) how long the member is, packed and unpacked. So a reader finds its way without unpacking
what lies before. The first one also names the inode of the file that was packed: a follower that held that one open
knows it again.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MEMBER_BYTES = 256 << 10
LEVEL = 3
_START = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff"  # deflate, an extra field, no time
_EXTRA = struct.Struct(
    "<H2sHIIQ"
)  # length of all, CV, length: of the member, of its content, the origin's inode
_HEAD_BYTES = len(_START) + _EXTRA.size
_END = struct.Struct("<II")  # CRC, length


def pack_member(content: bytes, origin: int) -> bytes:
    """One member. `content` has at most MEMBER_BYTES."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -15)
    body = packer.compress(content) + packer.flush()
    extra = _EXTRA.pack(_EXTRA.size - 2, b"CV", 16, _HEAD_BYTES + len(body) + _END.size, len(content), origin)
    return _START + extra + body + _END.pack(zlib.crc32(content), len(content))


class Packed:
    """Reads a packed file as if it weren't. What is damaged ends it."""

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        """`read` reads the file itself: size, offset; short only at its end. Raises ValueError: it isn't packed."""
        self._read = read
        self._starts: list[int] = []  # of the members, in the content
        self._members: list[tuple[int, int, int]] = []  # offset, size, length of its content
        self.origin = 0  # the inode of the file that was packed
        self._unpacked = (-1, b"")
        at = content = 0
        while (member := self._member_at(at)) is not None:
            self._starts.append(content)
            self._members.append(member)
            at += member[1]
            content += member[2]
        if not self._members:
            raise ValueError("it isn't a packed log")
        self.size = content

    def read(self, size: int, offset: int) -> bytes:
        pieces = []
        while size > 0 and offset < self.size:
            number = bisect_right(self._starts, offset) - 1
            start = offset - self._starts[number]
            piece = self._content(number)[start : start + size]
            if not piece:
                break
            pieces.append(piece)
            offset += len(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _member_at(self, at: int) -> tuple[int, int, int] | None:
        head = self._read(_HEAD_BYTES, at)
        if len(head) < _HEAD_BYTES or not head.startswith(_START):
            return None
        extra, name, field, size, length, origin = _EXTRA.unpack_from(head, len(_START))
        if (extra, name, field) != (_EXTRA.size - 2, b"CV", 16) or not 0 < length <= MEMBER_BYTES:
            return None
        if not _HEAD_BYTES < size <= 2 * MEMBER_BYTES:
            return None
        if not self._members:
            self.origin = origin
        return at, size, length

    def _content(self, number: int) -> bytes:
        if self._unpacked[0] != number:
            offset, size, length = self._members[number]
            packed = self._read(size - _HEAD_BYTES - _END.size, offset + _HEAD_BYTES)
            try:
                content = zlib.decompressobj(-15).decompress(packed, length)
            except zlib.error:
                content = b""
            self._unpacked = (number, content)
        return self._unpacked[1]


def find_packed(read: Callable[[int, int], bytes]) -> Packed | None:
    """None for a file that isn't packed."""
    if not is_packed(read(len(_START), 0)):
        return None
    try:
        return Packed(read)
    except ValueError:
        return None


def is_packed(head: bytes) -> bool:
    """Whether a file that begins so may be packed."""
    return head.startswith(_START)
