"""One recording of what a container opens: from before its first program, or from now on.

A worker watches the overlay of one container (image/fanotify.py). A container that is recorded from its start waits at
its plan's Pause "record", when all is mounted and nothing of it runs, until the worker says that it watches.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from cove.image.fanotify import is_overlay
from cove.image.jobs import Progress
from cove.image.tooljobs import Record, Recorded
from cove.image.worker import Worker
from cove.model.errors import HostError


class Recorder:
    """One recording. `begin` is called once, at the start's pause or for what runs already."""

    def __init__(self) -> None:
        self._end = asyncio.Event()
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._work: asyncio.Task[Recorded] | None = None

    async def begin(self, pid: int, root: Path) -> None:
        """Watch the overlay that a process sees at `root`, and return when it is being watched. HostError."""
        tree = os.open(f"/proc/{pid}/root/{str(root).lstrip('/')}", os.O_RDONLY | os.O_DIRECTORY)
        if not is_overlay(tree):
            os.close(tree)
            raise HostError(
                f"{root} of process {pid} isn't an overlay, so what is opened on it isn't recorded"
            )
        self._work = asyncio.ensure_future(self._watch(tree))
        self._work.add_done_callback(self._settle)
        await asyncio.shield(self._begun)

    async def end(self) -> Recorded:
        """End the recording and return it. HostError."""
        if self._work is None:
            raise HostError("the container's start came to no point from which it could be recorded")
        self._end.set()
        return await self._work

    async def drop(self) -> None:
        """Whatever happened: the worker is gone."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        if self._begun.done() and not self._begun.cancelled():
            self._begun.exception()

    async def _watch(self, tree: int) -> Recorded:
        def told(_: Progress) -> None:
            if not self._begun.done():
                self._begun.set_result(None)

        try:
            worker = Worker(Record(tree=tree), handed=(tree,))
            await worker.__aenter__()
        finally:
            os.close(tree)
        try:
            answer = await worker.feed_and_wait(self._until_end(), told)
        finally:
            await worker.end()
        assert isinstance(answer, Recorded)
        return answer

    async def _until_end(self) -> AsyncIterator[bytes]:
        await self._end.wait()
        yield b""

    def _settle(self, work: asyncio.Task[Recorded]) -> None:
        if not self._begun.done():
            error = None if work.cancelled() else work.exception()
            self._begun.set_exception(error or HostError("the recording ended before it began"))
