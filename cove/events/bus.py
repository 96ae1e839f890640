"""The bus: who wants to know what happens, and what happened lately.

Owns a bounded ring of recent events and the queues of subscribers; what is older comes from the event store
(journal.py). Publishing never waits: a subscriber that can't keep up is dropped with an error, the publisher and
the others don't notice. No two events have one time: a listener goes on where it was by `since` = the
last event's time + 1 ns, with nothing missed and nothing told twice.

Order that must hold: an event enters the ring and every queue in one step without an `await`, and a
subscriber's replay of the ring is taken in the same step that registers its queue, so that no event is
missed or seen twice between the past and the present.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

import msgspec

from cove.events.journal import Journal
from cove.model.errors import HostError
from cove.model.objects import Event

RECENT = 1_000  # events kept for `since`
BACKLOG = 8_192  # events a subscriber may be behind; references only, so some 64 KiB

Predicate = Callable[[Event], bool]


class SubscriberTooSlow(HostError):
    """A subscriber didn't read for so long that events would have been lost."""

    code = "subscriber-too-slow"


class Stream:
    """One subscription: iterate over it, and call `aclose` (or use contextlib.aclosing) when done.

    Ends when `until_ns` has passed or the bus is closed. Raises SubscriberTooSlow.
    """

    def __init__(self, bus: Bus, since_ns: int, until_ns: int, predicate: Predicate | None) -> None:
        self._bus = bus
        self._until_ns = until_ns
        self._predicate = predicate
        self._queue: deque[Event] = deque()
        self._told: deque[Event] = deque()  # read from the event store
        self._overrun = False
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._past: Iterator[list[Event]] | None = None
        if since_ns:
            self._past = bus.read_stored(since_ns, until_ns, predicate)
            for event in bus.recent:
                if event.time_ns >= since_ns:
                    self._offer(event)
        bus.streams.add(self)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        if self._told:
            return self._told.popleft()
        while self._past is not None and not self._closed:
            batch = await asyncio.to_thread(next, self._past, None)
            if batch is None:
                self._past = None
            else:
                self._told.extend(batch)
                return self._told.popleft()
        while not self._queue:
            if self._overrun and not self._closed:
                await self.aclose()
                raise SubscriberTooSlow(
                    f"this listener fell more than {self._bus.backlog} events behind and was dropped;"
                    " listen again with since= to get the recent ones"
                )
            left_s = self._left_s()
            if self._closed or (left_s is not None and left_s <= 0):
                await self.aclose()
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(left_s):
                    await self._waiter
            except TimeoutError:
                pass  # `until` has come: the next turn ends the stream
            finally:
                self._waiter = None
        return self._queue.popleft()

    async def aclose(self) -> None:
        """End the subscription; later events aren't delivered. Idempotent."""
        self._bus.streams.discard(self)
        self._closed = True
        self._wake()

    def _left_s(self) -> float | None:
        """Seconds until `until`, None without one."""
        return (self._until_ns - self._bus.clock_ns()) / 1e9 if self._until_ns else None

    def _offer(self, event: Event) -> None:
        if self._overrun or (self._until_ns and event.time_ns > self._until_ns):
            return
        if self._predicate is not None and not self._predicate(event):
            return
        if len(self._queue) >= self._bus.backlog:
            self._overrun = True
        else:
            self._queue.append(event)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Bus:
    """Publishes events to every stream, keeps the last `limit` of them, and stores all in the journal."""

    def __init__(
        self,
        *,
        limit: int = RECENT,
        backlog: int = BACKLOG,
        clock_ns: Callable[[], int] = time.time_ns,
        journal: Journal | None = None,
    ) -> None:
        self._journal = journal
        self._unstored: list[Event] = []
        self._last_ns = journal.last_ns() if journal is not None else 0
        self.recent: deque[Event] = deque(maxlen=limit)
        self.streams: set[Stream] = set()
        self.published = 0  # since the start
        self.backlog = backlog
        self.clock_ns = clock_ns

    def publish(self, event: Event) -> None:
        """Hand an event to everyone who listens; never waits, never raises. It is told with a later time where
        another event has its time, or a clock was set back."""
        if event.time_ns <= self._last_ns:
            event = msgspec.structs.replace(event, time_ns=self._last_ns + 1)
        self._last_ns = event.time_ns
        self.recent.append(event)
        self.published += 1
        if self._journal is not None:
            if not self._unstored:
                asyncio.get_running_loop().call_soon(self._store)
            self._unstored.append(event)
        for stream in tuple(self.streams):
            stream._offer(event)

    def stream(self, since_ns: int = 0, until_ns: int = 0, predicate: Predicate | None = None) -> Stream:
        """Subscribe, from this very call on.

        `since_ns` (since the epoch, 0: now) replays what the event store and the ring have; the stream ends at
        `until_ns` (0: never), at once after the replay when that is in the past.
        """
        return Stream(self, since_ns, until_ns, predicate)

    def read_stored(
        self, since_ns: int, until_ns: int, predicate: Predicate | None
    ) -> Iterator[list[Event]] | None:
        """What the event store has from `since_ns` on that the ring hasn't; None: nothing."""
        first_ns = self.recent[0].time_ns if self.recent else self._last_ns + 1
        if self._journal is None or since_ns >= first_ns:
            return None
        self._store()
        before_ns = min(first_ns, until_ns + 1) if until_ns else first_ns
        return self._journal.read(since_ns, before_ns, predicate)

    def _store(self) -> None:
        if self._journal is not None and self._unstored:
            self._journal.append(self._unstored)
            self._unstored.clear()

    async def close(self) -> None:
        """End every stream once it has delivered what it holds."""
        for stream in tuple(self.streams):
            await stream.aclose()
        self._store()
        if self._journal is not None:
            self._journal.close()
            self._journal = None
