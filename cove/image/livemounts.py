"""Attach a mount to a running container, and detach one: in a worker that has entered its mount namespace.

The container runs meanwhile and may exchange directories and links at any instant. A target is walked to by
descriptors, through no symlink, and after the attaching once more: a mount that isn't at its name then is taken back.
A mount is detached only if its id is the recorded one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct

from cove.image import sandbox
from cove.image.jobs import AttachMount, DetachMounts, MountAttached
from cove.image.sandbox import O_PATH, RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2
from cove.image.tarformat import show_name
from cove.model.errors import Conflict, HostError, Invalid

SYSTEM_CALLS = ("move_mount", "umount2")
CAPABILITIES = (*sandbox.FILE_CAPABILITIES, sandbox.CAP_SYS_ADMIN)

_STRICT = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_SYS_MOVE_MOUNT = 429  # the same number on every architecture
_FROM_EMPTY_PATH, _TO_EMPTY_PATH = 0x4, 0x40
_AT_EMPTY_PATH = 0x1000
_STATX_MNT_ID, _STATX_MNT_ID_UNIQUE, _ATTR_MOUNT_ROOT = 0x1000, 0x4000, 0x2000
_KERNEL_FILES = {
    0x9FA0: "proc",
    0x62656572: "sysfs",
    0x27E0EB: "cgroup",
    0x63677270: "cgroup2",
    0x1CD1: "devpts",
}

_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """What is kept of the host when the container's mount namespace is entered: this process's own /proc entry."""

    def __init__(self) -> None:
        self._proc = os.open("/proc/self", O_PATH | os.O_DIRECTORY)
        self._own = os.readlink("ns/mnt", dir_fd=self._proc)

    def enter(self, pidfd: int) -> None:
        """Raises Conflict where the process was none of a container, for its number had passed on."""
        sandbox.join_mount_namespace(pidfd)
        if os.readlink("ns/mnt", dir_fd=self._proc) == self._own:
            raise Conflict("the container has just stopped: try again")
        os.chdir("/")

    def detach(self, mount: int) -> None:
        """umount2(2) of the mount that a descriptor is the root of. Raises OSError."""
        os.chdir(self._proc)
        _check(_libc.umount2(b"fd/%d" % mount, sandbox.MNT_DETACH), "detach a mount")


def attach(job: AttachMount, namespace: Namespace) -> MountAttached:
    """Attach the tree. Raises Invalid for a target that can't be, HostError."""
    is_directory = stat.S_ISDIR(os.fstat(job.tree).st_mode)
    try:
        target = _walk(job.target, make=True, is_directory=is_directory)
    except FileNotFoundError:
        raise _moved(job.target) from None
    _check_target(target, job.target)
    if stat.S_ISDIR(os.fstat(target).st_mode) != is_directory:
        kinds = ("a directory", "a file") if is_directory else ("a file", "a directory")
        raise Invalid(
            f"mount {job.target}: the source is {kinds[0]} and the target {kinds[1]}: they have to be alike"
        )
    flags = _FROM_EMPTY_PATH | _TO_EMPTY_PATH
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOVE_MOUNT),
        ctypes.c_int(job.tree),
        b"",
        ctypes.c_int(target),
        b"",
        ctypes.c_uint(flags),
    )
    if result < 0 and ctypes.get_errno() == errno.ENOENT:
        raise _moved(job.target)
    _check(result, f"mount {job.target}")
    mount_id, _ = _identify(job.tree)
    try:
        found, _ = _identify(_walk(job.target, make=False, is_directory=is_directory))
    except (OSError, Invalid):
        found = 0
    if found != mount_id:
        namespace.detach(job.tree)
        raise _moved(job.target)
    return MountAttached(mount_id=mount_id)


def _moved(target: str) -> Conflict:
    return Conflict(f"mount {target}: the target was moved away meanwhile: try again")


def detach(job: DetachMounts, namespace: Namespace) -> None:
    """Detach the mounts, all or, where one isn't the recorded one, none. Raises Conflict, Invalid."""
    found = []
    for target, mount_id in job.mounts.items():
        try:
            place = _walk(target, make=False, is_directory=True)
        except OSError as error:
            raise Conflict(
                f"mount {target}: {(error.strerror or '').lower()}: it isn't at its place any more"
            ) from None
        if _identify(place) != (mount_id, True):
            raise Conflict(
                f"mount {target}: what is mounted there now isn't what was added: it stays until a restart"
            )
        found.append(place)
    for place in found:
        namespace.detach(place)


def _walk(target: str, *, make: bool, is_directory: bool) -> int:
    """A descriptor of the target, the mount on top of it. Raises OSError, Invalid for a symlink on the way."""
    above = os.open("/", O_PATH | os.O_DIRECTORY)
    parts = os.fsencode(target).strip(b"/").split(b"/")
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        try:
            below = _open(above, part)
        except FileNotFoundError:
            if not make:
                raise
            _make(above, part, target, is_directory=is_directory or not last)
            below = _open(above, part)
        os.close(above)
        above = below
        mode = os.fstat(above).st_mode
        if stat.S_ISLNK(mode):
            raise _refuse_link(target, part)
        if not last and not stat.S_ISDIR(mode):
            raise Invalid(
                f"mount {target}: {show_name(part)} on the way is no directory: name another target"
            )
    return above


def _open(above: int, part: bytes) -> int:
    return openat2(above, part, O_PATH | os.O_NOFOLLOW, _STRICT)


def _refuse_link(target: str, part: bytes) -> Invalid:
    return Invalid(
        f"mount {target}: {show_name(part)} is a symlink, which is not followed in a running container: "
        "name the path that it leads to"
    )


def _make(above: int, part: bytes, target: str, *, is_directory: bool) -> None:
    try:
        if is_directory:
            os.mkdir(part, 0o755, dir_fd=above)
        else:
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o644, dir_fd=above))
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno == errno.EROFS:
            raise Invalid(
                f"mount {target}: the target isn't there, and its place is read-only: name one that is there"
            ) from None
        raise HostError(f"mount {target}: the target can't be made: {error.strerror}") from None


def _check_target(place: int, target: str) -> None:
    if _identify(place)[1]:
        raise Invalid(f"mount {target}: something is mounted there already: name another target")
    buffer = ctypes.create_string_buffer(256)  # struct statfs
    _check(_libc.fstatfs(place, buffer), f"mount {target}")
    (kind,) = struct.unpack_from("@l", buffer)
    if kind in _KERNEL_FILES:
        raise Invalid(
            f"mount {target}: the target is in a {_KERNEL_FILES[kind]} file system: name another one"
        )


def _identify(place: int) -> tuple[int, bool]:
    """The mount's id, unique for this boot from Linux 6.8 on, and whether the descriptor is its root. statx(2)."""
    buffer = ctypes.create_string_buffer(256)
    mask = _STATX_MNT_ID | _STATX_MNT_ID_UNIQUE
    _check(_libc.statx(place, b"", _AT_EMPTY_PATH, mask, buffer), "look at a mount")
    given, _, attributes = struct.unpack_from("=IIQ", buffer)
    if not given & mask:
        raise HostError("this kernel tells no ids of mounts: that needs Linux 5.8")
    (mount_id,) = struct.unpack_from("=Q", buffer, 0x90)
    return int(mount_id), bool(attributes & _ATTR_MOUNT_ROOT)


def _check(result: int, what: str) -> None:
    if result < 0:
        raise HostError(f"{what}: {os.strerror(ctypes.get_errno())}")
