"""What `cove build` sends of a directory: a listing, and the contents that the daemon lacks.

A tree of many thousand files is walked at every build, so this does little for each: one directory read for many,
one lstat(2), one row. What .dockerignore leaves out isn't looked at.
"""

from __future__ import annotations

import os
import stat

from cove.cli.fail import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from cove.cli.client import Client
    from cove.dockerfile.ignore import DockerIgnore

    Row = tuple[bytes, str, int, int, int, bytes, bytes, bytes]

_PIECE = 1 << 18
_JOIN_BYTES = 1 << 18
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "symlink"}


def find_ignore(root: str, dockerfile: str) -> DockerIgnore | None:
    """The patterns that count: those beside the Dockerfile, else those of the context (docs of .dockerignore)."""
    for path in (f"{dockerfile}.dockerignore" if dockerfile else "", os.path.join(root, ".dockerignore")):
        if not path:
            continue
        try:
            with open(path, "rb") as file:
                text = file.read((1 << 20) + 1)
        except OSError:
            continue
        from cove.dockerfile.ignore import DockerIgnore, IgnoreError

        try:
            found = DockerIgnore(text, path)
        except IgnoreError as error:
            raise CliError(str(error)) from None
        return None if found.empty else found
    return None


def list_files(root: str, ignore: DockerIgnore | None) -> list[Row]:
    """Every file of the context: path, kind, mode, size, mtime, stamp, link, inode; sockets and devices are left out.

    Raises CliError for what can't be read.
    """
    rows: list[Row] = []
    top = os.fsencode(root)
    todo: list[tuple[bytes, bytes]] = [(top, b"")]
    while todo:
        directory, prefix = todo.pop()
        try:
            entries = list(os.scandir(directory))
        except OSError as error:
            raise CliError(f"build context: {os.fsdecode(directory)}: {error.strerror}") from None
        for entry in entries:
            path = prefix + entry.name
            found = entry.stat(follow_symlinks=False)
            mode = found.st_mode
            kind = _KINDS.get(stat.S_IFMT(mode), "")
            if not kind:
                continue
            if ignore is not None:
                text = os.fsdecode(path)
                if kind == "dir":
                    if ignore.skips(text):
                        continue
                    if ignore.matches(text):
                        todo.append((entry.path, path + b"/"))
                        continue
                elif ignore.matches(text):
                    continue
            if kind == "dir":
                rows.append((path, kind, mode & 0o7777, 0, found.st_mtime_ns, b"", b"", b""))
                todo.append((entry.path, path + b"/"))
                continue
            link = os.readlink(entry.path) if kind == "symlink" else b""
            stamp = b"%d:%d:%d" % (found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
            inode = b"%d:%d" % (found.st_dev, found.st_ino) if found.st_nlink > 1 else b""
            size = found.st_size if kind == "file" else 0
            rows.append((path, kind, mode & 0o7777, size, found.st_mtime_ns, stamp, link, inode))
    return rows


def encode_listing(rows: Sequence[Row]) -> bytes:
    """The listing as the daemon reads it: eight fields for each file, a NUL after each."""
    return b"".join(
        b"%b\0%c\0%o\0%d\0%d\0%b\0%b\0%b\0" % (path, ord(kind[0]), mode, size, mtime, stamp, link, inode)
        for path, kind, mode, size, mtime, stamp, link, inode in rows
    )


def send_context(client: Client, root: str, ignore: DockerIgnore | None) -> tuple[str, int, int]:
    """Send what has changed of a directory; the context's id, and how many files and bytes were sent."""
    rows = list_files(root, ignore)
    key = _sha256(f"{os.uname().nodename}\0{os.getuid()}\0{os.path.realpath(root)}".encode())
    headers = {"Content-Type": "application/octet-stream"}
    answer: dict[str, Any] = client.request(
        "POST",
        f"/cove/v1/build/context?key={key[:32]}",
        stream=iter((encode_listing(rows),)),
        headers=headers,
    ).json()
    missing = answer["Missing"]
    if missing:
        stream = contents(root, [rows[number] for number in missing])
        client.request(
            "POST",
            f"/cove/v1/build/context/contents?id={answer['Id']}",
            stream=stream,
            headers={"Content-Type": "application/octet-stream"},
        ).read()
    return answer["Id"], len(missing), answer["Bytes"]


def _sha256(data: bytes) -> str:
    """hashlib's, by the interpreter's own module where there is one: OpenSSL takes 2 ms to load."""
    try:
        from _sha256 import sha256  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        from hashlib import sha256
    return str(sha256(data).hexdigest())


def contents(root: str, rows: Sequence[Row]) -> Iterator[bytes]:
    """The contents of files, joined; CliError for one that was changed meanwhile."""
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    batch: list[bytes] = []
    size = 0
    try:
        for path, _, _, wanted, _, _, _, _ in rows:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=top)
            except OSError as error:
                raise CliError(f"build context: {os.fsdecode(path)}: {error.strerror}") from None
            try:
                left = wanted
                while left:
                    piece = os.read(fd, min(left, _PIECE))
                    if not piece:
                        raise CliError(
                            f"build context: {os.fsdecode(path)} became shorter while it was sent: build again"
                        )
                    left -= len(piece)
                    size += len(piece)
                    batch.append(piece)
                    if size >= _JOIN_BYTES:
                        yield b"".join(batch)
                        batch, size = [], 0
            finally:
                os.close(fd)
        if batch:
            yield b"".join(batch)
    finally:
        os.close(top)
