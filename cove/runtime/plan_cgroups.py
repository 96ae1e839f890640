"""Plan a container's cgroup: the steps that make it, limit it, join it and remove it. Pure.

Order that must hold: make, limit, join (so that no process runs unlimited), and at the end read the OOM
counter before the directory goes.

v1 pays for each hierarchy (a mkdir, a write that moves the process, a rmdir), so containers join those that
statistics, limits and freezing need; cpuset only when it was asked for. A privileged container joins all, as
it may run an engine of its own. Device rules are inherited: containers with the default rules live below
PARENT/guarded in the devices hierarchy, whose rules `setup` writes once; others, and those that join all, live beside
it.

v2 needs one directory, and clone3(2) starts the process in it (CLONE_INTO_CGROUP, Linux 5.7).

With systemd's driver there is no directory before there is a process: the child waits (Pause "cgroup") until Python
has had it put into a scope, and limited (cgroups_systemd.py).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from cove.runtime import oci
from cove.runtime.cgroups_devices import DEFAULT_RULES, effective_rules, is_unrestricted, v1_lines, v2_program
from cove.runtime.facts import GUARDED, Hierarchy, Layout
from cove.runtime.plan_limits import Write, limit_writes
from cove.runtime.steps import (
    AttachDeviceProgram,
    JoinCgroup,
    MakeHostDir,
    Pause,
    ReadOom,
    RemoveHostDir,
    Step,
    WriteHost,
)

_WANTED = frozenset({"cpu", "cpuacct", "memory", "devices", "freezer", "pids", "blkio"})
NO_RESOURCES = oci.Resources()
CLONE_INTO_CGROUP = (5, 7)  # the first kernel with it


class CgroupPlan(NamedTuple):
    """The cgroup's share of a plan; `clone_into` is the v2 directory that the process is cloned into."""

    before: tuple[Step, ...] = ()
    child: tuple[Step, ...] = ()  # the first of its steps
    exit: tuple[Step, ...] = ()
    clone_into: str = ""


def plan_cgroup(
    layout: Layout,
    path: str,
    resources: oci.Resources,
    *,
    everything: bool = False,
    clone_into: bool = True,
    systemd: bool = False,
) -> CgroupPlan:
    """Make, limit, join and remove the cgroup `path` ("cove/ID"); `everything` joins all v1 hierarchies.

    `clone_into` False is for kernels without CLONE_INTO_CGROUP: the process joins by itself. `systemd` leaves all of it
    to a pause. Raises Invalid and Unavailable as `limit_writes` does.
    """
    path = path.strip("/")
    if layout.version == 2:
        return _plan_v2(layout, path, resources, clone_into=clone_into, systemd=systemd)
    directories = joined_directories(layout, path, resources, everything=everything)
    before: list[Step] = [MakeHostDir(path=directory) for _, directory in directories]
    if resources is not NO_RESOURCES:
        before += [_step(layout, path, write) for write in limit_writes(layout, resources)]
    if "devices" in layout.controllers and (everything or not _inherits_devices(layout, path, resources)):
        rules = effective_rules(resources.devices)
        if not is_unrestricted(rules):
            devices = layout.directory("devices", path)
            before += [WriteHost(path=f"{devices}/{file}", data=line) for file, line in v1_lines(rules)]
    leave: list[Step] = []
    if "memory" in layout.controllers:
        leave.append(ReadOom(path=f"{layout.directory('memory', path)}/memory.oom_control"))
    leave += [RemoveHostDir(path=directory) for _, directory in directories]
    return CgroupPlan(before=tuple(before), child=_joins(directories), exit=tuple(leave))


def plan_join(
    layout: Layout,
    path: str,
    resources: oci.Resources,
    *,
    everything: bool = False,
    clone_into: bool = True,
) -> CgroupPlan:
    """Join an existing cgroup (exec)."""
    path = path.strip("/")
    if layout.version == 2:
        return _enter_v2(f"{layout.root}/{path}", clone_into=clone_into)
    return CgroupPlan(child=_joins(joined_directories(layout, path, resources, everything=everything)))


