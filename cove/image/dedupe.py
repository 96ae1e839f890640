"""Equal files of different layers share their blocks: one inode by hard links, or one extent. Inside a worker.

Only files at the *same path* of different layers are joined, and by hard link only where everything but the name is
equal: content, owner, mode, time, attributes. So no container ever sees two of its files become one: of two layers
of its image the upper one's file hides the other's, and links within a layer stay what they were. What a container can
see is a larger count of links. Where the file system shares extents (btrfs, XFS: FIDEDUPERANGE) the files stay two.

A layer that is mounted keeps its inodes (overlayfs says nothing of what happens when a lower file is replaced); others
are linked to them. A link is made in a staging directory and renamed over the file, so that a crash leaves a whole
file and nothing else; the directory gets its time back. One directory's names, of all layers, are in memory at a time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cove.image.sandbox import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from cove.image.tooljobs import Deduped

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FIDEDUPERANGE = 0xC0189436  # linux/fs.h
_RANGE = struct.Struct("=QQHHIqQQiI")  # file_dedupe_range with one file_dedupe_range_info
_SAME = 0
_RANGE_MAX = 16 << 20  # what file systems take at once
_PIECE = 1 << 20


@dataclass(slots=True)
class _Place:
    """A file of one layer."""

    layer: int
    directory: int
    status: os.stat_result


@dataclass(slots=True)
class _Counts:
    files: int = 0
    compared: int = 0
    joined: int = 0
    saved: int = 0
    kept: int = 0  # equal, and not joined: both are mounted
    different: int = 0


@dataclass(slots=True)
class Dedupe:
    """Layers by descriptor. `mounted` keep their inodes; `fresh` (None: all) are those that are looked at: only
    directories that one of them has. `staging` is where links are made."""

    roots: Sequence[int]
    mounted: frozenset[int]
    fresh: frozenset[int] | None
    staging: int
    dry_run: bool = False
    counts: _Counts = field(default_factory=_Counts)
    reflinks: bool | None = None  # not tried yet

    def run(self) -> Deduped:
        """Join what can be joined. OSError."""
        waiting = [(b"", tuple(range(len(self.roots))))]
        while waiting:
            path, layers = waiting.pop()
            waiting += self._directory(path, layers)
        counts = self.counts
        return Deduped(
            files=counts.files,
            compared=counts.compared,
            joined=counts.joined,
            saved_bytes=counts.saved,
            kept=counts.kept,
            how="extents" if self.reflinks else "hard links",
        )

    def _directory(self, path: bytes, layers: Sequence[int]) -> list[tuple[bytes, tuple[int, ...]]]:
        opened: dict[int, int] = {}
        try:
            for layer in layers:
                opened[layer] = openat2(
                    self.roots[layer], path or b".", _DIRECTORY, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
                )
            names: dict[bytes, list[int]] = {}
            for layer, fd in opened.items():
                for text in os.listdir(fd):
                    names.setdefault(os.fsencode(text), []).append(layer)
            below = []
            for name in sorted(names):
                if len(names[name]) < 2 or not self._concerns(names[name]):
                    continue
                places, inner = self._places(name, names[name], opened)
                if len(inner) > 1 and self._concerns(inner):
                    below.append((path + b"/" + name if path else name, tuple(inner)))
                for group in _groups(places):
                    self._join(name, group)
            return below
        finally:
            for fd in opened.values():
                os.close(fd)

    def _concerns(self, layers: Sequence[int]) -> bool:
        return self.fresh is None or any(layer in self.fresh for layer in layers)

    def _places(
        self, name: bytes, layers: Sequence[int], opened: dict[int, int]
    ) -> tuple[list[_Place], list[int]]:
        """Files with content, and layers that have a directory of that name."""
        places, inner = [], []
        for layer in layers:
            status = os.stat(name, dir_fd=opened[layer], follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                inner.append(layer)
            elif stat.S_ISREG(status.st_mode) and status.st_blocks:
                self.counts.files += 1
                places.append(_Place(layer, opened[layer], status))
        return places, inner

    def _join(self, name: bytes, group: list[_Place]) -> None:
        """Files that are equal as far as stat(2) tells."""
        inodes: dict[int, list[_Place]] = {}
        for place in group:
            inodes.setdefault(place.status.st_ino, []).append(place)
        if len(inodes) < 2:
            return
        # More links than layers that have it here: it has other names within its layer, which must stay its own.
        pure = [places for places in inodes.values() if places[0].status.st_nlink == len(places)]
        # Whose inode stays: a mounted one, then the one with most names.
        pure.sort(key=lambda places: (not self._is_mounted(places), -len(places), places[0].layer))
        sources: list[list[_Place]] = []
        for places in pure:
            source = next((known for known in sources if self._equal(name, known[0], places[0])), None)
            if source is None:
                sources.append(places)
            elif self._is_mounted(places) and not self.reflinks:
                self.counts.kept += 1
            else:
                self._share(name, source[0], places)

    def _is_mounted(self, places: Sequence[_Place]) -> bool:
        return any(place.layer in self.mounted for place in places)

    def _equal(self, name: bytes, one: _Place, other: _Place) -> bool:
        self.counts.compared += 1
        first = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=one.directory)
        try:
            second = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=other.directory)
            try:
                if _attributes(first) != _attributes(second):
                    return False
                while piece := os.read(first, _PIECE):
                    if os.read(second, _PIECE) != piece:
                        return False
                return not os.read(second, 1)
            finally:
                os.close(second)
        finally:
            os.close(first)

    def _share(self, name: bytes, source: _Place, places: list[_Place]) -> None:
        saved = places[0].status.st_blocks * 512
        if self.dry_run:
            self.counts.joined += len(places)
            self.counts.saved += saved
            return
        if self.reflinks is not False:
            shared = _share_extents(name, source, places[0])
            if shared is not None:
                self.reflinks = True
                self.counts.joined += len(places)
                self.counts.saved += shared
                return
            self.reflinks = False
            if self._is_mounted(places):
                self.counts.kept += 1
                return
        try:
            for place in places:
                self._link(name, source, place)
                self.counts.joined += 1
            self.counts.saved += saved
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise

    def _link(self, name: bytes, source: _Place, place: _Place) -> None:
        before = os.fstat(place.directory)
        temporary = b"link"
        os.link(name, temporary, src_dir_fd=source.directory, dst_dir_fd=self.staging, follow_symlinks=False)
        try:
            os.rename(temporary, name, src_dir_fd=self.staging, dst_dir_fd=place.directory)
        except BaseException:
            os.unlink(temporary, dir_fd=self.staging)
            raise
        finally:
            os.utime(place.directory, ns=(before.st_atime_ns, before.st_mtime_ns))


def _groups(places: Sequence[_Place]) -> Iterator[list[_Place]]:
    """Files of which stat(2) tells the same, two at least."""
    groups: dict[tuple[int, ...], list[_Place]] = {}
    for place in places:
        found = place.status
        key = (found.st_size, found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns)
        groups.setdefault(key, []).append(place)
    return (group for group in groups.values() if len(group) > 1)


def _attributes(fd: int) -> dict[str, bytes]:
    try:
        return {name: os.getxattr(fd, name) for name in os.listxattr(fd)}
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise


def _share_extents(name: bytes, source: _Place, place: _Place) -> int | None:
    """Have two files share their extents, which the kernel compares; the bytes, or None where that isn't possible."""
    first = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=source.directory)
    try:
        second = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=place.directory)
        try:
            size, offset, shared = source.status.st_size, 0, 0
            while offset < size:
                request = bytearray(
                    _RANGE.pack(offset, min(_RANGE_MAX, size - offset), 1, 0, 0, second, offset, 0, 0, 0)
                )
                try:
                    fcntl.ioctl(first, _FIDEDUPERANGE, request)
                except OSError as error:
                    if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV):
                        return None
                    raise
                *_, done, status, _ = _RANGE.unpack(request)
                if status == -errno.EOPNOTSUPP or status == -errno.EINVAL:
                    return None
                if status != _SAME or not done:
                    break  # it differs after all
                shared += done
                offset += done
            return shared
        finally:
            os.close(second)
    finally:
        os.close(first)
