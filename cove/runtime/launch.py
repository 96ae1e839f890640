"""Start containers' processes through cove-init, and watch them.

What the engine calls: `launch`, `reconnect`, `read_exit`, and the `Task` that both return.
A task lives on the event loop it was made on; there are no threads and no polling.

    launch ──plan, descriptors──▶ supervisor ──Started──▶ Task
                                      └──Failed / Refused──▶ StepFailed (everything undone)
    Task.wait ◀── the supervisor's last message; when its pidfd says that it is gone without one, the file
                  `exit`, else it was killed (137, with an error)
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cove.model.errors import Conflict, HostError
from cove.runtime import protocol
from cove.runtime.encode import encode
from cove.runtime.executor import Launcher, StepFailed, step_failed
from cove.runtime.steps import Plan
from cove.runtime.supervisor import (
    Connection,
    connect_control,
    control_pair,
    kill,
    listen_control,
    reap,
    wait_readable,
)

__all__ = [
    "Attach",
    "ExitStatus",
    "Launcher",
    "LogSetup",
    "Resolved",
    "StepFailed",
    "StreamSetup",
    "Task",
    "end_unanswering",
    "launch",
    "read_exit",
    "reconnect",
]


_TOO_MANY = "the daemon has too many open files: raise its limit, e.g. LimitNOFILE=1048576"


ANSWER_BOUND_S = 30.0  # a supervisor answers within microseconds, unless somebody has stopped it


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSetup:
    """Where output is kept. `max_files` counts the one being written; 0 bytes: never rotated."""

    driver: Literal["local", "json-file", "none"] = "none"
    directory: Path | None = None  # exists already; None only for "none"
    max_size_bytes: int = 20 * 1024 * 1024
    max_files: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSetup:
    """`terminal` needs a Terminal step in the plan. `stdin` False gives the process /dev/null;
    `stdin_once` closes its stdin when a client that was attached to it has sent its end."""

    terminal: bool = False
    stdin: bool = False
    stdin_once: bool = False
    log: LogSetup = LogSetup()


@dataclass(slots=True, kw_only=True, eq=False)
class Attach:
    """A client to be served by the supervisor; `sock` is a stream socket, handed over whole.

    On success the daemon's copy of `sock` is closed; after an error it is still the caller's.
    `initial` is input that was read from the client already (at most 32 KiB), `detach_keys` at
    most 16 bytes; `on_detach` is called when the client typed them (as long as this daemon runs).
    """

    sock: socket.socket
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    multiplex: bool = False
    detach_keys: bytes = b""
    initial: bytes = b""
    on_detach: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The answer to a ResolveUser step. `env` are whole variables ("HOME=/root"), appended."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    env: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStatus:
    """How it ended. `exit_code` is 128 + signal for a killed process; `error` isn't empty when the
    supervisor itself was killed, and the code (137) is what it then must have been."""

    exit_code: int
    oom_killed: bool = False
    finished_ns: int = 0  # since the epoch; 0: not known
    error: str = ""
    log_dropped_bytes: int = 0  # output that couldn't be logged (disk full)


class Task:
    """A started process and its supervisor."""

    def __init__(
        self,
        connection: Connection,
        state_dir: Path,
        pid: int,
        pidfd: int,
        supervisor_pid: int,
        supervisor: int,
    ) -> None:
        self.pid = pid
        self.supervisor_pid = supervisor_pid
        self._connection = connection
        self._state_dir = state_dir
        self._pidfd = pidfd
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._status: asyncio.Future[ExitStatus] = self._loop.create_future()
        self._idents = itertools.count(1 << 16)
        self._answers: dict[int, asyncio.Future[int]] = {}
        self._on_detach: dict[int, Callable[[], None]] = {}
        self._gone = asyncio.Event()
        self._orphaned = False
        self._on_orphaned: Callable[[], object] | None = None
        connection.take_over(self._on_message)
        self._loop.add_reader(supervisor, self._on_supervisor_gone)

    async def wait(self) -> ExitStatus:
        """The exit status, once the log is complete and all that the supervisor had to undo is undone.

        The supervisor itself may stay a while, for a client that is slow to read the rest of its output. May be
        awaited by many, and again; never raises for a container's misfortune.
        """
        return await asyncio.shield(self._status)

    def take_in(self) -> None:
        """Handle at once what the supervisor has told already, rather than at the loop's next turn."""
        if not self._status.done():
            self._connection.drain()

    async def gone(self) -> None:
        """Wait until the supervisor itself is gone: nothing of the task is left on the host then."""
        await self._gone.wait()

    @property
    def exited(self) -> ExitStatus | None:
        """The status if it's known already."""
        return self._status.result() if self._status.done() else None

    @property
    def pidfd(self) -> int:
        """A pidfd of the first process, borrowed: valid until the task has ended."""
        return self._pidfd

    def lives(self) -> bool:
        """Whether the first process lives, asked of the kernel: then what was opened by its pid just before was
        its own, and not of a process that got the number after it."""
        if self._status.done():
            return False
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)  # readable once it has ended (pidfd_open(2))
        return not poll.poll(0)

    async def attach(self, client: Attach) -> None:
        """Hand a client's socket over. Raises Conflict when the process has ended or too many are
        attached, HostError when the supervisor can't be reached."""
        ident = next(self._idents)
        if client.on_detach is not None:
            self._on_detach[ident] = client.on_detach
        try:
            errno = await self._request(ident, _attach_message(ident, client), [client.sock.fileno()])
            if errno:
                raise Conflict(f"the client can't be attached: {os.strerror(errno)}")
        except BaseException:
            self._on_detach.pop(ident, None)
            raise
        client.sock.close()

    async def signal(self, signo: int) -> None:
        """Send a signal to the first process. Raises Conflict when it has ended."""
        try:
            if self._status.done():
                raise ProcessLookupError
            signal.pidfd_send_signal(self._pidfd, signo)
        except ProcessLookupError:
            raise Conflict(f"process {self.pid} has ended already") from None

    async def resize(self, rows: int, cols: int) -> None:
        """Set the terminal's size. Raises Conflict when there is no terminal."""
        ident = next(self._idents)
        errno = await self._request(ident, protocol.encode_resize(ident, rows, cols))
        if errno:
            raise Conflict(f"the terminal can't be resized to {cols}x{rows}: {os.strerror(errno)}")

    async def close_stdin(self) -> None:
        """Close the process's stdin, after what clients sent has been written to it."""
        ident = next(self._idents)
        await self._request(ident, protocol.encode_simple(protocol.CLOSE_STDIN, ident))

    def when_orphaned(self, callback: Callable[[], object]) -> None:
        """Have `callback` called once the supervisor was killed: the first process gets a SIGKILL of its own,
        but a frozen one dies only when somebody thaws it."""
        self._on_orphaned = callback
        if self._orphaned:
            callback()

    def forget(self) -> None:
        """Stop watching (the daemon ends); the supervisor and the container run on."""
        if not self._status.done():
            self._loop.remove_reader(self._supervisor)
            os.close(self._supervisor)
            self._close()
            self._status.cancel()

    async def _request(self, ident: int, message: bytes, descriptors: Sequence[int] = ()) -> int:
        if self._status.done() or self._connection.closed:
            raise Conflict(f"process {self.pid} has ended already")
        answer: asyncio.Future[int] = self._loop.create_future()
        self._answers[ident] = answer
        try:
            self._connection.send(message, descriptors)
            async with asyncio.timeout(ANSWER_BOUND_S):
                return await answer
        except TimeoutError:
            raise HostError(
                f"the supervisor (process {self.supervisor_pid}) did not answer within {ANSWER_BOUND_S:.0f} s: "
                "it is stopped; continue it with SIGCONT"
            ) from None
        finally:
            del self._answers[ident]

    def _on_message(self, message: protocol.Message) -> None:
        if isinstance(message, protocol.Exited):
            self._finish(
                ExitStatus(
                    exit_code=message.exit_code,
                    oom_killed=message.oom_killed,
                    finished_ns=message.finished_ns,
                    log_dropped_bytes=message.log_dropped_bytes,
                )
            )
        elif isinstance(message, protocol.Done):
            answer = self._answers.get(message.ident)
            if answer is not None and not answer.done():
                answer.set_result(message.errno)
        elif isinstance(message, protocol.Detached):
            callback = self._on_detach.pop(message.ident, None)
            if callback is not None:
                callback()

    def _on_supervisor_gone(self) -> None:
        self._loop.remove_reader(self._supervisor)
        self._connection.drain()
        reap(self._supervisor)
        os.close(self._supervisor)
        self._gone.set()
        if self._status.done():
            return
        if (status := read_exit(self._state_dir)) is not None:
            self._finish(status)
        else:
            # PR_SET_PDEATHSIG has killed the process unless it changed its identity since; make sure,
            # and wait for it, so that nobody meets a half-dead container.
            kill(self._pidfd)
            self._loop.add_reader(self._pidfd, self._on_orphan_gone)
            self._orphaned = True
            if self._on_orphaned is not None:
                self._on_orphaned()

    def _on_orphan_gone(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._finish(
            ExitStatus(
                exit_code=128 + signal.SIGKILL,
                error=f"the container's supervisor (process {self.supervisor_pid}) was killed, "
                "and the container's processes with it",
            )
        )

    def _finish(self, status: ExitStatus) -> None:
        if not self._status.done():
            self._close()
            self._status.set_result(status)

    def _close(self) -> None:
        self._connection.discard()
        os.close(self._pidfd)
        self._on_detach.clear()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Conflict(f"process {self.pid} has ended"))


