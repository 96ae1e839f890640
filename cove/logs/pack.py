"""Pack what rotation put away: `main` is a program, started for one log directory when something was rotated.

Order that must hold: the packed copy is whole and on disk before it takes the original's place; that happens under
the directory's lock, which cove-init takes for a rotation, and under the number that the original has by then.
Killed anywhere, it leaves a copy that the next run overwrites, and the log as it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys

from cove.logs.names import number_of
from cove.logs.packed import MEMBER_BYTES, is_packed, pack_member

_COPY = "packing"


def pack_directory(directory: int, name: str) -> int:
    """Pack every file of the log that was rotated away and isn't packed, oldest first; how many. Raises OSError."""
    numbers = sorted(filter(None, (number_of(entry, name) for entry in os.listdir(directory))), reverse=True)
    return sum(_pack(directory, name, f"{name}.{number}") for number in numbers)


def _pack(directory: int, name: str, path: str) -> bool:
    try:
        original = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except FileNotFoundError:
        return False  # it was rotated meanwhile: the next run finds it
    try:
        if is_packed(os.pread(original, 16, 0)) or not os.fstat(original).st_size:
            return False
        inode = os.fstat(original).st_ino
        try:
            _write_copy(directory, original, inode)
            return _take_place(directory, name, inode)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_COPY, dir_fd=directory)
    finally:
        os.close(original)


def _write_copy(directory: int, original: int, inode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(_COPY, flags, 0o640, dir_fd=directory), "wb") as copy:
        offset = 0
        while content := os.pread(original, MEMBER_BYTES, offset):
            copy.write(pack_member(content, inode))
            offset += len(content)
        copy.flush()
        os.fdatasync(copy.fileno())


def _take_place(directory: int, name: str, inode: int) -> bool:
    fcntl.flock(directory, fcntl.LOCK_EX)
    try:
        for entry in os.listdir(directory):
            if number_of(entry, name) and os.stat(entry, dir_fd=directory).st_ino == inode:
                os.rename(_COPY, entry, src_dir_fd=directory, dst_dir_fd=directory)
                return True
        return False  # it was rotated away
    finally:
        fcntl.flock(directory, fcntl.LOCK_UN)


def main() -> None:
    """`DIRECTORY NAME`: a descriptor, and the name of the file that is written. Exit status 1: no room, say."""
    with contextlib.suppress(OSError):
        os.nice(19)
    try:
        pack_directory(int(sys.argv[1]), sys.argv[2])
    except OSError as error:
        print(f"a rotated log stays unpacked: {error.strerror}", file=sys.stderr)
        raise SystemExit(1) from None
