"""No control groups: what a rootless daemon has where none were delegated to its user.

No limit works, and nothing can be frozen. What belongs to a container is told by its pid namespace: killing the
first process of one kills all of it (pid_namespaces(7)).
"""

from __future__ import annotations

import os
from collections.abc import Callable

from cove.model.errors import NotFound, Unavailable
from cove.runtime import oci
from cove.runtime.cgroups import Cgroups, Waits
from cove.runtime.cgroups_oom import OomWatch
from cove.runtime.cgroups_stats import CpuStats, MemoryStats, PidsStats, Stats
from cove.runtime.facts import Layout

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class CgroupsNone(Cgroups):
    """See the module. `find_first` tells the first process of the container that has a cgroup's path; 0: none."""

    driver = "none"

    def __init__(self, parent: str, *, online_cpus: int = 1) -> None:
        super().__init__(Layout(version=1, parent=parent, online_cpus=online_cpus))
        self.find_first: Callable[[str], int] = lambda path: 0

    def setup(self) -> None:
        """Nothing to make."""

    def ensure_parent(self, parent: str) -> None:
        raise Unavailable(
            f"--cgroup-parent {parent}: this daemon has no control groups, leave the option out"
        )

    def update(self, path: str, resources: oci.Resources) -> None:
        """Limits were discarded when they were checked."""

    def freezing(self, path: str, timeout_s: float = 10.0) -> Waits:
        raise Unavailable(
            "a container can't be paused without the freezer cgroup, which this daemon doesn't have: stop it instead"
        )

    def thawing(self, path: str, timeout_s: float = 10.0) -> Waits:
        yield from ()

    def is_frozen(self, path: str) -> bool:
        return False

    def killing(self, path: str, timeout_s: float = 10.0) -> Waits:
        if self.list_pids(path):
            yield from self._emptying(path, timeout_s)

    def read_stats(self, path: str) -> Stats:
        """The sum over the living processes: what ended ones used is lost."""
        if not self.find_first(path):
            raise NotFound(f"container {os.path.basename(path)[:12]} does not run")
        user = system = resident = count = 0
        for pid in self.list_pids(path):
            fields = _stat(pid)
            if fields:
                count += int(fields[17])  # threads, as the pids cgroup counts
                user += int(fields[11])
                system += int(fields[12])
                resident += int(fields[21])
        return Stats(
            cpu=CpuStats(
                usage_ns=(user + system) * _TICK_NS, user_ns=user * _TICK_NS, system_ns=system * _TICK_NS
            ),
            memory=MemoryStats(usage_bytes=resident * _PAGE_BYTES),
            pids=PidsStats(current=count),
        )

    def watch_oom(self, path: str) -> OomWatch:
        raise Unavailable("there is no memory cgroup to watch")

    def list_pids(self, path: str) -> list[int]:
        first = self.find_first(path)
        namespace = _pid_namespace(first) if first else ""
        if not namespace:
            return []
        if namespace == _pid_namespace("self"):
            return [first]  # with --pid=host nothing tells what else is its
        return sorted(
            int(name)
            for name in os.listdir("/proc")
            if name.isdecimal() and _pid_namespace(name) == namespace
        )

    def _directories(self, path: str) -> list[str]:
        return []

    def _directory_of(self, path: str) -> dict[str, str]:
        return {}

    def _make_way(self, path: str, made: list[str]) -> None:
        """There is no way."""


def _pid_namespace(pid: int | str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) from the third on."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []
