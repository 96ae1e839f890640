"""Privileges that a process must not have or get: capabilities, setuid programs, devices, control files, terminals."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from cove.runtime import capabilities
from tests.apikit import remove, wait
from tests.apikit import run as started
from tests.daemon import Daemon
from tests.system import probes
from tests.system.test_security_container import run
from tests.system.test_security_escapes import probe_bind
from tests.system.test_security_exec import execute

GETEUID, TIOCSTI = 107, 0x5412
SHOW = ("busybox", "grep", "-E", "^Cap|^NoNewPrivs|^Seccomp:", "/proc/self/status")


def fields(said: str) -> dict[str, int]:
    """/proc/PID/status: capability sets and small numbers."""
    pairs = (line.split(":") for line in said.splitlines() if ":" in line)
    return {name.strip(): int(value, 16) for name, value in pairs}


@pytest.mark.parametrize("user", ["", "1000", "1000:0"])
def test_no_capability_is_inheritable_or_ambient(daemon: Daemon, image: str, user: str) -> None:
    """CVE-2022-24769: with inheritable capabilities a program's file capabilities come to life for any user."""
    code, said = run(daemon, image, *SHOW, body={"User": user})
    got = fields(said)
    assert code == 0 and got["CapInh"] == got["CapAmb"] == 0
    assert got["CapBnd"] == capabilities.DEFAULT
    assert got["CapEff"] == got["CapPrm"] == (0 if user else capabilities.DEFAULT)
    assert got["Seccomp"] == 2


@pytest.mark.parametrize("options", [{}, {"User": "1000"}, {"Privileged": True}, {"User": "0", "Tty": True}])
def test_an_exec_has_no_more_than_its_container(daemon: Daemon, image: str, options: dict[str, Any]) -> None:
    container = started(daemon, image, "sleep", "1000", CapDrop=["ALL"], SecurityOpt=["no-new-privileges"])
    try:
        code, raw = execute(daemon, container, *SHOW, **options)
        said = raw[raw.index(b"CapInh") :].decode(errors="replace").replace("\r", "")
        got = fields(said)
        assert code == 0 and got["CapInh"] == got["CapAmb"] == 0
        if "Privileged" not in options:
            assert got["CapBnd"] == got["CapPrm"] == got["CapEff"] == 0
            assert got["NoNewPrivs"] == 1 and got["Seccomp"] == 2
    finally:
        remove(daemon, container)


@pytest.mark.parametrize(("options", "becomes"), [([], 0), (["no-new-privileges"], 1000)])
def test_a_setuid_program_gives_nothing_under_no_new_privileges(
    daemon: Daemon, image: str, options: list[str], becomes: int
) -> None:
    assert daemon.http("POST", "/volumes/create", {"Name": "setuid"}).status == 201
    try:
        make = "busybox cp /probe /v/su && busybox chmod 4755 /v/su"
        assert run(daemon, image, "sh", "-c", make, Binds=["setuid:/v", probe_bind()])[0] == 0
        code, said = run(
            daemon, image, "/v/su", "call", str(GETEUID),
            body={"User": "1000"}, Binds=["setuid:/v"], SecurityOpt=options,
        )  # fmt: skip
        assert (code, said) == (0, f"{becomes} 0\n")
    finally:
        assert daemon.http("DELETE", "/volumes/setuid").status == 204


def test_a_device_that_is_made_cannot_be_opened_by_whoever_runs_in_the_container(
    daemon: Daemon, image: str
) -> None:
    """mknod(2) is allowed, as with Docker; the devices controller decides at open(2), for an exec as well."""
    disks = [
        f"/dev/{name}" for name in os.listdir("/sys/block") if not name.startswith(("loop", "ram", "zram"))
    ]
    disk = next((os.stat(path).st_rdev for path in disks if os.path.exists(path)), os.makedev(8, 0))
    container = started(daemon, image, "sleep", "1000")
    try:
        script = (
            f"busybox mknod /disk b {os.major(disk)} {os.minor(disk)}; busybox mknod /mem c 1 1;"
            "busybox dd if=/disk of=/dev/null count=1; busybox dd if=/mem of=/dev/null count=1"
        )
        for options in ({}, {"User": "0"}):
            code, said = execute(daemon, container, "sh", "-c", script, **options)
            assert code != 0 and said.count(b"peration not permitted") == 2, said
    finally:
        remove(daemon, container)


