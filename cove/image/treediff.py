"""What differs between the files of two images. Inside a worker.

Both trees are walked side by side, a directory at a time. A directory that consists of the same layers in both is the
same and isn't entered, nor is a file of the same layer; other files of one size are compared byte by byte.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

from cove.image.extract import wanted_attribute
from cove.image.stack import Directory, Item, Stack, shown
from cove.image.tooljobs import Compared, FileChange

_CHANGES_MAX = 100_000
_PIECE = 1 << 20


class _Tree:
    def __init__(self, roots: Sequence[int], names: Sequence[str]) -> None:
        self.stack = Stack(roots)
        self.names = names

    def read(self, directory: Directory | None) -> dict[bytes, Item]:
        if directory is None:
            return {}
        return {item.name: item for item in self.stack.read(directory) if not item.whiteout}

    def layers_of(self, directory: Directory) -> list[str]:
        return [self.names[layer] for layer in directory.layers]


def compare(
    first: tuple[Sequence[int], Sequence[str]], second: tuple[Sequence[int], Sequence[str]]
) -> Compared:
    """Two stacks: their layers' descriptors and names, lowest first."""
    changes: list[FileChange] = []
    truncated = False
    for change in _changes(_Tree(*first), _Tree(*second)):
        if len(changes) == _CHANGES_MAX:
            truncated = True
            break
        changes.append(change)
    changes.sort(key=lambda change: change.path)
    return Compared(changes=tuple(changes), truncated=truncated)


def _changes(old: _Tree, new: _Tree) -> Iterator[FileChange]:
    waiting: list[tuple[Directory | None, Directory | None]] = [(old.stack.root, new.stack.root)]
    while waiting:
        before, after = waiting.pop()
        if before and after and old.layers_of(before) == new.layers_of(after):
            continue
        was, now = old.read(before), new.read(after)
        for name in sorted(was.keys() | now.keys()):
            one, other = was.get(name), now.get(name)
            if (change := _change(old, one, new, other)) is not None:
                yield change
            below = (one.below if one else None, other.below if other else None)
            if below[0] or below[1]:
                waiting.append(below)


def _change(old: _Tree, one: Item | None, new: _Tree, other: Item | None) -> FileChange | None:
    if one is None or other is None:
        found = one or other
        assert found is not None
        size = _size(found)
        return FileChange(
            path=shown(found.path),
            kind="removed" if one else "added",
            type=_type(found),
            size_before=size if one else 0,
            size_after=0 if one else size,
        )
    if one.below is None and other.below is None and old.names[one.layer] == new.names[other.layer]:
        return None  # the very same file
    what = _differences(old, one, new, other)
    if not what:
        return None
    return FileChange(
        path=shown(other.path),
        kind="changed",
        type=_type(other),
        what=tuple(what),
        size_before=_size(one),
        size_after=_size(other),
    )


def _differences(old: _Tree, one: Item, new: _Tree, other: Item) -> list[str]:
    before, after = one.status, other.status
    if stat.S_IFMT(before.st_mode) != stat.S_IFMT(after.st_mode):
        return ["type"]
    what = []
    if stat.S_ISREG(after.st_mode) and (before.st_size != after.st_size or not _equal(old, one, new, other)):
        what.append("content")
    if stat.S_ISLNK(after.st_mode) and _target(old, one) != _target(new, other):
        what.append("target")
    if before.st_rdev != after.st_rdev:
        what.append("device")
    if not stat.S_ISLNK(after.st_mode) and stat.S_IMODE(before.st_mode) != stat.S_IMODE(after.st_mode):
        what.append("mode")
    if (before.st_uid, before.st_gid) != (after.st_uid, after.st_gid):
        what.append("owner")
    if stat.S_ISREG(after.st_mode) or stat.S_ISDIR(after.st_mode):
        if _attributes(old, one) != _attributes(new, other):
            what.append("attributes")
        if stat.S_ISREG(after.st_mode) and before.st_mtime_ns != after.st_mtime_ns:
            what.append("time")
    return what


def _equal(old: _Tree, one: Item, new: _Tree, other: Item) -> bool:
    if (one.status.st_dev, one.status.st_ino) == (other.status.st_dev, other.status.st_ino):
        return True  # one file by two names (dedupe)
    first = old.stack.open(one.layer, one.path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        second = new.stack.open(other.layer, other.path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            while piece := os.read(first, _PIECE):
                if os.read(second, _PIECE) != piece:
                    return False
            return not os.read(second, 1)
        finally:
            os.close(second)
    finally:
        os.close(first)


def _target(tree: _Tree, item: Item) -> bytes:
    fd = tree.stack.open(item.layer, item.path, os.O_PATH | os.O_NOFOLLOW)
    try:
        return os.readlink(b"", dir_fd=fd)
    finally:
        os.close(fd)


def _attributes(tree: _Tree, item: Item) -> dict[str, bytes]:
    fd = tree.stack.open(item.layer, item.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return {name: os.getxattr(fd, name) for name in os.listxattr(fd) if wanted_attribute(name)}
    except OSError:
        return {}  # the file system has none
    finally:
        os.close(fd)


def _size(item: Item) -> int:
    return item.status.st_size if stat.S_ISREG(item.status.st_mode) else 0


def _type(item: Item) -> str:
    return {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "directory",
        stat.S_IFLNK: "link",
        stat.S_IFIFO: "fifo",
    }.get(stat.S_IFMT(item.status.st_mode), "device")
