"""The database of vulnerabilities on the disk: imports change a copy, which then takes the place of the old one.

    vulns/database.sqlite   never changed in place: whoever has it open goes on with what it opened
    vulns/loading/TOKEN/    an import's own directory, all that its worker sees

Order that must hold: the copy is complete and synced, then renamed, then the directory is synced. A crash before the
rename leaves the old database and a directory that the next start removes.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from cove.image.scantypes import Imported, ImportVulnerabilities, TellVulnerabilities
from cove.image.worker import Worker
from cove.model.errors import HostError, NotFound
from cove.model.waiting import finish

_RESERVE_BYTES = 64 << 20  # left free on the disk
_NAME = "database.sqlite"


class Vulnerabilities:
    """See the module. Made by the images' room; `sweep` once before use."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._loading = root / "loading"
        self._path = root / _NAME
        self._lock = asyncio.Lock()  # one import at a time, or one would undo the other

    def sweep(self) -> None:
        """Make the directories, and remove what a crash left in them."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(self._loading, ignore_errors=True)
        self._loading.mkdir(mode=0o700, exist_ok=True)

    @property
    def path(self) -> str:
        """The database's file. NotFound before the first import."""
        if not self._path.exists():
            raise NotFound(
                "there is no database of vulnerabilities yet: bring one with cove vulns import, e.g. OSV's all.zip"
            )
        return str(self._path)

    @property
    def version(self) -> str:
        """Another text for each database that was here; "" for none."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return ""
        return f"{found.st_ino}.{found.st_mtime_ns}.{found.st_size}"

    async def take(self, chunks: AsyncIterator[bytes]) -> Imported:
        """Import what is sent: entries of OSV, zips of them, Debian's tracker, a tar of those. Invalid, HostError:
        nothing changed."""
        async with self._lock:
            staging = self._loading / secrets.token_hex(8)
            try:
                budget = await asyncio.to_thread(self._prepare, staging)
                job = ImportVulnerabilities(
                    staging=str(staging),
                    budget_bytes=budget,
                    now=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                )
                async with Worker(job) as worker:
                    answer = await worker.feed_and_wait(chunks)
                assert isinstance(answer, Imported)
                await finish(asyncio.to_thread(self._replace, staging))
                return answer
            finally:
                await finish(asyncio.to_thread(shutil.rmtree, staging, True))

    def _prepare(self, staging: Path) -> int:
        """Make an import's directory with a copy of the database; the bytes that the copy may grow to."""
        try:
            staging.mkdir(mode=0o700)
            size = 0
            if self._path.exists():
                size = self._path.stat().st_size
                shutil.copyfile(self._path, staging / _NAME)
            found = os.statvfs(staging)
        except OSError as error:
            raise HostError(f"an import can't begin in {self._loading}: {error.strerror}") from error
        budget = size + found.f_bavail * found.f_frsize - _RESERVE_BYTES
        if budget <= size:
            raise HostError(
                f"no space left in {self._root}: {_RESERVE_BYTES >> 20} MiB must stay free; nothing was imported"
            )
        return budget

    def _replace(self, staging: Path) -> None:
        os.chmod(staging / _NAME, 0o600)
        os.rename(staging / _NAME, self._path)
        fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    async def tell(self) -> AsyncGenerator[bytes, None]:
        """What the database has, as JSON. NotFound, HostError."""
        async with Worker(TellVulnerabilities(database=self.path)) as worker:
            while piece := await worker.receive():
                yield piece
            await worker.last()
