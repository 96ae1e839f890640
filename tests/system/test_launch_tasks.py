"""Tasks as the engine sees them: starting, waiting, failing, reconnecting; with both builds."""
# ruff: noqa: F811

from __future__ import annotations

import asyncio
import errno
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import uvloop

from cove.model.errors import Conflict, HostError, Unavailable
from cove.runtime.launch import (
    Attach,
    Launcher,
    Resolved,
    StepFailed,
    StreamSetup,
    Task,
    launch,
    read_exit,
    reconnect,
)
from cove.runtime.steps import (
    Capabilities,
    Exec,
    MakeHostDir,
    Plan,
    RemoveHostDir,
    ResolveUser,
    SetIds,
    WriteHost,
)
from tests.native_build import ROOT
from tests.system.native_support import (  # noqa: F401
    PATH,
    Box,
    box,
    launcher,
    needs_root,
    run,
    until,
)

pytestmark = needs_root
NO_CAPABILITIES = Capabilities(effective=0, permitted=0, inheritable=0, ambient=0)


# --- exit status ----------------------------------------------------------------------------------


def test_the_status_is_what_the_process_ended_with(box: Box) -> None:
    assert run(box.finish(box.sh("exit 77")))[0].exit_code == 77
    assert (
        run(box.finish(box.sh("kill -USR1 $$; sleep 5", flags=0x00020000)))[0].exit_code
        == 128 + signal.SIGUSR1
    )
    status = read_exit(box.state)
    assert status is not None and status.exit_code == 128 + signal.SIGUSR1 and status.finished_ns > 10**18
    assert [path.name for path in box.state.iterdir()] == ["exit"]


def test_many_may_wait_and_again(box: Box) -> None:
    async def body() -> None:
        task = await box.start(box.sh("sleep 0.1; exit 3"))
        assert not task.exited
        first, second = await asyncio.gather(task.wait(), task.wait())
        assert first == second == await task.wait() == task.exited
        cancelled = await box.start(box.sh("sleep 1000"), state_dir=box.path / "other")
        waiter = asyncio.create_task(cancelled.wait())
        await asyncio.sleep(0)
        waiter.cancel()
        await cancelled.signal(signal.SIGKILL)
        assert (await cancelled.wait()).exit_code == 137

    run(body())


def test_signals_reach_the_process_until_it_has_ended(box: Box) -> None:
    async def body() -> None:
        task = await box.start(
            box.sh("trap 'echo usr1' USR1; trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done")
        )
        await until(lambda: "up" in box.output())
        await task.signal(signal.SIGUSR1)
        await until(lambda: "usr1" in box.output())
        await task.signal(signal.SIGTERM)
        assert (await task.wait()).exit_code == 5
        with pytest.raises(Conflict, match="has ended"):
            await task.signal(signal.SIGTERM)

    run(body())


def test_what_an_earlier_start_left_is_not_taken_for_the_end(box: Box) -> None:
    async def body() -> None:
        await (await box.start(box.sh("exit 1"))).wait()
        task = await box.start(box.sh("sleep 1000"))
        assert read_exit(box.state) is None
        await task.signal(signal.SIGKILL)
        await task.wait()

    run(body())


def test_it_works_on_uvloop_and_with_a_long_path(box: Box) -> None:
    deep = box.path / ("d" * 120) / ("e" * 120)

    async def body() -> None:
        task = await box.start(box.sh("exit 8"), state_dir=deep)
        assert (await task.wait()).exit_code == 8
        await task.gone()

    uvloop.run(asyncio.wait_for(body(), 60))
    assert read_exit(deep) is not None


# --- failures -------------------------------------------------------------------------------------


def test_a_failed_step_is_told_in_one_sentence(box: Box) -> None:
    with pytest.raises(StepFailed) as caught:
        run(box.start(box.plan("nosuch", "argument")))
    error = caught.value
    assert (error.section, error.errno) == ("child", errno.ENOENT)
    assert isinstance(error.step, Exec) and error.code == "step-failed"
    assert str(error) == f"child step {error.index}, run nosuch argument: No such file or directory"


def test_after_a_failure_clients_are_still_the_callers(box: Box) -> None:
    async def body() -> None:
        mine, theirs = socket.socketpair()
        with pytest.raises(StepFailed):
            await box.start(box.plan("nosuch"), attach=[Attach(sock=theirs)])
        theirs.send(b"error")
        assert mine.recv(100) == b"error"
        mine.close()
        theirs.close()

    run(body())


