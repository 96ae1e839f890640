"""Execs: further processes in a running container, each with a supervisor of its own.

An exec's record lives in memory and, once it was started, in its state directory, where the next
daemon finds it. Ended ones are kept for inspection until their container goes, or until there are more than
`MAX_KEPT` execs: then the oldest that don't run are forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable

import msgspec

from cove.engine.attach import make_attach, parse_keys
from cove.engine.live import Background
from cove.engine.parts import Parts
from cove.engine.start import StartRefused, launch_exec
from cove.engine.types import AttachOptions, ExecSpec, ExecView, View
from cove.model.container import Model
from cove.model.errors import Conflict, HostError, Invalid, NotFound
from cove.runtime.launch import Task, end_unanswering, read_exit, reconnect

MAX_KEPT = 2000
_LEFT = 1800  # after forgetting: so that it isn't done again at every create
_RECORD = "exec.json"
RESIZE_WAIT_S = 10.0  # Docker's bound
log = logging.getLogger("cove.engine")


class _Record(Model, frozen=True, kw_only=True):
    """What is written beside a started exec."""

    id: str
    container_id: str
    spec: ExecSpec


class _Exec:
    __slots__ = ("container_id", "exit_code", "id", "launched", "pid", "settled", "spec", "started", "task")

    def __init__(self, exec_id: str, container_id: str, spec: ExecSpec) -> None:
        self.id = exec_id
        self.container_id = container_id
        self.spec = spec
        self.started = False
        self.task: Task | None = None
        self.exit_code: int | None = None
        self.pid = 0
        self.launched = asyncio.Event()  # a start has been tried
        self.settled = asyncio.Event()  # no start is under way
        self.settled.set()

    def view(self) -> ExecView:
        exited = self.task.exited if self.task is not None else None
        exit_code = exited.exit_code if exited is not None else self.exit_code
        return ExecView(
            id=self.id,
            container_id=self.container_id,
            spec=self.spec,
            started=self.started,
            running=self.started and exit_code is None,
            exit_code=exit_code,
            pid=self.pid if exit_code is None else 0,
        )


class Execs:
    """All execs of this daemon."""

    def __init__(self, parts: Parts, background: Background, task_of: Callable[[str], Task | None]) -> None:
        self._parts = parts
        self._background = background
        self._task_of = task_of
        self._execs: dict[str, _Exec] = {}

    def _find(self, exec_id: str) -> _Exec:
        found = self._execs.get(exec_id)
        if found is None:
            matches = [e for key, e in self._execs.items() if exec_id and key.startswith(exec_id)]
            if len(matches) != 1:
                raise NotFound(f"No such exec instance: {exec_id}")
            found = matches[0]
        return found

    def inspect(self, exec_id: str) -> ExecView:
        return self._find(exec_id).view()

    async def settled(self, exec_id: str) -> ExecView:
        """Like `inspect`, with everything taken in that its supervisor has told.

        Clients ask for the exit code as soon as their stream ends. The supervisor tells the exit before it ends
        the stream, so the message is there, but perhaps not read yet, nor the start's own end seen.
        """
        found = self._find(exec_id)
        await found.settled.wait()
        if found.task is not None:
            found.task.take_in()
        return found.view()

    def ids_of(self, container_id: str) -> list[str]:
        """Execs of a container that haven't ended, for its inspection."""
        return [e.id for e in self._execs.values() if e.container_id == container_id and e.exit_code is None]

    def count_running(self) -> int:
        return sum(e.task is not None and e.exit_code is None for e in self._execs.values())

    def create(self, container_id: str, spec: ExecSpec) -> str:
        """Register an exec. Conflict unless the container runs; Invalid without a command."""
        if not spec.args:
            raise Invalid("No exec command specified")
        self._check_container(container_id)
        self._forget_oldest()
        exec_id = secrets.token_hex(32)
        self._execs[exec_id] = _Exec(exec_id, container_id, spec)
        self._publish(self._execs[exec_id], "exec_create")
        return exec_id

    def check_start(self, exec_id: str) -> ExecView:
        """Whether it can start now: NotFound, Conflict when it was started or its container doesn't run."""
        found = self._find(exec_id)
        if found.started:
            state = "has already run" if found.task is None else "is already running"
            raise Conflict(f"exec command {exec_id} {state}")
        self._check_container(found.container_id)
        return found.view()

    def _check_container(self, container_id: str) -> None:
        view = self._parts.registry.get(container_id)
        if view is None:
            raise NotFound(f"No such container: {container_id}")
        if view.state.status == "paused":
            raise Conflict(f"container {container_id} is paused, unpause the container before exec")
        if view.state.status == "restarting":
            raise Conflict(f"Container {container_id} is restarting, wait until the container is running")
        if view.state.status != "running":
            raise Conflict(f"container {container_id} is not running")

    async def start(
        self,
        exec_id: str,
        *,
        detach: bool,
        tty: bool,
        rows: int,
        cols: int,
        sock: socket.socket | None,
        initial: bytes,
    ) -> None:
        """Run it; returns once the process is there and its client's socket has been handed over."""
        self.check_start(exec_id)
        found = self._find(exec_id)
        view = self._parts.registry.get(found.container_id)
        running = self._task_of(found.container_id)
        if view is None or running is None:
            raise Conflict(f"container {found.container_id} is not running")
        found.started = True
        found.settled.clear()
        try:
            await self._start(
                found, view, running, detach=detach, tty=tty, rows=rows, cols=cols, client=(sock, initial)
            )
        except HostError:
            if not running.ends():
                raise
            raise Conflict(f"container {found.container_id} is not running") from None
        finally:
            found.launched.set()
            found.settled.set()
        self._publish(found, "exec_start")

    async def _start(
        self,
        found: _Exec,
        view: View,
        running: Task,
        *,
        detach: bool,
        tty: bool,
        rows: int,
        cols: int,
        client: tuple[socket.socket | None, bytes],
    ) -> None:
        sock, initial = client
        attaches = []
        if sock is not None:
            spec = found.spec
            options = AttachOptions(
                stdin=spec.attach_stdin,
                stdout=spec.attach_stdout,
                stderr=spec.attach_stderr,
                multiplex=not tty,
                detach_keys=parse_keys(spec.detach_keys),
            )
            attaches.append(make_attach(options, sock, initial, tty=found.spec.tty))
            attaches[0].on_detach = lambda: self._publish(found, "exec_detach")
        directory = self._parts.settings.exec_dir(found.id)
        try:
            begun_s = time.perf_counter()
            task = await launch_exec(
                self._parts,
                view,
                running,
                found.spec,
                directory,
                attaches,
                keep_stdin=not detach,
                rows=rows,
                cols=cols,
            )
            self._parts.meters.exec_starts.observe(time.perf_counter() - begun_s)
        except StartRefused as refused:
            self._parts.meters.exec_starts_failed += 1
            found.exit_code = refused.exit_code
            for attach in attaches:
                attach.sock.close()
            shutil.rmtree(directory, ignore_errors=True)
            raise refused.cause from None
        except BaseException:
            found.exit_code = 128
            for attach in attaches:
                attach.sock.close()
            shutil.rmtree(directory, ignore_errors=True)
            raise
        self._adopt(found, task)
        record = _Record(id=found.id, container_id=found.container_id, spec=found.spec)
        try:
            (directory / _RECORD).write_bytes(msgspec.json.encode(record))
        except OSError as error:
            with contextlib.suppress(Conflict):
                await task.signal(9)
            raise HostError(f"{directory / _RECORD}: {error.strerror}: the exec was ended") from error

    def _adopt(self, found: _Exec, task: Task) -> None:
        found.started = True
        found.launched.set()
        found.task = task
        found.pid = task.pid
        self._background.spawn(self._watch(found, task), f"watching exec {found.id[:12]}")

    async def _watch(self, found: _Exec, task: Task) -> None:
        status = await task.wait()
        found.exit_code = status.exit_code
        found.task = None
        found.pid = 0
        shutil.rmtree(self._parts.settings.exec_dir(found.id), ignore_errors=True)
        self._publish(found, "exec_die", exitCode=str(status.exit_code))

    async def resize(self, exec_id: str, rows: int, cols: int) -> None:
        """Give the terminal a size; a start that is under way, or about to come, is waited for."""
        found = self._find(exec_id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RESIZE_WAIT_S):
                await found.launched.wait()
        if found.task is None:
            raise Conflict(f"exec {exec_id} is not running")
        await found.task.resize(rows, cols)

    def forget_container(self, container_id: str) -> None:
        """The container is gone: so are its ended execs; a living one ends with its namespaces."""
        for exec_id in [e.id for e in self._execs.values() if e.container_id == container_id]:
            del self._execs[exec_id]

    def _forget_oldest(self) -> None:
        if len(self._execs) <= MAX_KEPT:
            return
        idle = [e.id for e in self._execs.values() if e.exit_code is not None or not e.started]
        for exec_id in idle[: len(self._execs) - _LEFT]:
            del self._execs[exec_id]

    async def reconcile(self) -> None:
        """Find the execs that an earlier daemon started: adopt the living, forget the ended."""
        root = self._parts.settings.run_dir / "exec"
        with contextlib.suppress(FileNotFoundError):
            names = await asyncio.to_thread(os.listdir, root)
            await asyncio.gather(*(self._recover(name) for name in names))

    async def _recover(self, name: str) -> None:
        directory = self._parts.settings.exec_dir(name)
        try:
            record = msgspec.json.decode((directory / _RECORD).read_bytes(), type=_Record)
        except (OSError, msgspec.DecodeError):
            record = None
        try:
            task = await reconnect(directory)
        except HostError as error:
            log.error("exec %s: %s", name[:12], error)
            end_unanswering(name)
            task = None
        if record is None or self._parts.registry.get(record.container_id) is None:
            if task is not None:
                await task.signal(9)  # its start was never acknowledged, or its container is gone
                await task.wait()
            shutil.rmtree(directory, ignore_errors=True)
            return
        found = self._execs[record.id] = _Exec(record.id, record.container_id, record.spec)
        if task is not None:
            self._adopt(found, task)
            return
        found.started = True
        status = read_exit(directory)
        found.exit_code = status.exit_code if status is not None else 137
        shutil.rmtree(directory, ignore_errors=True)

    def _publish(self, found: _Exec, action: str, **attributes: str) -> None:
        view = self._parts.registry.get(found.container_id)
        if view is not None:
            if action in ("exec_create", "exec_start"):
                action = f"{action}: {' '.join(found.spec.args)}"
            self._parts.publish(view.container, action, execID=found.id, **attributes)
