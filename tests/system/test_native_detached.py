"""cove-init as the OCI runtime uses it: detached processes, held starts, pauses, hooks, user and joined namespaces."""
# ruff: noqa: F811

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import select
import shutil
import signal
import socket
import struct
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from cove.runtime import protocol
from cove.runtime.encode import encode
from cove.runtime.executor import Launcher, control_pair
from cove.runtime.steps import (
    AttachRoot,
    BecomeRoot,
    Chdir,
    Chroot,
    Exec,
    Hold,
    JoinCgroup,
    MakeHostDir,
    NoNewPrivs,
    Pause,
    PivotRoot,
    Plan,
    Preserve,
    Propagate,
    RemoveHostDir,
    RunHook,
    Seccomp,
    SetIds,
    SetNs,
    Step,
    Terminal,
    Unshare,
    WriteHost,
    WriteSelf,
)
from tests.system.native_support import (  # noqa: F401
    MS_PRIVATE,
    MS_REC,
    NAMESPACES,
    NEWNET,
    NEWNS,
    NEWPID,
    PATH,
    Box,
    box,
    launcher,
    needs_root,
    run,
)

pytestmark = needs_root

NEWUSER, NEWTIME = 0x10000000, 0x80
BOUND_S = 30
HOST_PATH = "PATH=/usr/bin:/bin"
MAPS = {"uid_map": "0 100000 65536", "gid_map": "0 200000 65536"}

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


def written(path: Path) -> str:
    """What a process writes to a file, once it ends with a newline."""
    deadline = time.monotonic() + BOUND_S
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline, f"nothing in {path}"
        time.sleep(0.005)
    return path.read_text()


# --- detached -------------------------------------------------------------------------------


def test_a_detached_process_is_a_child_of_the_caller_in_a_session_of_its_own(
    start: Starter, box: Box
) -> None:
    plan = box.sh("read line; echo got $line; echo to stderr >&2; exit 7")
    (in_out, in_in), (out_out, out_in), (err_out, err_in) = os.pipe(), os.pipe(), os.pipe()
    started = start(plan, stdio=(in_out, out_in, err_in))
    for fd in (in_out, out_in, err_in):
        os.close(fd)
    started.until(protocol.Cloned)
    cloned = started.pid
    started.until(protocol.Started)
    assert started.pid == cloned and started.next()[0] is None
    assert started.wait(started.supervisor) == 0
    fields = stat_of(started.pid)
    assert (int(fields[1]), int(fields[3])) == (os.getpid(), started.pid)  # parent, session
    os.write(in_in, b"words\n")
    assert started.wait() == 7
    assert os.read(out_out, 100) == b"got words\n" and os.read(out_out, 100) == b""
    assert os.read(err_out, 100) == b"to stderr\n" and os.read(err_out, 100) == b""
    for fd in (in_in, out_out, err_out):
        os.close(fd)


def test_a_detached_process_holds_nothing_but_its_streams(start: Starter, box: Box) -> None:
    read, write = os.pipe()
    started = start(box.sh("(ls /proc/1/fd > /shared/fds); true"), slots=[read, write])
    started.until(protocol.Started)
    assert started.wait() == 0
    os.close(read)
    os.close(write)
    assert (box.shared / "fds").read_text().split() == ["0", "1", "2"]


def test_inherited_pipes_are_given_to_the_user_where_that_is_possible(start: Starter, box: Box) -> None:
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    before = os.fstat(null)
    started = start(
        box.sh("echo reopened > /dev/stdout", late=(SetIds(uid=1000, gid=1000),)), stdio=(null, write, null)
    )
    os.close(write)
    started.until(protocol.Started)
    assert started.wait() == 0
    assert os.read(read, 100) == b"reopened\n"
    assert os.fstat(null).st_uid == before.st_uid
    os.close(read)
    os.close(null)


def test_the_master_of_a_terminal_is_passed_on(start: Starter, box: Box) -> None:
    plan = box.sh("tty; stty size; read line; echo got $line", inside=(Terminal(rows=33, cols=44),))
    started = start(plan)
    started.until(protocol.Cloned)
    message, (master,) = started.next()
    assert isinstance(message, protocol.Master)
    started.until(protocol.Started)
    fields = stat_of(started.pid)
    assert int(fields[3]) == started.pid and int(fields[4]) != 0  # session, controlling terminal
    assert read_until(master, b"33 44\r\n") == b"/dev/pts/0\r\n33 44\r\n"
    os.write(master, b"words\n")
    assert read_until(master, b"got words\r\n") == b"words\r\ngot words\r\n"
    assert started.wait() == 0
    os.close(master)


