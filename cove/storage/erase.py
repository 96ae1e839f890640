"""Delete a tree that strangers may have built, entry by entry, without leaving it.

Blocking; meant for Trash's thread. Follows no symlink, crosses no mount (a mount found inside stays,
and so do the directories above it), needs a bounded number of descriptors however deep the tree is,
and takes immutable and append-only flags off where the kernel allows it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable
from contextlib import suppress

from cove.storage.beneath import open_beneath

MAX_DEPTH = 48  # below this, a directory is moved up and deleted from there: two descriptors for a level
_FS_IOC_GETFLAGS = 0x80086601  # ioctl_iflags(2), 64-bit
_FS_IOC_SETFLAGS = 0x40086602
_FS_APPEND_FL = 0x20
_FS_IMMUTABLE_FL = 0x10
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Stopped(Exception):
    """The work was interrupted; the rest of the tree is still there."""


class _Level:
    """A directory that is being emptied."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.descriptor = descriptor
        self.name = name  # in the level above
        self.entries = os.scandir(descriptor)
        self.progress = False  # something went since the last look at the whole directory

    def close(self) -> None:
        self.entries.close()
        os.close(self.descriptor)


def erase(
    parent: int, name: str, pace: Callable[[], None], move_up: Callable[[int, str], None]
) -> list[OSError]:
    """Delete the entry `name` of the directory descriptor `parent`, whatever it is.

    `pace` is called for every entry and may sleep or raise (Stopped). `move_up(directory, name)` puts a
    directory that lies too deep where it will be erased later. Returns what couldn't be deleted and why.
    """
    failures: list[OSError] = []
    levels: list[_Level] = []
    try:
        _remove(parent, name, levels, pace, move_up, failures)
        while levels:
            level = levels[-1]
            entry = next(level.entries, None)
            if entry is not None:
                level.progress |= _remove(level.descriptor, entry.name, levels, pace, move_up, failures)
            elif level.progress:
                # readdir(3) may pass over entries while others are being unlinked: look again.
                level.progress = False
                level.entries.close()
                level.entries = os.scandir(level.descriptor)
            else:
                levels.pop().close()
                above = levels[-1] if levels else None
                removed = _rmdir(above.descriptor if above else parent, level.name, failures)
                if above:
                    above.progress |= removed
    finally:
        for level in levels:
            level.close()
    return failures


def _remove(
    parent: int,
    name: str,
    levels: list[_Level],
    pace: Callable[[], None],
    move_up: Callable[[int, str], None],
    failures: list[OSError],
) -> bool:
    """Unlink an entry, or begin with it when it is a directory; True when it's gone from here."""
    pace()
    try:
        try:
            os.unlink(name, dir_fd=parent)
        except PermissionError:
            _unlock(parent, name)
            os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return False
    except IsADirectoryError:
        return _enter(parent, name, levels, move_up, failures)
    except OSError as error:
        failures.append(_named(error, name))
        return False
    return True


def _enter(
    parent: int,
    name: str,
    levels: list[_Level],
    move_up: Callable[[int, str], None],
    failures: list[OSError],
) -> bool:
    try:
        if len(levels) >= MAX_DEPTH:
            move_up(parent, name)
            return True
        descriptor = open_beneath(parent, name, _DIRECTORY)
    except FileNotFoundError:
        return False
    except OSError as error:
        failures.append(_named(error, name))
        return False
    try:
        levels.append(_Level(descriptor, name))
    except OSError as error:
        os.close(descriptor)
        failures.append(_named(error, name))
    return False


def _rmdir(parent: int, name: str, failures: list[OSError]) -> bool:
    try:
        try:
            os.rmdir(name, dir_fd=parent)
        except PermissionError:
            _unlock(parent, name)
            os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno != errno.ENOTEMPTY or not failures:  # what is inside has been told already
            failures.append(_named(error, name))
        return False
    return True


def _unlock(parent: int, name: str) -> None:
    """Take the flags that forbid deletion off an entry and off the directory that holds it."""
    _clear_flags(parent)
    with suppress(OSError):
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            return  # opening a device or a fifo would do something
        descriptor = open_beneath(parent, name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            _clear_flags(descriptor)
        finally:
            os.close(descriptor)


def _clear_flags(descriptor: int) -> None:
    """Without CAP_LINUX_IMMUTABLE this fails, and so does the deletion that comes after."""
    with suppress(OSError):
        (flags,) = struct.unpack("l", fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, b"\0" * 8))
        wanted = flags & ~(_FS_APPEND_FL | _FS_IMMUTABLE_FL)
        if wanted != flags:
            fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, struct.pack("l", wanted))


def _named(error: OSError, name: str) -> OSError:
    return OSError(error.errno, error.strerror, name)
