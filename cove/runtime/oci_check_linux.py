"""What must fit together in the `linux` part of a config.json (config-linux.md). Pure; see oci_check.py."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from cove.runtime import oci
from cove.runtime.oci_words import check_list, one_of, refuse
from cove.runtime.plan_mounts import ROOT_PROPAGATION
from cove.runtime.plan_namespaces import CLOCKS, CLONE_FLAGS
from cove.runtime.plan_process import MAX_CPUS, MEMORY_FLAGS, MEMORY_MODES, PERSONALITIES
from cove.runtime.seccomp_check import check_filter

_MAX_MAPPINGS = 340  # lines of uid_map (user_namespaces(7), Linux 4.15)
_MAX_NODES = 1024
# sysctls of an IPC namespace (ipc_namespaces(7)); those of fs.mqueue are, too
_IPC_SYSCTLS = frozenset(
    f"kernel.{name}" for name in "msgmax msgmnb msgmni sem shmall shmmax shmmni shm_rmid_forced".split()
)


def check_linux(config: oci.Config) -> None:
    """Raises Invalid."""
    linux = config.linux
    kinds = _check_namespaces(linux.namespaces)
    _check_user_namespace(linux, kinds)
    for index, mount in enumerate(config.mounts):
        _check_mappings(f"mounts[{index}].uidMappings", mount.uid_mappings)
        _check_mappings(f"mounts[{index}].gidMappings", mount.gid_mappings)
    _check_time_offsets(linux, kinds)
    _check_paths(linux, kinds)
    _check_devices(config)
    for key, value in linux.sysctl.items():
        _check_sysctl(key, value, kinds)
    _check_net_devices(linux, kinds)
    if ".." in linux.cgroups_path.split("/"):
        raise refuse(
            "linux.cgroupsPath", f'"{linux.cgroups_path}" must not have .. in it: use e.g. /team/web'
        )
    if linux.resources is not None:
        check_resources(linux.resources)
    if linux.seccomp is not None:
        check_filter(linux.seccomp, "config.json: linux.seccomp.")
    if linux.intel_rdt is not None:
        _check_intel_rdt(linux.intel_rdt)
    _check_personality(linux.personality)
    if linux.memory_policy is not None:
        _check_memory_policy(linux.memory_policy)


# --- namespaces -------------------------------------------------------------------------------------


def _check_namespaces(namespaces: Sequence[oci.Namespace]) -> dict[str, oci.Namespace]:
    """Each kind once; returns them by their kind."""
    kinds: dict[str, oci.Namespace] = {}
    for index, namespace in enumerate(namespaces):
        place = f"linux.namespaces[{index}]"
        if namespace.type not in CLONE_FLAGS:
            raise refuse(f"{place}.type", f'"{namespace.type}" is no namespace: use {one_of(CLONE_FLAGS)}')
        if namespace.type in kinds:
            raise refuse(f"{place}.type", f"{namespace.type} is there twice: leave one out")
        if namespace.path and not namespace.path.startswith("/"):
            raise refuse(f"{place}.path", f'"{namespace.path}" must be absolute, e.g. /proc/123/ns/net')
        kinds[namespace.type] = namespace
    return kinds


def _check_net_devices(linux: oci.Linux, kinds: dict[str, oci.Namespace]) -> None:
    if linux.net_devices and "network" not in kinds:
        raise refuse(
            "linux.netDevices", 'needs a network namespace: add {"type": "network"} to linux.namespaces'
        )
    for name, device in linux.net_devices.items():
        for each in (name, device.name or name):
            if not 0 < len(each.encode()) < 16 or each in (".", "..") or set(each) & set("/: \t\n"):
                raise refuse(f"linux.netDevices.{name}", f'"{each}" is no name of a device: use e.g. eth0')


def _check_user_namespace(linux: oci.Linux, kinds: dict[str, oci.Namespace]) -> None:
    """user_namespaces(7). Mappings beside a path describe the namespace that is joined (host_check.py compares)."""
    user = kinds.get("user")
    both = (("uidMappings", linux.uid_mappings), ("gidMappings", linux.gid_mappings))
    for name, mappings in both:
        if mappings and user is None:
            raise refuse(
                f"linux.{name}",
                'needs a user namespace: add {"type": "user"} to linux.namespaces, or leave it out',
            )
        if not mappings and user is not None and not user.path:
            raise refuse(
                f"linux.{name}",
                "is needed by the user namespace in linux.namespaces: "
                'give e.g. [{"containerID": 0, "hostID": 100000, "size": 65536}]',
            )
        _check_mappings(f"linux.{name}", mappings)


def _check_mappings(place: str, mappings: Sequence[oci.IdMapping]) -> None:
    if len(mappings) > _MAX_MAPPINGS:
        raise refuse(place, f"has {len(mappings)} lines: the kernel takes {_MAX_MAPPINGS} at most")
    for index, mapping in enumerate(mappings):
        if not mapping.size:
            raise refuse(f"{place}[{index}].size", "is 0: map at least one id, e.g. 65536")
        for name, first in (("containerID", mapping.container_id), ("hostID", mapping.host_id)):
            if first + mapping.size >= 1 << 32:
                raise refuse(
                    f"{place}[{index}].{name}", f"and size go beyond {2**32 - 2}, the last id there is"
                )
    for name in ("container_id", "host_id"):
        ranges = sorted((getattr(each, name), each.size, index) for index, each in enumerate(mappings))
        for (first, size, _), (second, _, index) in pairwise(ranges):
            if first + size > second:
                json_name = "containerID" if name == "container_id" else "hostID"
                raise refuse(
                    f"{place}[{index}].{json_name}",
                    f"{second} is mapped by another line, too: make them disjoint",
                )


def _check_time_offsets(linux: oci.Linux, kinds: dict[str, oci.Namespace]) -> None:
    """time_namespaces(7)."""
    if not linux.time_offsets:
        return
    time = kinds.get("time")
    if time is None:
        raise refuse(
            "linux.timeOffsets",
            'needs a time namespace: add {"type": "time"} to linux.namespaces, or leave it out',
        )
    if time.path:
        raise refuse("linux.timeOffsets", "can't be changed in a time namespace that is joined: leave it out")
    for clock, offset in linux.time_offsets.items():
        if clock not in CLOCKS:
            raise refuse(
                f'linux.timeOffsets["{clock}"]', f"is no clock of a time namespace: use {one_of(CLOCKS)}"
            )
        if offset.nanosecs > 999_999_999:
            raise refuse(
                f'linux.timeOffsets["{clock}"].nanosecs',
                f"{offset.nanosecs} is a second or more: use secs for it",
            )


def _check_sysctl(key: str, value: str, kinds: dict[str, oci.Namespace]) -> None:
    """Only what belongs to a namespace; a joined one's may be set, too (as runc)."""
    place = f'linux.sysctl["{key}"]'
    if "\n" in value:
        raise refuse(place, "has several lines: give one")
    slash, dot = key.find("/"), key.find(".")
    dotted = key
    if slash >= 0 and (dot < 0 or slash < dot):  # sysctl(8): the first separator decides
        dotted = key.translate({ord("/"): ".", ord("."): "/"})
    if any(part in ("", ".", "..") for part in dotted.replace("/", ".").split(".")) or "." not in dotted:
        raise refuse(place, "is no setting's name: use e.g. net.ipv4.ip_forward")
    if dotted == "kernel.hostname":
        raise refuse(place, "is what hostname sets: use that")
    if dotted in _IPC_SYSCTLS or dotted.startswith("fs.mqueue."):
        needed = "ipc"
    elif dotted.startswith("net."):
        needed = "network"
    elif dotted == "kernel.domainname":
        needed = "uts"
    elif dotted.startswith("user."):
        needed = "user"
    else:
        raise refuse(place, "would change the whole host: leave it out, and set it on the host")
    if needed not in kinds:
        raise refuse(
            place, f'would change the host: add {{"type": "{needed}"}} to linux.namespaces, or leave it out'
        )


