"""The registry's state in one piece: files, catalog, uploads; what handlers change goes through here.

Reads are short queries on the event loop's own connection to the catalog; changes run one after another in a thread
with a connection of theirs, and are on disk when they return.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from cove.registry.catalog import Catalog
from cove.registry.content import Content, sync_directory
from cove.registry.documents import Document
from cove.registry.refusals import Refused, full_disk
from cove.registry.threads import Threads
from cove.registry.uploads import Bounds, Session, Uploads

RELIED_S = 600.0  # a blob is noted again as relied upon after so long; the sweep's grace is longer


class Store:
    """One registry's content, opened by its one server."""

    def __init__(self, root: Path, bounds: Bounds) -> None:
        """Raises HostError, and Invalid when another server has it."""
        self.content = Content(root)
        self.content.prepare()
        self._lock = self.content.lock()
        self.writer = Catalog(root / "catalog.db", create=True)
        self.catalog = Catalog(root / "catalog.db")
        self.threads = Threads()
        self.bounds = bounds
        self.uploads = Uploads(self.content, self.threads, bounds)
        self.uploads.load()

    def close(self) -> None:
        self.threads.close()
        self.writer.close()
        self.catalog.close()

    # --- blobs --------------------------------------------------------------------------------

    async def finish_upload(self, session: Session, digest: str) -> None:
        """Make a complete upload a blob of its repository. Under `uploads.owned`. Refused: DIGEST_INVALID."""
        path = await self.uploads.seal(session, digest)
        await self.threads.change(self._place_blob, session.about.name, digest, path, session.offset)
        await self.uploads.end(session)

    def _place_blob(self, name: str, digest: str, path: Path, size: int) -> None:
        self.writer.add_blob(name, digest, size, lambda known: self.content.place(path, digest, known))

    async def mount(self, name: str, digest: str) -> bool:
        """Make content that the registry has a blob of this repository too; False: it hasn't."""
        size = self.catalog.find_content(digest)
        if size is None:
            return False
        try:
            await self.threads.change(self.writer.add_blob, name, digest, size, None)
        except Refused:
            return False  # swept meanwhile
        return True

    async def take_link(self, name: str, digest: str, link: str) -> int:
        """Make a link that lies in uploads/ a blob of a repository; its size in bytes."""
        path = self.content.uploads / link

        def take() -> int:
            try:
                size = path.stat().st_size
                self.writer.add_blob(
                    name, digest, size, lambda known: self.content.place(path, digest, known)
                )
            finally:
                path.unlink(missing_ok=True)
            return size

        return await self.threads.change(take)

    async def take_cached(self, name: str, digest: str, path: Path | None, size: int) -> bool:
        """Make a verified and synced file (None: what the registry has already) a blob of a proxied repository."""

        def take() -> bool:
            if path is None:
                return self.writer.add_cached(name, digest, size, None)
            try:
                return self.writer.add_cached(
                    name, digest, size, lambda known: self.content.place(path, digest, known)
                )
            finally:
                path.unlink(missing_ok=True)

        return await self.threads.change(take)

    async def rely_on(self, name: str, digest: str, at_s: float) -> bool:
        """Note that a pusher has been told of this blob, for the sweep; False: it has gone meanwhile."""
        if time.time() - at_s < RELIED_S:
            return True
        return await self.threads.change(self.writer.touch, name, digest)

    # --- manifests ----------------------------------------------------------------------------

    async def put_manifest(
        self,
        name: str,
        digest: str,
        data: bytes,
        document: Document,
        tags: Sequence[str],
        *,
        proxied: bool = False,
    ) -> None:
        """Keep a manifest, byte by byte. Refused: MANIFEST_BLOB_UNKNOWN."""
        if self.content.free_bytes() < self.bounds.reserve_bytes:
            raise full_disk("the registry's disk is full (--reserve)")

        def put() -> None:
            path = self.content.write_temporary(data)
            try:
                self.writer.put_manifest(
                    name,
                    digest,
                    len(data),
                    document,
                    tags,
                    lambda known: self.content.place(path, digest, known),
                    proxied=proxied,
                )
            finally:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()

        await self.threads.change(put)

    async def delete_tag(self, name: str, tag: str) -> None:
        await self.threads.change(self.writer.delete_tag, name, tag)

    async def delete_manifest(self, name: str, digest: str) -> None:
        await self.threads.change(self.writer.delete_manifest, name, digest)

    async def delete_blob(self, name: str, digest: str) -> None:
        await self.threads.change(self.writer.delete_blob, name, digest)

    def recover(self) -> None:
        """Put right what a crash left, before anything is served: see content.py."""
        with self.writer.writing():
            thrown = self.content.thrown()
            for digest in thrown:
                if self.writer.find_content(digest) is not None:
                    self.content.restore(digest)
        self.content.empty_trash(thrown)
        sync_directory(self.content.trash)
