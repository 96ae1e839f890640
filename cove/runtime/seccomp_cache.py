"""Compiled system call filters on disk, for a command that is a new process each time.

A file is trusted only if nobody else can have written it: directory and file belong to this user and only that
one may write; the file says in full what it was made from, which must be what is asked for, and how long it is.
Whatever doesn't fit is passed over and written again. A cache that can't be used costs time and nothing else.
"""

from __future__ import annotations

import os
import stat
from binascii import crc32
from struct import Struct, error

import msgspec

from cove import __version__
from cove.runtime.oci import Seccomp
from cove.runtime.seccomp_compile import compile_filter

MAX_FILES = 64
_MAGIC = 0x46534356  # "VCSF"
_HEADER = Struct("<IIII")  # magic, length of the question, length of the program, crc32 of both
_MAX_BYTES = 4 << 20
_LIBRARIES = tuple(
    f"{directory}/libseccomp.so.2"
    for directory in (
        f"/usr/lib/{os.uname().machine}-linux-gnu",
        "/usr/lib64",
        "/lib64",
        "/usr/lib",
        "/lib",
        "/usr/local/lib",
    )
)


def compile_cached(filter_: Seccomp, directory: str) -> bytes:
    """The program of a filter, from `directory`, which is made (0700) when missing. Raises as compile_filter."""
    question = _question(filter_)
    handle = _open_directory(directory)
    if not question or handle < 0:
        return compile_filter(filter_)
    try:
        name = f"{crc32(question):08x}.bpf"
        program = _read(handle, name, question)
        if program is None:
            program = compile_filter(filter_)
            _write(handle, name, question, program)
        return program
    finally:
        os.close(handle)


def _question(filter_: Seccomp) -> bytes:
    """All that a program depends on; b"" when this host's libseccomp can't be told from another one."""
    for path in _LIBRARIES:
        try:
            library = os.stat(path)
        except OSError:
            continue
        system = os.uname()
        made = (library.st_dev, library.st_ino, library.st_size, library.st_mtime_ns)
        return msgspec.json.encode((__version__, system.release, system.machine, made, filter_))
    return b""


def _open_directory(directory: str) -> int:
    """A descriptor, or -1 for a directory that others may write to or that can't be had."""
    try:
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return -1
    if _is_ours(os.fstat(handle)):
        return handle
    os.close(handle)
    return -1


def _is_ours(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o022


def _read(directory: int, name: str, question: bytes) -> bytes | None:
    """The program in a file; None when there is no such file, or one that isn't what it should be."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or not _is_ours(found) or found.st_size > _MAX_BYTES:
            return None
        data = os.read(file, found.st_size)
        magic, asked, size, checksum = _HEADER.unpack_from(data)
    except (OSError, error):
        return None
    finally:
        os.close(file)
    body = data[_HEADER.size :]
    if magic != _MAGIC or len(body) != asked + size or not size or size % 8 or crc32(body) != checksum:
        return None
    return body[asked:] if body[:asked] == question else None


def _write(directory: int, name: str, question: bytes, program: bytes) -> None:
    """Put a file into its place whole, and the oldest ones away. Failure is no matter."""
    body = question + program
    temporary = f".{name}.{os.getpid()}"
    try:
        file = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory
        )
    except OSError:
        return
    try:
        written = os.write(
            file, _HEADER.pack(_MAGIC, len(question), len(program), crc32(body)) + body
        ) == _HEADER.size + len(body)
        if written:
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        else:
            os.unlink(temporary, dir_fd=directory)
        _remove_oldest(directory)
    except OSError:
        return
    finally:
        os.close(file)


def _remove_oldest(directory: int) -> None:
    """What processes that were killed left behind counts, too."""
    names = os.listdir(directory)
    if len(names) <= MAX_FILES:
        return
    ages = sorted(
        (os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime_ns, name) for name in names
    )
    for _, name in ages[: len(names) - MAX_FILES]:
        os.unlink(name, dir_fd=directory)