def test_a_kill_of_the_supervisor_takes_the_container_along(box: Box) -> None:
    async def body() -> None:
        task = await box.start(box.sh("sleep 1000 & exec sleep 1000"))
        pidfd = os.pidfd_open(task.pid)
        os.kill(task.supervisor_pid, signal.SIGKILL)
        status = await task.wait()
        assert status.exit_code == 137 and f"(process {task.supervisor_pid}) was killed" in status.error
        assert select.select([pidfd], [], [], 0)[0]
        os.close(pidfd)
        assert read_exit(box.state) is None and await reconnect(box.state) is None

    run(body())


def test_the_container_of_another_user_goes_with_its_supervisor_too(box: Box) -> None:
    async def body() -> None:
        late = (SetIds(uid=1000, gid=1000), NO_CAPABILITIES)
        task = await box.start(box.plan("sleep", "1000", late=late))
        os.kill(task.supervisor_pid, signal.SIGKILL)
        # by the kernel, and not by us: wait for the process before the task's own care can reach it
        pidfd = os.pidfd_open(task.pid)
        poll = select.poll()
        poll.register(pidfd)
        assert poll.poll(30_000)
        os.close(pidfd)
        assert (await task.wait()).exit_code == 137

    run(body())


def test_a_supervisor_killed_while_it_starts_is_told(box: Box) -> None:
    async def body() -> None:
        async def kill_it(_root: int) -> Resolved:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            for pid in children:
                os.kill(int(pid), signal.SIGKILL)
            return Resolved(uid=0, gid=0)

        with pytest.raises(HostError, match="was killed while the container started"):
            await box.start(box.sh("true", inside=(ResolveUser(user=""),)), resolve_user=kill_it)
        assert not box.state.exists()

    run(body())


def test_a_binary_that_is_missing_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="build it with `make setup`"):
        Launcher.open(tmp_path / "nothing")


def test_too_many_descriptors_and_too_much_input_are_refused(box: Box) -> None:
    with pytest.raises(ValueError, match="at most 64"):
        run(box.start(box.sh("true"), slots=[0] * 65))
    mine, theirs = socket.socketpair()
    with pytest.raises(ValueError, match="at most 32768 and 16"):
        run(box.start(box.sh("true"), attach=[Attach(sock=theirs, initial=bytes(40000))]))
    mine.close()
    theirs.close()
    assert not box.state.exists()


# --- the user's lookup ----------------------------------------------------------------------------


def resolving(box: Box, script: str) -> Plan:
    return box.sh(
        script, inside=(ResolveUser(user="app", groups=("g",)),), late=(SetIds(uid=0, gid=0), NO_CAPABILITIES)
    )


def test_the_daemon_looks_the_user_up_in_the_mounted_root(box: Box) -> None:
    (box.lower / "etc/passwd").write_text("app:x:1234:5678::/home/app:/bin/sh\n")
    seen = []

    async def find(root: int) -> Resolved:
        descriptor = os.open("etc/passwd", os.O_RDONLY, dir_fd=root)
        seen.append(os.read(descriptor, 100).decode())
        os.close(descriptor)
        return Resolved(uid=1234, gid=5678, groups=(5678, 42), env=("HOME=/home/app", "X=1"))

    status, printed = run(box.finish(resolving(box, "id -u; id -g; id -G; echo $HOME $X"), resolve_user=find))
    assert status.exit_code == 0
    assert printed.splitlines() == ["1234", "5678", "5678 42", "/home/app 1"]
    assert seen == ["app:x:1234:5678::/home/app:/bin/sh\n"]


def test_what_the_lookup_raises_is_raised_and_nothing_is_left(box: Box, tmp_path: Path) -> None:
    class NoSuchUser(Exception):
        pass

    async def find(_root: int) -> Resolved:
        raise NoSuchUser

    made = tmp_path / "made"
    plan = resolving(box, "true")
    plan = Plan(
        clone_flags=plan.clone_flags,
        before=(MakeHostDir(path=str(made)),),
        child=plan.child,
        exit=(RemoveHostDir(path=str(made)),),
    )
    with pytest.raises(NoSuchUser):
        run(box.start(plan, resolve_user=find))
    assert not made.exists() and not box.state.exists()
    with pytest.raises(HostError, match="nothing was given to do that"):
        run(box.start(plan))
    assert not made.exists()


@pytest.mark.parametrize(
    "answer",
    [
        Resolved(uid=1, gid=1, groups=tuple(range(1025))),
        Resolved(uid=1, gid=1, env=("A=" + "x" * 40000,)),
        Resolved(uid=1, gid=1, env=("A=1",) * 17),
    ],
    ids=["groups", "environment", "variables"],
)
def test_an_answer_beyond_the_bounds_is_refused(box: Box, answer: Resolved) -> None:
    async def find(_root: int) -> Resolved:
        return answer

    with pytest.raises(ValueError, match="at most"):
        run(box.start(resolving(box, "true"), resolve_user=find))
    assert not box.state.exists()


