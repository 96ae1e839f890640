"""What a config.json asks for and this host lacks, or would mean something else than its author thought.

Looks at /proc; what `Host` knows is taken from there. Called once per create, after oci_check.py.
"""

from __future__ import annotations

import os

from cove.model.errors import CoveError, Invalid, Unavailable
from cove.runtime import oci
from cove.runtime.facts import Host
from cove.runtime.plan_namespaces import CLONE_FLAGS

_FILES = {"network": "net", "mount": "mnt"}  # below /proc/PID/ns; the others have their own name


def check_host(config: oci.Config, host: Host) -> None:
    """Raises Unavailable with the path of the field that this host can't do, Invalid for a namespace that isn't
    what the config takes it for."""
    process, linux = config.process, config.linux
    if process.apparmor_profile not in ("", "unconfined") and "apparmor" not in host.security_modules:
        raise _unavailable("process.apparmorProfile", "AppArmor is not enabled on this host: leave it out")
    for field, label in (
        ("process.selinuxLabel", process.selinux_label),
        ("linux.mountLabel", linux.mount_label),
    ):
        if label and "selinux" not in host.security_modules:
            raise _unavailable(field, "SELinux is not enabled on this host: leave it out")
    if linux.intel_rdt is not None and not host.resctrl:
        raise _unavailable(
            "linux.intelRdt",
            "this host has no resctrl file system at /sys/fs/resctrl: leave it out, or mount it",
        )
    for index, namespace in enumerate(linux.namespaces):
        _check_namespace(f"linux.namespaces[{index}]", namespace, linux)


def _check_namespace(place: str, namespace: oci.Namespace, linux: oci.Linux) -> None:
    file = _FILES.get(namespace.type, namespace.type)
    if namespace.type not in CLONE_FLAGS or not os.path.exists(f"/proc/self/ns/{file}"):
        raise _unavailable(f"{place}.type", f"this kernel has no {namespace.type} namespaces: leave it out")
    if not namespace.path:
        return
    try:
        there = os.stat(namespace.path)
    except OSError as error:
        raise _error(
            Invalid,
            f"{place}.path",
            f"{namespace.path}: {error.strerror}: name a namespace's file, e.g. /proc/1/ns/{file}",
        ) from None
    own = os.stat(f"/proc/self/ns/{file}")
    if there.st_dev != own.st_dev:  # every namespace's file is nsfs', wherever it is bound
        raise _error(
            Invalid,
            f"{place}.path",
            f"{namespace.path} is no namespace: name its file, e.g. /proc/1/ns/{file}",
        )
    if namespace.type == "network" and os.path.samestat(there, own):
        for key in linux.sysctl:
            if key.startswith(("net.", "net/")):
                raise _error(
                    Invalid,
                    f'linux.sysctl["{key}"]',
                    f"would change the host, whose network {place}.path is: leave it out",
                )
    if namespace.type == "user":
        _check_joined_maps(namespace.path, linux)


def _check_joined_maps(path: str, linux: oci.Linux) -> None:
    """Mappings beside a path only say what the namespace has; where a process shows that, they have to agree."""
    parts = path.split("/")
    if parts[:2] != ["", "proc"] or parts[3:] != ["ns", "user"]:
        return
    for name, file, mappings in (
        ("uidMappings", "uid_map", linux.uid_mappings),
        ("gidMappings", "gid_map", linux.gid_mappings),
    ):
        if not mappings:
            continue
        try:
            with open(f"/proc/{parts[2]}/{file}", encoding="ascii") as lines:
                found = {tuple(map(int, line.split())) for line in lines}
        except OSError:  # it has just ended: then the join fails
            return
        if found != {(each.container_id, each.host_id, each.size) for each in mappings}:
            raise _error(Invalid, f"linux.{name}", f"isn't what the user namespace {path} has: leave it out")


def _unavailable(path: str, sentence: str) -> CoveError:
    return _error(Unavailable, path, sentence)


def _error(kind: type[CoveError], path: str, sentence: str) -> CoveError:
    return kind(f"config.json: {path}: {sentence}")
