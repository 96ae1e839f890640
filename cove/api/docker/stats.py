"""Readings of a container's counters → Docker's stats JSON (moby, api/types/container/stats.go). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cove.api.docker.text import NEVER, rfc3339
from cove.engine.types import ContainerStats, View
from cove.runtime.cgroups_stats import CpuStats, IoEntry, Stats

Json = dict[str, Any]


def stats_json(
    view: View, now: ContainerStats | None, before: ContainerStats | None, host_memory: int
) -> Json:
    """One item of the stats stream. `now` None: it doesn't run; `before` None: there is no earlier reading."""
    found: Json = {
        "id": view.container.id,
        "name": f"/{view.container.name}",
        "os_type": "linux",
        "read": rfc3339(now.read_ns) if now else NEVER,
        "preread": rfc3339(before.read_ns) if before else NEVER,
        "num_procs": 0,
        "storage_stats": {},
        "pids_stats": {},
        "blkio_stats": _blkio((), ()),
        "cpu_stats": _cpu(now),
        "precpu_stats": _cpu(before),
        "memory_stats": {},
    }
    if now is None:
        return found
    pids, memory, io = now.cgroup.pids, now.cgroup.memory, now.cgroup.io
    found["pids_stats"] = {"current": pids.current, "limit": pids.limit or (1 << 64) - 1}
    found["blkio_stats"] = _blkio(io.bytes_recursive, io.operations_recursive)
    found["memory_stats"] = {
        "usage": memory.usage_bytes,
        "stats": dict(memory.stat),
        "limit": min(memory.limit_bytes or host_memory, host_memory),
    }
    if memory.max_usage_bytes:
        found["memory_stats"].update(max_usage=memory.max_usage_bytes, failcnt=memory.failures)
    if pressure := pressure_json(now.cgroup):
        found["pressure_stats"] = pressure  # Docker has no such field
    if now.interfaces:
        found["networks"] = {
            i.name: {
                "rx_bytes": i.rx_bytes,
                "rx_packets": i.rx_packets,
                "rx_errors": i.rx_errors,
                "rx_dropped": i.rx_dropped,
                "tx_bytes": i.tx_bytes,
                "tx_packets": i.tx_packets,
                "tx_errors": i.tx_errors,
                "tx_dropped": i.tx_dropped,
            }
            for i in now.interfaces
            if i.name != "lo"
        }
    return found


def pressure_json(stats: Stats) -> Json:
    """Pressure stall information by resource: averages in percent, `total` in microseconds. Empty without it (cgroup
    v1, or a kernel booted with psi=0)."""
    found = {"cpu": stats.cpu.pressure, "memory": stats.memory.pressure, "io": stats.io.pressure}
    return {
        name: {
            kind: {"avg10": line.avg10, "avg60": line.avg60, "avg300": line.avg300, "total": line.total_us}
            for kind, line in (("some", pressure.some), ("full", pressure.full))
        }
        for name, pressure in found.items()
        if pressure is not None
    }


def _cpu(reading: ContainerStats | None) -> Json:
    cpu = reading.cgroup.cpu if reading else CpuStats()
    usage: Json = {
        "total_usage": cpu.usage_ns,
        "usage_in_kernelmode": cpu.system_ns,
        "usage_in_usermode": cpu.user_ns,
    }
    if cpu.percpu_ns:
        usage["percpu_usage"] = list(cpu.percpu_ns)
    found: Json = {
        "cpu_usage": usage,
        "throttling_data": {
            "periods": cpu.periods,
            "throttled_periods": cpu.throttled_periods,
            "throttled_time": cpu.throttled_ns,
        },
    }
    if reading is not None:
        found["system_cpu_usage"] = reading.clock.system_ns
        found["online_cpus"] = reading.clock.online
    return found


def _blkio(read_written: Sequence[IoEntry], operations: Sequence[IoEntry]) -> Json:
    return {
        "io_service_bytes_recursive": _entries(read_written),
        "io_serviced_recursive": _entries(operations),
        "io_queue_recursive": None,
        "io_service_time_recursive": None,
        "io_wait_time_recursive": None,
        "io_merged_recursive": None,
        "io_time_recursive": None,
        "sectors_recursive": None,
    }


def _entries(entries: Sequence[IoEntry]) -> list[Json] | None:
    return [
        {"major": e.major, "minor": e.minor, "op": e.operation, "value": e.value} for e in entries
    ] or None
