"""Control groups behind one interface: what this host has, and everything done to a living container's.

`Layout` (facts.py) is plain data: the hierarchies found, which limits they can do, and the name of this
daemon's parent. Planning (plan_cgroups.py, pure) makes the steps by which cove-init makes, limits, joins and removes
a container's cgroup; a `Cgroups` (cgroups_v1.py, cgroups_v2.py) does the rest: the parent, updates, freezing,
killing, statistics, OOM events, removing what was left.

A container's cgroup is named by a path relative to every hierarchy: "cove/ID", or "PARENT/ID" with
`--cgroup-parent PARENT`; the OCI runtime's are where its callers want them (`find_path`), and `prepare` makes the way
there. Nothing outside of the parents that Cove made itself, or was told to use, is touched.

cgroups have no event for most of what has to be waited for. So what waits is a generator that yields the seconds
until it wants to look again: the daemon sleeps on its loop in between (`freeze`, `kill` …), the runtime command, which
has none, sleeps (`wait_here(cgroups.freezing(path))`).
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator

from cove.model.errors import Conflict, HostError, Invalid, NotFound, Unavailable
from cove.runtime import oci
from cove.runtime.cgroups_files import (
    missing_file,
    read_file,
    read_pids,
    remove_directories,
    remove_tree,
    signal_all,
    subdirectories,
    walk,
)
from cove.runtime.facts import GUARDED, Layout, check_parent
from cove.runtime.plan_limits import limit_writes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.runtime.cgroups_oom import OomWatch
    from cove.runtime.cgroups_stats import Stats

Waits = Iterator[float]
"""Seconds to sleep before the next look; what it was for has happened when it ends."""


def wait_here(waits: Waits) -> None:
    """Run one of the waiting methods to its end, in a program without an event loop."""
    for delay_s in waits:
        time.sleep(delay_s)


async def wait_on_loop(waits: Waits) -> None:
    """Run one of the waiting methods to its end, beside everything else on the loop."""
    from asyncio import sleep

    for delay_s in waits:
        await sleep(delay_s)


class Cgroups(ABC):
    """The effects. What waits is bounded in time; the other methods take microseconds."""

    driver = "cgroupfs"  # as `info` shows it: cgroupfs, systemd (cgroups_scopes.py), none

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

    def check_parent(self, parent: str) -> None:
        """Raises Invalid for a `--cgroup-parent` that can't be one."""
        check_parent(parent)

    def container_path(self, parent: str, container_id: str) -> str:
        """The cgroup of one of this daemon's containers; `parent` is its `--cgroup-parent`, "" the daemon's own."""
        return f"{parent.strip('/') or self.layout.parent}/{container_id}"

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

    # --- a container anywhere ---------------------------------------------------------------------

    def prepare(self, path: str, resources: oci.Resources) -> list[str]:
        """Make the cgroup `path` and all above it, in every hierarchy, ready for a process with these limits (which the
        plan sets). Returns the directories that weren't there, for `undo`.

        Raises Conflict when processes live in it or it is frozen, Unavailable when this host or user can't have it or
        one of the limits, Invalid for a path or limits that can't be; nothing is left behind then.
        """
        if pids := self.list_pids(path):
            raise Conflict(f"container's cgroup is not empty: {len(pids)} process(es) found in {path}")
        if self.is_frozen(path):
            raise Conflict(f"container's cgroup unexpectedly frozen: thaw {path}, or name another one")
        writes = limit_writes(self.layout, resources)
        made: list[str] = []
        try:
            self._make_way(path, made)
            missing = missing_file(self._directory_of(path), writes)
            if missing is not None:
                raise Unavailable(
                    f"{missing.field}: this host can't do {missing.file} (no such control file): leave that limit out"
                )
        except BaseException:
            self.undo(made)
            raise
        return made

    def undo(self, made: list[str]) -> None:
        """Remove what `prepare` made, unless it is in use. Idempotent."""
        remove_directories(reversed(made))

    def enable(self, path: str) -> None:
        """Have all controllers in a cgroup that somebody else made: systemd enables those that it knows."""
        self._make_way(path, [])

    @abstractmethod
    def _make_way(self, path: str, made: list[str]) -> None:
        """Make the directories of `path`, each of which goes into `made`."""

    @abstractmethod
    def _directory_of(self, path: str) -> dict[str, str]:
        """The cgroup's directory by controller."""

    # --- one container ----------------------------------------------------------------------------

    @abstractmethod
    def update(self, path: str, resources: oci.Resources) -> None:
        """Change the limits and device rules of a living container. Only fields that are set are written, in an order
        in which lowering and raising memory and swap both pass. Raises Invalid when the kernel refuses a value
        (memory in use is above the limit), NotFound without such a cgroup, HostError otherwise."""

    @abstractmethod
    def freezing(self, path: str, timeout_s: float = 10.0) -> Waits:
        """Freeze every process and wait until all are. Raises HostError after `timeout_s`, thawed again."""

    @abstractmethod
    def thawing(self, path: str, timeout_s: float = 10.0) -> Waits:
        """Let them run again; fine when they do."""

    @abstractmethod
    def is_frozen(self, path: str) -> bool:
        """Whether the cgroup is, or is about to be, frozen; False when it doesn't exist."""

    @abstractmethod
    def killing(self, path: str, timeout_s: float = 10.0) -> Waits:
        """SIGKILL to every process of the cgroup and those below it, and wait until none is left. Fine when
        there is none. Raises HostError when one remains after `timeout_s` (in uninterruptible sleep)."""

    @abstractmethod
    def read_stats(self, path: str) -> Stats:
        """What the cgroup used so far. Raises NotFound when it doesn't exist."""

    @abstractmethod
    def watch_oom(self, path: str) -> OomWatch:
        """Events of the OOM killer in this cgroup. Raises NotFound, or Unavailable without the controller."""

    def watch_pids(self, path: str) -> OomWatch:
        """Forks that the limit of processes refuses in this cgroup. Raises NotFound, HostError."""
        from cove.runtime.cgroups_oom import PidsWatch

        for directory in self._directories(path):
            if os.path.exists(f"{directory}/pids.events"):
                return PidsWatch(f"{directory}/pids.events")
        raise NotFound(f"cgroup {path} has no pids controller: start the container first")

    @abstractmethod
    def _directories(self, path: str) -> list[str]:
        """The host directories of a cgroup, one in each hierarchy, whether they exist or not."""

    def list_pids(self, path: str) -> list[int]:
        """The processes (host pids) in the cgroup and those below it, whichever hierarchy they joined."""
        found: set[int] = set()
        for directory in self._directories(path):
            for each in [directory, *walk(directory)]:
                found.update(read_pids(each))
        return sorted(found)

    def signal(self, path: str, signo: int) -> None:
        """Send a signal to every process of the cgroup and those below it. Frozen ones get it when they are thawed."""
        signal_all(self.list_pids(path), signo)

    def removing(self, path: str, timeout_s: float = 2.0) -> Waits:
        """Remove the cgroup, and what the container made below it, in every hierarchy. Fine when it is gone.

        Retries for `timeout_s` while the kernel still lets the last process go; then raises HostError that
        names the processes left.
        """
        deadline, delay_s = time.monotonic() + timeout_s, 0.001
        while True:
            gone = [remove_tree(directory) for directory in self._directories(path)]
            if all(gone):
                return
            if time.monotonic() >= deadline:
                left = ", ".join(map(str, self.list_pids(path)[:8])) or "none visible"
                raise HostError(f"cgroup {path} is still busy after {timeout_s:g} s (processes: {left})")
            yield delay_s
            delay_s = min(delay_s * 2, 0.1)

    def _emptying(self, path: str, timeout_s: float) -> Generator[float, None, None]:
        """Wait until the cgroup has no process; SIGKILL goes out each time, to catch what was forked meanwhile."""
        deadline, delay_s = time.monotonic() + timeout_s, 0.001
        while pids := self.list_pids(path):
            signal_all(pids)
            if time.monotonic() >= deadline:
                left = ", ".join(map(str, pids[:8]))
                raise HostError(
                    f"cgroup {path}: processes {left} did not die within {timeout_s:g} s of SIGKILL"
                )
            yield delay_s
            delay_s = min(delay_s * 2, 0.05)

    # --- the same on an event loop ----------------------------------------------------------------

    async def freeze(self, path: str, timeout_s: float = 10.0) -> None:
        await wait_on_loop(self.freezing(path, timeout_s))

    async def thaw(self, path: str, timeout_s: float = 10.0) -> None:
        await wait_on_loop(self.thawing(path, timeout_s))

    async def kill(self, path: str, timeout_s: float = 10.0) -> None:
        await wait_on_loop(self.killing(path, timeout_s))

    async def remove(self, path: str, timeout_s: float = 2.0) -> None:
        await wait_on_loop(self.removing(path, timeout_s))


