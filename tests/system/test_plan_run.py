"""Real plans, run by cove-init on a busybox root: what a process finds around itself."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec.structs
import pytest

from cove.model.container import Container, Device, MountPoint, Resources, Ulimit
from cove.model.errors import CoveError, Invalid
from cove.runtime import capabilities, launch, users
from cove.runtime.cgroups import Cgroups
from cove.runtime.cgroups_detect import detect_cgroups
from cove.runtime.facts import Host
from cove.runtime.host import find_devices, find_host
from cove.runtime.launch import ExitStatus, StepFailed, Task
from cove.runtime.plan import plan_exec, plan_start
from cove.runtime.plan_inputs import Overlay, Slot
from cove.runtime.spec import StartFacts, plan_exec_process, plan_facts, plan_spec
from cove.runtime.trees import open_slot
from tests.leaks import unique_name
from tests.system.native_support import APPLETS, Box, make_launcher, needs_root, run
from tests.unit.runtime_samples import container

pytestmark = needs_root
MIB = 1 << 20
MORE_APPLETS = (
    "mknod",
    "unshare",
    "ipcs",
    "umask",
    "sed",
    "cut",
    "sort",
    "df",
    "chmod",
    "getopt",
    "od",
    "stat",
    "tr",
)


class Runtime:
    """Starts containers as the engine does, without an engine."""

    def __init__(self, path: Path, cgroups: Cgroups) -> None:
        self.path = path
        self.cgroups = cgroups
        self.host: Host = find_host(cgroups.layout)
        self.launcher = make_launcher("native", path / "report")
        self.count = 0

    def close(self) -> None:
        self.launcher.close()

    def start_facts(self, box: Box, asked: Container, **changes: Any) -> StartFacts:
        devices, rules = find_devices(asked.spec.devices, privileged=asked.spec.privileged)
        given: dict[str, Any] = {
            "root": Overlay(
                lower=("lower",), layers_dir=str(box.path), upper=str(box.path / "upper"),
                work=str(box.path / "work"), merged=str(box.path / "merged"),
            ),
            "cgroup_path": f"{self.cgroups.layout.parent}/{asked.id}",
            "devices": devices,
            "device_rules": rules,
        }  # fmt: skip
        return StartFacts(**(given | changes))

    def box(self) -> Box:
        """A fresh busybox root with users."""
        self.count += 1
        box = Box(self.path / f"box{self.count}", self.launcher)
        for applet in set(MORE_APPLETS) - set(APPLETS):
            (box.lower / "bin" / applet).symlink_to("busybox")
        (box.lower / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nweb:x:33:34::/var/www:/bin/sh\n")
        (box.lower / "etc/group").write_text("root:x:0:\nweb:x:34:\naudio:x:29:web\nextra:x:70:\n")
        return box

    async def start(
        self, box: Box, asked: Container, network: int = -1, **changes: Any
    ) -> tuple[Task, Container]:
        asked = msgspec.structs.replace(asked, id=os.urandom(32).hex())
        facts = self.start_facts(box, asked, **changes)
        config = plan_spec(asked, facts, self.host)
        plan, slots = plan_start(config, plan_facts(asked, facts, network_ready=network >= 0), self.host)
        with ExitStack() as stack:
            return (
                await launch.launch(
                    self.launcher,
                    plan,
                    state_dir=box.path / f"state-{asked.id[:6]}",
                    slots=[self._open(slot, stack, network) for slot in slots],
                    streams=replace(box.streams(stdin=asked.spec.open_stdin), terminal=asked.spec.tty),
                    resolve_user=self._resolver(asked.user, asked.spec.group_add, config.process.env),
                ),
                asked,
            )

    def _open(self, slot: Slot, stack: ExitStack, network: int = -1, process: int = -1) -> int:
        if slot.kind in ("network", "process"):
            return network if slot.kind == "network" else process
        fd = os.open(slot.path, os.O_RDONLY | os.O_CLOEXEC) if slot.kind == "namespace" else open_slot(slot)
        stack.callback(os.close, fd)
        return fd

    @staticmethod
    def _resolver(user: str, group_add: tuple[str, ...], env: tuple[str, ...]) -> Any:
        async def resolve(root_fd: int) -> launch.Resolved:
            found = users.resolve_user(root_fd, user, group_add)
            return launch.Resolved(
                uid=found.uid, gid=found.gid, groups=found.groups, env=found.environment(env)
            )

        return resolve

    async def start_exec(self, box: Box, asked: Container, pid: int, script: str, **process: Any) -> Task:
        facts = self.start_facts(box, asked)
        config = plan_spec(asked, facts, self.host)
        chosen = plan_exec_process(asked, config, args=("sh", "-c", script), host=self.host, **process)
        plan, slots = plan_exec(config, chosen, plan_facts(asked, facts, network_ready=False), self.host)
        pidfd = os.pidfd_open(pid)
        with ExitStack() as stack:
            stack.callback(os.close, pidfd)
            return await launch.launch(
                self.launcher,
                plan,
                state_dir=box.path / f"exec-{os.urandom(3).hex()}",
                slots=[self._open(slot, stack, process=pidfd) for slot in slots],
                streams=box.streams(),
                resolve_user=self._resolver(process.get("user", ""), (), chosen.env),
            )

    def output(self, script: str, box: Box | None = None, /, **asked: Any) -> str:
        """Run `script` in a container to its end and return what it printed; it must succeed."""
        code, text = self.finish(script, box, **asked)
        assert code == 0, text
        return text

    def finish(self, script: str, box: Box | None = None, /, **asked: Any) -> tuple[int, str]:
        box = box or self.box()
        changes = asked.pop("start", {})

        async def body() -> ExitStatus:
            task, made = await self.start(box, container(args=("sh", "-c", script), **asked), **changes)
            status = await task.wait()
            await self.cgroups.kill(f"{self.cgroups.layout.parent}/{made.id}")
            await self.cgroups.remove(f"{self.cgroups.layout.parent}/{made.id}")
            return status

        status = run(body())
        return status.exit_code, box.output()

    def facts(self, script: str, box: Box | None = None, /, **asked: Any) -> dict[str, str]:
        """`NAME=VALUE` lines of a script's output."""
        lines = self.output(script, box, **asked).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    try:
        cgroups = detect_cgroups(parent=unique_name())
        cgroups.setup()
    except CoveError as error:
        pytest.skip(str(error))
    made = Runtime(tmp_path, cgroups)
    yield made
    made.close()
    left = cgroups.list_containers()
    cgroups.teardown()
    assert left == []


