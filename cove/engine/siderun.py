"""A process in a container's sandbox that is no container on record: what a build runs.

It has layers of its own instead of an image, and everything else from the engine: plan, cgroup, network, names. Its
directories and its state lie where containers' do, without a record: so what a killed daemon left of it is found and
ended by the next one's sweep, as the rest of a create that was cut off is. Nothing lists it, nothing restarts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cove.engine.defaults import with_defaults
from cove.engine.names import new_id
from cove.engine.parts import Parts
from cove.engine.start import StartRefused, launch_container
from cove.model.container import Container, ContainerSpec, LogConfig, MountPoint
from cove.model.errors import Conflict, CoveError
from cove.model.waiting import finish
from cove.runtime.launch import Attach, ExitStatus, Task

KILL_BOUND_S = 30.0
_PIECE = 64 << 10
Output = Callable[[int, bytes], Awaitable[None]]  # of a stream (1 or 2), some bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SideRun:
    """What is to run. `spec` says network, limits and the like; the rest is said here."""

    layers: Sequence[str]  # lowest first, relative to the images' `layers_dir`
    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = "/"
    spec: ContainerSpec
    mounts: tuple[MountPoint, ...] = ()


class SideRuns:
    """Runs them; one for each daemon."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    @contextlib.asynccontextmanager
    async def prepared(self, run: SideRun) -> AsyncIterator[Prepared]:
        """Its directory, for as long as the block lasts; whatever still runs at the end is killed."""
        parts = self._parts
        spec, _ = parts.check(with_defaults(run.spec, parts.settings))
        container_id = new_id()
        container = Container(
            id=container_id,
            name=container_id[:12],
            created_ns=time.time_ns(),
            image_id="",
            image_name="",
            spec=spec,
            args=run.args,
            env=run.env,
            working_dir=run.working_dir,
            user=run.user,
            hostname=spec.hostname or container_id[:12],
            mounts=run.mounts,
            log=LogConfig(driver="none"),
        )
        parts.own_layers[container_id] = tuple(run.layers)
        prepared = Prepared(parts, container)
        try:
            await parts.make_container_dir(container)
            yield prepared
        finally:
            await finish(prepared.clear())
            parts.own_layers.pop(container_id, None)


class Prepared:
    """A run with its directory."""

    def __init__(self, parts: Parts, container: Container) -> None:
        self._parts = parts
        self._container = container
        self._task: Task | None = None
        self._started = False

    @property
    def id(self) -> str:
        return self._container.id

    @property
    def upper(self) -> Path:
        """What it changed."""
        return self._parts.layer(self._container).upper

    async def run(self, output: Output) -> ExitStatus:
        """Run it to its end. Raises what a start raises; then nothing of it runs."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            attach = Attach(sock=theirs, stdout=True, stderr=True, multiplex=True)
            try:
                self._started = True
                running = await launch_container(self._parts, self._container, [attach])
            except StartRefused as refused:
                raise RunRefused(refused.exit_code, refused.cause) from refused.cause
            finally:
                theirs.close()
            self._task = running.task
            reading = asyncio.ensure_future(_read_frames(ours, output))
            try:
                status = await running.task.wait()
                await reading
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
        finally:
            ours.close()
        await self._parts.clean_after_exit(self._container, killed=bool(status.error))
        self._task, self._started = None, False
        return status

    async def clear(self) -> None:
        """Kill what runs and take everything down. Idempotent."""
        parts, container = self._parts, self._container
        task, self._task = self._task, None
        if task is not None:
            with contextlib.suppress(Conflict):
                await task.signal(9)
            try:
                async with asyncio.timeout(KILL_BOUND_S):
                    await task.wait()
            except TimeoutError:
                await parts.kill_all(container)
        if self._started:
            with contextlib.suppress(CoveError, OSError):  # the next start sweeps
                await parts.clean_after_exit(container, killed=True)
        await parts.discard_container_dir(container.id)
        shutil.rmtree(parts.settings.state_dir(container.id), ignore_errors=True)


class RunRefused(CoveError):
    """A start that failed, with the exit code that a shell would give it."""

    code = "run-refused"

    def __init__(self, exit_code: int, cause: CoveError) -> None:
        super().__init__(str(cause))
        self.exit_code = exit_code
        self.cause = cause


async def _read_frames(sock: socket.socket, output: Output) -> None:
    """Hand on a multiplexed stream until its end."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    while piece := await loop.sock_recv(sock, _PIECE):
        data += piece
        while len(data) >= 8:
            size = int.from_bytes(data[4:8], "big")
            if len(data) < 8 + size:
                break
            await output(data[0], bytes(data[8 : 8 + size]))
            del data[: 8 + size]
