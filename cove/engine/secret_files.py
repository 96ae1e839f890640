"""Containers' secrets as files in memory: filled before a start, exchanged by an update, gone after the end.

A container's files are a directory of the daemon's, RUN_DIR/secrets/ID, which its plan binds read-only on
/run/secrets. RUN_DIR is a tmpfs on most hosts; where it isn't, one is mounted at RUN_DIR/secrets for as long as a
container needs it. An exchange is a rename within the daemon's directory: a container sees the old content or the
new one, and no path of the container's is ever followed. A reboot empties the memory, and the next start fills it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

from cove.model.container import Container
from cove.model.errors import HostError, Invalid
from cove.model.extension import SecretUse
from cove.runtime.plan_inputs import IdMaps
from cove.storage.secrets import Secrets

TARGET = "/run/secrets"
_NEW = ".new"
_MAX_TMPFS = "size=512m,mode=0700,nr_inodes=1m"
_TMPFS, _RAMFS = 0x01021994, 0x858458F6
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_libc = ctypes.CDLL(None, use_errno=True)


class SecretFiles:
    """Who has which secrets in memory. `close` leaves them: containers run on."""

    def __init__(self, secrets: Secrets, root: Path) -> None:
        self._secrets = secrets
        self._root = root
        self._lock = asyncio.Lock()

    def path(self, container: Container) -> str:
        """What the plan binds; "" for a container without secrets."""
        return str(self._root / container.id) if container.spec.extension.secrets else ""

    async def fill(self, container: Container, maps: IdMaps | None) -> str:
        """Write a container's secrets for a start; returns `path`. Raises HostError, NotFound."""
        if not container.spec.extension.secrets:
            return ""
        async with self._lock:
            try:
                await asyncio.to_thread(self._fill, container, maps)
            except OSError as error:
                raise HostError(f"secrets of container {container.short_id}: {error.strerror}") from error
        return self.path(container)

    async def refresh(self, container: Container, maps: IdMaps | None) -> None:
        """Write a container's secrets anew where it has them in memory: from its start's `fill` until its end. `maps`
        are those of a container in a user namespace. Raises HostError, NotFound."""
        if not container.spec.extension.secrets:
            return
        async with self._lock:
            try:
                owner = os.stat(self._root / container.id).st_uid
            except FileNotFoundError:
                return  # the next start fills them
            mapped_root = maps is not None and owner == mapped(0, 0, maps)[0]
            try:
                await asyncio.to_thread(self._fill, container, maps if mapped_root else None)
            except OSError as error:
                raise HostError(f"secrets of container {container.short_id}: {error.strerror}") from error

    def _fill(self, container: Container, maps: IdMaps | None) -> None:
        self._root.mkdir(mode=0o700, exist_ok=True)
        if not is_memory(self._root):
            _call(
                _libc.mount(
                    b"tmpfs",
                    os.fsencode(self._root),
                    b"tmpfs",
                    _MS_NOSUID | _MS_NODEV | _MS_NOEXEC,
                    _MAX_TMPFS.encode(),
                )
            )
        directory = self._root / container.id
        directory.mkdir(mode=0o755, exist_ok=True)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(fd, *mapped(0, 0, maps))
            os.fchmod(fd, 0o755)
            for use in container.spec.extension.secrets:
                self._write(fd, use, maps)
        finally:
            os.close(fd)

    def _write(self, directory: int, use: SecretUse, maps: IdMaps | None) -> None:
        content = self._secrets.read(use.id or use.name)
        made = self._root / (_NEW + secrets.token_hex(8))  # outside of what the container sees
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fchown(fd, *mapped(use.uid, use.gid, maps))
                os.fchmod(fd, use.mode)
            os.rename(made, use.target, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(OSError):
                made.unlink()
            raise

    async def withdraw(self, container: Container) -> None:
        """Take a container's secrets out of memory; there are none is fine."""
        if not container.spec.extension.secrets:
            return
        async with self._lock:
            await asyncio.to_thread(shutil.rmtree, self._root / container.id, ignore_errors=True)
            self._tidy()

    async def sweep(self, keep: Iterable[str]) -> None:
        """At a daemon's start or end: only the containers that run keep theirs."""
        kept = set(keep)
        async with self._lock:
            with contextlib.suppress(FileNotFoundError):
                for name in os.listdir(self._root):
                    if name.startswith(_NEW):
                        os.unlink(self._root / name)
                    elif name not in kept:
                        await asyncio.to_thread(shutil.rmtree, self._root / name, ignore_errors=True)
            self._tidy()

    def _tidy(self) -> None:
        """Take the tmpfs away with its last directory."""
        with contextlib.suppress(OSError):
            if not os.listdir(self._root):
                if os.path.ismount(self._root):
                    _libc.umount2(os.fsencode(self._root), 0)
                os.rmdir(self._root)


def mapped(uid: int, gid: int, maps: IdMaps | None) -> tuple[int, int]:
    """The host's ids that a container's are. Raises Invalid for one that its user namespace doesn't have."""
    if maps is None:
        return uid, gid
    found = []
    for number, mappings, name in ((uid, maps.uids, "uid"), (gid, maps.gids, "gid")):
        for mapping in mappings:
            if mapping.container_id <= number < mapping.container_id + mapping.size:
                found.append(mapping.host_id + number - mapping.container_id)
                break
        else:
            raise Invalid(
                f"secret: {name} {number} isn't mapped in the container's user namespace: use {name}=0"
            )
    return found[0], found[1]


class _StatFs(ctypes.Structure):
    _fields_ = (("type", ctypes.c_long), ("rest", ctypes.c_long * 31))


def is_memory(path: Path) -> bool:
    """Whether a path lies in memory (statfs(2))."""
    found = _StatFs()
    _call(_libc.statfs(os.fsencode(path), ctypes.byref(found)))
    return found.type in (_TMPFS, _RAMFS)


def _call(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
