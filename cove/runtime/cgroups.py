"""Control groups behind one interface: what this host has, and everything done to a living container's.

`Layout` (facts.py) is plain data: the hierarchies found, which limits they can do, and the name of this
daemon's parent. Planning (plan_cgroups.py, pure) makes the steps by which cove-init makes, limits, joins and removes
a container's cgroup; a `Cgroups` (cgroups_v1.py, cgroups_v2.py) does the rest: the parent, updates, freezing,
killing, statistics, OOM events, removing what was left.

A container's cgroup is named by a path relative to every hierarchy: "cove/ID", or "PARENT/ID" with
`--cgroup-parent PARENT`. Nothing outside the parents that Cove made itself, or was told to use, is touched.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from cove.model.errors import HostError, Invalid, Unavailable
from cove.runtime import oci
from cove.runtime.cgroups_stats import Stats
from cove.runtime.facts import GUARDED, Layout


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


class Cgroups(ABC):
    """The effects. Methods that wait are coroutines and bounded; the others take microseconds."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    # --- this daemon's parent ---------------------------------------------------------------------

    @abstractmethod
    def setup(self) -> None:
        """Make the parent, ready for containers; find out which limits work (`layout.features`).

        Idempotent. Raises HostError when a hierarchy refuses the parent.
        """

    @abstractmethod
    def ensure_parent(self, parent: str) -> None:
        """Make a `--cgroup-parent` ready for containers. Idempotent. Raises Invalid for a name that leads
        outside, HostError when the host refuses it."""

    def teardown(self) -> None:
        """Remove the parent and every empty cgroup below it; one with processes stays, as does its parent."""
        for directory in self._directories(self.layout.parent):
            remove_tree(directory)

    def list_containers(self) -> list[str]:
        """The paths of all cgroups directly below the parent ("cove/ID"), in any hierarchy: whoever isn't a
        living container of this daemon's is a leak."""
        found: set[str] = set()
        for directory in self._directories(self.layout.parent):
            found.update(entry for entry in subdirectories(directory) if entry != GUARDED)
        return sorted(f"{self.layout.parent}/{name}" for name in found)

    # --- one container ----------------------------------------------------------------------------

    @abstractmethod
    def update(self, path: str, resources: oci.Resources) -> None:
        """Change the limits of a living container. Only fields that are set are written, in an order in which
        lowering and raising memory and swap both pass. Raises Invalid when the kernel refuses a value (memory
        in use is above the limit), NotFound without such a cgroup, HostError otherwise."""

    @abstractmethod
    async def freeze(self, path: str, timeout_s: float = 10.0) -> None:
        """Freeze every process and wait until all are. Raises HostError after `timeout_s`, thawed again."""

    @abstractmethod
    async def thaw(self, path: str, timeout_s: float = 10.0) -> None:
        """Let them run again; fine when they do."""

    @abstractmethod
    def is_frozen(self, path: str) -> bool:
        """Whether the cgroup is, or is about to be, frozen; False when it doesn't exist."""

    @abstractmethod
    async def kill(self, path: str, timeout_s: float = 10.0) -> None:
        """SIGKILL to every process of the cgroup and those below it, and wait until none is left. Fine when
        there is none. Raises HostError when one remains after `timeout_s` (in uninterruptible sleep)."""

    @abstractmethod
    def read_stats(self, path: str) -> Stats:
        """What the cgroup used so far. Raises NotFound when it doesn't exist."""

    @abstractmethod
    def watch_oom(self, path: str) -> OomWatch:
        """Events of the OOM killer in this cgroup. Raises NotFound, or Unavailable without the controller."""

    @abstractmethod
    def _directories(self, path: str) -> list[str]:
        """The host directories of a cgroup, one in each hierarchy, whether they exist or not."""

    def list_pids(self, path: str) -> list[int]:
        """The processes (host pids) in the cgroup and those below it, whichever hierarchy they joined."""
        found: set[int] = set()
        for directory in self._directories(path):
            for each in [directory, *_walk(directory)]:
                found.update(_read_pids(each))
        return sorted(found)

    async def remove(self, path: str, timeout_s: float = 2.0) -> None:
        """Remove the cgroup, and what the container made below it, in every hierarchy. Fine when it is gone.

        Retries for `timeout_s` while the kernel still lets the last process go; then raises HostError that
        names the processes left.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        delay_s = 0.001
        while True:
            gone = [remove_tree(directory) for directory in self._directories(path)]
            if all(gone):
                return
            if asyncio.get_running_loop().time() >= deadline:
                left = ", ".join(map(str, self.list_pids(path)[:8])) or "none visible"
                raise HostError(f"cgroup {path} is still busy after {timeout_s:g} s (processes: {left})")
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, 0.1)


# --- files and processes, shared by both versions ---------------------------------------------------


def read_file(path: str) -> str:
    """The content of a control file; "" when there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def write_file(path: str, data: str) -> None:
    """One write(2) to a control file, as the kernel wants it. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data.encode())
    finally:
        os.close(fd)


def write_limit(path: str, value: str, *, optional: bool = False) -> None:
    """Write a limit. Raises Invalid for a value that the kernel refuses, Unavailable when there is no such file
    (unless it is `optional`), HostError otherwise."""
    try:
        write_file(path, value)
    except FileNotFoundError:
        if not optional:
            raise Unavailable(f"this host can't do {os.path.basename(path)}: leave that limit out") from None
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EINVAL, errno.ERANGE, errno.ENOSPC):
            name = os.path.basename(path)
            raise Invalid(f"the kernel refuses {value} for {name}: {error.strerror}") from None
        raise HostError(f"can't write {value!r} to {path}: {error.strerror}") from None


def make_directory(directory: str) -> None:
    """mkdir(2), there already is fine. Raises HostError."""
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        return
    except OSError as error:
        raise HostError(f"can't make cgroup {directory}: {error.strerror}") from None


def _read_pids(directory: str) -> list[int]:
    try:
        with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
            return [int(line) for line in file]
    except OSError:  # gone, or a threaded cgroup (EOPNOTSUPP), whose processes its parent lists
        return []


def subdirectories(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _walk(directory: str) -> Iterator[str]:
    """Every cgroup below `directory`, the deepest first."""
    for name in subdirectories(directory):
        child = f"{directory}/{name}"
        yield from _walk(child)
        yield child


def remove_tree(directory: str) -> bool:
    """rmdir(2) from the leaves up; True when the directory is gone. Control files go with it."""
    gone = True
    for each in [*_walk(directory), directory]:
        try:
            os.rmdir(each)
        except FileNotFoundError:
            continue
        except OSError:
            gone = False
    return gone


def signal_all(pids: Sequence[int], signo: int = signal.SIGKILL) -> None:
    for pid in pids:
        try:
            os.kill(pid, signo)
        except ProcessLookupError:
            continue


async def wait_until_empty(cgroups: Cgroups, path: str, timeout_s: float, *, killing: bool) -> bool:
    """Wait, with growing steps, until the cgroup has no process; `killing` sends SIGKILL each time, to catch
    what was forked meanwhile. cgroup v1 has no event for this. False after `timeout_s`."""
    loop = asyncio.get_running_loop()
    deadline, delay_s = loop.time() + timeout_s, 0.001
    while pids := cgroups.list_pids(path):
        if killing:
            signal_all(pids)
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(delay_s)
        delay_s = min(delay_s * 2, 0.05)
    return True