def find_path(layout: Layout, cgroups_path: str, container_id: str, caller: str = "self") -> str:
    """Where linux.cgroupsPath leads: the path in every hierarchy, without a slash at its ends.

    An absolute path counts from the hierarchies' roots. A relative one, or none (it is the container's id then), does
    so on v1, too; on v2 it counts from the cgroup above the caller's own, as with runc: the caller's has processes,
    so it can't be a parent. `caller` is the caller's name in /proc. Raises Invalid for a path that leads elsewhere.
    """
    name = cgroups_path or container_id
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or "\0" in name or len(name) > 2048:
        raise Invalid(
            f"linux.cgroupsPath: {cgroups_path!r} names no cgroup: give a path without .., e.g. /batch/{container_id}"
        )
    if layout.version == 2 and not name.startswith("/"):
        parts[:0] = [part for part in own_path(caller).split("/")[:-1] if part]
    return "/".join(parts)


def own_path(pid: str = "self") -> str:
    """The v2 cgroup of a process, "/user.slice/…", as seen from this process's cgroup namespace; "/" without one."""
    for line in read_file(f"/proc/{pid}/cgroup").splitlines():
        if line.startswith("0::"):
            return line[3:]
    return "/"


def find_exec_path(layout: Layout, path: str, pid: int) -> str:
    """The cgroup for another process of a container whose own is `path`; `pid` is its first process.

    Who enables controllers below its own cgroup (a systemd in the container) has moved to one there, and nobody can
    join the outer one any more (cgroups(7), "no internal processes"): the process joins the first one in its cgroup.
    """
    directory = f"{layout.root}/{path.strip('/')}"
    if layout.version == 2 and read_file(f"{directory}/cgroup.subtree_control").strip():
        own = own_path(str(pid)).strip("/")
        if own.startswith(f"{path.strip('/')}/"):
            return own
    return path
