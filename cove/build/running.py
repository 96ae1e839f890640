"""RUN: a process on a snapshot; what it changed becomes a layer as it is.

Order that must hold: mounts are there, the process ends, its opaque marks are settled, its upper directory is moved
into a staging directory, a worker adopts it, the layer is placed. Secrets are files in memory that go with the run.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from cove.build.errors import BuildFailed, exit_message
from cove.build.graph import Exec, Mount
from cove.build.mounts import CacheMounts, Secrets, materialize
from cove.build.sources import Snapshot, Tree
from cove.engine.changes import MOUNT_POINTS
from cove.engine.layerfacts import find_layer_facts, settle_opaque
from cove.engine.siderun import RunRefused, SideRun, SideRuns
from cove.image.images import Images
from cove.image.jobs import Adopt, Adopted, Member
from cove.image.manifests import EMPTY_DIFF_ID
from cove.image.worker import Worker
from cove.model.container import ContainerSpec, MountPoint
from cove.model.errors import HostError, Invalid

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
Output = Callable[[int, bytes], Awaitable[None]]


class Runner:
    """Runs the processes of one build. `spec` has the build's network and limits.

    What is mounted counts as a volume: its owners are those that the process sees, also in a user namespace.
    """

    def __init__(
        self,
        images: Images,
        runs: SideRuns,
        caches: CacheMounts,
        secrets: Secrets,
        spec: ContainerSpec,
        clamp_ns: int | None,
    ) -> None:
        self._images = images
        self._runs = runs
        self._caches = caches
        self._secrets = secrets
        self._spec = spec
        self._clamp_ns = clamp_ns

    async def run(
        self,
        operation: Exec,
        base: Snapshot,
        sources: Callable[[int], Tree],
        started: Callable[[str], None],
        output: Output,
    ) -> Member | None:
        """Run it; the layer that it made, in place and relied on by nobody yet, or None when nothing changed.

        Raises BuildFailed when it ends with another code than 0.
        """
        if operation.security == "insecure":
            raise Invalid("RUN --security=insecure is not allowed here: leave it out")
        async with AsyncExitStack() as undo:
            mounts, env, points = await self._mounts(operation, sources, undo)
            names = self._images.names_of_layers(base.layers)
            run = SideRun(
                layers=names,
                args=operation.args,
                env=_environment(operation.env, (*operation.hidden_env, *env)),
                user=operation.user,
                working_dir=operation.working_dir,
                mounts=tuple(mounts),
                spec=self._spec_of(operation),
            )
            prepared = await undo.enter_async_context(self._runs.prepared(run))
            started(prepared.id)
            try:
                status = await prepared.run(output)
            except RunRefused as refused:
                await output(2, f"{refused.cause}\n".encode())
                raise BuildFailed(
                    exit_message(operation.args, refused.exit_code), exit_code=refused.exit_code
                ) from refused
            if status.exit_code:
                if status.oom_killed:
                    await output(2, b"the process was killed: the build's memory limit was reached\n")
                raise BuildFailed(exit_message(operation.args, status.exit_code), exit_code=status.exit_code)
            return await self._adopt(prepared.upper, names, points)

    async def _adopt(self, upper: Path, names: Sequence[str], points: Sequence[str]) -> Member | None:
        lowers = [self._images.layers_dir / name for name in reversed(names)]
        facts = await asyncio.to_thread(find_layer_facts, upper, lowers, {*MOUNT_POINTS, *points})
        opaque = await asyncio.to_thread(settle_opaque, upper, lowers)
        async with self._images.staging() as staging:
            try:
                os.rename(upper, staging / "0")
            except OSError as error:
                raise HostError(f"what the step changed can't be kept: {error.strerror}") from error
            job = Adopt(
                staging=str(staging),
                opaque=tuple(os.fsencode(path) for path in opaque),
                left_out=tuple(os.fsencode(path) for path in facts.left_out),
                clamp_ns=self._clamp_ns,
            )
            async with Worker(job) as worker:
                answer = await worker.last()
            assert isinstance(answer, Adopted) and answer.member is not None
            if answer.member.diff_id == EMPTY_DIFF_ID:
                return None
            await self._images.place_layer(staging, answer.member)
            self._images.rely_on((answer.member.diff_id,))
            return answer.member

    def _spec_of(self, operation: Exec) -> ContainerSpec:
        spec = msgspec.structs.replace(self._spec, extra_hosts=(*self._spec.extra_hosts, *operation.hosts))
        if operation.network in ("none", "host"):
            return msgspec.structs.replace(spec, network_mode=operation.network)
        return spec

    async def _mounts(
        self, operation: Exec, sources: Callable[[int], Tree], undo: AsyncExitStack
    ) -> tuple[list[MountPoint], list[str], list[str]]:
        """The mounts, variables that secrets bring, and the paths that are made to mount on."""
        found: list[MountPoint] = []
        env: list[str] = []
        if operation.files:
            place = await self._secrets.directory(undo)
            for number, (path, data) in enumerate(operation.files):
                file = place / f"file{number}"
                file.write_bytes(data)
                os.chmod(file, 0o755)  # noqa: S103
                found.append(MountPoint(kind="volume", target=path, source=str(file), readonly=True))
        for mount in operation.mounts:
            target = posixpath.normpath(posixpath.join(operation.working_dir, mount.target or "/"))
            point = await self._mount(mount, target, sources, undo, env)
            if point is not None:
                found.append(point)
        points = [path for point in found for path in _and_above(point.target)]
        return found, env, points

    async def _mount(
        self,
        mount: Mount,
        target: str,
        sources: Callable[[int], Tree],
        undo: AsyncExitStack,
        env: list[str],
    ) -> MountPoint | None:
        if mount.kind == "tmpfs":
            options = [f"size={mount.size_bytes}"] if mount.size_bytes else []
            return MountPoint(kind="tmpfs", target=target, options=(*options, "mode=1777"))
        if mount.kind == "cache":
            source = await self._caches.hold(mount, undo)
            return MountPoint(kind="volume", target=target, source=str(source), readonly=mount.read_only)
        if mount.kind == "secret":
            return await self._secrets.mount(mount, target, undo, env)
        if mount.kind == "ssh":
            return await self._secrets.agent(mount, target, undo, env)
        tree = sources(mount.source) if mount.source is not None else None
        if tree is None:
            raise Invalid(f"RUN --mount=type=bind,target={mount.target}: there is nothing to mount")
        if isinstance(tree, Snapshot) and mount.read_only:
            return MountPoint(
                kind="image",
                target=target,
                source=str(self._images.layers_dir),
                layers=tuple(self._images.names_of_layers(tree.layers)),
                subpath=mount.source_path.strip("/"),
                readonly=True,
            )
        place = await materialize(self._images, tree, mount.source_path, undo)
        return MountPoint(kind="volume", target=target, source=str(place), readonly=mount.read_only)


def _environment(env: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    found = [*env, *more]
    if not any(item.startswith("PATH=") for item in found):
        found.insert(0, DEFAULT_PATH)
    return tuple(found)


def _and_above(path: str) -> list[str]:
    """A path, and those above it but the root."""
    found = []
    while path not in ("", "/"):
        found.append(path)
        path = posixpath.dirname(path)
    return found
