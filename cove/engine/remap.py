"""Containers in a user namespace of their own (`--userns-remap`): who gets one, which, and its root and maps.

A container that joins another's namespaces joins that one's user namespace, too: the kernel lets nobody into a
network, pid or IPC namespace of a user namespace beside one's own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

from cove.engine.types import Settings
from cove.model.container import ContainerSpec
from cove.model.errors import Conflict, Invalid
from cove.runtime.plan_inputs import Attached, IdMaps
from cove.runtime.usermaps import write_maps


def id_maps(settings: Settings, spec: ContainerSpec) -> IdMaps | None:
    """The maps that a start of this container uses; None: it lives in the daemon's user namespace."""
    return None if spec.userns_mode == "host" else settings.remap


def check_userns(settings: Settings, spec: ContainerSpec) -> None:
    """Refuse what needs the host's user namespace, in Docker's words. Raises Invalid."""
    if id_maps(settings, spec) is None:
        return
    if spec.privileged:
        raise Invalid(
            "privileged mode is incompatible with user namespaces.  You must run the container in the host "
            "namespace when running privileged mode (--userns=host)"
        )
    if spec.writable_cgroups:
        raise Invalid("option WritableCgroups conflicts with user namespaces and rootless mode")
    for kind, mode in (("network", spec.network_mode), ("PID", spec.pid_mode), ("IPC", spec.ipc_mode)):
        if mode == "host":
            shared = f"{kind} namespace" if kind != "network" else "network namespace"
            raise Invalid(
                f"cannot share the host's {shared} when user namespaces are enabled (--userns=host allows it)"
            )


def in_user_namespace(pid: int) -> bool:
    """Whether a process, a container's first one, lives in another user namespace than this daemon."""
    try:
        return os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
    except OSError:
        return False


def joined_user(joined: Mapping[str, int], maps: IdMaps | None) -> int:
    """Of the processes whose namespaces a container joins, the one whose user namespace it is to join; 0: none.

    Raises Conflict when they can't be joined together, or need a container with `--userns=host`.
    """
    if maps is None or not joined:
        return 0
    targets = {os.stat(f"/proc/{pid}/ns/user").st_ino: pid for pid in joined.values()}
    if len(targets) > 1:
        raise Conflict(
            f"cannot join {' and '.join(joined)} of containers in different user namespaces: join them of one"
        )
    pid = next(iter(targets.values()))
    if not in_user_namespace(pid):
        raise Conflict(
            f"cannot join {' and '.join(joined)} of a container in the host's user namespace: use --userns=host"
        )
    return pid


def shifted_root(settings: Settings) -> Attached:
    """Where the root is attached that ShiftedRoots mounts."""
    return Attached(path=str(settings.root_point))


async def prepare_user_namespace(pid: int, maps: IdMaps) -> None:
    """Write the maps of the namespace that `pid` has just been cloned into. Raises HostError."""
    await asyncio.to_thread(write_maps, pid, maps.uids, maps.gids)


def open_network(pid: int) -> int:
    """A descriptor of the network namespace of a paused child; the caller closes it."""
    return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
