"""Run a plan by cove-init in its detached mode, without an event loop.

    memfd of the plan, slots ──▶ cove-init ──CLONED──▶ (the caller notes the pid)
                                     ├──PAUSED──▶ the caller writes maps, runs hooks ──CONTINUE──▶
                                     ├──TERMINAL, LISTENER──▶ descriptors for the caller
                                     └──STARTED──▶ cove-init ends; the process is this program's child

Whatever fails on this side, the waiting child is told so; cove-init undoes what was made, and this waits for its
end. If this program is killed, the connection closes, which undoes the same.
"""

from __future__ import annotations

import _socket
import os
import struct

from cove.model.errors import HostError, Invalid
from cove.ociruntime import caller
from cove.runtime import protocol
from cove.runtime.encode import encode
from cove.runtime.executor import StepFailed, control_pair, step_failed
from cove.runtime.steps import Pause, Terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cove.runtime.steps import Plan


class Started:
    """What a start gave: the process, and the descriptors that came with it (-1: none), which are the caller's."""

    __slots__ = ("pid", "pidfd", "terminal")

    def __init__(self) -> None:
        self.pid = 0
        self.pidfd = self.terminal = -1

    def close(self) -> None:
        for descriptor in (self.pidfd, self.terminal):
            if descriptor >= 0:
                os.close(descriptor)
        self.pidfd = self.terminal = -1


def launch(
    plan: Plan,
    slots: Sequence[int],
    title: str,
    *,
    on_cloned: Callable[[int], object] = lambda pid: None,
    on_paused: Callable[[str], bytes] = lambda name: b"",
    on_listener: Callable[[int, int], object] = lambda pid, listener: None,
) -> Started:
    """Run `plan`; returns once its process is executed, or holds.

    `on_cloned` gets the pid as soon as there is one; `on_paused` a Pause step's name, and its answer goes to the
    hooks; `on_listener` the pid and a filter's listener, which is closed for it afterwards: the process may be waiting
    for its supervisor from now on. Raises StepFailed, HostError, and whatever those raise; nothing runs then. `slots`
    stay the caller's.
    """
    try:
        content = encode(plan)
    except ValueError as error:
        raise Invalid(f"config.json: {error}") from None
    if len(slots) > protocol.MAX_SLOTS:
        raise Invalid(
            f"config.json needs {len(slots)} descriptors, at most {protocol.MAX_SLOTS} are possible: "
            "use fewer mounts with mappings or propagation"
        )
    launcher = caller.current.launcher()
    memory = os.memfd_create("plan", os.MFD_CLOEXEC)
    try:
        os.write(memory, content)
        control, theirs = control_pair()
        try:
            start = protocol.Start(
                plan_size=len(content), log_max_bytes=0, log_max_files=0, log_driver=0,
                terminal=any(isinstance(step, Terminal) for step in plan.child), stdin=True, stdin_once=False,
                slots=len(slots), attaches=0, mode=protocol.DETACHED_MODE,
            )  # fmt: skip
            descriptors = [memory, *slots]
            rights = struct.pack(f"{len(descriptors)}i", *descriptors)
            control.sendmsg([start.encode()], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
            pid = caller.current.spawn_init(launcher, title, theirs)
        except OSError as error:
            control.close()
            raise HostError(f"cove-init can't be started: {error.strerror}") from error
        finally:
            os.close(theirs)
    finally:
        os.close(memory)
        launcher.close()
    started = Started()
    try:
        _talk(control, plan, started, on_cloned, on_paused, on_listener)
    except BaseException as error:
        if not isinstance(error, StepFailed):
            _refuse(control)
        started.close()
        raise
    finally:
        control.close()
        caller.current.wait(pid)
    return started


def _talk(
    control: _socket.socket,
    plan: Plan,
    started: Started,
    on_cloned: Callable[[int], object],
    on_paused: Callable[[str], bytes],
    on_listener: Callable[[int, int], object],
) -> None:
    pid = 0
    while (arrived := _receive(control)) is not None:
        message, descriptors = arrived
        if isinstance(message, protocol.Started):
            if not descriptors:
                raise HostError("too many open files: raise this process's limit (ulimit -n)")
            started.pid, started.pidfd = message.pid, descriptors[0]
            return
        if isinstance(message, protocol.Master) and descriptors:
            started.terminal = descriptors[0]
            continue
        try:
            if isinstance(message, protocol.Listener) and descriptors:
                on_listener(pid, descriptors[0])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if isinstance(message, protocol.Cloned):
            pid = message.pid
            on_cloned(pid)
        elif isinstance(message, protocol.Paused):
            step = plan.child[message.index]
            assert isinstance(step, Pause), step
            control.send(protocol.encode_continue(on_paused(step.name)))
        elif isinstance(message, protocol.Failed):
            raise step_failed(plan, message.section, message.index, message.errno)
        elif isinstance(message, protocol.Refused):
            raise HostError(
                f"cove-init refused {message.section} step {message.index} of the plan: {message.reason}"
            )
    raise HostError("cove-init was killed while the container started")


def _receive(control: _socket.socket) -> tuple[protocol.Message | None, list[int]] | None:
    """The next message with its descriptors; None at the end."""
    data, ancillary, _, _ = control.recvmsg(
        protocol.MAX_MESSAGE, _socket.CMSG_SPACE(32), _socket.MSG_CMSG_CLOEXEC
    )
    descriptors: list[int] = []
    for level, kind, rights in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            descriptors += struct.unpack(f"{len(rights) // 4}i", rights[: len(rights) // 4 * 4])
    return (protocol.decode(data), descriptors) if data else None


def _refuse(control: _socket.socket) -> None:
    """Tell a waiting child that there is no answer, and wait until cove-init has undone everything."""
    try:
        control.send(protocol.encode_simple(protocol.UNRESOLVED, 0))
        while (arrived := _receive(control)) is not None:
            for descriptor in arrived[1]:
                os.close(descriptor)
    except OSError:
        pass  # it has ended
