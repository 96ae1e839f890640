"""Trees from elsewhere: what ADD downloads and clones, and contexts that are a URL. No cache of its own.

A worker writes into a staging directory (nobody's: image/registry/download.py for URLs, image/cloning.py for
repositories), the daemon hashes what is there and keeps descriptors: the directory is gone when a tree is returned.
What was downloaded counts by its content, so that a URL that brings the same changes nothing in the build's cache.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import email.utils
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import msgspec

from cove.build.graph import Clone, Download
from cove.build.sources import PackedTree
from cove.image.images import Images
from cove.image.jobs import Cloned, CloneRepository
from cove.image.registry.fetcher import Fetcher
from cove.image.registry.messages import Timing, UrlWritten
from cove.image.treeindex import FileEntry, TreeIndex
from cove.image.types import Limits
from cove.image.worker import Worker
from cove.model.errors import CoveError, Invalid, Unavailable

MAX_URL_CHARS = 8192
_PIECE = 1 << 20
_TOKEN, _HEADER = "GIT_AUTH_TOKEN", "GIT_AUTH_HEADER"  # secrets of a build, BuildKit's names for them


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A URL's content in a file of nobody's; whoever has it closes it."""

    file: int
    size: int
    sha256: bytes
    written: UrlWritten


class Remotes:
    """Brings trees for one build. `secrets` may have tokens for repositories."""

    def __init__(
        self, images: Images, secrets: Mapping[str, bytes] | None = None, timing: Timing | None = None
    ) -> None:
        self._images = images
        self._secrets = secrets or {}
        self._timing = timing or Timing()

    async def fetch(self, source: Download | Clone) -> PackedTree:
        """The tree of a step. Raises what the sentence of the server or of git comes to, always with the address."""
        return await (self.clone(source) if isinstance(source, Clone) else self.download(source))

    async def download(self, source: Download) -> PackedTree:
        """A tree with the one file, readable by root alone, as ADD has it."""
        fetched = await self.fetch_url(source.url)
        try:
            digest = f"sha256:{fetched.sha256.hex()}"
            if source.checksum and source.checksum != digest:
                raise Invalid(
                    f"{shown_url(source.url)}: digest mismatch: {digest}, expected {source.checksum}"
                )
            entry = FileEntry(
                os.fsencode(source.name),
                "file",
                0o600,
                mtime_ns=_modified_ns(fetched.written.modified),
                size=fetched.size,
                digest=fetched.sha256,
            )
            return PackedTree(TreeIndex([entry]), (fetched.file,))
        except BaseException:
            os.close(fetched.file)
            raise

    async def fetch_url(self, url: str, limit_bytes: int | None = None) -> Fetched:
        """A URL's content. Invalid, NotFound, Unauthorized, Forbidden, Unavailable, HostError."""
        if len(url) > MAX_URL_CHARS:
            raise Invalid(f"a URL of {len(url)} characters; the limit is {MAX_URL_CHARS}")
        budget = self._images.budget_bytes()
        async with self._images.staging() as staging:
            root = staging / "root"
            await asyncio.to_thread(root.mkdir)
            file = os.open(staging / "file", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with _about(shown_url(url)):
                    written = await self._get(url, root, file, min(budget, limit_bytes or budget))
                digest = await asyncio.to_thread(_digest, file)
                return Fetched(file=file, size=os.fstat(file).st_size, sha256=digest, written=written)
            except BaseException:
                os.close(file)
                raise

    async def _get(self, url: str, root: Path, file: int, limit_bytes: int) -> UrlWritten:
        fetcher = await Fetcher.start_plain(root, self._timing)
        try:
            return await fetcher.url(url, file, limit_bytes)
        finally:
            await fetcher.release()

    async def clone(self, source: Clone) -> PackedTree:
        """A repository's files, owned by root, with the commit's time."""
        host = urlsplit(source.url).hostname or ""
        if "://" not in source.url or source.url.startswith("ssh://"):
            raise Unavailable(
                f"{shown_url(source.url)}: a clone by ssh needs your agent, which the daemon doesn't have: use https, "
                "or clone it and give it with --build-context NAME=DIRECTORY"
            )
        async with self._images.staging() as staging:
            job = CloneRepository(
                staging=str(staging),
                url=source.url,
                shown=shown_url(source.url),
                ref=source.ref,
                subdirectory=source.subdirectory,
                checksum=source.checksum,
                keep_git=source.keep_git,
                submodules=source.submodules,
                header=self._header(host),
                budget_bytes=self._images.budget_bytes(),
                limits=Limits(),
            )
            with _about(shown_url(source.url)):
                async with Worker(job) as worker:
                    answer = await worker.last()
            assert isinstance(answer, Cloned)
            entries = await asyncio.to_thread(_decode, staging / "index")
            return PackedTree(TreeIndex(entries), (os.open(staging / "pack", os.O_RDONLY | os.O_CLOEXEC),))

    def _header(self, host: str) -> str:
        """What a repository's server is told of the user; a secret for its host comes first."""
        for name in (f"{_HEADER}.{host}", _HEADER):
            if name in self._secrets:
                return _line(name, self._secrets[name])
        for name in (f"{_TOKEN}.{host}", _TOKEN):
            if name in self._secrets:
                token = _line(name, self._secrets[name])
                return f"basic {base64.b64encode(f'x-access-token:{token}'.encode()).decode()}"
        return ""


def shown_url(url: str) -> str:
    """A URL without user, password and query, which may be secret."""
    parts = urlsplit(url)
    if not parts.scheme or not parts.netloc:
        return url.partition("?")[0][:200]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))[:200]


@contextlib.contextmanager
def _about(url: str) -> Iterator[None]:
    """Errors name the address."""
    try:
        yield
    except CoveError as error:
        sentence = str(error)
        raise type(error)(sentence if url in sentence else f"{url}: {sentence}") from None


def _line(name: str, data: bytes) -> str:
    text = data.decode("utf-8", "replace").strip()
    if not text.isprintable() or not text.isascii():
        raise Invalid(f"secret {name}: expected one line of printable characters")
    return text


def _modified_ns(text: str) -> int:
    """Last-Modified as a time; 1970 where there is none."""
    try:
        return max(0, int(email.utils.parsedate_to_datetime(text).timestamp())) * 10**9
    except (ValueError, OverflowError):
        return 0


def _digest(file: int) -> bytes:
    digest = hashlib.sha256()
    offset = 0
    while piece := os.pread(file, _PIECE, offset):
        digest.update(piece)
        offset += len(piece)
    return digest.digest()


def _decode(path: Path) -> list[FileEntry]:
    return msgspec.msgpack.decode(path.read_bytes(), type=list[FileEntry])