def _joins(directories: list[tuple[Hierarchy, str]]) -> tuple[Step, ...]:
    return tuple(JoinCgroup(path=f"{directory}/tasks") for _, directory in directories)


def _enter_v2(directory: str, *, clone_into: bool) -> CgroupPlan:
    if clone_into:
        return CgroupPlan(clone_into=directory)
    return CgroupPlan(child=(JoinCgroup(path=f"{directory}/cgroup.procs"),))


def joined_directories(
    layout: Layout, path: str, resources: oci.Resources, *, everything: bool = False
) -> list[tuple[Hierarchy, str]]:
    """The v1 hierarchies that a container joins, each with the container's host directory there."""
    path = path.strip("/")
    limited = _WANTED if everything else _WANTED | _asked_controllers(resources)
    result = []
    for hierarchy in layout.hierarchies:
        controllers = hierarchy.controllers
        if everything or not limited.isdisjoint(controllers):
            if "devices" in controllers and not everything:
                result.append((hierarchy, device_directory(layout, path, resources)))
            else:
                result.append((hierarchy, f"{layout.root}/{hierarchy.directory}/{path}"))
    return result


def _asked_controllers(resources: oci.Resources) -> frozenset[str]:
    """The controllers outside of `_WANTED` that a limit needs."""
    cpu, network = resources.cpu, resources.network
    asked = {
        "cpuset": cpu is not None and bool(cpu.cpus or cpu.mems),
        "hugetlb": bool(resources.hugepage_limits),
        "rdma": bool(resources.rdma),
        "net_cls": network is not None and bool(network.class_id),
        "net_prio": network is not None and bool(network.priorities),
    }
    return frozenset(name for name, wanted in asked.items() if wanted)


def _inherits_devices(layout: Layout, path: str, resources: oci.Resources) -> bool:
    """Whether PARENT/guarded has the rules already: the daemon's, that is, for its containers."""
    return path.rpartition("/")[0] == layout.parent and resources.devices in ((), DEFAULT_RULES)


def device_directory(layout: Layout, path: str, resources: oci.Resources) -> str:
    """The container's directory in v1's devices hierarchy. Default rules are inherited from PARENT/guarded;
    below another parent, or with rules of its own, it is the same path as in the other hierarchies."""
    path = path.strip("/")
    if _inherits_devices(layout, path, resources):
        parent, _, name = path.rpartition("/")
        return layout.directory("devices", f"{parent}/{GUARDED}/{name}")
    return layout.directory("devices", path)


def device_rules(layout: Layout, path: str, rules: tuple[oci.DeviceRule, ...]) -> tuple[oci.DeviceRule, ...]:
    """The rules to put into a config: () where the default ones are inherited."""
    inherited = layout.version == 1 and path.strip("/").rpartition("/")[0] == layout.parent
    return () if rules == DEFAULT_RULES and inherited else rules


def _plan_v2(
    layout: Layout, path: str, resources: oci.Resources, *, clone_into: bool, systemd: bool
) -> CgroupPlan:
    directory = f"{layout.root}/{path}"
    leave: list[Step] = []
    if "memory" in layout.controllers:
        leave.append(ReadOom(path=f"{directory}/memory.events"))
    writes = limit_writes(layout, resources)  # refuses what can't be, also for a cgroup that systemd makes
    if systemd:
        return CgroupPlan(child=(Pause(name="cgroup"),), exit=tuple(leave))
    before: list[Step] = [MakeHostDir(path=directory)]
    before += [_step(layout, path, write) for write in writes]
    rules = effective_rules(resources.devices)
    if not is_unrestricted(rules):
        before.append(AttachDeviceProgram(path=directory, program=v2_program(rules)))
    leave.append(RemoveHostDir(path=directory))
    entered = _enter_v2(directory, clone_into=clone_into)
    return entered._replace(before=tuple(before), exit=tuple(leave))


def _step(layout: Layout, path: str, write: Write) -> WriteHost:
    directory = f"{layout.root}/{path}" if layout.version == 2 else layout.directory(write.controller, path)
    return WriteHost(path=f"{directory}/{write.file}", data=write.value, optional=int(write.optional))


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
