"""Sized images: a sparse file with an ext4, for a limit where the data root's file system has none.

The file takes what is written to it, not its size; what is deleted inside is given back (discard). Making and growing
need e2fsprogs, mounting a loop device.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path

from cove.model.errors import Conflict, HostError, Invalid, Unavailable
from cove.storage.volume_options import Filesystem

MIN_BYTES = 8 << 20
_PLACES = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")
_OPTIONS = ("-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0")
_RESIZE_FS = 0x40086610  # EXT4_IOC_RESIZE_FS
_LOOP_SET_CAPACITY = 0x4C07
_FITRIM = 0xC0185879
_WORTH_BYTES = 8 << 20  # more than the file system's own tables and journal usually take
_BOUND_S = 300.0
_libc = ctypes.CDLL(None, use_errno=True)


def image_filesystem(image: Path) -> Filesystem:
    """How an image is mounted."""
    return Filesystem(
        type="ext4", source=str(image), device=True, parameters=(("discard", None),), sized=True
    )


async def make_image(path: Path, size_bytes: int, what: str) -> None:
    """Make a new image; nothing is left on failure. Raises Invalid, Unavailable, HostError; `what` names it there."""
    if size_bytes < MIN_BYTES:
        raise Invalid(
            f"{what}: size {size_bytes} is too small for an image with a file system, e.g. size=64m"
        )
    program = find_program("mkfs.ext4", what)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, size_bytes)
        finally:
            os.close(descriptor)
        await _run(what, program, *_OPTIONS, str(path))
    except OSError as error:
        path.unlink(missing_ok=True)
        raise HostError(f"{what}: {path}: {error.strerror}") from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise


async def grow_image(path: Path, size_bytes: int, what: str) -> None:
    """Grow an image that isn't mounted. Raises Unavailable, HostError."""
    check, resize = find_program("e2fsck", what), find_program("resize2fs", what)
    os.truncate(path, size_bytes)
    await _run(what, check, "-p", "-f", str(path), good=(0, 1))
    await _run(what, resize, str(path))


def grow_mounted(image: Path, mounted: Path, size_bytes: int, what: str) -> None:
    """Grow an image that is mounted. Blocking. Raises HostError, and Conflict where the kernel wants more rights."""
    try:
        os.truncate(image, size_bytes)
        number = os.minor(os.stat(mounted).st_dev)
        loop = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(loop, _LOOP_SET_CAPACITY)
        finally:
            os.close(loop)
        place = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            blocks = size_bytes // os.fstatvfs(place).f_frsize
            fcntl.ioctl(place, _RESIZE_FS, ctypes.c_uint64(blocks))
        finally:
            os.close(place)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise Conflict(
                f"{what}: the kernel lets this daemon grow no mounted file system (CAP_SYS_RESOURCE): stop the "
                "containers that use it first"
            ) from None
        raise HostError(f"{what} can't grow: {error.strerror}") from error


def give_back(image: Path, mounted: Path) -> None:
    """Free what the file still has of deleted files. Blocking; a failure frees nothing and is no matter.

    The discards of ext4 come late, and those that wait at an unmount are dropped (ext4_discard_work): this asks for
    them where it's worth it, before that (FITRIM).
    """
    try:
        found = os.statvfs(mounted)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        if os.stat(image).st_blocks * 512 - used < _WORTH_BYTES:
            return
        place = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _libc.syncfs(place)  # what was deleted last isn't free before its transaction is written
            fcntl.ioctl(place, _FITRIM, struct.pack("=3Q", 0, (1 << 64) - 1, 0))
        finally:
            os.close(place)
    except OSError:
        return


def find_program(name: str, what: str) -> str:
    """An e2fsprogs program at one of the system's places. Raises Unavailable."""
    for place in _PLACES:
        if os.access(f"{place}/{name}", os.X_OK):
            return f"{place}/{name}"
    raise Unavailable(
        f"{what}: a size needs project quotas (the data root on ext4 or xfs, mounted with prjquota) or {name}: "
        "install e2fsprogs"
    )


async def _run(what: str, *arguments: str, good: tuple[int, ...] = (0,)) -> None:
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={"LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        cwd="/",
    )
    try:
        async with asyncio.timeout(_BOUND_S):
            _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode not in good:
        told = errors.decode(errors="replace").strip().splitlines()[-1:] or [f"status {process.returncode}"]
        raise HostError(f"{what}: {os.path.basename(arguments[0])}: {told[0]}")
