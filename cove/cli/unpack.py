"""Write a tar stream from a container below a directory of the caller, trusting nothing in it.

A container's files are a stranger's: member names with .. are refused, every
directory on the way is opened by descriptor without following links, files are created new (an
existing one is unlinked first), and setuid bits are dropped unless the owner is kept too. Order
that must hold: the modes and times of directories come last, when nothing is written into them any more.
"""

from __future__ import annotations

import os
import tarfile

from cove.cli.fail import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

PIECE = 1 << 18
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Reader:
    """A file object over an iterable of bytes; tarfile's stream mode needs read alone."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def read(self, size: int) -> bytes:
        parts, count = [self._rest], len(self._rest)
        while count < size:
            data = next(self._chunks, b"")
            if not data:
                break
            parts.append(data)
            count += len(data)
        whole = b"".join(parts)
        self._rest = whole[size:]
        return whole[:size]


def unpack(chunks: Iterable[bytes], root: str, name: str, *, keep_owner: bool) -> None:
    """Unpack below the existing directory `root`; the archive's first path component becomes `name`.

    `name` "" drops that component, so that a directory's content lands in `root` itself.
    """
    directories: list[tuple[list[str], tarfile.TarInfo]] = []
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        reader: Any = _Reader(chunks)  # all that stream mode needs; the stubs want more
        with tarfile.open(fileobj=reader, mode="r|") as archive:
            for member in archive:
                parts = _place(member.name, name)
                if not parts:
                    continue  # the directory itself, which is there
                if member.isdir():
                    directories.append((parts, member))
                _write_member(archive, member, root_fd, parts, name, keep_owner)
        for parts, member in reversed(directories):
            fd = _open_directory(root_fd, parts)
            try:
                _set_attributes(fd, member, keep_owner)
            finally:
                os.close(fd)
    except tarfile.TarError as error:
        raise CliError(f"the daemon's archive is broken: {error}", 1) from None
    finally:
        os.close(root_fd)


def _place(member: str, name: str) -> list[str]:
    """Where a member goes below the root, as path components."""
    # Content alone (SOURCE/., or the container's root) has no first component to replace. A leading
    # slash means no more than that, as with tar(1).
    bare = member == "." or member.startswith(("./", "/"))
    parts = [part for part in member.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise CliError(f"the archive holds {member!r}, which leads out of it; nothing more was written", 1)
    if bare:
        return [*([name] if name else []), *parts]
    return [*([name] if name else []), *parts[1:]]


def _open_directory(root_fd: int, parts: list[str]) -> int:
    fd = os.dup(root_fd)
    for part in parts:
        try:
            try:
                child = os.open(part, _OPEN_DIR, dir_fd=fd)
            except FileNotFoundError:
                os.mkdir(part, 0o755, dir_fd=fd)
                child = os.open(part, _OPEN_DIR, dir_fd=fd)
        except OSError as error:
            shown = "/".join(parts)
            raise CliError(f"{shown}: {part} is no directory, or a link: {error.strerror}", 1) from None
        finally:
            os.close(fd)
        fd = child
    return fd


def _write_member(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    root_fd: int,
    parts: list[str],
    name: str,
    keep_owner: bool,
) -> None:
    parent, last = _open_directory(root_fd, parts[:-1]), parts[-1]
    try:
        if member.isdir():
            os.close(_open_directory(parent, [last]))
            return
        try:
            os.unlink(last, dir_fd=parent)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            raise CliError(f"{'/'.join(parts)}: there is a directory of this name", 1) from None
        if member.isreg():
            _write_file(archive, member, parent, last, keep_owner)
        elif member.issym():
            os.symlink(member.linkname, last, dir_fd=parent)
            if keep_owner:
                os.chown(last, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        elif member.islnk():
            target = _place(member.linkname, name)
            if not target:
                raise CliError(f"{member.name}: a hard link to the archive's own root", 1)
            directory = _open_directory(root_fd, target[:-1])
            try:
                os.link(target[-1], last, src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False)
            finally:
                os.close(directory)
        elif member.isfifo():
            os.mkfifo(last, member.mode & 0o777, dir_fd=parent)
        else:
            os.write(2, f"{member.name}: a device, left out\n".encode())
    except OSError as error:
        raise CliError(f"{'/'.join(parts)}: {error.strerror}", 1) from None
    finally:
        os.close(parent)


def _write_file(
    archive: tarfile.TarFile, member: tarfile.TarInfo, parent: int, last: str, keep_owner: bool
) -> None:
    fd = os.open(
        last, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent
    )
    try:
        source = archive.extractfile(member)
        assert source is not None, "a regular member has content"
        while data := source.read(PIECE):
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        _set_attributes(fd, member, keep_owner)
    finally:
        os.close(fd)


def _set_attributes(fd: int, member: tarfile.TarInfo, keep_owner: bool) -> None:
    if keep_owner:
        os.fchown(fd, member.uid, member.gid)  # before the mode: chown(2) clears setuid bits
    os.fchmod(fd, member.mode & (0o7777 if keep_owner else 0o1777))
    os.utime(fd, (member.mtime, member.mtime))
