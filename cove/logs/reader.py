"""Read a container's log: since, until, tail, follow, across rotations.

Nothing is lost or delivered twice when files rotate meanwhile. Work is done on the event loop in blocks
of some milliseconds, with a turn for everybody else after each.

Order that must hold for a follower: watch the directory, then read. In each round: note whether the
container has ended and whether the file was rotated away, then read to its end; what was noted before
is true of all that was read.

A reader has one file open, and lets go of it at once when that one is rotated away, also while whoever reads
doesn't take anything: a log has a bound, with any number of readers. It then goes on with the packed copy, or with
the oldest file there is.
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
    FileKey,
    LogFile,
    find_start,
    is_current,
    open_files,
)
from cove.logs.inotify import Watch, watched
from cove.logs.model import STDERR, STDOUT, LogDamaged, LogLine, LogQuery, LogUnreadable
from cove.logs.records import LineJoiner, file_format
from cove.model.errors import HostError

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
        self._file: LogFile | None = None  # the one being read
        self._more = False  # there were newer ones when it was opened
        self._jumped = False  # the one that was read is gone, this is another
        self._end: FileKey | None = None  # the last file for a reader that doesn't follow
        self._offset = 0
        self._stale: frozenset[int] = frozenset()
        self._damaged: list[Path] = []

    async def run(self) -> AsyncGenerator[list[LogLine], None]:
        with ExitStack() as undo:
            undo.callback(self._close)
            watch = self._watch(undo) if self._directory.exists() else None
            following = watch is not None and self._query.follow
            await self._begin()
            first = self._read_tail if self._query.tail is not None else self._read
            async for lines in first(following=following):
                yield lines
            if watch is not None and following:
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

    def _watch(self, undo: ExitStack) -> Watch | None:
        follow = self._query.follow
        try:
            watch = undo.enter_context(watched(self._directory, renames=not follow))
        except HostError:
            if follow:
                raise
            return (
                None  # the host's limit of watches: the file that is read may stay on the disk a while longer
            )
        watch.moved = self._let_go
        if follow:
            stopper = asyncio.ensure_future(self._ended.wait())
            stopper.add_done_callback(partial(_set, watch.changed))
            undo.callback(stopper.cancel)
        return watch

    async def _begin(self) -> None:
        """Open the file that the answer begins in."""
        files = open_files(self._directory, self._name)
        index = 0
        if files and (self._query.tail is not None or self._query.since_ns):
            try:
                start = await find_start(files, self._format, self._query)
            except BaseException:
                self._take(files, len(files))
                raise
            index, self._offset, self._stale = start.index, start.offset, start.stale
        if not self._query.follow:
            keys = [file.key() for file in files]
            self._end = next(
                (key for key in reversed(keys) if key.head), None
            )  # an empty one isn't known again
        self._take(files, index)

    def _take(self, files: list[LogFile], index: int) -> None:
        """Of these files read the one at `index`; there may be none."""
        self._close()
        for at, file in enumerate(files):
            if at != index:
                file.close()
        self._file = files[index] if index < len(files) else None
        self._more = index + 1 < len(files)
        if self._file is not None:
            self._file.key()

    def _let_go(self) -> None:
        if self._file is not None and self._file.is_gone():
            self._file.key()
            self._file.close()

    def _find_again(self, *, after: bool) -> bool:
        """Open the file that was being read, or the one after it; the oldest when it isn't among them any more. False:
        there is none, or the last one for this reader is gone."""
        assert self._file is not None
        old = self._file.key()
        files = open_files(self._directory, self._name)
        index = next((at for at, file in enumerate(files) if file.key() == old), -1)
        self._jumped = index < 0 and not after
        if index < 0:
            self._joiner.forget((STDOUT, STDERR))
        if index < 0 or after:
            self._offset = 0
        index = max(index + after, 0)
        last = next((at for at, file in enumerate(files) if file.key() == self._end), -1)
        if index >= len(files) or (self._end is not None and index > last):
            self._take(files, len(files))
            return False
        self._take(files, index)
        if self._end is not None:
            self._more = index < last
        return True

    async def _read(self, *, following: bool) -> AsyncIterator[list[LogLine]]:
        """Everything in the files that there were; the newest stays open."""
        while self._file is not None:
            last = not self._more
            async for lines in self._drain(final=not last or not following):
                yield lines
            if self._jumped:
                self._jumped = False
            elif last or self._joiner.past_until or self._file is None or not self._find_again(after=True):
                return

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
            file = self._file
            rotated = file is not None and not is_current(self._directory, self._name, file)
            async for lines in self._drain(final=rotated or finished):
                yield lines
            if self._joiner.past_until:
                return
            if self._jumped:
                self._jumped = False
            elif rotated and self._file is not None:
                if self._find_again(after=True):
                    async for lines in self._read(following=True):
                        yield lines
            elif finished:
                return
            elif file is None:
                self._take(open_files(self._directory, self._name), 0)
                if self._file is None:
                    await self._wait(watch)
                else:
                    async for lines in self._read(following=True):
                        yield lines
            else:
                await self._wait(watch)

    async def _drain(self, *, final: bool) -> AsyncIterator[list[LogLine]]:
        """The open file from the offset to its end; `final`: it won't grow any more."""
        size = BLOCK_BYTES
        while self._file is not None:
            if self._file.descriptor < 0 and (not self._find_again(after=False) or self._jumped):
                return
            file = self._file
            data = file.read(size, self._offset)
            if not data:
                return
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

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _tell_damage(self, file: LogFile) -> None:
        if file.path not in self._damaged:
            self._damaged.append(file.path)
            _log.warning("the log %s holds bytes that aren't records; they are passed over", file.path)


def _set(event: asyncio.Event, _: asyncio.Future[Literal[True]]) -> None:
    event.set()
