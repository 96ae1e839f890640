"""Settle a new container's mounts: volumes are made, sources checked, empty volumes filled.

Effects on volumes and on missing bind sources only. What was made for a create that fails later is
taken back by the undo stack handed in.
"""

from __future__ import annotations

import os
import secrets
from contextlib import AsyncExitStack
from pathlib import Path

from cove.engine.create import PlannedMount, tmpfs_point
from cove.engine.parts import Parts
from cove.image.types import OverlayTree
from cove.image.worker import copy_up
from cove.model.container import Bind, ImageMount, MountPoint, Tmpfs, Volume
from cove.model.errors import Invalid
from cove.model.objects import Image
from cove.runtime.users import open_in_root


async def settle_mounts(
    parts: Parts, planned: list[PlannedMount | MountPoint], image: Image, undo: AsyncExitStack
) -> tuple[MountPoint, ...]:
    """The mount table of a new container. Raises Invalid for a bind source that isn't there."""
    points = []
    for item in planned:
        if isinstance(item, MountPoint):
            points.append(item)
            continue
        match item.mount:
            case Bind():
                points.append(_bind_point(item.mount))
            case Tmpfs():
                points.append(tmpfs_point(item.mount))
            case ImageMount():
                points.append(image_point(parts, item.mount))
            case Volume():
                points.append(await _volume_point(parts, item.mount, item.anonymous, image, undo))
    return tuple(points)


def image_point(parts: Parts, mount: ImageMount) -> MountPoint:
    image = parts.images.find_image(mount.image)
    point = MountPoint(
        kind="image",
        target=mount.target,
        source=str(parts.images.layers_dir),
        subpath=mount.subpath,
        readonly=True,
        recursive=False,
        image=mount.image,
        image_id=image.id,
    )
    if mount.subpath:
        check_image_subpath(parts, point)
    return point


def check_image_subpath(parts: Parts, point: MountPoint) -> None:
    """Refuse a subpath that isn't there, as far as the layers can tell; a start looks it up in the mounted image."""
    image = parts.images.image_by_id(point.image_id)
    if not may_have_content(parts, image, point.subpath):
        raise Invalid(f"image subpath '{point.subpath}' does not exist in the image {point.image}")


def _bind_point(mount: Bind) -> MountPoint:
    source = os.path.normpath(mount.source)
    if not mount.source.startswith("/"):
        raise Invalid(
            f"invalid mount config for type \"bind\": invalid mount path: '{source}' must be absolute"
        )
    if not os.path.lexists(source):
        if not mount.create_source:
            raise Invalid(f'invalid mount config for type "bind": bind source path does not exist: {source}')
        try:
            os.makedirs(source, mode=0o755, exist_ok=True)
        except OSError as error:
            raise Invalid(f"bind source {source} could not be made: {error.strerror}") from None
    return MountPoint(
        kind="bind",
        target=mount.target,
        source=source,
        readonly=mount.readonly,
        propagation=mount.propagation,
        recursive=mount.recursive,
        readonly_below=mount.readonly_below,
    )


async def _volume_point(
    parts: Parts, mount: Volume, anonymous: bool, image: Image, undo: AsyncExitStack
) -> MountPoint:
    volumes = parts.volumes
    record = volumes.find(mount.name)
    if record is None or mount.driver_options:
        fresh = record is None
        record = await volumes.create(
            mount.name, mount.driver, mount.driver_options, mount.labels, anonymous=anonymous
        )
        if fresh:
            undo.push_async_callback(parts.discard_volume, mount.name)
            parts.publish_volume(record, "create")
    shown = volumes.source(record.name)
    if mount.subpath or (mount.copy_up and may_have_content(parts, image, mount.target)):
        held = {record.name} if volumes.needs_mount(record.name) else set()
        async with volumes.mounts.held(f"create-{secrets.token_hex(8)}", held) as paths:
            place = paths.get(record.name, shown.source)
            if mount.subpath:
                _check_subpath(place, record.name, mount.subpath)
            else:
                await _copy_up(parts, image, mount.target, Path(place))
    return MountPoint(
        kind="volume",
        target=mount.target,
        source=shown.source,
        subpath=mount.subpath,
        name=record.name,
        driver=record.driver,
        readonly=mount.readonly or shown.readonly,
        propagation=shown.propagation,
        recursive=shown.recursive,
        anonymous=anonymous,
    )


def _check_subpath(source: str, volume: str, subpath: str) -> None:
    """Refuse a subpath that leads out of the volume or doesn't exist. It is looked up again at each start, for
    containers that write to the volume may put a symlink in its place (CVE-2023-2878)."""
    if ".." in subpath.split("/"):
        raise Invalid(f"volume subpath '{subpath}' leads out of the volume {volume}")
    root = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(open_in_root(root, subpath, os.O_PATH))
    except OSError:
        raise Invalid(
            f"volume subpath '{subpath}' does not exist in the volume {volume}: make it first"
        ) from None
    finally:
        os.close(root)


def may_have_content(parts: Parts, image: Image, target: str) -> bool:
    """Whether a layer has something at `target`, or a symlink on the way that only a mount can tell."""
    names = target.strip("/").split("/")
    for layer in parts.images.layer_paths(image):
        path = os.path.join(parts.images.layers_dir, layer)
        for name in names:
            path = os.path.join(path, name)
            if os.path.islink(path):
                return True
            if not os.path.lexists(path):
                break
        else:
            return True
    return False


async def _copy_up(parts: Parts, image: Image, target: str, destination: Path) -> None:
    with os.scandir(destination) as entries:
        if any(True for _ in entries):
            return
    tree = OverlayTree(lower=parts.images.layer_paths(image), layers_dir=parts.images.layers_dir)
    await copy_up(tree, target, destination)
