"""Waiting that several rooms need: work that a cancellation must not cut off, and one at a time by name. No I/O."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager


async def finish(work: Awaitable[None]) -> None:
    """Wait for work that must be done to its end, through a cancellation too."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


class NamedLocks:
    """A lock for each name, there for as long as somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._lockers: Counter[str] = Counter()

    @asynccontextmanager
    async def alone(self, name: str) -> AsyncIterator[None]:
        """Hold the lock of `name` for this block."""
        lock = self._locks.setdefault(name, asyncio.Lock())
        self._lockers[name] += 1
        try:
            async with lock:
                yield
        finally:
            self._lockers[name] -= 1
            if not self._lockers[name]:
                del self._lockers[name], self._locks[name]
