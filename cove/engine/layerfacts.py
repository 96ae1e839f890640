"""What the daemon alone can see of a layer that becomes an image's: opaque directories, and what Cove put there.

Runs in a thread; opens everything beneath the layer, as changes.py does.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from cove.engine.changes import MOUNT_POINTS, differs, is_opaque, open_root
from cove.image.overlayfs import opaque_attribute
from cove.model.errors import HostError
from cove.storage.beneath import open_beneath

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
MAX_OPAQUE = 100_000


class LayerFacts(NamedTuple):
    """Paths relative to the layer, sorted; "" is the layer itself."""

    opaque: list[str]
    left_out: list[str]


def find_layer_facts(
    upper: Path, layers: Sequence[Path], points: Collection[str] = MOUNT_POINTS
) -> LayerFacts:
    """Look through a writable layer. `layers` are the image's, highest first; at `points` Cove mounted something.
    Raises HostError."""
    with ExitStack() as opened:
        root = open_root(upper, opened)
        lowers = [open_root(layer, opened) for layer in layers]
        return LayerFacts(_find_opaque(root), _find_left_out(root, lowers, points))


def settle_opaque(upper: Path, layers: Sequence[Path]) -> list[str]:
    """The directories that hide something of `layers`; others lose the mark, which the kernel gives to every new
    directory (fs/overlayfs/dir.c, ovl_create_upper): the layer may come to lie upon others. Raises HostError."""
    with ExitStack() as opened:
        root = open_root(upper, opened)
        lowers = [open_root(layer, opened) for layer in layers]
        kept = []
        for path in _find_opaque(root):
            if any(_status(lower, path or ".") is not None for lower in lowers):
                kept.append(path)
                continue
            try:
                directory = open_beneath(root, path or ".", _DIRECTORY)
                try:
                    os.removexattr(directory, opaque_attribute())
                finally:
                    os.close(directory)
            except OSError as error:
                raise HostError(f"{upper}/{path}: {error.strerror}") from error
        return kept


def _find_opaque(root: int) -> list[str]:
    found = []
    todo = ["."]
    while todo:
        path = todo.pop()
        try:
            directory = open_beneath(root, path, _DIRECTORY)
        except OSError:
            continue  # gone since
        try:
            if is_opaque(directory):
                found.append(path.removeprefix(".").removeprefix("/"))
            with os.scandir(directory) as entries:
                todo += [f"{path}/{entry.name}" for entry in entries if entry.is_dir(follow_symlinks=False)]
        finally:
            os.close(directory)
        if len(found) > MAX_OPAQUE:
            raise HostError(
                f"the container replaced more than {MAX_OPAQUE} directories of its image: copy its files out with "
                "docker export instead"
            )
    return sorted(found)


def _find_left_out(root: int, lowers: Sequence[int], points: Collection[str]) -> list[str]:
    """What Cove made to mount on: empty files and directories that the image lacks, and the directories around them
    that are as they are in the image."""
    found: set[str] = set()
    for path in sorted(points, key=lambda path: path.count("/"), reverse=True):
        relative = path.removeprefix("/")
        status = _status(root, relative)
        if status is None or not _is_bare(root, relative, status, found):
            continue
        before = next((known for lower in lowers if (known := _status(lower, relative)) is not None), None)
        if before is None or (stat.S_ISDIR(status.st_mode) and not differs(before, status)):
            found.add(relative)
    return sorted(found)


def _is_bare(root: int, path: str, status: os.stat_result, found: set[str]) -> bool:
    """Whether it's an empty file, or a directory with nothing in it but what is left out."""
    if stat.S_ISREG(status.st_mode):
        return status.st_size == 0
    if not stat.S_ISDIR(status.st_mode):
        return False
    try:
        directory = open_beneath(root, path, _DIRECTORY)
    except OSError:
        return False
    try:
        return not is_opaque(directory) and all(f"{path}/{name}" in found for name in os.listdir(directory))
    finally:
        os.close(directory)


def _status(root: int, path: str) -> os.stat_result | None:
    try:
        descriptor = open_beneath(root, path, os.O_PATH | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)