def read_until(master: int, end: bytes) -> bytes:
    shown = b""
    while not shown.endswith(end):
        shown += os.read(master, 1000)
    return shown


def test_a_failure_of_a_detached_start_is_told_and_undone(start: Starter, box: Box, tmp_path: Path) -> None:
    made = tmp_path / "made"
    plan = box.plan("/nosuch", before=(MakeHostDir(path=str(made)),), exit=(RemoveHostDir(path=str(made)),))
    assert start(plan).failed() == ("child", len(plan.child) - 1, errno.ENOENT)
    assert not made.exists()


def test_a_caller_that_dies_takes_an_unfinished_start_along(start: Starter, box: Box, tmp_path: Path) -> None:
    made = tmp_path / "made"
    sections = {"before": (MakeHostDir(path=str(made)),), "exit": (RemoveHostDir(path=str(made)),)}
    hook = RunHook(path="/bin/sleep", args=("sleep", "1000"))
    for inside in ((Pause(name="hooks"),), (hook,)):
        started = start(box.sh("touch /shared/ran", inside=inside, **sections))
        started.until(protocol.Cloned)
        if inside == (hook,):
            wait_for_child(started.pid)
        else:
            started.until(protocol.Paused)
        started.control.close()
        assert started.wait(started.supervisor) == 1
        started.nothing_runs()
        assert not made.exists() and not (box.shared / "ran").exists()


def wait_for_child(pid: int) -> int:
    """The pid of a process's only child, once it has one that is called otherwise."""
    deadline = time.monotonic() + BOUND_S
    while True:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if found and Path(f"/proc/{found[0]}/comm").read_text() != "cove-init\n":
            return int(found[0])
        assert time.monotonic() < deadline, f"process {pid} has no child"
        time.sleep(0.005)


def test_a_killed_supervisor_leaves_no_process_that_runs(start: Starter, box: Box) -> None:
    started = start(box.sh("touch /shared/ran", inside=(Pause(name="hooks"),)))
    started.until(protocol.Paused)
    os.kill(started.supervisor, signal.SIGKILL)
    started.wait(started.supervisor)
    started.go_on()
    assert started.wait() == 127
    assert not (box.shared / "ran").exists()


# --- held -----------------------------------------------------------------------------------


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


def test_a_held_process_waits_for_the_word_to_go(start: Starter, box: Box, fifos: Fifos) -> None:
    plan = box.sh("(ls /proc/1/fd > /shared/fds); exit 4", late=(hold("sh"),))
    started = start(plan, slots=fifos.slots)
    fifos.let_go()
    started.until(protocol.Started)
    assert started.next()[0] is None
    assert started.wait(started.supervisor) == 0
    wait_held(started.pid)
    assert not (box.shared / "fds").exists()
    assert fifos.start() is None
    assert started.wait() == 4
    assert (box.shared / "fds").read_text().split() == ["0", "1", "2"]


