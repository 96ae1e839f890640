"""Every kind of step against the real kernel, with both builds of cove-init."""
# ruff: noqa: F811

from __future__ import annotations

import ctypes
import errno
import os
import resource
import socket
import struct
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cove.model.errors import HostError
from cove.runtime.launch import StepFailed
from cove.runtime.steps import (
    Affinity,
    AttachDeviceProgram,
    AttachTree,
    Bind,
    Capabilities,
    Chdir,
    Domainname,
    DropBounding,
    Exec,
    Hostname,
    IoPriority,
    LinkUp,
    MakeDir,
    MakeHostDir,
    MakeNode,
    MakeSymlink,
    Mask,
    MemoryPolicy,
    MountIn,
    NoNewPrivs,
    Personality,
    PivotRoot,
    Plan,
    ReadonlyPath,
    ReadOom,
    RemoveHostDir,
    Rlimit,
    RootPropagation,
    RootReadonly,
    Scheduler,
    Seccomp,
    SessionKeyring,
    SetIds,
    SetNs,
    Step,
    Sysctl,
    Umask,
    Unshare,
    WriteHost,
    WritePid,
    WriteSelf,
)
from tests.system.native_support import (  # noqa: F401
    NAMESPACES,
    NEWCGROUP,
    NEWNET,
    NEWNS,
    NEWPID,
    PATH,
    Box,
    bind_host,
    box,
    launcher,
    needs_root,
    run,
    until,
)

pytestmark = needs_root


def output(box: Box, script: str, inside: tuple[Step, ...] = (), **more: object) -> str:
    status, printed = run(box.finish(box.sh(script, inside=inside, **more)))
    assert status.exit_code == 0, printed
    return printed


def failure(box: Box, plan: Plan) -> StepFailed:
    with pytest.raises(StepFailed) as caught:
        run(box.start(plan, state_dir=box.path / "failed"))
    assert not (box.path / "failed").exists()
    return caught.value


# --- the tree -------------------------------------------------------------------------------


def test_the_container_sees_its_own_tree_and_processes_alone(box: Box) -> None:
    printed = output(box, "ls /; echo; ps -o comm; echo; cat /proc/mounts; pwd; readlink /proc/1/cwd")
    assert str(box.path) not in printed
    assert printed.splitlines()[-2:] == ["/", "/"]
    assert {line.split()[1] for line in printed.splitlines() if line.count(" ") == 5} == {
        "/", "/proc", "/dev", "/dev/pts", "/shared",
    }  # fmt: skip


def test_nothing_but_the_standard_streams_is_open(box: Box) -> None:
    read, write = os.pipe()
    try:
        printed = run(box.finish(box.sh("ls /proc/1/fd; true"), slots=[read, write]))[1]
    finally:
        os.close(read)
        os.close(write)
    assert printed.split() == ["0", "1", "2"]


def test_without_stdin_the_process_reads_its_own_null(box: Box) -> None:
    assert output(box, "test /proc/1/fd/0 -ef /dev/null && cat && echo end") == "end\n"


def test_a_masked_file_is_empty_and_a_masked_directory_is_empty_and_readonly(box: Box) -> None:
    (box.lower / "secret").write_text("secret")
    for name in ("one", "two"):
        (box.lower / name).mkdir()
        (box.lower / name / "inner").write_text("secret")
    printed = output(
        box,
        "cat /secret; ls /one /two; touch /one/x 2>/dev/null || echo refused; stat -c %d /one /two",
        inside=(Mask(path="/secret"), Mask(path="/one"), Mask(path="/two"), Mask(path="/missing/path")),
    )
    lines = printed.split()
    assert lines[:3] == ["/one:", "/two:", "refused"]
    assert lines[3] == lines[4]  # one superblock for both


