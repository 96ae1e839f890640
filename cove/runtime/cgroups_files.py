"""Control files and processes of cgroups, for both versions: reading, writing, walking, removing.

Functions that answer for a cgroup which is gone say so by an empty answer; those that change something raise.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator

from cove.model.errors import HostError, Invalid, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.runtime.plan_limits import Write

_SIGKILL = 9
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_REFUSED = (errno.EBUSY, errno.EINVAL, errno.ERANGE, errno.ENOSPC, errno.EOPNOTSUPP, errno.ENODEV)


def read_file(path: str) -> str:
    """The content of a control file; "" when there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def write_file(path: str, data: str) -> None:
    """One write(2) to a control file, as the kernel wants it. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data.encode())
    finally:
        os.close(fd)


def write_limits(directory_of: dict[str, str], writes: Iterable[Write]) -> None:
    """Write limits of a living cgroup; `directory_of` has its directory for each controller ("" on v2).

    Some values bound each other (a quota and its burst, memory and swap), so that the order which works depends on
    those that hold: what the kernel refuses at first is tried once more after the others. Raises Invalid for a value
    that it refuses again, Unavailable when there is no such file (unless it is optional), HostError otherwise.
    """
    again = []
    for write in writes:
        path = f"{directory_of[write.controller]}/{write.file}"
        try:
            write_file(path, write.value)
        except OSError as error:
            if error.errno == errno.EINVAL:
                again.append((path, write))
            elif not (write.optional and error.errno == errno.ENOENT):
                raise _limit_error(write, path, error) from None
    for path, write in again:
        try:
            write_file(path, write.value)
        except OSError as error:
            raise _limit_error(write, path, error) from None


def _limit_error(write: Write, path: str, error: OSError) -> Exception:
    if error.errno == errno.ENOENT:
        return Unavailable(
            f"{write.field}: this host can't do {write.file} (no such control file): leave that limit out"
        )
    if error.errno in _REFUSED:
        return Invalid(f"{write.field}: the kernel refuses {write.value} for {write.file}: {error.strerror}")
    return HostError(f"{write.field}: can't write {write.value!r} to {path}: {error.strerror}")


def missing_file(directory_of: dict[str, str], writes: Iterable[Write]) -> Write | None:
    """The first limit for which a cgroup has no control file. Of optional ones with one `field` (two names that kernels
    had for a thing) one is enough, and none is needed for a value that lifts a limit."""
    absent: dict[str, Write] = {}
    present = set()
    for write in writes:
        if os.path.exists(f"{directory_of[write.controller]}/{write.file}"):
            present.add(write.field)
        elif not write.optional:
            return write
        elif write.value not in ("max", "-1", "0"):
            absent.setdefault(write.field, write)
    return next((write for field, write in absent.items() if field not in present), None)


def make_directory(directory: str) -> bool:
    """mkdir(2); False when it is there already. Raises Unavailable without the right to, HostError otherwise."""
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _DENIED:
            raise Unavailable(
                f"can't make cgroup {directory}: {error.strerror}: have it delegated to this user, or do without limits"
            ) from None
        raise HostError(f"can't make cgroup {directory}: {error.strerror}") from None
    return True


def remove_directories(directories: Iterable[str]) -> None:
    """rmdir(2) of each as far as it goes: what others use by now stays."""
    for directory in directories:
        try:
            os.rmdir(directory)
        except OSError:
            continue


def read_pids(directory: str) -> list[int]:
    try:
        with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
            return [int(line) for line in file]
    except OSError:  # gone, or a threaded cgroup (EOPNOTSUPP), whose processes its parent lists
        return []


def subdirectories(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def list_files(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def walk(directory: str) -> Iterator[str]:
    """Every cgroup below `directory`, the deepest first."""
    for name in subdirectories(directory):
        child = f"{directory}/{name}"
        yield from walk(child)
        yield child


def remove_tree(directory: str) -> bool:
    """rmdir(2) from the leaves up; True when the directory is gone. Control files go with it."""
    try:
        os.rmdir(directory)  # nearly always there is nothing below
    except FileNotFoundError:
        return True
    except OSError:
        pass
    else:
        return True
    gone = True
    for each in [*walk(directory), directory]:
        try:
            os.rmdir(each)
        except FileNotFoundError:
            continue
        except OSError:
            gone = False
    return gone


def signal_all(pids: Iterable[int], signo: int = _SIGKILL) -> None:
    for pid in pids:
        try:
            os.kill(pid, signo)
        except ProcessLookupError:
            continue
