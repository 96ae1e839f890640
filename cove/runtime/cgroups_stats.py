"""Statistics of a container's cgroup: types, and the parsing of control files. Pure but for `read_cpu_clock`.

Units are in the names. Both versions of cgroups give the same types; `memory.stat` keeps the kernel's own
keys, as Docker shows them, so clients see total_inactive_file on v1 and inactive_file on v2.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

UNLIMITED = 1 << 62  # v1 says 2**63 rounded down to a page, v2 says "max"


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuStats:
    usage_ns: int = 0
    percpu_ns: tuple[int, ...] = ()  # () on v2, which doesn't tell
    user_ns: int = 0
    system_ns: int = 0
    periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStats:
    usage_bytes: int = 0
    max_usage_bytes: int = 0
    limit_bytes: int = 0  # 0: none set
    failures: int = 0  # how often the limit was hit
    oom_kills: int = 0
    stat: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PidsStats:
    current: int = 0
    limit: int = 0  # 0: none set


@dataclass(frozen=True, slots=True, kw_only=True)
class IoEntry:
    major: int
    minor: int
    operation: str  # Read, Write, Sync, Async, Discard, Total
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IoStats:
    bytes_recursive: tuple[IoEntry, ...] = ()
    operations_recursive: tuple[IoEntry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    cpu: CpuStats = CpuStats()
    memory: MemoryStats = MemoryStats()
    pids: PidsStats = PidsStats()
    io: IoStats = IoStats()


@dataclass(frozen=True, slots=True)
class CpuClock:
    """The host's processor time so far, all processors together, and how many are online."""

    system_ns: int
    online: int


_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def parse_proc_stat(text: str) -> CpuClock:
    """The `cpu` line of /proc/stat: user to steal (guest time is in user already), as Docker adds it up."""
    system_ns, online = 0, 0
    for line in text.splitlines():
        if line.startswith("cpu "):
            system_ns = sum(int(value) for value in line.split()[1:9]) * _TICK_NS
        elif line.startswith("cpu"):
            online += 1
    return CpuClock(system_ns, online)


def read_cpu_clock() -> CpuClock:
    with open("/proc/stat", encoding="ascii") as file:
        return parse_proc_stat(file.read())


def parse_number(text: str) -> int:
    """A control file's number; "max" and what is as good as unlimited is 0, as is an empty file."""
    text = text.strip()
    if not text.isdigit():
        return 0
    number = int(text)
    return 0 if number >= UNLIMITED else number


def parse_flat(text: str) -> dict[str, int]:
    """`KEY NUMBER` lines."""
    result = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value.strip().isdigit():
            result[key] = int(value)
    return result


def parse_blkio(text: str) -> tuple[IoEntry, ...]:
    """v1: `MAJOR:MINOR OPERATION NUMBER` lines of blkio.throttle.*_recursive; the sum of all is left out."""
    result = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and ":" in fields[0]:
            major, _, minor = fields[0].partition(":")
            result.append(
                IoEntry(major=int(major), minor=int(minor), operation=fields[1], value=int(fields[2]))
            )
    return tuple(result)


_IO_KEYS = (("rbytes", "Read", 0), ("wbytes", "Write", 0), ("rios", "Read", 1), ("wios", "Write", 1))


def parse_io_stat(text: str) -> IoStats:
    """v2: `MAJOR:MINOR rbytes=… wbytes=… rios=… wios=…` lines of io.stat."""
    entries: tuple[list[IoEntry], list[IoEntry]] = ([], [])
    for line in text.splitlines():
        device, *pairs = line.split()
        major, _, minor = device.partition(":")
        if not minor.isdigit():
            continue
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        for key, operation, kind in _IO_KEYS:
            if values.get(key, "").isdigit():
                entry = IoEntry(
                    major=int(major), minor=int(minor), operation=operation, value=int(values[key])
                )
                entries[kind].append(entry)
    return IoStats(bytes_recursive=tuple(entries[0]), operations_recursive=tuple(entries[1]))