def test_a_null_device_that_is_something_else_masks_nothing(box: Box) -> None:
    (box.lower / "secret").write_text("secret")
    plan = box.sh("true", inside=(MountIn(fstype="tmpfs", source="t", target="/dev", flags=0),
                                  MakeNode(path="/dev/null", mode=0o020666, major=1, minor=5),
                                  Mask(path="/secret")))  # fmt: skip
    assert failure(box, plan).errno == errno.ENODEV


def test_a_readonly_path_refuses_writes_below_it(box: Box) -> None:
    (box.lower / "data").mkdir()
    printed = output(
        box,
        "touch /data/x 2>&1; touch /other && echo made",
        inside=(ReadonlyPath(path="/data"), ReadonlyPath(path="/missing")),
    )
    assert "Read-only file system" in printed and "made" in printed


def test_a_readonly_root_leaves_what_is_mounted_below_writable(box: Box) -> None:
    printed = output(
        box,
        "touch /x 2>&1; touch /tmp/x && echo made",
        inside=(MountIn(fstype="tmpfs", source="tmpfs", target="/tmp", flags=0), RootReadonly()),
    )
    assert "Read-only file system" in printed and "made" in printed


def test_a_bind_shows_host_files_and_directories_and_makes_its_target(box: Box, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/file").write_text("content\n")
    printed = output(
        box,
        "cat /a/b/c/file /x/y; touch /a/b/c/new",
        inside=(bind_host(tmp_path / "dir", "/a/b/c"), bind_host(tmp_path / "dir/file", "/x/y")),
    )
    assert printed == "content\ncontent\n"
    assert (tmp_path / "dir/new").exists()


def test_a_readonly_bind_covers_submounts(box: Box, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(source / "sub")], check=True)
    try:
        printed = output(
            box,
            "touch /data/x 2>&1; touch /data/sub/x 2>&1; touch /flat/sub/x 2>&1 && echo flat",
            inside=(bind_host(source, "/data", recursive_set=1), bind_host(source, "/flat", recursive=0)),
        )
    finally:
        subprocess.run(["umount", str(source / "sub")], check=True)
    assert printed.count("Read-only file system") == 2
    assert "flat" in printed and (source / "sub/x").exists()  # a flat bind shows what lies under the mount


def test_a_missing_bind_source_is_named(box: Box, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    error = failure(box, box.sh("true", inside=(Bind(source=str(missing), target="/data"),)))
    assert (error.section, error.errno) == ("child", errno.ENOENT)
    assert f"bind {missing} -> /data recursive: No such file or directory" in str(error)


def test_a_tree_cloned_on_the_host_is_attached_and_stays_a_peer(box: Box, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(source)], check=True)
    subprocess.run(["mount", "--make-shared", str(source)], check=True)
    try:
        (source / "sub").mkdir()
        tree = open_tree(source)

        async def body() -> str:
            step = AttachTree(slot=0, target="/made/here", propagation=1 << 19)
            script = "while ! test -e /made/here/sub/file; do sleep 0.05; done; cat /made/here/sub/file"
            task = await box.start(box.sh(script, inside=(step,)), slots=[tree])
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(source / "sub")], check=True)
            (source / "sub/file").write_text("propagated")
            assert (await task.wait()).exit_code == 0
            return box.output()

        try:
            assert run(body()) == "propagated"
        finally:
            os.close(tree)
    finally:
        subprocess.run(["umount", "-R", str(source)], check=True)