def test_a_cancelled_start_leaves_nothing(box: Box, tmp_path: Path) -> None:
    made = tmp_path / "made"
    plan = resolving(box, "true")
    plan = Plan(
        clone_flags=plan.clone_flags,
        before=(MakeHostDir(path=str(made)), WriteHost(path="/dev/null", data="x")),
        child=plan.child,
        exit=(RemoveHostDir(path=str(made)),),
    )

    async def body() -> None:
        asked = asyncio.Event()

        async def find(_root: int) -> Resolved:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError

        starting = asyncio.create_task(box.start(plan, resolve_user=find))
        await asked.wait()
        assert made.exists()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not made.exists() and not box.state.exists()

        starting = asyncio.create_task(box.start(box.sh("sleep 1000")))
        await asyncio.sleep(0)  # it has been spawned, and nothing of it has been heard
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    run(body())


# --- the daemon's death -----------------------------------------------------------------------------

DAEMON = """
import asyncio, os, sys
from pathlib import Path
from cove.runtime.launch import Launcher
from tests.system.native_support import Box, make_launcher, until
box = Box.__new__(Box)
path = box.path = Path(sys.argv[1])
box.launcher = make_launcher(sys.argv[2], Path(sys.argv[3]))
box.state, box.log, box.shared = path / "state", path / "log", path / "shared"
async def main():
    task = await box.start(box.sh(sys.argv[4]), streams=box.streams(stdin=True))
    print(task.pid, task.supervisor_pid, flush=True)
    os._exit(1)
asyncio.run(main())
"""


def orphan(box: Box, script: str) -> tuple[int, int]:
    """Start a container from a daemon that dies at once; the pids of process and supervisor."""
    name = "native-asan" if box.launcher._environment else "native"
    report = box.path.parent / "sanitizer"
    done = subprocess.run(
        [sys.executable, "-c", DAEMON, str(box.path), name, str(report), script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    pid, supervisor = map(int, done.stdout.split())
    return pid, supervisor


def test_a_new_daemon_finds_the_container_of_the_old_one(box: Box) -> None:
    pid, supervisor = orphan(
        box, "trap 'exit 6' TERM; read line; echo got $line; while :; do sleep 0.05; done"
    )

    async def body() -> None:
        task = await reconnect(box.state)
        assert task is not None and (task.pid, task.supervisor_pid) == (pid, supervisor)
        second = await reconnect(box.state)  # an old and a new daemon at once
        assert second is not None
        mine, theirs = socket.socketpair()
        await task.attach(Attach(sock=theirs, stdin=True))
        mine.send(b"hello\n")
        await until(lambda: "got hello" in box.output())
        await task.signal(signal.SIGTERM)
        assert (await task.wait()).exit_code == (await second.wait()).exit_code == 6
        mine.close()
        assert await reconnect(box.state) is None
        status = read_exit(box.state)
        assert status is not None and status.exit_code == 6

    run(body())


def test_an_end_while_no_daemon_runs_is_not_lost(box: Box) -> None:
    _, supervisor = orphan(box, "while ! test -e /shared/go; do sleep 0.05; done; echo last; exit 9")
    pidfd = os.pidfd_open(supervisor)
    (box.shared / "go").touch()

    async def body() -> None:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, ended.set)
        await ended.wait()
        asyncio.get_running_loop().remove_reader(pidfd)
        assert await reconnect(box.state) is None
        status = read_exit(box.state)
        assert status is not None and status.exit_code == 9
        assert box.output() == "last\n"

    run(body())
    os.close(pidfd)


def test_reconnecting_where_nothing_ever_was_finds_nothing(tmp_path: Path) -> None:
    assert run(reconnect(tmp_path)) is None
    assert run(reconnect(tmp_path / "missing")) is None
    assert read_exit(tmp_path) is None


def test_a_daemon_that_stops_watching_leaves_the_container_running(box: Box) -> None:
    async def body() -> None:
        task = await box.start(box.sh("sleep 1000"))
        task.forget()
        again = await reconnect(box.state)
        assert again is not None and again.pid == task.pid
        await again.signal(signal.SIGKILL)
        assert (await again.wait()).exit_code == 137

    run(body())


# --- the supervisor itself --------------------------------------------------------------------------


def test_malformed_messages_harm_nothing(box: Box) -> None:
    async def body() -> None:
        task = await box.start(box.sh("echo up; sleep 1000"))
        messages = [b"", b"x", bytes(3), bytes(8), b"\xff" * 8, b"\x04" + bytes(7), b"\x04" + bytes(60000),
                    b"\x05\0\0\0\0\0\0\0", b"\x01" + bytes(100), b"\x02" + bytes(40), b"\x10" + bytes(9)]  # fmt: skip
        connections = []
        for message in messages:
            control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            control.connect(str(box.state / "control.sock"))
            read, write = os.pipe()
            socket.send_fds(control, [message or b"\0"], [read, write] if len(message) % 2 else [read])
            os.close(read)
            os.close(write)
            connections.append(control)
            if len(connections) > 4:
                connections.pop(0).close()
        again = await reconnect(box.state)
        while again is None:  # all places were taken
            await asyncio.sleep(0.02)
            again = await reconnect(box.state)
        assert again.pid == task.pid
        for control in connections:
            control.close()
        again.forget()
        await task.signal(signal.SIGKILL)
        assert (await task.wait()).exit_code == 137

    run(body())


def test_nobody_but_root_can_connect_to_a_supervisor(box: Box) -> None:
    async def body() -> None:
        task = await box.start(box.sh("sleep 1000"))
        assert (box.state / "control.sock").stat().st_mode & 0o777 == 0o600
        assert box.state.stat().st_mode & 0o777 == 0o700
        await task.signal(signal.SIGKILL)
        await task.wait()

    run(body())


def test_a_supervisor_holds_little_and_outlives_signals(box: Box) -> None:
    async def body() -> None:
        task = await box.start(box.sh("sleep 1000"))
        directory = Path(f"/proc/{task.supervisor_pid}")
        for signo in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGUSR1):
            os.kill(task.supervisor_pid, signo)
        assert (directory / "comm").read_text() == "cove-init\n"
        assert (
            int((directory / "stat").read_text().rsplit(")", 1)[1].split()[3]) == task.supervisor_pid
        )  # its session
        targets = [os.readlink(path) for path in (directory / "fd").iterdir()]
        assert all(
            target.startswith(("/dev/null", "socket:", "pipe:", "anon_inode:", str(box.path)))
            for target in targets
        )
        assert len(targets) <= 13
        if not box.launcher._environment:
            rollup = dict(
                line.split()[:2] for line in (directory / "smaps_rollup").read_text().splitlines()[1:]
            )
            assert int(rollup["Rss:"]) <= 128, rollup  # KiB; shared text of the sealed file included
        await task.signal(signal.SIGKILL)
        assert (await task.wait()).exit_code == 137

    run(body())


