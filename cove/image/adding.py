"""Put images on record, and take away what no record names: what loads, pulls, commits and builds share.

Order that must hold: content is staged, unpacked and synced by a worker; `add` puts it in place and commits the
records in one transaction; `collect` throws away what no image refers to, unless somebody is `busy` with it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cove.image import manifests
from cove.image.catalog import CONFIG, DIGEST, HELD, LAYER, NAME, PUSHED, Catalog
from cove.image.content import EMPTY_LAYER, Content
from cove.image.jobs import Member, Progress, Unpack, Unpacked
from cove.image.manifests import FoundImage, LayerBlob
from cove.image.records import DigestRecord, HeldRecord, ImageRecord, LayerRecord, encode_record, hex_of
from cove.image.references import parse_tagged
from cove.image.signatures import Signatures
from cove.image.types import Limits
from cove.image.worker import Worker
from cove.model.errors import HostError, NotFound
from cove.model.objects import Image
from cove.model.waiting import finish
from cove.store.interface import MAX_OPERATIONS, Delete, Put, Store

_log = logging.getLogger(__name__)
_BATCH = 64  # records in one transaction; each has at most 16 KiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where an image came from: `name@digest` in a registry, and the documents there, the manifest last."""

    name: str
    documents: tuple[bytes, ...]
    places: Mapping[str, Path]  # staging directories of layers by diff id; their blobs are in images/partial