def open_tree(path: Path) -> int:
    """open_tree(2) with OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE; number 428 everywhere."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    tree = int(call(428, -100, os.fsencode(path), 1 | os.O_CLOEXEC | 0x8000))
    assert tree >= 0, os.strerror(ctypes.get_errno())
    return tree


def test_propagation_of_a_bind_and_of_the_root_is_set(box: Box, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    printed = output(
        box,
        "cat /proc/self/mountinfo",
        inside=(bind_host(tmp_path / "dir", "/data", propagation=1 << 20),),
        late=(RootPropagation(flags=1 << 20),),
    )
    shared = {line.split()[4] for line in printed.splitlines() if " shared:" in line}
    assert shared == {"/data", "/"}


@pytest.mark.parametrize(
    "link",
    ["/../../../../{outside}", "{outside}", "../../../../../../../../{outside}"],
)
def test_no_symlink_of_the_image_leads_a_target_outside(box: Box, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "dir").mkdir()
    (box.lower / "link").symlink_to(link.format(outside=outside))
    printed = output(
        box,
        f"ls -d {outside}/bind {outside}/made {outside}/node {outside}/sym",
        inside=(
            bind_host(tmp_path / "dir", "/link/bind"),
            MakeDir(path="/link/made"),
            MakeNode(path="/link/node", mode=0o020666, major=1, minor=3),
            MakeSymlink(target="bind", path="/link/sym"),
            MountIn(fstype="tmpfs", source="t", target="/link/mount", flags=0),
        ),
    )
    assert len(printed.split()) == 4
    assert list(outside.iterdir()) == []


def test_a_link_of_procfs_is_no_way_to_a_target(box: Box, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    error = failure(box, box.sh("true", inside=(bind_host(tmp_path / "dir", "/proc/self/root/x"),)))
    assert error.errno == errno.ELOOP


def test_a_circle_of_symlinks_is_refused(box: Box) -> None:
    (box.lower / "a").symlink_to("b")
    (box.lower / "b").symlink_to("a")
    assert failure(box, box.sh("true", inside=(MakeDir(path="/a/x"),))).errno == errno.ELOOP


def test_a_file_in_the_way_of_a_directory_is_refused(box: Box) -> None:
    (box.lower / "file").write_text("")
    assert failure(box, box.sh("true", inside=(MakeDir(path="/file/x"),))).errno == errno.ENOTDIR


def test_made_directories_nodes_and_links_have_mode_and_owner(box: Box) -> None:
    printed = output(
        box,
        "stat -c '%a %u %g %F' /a /a/b /dev/full; readlink /l; stat -c '%t:%T' /dev/full",
        inside=(
            MakeDir(path="/a/b", mode=0o1777, uid=5, gid=6),
            MakeNode(path="/dev/full", mode=0o020640, major=1, minor=7, uid=7, gid=8),
            MakeNode(path="/dev/full", mode=0o020640, major=1, minor=7),
            MakeSymlink(target="t/x", path="/l"),
            MakeSymlink(target="other", path="/l"),
        ),
    )
    assert printed.splitlines() == [
        "755 0 0 directory", "1777 5 6 directory", "640 7 8 character special file", "t/x", "1:7",
    ]  # fmt: skip


def test_a_node_in_the_way_of_another_is_refused(box: Box) -> None:
    plan = box.sh("true", inside=(MakeNode(path="/dev/null", mode=0o020666, major=1, minor=7),))
    assert failure(box, plan).errno == errno.EEXIST


def test_an_optional_mount_that_the_kernel_lacks_is_passed_over(box: Box) -> None:
    def mount(optional: int) -> tuple[Step, ...]:
        return (MountIn(fstype="nosuchfs", source="x", target="/mnt", flags=0, optional=optional),)

    assert output(box, "echo on", inside=mount(1)) == "on\n"
    assert failure(box, box.sh("true", inside=mount(0))).errno == errno.ENODEV


# --- names, sysctls, links ------------------------------------------------------------------


def test_names_are_those_of_the_namespace(box: Box) -> None:
    printed = output(
        box,
        "hostname; cat /proc/sys/kernel/domainname",
        inside=(Hostname(name="box"), Domainname(name="example.org")),
    )
    assert printed == "box\nexample.org\n"
    assert socket.gethostname() != "box"


def test_sysctls_and_links_are_those_of_the_new_network_namespace(box: Box) -> None:
    before = Path("/proc/sys/net/ipv4/ip_default_ttl").read_text()
    printed = output(
        box,
        "cat /proc/sys/net/ipv4/ip_default_ttl; ip link show lo",
        inside=(Sysctl(key="net/ipv4/ip_default_ttl", value="77"), LinkUp(name="lo")),
        flags=NAMESPACES | NEWNET,
    )
    assert printed.startswith("77\n") and "UP" in printed
    assert Path("/proc/sys/net/ipv4/ip_default_ttl").read_text() == before != "77\n"


def test_a_sysctl_that_does_not_lie_on_procfs_is_refused(box: Box) -> None:
    plan = box.plan("true", late=(Sysctl(key="kernel/x", value="1"),))
    fake = (MakeDir(path="/proc/sys/kernel"), MakeSymlink(target="x", path="/unused"))
    cover = MountIn(fstype="tmpfs", source="t", target="/proc", flags=0)
    child = list(plan.child)
    at = child.index(PivotRoot())
    child[at:at] = [cover, *fake, MakeNode(path="/proc/sys/kernel/x", mode=0o100644, major=0, minor=0)]
    assert failure(box, Plan(clone_flags=NAMESPACES, child=tuple(child))).errno == errno.EXDEV


def test_a_missing_link_is_told(box: Box) -> None:
    error = failure(box, box.sh("true", inside=(LinkUp(name="nosuch0"),), flags=NAMESPACES | NEWNET))
    assert error.errno == errno.ENODEV


def test_oom_score_umask_limits_and_keyring_are_set(box: Box) -> None:
    printed = output(
        box,
        "cat /proc/self/oom_score_adj; umask; ulimit -n; ulimit -Hn",
        inside=(
            WriteSelf(name="oom_score_adj", data="123"),
            Umask(mask=0o077),
            Rlimit(resource=7, soft=100, hard=200),
            SessionKeyring(name="cove-test"),
        ),
    )
    assert printed.split() == ["123", "0077", "100", "200"]


def test_limits_are_set_for_the_child_by_its_supervisor_too(box: Box) -> None:
    parent = (Rlimit(resource=7, soft=100, hard=200),)
    ours = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert output(box, "ulimit -n; ulimit -Hn", parent=parent).split() == ["100", "200"]
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == ours


def test_processors_scheduling_and_personality_are_those_of_the_plan(box: Box) -> None:
    last = max(os.sched_getaffinity(0))
    inside = (
        Affinity(mask=(1 << last).to_bytes(16, "little")),
        Scheduler(policy=os.SCHED_BATCH, nice=-7),
        Personality(persona=0x0008),  # PER_LINUX32
    )
    printed = output(
        box,
        "grep Cpus_allowed_list /proc/self/status; cat /proc/self/stat /proc/self/personality",
        inside=inside,
    )
    affinity, stat, persona = printed.splitlines()
    fields = stat.rpartition(")")[2].split()  # from the third on (proc(5))
    assert affinity.split()[1] == str(last)
    assert (int(fields[19 - 3]), int(fields[41 - 3])) == (-7, os.SCHED_BATCH)
    assert int(persona, 16) == 0x0008


def test_a_realtime_policy_has_its_priority(box: Box) -> None:
    step = Scheduler(policy=os.SCHED_FIFO, flags=1, priority=5)  # SCHED_FLAG_RESET_ON_FORK
    try:
        printed = output(box, "exec cat /proc/self/stat", inside=(step,))
    except StepFailed as error:
        # a cgroup without real-time budget (CONFIG_RT_GROUP_SCHED)
        assert (error.errno, error.step) == (errno.EPERM, step)
        return
    fields = printed.rpartition(")")[2].split()
    assert (int(fields[40 - 3]), int(fields[41 - 3])) == (5, os.SCHED_FIFO)


def test_the_class_and_priority_of_input_and_output_are_set(box: Box) -> None:
    async def body() -> int:
        task = await box.start(box.plan("sleep", "1000", inside=(IoPriority(priority_class=2, priority=6),)))
        number = {"x86_64": 252, "aarch64": 31}[os.uname().machine]  # ioprio_get(2)
        value = int(ctypes.CDLL(None).syscall(number, 1, task.pid))
        await task.signal(9)
        await task.wait()
        return value

    assert run(body()) == 2 << 13 | 6


def test_the_memory_policy_is_set(box: Box) -> None:
    bind_node_0 = MemoryPolicy(mode=2, nodes=(1).to_bytes(8, "little"))
    assert " bind:0 " in output(box, "cat /proc/self/numa_maps", inside=(bind_node_0,))
    assert " local " in output(box, "cat /proc/self/numa_maps", inside=(MemoryPolicy(mode=4, nodes=b""),))


@pytest.mark.parametrize(
    ("step", "number"),
    [
        (Affinity(mask=bytes(8)), errno.EINVAL),
        (Scheduler(policy=99), errno.EINVAL),
        (IoPriority(priority_class=5, priority=0), errno.EINVAL),
        (MemoryPolicy(mode=2, nodes=b""), errno.EINVAL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Step) else "",
)
def test_what_the_kernel_refuses_of_these_is_told(box: Box, step: Step, number: int) -> None:
    error = failure(box, box.sh("true", inside=(step,)))
    assert (error.step, error.errno) == (step, number)


def test_signals_are_as_a_process_expects_them(box: Box) -> None:
    status = status_of(run(box.finish(box.plan("cat", "/proc/self/status")))[1])
    assert {int(status[key], 16) for key in ("SigBlk", "SigIgn", "SigPnd")} == {0}


def test_the_umask_is_the_usual_one_unless_the_plan_says_otherwise(box: Box) -> None:
    assert output(box, "umask") == "0022\n"


# --- identity -------------------------------------------------------------------------------


def status_of(text: str) -> dict[str, str]:
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def test_identity_and_capabilities_are_what_the_plan_says(box: Box) -> None:
    late = (
        DropBounding(bounding=0x21),
        SetIds(uid=1000, gid=1001, groups=("7", "4000000000")),
        Capabilities(effective=0x01, permitted=0x21, inheritable=0x01, ambient=0x01),
        NoNewPrivs(),
    )
    status = status_of(output(box, "cat /proc/self/status", late=late))
    assert status["Uid"].split() == ["1000"] * 4 and status["Gid"].split() == ["1001"] * 4
    assert status["Groups"].split() == ["7", "4000000000"]
    assert {int(status[key], 16) for key in ("CapInh", "CapAmb", "CapEff", "CapPrm")} == {1}
    assert int(status["CapBnd"], 16) == 0x21
    assert status["NoNewPrivs"] == "1"


def test_an_unprivileged_process_may_reopen_its_own_streams(box: Box) -> None:
    late = (SetIds(uid=1000, gid=1000), Capabilities(effective=0, permitted=0, inheritable=0, ambient=0))
    assert output(box, "echo reopened > /dev/stdout", late=late) == "reopened\n"


def deny_mkdir() -> bytes:
    """A filter for x86-64 and arm64: mkdir and mkdirat give EPERM, the rest passes."""
    number = {"x86_64": (83, 258), "aarch64": (34, 34)}[os.uname().machine]
    return b"".join(
        struct.pack("<HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 0),  # load the number
            (0x15, 2, 0, number[0]),
            (0x15, 1, 0, number[1]),
            (0x06, 0, 0, 0x7FFF0000),
            (0x06, 0, 0, 0x00050000 | errno.EPERM),
        )
    )


def test_a_filter_holds_for_the_process(box: Box) -> None:
    late = (NoNewPrivs(), Seccomp(program=deny_mkdir()))
    printed = output(box, "mkdir /x 2>&1; grep Seccomp: /proc/self/status", late=late)
    assert "Operation not permitted" in printed and printed.split()[-1] == "2"


def test_a_filter_that_forbids_all_but_the_exec_does_not_hinder_the_start(box: Box) -> None:
    # everything but execve(2) and what the dynamic-free busybox needs to end kills: only execve passes
    execve = {"x86_64": 59, "aarch64": 221}[os.uname().machine]
    program = b"".join(
        struct.pack("<HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 0),
            (0x15, 0, 1, execve),
            (0x06, 0, 0, 0x7FFF0000),
            (0x06, 0, 0, 0x80000000),
        )
    )
    status, _ = run(box.finish(box.plan("true", late=(Seccomp(program=program),))))
    assert status.exit_code == 128 + 31  # SIGSYS, of the process itself


def test_a_filter_without_the_right_to_set_it_is_told(box: Box) -> None:
    late = (
        SetIds(uid=1000, gid=1000),
        Capabilities(effective=0, permitted=0, inheritable=0, ambient=0),
        Seccomp(program=deny_mkdir()),
    )
    error = failure(box, box.plan("true", late=late))
    assert error.errno == errno.EACCES and isinstance(error.step, Seccomp)


# --- the exec -------------------------------------------------------------------------------


def test_the_working_directory_is_made_when_asked_for(box: Box) -> None:
    assert output(box, "pwd", late=(Chdir(path="/new/dir", create=1),)) == "/new/dir\n"
    assert failure(box, box.sh("true", late=(Chdir(path="/no/dir"),))).errno == errno.ENOENT


def test_a_working_directory_through_procfs_links_is_refused(box: Box) -> None:
    for path in ("/proc/self/fd/3", "/proc/self/root", "/proc/self/cwd"):
        error = failure(box, box.sh("true", late=(Chdir(path=path),)))
        assert error.errno in (errno.ELOOP, errno.ENOENT)


def test_the_search_for_a_program_follows_the_environment(box: Box) -> None:
    (box.lower / "one").mkdir()
    (box.lower / "two").mkdir()
    (box.lower / "one/tool").write_text("not executable")
    (box.lower / "two/tool").symlink_to("../bin/busybox")
    (box.lower / "text").write_text("no format")
    (box.lower / "text").chmod(0o755)

    def tool(path: str) -> Plan:
        return box.plan("tool", env=(path,))

    assert failure(box, box.plan("nosuch")).errno == errno.ENOENT
    assert failure(box, tool("PATH=/one")).errno == errno.EACCES
    assert failure(box, tool("PATH=/one:/nowhere")).errno == errno.EACCES
    assert failure(box, box.plan("/one")).errno == errno.EACCES
    assert failure(box, box.plan("/bin/true/x")).errno == errno.ENOTDIR
    assert failure(box, box.plan("/text")).errno == errno.ENOEXEC
    assert run(box.finish(tool("PATH=/one:/two:/bin")))[0].exit_code == 127  # busybox: no such applet
    assert run(box.finish(box.plan("true", env=())))[0].exit_code == 0


def test_arguments_and_environment_arrive_as_they_are(box: Box) -> None:
    strange = "a b\n\udcff\u00e4"
    status, _ = run(box.finish(box.plan("sh", "-c", 'echo -n "$1$X"', "sh", strange, env=(PATH, "X=y=z"))))
    assert status.exit_code == 0
    raw = (box.log / "log").read_bytes()[16:-4]
    assert raw == strange.encode(errors="surrogateescape") + b"y=z"


def test_the_small_init_reaps_forwards_and_ends_as_its_child(box: Box) -> None:
    script = "ps -o pid,comm; (sleep 0.01 &); exec sh -c 'exit 3'"
    status, printed = run(box.finish(box.sh(script, init=1)))
    assert status.exit_code == 3
    assert any(line.split() == ["1", "cove-init"] for line in printed.splitlines())

    async def signalled() -> int:
        task = await box.start(box.sh("trap 'exit 9' TERM; echo up; while true; do sleep 0.05; done", init=1))
        await until(lambda: "up" in box.output())
        await task.signal(15)
        return (await task.wait()).exit_code

    (box.log / "log").unlink()
    assert run(signalled()) == 9


def test_the_small_init_holds_nothing(box: Box) -> None:
    assert output(box, "ls /proc/1/fd; echo end", init=1) == "end\n"


# --- namespaces that exist already ------------------------------------------------------------


def test_an_exec_joins_all_namespaces_of_a_running_container(box: Box) -> None:
    async def body() -> None:
        first = await box.start(
            box.sh("hostname joined; echo up; exec sleep 1000", flags=NAMESPACES | NEWNET)
        )
        pidfd = os.pidfd_open(first.pid)
        await until(lambda: "up" in box.output())
        flags = NAMESPACES | NEWNET
        plan = Plan(
            clone_flags=0,
            before=(SetNs(slot=0, flags=NEWPID),),
            child=(
                SetNs(slot=0, flags=flags & ~NEWPID),
                Chdir(path="/tmp"),
                Exec(args=("sh", "-c", "hostname; pwd; ps -o pid,args; ls /proc/$$/fd; exit 5"), env=(PATH,)),
            ),
        )
        (box.log / "log").unlink()
        task = await box.start(plan, slots=[pidfd], state_dir=box.path / "exec")
        os.close(pidfd)
        assert (await task.wait()).exit_code == 5
        lines = box.output().splitlines()
        assert lines[:2] == ["joined", "/tmp"]
        assert any(line.split() == ["1", "sleep", "1000"] for line in lines)
        assert not first.exited
        await first.signal(9)
        assert (await first.wait()).exit_code == 137

    run(body())


def test_a_plan_that_does_not_pass_the_check_runs_nothing(box: Box, tmp_path: Path) -> None:
    target = tmp_path / "made"
    plan = Plan(clone_flags=0, before=(MakeHostDir(path=str(target)),), child=(Hostname(name="x"),))
    with pytest.raises(HostError, match="the last step of the child must be Exec"):
        run(box.start(plan))
    assert not target.exists() and not box.state.exists()


# --- cgroups ----------------------------------------------------------------------------------

V1, V2 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")


@pytest.fixture
def group() -> Iterator[str]:
    """A cgroup name of this test's own; whatever was left of it fails the test."""
    name = f"cove-test-{uuid.uuid4().hex[:12]}"
    yield name
    left = [*V1.glob(f"*/{name}*"), *V2.glob(f"{name}*")]
    for path in left:
        path.rmdir()
    assert left == []


