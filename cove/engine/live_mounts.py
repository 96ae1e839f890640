"""Mounts that come and go while a container runs.

Order that must hold: the mount is attached, then recorded, and detached again where the record can't be written. A
daemon that is killed in between leaves a mount that no record has: it ends with this run of the container. Only mounts
that were added in this run are detached, by their ids; what a start made is another container's matter (recreate).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import msgspec

from cove.engine.create import PlannedMount
from cove.engine.mounts import settle_mounts
from cove.engine.parts import Parts
from cove.engine.remap import in_user_namespace
from cove.engine.types import View
from cove.image.worker import attach_mount, detach_mounts
from cove.model.container import Bind, Container, Mount, MountPoint, Volume
from cove.model.errors import Conflict, CoveError, Invalid, Unavailable
from cove.runtime.trees import open_live

MAX_MOUNTS = 16  # of one request

_KERNEL_PLACES = ("/proc", "/sys", "/dev")


@dataclass(frozen=True, slots=True)
class AddedMount:
    mount: Mount
    shown: Mapping[str, Any]  # as the create body has it


def clean_target(target: str) -> str:
    return posixpath.normpath("/" + target.lstrip("/"))


def check_added(container: Container, mount: Mount) -> Bind | Volume:
    """The mount with its target clean. Pure. Raises Invalid for one that a running container can't get."""
    target = clean_target(mount.target)
    if not isinstance(mount, Bind | Volume):
        raise Invalid(f"mount {target}: only a bind or a volume can be added, e.g. type=volume,source=data")
    if isinstance(mount, Volume) and not mount.name:
        raise Invalid(f"mount {target}: the volume needs a name, e.g. type=volume,source=data")
    if target == "/" or any(target == place or target.startswith(place + "/") for place in _KERNEL_PLACES):
        raise Invalid(f"mount {target}: nothing is mounted on /, or in /proc, /sys or /dev: name e.g. /data")
    if isinstance(mount, Bind) and mount.propagation not in ("", "private", "rprivate"):
        raise Invalid(
            f"mount {target}: propagation {mount.propagation} can't be had on a container that is there: leave it out"
        )
    for point in container.mounts:
        if point.target == target:
            raise Invalid(f"mount {target}: something is mounted there already: name another target")
        if point.target.startswith(target + "/"):
            raise Invalid(
                f"mount {target}: it would hide what is mounted at {point.target}: name another target"
            )
        if "shared" in point.propagation and target.startswith(point.target + "/"):
            raise Invalid(
                f"mount {target}: it would appear on the host, too, for {point.target} is shared: name another target"
            )
    return msgspec.structs.replace(mount, target=target)


def with_added(container: Container, mount: Mount, shown: Mapping[str, Any], point: MountPoint) -> Container:
    """The record with a mount more, as if it had been created with it. Pure."""
    spec = container.spec
    request: dict[str, Any] = msgspec.json.decode(spec.request)
    host = request.setdefault("HostConfig", {})
    host["Mounts"] = [*(host.get("Mounts") or ()), shown]
    spec = msgspec.structs.replace(
        spec, mounts=(*spec.mounts, mount), request=msgspec.Raw(msgspec.json.encode(request))
    )
    return msgspec.structs.replace(container, spec=spec, mounts=(*container.mounts, point))


def without(container: Container, target: str) -> Container:
    """The record without a bind or a named volume. Pure. Raises Invalid where there is none."""
    spec = container.spec
    kept = tuple(mount for mount in spec.mounts if clean_target(mount.target) != target)
    gone = [mount for mount in spec.mounts if clean_target(mount.target) == target]
    if not any(isinstance(mount, Bind) or (isinstance(mount, Volume) and mount.name) for mount in gone):
        raise Invalid(f"mount {target}: the container has no bind and no named volume there")
    request: dict[str, Any] = msgspec.json.decode(spec.request)
    host = request.setdefault("HostConfig", {})
    host["Mounts"] = [m for m in host.get("Mounts") or () if clean_target(m.get("Target") or "/") != target]
    host["Binds"] = [text for text in host.get("Binds") or () if _bind_target(text) != target]
    spec = msgspec.structs.replace(spec, mounts=kept, request=msgspec.Raw(msgspec.json.encode(request)))
    points = tuple(point for point in container.mounts if point.target != target)
    return msgspec.structs.replace(container, spec=spec, mounts=points)