async def launch(
    launcher: Launcher,
    plan: Plan,
    *,
    state_dir: Path,
    slots: Sequence[int] = (),
    streams: StreamSetup | None = None,
    resolve_user: Callable[[int], Awaitable[Resolved]] | None = None,
    attach: Sequence[Attach] = (),
) -> Task:
    """Run a plan; returns once its process has been executed.

    `slots` are the descriptors that the plan names by index; they stay the caller's. `state_dir`
    is made when missing. `resolve_user` gets a descriptor (O_PATH) of the container's root, which
    is closed for it afterwards; what it raises is raised here.

    Raises StepFailed when a step fails, HostError when the supervisor can't be started or dies,
    ValueError for a plan that has no encoding. After an error or a cancellation nothing runs.
    """
    streams = streams or StreamSetup()
    with contextlib.ExitStack() as undo:
        connection, pid, supervisor = _spawn(launcher, plan, state_dir, slots, streams, attach, undo)
        undo.callback(connection.discard)
        start = _Starting(connection, plan, pid, supervisor)
        try:
            process, pidfd = await start.run(resolve_user)
        except BaseException:
            await start.abandon()
            os.close(supervisor)
            raise
        undo.pop_all()
    task = Task(connection, state_dir, process, pidfd, pid, supervisor)
    for ident, client in enumerate(attach, start=1):
        client.sock.close()
        if client.on_detach is not None:
            task._on_detach[ident] = client.on_detach
    return task


