"""Project quotas: limits on directory trees by the file system itself (ext4, xfs; quotactl(2), ioctl_fsxattr).

A tree's id lies in its own inodes, and is inherited by what is made below. So the trees are the record: an id is
taken while a tree has it, and `sweep` frees what a crash or a removal left. Ids of foreign trees are never taken:
one is given out only where nothing uses it and no limit is set, from a range of this data root's own.

Whoever may change a file's project (its owner, outside of a user namespace, with the ioctl) can take it out of the
limit: a quota stops what fills a disk, not a root process that means harm (docs/volumes.md).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_SYS_QUOTACTL_FD = 443  # Linux 5.14; the same number on every architecture
_PROJECT = 2
_GETQUOTA, _SETQUOTA, _GETNEXTQUOTA, _GETSTATE = 0x800007, 0x800008, 0x800009, 0x5808
_QIF_BLIMITS = 1
_BLOCK = 1024  # of a limit: QIF_DQBLKSIZE
_DQBLK = struct.Struct("=8QII")  # hard, soft, used, inodes: hard, soft, used, times; valid, id
_STATE_BYTES = 256
_PROJECT_ENFORCED = 1 << 5  # FS_QUOTA_PDQ_ENFD
_GETXATTR, _SETXATTR = 0x801C581F, 0x401C5820  # FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR
_FSXATTR = struct.Struct("=5I8x")  # flags, extent size, extents, project, copy-on-write extent size
_INHERIT = 0x200  # FS_XFLAG_PROJINHERIT
_RANGE = 1 << 16
_libc = ctypes.CDLL(None, use_errno=True)


class ProjectUsage(NamedTuple):
    used_bytes: int
    limit_bytes: int


class ProjectQuotas:
    """The projects of one data root. Blocking, but quick: nothing here waits for a disk's worth of work."""

    def __init__(self, root: int, first: int) -> None:
        self._root = root
        self._first = first
        self._taken: set[int] = set()

    @classmethod
    def find(cls, root: Path) -> ProjectQuotas | None:
        """None where the file system enforces no project quotas."""
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        state = ctypes.create_string_buffer(_STATE_BYTES)
        state[0] = b"\x01"  # FS_QSTATV_VERSION1
        try:
            _quotactl(descriptor, _GETSTATE, 0, state)
            (flags,) = struct.unpack_from("=H", state, 2)
        except OSError:
            flags = 0
        if not flags & _PROJECT_ENFORCED:
            os.close(descriptor)
            return None
        return cls(descriptor, 1 << 30 | (os.stat(root).st_ino & 0x3FFF) << 16)

    def close(self) -> None:
        os.close(self._root)

    def assign(self, directories: Iterable[Path], limit_bytes: int) -> int:
        """Put empty directories under one limit, with all that is made in them. Raises OSError."""
        directories = list(directories)
        for directory in directories:
            if os.stat(directory).st_dev != os.fstat(self._root).st_dev:
                raise OSError(errno.EXDEV, f"it is on another file system than the data root: {directory}")
        project = self._choose()
        self._taken.add(project)
        try:
            self.limit(project, limit_bytes)
            for directory in directories:
                _set_project(directory, project)
        except BaseException:
            self.free(project)
            raise
        return project

    def limit(self, project: int, limit_bytes: int) -> None:
        """Set a limit; 0 lifts it."""
        blocks = -(-limit_bytes // _BLOCK)
        record = ctypes.create_string_buffer(_DQBLK.pack(blocks, 0, 0, 0, 0, 0, 0, 0, _QIF_BLIMITS, 0))
        _quotactl(self._root, _SETQUOTA, project, record)

    def usage(self, project: int) -> ProjectUsage:
        record = ctypes.create_string_buffer(_DQBLK.size)
        _quotactl(self._root, _GETQUOTA, project, record)
        hard, _, used = _DQBLK.unpack(record.raw[: _DQBLK.size])[:3]
        return ProjectUsage(used, hard * _BLOCK)

    def free(self, project: int) -> None:
        """The tree is on its way out: no limit any more; the id is given out again once its last file is gone."""
        self._taken.discard(project)
        self.limit(project, 0)

    def sweep(self, trees: Iterable[Path]) -> None:
        """Learn which ids these trees have, and lift the limits of this data root's others."""
        self._taken = {project for project in map(project_of, trees) if project}
        project = self._first
        while True:
            record = ctypes.create_string_buffer(_DQBLK.size)
            try:
                _quotactl(self._root, _GETNEXTQUOTA, project, record)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ESRCH, errno.ENOSYS, errno.EINVAL):
                    return  # no more
                raise
            fields = _DQBLK.unpack(record.raw[: _DQBLK.size])
            found, hard = fields[9], fields[0]
            if not self._first <= found < self._first + _RANGE:
                return
            if hard and found not in self._taken:
                self.limit(found, 0)
            project = found + 1

    def _choose(self) -> int:
        for project in range(self._first, self._first + _RANGE):
            if project not in self._taken and self.usage(project) == (0, 0):
                return project
        raise OSError(errno.ENOSPC, "all project ids of this data root are taken")


def project_of(directory: Path) -> int:
    """A directory's project; 0: none, or no such directory."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return int(_FSXATTR.unpack(fcntl.ioctl(descriptor, _GETXATTR, bytes(_FSXATTR.size)))[3])
    except OSError:
        return 0
    finally:
        os.close(descriptor)


def _set_project(directory: Path, project: int) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flags, size, extents, _, copy = _FSXATTR.unpack(
            fcntl.ioctl(descriptor, _GETXATTR, bytes(_FSXATTR.size))
        )
        wanted = _FSXATTR.pack(flags | _INHERIT, size, extents, project, copy)
        fcntl.ioctl(descriptor, _SETXATTR, wanted)
    finally:
        os.close(descriptor)


def _quotactl(descriptor: int, command: int, number: int, address: ctypes.Array[ctypes.c_char]) -> None:
    call = ctypes.c_long((command << 8 | _PROJECT) & 0xFFFFFFFF)
    result = _libc.syscall(
        ctypes.c_long(_SYS_QUOTACTL_FD), ctypes.c_long(descriptor), call, ctypes.c_long(number), address
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
