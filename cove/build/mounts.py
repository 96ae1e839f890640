"""What RUN --mount brings: caches that stay, secrets that go, agents of the client, and files to bind.

builds/mounts/ID/          a cache's directory; ID is a digest of its name
RUN_DIR/builds/TOKEN/      secrets and sockets of one run, in memory: they go with it, and at the next start
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets as random
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from cove.build.graph import Item, Mount
from cove.build.sources import Snapshot, Tree
from cove.image.images import Images
from cove.image.jobs import Adopted, CopyFiles, PackedItem, TreeItem
from cove.image.types import Limits
from cove.image.worker import Worker
from cove.model.container import MountPoint
from cove.model.errors import HostError, Invalid
from cove.model.waiting import NamedLocks

_GONE = ".gone-"
MAX_SECRET_BYTES = 500 << 10  # as BuildKit (session/secrets)


class MountUse(NamedTuple):
    """One cache: its directory's name, what it takes, when it was used last."""

    name: str
    size_bytes: int
    used_ns: int


class CacheMounts:
    """Directories that `--mount=type=cache` shows, by id: shared, locked (one at a time), or private (one's own)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._locks = NamedLocks()
        self._used: Counter[str] = Counter()

    async def hold(self, mount: Mount, undo: AsyncExitStack) -> Path:
        """The cache's directory, until `undo` closes. With `locked` others wait for it."""
        name = hashlib.sha256((mount.id or mount.target).encode("utf-8", "surrogateescape")).hexdigest()[:32]
        if mount.sharing == "locked":
            await undo.enter_async_context(self._locks.alone(name))
        elif mount.sharing == "private":
            number = 0
            while self._used[name if not number else f"{name}.{number}"]:
                number += 1
            name = name if not number else f"{name}.{number}"
        self._used[name] += 1
        undo.callback(self._release, name)
        return await asyncio.to_thread(self._make, name, mount)

    def _release(self, name: str) -> None:
        self._used[name] -= 1

    def _make(self, name: str, mount: Mount) -> Path:
        path = self.root / name
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.mkdir(mode=0o700)
        except FileExistsError:
            os.utime(path)
            return path
        except OSError as error:
            raise HostError(
                f"the cache {mount.id or mount.target} can't be made: {error.strerror}"
            ) from error
        os.chown(path, mount.uid, mount.gid)
        os.chmod(path, 0o755 if mount.mode is None else mount.mode)
        return path

    def usage(self) -> list[MountUse]:
        """What there is. Blocks, as long as reading the names of all files takes."""
        found = []
        for entry in os.scandir(self.root) if self.root.exists() else ():
            if entry.name.startswith(_GONE):
                continue
            size = sum(
                os.lstat(os.path.join(top, name)).st_blocks * 512
                for top, _, names in os.walk(entry.path)
                for name in names
            )
            found.append(MountUse(entry.name, size, entry.stat().st_mtime_ns))
        return found

    def give_up(self, name: str) -> Path | None:
        """Take a cache that no run uses out of use: the directory, to be deleted. None: it is used, or gone."""
        if self._used[name]:
            return None
        gone = self.root / f"{_GONE}{random.token_hex(8)}"
        try:
            os.rename(self.root / name, gone)
        except OSError:
            return None
        return gone

    def given_up(self) -> list[Path]:
        """What an earlier deletion didn't get to."""
        names = os.listdir(self.root) if self.root.exists() else ()
        return [self.root / name for name in names if name.startswith(_GONE)]


class Secrets:
    """The secrets and agents of one build. Contents are never logged, and no part of a key."""

    def __init__(
        self,
        run_dir: Path,
        values: Mapping[str, bytes] | None = None,
        agents: Mapping[str, Path] | None = None,
    ) -> None:
        self._run_dir = run_dir
        self._values = dict(values or {})
        self._agents = dict(agents or {})

    async def directory(self, undo: AsyncExitStack) -> Path:
        """A directory in memory for one run."""
        path = self._run_dir / random.token_hex(8)
        path.mkdir(parents=True, mode=0o700)
        undo.callback(shutil.rmtree, path, ignore_errors=True)
        return path

    async def mount(
        self, mount: Mount, target: str, undo: AsyncExitStack, env: list[str]
    ) -> MountPoint | None:
        """A secret as a file, a variable or both; None when there is no file to mount. Raises Invalid."""
        data = self._values.get(mount.id)
        if data is None:
            if mount.required:
                raise Invalid(f"secret {mount.id}: not found: give it with --secret id={mount.id},src=FILE")
            return None
        if mount.env:
            if b"\0" in data:
                raise Invalid(f"secret {mount.id}: a NUL byte can't be in a variable: mount it as a file")
            env.append(f"{mount.env}={data.decode('utf-8', 'surrogateescape')}")
            if not mount.target:
                return None
        place = await self.directory(undo)
        file = place / "secret"
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(fd, data)
            os.fchown(fd, mount.uid, mount.gid)
            os.fchmod(fd, 0o400 if mount.mode is None else mount.mode)
        finally:
            os.close(fd)
        return MountPoint(kind="volume", target=target, source=str(file), readonly=True)

    async def agent(
        self, mount: Mount, target: str, undo: AsyncExitStack, env: list[str]
    ) -> MountPoint | None:
        """The client's SSH agent as a socket. Raises Invalid."""
        source = self._agents.get(mount.id or "default")
        if source is None:
            if mount.required:
                raise Invalid(
                    f"ssh {mount.id or 'default'}: no agent was forwarded: build with cove build --ssh "
                    "(Docker's classic API can't forward one)"
                )
            return None
        env.append(f"SSH_AUTH_SOCK={target}")
        return MountPoint(kind="bind", target=target, source=str(source))


async def materialize(images: Images, tree: Tree, path: str, undo: AsyncExitStack) -> Path:
    """A part of a tree as files of their own, until `undo` closes: what is written to them is thrown away."""
    staging = await undo.enter_async_context(images.staging())
    os.mkdir(staging / "0", 0o755)
    items: tuple[PackedItem | TreeItem, ...]
    trees: tuple[tuple[str, ...], ...] = ()
    packs: tuple[int, ...] = ()
    if isinstance(tree, Snapshot):
        trees = (tuple(images.names_of_layers(tree.layers)),)
        items = (TreeItem(tree=0, path=os.fsencode(path)),)
    else:
        items, packs = tuple(tree.select(Item(source=0, path=path))), tree.packs
    job = CopyFiles(
        staging=str(staging),
        layers_dir=str(images.layers_dir),
        lower=(),
        trees=trees,
        items=items,
        packs=packs,
        target=b"/tree",
        keep_owner=True,
        budget_bytes=images.budget_bytes(),
        limits=Limits(),
    )
    async with Worker(job, handed=packs) as worker:
        answer = await worker.last()
    assert isinstance(answer, Adopted)
    place = staging / "0" / "tree"
    if not os.path.lexists(place):
        place.mkdir()  # of an empty directory
    return place