def end_unanswering(title: str) -> int:
    """Kill the supervisor with this title (the name of its state directory), which doesn't answer; its pid, 0
    when there is none. Its process dies with it."""
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            pidfd = os.pidfd_open(int(entry))
        except OSError:
            continue
        try:
            # read after the pidfd was opened: it is this process that gets the signal
            if Path("/proc", entry, "cmdline").read_bytes() == b"cove-init\0" + os.fsencode(title) + b"\0":
                kill(pidfd)
                return int(entry)
        except OSError:
            continue
        finally:
            os.close(pidfd)
    return 0


async def reconnect(state_dir: Path) -> Task | None:
    """The task of a supervisor that outlived the daemon which started it; None when it is gone:
    then `read_exit` tells the end, or None if it was killed. Raises HostError when it doesn't answer."""
    stuck = HostError(f"the supervisor of {state_dir.name} does not answer: kill it to free the container")
    try:
        control = await connect_control(state_dir)
    except TimeoutError:
        raise stuck from None
    if control is None:
        return None
    connection = Connection(control)
    try:
        connection.send(protocol.encode_simple(protocol.QUERY, 0))
        async with asyncio.timeout(10):
            while (answer := await connection.next()) is not None:
                message, descriptors = answer
                if isinstance(message, protocol.StateReport) and len(descriptors) == 2:
                    supervisor, pidfd = descriptors
                    return Task(connection, state_dir, message.pid, pidfd, message.supervisor_pid, supervisor)
                for descriptor in descriptors:
                    os.close(descriptor)
    except TimeoutError:
        connection.discard()
        raise stuck from None
    except HostError:
        pass  # it has just ended
    except BaseException:
        connection.discard()
        raise
    connection.discard()
    return None


