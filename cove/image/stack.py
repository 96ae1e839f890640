"""A stack of layers as one tree, directory by directory: what overlayfs would show, and what it would hide.

Inside a worker, whose root is the layers' directory. The rules are overlayfs' (the kernel's overlayfs.rst): the
uppermost entry counts, directories merge until one is opaque, a character device 0:0 hides what is below. Nothing is
mounted: a part of a stack can be looked at as well, and what it hides of the rest stays visible as whiteouts. One
directory's names are in memory at a time, and its descriptors open.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from cove.image.overlayfs import opaque_attribute
from cove.image.sandbox import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from cove.model.errors import Invalid

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_DEPTH_MAX = 2048  # PATH_MAX has room for no more


class Directory(NamedTuple):
    """A directory of the stack, and the layers that it is in, uppermost first. `opaque`: nothing from below the
    stack is seen in it."""

    path: bytes
    layers: tuple[int, ...]
    opaque: bool = False


class Item(NamedTuple):
    """An entry as the stack shows it. A whiteout hides something below the stack, and nothing in it is shown."""

    path: bytes
    name: bytes
    layer: int  # counted from the lowest
    status: os.stat_result
    whiteout: bool = False
    below: Directory | None = None  # of a directory


class Hidden(NamedTuple):
    """An entry that nobody sees: a file, or a directory with all that is below it."""

    path: bytes
    layer: int
    by: int  # the layer that hides it
    how: str  # replaced or deleted


ROOT = b""


class Stack:
    """Layers by descriptor, lowest first."""

    def __init__(self, roots: Sequence[int]) -> None:
        self._roots = roots

    @property
    def root(self) -> Directory:
        return Directory(ROOT, tuple(range(len(self._roots) - 1, -1, -1)))

    def open(self, layer: int, path: bytes, flags: int) -> int:
        """Open a path in one layer. OSError."""
        return openat2(self._roots[layer], path or b".", flags, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)

    def read(self, directory: Directory, hidden: Callable[[Hidden], None] | None = None) -> list[Item]:
        """The entries of a directory by name; `hidden` is told of what they hide. OSError, Invalid."""
        if directory.path.count(b"/") > _DEPTH_MAX:
            raise Invalid(f"the image's directories are nested deeper than {_DEPTH_MAX}")
        opened: dict[int, int] = {}
        try:
            names: dict[bytes, list[int]] = {}
            for layer in directory.layers:
                opened[layer] = self.open(layer, directory.path, _DIRECTORY)
                for name in os.listdir(opened[layer]):
                    names.setdefault(os.fsencode(name), []).append(layer)
            return [
                self._item(directory, name, layers, opened, hidden) for name, layers in sorted(names.items())
            ]
        finally:
            for fd in opened.values():
                os.close(fd)

    def _item(
        self,
        directory: Directory,
        name: bytes,
        layers: list[int],
        opened: dict[int, int],
        hidden: Callable[[Hidden], None] | None,
    ) -> Item:
        path = directory.path + b"/" + name if directory.path else name
        top = layers[0]
        status = os.stat(name, dir_fd=opened[top], follow_symlinks=False)
        merged = [top]
        opaque = directory.opaque
        ended = not stat.S_ISDIR(status.st_mode)
        if not ended and _is_opaque(opened[top], name):
            ended = opaque = True
        whiteout = is_whiteout(status)
        above, deleted = top, whiteout
        for layer in layers[1:]:
            found = os.stat(name, dir_fd=opened[layer], follow_symlinks=False)
            if not ended and stat.S_ISDIR(found.st_mode):
                merged.append(layer)
                above = layer
                ended = _is_opaque(opened[layer], name)
                opaque = opaque or ended
                continue
            if not ended:
                ended = opaque = True
            if hidden is not None:
                hidden(Hidden(path, layer, above, "deleted" if deleted else "replaced"))
            above, deleted = layer, is_whiteout(found)
        below = Directory(path, tuple(merged), opaque) if stat.S_ISDIR(status.st_mode) else None
        return Item(path, name, top, status, whiteout, below)

    def walk(self, hidden: Callable[[Hidden], None] | None = None) -> Iterator[Item]:
        """Every entry, a directory before what is in it."""
        waiting = [self.root]
        while waiting:
            items = self.read(waiting.pop(), hidden)
            yield from items
            waiting += [item.below for item in reversed(items) if item.below is not None]

    def hidden_files(self, one: Hidden) -> Iterator[tuple[bytes, os.stat_result]]:
        """The files of what is hidden: itself, or those below it in its layer."""
        fd = self.open(one.layer, one.path, os.O_PATH | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        if not stat.S_ISDIR(status.st_mode):
            if not is_whiteout(status):
                yield one.path, status
            return
        alone = Stack(self._roots)
        waiting = [Directory(one.path, (one.layer,))]
        while waiting:
            for item in alone.read(waiting.pop()):
                if item.below is not None:
                    waiting.append(item.below)
                elif not item.whiteout:
                    yield item.path, item.status


def is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(directory: int, name: bytes) -> bool:
    fd = os.open(name, _DIRECTORY, dir_fd=directory)
    try:
        return os.getxattr(fd, opaque_attribute()) in (b"y", b"x")
    except OSError:
        return False  # no such attribute
    finally:
        os.close(fd)


def shown(path: bytes) -> str:
    """A path as JSON can hold it: bytes that aren't UTF-8 become U+FFFD."""
    return "/" + path.decode(errors="replace")
