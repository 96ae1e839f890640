"""The tree that a client sends: read once, hashed, unpacked nowhere (cove.image.tarindex).

A small archive that isn't compressed is read in the daemon, into memory: no process, no file. Everything else goes
through a worker into a staging directory, which lasts as long as the build.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

import msgspec

from cove.build.planner import clone_of
from cove.build.remote import Remotes
from cove.build.sources import PackedTree
from cove.dockerfile.giturl import parse_git_url
from cove.dockerfile.ignore import DockerIgnore
from cove.image.decode import compression_of
from cove.image.images import Images
from cove.image.jobs import Done, IndexContext
from cove.image.selection import resolve
from cove.image.tarformat import BLOCK, looks_like_tar
from cove.image.tarindex import index_archive
from cove.image.treeindex import FileEntry, TreeIndex
from cove.image.types import Limits
from cove.image.worker import Worker
from cove.model.errors import Invalid, NotFound

SMALL_BYTES = 2 << 20  # read in the daemon, in a few milliseconds
SMALL_MEMBERS = 2000
_PIECE = 1 << 20
MAX_DOCKERFILE_BYTES = 1 << 20


class SentContext:
    """An archive that was received whole."""

    def __init__(self, index: TreeIndex, packs: Sequence[int]) -> None:
        self.index = index
        self._packs = tuple(packs)

    async def open(self) -> PackedTree:
        """The tree, for one step; whoever has it closes it."""
        return PackedTree(self.index, [os.dup(pack) for pack in self._packs])

    def read(self, path: str, limit: int = MAX_DOCKERFILE_BYTES) -> bytes:
        """A small file. NotFound, Invalid."""
        tree = PackedTree(self.index)
        where = resolve(tree, os.fsencode(path.strip("/")))
        entry = self.index.find(where) if where is not None else None
        if entry is None or entry.kind != "file":
            raise NotFound(f"{path} is not in the build context")
        if entry.size > limit:
            raise Invalid(f"{path} has {entry.size} bytes; the limit is {limit}")
        return os.pread(self._packs[entry.pack], entry.size, entry.offset) if entry.size else b""

    def close(self) -> None:
        for pack in self._packs:
            os.close(pack)


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


def _without_ignored(sent: SentContext) -> SentContext:
    """The context without what its own .dockerignore leaves out: no client did that."""
    try:
        ignore = DockerIgnore(sent.read(".dockerignore"))
    except NotFound:
        return sent
    kept = [e for e in sent.index.entries.values() if not ignore.matches(os.fsdecode(e.path))]
    sent.index = TreeIndex(kept)
    return sent


async def fetch_context(images: Images, url: str, undo: AsyncExitStack) -> tuple[SentContext, bytes | None]:
    """A context that is elsewhere: a repository or an archive without what its .dockerignore leaves out, or a
    Dockerfile alone, whose text comes beside an empty tree. Raises Invalid, and what a download or a clone raises."""
    remotes = Remotes(images)
    source = parse_git_url(url, is_context=True)
    if source is not None:
        tree = await remotes.clone(clone_of(source, "", None))
        cloned = SentContext(tree.index, tree.packs)
        undo.callback(cloned.close)
        return _without_ignored(cloned), None
    if not url.startswith(("http://", "https://")):
        raise Invalid(f"remote: {url[:200]!r}: expected the URL of an archive, a Dockerfile or a repository")
    fetched = await remotes.fetch_url(url)
    pack, size = fetched.file, fetched.size
    undo.callback(os.close, pack)
    head = os.pread(pack, BLOCK, 0)
    if compression_of(head) or looks_like_tar(head):

        async def chunks() -> AsyncIterator[bytes]:
            at = 0
            while piece := await asyncio.to_thread(os.pread, pack, _PIECE, at):
                at += len(piece)
                yield piece

        sent = await receive_archive(images, chunks(), undo)
        return _without_ignored(sent), None
    if size > MAX_DOCKERFILE_BYTES:
        raise Invalid(
            f"{url}: it is no archive, and as a Dockerfile larger than {MAX_DOCKERFILE_BYTES} bytes"
        )
    empty = _read_small(b"")
    undo.callback(empty.close)
    return empty, os.pread(pack, size, 0)


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
        return SentContext(TreeIndex(entries), (pack,))
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
    return SentContext(index, (os.open(staging / "pack", os.O_RDONLY | os.O_CLOEXEC),))


def _decode(path: os.PathLike[str]) -> TreeIndex:
    with open(path, "rb") as file:
        return TreeIndex(msgspec.msgpack.decode(file.read(), type=list[FileEntry]))