STATUS = "sed -n 's/^\\(Cap...\\|Seccomp\\|NoNewPrivs\\|Groups\\|Uid\\|Gid\\):[[:space:]]*/\\1=/p' /proc/self/status\n"


def hexadecimal(bits: int) -> str:
    return f"{bits:016x}"


# --- a default container ------------------------------------------------------------------------------


def test_a_default_container_is_isolated(runtime: Runtime) -> None:
    found = runtime.facts(
        STATUS
        + """
echo pid=$$
echo host=$(hostname)
for ns in mnt pid ipc uts net cgroup; do echo ns_$ns=$(readlink /proc/self/ns/$ns); done
echo links=$(ls /sys/class/net | tr '\n' ' ')
echo processes=$(ls /proc | grep -c '^[0-9]*$')
echo cwd=$(pwd)
echo mask=$(umask)
echo home=$HOME
echo path=$PATH
echo name=$HOSTNAME
unshare -U true 2>/dev/null && echo userns=made || echo userns=refused
mount -t tmpfs x /tmp 2>/dev/null && echo mount=made || echo mount=refused
""",
        network_mode="none",
    )
    assert found["pid"] == "1"
    assert found["host"] == found["name"] == container().hostname
    for kind in ("mnt", "pid", "ipc", "uts", "net"):
        assert found[f"ns_{kind}"] != os.readlink(f"/proc/self/ns/{kind}")
    same_cgroups = found["ns_cgroup"] == os.readlink("/proc/self/ns/cgroup")
    assert same_cgroups == (runtime.host.cgroups.version == 1)
    assert found["links"].split() == ["lo"]
    assert (found["cwd"], found["mask"], found["home"]) == ("/", "0022", "/root")
    assert found["path"] == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert found["CapEff"] == found["CapPrm"] == found["CapBnd"] == hexadecimal(capabilities.DEFAULT)
    assert found["CapInh"] == found["CapAmb"] == hexadecimal(0)
    assert (found["Seccomp"], found["NoNewPrivs"]) == ("2", "0")
    assert (found["userns"], found["mount"]) == ("refused", "refused")
    assert found["Uid"].split() == found["Gid"].split() == ["0"] * 4
    assert int(found["processes"]) <= 4  # the shell and its children