class Adding(Catalog):
    """See the module."""

    def __init__(self, content: Content, store: Store, limits: Limits) -> None:
        super().__init__(content, store, limits)
        self.signatures = Signatures(store, content.layers / EMPTY_LAYER)
        self._lock = asyncio.Lock()  # one change at a time; never held while an archive is read
        self._busy = 0  # loads and saves under way: they rely on layers, so none is deleted meanwhile
        self._pulls = 0
        self._reapers: set[asyncio.Task[None]] = set()
        self._trash_waits = False
        self.on_layers: Callable[[Sequence[str]], None] = lambda diff_ids: None  # told of new ones, on record
        self._garbage_layers: set[str] = set()
        self._garbage_blobs: set[str] = set()
        self._relied_on: Counter[str] = Counter()  # layers that work under way needs, by diff id
        self._unrecorded_layers: set[str] = set()  # in place and held, but not in the store yet
        self._unrecorded_held: set[str] = set()

    async def close(self) -> None:
        """Wait for the deletions that go on behind."""
        while self._reapers:
            await asyncio.wait(self._reapers)

    @asynccontextmanager
    async def busy(self) -> AsyncGenerator[None, None]:
        """While inside, nothing is collected: layers and blobs that are on record now stay readable."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            await self.collect()

    @contextmanager
    def pulling(self, diff_ids: Sequence[str]) -> Iterator[None]:
        """While inside, an image is being pulled that relies on these layers."""
        self._pulls += 1
        try:
            with self.relying(diff_ids):
                yield
        finally:
            self._pulls -= 1

    @asynccontextmanager
    async def staging(self) -> AsyncGenerator[Path, None]:
        """A load's directory; whatever is in it at the end is thrown away."""
        staging = await asyncio.to_thread(self._content.new_staging)
        self._busy += 1
        try:
            yield staging
        finally:
            self._busy -= 1
            await finish(asyncio.to_thread(self._content.throw, staging=staging))
            await self.collect()

    async def unpack(
        self, staging: Path, chunks: AsyncIterator[bytes], report: Callable[[Progress], None], *, single: bool
    ) -> tuple[Member, ...]:
        job = Unpack(
            staging=str(staging),
            known=() if single else tuple(self._known_digests()),
            single=single,
            budget_bytes=self.budget_bytes(),
            limits=self._limits,
        )
        async with Worker(job) as worker:
            answer = await worker.feed_and_wait(chunks, report)
        assert isinstance(answer, Unpacked)
        return answer.members

    async def add_single(
        self,
        chunks: AsyncIterator[bytes],
        document: Callable[[Sequence[str]], dict[str, Any]],
        reference: str,
        *,
        parent: str = "",
        above: bool = False,
    ) -> Image:
        """Unpack one layer and add the image whose configuration `document` makes of the layer's diff id; of none
        when a layer above others (a parent's, or `above`) has nothing in it."""
        name = parse_tagged(reference) if reference else None
        async with self.staging() as staging:
            layers = await self.unpack(staging, chunks, lambda _: None, single=True)
            if (parent or above) and layers[0].diff_id == manifests.EMPTY_DIFF_ID:
                layers = ()
            data = msgspec.json.encode(document([layer.diff_id for layer in layers]))
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            found = FoundImage(
                image=manifests.parse_config(data, digest, self._limits),
                config=data,
                manifest=None,
                manifest_layers=(),
                layers=layers,
                names=(name,) if name else (),
                parent=parent,
            )
            return await self.add(staging, found)

    async def add(self, staging: Path, found: FoundImage, origin: Origin | None = None) -> Image:
        """Put an image's content in place and then on record; on failure neither is there.

        Returns the image as it is on record then: it may be removed as soon as the lock is free.
        """
        async with self._lock:
            layers: dict[str, LayerRecord] = {}
            placed_blobs: list[str] = []
            try:
                for member in found.layers:
                    diff_id = member.diff_id
                    if member.known or diff_id in self._layers or diff_id in layers:
                        continue
                    record = self._layer_record(member)
                    layers[diff_id] = record
                    blob = record.blob.removeprefix("sha256:") if record.compression else ""
                    place = origin.places.get(diff_id) if origin else None
                    await asyncio.to_thread(
                        self._content.place_layer,
                        place or staging,
                        member.layer,
                        record.name,
                        blob=blob,
                        opaque=member.opaque,
                        partial=hex_of(member.digest) if place else "",
                    )
                manifest = await asyncio.to_thread(
                    self._write_documents, staging, found, layers, placed_blobs
                )
                known: dict[str, DigestRecord] = {}
                if origin is not None:
                    documents = await asyncio.to_thread(
                        lambda: [self._content.write_blob(staging, data) for data in origin.documents]
                    )
                    placed_blobs += documents
                    known[origin.name] = DigestRecord(image=found.image.id, documents=tuple(documents))
                    await asyncio.to_thread(self._content.sync)
                if self._unrecorded_layers.intersection(found.image.diff_ids):
                    await finish(self._record_now())  # a build's, which isn't in the store yet
                await self._commit_image(found, manifest, layers, known)
                return self._images[found.image.id]
            except BaseException:
                blobs = [layer.blob for layer in layers.values() if layer.compression] + placed_blobs
                self._garbage_layers.update(layer.name for layer in layers.values())
                self._garbage_blobs.update(blobs)
                raise

    async def add_pulled(
        self, found: FoundImage, name: str, documents: tuple[bytes, ...], places: Mapping[str, Path]
    ) -> Image:
        """`add` an image of a registry under `name@digest`, with the documents that led to it as they came."""
        async with self.staging() as staging:
            return await self.add(staging, found, Origin(name=name, documents=documents, places=places))

    async def note_digest(self, image_id: str, name: str, manifest: bytes) -> None:
        """Put on record that an image is known to a registry as `name@digest`. NotFound: it was removed meanwhile."""
        async with self.staging() as staging, self._lock:
            if image_id not in self._records:
                raise NotFound(f"No such image: {image_id}")
            digest = await asyncio.to_thread(self._content.write_blob, staging, manifest)
            await asyncio.to_thread(self._content.sync)
            old = self._digests.get(name)
            record = DigestRecord(image=image_id, documents=(digest,))
            if old == record:
                return
            await self._store.txn([], [Put(DIGEST + name, encode_record(record))])
            self._digests[name] = record
            if old is not None:
                self._garbage_blobs.update(old.documents)
            for changed in {image_id, *([old.image] if old else [])}:
                self._refresh(changed)

    def _layer_record(self, member: Member) -> LayerRecord:
        return LayerRecord(
            name=self._content.new_layer_name(),
            diff_id=member.diff_id,
            blob=member.digest,
            blob_bytes=member.size,
            size_bytes=member.unpacked_bytes,
            compression=member.compression,
            moved=member.moved > 0,
        )

    def _write_documents(
        self, staging: Path, found: FoundImage, new: dict[str, LayerRecord], written: list[str]
    ) -> str:
        """Write configuration and manifest; the manifest's digest."""
        records = [new.get(diff_id) or self._layers[diff_id] for diff_id in found.image.diff_ids]
        data = found.manifest
        # A manifest that names blobs we keep in another form (plain here, gzip there) can't be kept.
        if data is None or found.manifest_layers != tuple(record.blob for record in records):
            blobs = [LayerBlob(digest=r.blob, size=r.blob_bytes, compression=r.compression) for r in records]
            data = manifests.build_manifest(found.image.id, len(found.config), blobs)
        written.append(self._content.write_blob(staging, found.config))
        manifest = self._content.write_blob(staging, data)
        written.append(manifest)
        self._content.sync()
        return manifest

    async def _commit_image(
        self, found: FoundImage, manifest: str, layers: dict[str, LayerRecord], known: dict[str, DigestRecord]
    ) -> None:
        image_id = found.image.id
        now = time.time_ns()
        old = self._records.get(image_id)
        if old is not None:
            record = msgspec.structs.replace(old, hidden=False)
        else:
            record = ImageRecord(id=image_id, manifest=manifest, parent=found.parent)
        if found.names:
            record = msgspec.structs.replace(record, last_tagged_ns=now)
        names = [name.familiar for name in found.names]
        await self._store.txn(
            [],
            [
                *(Put(LAYER + hex_of(diff_id), encode_record(layer)) for diff_id, layer in layers.items()),
                Put(CONFIG + hex_of(image_id), encode_record(record)),
                *(Put(NAME + name, image_id.encode()) for name in dict.fromkeys(names)),
                *(Put(DIGEST + name, encode_record(record)) for name, record in known.items()),
            ],
        )
        self._layers.update(layers)
        self.on_layers(list(layers))
        moved = [self._digests[name] for name in known if name in self._digests]
        self._garbage_blobs.update(digest for old_known in moved for digest in old_known.documents)
        self._digests.update(known)
        self._records[image_id] = record
        self._images[image_id] = found.image
        if record.manifest != manifest:
            self._garbage_blobs.add(manifest)  # the image was there, with a manifest of its own
        self._set_names(dict.fromkeys(names, image_id))
        for changed in (image_id, *(old_known.image for old_known in moved)):
            self._refresh(changed)

    # --- layers that are held -----------------------------------------------------------------

    @contextmanager
    def relying(self, layers: Sequence[str]) -> Iterator[None]:
        """While inside, these layers stay, whoever lets go of them."""
        self.rely_on(layers)
        try:
            yield
        finally:
            self.rely_no_more(layers)

    def rely_on(self, layers: Sequence[str]) -> None:
        """As `relying`, until `rely_no_more`."""
        self._relied_on.update(layers)

    def rely_no_more(self, layers: Sequence[str]) -> None:
        self._relied_on.subtract(layers)
        self._relied_on = +self._relied_on

    def budget_bytes(self) -> int:
        """How much may be written. Raises HostError when there is no room."""
        budget = self._content.free_bytes() - self._limits.reserve_bytes
        if budget <= 0:
            raise HostError(
                f"no space left on the image store's disk: {self._limits.reserve_bytes >> 20} MiB must stay free"
            )
        return budget

    def has_layers(self, layers: Sequence[str]) -> bool:
        """Whether all of these are on record."""
        return all(diff_id in self._layers for diff_id in layers)

    def names_of_layers(self, layers: Sequence[str]) -> list[str]:
        """Where layers lie, relative to `layers_dir`; an empty one for none."""
        return [self._layers[diff_id].name for diff_id in layers] or [EMPTY_LAYER]

    def held(self, who: str) -> dict[str, HeldRecord]:
        """What `who` holds, by key."""
        prefix = f"{who}/"
        return {k.removeprefix(prefix): held for k, held in self._held.items() if k.startswith(prefix)}

    def find_held(self, who: str, key: str) -> HeldRecord | None:
        return self._held.get(f"{who}/{key}")

    async def place_layer(self, staging: Path, member: Member) -> None:
        """Put a new layer in place. It goes at the next collection unless somebody relies on it or holds it then, and
        it is gone after a crash unless `record_held` came first."""
        if member.diff_id in self._layers:
            return
        async with self._lock:
            if member.diff_id in self._layers:
                return
            record = self._layer_record(member)
            try:
                await asyncio.to_thread(
                    self._content.place_layer,
                    staging,
                    member.layer,
                    record.name,
                    blob="",
                    opaque=member.opaque,
                )
            except BaseException:
                self._garbage_layers.add(record.name)
                raise
            self._layers[member.diff_id] = record
            self._unrecorded_layers.add(member.diff_id)

    def hold(self, who: str, key: str, layers: Sequence[str], note: object) -> None:
        """Hold on to layers under a key; `record_held` makes it last."""
        record = HeldRecord(layers=tuple(layers), note=msgspec.Raw(msgspec.json.encode(note)))
        self._held[f"{who}/{key}"] = record
        self._unrecorded_held.add(f"{who}/{key}")

    async def record_held(self) -> None:
        """Make everything that is held since the last call durable: files first, then the records."""
        async with self._lock:
            await finish(self._record_now())

    async def _record_now(self) -> None:
        layers, keys = sorted(self._unrecorded_layers), sorted(self._unrecorded_held)
        self._unrecorded_layers, self._unrecorded_held = set(), set()
        puts: list[Put | Delete] = [
            Put(LAYER + hex_of(i), encode_record(self._layers[i])) for i in layers if i in self._layers
        ]
        puts += [Put(HELD + key, encode_record(self._held[key])) for key in keys if key in self._held]
        if not puts:
            return
        try:
            if layers:
                await asyncio.to_thread(self._content.sync_all)
            for start in range(0, len(puts), _BATCH):
                await self._store.txn([], puts[start : start + _BATCH])
        except BaseException:
            self._unrecorded_layers.update(layers)
            self._unrecorded_held.update(keys)
            raise

    async def let_go(self, who: str, keys: Sequence[str]) -> None:
        """Hold on to these no more; layers that nobody else has go."""
        async with self._lock:
            names = [f"{who}/{key}" for key in keys if f"{who}/{key}" in self._held]
            for start in range(0, len(names), MAX_OPERATIONS):
                await self._store.txn([], [Delete(HELD + n) for n in names[start : start + MAX_OPERATIONS]])
            for name in names:
                self._held.pop(name, None)
                self._unrecorded_held.discard(name)
        await self.collect()

    # --- collecting ---------------------------------------------------------------------------

    async def collect(self) -> None:
        """Take away what no image refers to, unless a load or a save may still rely on it."""
        if not self._busy:
            await finish(self._collect_now())
        self._trash_waits = True
        if all(reaper.done() for reaper in self._reapers):  # one that has just ended looks no more
            reaper = asyncio.ensure_future(self._empty_trash())
            self._reapers.add(reaper)
            reaper.add_done_callback(self._reapers.discard)

    async def _collect_now(self) -> None:
        # Under the lock, so that no image that is being added finds a blob that is about to go.
        async with self._lock:
            wanted = self._wanted_layers().union(self._relied_on)
            loose = [layer for diff_id, layer in self._layers.items() if diff_id not in wanted]
            if self._busy or not (loose or self._garbage_layers or self._garbage_blobs):
                return
            before = self._wanted_blobs()
            for layer in loose:
                del self._layers[layer.diff_id]
                self._unrecorded_layers.discard(layer.diff_id)
            layers = self._garbage_layers | {layer.name for layer in loose}
            blobs = (self._garbage_blobs | before) - self._wanted_blobs()
            self._garbage_layers, self._garbage_blobs = set(), set()
            keys = [kind + hex_of(layer.diff_id) for layer in loose for kind in (LAYER, PUSHED)]
            for start in range(0, len(keys), MAX_OPERATIONS):
                batch = keys[start : start + MAX_OPERATIONS]
                await self._store.txn([], [Delete(key) for key in batch])
            await asyncio.to_thread(self._content.throw, layers=layers, blobs=blobs)

    async def _empty_trash(self) -> None:
        try:
            while self._trash_waits:
                self._trash_waits = False
                await asyncio.to_thread(self._content.empty_trash)
        except OSError as error:
            _log.warning("the image store's trash can't be emptied, the next start tries again: %s", error)
