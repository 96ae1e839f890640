"""Detached starts of cove-init for tests: what the OCI runtime does, without it."""
# ruff: noqa: F811

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from cove.runtime import protocol
from cove.runtime.encode import encode
from cove.runtime.executor import Launcher, control_pair
from cove.runtime.steps import (
    Exec,
    Hold,
    Plan,
    Step,
    Terminal,
)
from tests.system.native_support import launcher  # noqa: F401

NEWUSER, NEWTIME = 0x10000000, 0x80
BOUND_S = 30
HOST_PATH = "PATH=/usr/bin:/bin"
MAPS = {"uid_map": "0 100000 65536", "gid_map": "0 200000 65536"}
ALLOW, ERRNO, NOTIFY = 0x7FFF0000, 0x00050000, 0x7FC00000
NEW_LISTENER = 8
RECV, SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_*


M = TypeVar("M", bound=protocol.Message)


class Start:
    """One detached start: what it tells, in order, and the processes that it leaves this one, which are reaped."""

    def __init__(
        self,
        launcher: Launcher,
        plan: Plan,
        slots: Sequence[int] = (),
        stdio: tuple[int, int, int] | None = None,
    ) -> None:
        content = encode(plan)
        ours, theirs = control_pair()
        self.control = socket.socket(fileno=ours.detach())
        self.control.settimeout(BOUND_S)
        self.pid = 0
        self.statuses: dict[int, int] = {}
        start = protocol.Start(
            plan_size=len(content),
            terminal=any(isinstance(step, Terminal) for step in plan.child),
            slots=len(slots),
            mode=protocol.DETACHED_MODE,
        )
        with memory(content) as plan_fd, as_stdio(stdio):
            socket.send_fds(self.control, [start.encode()], [plan_fd, *slots])
            self.supervisor = launcher.spawn_detached("test", theirs)
        os.close(theirs)

    def next(self) -> tuple[protocol.Message | None, list[int]]:
        """The next message with its descriptors; None at the end."""
        data, descriptors, _, _ = socket.recv_fds(self.control, protocol.MAX_MESSAGE, 4)
        message = protocol.decode(data) if data else None
        if isinstance(message, protocol.Cloned | protocol.Started):
            assert os.readlink(f"/proc/self/fd/{descriptors[0]}") == "anon_inode:[pidfd]"
            os.close(descriptors.pop())
            self.pid = message.pid
        return message, descriptors

    def until(self, kind: type[M]) -> M:
        """The next message of that kind, with which no descriptor comes; only Cloned may come before."""
        message, descriptors = self.next()
        if isinstance(message, protocol.Cloned) and kind is not protocol.Cloned:
            message, descriptors = self.next()
        assert isinstance(message, kind), message
        assert descriptors == []
        return message

    def go_on(self, text: bytes = b"") -> None:
        self.control.send(protocol.encode_continue(text))

    def wait(self, pid: int = 0) -> int:
        """The exit code of a process that is our child; the detached one by default."""
        pid = pid or self.pid
        deadline = time.monotonic() + BOUND_S
        while pid not in self.statuses:
            found, status = os.waitpid(-1, os.WNOHANG)  # fails when there are no children
            if found:
                self.statuses[found] = os.waitstatus_to_exitcode(status)
            else:
                assert time.monotonic() < deadline, f"process {pid} still runs"
                time.sleep(0.005)  # no event tells of a child
        return self.statuses[pid]

    def failed(self) -> tuple[str, int, int]:
        """Section, index and errno of the failure; afterwards nothing runs."""
        told = self.until(protocol.Failed)
        assert self.wait(self.supervisor) == 1
        self.nothing_runs()
        return told.section, told.index, told.errno

    def nothing_runs(self) -> None:
        """Everything that was started has ended."""
        deadline = time.monotonic() + BOUND_S
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid:
                self.statuses[pid] = os.waitstatus_to_exitcode(status)
            else:
                assert time.monotonic() < deadline, children()
                time.sleep(0.005)

    def close(self) -> None:
        self.control.close()
        for pid in children():
            os.kill(pid, signal.SIGKILL)
        self.nothing_runs()


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