def test_a_default_container_has_dockers_mounts_and_devices(runtime: Runtime) -> None:
    box = runtime.box()
    text = runtime.output(
        """
cat /proc/self/mountinfo
echo ---
for d in null zero full random urandom tty; do stat -c '%n %t:%T %a' /dev/$d; done
for l in ptmx fd stdin stdout stderr core; do echo $l=$(readlink /dev/$l); done
head -c 4 /dev/zero | od -An -tx1
echo x > /dev/null && echo null writable
mknod /tmp/fuse c 10 229 && echo node made
head -c 1 /tmp/fuse 2>&1
echo out > /dev/stdout
""",
        box,
    )
    table, _, rest = text.partition("---\n")
    mounts = {line.split()[4]: line.split()[5].split(",") for line in table.splitlines()}
    types = {line.split()[4]: line.split(" - ")[1].split()[0] for line in table.splitlines()}
    assert types["/"] == "overlay"
    assert (types["/proc"], types["/dev"], types["/dev/pts"]) == ("proc", "tmpfs", "devpts")
    assert {"nosuid", "nodev", "noexec", "ro"} <= set(mounts["/sys"])
    assert {"ro"} <= set(mounts["/sys/fs/cgroup"])
    assert {"nosuid", "nodev", "noexec", "rw"} <= set(mounts["/dev/shm"])
    assert {"nosuid", "noexec", "nodev"} <= set(mounts["/proc"])
    assert "ro" in mounts["/proc/sys"]
    assert {path for path in runtime.host.masked_paths if os.path.exists(path)} <= set(mounts)
    assert not [line for line in table.splitlines() if " shared:" in line or " master:" in line]
    for name, numbers in {"null": "1:3", "zero": "1:5", "full": "1:7", "random": "1:8", "urandom": "1:9",
                          "tty": "5:0"}.items():  # fmt: skip
        assert f"/dev/{name} {numbers} 666" in rest
    assert "ptmx=pts/ptmx" in rest and "fd=/proc/self/fd" in rest and "core=/proc/kcore" in rest
    assert "00 00 00 00" in rest and "null writable" in rest and "node made" in rest
    assert "Operation not permitted" in rest  # of /tmp/fuse: the device's rule
    assert "out" in rest
    assert sorted(os.listdir(box.path / "merged")) == []


def test_what_tells_about_the_host_is_hidden_or_readonly(runtime: Runtime) -> None:
    found = runtime.facts(
        """
echo kcore=$(wc -c < /proc/kcore 2>/dev/null)
echo timer=$(wc -c < /proc/timer_list 2>/dev/null)
echo firmware=$(ls /sys/firmware | wc -l)
echo acpi=$(ls /proc/acpi 2>/dev/null | wc -l)
(echo 0 > /proc/sys/kernel/panic) 2>/dev/null && echo panic=written || echo panic=refused
(echo h > /proc/sysrq-trigger) 2>/dev/null && echo sysrq=written || echo sysrq=refused
(echo 1 > /sys/fs/cgroup/x) 2>/dev/null && echo cgroup=written || echo cgroup=refused
(mkdir /sys/fs/cgroup/pids/x) 2>/dev/null && echo group=made || echo group=refused
"""
    )
    assert found["kcore"] in ("0", "")
    assert found["timer"] in ("0", "")
    assert found["firmware"] == found["acpi"] == "0"
    assert found["panic"] == found["sysrq"] == found["cgroup"] == found["group"] == "refused"


def test_a_container_leaves_nothing_behind(runtime: Runtime) -> None:
    box = runtime.box()
    runtime.output("touch /made; sleep 100 &", box)
    assert os.path.exists(box.path / "upper/made")
    assert not [
        name
        for name in os.listdir(box.path)
        if name.startswith("state") and "control.sock" in os.listdir(box.path / name)
    ]
    assert str(box.path) not in Path("/proc/self/mountinfo").read_text()


