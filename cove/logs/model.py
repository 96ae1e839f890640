"""The words of log reading: queries, lines, settings and errors. No I/O."""

from __future__ import annotations

from pathlib import Path

import msgspec

from cove.model.errors import HostError, NotImplementedHere

STDOUT = 1
STDERR = 2


class LogQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines are wanted. Times are nanoseconds since the epoch, both ends inclusive; 0: no bound.

    `tail` is the number of last lines among those that the other fields select; None means all. A line that
    hasn't ended comes last; without `since_ns` it counts only when its stream wrote something since the first
    of the others ended.
    With `follow`, reading goes on until the container has ended or `until_ns` has passed.
    """

    stdout: bool = True
    stderr: bool = True
    since_ns: int = 0
    until_ns: int = 0
    tail: int | None = None
    follow: bool = False


class LogLine(msgspec.Struct, frozen=True, gc=False):
    """One line with its newline; without one where the output ended (or ends so far), or in the
    pieces of a line over MAX_LINE_BYTES. `time_ns` is when the line's first byte was read."""

    stream: int  # STDOUT, STDERR
    time_ns: int
    data: bytes


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor needs to write a log; the fields of `cove.runtime.launch.LogSetup`."""

    driver: str  # local, json-file, none
    directory: Path | None
    max_size_bytes: int  # of one file; the next record starts another
    max_files: int  # in all, the one being written included
    compress: bool = False  # those that were rotated away


class LogUnreadable(NotImplementedHere):
    """The container's log driver keeps nothing that could be read."""

    code = "log-unreadable"


class LogDamaged(HostError):
    """A log file holds bytes that aren't records; what could be read has been delivered."""

    code = "log-damaged"
