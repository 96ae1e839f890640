"""Detached processes, and those that are held until somebody starts them."""
# ruff: noqa: F811

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from pathlib import Path

import msgspec
import pytest

from cove.runtime import protocol
from cove.runtime.steps import (
    MakeHostDir,
    Pause,
    Preserve,
    RemoveHostDir,
    RunHook,
    Seccomp,
    SetIds,
    Terminal,
)
from tests.system.detached_support import (  # noqa: F401
    ALLOW,
    BOUND_S,
    ERRNO,
    Fifos,
    Starter,
    children,
    fifos,
    filter_program,
    hold,
    start,
    stat_of,
    wait_held,
)
from tests.system.native_support import (  # noqa: F401
    PATH,
    Box,
    box,
    launcher,
    needs_root,
)

pytestmark = needs_root

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


def test_a_caller_may_die_at_any_moment(start: Starter, box: Box, tmp_path: Path) -> None:
    made = tmp_path / "made"
    plan = box.plan(
        "sleep", "1000", before=(MakeHostDir(path=str(made)),), exit=(RemoveHostDir(path=str(made)),)
    )
    for delay_us in range(0, 6000, 300):
        started = start(plan)
        time.sleep(delay_us / 1e6)
        started.control.close()
        if started.wait(started.supervisor) == 0:  # it had said already that the process is executed
            (pid,) = children()
            os.kill(pid, signal.SIGKILL)
            made.rmdir()
        started.nothing_runs()
        assert not made.exists()


def test_a_child_that_is_killed_ends_its_start(start: Starter, box: Box, tmp_path: Path) -> None:
    made = tmp_path / "made"
    plan = box.sh(
        "true",
        inside=(Pause(name="hooks"),),
        before=(MakeHostDir(path=str(made)),),
        exit=(RemoveHostDir(path=str(made)),),
    )
    started = start(plan)
    started.until(protocol.Paused)
    os.kill(started.pid, signal.SIGKILL)
    section, _, number = started.failed()
    assert (section, number) == ("child", errno.ECHILD)
    assert not made.exists()


def test_a_killed_supervisor_leaves_no_process_that_runs(start: Starter, box: Box) -> None:
    started = start(box.sh("touch /shared/ran", inside=(Pause(name="hooks"),)))
    started.until(protocol.Paused)
    os.kill(started.supervisor, signal.SIGKILL)
    started.wait(started.supervisor)
    started.go_on()
    assert started.wait() == 127
    assert not (box.shared / "ran").exists()


# --- held -----------------------------------------------------------------------------------


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
