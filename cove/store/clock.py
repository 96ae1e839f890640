"""Time for leases: what says how late it is and waits, so that tests can own it."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """A clock that only goes forward, in seconds."""

    def now(self) -> float: ...

    async def wait(self, deadline: float | None, wake: asyncio.Event) -> None:
        """Return once `now()` has reached the deadline (None: never) or `wake` is set."""
        ...


class MonotonicClock:
    """The machine's monotonic clock, clock_gettime(2); it stands still while the machine is suspended."""

    def now(self) -> float:
        return time.monotonic()

    async def wait(self, deadline: float | None, wake: asyncio.Event) -> None:
        delay_s = None if deadline is None else max(0.0, deadline - self.now())
        try:
            async with asyncio.timeout(delay_s):
                await wake.wait()
        except TimeoutError:
            pass
