"""Clones the mount trees that a plan asks for, and looks at where mounts propagate.

They are cloned in the host's mount namespace, by whoever has the rights of the source's owner, and handed to
cove-init, which attaches them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
import threading
from collections.abc import Sequence
from typing import NamedTuple

from cove.model.container import MountPoint
from cove.model.errors import HostError, Invalid, Unavailable
from cove.runtime import users
from cove.runtime.idmap import idmap_tree, open_user_namespace
from cove.runtime.plan_inputs import Slot

_SYS_OPEN_TREE, _SYS_MOUNT_SETATTR = 428, 442  # the same numbers on every architecture
_OPEN_TREE_CLONE, _AT_RECURSIVE, _AT_EMPTY_PATH = 1, 0x8000, 0x1000
_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
_AT_FDCWD = -100
_ATTR_RDONLY = 0x1
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_MS_RDONLY, _MS_REC, _MS_PRIVATE = 0x1, 0x4000, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def detach_mounts(path: str) -> None:
    """umount2(2) with MNT_DETACH: what is mounted at `path`, and below; nothing there is fine. Raises OSError."""
    if _libc.umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW) < 0:
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):
            raise OSError(number, os.strerror(number), path)


def open_tree(path: str, *, recursive: bool, subpath: str = "") -> int:
    """A detached clone of the mounts at `path` (open_tree(2)), a peer of theirs; the caller closes it.

    `subpath` is looked up with the directory `path` as the root, so that no symlink there leads outside, at this
    moment: whoever writes to the directory may change it at any time.

    A path below /proc/PID/root is looked up in that process's mount namespace, which open_tree(2) demands, by a
    thread that enters it; symlinks there are refused. Raises OSError.
    """
    if subpath:
        root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            place = users.open_in_root(root, subpath, os.O_PATH)
        finally:
            os.close(root)
        return _clone_place(place, recursive, subpath)
    match = re.fullmatch(r"/proc/([0-9]+)/root(/.*)", path)
    if match is None:
        return _clone_tree(path, recursive, symlinks=True)
    namespace = os.open(f"/proc/{match[1]}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    answer: list[int | OSError] = []
    try:
        thread = threading.Thread(target=_clone_in, args=(namespace, match[2], recursive, answer))
        thread.start()
        thread.join()
    finally:
        os.close(namespace)
    if isinstance(answer[0], OSError):
        raise answer[0]
    return answer[0]


def open_live(mount: MountPoint) -> int:
    """The tree of a bind or a volume that a running container is to get, private, read-only as a start would make it;
    the caller closes it. Raises Invalid, Unavailable."""
    try:
        tree = open_tree(mount.source, recursive=mount.recursive, subpath=mount.subpath)
        try:
            _set_attributes(tree, 0, _MS_PRIVATE, recursive=True)
            if mount.readonly:
                _set_attributes(
                    tree, _ATTR_RDONLY, 0, recursive=mount.recursive and mount.readonly_below != "no"
                )
        except BaseException:
            os.close(tree)
            raise
        return tree
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise Unavailable(f"mount {mount.target}: on a running container it needs Linux 5.12") from None
        raise Invalid(
            f"mount {mount.target}: source {mount.source}: {(error.strerror or '').lower()}"
        ) from None


def _set_attributes(tree: int, to_set: int, propagation: int, *, recursive: bool) -> None:
    """mount_setattr(2)."""
    attributes = struct.pack("=4Q", to_set, 0, propagation, 0)
    bits = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    call = (ctypes.c_long(_SYS_MOUNT_SETATTR), ctypes.c_int(tree), b"", ctypes.c_uint(bits))
    _check(_libc.syscall(*call, attributes, ctypes.c_size_t(len(attributes))), "mount_setattr")


def open_slot(slot: Slot) -> int:
    """The descriptor for a plan's slot of kind "tree", idmapped where it asks for that; the caller closes it.
    Raises OSError, and Unavailable where an idmapped mount can't be."""
    if slot.layers:
        return _open_layers(slot)
    tree = open_tree(slot.path, recursive=slot.recursive, subpath=slot.subpath)
    if not slot.uid_mappings:
        return tree
    try:
        namespace = open_user_namespace(slot.uid_mappings, slot.gid_mappings)
        try:
            idmap_tree(tree, namespace, recursive=slot.idmap_recursive)
        finally:
            os.close(namespace)
    except OSError as error:
        os.close(tree)
        raise Unavailable(_explain_idmap(slot, error)) from None
    except BaseException:
        os.close(tree)
        raise
    return tree


def _open_layers(slot: Slot) -> int:
    """The overlay of an image's layers, mounted by a thread in a mount namespace that ends with it."""
    if slot.uid_mappings:
        raise Unavailable(
            "type=image: a container in a user namespace of its own can't have it: use a volume"
        )
    answer: list[int | OSError] = []
    thread = threading.Thread(target=_mount_layers, args=(slot, answer))
    thread.start()
    thread.join()
    if isinstance(answer[0], OSError):
        raise HostError(f"an image's files can't be mounted: {answer[0].strerror}")
    return answer[0]


