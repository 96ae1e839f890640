"""Facts of this host that planning depends on, found once at the daemon's start.

`Host` is plain data, so that plans can be made for a host that isn't this one (tests, golden files).
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass

from cove.runtime import capabilities
from cove.runtime.cgroups import Layout

# machine of uname(2) -> the name that Docker (and Go) gives it
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm", "riscv64": "riscv64",
                  "s390x": "s390x", "ppc64le": "ppc64le", "loongarch64": "loong64"}  # fmt: skip

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


def find_host(cgroups: Layout) -> Host:
    """Look at this host. Reads /proc and /sys; raises nothing that a running Linux wouldn't."""
    uname = os.uname()
    version = re.match(r"(\d+)\.(\d+)", uname.release)
    kernel = (int(version[1]), int(version[2])) if version else (0, 0)
    return Host(
        architecture=_ARCHITECTURES.get(platform.machine(), platform.machine()),
        kernel=kernel,
        capabilities=_bounding_mask(),
        cgroups=cgroups,
        masked_paths=_masked_paths(),
        sysctls=frozenset(
            key for key in DEFAULT_SYSCTLS if os.path.exists("/proc/sys/" + key.replace(".", "/"))
        ),
        filesystems=_filesystems(),
    )


def _bounding_mask() -> int:
    """Capabilities that are in this process's bounding and permitted sets: no other can be given on."""
    bits = capabilities.KNOWN
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(("CapBnd:", "CapPrm:")):
                bits &= int(line.split()[1], 16)
    return bits


def _masked_paths() -> tuple[str, ...]:
    """The default list, and each processor's thermal_throttle where there is one. What is missing now stays
    in the list: a module that is loaded later may bring it."""
    cpus = "/sys/devices/system/cpu"
    try:
        found = sorted(name for name in os.listdir(cpus) if re.fullmatch(r"cpu\d+", name))
    except OSError:
        found = []
    throttles = (f"{cpus}/{name}/thermal_throttle" for name in found)
    return (*MASKED_PATHS, *(path for path in throttles if os.path.exists(path)))


def _filesystems() -> frozenset[str]:
    with open("/proc/filesystems", encoding="ascii", errors="replace") as file:
        return frozenset(line.split("\t")[-1].strip() for line in file)


def find_mount(path: str) -> tuple[str, str]:
    """The mount point that `path` lies on and its optional fields ("shared:1 master:2"), from mountinfo.

    For the checks of `-v …:rshared` and `:rslave`; symlinks in `path` are followed.
    """
    real = os.path.realpath(path)
    best, optional = "", ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            head, _, _ = line.partition(" - ")
            fields = head.split()
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
            inside = real == point or real.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):  # of several at one place, the last one is on top
                best, optional = point, " ".join(fields[6:])
    return best, optional
