"""Read layers again and compare them with what they were: inside a worker, whose root is the image store.

A layer's archive is made again (its frame and files, or its blob decompressed) and hashed; then each member is
compared with the file that stands for it: kind, owner, mode, time, attributes, and for a layer with a blob the content,
which no other hash covers. What stands in a layer and in no archive is found by the names' hashes: 8 bytes a name, so
that the largest layer stays in bounds. Overlayfs' own attributes can't be read by a worker and aren't compared.
"""

from __future__ import annotations

import hashlib
import os
import stat
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator

from cove.image.archive import walk
from cove.image.checktypes import Problem
from cove.image.decode import decoder
from cove.image.extract import Parts, split_name, wanted_attribute
from cove.image.frames import read_frame
from cove.image.records import LayerRecord, hex_of
from cove.image.sandbox import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from cove.image.tarformat import Bytes, Entry, TarReader, show_name
from cove.image.types import Limits
from cove.model.errors import CoveError

_PIECE = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_MISMATCHES_MAX = 100_000
_TIMES_END_NS = (1 << 31) * 1_000_000_000  # every file system has those before
_SHOWN = 20  # of one layer's files
_KINDS = {
    "file": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}


def check_layer(root: int, layer: LayerRecord, report: Callable[[int], None]) -> Iterator[Problem]:
    """What is wrong with one layer. `root` is a descriptor of the store, `report` is told how far the archive is."""
    try:
        yield from _check(root, layer, report)
    except (CoveError, OSError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        yield _damaged(layer, text or "can't be read")


def _check(root: int, layer: LayerRecord, report: Callable[[int], None]) -> Iterator[Problem]:
    directory = os.open(f"layers/{layer.name}", _DIRECTORY, dir_fd=root)
    try:
        plain = hashlib.sha256()
        packed = hashlib.sha256()
        size = 0
        pieces = _archive(root, directory, layer, packed.update)

        def read() -> Bytes:
            nonlocal size
            piece = next(pieces, b"")
            plain.update(piece)
            size += len(piece)
            report(size)
            return piece

        compared = _Compared(directory, contents=bool(layer.compression))
        tar = TarReader(read, Limits(), entries_max=Limits().layer_entries)
        while (entry := tar.next_entry()) is not None:
            compared.member(entry, tar)
        while read():
            pass
        if layer.compression and (found := f"sha256:{packed.hexdigest()}") != layer.blob:
            yield _damaged(layer, f"its blob {layer.blob} has the digest {found}")
        if (found := f"sha256:{plain.hexdigest()}") != layer.diff_id:
            yield _damaged(layer, f"its archive, made again, has the digest {found}")
        for text in compared.results():
            yield _damaged(layer, text)
    finally:
        os.close(directory)


def _archive(
    root: int, directory: int, layer: LayerRecord, packed: Callable[[Bytes], None]
) -> Iterator[Bytes]:
    """The layer's tar stream; `packed` is given the blob's bytes where there is a blob."""
    if not layer.compression:
        moved = os.open(f"frames/{layer.name}.moved", _DIRECTORY, dir_fd=root) if layer.moved else None
        try:
            with open(os.open(f"frames/{layer.name}", os.O_RDONLY, dir_fd=root), "rb") as stream:
                yield from read_frame(stream, directory, moved)
        finally:
            if moved is not None:
                os.close(moved)
        return
    with open(
        os.open(f"blobs/sha256/{hex_of(layer.blob)}", os.O_RDONLY, dir_fd=root), "rb", buffering=0
    ) as blob:

        def read() -> Bytes:
            piece = blob.read(_PIECE)
            packed(piece)
            return piece

        unpacked = decoder(layer.compression, read, Limits())
        while piece := unpacked():
            yield piece
        while read():
            pass


class _Compared:
    """A layer's directory against the members of its archive, which come in order."""

    def __init__(self, directory: int, *, contents: bool) -> None:
        self._directory = directory
        self._contents = contents
        self._wrong: dict[Parts, str] = {}  # until a later member takes the place
        self._names = array("Q")
        self._above: Parts = ()

    def member(self, entry: Entry, tar: TarReader) -> None:
        """Compare one member. A later one of the same name decides anew."""
        parts = split_name(entry.name)
        if parts and parts[-1].startswith(b".wh."):
            self._whiteout(parts)
            return
        self._note(parts)
        text = self._differs(parts, entry, tar)
        if entry.kind != "dir" and self._wrong:
            depth = len(parts)
            self._wrong = {path: why for path, why in self._wrong.items() if path[:depth] != parts}
        if text:
            if len(self._wrong) < _MISMATCHES_MAX:
                self._wrong[parts] = text
        else:
            self._wrong.pop(parts, None)

    def _whiteout(self, parts: Parts) -> None:
        if parts[-1].startswith(b".wh..wh.") or not parts[-1][4:]:
            self._note(parts[:-1])
            return
        self._note((*parts[:-1], parts[-1][4:]))

    def _note(self, parts: Parts) -> None:
        self._names.append(_hash(b"/".join(parts)))
        if parts[:-1] == self._above:
            return
        self._above = parts[:-1]
        for end in range(1, len(parts)):
            self._names.append(_hash(b"/".join(parts[:end])))

    def _differs(self, parts: Parts, entry: Entry, tar: TarReader) -> str:
        try:
            if entry.kind == "link":
                os.close(self._open(parts, os.O_PATH | os.O_NOFOLLOW))
                return ""
            fd = self._open(parts, os.O_PATH | os.O_NOFOLLOW)
        except OSError as error:
            return error.strerror or "can't be opened"
        try:
            found = os.fstat(fd)
            if text := _differing(found, entry):
                return text
            if entry.kind == "symlink" and os.readlink(b"", dir_fd=fd) != (entry.link or b"."):
                return "points elsewhere"
        finally:
            os.close(fd)
        if entry.kind == "file" and (self._contents or entry.xattrs):
            return self._file(parts, entry, tar)
        return ""

    def _file(self, parts: Parts, entry: Entry, tar: TarReader) -> str:
        fd = self._open(parts, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            for name, value in entry.xattrs.items():
                if (
                    wanted_attribute(name)
                    and not name.startswith("system.")
                    and _attribute(fd, name) != value
                ):
                    return f"has another attribute {name}"
            if not self._contents:
                return ""
            extents = iter(entry.sparse if entry.sparse is not None else [(0, entry.size)])
            offset = left = 0
            for piece in tar.content(raw=True):
                while piece:
                    while not left:
                        offset, left = next(extents)
                    wanted = piece[:left]
                    if os.pread(fd, len(wanted), offset) != wanted:
                        return "has another content"
                    piece, offset, left = piece[len(wanted) :], offset + len(wanted), left - len(wanted)
            return ""
        finally:
            os.close(fd)

    def _open(self, parts: Parts, flags: int) -> int:
        return openat2(
            self._directory, b"/".join(parts) or b".", flags, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
        )

    def results(self) -> Iterator[str]:
        """What differs, and what the archive doesn't have; a few names of each."""
        wrong = sorted(self._wrong)
        for parts in wrong[:_SHOWN]:
            yield f"{show_name(b'/'.join(parts))}: {self._wrong[parts]}"
        if len(wrong) > _SHOWN:
            yield f"{len(wrong) - _SHOWN} more files differ"
        known = sorted(self._names)
        strange = 0
        for _, _, path in walk(os.open(".", _DIRECTORY, dir_fd=self._directory), b""):
            number = _hash(path)
            at = bisect_left(known, number)
            if at == len(known) or known[at] != number:
                strange += 1
                if strange <= _SHOWN:
                    yield f"{show_name(path)}: is in no archive"
        if strange > _SHOWN:
            yield f"{strange - _SHOWN} more files are in no archive"


def _differing(found: os.stat_result, entry: Entry) -> str:
    kind = stat.S_IFMT(found.st_mode)
    if kind != _KINDS[entry.kind]:
        # In a user namespace a device is an empty file (extract.py).
        return "" if entry.kind in ("char", "block") and kind == stat.S_IFREG else "is of another kind"
    if (found.st_uid, found.st_gid) != (entry.uid, entry.gid):
        return f"belongs to {found.st_uid}:{found.st_gid}, not to {entry.uid}:{entry.gid}"
    if entry.kind != "symlink" and stat.S_IMODE(found.st_mode) != entry.mode:
        return f"has the mode {stat.S_IMODE(found.st_mode):o}, not {entry.mode:o}"
    if entry.kind == "file" and found.st_size != entry.size:
        return f"has {found.st_size} bytes, not {entry.size}"
    # A file system keeps only times that it has room for: ext4's end in 1901 and 2446.
    if entry.kind == "file" and found.st_mtime_ns != entry.mtime_ns and 0 <= entry.mtime_ns < _TIMES_END_NS:
        return "was changed at another time"
    return ""


def _attribute(fd: int, name: str) -> bytes | None:
    try:
        return os.getxattr(fd, name)
    except OSError:
        return None


def _hash(path: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(path, digest_size=8).digest(), "little")


def _damaged(layer: LayerRecord, text: str) -> Problem:
    return Problem(
        kind="damaged", what="layer", name=layer.diff_id, text=f"the layer {layer.diff_id}: {text}"
    )