needs_v1 = pytest.mark.skipif(not (V1 / "pids/cgroup.procs").exists(), reason="no cgroup v1 pids controller")
needs_v2 = pytest.mark.skipif(not (V2 / "cgroup.controllers").exists(), reason="no cgroup v2 tree")


@needs_v1
def test_cgroups_are_made_entered_and_removed(box: Box, group: str) -> None:
    path = f"/sys/fs/cgroup/pids/{group}"
    plan = box.sh(
        "cat /proc/self/cgroup; (sleep 1000 &)",
        inside=(Unshare(flags=NEWCGROUP),),
        before=(MakeHostDir(path=path), WriteHost(path=f"{path}/pids.max", data="17"),
                WriteHost(path=f"{path}/no.such", data="1", optional=1)),
        parent=(WritePid(path=f"{path}/cgroup.procs"),),
        exit=(RemoveHostDir(path=path), RemoveHostDir(path=path)),
    )  # fmt: skip
    status, printed = run(box.finish(plan))
    assert status.exit_code == 0
    assert any(line.endswith(":pids:/") for line in printed.splitlines())  # the namespace's root
    assert not os.path.exists(path)


@needs_v1
@pytest.mark.parametrize("section", ["before", "parent", "clone", "child"])
def test_a_failure_in_any_section_is_told_and_undone(box: Box, group: str, section: str) -> None:
    path = f"/sys/fs/cgroup/pids/{group}"
    bad = (WriteHost(path=f"{path}/no.such", data="1"),)
    worse = (MountIn(fstype="no", source="", target="/x", flags=0),)
    plan = box.sh(
        "true",
        before=(MakeHostDir(path=path), *(bad if section == "before" else ())),
        parent=(WritePid(path=f"{path}/cgroup.procs"), *(bad if section == "parent" else ())),
        inside=(ReadonlyPath(path="/x"), *(worse if section == "child" else ())),
        exit=(RemoveHostDir(path=path),),
        cgroup_path=f"{path}/missing" if section == "clone" else "",
    )  # fmt: skip
    error = failure(box, plan)
    assert error.section == section
    expected = {"before": 1, "parent": 1, "clone": 0, "child": 12}[section]
    assert (error.index, error.errno) == (expected, errno.ENODEV if section == "child" else errno.ENOENT)
    assert not os.path.exists(path)


