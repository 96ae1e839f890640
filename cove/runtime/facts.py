"""The facts of a host that planning goes by: plain data, so that plans can be made for a host that isn't this one.

`host.py` and `cgroups.py` find them. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cove.model.errors import Invalid

GUARDED = "guarded"  # below the parent, in v1's devices hierarchy: the default device rules, inherited


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """One mounted hierarchy of v1: its directory below the root and its controllers ("name=systemd" too)."""

    directory: str
    controllers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The cgroups of a host. `features` names the limits that it can do (cgroups_limits.FEATURES)."""

    version: Literal[1, 2]
    root: str = "/sys/fs/cgroup"
    parent: str = "cove"
    hierarchies: tuple[Hierarchy, ...] = ()  # v1
    controllers: frozenset[str] = frozenset()  # of all v1 hierarchies, or v2's root
    features: frozenset[str] = frozenset()
    cpus: str = ""  # of the root's cpuset, "0-3"; "" without one
    mems: str = ""
    online_cpus: int = 1

    def hierarchy(self, controller: str) -> Hierarchy | None:
        """The v1 hierarchy that has `controller`."""
        for hierarchy in self.hierarchies:
            if controller in hierarchy.controllers:
                return hierarchy
        return None

    def directory(self, controller: str, path: str) -> str:
        """The host directory of the cgroup `path` in v1's hierarchy of `controller`."""
        hierarchy = self.hierarchy(controller)
        assert hierarchy is not None, controller
        return f"{self.root}/{hierarchy.directory}/{path}"


def check_parent(parent: str) -> str:
    """A parent's name without the leading slash. Raises Invalid for one that leads elsewhere."""
    name = parent.strip("/")
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts) or "\0" in name or len(name) > 1024:
        raise Invalid(
            f"cgroup parent {parent!r}: give a path of names without . and .., e.g. /cove or /team/batch"
        )
    return name


# moby's defaults; the last two families since GHSA-6fw5-f8r9-fgfm and GHSA-jq35-85cj-fj4p
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# what Docker sets in every network namespace that it makes
DEFAULT_SYSCTLS = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What this kernel and this daemon can do."""

    architecture: str
    kernel: tuple[int, int]
    capabilities: int  # mask of what this daemon may give
    cgroups: Layout
    masked_paths: tuple[str, ...] = MASKED_PATHS  # the default ones on this host
    sysctls: frozenset[str] = frozenset(DEFAULT_SYSCTLS)  # which default ones exist here
    filesystems: frozenset[str] = frozenset({"proc", "sysfs", "tmpfs", "devpts", "mqueue", "overlay"})
    hard_limits: tuple[
        tuple[int, int], ...
    ] = ()  # RLIMIT_* -> what can't be exceeded, without CAP_SYS_RESOURCE
    oom_score_adj: int = 0  # this daemon's own, which its children inherit
    limits: tuple[tuple[int, int], ...] = ()  # RLIMIT_* -> this daemon's own hard limit, where there is one
    in_user_namespace: bool = False  # this daemon isn't root of the whole machine: no mknod(2), for one
    groups: int = 1 << 32  # how many there are, 0 … groups - 1: in a user namespace, those of its map
    setgroups: bool = True  # whether setgroups(2) is allowed (user_namespaces(7))
    security_modules: frozenset[str] = frozenset()  # apparmor, selinux
    default_seccomp: str = ""  # the profile of containers that name none: "", "unconfined", or its JSON
    resctrl: str = ""  # where the resctrl file system is mounted, for intelRdt
