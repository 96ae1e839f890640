"""What a hostile image or process tries against its own walls, from inside and with odd options."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon
from tests.imagekit import Dir, Entry, Fifo, File, Symlink, busybox_layer, make_docker_archive
from tests.nanny import descendants


def load(daemon: Daemon, name: str, *entries: Entry) -> None:
    """The small image with one more layer."""
    archive = make_docker_archive([busybox_layer(), list(entries)], names=[name])
    answer = daemon.http(
        "POST", "/images/load?quiet=1", archive, headers={"Content-Type": "application/x-tar"}
    )
    assert answer.status == 200 and b'"error"' not in answer.body


def run(
    daemon: Daemon, image: str, *args: str, body: dict[str, Any] | None = None, **host: Any
) -> tuple[int, str]:
    """Run to the end; the exit code (-1: it didn't start) and what was said, by it or about it."""
    spec = {"Image": image, "Cmd": list(args), "HostConfig": {"NetworkMode": "none", **host}, **(body or {})}
    made = daemon.http("POST", "/containers/create", spec)
    assert made.status == 201, made.message
    container = made.json()["Id"]
    try:
        started = daemon.http("POST", f"/containers/{container}/start")
        if started.status != 204:
            return -1, started.message
        code = daemon.http("POST", f"/containers/{container}/wait").json()["StatusCode"]
        raw, said = daemon.http("GET", f"/containers/{container}/logs?stdout=1&stderr=1").body, b""
        while len(raw) >= 8:
            size = int.from_bytes(raw[4:8], "big")
            said, raw = said + raw[8 : 8 + size], raw[8 + size :]
        return int(code), said.decode(errors="replace")
    finally:
        daemon.http("DELETE", f"/containers/{container}?force=1&v=1")


_ATTEMPTS = """
try() { name=$1; shift; if "$@" 2>/dev/null; then echo "$name=done"; else echo "$name=refused"; fi; }
say() { echo "$1" > "$2"; }
for f in $(busybox find /sys/fs/cgroup -name notify_on_release -o -name release_agent); do try release say 1 $f; done
for f in $(busybox find /sys/fs/cgroup -name devices.allow); do try devices say a $f; done
try core_pattern say '|/x' /proc/sys/kernel/core_pattern
try modprobe say /x /proc/sys/kernel/modprobe
try binfmt say x /proc/sys/fs/binfmt_misc/register
try uevent say /x /sys/kernel/uevent_helper
try forwarding say 1 /proc/sys/net/ipv4/ip_forward
try ratelimit say 1 /proc/sys/kernel/printk
try remount mount -o remount,rw /proc/sys
try unmask busybox umount /proc/keys
try chroot busybox chroot /proc/1/root true && try mem busybox dd if=/dev/mem of=/dev/null count=1
busybox mknod /tmp/mem c 1 1; try mem busybox dd if=/tmp/mem of=/dev/null count=1
busybox mknod /tmp/disk b $(echo $DISK); try disk busybox dd if=/tmp/disk of=/dev/null count=1
busybox mknod /tmp/kmsg c 1 11; try kmsg busybox dd if=/tmp/kmsg of=/dev/null count=1
try raw busybox dd if=/proc/kcore of=/dev/null count=1 && test -s /proc/kcore && echo kcore=done
try namespace busybox unshare -m true
try hostname busybox hostname evil
try exe busybox dd if=/dev/zero of=/proc/1/exe bs=1 count=1
echo fds=$(ls /proc/1/fd)
echo end=end
"""


@pytest.mark.parametrize(
    "options", [{}, {"Init": True}, {"CapAdd": ["SYS_PTRACE"], "Init": True}, {"ReadonlyRootfs": True}]
)
def test_no_attempt_on_the_walls_succeeds(daemon: Daemon, image: str, options: dict[str, Any]) -> None:
    """release_agent (CVE-2022-0492), devices.allow, core_pattern (CVE-2025-31133), /proc/1/exe (CVE-2019-5736)."""
    disk = os.stat(_any_disk()).st_rdev if _any_disk() else os.makedev(8, 0)
    before = Path("/proc/sys/kernel/core_pattern").read_bytes()
    _, said = run(
        daemon, image, "sh", "-c", _ATTEMPTS,
        body={"Env": [f"DISK={os.major(disk)} {os.minor(disk)}"]}, Tmpfs={"/tmp": ""}, **options,
    )  # fmt: skip
    assert "end=end" in said, said
    done = [
        line
        for line in said.splitlines()
        if line.endswith("=done") and not line.startswith(("chroot", "raw"))
    ]
    assert done == [], said
    # the small init has closed all; a shell has its streams, and the pipe from ls
    assert set(_value(said, "fds").split()) <= (set() if "Init" in options else {"0", "1", "2", "3"}), said
    assert Path("/proc/sys/kernel/core_pattern").read_bytes() == before


def _any_disk() -> str:
    disks = [
        f"/dev/{name}" for name in os.listdir("/sys/block") if not name.startswith(("loop", "ram", "zram"))
    ]
    return next((disk for disk in disks if os.path.exists(disk)), "")


def _value(said: str, name: str) -> str:
    return next(line.partition("=")[2] for line in said.splitlines() if line.startswith(f"{name}="))


@pytest.mark.parametrize(
    "entry",
    [
        Symlink("proc", "/tmp/elsewhere"),
        Symlink("proc", "/dev/fd"),
        File("proc", b"x"),
        Symlink("dev", "/proc/sys"),
        Symlink("dev", "proc/1/root"),
        Symlink("sys", "proc"),
        Symlink("etc", "../../../../../../tmp"),
        Symlink("etc/hosts", "/proc/1/root/etc/hosts"),
        Symlink("etc/hosts", "/../../../etc/elsewhere"),
        Symlink("etc/resolv.conf", "../../../../../../../../etc/hosts"),
        Symlink("dev/shm", "/etc"),
        Symlink("sys/fs", "/etc"),
    ],
    ids=lambda entry: f"{entry.name}-{entry.link or 'file'}".replace("/", "_"),
)
def test_an_image_whose_places_lead_elsewhere_stays_inside(daemon: Daemon, entry: Entry) -> None:
    """CVE-2019-19921, CVE-2025-31133, CVE-2026-41579: it starts within its own root, masked, or not at all."""
    kept = {path: (os.stat(path).st_ino, Path(path).read_bytes()) for path in ("/etc/hosts", "/etc/passwd")}
    mounts = Path("/proc/self/mountinfo").read_bytes().count(b"\n")
    load(daemon, "hostile:1", entry)
    try:
        code, said = run(
            daemon, "hostile:1", "/bin/sh", "-c",
            "echo x 2>/dev/null > /proc/sys/kernel/core_pattern && /bin/busybox test -w /proc/sys/kernel/core_pattern"
            " && echo written; /bin/busybox test -s /proc/kcore && echo kcore; echo end",
        )  # fmt: skip
        assert (code == 0 and said.endswith("end\n")) or (
            code == -1 and said.startswith(("child step", "mount "))
        ), said
        assert "kcore" not in said
        if "written" in said:  # a file of the image's own root
            assert Path("/proc/sys/kernel/core_pattern").read_bytes() != b"x\n"
    finally:
        daemon.http("DELETE", "/images/hostile:1?force=1")
    assert kept == {path: (os.stat(path).st_ino, Path(path).read_bytes()) for path in kept}
    assert abs(Path("/proc/self/mountinfo").read_bytes().count(b"\n") - mounts) < 200


@pytest.mark.parametrize(
    "entry",
    [
        Fifo("etc/passwd"),
        Symlink("etc/passwd", "/dev/zero"),
        Symlink("etc/passwd", "/proc/kmsg"),
        Dir("etc/passwd"),
    ],
    ids=lambda entry: f"{entry.type!r}-{entry.link}".replace("/", "_"),
)
def test_a_passwd_file_that_is_none_holds_nobody_up(daemon: Daemon, entry: Entry) -> None:
    """CVE-2024-9676."""
    load(daemon, "hostile:2", entry)
    try:
        assert run(daemon, "hostile:2", "true", body={"User": "1000:1000"})[0] == 0
        code, said = run(daemon, "hostile:2", "true", body={"User": "user"})
        assert code == -1 and "unable to find user user" in said
    finally:
        daemon.http("DELETE", "/images/hostile:2?force=1")


def test_files_that_never_end_or_lead_away_hold_no_copy_up(daemon: Daemon, image: str) -> None:
    """FIFOs, devices, sparse files and magic links by `docker cp`, each answered within the request's bound."""
    body = {"Image": image, "Cmd": ["sleep", "1000"], "HostConfig": {"NetworkMode": "none"}}
    container = daemon.http("POST", "/containers/create", body).json()["Id"]
    assert daemon.http("POST", f"/containers/{container}/start").status == 204
    try:
        script = (
            "mkdir /d; busybox mkfifo /d/fifo; busybox mknod /d/zero c 1 5; busybox ln -s /proc/1/root /d/root;"
            "busybox ln -s /proc/self/root /d/self; busybox truncate -s 8000000000000 /sparse"
        )
        made = daemon.http("POST", f"/containers/{container}/exec", {"Cmd": ["sh", "-c", script]})
        assert daemon.http("POST", f"/exec/{made.json()['Id']}/start", {"Detach": False}).status == 200
        get = f"/containers/{container}/archive?path="
        whole = daemon.http("GET", f"{get}/d")
        assert whole.status == 200 and len(whole.body) < 64 << 10
        for path in ("/d/root/etc/passwd", "/d/self/etc/passwd", "/proc/1/root/etc/passwd", "/d/root/"):
            assert daemon.http("GET", f"{get}{path}").status != 200, path
        sparse = daemon.http("HEAD", f"{get}/sparse")
        assert sparse.status == 200

        # eight terabytes are asked for and left alone: the daemon goes on answering
        with daemon.connect() as sock:
            sock.sendall(f"GET {get}/sparse HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
            assert daemon.http("GET", "/_ping").status == 200
    finally:
        daemon.http("DELETE", f"/containers/{container}?force=1")


def test_a_container_among_the_hosts_processes_gets_at_no_worker(daemon: Daemon, image: str) -> None:
    """A worker keeps no capability that such a container lacks; its tree and descriptors must be out of reach."""
    host = {"NetworkMode": "none", "PidMode": "host"}
    body = {
        "Image": image,
        "Cmd": ["sh", "-c", "busybox truncate -s 1000000000000 /big; exec sleep 1000"],
        "HostConfig": host,
    }
    container = daemon.http("POST", "/containers/create", body).json()["Id"]
    assert daemon.http("POST", f"/containers/{container}/start").status == 204
    try:
        deadline = time.monotonic() + 60
        while daemon.http("HEAD", f"/containers/{container}/archive?path=/big").status != 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with daemon.connect() as sock:  # nobody reads on, so that the worker stays
            sock.sendall(
                f"GET /containers/{container}/archive?path=/big HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            )
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
            workers = [pid for pid in descendants(daemon.pid) if _is_worker(pid)]
            assert workers
            script = (
                "for p in $PIDS; do test -d /proc/$p && echo seen; ls /proc/$p/root/ && echo reached; done"
            )
            made = daemon.http(
                "POST", f"/containers/{container}/exec",
                {"Cmd": ["sh", "-c", script], "Env": [f"PIDS={' '.join(map(str, workers))}"], "AttachStdout": True},
            )  # fmt: skip
            said = daemon.http("POST", f"/exec/{made.json()['Id']}/start", {"Detach": False}).body
            assert b"seen" in said and b"reached" not in said, said
    finally:
        daemon.http("DELETE", f"/containers/{container}?force=1")


def _is_worker(pid: int) -> bool:
    try:
        return b"cove.image.process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
