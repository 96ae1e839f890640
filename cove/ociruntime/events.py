"""`events`: lines of JSON with what a container uses, and when its memory ran out; runc's shape (types/events.go)."""

from __future__ import annotations

import os
import select
import time

from cove.model import wirejson
from cove.model.errors import Conflict, CoveError, Invalid
from cove.ociruntime import caller
from cove.ociruntime.state import load
from cove.runtime.cgroups_detect import detect_cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from cove.ociruntime.main import Call
    from cove.runtime.cgroups_stats import HugePageStats, IoEntry, Pressure, Stats

_UNLIMITED_V1 = 0x7FFFFFFFFFFFF000
_DURATION = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def events_command(call: Call) -> int:
    name = call.options.args[0]
    interval_s = parse_duration(call.options.text("interval") or "5s")
    container = load(call.root, name)
    if container.status() in ("stopped", "creating"):
        raise Conflict(f"container with id {name} is not running")
    cgroups, path = detect_cgroups(), container.cgroup
    if call.options.on("stats"):
        _print(name, "stats", convert(cgroups.read_stats(path)))
        return 0
    caller.current.only_here()  # it ends by a signal
    pidfd = container.open_process()
    watch = cgroups.watch_oom(path)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(watch.fileno(), select.POLLIN)
        due = time.monotonic() + interval_s
        while True:
            ready = dict(poll.poll(max(0.0, due - time.monotonic()) * 1000))
            if watch.fileno() in ready and watch.take():
                _print(name, "oom", None)
            if pidfd in ready:
                return 0
            if time.monotonic() >= due:
                due += interval_s
                try:
                    _print(name, "stats", convert(cgroups.read_stats(path)))
                except CoveError as error:
                    call.log.error(str(error))
    finally:
        watch.close()
        os.close(pidfd)


def parse_duration(text: str) -> float:
    """Seconds of Go's "1m30s" or "500ms". Raises Invalid."""
    total, rest = 0.0, text
    while rest:
        digits = len(rest) - len(rest.lstrip("0123456789."))
        number, rest = rest[:digits], rest[digits:]
        letters = len(rest) - len(rest.lstrip("hms"))
        unit, rest = rest[:letters], rest[letters:]
        if unit not in _DURATION or not number or number.count(".") > 1 or number == ".":
            total = 0.0
            break
        total += float(number) * _DURATION[unit]
    if not 0 < total < 1e9:
        raise Invalid(f"--interval {text}: expected a duration above 0, e.g. 5s")
    return total


def _print(name: str, kind: str, data: Mapping[str, Any] | None) -> None:
    event: dict[str, Any] = {"type": kind, "id": name}
    if data is not None:
        event["data"] = data
    print(wirejson.dumps(event), flush=True)


def convert(stats: Stats) -> dict[str, Any]:
    """In runc's shape; fields that it leaves out when they are 0 are left out here, too."""
    cpu, memory, io = stats.cpu, stats.memory, stats.io
    return {
        "cpu": _filled(
            usage=_filled(
                total=cpu.usage_ns, percpu=list(cpu.percpu_ns), kernel_=cpu.system_ns, user_=cpu.user_ns
            ),
            throttling=_filled(
                periods=cpu.periods, throttledPeriods=cpu.throttled_periods, throttledTime=cpu.throttled_ns
            ),
            psi=_pressure(cpu.pressure),
        ),
        "memory": _filled(
            cache=memory.stat.get("cache", memory.stat.get("file", 0)),
            usage=_memory(memory.limit_bytes, memory.usage_bytes, memory.max_usage_bytes, memory.failures),
            swap=_memory(memory.swap_limit_bytes, memory.swap_usage_bytes, 0, 0),
            raw=dict(memory.stat),
            psi=_pressure(memory.pressure),
        ),
        "pids": _filled(current=stats.pids.current, limit=stats.pids.limit),
        "blkio": _filled(
            ioServiceBytesRecursive=_entries(io.bytes_recursive),
            ioServicedRecursive=_entries(io.operations_recursive),
            psi=_pressure(io.pressure),
        ),
        "hugetlb": {size: _huge_pages(each) for size, each in stats.huge_pages.items()},
        "rdma": {device: dict(each) for device, each in stats.rdma.items()},
        "network_interfaces": None,
    }


def _filled(**fields: Any) -> dict[str, Any]:
    """Without the fields that say nothing; a name with an underscore at its end stays."""
    return {name.removesuffix("_"): value for name, value in fields.items() if value or name.endswith("_")}


def _memory(limit: int, usage: int, most: int, failures: int) -> dict[str, int]:
    return _filled(limit_=limit or _UNLIMITED_V1, usage=usage, max=most, failcnt_=failures)


def _huge_pages(stats: HugePageStats) -> dict[str, int]:
    return _filled(usage=stats.usage_bytes, max=stats.max_usage_bytes, failcnt_=stats.failures)


def _entries(entries: Sequence[IoEntry]) -> list[dict[str, Any]]:
    return [
        _filled(major=each.major, minor=each.minor, op=each.operation, value=each.value) for each in entries
    ]


def _pressure(pressure: Pressure | None) -> dict[str, Any] | None:
    if pressure is None:
        return None
    return {
        kind: {"avg10": line.avg10, "avg60": line.avg60, "avg300": line.avg300, "total": line.total_us}
        for kind, line in (("some", pressure.some), ("full", pressure.full))
    }