# --- the file system --------------------------------------------------------------------------------


def _check_paths(linux: oci.Linux, kinds: dict[str, oci.Namespace]) -> None:
    own = "mount" in kinds
    for name, paths in (("maskedPaths", linux.masked_paths), ("readonlyPaths", linux.readonly_paths)):
        if paths and not own:
            raise refuse(
                f"linux.{name}",
                'needs a mount namespace: add {"type": "mount"} to linux.namespaces, or leave it out',
            )
        for index, path in enumerate(paths):
            if not path.startswith("/"):
                raise refuse(f"linux.{name}[{index}]", f'"{path}" must be absolute, e.g. /proc/kcore')
    if linux.rootfs_propagation and linux.rootfs_propagation not in ROOT_PROPAGATION:
        raise refuse(
            "linux.rootfsPropagation",
            f'"{linux.rootfs_propagation}" is no propagation: use {one_of(ROOT_PROPAGATION)}',
        )


def _check_devices(config: oci.Config) -> None:
    """mknod(2). On a read-only root a node needs a file system of its own below it, as /dev has."""
    mounted = tuple(mount.destination.rstrip("/") + "/" for mount in config.mounts)
    for index, device in enumerate(config.linux.devices):
        place = f"linux.devices[{index}]"
        if device.type not in ("c", "u", "b", "p"):
            raise refuse(f"{place}.type", f'"{device.type}" is no kind of device: use c, u, b or p')
        if not device.path.startswith("/"):
            raise refuse(f"{place}.path", f'"{device.path}" must be absolute, e.g. /dev/fuse')
        if not 0 <= device.major < 1 << 12:
            raise refuse(f"{place}.major", f"{device.major} is out of range: use 0 to {(1 << 12) - 1}")
        if not 0 <= device.minor < 1 << 20:
            raise refuse(f"{place}.minor", f"{device.minor} is out of range: use 0 to {(1 << 20) - 1}")
        if config.root.readonly and not device.path.startswith(mounted):
            raise refuse(
                f"{place}.path",
                f'"{device.path}" can\'t be made on a read-only root: place it below a mount, e.g. in /dev, or set '
                "root.readonly to false",
            )