# --- the process --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "group_add", "uid", "gid", "groups", "home"),
    [
        ("web", ("extra", "99"), "33", "34", "29 34 70 99", "/var/www"),
        ("33", (), "33", "34", "29 34", "/var/www"),
        ("web:audio", (), "33", "29", "29", "/var/www"),
        ("1234:99", (), "1234", "99", "99", "/"),
        ("", (), "0", "0", "0", "/root"),
    ],
)
def test_a_process_runs_as_its_user(
    runtime: Runtime, user: str, group_add: tuple[str, ...], uid: str, gid: str, groups: str, home: str
) -> None:
    found = runtime.facts(f"{STATUS}echo home=$HOME\necho x > /dev/stdout", user=user, group_add=group_add)
    assert found["Uid"].split() == [uid] * 4
    assert found["Gid"].split() == [gid] * 4
    assert sorted(found["Groups"].split(), key=int) == sorted(groups.split(), key=int)
    assert found["home"] == home
    if uid != "0":
        assert found["CapEff"] == hexadecimal(0)
        assert found["CapBnd"] == hexadecimal(capabilities.DEFAULT)


def test_a_user_that_was_looked_up_before_needs_no_question(runtime: Runtime) -> None:
    known = users.Resolved(uid=33, gid=34, groups=(34, 29), home="/var/www")
    found = runtime.facts(f"{STATUS}echo home=$HOME", user="nobody-asks", start={"identity": known})
    assert (found["Uid"].split()[0], found["home"]) == ("33", "/var/www")
    assert sorted(found["Groups"].split()) == ["29", "34"]


def test_an_unknown_user_is_refused_and_leaves_nothing(runtime: Runtime) -> None:
    with pytest.raises(Invalid, match="unable to find user ghost: no matching entries in passwd file"):
        runtime.finish("true", user="ghost")


def test_settings_of_the_process_hold(runtime: Runtime) -> None:
    found = runtime.facts(
        STATUS
        + """
echo cwd=$(pwd)
echo files=$(ulimit -n)/$(ulimit -Hn)
echo score=$(cat /proc/self/oom_score_adj)
echo a=$A
echo mode=$(stat -c %a /var/deep/dir)
""",
        working_dir="/var/deep/dir",
        ulimits=(Ulimit(name="nofile", soft=100, hard=200),),
        oom_score_adj=500,
        no_new_privileges=True,
        cap_drop=("ALL",),
        cap_add=("net_bind_service",),
        env=("A=with space",),
    )
    assert (found["cwd"], found["mode"]) == ("/var/deep/dir", "755")
    assert found["files"] == "100/200"
    assert found["score"] == "500"
    assert found["a"] == "with space"
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    assert found["CapEff"] == found["CapBnd"] == hexadecimal(1 << 10)


def test_filters_can_be_turned_off_or_replaced(runtime: Runtime) -> None:
    found = runtime.facts(f"{STATUS}unshare -U true && echo userns=made", seccomp="unconfined")
    assert found["Seccomp"] == "0"
    profile = (
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"],'
        ' "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}'
    )
    text = runtime.output("mkdir /tmp/x 2>&1; true", seccomp=profile)
    assert "Operation not supported" in text or "Not supported" in text


def test_init_reaps_and_passes_the_exit_code_on(runtime: Runtime) -> None:
    code, text = runtime.finish("echo pid=$$; (sleep 0 &); exit 7", init=True)
    assert code == 7
    assert "pid=1\n" not in text


def test_a_terminal_is_the_containers_own(runtime: Runtime) -> None:
    found = runtime.facts(
        "echo tty=$(tty); echo term=$TERM; echo size=$(stty size); test -c /dev/console && echo console=there",
        tty=True,
        start={"rows": 30, "cols": 90},
    )
    cleaned = {key: text.strip() for key, text in found.items()}
    assert cleaned["tty"] in ("/dev/pts/0", "/dev/console")
    assert (cleaned["term"], cleaned["size"], cleaned["console"]) == ("xterm", "30 90", "there")


def test_a_missing_program_is_told_as_the_exec_step(runtime: Runtime) -> None:
    box = runtime.box()

    async def body() -> None:
        await runtime.start(box, container(args=("no-such-program",)))

    with pytest.raises(StepFailed) as caught:
        run(body())
    assert caught.value.section == "child"
    assert "run no-such-program: No such file or directory" in str(caught.value)


# --- mounts -------------------------------------------------------------------------------------------


