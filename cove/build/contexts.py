"""Directories that clients build from: what was sent of them is kept, and only what has changed is sent again.

    builds/contexts/KEY/index      Stored: the files of the last build, where their contents lie, their stamps
    builds/contexts/KEY/TOKEN      packs: contents, one after the other

A client says what files there are (`plan`), the answer is which contents are missing; these come as one stream
(`receive`). A file counts as unchanged while size and stamp (inode, times) are; one that was changed within the last
two seconds may change once more without its times showing it, so its stamp isn't kept (git's racy entries).

Order that must hold: a pack is whole and synced before the index that names it is put in place. It is a cache: any
of it may be lost, or removed between builds. What blocks runs in threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from cove.build.sources import PackedTree
from cove.image.tarformat import show_name
from cove.image.tarindex import MAX_ENTRIES
from cove.image.treeindex import EntryKind, FileEntry, TreeIndex
from cove.model.errors import HostError, Invalid, NotFound

MAX_LISTING_BYTES = 128 << 20
MAX_PENDING = 64
PENDING_S = 600.0  # a context that nobody built from by then is forgotten
KEEP_BYTES = 10 << 30
_RACY_NS = 2 * 10**9
_PACKS_MAX = 16
_WASTE_BYTES = 64 << 20
_KEY = re.compile(r"[0-9a-f]{8,64}")
_FIELDS = 8
_KINDS: dict[bytes, EntryKind] = {b"f": "file", b"d": "dir", b"s": "symlink"}
_EMPTY = hashlib.sha256().digest()


class Row(msgspec.Struct, frozen=True, gc=False):
    """What a client says of one file. `stamp` changes whenever the file may have changed."""

    path: bytes
    kind: EntryKind
    mode: int
    size: int = 0
    mtime_ns: int = 0
    stamp: bytes = b""
    link: bytes = b""
    inode: bytes = b""  # the same for several names of one file


class Stored(msgspec.Struct, array_like=True):
    packs: list[str]
    entries: list[FileEntry]
    stamps: list[bytes]


class Pending:
    """A context on its way, or whole (`index` isn't None)."""

    def __init__(self, key: str, directory: Path, packs: list[str], rows: list[Row]) -> None:
        self.id = secrets.token_hex(16)
        self.key = key
        self.directory = directory
        self.packs = packs
        self.rows = rows
        self.entries: list[FileEntry | None] = []
        self.missing: list[int] = []
        self.index: TreeIndex | None = None
        self.fds: list[int] = []
        self.begun_s = time.monotonic()

    @property
    def missing_bytes(self) -> int:
        return sum(self.rows[number].size for number in self.missing)

    async def open(self) -> PackedTree:
        """The tree, for one step; whoever has it closes it. NotFound: its contents weren't sent."""
        if self.index is None:
            raise NotFound("the build context isn't whole: its missing contents weren't sent")
        return PackedTree(self.index, [os.dup(fd) for fd in self.fds])

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class Contexts:
    """The contexts of one daemon, below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._pending: dict[str, Pending] = {}

    async def plan(self, key: str, listing: bytes, budget_bytes: int) -> Pending:
        """Take a listing; the context, whole or with what is missing of it. Raises Invalid, HostError."""
        if not _KEY.fullmatch(key):
            raise Invalid(
                f"key: expected 8 to 64 hexadecimal digits that stand for the directory, got {key!r}"
            )
        self._forget_old()
        pending = await asyncio.to_thread(self._plan, key, listing)
        if pending.missing_bytes > budget_bytes:
            raise HostError(
                f"the build context is larger than the {budget_bytes >> 20} MiB that the disk has room for: "
                "no space left; leave files out by .dockerignore, or free some space"
            )
        if not pending.missing:
            await asyncio.to_thread(self._complete, pending)
        self._pending[pending.id] = pending
        return pending

    def take(self, context_id: str) -> Pending:
        """A whole context, for a build that closes it. NotFound."""
        pending = self._pending.get(context_id)
        if pending is None or pending.index is None:
            raise NotFound(f"No such build context: {context_id}: it was used, or is too old: send it again")
        return self._pending.pop(context_id)

    def _forget_old(self) -> None:
        oldest_first = list(self._pending.values())
        for pending in oldest_first:
            old = time.monotonic() - pending.begun_s > PENDING_S
            if old or len(self._pending) >= MAX_PENDING:
                self._pending.pop(pending.id)
                pending.close()

    def _plan(self, key: str, listing: bytes) -> Pending:
        rows = parse_listing(listing)
        for row in rows:
            if not row.path or row.path.startswith(b"/") or b".." in row.path.split(b"/") or row.size < 0:
                raise Invalid(f"the build context has a file whose path leads outside: {show_name(row.path)}")
        directory = self.root / key
        stored = self._read(directory)
        known = {}
        packs: list[str] = []
        if stored is not None and not _is_wasteful(directory, stored):
            packs = stored.packs
            known = {
                entry.path: (entry, stamp)
                for entry, stamp in zip(stored.entries, stored.stamps, strict=True)
                if stamp
            }
        pending = Pending(key, directory, list(packs), rows)
        for number, row in enumerate(rows):
            before = known.get(row.path)
            if row.kind != "file" or not row.size:
                pending.entries.append(_entry(row, _EMPTY if row.kind == "file" else b"", 0, 0))
            elif before is not None and before[1] == row.stamp and before[0].size == row.size:
                pending.entries.append(_entry(row, before[0].digest, before[0].pack, before[0].offset))
            else:
                pending.entries.append(None)
                pending.missing.append(number)
        return pending

    def _read(self, directory: Path) -> Stored | None:
        try:
            stored = msgspec.msgpack.decode((directory / "index").read_bytes(), type=Stored)
        except (OSError, msgspec.MsgspecError):
            return None
        if all((directory / name).is_file() for name in stored.packs):
            return stored
        return None

    async def receive(self, context_id: str, chunks: AsyncIterator[bytes]) -> None:
        """Take the missing contents, one after the other in the order of `missing`. Raises NotFound, Invalid,
        HostError; then the context is forgotten."""
        pending = self._pending.get(context_id)
        if pending is None:
            raise NotFound(f"No such build context: {context_id}: it was used, or is too old: send it again")
        receiver = await asyncio.to_thread(_Receiver, pending)
        try:
            batch: list[bytes] = []
            size = 0
            async for chunk in chunks:
                batch.append(chunk)
                size += len(chunk)
                if size >= 1 << 20:
                    await asyncio.to_thread(receiver.feed, b"".join(batch))
                    batch, size = [], 0
            await asyncio.to_thread(receiver.feed, b"".join(batch))
            await asyncio.to_thread(receiver.finish)
            await asyncio.to_thread(self._complete, pending)
        except BaseException:
            self._pending.pop(context_id, None)
            pending.close()
            receiver.discard()
            raise

    def _complete(self, pending: Pending) -> None:
        """All contents are there: remember the files, and open the packs."""
        entries = [entry for entry in pending.entries if entry is not None]
        assert len(entries) == len(pending.rows), "the receiver has filled in what was missing"
        now_ns = time.time_ns()
        stamps = [row.stamp if row.mtime_ns < now_ns - _RACY_NS else b"" for row in pending.rows]
        pending.fds = [
            os.open(pending.directory / name, os.O_RDONLY | os.O_CLOEXEC) for name in pending.packs
        ]
        pending.index = TreeIndex(entries)
        if pending.missing or not (pending.directory / "index").exists():
            self._write(pending, Stored(pending.packs, entries, stamps))
            self._bound()
        else:
            os.utime(pending.directory / "index")

    def _write(self, pending: Pending, stored: Stored) -> None:
        directory = pending.directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = directory / f"index.{pending.id}"
        temporary.write_bytes(msgspec.msgpack.encode(stored))
        os.rename(temporary, directory / "index")
        busy = {name for one in list(self._pending.values()) if one.key == pending.key for name in one.packs}
        for name in os.listdir(directory):
            if name != "index" and name not in stored.packs and name not in busy:
                (directory / name).unlink(missing_ok=True)

    def _bound(self) -> None:
        """Remove the contexts that were used longest ago, until the rest takes at most KEEP_BYTES."""
        found = self.usage()
        total = sum(size for _, size, _ in found)
        busy = {pending.key for pending in list(self._pending.values())}
        for name, size, _ in sorted(found, key=lambda one: one[2])[:-1]:
            if total <= KEEP_BYTES:
                return
            if name not in busy:
                shutil.rmtree(self.root / name, ignore_errors=True)
                total -= size

    def usage(self) -> list[tuple[str, int, int]]:
        """Each directory's key, its bytes, and when it was used last. Blocks."""
        found = []
        for entry in os.scandir(self.root) if self.root.exists() else ():
            size, used_ns = 0, 0
            for file in os.scandir(entry.path):
                status = file.stat(follow_symlinks=False)
                size += status.st_blocks * 512
                used_ns = max(used_ns, status.st_mtime_ns)
            found.append((entry.name, size, used_ns))
        return found

    def prune(self) -> int:
        """Forget all that no build waits with; the bytes that it took. Blocks."""
        busy = {pending.key for pending in list(self._pending.values())}
        freed = 0
        for name, size, _ in self.usage():
            if name not in busy:
                shutil.rmtree(self.root / name, ignore_errors=True)
                freed += size
        return freed


def parse_listing(data: bytes) -> list[Row]:
    """Eight fields for each file, a NUL after each: path, f d or s (symlink), mode (octal), size, time of its last
    change (nanoseconds), stamp, target of a link, inode. Raises Invalid."""
    fields = data.split(b"\0")
    if fields.pop() or len(fields) % _FIELDS:
        raise Invalid("the listing of the build context is cut off: send it again")
    if len(fields) > _FIELDS * MAX_ENTRIES:
        raise Invalid(
            f"the build context has {len(fields) // _FIELDS} files, the limit is {MAX_ENTRIES}: leave some out by "
            ".dockerignore"
        )
    rows = []
    try:
        for at in range(0, len(fields), _FIELDS):
            path, kind, mode, size, mtime, stamp, link, inode = fields[at : at + _FIELDS]
            rows.append(Row(path, _KINDS[kind], int(mode, 8), int(size), int(mtime), stamp, link, inode))
    except (KeyError, ValueError):
        raise Invalid("the listing of the build context has a file whose facts can't be read") from None
    return rows


class _Receiver:
    """Cuts a stream into the missing contents, hashes them and writes them to a pack. Blocks."""

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        self._name = secrets.token_hex(8)
        pending.packs.append(self._name)
        pending.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = pending.directory / self._name
        self._file = open(self._path, "xb")  # noqa: SIM115 - until finish or discard
        self._todo = iter(pending.missing)
        self._number = next(self._todo, -1)
        self._left = pending.rows[self._number].size if self._number >= 0 else 0
        self._digest = hashlib.sha256()
        self._offset = self._begin = 0

    def feed(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise HostError(
                f"the build context can't be written: {error.strerror}: free some space on the disk"
            ) from error
        while view:
            if self._number < 0:
                raise Invalid("more of the build context was sent than was missing")
            piece = view[: self._left]
            view = view[len(piece) :]
            self._digest.update(piece)
            self._left -= len(piece)
            self._offset += len(piece)
            if not self._left:
                self._end_file()

    def _end_file(self) -> None:
        row = self._pending.rows[self._number]
        pack = len(self._pending.packs) - 1
        self._pending.entries[self._number] = _entry(row, self._digest.digest(), pack, self._begin)
        self._digest, self._begin = hashlib.sha256(), self._offset
        self._number = next(self._todo, -1)
        self._left = self._pending.rows[self._number].size if self._number >= 0 else 0

    def finish(self) -> None:
        if self._number >= 0:
            raise Invalid(
                f"the build context is cut off at {show_name(self._pending.rows[self._number].path)}: send it again"
            )
        self._file.flush()
        os.fdatasync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


def _entry(row: Row, digest: bytes, pack: int, offset: int) -> FileEntry:
    return FileEntry(
        row.path,
        row.kind,
        row.mode & 0o7777,
        mtime_ns=row.mtime_ns,
        size=row.size if row.kind == "file" else 0,
        digest=digest,
        pack=pack,
        offset=offset,
        link=row.link,
        inode=row.inode,
    )


def _is_wasteful(directory: Path, stored: Stored) -> bool:
    """Whether more of the packs is of no use than is: then all is sent anew."""
    total = sum((directory / name).stat().st_size for name in stored.packs)
    live = sum(entry.size for entry in stored.entries)
    return len(stored.packs) > _PACKS_MAX or total - live > max(live, _WASTE_BYTES)
