"""What /proc says of processes: memory, descent, pids across namespaces. Reads only."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process or the sum over several, in KiB (proc(5), smaps_rollup)."""

    rss: int = 0
    pss: int = 0
    private: int = 0

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.rss + other.rss, self.pss + other.pss, self.private + other.private)


def parse_rollup(text: str) -> Memory:
    """/proc/PID/smaps_rollup as Memory."""
    fields: dict[str, int] = {}
    for line in text.splitlines()[1:]:
        name, _, rest = line.partition(":")
        value = rest.split()
        if value and value[0].isdigit():
            fields[name] = int(value[0])
    private = fields.get("Private_Clean", 0) + fields.get("Private_Dirty", 0)
    return Memory(fields.get("Rss", 0), fields.get("Pss", 0), private)


def memory_of(pids: Iterable[int]) -> Memory:
    """The sum over the processes; one that has ended counts nothing."""
    total = Memory()
    for pid in pids:
        try:
            total += parse_rollup((PROC / str(pid) / "smaps_rollup").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def parse_status(text: str) -> tuple[int, tuple[int, ...]]:
    """/proc/PID/status as (parent, pids from the outermost namespace in)."""
    parent = 0
    pids: tuple[int, ...] = ()
    for line in text.splitlines():
        if line.startswith("PPid:"):
            parent = int(line.split()[1])
        elif line.startswith("NSpid:"):
            pids = tuple(int(word) for word in line.split()[1:])
    return parent, pids


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    parent: int
    inner_pids: tuple[int, ...]  # in each pid namespace, the outermost first
    program: str  # what /proc/PID/exe points to; "" where it can't be read


def descendants(root: int) -> dict[int, Process]:
    """Every living process below `root` (a pid here), itself included, by pid."""
    processes: dict[int, Process] = {}
    for entry in os.listdir(PROC):
        if not entry.isdigit():
            continue
        try:
            parent, pids = parse_status((PROC / entry / "status").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
        processes[int(entry)] = Process(int(entry), parent, pids, "")
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: dict[int, Process] = {}
    todo = [root] if root in processes else []
    while todo:
        pid = todo.pop()
        process = processes[pid]
        found[pid] = Process(pid, process.parent, process.inner_pids, program_of(pid))
        todo.extend(children.get(pid, []))
    return found


def program_of(pid: int) -> str:
    try:
        return os.readlink(PROC / str(pid) / "exe")
    except OSError:
        return ""
