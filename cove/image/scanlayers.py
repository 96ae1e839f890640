"""Look through layers in a worker: every regular file is handed to the scan room, by descriptor. No link is followed.

The worker sees the layers' directory and nothing else, read-only, and keeps the one capability that reading needs.
`Layers` tells later which layer an image shows a path from: the overlay decides, the layers are only asked who has it.
"""

from __future__ import annotations

import itertools
import os
import stat
import struct
from collections.abc import Iterator, Sequence

import msgspec

from cove.image import sandbox
from cove.image.sandbox import (
    MS_BIND,
    MS_RDONLY,
    MS_REMOUNT,
    O_PATH,
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)
from cove.image.scantypes import ScanLayers
from cove.scan.layer import FIRST, LayerScanner

_STRICT = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
CAPABILITIES = (2,)  # CAP_DAC_READ_SEARCH
_HEAD = 4
MAX_FILES = 4_000_000  # of one layer, as many as one may have
LENGTH = struct.Struct("<I")


class TreeFile:
    """A regular file of a layer (cove.scan.model.LayerFile), opened when it is read."""

    __slots__ = ("_fd", "_root", "mode", "path", "size")

    def __init__(self, root: int, path: str, found: os.stat_result) -> None:
        self._root, self._fd = root, -1
        self.path, self.mode, self.size = path, found.st_mode, found.st_size

    def read(self, offset: int, length: int) -> bytes:
        if self._fd < 0:
            self._fd = openat2(self._root, os.fsencode(self.path), _FILE, _STRICT)
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                self.close()
                raise OSError(0, "it isn't a regular file any more")
        length = min(length, max(0, self.size - offset))
        pieces = []
        while length > 0 and offset < 1 << 62 and (piece := os.pread(self._fd, length, offset)):
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def walk(root: int, start: str = "", without: Sequence[str] = ()) -> Iterator[TreeFile]:
    """Every regular file below a directory, but for what is below others; none where `start` is no directory."""
    todo = [start]
    while todo:
        directory = todo.pop()
        if directory in without:
            continue
        try:
            fd = openat2(root, os.fsencode(directory or "."), _DIRECTORY, _STRICT)
        except OSError:
            if directory == start:
                return
            raise
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    path = f"{directory}/{entry.name}" if directory else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(path)
                    elif entry.is_file(follow_symlinks=False):
                        yield TreeFile(root, path, entry.stat(follow_symlinks=False))
        finally:
            os.close(fd)


def scan_layer(root: int) -> bytes:
    """Everything that a layer has, as it is kept."""
    scanner = LayerScanner()
    first = itertools.chain.from_iterable(walk(root, start) for start in FIRST)
    for count, file in enumerate(itertools.chain(first, walk(root, without=FIRST))):
        if count >= MAX_FILES:
            scanner.note("", f"it has more than {MAX_FILES} files; the rest wasn't looked at")
            break
        try:
            scanner.look(file, file.read(0, _HEAD) if file.size >= _HEAD else b"")
        except OSError as error:
            scanner.note(file.path, str(error.strerror))
        except (MemoryError, RecursionError, ValueError, LookupError, ImportError) as error:
            # A library's own surprise at a stranger's file must not keep the others from being looked at.
            scanner.note(file.path, f"it can't be read: {type(error).__name__}")
        finally:
            file.close()
    return msgspec.json.encode(scanner.result())


def enter_layers(layers_dir: str) -> None:
    """Make the layers' directory the root, read-only."""
    sandbox.unshare_all()
    sandbox.mount(layers_dir, layers_dir, "", MS_BIND)
    sandbox.mount("", layers_dir, "", MS_REMOUNT | MS_BIND | MS_RDONLY)
    sandbox.pivot_into(layers_dir, bind=False)


def scan_stream(job: ScanLayers) -> Iterator[bytes]:
    """Each layer's result with its length in front."""
    for name in job.layers:
        root = os.open(f"/{name}", _DIRECTORY)
        try:
            found = scan_layer(root)
        finally:
            os.close(root)
        yield LENGTH.pack(len(found))
        yield found


class Layers:
    """Which layer an image shows a path from. Made before the worker's root is the image's."""

    def __init__(self, layers_dir: str, layers: Sequence[str]) -> None:
        self._layers = [os.open(os.path.join(layers_dir, name), _DIRECTORY) for name in layers]
        self._image = -1

    def enter(self) -> None:
        """The image's own tree is the root now."""
        self._image = os.open("/", _DIRECTORY)

    def provider(self, path: str) -> int:
        """The number of the layer, lowest 0, whose regular file is shown at `path`; -1 where none is."""
        name = os.fsencode(path)
        if not _is_file(self._image, name):
            return -1
        for number in range(len(self._layers) - 1, -1, -1):
            if _is_file(self._layers[number], name):
                return number
        return -1


def _is_file(root: int, path: bytes) -> bool:
    try:
        fd = openat2(root, path, O_PATH | os.O_NOFOLLOW, _STRICT)
    except OSError:
        return False
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def read_scans(paths: Sequence[str]) -> list[bytes]:
    """The layers' results as they are kept."""
    found = []
    for path in paths:
        with open(path, "rb") as stream:
            found.append(stream.read())
    return found
