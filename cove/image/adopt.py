"""Make a layer of a directory as it is: one walk gives its digest and its frame, and nothing is copied.

Runs in a worker whose root is the directory around it. The directory is an overlay's upper one: whiteouts and opaque
marks are what the store's layers have, too. Which directories are opaque the caller says (delta.py tells why).
Sorted by path, whole seconds, no names of owners: the same files always give the same digest.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Collection, Iterator

from cove.image.archive import walk
from cove.image.extract import wanted_attribute
from cove.image.frames import FrameWriter
from cove.image.jobs import Member
from cove.image.sandbox import openat2
from cove.image.tarformat import END, Entry, Kind, encode_header, padding, show_name
from cove.model.errors import HostError, Invalid

_WHITEOUT = b".wh."
_SECOND_NS = 1_000_000_000
_PIECE = 1 << 20
_RESOLVE = 0x02 | 0x04 | 0x08  # no magic links, no links, beneath (openat2(2))
_KINDS: dict[int, Kind] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}


def adopt_layer(
    root: int, number: int, *, opaque: Collection[bytes], left_out: Collection[bytes], clamp_ns: int | None
) -> Member:
    """The layer `number` below `root`; its frame is written beside it. What is `left_out` is removed. Times after
    `clamp_ns` become that. Raises Invalid, HostError."""
    layer = os.open(b"%d" % number, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
    try:
        for path in sorted(left_out, key=len, reverse=True):
            _remove(layer, path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(b"%d.frame" % number, flags, 0o600, dir_fd=root), "wb") as stream:
            adopter = _Adopter(FrameWriter(stream), opaque, clamp_ns)
            adopter.run(layer)
    finally:
        os.close(layer)
    diff_id = f"sha256:{adopter.digest.hexdigest()}"
    return Member(
        name="",
        digest=diff_id,
        size=adopter.tar_bytes,
        layer=number,
        diff_id=diff_id,
        unpacked_bytes=adopter.size_bytes,
        tar_bytes=adopter.tar_bytes,
    )


class _Adopter:
    def __init__(self, frame: FrameWriter, opaque: Collection[bytes], clamp_ns: int | None) -> None:
        self._frame = frame
        self._opaque = opaque
        self._clamp_ns = clamp_ns
        self._seen: dict[tuple[int, int], bytes] = {}
        self.digest = hashlib.sha256()
        self.tar_bytes = 0
        self.size_bytes = 0

    def run(self, layer: int) -> None:
        if b"" in self._opaque:
            self._raw(_empty_file(b".wh..wh..opq", self._clamp(0)))
        for directory, base, name in walk(os.dup(layer), b""):
            try:
                self._entry(directory, base, name)
            except OSError as error:
                raise HostError(f"read {show_name(name)}: {error.strerror}") from error
        self._raw(END)
        self._frame.close()

    def _raw(self, data: bytes) -> None:
        self._frame.raw(data)
        self.digest.update(data)
        self.tar_bytes += len(data)

    def _clamp(self, time_ns: int) -> int:
        return time_ns if self._clamp_ns is None else min(time_ns, self._clamp_ns)

    def _entry(self, directory: int, base: bytes, name: bytes) -> None:
        found = os.stat(base, dir_fd=directory, follow_symlinks=False)
        if base.startswith(_WHITEOUT):
            raise Invalid(
                f"{show_name(name)} can't be in an image: a name that begins with .wh. means a deletion in a layer; "
                "rename it"
            )
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
            above = posixpath.dirname(name)
            self._raw(_empty_file(posixpath.join(above, _WHITEOUT + base), 0))
            return
        kind = _KINDS.get(stat.S_IFMT(found.st_mode))
        if kind is None:  # a socket: tar can't hold one, and of a layer it is no part
            os.unlink(base, dir_fd=directory)
            return
        # Whole seconds, as the header has them: the files are the same here and where the layer is unpacked.
        mtime_ns = self._clamp(found.st_mtime_ns) // _SECOND_NS * _SECOND_NS
        if mtime_ns != found.st_mtime_ns:
            os.utime(base, ns=(mtime_ns, mtime_ns), dir_fd=directory, follow_symlinks=False)
        entry = Entry(
            name=name,
            kind=kind,
            mode=stat.S_IMODE(found.st_mode),
            uid=found.st_uid,
            gid=found.st_gid,
            mtime_ns=mtime_ns,
        )
        if kind == "file":
            self._file(directory, base, entry, found)
            return
        if kind == "symlink":
            entry.link = os.readlink(base, dir_fd=directory)
        elif kind in ("char", "block"):
            entry.major, entry.minor = os.major(found.st_rdev), os.minor(found.st_rdev)
        elif kind == "dir":
            fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            try:
                entry.xattrs = _attributes(fd)
            finally:
                os.close(fd)
        self._raw(encode_header(entry))
        if name in self._opaque:
            self._raw(_empty_file(name + b"/.wh..wh..opq", 0))

    def _file(self, directory: int, base: bytes, entry: Entry, found: os.stat_result) -> None:
        if found.st_nlink > 1:
            first = self._seen.setdefault((found.st_dev, found.st_ino), entry.name)
            if first != entry.name:
                entry.kind, entry.link = "link", first
                self._raw(encode_header(entry))
                return
        fd = os.open(base, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        try:
            entry.size = found.st_size
            entry.xattrs = _attributes(fd)
            self._raw(encode_header(entry))
            if not entry.size:
                return
            self._frame.file(entry.name, entry.size)
            for piece in _content(fd, entry.size, entry.name):
                self.digest.update(piece)
            self.tar_bytes += entry.size
            self.size_bytes += entry.size
            if rest := padding(entry.size):
                self._raw(rest)
        finally:
            os.close(fd)


def _content(fd: int, size: int, name: bytes) -> Iterator[bytes]:
    left = size
    while left:
        piece = os.read(fd, min(left, _PIECE))
        if not piece:
            raise HostError(f"{show_name(name)} became shorter while it was read")
        left -= len(piece)
        yield piece


def _attributes(fd: int) -> dict[str, bytes]:
    try:
        return {name: os.getxattr(fd, name) for name in os.listxattr(fd) if wanted_attribute(name)}
    except OSError:
        return {}


def _empty_file(name: bytes, mtime_ns: int) -> bytes:
    return encode_header(Entry(name=name, kind="file", mode=0o600, mtime_ns=mtime_ns))


def _remove(layer: int, path: bytes) -> None:
    above, _, base = path.rpartition(b"/")
    try:
        directory = openat2(layer, above or b".", os.O_RDONLY | os.O_DIRECTORY, _RESOLVE)
    except OSError:
        return
    try:
        if stat.S_ISDIR(os.stat(base, dir_fd=directory, follow_symlinks=False).st_mode):
            os.rmdir(base, dir_fd=directory)
        else:
            os.unlink(base, dir_fd=directory)
    except OSError:
        pass  # gone, or something is in it after all: it stays
    finally:
        os.close(directory)
