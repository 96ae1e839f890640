"""The tree that a client sends: read once, hashed, unpacked nowhere (cove.image.tarindex).

A small archive that isn't compressed is read in the daemon, into memory: no process, no file. Everything else goes
through a worker into a staging directory, which lasts as long as the build.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import msgspec

from cove.build.sources import PackedTree
from cove.image.decode import compression_of
from cove.image.images import Images
from cove.image.jobs import Done, IndexContext
from cove.image.selection import resolve
from cove.image.tarindex import index_archive
from cove.image.treeindex import FileEntry, TreeIndex
from cove.image.types import Limits
from cove.image.worker import Worker
from cove.model.errors import Invalid, NotFound

SMALL_BYTES = 2 << 20  # read in the daemon, in a few milliseconds
SMALL_MEMBERS = 2000
MAX_DOCKERFILE_BYTES = 1 << 20


class SentContext:
    """An archive that was received whole."""

    def __init__(self, index: TreeIndex, pack: int) -> None:
        self.index = index
        self._pack = pack

    async def open(self) -> PackedTree:
        """The tree, for one step; whoever has it closes it."""
        return PackedTree(self.index, (os.dup(self._pack),))

    def read(self, path: str, limit: int = MAX_DOCKERFILE_BYTES) -> bytes:
        """A small file. NotFound, Invalid."""
        tree = PackedTree(self.index)
        where = resolve(tree, os.fsencode(path.strip("/")))
        entry = self.index.find(where) if where is not None else None
        if entry is None or entry.kind != "file":
            raise NotFound(f"{path} is not in the build context")
        if entry.size > limit:
            raise Invalid(f"{path} has {entry.size} bytes; the limit is {limit}")
        return os.pread(self._pack, entry.size, entry.offset)

    def close(self) -> None:
        os.close(self._pack)


async def receive_archive(images: Images, chunks: AsyncIterator[bytes], undo: AsyncExitStack) -> SentContext:
    """Read an archive to its end; it is there until `undo` closes. Raises Invalid, HostError (disk full)."""
    head: list[bytes] = []
    size, ended = 0, True
    async for chunk in chunks:
        head.append(chunk)
        size += len(chunk)
        if size > SMALL_BYTES:
            ended = False
            break
    data = b"".join(head)
    if ended and not compression_of(data) and size // 512 < 4 * SMALL_MEMBERS:
        sent = _read_small(data)
    else:
        sent = await _read_large(images, data, chunks, undo)
    undo.callback(sent.close)
    return sent


def _read_small(data: bytes) -> SentContext:
    pieces = iter((data,))
    pack = os.memfd_create("build-context", os.MFD_CLOEXEC)
    try:
        entries = index_archive(
            lambda: next(pieces, b""),
            lambda piece: os.write(pack, piece),
            Limits(),
            budget_bytes=64 * SMALL_BYTES,
        )
        return SentContext(TreeIndex(entries), pack)
    except BaseException:
        os.close(pack)
        raise


async def _read_large(
    images: Images, head: bytes, chunks: AsyncIterator[bytes], undo: AsyncExitStack
) -> SentContext:
    staging = await undo.enter_async_context(images.staging())

    async def everything() -> AsyncIterator[bytes]:
        yield head
        async for chunk in chunks:
            yield chunk

    job = IndexContext(staging=str(staging), budget_bytes=images.budget_bytes(), limits=Limits())
    async with Worker(job) as worker:
        answer = await worker.feed_and_wait(everything())
    assert isinstance(answer, Done)
    index = await asyncio.to_thread(_decode, staging / "index")
    return SentContext(index, os.open(staging / "pack", os.O_RDONLY | os.O_CLOEXEC))


def _decode(path: os.PathLike[str]) -> TreeIndex:
    with open(path, "rb") as file:
        return TreeIndex(msgspec.msgpack.decode(file.read(), type=list[FileEntry]))