def _bind_target(text: str) -> str:
    parts = text.split(":")
    return clean_target(parts[1] if len(parts) > 1 else parts[0])


async def change_mounts(
    parts: Parts,
    view: View,
    container: Container,
    pid: int,
    added: Sequence[AddedMount],
    removed: Sequence[str],
    undo: AsyncExitStack,
) -> tuple[Container, dict[str, int]]:
    """The record afterwards, and the ids of the mounts added in this run; `pid` 0: the container doesn't run, and the
    record alone changes. `undo` takes the added ones back. Raises Invalid, Conflict, Unavailable, HostError."""
    if len(added) > MAX_MOUNTS or len(removed) > MAX_MOUNTS:
        raise Invalid(f"mounts: at most {MAX_MOUNTS} can be added or removed at a time")
    if pid:
        _check_running(parts, view, pid)
    ids = dict(view.state.live_mounts)
    targets = dict.fromkeys(map(clean_target, removed))
    for target in targets:
        if pid and target not in ids:
            raise _unknown(container, target)
        container = without(container, target)
    for one in added:
        mount = check_added(container, one.mount)
        if mount.target in targets:
            raise Invalid(f"mount {mount.target}: it can't be removed and added by one request: use two")
        point = await _settle(parts, container, mount, undo)
        if pid:
            ids[mount.target] = await _attach(parts, pid, point, undo)
        container = with_added(container, mount, {**one.shown, "Target": mount.target}, point)
    if pid and targets:
        await detach_mounts(pid, {target: ids.pop(target) for target in targets})
    return container, ids


def _check_running(parts: Parts, view: View, pid: int) -> None:
    name = view.container.name
    if view.container.spec.extension.infra:
        raise Conflict(f"container {name} holds a pod: create the pod again with the mount instead")
    if parts.host.in_user_namespace or in_user_namespace(pid):
        raise Unavailable(
            f"container {name} runs in a user namespace of its own, where mounts can't be changed: "
            f"stop it first, or use cove recreate --mount … {name}"
        )


def _unknown(container: Container, target: str) -> CoveError:
    if not any(point.target == target for point in container.mounts):
        return Invalid(f"mount {target}: the container has none there")
    return Conflict(
        f"mount {target}: it was not added while the container runs, so it stays; another container without it takes "
        f"its place by cove recreate --mount-rm {target} {container.name}"
    )


async def _settle(
    parts: Parts, container: Container, mount: Bind | Volume, undo: AsyncExitStack
) -> MountPoint:
    """Until the record has it, a claim keeps the volume from being removed; it is given up before `undo` discards."""
    if isinstance(mount, Volume):
        parts.claims.setdefault(container.id, set()).add(mount.name)
    try:
        image = parts.images.image_by_id(container.image_id)
        (point,) = await settle_mounts(parts, [PlannedMount(mount, anonymous=False)], image, undo)
    except BaseException:
        parts.claims.pop(container.id, None)
        raise
    undo.callback(parts.claims.pop, container.id, None)
    return point


async def _attach(parts: Parts, pid: int, point: MountPoint, undo: AsyncExitStack) -> int:
    if point.name and parts.volumes.needs_mount(point.name):
        raise Unavailable(
            f"mount {point.target}: volume {point.name} is mounted only for a container's start: stop the container, "
            "add it, and start it again"
        )
    tree = await asyncio.to_thread(open_live, point)
    attaching = asyncio.ensure_future(attach_mount(pid, tree, point.target))
    try:
        mount_id = await asyncio.shield(attaching)
    except asyncio.CancelledError:
        with contextlib.suppress(CoveError):
            await detach_mounts(pid, {point.target: await attaching})
        raise
    finally:
        os.close(tree)
    undo.push_async_callback(_take_back, pid, point.target, mount_id)
    return mount_id


async def _take_back(pid: int, target: str, mount_id: int) -> None:
    with contextlib.suppress(CoveError):  # the container has just ended, and its mounts with it
        await detach_mounts(pid, {target: mount_id})
