"""A helper's life: `python -m cove.storage.mounter`, to mount one file system, or take one off.

A mount may hang, with a server that doesn't answer; a process of its own can be killed, a thread can't. The job
comes as JSON on standard input (a password has no place among a process's arguments), the answer goes to standard
output: `{}` or `{"errno": …, "message": …}`.

Order that must hold: the file system is configured and made before it is attached; an image file's loop device
frees itself (LO_FLAGS_AUTOCLEAR) with its last user, so a helper that is killed in the middle leaves nothing.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import stat
import struct
import sys

import msgspec

from cove.storage.volume_options import Filesystem, remote_host

_SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = (
    429,
    430,
    431,
    432,
)  # the same on every architecture
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC = 1, 1
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_F_EMPTY_PATH, _T_EMPTY_PATH = 0x4, 0x40
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_PR_SET_PDEATHSIG = 1
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE, _LOOP_GET_STATUS64 = 0x4C82, 0x4C0A, 0x4C05
_LO_READ_ONLY, _LO_AUTOCLEAR = 1, 4
_LOOP_INFO = struct.Struct("=5Q4I64s64s32s2Q")
_LOOP_CONFIG_TAIL = b"\0" * 64
_ATTEMPTS = 64  # others take free loop devices, too
_libc = ctypes.CDLL(None, use_errno=True)


class MountJob(msgspec.Struct, frozen=True, kw_only=True, tag="mount"):
    filesystem: Filesystem
    target: str  # a directory that only root can rename


class UnmountJob(msgspec.Struct, frozen=True, kw_only=True, tag="unmount"):
    target: str


Job = MountJob | UnmountJob


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """`errno` 0: it worked."""

    errno: int = 0
    message: str = ""


class MountFailed(OSError):
    """With what the kernel said of it."""


def mount_filesystem(filesystem: Filesystem, target: str) -> None:
    """Mount on `target`. Raises MountFailed."""
    held = -1
    source = filesystem.source
    parameters = list(filesystem.parameters)
    try:
        if filesystem.device:
            source, held = _open_device(source, readonly=filesystem.readonly)
        if filesystem.remote:
            parameters = [(k, v) for k, v in parameters if k != "addr"] + [("addr", _resolve(filesystem))]
        context = _call(
            _SYS_FSOPEN, filesystem.type.encode(), _FSOPEN_CLOEXEC, about=f"type {filesystem.type}"
        )
        try:
            if source:
                _configure(context, "source", source)
            for key, value in parameters:
                _configure(context, key, value)
            _explained(context, _SYS_FSCONFIG, context, _CREATE, None, None, 0)
            made = _explained(context, _SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, filesystem.attributes)
        finally:
            os.close(context)
        try:
            if filesystem.sized:
                _drop_lost_found(made)
            _attach(made, target)
        finally:
            os.close(made)
    finally:
        if held >= 0:
            os.close(held)


def _attach(made: int, target: str) -> None:
    place = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flags = _F_EMPTY_PATH | _T_EMPTY_PATH
        _call(_SYS_MOVE_MOUNT, made, b"", place, b"", flags, about=target)
    finally:
        os.close(place)


def _drop_lost_found(made: int) -> None:
    """A new volume is empty: an init script refuses to go on where it finds a directory (postgres)."""
    try:
        os.rmdir("lost+found", dir_fd=made)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EROFS):
            raise


def unmount(target: str) -> None:
    """Take the mount off, at once where something still uses it (it goes with its last user). None there is fine."""
    for flags in (_UMOUNT_NOFOLLOW, _UMOUNT_NOFOLLOW | _MNT_DETACH):
        if _libc.umount2(os.fsencode(target), flags) == 0:
            return
        number = ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOENT):
            return
        if number != errno.EBUSY:
            raise MountFailed(number, f"{target}: {os.strerror(number)}")


def _configure(context: int, key: str, value: str | None) -> None:
    command = _SET_FLAG if value is None else _SET_STRING
    told = None if value is None else value.encode()
    _explained(context, _SYS_FSCONFIG, context, command, key.encode(), told, 0)


def _explained(context: int, number: int, *arguments: object) -> int:
    """A call whose failure the context's log explains (fsopen(2), "the message retrieval interface")."""
    try:
        return _call(number, *arguments)
    except MountFailed as error:
        raise MountFailed(error.errno, "; ".join([str(error.strerror), *_read_log(context)])) from None


