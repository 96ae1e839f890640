"""How many worker processes there are at a time, and who makes room when there are too many.

Each takes some 15 MiB and, at its start, a tenth of a second of a processor. So a few start at once, for the daemon
must have its turns in between, and there is a most. Beyond it, who comes waits; and a worker whose client has neither
sent nor taken anything for a while is ended for those who wait: clients that stall must not keep others out.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import Protocol

from cove.model.errors import Unavailable

MOST = 64
AT_ONCE = max(4, 2 * (os.cpu_count() or 1))  # in their start
STALLED_S = 20.0  # a client that long without a byte makes room, when others wait
WAIT_S = 120.0
LOOK_S = 1.0


class Member(Protocol):
    """A worker, as seen here."""

    idle_since_s: float | None  # on the event loop's clock: since when its client is waited for

    def give_up(self) -> None:
        """Kill the process; whoever uses it gets an error."""


class Crowd:
    """The workers of this process."""

    def __init__(self, *, most: int = MOST, at_once: int = AT_ONCE) -> None:
        self.most = most
        self.at_once = at_once
        self._inside: set[Member] = set()
        self._starting: set[Member] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self, member: Member) -> None:
        """Wait for a place, and for one among those that start. Unavailable when there is none for long."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + WAIT_S
        mine: asyncio.Future[None] | None = None
        try:
            while not self._has_room() or (self._waiting and self._waiting[0] is not mine):
                if mine is None or mine.done():
                    mine = self._requeue(mine)
                if len(self._inside) >= self.most:
                    self._make_room(loop.time())
                if loop.time() > deadline_s:
                    raise Unavailable(
                        f"{self.most} archives are being read or written, as many as there can be: try again later"
                    )
                await asyncio.wait((mine,), timeout=LOOK_S)
        finally:
            if mine is not None and mine in self._waiting:
                self._waiting.remove(mine)
        self._inside.add(member)
        self._starting.add(member)
        self._wake()

    def _requeue(self, old: asyncio.Future[None] | None) -> asyncio.Future[None]:
        """A future at the end of the queue, or in the place of one that was woken for nothing."""
        fresh: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if old is not None and old in self._waiting:
            self._waiting[self._waiting.index(old)] = fresh
        else:
            self._waiting.append(fresh)
        return fresh

    def _has_room(self) -> bool:
        return len(self._inside) < self.most and len(self._starting) < self.at_once

    def _make_room(self, now_s: float) -> None:
        idle = [(member.idle_since_s, member) for member in self._inside if member.idle_since_s is not None]
        if not idle:
            return
        since_s, member = min(idle, key=lambda pair: pair[0])
        if now_s - since_s >= STALLED_S:
            self.leave(member)
            member.give_up()

    def started(self, member: Member) -> None:
        """Its start is over. Idempotent."""
        self._starting.discard(member)
        self._wake()

    def leave(self, member: Member) -> None:
        """Free its place. Idempotent."""
        self._inside.discard(member)
        self.started(member)

    def _wake(self) -> None:
        if self._waiting and self._has_room() and not self._waiting[0].done():
            self._waiting[0].set_result(None)
