"""What looks at all images of this machine, and keeps the store in order. Part of `Images`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cove.image.adding import Adding
from cove.image.catalog import CONFIG, DIGEST, LAYER, NAME
from cove.image.checking import read_listing, without
from cove.image.checktypes import Records, Report
from cove.image.content import Content
from cove.image.records import DigestRecord, ImageRecord, LayerRecord, hex_of
from cove.image.rewriting import config_changes, squashed_config
from cove.image.tooljobs import (
    BuildErofs,
    Checked,
    CheckStore,
    Compare,
    Compared,
    Deduped,
    DedupeLayers,
    ErofsBuilt,
    ReadStack,
    Slim,
    Slimmed,
    Survey,
    Surveyed,
)
from cove.image.types import Limits
from cove.image.worker import Worker
from cove.model.errors import Conflict, HostError, Invalid
from cove.model.objects import Image
from cove.model.waiting import NamedLocks
from cove.store.interface import Store


class Upkeep(Adding):
    """See the module."""

    def __init__(self, content: Content, store: Store, limits: Limits) -> None:
        super().__init__(content, store, limits)
        self._deduping = asyncio.Lock()
        self._building = NamedLocks()

    async def check(self, *, deep: bool = False) -> Report:
        """Compare the records with what is on the disk; `deep` reads and hashes every layer again. HostError.

        Nothing is collected meanwhile, and images can be added: what is compared is one moment's.
        """
        async with self.busy():
            async with self._lock:
                await self._record_now()  # layers that builds keep are in place before their records
                records = await self._stored_records()
                listing = await asyncio.to_thread(read_listing, self._content.root)
                listing = without(listing, self._garbage_layers, {hex_of(b) for b in self._garbage_blobs})
                running = self._busy > 1 or self._pulls > 0 or bool(self._reapers)
            job = CheckStore(
                root=str(self._content.root), records=records, listing=listing, running=running, deep=deep
            )
            async with Worker(job) as worker:
                answer = await worker.last()
            assert isinstance(answer, Checked)
            return answer.report

    async def _stored_records(self) -> Records:
        """What is committed: also of images that can't be used, which the catalog leaves out."""
        images = await self._store.range(CONFIG)
        layers = await self._store.range(LAYER)
        names = await self._store.range(NAME)
        digests = await self._store.range(DIGEST)
        return Records(
            images=tuple(msgspec.json.decode(item.value, type=ImageRecord) for item in images),
            layers=tuple(msgspec.json.decode(item.value, type=LayerRecord) for item in layers),
            names={item.key.removeprefix(NAME): item.value.decode() for item in names},
            digests={
                item.key.removeprefix(DIGEST): msgspec.json.decode(item.value, type=DigestRecord)
                for item in digests
            },
        )

    async def survey(self, image: Image) -> Surveyed:
        """Where the image's bytes are. HostError."""
        async with self.busy():
            job = Survey(root=str(self.layers_dir), layers=tuple(self.layer_paths(image)))
            async with Worker(job) as worker:
                answer = await worker.last()
            assert isinstance(answer, Surveyed)
            return answer

    async def compare(self, first: Image, second: Image) -> tuple[Compared, list[dict[str, Any]]]:
        """What differs in the files of two images, and in their settings. HostError."""
        async with self.busy():
            settings = config_changes(self.raw_config(first), self.raw_config(second))
            job = Compare(
                root=str(self.layers_dir),
                first=tuple(self.layer_paths(first)),
                second=tuple(self.layer_paths(second)),
            )
            async with Worker(job) as worker:
                answer = await worker.last()
            assert isinstance(answer, Compared)
            return answer, settings

    async def squash(self, image: Image, *, first: int = 1, reference: str = "", comment: str = "") -> Image:
        """Make an image whose layers from the `first` on (counted from 1, the lowest) are one. Invalid, HostError."""
        count = len(image.diff_ids)
        if not 1 <= first <= max(count, 1):
            raise Invalid(f"from: {first}: the image has {count} layers: name one of them, 1 is the lowest")
        keep = first - 1
        if not comment:
            comment = f"merge {image.id} to its layer {keep}" if keep else f"create new from {image.id}"
        async with self.busy():
            base = self.raw_config(image)
            upper = self.layer_paths(image)[keep:]
            async with contextlib.aclosing(self._read_stack(upper, whole=not keep)) as chunks:
                return await self.add_single(
                    chunks,
                    lambda layer: squashed_config(base, keep, layer, comment),
                    reference,
                    above=bool(keep),
                )

    async def plan_slim(self, image: Image, opened: Sequence[bytes], include: Sequence[str]) -> Slimmed:
        """What an image of these files would keep and leave out. Invalid, HostError."""
        async with self.busy():
            job = Slim(
                root=str(self.layers_dir),
                layers=tuple(self.layer_paths(image)),
                opened=tuple(opened),
                include=tuple(include),
            )
            async with Worker(job) as worker:
                answer = await worker.last()
            assert isinstance(answer, Slimmed)
            return answer

    async def slim(
        self, image: Image, opened: Sequence[bytes], include: Sequence[str], *, reference: str, comment: str
    ) -> Image:
        """Make an image of one layer with these files of another, and its settings. Invalid, HostError."""
        async with self.busy():
            base = self.raw_config(image)
            chunks = self._read_stack(self.layer_paths(image), whole=True, opened=opened, include=include)
            async with contextlib.aclosing(chunks) as pieces:
                return await self.add_single(
                    pieces, lambda layer: squashed_config(base, 0, layer, comment), reference
                )

    @property
    def is_busy(self) -> bool:
        """Whether images are being loaded, pulled, built, saved or looked through."""
        return bool(self._busy)

    async def dedupe(
        self, mounted: Collection[Image], *, fresh: Collection[str] | None = None, dry_run: bool = False
    ) -> Deduped:
        """Have equal files of layers share their blocks. `mounted`: images that containers or others look at now;
        `fresh`: diff ids of layers to be compared with all, instead of all. Conflict, HostError."""
        if self._deduping.locked():
            raise Conflict("layers are being deduplicated already: wait until that has ended")
        if self._busy and not dry_run:
            raise Conflict("images are being loaded, built or saved: try again when that has ended")
        async with self._deduping, self.staging() as staging:
            # What no image has a build may have mounted.
            loose = {diff_id for diff_id, _, users in self.layer_uses() if not users}
            job = DedupeLayers(
                root=str(self._content.root),
                staging=f"loading/{staging.name}",
                layers=tuple(layer.name for layer in self._layers.values()),
                mounted=(
                    *{name for image in mounted for name in self.layer_paths(image)},
                    *(self._layers[diff_id].name for diff_id in loose),
                ),
                fresh=None
                if fresh is None
                else tuple(self._layers[diff_id].name for diff_id in fresh if diff_id in self._layers),
                dry_run=dry_run,
            )
            async with Worker(job) as worker:
                answer = await worker.last()
            assert isinstance(answer, Deduped)
            return answer

    async def erofs_layers(self, image: Image) -> list[Path]:
        """The image's layers as EROFS images, lowest first; those that aren't there yet are made. They stay as long
        as their layers do. Unavailable, HostError."""
        found = []
        async with self.busy():
            for diff_id in image.diff_ids:
                layer = self._layers[diff_id]
                async with self._building.alone(layer.name):
                    if not (self._content.erofs / layer.name).exists():
                        await self._build_erofs(layer)
                found.append(self._content.erofs / layer.name)
        return found

    async def _build_erofs(self, layer: LayerRecord) -> None:
        free = self._content.free_bytes() - self._limits.reserve_bytes
        if layer.size_bytes > free:
            raise HostError(
                f"no space left on the image store's disk: an EROFS image of the layer takes {layer.size_bytes >> 20} "
                f"MiB, {max(free, 0) >> 20} MiB are free beside the reserve"
            )
        async with self.staging() as staging:
            job = BuildErofs(layer=str(self.layers_dir / layer.name), staging=str(staging), image="erofs")
            async with Worker(job) as worker:
                answer = await worker.last()
            assert isinstance(answer, ErofsBuilt)
            await asyncio.to_thread(os.rename, staging / "erofs", self._content.erofs / layer.name)

    async def _read_stack(
        self,
        layers: Sequence[str],
        *,
        whole: bool,
        opened: Sequence[bytes] | None = None,
        include: Sequence[str] = (),
    ) -> AsyncGenerator[bytes, None]:
        job = ReadStack(
            root=str(self.layers_dir),
            layers=tuple(layers),
            whole=whole,
            opened=None if opened is None else tuple(opened),
            include=tuple(include),
        )
        async with Worker(job) as worker:
            while piece := await worker.receive():
                yield piece
            await worker.last()
