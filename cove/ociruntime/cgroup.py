"""A container's cgroup by its directories, which are in its state: what `state`, `kill` and `delete` need.

They are short-lived and run often, so this reads a few files and knows nothing of layouts, limits or configs; what
changes a living container's cgroup goes through cove.runtime.cgroups.
"""

from __future__ import annotations

import os
import time

from cove.model.errors import HostError
from cove.runtime.cgroups_files import read_file, read_pids, remove_tree, signal_all, walk, write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_SIGKILL = 9


def is_frozen(freezer: str) -> bool:
    """Whether the cgroup of this control file (freezer.state on v1, cgroup.freeze on v2) is frozen, or about to be."""
    return bool(freezer) and read_file(freezer).strip() in ("FROZEN", "FREEZING", "1")


def thaw(freezer: str) -> None:
    """Let frozen processes run again, those of cgroups that the container froze itself, too: on v1 even a SIGKILL
    waits for that."""
    if not freezer:
        return
    directory, _, name = freezer.rpartition("/")
    for each in (directory, *walk(directory)):
        try:
            write_file(f"{each}/{name}", "THAWED" if name == "freezer.state" else "0")
        except OSError:
            pass  # it has ended meanwhile


def list_pids(directories: Sequence[str]) -> list[int]:
    """The processes (host pids) in the cgroup and those below it, in whichever hierarchy."""
    found: set[int] = set()
    for directory in directories:
        for each in (directory, *walk(directory)):
            found.update(read_pids(each))
    return sorted(found)


def kill_all(directories: Sequence[str], freezer: str, timeout_s: float = 10.0) -> None:
    """SIGKILL to every process, and wait until none is left; what is forked meanwhile is killed, too. Raises
    HostError when one remains (in uninterruptible sleep)."""
    deadline, delay_s = time.monotonic() + timeout_s, 0.001
    while pids := list_pids(directories):
        signal_all(pids, _SIGKILL)
        thaw(freezer)
        if time.monotonic() >= deadline:
            left = ", ".join(map(str, pids[:8]))
            raise HostError(f"processes {left} did not die within {timeout_s:g} s of SIGKILL")
        time.sleep(delay_s)  # cgroup v1 has no event for it
        delay_s = min(delay_s * 2, 0.05)


def remove(directories: Sequence[str], timeout_s: float = 5.0) -> None:
    """Remove the cgroup and what is below it. Fine when it is gone. Raises HostError when it stays busy."""
    deadline, delay_s = time.monotonic() + timeout_s, 0.001
    left = list(directories)
    while left := [directory for directory in left if not remove_tree(directory)]:
        if time.monotonic() >= deadline:
            pids = ", ".join(map(str, list_pids(left)[:8])) or "none visible"
            raise HostError(f"cgroup {left[0]} is still busy after {timeout_s:g} s (processes: {pids})")
        time.sleep(delay_s)  # the kernel still lets the last process go
        delay_s = min(delay_s * 2, 0.1)


def abandon(directories: Sequence[str], timeout_s: float = 2.0) -> None:
    """Remove the cgroup of a container that never had a process, once what was cloned for it and is about to end has
    gone. Whoever else lives there goes on."""
    deadline = time.monotonic() + timeout_s
    left = list(directories)
    while (left := [each for each in left if not remove_tree(each)]) and time.monotonic() < deadline:
        time.sleep(0.01)


def exists(directories: Sequence[str]) -> bool:
    return any(os.path.exists(directory) for directory in directories)
