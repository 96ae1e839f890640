"""Plan a container's cgroup: the steps that make it, limit it, join it and remove it. Pure.

Order that must hold: make, limit, join (so that no process runs unlimited), and at the end read the OOM
counter before the directory goes.

v1 pays for each hierarchy (a mkdir, a write that moves the process, a rmdir), so containers join those that
statistics, limits and freezing need; cpuset only when it was asked for. A privileged container joins all, as
it may run an engine of its own. Device rules are inherited: containers with the default rules live below
PARENT/guarded in the devices hierarchy, whose rules `setup` writes once; others live beside it.

v2 needs one directory, and clone3(2) starts the process in it (CLONE_INTO_CGROUP).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from cove.runtime import oci
from cove.runtime.cgroups_devices import DEFAULT_RULES, is_unrestricted, v1_lines, v2_program
from cove.runtime.cgroups_limits import io_weight_of_blkio, weight_of_shares
from cove.runtime.facts import GUARDED, Hierarchy, Layout
from cove.runtime.steps import (
    AttachDeviceProgram,
    JoinCgroup,
    MakeHostDir,
    ReadOom,
    RemoveHostDir,
    Step,
    WriteHost,
)

_WANTED = frozenset({"cpu", "cpuacct", "memory", "devices", "freezer", "pids", "blkio"})
NO_RESOURCES = oci.Resources()


class Write(NamedTuple):
    """A value for a control file of the cgroup, named by controller (v1) and file."""

    controller: str
    file: str
    value: str
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupPlan:
    """The cgroup's share of a plan; `clone_into` is the v2 directory that the process is cloned into."""

    before: tuple[Step, ...] = ()
    child: tuple[Step, ...] = ()  # the first of its steps
    exit: tuple[Step, ...] = ()
    clone_into: str = ""


def plan_cgroup(
    layout: Layout, path: str, resources: oci.Resources, *, everything: bool = False
) -> CgroupPlan:
    """Make, limit, join and remove the cgroup `path` ("cove/ID"); `everything` joins all v1 hierarchies."""
    path = path.strip("/")
    if layout.version == 2:
        return _plan_v2(layout, path, resources)
    directories = joined_directories(layout, path, resources, everything=everything)
    before: list[Step] = [MakeHostDir(path=directory) for _, directory in directories]
    if resources is not NO_RESOURCES:
        before += [_step(layout, path, resources, write) for write in limit_writes(layout, resources)]
        if resources.devices and not is_unrestricted(resources.devices):
            devices = device_directory(layout, path, resources)
            before += [
                WriteHost(path=f"{devices}/{file}", data=line) for file, line in v1_lines(resources.devices)
            ]
    leave: list[Step] = []
    if "memory" in layout.controllers:
        leave.append(ReadOom(path=f"{layout.directory('memory', path)}/memory.oom_control"))
    leave += [RemoveHostDir(path=directory) for _, directory in directories]
    return CgroupPlan(before=tuple(before), child=_joins(directories), exit=tuple(leave))


def plan_join(layout: Layout, path: str, resources: oci.Resources, *, everything: bool = False) -> CgroupPlan:
    """Join an existing cgroup (exec)."""
    path = path.strip("/")
    if layout.version == 2:
        return CgroupPlan(clone_into=f"{layout.root}/{path}")
    return CgroupPlan(child=_joins(joined_directories(layout, path, resources, everything=everything)))


def _joins(directories: list[tuple[Hierarchy, str]]) -> tuple[Step, ...]:
    return tuple(JoinCgroup(path=f"{directory}/tasks") for _, directory in directories)


def joined_directories(
    layout: Layout, path: str, resources: oci.Resources, *, everything: bool = False
) -> list[tuple[Hierarchy, str]]:
    """The v1 hierarchies that a container joins, each with the container's host directory there."""
    path = path.strip("/")
    cpu = resources.cpu
    cpuset = cpu is not None and bool(cpu.cpus or cpu.mems)
    result = []
    for hierarchy in layout.hierarchies:
        controllers = hierarchy.controllers
        if everything or not _WANTED.isdisjoint(controllers) or (cpuset and "cpuset" in controllers):
            if "devices" in controllers:
                result.append((hierarchy, device_directory(layout, path, resources)))
            else:
                result.append((hierarchy, f"{layout.root}/{hierarchy.directory}/{path}"))
    return result


