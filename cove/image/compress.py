"""Compress a layer for a registry: a stream in, one blob out, the same one every time.

Worker side; no I/O but through `write`. gzip is written as pigz does (zlib.net/pigz): blocks that are compressed by
several threads, one behind the other in a single member of RFC 1952, without a time and without a name. zstd's own
threads are used (RFC 8878). Memory is bounded by the blocks under way, whatever the layer's size.

Levels 1 to 3 of gzip are Intel's isal, which is ten times faster than zlib's 6 and gives some 13 % more bytes; 4 to 9
are zlib's.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import zstandard
from isal import isal_zlib

from cove.image.tarformat import Bytes
from cove.model.errors import HostError

_ISAL_LEVELS = 3
_BLOCK = 512 << 10
_HEADER = b"\x1f\x8b\x08\x00\0\0\0\0\x00\xff"  # no flags, no time, of an unknown system
_LAST_BLOCK = b"\x03\x00"  # empty, with the bit that says so
_REPORT = 1 << 20
_ZSTD_JOB = 2 << 20
_ZSTD_HEAVY = 13  # the level from which on one thread has to do

Write = Callable[[bytes], None]


def compress(
    pieces: Iterable[bytes],
    write: Write,
    *,
    compression: str,
    level: int,
    threads: int,
    diff_id: str,
) -> tuple[str, int]:
    """Compress a layer's tar; digest and size of what was written. HostError: it isn't the layer `diff_id`."""
    hashed = _Hashed(write)
    source = _Checked(pieces)
    if compression == "zstd":
        _zstd(source, hashed.write, level, threads)
    else:
        _gzip(source, hashed.write, level, threads)
    if source.digest != diff_id:
        raise HostError(f"the image store is damaged: a layer isn't {diff_id}; load or pull its image again")
    return hashed.digest, hashed.size


class _Checked:
    """The pieces as they pass by, and their digest after that."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self._hash = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self._hash.update(piece)
            yield piece

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


class _Hashed:
    """What is written, and its digest and size."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        if data:
            self._hash.update(data)
            self.size += len(data)
            self._write(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def _gzip(pieces: Iterable[bytes], write: Write, level: int, threads: int) -> None:
    write(_HEADER)
    crc, size = 0, 0
    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for block in _blocks(pieces):
            crc = isal_zlib.crc32(block, crc)
            size += len(block)
            waiting.append(pool.submit(_deflate, block, level))
            if len(waiting) > 2 * threads:
                write(waiting.popleft().result())
        while waiting:
            write(waiting.popleft().result())
    write(_LAST_BLOCK + struct.pack("<II", crc, size & 0xFFFFFFFF))


def _blocks(pieces: Iterable[bytes]) -> Iterator[Bytes]:
    block = bytearray()
    for piece in pieces:
        block += piece
        while len(block) >= _BLOCK:
            yield bytes(memoryview(block)[:_BLOCK])
            del block[:_BLOCK]
    if block:
        yield bytes(block)


def _deflate(block: Bytes, level: int) -> bytes:
    """One block, ended at a byte's border and without the mark of the last one (RFC 1951, 3.2.3)."""
    if level <= _ISAL_LEVELS:
        fast = isal_zlib.compressobj(level, isal_zlib.DEFLATED, -isal_zlib.MAX_WBITS)
        return bytes(fast.compress(block) + fast.flush(isal_zlib.Z_SYNC_FLUSH))
    slow = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    return slow.compress(block) + slow.flush(zlib.Z_SYNC_FLUSH)


def _zstd(pieces: Iterable[bytes], write: Write, level: int, threads: int) -> None:
    # Always with threads, if only one: the result doesn't depend on their number, but on whether there are any. Jobs
    # are small, since every thread has one of them and its tables in memory, which for high levels are 100 MiB.
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, threads=1 if level >= _ZSTD_HEAVY else max(1, threads), job_size=_ZSTD_JOB, write_checksum=True
    )
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    for piece in pieces:
        write(stream.compress(piece))
    write(stream.flush())


class Spool:
    """One file that blobs are written to, one behind the other, and that another process reads meanwhile.

    `grown` is told how far the blob at hand has come, each time another MiB is there.
    """

    def __init__(
        self, write: Callable[[bytes], int], budget_bytes: int, grown: Callable[[int], None]
    ) -> None:
        self._raw = write
        self._left = budget_bytes
        self._grown = grown
        self._told = 0
        self.offset = 0  # where the blob at hand begins
        self.size = 0  # of it, so far

    def begin(self) -> None:
        """The next blob begins here."""
        self.offset += self.size
        self.size = self._told = 0

    def write(self, data: bytes) -> None:
        """HostError when the disk's reserve would be touched."""
        self._left -= len(data)
        if self._left < 0:
            raise HostError(
                "no space left on the image store's disk for a compressed layer: free some, and push again"
            )
        view = memoryview(data)
        while view:
            view = view[self._raw(view) :]  # type: ignore[arg-type]
        self.size += len(data)
        if self.size - self._told >= _REPORT:
            self._told = self.size
            self._grown(self.size)
