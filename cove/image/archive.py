"""`docker cp` inside a worker: what a path is, a tree as a tar stream, a tar stream into a tree.

The worker's root is the tree. A path is resolved once, with openat2(2) RESOLVE_IN_ROOT, to a descriptor,
and everything happens below that. Paths mean what they mean to Docker (moby daemon/archive_unix.go):
the last element isn't followed when it is a link, unless a slash or `/.` follows; with `/.` the archive's
names begin with `./`; a PUT goes into a directory, which may be named by a link.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Iterator
from typing import NamedTuple

from cove.image.decode import Read, compression_of, decoder
from cove.image.extract import Extractor, wanted_attribute
from cove.image.sandbox import O_PATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from cove.image.tarformat import BLOCK, END, Bytes, Entry, Kind, TarReader, encode_header, padding, show_name
from cove.image.types import Limits, PathStat, go_file_mode
from cove.model.errors import CoveError, Forbidden, HostError, Invalid, NotFound

_RESOLVE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 256 << 10
_DEPTH_MAX = 400  # one descriptor each
_LINKS_MAX = 255
_KINDS: dict[int, Kind] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}


class Place(NamedTuple):
    """A resolved path: the directory it is in, its name there (b"." for the directory itself)."""

    directory: int
    name: bytes
    shown: bytes  # the name the archive and the stat give it
    path: str  # cleaned, absolute


def resolve(path: str) -> Place:
    """Find a path as Docker's ResolvePath does. NotFound, Invalid."""
    if "\0" in path:
        raise Invalid(f"the path {path!r} contains a NUL byte")
    clean = posixpath.normpath("/" + path.lstrip("/"))
    follow = path.endswith(("/", "/.")) or path in ("", ".") or clean == "/"
    shown = b"." if path.endswith("/.") else os.fsencode(posixpath.basename(clean) or "/")
    above, base = (clean, ".") if follow else posixpath.split(clean)
    try:
        directory = openat2(-100, os.fsencode(above), O_PATH | os.O_DIRECTORY, _RESOLVE)
    except OSError as error:
        raise _not_there(error, path) from error
    return Place(directory, os.fsencode(base), shown, clean)


def stat_place(place: Place, path: str) -> PathStat:
    """The facts of a path. NotFound."""
    try:
        found = os.stat(place.name, dir_fd=place.directory, follow_symlinks=False)
    except OSError as error:
        raise _not_there(error, path) from error
    return PathStat(
        name=os.fsdecode(place.shown),
        size=found.st_size,
        mode=go_file_mode(found.st_mode),
        mtime_ns=found.st_mtime_ns,
        link_target=_follow(place.path) if stat.S_ISLNK(found.st_mode) else "",
    )


def tar_stream(place: Place, *, shown: bytes | None = None) -> Iterator[bytes]:
    """The tree at a path as a tar stream; files that go away meanwhile are left out.

    `shown` is the name to give it; with b"" the entries of the directory alone are members.
    """
    seen: dict[tuple[int, int], bytes] = {}
    name = place.shown if shown is None else shown
    if name:
        yield from member(place.directory, place.name, name, seen)
    if (top := _open_directory(place.directory, place.name)) >= 0:
        for directory, base, full in walk(top, name):
            yield from member(directory, base, full, seen)
    yield END


