"""A tree of files as data: what its entries are, and where in a pack their contents lie. Pure.

What a client sends to build from isn't unpacked: contents are appended to *packs*, files of bytes without any form,
and the index says the rest. So a hostile archive never touches a file system: a link in it is a name, nothing else.

Paths are bytes without a slash at either end; b"" is the root, which is always there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import msgspec

from cove.model.errors import Invalid

NAMES_MAX = 128 << 20  # bytes of paths, links and attributes of one tree: it is held in memory
EntryKind = Literal["file", "dir", "symlink", "char", "block", "fifo"]


class FileEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry. Of a file `digest` is the SHA-256 of its content, which is `size` bytes of pack `pack` from
    `offset` on. Entries with the same `inode`, which isn't b"", are names of one file."""

    path: bytes
    kind: EntryKind
    mode: int  # permission bits with setuid, setgid, sticky
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    digest: bytes = b""
    pack: int = 0
    offset: int = 0
    link: bytes = b""  # a symlink's target
    device: int = 0
    inode: bytes = b""
    xattrs: dict[str, bytes] = {}


class Weight:
    """Counts what a tree's names take."""

    def __init__(self) -> None:
        self._bytes = 0

    def add(self, entry: FileEntry) -> None:
        """Take an entry in. Invalid: it is one too many."""
        self._bytes += len(entry.path) + len(entry.link)
        if entry.xattrs:
            self._bytes += sum(len(name) + len(value) for name, value in entry.xattrs.items())
        if self._bytes > NAMES_MAX:
            raise Invalid(
                f"the names, links and attributes of the files have more than {NAMES_MAX >> 20} MiB together: "
                "send fewer files, or directories that nest less deep"
            )


class TreeIndex:
    """Entries by path, and the names in each directory. Invalid for a tree whose names take too much."""

    def __init__(self, entries: Iterable[FileEntry]) -> None:
        self._weight = Weight()
        self.entries: dict[bytes, FileEntry] = {}
        self._names: dict[bytes, list[bytes]] = {b"": []}
        for entry in entries:
            self._add(entry)
        for names in self._names.values():
            names.sort()

    def _add(self, entry: FileEntry) -> None:
        self._weight.add(entry)
        known = self.entries.get(entry.path)
        self.entries[entry.path] = entry
        if entry.kind == "dir":
            self._names.setdefault(entry.path, [])
        if known is not None or not entry.path:
            return
        path = entry.path
        while (
            path
        ):  # and the directories that nobody brought, from the lowest: a path may have some 2,000 of them
            above, _, name = path.rpartition(b"/")
            is_new = above not in self._names
            self._names.setdefault(above, []).append(name)
            if not is_new:
                return
            known_above = above in self.entries
            self.entries[above] = FileEntry(above, "dir", 0o755)
            self._weight.add(self.entries[above])
            path = b"" if known_above else above

    def find(self, path: bytes) -> FileEntry | None:
        """The entry at a path, whose parts are no links."""
        if not path:
            return self.entries.get(b"") or FileEntry(b"", "dir", 0o755)
        return self.entries.get(path)

    def names(self, path: bytes) -> list[bytes]:
        """The names in a directory, sorted; none of what isn't one."""
        return self._names.get(path, [])

    def below(self, path: bytes) -> Iterator[FileEntry]:
        """Everything below a directory, each directory before what is in it, sorted by name."""
        todo = self._full_names(path)
        while todo:
            entry = self.entries[todo.pop()]
            yield entry
            if entry.kind == "dir":
                todo += self._full_names(entry.path)

    def _full_names(self, path: bytes) -> list[bytes]:
        """The paths in a directory, the last first."""
        return [path + b"/" + name if path else name for name in reversed(self.names(path))]


def entry_digest(entry: FileEntry, shown: bytes, *, owner: bool) -> bytes:
    """What counts of an entry for a build's cache, as bytes: all but its times, and its owner where that is kept."""
    return msgspec.msgpack.encode(
        (
            shown,
            entry.kind,
            entry.mode if entry.kind != "symlink" else 0,
            (entry.uid, entry.gid) if owner else (),
            entry.digest if entry.size or entry.digest else b"",
            entry.link,
            entry.device,
            entry.inode and True,
            sorted(entry.xattrs.items()),
        )
    )


def digest_entries(entries: Iterable[tuple[bytes, FileEntry]], *, owner: bool) -> str:
    """The digest of entries under the names that they are to have."""
    digest = hashlib.sha256()
    for shown, entry in entries:
        digest.update(entry_digest(entry, shown, owner=owner))
    return digest.hexdigest()


def checked_tree(entries: Mapping[bytes, FileEntry]) -> list[FileEntry]:
    """Entries of a tree, those left out that lie below something that is no directory (a later member of an archive
    took its place)."""
    kept = []
    for path, entry in entries.items():
        above = path.rpartition(b"/")[0]
        while above:
            found = entries.get(above)
            if found is not None and found.kind != "dir":
                break
            above = above.rpartition(b"/")[0]
        else:
            kept.append(entry)
    return kept
