"""Frames: what a tar archive is besides the files in it, so that a layer can be written out again.

A plain layer isn't kept as a blob: its files are in the layer's directory already. Its frame keeps, zstd
compressed, every other byte (headers, padding, the end) and says where each content goes, so that
frame and directory together give the archive again, byte for byte, and the disk holds it once.

Records: `R` u32 length, bytes. `F` u64 size, u16 length, path: the content of that file comes here.
`M` u32 number, u16 length, path: at this point of the archive what was at `path` was moved to
`<moved>/number`, because a later member took its place; contents named before it are to be looked up there.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

import zstandard

from cove.image.sandbox import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from cove.image.tarformat import Bytes, show_name
from cove.model.errors import HostError

_RAW = struct.Struct("<cI")
_FILE = struct.Struct("<cQH")
_MOVED = struct.Struct("<cIH")
_BATCH = 256 << 10
_PIECE = 1 << 20
_WINDOW_MAX = 8 << 20


class FrameWriter:
    """Writes a frame while a layer is unpacked."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = zstandard.ZstdCompressor(level=1).stream_writer(stream, closefd=False)
        self._raw = bytearray()
        self._records = bytearray()
        self.moved = 0

    def raw(self, data: Bytes) -> None:
        self._raw += data
        if len(self._raw) >= _BATCH:
            self._flush_raw()

    def file(self, path: bytes, size: int) -> None:
        self._flush_raw()
        self._records += _FILE.pack(b"F", size, len(path)) + path

    def move(self, path: bytes) -> int:
        """Something moves away from `path`; the number it gets."""
        self._flush_raw()
        number = self.moved
        self.moved += 1
        self._records += _MOVED.pack(b"M", number, len(path)) + path
        return number

    def close(self) -> None:
        self._flush_raw()
        self._stream.write(self._records)
        self._stream.flush(zstandard.FLUSH_FRAME)

    def _flush_raw(self) -> None:
        if self._raw:
            self._records += _RAW.pack(b"R", len(self._raw)) + self._raw
            self._raw.clear()
        if len(self._records) >= _BATCH:
            self._stream.write(self._records)
            self._records.clear()


def read_frame(stream: BinaryIO, layer: int, moved: int | None) -> Iterator[bytes]:
    """The archive again: `layer` and `moved` are descriptors of the two directories."""
    moves: list[tuple[int, bytes, int]] = []
    if moved is not None:
        moves = [
            (position, path, number)
            for position, (tag, number, path) in enumerate(_records(stream))
            if tag == b"M"
        ]
        stream.seek(0)
    for position, (tag, number, payload) in enumerate(_records(stream)):
        if tag == b"R":
            yield payload
        elif tag == b"F":
            directory, path = layer, payload
            for moved_at, moved_path, moved_number in moves:
                if moved_at > position and (payload + b"/").startswith(moved_path + b"/"):
                    assert moved is not None
                    directory, path = moved, b"%d" % moved_number + payload[len(moved_path) :]
                    break
            yield from _content(directory, path, number)


def _content(directory: int, path: bytes, size: int) -> Iterator[bytes]:
    try:
        fd = openat2(directory, path, os.O_RDONLY | os.O_NOFOLLOW, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
    except OSError as error:
        raise HostError(f"a layer's file can't be read: {show_name(path)}: {error.strerror}") from error
    try:
        left = size
        while left:
            piece = os.read(fd, min(left, _PIECE))
            if not piece:
                raise HostError(f"a layer's file was changed and is shorter now: {show_name(path)}")
            left -= len(piece)
            yield piece
    finally:
        os.close(fd)


def _records(stream: BinaryIO) -> Iterator[tuple[bytes, int, bytes]]:
    source = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX).stream_reader(stream, closefd=False)

    def read(size: int) -> bytes:
        try:
            return source.read(size)
        except zstandard.ZstdError as error:
            raise HostError(f"a layer's frame can't be read, the image store is damaged: {error}") from error

    def take(size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = read(size - len(data))
            if not piece:
                raise HostError("a layer's frame is cut off: the image store is damaged")
            data += piece
        return bytes(data)

    while tag := read(1):
        if tag == b"R":
            (length,) = struct.unpack("<I", take(4))
            yield tag, 0, take(length)
        elif tag == b"F":
            size, length = struct.unpack("<QH", take(10))
            yield tag, size, take(length)
        elif tag == b"M":
            number, length = struct.unpack("<IH", take(6))
            yield tag, number, take(length)
        else:
            raise HostError("a layer's frame has an unknown record: the image store is damaged")