@needs_v1
def test_a_child_that_fails_beside_the_parent_steps_is_the_cause(box: Box, group: str) -> None:
    path = f"/sys/fs/cgroup/pids/{group}"
    plan = Plan(
        clone_flags=0,
        before=(MakeHostDir(path=path),),
        parent=(*(WritePid(path=f"{path}/cgroup.procs"),) * 40, WriteHost(path=f"{path}/no.such", data="x")),
        child=(Chdir(path="/nonexistent"), Exec(args=("/bin/true",), env=())),
        exit=(RemoveHostDir(path=path),),
    )
    error = failure(box, plan)
    assert (error.section, error.index) in (("child", 0), ("parent", 40))  # whichever was first
    assert error.errno == errno.ENOENT


@pytest.mark.skipif(not (V1 / "memory/memory.oom_control").exists(), reason="no cgroup v1 memory controller")
def test_a_kill_for_lack_of_memory_is_told(box: Box, group: str) -> None:
    path = f"/sys/fs/cgroup/memory/{group}"
    plan = box.sh(
        "exec tail -c 200m /dev/zero",
        before=(MakeHostDir(path=path), WriteHost(path=f"{path}/memory.limit_in_bytes", data="33554432"),
                WriteHost(path=f"{path}/memory.memsw.limit_in_bytes", data="33554432", optional=1)),
        parent=(WritePid(path=f"{path}/cgroup.procs"),),
        exit=(ReadOom(path=f"{path}/memory.oom_control"), RemoveHostDir(path=path)),
    )  # fmt: skip
    status, _ = run(box.finish(plan))
    assert (status.exit_code, status.oom_killed) == (137, True)


