"""Layers on their way from registries: each digest once, however many pulls want it.

Two workers do the work of a layer: one fetches it and writes it to a socket, the other reads that socket, verifies and
unpacks; the bytes don't pass through here. What has come of a blob stays in images/partial when its pull fails or the
daemon is killed, and the next attempt goes on from there. A layer's work ends when nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cove.image.content import Content
from cove.image.jobs import Member, Progress, UnpackBlob, Unpacked
from cove.image.registry.documents import Descriptor, is_foreign
from cove.image.registry.fetcher import Fetcher
from cove.image.types import Limits
from cove.image.worker import Worker
from cove.model.errors import CoveError, HostError, Invalid, Unavailable
from cove.model.waiting import finish

Report = Callable[[int], None]  # bytes of the blob that are here


@dataclass(frozen=True, slots=True)
class Arrived:
    """A layer, unpacked into `staging`/0 and not yet on record; its blob is in images/partial."""

    member: Member
    staging: Path


@dataclass(eq=False, slots=True)
class _Work:
    layer: Descriptor
    fetcher: Fetcher
    downloads: int
    reports: list[Report] = field(default_factory=list)
    users: int = 0
    task: asyncio.Task[Arrived] | None = None
    staging: Path | None = None


class Arrivals:
    """See the module."""

    def __init__(self, content: Content, limits: Limits, tidy: Callable[[], Awaitable[None]]) -> None:
        """`tidy` has the trash emptied."""
        self._tidy = tidy
        self._content = content
        self._limits = limits
        self._works: dict[str, _Work] = {}
        self._active = 0
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def layer(
        self, layer: Descriptor, fetcher: Fetcher, downloads: int, report: Report
    ) -> AsyncGenerator[Arrived, None]:
        """While inside, the layer is unpacked and stays. As Fetcher.stream; Invalid: it isn't what was named."""
        joined = layer.digest in self._works
        work = self._join(layer, fetcher, downloads, report)
        try:
            assert work.task is not None
            try:
                arrived = await asyncio.shield(work.task)
            except CoveError:
                if not joined:
                    raise
                # It failed for another pull, whose registry or user may be others.
                await self._leave(work, report)
                work = self._join(layer, fetcher, downloads, report)
                assert work.task is not None
                arrived = await asyncio.shield(work.task)
            yield arrived
        finally:
            await finish(self._leave(work, report))

    def _join(self, layer: Descriptor, fetcher: Fetcher, downloads: int, report: Report) -> _Work:
        work = self._works.get(layer.digest)
        if work is None or (work.task is not None and work.task.done() and work.task.exception() is not None):
            work = self._works[layer.digest] = _Work(layer, fetcher, downloads)
            fetcher.hold()
            work.task = asyncio.ensure_future(self._run(work))
        work.users += 1
        work.reports.append(report)
        return work

    async def _leave(self, work: _Work, report: Report) -> None:
        if report not in work.reports:
            return
        work.reports.remove(report)
        work.users -= 1
        if work.users:
            return
        if self._works.get(work.layer.digest) is work:
            del self._works[work.layer.digest]
        assert work.task is not None
        work.task.cancel()
        await asyncio.gather(work.task, return_exceptions=True)
        await work.fetcher.release()
        if work.staging is not None:
            await asyncio.to_thread(self._content.throw, staging=work.staging)
        await self._tidy()

    async def _run(self, work: _Work) -> Arrived:
        async with self._slot(work.downloads):
            shared = True
            while True:
                try:
                    return await self._unpack(work, shared=shared)
                except _Spoiled as spoiled:
                    # What was kept here, or by the registry of this machine, was no good: all of it comes anew, once.
                    if not shared or not spoiled.offset:
                        raise spoiled.error from None
                    shared = False

    async def _unpack(self, work: _Work, *, shared: bool) -> Arrived:
        layer = work.layer
        content = self._content
        budget = content.free_bytes() - self._limits.reserve_bytes
        await asyncio.to_thread(content.sweep_partials, time.time(), list(self._works))
        partial, offset = await asyncio.to_thread(
            content.open_partial, layer.digest, layer.size, shared=shared
        )
        try:
            if budget < layer.size - offset:
                raise HostError(
                    f"no space left on the image store's disk: layer {layer.digest} needs {layer.size - offset} "
                    f"bytes, {max(budget, 0)} are free besides the {self._limits.reserve_bytes >> 20} MiB that stay so"
                )
            if work.staging is None:
                work.staging = await asyncio.to_thread(content.new_staging)
            else:
                await asyncio.to_thread(content.throw, staging=work.staging)
                work.staging = await asyncio.to_thread(content.new_staging)
            job = UnpackBlob(
                staging=str(work.staging),
                digest=layer.digest,
                size=layer.size,
                partial=partial,
                offset=offset,
                budget_bytes=budget,
                limits=self._limits,
            )
            try:
                async with Worker(job, handed=(partial,)) as worker:
                    return Arrived(await self._feed(work, worker, offset), work.staging)
            except Invalid as error:
                await finish(asyncio.to_thread(content.drop_partial, layer.digest))
                raise _Spoiled(error, offset) from error
        finally:
            os.close(partial)

    async def _feed(self, work: _Work, worker: Worker, offset: int) -> Member:
        layer = work.layer

        def report(progress: Progress) -> None:
            for told in work.reports:
                told(progress.current)

        out = worker.take_data()
        streaming: asyncio.Future[None] | None = None
        if offset < layer.size:
            streaming = asyncio.ensure_future(
                work.fetcher.stream(layer.digest, layer.size, offset, out, foreign=is_foreign(layer))
            )
        else:
            out.close()
        try:
            try:
                answer = await worker.last(report)
            except Unavailable:
                if streaming is not None:
                    await streaming  # why the blob ended early
                raise
            assert isinstance(answer, Unpacked)
            return answer.members[0]
        finally:
            if streaming is not None:
                streaming.cancel()
                await asyncio.gather(streaming, return_exceptions=True)
            out.close()

    @asynccontextmanager
    async def _slot(self, most: int) -> AsyncGenerator[None, None]:
        async with self._freed:
            await self._freed.wait_for(lambda: self._active < most)
            self._active += 1
        try:
            yield
        finally:
            self._active -= 1
            await finish(self._notify())

    async def _notify(self) -> None:
        async with self._freed:
            self._freed.notify_all()


class _Spoiled(Exception):
    """An attempt failed for its content, after `offset` bytes from the disk."""

    def __init__(self, error: Invalid, offset: int) -> None:
        super().__init__(error, offset)
        self.error = error
        self.offset = offset