def test_mounts_of_the_caller_are_there(runtime: Runtime, tmp_path: Path) -> None:
    host = tmp_path / "host"
    (host / "sub").mkdir(parents=True)
    (host / "file").write_text("from the host")
    mounts = (
        MountPoint(kind="bind", target="/data/rw", source=str(host)),
        MountPoint(kind="bind", target="/data", source=str(host), readonly=True, propagation="rprivate"),
        MountPoint(kind="bind", target="/one", source=str(host / "file"), readonly=True),
        MountPoint(kind="tmpfs", target="/scratch", options=("size=64k", "mode=700")),
    )
    (host / "rw").mkdir()
    found = runtime.facts(
        """
echo one=$(cat /one)
(echo x > /data/new) 2>/dev/null && echo ro=written || echo ro=refused
(echo x > /data/sub/new) 2>/dev/null && echo below=written || echo below=refused
(echo x > /one) 2>/dev/null && echo file=written || echo file=refused
echo x > /data/rw/made && echo rw=written
echo mode=$(stat -c %a /scratch)
dd if=/dev/zero of=/scratch/big bs=1k count=100 2>/dev/null && echo size=unlimited || echo size=limited
""",
        mounts=mounts,
    )
    assert found == {
        "one": "from the host", "ro": "refused", "below": "refused", "file": "refused", "rw": "written",
        "mode": "700", "size": "limited",
    }  # fmt: skip
    assert (host / "made").read_text() == "x\n"


def test_files_for_names_are_bound(runtime: Runtime, tmp_path: Path) -> None:
    for name in ("hosts", "hostname", "resolv"):
        (tmp_path / name).write_text(f"{name} of the engine\n")
    start = {f"{name}_path": str(tmp_path / name) for name in ("hosts", "hostname", "resolv")}
    text = runtime.output(
        "cat /etc/hosts /etc/hostname /etc/resolv.conf; echo more >> /etc/hosts", start=start
    )
    assert text == "hosts of the engine\nhostname of the engine\nresolv of the engine\n"
    assert (tmp_path / "hosts").read_text().endswith("more\n")


def test_a_readonly_root_leaves_only_what_must_be_written(runtime: Runtime) -> None:
    found = runtime.facts(
        """
(echo x > /file) 2>/dev/null && echo root=written || echo root=refused
echo x > /dev/shm/file && echo shm=written
(mkdir /sys/x) 2>/dev/null && echo sys=written || echo sys=refused
echo x > /run-here/file && echo tmpfs=written
echo cwd=$(pwd)
""",
        readonly_rootfs=True,
        working_dir="/new/place",
        mounts=(MountPoint(kind="tmpfs", target="/run-here"),),
    )
    assert found == {
        "root": "refused",
        "shm": "written",
        "sys": "refused",
        "tmpfs": "written",
        "cwd": "/new/place",
    }


def test_shared_memory_has_its_size(runtime: Runtime) -> None:
    found = runtime.facts(
        "echo shm=$(df -k /dev/shm | sed -n 's/ \\+/ /g;2p' | cut -d' ' -f2)", shm_size_bytes=2 * MIB
    )
    assert found["shm"] == "2048"


def test_no_symlink_of_the_image_leads_a_mount_outside(runtime: Runtime, tmp_path: Path) -> None:
    box = runtime.box()
    outside = tmp_path / "outside"
    outside.mkdir()
    (box.lower / "trap").symlink_to(outside)
    (box.lower / "climb").symlink_to("../../../../../../../.." + str(outside))
    mounts = tuple(
        MountPoint(kind="bind", target=f"/{name}/in", source=str(tmp_path), readonly=True)
        for name in ("trap", "climb")
    )
    assert runtime.output("ls -d /trap/in", box, mounts=mounts) == "/trap/in\n"
    assert os.listdir(outside) == []


def test_an_image_whose_dev_is_a_symlink_stays_inside(runtime: Runtime, tmp_path: Path) -> None:
    box = runtime.box()
    outside = tmp_path / "outside"
    outside.mkdir()
    (box.lower / "dev").rmdir()
    (box.lower / "dev").symlink_to(outside)
    code, _ = runtime.finish("test -c /dev/null", box)
    assert code == 0
    assert os.listdir(outside) == []


# --- privileged, devices, limits ----------------------------------------------------------------------


