"""One start of a supervisor: what it is given, and the conversation until its process has been executed.

Order that must hold: everything is handed over before cove-init is spawned, which then never waits for the daemon
but at the plan's sync points (ResolveUser, Pause).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cove.model.errors import HostError
from cove.runtime import protocol
from cove.runtime.encode import encode
from cove.runtime.executor import Launcher, step_failed
from cove.runtime.steps import Pause, Plan
from cove.runtime.supervisor import Connection, control_pair, kill, listen_control, reap, wait_readable

_TOO_MANY = "the daemon has too many open files: raise its limit, e.g. LimitNOFILE=1048576"


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
class Callbacks:
    """What a plan's sync points ask for. `pause` gets the name of the Pause step and the child's host pid, and
    returns the input of later hooks; `listener` gets a filter's listener (which it duplicates to keep it) and that
    pid."""

    resolve_user: Callable[[int], Awaitable[Resolved]] | None = None
    pause: Callable[[str, int], Awaitable[bytes]] | None = None
    listener: Callable[[int, int], Awaitable[None]] | None = None


class Starting:
    """A supervisor between its spawn and Started."""

    def __init__(self, connection: Connection, plan: Plan, pid: int, supervisor: int) -> None:
        self._connection = connection
        self._plan = plan
        self._pid = pid
        self._supervisor = supervisor
        self._child = 0
        self._asked = False  # the child waits for an answer
        self._ended = False

    async def run(self, callbacks: Callbacks) -> tuple[int, int]:
        """The process and its pidfd, once it has been executed."""
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
                if isinstance(message, protocol.Cloned):
                    self._child = message.pid
                elif isinstance(message, protocol.Resolve | protocol.Paused):
                    await self._answer(message, descriptors, callbacks)
                elif isinstance(message, protocol.Listener):
                    await self._hand_on(descriptors, callbacks)
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

    async def _answer(
        self, message: protocol.Resolve | protocol.Paused, descriptors: list[int], callbacks: Callbacks
    ) -> None:
        """The child waits: do what it waits for."""
        self._asked = True
        if isinstance(message, protocol.Paused):
            step = self._plan.child[message.index]
            assert isinstance(step, Pause), step
            if callbacks.pause is None:
                raise HostError(f"the plan pauses for {step.name}, but nothing was given to do then")
            answer = protocol.encode_continue(await callbacks.pause(step.name, self._child))
        else:
            if not descriptors:
                raise HostError(_TOO_MANY)
            if callbacks.resolve_user is None:
                raise HostError("the plan asks to look a user up, but nothing was given to do that")
            found = await callbacks.resolve_user(descriptors[0])
            answer = protocol.encode_resolved(found.uid, found.gid, found.groups, found.env)
        with contextlib.suppress(HostError):  # it has been killed: the end of its messages tells
            self._connection.send(answer)
        self._asked = False

    async def _hand_on(self, descriptors: list[int], callbacks: Callbacks) -> None:
        if not descriptors:
            raise HostError(_TOO_MANY)
        if callbacks.listener is None:
            raise HostError("the filter asks a listener, but nothing was given to hand it to")
        await callbacks.listener(descriptors[0], self._child)

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
            elif isinstance(message, protocol.Resolve | protocol.Paused):
                self._connection.send(protocol.encode_simple(protocol.UNRESOLVED, 0))
            for descriptor in descriptors:
                os.close(descriptor)
        await self._gone()

    async def _gone(self) -> None:
        if not self._ended:
            await wait_readable(self._supervisor)
            reap(self._supervisor)
            self._ended = True


def spawn(
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
            descriptors.append(os.open(log.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            ours.callback(os.close, descriptors[-1])
        control, theirs = control_pair()
        ours.callback(os.close, theirs)
        try:
            socket.send_fds(control, [start.encode()], descriptors + list(slots))
            for ident, client in enumerate(attach, start=1):
                socket.send_fds(control, [attach_message(ident, client)], [client.sock.fileno()])
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


def attach_message(ident: int, client: Attach) -> bytes:
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
