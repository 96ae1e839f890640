"""Read a container's log: since, until, tail, follow, across rotations.

Nothing is lost or delivered twice when files rotate meanwhile. Work is done on the event loop in blocks
of some milliseconds, with a turn for everybody else after each.

Order that must hold for a follower: watch the directory, then read. In each round: note whether the
container has ended and whether the file was rotated away, then read to its end; what was noted before
is true of all that was read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Literal

from cove.logs.drivers import DRIVERS
from cove.logs.files import (
    BLOCK_BYTES,
    MOST_BLOCK_BYTES,
    LogFile,
    find_start,
    is_current,
    open_files,
)
from cove.logs.inotify import Watch, watched
from cove.logs.model import LogDamaged, LogLine, LogQuery, LogUnreadable
from cove.logs.records import LineJoiner, file_format

_log = logging.getLogger(__name__)


async def read_logs(
    directory: Path, driver: str, query: LogQuery, *, ended: asyncio.Event
) -> AsyncGenerator[LogLine, None]:
    """`read_batches`, line by line; close it (contextlib.aclosing) when leaving early."""
    batches = read_batches(directory, driver, query, ended=ended)
    try:
        async for batch in batches:
            for line in batch:
                yield line
    finally:
        await batches.aclose()


def read_batches(
    directory: Path, driver: str, query: LogQuery, *, ended: asyncio.Event
) -> AsyncGenerator[list[LogLine], None]:
    """The lines that a query asks for, in the order in which they were completed.

    `ended` is set when the container's supervisor is gone: a follower then reads what is left and ends.
    Raises LogUnreadable at once for a driver that keeps nothing, HostError when files can't be read, and
    LogDamaged at the end, after everything that could be read. A directory without files is an empty log.
    Close the generator (contextlib.aclosing) when leaving early.
    """
    known = DRIVERS.get(driver)
    if known is None or not known.file_name:
        raise LogUnreadable("configured logging driver does not support reading")
    return _Reader(directory, known.file_name, driver, query, ended).run()


class _Reader:
    def __init__(
        self, directory: Path, name: str, driver: str, query: LogQuery, ended: asyncio.Event
    ) -> None:
        self._directory = directory
        self._name = name
        self._format = file_format(driver)
        self._query = query
        self._ended = ended
        self._joiner = LineJoiner(query)
        self._files: list[LogFile] = []  # open ones; the first is being read
        self._offset = 0
        self._stale: frozenset[int] = frozenset()
        self._damaged: list[Path] = []

    async def run(self) -> AsyncGenerator[list[LogLine], None]:
        with ExitStack() as undo:
            undo.callback(self._close)
            watch = None
            if self._query.follow and self._directory.exists():
                watch = undo.enter_context(watched(self._directory))
                stopper = asyncio.ensure_future(self._ended.wait())
                stopper.add_done_callback(partial(_set, watch.changed))
                undo.callback(stopper.cancel)
            self._files = open_files(self._directory, self._name)
            if self._files and (self._query.tail is not None or self._query.since_ns):
                start = await find_start(self._files, self._format, self._query)
                self._drop(start.index)
                self._offset = start.offset
                self._stale = start.stale
            first = self._read_tail if self._query.tail is not None else self._read
            async for lines in first(following=watch is not None):
                yield lines
            if watch is not None:
                async for lines in self._follow(watch):
                    yield lines
            rest: list[LogLine] = []
            self._joiner.flush(rest)
            if rest:
                yield rest
        if self._damaged:
            raise LogDamaged(
                f"the log {self._damaged[0]} is damaged; the lines that could be read have been delivered"
            )

    async def _read(self, *, following: bool) -> AsyncIterator[list[LogLine]]:
        """Everything in the open files; the newest stays open."""
        while self._files:
            last = len(self._files) == 1
            async for lines in self._drain(final=not last or not following):
                yield lines
            if last or self._joiner.past_until:
                return
            self._drop(1)

    async def _read_tail(self, *, following: bool) -> AsyncIterator[list[LogLine]]:
        """The last lines of what is in the open files."""
        tail = self._query.tail or 0
        last: deque[LogLine] = deque(maxlen=tail)
        async for lines in self._read(following=following):
            last.extend(lines)
        if not following or self._finished():
            rest: list[LogLine] = []
            self._joiner.forget(self._stale)
            self._joiner.flush(rest)
            last.extend(rest)
        if last:
            yield list(last)

    async def _follow(self, watch: Watch) -> AsyncIterator[list[LogLine]]:
        """What is written from now on."""
        while True:
            watch.changed.clear()
            finished = self._finished() or watch.gone
            rotated = bool(self._files) and not is_current(self._directory, self._name, self._files[0])
            async for lines in self._drain(final=rotated or finished):
                yield lines
            if self._joiner.past_until:
                return
            if rotated:
                self._next_files()
                async for lines in self._read(following=True):
                    yield lines
            elif finished:
                return
            elif not self._files:
                self._files = open_files(self._directory, self._name)
                if not self._files:
                    await self._wait(watch)
            else:
                await self._wait(watch)

    async def _drain(self, *, final: bool) -> AsyncIterator[list[LogLine]]:
        """The first open file from the offset to its end; `final`: it won't grow any more."""
        if not self._files:
            return
        file = self._files[0]
        size = BLOCK_BYTES
        while data := file.read(size, self._offset):
            short = len(data) < size
            lines: list[LogLine] = []
            taken, damaged = self._format.parse(data, final and short, self._joiner, lines)
            if damaged:
                self._tell_damage(file)
            self._offset += taken
            if lines:
                yield lines
            if self._joiner.past_until:
                return
            if taken:
                size = BLOCK_BYTES
                # A consumer that never has to wait would keep the loop to itself.
                await asyncio.sleep(0)
            elif short:
                return  # half a record: the rest is being written
            elif size < MOST_BLOCK_BYTES:
                size *= 4
            else:
                self._tell_damage(file)
                self._offset += len(data)

    def _finished(self) -> bool:
        until = self._query.until_ns
        return self._ended.is_set() or bool(until and time.time_ns() > until)

    async def _wait(self, watch: Watch) -> None:
        """Until something changes in the directory, the container ends or `until` passes."""
        until = self._query.until_ns
        try:
            async with asyncio.timeout(max(0.0, (until - time.time_ns()) / 1e9 + 0.001) if until else None):
                await watch.changed.wait()
        except TimeoutError:
            pass

    def _next_files(self) -> None:
        """The first open file was rotated away: go on with the ones after it.

        Its descriptor keeps its inode's number from being used again. When it isn't among the files any
        more, this reader was so slow that lines are gone, and the oldest file there is comes next.
        """
        old = self._files[0]
        files = open_files(self._directory, self._name)
        index = next((at for at, file in enumerate(files) if file.is_same(old)), -1)
        self._close()
        self._files = files
        self._drop(index + 1)

    def _drop(self, count: int) -> None:
        """Close the first open files."""
        if count:
            for file in self._files[:count]:
                file.close()
            del self._files[:count]
            self._offset = 0

    def _close(self) -> None:
        self._drop(len(self._files))

    def _tell_damage(self, file: LogFile) -> None:
        if file.path not in self._damaged:
            self._damaged.append(file.path)
            _log.warning("the log %s holds bytes that aren't records; they are passed over", file.path)


def _set(event: asyncio.Event, _: asyncio.Future[Literal[True]]) -> None:
    event.set()