@contextmanager
def memory(content: bytes) -> Iterator[int]:
    fd = os.memfd_create("plan", os.MFD_CLOEXEC)
    try:
        os.write(fd, content)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def as_stdio(stdio: tuple[int, int, int] | None) -> Iterator[None]:
    """This process's 0, 1 and 2, for as long as it takes to spawn: /dev/null, or what is given."""
    null = os.open("/dev/null", os.O_RDWR)
    kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in range(3)]
    for fd, given in enumerate(stdio or (null, null, null)):
        os.dup2(given, fd)
    try:
        yield
    finally:
        for fd, saved in enumerate(kept):
            os.dup2(saved, fd)
            os.close(saved)
        os.close(null)


@pytest.fixture
def start(launcher: Launcher) -> Iterator[Callable[..., Start]]:
    made: list[Start] = []

    def begin(plan: Plan, slots: Sequence[int] = (), stdio: tuple[int, int, int] | None = None) -> Start:
        made.append(Start(launcher, plan, slots, stdio))
        return made[-1]

    yield begin
    for each in made:
        each.close()


Starter = Callable[..., Start]


def host_sh(script: str, *steps: Step, flags: int = 0, before: tuple[Step, ...] = ()) -> Plan:
    """A shell of the host's own root, in new namespaces."""
    child = (*steps, Exec(args=("/bin/sh", "-c", script), env=(HOST_PATH,)))
    return Plan(clone_flags=flags, before=before, child=child)


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on (proc(5): the third)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


class Fifos:
    """The two FIFOs of a held start, as the runtime's state directory has them."""

    def __init__(self, directory: Path) -> None:
        self.go, self.status = directory / "go", directory / "status"
        os.mkfifo(self.go, 0o600)
        os.mkfifo(self.status, 0o600)
        self.slots = [os.open(path, os.O_RDWR | os.O_CLOEXEC) for path in (self.go, self.status)]

    def let_go(self) -> None:
        for slot in self.slots:
            os.close(slot)
        self.slots = []

    def start(self, text: bytes = b"") -> tuple[int, int] | None:
        """As `start` does it: None, or index and errno of what failed."""
        status = os.open(self.status, os.O_RDONLY | os.O_NONBLOCK)
        try:
            go = os.open(self.go, os.O_WRONLY | os.O_NONBLOCK)
            os.write(go, protocol.encode_go(text))
            os.close(go)
            poll = select.poll()
            poll.register(status, select.POLLIN)
            assert poll.poll(BOUND_S * 1000), "neither executed nor failed"
            return protocol.decode_status(os.read(status, 100))
        finally:
            os.close(status)


@pytest.fixture
def fifos(tmp_path: Path) -> Iterator[Fifos]:
    made = Fifos(tmp_path)
    yield made
    made.let_go()


def hold(program: str, path: str = "/bin") -> Hold:
    return Hold(go=0, status=1, program=program, path=path)


def wait_held(pid: int) -> None:
    """Wait until it sleeps, with nothing open but its FIFOs and its streams: a moment after it was told."""
    deadline = time.monotonic() + BOUND_S
    while True:
        held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        state = stat_of(pid)[0], sorted(map(os.path.basename, held))
        if state == ("S", ["go", "null", "null", "null", "status"]):
            assert Path(f"/proc/{pid}/comm").read_text() == "cove-init\n"
            return
        assert time.monotonic() < deadline, state
        time.sleep(0.005)


def write_maps(pid: int, maps: dict[str, str] = MAPS) -> None:
    for name, line in maps.items():
        Path(f"/proc/{pid}/{name}").write_text(line)


def filter_program(actions: dict[int, int], otherwise: int = ALLOW) -> bytes:
    """A filter by system call number, for the native architecture."""
    code = [(0x20, 0, 0, 0)]
    for number, action in actions.items():
        code += [(0x15, 0, 1, number), (0x06, 0, 0, action)]
    code.append((0x06, 0, 0, otherwise))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