def _read_log(context: int) -> list[str]:
    found: list[str] = []
    while len(found) < 8:
        try:
            line = os.read(context, 1024)
        except OSError:
            break
        if not line:
            break
        kind, _, text = line.decode(errors="replace").strip().partition(" ")
        if kind in ("e", "w"):
            found.append(text)
    return found


def _call(number: int, *arguments: object, about: str = "") -> int:
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        code = ctypes.get_errno()
        text = os.strerror(code)
        if code == errno.ENODEV and number == _SYS_FSOPEN:
            text = "this kernel has no such file system"
        raise MountFailed(code, f"{about}: {text}" if about else text)
    return result


def _resolve(filesystem: Filesystem) -> str:
    host = remote_host(filesystem)
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        reason = error.strerror or "no address"
        raise MountFailed(errno.EHOSTUNREACH, f"the address of {host} can't be found: {reason}") from None
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return str(found[0][4][0])


# --- devices ------------------------------------------------------------------------------------


def _open_device(path: str, *, readonly: bool) -> tuple[str, int]:
    """The block device to mount, and a descriptor that keeps it until it is mounted. `path` is looked up once."""
    try:
        opened = os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise MountFailed(error.errno, f"{path}: {error.strerror}") from None
    mode = os.fstat(opened).st_mode
    if stat.S_ISBLK(mode):
        return os.path.realpath(path), opened
    try:
        if not stat.S_ISREG(mode):
            raise MountFailed(errno.ENOTBLK, f"{path}: expected a block device or an image file")
        fcntl.flock(opened, fcntl.LOCK_EX)  # one loop device for a file: two would write past each other
        try:
            return _find_loop(opened) or _make_loop(opened, path, readonly=readonly)
        finally:
            fcntl.flock(
                opened, fcntl.LOCK_UN
            )  # the loop device keeps this open file, and would keep its lock
    finally:
        os.close(opened)


def _find_loop(image: int) -> tuple[str, int] | None:
    """The loop device that has this file already, opened, so that it stays."""
    status = os.fstat(image)
    for name in sorted(os.listdir("/sys/block")):
        if not name.startswith("loop") or not os.path.exists(f"/sys/block/{name}/loop"):
            continue
        try:
            device = os.open(f"/dev/{name}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            buffer = bytearray(_LOOP_INFO.size)
            fcntl.ioctl(device, _LOOP_GET_STATUS64, buffer)
            on, inode, _, offset = _LOOP_INFO.unpack(buffer)[:4]
        except OSError:
            os.close(device)  # let go of meanwhile
            continue
        if (on, inode, offset) == (status.st_dev, status.st_ino, 0):
            return f"/dev/{name}", device
        os.close(device)
    return None


def _make_loop(image: int, path: str, *, readonly: bool) -> tuple[str, int]:
    flags = _LO_AUTOCLEAR | (_LO_READ_ONLY if readonly else 0)
    name = os.fsencode(path)[-63:]
    info = _LOOP_INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
    config = struct.pack("=II", image, 0) + info + _LOOP_CONFIG_TAIL
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountFailed(error.errno, f"/dev/loop-control: {error.strerror}: no loop devices here") from None
    try:
        for _ in range(_ATTEMPTS):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            try:
                device = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                raise MountFailed(error.errno, f"/dev/loop{number}: {error.strerror}") from None
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise MountFailed(error.errno, f"{path} on a loop device: {error.strerror}") from None
                continue
            return f"/dev/loop{number}", device
    finally:
        os.close(control)
    raise MountFailed(errno.EBUSY, f"no loop device is free for {path}")


# --- the process --------------------------------------------------------------------------------


def run(job: Job) -> None:
    if isinstance(job, MountJob):
        mount_filesystem(job.filesystem, job.target)
    else:
        unmount(job.target)


def main() -> None:
    """Do the one job of this process."""
    _libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)
    job: Job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    answer = Failure()
    try:
        run(job)
    except OSError as error:
        answer = Failure(errno=error.errno or errno.EIO, message=error.strerror or str(error))
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    main()
