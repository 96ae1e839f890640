"""Work that several builds want is done once; and only so much of it at a time.

Whoever asks for a key that is being worked on waits for that, and is told what was told so far and what comes. A
client that is slow to take what it is told slows down the work, so that memory stays bounded; what is told again to
those who come later is bounded, too. Once nobody waits any more, the work is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

from cove.build.cache import Entry
from cove.build.events import BuildEvent, StepOutput

Emit = Callable[[BuildEvent], Coroutine[None, None, None]]
REPLAY_BYTES = 1 << 20
SAVE_S = 2.0


class Work:
    """One key's work."""

    def __init__(self) -> None:
        self.task: asyncio.Task[Entry] | None = None
        self.listeners: list[Emit] = []
        self.told: list[BuildEvent] = []
        self.told_bytes = 0

    async def emit(self, event: BuildEvent) -> None:
        if isinstance(event, StepOutput):
            self.told_bytes += len(event.data)
        if self.told_bytes <= REPLAY_BYTES:
            self.told.append(event)
        for listener in list(self.listeners):
            await listener(event)


class Shared:
    """What the builds of one daemon have under way. `width` is how many steps run at a time."""

    def __init__(self, width: int = 0) -> None:
        self._slots = asyncio.Semaphore(width or max(2, os.cpu_count() or 1))
        self._work: dict[str, Work] = {}
        self._saved_s = 0.0

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until another step may run."""
        async with self._slots:
            yield

    async def save_sometimes(self, save: Callable[[], Awaitable[None]]) -> None:
        """Save, unless that was done a moment ago: a build saves at its end anyway."""
        if time.monotonic() - self._saved_s > SAVE_S:
            self._saved_s = time.monotonic()
            await save()

    async def run(self, key: str, work: Callable[[Emit], Coroutine[None, None, Entry]], told: Emit) -> Entry:
        """The result of the work on a key, which is begun unless it is under way. Raises what it raises."""
        one = self._work.get(key)
        if one is None:
            one = self._work[key] = Work()
            one.listeners.append(told)
            one.task = asyncio.get_running_loop().create_task(work(one.emit))
            one.task.add_done_callback(lambda _: self._work.pop(key, None))
        else:
            for event in list(one.told):
                await told(event)
            one.listeners.append(told)
        assert one.task is not None
        try:
            return await asyncio.shield(one.task)
        finally:
            with contextlib.suppress(ValueError):
                one.listeners.remove(told)
            if not one.listeners and not one.task.done():
                self._work.pop(key, None)
                one.task.cancel()
                await asyncio.gather(one.task, return_exceptions=True)