@needs_v2
def test_a_child_is_cloned_into_a_v2_cgroup_with_a_device_filter(box: Box, group: str) -> None:
    path = f"/sys/fs/cgroup/unified/{group}"
    # BPF_PROG_TYPE_CGROUP_DEVICE: reading 1:5 is forbidden, all else isn't
    program = b"".join(
        struct.pack("<BBhi", *instruction)
        for instruction in (
            (0xB7, 0, 0, 1),  # r0 = 1
            (0x61, 0x12, 0, 0),  # r2 = access << 16 | type
            (0x77, 2, 0, 16),
            (0x57, 2, 0, 2),  # BPF_DEVCG_ACC_READ
            (0x15, 2, 5, 0),  # if not: goto exit
            (0x61, 0x12, 4, 0),  # r2 = major
            (0x55, 2, 3, 1),  # if r2 != 1 goto exit
            (0x61, 0x12, 8, 0),  # r2 = minor
            (0x55, 2, 1, 5),
            (0xB7, 0, 0, 0),
            (0x95, 0, 0, 0),
        )
    )
    plan = box.sh(
        "grep 0:: /proc/self/cgroup; head -c1 /dev/zero 2>&1; echo >/dev/null && echo null",
        before=(MakeHostDir(path=path), AttachDeviceProgram(path=path, program=program)),
        cgroup_path=path,
        exit=(RemoveHostDir(path=path),),
    )
    status, printed = run(box.finish(plan))
    assert status.exit_code == 0
    assert f"0::/{group}" in printed and "Operation not permitted" in printed and printed.endswith("null\n")
