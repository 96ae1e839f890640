"""An archive that is to be built from, as a pack and an index: read once, hashed, unpacked nowhere.

The pack gets the contents of files one after the other, the index says what each entry is. What an archive may not
have (names that lead outside) is refused; devices are taken as data, for a copy makes them where it may.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import msgspec

from cove.image.decode import Read, compression_of, decoder
from cove.image.extract import split_name, wanted_attribute
from cove.image.tarformat import BLOCK, Bytes, Entry, TarReader, looks_like_tar, show_name
from cove.image.treeindex import FileEntry, Weight, checked_tree
from cove.image.types import Limits
from cove.model.errors import HostError, Invalid

MAX_ENTRIES = 500_000  # some 150 MB of index
_SPARSE_PIECE = 1 << 20


def index_archive(
    read: Read, write: Callable[[Bytes], object], limits: Limits, *, budget_bytes: int
) -> list[FileEntry]:
    """Read an archive to its end. Raises Invalid for what is wrong with it, HostError when `budget_bytes` aren't
    enough for the contents."""
    head = b""
    while len(head) < BLOCK and (chunk := read()):
        head += chunk
    if not head:
        return []
    compression = compression_of(head)
    source = decoder(compression, _with_head(head, read), limits)
    if compression:
        head = b""
        while len(head) < BLOCK and (chunk := source()):
            head += chunk
        source = _with_head(head, source)
    if head and not looks_like_tar(head):
        raise Invalid(
            "the build context isn't a tar archive (nor one compressed with gzip, zstd, xz or bzip2)"
        )
    tar = TarReader(source, limits, entries_max=MAX_ENTRIES)
    indexer = _Indexer(write, budget_bytes)
    while (entry := tar.next_entry()) is not None:
        indexer.add(entry, tar)
    return checked_tree(indexer.entries)


class _Indexer:
    def __init__(self, write: Callable[[Bytes], object], budget_bytes: int) -> None:
        self._write = write
        self._budget = budget_bytes
        self._offset = 0
        self._weight = Weight()
        self.entries: dict[bytes, FileEntry] = {}

    def add(self, entry: Entry, tar: TarReader) -> None:
        """Take a member in. Invalid, HostError."""
        path = b"/".join(split_name(entry.name))
        if entry.kind == "link":
            target = self.entries.get(b"/".join(split_name(entry.link, what="hard link")))
            if target is None or target.kind == "dir":
                raise Invalid(
                    f"{show_name(entry.name)} is a hard link to {show_name(entry.link)}, "
                    "which the archive hasn't brought before"
                )
            inode = target.inode or target.path
            self.entries[target.path] = msgspec.structs.replace(target, inode=inode)
            self.entries[path] = msgspec.structs.replace(target, path=path, inode=inode)
            self._weight.add(self.entries[path])
            return
        digest, size, offset = b"", 0, self._offset
        if entry.kind == "file":
            digest = self._content(entry, tar)
            size = entry.size
        self.entries[path] = FileEntry(
            path,
            entry.kind,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.mtime_ns,
            size,
            digest,
            0,
            offset,
            link=entry.link if entry.kind == "symlink" else b"",
            device=_device(entry),
            xattrs={name: value for name, value in entry.xattrs.items() if wanted_attribute(name)},
        )
        self._weight.add(self.entries[path])

    def _content(self, entry: Entry, tar: TarReader) -> bytes:
        digest = hashlib.sha256()
        if entry.size > self._budget - self._offset:
            raise HostError(
                f"the build context is larger than the {self._budget >> 20} MiB that the disk has room for: "
                "no space left; leave files out by .dockerignore, or free some space"
            )

        def put(data: Bytes) -> None:
            digest.update(data)
            self._write(data)
            self._offset += len(data)

        if entry.sparse is None:
            for piece in tar.content():
                put(piece)
            return digest.digest()
        at, parts = 0, iter(entry.sparse)
        left = 0
        for piece in tar.content(raw=True):
            while piece:
                while not left:
                    offset, left = next(parts)
                    _zeros(offset - at, put)
                    at = offset
                put(piece[:left])
                count = min(left, len(piece))
                piece = piece[count:]
                at += count
                left -= count
        _zeros(entry.size - at, put)
        return digest.digest()


def _zeros(count: int, put: Callable[[Bytes], None]) -> None:
    while count > 0:
        put(bytes(min(count, _SPARSE_PIECE)))
        count -= min(count, _SPARSE_PIECE)


def _device(entry: Entry) -> int:
    if entry.kind not in ("char", "block"):
        return 0
    if entry.major > 0xFFF or entry.minor > 0xFFFFF:
        raise Invalid(f"{show_name(entry.name)} has the impossible device number {entry.major}:{entry.minor}")
    return os.makedev(entry.major, entry.minor)


def _with_head(head: bytes, read: Read) -> Read:
    pending: Bytes = head

    def all_of_it() -> Bytes:
        nonlocal pending
        if pending:
            chunk, pending = pending, b""
            return chunk
        return read()

    return all_of_it