def device_directory(layout: Layout, path: str, resources: oci.Resources) -> str:
    """The container's directory in v1's devices hierarchy. Default rules are inherited from PARENT/guarded;
    below another parent, or with rules of its own, it is the same path as in the other hierarchies."""
    parent, _, name = path.strip("/").rpartition("/")
    inherits = not resources.devices or resources.devices == DEFAULT_RULES
    if inherits and parent == layout.parent:
        return layout.directory("devices", f"{parent}/{GUARDED}/{name}")
    return layout.directory("devices", path.strip("/"))


def device_rules(layout: Layout, path: str, rules: tuple[oci.DeviceRule, ...]) -> tuple[oci.DeviceRule, ...]:
    """The rules to put into a config: () where the default ones are inherited."""
    inherited = layout.version == 1 and path.strip("/").rpartition("/")[0] == layout.parent
    return () if rules == DEFAULT_RULES and inherited else rules


def _plan_v2(layout: Layout, path: str, resources: oci.Resources) -> CgroupPlan:
    directory = f"{layout.root}/{path}"
    before: list[Step] = [MakeHostDir(path=directory)]
    before += [_step(layout, path, resources, write) for write in limit_writes(layout, resources)]
    rules = resources.devices or DEFAULT_RULES
    if not is_unrestricted(rules):
        before.append(AttachDeviceProgram(path=directory, program=v2_program(rules)))
    leave: list[Step] = []
    if "memory" in layout.controllers:
        leave.append(ReadOom(path=f"{directory}/memory.events"))
    leave.append(RemoveHostDir(path=directory))
    return CgroupPlan(before=tuple(before), exit=tuple(leave), clone_into=directory)


def _step(layout: Layout, path: str, resources: oci.Resources, write: Write) -> WriteHost:
    directory = f"{layout.root}/{path}" if layout.version == 2 else layout.directory(write.controller, path)
    return WriteHost(path=f"{directory}/{write.file}", data=write.value, optional=int(write.optional))


# --- limits as file contents ------------------------------------------------------------------------


def limit_writes(layout: Layout, resources: oci.Resources) -> list[Write]:
    """What to write where for the limits that are set, in the order in which a fresh cgroup takes them.

    v1 controllers that this host hasn't got are left out (`check_resources` warned about them).
    """
    if layout.version == 2:
        return [*_cpu_v2(resources), *_memory_v2(resources), *_rest_v2(resources)]
    writes = [*_cpu_v1(resources), *_memory_v1(resources), *_rest_v1(resources)]
    return [write for write in writes if write.controller in layout.controllers]


def _number(value: int) -> str:
    return "max" if value < 0 else str(value)


def _cpu_v1(resources: oci.Resources) -> Iterator[Write]:
    cpu = resources.cpu
    if cpu is None:
        return
    for file, value in (
        ("cpu.shares", cpu.shares),
        ("cpu.cfs_period_us", cpu.period),
        ("cpu.cfs_quota_us", cpu.quota),
        ("cpu.rt_period_us", cpu.realtime_period),
        ("cpu.rt_runtime_us", cpu.realtime_runtime),
    ):
        if value is not None:
            yield Write("cpu", file, str(value))
    if cpu.cpus:
        yield Write("cpuset", "cpuset.cpus", cpu.cpus)
    if cpu.mems:
        yield Write("cpuset", "cpuset.mems", cpu.mems)


def _memory_v1(resources: oci.Resources) -> Iterator[Write]:
    memory = resources.memory
    if memory is None:
        return
    if memory.limit is not None:
        yield Write("memory", "memory.limit_in_bytes", str(memory.limit))
    if memory.swap is not None:
        # without swap accounting the file is missing; "no limit" is what holds then anyway
        yield Write("memory", "memory.memsw.limit_in_bytes", str(memory.swap), memory.swap < 0)
    if memory.reservation is not None:
        yield Write("memory", "memory.soft_limit_in_bytes", str(memory.reservation))
    if memory.kernel_tcp is not None:
        yield Write("memory", "memory.kmem.tcp.limit_in_bytes", str(memory.kernel_tcp))
    if memory.swappiness is not None:
        yield Write("memory", "memory.swappiness", str(memory.swappiness))
    if memory.disable_oom_killer:
        yield Write("memory", "memory.oom_control", "1")


