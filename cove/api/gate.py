"""Who works at once: a crowd of clients must not make the event loop's turns long.

A request that changes something takes a few milliseconds of the loop in several pieces. When hundreds of them are
under way at once, each turn of the loop runs a piece of them all, and a list or a ping waits for the sum. So only
`width` of them work at a time, first come, first served; reads don't queue. A turn is bounded: whoever takes longer
than `turn_s`, waiting for a container or a client, gives its place to the next and goes on without one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """See the module. For one event loop."""

    def __init__(self, width: int, turn_s: float = 0.1) -> None:
        self._free = width
        self._turn_s = turn_s
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a place and keep it for this block, or for `turn_s` if that is shorter."""
        loop = asyncio.get_running_loop()
        if self._free > 0:
            self._free -= 1
        else:
            place = loop.create_future()
            self._waiting.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self._pass_on()
                raise
        kept = True

        def give() -> None:
            nonlocal kept
            if kept:
                kept = False
                self._pass_on()

        timer = loop.call_later(self._turn_s, give)
        try:
            yield
        finally:
            timer.cancel()
            give()

    def _pass_on(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._free += 1
