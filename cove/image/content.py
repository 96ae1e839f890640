"""The content store on disk: blobs, layers, frames, work in progress, trash.

    images/
      blobs/sha256/HEX   configurations, manifests, and layers that came compressed: as they came
      layers/NAME/       a layer's files, as overlayfs wants them; `0` is empty, for images without layers
      frames/NAME        a plain layer's headers, so that it can be saved again (NAME.moved: see frames.py)
      scans/NAME.FORMAT  what is in a layer (scanning.py)
      erofs/NAME         a layer as an EROFS image, made when one was asked for (erofs.py)
      loading/TOKEN/     a load's own directory, all that its worker sees
      partial/HEX        what has come of a layer's blob, for a pull that goes on later
      trash/TOKEN        renamed, then deleted

Owns the files, not what they mean: records in the store say what is referenced, and whatever no record
names is removed when the daemon starts. Order that must hold when something is added: content written and
synced, renamed to its place, the directories synced, and only then the record. When something is
removed: the record, then a rename to the trash, then the deletion.

Everything here blocks; the daemon calls it in a thread.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import sys
import threading
from collections.abc import Collection, Sequence
from pathlib import Path

from cove.image.overlayfs import opaque_attribute
from cove.model.errors import HostError

EMPTY_LAYER = "0"
_DIRECTORIES = ("blobs/sha256", "layers/0", "frames", "erofs", "scans", "loading", "partial", "trash")
PARTIAL_AGE_S = 7 * 86400
PARTIAL_BYTES = 16 << 30
_GET_FLAGS, _SET_FLAGS, _TOP_DIRECTORY = 0x80086601, 0x40086602, 0x20000  # linux/fs.h, ioctl_iflags(2)
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_libc = ctypes.CDLL(None, use_errno=True)


class Content:
    """The directory `images/`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layers = root / "layers"
        self.frames = root / "frames"
        self.erofs = root / "erofs"
        self._scans = root / "scans"
        self._blobs = root / "blobs" / "sha256"
        self._partial = root / "partial"
        self._shared = root.parent / "registry" / "blobs" / "sha256"
        self._emptying = threading.Lock()
        for name in _DIRECTORIES:
            (root / name).mkdir(mode=0o755, parents=True, exist_ok=True)
        os.chmod(root, 0o700)
        _spread(root / "loading")

    # --- adding -------------------------------------------------------------------------------

    def new_staging(self) -> Path:
        """A directory of its own for one load. Raises HostError (disk full)."""
        path = self.root / "loading" / secrets.token_hex(8)
        try:
            path.mkdir(mode=0o700)
        except OSError as error:
            raise HostError(f"a load can't begin in {path.parent}: {error.strerror}") from error
        return path

    def new_layer_name(self) -> str:
        """A name no layer has; short, since 127 of them have to fit into a page of mount options."""
        while True:
            name = secrets.token_hex(4)
            if not (self.layers / name).exists():
                return name

    def place_layer(
        self, staging: Path, number: int, name: str, *, blob: str, opaque: Sequence[str], partial: str = ""
    ) -> None:
        """Move an unpacked layer, and its frame or its blob, to their places. `partial`: the blob came into there."""
        layer = staging / str(number)
        for path in opaque:
            _set_opaque(layer, path)
        if blob:
            os.rename(self._partial / partial if partial else staging / f"{number}.blob", self._blobs / blob)
        else:
            os.rename(staging / f"{number}.frame", self.frames / name)
            moved = staging / f"{number}.moved"
            if moved.exists():
                os.rename(moved, self.frames / f"{name}.moved")
            if partial:
                self._throw(self._partial / partial)
        os.rename(layer, self.layers / name)

    def write_blob(self, staging: Path, data: bytes) -> str:
        """Write a document under its digest; the digest."""
        digest = hashlib.sha256(data).hexdigest()
        target = self._blobs / digest
        if not target.exists():
            temporary = staging / f"{digest}.document"
            try:
                with open(temporary, "xb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.rename(temporary, target)
            except OSError as error:
                raise HostError(f"write the image's configuration: {error.strerror}") from error
        return f"sha256:{digest}"

    def open_spool(self) -> int:
        """A file without a name, for what is needed only while it is open. HostError (disk full)."""
        try:
            try:
                return os.open(self.root / "loading", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            except OSError as error:
                if error.errno not in (
                    errno.EOPNOTSUPP,
                    errno.EISDIR,
                ):  # a file system that has no such files
                    raise
            path = self.root / "loading" / secrets.token_hex(8)
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            os.unlink(path)
            return fd
        except OSError as error:
            raise HostError(
                f"a layer can't be compressed in {self.root / 'loading'}: {error.strerror}"
            ) from error

    def open_blob(self, digest: str) -> int:
        """A blob, to be read. HostError when it is missing."""
        path = self._blobs / digest.removeprefix("sha256:")
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"the image store lacks {digest}: {error.strerror}") from error

    def sync(self) -> None:
        """Make the renames durable."""
        for path in (self._blobs, self.frames, self.layers):
            fd = os.open(path, _OPEN)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def sync_all(self) -> None:
        """Make everything on the store's file system durable: syncfs(2)."""
        fd = os.open(self.root, _OPEN)
        try:
            if _libc.syncfs(fd) < 0:
                number = ctypes.get_errno()
                raise HostError(f"write the image store's files to the disk: {os.strerror(number)}")
        finally:
            os.close(fd)

    def read_blob(self, digest: str) -> bytes:
        """A document by its digest, verified. HostError when it is missing or damaged."""
        path = self._blobs / digest.removeprefix("sha256:")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise HostError(f"the image store lacks {digest}: {error.strerror}") from error
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise HostError(f"the image store is damaged: {path} has another digest")
        return data

    def blob_size(self, digest: str) -> int:
        """The size of a blob in bytes."""
        return (self._blobs / digest.removeprefix("sha256:")).stat().st_size

    def open_partial(self, digest: str, size: int, *, shared: bool = True) -> tuple[int, int]:
        """Open what there is of a blob, to write behind it: a descriptor, and the bytes that are there. HostError.

        A blob that the registry of this machine keeps is all there, by a link; `shared` False passes it over.
        """
        path = self._partial / digest.removeprefix("sha256:")
        try:
            if shared and (found := self.find_shared(digest)) is not None and found.stat().st_size == size:
                path.unlink(missing_ok=True)
                try:
                    os.link(found, path, follow_symlinks=False)
                    # Its owner is the registry's user, who may have put something else there since.
                    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                    if stat.S_ISREG(os.fstat(fd).st_mode):
                        return fd, size
                    os.close(fd)
                except OSError:  # another file system, or gone just now
                    pass
                path.unlink(missing_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(path, flags, 0o600)
            state = os.fstat(fd)
            if state.st_size > size or state.st_nlink > 1:
                os.close(fd)
                path.unlink()
                fd = os.open(path, flags, 0o600)
            os.utime(fd)
            return fd, os.fstat(fd).st_size
        except OSError as error:
            raise HostError(f"a download can't begin in {self._partial}: {error.strerror}") from error

    def find_shared(self, digest: str) -> Path | None:
        """A blob that the registry of this machine keeps on the same disk."""
        path = self._shared / digest.removeprefix("sha256:")
        try:
            state = path.lstat()
        except OSError:
            return None
        return path if stat.S_ISREG(state.st_mode) and state.st_dev == self._partial.stat().st_dev else None

    def drop_partial(self, digest: str) -> None:
        """Forget what has come of a blob."""
        self._throw(self._partial / digest.removeprefix("sha256:"))

    def sweep_partials(
        self,
        now_s: float,
        busy: Collection[str] = (),
        *,
        age_s: float = PARTIAL_AGE_S,
        total: int = PARTIAL_BYTES,
    ) -> None:
        """Forget what is old, and the oldest while they take more than `total` bytes; `busy` digests stay."""
        hexes = {digest.removeprefix("sha256:") for digest in busy}
        found = []
        for name in os.listdir(self._partial):
            try:
                state = (self._partial / name).lstat()
            except FileNotFoundError:
                continue
            found.append((state.st_mtime, name, state.st_size))
        kept = 0
        for time_s, name, size in sorted(found, reverse=True):
            kept += size
            if name not in hexes and (kept > total or now_s - time_s > age_s):
                self._throw(self._partial / name)
                kept -= size

    def has_layer(self, name: str) -> bool:
        return (self.layers / name).is_dir()

    def scan_path(self, name: str, form: int) -> Path:
        """Where what is in a layer is kept, in a form by its number."""
        return self._scans / f"{name}.{form}"

    def _throw_scans(self, name: str) -> None:
        for path in self._scans.glob(f"{name}.*"):
            self._throw(path)

    def free_bytes(self) -> int:
        """What can still be written to the disk."""
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    # --- removing -----------------------------------------------------------------------------

    def throw(
        self, *, layers: Collection[str] = (), blobs: Collection[str] = (), staging: Path | None = None
    ) -> None:
        """Take away content that no record names any more, into the trash: quick, whatever its size."""
        for name in layers:
            self._throw(self.layers / name)
            self._throw(self.frames / name)
            self._throw(self.frames / f"{name}.moved")
            self._throw(self.erofs / name)
            self._throw_scans(name)
        for digest in blobs:
            self._throw(self._blobs / digest.removeprefix("sha256:"))
        if staging is not None:
            self._throw(staging)

    def sweep(self, *, layers: Collection[str], blobs: Collection[str]) -> None:
        """Remove everything but these layers and blobs: what a crash left behind."""
        wanted = {EMPTY_LAYER, *layers}
        hexes = {digest.removeprefix("sha256:") for digest in blobs}
        for directory, keep in ((self.layers, wanted), (self._blobs, hexes), (self.root / "loading", set())):
            for name in os.listdir(directory):
                if name not in keep:
                    self._throw(directory / name)
        for name in os.listdir(self.erofs):
            if name not in wanted:
                self._throw(self.erofs / name)
        for name in os.listdir(self.frames):
            if name.removesuffix(".moved") not in wanted:
                self._throw(self.frames / name)
        for name in os.listdir(self._scans):
            layer, _, form = name.partition(".")
            if layer not in wanted or not form.isdecimal():
                self._throw(self._scans / name)
        self.empty_trash()

    def empty_trash(self) -> None:
        """Delete what was thrown away; two at a time would trip over each other."""
        trash = self.root / "trash"
        with self._emptying:
            for name in os.listdir(trash):
                delete_tree(trash / name)

    def _throw(self, path: Path) -> None:
        try:
            os.rename(path, self.root / "trash" / secrets.token_hex(8))
        except FileNotFoundError:
            pass


def delete_tree(path: Path) -> None:
    """Delete a file or a directory, however deep: it is flattened on the way. No link is followed."""
    above = os.open(path.parent, _OPEN)
    try:
        waiting = [path.name]
        number = 0
        while waiting:
            name = waiting.pop()
            try:
                os.unlink(name, dir_fd=above)
                continue
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in (errno.EISDIR, errno.EPERM):
                    raise
            directory = os.open(name, _OPEN, dir_fd=above)
            try:
                for child in os.listdir(directory):
                    found = os.stat(child, dir_fd=directory, follow_symlinks=False)
                    if not stat.S_ISDIR(found.st_mode):
                        os.unlink(child, dir_fd=directory)
                        continue
                    try:
                        os.rmdir(child, dir_fd=directory)
                    except OSError:
                        flat = f"{path.name}.{number}"
                        number += 1
                        os.rename(child, flat, src_dir_fd=directory, dst_dir_fd=above)
                        waiting.append(flat)
            finally:
                os.close(directory)
            os.rmdir(name, dir_fd=above)
    finally:
        os.close(above)


def _spread(path: Path) -> None:
    """Ask ext4 to put each new directory in here into another block group (chattr +T).

    Without a journal ext4 doesn't reuse an inode for some seconds after its deletion and looks at each of
    these at every creation in their group (recently_deleted in fs/ext4/ialloc.c): a load after an rmi took
    ten times as long. A file system that knows no such flag needs none.
    """
    fd = os.open(path, _OPEN)
    try:
        flags = bytearray(8)
        fcntl.ioctl(fd, _GET_FLAGS, flags)
        value = int.from_bytes(flags[:4], sys.byteorder) | _TOP_DIRECTORY
        fcntl.ioctl(fd, _SET_FLAGS, value.to_bytes(4, sys.byteorder) + bytes(4))
    except OSError:
        pass
    finally:
        os.close(fd)


def _set_opaque(layer: Path, path: str) -> None:
    """Mark a directory as hiding what lower layers have below it. The worker that made it has ended."""
    fd = os.open(layer, _OPEN)
    try:
        for part in path.split("/") if path else ():
            below = os.open(part, _OPEN, dir_fd=fd)
            os.close(fd)
            fd = below
        os.setxattr(fd, opaque_attribute(), b"y")
    finally:
        os.close(fd)
