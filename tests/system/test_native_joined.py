"""User namespaces with maps, namespaces that exist already, time offsets, and roots that others made."""
# ruff: noqa: F811

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cove.runtime import protocol
from cove.runtime.executor import Launcher
from cove.runtime.steps import (
    AttachRoot,
    BecomeRoot,
    Chdir,
    Chroot,
    Exec,
    JoinCgroup,
    MakeHostDir,
    Pause,
    PivotRoot,
    Plan,
    Propagate,
    RemoveHostDir,
    Seccomp,
    SetIds,
    SetNs,
    Unshare,
    WriteSelf,
)
from tests.system.detached_support import (  # noqa: F401
    HOST_PATH,
    NEW_LISTENER,
    NEWTIME,
    NEWUSER,
    Fifos,
    Start,
    Starter,
    fifos,
    filter_program,
    hold,
    host_sh,
    start,
    stat_of,
    wait_held,
    write_maps,
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

# --- user namespaces --------------------------------------------------------------------------


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