def test_memory_of_streams_is_given_back_when_they_are_idle(box: Box) -> None:
    if box.launcher._environment:
        pytest.skip("a sanitizer's shadow memory is no measure")

    async def body() -> None:
        task = await box.start(
            box.sh("head -c 500000 /dev/zero; head -c 500000 /dev/zero >&2; echo end; sleep 1000")
        )
        await until(lambda: box.output().endswith("end\n"))
        rollup = Path(f"/proc/{task.supervisor_pid}/smaps_rollup")
        await until(lambda: int(rollup.read_text().split("Rss:")[1].split()[0]) <= 128)
        await task.signal(signal.SIGKILL)
        await task.wait()

    run(body())


def test_the_executable_of_a_supervisor_cannot_be_written(box: Box) -> None:
    async def body() -> None:
        task = await box.start(box.sh("sleep 1000", init=1))
        for pid in (task.supervisor_pid, task.pid):
            with pytest.raises(OSError) as caught:
                os.open(f"/proc/{pid}/exe", os.O_WRONLY)
            assert caught.value.errno in (errno.ETXTBSY, errno.EPERM)
        await task.signal(signal.SIGKILL)
        await task.wait()
        with pytest.raises(PermissionError):
            os.write(box.launcher._descriptor, b"x")

    run(body())


def test_starting_many_at_once_works(box: Box) -> None:
    async def body() -> None:
        async def one(number: int) -> int:
            plan = Plan(
                clone_flags=0x20000000, child=(Exec(args=("/bin/sh", "-c", f"exit {number}"), env=(PATH,)),)
            )
            task: Task = await launch(
                box.launcher, plan, state_dir=box.path / f"state{number}", streams=StreamSetup()
            )
            return (await task.wait()).exit_code

        assert await asyncio.gather(*map(one, range(40))) == list(range(40))

    run(body())


def test_a_daemon_without_free_descriptors_is_told_so_and_nothing_runs(box: Box) -> None:
    async def body() -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)

        async def exhaust(_root: int) -> Resolved:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
            return Resolved(uid=0, gid=0)

        try:
            with pytest.raises(HostError, match="too many open files: raise its limit"):
                await box.start(box.sh("sleep 1000", inside=(ResolveUser(user=""),)), resolve_user=exhaust)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert not box.state.exists()

    run(body())