# --- limits and kernel features ---------------------------------------------------------------------


def check_resources(resources: oci.Resources, place: str = "linux.resources") -> None:
    """The words in limits; what a number means for this host's cgroups is for plan_limits.py. Raises Invalid."""
    for index, rule in enumerate(resources.devices):
        _check_device_rule(f"{place}.devices[{index}]", rule)
    if resources.cpu is not None:
        check_list(f"{place}.cpu.cpus", resources.cpu.cpus, MAX_CPUS)
        check_list(f"{place}.cpu.mems", resources.cpu.mems, _MAX_NODES)
    seen: set[str] = set()
    for index, limit in enumerate(resources.hugepage_limits):
        size = limit.page_size
        if not (size.removesuffix("B")[:-1].isdecimal() and size[-2:] in ("KB", "MB", "GB")):
            raise refuse(
                f"{place}.hugepageLimits[{index}].pageSize", f'"{size}" is no size: use e.g. 2MB or 1GB'
            )
        if size in seen:
            raise refuse(f"{place}.hugepageLimits[{index}].pageSize", f"{size} is there twice: leave one out")
        seen.add(size)
    for key in resources.unified:
        if "/" in key or "." not in key:
            raise refuse(f'{place}.unified["{key}"]', "is no file of a cgroup: use e.g. memory.high")


def _check_device_rule(place: str, rule: oci.DeviceRule) -> None:
    if rule.type not in ("", "a", "b", "c"):
        raise refuse(f"{place}.type", f'"{rule.type}" is no kind of device: use a, b or c')
    if not set(rule.access) <= set("rwm"):
        raise refuse(f"{place}.access", f'"{rule.access}" must be made of r, w and m, e.g. rwm')
    for name, number in (("major", rule.major), ("minor", rule.minor)):
        if number is not None and not -1 <= number < 1 << 20:
            raise refuse(f"{place}.{name}", f"{number} is out of range: use -1 (any) to {(1 << 20) - 1}")


def _check_intel_rdt(rdt: oci.IntelRdt) -> None:
    """ "/" alone is the default class (config-linux.md, "IntelRdt")."""
    if rdt.clos_id in (".", "..") or ("/" in rdt.clos_id and rdt.clos_id != "/"):
        raise refuse("linux.intelRdt.closID", f'"{rdt.clos_id}" must be a name without /, e.g. batch')
    lines = [("l3CacheSchema", rdt.l3_cache_schema), ("memBwSchema", rdt.mem_bw_schema)]
    lines += [(f"schemata[{index}]", line) for index, line in enumerate(rdt.schemata)]
    for name, line in lines:
        if "\n" in line:
            raise refuse(f"linux.intelRdt.{name}", "has several lines: give one, e.g. L3:0=f")
    if rdt.mem_bw_schema and not rdt.mem_bw_schema.startswith("MB:"):
        raise refuse("linux.intelRdt.memBwSchema", f'"{rdt.mem_bw_schema}" must begin with MB:, e.g. MB:0=50')


def _check_personality(personality: oci.Personality | None) -> None:
    if personality is None:
        return
    if personality.domain not in PERSONALITIES:
        raise refuse(
            "linux.personality.domain", f'"{personality.domain}" is no domain: use {one_of(PERSONALITIES)}'
        )
    if personality.flags:
        raise refuse("linux.personality.flags", "the specification knows none: leave them out")


def _check_memory_policy(policy: oci.MemoryPolicy) -> None:
    """set_mempolicy(2)."""
    place = "linux.memoryPolicy"
    if policy.mode not in MEMORY_MODES:
        raise refuse(f"{place}.mode", f'"{policy.mode}" is no mode: use {one_of(MEMORY_MODES)}')
    for index, flag in enumerate(policy.flags):
        if flag not in MEMORY_FLAGS:
            raise refuse(f"{place}.flags[{index}]", f'"{flag}" is no flag: use {one_of(MEMORY_FLAGS)}')
    if {"MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"} <= set(policy.flags):
        raise refuse(
            f"{place}.flags",
            "MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other: leave one out",
        )
    if "MPOL_F_NUMA_BALANCING" in policy.flags and policy.mode not in ("MPOL_BIND", "MPOL_PREFERRED_MANY"):
        raise refuse(
            f"{place}.flags", f"MPOL_F_NUMA_BALANCING is for MPOL_BIND: leave it out with {policy.mode}"
        )
    check_list(f"{place}.nodes", policy.nodes, _MAX_NODES)
    if policy.nodes and policy.mode in ("MPOL_DEFAULT", "MPOL_LOCAL"):
        raise refuse(f"{place}.nodes", f"has no place with {policy.mode}: leave it out")
    if not policy.nodes and policy.mode not in ("MPOL_DEFAULT", "MPOL_LOCAL", "MPOL_PREFERRED"):
        raise refuse(f"{place}.nodes", f"is needed by {policy.mode}: give e.g. 0-3,7")
