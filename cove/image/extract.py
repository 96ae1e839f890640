"""Put the members of an archive into a directory, by descriptor.

Owns every rule on where a member may go. A path is taken apart here, `..` and absolute names are refused,
and its directory is opened once by openat2(2) with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS; everything
else happens relative to that descriptor and follows no link. So no member leaves the directory, also
while another process changes the tree. A file is never written in place: what is there is moved away or
removed first, which keeps the other names of a hard link as they are.

A worker whose root is the tree (`rooted`) can't leave it whatever a path says. There an absolute name counts from
the directory, and links on a member's way are followed, as Docker does: clients put files at /var/run/NAME.

In a layer, whiteouts become what overlayfs wants: a character device 0:0 for `.wh.NAME`, and for
`.wh..wh..opq` an entry in `opaque` (trusted.overlay.opaque takes CAP_SYS_ADMIN, which a worker lacks, so
the daemon sets it). They hide lower layers only, never what the same layer brings, in any order.

Order that must hold for one member: create, content, owner, mode (a change of owner clears setuid),
attributes (security.capability is cleared too), times. Directories get their times at the end.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator

from cove.image import overlayfs
from cove.image.sandbox import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2
from cove.image.tarformat import Entry, TarReader, show_name
from cove.model.errors import Conflict, CoveError, HostError, Invalid

_BENEATH = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORIES_MAX = 64
_WRITEBACK_BYTES = 8 << 20
_ATTRIBUTES = ("user.", "security.capability", "system.posix_acl_")

Parts = tuple[bytes, ...]


class Extractor:
    """One directory being filled. `layer`: whiteouts are understood. `rooted`: it is in this process's root.

    `budget_bytes` bounds what is written (None: the disk decides). `stored(path, size)` is told of each
    plain content written, `replaced(directory, name, path)` is asked to take away what a later member
    replaces. `owner` is given to everything. `close` releases the descriptors, `finish` sets times first.
    """

    def __init__(
        self,
        root: int,
        *,
        layer: bool,
        rooted: bool = False,
        budget_bytes: int | None = None,
        owner: tuple[int, int] | None = None,
        keep_kind: bool = False,
        stored: Callable[[bytes, int], None] | None = None,
        replaced: Callable[[int, bytes, bytes], None] | None = None,
    ) -> None:
        self._root = root
        self._layer = layer
        self._rooted = rooted
        self._stale = False
        self._resolve = RESOLVE_NO_MAGICLINKS if rooted else _BENEATH
        self._budget = budget_bytes
        self._owner = owner
        self._keep_kind = keep_kind
        self._stored = stored
        self._replaced = replaced or (lambda directory, name, _path: remove_tree(directory, name))
        self._directories: dict[Parts, int] = {}
        self._times: dict[Parts, int] = (
            {(): 0} if layer else {}
        )  # the root's, unless the archive says another
        self._whiteouts: set[Parts] = set()
        self.opaque: set[Parts] = set()
        self.size_bytes = 0

    def add(self, entry: Entry, reader: TarReader) -> None:
        """Unpack one member, whose content `reader` has ready. Invalid, Conflict or HostError."""
        parts = split_name(entry.name, rooted=self._rooted)
        if self._stale:
            self.close()
            self._stale = False
        try:
            self._add(parts, entry, reader)
        except OSError as error:
            raise describe_error(error, entry.name) from error

    def finish(self) -> None:
        """Take whiteouts away that hide nothing, give the directories their times, and close."""
        try:
            self._drop_needless()
            for parts in sorted(self._times, key=len, reverse=True):
                try:
                    directory = self._open_parent(parts)
                except OSError:
                    continue  # a later member took its place
                os.utime(directory, ns=(self._times[parts], self._times[parts]))
        finally:
            self.close()

    def _drop_needless(self) -> None:
        """Whiteouts in what is opaque: overlayfs doesn't merge such a directory, and shows them in its listing."""
        for parts in self._whiteouts if self.opaque else ():
            if any(parts[:end] in self.opaque for end in range(len(parts))):
                try:
                    directory = self._open_parent(parts[:-1])
                    found = os.stat(directory)
                    os.unlink(parts[-1], dir_fd=directory)
                except OSError:
                    continue  # a later member took its place
                if parts[:-1] not in self._times:  # which gets its own below
                    os.utime(directory, ns=(found.st_atime_ns, found.st_mtime_ns))

    def close(self) -> None:
        """Let go of the directories; they are opened anew where they are needed."""
        for fd in self._directories.values():
            os.close(fd)
        self._directories.clear()

    # --- members ------------------------------------------------------------------------------

    def _add(self, parts: Parts, entry: Entry, reader: TarReader) -> None:
        if not parts:
            if entry.kind != "dir":
                raise Invalid(f"the archive has a member without a name, of the type {entry.kind}")
            self._dress_directory(self._root, (), entry)
            return
        base = parts[-1]
        directory = self._parent(parts[:-1], entry.name)
        if self._layer and base.startswith(b".wh."):
            self._whiteout(directory, parts, entry)
            return
        if entry.kind == "dir":
            self._add_directory(directory, parts, entry)
            return
        if entry.kind == "file":
            self._add_file(directory, parts, entry, reader)
            return
        if entry.kind == "link":
            self._add_link(directory, parts, entry)
            return
        self._retry(directory, parts, entry, lambda: _make_special(directory, base, entry))
        self._dress_special(directory, base, entry)

    def _add_file(self, directory: int, parts: Parts, entry: Entry, reader: TarReader) -> None:
        base = parts[-1]
        mode = entry.mode & 0o777 if self._layer else 0o600  # nobody sees a layer before it is whole
        try:
            fd = os.open(base, _NEW_FILE, mode, dir_fd=directory)
        except FileExistsError:
            self._make_room(directory, parts, entry)
            fd = os.open(base, _NEW_FILE, mode, dir_fd=directory)
        try:
            if entry.sparse is not None:
                self._spend(entry.stored)
                _write_sparse(fd, entry, reader)
            else:
                self._write_plain(fd, entry, reader)
            self._dress(fd, entry)
        finally:
            os.close(fd)
        if entry.stored and entry.sparse is None and self._stored is not None:
            self._stored(b"/".join(parts), entry.stored)

    def _write_plain(self, fd: int, entry: Entry, reader: TarReader) -> None:
        written = 0
        for piece in reader.content():
            self._spend(len(piece))
            while piece:
                count = os.write(fd, piece)
                piece = piece[count:]
                written += count

    def _add_directory(self, directory: int, parts: Parts, entry: Entry) -> None:
        base = parts[-1]
        try:
            os.mkdir(base, 0o700, dir_fd=directory)
        except FileExistsError:
            found = os.stat(base, dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                self._make_room(directory, parts, entry)
                os.mkdir(base, 0o700, dir_fd=directory)
        fd = self._directories.get(parts, -1)
        if fd < 0:
            fd = os.open(base, _DIRECTORY, dir_fd=directory)
            self._remember(parts, fd)
        self._dress_directory(fd, parts, entry)

    def _add_link(self, directory: int, parts: Parts, entry: Entry) -> None:
        target = split_name(entry.link, what="hard link", rooted=self._rooted)
        if not target or target == parts:
            raise Invalid(f"{show_name(entry.name)} is a hard link to itself or to the root")
        try:
            source = self._open_parent(target[:-1])
            self._retry(
                directory,
                parts,
                entry,
                lambda: os.link(
                    target[-1], parts[-1], src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False
                ),
            )
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise Invalid(
                    f"{show_name(entry.name)} is a hard link to {show_name(entry.link)}, "
                    "which the archive hasn't brought before"
                ) from error
            if error.errno in (errno.EPERM, errno.EXDEV):  # link(2): a directory; another mount
                raise Invalid(
                    f"{show_name(entry.name)} can't be a hard link to {show_name(entry.link)}: "
                    "that is a directory, or on another file system"
                ) from error
            raise

    def _whiteout(self, directory: int, parts: Parts, entry: Entry) -> None:
        name = parts[-1][4:]
        if parts[-1] == b".wh..wh..opq":
            self.opaque.add(parts[:-1])
            return
        if name.startswith(b".wh."):
            return  # what aufs keeps for itself
        if name in (b"", b".", b".."):
            raise Invalid(f"{show_name(entry.name)} is a whiteout without a name")
        path = (*parts[:-1], name)
        try:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=directory)
            os.utime(name, ns=(0, 0), dir_fd=directory, follow_symlinks=False)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                self.opaque.add(path)
            return
        self._whiteouts.add(path)

    def _retry(self, directory: int, parts: Parts, entry: Entry, make: Callable[[], None]) -> None:
        try:
            make()
        except FileExistsError:
            self._make_room(directory, parts, entry)
            make()

    def _make_room(self, directory: int, parts: Parts, entry: Entry) -> None:
        """Take away what stands where the member goes."""
        base = parts[-1]
        try:
            found = os.stat(base, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        is_directory = stat.S_ISDIR(found.st_mode)
        if self._keep_kind and is_directory != (entry.kind == "dir"):
            old, new = ("directory", "non-directory") if is_directory else ("non-directory", "directory")
            path = "/" + b"/".join(parts).decode("utf-8", "backslashreplace")
            raise Invalid(f'cannot overwrite {old} "{path}" with {new} "{path}"')
        if parts in self._whiteouts:
            self._whiteouts.discard(parts)
            os.unlink(base, dir_fd=directory)
            if entry.kind == "dir":
                self.opaque.add(parts)
            return
        if is_directory or stat.S_ISLNK(found.st_mode):
            self._forget(parts)
            self._stale = self._rooted  # other names may have led through it
        self._replaced(directory, base, b"/".join(parts))

    # --- owner, mode, attributes, times -------------------------------------------------------

    def _ids(self, entry: Entry) -> tuple[int, int]:
        uid, gid = self._owner or (entry.uid, entry.gid)
        if uid > 0xFFFFFFFE or gid > 0xFFFFFFFE:
            raise Invalid(f"{show_name(entry.name)} has the owner {uid}:{gid}; the largest is 4294967294")
        return uid, gid

    def _dress(self, fd: int, entry: Entry) -> None:
        """What a new file has already isn't set again: each change costs the file system a journal entry."""
        found = os.fstat(fd)
        owner = self._ids(entry)
        if (found.st_uid, found.st_gid) != owner:
            os.fchown(fd, *owner)
        if stat.S_IMODE(found.st_mode) != entry.mode:
            os.fchmod(fd, entry.mode)
        for name, value in entry.xattrs.items():
            if wanted_attribute(name):
                _set_attribute(fd, name, value)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def _dress_directory(self, fd: int, parts: Parts, entry: Entry) -> None:
        os.fchown(fd, *self._ids(entry))
        os.fchmod(fd, entry.mode)
        for name, value in entry.xattrs.items():
            if wanted_attribute(name):
                _set_attribute(fd, name, value)
        self._times[parts] = entry.mtime_ns

    def _dress_special(self, directory: int, base: bytes, entry: Entry) -> None:
        uid, gid = self._ids(entry)
        os.chown(base, uid, gid, dir_fd=directory, follow_symlinks=False)
        if entry.xattrs:
            os.fchdir(directory)
            for name, value in entry.xattrs.items():
                if wanted_attribute(name):
                    _set_attribute(base, name, value)
        os.utime(base, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=directory, follow_symlinks=False)

    def _spend(self, size: int) -> None:
        self.size_bytes += size
        if self._budget is not None and self.size_bytes > self._budget:
            raise HostError(
                f"the content is larger than the {self._budget >> 20} MiB that may be written: "
                "no space left on the image store's disk (free some, or raise the limit)"
            )

    # --- directories --------------------------------------------------------------------------

    def _parent(self, parts: Parts, name: bytes) -> int:
        """The directory a member goes into; missing ones are made, as root's and 0755."""
        try:
            return self._open_parent(parts)
        except FileNotFoundError:
            pass
        except OSError as error:
            if not (error.errno == errno.ENOTDIR and self._layer):
                raise _blocked(error, name) from error
        for end in range(1, len(parts) + 1):
            self._make_parent(parts[:end], name)
        try:
            return self._open_parent(parts)
        except OSError as error:
            raise _blocked(error, name) from error

    def _make_parent(self, parts: Parts, name: bytes) -> None:
        try:
            above = self._open_parent(parts[:-1])
        except OSError as error:
            raise _blocked(error, name) from error
        try:
            os.mkdir(parts[-1], 0o755, dir_fd=above)
        except FileExistsError:
            if parts in self._whiteouts:
                self._make_room(above, parts, Entry(name=name, kind="dir"))
                os.mkdir(parts[-1], 0o755, dir_fd=above)

    def _open_parent(self, parts: Parts) -> int:
        if not parts:
            return self._root
        fd = self._directories.pop(parts, -1)
        if fd < 0:
            # Without O_NOFOLLOW: a link as the last part is then ELOOP, and not the ENOTDIR of a file.
            fd = openat2(self._root, b"/".join(parts), os.O_RDONLY | os.O_DIRECTORY, self._resolve)
        self._remember(parts, fd)
        return fd

    def _remember(self, parts: Parts, fd: int) -> None:
        # Oldest use first: a member needs two directories at most, and those are the newest.
        if len(self._directories) >= _OPEN_DIRECTORIES_MAX:
            oldest = next(iter(self._directories))
            os.close(self._directories.pop(oldest))
        self._directories[parts] = fd

    def _forget(self, parts: Parts) -> None:
        """A directory goes: nothing that was known below it holds any more."""
        depth = len(parts)
        for known in [p for p in self._directories if p[:depth] == parts]:
            os.close(self._directories.pop(known))
        self._times = {p: t for p, t in self._times.items() if p[:depth] != parts}
        self._whiteouts = {p for p in self._whiteouts if p[:depth] != parts}
        self.opaque = {p for p in self.opaque if p[:depth] != parts}


# --- paths --------------------------------------------------------------------------------


def split_name(name: bytes, *, what: str = "member", rooted: bool = False) -> Parts:
    """A member's name as its parts; Invalid for a name that could lead outside."""
    if name.startswith(b"/") and not rooted:
        raise Invalid(f"the archive has a {what} with an absolute name: {show_name(name)}")
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise Invalid(f"the archive has a {what} that leads outside by '..': {show_name(name)}")
    return parts


def wanted_attribute(name: str) -> bool:
    """Whether an archive may set this extended attribute; overlayfs's own never."""
    return name.startswith(_ATTRIBUTES) and not name.startswith("user.overlay.")


def remove_tree(directory: int, name: bytes) -> None:
    """Remove `name` and what is below it, by descriptors, following no link."""
    try:
        os.unlink(name, dir_fd=directory)
        return
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
    fd = os.open(name, _DIRECTORY, dir_fd=directory)
    try:
        for child in _names(fd):
            remove_tree(fd, child)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=directory)


