"""A container's writable layer: the directories that overlayfs needs.

Owns `upper`, `work` and `merged` below a container's directory. They are removed with that directory,
by the trash.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from cove.model.errors import HostError


class WritableLayer(msgspec.Struct, frozen=True):
    """Host paths of one container's layer."""

    upper: Path  # what the container changed
    work: Path  # overlayfs's own; on the same filesystem as upper, and empty before a mount
    merged: Path  # where the root is mounted, in the container's mount namespace only


def writable_layer(container_dir: Path) -> WritableLayer:
    """Where a container's layer lies. Touches nothing."""
    return WritableLayer(container_dir / "upper", container_dir / "work", container_dir / "merged")


def prepare_writable(container_dir: Path, *, root_mode: int = 0o755) -> WritableLayer:
    """Make the layer in an existing container directory; parts that are there already are kept.

    The mounted root takes its mode and owner from `upper`, not from the image: `root_mode` is what "/"
    will have. Raises HostError.
    """
    layer = writable_layer(container_dir)
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
