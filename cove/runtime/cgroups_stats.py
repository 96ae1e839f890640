"""Statistics of a container's cgroup: types, and the parsing of control files. Pure but for `read_cpu_clock`.

Units are in the names. Both versions of cgroups give the same types; `memory.stat` keeps the kernel's own
keys, as Docker shows them, so clients see total_inactive_file on v1 and inactive_file on v2.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

UNLIMITED = 1 << 62  # v1 says 2**63 rounded down to a page, v2 says "max"


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all parts: 0 or empty is what a kernel doesn't tell."""


class PressureLine(_Part, frozen=True, kw_only=True):
    """How much of the time tasks waited: averages in percent over 10, 60 and 300 s, and the sum so far."""

    avg10: float = 0.0
    avg60: float = 0.0
    avg300: float = 0.0
    total_us: int = 0


class Pressure(_Part, frozen=True, kw_only=True):
    """Pressure stall information (accounting/psi.rst of the kernel): `some` tasks waited, or all of them at once."""

    some: PressureLine
    full: PressureLine


class CpuStats(_Part, frozen=True, kw_only=True):
    usage_ns: int = 0
    percpu_ns: tuple[int, ...] = ()  # () on v2, which doesn't tell
    user_ns: int = 0
    system_ns: int = 0
    periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0
    bursts: int = 0
    burst_ns: int = 0
    pressure: Pressure | None = None


class MemoryStats(_Part, frozen=True, kw_only=True):
    usage_bytes: int = 0
    max_usage_bytes: int = 0
    limit_bytes: int = 0  # 0: none set
    failures: int = 0  # how often the limit was hit
    oom_kills: int = 0
    swap_usage_bytes: int = 0  # v1: memory and swap together
    swap_limit_bytes: int = 0  # the same; 0: none set
    stat: Mapping[str, int] = {}
    pressure: Pressure | None = None


class PidsStats(_Part, frozen=True, kw_only=True):
    current: int = 0
    limit: int = 0  # 0: none set


class IoEntry(_Part, frozen=True, kw_only=True):
    major: int
    minor: int
    operation: str  # Read, Write, Sync, Async, Discard, Total
    value: int


class IoStats(_Part, frozen=True, kw_only=True):
    bytes_recursive: tuple[IoEntry, ...] = ()
    operations_recursive: tuple[IoEntry, ...] = ()
    pressure: Pressure | None = None


class HugePageStats(_Part, frozen=True, kw_only=True):
    usage_bytes: int = 0
    max_usage_bytes: int = 0
    failures: int = 0


class Stats(_Part, frozen=True, kw_only=True):
    cpu: CpuStats = CpuStats()
    memory: MemoryStats = MemoryStats()
    pids: PidsStats = PidsStats()
    io: IoStats = IoStats()
    huge_pages: Mapping[str, HugePageStats] = {}  # by size: 2MB, 1GB …
    rdma: Mapping[str, Mapping[str, int]] = {}  # by device: hca_handle, hca_object


class CpuClock(NamedTuple):
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


def parse_pressure(text: str) -> Pressure | None:
    """v2: the `some` and `full` lines of cpu.pressure, memory.pressure and io.pressure; None without PSI."""
    lines = {}
    for line in text.splitlines():
        kind, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        try:
            lines[kind] = PressureLine(
                avg10=float(values["avg10"]), avg60=float(values["avg60"]), avg300=float(values["avg300"]),
                total_us=int(values["total"]),
            )  # fmt: skip
        except (KeyError, ValueError):
            continue
    if "some" not in lines:
        return None
    return Pressure(some=lines["some"], full=lines.get("full", PressureLine()))


def parse_rdma(text: str) -> dict[str, dict[str, int]]:
    """`DEVICE hca_handle=2 hca_object=2000` lines of rdma.current."""
    result = {}
    for line in text.splitlines():
        device, *pairs = line.split()
        values = (pair.partition("=") for pair in pairs)
        result[device] = {key: int(value) for key, _, value in values if value.isdigit()}
    return result


def huge_page_stats(
    names: list[str], read: Callable[[str], str], suffix: str, peak: str, failures: str
) -> dict[str, HugePageStats]:
    """By size of pages, from the control files in `names`; reservations are what counts where the kernel has them
    (Linux 5.7), as they are what is limited."""
    result = {}
    for name in sorted(names):
        size = name.removeprefix("hugetlb.").removesuffix(f".{suffix}")
        if not name.startswith("hugetlb.") or not name.endswith(f".{suffix}") or "." in size:
            continue
        prefix = f"hugetlb.{size}.rsvd" if f"hugetlb.{size}.rsvd.{suffix}" in names else f"hugetlb.{size}"
        events = read(f"{prefix}.{failures}").removeprefix("max ")
        result[size] = HugePageStats(
            usage_bytes=parse_number(read(f"{prefix}.{suffix}")),
            max_usage_bytes=parse_number(read(f"{prefix}.{peak}")) if peak else 0,
            failures=parse_number(events),
        )
    return result
