"""Limits as file contents: from linux.resources of an OCI config to control files of v1 or v2. Pure.

Conversions to v2 are runc's (github.com/opencontainers/cgroups, utils.go and fs2/), so that one config means the
same to both: shares to cpu.weight by the quadratic formula, memory plus swap to swap alone, I/O weights linearly.
Zero means unset, as there, but for pids, swappiness, burst and idle. Where Cove says more than runc does:

    rt runtime and period, swappiness, disableOOMKiller, leaf weights, network    v2 has nothing like them. The
        specification demands an error (config-linux.md, "Unified"); runc passes them over
    memory.kernel    passed over on both, as by runc: kernel memory is part of the limit since Linux 5.16 and on v2
    memory.kernelTCP   a limit of its own on v1, part of the limit on v2
    pids.limit 0     one process, as in runc 1.4: a container without any couldn't start
    unified          v2 only; on v1 an error
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from cove.model.errors import Invalid, Unavailable
from cove.runtime import oci
from cove.runtime.facts import Layout

_R = "linux.resources"


class Write(NamedTuple):
    """A value for a control file of the cgroup, named by controller and file. `optional`: a host without the file
    does without. `field` is where the config asks for it."""

    controller: str
    file: str
    value: str
    optional: bool = False
    field: str = _R


def limit_writes(layout: Layout, resources: oci.Resources) -> list[Write]:
    """What to write where for the limits that are set, in the order in which a fresh cgroup takes them.

    Raises Invalid for values that contradict each other, Unavailable for what this host's cgroups can't do.
    """
    if layout.version == 2:
        _refuse_v1_only(resources)
        writes = [
            *_cpu_v2(resources),
            *_memory_v2(resources),
            *_rest_v2(resources),
            *_huge_pages(resources, 2),
        ]
        writes += _unified(layout, resources)
        return writes
    if resources.unified:
        raise Unavailable(
            f"{_R}.unified: this host has cgroup v1, which has no such files: use the other fields"
        )
    writes = [*_cpu_v1(resources), *_memory_v1(resources), *_rest_v1(resources), *_huge_pages(resources, 1)]
    for write in writes:
        if write.controller not in layout.controllers and not write.optional:
            raise Unavailable(
                f"{write.field}: this host has no cgroup v1 controller {write.controller}: leave that limit out"
            )
    return [write for write in writes if write.controller in layout.controllers]


def _cpu_v1(resources: oci.Resources) -> Iterator[Write]:
    cpu = resources.cpu
    if cpu is None:
        return
    for file, value, field in (
        ("cpu.shares", cpu.shares, "shares"),
        ("cpu.cfs_period_us", cpu.period, "period"),
        ("cpu.cfs_quota_us", cpu.quota, "quota"),
        ("cpu.rt_period_us", cpu.realtime_period, "realtimePeriod"),
        ("cpu.rt_runtime_us", cpu.realtime_runtime, "realtimeRuntime"),
    ):
        if value:
            yield Write("cpu", file, str(value), False, f"{_R}.cpu.{field}")
    if cpu.burst is not None:
        yield Write("cpu", "cpu.cfs_burst_us", str(cpu.burst), False, f"{_R}.cpu.burst")
    if cpu.idle is not None:
        yield Write("cpu", "cpu.idle", str(cpu.idle), False, f"{_R}.cpu.idle")
    yield from _cpuset(cpu)


def _cpuset(cpu: oci.Cpu) -> Iterator[Write]:
    if cpu.cpus:
        yield Write("cpuset", "cpuset.cpus", cpu.cpus, False, f"{_R}.cpu.cpus")
    if cpu.mems:
        yield Write("cpuset", "cpuset.mems", cpu.mems, False, f"{_R}.cpu.mems")


def _swappiness(memory: oci.Memory) -> int | None:
    """None and -1 (in unsigned clothes, too) are unset."""
    value = memory.swappiness
    if value is None or value < 0 or value == (1 << 64) - 1:
        return None
    if value > 100:
        raise Invalid(f"{_R}.memory.swappiness: {value} is out of range: give 0 to 100")
    return value


def _memory_v1(resources: oci.Resources) -> Iterator[Write]:
    memory = resources.memory
    if memory is None:
        return
    if memory.use_hierarchy:  # always so since Linux 5.11
        yield Write("memory", "memory.use_hierarchy", "1", True, f"{_R}.memory.useHierarchy")
    if memory.limit:
        yield Write("memory", "memory.limit_in_bytes", str(memory.limit), False, f"{_R}.memory.limit")
    swap = memory.swap
    if not swap and memory.limit == -1:  # unlimited memory below a limit of memory plus swap would be refused
        swap = -1
    if swap:
        # without swap accounting the file is missing; "no limit" is what holds then anyway
        yield Write("memory", "memory.memsw.limit_in_bytes", str(swap), swap < 0, f"{_R}.memory.swap")
    for file, value, field in (
        ("memory.soft_limit_in_bytes", memory.reservation, "reservation"),
        ("memory.kmem.tcp.limit_in_bytes", memory.kernel_tcp, "kernelTCP"),
    ):
        if value:
            yield Write("memory", file, str(value), False, f"{_R}.memory.{field}")
    swappiness = _swappiness(memory)
    if swappiness is not None:
        yield Write("memory", "memory.swappiness", str(swappiness), False, f"{_R}.memory.swappiness")
    if memory.disable_oom_killer:
        yield Write("memory", "memory.oom_control", "1", False, f"{_R}.memory.disableOOMKiller")


_THROTTLES = (
    ("throttle_read_bps_device", "read_bps_device", "rbps", "throttleReadBpsDevice"),
    ("throttle_write_bps_device", "write_bps_device", "wbps", "throttleWriteBpsDevice"),
    ("throttle_read_iops_device", "read_iops_device", "riops", "throttleReadIOPSDevice"),
    ("throttle_write_iops_device", "write_iops_device", "wiops", "throttleWriteIOPSDevice"),
)


def _rest_v1(resources: oci.Resources) -> Iterator[Write]:
    yield from _pids(resources)
    yield from _block_io_v1(resources.block_io)
    network = resources.network
    if network is not None:
        if network.class_id:
            yield Write("net_cls", "net_cls.classid", str(network.class_id), False, f"{_R}.network.classID")
        for each in network.priorities:
            line = f"{each.name} {each.priority}"
            yield Write("net_prio", "net_prio.ifpriomap", line, False, f"{_R}.network.priorities")
    yield from _rdma(resources)


def _block_io_v1(io: oci.BlockIo | None) -> Iterator[Write]:
    if io is None:
        return
    # one of CFQ's files (before Linux 5.0) and BFQ's is there
    field = f"{_R}.blockIO"
    if io.weight:
        yield Write("blkio", "blkio.weight", str(io.weight), True, f"{field}.weight")
        yield Write("blkio", "blkio.bfq.weight", str(io.weight), True, f"{field}.weight")
    if io.leaf_weight:
        yield Write("blkio", "blkio.leaf_weight", str(io.leaf_weight), False, f"{field}.leafWeight")
    for device in io.weight_device:
        if device.weight:
            line = f"{device.major}:{device.minor} {device.weight}"
            yield Write("blkio", "blkio.weight_device", line, True, f"{field}.weightDevice")
            yield Write("blkio", "blkio.bfq.weight_device", line, True, f"{field}.weightDevice")
        if device.leaf_weight:
            line = f"{device.major}:{device.minor} {device.leaf_weight}"
            yield Write("blkio", "blkio.leaf_weight_device", line, False, f"{field}.weightDevice")
    for attribute, file, _, name in _THROTTLES:
        for throttle in getattr(io, attribute):
            line = f"{throttle.major}:{throttle.minor} {throttle.rate}"
            yield Write("blkio", f"blkio.throttle.{file}", line, False, f"{field}.{name}")


# --- both -------------------------------------------------------------------------------------------


def _pids(resources: oci.Resources) -> Iterator[Write]:
    if resources.pids is not None and resources.pids.limit is not None:
        limit = resources.pids.limit
        value = "max" if limit < 0 else str(max(limit, 1))
        yield Write("pids", "pids.max", value, False, f"{_R}.pids.limit")


def _rdma(resources: oci.Resources) -> Iterator[Write]:
    for name, limits in resources.rdma.items():
        line = name
        if limits.hca_handles is not None:
            line += f" hca_handle={limits.hca_handles}"
        if limits.hca_objects is not None:
            line += f" hca_object={limits.hca_objects}"
        if line == name:
            raise Invalid(f"{_R}.rdma.{name}: give hcaHandles, hcaObjects or both")
        yield Write("rdma", "rdma.max", line, False, f"{_R}.rdma.{name}")


def _huge_pages(resources: oci.Resources, version: int) -> Iterator[Write]:
    """Use, and since Linux 5.7 the reservation too: it fails at mmap(2) rather than by SIGBUS."""
    suffix = "max" if version == 2 else "limit_in_bytes"
    for index, each in enumerate(resources.hugepage_limits):
        field, prefix = f"{_R}.hugepageLimits[{index}]", f"hugetlb.{each.page_size}"
        if "/" in each.page_size:
            raise Invalid(f"{field}.pageSize: {each.page_size!r} is no size of pages: give one such as 2MB")
        yield Write("hugetlb", f"{prefix}.{suffix}", str(each.limit), False, field)
        yield Write("hugetlb", f"{prefix}.rsvd.{suffix}", str(each.limit), True, field)


# --- v2 ---------------------------------------------------------------------------------------------


def _refuse_v1_only(resources: oci.Resources) -> None:
    cpu, memory, io = resources.cpu, resources.memory, resources.block_io
    asked = []
    if cpu is not None:
        asked += [
            ("cpu.realtimeRuntime", cpu.realtime_runtime, "use a real-time policy (process.scheduler)"),
            ("cpu.realtimePeriod", cpu.realtime_period, "use a real-time policy (process.scheduler)"),
        ]
    if memory is not None:
        asked += [
            ("memory.swappiness", _swappiness(memory) is not None, "limit swap by memory.swap"),
            (
                "memory.disableOOMKiller",
                memory.disable_oom_killer,
                "use unified memory.high, which only slows",
            ),
        ]
    if io is not None:
        leaf = io.leaf_weight or any(device.leaf_weight for device in io.weight_device)
        asked.append(("blockIO.leafWeight", leaf, "use weight"))
    network = resources.network
    if network is not None:
        asked += [
            ("network.classID", network.class_id, "match the cgroup's path in nftables"),
            ("network.priorities", bool(network.priorities), "set priorities in nftables"),
        ]
    for field, value, instead in asked:
        if value:
            raise Unavailable(f"{_R}.{field}: cgroup v2 has nothing like it: leave it out, {instead}")


def _cpu_v2(resources: oci.Resources) -> Iterator[Write]:
    cpu = resources.cpu
    if cpu is None:
        return
    if cpu.idle is not None:
        yield Write("cpu", "cpu.idle", str(cpu.idle), False, f"{_R}.cpu.idle")
    if cpu.shares and cpu.idle != 1:  # an idle cgroup has no other weight: the kernel refuses it
        yield Write("cpu", "cpu.weight", str(weight_of_shares(cpu.shares)), False, f"{_R}.cpu.shares")
    if cpu.quota or cpu.period:
        quota = str(cpu.quota) if cpu.quota and cpu.quota > 0 else "max"
        yield Write("cpu", "cpu.max", f"{quota} {cpu.period or 100000}", False, f"{_R}.cpu.quota")
    if cpu.burst is not None:
        yield Write("cpu", "cpu.max.burst", str(cpu.burst), False, f"{_R}.cpu.burst")
    yield from _cpuset(cpu)


def _number(value: int) -> str:
    return "max" if value < 0 else str(value)


def _memory_v2(resources: oci.Resources) -> Iterator[Write]:
    memory = resources.memory
    if memory is None:
        return
    if memory.limit:
        yield Write("memory", "memory.max", _number(memory.limit), False, f"{_R}.memory.limit")
    swap = swap_alone(memory)
    if swap is not None:
        # without CONFIG_SWAP the file is missing, and so is swap
        optional = swap <= 0
        yield Write("memory", "memory.swap.max", _number(swap), optional, f"{_R}.memory.swap")
    if memory.reservation:
        yield Write("memory", "memory.low", _number(memory.reservation), False, f"{_R}.memory.reservation")


def swap_alone(memory: oci.Memory) -> int | None:
    """v2 counts swap alone, the specification memory and swap together. None: nothing to write; -1: no limit."""
    limit, swap = memory.limit or 0, memory.swap or 0
    if swap == 0:
        return -1 if limit == -1 else None
    if swap < 0 or limit < 0:
        return max(swap, -1)
    if limit == 0:
        raise Invalid(f"{_R}.memory.swap: it counts memory and swap together: give memory.limit, too")
    if swap < limit:
        raise Invalid(
            f"{_R}.memory.swap: {swap} is less than memory.limit {limit}: it counts both, give at least {limit}"
        )
    return swap - limit


def _rest_v2(resources: oci.Resources) -> Iterator[Write]:
    yield from _pids(resources)
    yield from _block_io_v2(resources.block_io)
    yield from _rdma(resources)


def _block_io_v2(io: oci.BlockIo | None) -> Iterator[Write]:
    """BFQ has a file of its own, whose weights are v1's; io.weight is iocost's."""
    if io is None:
        return
    field = f"{_R}.blockIO"
    if io.weight:
        yield Write("io", "io.bfq.weight", str(io.weight), True, f"{field}.weight")
        yield Write("io", "io.weight", str(io_weight_of_blkio(io.weight)), True, f"{field}.weight")
    for device in io.weight_device:
        if device.weight:
            numbers, name = f"{device.major}:{device.minor}", f"{field}.weightDevice"
            yield Write("io", "io.bfq.weight", f"{numbers} {device.weight}", True, name)
            yield Write("io", "io.weight", f"{numbers} {io_weight_of_blkio(device.weight)}", True, name)
    limits: dict[tuple[int, int], list[str]] = {}
    first = ""
    for attribute, _, key, name in _THROTTLES:
        for throttle in getattr(io, attribute):
            first = first or name
            limits.setdefault((throttle.major, throttle.minor), []).append(f"{key}={throttle.rate or 'max'}")
    for (major, minor), values in limits.items():
        yield Write("io", "io.max", f"{major}:{minor} {' '.join(values)}", False, f"{field}.{first}")


def _unified(layout: Layout, resources: oci.Resources) -> Iterator[Write]:
    """After everything else: it has the last word. A value of several lines is that many writes."""
    for file, value in resources.unified.items():
        field = f"{_R}.unified[{file!r}]"
        controller, dot, rest = file.partition(".")
        if "/" in file or "\0" in file or not (controller and dot and rest):
            raise Invalid(f"{field}: it is no file of a cgroup: give CONTROLLER.PARAMETER, e.g. memory.high")
        if controller != "cgroup" and controller not in layout.controllers:
            have = ", ".join(sorted(layout.controllers)) or "none"
            raise Unavailable(f"{field}: this host has no cgroup v2 controller {controller} (it has: {have})")
        for line in value.splitlines() or [""]:
            yield Write(controller, file, line, False, field)


# --- conversions ------------------------------------------------------------------------------------


def weight_of_shares(shares: int) -> int:
    """cpu.weight (1-10000) for v1's cpu.shares (2-262144), so that the defaults 1024 and 100 meet.

    A parabola in logarithms through (2, 1), (1024, 100) and (262144, 10000), as newer runtimes have it
    (opencontainers/cgroups, ConvertCPUSharesToCgroupV2Value); the older linear formula made 39 of the default.
    """
    log = math.log2(min(max(shares, 2), 262144))
    return min(max(math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34) - 1e-6), 1), 10000)


def io_weight_of_blkio(weight: int) -> int:
    """io.weight (1-10000) for v1's blkio.weight (10-1000), linear as in runc."""
    return 1 + (min(max(weight, 10), 1000) - 10) * 9999 // 990