def walk(top: int, prefix: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Everything below an open directory, which it closes: a descriptor of where an entry is, its name there, and
    its path with `prefix` in front. A directory comes before what is in it. Raises Invalid below _DEPTH_MAX."""
    stack = [(top, prefix, _names(top))]
    try:
        while stack:
            fd, above, names = stack[-1]
            child = next(names, None)
            if child is None:
                os.close(fd)
                stack.pop()
                continue
            full = above + child if above[-1:] in (b"", b"/") else above + b"/" + child
            yield fd, child, full
            if (below := _open_directory(fd, child)) >= 0:
                stack.append((below, full, _names(below)))
                if len(stack) > _DEPTH_MAX:
                    raise Invalid(
                        f"{show_name(full[:60])}… is nested deeper than the {_DEPTH_MAX} directories "
                        "that can be archived: name a directory further down"
                    )
    finally:
        for fd, _, _ in stack:
            os.close(fd)


def write_tree(
    path: str, read: Read, limits: Limits, *, owner: tuple[int, int] | None, keep_kind: bool
) -> None:
    """Unpack a tar stream (compressed or not) into the directory at `path`, which may be named by a link."""
    clean = posixpath.normpath("/" + path.lstrip("/"))
    try:
        directory = openat2(-100, os.fsencode(clean), os.O_RDONLY | os.O_NONBLOCK, _RESOLVE)
    except OSError as error:
        raise _not_there(error, path) from error
    try:
        if not stat.S_ISDIR(os.fstat(directory).st_mode):
            raise Invalid("extraction point is not a directory")
        if os.fstatvfs(directory).f_flag & os.ST_RDONLY:
            raise Forbidden(f"{path} is on a container rootfs or a mounted volume that is marked read-only")
        extract_into(directory, read, limits, owner=owner, keep_kind=keep_kind, rooted=True)
    finally:
        os.close(directory)


def extract_into(
    directory: int,
    read: Read,
    limits: Limits,
    *,
    owner: tuple[int, int] | None = None,
    keep_kind: bool = False,
    rooted: bool = False,
) -> None:
    """Unpack a tar stream into an open directory; `rooted`: one below this process's root."""
    head = b""
    while len(head) < BLOCK and (chunk := read()):
        head += chunk
    if not head:
        return

    def rest() -> Bytes:
        nonlocal head
        if head:
            first, head = head, b""
            return first
        return read()

    extractor = Extractor(directory, layer=False, rooted=rooted, owner=owner, keep_kind=keep_kind)
    tar = TarReader(decoder(compression_of(head), rest, limits), limits, entries_max=limits.layer_entries)
    try:
        while (entry := tar.next_entry()) is not None:
            extractor.add(entry, tar)
        extractor.finish()
    finally:
        extractor.close()


def copy_tree(path: str, destination: int, limits: Limits) -> None:
    """Copy what is in a directory of the tree into an empty one outside; nothing there: nothing is copied."""
    if os.listdir(destination):
        return
    try:
        place = resolve(path.rstrip("/") + "/.")
    except (NotFound, Invalid):
        return  # the image has no directory there, so the volume stays empty
    try:
        stream = tar_stream(place, shown=b".")
        extract_into(destination, lambda: next(stream, b""), limits)
    finally:
        os.close(place.directory)


# --- members ------------------------------------------------------------------------------


def member(directory: int, base: bytes, name: bytes, seen: dict[tuple[int, int], bytes]) -> Iterator[bytes]:
    """One entry as `name`; nothing for a socket, or for what has gone. `seen` finds hard links."""
    try:
        found = os.stat(base, dir_fd=directory, follow_symlinks=False)
        kind = _KINDS.get(stat.S_IFMT(found.st_mode))
        if kind is None:
            return  # a socket: tar can't hold one
        entry = Entry(
            name=name,
            kind=kind,
            mode=stat.S_IMODE(found.st_mode),
            uid=found.st_uid,
            gid=found.st_gid,
            mtime_ns=found.st_mtime_ns,
        )
        if kind == "symlink":
            entry.link = os.readlink(base, dir_fd=directory)
        elif kind in ("char", "block"):
            entry.major, entry.minor = os.major(found.st_rdev), os.minor(found.st_rdev)
        elif kind == "dir":
            entry.xattrs = _attributes_of(directory, base)
        elif kind == "file":
            if found.st_nlink > 1:
                first = seen.setdefault((found.st_dev, found.st_ino), name)
                if first != name:
                    entry.kind, entry.link = "link", first
                    yield encode_header(entry)
                    return
            yield from _file(directory, base, entry)
            return
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"read {show_name(name)}: {error.strerror}") from error
    yield encode_header(entry)


def _file(directory: int, base: bytes, entry: Entry) -> Iterator[bytes]:
    try:
        fd = os.open(base, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            return  # it was a file a moment ago
        raise
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return
        entry.size = left = found.st_size
        entry.xattrs = _attributes(fd)
        yield encode_header(entry)
        while left:
            piece = os.read(fd, min(left, _PIECE)) or bytes(min(left, _PIECE))  # it shrank: zeros, as GNU tar
            left -= len(piece)
            yield piece
        if rest := padding(entry.size):
            yield rest
    finally:
        os.close(fd)


def _attributes_of(directory: int, base: bytes) -> dict[str, bytes]:
    fd = _open_directory(directory, base)
    if fd < 0:
        return {}
    try:
        return _attributes(fd)
    finally:
        os.close(fd)


def _attributes(fd: int) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        for name in os.listxattr(fd):
            if wanted_attribute(name):
                found[name] = os.getxattr(fd, name)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENODATA, errno.EPERM):
            raise
    return found


def _open_directory(directory: int, name: bytes) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=directory)
    except OSError:
        return -1  # not a directory, or gone


def _names(fd: int) -> Iterator[bytes]:
    return iter(sorted(os.fsencode(name) for name in os.listdir(fd)))


# --- paths --------------------------------------------------------------------------------


def _follow(path: str) -> str:
    """Where a link leads in the end, as a path in the tree; what doesn't exist is kept as written."""
    todo = path.split("/")[::-1]
    done: list[str] = []
    links = 0
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            done = done[:-1]
            continue
        try:
            target = os.readlink("/" + "/".join([*done, part]))
        except OSError:
            done.append(part)
            continue
        links += 1
        if links > _LINKS_MAX:
            raise Invalid(f"{path} goes through more than {_LINKS_MAX} symbolic links")
        if target.startswith("/"):
            done = []
        todo += target.split("/")[::-1]
    return "/" + "/".join(done)


def _not_there(error: OSError, path: str) -> CoveError:
    if error.errno == errno.ENOENT:
        return NotFound(f"Could not find the file {path} in the container")
    if error.errno == errno.ENOTDIR:
        return Invalid(f"{path}: not a directory")
    if error.errno == errno.ELOOP:
        return Invalid(f"{path}: too many levels of symbolic links")
    return HostError(f"look up {path}: {error.strerror}")
