"""The config.json that `spec` prints: a shell in an image's `rootfs`, to be edited. Pure.

Field for field what `runc spec` and `runc spec --rootless` print, so that what was written for these fits here.
"""

from __future__ import annotations

from typing import Any

from cove.runtime.oci import VERSION

_CAPABILITIES = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
_MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
)  # fmt: skip
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def default_spec(
    rootless: bool, *, uid: int = 0, gid: int = 0, cgroup_namespace: bool = False
) -> dict[str, Any]:
    """As data, in runc's order. `uid` and `gid` are the caller's, mapped to root in a rootless container; a host
    with cgroup v2 gets a cgroup namespace, too."""
    kinds = ["pid", "network", "ipc", "uts", "mount"]
    if cgroup_namespace:
        kinds.append("cgroup")
    linux: dict[str, Any] = {}
    if rootless:
        kinds.remove("network")
        kinds.append("user")
        linux["uidMappings"] = [{"containerID": 0, "hostID": uid, "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": gid, "size": 1}]
    else:
        linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    linux["namespaces"] = [{"type": kind} for kind in kinds]
    linux["maskedPaths"] = list(_MASKED)
    linux["readonlyPaths"] = list(_READONLY)
    return {
        "ociVersion": VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                kind: list(_CAPABILITIES) for kind in ("bounding", "effective", "permitted", "ambient")
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "runc",
        "mounts": _mounts(rootless),
        "linux": linux,
    }


def _mounts(rootless: bool) -> list[dict[str, Any]]:
    quiet = ["nosuid", "noexec", "nodev"]
    terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    sysfs: dict[str, Any] = {
        "destination": "/sys",
        "type": "sysfs",
        "source": "sysfs",
        "options": [*quiet, "ro"],
    }
    if rootless:  # it has one id only, and the host's network
        sysfs.update(type="none", source="/sys", options=["rbind", *quiet, "ro"])
    else:
        terminals.append("gid=5")
    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount("/dev/pts", "devpts", "devpts", terminals),
        _mount("/dev/shm", "tmpfs", "shm", [*quiet, "mode=1777", "size=65536k"]),  # noqa: S108
        _mount("/dev/mqueue", "mqueue", "mqueue", list(quiet)),
        sysfs,
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*quiet, "relatime", "ro"]),
    ]


def _mount(destination: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": options}
