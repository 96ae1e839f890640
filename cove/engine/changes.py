"""What a container changed in its files (`docker diff`): its writable layer against the image's layers.

Runs in a thread. Every directory is opened beneath the layer it belongs to, without following a symlink and
without entering a mount, so that nothing a container makes there leads the daemon elsewhere. What counts as a change
is what it counts for Docker (moby, go-archive/changes.go): a file whose content was opened for
writing and left as it was doesn't; a directory does when something below it changed; of what was added or
deleted each file, or the top of the deleted tree, is told. The overlay format's whiteouts and
opaque directories are those of the kernel's Documentation/filesystems/overlayfs.rst.

What Cove itself puts in the way of a mount (/dev, /etc/hosts …) isn't the container's doing and is left out.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from cove.image.overlayfs import opaque_attribute
from cove.model.errors import HostError
from cove.storage.beneath import open_beneath

MODIFIED, ADDED, DELETED = 0, 1, 2

MAX_CHANGES = 1_000_000  # a container can make any number of files; this is some 200 MB of answer
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
MOUNT_POINTS = frozenset(
    "/dev /dev/console /dev/mqueue /dev/pts /dev/shm /proc /sys /etc /etc/hostname /etc/hosts /etc/resolv.conf".split()
)


class Change(NamedTuple):
    path: str  # absolute, in the container
    kind: int


class _Directory(NamedTuple):
    """A directory of the writable layer that is to be looked at; `lowers` are the layers it merges with."""

    path: str  # relative to every layer; "." is the root
    lowers: tuple[int, ...]  # highest first
    opaque: bool  # what the lower layers have in it isn't seen


def list_changes(upper: Path, layers: Sequence[Path]) -> list[Change]:
    """Every change, ordered by path. `layers` are the image's, highest first.

    Raises HostError above MAX_CHANGES.
    """
    with ExitStack() as opened:
        root = open_root(upper, opened)
        lowers = tuple(open_root(layer, opened) for layer in layers)
        found: dict[str, int] = {}
        for change in _walk(root, lowers):
            found[change.path] = change.kind
            if len(found) > MAX_CHANGES:
                raise HostError(
                    f"the container changed more than {MAX_CHANGES} files: copy them out with docker cp instead"
                )
        hidden = {path for path in MOUNT_POINTS if found.get(path) == ADDED}
        busy = {os.path.dirname(path) for path in found if path not in hidden}
        for path in sorted(hidden, reverse=True):  # a directory goes once nothing of the container is in it
            if path in busy:
                busy.add(os.path.dirname(path))
            else:
                del found[path]
        for path in [path for path in found if path not in hidden]:
            _mark_parents(path, found)
        return [Change(path, found[path]) for path in sorted(found)]


def _mark_parents(path: str, found: dict[str, int]) -> None:
    parent = os.path.dirname(path)
    while parent != "/" and parent not in found:
        found[parent] = MODIFIED
        parent = os.path.dirname(parent)


def open_root(path: Path, opened: ExitStack) -> int:
    """A layer's directory, open until `opened` closes. Raises HostError."""
    try:
        descriptor = os.open(path, _DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"the layer {path} can't be read: {error.strerror}") from error
    opened.callback(os.close, descriptor)
    return descriptor


def _walk(root: int, lowers: tuple[int, ...]) -> Iterator[Change]:
    """Changes of single entries; what follows from them for directories above is the caller's."""
    todo = [_Directory(".", lowers, False)]
    while todo:
        directory = todo.pop()
        try:
            descriptor = open_beneath(root, directory.path, _DIRECTORY)
        except OSError:
            continue  # gone since, or deeper than a path can name
        try:
            seen = set()
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    seen.add(entry.name)
                    try:
                        status = os.stat(entry.name, dir_fd=descriptor, follow_symlinks=False)
                    except OSError:
                        continue
                    yield from _entry(descriptor, entry.name, status, directory, todo)
            if directory.opaque:
                for name in _names_below(directory):
                    if name not in seen and _find(directory, name) is not None:
                        yield Change(_shown(directory.path, name), DELETED)
        finally:
            os.close(descriptor)


def _entry(
    descriptor: int, name: str, status: os.stat_result, directory: _Directory, todo: list[_Directory]
) -> Iterator[Change]:
    path = _shown(directory.path, name)
    before = _find(directory, name)
    if _is_whiteout(status):
        if before is not None:
            yield Change(path, DELETED)
        return
    is_directory = stat.S_ISDIR(status.st_mode)
    if before is None:
        yield Change(path, ADDED)
    elif differs(before, status):
        yield Change(path, MODIFIED)
    if is_directory:
        relative = f"{directory.path}/{name}"
        lowers = tuple(_lowers_of(directory.lowers, relative)) if before is not None else ()
        todo.append(_Directory(relative, lowers, bool(lowers) and _is_opaque(descriptor, name)))


def _shown(directory: str, name: str) -> str:
    """The path as JSON can hold it: bytes that aren't UTF-8 become U+FFFD."""
    path = f"{directory}/{name}".removeprefix(".")
    return os.fsencode(path).decode(errors="replace")


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(descriptor: int, name: str) -> bool:
    try:
        inner = open_beneath(descriptor, name, _DIRECTORY)
    except OSError:
        return False
    try:
        return is_opaque(inner)
    finally:
        os.close(inner)


def is_opaque(directory: int) -> bool:
    """Whether an open directory hides what lower layers have in it."""
    try:
        return os.getxattr(directory, opaque_attribute()) in (b"y", b"x")
    except OSError:
        return False  # no such attribute


def differs(before: os.stat_result, now: os.stat_result) -> bool:
    """Whether an entry was changed, by what lstat(2) says of it in the image and now."""
    same = (before.st_mode, before.st_uid, before.st_gid, before.st_rdev)
    if same != (now.st_mode, now.st_uid, now.st_gid, now.st_rdev):
        return True
    if stat.S_ISDIR(now.st_mode):
        return False
    return before.st_size != now.st_size or not _same_time(before.st_mtime_ns, now.st_mtime_ns)


def _same_time(one_ns: int, other_ns: int) -> bool:
    """Archives may hold whole seconds only."""
    if one_ns == other_ns:
        return True
    second = 10**9
    return one_ns // second == other_ns // second and (one_ns % second == 0 or other_ns % second == 0)


# --- the lower layers -----------------------------------------------------------------------------


def _find(directory: _Directory, name: str) -> os.stat_result | None:
    """What the image has under a name in this directory, or None."""
    for layer in directory.lowers:
        try:
            descriptor = open_beneath(layer, directory.path, _DIRECTORY)
        except OSError:
            continue
        try:
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        except OSError:
            continue
        finally:
            os.close(descriptor)
        return None if _is_whiteout(status) else status
    return None


def _lowers_of(layers: Iterable[int], path: str) -> Iterator[int]:
    """The layers whose directory at `path` is seen: down to the first that hides those below it."""
    for layer in layers:
        try:
            descriptor = open_beneath(layer, path, _DIRECTORY)
        except FileNotFoundError:
            continue
        except OSError:
            return  # a whiteout, or a file: it hides the rest
        try:
            yield layer
            if os.getxattr(descriptor, opaque_attribute()) in (b"y", b"x"):
                return
        except OSError:
            continue  # no such attribute
        finally:
            os.close(descriptor)


def _names_below(directory: _Directory) -> set[str]:
    found: set[str] = set()
    for layer in directory.lowers:
        try:
            descriptor = open_beneath(layer, directory.path, _DIRECTORY)
        except OSError:
            continue
        try:
            found.update(os.listdir(descriptor))
        finally:
            os.close(descriptor)
    return found
