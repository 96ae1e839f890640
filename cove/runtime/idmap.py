"""Idmapped mounts: a mount that shows other owners than those on disk (mount_setattr(2), MOUNT_ATTR_IDMAP).

The kernel takes the mapping from a user namespace: files of an id inside are shown as owned by the id outside. Such
a namespace is made by a process that enters one and does nothing else; it lives on by its descriptor.
Synchronous, some milliseconds for the first of a mapping; any thread.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence

from cove.model.errors import HostError, Unavailable
from cove.runtime.oci import IdMapping
from cove.runtime.usermaps import write_maps

_SYS_MOUNT_SETATTR = 442  # the same number on every architecture
_MOUNT_ATTR_IDMAP = 0x100000
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_KEPT = 32  # namespaces, each a descriptor; the engine has one mapping, config.json any
_BOUND_S = 10.0

_libc = ctypes.CDLL(None, use_errno=True)
_lock = threading.Lock()
_namespaces: dict[tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]], int] = {}


class _MountAttr(ctypes.Structure):
    """struct mount_attr of linux/mount.h."""

    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


def open_user_namespace(uid_mappings: Sequence[IdMapping], gid_mappings: Sequence[IdMapping]) -> int:
    """A descriptor of a user namespace with these maps, in which no process lives; the caller closes it.

    Raises HostError when the kernel refuses the namespace or the maps, Unavailable without unshare(1).
    """
    key = (tuple(uid_mappings), tuple(gid_mappings))
    with _lock:
        kept = _namespaces.pop(key, None)
        if kept is None:
            kept = _make_user_namespace(*key)
        _namespaces[key] = kept  # the last used at the end
        if len(_namespaces) > _KEPT:
            os.close(_namespaces.pop(next(iter(_namespaces))))
        return os.dup(kept)


def _make_user_namespace(uid_mappings: tuple[IdMapping, ...], gid_mappings: tuple[IdMapping, ...]) -> int:
    import subprocess  # most starts don't need it

    try:
        process = subprocess.Popen(
            ["unshare", "--user", "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
    except FileNotFoundError:
        raise Unavailable("an idmapped mount needs unshare(1), install it (Debian: util-linux)") from None
    assert process.stdin and process.stdout and process.stderr
    with process:
        try:
            # what comes back comes from cat, which runs in the namespace
            process.stdin.write(b".")
            if process.stdout.read(1) != b".":
                reason = process.stderr.read().decode(errors="replace").strip()
                raise HostError(f"no user namespace can be made for an idmapped mount: {reason}")
            write_maps(process.pid, uid_mappings, gid_mappings)
            return os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except BrokenPipeError:
            reason = process.stderr.read().decode(errors="replace").strip()
            raise HostError(f"no user namespace can be made for an idmapped mount: {reason}") from None
        finally:
            process.kill()


def idmap_tree(tree: int, namespace: int, *, recursive: bool) -> None:
    """Set the idmap of a detached mount tree, once, before anyone has it. Raises OSError: EINVAL when a file system
    in it can't be idmapped, EPERM when a mount in it is idmapped already or its owner's rights are missing."""
    attr = _MountAttr(attr_set=_MOUNT_ATTR_IDMAP, userns_fd=namespace)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(tree),
        ctypes.c_char_p(b""),
        ctypes.c_uint(flags),
        ctypes.byref(attr),
        ctypes.c_size_t(ctypes.sizeof(attr)),
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "idmapped mount")