def test_a_privileged_container_has_what_the_daemon_has(runtime: Runtime) -> None:
    hierarchy = "pids/" if runtime.cgroups.layout.version == 1 else ""
    found = runtime.facts(
        STATUS
        + f"""
(echo $(cat /proc/sys/kernel/panic) > /proc/sys/kernel/panic) && echo panic=written
echo kcore=$(grep -c ' /proc/kcore ' /proc/self/mountinfo)
mkdir /sys/fs/cgroup/{hierarchy}mine && rmdir_out=$(echo made) && echo group=$rmdir_out
mount -t tmpfs x /tmp && echo mount=made
mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem > /dev/null 2>&1; echo opened=$?
echo nodes=$(ls /dev | wc -l)
""",
        privileged=True,
    )
    assert found["CapEff"] == found["CapBnd"] == hexadecimal(runtime.host.capabilities)
    assert (found["Seccomp"], found["panic"], found["kcore"]) == ("0", "written", "0")
    assert (found["mount"], found["group"]) == ("made", "made")
    assert int(found["nodes"]) > 12


def test_a_device_that_was_asked_for_can_be_opened(runtime: Runtime) -> None:
    if not os.path.exists("/dev/loop-control") and not os.path.exists("/dev/fuse"):
        pytest.skip("neither /dev/loop-control nor /dev/fuse is here to pass on")
    path = "/dev/fuse" if os.path.exists("/dev/fuse") else "/dev/loop-control"
    asked = Device(host_path=path, container_path="/dev/sub/passed", permissions="rw")
    found = runtime.facts(
        """
test -c /dev/sub/passed && echo node=there
(: < /dev/sub/passed) 2>/dev/null && echo open=yes || echo open=no
(: < /dev/zero) && echo zero=yes
""",
        devices=(asked,),
    )
    assert found == {"node": "there", "open": "yes", "zero": "yes"}


def test_limits_are_seen_and_hold(runtime: Runtime) -> None:
    if "memory" not in runtime.host.cgroups.controllers:
        pytest.skip("no memory controller is mounted")
    v1 = runtime.host.cgroups.version == 1
    file = "memory/memory.limit_in_bytes" if v1 else "memory.max"
    pids = "pids/pids.max" if v1 else "pids.max"
    swap = 32 * MIB if "swap" in runtime.host.cgroups.features else 0
    limits = Resources(memory_bytes=32 * MIB, memory_swap_bytes=swap, pids_limit=50)
    found = runtime.facts(
        f"echo memory=$(cat /sys/fs/cgroup/{file}); echo pids=$(cat /sys/fs/cgroup/{pids})", resources=limits
    )
    assert found == {"memory": str(32 * MIB), "pids": "50"}


def test_a_kill_for_want_of_memory_is_told(runtime: Runtime) -> None:
    if "memory" not in runtime.host.cgroups.controllers:
        pytest.skip("no memory controller is mounted")
    box = runtime.box()
    swap = 16 * MIB if "swap" in runtime.host.cgroups.features else 0
    asked = container(
        args=("sh", "-c", "exec tail /dev/zero"),
        resources=Resources(memory_bytes=16 * MIB, memory_swap_bytes=swap),
    )

    async def body() -> ExitStatus:
        task, _ = await runtime.start(box, asked)
        return await task.wait()

    status = run(body())
    assert (status.exit_code, status.oom_killed) == (137, True)


# --- namespaces ---------------------------------------------------------------------------------------


def test_namespaces_of_the_host_are_shared_when_asked(runtime: Runtime) -> None:
    found = runtime.facts(
        """
for ns in mnt pid ipc uts net; do echo $ns=$(readlink /proc/self/ns/$ns); done
echo host=$(hostname)
echo me=$(test -d /proc/1/root && echo seen)
""",
        network_mode="host",
        pid_mode="host",
        ipc_mode="host",
        uts_mode="host",
    )
    for kind in ("pid", "ipc", "uts", "net"):
        assert found[kind] == os.readlink(f"/proc/self/ns/{kind}")
    assert found["mnt"] != os.readlink("/proc/self/ns/mnt")
    assert found["host"] == socket.gethostname()


def test_a_network_namespace_is_handed_over(runtime: Runtime) -> None:
    async def body() -> tuple[str, str]:
        box, other = runtime.box(), runtime.box()
        first, asked = await runtime.start(box, container(args=("sleep", "1000"), network_mode="none"))
        try:
            with open(f"/proc/{first.pid}/ns/net") as namespace:
                expected = os.readlink(f"/proc/self/fd/{namespace.fileno()}")
                script = "readlink /proc/self/ns/net; cat /proc/sys/net/ipv4/ip_unprivileged_port_start"
                second, made = await runtime.start(
                    other, container(args=("sh", "-c", script)), network=namespace.fileno()
                )
                await second.wait()
        finally:
            await first.signal(9)
            await first.wait()
        for ended in (asked, made):
            await runtime.cgroups.remove(f"{runtime.cgroups.layout.parent}/{ended.id}")
        return expected, other.output()

    expected, text = run(body())
    assert text.splitlines() == [expected, "0"]