def _names(fd: int) -> Iterator[bytes]:
    return iter([os.fsencode(name) for name in os.listdir(fd)])


def describe_error(error: OSError, name: bytes) -> CoveError:
    """One sentence for what the kernel refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HostError(f"no space left on the disk while writing {show_name(name)}: free some space")
    if error.errno == errno.ENAMETOOLONG:
        return Invalid(f"a name is longer than the 255 bytes that a file's name may have: {show_name(name)}")
    if error.errno == errno.EROFS:
        return Conflict(f"{show_name(name)} is on a read-only file system")
    return HostError(f"unpack {show_name(name)}: {error.strerror}")


def _blocked(error: OSError, name: bytes) -> CoveError:
    if error.errno == errno.ELOOP:
        return Invalid(f"the archive writes through a symbolic link: {show_name(name)}")
    if error.errno == errno.ENOTDIR:
        return Invalid(f"the archive has {show_name(name)} below something that isn't a directory")
    return describe_error(error, name)


# --- content ------------------------------------------------------------------------------


def _write_sparse(fd: int, entry: Entry, reader: TarReader) -> None:
    parts = iter(entry.sparse or ())
    offset = left = 0
    for piece in reader.content(raw=True):
        while piece:
            while not left:
                offset, left = next(parts)
            count = os.pwrite(fd, piece[:left], offset)
            piece = piece[count:]
            offset += count
            left -= count
    os.ftruncate(fd, entry.size)


def _make_special(directory: int, base: bytes, entry: Entry) -> None:
    if entry.kind == "symlink":
        os.symlink(entry.link or b".", base, dir_fd=directory)
        return
    kind = {"char": stat.S_IFCHR, "block": stat.S_IFBLK, "fifo": stat.S_IFIFO}[entry.kind]
    if entry.major > 0xFFF or entry.minor > 0xFFFFF:
        raise Invalid(f"{show_name(entry.name)} has the impossible device number {entry.major}:{entry.minor}")
    try:
        os.mknod(base, kind | entry.mode, os.makedev(entry.major, entry.minor), dir_fd=directory)
    except PermissionError:
        # mknod(2): in a user namespace nobody makes devices. An image's are of no use there; the file keeps the name.
        if entry.kind == "fifo" or not overlayfs.in_user_namespace():
            raise
        os.close(
            os.open(base, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, entry.mode, dir_fd=directory)
        )


def _set_attribute(where: int | bytes, name: str, value: bytes) -> None:
    try:
        os.setxattr(where, name, value, follow_symlinks=isinstance(where, int))
    except OSError as error:
        # As Docker: a file system without user attributes loses them, a capability must not get lost.
        if error.errno not in (errno.ENOTSUP, errno.EPERM) or name == "security.capability":
            raise
