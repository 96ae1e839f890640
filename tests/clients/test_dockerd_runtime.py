"""Debian's dockerd runs containers by bin/cove-runtime (`--add-runtime`), unchanged, as it does by runc."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.clients.oci_engines import BOUND_S, IMAGE, DockerdWithCove, Done, missing_program

MISSING = missing_program("dockerd", "containerd", "docker")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} isn't installed: apt-get install docker.io")


@pytest.fixture(scope="module")
def dockerd() -> Iterator[DockerdWithCove]:
    engine = DockerdWithCove()
    engine.start()
    try:
        engine.load_image()
        yield engine
    finally:
        engine.stop()


def both(dockerd: DockerdWithCove, *args: str) -> Done:
    """`docker run --rm` by our runtime, which has to do what runc does."""
    ours, theirs = (dockerd.docker("run", "--rm", f"--runtime={name}", *args) for name in ("cove", "runc"))
    assert (ours.status, ours.out) == (theirs.status, theirs.out), (ours.err, theirs.err)
    return ours


@pytest.mark.parametrize(
    ("args", "status"),
    [
        ([IMAGE, "sh", "-c", "echo hello; echo err >&2; exit 5"], 5),
        (["--memory", "64m", "--cpus", "0.5", "--pids-limit", "20", IMAGE, "sh", "-c",
          "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max"], 0),
        (["--user", "1000:1000", "--read-only", "--tmpfs", "/scratch", IMAGE, "sh", "-c",
          "id -u; touch /x || touch /scratch/x && ls /scratch"], 0),
        (["--network", "none", IMAGE, "cat", "/proc/net/dev"], 0),
        (["--network", "host", IMAGE, "sh", "-c", "wc -l < /proc/net/dev"], 0),
        ([IMAGE, "sh", "-c", "wc -l < /proc/net/dev; cat /etc/hosts | wc -l"], 0),
        (["--hostname", "web", "--workdir", "/var", "-e", "A=b", IMAGE, "sh", "-c", "hostname; pwd; echo $A"], 0),
        (["--cap-drop", "ALL", "--cap-add", "NET_ADMIN", IMAGE, "sh", "-c", "cat /proc/self/status | head -n 60"
          " | while read a b; do case $a in Cap*|Seccomp:|NoNewPrivs:) echo $a $b;; esac; done"], 0),
        (["--security-opt", "no-new-privileges", "--security-opt", "seccomp=unconfined", IMAGE, "sh", "-c",
          "while read a b; do case $a in Seccomp:|NoNewPrivs:) echo $a $b;; esac; done < /proc/self/status"], 0),
        (["--init", IMAGE, "cat", "/proc/1/comm"], 0),
        (["--pid", "host", IMAGE, "cat", "/proc/1/comm"], 0),
        (["--ulimit", "nofile=77:99", "--sysctl", "net.ipv4.ip_forward=1", IMAGE, "sh", "-c",
          "ulimit -n; cat /proc/sys/net/ipv4/ip_forward"], 0),
        (["--device", "/dev/null:/dev/empty", "--shm-size", "1m", IMAGE, "sh", "-c",
          "ls /dev/e* /dev/n* /dev/s*; echo x > /dev/empty && echo written"], 0),
        ([IMAGE, "nosuch"], 127),
        ([IMAGE, "/etc/passwd"], 126),
    ],
    ids=lambda value: None if isinstance(value, int) else " ".join(value)[:40],
)  # fmt: skip
def test_docker_run_does_what_it_does_by_runc(dockerd: DockerdWithCove, args: list[str], status: int) -> None:
    assert both(dockerd, *args).status == status


def test_a_privileged_container_runs_with_what_this_host_can_give(dockerd: DockerdWithCove) -> None:
    """Also where the daemon itself lacks a capability: runc gives up then."""
    done = dockerd.docker(
        "run", "--rm", "--privileged", IMAGE, "sh", "-c", "mount -t tmpfs x /tmp && echo mounted"
    )
    assert (done.status, done.out) == (0, "mounted\n"), done.err


def test_a_container_lives_through_all_its_verbs(dockerd: DockerdWithCove) -> None:
    docker = dockerd.docker
    script = "trap 'exit 0' TERM; echo started; while :; do sleep 0.1; done"
    health = ["--health-cmd", "true", "--health-interval", "1s"]
    assert (
        docker("run", "--detach", "--name", "web", "--interactive", *health, IMAGE, "sh", "-c", script).status
        == 0
    )
    try:
        done = docker(
            "exec", "-u", "12:34", "-e", "X=y", "-w", "/tmp", "web", "sh", "-c", "id -u; echo $X; pwd; exit 6"
        )
        assert (done.status, done.out.split()) == (6, ["12", "y", "/tmp"]), done.err
        assert docker("exec", "web", "nosuch").status in (126, 127)
        assert docker("exec", "-i", "web", "cat", stdin=b"typed").out == "typed"
        assert docker("pause", "web").status == 0
        assert "Paused" in docker("ps").out
        assert docker("exec", "web", "true").status == 1
        assert docker("unpause", "web").status == 0
        assert docker("update", "--memory", "100m", "--memory-swap", "100m", "web").status == 0
        assert "/ 100MiB" in docker("stats", "--no-stream", "web").out
        assert len(docker("top", "web").out.splitlines()) >= 2
        wait_for(lambda: inspect(dockerd, "web")["State"]["Health"]["Status"] == "healthy")
        assert docker("restart", "--time", "30", "web").status == 0
        assert docker("logs", "web").out == "started\n" * 2
        assert docker("stop", "--time", "30", "web").status == 0
        assert inspect(dockerd, "web")["State"]["ExitCode"] == 0
        assert docker("start", "web").status == 0
        assert docker("kill", "web").status == 0
        wait_for(lambda: inspect(dockerd, "web")["State"]["ExitCode"] == 137)
    finally:
        assert docker("rm", "--force", "web").status == 0


def test_a_terminal_works_both_ways(dockerd: DockerdWithCove) -> None:
    ours, theirs = pty.openpty()
    env = {**os.environ, "DOCKER_HOST": f"unix://{dockerd.socket}", "DOCKER_CONFIG": str(dockerd.directory)}
    argv = ["docker", "run", "--rm", "-it", IMAGE, "sh", "-c", "tty; read line; echo got $line; exit 7"]
    with subprocess.Popen(
        argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
    ) as child:
        read_until(ours, b"/dev/pts/0\r\n")
        os.write(ours, b"typed\r")
        read_until(ours, b"got typed\r\n")
        assert child.wait(BOUND_S) == 7
    os.close(ours)
    os.close(theirs)


def inspect(dockerd: DockerdWithCove, name: str) -> Any:
    return json.loads(dockerd.docker("inspect", name).out)[0]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)  # polling, as a person would


def read_until(descriptor: int, end: bytes) -> bytes:
    data = b""
    while end not in data:
        assert select.select([descriptor], [], [], BOUND_S)[0], data
        data += os.read(descriptor, 4096)
    return data
