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
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cove.model.errors import Conflict, HostError
from cove.runtime import protocol
from cove.runtime.executor import Launcher, StepFailed
from cove.runtime.starting import (
    Attach,
    Callbacks,
    LogSetup,
    Resolved,
    Starting,
    StreamSetup,
    attach_message,
    spawn,
)
from cove.runtime.steps import Plan
from cove.runtime.supervisor import Connection, connect_control, kill, reap

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


ANSWER_BOUND_S = 30.0  # a supervisor answers within microseconds, unless somebody has stopped it


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

    def ends(self) -> bool:
        """Whether the first process has ended, or is about to: it gives up its root before it waits for the others of
        its pid namespace, and its pidfd tells of its end after that."""
        if not self.lives():
            return True
        try:
            os.readlink(f"/proc/{self.pid}/root")
        except (FileNotFoundError, ProcessLookupError):
            return True
        return False

    async def attach(self, client: Attach) -> None:
        """Hand a client's socket over. Raises Conflict when the process has ended or too many are
        attached, HostError when the supervisor can't be reached."""
        ident = next(self._idents)
        if client.on_detach is not None:
            self._on_detach[ident] = client.on_detach
        try:
            errno = await self._request(ident, attach_message(ident, client), [client.sock.fileno()])
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
    on_pause: Callable[[str, int], Awaitable[bytes]] | None = None,
    on_listener: Callable[[int, int], Awaitable[None]] | None = None,
    attach: Sequence[Attach] = (),
) -> Task:
    """Run a plan; returns once its process has been executed.

    `slots` are the descriptors that the plan names by index; they stay the caller's. `state_dir`
    is made when missing. `resolve_user` gets a descriptor (O_PATH) of the container's root, which
    is closed for it afterwards; `on_pause` and `on_listener` are Callbacks.pause and Callbacks.listener. What they
    raise is raised here.

    Raises StepFailed when a step fails, HostError when the supervisor can't be started or dies,
    ValueError for a plan that has no encoding. After an error or a cancellation nothing runs.
    """
    streams = streams or StreamSetup()
    callbacks = Callbacks(resolve_user=resolve_user, pause=on_pause, listener=on_listener)
    with contextlib.ExitStack() as undo:
        connection, pid, supervisor = spawn(launcher, plan, state_dir, slots, streams, attach, undo)
        undo.callback(connection.discard)
        start = Starting(connection, plan, pid, supervisor)
        try:
            process, pidfd = await start.run(callbacks)
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
