"""The files of one log: opened across rotations, searched from the end.

The writer renames `log` → `log.1` → `log.2` …, oldest first, then makes a new `log`. A file only ever
moves to a higher number, so opening them in order of their numbers can meet one twice but can't miss one,
provided that it goes on until there is no higher number. An open file stays readable wherever it goes.
A file that was rotated away may be replaced by its packed copy (packed.py), which reads the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from cove.logs.model import STDERR, STDOUT, LogQuery
from cove.logs.names import number_of
from cove.logs.packed import find_packed
from cove.logs.records import MAX_PAYLOAD_BYTES, Format, Record
from cove.model.errors import HostError

BLOCK_BYTES = 128 << 10  # read and parsed in one go: some milliseconds for short lines
MOST_BLOCK_BYTES = 4 * MAX_PAYLOAD_BYTES  # holds any record
_HEAD_BYTES = 16


class FileKey(msgspec.Struct, frozen=True):
    """A file of a log. `head` stands for its first record, which has a time in it: an inode's number is used again.
    It is "" while there is none."""

    inode: int
    head: str


class LogFile:
    """An open file of a log."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path  # where it was when it was opened
        self.descriptor = descriptor
        self.inode = os.fstat(descriptor).st_ino
        self._packed = find_packed(self._read)
        self._key: FileKey | None = None
        # of the file that this one was when its lines were written
        self.origin = self._packed.origin if self._packed is not None else self.inode

    def is_same(self, other: LogFile) -> bool:
        """Both hold the same part of the log: they are one file, or one is the other's packed copy."""
        return self.inode == other.inode or (self.origin == other.origin and self.key() == other.key())

    def is_gone(self) -> bool:
        """It was removed from its directory."""
        return self.descriptor >= 0 and not os.fstat(self.descriptor).st_nlink

    def key(self) -> FileKey:
        """What it is known by, wherever it goes. It must be open, unless this was asked before."""
        if self._key is None or (not self._key.head and self.descriptor >= 0):
            self._key = FileKey(self.origin, self._head())
        return self._key

    def _head(self) -> str:
        head = self.read(_HEAD_BYTES, 0)
        if not head.startswith(b"{"):
            return head.hex()  # of the local format
        line, end, _ = self.read(BLOCK_BYTES, 0).partition(b"\n")
        return hashlib.blake2b(line, digest_size=_HEAD_BYTES).hexdigest() if end else ""

    def size(self) -> int:
        return self._packed.size if self._packed is not None else os.fstat(self.descriptor).st_size

    def read(self, size: int, offset: int) -> bytes:
        return self._packed.read(size, offset) if self._packed is not None else self._read(size, offset)

    def _read(self, size: int, offset: int) -> bytes:
        try:
            return os.pread(self.descriptor, size, offset)
        except OSError as error:
            raise HostError(f"the log {self.path} can't be read: {error.strerror}") from error

    def close(self) -> None:
        """Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def open_files(directory: Path, name: str) -> list[LogFile]:
    """All files of a log, oldest first. The caller closes them. Raises HostError."""
    files: list[LogFile] = []
    try:
        number = last = 0
        # The oldest file may have moved on while this looked at the newer ones: look where it is now.
        while number <= last or number <= (last := _last_number(directory, name)):
            path = directory / (f"{name}.{number}" if number else name)
            number += 1
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                continue
            file = LogFile(path, descriptor)
            files.append(file)
            known = next(at for at, other in enumerate(files) if other.is_same(file))
            # Met again: it was rotated meanwhile, and what was met since then is newer than it, or follows
            # behind it once more. A follower finds the newer ones when it gets there.
            for other in files[known + 1 :]:
                other.close()
            del files[known + 1 :]
    except OSError as error:
        for file in files:
            file.close()
        raise HostError(f"the log in {directory} can't be read: {error.strerror}") from error
    files.reverse()
    return files


def is_current(directory: Path, name: str, file: LogFile) -> bool:
    """Does the writer still append to this file? While it rotates, there may be none at all."""
    try:
        return os.stat(directory / name).st_ino == file.inode
    except FileNotFoundError:
        return True


class Start(msgspec.Struct, frozen=True):
    """Where to begin reading: a file by its index, and an offset in it.

    `stale` streams wrote nothing since the first of the lines that are asked for: what they left unfinished
    before is no part of the answer.
    """

    index: int = 0
    offset: int = 0
    stale: frozenset[int] = frozenset()


async def find_start(files: list[LogFile], form: Format, query: LogQuery) -> Start:
    """Where to begin reading for a query with `tail` or `since`.

    Reads backwards no further than it must. From there on, reading forwards meets all of the last
    `tail` lines (and more), and no line's middle that could be taken for a line of the answer. Damage on
    the way back makes it the very beginning: reading forwards passes over damage by itself.
    """
    end = Start(len(files) - 1, whole_size(files[-1], form), frozenset((STDOUT, STDERR)))
    if query.tail == 0:
        block = _block_before(files[-1], end.offset)
        return end if not block or any(True for _ in form.backwards(block)) else Start()
    position = (0, 0)
    count = 0
    seen: set[int] = set()
    missing: set[int] | None = None  # streams whose first line may have begun still earlier
    async for index, record in _backwards(files, form):
        if record is None:
            return Start()
        if record.stream not in _wanted(query):
            continue
        if missing is None and query.since_ns and record.time_ns < query.since_ns:
            missing = set(seen)
        if missing is None:
            seen.add(record.stream)
            position = (index, record.offset)
            if not query.until_ns or record.time_ns <= query.until_ns:
                count += record.newlines
            # With `since`, a newline may end a line that began too early and doesn't count: go back to it.
            if query.tail is not None and not query.since_ns and count >= query.tail:
                missing = set(seen)
        elif record.stream in missing:
            position = (index, record.offset)
            if record.newlines:
                missing.discard(record.stream)
        if missing is not None and not missing:
            break
    if missing is None:
        return Start()
    if not seen:
        return end
    stale = frozenset[int]() if query.since_ns else frozenset((STDOUT, STDERR)) - seen
    return Start(0, 0, stale) if missing else Start(*position, stale)


def whole_size(file: LogFile, form: Format) -> int:
    """The size of a file without an unfinished record at its end."""
    size = file.size()
    block = _block_before(file, size)
    return size - len(block) + form.whole_bytes(block)


def _block_before(file: LogFile, end: int, size: int = BLOCK_BYTES) -> bytes:
    start = max(0, end - size)
    return file.read(end - start, start)


async def _backwards(files: list[LogFile], form: Format) -> AsyncIterator[tuple[int, Record | None]]:
    """Every record of all files, last first; None, and no more, where there is damage."""
    for index in range(len(files) - 1, -1, -1):
        file = files[index]
        end = whole_size(file, form)
        block = BLOCK_BYTES
        while end > 0:
            data = _block_before(file, end, block)
            start = end - len(data)
            first = len(data)
            for record in form.backwards(data):
                first = record.offset
                yield index, Record(start + first, record.stream, record.time_ns, record.newlines)
            if first < len(data):
                end, block = start + first, BLOCK_BYTES
            elif start > 0 and block < MOST_BLOCK_BYTES:
                block *= 4  # a record longer than the block
            else:
                yield index, None
                return
            await asyncio.sleep(0)


def _wanted(query: LogQuery) -> tuple[int, ...]:
    return ((STDOUT,) if query.stdout else ()) + ((STDERR,) if query.stderr else ())


def _last_number(directory: Path, name: str) -> int:
    try:
        entries = os.listdir(directory)
    except FileNotFoundError:
        return 0
    return max((number for entry in entries if (number := number_of(entry, name)) is not None), default=0)
