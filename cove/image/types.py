"""The values that cross this room's border: limits, events, trees, what a path is. No I/O."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cove.model.container import MountPoint

MIB = 1 << 20
GIB = 1 << 30


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on what one stranger's archive may ask for; sizes in bytes."""

    manifest_bytes: int = 4 * MIB  # one configuration, manifest or index
    metadata_bytes: int = 64 * MIB  # all of them in one archive
    layers: int = 127  # overlayfs takes its options in one page
    archive_entries: int = 20_000  # members of the outer archive
    layer_entries: int = 4_000_000  # members of one layer
    path_bytes: int = 4095  # PATH_MAX, less its NUL
    header_bytes: int = 1 * MIB  # extended headers of one member
    layer_bytes: int = 0  # one unpacked layer; 0: what is free on the disk
    expansion: int = 400  # unpacked size over packed size, checked from 256 MiB on
    reserve_bytes: int = 64 * MIB  # left free on the disk


class LayerProgress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """Bytes of one layer read so far; `total` is its size in the archive."""

    id: str  # 12 hex digits, or the layer's place in the archive while its digest isn't known
    current: int
    total: int


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag="loaded"):
    """One image is in: under a name, or without one (`name` is "")."""

    image_id: str
    name: str = ""

    @property
    def text(self) -> str:
        """Docker's line for it, without the newline."""
        return f"Loaded image: {self.name}" if self.name else f"Loaded image ID: {self.image_id}"


LoadEvent = LayerProgress | Loaded


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """What an image made from a container says of itself; `config` is its OCI configuration's `config` object."""

    config: dict[str, Any]
    comment: str = ""
    author: str = ""
    created_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A container that was made from an image."""

    container_id: str
    running: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """One line of what `rmi` did: a name taken off, or an image gone."""

    untagged: str = ""
    deleted: str = ""


class PathStat(msgspec.Struct, frozen=True, kw_only=True):
    """What `X-Docker-Container-Path-Stat` says of a path. `mode` is a Go os.FileMode."""

    name: str
    size: int
    mode: int
    mtime_ns: int
    link_target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningTree:
    """The files of a running container: its mount namespace, entered by a pidfd of `pid`."""

    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayTree:
    """The files of a container that doesn't run; mounted in the worker's own namespace.

    `lower`: lowest first, relative to `layers_dir` (as `Images.layer_paths` gives them). Without `upper`
    the tree is read-only. `mounts`: the container's binds and volumes; a tmpfs has no content to show.
    """

    lower: Sequence[str]
    layers_dir: Path
    upper: Path | None = None
    work: Path | None = None
    mounts: Sequence[MountPoint] = ()


Tree = RunningTree | OverlayTree


def go_file_mode(mode: int) -> int:
    """A Linux st_mode as Go's os.FileMode number (pkg.go.dev/io/fs#FileMode)."""
    go = mode & 0o777
    go |= {
        stat.S_IFDIR: 1 << 31,
        stat.S_IFLNK: 1 << 27,
        stat.S_IFBLK: 1 << 26,
        stat.S_IFCHR: 1 << 26 | 1 << 21,
        stat.S_IFIFO: 1 << 25,
        stat.S_IFSOCK: 1 << 24,
    }.get(stat.S_IFMT(mode), 0)
    for bit, go_bit in ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20)):
        if mode & bit:
            go |= go_bit
    return go