def _mount_layers(slot: Slot, answer: list[int | OSError]) -> None:
    """Runs in a thread of its own. A single layer is no overlay: overlayfs wants two without an upper one."""
    try:
        _check(_libc.unshare(_CLONE_FS | _CLONE_NEWNS), slot.path)
        _check(_libc.mount(b"", b"/", b"", ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "/")
        os.chdir(slot.path)
        root = slot.layers[0]
        if len(slot.layers) > 1:
            root = slot.path
            options = "lowerdir=" + ":".join(reversed(slot.layers)) + (",userxattr" if slot.userxattr else "")
            flags = ctypes.c_ulong(_MS_RDONLY)
            _check(_libc.mount(b"overlay", os.fsencode(root), b"overlay", flags, options.encode()), root)
        answer.append(_clone_below(root, slot.subpath))
    except OSError as error:
        answer.append(error)


def _clone_below(root: str, subpath: str) -> int:
    place = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if subpath:
        above, place = place, -1
        try:
            place = users.open_in_root(above, subpath, os.O_PATH)
        finally:
            os.close(above)
    return _clone_place(place, False, root)


# since when a file system can be idmapped (FS_ALLOW_IDMAP)
_IDMAPPED_SINCE = {"ext4": "5.12", "vfat": "5.12", "xfs": "5.12", "btrfs": "5.15", "tmpfs": "6.3"}


def _explain_idmap(slot: Slot, error: OSError) -> str:
    trouble = f"{slot.path} can't be an idmapped mount"
    if error.errno == errno.ENOSYS:
        return f"{trouble}: that needs Linux 5.12"
    if error.errno == errno.EINVAL:
        mount = _find_mount(slot.path)
        since = _IDMAPPED_SINCE.get(mount.type)
        why = f"needs Linux {since}" if since else "can't be idmapped by this kernel"
        below = ", or what is mounted below it" if slot.idmap_recursive and slot.recursive else ""
        return f"{trouble}: its file system ({mount.type} at {mount.point}){below} {why}"
    return f"{trouble}: {(error.strerror or '').lower()}"


def _clone_in(namespace: int, path: str, recursive: bool, answer: list[int | OSError]) -> None:
    """Runs in a thread of its own, which ends with it: namespace and root are the thread's, descriptors are shared."""
    try:
        _check(_libc.unshare(_CLONE_FS), path)
        _check(_libc.setns(namespace, _CLONE_NEWNS), path)
        answer.append(_clone_tree(path, recursive, symlinks=False))
    except OSError as error:
        answer.append(error)


def _clone_tree(path: str, recursive: bool, *, symlinks: bool) -> int:
    place = users.open_in_root(_AT_FDCWD, path, os.O_PATH, symlinks=symlinks, in_root=False)
    return _clone_place(place, recursive, path)


def _clone_place(place: int, recursive: bool, path: str) -> int:
    """Takes the descriptor `place` over."""
    try:
        bits = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
        call = (ctypes.c_long(_SYS_OPEN_TREE), ctypes.c_int(place), ctypes.c_char_p(b""), ctypes.c_uint(bits))
        return _check(_libc.syscall(*call), path)
    finally:
        os.close(place)


def _check(result: int, path: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return int(result)


def check_propagation(mounts: Sequence[MountPoint]) -> None:
    """Refuse `:shared` and `:slave` where the source's mount doesn't propagate. Raises Invalid as Docker does."""
    for mount in mounts:
        kind = mount.propagation.removeprefix("r")
        if mount.kind in ("tmpfs", "image") or kind not in ("shared", "slave"):
            continue
        found = _find_mount(mount.source)
        wanted = ("shared:",) if kind == "shared" else ("shared:", "master:")
        if not any(field.startswith(wanted) for field in found.fields):
            noun = "a shared mount" if kind == "shared" else "a shared or slave mount"
            raise Invalid(
                f"path {mount.source} is mounted on {found.point} but it is not {noun}: "
                f"run mount --make-rshared {found.point} on the host first"
            )


class _Mount(NamedTuple):
    """`fields` are mountinfo's optional ones: shared:1, master:2."""

    point: str = ""
    fields: tuple[str, ...] = ()
    type: str = ""


def _find_mount(path: str) -> _Mount:
    """The mount that `path` lies on (proc_pid_mountinfo(5)). Symlinks in `path` are followed."""
    real = os.path.realpath(path)
    best = _Mount()
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            head, _, tail = line.partition(" - ")
            fields = head.split()
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
            inside = real == point or real.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best.point):  # of several at one place, the last one is on top
                best = _Mount(point, tuple(fields[6:]), tail.split(" ", 1)[0])
    return best
