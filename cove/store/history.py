"""Recent changes in memory, and the watches that read them.

Owns the bounded history from which watches are served: a watch has no queue, only a position here, so
a slow one costs nothing and can't fill the memory. The history dies with the process; that loses
nobody anything, because every watch of an embedded store dies with it too, and a watch from a revision
before the start raises Compacted, as after any compaction.

Order that must hold: a watch that waits stands at the end of the history. Changes that don't concern
it move it on without waking it, so that only a change it should have seen can make it Compacted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from cove.store.interface import Change, Closed, Compacted, KeyValue

HISTORY_CHANGES = 4_096
HISTORY_BYTES = 4 << 20  # of the values that the history alone keeps alive


class History:
    """The last changes, by sequence number; `compacted` is the newest revision that is incomplete here."""

    def __init__(self, revision: int, changes: int = HISTORY_CHANGES, size: int = HISTORY_BYTES) -> None:
        self.compacted = revision
        self.closed = False
        self._limit = changes
        self._limit_bytes = size
        self._changes: list[Change] = []
        self._base = 0  # sequence number of _changes[0]
        self._bytes = 0
        self._watches: set[HistoryWatch] = set()

    @property
    def end(self) -> int:
        """The sequence number that the next change will get."""
        return self._base + len(self._changes)

    def append(self, changes: Sequence[Change]) -> None:
        """Add one revision's changes, wake who waits for them, and let go of the oldest."""
        self._changes.extend(changes)
        self._bytes += sum(map(_weight, changes))
        for watch in self._watches:
            watch.notice(changes)
        # A quarter more than the limit before anything is dropped: dropping moves the whole list.
        if len(self._changes) > self._limit + self._limit // 4 or self._bytes > self._limit_bytes:
            self._trim()

    def undo(self, prefix: str, revision: int, state: dict[str, KeyValue]) -> None:
        """Turn `state`, the keys with the prefix as they are now, into what it was at a revision."""
        for change in reversed(self._changes):
            if change.revision <= revision:
                break
            if change.key.startswith(prefix):
                if change.previous is None:
                    state.pop(change.key, None)
                else:
                    state[change.key] = change.previous

    def watch(self, prefix: str, from_revision: int) -> HistoryWatch:
        """A watch that starts at a revision, inclusive; 0: with the next change."""
        position = self.end
        if from_revision:
            while (
                position > self._base and self._changes[position - self._base - 1].revision >= from_revision
            ):
                position -= 1
        watch = HistoryWatch(self, prefix, position, from_revision)
        watch.lost = 0 < from_revision <= self.compacted
        self._watches.add(watch)
        return watch

    def forget(self, watch: HistoryWatch) -> None:
        self._watches.discard(watch)

    def change_at(self, position: int) -> Change | None:
        """The change with a sequence number, None past the end."""
        index = position - self._base
        return self._changes[index] if index < len(self._changes) else None

    def close(self) -> None:
        """Every watch delivers what is there, then raises Closed."""
        self.closed = True
        for watch in self._watches:
            watch.wake()

    def _trim(self) -> None:
        """Drop the oldest changes, whole revisions only, until both limits hold."""
        drop = max(0, len(self._changes) - self._limit)
        freed = sum(map(_weight, self._changes[:drop]))
        while drop < len(self._changes) and (
            self._bytes - freed > self._limit_bytes
            or (drop and self._changes[drop].revision == self._changes[drop - 1].revision)
        ):
            freed += _weight(self._changes[drop])
            drop += 1
        dropped = self._changes[:drop]
        for watch in self._watches:
            watch.drop(dropped, self._base)
        self.compacted = dropped[-1].revision
        del self._changes[:drop]
        self._base += drop
        self._bytes -= freed


class HistoryWatch:
    """A position in a History; see `cove.store.interface.Watch`."""

    def __init__(self, history: History, prefix: str, position: int, from_revision: int) -> None:
        self.lost = False
        self._history = history
        self._prefix = prefix
        self._position = position
        self._from = from_revision
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False

    def __aiter__(self) -> AsyncIterator[Change]:
        return self

    async def __anext__(self) -> Change:
        assert self._waiter is None, "a watch has one reader"
        while True:
            if self._ended:
                raise StopAsyncIteration
            if self.lost:
                await self.aclose()
                raise Compacted(
                    f"changes of {self._prefix!r} up to revision {self._history.compacted} are no longer"
                    " in the history: list the keys and watch from the revision after that"
                )
            while (change := self._history.change_at(self._position)) is not None:
                self._position += 1
                if self._wants(change):
                    return change
            if self._history.closed:
                await self.aclose()
                raise Closed("the store was closed while keys were being watched")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    async def aclose(self) -> None:
        """End the watch; whoever waits for a change gets StopAsyncIteration. Idempotent."""
        self._ended = True
        self._history.forget(self)
        self.wake()

    def notice(self, changes: Sequence[Change]) -> None:
        """Changes were appended: wake the reader for one it wants, move a waiting one past the others."""
        if self._waiter is None or self._waiter.done():
            return
        if any(map(self._wants, changes)):
            self.wake()
        else:
            self._position = self._history.end

    def drop(self, dropped: Sequence[Change], base: int) -> None:
        """Changes from sequence number `base` on are about to go."""
        unread = dropped[max(0, self._position - base) :]
        if any(map(self._wants, unread)):
            self.lost = True
        self._position = max(self._position, base + len(dropped))

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _wants(self, change: Change) -> bool:
        return change.revision >= self._from and change.key.startswith(self._prefix)


def _weight(change: Change) -> int:
    """Bytes that a change keeps in memory: the replaced value, and some 200 for the objects."""
    return (
        200
        + (len(change.previous.value) if change.previous is not None else 0)
        + (len(change.current.value) if change.current is not None else 0)
    )
