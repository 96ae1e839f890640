"""What is opened on a file system: fanotify(7), by descriptor. Inside a worker.

A mark on an overlay's superblock (FAN_MARK_FILESYSTEM, Linux 4.20) sees every open on it, in any mount namespace, and
programs' interpreters, which the kernel opens itself. Each event has a descriptor of what was opened, and its
link in /proc says the path: within the root of the mount namespace that it was opened in. It takes CAP_SYS_ADMIN in
the first user namespace to make the mark, and nothing to read.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct

from cove.image.tooljobs import Recorded
from cove.model.errors import HostError, Unavailable

_FAN_CLOEXEC, _FAN_NONBLOCK, _FAN_UNLIMITED_QUEUE = 0x1, 0x2, 0x10
_FAN_OPEN, _FAN_OPEN_EXEC, _FAN_Q_OVERFLOW, _FAN_ONDIR = 0x20, 0x1000, 0x4000, 0x40000000
_FAN_MARK_ADD, _FAN_MARK_FILESYSTEM = 0x1, 0x100
_O_LARGEFILE, _O_NOATIME = 0o100000, 0o1000000
_EVENT = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata
_OVERLAYFS = 0x794C7630  # statfs(2)
_PATHS_MAX = 1_000_000
_UNOPENED = (errno.ENXIO, errno.ENODEV, errno.ENOENT, errno.ESTALE, errno.EACCES, errno.EPERM, errno.ETXTBSY)
_DELETED = b" (deleted)"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_init.argtypes = (ctypes.c_uint, ctypes.c_uint)
_libc.fanotify_mark.argtypes = (
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_uint64,
    ctypes.c_int,
    ctypes.c_char_p,
)


def open_group(tree: int) -> int:
    """Watch the overlay that the directory `tree` is on; the descriptor to read events from. Unavailable, HostError."""
    # O_NONBLOCK: opening a FIFO for its event must not wait for a writer.
    how = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | _O_LARGEFILE | _O_NOATIME
    group: int = _libc.fanotify_init(_FAN_CLOEXEC | _FAN_NONBLOCK | _FAN_UNLIMITED_QUEUE, how)
    if group < 0:
        number = ctypes.get_errno()
        if number in (errno.EPERM, errno.ENOSYS):
            raise Unavailable(
                "what a container opens can't be recorded here: fanotify takes CAP_SYS_ADMIN in the first user "
                "namespace, which a rootless daemon doesn't have"
            )
        raise HostError(f"fanotify_init: {os.strerror(number)}")
    mask = _FAN_OPEN | _FAN_OPEN_EXEC | _FAN_ONDIR
    if _libc.fanotify_mark(group, _FAN_MARK_ADD | _FAN_MARK_FILESYSTEM, mask, tree, b".") < 0:
        raise HostError(f"watch the container's root: {os.strerror(ctypes.get_errno())}")
    return group


def is_overlay(tree: int) -> bool:
    """Whether a directory is on an overlay: anything else may be the host's. fstatfs(2)."""
    buffer = ctypes.create_string_buffer(256)
    _libc.fstatfs(tree, buffer)
    return int.from_bytes(buffer.raw[: struct.calcsize("l")], "little") == _OVERLAYFS


def record(group: int, until: int) -> Recorded:
    """The paths of what is opened, until the socket `until` is at its end. HostError."""
    paths: set[bytes] = set()
    lost = False
    poll = select.poll()
    poll.register(group, select.POLLIN)
    poll.register(until, select.POLLIN | select.POLLRDHUP)
    ended = False
    while not ended:
        ended = any(fd == until for fd, _ in poll.poll())
        # What was opened before the end is in the queue by now.
        while events := _read(group):
            for mask, fd in events:
                if fd < 0:
                    lost = lost or bool(mask & _FAN_Q_OVERFLOW)
                    continue
                try:
                    path = os.readlink(b"/proc/self/fd/%d" % fd)
                finally:
                    os.close(fd)
                if path.endswith(_DELETED):
                    continue  # made and removed by the container
                if len(paths) < _PATHS_MAX:
                    paths.add(path)
                else:
                    lost = True
    return Recorded(opened=tuple(sorted(paths)), lost=lost)


def _read(group: int) -> list[tuple[int, int]]:
    """The masks and descriptors of waiting events; a read makes at most as many descriptors as it has room for."""
    try:
        data = os.read(group, 64 * _EVENT.size)
    except BlockingIOError:
        return []
    except OSError as error:
        # The descriptor of an event can't be made (a device's node, a file that went away): there is no path to keep.
        if error.errno in _UNOPENED:
            return [(_FAN_OPEN, -1)]
        raise HostError(f"read what was opened: {error.strerror}") from error
    found = []
    offset = 0
    while offset < len(data):
        length, _, _, _, mask, fd, _ = _EVENT.unpack_from(data, offset)
        found.append((mask, fd))
        offset += length
    return found