def read_exit(state_dir: Path) -> ExitStatus | None:
    """What a supervisor wrote at its end; None when there is no such file."""
    try:
        text = (state_dir / "exit").read_text()
    except FileNotFoundError:
        return None
    values = dict(line.split(" ", 1) for line in text.splitlines())
    return ExitStatus(
        exit_code=int(values["exit_code"]),
        oom_killed=values["oom_killed"] == "1",
        finished_ns=int(values["finished_ns"]),
        log_dropped_bytes=int(values["log_dropped_bytes"]),
    )


class _Starting:
    """A supervisor between its spawn and Started."""

    def __init__(self, connection: Connection, plan: Plan, pid: int, supervisor: int) -> None:
        self._connection = connection
        self._plan = plan
        self._pid = pid
        self._supervisor = supervisor
        self._asked = False  # the child waits for the answer to Resolve
        self._ended = False

    async def run(self, resolve_user: Callable[[int], Awaitable[Resolved]] | None) -> tuple[int, int]:
        while (arrived := await self._connection.next()) is not None:
            message, descriptors = arrived
            if isinstance(message, protocol.Started):
                if not descriptors:  # the kernel drops what doesn't fit under RLIMIT_NOFILE
                    kill(self._supervisor)
                    raise HostError(_TOO_MANY)
                return message.pid, descriptors[0]
            with contextlib.ExitStack() as given:
                for descriptor in descriptors:
                    given.callback(os.close, descriptor)
                if isinstance(message, protocol.Resolve):
                    self._asked = True
                    if not descriptors:
                        raise HostError(_TOO_MANY)
                    if resolve_user is None:
                        raise HostError("the plan asks to look a user up, but nothing was given to do that")
                    found = await resolve_user(descriptors[0])
                    answer = protocol.encode_resolved(found.uid, found.gid, found.groups, found.env)
                    with contextlib.suppress(HostError):  # it has been killed: the end of its messages tells
                        self._connection.send(answer)
                    self._asked = False
                elif isinstance(message, protocol.Failed):
                    await self._gone()
                    raise step_failed(self._plan, message.section, message.index, message.errno)
                elif isinstance(message, protocol.Refused):
                    await self._gone()
                    raise HostError(
                        f"cove-init refused {message.section} step {message.index} of the plan: {message.reason}"
                    )
        await self._gone()
        raise HostError(f"the supervisor (process {self._pid}) was killed while the container started")

    async def abandon(self) -> None:
        """Let nothing run: tell the waiting child there is no answer, or kill what has just started;
        the supervisor then undoes the rest. Bounded by the plan's own steps."""
        if self._asked:
            with contextlib.suppress(HostError):
                self._connection.send(protocol.encode_simple(protocol.UNRESOLVED, 0))
        while not self._ended and (arrived := await self._connection.next()) is not None:
            message, descriptors = arrived
            if isinstance(message, protocol.Started):
                kill(descriptors[0] if descriptors else self._supervisor)
            elif isinstance(message, protocol.Resolve):
                self._connection.send(protocol.encode_simple(protocol.UNRESOLVED, 0))
            for descriptor in descriptors:
                os.close(descriptor)
        await self._gone()

    async def _gone(self) -> None:
        if not self._ended:
            await wait_readable(self._supervisor)
            reap(self._supervisor)
            self._ended = True


