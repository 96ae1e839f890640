"""What is in an image: the daemon's side. Layers are looked through once by a worker, and the results are kept.

    images/scans/NAME.FORMAT   what the layer NAME has (cove.scan.model.LayerScan), removed with the layer

The daemon never reads what a worker made of a stranger's files: it stores it, and hands it to the next worker, which
makes the report. Order that must hold: a result is written, synced and then renamed to its name.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Protocol

import msgspec

from cove.image.content import Content
from cove.image.scantypes import MakeBill, MakeScan, ScanJob, ScanLayers, ScannedImage
from cove.image.vulnerabilities import Vulnerabilities
from cove.image.worker import Worker
from cove.model.errors import HostError, Invalid, Unavailable
from cove.model.objects import Image
from cove.model.waiting import NamedLocks
from cove.scan.model import FORMAT, Subject
from cove.scan.severity import LEVELS

SCAN_S = 900  # to look through the layers of one image
IGNORE_MAX = 10_000
_RESULT_MAX = 256 << 20
_SUMMARIES_MAX = 1000
SCAN_FORMATS = ("json", "sarif", "summary")
BILL_FORMATS = ("cyclonedx", "spdx", "json")


class Store(Protocol):
    """What this module needs of the images."""

    def find_image(self, reference: str) -> Image: ...
    def image_by_id(self, image_id: str) -> Image: ...
    def layer_paths(self, image: Image) -> list[str]: ...
    def manifest_digest(self, image: Image) -> str: ...
    def raw_config(self, image: Image) -> bytes: ...
    def busy(self) -> contextlib.AbstractAsyncContextManager[None]: ...


class Scanning:
    """See the module."""

    def __init__(self, images: Store, content: Content, vulnerabilities: Vulnerabilities) -> None:
        self._images = images
        self._content = content
        self.vulnerabilities = vulnerabilities
        self._locks = NamedLocks()
        self._summaries: OrderedDict[tuple[str, str], dict[str, int]] = OrderedDict()

    async def bill(self, reference: str, form: str, *, epoch_s: int) -> AsyncGenerator[bytes, None]:
        """A bill of materials of an image, in pieces. NotFound, Invalid, Unavailable, HostError."""
        if form not in BILL_FORMATS:
            raise Invalid(f"format {form}: expected one of {', '.join(BILL_FORMATS)}, e.g. format=cyclonedx")
        pieces = self._report(
            lambda: self._images.find_image(reference),
            reference,
            lambda image, _: MakeBill(image=image, form=form, epoch_s=epoch_s),
        )
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def scan(
        self,
        reference: str,
        form: str,
        *,
        level: str = "",
        ignore: tuple[str, ...] = (),
        only_fixed: bool = False,
        secrets: bool = True,
        vulnerabilities: bool = True,
    ) -> AsyncGenerator[bytes, None]:
        """The report of an image's vulnerabilities and secrets, in pieces. `level`: these and worse ones; `ignore`:
        ids, or ID:PACKAGE. NotFound, Invalid, Unavailable, HostError."""
        if form not in SCAN_FORMATS:
            raise Invalid(f"format {form}: expected one of {', '.join(SCAN_FORMATS)}, e.g. format=json")
        if level and level not in LEVELS:
            raise Invalid(f"severity {level}: expected one of {', '.join(LEVELS)}, e.g. severity=high")
        if len(ignore) > IGNORE_MAX:
            raise Invalid(f"ignore: {len(ignore)} ids; up to {IGNORE_MAX} can be left out")
        pieces = self._report(
            lambda: self._images.find_image(reference),
            reference,
            lambda image, config: MakeScan(
                image=image,
                database=self.vulnerabilities.path if vulnerabilities else "",
                config=config,
                form=form,
                level=level,
                ignore=ignore,
                only_fixed=only_fixed,
                secrets=secrets,
            ),
        )
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def summary(self, image_id: str) -> dict[str, int]:
        """How many vulnerabilities of each level an image has, by its whole id, hidden ones too: what a policy asks
        for. Kept for each image and database. NotFound (no database), Unavailable, HostError."""
        key = (image_id, self.vulnerabilities.version)
        known = self._summaries.get(key)
        if known is None:
            pieces = self._report(
                lambda: self._images.image_by_id(image_id),
                image_id,
                lambda image, config: MakeScan(
                    image=image, database=self.vulnerabilities.path, config=config, form="summary"
                ),
            )
            async with contextlib.aclosing(pieces):
                data = b"".join([piece async for piece in pieces])
            known = self._summaries[key] = msgspec.json.decode(data, type=dict[str, int])
            while len(self._summaries) > _SUMMARIES_MAX:
                self._summaries.popitem(last=False)
        return known

    async def _report(
        self, find: Callable[[], Image], reference: str, job: Callable[[ScannedImage, bytes], ScanJob]
    ) -> AsyncGenerator[bytes, None]:
        """What a worker makes of an image whose layers have been looked through."""
        async with self._images.busy():
            image = find()
            layers = self._images.layer_paths(image)
            scans = await self._scanned(layers)
            scanned = ScannedImage(
                layers_dir=str(self._content.layers),
                layers=tuple(layers),
                scans=tuple(str(path) for path in scans),
                subject=self._subject(image, reference),
            )
            config = await asyncio.to_thread(self._images.raw_config, image)
            async with Worker(job(scanned, config)) as worker:
                while piece := await worker.receive():
                    yield piece
                await worker.last()

    def _subject(self, image: Image, reference: str) -> Subject:
        name = reference if reference in image.names else next(iter(image.names), image.id)
        lines = [entry.created_by for entry in image.history if not entry.empty_layer]
        return Subject(
            name=name,
            id=image.id,
            manifest=self._images.manifest_digest(image),
            architecture=image.architecture,
            diff_ids=image.diff_ids,
            created_by=tuple(lines) if len(lines) == len(image.diff_ids) else (),
        )

    async def _scanned(self, layers: list[str]) -> list[Path]:
        """The layers' results, which are made where they are missing; whoever asks at the same time shares them."""
        paths = [self._content.scan_path(name, FORMAT) for name in layers]
        async with contextlib.AsyncExitStack() as held:
            for name in sorted({name for name, path in zip(layers, paths, strict=True) if not path.exists()}):
                await held.enter_async_context(self._locks.alone(name))
            missing = {name: path for name, path in zip(layers, paths, strict=True) if not path.exists()}
            if missing:
                try:
                    async with asyncio.timeout(SCAN_S):
                        await self._scan(missing)
                except TimeoutError:
                    raise Unavailable(
                        f"the image's layers could not be looked through within {SCAN_S} s: they have too many files"
                    ) from None
        return paths

    async def _scan(self, missing: dict[str, Path]) -> None:
        job = ScanLayers(layers_dir=str(self._content.layers), layers=tuple(missing))
        async with Worker(job) as worker:
            received = Received(worker)
            for path in missing.values():
                data = await received.block()
                if data is None:
                    break
                await asyncio.to_thread(write_whole, path, data)
            await worker.last()


class Received:
    """Blocks of a worker's data, each with its length in front."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._rest = bytearray()

    async def block(self) -> bytes | None:
        """The next block; None where the data ends before it, for a reason that the worker's answer tells."""
        head = await self._take(4)
        if head is None:
            return None
        length = int.from_bytes(head, "little")
        if length > _RESULT_MAX:
            raise HostError(f"a layer's list of packages has {length} bytes; the limit is {_RESULT_MAX}")
        return await self._take(length)

    async def _take(self, length: int) -> bytes | None:
        while len(self._rest) < length:
            piece = await self._worker.receive()
            if not piece:
                return None
            self._rest += piece
        taken = bytes(self._rest[:length])
        del self._rest[:length]
        return taken


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all. HostError."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        with open(partial, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise HostError(f"a layer's list of packages can't be kept: {error.strerror}") from error
