"""How far a log has been sent, as a file beside it.

A line is sent when the receiving side has taken it, and the position is written after that, so a crash in
between sends some lines twice and none never.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from cove.logs.files import FileKey

_NAME = "position"


class Mark(msgspec.Struct, frozen=True):
    """What of one stream has been sent: everything before this record, and `skip` bytes of its payload."""

    file: FileKey
    offset: int
    skip: int = 0


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """By stream: 1 is stdout (and a terminal), 2 is stderr."""

    marks: dict[int, Mark]
    sent: int = 0  # lines, since the log exists
    lost: int = 0  # bytes that were rotated away unsent


def load_position(directory: Path) -> Position | None:
    """None: nothing was sent yet, or what is written there makes no sense, so that everything is sent again."""
    try:
        return msgspec.json.decode((directory / _NAME).read_bytes(), type=Position)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None


def has_unsent(log_dir: Path) -> bool:
    """Whether there may be lines of an ended container that weren't sent; no, when its newest file was sent whole."""
    if not (log_dir / "ship/destination").exists():
        return False
    position = load_position(log_dir / "ship")
    try:
        newest = os.stat(log_dir / "log")
    except FileNotFoundError:
        return True
    ends = [(mark.file.inode, mark.offset) for mark in position.marks.values()] if position else []
    return not ends or any(end != (newest.st_ino, newest.st_size) for end in ends)


def save_position(directory: Path, position: Position) -> None:
    """Replaces the file as a whole. A full disk costs lines that are sent twice, no more."""
    new = directory / f"{_NAME}.new"
    with contextlib.suppress(OSError):
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            data = msgspec.json.encode(position)
            whole = os.write(descriptor, data) == len(data)
        finally:
            os.close(descriptor)
        if whole:
            os.rename(new, directory / _NAME)
