"""The images of this machine: what the engine calls.

Owns the order of changes of what `catalog.py` shows. A change is one transaction of the store; content is there
before it and goes after it (content.py). `release` lets go of a hidden image when the last container of it is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from cove.image import manifests
from cove.image.catalog import CONFIG, DIGEST, NAME
from cove.image.changes import apply_changes
from cove.image.content import EMPTY_LAYER, Content
from cove.image.feed import Feed
from cove.image.hostmounts import refuse_mounted
from cove.image.jobs import Done, Progress, Save
from cove.image.manifests import ArchiveIndex
from cove.image.pruning import plan_prune
from cove.image.records import encode_record, hex_of
from cove.image.references import (
    id_prefix,
    parse_reference,
    parse_tagged,
)
from cove.image.registry import PullEvent, PullOptions
from cove.image.registry.arrivals import Arrivals
from cove.image.registry.artifacts import Artifact, Artifacts
from cove.image.registry.documents import Descriptor
from cove.image.registry.login import check_login
from cove.image.registry.pull import Puller
from cove.image.registry.push import PushedTag, Pusher, PushEvent, PushOptions
from cove.image.registry.search import Found, Wish, search
from cove.image.removal import Known, Removal, is_single, plan_removal
from cove.image.saving import WantedImage, plan_save
from cove.image.scanning import Scanning
from cove.image.types import Commit, LayerProgress, Limits, Loaded, LoadEvent, Removed, Use
from cove.image.upkeep import Upkeep
from cove.image.vulnerabilities import Vulnerabilities
from cove.image.worker import Worker
from cove.model.errors import Conflict, Invalid, NotFound
from cove.model.objects import Image
from cove.signing.types import Signature
from cove.store.interface import Delete, Op, Put, Store

_log = logging.getLogger(__name__)
Uses = Callable[[str], Sequence[Use]]


class Images(Upkeep):
    """See the module. Made by `open`, ended by `close`."""

    scanning: Scanning
    puller: Puller
    pusher: Pusher
    artifacts: Artifacts

    @classmethod
    async def open(cls, root: Path, store: Store, *, limits: Limits | None = None) -> Images:
        """Read the records, and remove whatever a crash left that no record names."""
        content = await asyncio.to_thread(Content, root)
        images = cls(content, store, limits or Limits())
        images.scanning = Scanning(images, content, Vulnerabilities(root.parent / "vulns"))
        await asyncio.to_thread(images.scanning.vulnerabilities.sweep)
        images.puller = Puller(images, content, Arrivals(content, images.limits, images.collect))
        images.pusher = Pusher(images, content, store)
        images.artifacts = Artifacts(images.pusher)
        await images._read_records()
        await images.signatures.read(images.all_digests())
        await asyncio.to_thread(
            content.sweep,
            layers=[layer.name for layer in images._layers.values()],
            blobs=images._wanted_blobs(),
        )
        return images

    # --- pull ---------------------------------------------------------------------------------

    def pull(self, reference: str, options: PullOptions) -> AsyncGenerator[PullEvent, None]:
        """Pull an image from its registry, or all tags of a repository. See `Puller.pull`."""
        return self.puller.pull(reference, options)

    # --- push ---------------------------------------------------------------------------------

    def push(self, reference: str, options: PushOptions) -> AsyncGenerator[PushEvent | PushedTag, None]:
        """Push an image, or all tags of a name, to its registry. See `Pusher.push`."""
        return self.pusher.push(reference, options)

    async def check_login(self, server: str, options: PullOptions) -> None:
        """Return if a registry takes the credentials. See `cove.image.registry.login`."""
        await check_login(server, options, self._content.layers / EMPTY_LAYER)

    async def push_artifact(self, reference: str, artifact: Artifact, options: PullOptions) -> str:
        """Put a small manifest with its blobs into a repository: by tag, or by its digest without one; the digest."""
        return await self.artifacts.push(reference, artifact, options)

    async def referrers(
        self, reference: str, digest: str, options: PullOptions, *, artifact_type: str = ""
    ) -> list[Descriptor]:
        """What a repository has that refers to a manifest. See `Artifacts.referrers`."""
        return await self.artifacts.referrers(reference, digest, options, artifact_type=artifact_type)

    async def search(self, wish: Wish, options: PullOptions) -> list[Found]:
        """Repositories of a registry that match. See `cove.image.registry.search`."""
        return await search(wish, options, self._content.layers / EMPTY_LAYER)

    # --- load and import ----------------------------------------------------------------------

    async def load(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[LoadEvent, None]:
        """Load a docker-archive or an OCI layout, compressed or not. Invalid, HostError: nothing was added.

        Everything is read and checked before the first image is added; only the host's failure in
        between (a disk that fills up) can leave the archive's first images in, each whole.
        """
        feed = Feed[LoadEvent](lambda event: event.id if isinstance(event, LayerProgress) else None)
        async with contextlib.aclosing(feed.run(self._load(chunks, feed.push))) as events:
            async for event in events:
                yield event

    async def _load(self, chunks: AsyncIterator[bytes], push: Callable[[LoadEvent], None]) -> None:
        def report(progress: Progress) -> None:
            stem = progress.name.removeprefix("blobs/sha256/").removesuffix("/layer.tar")
            push(LayerProgress(id=stem[:12], current=progress.current, total=progress.total))

        async with self.staging() as staging:
            members = await self.unpack(staging, chunks, report, single=False)
            known = self._known_digests()
            found = ArchiveIndex(members, known, self._limits).images(self.architecture)
            for one in found:
                await self.add(staging, one)
                push_names = [name.familiar for name in one.names]
                for name in push_names:
                    push(Loaded(image_id=one.image.id, name=name))
                if not push_names:
                    push(Loaded(image_id=one.image.id))

    async def import_image(
        self,
        chunks: AsyncIterator[bytes],
        reference: str = "",
        message: str = "",
        changes: Sequence[str] = (),
        *,
        architecture: str = "",
    ) -> Image:
        """Make an image of one layer from a tarball of its files. Invalid, HostError."""
        config: dict[str, Any] = apply_changes({}, changes)
        created = _now()
        comment = message or "Imported from -"

        def document(layer: Sequence[str]) -> dict[str, Any]:
            return {
                "architecture": architecture or self.architecture,
                "comment": comment,
                "config": config,
                "created": created,
                "history": [{"created": created, "comment": comment}],
                "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": layer},
            }

        return await self.add_single(chunks, document, reference)

    async def commit(
        self, chunks: AsyncIterator[bytes], base: Image, commit: Commit, reference: str = ""
    ) -> Image:
        """Make an image of `base` and one layer above it, which is left out when it's empty. Invalid, HostError."""
        return await self.add_single(
            chunks,
            lambda layer: manifests.committed_config(self.raw_config(base), layer, commit, _now()),
            reference,
            parent=base.id,
        )

    # --- save ---------------------------------------------------------------------------------

    def save(self, references: Sequence[str]) -> AsyncGenerator[bytes, None]:
        """An archive that docker load and OCI tools both read. NotFound and Invalid come at once, not later."""
        wanted: dict[str, list[str]] = {}
        for reference in references:
            for image_id, name in self._saved_names(reference):
                names = wanted.setdefault(image_id, [])
                if name and name not in names:
                    names.append(name)
        return self._save({image_id: sorted(names) for image_id, names in wanted.items()})

    async def _save(self, wanted: dict[str, list[str]]) -> AsyncGenerator[bytes, None]:
        async with self.busy():
            job = await asyncio.to_thread(self._save_job, wanted)
            async with Worker(job) as worker:
                while piece := await worker.receive():
                    yield piece
                answer = await worker.last()
                assert isinstance(answer, Done)

    def _save_job(self, wanted: dict[str, list[str]]) -> Save:
        return plan_save(
            [
                WantedImage(
                    record=self._records[image_id],
                    layers=tuple(self._layers[diff_id] for diff_id in self._images[image_id].diff_ids),
                    names=tuple(names),
                )
                for image_id, names in wanted.items()
            ],
            root=str(self._content.root),
            blob_size=self._content.blob_size,
        )

    # --- names and removal --------------------------------------------------------------------

    async def tag(self, source: str, target: str) -> Image:
        """Give an image another name; whoever had it loses it. NotFound, Invalid."""
        name = parse_tagged(target).familiar
        async with self._lock:
            image = self.find_image(source)
            record = msgspec.structs.replace(self._records[image.id], last_tagged_ns=time.time_ns())
            await self._store.txn(
                [],
                [
                    Put(NAME + name, image.id.encode()),
                    Put(CONFIG + hex_of(image.id), encode_record(record)),
                ],
            )
            self._records[image.id] = record
            self._set_names({name: image.id})
            return self._images[image.id]

    async def add_signatures(self, reference: str, digest: str, signatures: Sequence[Signature]) -> int:
        """Keep signatures of an image's manifest; how many are new. NotFound, Invalid, Conflict."""
        async with self._lock:
            image = self.find_image(reference)
            if digest not in self.image_digests(image):
                raise Invalid(f"{digest[:80]} isn't a manifest of {reference}: sign what the image has now")
            return await self.signatures.add(digest, signatures)

    async def remove_signatures(self, reference: str) -> int:
        """Forget the signatures of an image that are kept here; how many there were. NotFound, Invalid."""
        async with self._lock:
            return await self.signatures.forget(self.image_digests(self.find_image(reference)))

    async def remove(self, reference: str, *, force: bool, prune: bool, in_use: Uses) -> list[Removed]:
        """Take a name off, or an image away with what nobody else needs. NotFound, Invalid, Conflict."""
        async with self._lock:
            image = self.find_image(reference)
            name = (
                ""
                if _names_the_id(reference, image)
                else parse_reference(reference).with_default_tag().familiar
            )
            if name and name not in (*image.names, *image.repo_digests):
                name = ""  # by a digest that it wasn't pulled by: as its id
            known = Known(
                names={i.id: (*i.names, *i.repo_digests) for i in self.list_images()},
                parents={i.id: i.parent for i in self.list_images() if i.parent},
                uses=in_use,
            )
            removal = plan_removal(known, image.id, name, force=force, prune=prune)
            refuse_mounted(removal.delete)
            lines = await self._apply(removal, in_use)
        await self.collect()
        return lines

    async def prune(self, select: Callable[[Image], bool], in_use: Uses) -> tuple[list[Removed], int]:
        """Remove every selected image no container was made from; what went, and the bytes it took."""
        before = self.size_on_disk()
        lines: list[Removed] = []
        for image in self.list_images():
            if image.id in self._images and select(image) and not in_use(image.id):
                try:
                    names = (*image.names, *image.repo_digests)
                    force = bool(names) and not is_single(names)
                    lines += await self.remove(image.id, force=force, prune=True, in_use=in_use)
                except (Conflict, NotFound):
                    continue  # a child or a new container needs it
        return lines, max(0, before - self.size_on_disk())

    def plan_prune(self, select: Callable[[Image], bool], in_use: Uses) -> tuple[list[Removed], int]:
        """What `prune` would remove, with layers, and the bytes it would free; and hidden images that nobody uses."""
        lines, gone = plan_prune(self.list_images(), select, in_use)
        gone |= {i for i, record in self._records.items() if record.hidden and not in_use(i)}
        stays = [image for image_id, image in self._images.items() if image_id not in gone]
        kept = {diff_id for image in stays for diff_id in image.diff_ids}
        chains = {
            chain for image_id in gone for chain in manifests.chain_ids(self._images[image_id].diff_ids)
        } - {chain for image in stays for chain in manifests.chain_ids(image.diff_ids)}
        freed = sum(layer.disk_bytes for diff_id, layer in self._layers.items() if diff_id not in kept)
        return [*lines, *(Removed(deleted=chain) for chain in sorted(chains))], freed

    async def release(self, in_use: Uses) -> None:
        """Let go of hidden images whose last container is gone. Call it when a container was removed.

        Without hidden images it waits for nobody: a load may hold the lock for as long as the disk takes.
        """
        if not any(record.hidden for record in self._records.values()):
            return
        async with self._lock:
            gone = [i for i, record in self._records.items() if record.hidden and not in_use(i)]
            if not gone:
                return
            await self._forget(gone, [])
        await self.collect()

    async def _apply(self, removal: Removal, in_use: Uses) -> list[Removed]:
        chains = {
            chain
            for image_id in removal.delete
            for chain in manifests.chain_ids(self._images[image_id].diff_ids)
        }
        hide = [image_id for image_id in removal.delete if in_use(image_id)]
        gone = [image_id for image_id in removal.delete if image_id not in hide]
        await self._forget(gone, removal.untag, hide=hide)
        for image in self._images.values():
            chains.difference_update(manifests.chain_ids(image.diff_ids))
        lines = [Removed(untagged=v) if kind == "untagged" else Removed(deleted=v) for kind, v in removal.log]
        return lines + [Removed(deleted=chain) for chain in sorted(chains)]

    async def _forget(self, gone: Sequence[str], untag: Sequence[str], *, hide: Sequence[str] = ()) -> None:
        """One transaction: names and images off the record. Their layers go in `_collect`."""
        hidden = [msgspec.structs.replace(self._records[image_id], hidden=True) for image_id in hide]
        operations: list[Op] = [Delete((DIGEST if "@" in name else NAME) + name) for name in untag]
        operations += [Put(CONFIG + hex_of(record.id), encode_record(record)) for record in hidden]
        operations += [Delete(CONFIG + hex_of(image_id)) for image_id in gone]
        digests = self.all_digests()
        await self._store.txn([], operations)
        before = self._wanted_blobs()
        affected = {self._names.pop(name) for name in untag if name in self._names}
        affected |= {self._digests.pop(name).image for name in untag if name in self._digests}
        for record in hidden:
            self._records[record.id] = record
        for image_id in gone:
            del self._images[image_id], self._records[image_id]
        self._garbage_blobs |= before - self._wanted_blobs()
        for image_id in affected:
            self._refresh(image_id)
        await self.signatures.forget(digests - self.all_digests())


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _names_the_id(reference: str, image: Image) -> bool:
    return bool(id_prefix(reference)) and (
        image.id.startswith(reference) or hex_of(image.id).startswith(reference)
    )