_THROTTLES_V1 = (
    ("throttle_read_bps_device", "blkio.throttle.read_bps_device"),
    ("throttle_write_bps_device", "blkio.throttle.write_bps_device"),
    ("throttle_read_iops_device", "blkio.throttle.read_iops_device"),
    ("throttle_write_iops_device", "blkio.throttle.write_iops_device"),
)


def _rest_v1(resources: oci.Resources) -> Iterator[Write]:
    if resources.pids is not None:
        yield Write("pids", "pids.max", "max" if resources.pids.limit <= 0 else str(resources.pids.limit))
    io = resources.block_io
    if io is None:
        return
    # one of CFQ's files (before Linux 5.0) and BFQ's is there
    if io.weight is not None:
        yield Write("blkio", "blkio.weight", str(io.weight), True)
        yield Write("blkio", "blkio.bfq.weight", str(io.weight), True)
    for device in io.weight_device:
        line = f"{device.major}:{device.minor} {device.weight}"
        yield Write("blkio", "blkio.weight_device", line, True)
        yield Write("blkio", "blkio.bfq.weight_device", line, True)
    for field, file in _THROTTLES_V1:
        for throttle in getattr(io, field):
            yield Write("blkio", file, f"{throttle.major}:{throttle.minor} {throttle.rate}")


def _cpu_v2(resources: oci.Resources) -> Iterator[Write]:
    cpu = resources.cpu
    if cpu is None:
        return
    if cpu.shares is not None:
        yield Write("cpu", "cpu.weight", str(weight_of_shares(cpu.shares)))
    if cpu.quota is not None or cpu.period is not None:
        quota = "max" if cpu.quota is None or cpu.quota <= 0 else str(cpu.quota)
        yield Write("cpu", "cpu.max", f"{quota} {cpu.period or 100000}")
    if cpu.cpus:
        yield Write("cpuset", "cpuset.cpus", cpu.cpus)
    if cpu.mems:
        yield Write("cpuset", "cpuset.mems", cpu.mems)


def _memory_v2(resources: oci.Resources) -> Iterator[Write]:
    memory = resources.memory
    if memory is None:
        return
    if memory.limit is not None:
        yield Write("memory", "memory.max", _number(memory.limit))
    if memory.swap is not None:
        # v2 counts swap alone; without CONFIG_SWAP the file is missing, and so is swap
        swap = -1 if memory.swap < 0 else max(memory.swap - max(memory.limit or 0, 0), 0)
        yield Write("memory", "memory.swap.max", _number(swap), True)
    if memory.reservation is not None:
        yield Write("memory", "memory.low", _number(memory.reservation))


def _rest_v2(resources: oci.Resources) -> Iterator[Write]:
    if resources.pids is not None:
        yield Write("pids", "pids.max", "max" if resources.pids.limit <= 0 else str(resources.pids.limit))
    for file, value in resources.unified.items():
        yield Write("", file, value)
    io = resources.block_io
    if io is None:
        return
    if io.weight is not None:
        yield Write("io", "io.bfq.weight", str(io.weight), True)
        yield Write("io", "io.weight", str(io_weight_of_blkio(io.weight)), True)
    for device in io.weight_device:
        yield Write("io", "io.bfq.weight", f"{device.major}:{device.minor} {device.weight}", True)
    limits: dict[tuple[int, int], list[str]] = {}
    for key, throttles in (
        ("rbps", io.throttle_read_bps_device),
        ("wbps", io.throttle_write_bps_device),
        ("riops", io.throttle_read_iops_device),
        ("wiops", io.throttle_write_iops_device),
    ):
        for throttle in throttles:
            limits.setdefault((throttle.major, throttle.minor), []).append(f"{key}={throttle.rate}")
    for (major, minor), values in limits.items():
        yield Write("io", "io.max", f"{major}:{minor} {' '.join(values)}")


# --- what the container sees ------------------------------------------------------------------------


@lru_cache(maxsize=64)
def visible_names(layout: Layout) -> tuple[tuple[str, str], ...]:
    """Symlinks of a v1 container's /sys/fs/cgroup, (name, target): cpu -> cpu,cpuacct."""
    return tuple(
        (controller, hierarchy.directory)
        for hierarchy in layout.hierarchies
        if len(hierarchy.controllers) > 1
        for controller in hierarchy.controllers
    )