def test_nothing_is_typed_into_a_terminal_that_is_not_the_containers(daemon: Daemon, image: str) -> None:
    """TIOCSTI (CVE-2016-2568): a container's terminal is of its own devpts, and no other one is there."""
    script = f"busybox tty; ls /dev/pts; /probe call {probes.IOCTL} 0 {TIOCSTI} @x; busybox stat -c %t,%T /dev/console"
    container = started(daemon, image, "sh", "-c", script, Tty=True, Binds=[probe_bind()])
    try:
        assert wait(daemon, container) == 0
        text = daemon.http("GET", f"/containers/{container}/logs?stdout=1").body.decode()
        # the first and only one of its own devpts; what it types there, it types to itself
        assert text.split() == ["/dev/pts/0", "0", "ptmx", "x0", "0", "88,0"]
    finally:
        remove(daemon, container)


_WRITES = """
say() { echo "$1" 2>/dev/null > "$2" && echo "$2 written"; }
say h /proc/sysrq-trigger
say '|/x %P' /proc/sys/kernel/core_pattern
say 1 /proc/sys/kernel/panic_on_oops
say 1 /proc/sys/vm/overcommit_memory
say 1 /proc/sys/fs/suid_dumpable
say f /proc/irq/default_smp_affinity
say x /proc/fs/nfsd/threads
say /x /sys/kernel/uevent_helper
say 0 /sys/kernel/profiling
say 0 /sys/kernel/mm/ksm/run
say 1 /sys/module/kernel/parameters/panic
say x /proc/1/attr/current
say -1000 /proc/1/oom_score_adj
for p in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug /sys/firmware; do
    test -d $p && test -n "$(ls $p)" && echo "$p shown"
    test -f $p && test -s $p && echo "$p shown"
done
busybox mount -t proc proc /mnt 2>/dev/null && echo "proc mounted"
busybox mount -t cgroup -o memory cgroup /mnt 2>/dev/null && echo "cgroup mounted"
busybox mount -o remount,rw /proc/sys 2>/dev/null && echo "remounted"
busybox umount /proc/kcore 2>/dev/null && echo "unmasked"
busybox awk '$2 ~ "^/sys|^/proc/(bus|fs|irq|sys)" && $4 !~ "^ro," { print $2, "is mounted writable" }' /proc/mounts
test $(busybox grep -cE ' /(sys|proc/(sys|bus|fs|irq)) .* ro,' /proc/mounts) = 5 || echo "a mount is missing"
echo end
"""


@pytest.mark.parametrize("how", ["run", "exec"])
def test_no_control_file_of_the_kernel_is_writable(daemon: Daemon, image: str, how: str) -> None:
    """sysrq-trigger, core_pattern, uevent_helper and their kind (CVE-2022-0492, CVE-2025-31133, -52565, -52881)."""
    before = {
        path: Path(path).read_bytes()
        for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory")
    }
    if how == "run":
        _, said = run(daemon, image, "sh", "-c", _WRITES)
    else:
        container = started(daemon, image, "sleep", "1000")
        try:
            raw = execute(daemon, container, "sh", "-c", _WRITES)[1]
            said = raw[8:].decode(errors="replace")
        finally:
            remove(daemon, container)
    assert said.strip().splitlines() == ["end"], said
    assert before == {path: Path(path).read_bytes() for path in before}


def test_a_program_that_crashes_leaves_its_core_to_its_own_files(daemon: Daemon, image: str) -> None:
    """A pattern without a pipe is a path in the crashed process's root."""
    core = Path("/proc/sys/kernel/core_pattern").read_text()
    if core.startswith("|"):
        pytest.skip("this host pipes cores to a program of its own")
    listed = set(os.listdir("/"))
    ulimits = [{"Name": "core", "Soft": 1 << 20, "Hard": 1 << 20}]
    code, _ = run(daemon, image, "sh", "-c", "kill -SEGV $$", Ulimits=ulimits)
    assert code in (139, 0)
    assert set(os.listdir("/")) == listed


def test_who_is_refused_by_a_filter_is_told_eperm(daemon: Daemon, image: str) -> None:
    code, said = run(
        daemon, image, "/probe", "call", str(probes.PTRACE), "16", "1", "0", "0", Binds=[probe_bind()]
    )
    assert code == 0 and said.split()[1] == str(errno.EPERM)
