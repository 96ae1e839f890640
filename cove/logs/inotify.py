"""Wait for changes in directories: inotify(7), two instances for all followers of an event loop.

Instances are scarce (fs.inotify.max_user_instances is 128), so there is one for every change and one for
renames alone, made for the first watch and closed with the last. A directory that several followers watch is
watched once.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakKeyDictionary

from cove.model.errors import HostError

# <sys/inotify.h>
_IN_MODIFY, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE = 0x2, 0x40, 0x80, 0x100
_IN_DELETE_SELF, _IN_IGNORED, _IN_ONLYDIR = 0x400, 0x8000, 0x01000000
_RENAMES = _IN_MOVED_TO | _IN_DELETE_SELF | _IN_ONLYDIR
_MASK = _IN_MODIFY | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE_SELF | _IN_ONLYDIR
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows

_libc = ctypes.CDLL(None, use_errno=True)
_instances: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, _Instance]] = WeakKeyDictionary()


class Watch:
    """One follower's view of a directory."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()  # set by every change; whoever waits clears it first
        self.gone = False  # the directory was removed: nothing will change any more
        self.moved: Callable[[], None] | None = None  # called at once when a file was renamed


@contextmanager
def watched(directory: Path, *, renames: bool = False) -> Iterator[Watch]:
    """Watch a directory's files from here on: written to, created, renamed, or only the last.

    Raises HostError: no such directory, or the host's limit of watches is reached.
    """
    loop = asyncio.get_running_loop()
    mask = _RENAMES if renames else _MASK
    instances = _instances.setdefault(loop, {})
    instance = instances.get(mask)
    if instance is None:
        instance = instances[mask] = _Instance(loop, mask)
    watch = Watch()
    try:
        descriptor = instance.add(directory, watch)
    except OSError as error:
        instance.close_if_idle()
        raise HostError(f"{directory} can't be watched for new log lines: {error.strerror}") from error
    try:
        yield watch
    finally:
        instance.remove(descriptor, watch)


class _Instance:
    def __init__(self, loop: asyncio.AbstractEventLoop, mask: int) -> None:
        descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            number = ctypes.get_errno()
            raise HostError(f"log files can't be followed: inotify_init1: {os.strerror(number)}")
        self._loop = loop
        self._mask = mask
        self._descriptor: int = descriptor
        self._watches: dict[int, set[Watch]] = {}
        loop.add_reader(descriptor, self._read)

    def add(self, directory: Path, watch: Watch) -> int:
        number: int = _libc.inotify_add_watch(self._descriptor, os.fsencode(directory), self._mask)
        if number < 0:
            failed = ctypes.get_errno()
            raise OSError(failed, os.strerror(failed))
        self._watches.setdefault(number, set()).add(watch)
        return number

    def remove(self, number: int, watch: Watch) -> None:
        watches = self._watches.get(number, set())
        watches.discard(watch)
        if not watches and self._watches.pop(number, None) is not None:
            _libc.inotify_rm_watch(self._descriptor, number)
        self.close_if_idle()

    def close_if_idle(self) -> None:
        if not self._watches and self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
            del _instances[self._loop][self._mask]

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, 65536)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(data):
            number, mask, _, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size + length
            # A queue that overflowed is told with watch -1: something may have changed everywhere.
            watches = (
                self._watches.get(number, set()) if number >= 0 else set().union(*self._watches.values())
            )
            for watch in watches:
                watch.gone |= bool(mask & (_IN_DELETE_SELF | _IN_IGNORED))
                watch.changed.set()
                if watch.moved is not None and mask & _IN_MOVED_TO:
                    watch.moved()
