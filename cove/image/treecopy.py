"""COPY, ADD and WORKDIR inside a worker: files of packs and of snapshots onto an overlay.

The process's root is the destination, an overlay whose upper directory becomes the layer. Whatever comes from outside
(targets, links in either tree, archives) is resolved by descriptor with openat2(2) RESOLVE_IN_ROOT, the tree being the
root. Rules, as BuildKit has them (tonistiigi/fsutil, copy; docs of COPY):

- the target is a directory if it ends with a slash, if it is one, or if there is more than one source;
- of a source directory what is in it is copied, the target itself is 0755 when it is made; a directory that is
  there keeps its owner and mode;
- a file replaces a file or a link, never a directory; a directory never replaces what isn't one;
- what has to be made above the target is 0755 and the owner's.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence

from cove.image.archive import extract_into, walk
from cove.image.decode import compression_of, decoder
from cove.image.extract import wanted_attribute
from cove.image.jobs import CopyFiles, PackedItem, TreeItem
from cove.image.sandbox import O_PATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2
from cove.image.selection import Excludes, Fact, Found, clean_path, find_items, kept_name
from cove.image.tarformat import BLOCK, Bytes, looks_like_tar, show_name
from cove.image.treeindex import EntryKind, FileEntry
from cove.model.errors import CoveError, HostError, Invalid

_RESOLVE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_STRICT = _RESOLVE | RESOLVE_NO_SYMLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 1 << 20
_KINDS: dict[int, EntryKind] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}
_OPEN_MAX = 64

Content = Callable[[], int]  # opens the content of a file: a descriptor at its start, which the caller closes


class SnapshotTree:
    """A mounted snapshot, for `find_items`."""

    def __init__(self, root: int) -> None:
        self.root = root

    def fact(self, path: bytes) -> Fact | None:
        found = self.status(path)
        if found is None:
            return None
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "other")
        if kind == "symlink":
            above, _, base = path.rpartition(b"/")
            directory = openat2(self.root, above or b".", O_PATH | os.O_DIRECTORY, _STRICT)
            try:
                return Fact(kind, os.readlink(base, dir_fd=directory))
            finally:
                os.close(directory)
        return Fact(kind)

    def status(self, path: bytes) -> os.stat_result | None:
        try:
            fd = openat2(self.root, path or b".", O_PATH | os.O_NOFOLLOW, _RESOLVE)
        except OSError:
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def names(self, path: bytes) -> Sequence[bytes]:
        try:
            fd = openat2(self.root, path or b".", os.O_RDONLY | os.O_DIRECTORY, _STRICT)
        except OSError:
            return ()
        try:
            return sorted(os.fsencode(name) for name in os.listdir(fd))
        finally:
            os.close(fd)

    def entries(self, found: Found) -> Iterator[tuple[FileEntry, int, bytes]]:
        """What a source stands for: each entry, its path relative to the source, with the directory that holds it
        and its name there. Of a directory, itself comes first."""
        above, _, base = found.path.rpartition(b"/")
        directory = openat2(self.root, above or b".", os.O_RDONLY | os.O_DIRECTORY, _STRICT)
        try:
            base = base or b"."
            entry = read_entry(directory, base, b"")
            if entry is None:
                return
            yield entry, directory, base
            if entry.kind == "dir":
                top = os.open(base, _DIRECTORY, dir_fd=directory)
                for fd, name, full in walk(top, b""):
                    below = read_entry(fd, name, full)
                    if below is not None:
                        yield below, fd, name
        finally:
            os.close(directory)


def read_entry(directory: int, base: bytes, path: bytes) -> FileEntry | None:
    """An entry without its content's digest; None for a socket."""
    found = os.stat(base, dir_fd=directory, follow_symlinks=False)
    kind = _KINDS.get(stat.S_IFMT(found.st_mode))
    if kind is None:
        return None
    xattrs: dict[str, bytes] = {}
    if kind in ("file", "dir"):
        try:
            fd = os.open(base, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        except OSError as error:
            raise HostError(f"read {show_name(path or base)}: {error.strerror}") from error
        try:
            xattrs = {n: os.getxattr(fd, n) for n in os.listxattr(fd) if wanted_attribute(n)}
        except OSError:
            pass
        finally:
            os.close(fd)
    many = kind != "dir" and found.st_nlink > 1
    return FileEntry(
        path,
        kind,
        stat.S_IMODE(found.st_mode),
        found.st_uid,
        found.st_gid,
        found.st_mtime_ns,
        found.st_size if kind == "file" else 0,
        link=os.readlink(base, dir_fd=directory) if kind == "symlink" else b"",
        device=found.st_rdev if kind in ("char", "block") else 0,
        inode=b"%d:%d" % (found.st_dev, found.st_ino) if many else b"",
        xattrs=xattrs,
    )


class Copier:
    """One copy onto the tree at `root`."""

    def __init__(self, job: CopyFiles, root: int, trees: Sequence[int]) -> None:
        self._job = job
        self._root = root
        self._trees = [SnapshotTree(fd) for fd in trees]
        self._excludes = Excludes(job.excludes, rooted=job.parents)
        self._mode = parse_mode(job.mode) if job.mode else None
        self._left = job.budget_bytes
        self._links: dict[tuple[int, bytes], bytes] = {}
        self._times: list[tuple[bytes, int]] = []
        self._count = 0
        self._directories: dict[bytes, int] = {}

    def run(self) -> None:
        """Do it. CoveError for the first thing that can't be."""
        try:
            self._run()
        except OSError as error:
            name = show_name(error.filename) if isinstance(error.filename, bytes) else "a file"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise HostError("no space left on the image store's disk: free some") from error
            raise HostError(f"copy {name}: {error.strerror}") from error
        finally:
            for fd in self._directories.values():
                os.close(fd)

    def _run(self) -> None:
        job = self._job
        target = job.target
        if job.directory_only:
            os.close(self._make_directories(target))
            return
        sources: list[tuple[int, PackedItem | Found, bool]] = []
        for item in job.items:
            if isinstance(item, PackedItem):
                sources.append((-1, item, item.unpack))
            else:
                assert isinstance(item, TreeItem)
                for found in find_items(self._trees[item.tree], item.path):
                    kept = found._replace(name=kept_name(item.pivot, found.name))
                    sources.append((item.tree, kept, item.unpack))
        files = [
            s for _, s, _ in sources if not (s.directory if isinstance(s, PackedItem) else s.kind == "dir")
        ]
        into = target.endswith(b"/") or target in (b"", b"/")
        if len(sources) > 1 and not into and not self._is_directory(target):
            if files:
                raise Invalid(
                    "When using COPY with more than one source file, the destination must be a directory and end "
                    f"with a /: {show_name(target)}"
                )
            into = True
        for tree, source, unpack in sources:
            self._copy_source(tree, source, target, into, unpack)
        for path, mtime_ns in reversed(self._times):
            try:
                fd = self._open(path)
            except OSError:
                continue
            os.utime(fd, ns=(mtime_ns, mtime_ns))

    def _copy_source(
        self, tree: int, source: PackedItem | Found, target: bytes, into: bool, unpack: bool
    ) -> None:
        if isinstance(source, PackedItem):
            shown, directory, name = source.shown, source.directory, source.name
        else:
            shown, directory, name = source.name, source.kind == "dir", source.path.rpartition(b"/")[2]
        base = target.strip(b"/")
        if self._job.parents:
            base = _join(base, shown)
        elif not directory and (into or self._is_directory(target)):
            base = _join(base, shown.rpartition(b"/")[2] or name)
        self._links.clear()
        for number, (entry, opened) in enumerate(self._entries(tree, source)):
            if self._excludes.leaves_out(shown, entry.path):
                continue
            path = _join(base, entry.path)
            if number == 0 and unpack and entry.kind == "file":
                goal = base if self._job.parents else target.strip(b"/")
                if self._unpack(entry, opened, goal):
                    continue
            self._put(entry, opened, path, top=number == 0, tree=tree)

    def _entries(self, tree: int, source: PackedItem | Found) -> Iterator[tuple[FileEntry, Content]]:
        if isinstance(source, PackedItem):
            for entry in source.entries:
                yield entry, lambda entry=entry: self._open_packed(entry)  # type: ignore[misc]
            return
        for entry, directory, base in self._trees[tree].entries(source):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            yield entry, lambda: os.open(base, flags, dir_fd=directory)  # noqa: B023

    def _open_packed(self, entry: FileEntry) -> int:
        return os.dup(self._job.packs[entry.pack])

    # --- one entry ----------------------------------------------------------------------------

    def _put(self, entry: FileEntry, opened: Content, path: bytes, *, top: bool, tree: int) -> None:
        above, _, base = path.rpartition(b"/")
        if entry.kind == "dir":
            if top and not self._job.parents:
                entry = FileEntry(b"", "dir", 0o755)  # the target's own, as BuildKit and dockerd have it
            self._put_directory(entry, path, plain=top and not self._job.parents)
            return
        directory = self._parent(above, made_for=top)
        if not base:
            raise Invalid("the destination of a file can't be the root: name one, e.g. /app/")
        self._clear(directory, base, path)
        known = self._links.get((tree, entry.inode)) if entry.inode else None
        if known is not None:
            known_above, _, known_base = known.rpartition(b"/")
            source = self._parent(known_above, made_for=False)
            os.link(known_base, base, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
            return
        if entry.kind == "file":
            self._put_file(entry, opened, directory, base, path)
        elif entry.kind == "symlink":
            os.symlink(entry.link or b".", base, dir_fd=directory)
            os.chown(base, *self._owner(entry), dir_fd=directory, follow_symlinks=False)
            self._touch(directory, base, entry.mtime_ns)
        else:
            kinds = {"char": stat.S_IFCHR, "block": stat.S_IFBLK, "fifo": stat.S_IFIFO}
            os.mknod(base, kinds[entry.kind] | 0o600, entry.device, dir_fd=directory)
            os.chown(base, *self._owner(entry), dir_fd=directory, follow_symlinks=False)
            os.chmod(base, self._new_mode(entry), dir_fd=directory)
            self._touch(directory, base, entry.mtime_ns)
        if entry.inode:
            self._links[tree, entry.inode] = path

    def _put_file(self, entry: FileEntry, opened: Content, directory: int, base: bytes, path: bytes) -> None:
        self._left -= entry.size
        if self._left < 0:
            raise HostError(
                f"the files to copy are larger than the {self._job.budget_bytes >> 20} MiB that may be written: "
                "no space left on the image store's disk"
            )
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(base, flags, 0o600, dir_fd=directory)
        try:
            if entry.size:
                source = opened()
                try:
                    _copy_range(source, entry.offset, fd, entry.size, path)
                finally:
                    os.close(source)
            os.fchown(fd, *self._owner(entry))
            os.fchmod(fd, self._new_mode(entry))
            _set_attributes(fd, entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _put_directory(self, entry: FileEntry, path: bytes, *, plain: bool) -> None:
        if not path:
            return
        above, _, base = path.rpartition(b"/")
        directory = self._parent(above, made_for=not entry.path)
        try:
            os.mkdir(base, 0o700, dir_fd=directory)
        except FileExistsError:
            try:
                found = os.stat(base, dir_fd=directory, follow_symlinks=False)
                if stat.S_ISLNK(found.st_mode) and not entry.path:
                    self._open(path)  # the target itself may be named by a link
                    return
                if not stat.S_ISDIR(found.st_mode):
                    raise NotADirectoryError
            except NotADirectoryError:
                raise Invalid(f"cannot copy to non-directory: /{_text(path)}") from None
            return
        fd = os.open(base, _DIRECTORY, dir_fd=directory)
        try:
            os.fchown(fd, *self._owner(entry))
            os.fchmod(fd, entry.mode if plain else self._new_mode(entry))
            _set_attributes(fd, entry)
        finally:
            os.close(fd)
        if entry.mtime_ns:
            self._times.append((path, entry.mtime_ns))

    def _clear(self, directory: int, base: bytes, path: bytes) -> None:
        try:
            found = os.stat(base, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(found.st_mode):
            raise Invalid(f"cannot copy to directory: /{_text(path)} is one, and the source is a file")
        os.unlink(base, dir_fd=directory)

    def _owner(self, entry: FileEntry | None) -> tuple[int, int]:
        if self._job.owner is not None:
            return self._job.owner
        if entry is not None and self._job.keep_owner:
            return entry.uid, entry.gid
        return 0, 0

    def _new_mode(self, entry: FileEntry) -> int:
        if self._mode is None:
            return entry.mode
        return self._mode(entry.mode, entry.kind == "dir")

    def _touch(self, directory: int, base: bytes, mtime_ns: int) -> None:
        os.utime(base, ns=(mtime_ns, mtime_ns), dir_fd=directory, follow_symlinks=False)

    # --- archives -----------------------------------------------------------------------------

    def _unpack(self, entry: FileEntry, opened: Content, target: bytes) -> bool:
        """ADD: unpack what is an archive; False: it is none."""
        fd = opened()
        try:
            head = os.pread(fd, BLOCK, entry.offset)[: entry.size]
            compression = compression_of(head)
            if compression:
                try:
                    read = decoder(compression, _reader(fd, entry.offset, entry.size), self._job.limits)
                    head = bytes(read()[:BLOCK])
                except CoveError:
                    return False
            if not looks_like_tar(head) or not any(head):
                return False
            directory = self._make_directories(target)
            os.close(directory)
            place = openat2(self._root, target or b".", os.O_RDONLY | os.O_DIRECTORY, _RESOLVE)
            try:
                extract_into(
                    place, _reader(fd, entry.offset, entry.size), self._job.limits, owner=self._job.owner
                )
            finally:
                os.close(place)
            return True
        finally:
            os.close(fd)

    # --- directories --------------------------------------------------------------------------

    def _is_directory(self, path: bytes) -> bool:
        try:
            fd = openat2(self._root, path.strip(b"/") or b".", O_PATH | os.O_DIRECTORY, _RESOLVE)
        except OSError:
            return False
        os.close(fd)
        return True

    def _open(self, path: bytes) -> int:
        """A directory of the destination, kept open for the next ones; links are followed within the tree."""
        fd = self._directories.pop(path, -1)
        if fd < 0:
            fd = openat2(self._root, path or b".", os.O_RDONLY | os.O_DIRECTORY, _RESOLVE)
        while len(self._directories) >= _OPEN_MAX:
            os.close(self._directories.pop(next(iter(self._directories))))
        self._directories[path] = fd
        return fd

    def _parent(self, path: bytes, *, made_for: bool) -> int:
        try:
            return self._open(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP) or not (
                made_for or self._job.parents
            ):
                raise
        os.close(self._make_directories(path))
        return self._open(path)

    def _make_directories(self, target: bytes) -> int:
        """The directory at a path, with those above it; links on the way are followed. The caller closes it."""
        todo = [part for part in target.split(b"/") if part not in (b"", b".")]
        done: list[bytes] = []
        fd = os.dup(self._root)
        for part in todo:
            done = done[:-1] if part == b".." else [*done, part]
            path = b"/".join(done)
            try:
                below = openat2(self._root, path or b".", os.O_RDONLY | os.O_DIRECTORY, _RESOLVE)
            except FileNotFoundError:
                below = self._make_one(fd, part, path)
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise Invalid(
                        f"cannot make the directory /{_text(path)}: what is there is no directory"
                    ) from error
                raise
            os.close(fd)
            fd = below
        return fd

    def _make_one(self, above: int, part: bytes, path: bytes) -> int:
        try:
            os.mkdir(part, 0o755, dir_fd=above)
        except FileExistsError:  # a link that leads to nothing: its target is made, within the tree
            link = os.readlink(part, dir_fd=above)
            self._count += 1
            if self._count > 40:
                raise Invalid(f"/{_text(path)} goes through too many symbolic links") from None
            parent = path.rpartition(b"/")[0]
            goal = link if link.startswith(b"/") else _join(parent, link)
            return self._make_directories(clean_path(goal))
        fd = os.open(part, _DIRECTORY, dir_fd=above)
        os.fchown(fd, *(self._job.owner or (0, 0)))
        os.fchmod(fd, 0o755)
        return fd


def _copy_range(source: int, offset: int, target: int, size: int, path: bytes) -> None:
    """Copy `size` bytes; by reference where the file system can."""
    left = size
    while left:
        try:
            count = os.copy_file_range(source, target, min(left, 1 << 30), offset)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM):
                raise
            piece = os.pread(source, min(left, _PIECE), offset)
            count = len(piece)
            while piece:
                piece = piece[os.write(target, piece) :]
        if not count:
            raise HostError(f"{show_name(path)} became shorter while it was copied")
        offset += count
        left -= count


def _reader(fd: int, offset: int, size: int) -> Callable[[], Bytes]:
    at, end = offset, offset + size

    def read() -> Bytes:
        nonlocal at
        piece = os.pread(fd, min(_PIECE, end - at), at)
        at += len(piece)
        return piece

    return read


def _set_attributes(fd: int, entry: FileEntry) -> None:
    for name, value in entry.xattrs.items():
        if not wanted_attribute(name):
            continue
        try:
            os.setxattr(fd, name, value)
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM) or name == "security.capability":
                raise


def _join(above: bytes, below: bytes) -> bytes:
    return b"/".join(part for part in (above.strip(b"/"), below.strip(b"/")) if part)


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


_CLAUSE = re.compile(r"([ugoa]*)([-+=][rwxXst]*)+")
_ACTION = re.compile(r"([-+=])([rwxXst]*)")


def parse_mode(text: str) -> Callable[[int, bool], int]:
    """chmod(1)'s octal or symbolic mode as a function of the mode that was and whether it is a directory. Invalid."""
    if re.fullmatch(r"[0-7]{1,5}", text) and int(text, 8) <= 0o7777:
        number = int(text, 8)
        return lambda mode, directory: number
    clauses = text.split(",")
    if not all(_CLAUSE.fullmatch(clause) for clause in clauses):
        raise Invalid(
            f"invalid chmod parameter: '{text}': use an octal number such as 755, or e.g. u=rwX,go=rX"
        )

    def change(mode: int, directory: bool) -> int:
        for clause in clauses:
            who = re.match(r"[ugoa]*", clause)
            assert who is not None
            users = who[0] or "a"
            users = "ugo" if "a" in users else users
            for action, letters in _ACTION.findall(clause[who.end() :]):
                mode = _apply(mode, users, action, letters, directory)
        return mode

    return change


def _apply(mode: int, users: str, action: str, letters: str, directory: bool) -> int:
    bits = 0
    shifts = {"u": 6, "g": 3, "o": 0}
    run = directory or bool(mode & 0o111)
    for user in users:
        for letter in letters:
            if letter in "rwx":
                bits |= {"r": 4, "w": 2, "x": 1}[letter] << shifts[user]
            elif letter == "X" and run:
                bits |= 1 << shifts[user]
            elif letter == "s" and user in "ug":
                bits |= 0o4000 if user == "u" else 0o2000
            elif letter == "t":
                bits |= 0o1000
    if action == "+":
        return mode | bits
    if action == "-":
        return mode & ~bits
    cleared = sum(7 << shifts[user] for user in users)
    cleared |= (0o4000 if "u" in users else 0) | (0o2000 if "g" in users else 0)
    return mode & ~cleared | bits
