"""What looks at all images of this machine, and keeps the store in order. Part of `Images`."""

from __future__ import annotations

import asyncio

import msgspec

from cove.image.adding import Adding
from cove.image.catalog import CONFIG, LAYER, NAME
from cove.image.checking import read_listing, without
from cove.image.checktypes import Records, Report
from cove.image.records import ImageRecord, LayerRecord, hex_of
from cove.image.tooljobs import Checked, CheckStore
from cove.image.worker import Worker


class Upkeep(Adding):
    """See the module."""

    async def check(self, *, deep: bool = False) -> Report:
        """Compare the records with what is on the disk; `deep` reads and hashes every layer again. HostError.

        Nothing is collected meanwhile, and images can be added: what is compared is one moment's.
        """
        async with self.busy():
            async with self._lock:
                records = await self._stored_records()
                listing = await asyncio.to_thread(read_listing, self._content.root)
                listing = without(listing, self._garbage_layers, {hex_of(b) for b in self._garbage_blobs})
                running = self._busy > 1 or bool(self._reapers)
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
        return Records(
            images=tuple(msgspec.json.decode(item.value, type=ImageRecord) for item in images),
            layers=tuple(msgspec.json.decode(item.value, type=LayerRecord) for item in layers),
            names={item.key.removeprefix(NAME): item.value.decode() for item in names},
        )