def _spawn(
    launcher: Launcher,
    plan: Plan,
    state_dir: Path,
    slots: Sequence[int],
    streams: StreamSetup,
    attach: Sequence[Attach],
    undo: contextlib.ExitStack,
) -> tuple[Connection, int, int]:
    """Hand everything to a new supervisor in one go: it never has to wait for the daemon."""
    content = encode(plan)
    if len(slots) > protocol.MAX_SLOTS:
        raise ValueError(f"{len(slots)} descriptors were given, at most {protocol.MAX_SLOTS} are possible")
    log = streams.log
    start = protocol.Start(
        plan_size=len(content),
        log_max_bytes=log.max_size_bytes,
        log_max_files=log.max_files,
        log_driver=protocol.LOG_DRIVERS[log.driver],
        terminal=streams.terminal,
        stdin=streams.stdin,
        stdin_once=streams.stdin_once,
        slots=len(slots),
        attaches=len(attach),
    )
    with contextlib.ExitStack() as ours:
        memory = os.memfd_create("plan", os.MFD_CLOEXEC)
        ours.callback(os.close, memory)
        os.write(memory, content)
        directory = _make_state_dir(state_dir, undo)
        ours.callback(os.close, directory)
        listener = ours.enter_context(listen_control(directory))
        undo.callback(_unlink, state_dir / "control.sock")
        descriptors = [memory, directory, listener.fileno()]
        if log.driver != "none":
            assert log.directory is not None, "a log driver needs a directory"
            descriptors.append(os.open(log.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            ours.callback(os.close, descriptors[-1])
        control, theirs = control_pair()
        ours.callback(os.close, theirs)
        try:
            socket.send_fds(control, [start.encode()], descriptors + list(slots))
            for ident, client in enumerate(attach, start=1):
                socket.send_fds(control, [_attach_message(ident, client)], [client.sock.fileno()])
            pid = launcher.spawn(state_dir.name, theirs)
        except OSError as error:
            control.close()
            raise HostError(f"cove-init can't be started: {error.strerror}") from error
        except BaseException:
            control.close()
            raise
        return Connection(control), pid, os.pidfd_open(pid)


def _make_state_dir(state_dir: Path, undo: contextlib.ExitStack) -> int:
    """An empty state directory, opened: what an earlier start left there is removed."""
    try:
        os.makedirs(state_dir, 0o700)
        undo.callback(_remove_empty, state_dir)
    except FileExistsError:
        for name in ("exit", "control.sock"):
            _unlink(state_dir / name)
    return os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _attach_message(ident: int, client: Attach) -> bytes:
    if len(client.initial) > protocol.MAX_INITIAL or len(client.detach_keys) > protocol.MAX_DETACH_KEYS:
        raise ValueError(
            f"a client brought {len(client.initial)} bytes of input, {len(client.detach_keys)} detach keys: "
            f"at most {protocol.MAX_INITIAL} and {protocol.MAX_DETACH_KEYS} are possible"
        )
    return protocol.encode_attach(
        ident,
        stdin=client.stdin,
        stdout=client.stdout,
        stderr=client.stderr,
        multiplex=client.multiplex,
        detach_keys=client.detach_keys,
        initial=client.initial,
    )


def _unlink(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _remove_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(directory)
