"""Roots for containers in a user namespace: overlays whose layers are shown with shifted owners.

Images and writable layers keep the container's own ids on disk, whoever runs them: 0 is root. A container in a
user namespace sees them through idmapped mounts (mount_setattr(2); overlayfs takes such layers since Linux 5.19),
so nothing is copied or chowned, and a container's files stay what `cp`, `diff` and `commit` expect.

One thread does it, in a mount namespace of its own in which an idmapped clone lies over the data root; there the
paths of layers are what they are elsewhere. Order that must hold: the clone first; then the thread's file
system ids become the container's root, for overlayfs writes to its upper layer as whoever mounted it, and
that has to be an id that the idmapped mount maps; the capabilities stay (SECBIT_NO_SETUID_FIXUP).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from cove.model.errors import HostError, Unavailable
from cove.runtime.idmap import idmap_tree, open_user_namespace
from cove.runtime.plan import overlay_options
from cove.runtime.plan_inputs import IdMaps, Overlay

_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
_MS_REC, _MS_SLAVE = 0x4000, 1 << 19
_MNT_DETACH = 2
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT = 428, 429  # the same on every architecture
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH, _AT_FDCWD = 1, 4, -100
_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP = 28, 4

_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


class ShiftedRoots:
    """See the module. `maps` are those of every container's user namespace."""

    def __init__(self, data_root: Path, maps: IdMaps) -> None:
        self._data_root = data_root
        self.maps = maps
        self._thread = ThreadPoolExecutor(1, "cove-shift")

    @classmethod
    async def open(cls, data_root: Path, maps: IdMaps) -> ShiftedRoots:
        """Raises Unavailable when the kernel or the data root's file system can't do it."""
        self = cls(data_root, maps)
        device = data_root.stat().st_dev
        for name in ("images", "containers"):
            if (data_root / name).stat().st_dev != device:
                raise Unavailable(
                    f"--userns-remap: {data_root}/{name} is on another file system than {data_root}: "
                    "move the whole data root there"
                )
        namespace = await asyncio.to_thread(open_user_namespace, maps.uids, maps.gids)
        try:
            await self._run(self._prepare, namespace)
        except OSError as error:
            self.close()
            raise Unavailable(
                f"--userns-remap needs idmapped mounts of {data_root} (Linux 5.19; ext4, xfs, btrfs, tmpfs …): "
                f"{error.filename}: {error.strerror}"
            ) from None
        except BaseException:
            self.close()
            raise
        finally:
            os.close(namespace)
        return self

    def close(self) -> None:
        """End the thread, and its mount namespace with it; the roots of living containers stay."""
        self._thread.shutdown()

    async def mount(self, root: Overlay) -> int:
        """A container's root as a detached mount, for the plan's slot of kind "root"; the caller closes it.
        Raises HostError, Unavailable (too many layers)."""
        try:
            return await self._run(self._mount, root)
        except OSError as error:
            raise HostError(
                f"the container's root can't be mounted for its user namespace: {error.strerror}"
            ) from None

    async def _run(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _prepare(self, namespace: int) -> None:
        _check(_libc.unshare(_CLONE_FS | _CLONE_NEWNS), "unshare")
        # a slave: what the host unmounts goes here, too
        _check(_libc.mount(b"", b"/", b"", ctypes.c_ulong(_MS_REC | _MS_SLAVE), None), "/")
        tree = _clone(str(self._data_root))
        try:
            idmap_tree(tree, namespace, recursive=False)
            target = os.fsencode(self._data_root)
            call = (ctypes.c_long(_SYS_MOVE_MOUNT), tree, b"", _AT_FDCWD, target, _MOVE_MOUNT_F_EMPTY_PATH)
            _check(_libc.syscall(*call), str(self._data_root))
        finally:
            os.close(tree)
        _check(_libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0), "securebits")
        user, group = self.maps.root
        _libc.setfsgid(group)
        _libc.setfsuid(user)

    def _mount(self, root: Overlay) -> int:
        os.chdir(root.layers_dir)
        options, target = overlay_options(root).encode(), os.fsencode(root.merged)
        _check(_libc.mount(b"overlay", target, b"overlay", ctypes.c_ulong(0), options), root.merged)
        try:
            return _clone(root.merged)
        finally:
            _libc.umount2(target, _MNT_DETACH)


def _clone(path: str) -> int:
    call = (ctypes.c_long(_SYS_OPEN_TREE), _AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | os.O_CLOEXEC)
    return _check(_libc.syscall(*call), path)


def _check(result: int, path: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return int(result)