def test_a_container_joins_another_ones_namespaces(runtime: Runtime) -> None:
    async def body() -> tuple[list[str], str]:
        box, other = runtime.box(), runtime.box()
        script = "echo shared > /dev/shm/note; echo ready; exec sleep 1000"
        first, asked = await runtime.start(
            box, container(args=("sh", "-c", script), network_mode="none", ipc_mode="shareable")
        )
        try:
            while "ready" not in box.output():
                await asyncio.sleep(0.02)
            pid = first.pid
            kinds = ("net", "pid", "ipc")
            expected = [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds]
            script = (
                "for ns in net pid ipc; do readlink /proc/self/ns/$ns; done; cat /dev/shm/note; "
                "echo back > /dev/shm/note; ps | grep -c 'sleep 100[0]'"
            )
            second, made = await runtime.start(
                other,
                container(
                    args=("sh", "-c", script),
                    network_mode="container:x",
                    pid_mode="container:x",
                    ipc_mode="container:x",
                ),
                joined={"network": pid, "pid": pid, "ipc": pid},
                shm_path=f"/proc/{pid}/root/dev/shm",
            )
            status = await second.wait()
            assert status.exit_code == 0, other.output()
            note = Path(f"/proc/{pid}/root/dev/shm/note").read_text()
        finally:
            await first.signal(9)
            await first.wait()
        for ended in (asked, made):
            await runtime.cgroups.remove(f"{runtime.cgroups.layout.parent}/{ended.id}")
        assert note == "back\n"
        return expected, other.output()

    expected, text = run(body())
    assert text.splitlines() == [*expected, "shared", "1"]


def test_a_private_cgroup_namespace_starts_at_the_containers_cgroup(runtime: Runtime) -> None:
    paths = runtime.output("cut -d: -f2- /proc/self/cgroup", cgroupns_mode="private").splitlines()
    parent = runtime.cgroups.layout.parent
    assert not [line for line in paths if parent in line]
    assert [line for line in paths if line.endswith(":/")]
    shared = runtime.output("cut -d: -f2- /proc/self/cgroup", cgroupns_mode="host")
    assert parent in shared


def test_mounts_propagate_when_asked(runtime: Runtime, tmp_path: Path) -> None:
    source = tmp_path / "shared"
    source.mkdir()
    script = (
        "mkdir /mnt/in && mount -t tmpfs x /mnt/in && touch /mnt/in/seen && echo ready && exec sleep 1000"
    )
    asked = container(
        args=("sh", "-c", script),
        privileged=True,
        mounts=(MountPoint(kind="bind", target="/mnt", source=str(source), propagation="rshared"),),
    )  # fmt: skip

    async def body() -> tuple[bool, bool]:
        box = runtime.box()
        task, made = await runtime.start(box, asked)
        try:
            while "ready" not in box.output():
                await asyncio.sleep(0.02)
            seen = (source / "in/seen").exists()
            await _call("umount", str(source / "in"))
            gone = not Path(f"/proc/{task.pid}/root/mnt/in/seen").exists()
        finally:
            await task.signal(9)
            await task.wait()
        await runtime.cgroups.remove(f"{runtime.cgroups.layout.parent}/{made.id}")
        return seen, gone

    async def whole() -> None:
        await _call("mount", "--bind", str(source), str(source))
        try:
            await _call("mount", "--make-shared", str(source))
            assert await body() == (True, True)
        finally:
            await _call("umount", "-R", str(source))

    run(whole())


