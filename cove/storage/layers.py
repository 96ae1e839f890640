"""A container's writable layer: the directories that overlayfs needs, and what keeps them to a size.

Owns `upper`, `work` and `merged` below a container's directory. They are removed with that directory, by the trash.
A layer with a size has a project quota where the file system enforces these. Elsewhere `upper` and `work` lie
in an image, `layer.img`, which is mounted at `layer` from the container's creation until its removal, for `cp`, `diff`
and `commit` want its files, too; `ensure` mounts it again after a reboot.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from cove.model.errors import HostError, Unavailable
from cove.model.waiting import finish
from cove.storage.mount_process import mount
from cove.storage.mounter import unmount
from cove.storage.project_quota import ProjectQuotas, project_of
from cove.storage.sized_image import image_filesystem, make_image

LayerKind = Literal["", "project", "image"]


class WritableLayer(msgspec.Struct, frozen=True):
    """Host paths of one container's layer."""

    upper: Path  # what the container changed
    work: Path  # overlayfs's own; on the same filesystem as upper, and empty before a mount
    merged: Path  # where the root is mounted, in the container's mount namespace only


_IMAGE, _PLACE = "layer.img", "layer"


def writable_layer(container_dir: Path, kind: LayerKind = "") -> WritableLayer:
    """Where a container's layer lies. Touches nothing."""
    place = container_dir / _PLACE if kind == "image" else container_dir
    return WritableLayer(place / "upper", place / "work", container_dir / "merged")


def prepare_writable(container_dir: Path, *, root_mode: int = 0o755, kind: LayerKind = "") -> WritableLayer:
    """Make the layer in an existing container directory; parts that are there already are kept.

    The mounted root takes its mode and owner from `upper`, not from the image: `root_mode` is what "/"
    will have. Raises HostError.
    """
    layer = writable_layer(container_dir, kind)
    try:
        for path, mode in ((layer.upper, root_mode), (layer.work, 0o700), (layer.merged, 0o700)):
            try:
                os.mkdir(path, mode)
            except FileExistsError:
                continue
            if path is layer.upper:
                os.chmod(path, root_mode)  # the umask took bits off
    except OSError as error:
        raise HostError(f"the writable layer {container_dir} can't be made: {error.strerror}") from error
    return layer


class LayerUsage(NamedTuple):
    """How full a layer with a size is."""

    used_bytes: int
    limit_bytes: int

    @property
    def full(self) -> bool:
        """Less than a hundredth is left, or less than a file system's few blocks: writes fail, or are about to."""
        return self.limit_bytes - self.used_bytes < max(self.limit_bytes // 100, 64 << 10)


class Layers:
    """The writable layers of one daemon's containers."""

    def __init__(self, quotas: ProjectQuotas | None, *, images: bool) -> None:
        """`images`: an image can be mounted for containers (there are no user namespaces in the way)."""
        self._quotas = quotas
        self._images = images
        self._locks: dict[Path, asyncio.Lock] = {}

    def choose(self) -> LayerKind:
        """What will keep a layer to a size. Raises Unavailable."""
        if self._quotas is not None:
            return "project"
        if self._images:
            return "image"
        raise Unavailable(
            "HostConfig.StorageOpt: size in a user namespace needs project quotas: put the data root on ext4 or xfs, "
            "mounted with prjquota, or leave size out"
        )

    async def prepare(
        self, container_dir: Path, *, root_mode: int, kind: LayerKind, size_bytes: int
    ) -> WritableLayer:
        """Make a new container's layer. Raises HostError, Unavailable, Invalid."""
        if kind == "image":
            await make_image(container_dir / _IMAGE, size_bytes, "HostConfig.StorageOpt")
            os.mkdir(container_dir / _PLACE, 0o700)
            await self.ensure(container_dir, kind)
        layer = prepare_writable(container_dir, root_mode=root_mode, kind=kind)
        if kind == "project" and self._quotas is not None:
            try:
                self._quotas.assign((layer.upper, layer.work), size_bytes)
            except OSError as error:
                raise HostError(f"the quota of {container_dir} can't be set: {error.strerror}") from error
        return layer

    async def ensure(self, container_dir: Path, kind: LayerKind) -> None:
        """Have the layer's files there: mount its image where it isn't. Raises HostError."""
        if kind != "image" or os.path.ismount(container_dir / _PLACE):
            return
        async with self._locks.setdefault(container_dir, asyncio.Lock()):
            if not os.path.ismount(container_dir / _PLACE):
                name = f"the writable layer of {container_dir.name[:12]}"
                image = image_filesystem(container_dir / _IMAGE)
                await finish(mount(name, image, container_dir / _PLACE))

    async def take_down(self, container_dir: Path) -> None:
        """Before a container's directory goes into the trash, whatever its layer is; idempotent.

        The caller gives the directory up before it awaits anything else: who still looks at the files of a container
        that is being removed would mount its layer again, and in the trash nothing may be mounted.
        """
        place = container_dir / _PLACE
        if os.path.lexists(place):
            async with self._locks.setdefault(container_dir, asyncio.Lock()):
                with contextlib.suppress(OSError):
                    await finish(asyncio.to_thread(unmount, str(place)))
                self._locks.pop(container_dir, None)
        elif self._quotas is not None and (project := project_of(container_dir / "upper")):
            with contextlib.suppress(OSError):  # the next start sweeps
                self._quotas.free(project)

    def usage(self, container_dir: Path, kind: LayerKind) -> LayerUsage | None:
        """None for a layer without a size, or whose image isn't mounted."""
        try:
            if kind == "project" and self._quotas is not None:
                return LayerUsage(*self._quotas.usage(project_of(container_dir / "upper")))
            if kind == "image" and os.path.ismount(container_dir / _PLACE):
                found = os.statvfs(container_dir / _PLACE)
                total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
                return LayerUsage(total - free, total)
        except OSError:
            return None
        return None


def free_trash(trash: Path) -> None:
    """At a daemon's start: nothing is mounted in what was given up. Raises OSError."""
    for entry in os.scandir(trash):
        if entry.is_dir(follow_symlinks=False) and os.path.ismount(place := Path(entry.path, _PLACE)):
            unmount(str(place))
