"""The event store: what happened, on disk, so that `since` reaches back beyond the memory and a restart.

Owns DIRECTORY/events (newest) and DIRECTORY/events.1 (older): one JSON object in a line, appended only. When the
newest holds LIMIT_BYTES it takes the older one's place, so that the store never holds more than twice that.
A line that a crash cut short is passed over. A disk that is full costs events in the store, never a publisher its time.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from cove.model.objects import Event

LIMIT_BYTES = 8 << 20  # about 25,000 events of 300 bytes, in each of the two files
LINE_MAX = 1 << 20  # labels make an event longer; what is longer than this isn't stored
_log = logging.getLogger(__name__)
_PIECE = 256 << 10
_BATCH = 500


class Journal:
    """See the module. `append` writes in the order of its calls; `read` may run in a thread beside it."""

    def __init__(self, directory: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._fd = -1
        self._size = 0
        self._failed = False
        self._open()

    def _open(self) -> None:
        self._fd = os.open(
            self._directory / "events", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        self._size = os.fstat(self._fd).st_size
        if self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":
            self._size += os.write(self._fd, b"\n")  # a crash cut the last line short

    def close(self) -> None:
        """No append after this."""
        os.close(self._fd)
        self._fd = -1

    def append(self, events: list[Event]) -> None:
        """Store events, oldest first. A disk that refuses them is said once, until it takes some again."""
        lines = [line for event in events if len(line := msgspec.json.encode(event)) < LINE_MAX]
        data = b"".join(line + b"\n" for line in lines)
        try:
            if self._size + len(data) > self._limit_bytes and self._size:
                self._rotate()
            written = os.write(self._fd, data)
            self._size += written
            if written < len(data):
                os.ftruncate(self._fd, self._size - written)
                self._size -= written
                raise OSError(28, os.strerror(28))
        except OSError as error:
            if not self._failed:
                _log.warning("events aren't stored, `since` won't find them: %s", error.strerror)
            self._failed = True
        else:
            self._failed = False

    def _rotate(self) -> None:
        os.replace(self._directory / "events", self._directory / "events.1")
        os.close(self._fd)
        self._open()

    def last_ns(self) -> int:
        """The time of the last event; 0 without one."""
        for name in ("events", "events.1"):
            with contextlib.ExitStack() as opened:
                events = [_decode(line) for line in _lines(_open(self._directory / name, opened), LINE_MAX)]
            if found := [event.time_ns for event in events if event]:
                return found[-1]
        return 0

    def read(
        self, since_ns: int, before_ns: int, accepts: Callable[[Event], bool] | None
    ) -> Iterator[list[Event]]:
        """Batches of the events from `since_ns` (inclusive) to `before_ns` (exclusive), oldest first.

        A rotation meanwhile is no loss: both files are opened before the first batch.
        """
        last_ns = since_ns - 1
        with contextlib.ExitStack() as opened:
            # The newest first: what is renamed between the two is read twice, and told once by its time.
            files = [_open(self._directory / name, opened) for name in ("events", "events.1")]
            for fd in reversed(files):
                batch: list[Event] = []
                for line in _lines(fd):
                    event = _decode(line)
                    if event is None or not last_ns < event.time_ns < before_ns:
                        continue
                    last_ns = event.time_ns
                    if accepts is None or accepts(event):
                        batch.append(event)
                    if len(batch) >= _BATCH:
                        yield batch
                        batch = []
                if batch:
                    yield batch


def _decode(line: bytes) -> Event | None:
    try:
        return msgspec.json.decode(line, type=Event)
    except msgspec.MsgspecError:
        return None


def _open(path: Path, opened: contextlib.ExitStack) -> int:
    """A descriptor of a file; -1: there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    opened.callback(os.close, fd)
    return fd


def _lines(fd: int, tail_bytes: int = 0) -> Iterator[bytes]:
    """The whole lines of a file, or of its end."""
    if fd < 0:
        return
    rest = b""
    if tail_bytes:
        os.lseek(fd, max(0, os.fstat(fd).st_size - tail_bytes), os.SEEK_SET)
    while piece := os.read(fd, _PIECE):
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
