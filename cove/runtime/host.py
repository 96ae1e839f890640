"""Looks at this host: the facts that planning goes by (once, at the daemon's start), and devices."""

from __future__ import annotations

import os
import platform
import re
import resource
import stat
from collections.abc import Sequence

from cove.model.container import Device
from cove.model.errors import Invalid
from cove.runtime import capabilities, oci
from cove.runtime.facts import DEFAULT_SYSCTLS, Layout
from cove.runtime.facts import MASKED_PATHS as MASKED_PATHS
from cove.runtime.facts import READONLY_PATHS as READONLY_PATHS
from cove.runtime.facts import Host as Host

# machine of uname(2) -> the name that Docker (and Go) gives it
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm", "riscv64": "riscv64",
                  "s390x": "s390x", "ppc64le": "ppc64le", "loongarch64": "loong64"}  # fmt: skip


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
        hard_limits=_hard_limits(),
        oom_score_adj=_oom_score_adj(),
        limits=_own_limits(),
        in_user_namespace=_in_user_namespace(),
        groups=_count_groups(),
        setgroups=_read_flag("/proc/self/setgroups") != "deny",
        security_modules=_security_modules(),
        resctrl=_find_resctrl(),
    )


def _bounding_mask() -> int:
    """Capabilities that are in this process's bounding and permitted sets: no other can be given on."""
    bits = capabilities.KNOWN
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(("CapBnd:", "CapPrm:")):
                bits &= int(line.split()[1], 16)
    return bits


def _hard_limits() -> tuple[tuple[int, int], ...]:
    """getrlimit(2): raising a hard limit needs CAP_SYS_RESOURCE; with it there is nothing to mind."""
    return () if _bounding_mask() >> capabilities.NUMBERS["CAP_SYS_RESOURCE"] & 1 else _own_limits()


def _own_limits() -> tuple[tuple[int, int], ...]:
    hard = [(number, resource.getrlimit(number)[1]) for number in range(16)]
    return tuple((number, value) for number, value in hard if value != resource.RLIM_INFINITY)


def _in_user_namespace() -> bool:
    """user_namespaces(7): the first one's map is the whole range onto itself."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() != ["0", "0", "4294967295"]


def _count_groups() -> int:
    with open("/proc/self/gid_map", encoding="ascii") as file:
        return sum(int(line.split()[2]) for line in file)


def _security_modules() -> frozenset[str]:
    found = set()
    if _read_flag("/sys/module/apparmor/parameters/enabled") == "Y":
        found.add("apparmor")
    if _read_flag("/sys/fs/selinux/enforce"):  # 0 is permissive: labels count all the same
        found.add("selinux")
    return frozenset(found)


def _read_flag(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _find_resctrl() -> str:
    directory = "/sys/fs/resctrl"
    return directory if os.path.exists(f"{directory}/schemata") else ""


def _oom_score_adj() -> int:
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        return int(file.read())


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


# --- devices ----------------------------------------------------------------------------------------

# directories of /dev that hold no devices to pass on
_SKIPPED = frozenset({"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"})


def find_devices(
    devices: Sequence[Device], *, privileged: bool = False
) -> tuple[tuple[oci.LinuxDevice, ...], tuple[oci.DeviceRule, ...]]:
    """The nodes and the rules for `--device HOST:CONTAINER:ACCESS`, a directory for all below it; and every
    device of the host for a privileged container (whose rules allow everything anyway).

    Raises Invalid in Docker's words for a path that is no device.
    """
    nodes: dict[str, oci.LinuxDevice] = {}
    rules: list[oci.DeviceRule] = []
    if privileged:
        for node in _walk_devices("/dev", "/dev"):
            nodes[node.path] = node
        nodes.pop("/dev/console", None)
    for device in devices:
        if privileged and device.host_path == device.container_path:
            continue
        found = _find_device(device)
        for node in found:
            nodes[node.path] = node
            rules.append(
                oci.DeviceRule(
                    allow=True, type=node.type, major=node.major, minor=node.minor, access=device.permissions
                )
            )
    return tuple(nodes.values()), tuple(rules)


def _find_device(device: Device) -> list[oci.LinuxDevice]:
    target = device.container_path or device.host_path
    trouble = f'error gathering device information while adding custom device "{device.host_path}"'
    if not target.startswith("/") or ".." in target.split("/"):
        raise Invalid(f"{trouble}: the path in the container, {target!r}, has to be absolute, e.g. /dev/x")
    real = os.path.realpath(device.host_path)
    try:
        info = os.stat(real)
    except OSError as error:
        raise Invalid(f"{trouble}: {(error.strerror or '').lower()}") from None
    if stat.S_ISDIR(info.st_mode):
        found = list(_walk_devices(real, target.rstrip("/")))
        if found:
            return found
    node = _node(info, target)
    if node is None:
        raise Invalid(f"{trouble}: not a device node")
    return [node]


def _node(info: os.stat_result, path: str) -> oci.LinuxDevice | None:
    if not (stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode)):
        return None
    return oci.LinuxDevice(
        path=path,
        type="c" if stat.S_ISCHR(info.st_mode) else "b",
        major=os.major(info.st_rdev),
        minor=os.minor(info.st_rdev),
        file_mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
    )


def _walk_devices(directory: str, target: str) -> list[oci.LinuxDevice]:
    """Every device node below `directory`, symlinks not followed; what vanishes meanwhile is passed over."""
    found: list[oci.LinuxDevice] = []
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError:
        return found
    for entry in entries:
        try:
            info = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISDIR(info.st_mode):
            if entry.name not in _SKIPPED:
                found += _walk_devices(entry.path, f"{target}/{entry.name}")
            continue
        node = _node(info, f"{target}/{entry.name}")
        if node is not None:
            found.append(node)
    return found


def find_block_numbers(paths: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(major, minor) of block devices, for I/O limits. Raises Invalid for a path that is none."""
    result = {}
    for path in paths:
        try:
            info = os.stat(path)
        except OSError as error:
            raise Invalid(f"stat {path}: {(error.strerror or '').lower()}") from None
        if not stat.S_ISBLK(info.st_mode):
            raise Invalid(f"{path}: not a block device, e.g. use /dev/vda")
        result[path] = (os.major(info.st_rdev), os.minor(info.st_rdev))
    return result
