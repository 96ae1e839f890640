"""Layers compressed for a push by worker processes, into a file that has no name: the daemon's side.

A few workers share the layers out between them; each writes its own one behind the other into its file, and says how
far it is, so that a layer is sent while it is being compressed. The file goes with the last process that has it open,
so a crash leaves nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager

from cove.image.content import Content
from cove.image.jobs import Compress, Failed, KeptLayer, LayerCompressed, raise_failure
from cove.image.records import LayerRecord, hex_of
from cove.image.registry.pushplan import Wanted, share_out
from cove.image.worker import Worker
from cove.model.errors import HostError

WORKERS = 2  # of one push; each of them has as many threads as there are processors


class Growing:
    """A layer that is being compressed: the descriptor it is written to, and how far it is."""

    def __init__(self) -> None:
        self.fd = -1
        self.offset = 0
        self._size = 0
        self._digest = ""
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()

    def grow(self, offset: int, size: int, digest: str) -> None:
        self.offset, self._size, self._digest = offset, size, digest
        self._changed.set()

    def fail(self, failure: BaseException) -> None:
        if not self._digest:
            self._failure = failure
            self._changed.set()

    async def sizes(self) -> AsyncGenerator[tuple[int, str], None]:
        """How far it is, each time that is further; the last one comes with the digest. HostError, Invalid."""
        told = 0
        while True:
            if self._failure is not None:
                raise self._failure
            size, digest = self._size, self._digest
            if size > told or digest:
                told = size
                yield size, digest
                if digest:
                    return
                continue
            self._changed.clear()
            await self._changed.wait()


@asynccontextmanager
async def compressing(
    content: Content, layers: Mapping[str, LayerRecord], wanted: Wanted, budget_bytes: Callable[[], int]
) -> AsyncGenerator[Mapping[str, Growing], None]:
    """While inside, layers (by diff id) are compressed; what isn't done at the end is given up. HostError."""
    order = list(layers.values())
    growing = {layer.diff_id: Growing() for layer in order}
    shares = share_out({number: layer.blob_bytes for number, layer in enumerate(order)}, WORKERS)
    descriptors: list[int] = []
    tasks: list[asyncio.Task[None]] = []
    try:
        for share in shares:
            fd = await asyncio.to_thread(content.open_spool)
            descriptors.append(fd)
            mine = [order[number] for number in share]
            for layer in mine:
                growing[layer.diff_id].fd = fd
            job = Compress(
                root=str(content.root),
                layers=tuple(_kept(layer) for layer in mine),
                compression=wanted.compression,
                level=wanted.level,
                output=fd,
                budget_bytes=max(0, budget_bytes()) // len(shares),
            )
            tasks.append(asyncio.ensure_future(_run(job, fd, [growing[layer.diff_id] for layer in mine])))
        yield growing
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for fd in descriptors:
            os.close(fd)


async def _run(job: Compress, fd: int, growing: list[Growing]) -> None:
    try:
        async with Worker(job, handed=(fd,)) as worker:
            while isinstance(answer := await worker.answer(), LayerCompressed):
                growing[answer.number].grow(answer.offset, answer.size, answer.digest)
            if isinstance(answer, Failed):
                raise_failure(answer)
    except asyncio.CancelledError:
        raise
    except Exception as error:
        for one in growing:
            one.fail(error)
        return
    for one in growing:
        one.fail(HostError("a worker process ended before all layers were compressed"))


def _kept(layer: LayerRecord) -> KeptLayer:
    return KeptLayer(
        name=layer.name,
        diff_id=layer.diff_id,
        moved=layer.moved,
        blob=hex_of(layer.blob) if layer.compression else "",
        compression=layer.compression,
    )
