"""Blobs on their way from an upstream: one download for all who ask, followed while it is written.

A thread reads from the upstream, hashes and writes; whoever asked meanwhile gets an answer whose body is that file,
as far as it is there. The last byte is held back until the digest is known to be right: nobody gets a whole blob that
isn't what its name says. What breaks off goes on by Range. A download ends when it is complete, also when nobody
waits for it any more: the next one who asks will.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cove.image.registry.transport import Broken, Client, Tries
from cove.model.errors import Invalid, Unavailable
from cove.registry.content import Content

AT_ONCE = 16
_PATH = "blobs/{}"


class Download:
    """One blob that is coming."""

    def __init__(self, digest: str, path: Path) -> None:
        self.digest = digest
        self.path = path
        self.size = -1  # not known before the head is here
        self.written = 0
        self.head: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._moved = asyncio.Event()

    def moved(self, written: int) -> None:
        """On the loop: so much is there."""
        self.written = max(written, self.written)
        event, self._moved = self._moved, asyncio.Event()
        event.set()

    async def grown(self, offset: int) -> int:
        """See FileResponse. Raises OSError when the download failed."""
        while True:
            if self.done.done():
                if self.done.exception() is not None:
                    raise OSError("the upstream's blob didn't come whole")
                return self.size
            there = min(self.written, self.size - 1)
            if there > offset:
                return there
            await self._moved.wait()


class Downloads:
    """All downloads under way, by digest."""

    def __init__(self, content: Content, keep: Callable[[Download, str], object], reserve_bytes: int) -> None:
        """`keep` is awaited with a complete, verified and synced file."""
        self._content = content
        self._keep = keep
        self._reserve_bytes = reserve_bytes
        self._pool = ThreadPoolExecutor(AT_ONCE, "download")
        self._under_way: dict[tuple[str, str], Download] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = False
        self.received_bytes = 0

    def find(self, name: str, digest: str) -> Download | None:
        return self._under_way.get((name, digest))

    def start(self, name: str, digest: str, client: Client) -> Download:
        """The download of a blob for a repository: the one under way, or a new one."""
        key = name, digest
        if key in self._under_way:
            return self._under_way[key]
        download = Download(digest, self._content.uploads / f"{secrets.token_hex(8)}.part")
        self._under_way[key] = download
        task = asyncio.get_running_loop().create_task(self._run(key, download, client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return download

    async def close(self) -> None:
        """Break off what is under way, and wait for its end."""
        self._ending = True
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._pool.shutdown(wait=True)

    async def _run(self, key: tuple[str, str], download: Download, client: Client) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._pool, self._fetch, download, client, loop)
            kept = self._keep(download, key[0])
            assert asyncio.iscoroutine(kept)
            await kept
            download.done.set_result(None)
        except Exception as error:
            for future in (download.head, download.done):
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # somebody may ask, nobody has to
        finally:
            del self._under_way[key]
            download.moved(download.written)
            with contextlib.suppress(FileNotFoundError):
                download.path.unlink()

    def _fetch(self, download: Download, client: Client, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread. Raises CoveError, OSError."""
        algorithm = download.digest.partition(":")[0]
        hasher = hashlib.new(algorithm)
        offset = 0
        tries = Tries(client.timing)
        fd = os.open(download.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            while True:
                try:
                    headers = {"Range": f"bytes={offset}-"} if offset else {}
                    path = _PATH.format(download.digest)
                    with client.request("GET", path, headers=headers, expect=(200, 206)) as answer:
                        skip = offset if answer.status == 200 else 0
                        if download.size < 0 and answer.length is not None:
                            download.size = answer.length
                            self._check_room(answer.length)
                            loop.call_soon_threadsafe(_head_is_here, download)
                        for piece in answer.pieces():
                            if self._ending:
                                raise Unavailable("the registry is ending")
                            if skip:
                                piece, skip = piece[skip:], max(0, skip - len(piece))
                            if not piece:
                                continue
                            if 0 <= download.size < offset + len(piece):
                                raise Invalid(
                                    f"the upstream sent more than the {download.size} bytes it had announced"
                                )
                            os.pwrite(fd, piece, offset)
                            hasher.update(piece)
                            offset += len(piece)
                            self.received_bytes += len(piece)
                            tries.progress()
                            if download.size < 0:
                                self._check_room(0)
                            loop.call_soon_threadsafe(download.moved, offset)
                    break
                except Broken:
                    if not tries.again():
                        raise
            if download.size >= 0 and offset != download.size:
                raise Invalid(f"the upstream announced {download.size} bytes and sent {offset}")
            found = f"{algorithm}:{hasher.hexdigest()}"
            if found != download.digest:
                raise Invalid(f"the upstream sent {found} for {download.digest}")
            download.size = offset
            os.fsync(fd)
            loop.call_soon_threadsafe(_head_is_here, download)
        finally:
            os.close(fd)

    def _check_room(self, coming: int) -> None:
        if self._content.free_bytes() - coming < self._reserve_bytes:
            raise Unavailable("the registry's disk is full (--reserve): the blob can't be kept")


def _head_is_here(download: Download) -> None:
    if not download.head.done():
        download.head.set_result(None)