async def _call(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0, command


def test_sysctls_hold_in_the_containers_namespaces_only(runtime: Runtime) -> None:
    before = Path("/proc/sys/kernel/msgmax").read_text()
    found = runtime.facts(
        """
echo forward=$(cat /proc/sys/net/ipv4/ip_forward)
echo msgmax=$(cat /proc/sys/kernel/msgmax)
echo ping=$(cat /proc/sys/net/ipv4/ping_group_range | tr '\t' ' ')
""",
        network_mode="none",
        sysctls={"net.ipv4.ip_forward": "1", "kernel.msgmax": "4096"},
    )
    assert found == {"forward": "1", "msgmax": "4096", "ping": "0 2147483647"}
    assert Path("/proc/sys/kernel/msgmax").read_text() == before


# --- exec ---------------------------------------------------------------------------------------------


def test_exec_runs_inside_with_the_same_restrictions(runtime: Runtime) -> None:
    async def body() -> tuple[str, dict[str, str], int]:
        box = runtime.box()
        first, asked = await runtime.start(
            box,
            container(args=("sleep", "1000"), network_mode="none", no_new_privileges=True, cap_drop=("ALL",)),
        )
        try:
            script = (
                STATUS + "echo ipc=$(readlink /proc/self/ns/ipc)\necho one=$(cat /proc/1/comm)\n"
                "echo cwd=$(pwd)\necho home=$HOME\necho x=$X\ncat /proc/self/cgroup\nexit 3"
            )
            task = await runtime.start_exec(
                box, asked, first.pid, script, user="web", env=("X=y",), working_dir="/tmp"
            )
            status = await task.wait()
            namespace = os.readlink(f"/proc/{first.pid}/ns/ipc")
            groups = Path(f"/proc/{first.pid}/cgroup").read_text()
            if runtime.cgroups.layout.version == 2:
                groups = "0::/\n"  # seen from its cgroup namespace
        finally:
            await first.signal(9)
            await first.wait()
        await runtime.cgroups.remove(f"{runtime.cgroups.layout.parent}/{asked.id}")
        text = box.output()
        assert groups in text, text
        return (
            namespace,
            dict(line.split("=", 1) for line in text.splitlines() if "=" in line),
            status.exit_code,
        )

    namespace, found, code = run(body())
    assert code == 3
    assert (found["ipc"], found["one"]) == (namespace, "sleep")
    assert (found["cwd"], found["home"], found["x"]) == ("/tmp", "/var/www", "y")
    assert (found["Seccomp"], found["NoNewPrivs"]) == ("2", "1")
    assert found["Uid"].split()[0] == "33"
    assert found["CapBnd"] == hexadecimal(0)


def test_exec_has_a_terminal_of_the_containers(runtime: Runtime) -> None:
    async def body() -> str:
        box = runtime.box()
        first, asked = await runtime.start(box, container(args=("sleep", "1000")))
        try:
            facts = runtime.start_facts(box, asked)
            config = plan_spec(asked, facts, runtime.host)
            process = plan_exec_process(
                asked, config, args=("sh", "-c", "tty; stty size"), tty=True, rows=11, cols=22, host=runtime.host,
                identity=users.Resolved(uid=0, gid=0, groups=(0,)),
            )  # fmt: skip
            plan, _ = plan_exec(config, process, plan_facts(asked, facts, network_ready=False), runtime.host)
            pidfd = os.pidfd_open(first.pid)
            try:
                task = await launch.launch(
                    runtime.launcher,
                    plan,
                    state_dir=box.path / "exec-tty",
                    slots=[pidfd],
                    streams=replace(box.streams(), terminal=True),
                )
            finally:
                os.close(pidfd)
            assert (await task.wait()).exit_code == 0, box.output()
        finally:
            await first.signal(9)
            await first.wait()
        await runtime.cgroups.remove(f"{runtime.cgroups.layout.parent}/{asked.id}")
        return box.output()

    assert run(body()).split() == ["/dev/pts/0", "11", "22"]


def test_exec_into_a_container_that_ended_fails(runtime: Runtime) -> None:
    async def body() -> None:
        box = runtime.box()
        first, asked = await runtime.start(box, container(args=("sleep", "1000")))
        facts = runtime.start_facts(box, asked)
        config = plan_spec(asked, facts, runtime.host)
        process = plan_exec_process(asked, config, args=("true",), host=runtime.host)
        plan, _ = plan_exec(config, process, plan_facts(asked, facts, network_ready=False), runtime.host)
        pidfd = os.pidfd_open(first.pid)
        try:
            await first.signal(9)
            await first.wait()
            with pytest.raises(StepFailed):
                await launch.launch(
                    runtime.launcher, plan, state_dir=box.path / "late", slots=[pidfd], streams=box.streams()
                )
        finally:
            os.close(pidfd)

    run(body())
