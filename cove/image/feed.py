"""Events of a piece of work, for one who reads them as fast as they like: of a count, the newest alone is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Feed(Generic[_T]):
    """See the module. `key` of an event: what it is a count of, or None for one that must not get lost."""

    def __init__(self, key: Callable[[_T], Hashable | None]) -> None:
        self._key = key
        self._events: list[_T] = []
        self._wake = asyncio.Event()

    def push(self, event: _T) -> None:
        """Add an event, in the place of an older count of the same thing if nothing came between for that thing."""
        key = self._key(event)
        if key is not None:
            for place in range(len(self._events) - 1, -1, -1):
                if self._key(self._events[place]) == key:
                    self._events[place] = event
                    return
        self._events.append(event)
        self._wake.set()

    async def run(self, work: Awaitable[None]) -> AsyncGenerator[_T, None]:
        """Do the work and yield its events; its error comes after them. Left early, the work is cancelled."""
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda _: self._wake.set())
        try:
            while self._events or not task.done():
                if not self._events:
                    self._wake.clear()
                    if not task.done():
                        await self._wake.wait()
                    continue
                yield self._events.pop(0)
            await task
        finally:
            if not task.done():
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
