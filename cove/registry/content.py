"""The registry's files: content by digest, uploads under way, what is thrown away.

    registry/
      catalog.db            which repository has what (catalog.py)
      blobs/sha256/HEX      content, each once for all repositories; blobs/sha512/HEX likewise
      uploads/UUID/         an upload under way: `about` (JSON) and `data`
      trash/ALGORITHM-HEX   content on its way out; whatever else is in trash/ is nobody's
      serve.lock            held by the one server of this directory

Owns the files, not what they mean. Order that must hold when content is added: written and synced, linked to its
place, the directory synced, and then the catalog's row, the last three in one transaction of the catalog. When content
goes: renamed to the trash, the row deleted, the transaction committed, and only then unlinked. So whoever holds
the catalog's write lock and finds a row for something in the trash sees a crash, and puts it back; and a file in blobs/
without a row is one that no answer has spoken of.

Everything here blocks; the server calls it in threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from cove.model.errors import HostError, Invalid
from cove.registry.names import ALGORITHMS, parse_digest
from cove.registry.refusals import Refused

READ_BYTES = 1 << 20


class Content:
    """The directory `registry/`, without the catalog."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uploads = root / "uploads"
        self.blobs = root / "blobs"
        self.trash = root / "trash"

    def prepare(self) -> None:
        """Make the directories that aren't there. Raises HostError."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in (self.uploads, self.trash, *(self.blobs / each for each in ALGORITHMS)):
                path.mkdir(mode=0o755, parents=True, exist_ok=True)
            for path in (self.root, self.blobs):
                sync_directory(path)
        except OSError as error:
            raise HostError(f"the registry's directory {self.root}: {error.strerror}") from error

    def lock(self) -> int:
        """A descriptor that holds the directory for one server. Raises Invalid when another one has it."""
        fd = os.open(self.root / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise Invalid(
                f"a registry is served from {self.root} already: stop it, or choose another --root"
            ) from None
        return fd

    def path(self, digest: str) -> Path:
        """Where content of this digest lies, or would."""
        algorithm, _, value = digest.partition(":")
        return self.blobs / algorithm / value

    def open(self, digest: str) -> tuple[int, int]:
        """A descriptor and the size in bytes. Raises FileNotFoundError."""
        fd = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        return fd, os.fstat(fd).st_size

    def read(self, digest: str) -> bytes:
        """A document. Raises FileNotFoundError."""
        return self.path(digest).read_bytes()

    def write_temporary(self, data: bytes) -> Path:
        """A synced file beside the uploads, to be placed."""
        path = self.uploads / f"{secrets.token_hex(8)}.document"
        with open(path, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        return path

    def place(self, source: Path, digest: str, known: bool) -> None:
        """Give synced content its place, durably; what is `known` is there, unless somebody removed or cut it.

        In a transaction that adds its row. A link, where that can be had: should the transaction fail, the source is
        still there, to be tried again; else a rename. The source is the caller's to remove.
        """
        target = self.path(digest)
        if known:
            with contextlib.suppress(FileNotFoundError):
                if target.stat().st_size == source.stat().st_size:
                    return
        try:
            target.unlink(missing_ok=True)  # of no row: a crash's
            os.link(source, target)
        except OSError:  # root's file (proc(5), protected_hardlinks), or a file system without links
            os.rename(source, target)
        sync_directory(target.parent)

    def throw(self, digest: str) -> None:
        """Take content away; in a transaction that deletes its row. Missing content is none."""
        algorithm, _, value = digest.partition(":")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path(digest), self.trash / f"{algorithm}-{value}")

    def thrown(self) -> list[str]:
        """Digests of what is in the trash."""
        found = []
        for name in os.listdir(self.trash):
            with contextlib.suppress(Refused):
                found.append(parse_digest(name.replace("-", ":", 1)))
        return found

    def restore(self, digest: str) -> None:
        """Put thrown content back, unless there is other content in its place already."""
        algorithm, _, value = digest.partition(":")
        if not self.path(digest).exists():
            os.rename(self.trash / f"{algorithm}-{value}", self.path(digest))

    def empty_trash(self, digests: list[str]) -> int:
        """Delete what was thrown; the bytes that were freed (a file with another link frees nothing)."""
        freed = 0
        for digest in digests:
            algorithm, _, value = digest.partition(":")
            path = self.trash / f"{algorithm}-{value}"
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                freed += found.st_size if found.st_nlink == 1 else 0
                path.unlink()
        return freed

    def digests(self) -> Iterator[str]:
        """Of all files in blobs/; what has no digest for a name is left out."""
        for algorithm in ALGORITHMS:
            with os.scandir(self.blobs / algorithm) as entries:
                for entry in entries:
                    with contextlib.suppress(Refused):
                        yield parse_digest(f"{algorithm}:{entry.name}")

    def hash(self, digest: str) -> str:
        """The digest that the content of this name really has. Raises FileNotFoundError."""
        return hash_file(self.path(digest), digest.partition(":")[0])

    def free_bytes(self) -> int:
        """What can still be written to the disk."""
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize


def hash_file(path: Path, algorithm: str) -> str:
    """The digest of a file's content."""
    hasher = hashlib.new(algorithm)
    with open(path, "rb", buffering=0) as stream:
        while piece := stream.read(READ_BYTES):
            hasher.update(piece)
    return f"{algorithm}:{hasher.hexdigest()}"


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """Remove an upload's directory. Idempotent."""
    shutil.rmtree(path, ignore_errors=True)
