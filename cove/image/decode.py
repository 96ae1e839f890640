"""Decompress a stream whose form is told by its first bytes: gzip, zstd, xz, bzip2, or none.

Pull style: everything is a function that returns the next chunk, empty at the end. Output comes in pieces
of at most 1 MiB, so that a bomb can't fill the memory, and is bounded against the input.
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable, Iterator
from typing import IO, cast

import zstandard
from isal import isal_zlib

from cove.image.tarformat import Bytes
from cove.image.types import MIB, Limits
from cove.model.errors import Invalid

Read = Callable[[], Bytes]
_DAMAGED = cast(type[Exception], isal_zlib.error)  # its stub has an instance

_PIECE = 1 * MIB
_MEMORY_MAX = 256 * MIB  # of xz's dictionary and of zstd's window
_CHECK_EXPANSION_FROM = 256 * MIB
_MAGIC = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2"))


def compression_of(head: bytes) -> str:
    """gzip, zstd, xz, bzip2 or "" by the first bytes."""
    return next((name for magic, name in _MAGIC if head.startswith(magic)), "")


def decoder(compression: str, read: Read, limits: Limits) -> Read:
    """A function that returns the decompressed chunks of `read`. They raise Invalid for damaged input."""
    consumed = produced = 0

    def counted() -> Bytes:
        nonlocal consumed
        chunk = read()
        consumed += len(chunk)
        return chunk

    def pieces() -> Iterator[Bytes]:
        nonlocal produced
        for piece in _FORMS[compression](counted):
            produced += len(piece)
            if produced > max(_CHECK_EXPANSION_FROM, limits.expansion * consumed):
                raise Invalid(
                    f"the compressed data grows to more than {limits.expansion} times its size, "
                    "which is the limit: it looks like a bomb"
                )
            yield piece

    stream = pieces()

    def next_piece() -> Bytes:
        try:
            return next(stream, b"")
        except (_DAMAGED, lzma.LZMAError, zstandard.ZstdError, OSError) as error:
            raise Invalid(f"the {compression} data is damaged or cut off: {error}") from error
        except EOFError as error:
            raise Invalid(f"the {compression} data is cut off") from error

    return next_piece


def _gunzip(read: Read) -> Iterator[Bytes]:
    engine = isal_zlib.decompressobj(31)  # half of zlib's time, same interface
    started = False
    while chunk := bytes(read()):
        while chunk:
            if not started and not (chunk := chunk.lstrip(b"\0") if engine.eof else chunk):
                break
            if engine.eof:
                engine = isal_zlib.decompressobj(31)  # gzip members may follow one another
            started = True
            piece = engine.decompress(chunk, _PIECE)
            chunk = engine.unconsumed_tail
            if engine.eof:
                chunk, started = engine.unused_data, False
            if piece:
                yield piece
        while not engine.eof and (piece := engine.decompress(engine.unconsumed_tail, _PIECE)):
            yield piece
    if started:
        raise EOFError


def _unzstd(read: Read) -> Iterator[Bytes]:
    source = cast(IO[bytes], _Source(read))
    context = zstandard.ZstdDecompressor(max_window_size=_MEMORY_MAX // 2)
    with context.stream_reader(source, read_size=_PIECE, read_across_frames=True) as reader:
        while piece := reader.read(_PIECE):
            yield piece


class _Source:
    """A file of which only `read` is used."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._left: Bytes = b""

    def read(self, size: int) -> bytes:
        chunk = self._left or self._read()
        self._left = chunk[size:]
        return bytes(chunk[:size])


def _unxz(read: Read) -> Iterator[Bytes]:
    return _streams(read, lambda: lzma.LZMADecompressor(memlimit=_MEMORY_MAX))


def _unbzip2(read: Read) -> Iterator[Bytes]:
    return _streams(read, bz2.BZ2Decompressor)


def _streams(read: Read, make: Callable[[], lzma.LZMADecompressor | bz2.BZ2Decompressor]) -> Iterator[Bytes]:
    engine = make()
    started = False
    while chunk := bytes(read()):
        while chunk or (started and not engine.eof and not engine.needs_input):
            if engine.eof:
                chunk = chunk.lstrip(b"\0")
                if not chunk:
                    break
                engine = make()
            started = True
            piece = engine.decompress(chunk, _PIECE)
            chunk = engine.unused_data if engine.eof else b""
            if piece:
                yield piece
    if started and not engine.eof:
        raise EOFError


def _plain(read: Read) -> Iterator[Bytes]:
    while chunk := read():
        yield chunk


_FORMS: dict[str, Callable[[Read], Iterator[Bytes]]] = {
    "": _plain,
    "gzip": _gunzip,
    "zstd": _unzstd,
    "xz": _unxz,
    "bzip2": _unbzip2,
}