def test_a_held_process_that_was_killed_is_seen_by_who_starts_it(
    start: Starter, box: Box, fifos: Fifos
) -> None:
    started = start(box.sh("true", late=(hold("sh"),)), slots=fifos.slots)
    fifos.let_go()
    started.until(protocol.Started)
    os.kill(started.pid, signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    with pytest.raises(OSError) as caught:
        fifos.start()
    assert caught.value.errno == errno.ENXIO


@pytest.mark.parametrize(
    ("program", "path", "number"),
    [
        ("nosuch", "/bin", errno.ENOENT),
        ("data", "/etc", errno.EACCES),
        ("/etc", "", errno.EACCES),
        ("/etc/data/x", "", errno.ENOTDIR),
    ],
)
def test_a_program_that_cannot_be_executed_fails_before_the_hold(
    start: Starter, box: Box, fifos: Fifos, program: str, path: str, number: int
) -> None:
    (box.lower / "etc/data").write_text("data")
    plan = box.plan(program, late=(hold(program, path),))
    assert start(plan, slots=fifos.slots).failed() == ("child", len(plan.child) - 2, number)


def test_a_failure_after_the_hold_goes_to_who_starts_it(start: Starter, box: Box, fifos: Fifos) -> None:
    shutil.copy(box.lower / "bin/busybox", box.shared / "true")
    plan = box.plan("/shared/true", late=(hold("/shared/true"),))
    started = start(plan, slots=fifos.slots)
    fifos.let_go()
    started.until(protocol.Started)
    (box.shared / "true").unlink()
    assert fifos.start() == (len(plan.child) - 1, errno.ENOENT)
    assert started.wait() == 127


def test_steps_behind_the_hold_run_once_it_is_started(start: Starter, box: Box, fifos: Fifos) -> None:
    hook = RunHook(path="/bin/sh", args=("sh", "-c", "cat > /shared/hook"), env=(PATH,))
    late = (SetIds(uid=0, gid=0), hold("sh"), hook, Seccomp(program=filter_program({})))
    started = start(box.sh("cat /shared/hook > /shared/seen", late=late), slots=fifos.slots)
    fifos.let_go()
    started.until(protocol.Started)
    assert not (box.shared / "hook").exists()
    assert fifos.start(b'{"status": "created"}') is None
    assert started.wait() == 0
    assert (box.shared / "seen").read_text() == '{"status": "created"}'


def test_a_held_process_needs_no_more_than_read_write_and_execve(
    start: Starter, box: Box, fifos: Fifos
) -> None:
    allowed = {"x86_64": (0, 1, 59), "aarch64": (63, 64, 221)}[os.uname().machine]
    refusing = filter_program(dict.fromkeys(allowed, ALLOW), otherwise=ERRNO | errno.EPERM)
    plan = box.plan("nosuch-applet", late=(Seccomp(program=refusing), hold("sh")))
    started = start(plan, slots=fifos.slots)
    fifos.let_go()
    started.until(protocol.Started)
    assert fifos.start() == (len(plan.child) - 1, errno.ENOENT)
    assert started.wait() != 0


def test_a_text_beyond_the_limit_is_refused(start: Starter, box: Box, fifos: Fifos) -> None:
    plan = box.sh("true", late=(hold("sh"),))
    started = start(plan, slots=fifos.slots)
    started.until(protocol.Started)
    os.write(fifos.slots[0], (1 << 20).to_bytes(4, "little"))
    assert started.wait() == 127
    assert protocol.decode_status(os.read(fifos.slots[1], 100)) == (len(plan.child) - 2, errno.EMSGSIZE)


@pytest.mark.parametrize("filtered", [False, True])
def test_preserved_descriptors_are_those_from_three_on(
    start: Starter, box: Box, fifos: Fifos, filtered: bool
) -> None:
    preserved = [os.open(box.shared / f"file{number}", os.O_RDWR | os.O_CREAT) for number in range(9)]
    late = (Seccomp(program=filter_program({})), hold("sh")) if filtered else (hold("sh"),)
    names = "for n in 3 4 5 6 7 8 9 10 11; do readlink /proc/1/fd/$n; done"
    script = f"{names} > /dev/fd/11; (ls /proc/1/fd > /shared/fds); true"
    plan = box.sh(script, late=late)
    plan = msgspec.structs.replace(plan, child=(Preserve(first=2, last=10), *plan.child))
    started = start(plan, slots=[*fifos.slots, *preserved])
    for slot in preserved:
        os.close(slot)
    fifos.let_go()
    started.until(protocol.Started)
    assert fifos.start() is None
    assert started.wait() == 0
    found = [os.path.basename(line) for line in (box.shared / "file8").read_text().splitlines()]
    assert found == [f"file{number}" for number in range(9)]
    fds = set(map(int, (box.shared / "fds").read_text().split()))
    assert fds == set(range(12))


# --- pauses and hooks -----------------------------------------------------------------------


def test_a_pause_waits_for_its_answer_and_comes_after_the_parent_steps(
    start: Starter, box: Box, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    plan = box.sh(
        "true", inside=(Pause(name="hooks"),), parent=(WriteHost(path=f"{tmp_path}/file", data="done"),)
    )
    started = start(plan)
    paused = started.until(protocol.Paused)
    assert isinstance(plan.child[paused.index], Pause)
    assert (tmp_path / "file").read_text() == "done"
    assert int(stat_of(started.pid)[1]) == os.getpid()
    started.go_on()
    started.until(protocol.Started)
    assert started.wait() == 0


def test_a_pause_that_is_not_to_go_on_fails(start: Starter, box: Box) -> None:
    plan = box.sh("true", inside=(Pause(name="hooks"),))
    started = start(plan)
    paused = started.until(protocol.Paused)
    started.control.send(protocol.encode_simple(protocol.UNRESOLVED, 0))
    assert started.failed() == ("child", paused.index, errno.ECANCELED)


def test_hooks_run_in_the_namespaces_with_the_state_on_stdin(
    start: Starter, box: Box, tmp_path: Path
) -> None:
    script = (
        "cat > $0/state; readlink /proc/self/ns/mnt > $0/mnt; env > $0/env; ls /proc/self/fd > $0/fds; "
        "grep Sig.*: /proc/self/status > $0/signals"
    )
    before = RunHook(
        path="/bin/sh", args=("sh", "-c", script, str(tmp_path)), env=("A=b", HOST_PATH), timeout_ms=20000
    )
    after = RunHook(
        path="/bin/sh", args=("sh", "-c", "ls / > /shared/root; cat > /shared/again"), env=(PATH,)
    )
    state = b"x" * protocol.MAX_HOOK_INPUT
    started = start(
        box.sh(
            "readlink /proc/self/ns/mnt > /shared/mnt", inside=(Pause(name="hooks"), before), late=(after,)
        )
    )
    started.until(protocol.Paused)
    started.go_on(state)
    started.until(protocol.Started)
    assert started.wait() == 0
    assert (tmp_path / "state").read_bytes() == state == (box.shared / "again").read_bytes()
    assert (
        (tmp_path / "mnt").read_text()
        == (box.shared / "mnt").read_text()
        != os.readlink("/proc/self/ns/mnt") + "\n"
    )
    assert {
        line for line in (tmp_path / "env").read_text().splitlines() if line[:4] not in ("PWD=", "_=/u")
    } == {"A=b", HOST_PATH}
    assert (tmp_path / "fds").read_text().split()[:3] == ["0", "1", "2"] and len(
        (tmp_path / "fds").read_text().split()
    ) == 4
    masks = dict(re.findall(r"(Sig\w+):\s*(\w+)", (tmp_path / "signals").read_text()))
    assert {int(masks[key], 16) for key in ("SigBlk", "SigIgn", "SigPnd")} == {0}
    assert "shared" in (box.shared / "root").read_text() and "usr" not in (box.shared / "root").read_text()


@pytest.mark.parametrize(
    ("hook", "number"),
    [
        (RunHook(path="/bin/sh", args=("sh", "-c", "exit 3")), errno.EPROTO),
        (RunHook(path="/bin/sh", args=("sh", "-c", "kill -9 $$")), errno.EPROTO),
        (
            RunHook(path="/bin/sh", args=("sh", "-c", "exec sleep 1000"), env=(HOST_PATH,), timeout_ms=50),
            errno.ETIME,
        ),
        (RunHook(path="/nosuch/hook"), errno.ENOENT),
        (RunHook(path="/etc/passwd"), errno.EACCES),
    ],
)
def test_a_hook_that_fails_or_hangs_ends_the_start(
    start: Starter, box: Box, hook: RunHook, number: int
) -> None:
    plan = box.sh("touch /shared/ran", inside=(hook,))
    began = time.monotonic()
    assert start(plan).failed() == ("child", plan.child.index(hook), number)
    assert time.monotonic() - began < BOUND_S / 2
    assert not (box.shared / "ran").exists()


# --- user namespaces --------------------------------------------------------------------------


def write_maps(pid: int, maps: dict[str, str] = MAPS) -> None:
    for name, line in maps.items():
        Path(f"/proc/{pid}/{name}").write_text(line)


def printed_by(start: Starter, plan: Plan, while_paused: Callable[[Start], None]) -> str:
    """What a process of a user namespace writes to a pipe that it has inherited."""
    read, write = os.pipe()
    with open(read) as output:
        null = os.open("/dev/null", os.O_RDWR)
        started = start(plan, stdio=(null, write, null))
        os.close(write)
        os.close(null)
        started.until(protocol.Paused)
        while_paused(started)
        started.go_on()
        started.until(protocol.Started)
        assert started.wait() == 0
        return output.read()


def test_maps_written_at_a_pause_are_those_of_the_process(start: Starter) -> None:
    script = "cat /proc/self/uid_map /proc/self/gid_map; id -u; id -g; id -G; grep -E 'Cap(Eff|Bnd)' /proc/self/status"
    plan = host_sh(script, Pause(name="user"), BecomeRoot(), flags=NEWUSER | NAMESPACES)
    printed = printed_by(start, plan, lambda started: write_maps(started.pid))
    lines = [line.split() for line in printed.splitlines()]
    assert lines[:5] == [["0", "100000", "65536"], ["0", "200000", "65536"], ["0"], ["0"], ["0"]]
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert lines[5][1] == lines[6][1] == f"{(1 << last + 1) - 1:016x}"


def test_root_of_a_user_namespace_without_maps_cannot_be_become(start: Starter) -> None:
    plan = host_sh("true", BecomeRoot(), flags=NEWUSER)
    assert start(plan).failed() == ("child", 0, errno.EINVAL)


def test_an_unprivileged_caller_writes_the_map_of_its_own_user(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "report").touch()
    tmp_path.joinpath("report").chmod(0o666)
    report = os.open(tmp_path / "report", os.O_WRONLY)
    pid = os.fork()
    if pid == 0:
        os._exit(be_unprivileged(launcher, report))
    os.close(report)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, (tmp_path / "report").read_text()
    ids = (tmp_path / "report").read_text().split()
    assert ids == ["0", "54321", "1", "0", "0", "deny", "listener"]


def be_unprivileged(launcher: Launcher, report: int) -> int:
    """In a process of its own: start another as user 54321, which becomes root of its user namespace."""
    try:
        os.setgroups([])
        os.setresgid(54321, 54321, 54321)
        os.setresuid(54321, 54321, 54321)
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, lost with the user: for /proc/self
        script = "cat /proc/self/uid_map; id -u; id -g; cat /proc/self/setgroups"
        asking = Seccomp(program=filter_program({}), flags=NEW_LISTENER)
        identity = (BecomeRoot(), SetIds(uid=0, gid=0), asking)
        plan = host_sh(script, Pause(name="user"), *identity, flags=NEWUSER | NAMESPACES)
        started = Start(launcher, plan, stdio=(report, report, report))
        started.until(protocol.Paused)
        write_maps(started.pid, {"setgroups": "deny", "uid_map": "0 54321 1", "gid_map": "0 54321 1"})
        started.go_on()
        assert isinstance(started.next()[0], protocol.Listener)
        started.until(protocol.Started)
        status = started.wait()
        os.write(report, b"listener\n")
        return status
    except BaseException:
        os.write(report, traceback.format_exc().encode())
        return 1


V1 = Path("/sys/fs/cgroup")


@pytest.mark.skipif(not (V1 / "pids/cgroup.procs").exists(), reason="no cgroup v1 pids controller")
def test_cgroups_are_joined_by_the_host_s_root_before_the_maps_are_there(start: Starter) -> None:
    group = V1 / "pids" / f"cove-test-{uuid.uuid4().hex[:12]}"
    plan = host_sh(
        "cat /proc/self/cgroup",
        JoinCgroup(path=f"{group}/tasks"), Pause(name="user"), BecomeRoot(),
        flags=NEWUSER | NEWNS,
        before=(MakeHostDir(path=str(group)),),
    )  # fmt: skip
    try:
        printed = printed_by(start, plan, lambda started: write_maps(started.pid))
    finally:
        group.rmdir()
    assert f":pids:/{group.name}\n" in printed


@pytest.mark.parametrize("hierarchy", ["pids", "unified"])
def test_the_cgroups_of_a_failed_start_go_though_the_caller_has_yet_to_reap(
    start: Starter, box: Box, hierarchy: str
) -> None:
    group = V1 / hierarchy / f"cove-test-{uuid.uuid4().hex[:12]}"
    if not (group.parent / "cgroup.procs").exists():
        pytest.skip(f"no cgroup tree at {group.parent}")
    joined = hierarchy == "pids"
    plan = box.plan(
        "/nosuch",
        before=(MakeHostDir(path=str(group)),),
        inside=(JoinCgroup(path=f"{group}/tasks"),) if joined else (),
        exit=(RemoveHostDir(path=str(group)),),
        cgroup_path="" if joined else str(group),
    )
    started = start(plan)
    told = started.until(protocol.Failed)
    assert told.errno == errno.ENOENT
    assert not group.exists()
    assert stat_of(started.pid)[0] == "Z"


@pytest.mark.skipif(not (V1 / "unified/cgroup.controllers").exists(), reason="no cgroup v2 tree")
def test_a_child_of_a_helper_is_cloned_into_its_cgroup(start: Starter) -> None:
    group = V1 / "unified" / f"cove-test-{uuid.uuid4().hex[:12]}"
    slot = os.open("/proc/self/ns/net", os.O_RDONLY)
    plan = Plan(
        clone_flags=NEWUSER | NEWNS,
        cgroup_path=str(group),
        before=(MakeHostDir(path=str(group)), SetNs(slot=0, flags=NEWNET)),
        child=(Pause(name="user"), Exec(args=("/bin/sh", "-c", "exec sleep 1000"), env=(HOST_PATH,))),
    )
    started = start(plan, slots=[slot])
    os.close(slot)
    try:
        started.until(protocol.Paused)
        assert f"0::/{group.name}\n" in Path(f"/proc/{started.pid}/cgroup").read_text()
    finally:
        started.close()
        group.rmdir()


def test_streams_can_be_reopened_by_root_of_a_user_namespace(box: Box) -> None:
    script = "echo out > /proc/self/fd/1; echo err > /proc/self/fd/2"
    plan = host_sh(script, Pause(name="user"), BecomeRoot(), flags=NEWUSER | NEWNS)

    async def write(name: str, pid: int) -> bytes:
        assert name == "user"
        write_maps(pid)
        return b""

    status, printed = run(box.finish(plan, on_pause=write))
    assert status.exit_code == 0 and printed == "out\nerr\n"


# --- namespaces that exist already ------------------------------------------------------------


@contextmanager
def first_in_user_namespace(start: Starter) -> Iterator[int]:
    """A process in user, network and mount namespaces of its own."""
    plan = host_sh("exec sleep 1000", Pause(name="user"), BecomeRoot(), flags=NEWUSER | NEWNET | NEWNS)
    started = start(plan)
    started.until(protocol.Paused)
    write_maps(started.pid)
    started.go_on()
    started.until(protocol.Started)
    yield started.pid
    os.kill(started.pid, signal.SIGKILL)
    started.wait()


def namespaces(pid: int, *names: str) -> list[str]:
    return [os.readlink(f"/proc/{pid}/ns/{name}") for name in names]


def test_a_user_namespace_is_joined_before_the_clone(start: Starter, box: Box, tmp_path: Path) -> None:
    with first_in_user_namespace(start) as first:
        slots = [os.open(f"/proc/{first}/ns/{name}", os.O_RDONLY) for name in ("user", "net")]
        before = (SetNs(slot=0, flags=NEWUSER), SetNs(slot=1, flags=NEWNET))
        plan = host_sh("exec sleep 1000", BecomeRoot(), flags=NEWNS | NEWPID, before=before)
        started = start(plan, slots=slots)
        started.until(protocol.Started)
        assert int(stat_of(started.pid)[1]) == os.getpid()
        assert namespaces(started.pid, "user", "net") == namespaces(first, "user", "net")
        own = ("mnt", "pid")
        assert not set(namespaces(started.pid, *own)) & set(
            namespaces(first, *own) + namespaces(os.getpid(), *own)
        )
        assert Path(f"/proc/{started.pid}/status").read_text().split("Uid:")[1].split()[:4] == ["100000"] * 4
        os.kill(started.pid, signal.SIGKILL)
        started.wait()

        async def supervised() -> None:
            task = await box.start(plan, slots=slots)
            assert int(stat_of(task.pid)[1]) == task.supervisor_pid
            assert namespaces(task.pid, "user", "net") == namespaces(first, "user", "net")
            await task.signal(9)
            assert (await task.wait()).exit_code == 137

        run(supervised())
        for slot in slots:
            os.close(slot)


def test_a_network_namespace_of_the_host_is_joined_beside_a_new_user_namespace(
    start: Starter, tmp_path: Path
) -> None:
    holder = start(host_sh("exec sleep 1000", flags=NEWNET))
    holder.until(protocol.Started)
    slot = os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY)
    plan = host_sh(
        "exec sleep 1000", Pause(name="user"), BecomeRoot(),
        flags=NEWUSER | NAMESPACES, before=(SetNs(slot=0, flags=NEWNET),),
    )  # fmt: skip
    started = start(plan, slots=[slot])
    os.close(slot)
    started.until(protocol.Paused)
    write_maps(started.pid)
    started.go_on()
    started.until(protocol.Started)
    assert namespaces(started.pid, "net") == namespaces(holder.pid, "net") != namespaces(os.getpid(), "net")
    assert namespaces(started.pid, "user") != namespaces(os.getpid(), "user")


def test_a_namespace_that_cannot_be_joined_is_named(start: Starter) -> None:
    slot = os.open("/proc/self/ns/net", os.O_RDONLY)
    before = (SetNs(slot=0, flags=NEWNET), SetNs(slot=0, flags=NEWUSER))
    assert start(host_sh("true", before=before), slots=[slot]).failed() == ("before", 1, errno.EINVAL)
    os.close(slot)


def test_a_held_process_is_split_off_into_the_pid_namespace_that_it_joined(
    start: Starter, box: Box, fifos: Fifos
) -> None:
    first = start(box.sh("exec sleep 1000"))
    first.until(protocol.Started)
    pidfd = os.pidfd_open(first.pid)
    child = (
        SetNs(slot=2, flags=NEWNS | NEWPID), Chdir(path="/"), hold("sh"),
        Exec(args=("sh", "-c", "ps -o pid,args > /shared/ps; exit 6"), env=(PATH,)),
    )  # fmt: skip
    started = start(Plan(clone_flags=0, child=child), slots=[*fifos.slots, pidfd])
    os.close(pidfd)
    fifos.let_go()
    started.until(protocol.Cloned)
    cloned = started.pid
    started.until(protocol.Started)
    assert started.pid != cloned and started.wait(cloned) == 0
    assert started.wait(started.supervisor) == 0
    assert int(stat_of(started.pid)[1]) == os.getpid() and int(stat_of(started.pid)[3]) == started.pid
    assert namespaces(started.pid, "pid") == namespaces(first.pid, "pid")
    wait_held(started.pid)
    assert fifos.start() is None
    assert started.wait() == 6
    assert "sleep 1000" in (box.shared / "ps").read_text()


@pytest.mark.skipif(not Path("/proc/self/ns/time").exists(), reason="no time namespaces (Linux 5.6)")
def test_offsets_of_a_time_namespace_hold_for_the_process(start: Starter, box: Box, tmp_path: Path) -> None:
    before = (
        Unshare(flags=NEWTIME),
        WriteSelf(name="timens_offsets", data="boottime 864000 0\nmonotonic 5 0\n"),
    )
    plan = host_sh(f"cat /proc/uptime /proc/self/timens_offsets > {tmp_path}/out", before=before)
    started = start(plan)
    started.until(protocol.Started)
    assert started.wait() == 0
    words = (tmp_path / "out").read_text().split()
    assert float(words[0]) - time.clock_gettime(time.CLOCK_BOOTTIME) > 863000
    assert words[2:] == ["monotonic", "5", "0", "boottime", "864000", "0"]
    status, printed = run(box.finish(host_sh("cat /proc/uptime", before=before)))
    assert status.exit_code == 0 and float(printed.split()[0]) > 863000


# --- roots ------------------------------------------------------------------------------------


def test_a_detached_mount_becomes_the_root(start: Starter, box: Box) -> None:
    call = ctypes.CDLL(None, use_errno=True).syscall
    tree = int(call(428, -100, os.fsencode(box.lower), 1 | os.O_CLOEXEC))  # open_tree, OPEN_TREE_CLONE
    assert tree >= 0, os.strerror(ctypes.get_errno())
    (box.lower / "seen").write_text("yes\n")
    child = (
        Propagate(flags=MS_REC | MS_PRIVATE), AttachRoot(slot=0, target=str(box.path / "merged")), PivotRoot(),
        Exec(args=("sh", "-c", "cat /seen > /tmp/out; ls / >> /tmp/out"), env=(PATH,)),
    )  # fmt: skip
    started = start(Plan(clone_flags=NEWNS, child=child), slots=[tree])
    os.close(tree)
    started.until(protocol.Started)
    assert started.wait() == 0
    assert (box.lower / "tmp/out").read_text().split() == ["yes", *sorted(os.listdir(box.lower))]


def test_a_root_can_be_changed_without_a_mount_namespace(start: Starter, box: Box) -> None:
    child = (
        Chroot(path=str(box.lower)),
        Exec(args=("sh", "-c", "pwd > /tmp/out; ls / >> /tmp/out"), env=(PATH,)),
    )
    started = start(Plan(clone_flags=0, child=child))
    started.until(protocol.Started)
    assert started.wait() == 0
    assert (box.lower / "tmp/out").read_text().split() == ["/", *sorted(os.listdir(box.lower))]


# --- a filter that asks -----------------------------------------------------------------------

ALLOW, ERRNO, NOTIFY = 0x7FFF0000, 0x00050000, 0x7FC00000
NEW_LISTENER = 8
RECV, SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_*


def filter_program(actions: dict[int, int], otherwise: int = ALLOW) -> bytes:
    """A filter by system call number, for the native architecture."""
    code = [(0x20, 0, 0, 0)]
    for number, action in actions.items():
        code += [(0x15, 0, 1, number), (0x06, 0, 0, action)]
    code.append((0x06, 0, 0, otherwise))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def answer_call(listener: int, *, errno_: int) -> int:
    """Wait for one call and answer it; returns its number."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    assert poll.poll(BOUND_S * 1000), "nobody asks"
    notice = bytearray(80)
    fcntl.ioctl(listener, RECV, notice)
    ident, _, _, number = struct.unpack_from("<QIIi", notice)
    fcntl.ioctl(listener, SEND, struct.pack("<QqiI", ident, 0, -errno_, 0))
    return int(number)


@pytest.mark.parametrize("supervised", [False, True])
def test_a_listener_arrives_whatever_the_filter_forbids(start: Starter, box: Box, supervised: bool) -> None:
    mkdir, sendmsg = {"x86_64": (83, 46), "aarch64": (34, 211)}[os.uname().machine]
    # the filter asks about sendmsg, too: nobody could answer before the listener is there
    program = filter_program({mkdir: NOTIFY, sendmsg: NOTIFY})
    late = (NoNewPrivs(), Seccomp(program=program, flags=NEW_LISTENER))
    plan = box.sh("mkdir /x 2> /shared/told; (ls /proc/1/fd > /shared/fds); true", late=late)

    async def body() -> None:
        kept: list[int] = []

        async def keep(listener: int, pid: int) -> None:
            assert Path(f"/proc/{pid}").exists()
            kept.append(os.dup(listener))

        task = await box.start(plan, on_listener=keep)
        assert answer_call(kept[0], errno_=errno.EDQUOT) == mkdir
        assert (await task.wait()).exit_code == 0
        os.close(kept[0])

    if supervised:
        run(body())
    else:
        started = start(plan)
        started.until(protocol.Cloned)
        message, (listener,) = started.next()
        assert isinstance(message, protocol.Listener)
        started.until(protocol.Started)
        assert answer_call(listener, errno_=errno.EDQUOT) == mkdir
        assert started.wait() == 0
        os.close(listener)
    assert os.strerror(errno.EDQUOT) in (box.shared / "told").read_text()
    assert (box.shared / "fds").read_text().split() == ["0", "1", "2"]


def test_a_filter_that_cannot_have_a_listener_is_told(start: Starter, box: Box) -> None:
    asking = Seccomp(program=filter_program({}), flags=NEW_LISTENER)
    plan = box.sh("true", late=(NoNewPrivs(), asking, asking))
    started = start(plan)
    started.until(protocol.Cloned)
    message, (listener,) = started.next()
    assert isinstance(message, protocol.Listener)
    assert started.failed() == ("child", len(plan.child) - 2, errno.EBUSY)  # one per process (seccomp(2))
    os.close(listener)
