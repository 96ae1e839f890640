"""Events of the OOM killer in a cgroup, for an event loop: one class for each version."""

from __future__ import annotations

import contextlib
import ctypes
import os
from abc import ABC, abstractmethod

from cove.model.errors import HostError, NotFound
from cove.runtime.cgroups_files import read_file, write_file
from cove.runtime.cgroups_stats import parse_flat


class OomWatch(ABC):
    """A source of OOM events: `fileno` becomes readable when the cgroup ran out of memory."""

    @abstractmethod
    def fileno(self) -> int:
        """The descriptor for `loop.add_reader`; it is non-blocking."""

    @abstractmethod
    def take(self) -> bool:
        """Consume what is pending; True when memory ran out since the last call (on v1 the kill itself may be a
        moment away, or be forbidden; on v2 it has happened)."""

    @abstractmethod
    def close(self) -> None:
        """Idempotent."""


class OomWatchV1(OomWatch):
    """memory.oom_control by cgroup.event_control and an eventfd(2) (cgroup-v1/memory.rst of the kernel).

    The counter goes up by one each time memory runs out, before the kill, and by one more when the cgroup is
    removed: that one is taken off.
    """

    def __init__(self, directory: str) -> None:
        self._control = f"{directory}/memory.oom_control"
        self._signals = self._told = 0
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control = os.open(self._control, os.O_RDONLY | os.O_CLOEXEC)
            try:
                write_file(f"{directory}/cgroup.event_control", f"{self._event} {control}")
            finally:
                os.close(control)
        except FileNotFoundError:
            self.close()
            raise NotFound(f"cgroup {directory} does not exist: start the container first") from None
        except OSError as error:
            self.close()
            raise HostError(f"cgroup {directory}: no OOM events: {error.strerror}") from None

    def fileno(self) -> int:
        return self._event

    def take(self) -> bool:
        try:
            self._signals += os.eventfd_read(self._event)
        except BlockingIOError:
            pass
        # looked at after the counter: a removal in between makes us tell later, never wrongly
        happened = self._signals if os.path.exists(self._control) else self._signals - 1
        before, self._told = self._told, max(happened, self._told)
        return self._told > before

    def close(self) -> None:
        if self._event >= 0:
            os.close(self._event)
            self._event = -1


class PidsWatch(OomWatch):
    """pids.events is "modified" on v2 when a fork was refused for the limit (cgroup-v2.rst of the kernel)."""

    def __init__(self, events: str) -> None:
        self._events = events
        self._inotify = _libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        if self._inotify < 0 or _libc.inotify_add_watch(self._inotify, os.fsencode(events), _IN_MODIFY) < 0:
            number = ctypes.get_errno()
            self.close()
            raise HostError(f"no events of {events}: {os.strerror(number)}")
        self._seen = 0

    def fileno(self) -> int:
        return int(self._inotify)

    def take(self) -> bool:
        """True when forks were refused since the last call, and at the first one when ever."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._inotify, 4096):
                pass
        count = parse_flat(read_file(self._events)).get("max", 0)
        before, self._seen = self._seen, max(count, self._seen)
        return self._seen > before

    def close(self) -> None:
        if self._inotify >= 0:
            os.close(self._inotify)
            self._inotify = -1


_IN_MODIFY = 0x2
_IN_NONBLOCK, _IN_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class OomWatchV2(OomWatch):
    """memory.events is "modified" when one of its numbers grows (cgroup-v2.rst of the kernel): inotify(7)."""

    def __init__(self, events: str) -> None:
        self._events = events
        self._inotify = _libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        if self._inotify < 0 or _libc.inotify_add_watch(self._inotify, os.fsencode(events), _IN_MODIFY) < 0:
            number = ctypes.get_errno()
            self.close()
            raise HostError(f"no OOM events of {events}: {os.strerror(number)}")
        self._seen = self._kills()

    def _kills(self) -> int:
        return parse_flat(read_file(self._events)).get("oom_kill", 0)

    def fileno(self) -> int:
        return int(self._inotify)

    def take(self) -> bool:
        try:
            while os.read(self._inotify, 4096):
                pass
        except BlockingIOError:
            pass
        before, self._seen = self._seen, max(self._kills(), self._seen)
        return self._seen > before

    def close(self) -> None:
        if self._inotify >= 0:
            os.close(self._inotify)
            self._inotify = -1
