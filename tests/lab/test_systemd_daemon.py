"""`cove daemon --exec-opt native.cgroupdriver=systemd`, with systemd: each container is a scope that systemd knows."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.apikit import create, eventually, inspect, logs, remove, run, start, state, wait
from tests.daemon import Daemon

ROOT = Path("/sys/fs/cgroup")
MIB = 1 << 20


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon("--exec-opt", "native.cgroupdriver=systemd") as running:
        running.load_image()
        yield running


def unit(daemon: Daemon, container: str) -> str:
    return f"{daemon.names.cgroup_parent}-{container}.scope"


def show(name: str, *properties: str) -> dict[str, str]:
    asked = ["systemctl", "show", name, "-p", ",".join(properties)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=30)
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def text(framed: bytes) -> str:
    """Output without its frames: stream, 0, 0, 0 and the length."""
    found = b""
    while framed:
        end = 8 + int.from_bytes(framed[4:8], "big")
        found, framed = found + framed[8:end], framed[end:]
    return found.decode()


def is_gone(name: str) -> bool:
    return show(name, "LoadState") == {"LoadState": "not-found"}


def test_info_names_the_driver(daemon: Daemon, image: str) -> None:
    info = daemon.http("GET", "/info").json()
    assert (info["CgroupDriver"], info["CgroupVersion"]) == ("systemd", "2")
    assert info["MemoryLimit"] and info["CPUShares"] and info["CPUSet"] and info["PidsLimit"]
    assert not list(ROOT.glob(f"**/{daemon.names.cgroup_parent}*"))


def test_a_container_is_a_scope_with_its_limits_from_start_to_removal(daemon: Daemon, image: str) -> None:
    files = "/proc/self/cgroup memory.max cpu.max pids.max cpuset.cpus"
    script = f"cd /sys/fs/cgroup; cat {files}; sleep 1000"
    limits: dict[str, Any] = {"Memory": 64 * MIB, "NanoCpus": 500_000_000, "PidsLimit": 30, "CpusetCpus": "1"}
    container = run(daemon, image, "sh", "-c", script, **limits)
    name = unit(daemon, container)
    assert show(name, "ActiveState", "Slice", "Delegate", "MemoryMax", "TasksMax", "CPUQuotaPerSecUSec") == {
        "ActiveState": "active", "Slice": "system.slice", "Delegate": "yes", "MemoryMax": str(64 * MIB),
        "TasksMax": "30", "CPUQuotaPerSecUSec": "500ms",
    }  # fmt: skip
    directory = ROOT / "system.slice" / name
    assert (directory / "cgroup.procs").read_text().split() == [str(state(daemon, container)["Pid"])]
    shown = "0::/\n67108864\n50000 100000\n30\n1\n"
    eventually(lambda: text(logs(daemon, container)) == shown, "the limits seen inside")
    stats = daemon.http("GET", f"/containers/{container}/stats?stream=0").json()
    assert stats["memory_stats"]["limit"] == 64 * MIB and stats["pids_stats"]["limit"] == 30
    subprocess.run(["systemctl", "daemon-reload"], check=True, timeout=60)
    assert (directory / "memory.max").read_text() == f"{64 * MIB}\n"
    remove(daemon, container)
    assert not directory.exists() and is_gone(name)


def test_an_exec_joins_the_scope(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "sleep", "1000", PidsLimit=30)
    command = ["sh", "-c", "cat /proc/self/cgroup /sys/fs/cgroup/pids.max; : </dev/null && echo opened"]
    made = daemon.http("POST", f"/containers/{container}/exec", {"Cmd": command, "AttachStdout": True}).json()
    answer = daemon.http("POST", f"/exec/{made['Id']}/start", {"Detach": False}).body
    assert text(answer) == "0::/\n30\nopened\n"
    top = daemon.http("GET", f"/containers/{container}/top").json()
    assert len(top["Processes"]) == 1
    remove(daemon, container)


def test_stop_and_start_again_use_the_same_name(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "sleep", "1000")
    name = unit(daemon, container)
    for _ in range(3):
        assert daemon.http("POST", f"/containers/{container}/restart?t=0").status == 204
        assert show(name, "ActiveState") == {"ActiveState": "active"}
    assert daemon.http("POST", f"/containers/{container}/stop?t=0").status == 204
    assert is_gone(name)
    start(daemon, container)
    remove(daemon, container)


def test_pause_and_kill(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "sh", "-c", "sleep 1000 & sleep 1000")
    directory = ROOT / "system.slice" / unit(daemon, container)
    assert daemon.http("POST", f"/containers/{container}/pause").status == 204
    assert "frozen 1" in (directory / "cgroup.events").read_text().splitlines()
    assert daemon.http("POST", f"/containers/{container}/unpause").status == 204
    assert "frozen 0" in (directory / "cgroup.events").read_text().splitlines()
    assert daemon.http("POST", f"/containers/{container}/pause").status == 204
    assert daemon.http("POST", f"/containers/{container}/kill").status == 204
    assert wait(daemon, container) == 137
    remove(daemon, container)


def test_an_update_reaches_systemd_and_the_files(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "sleep", "1000", Memory=64 * MIB, MemorySwap=64 * MIB)
    changed = {"Memory": 128 * MIB, "MemorySwap": 160 * MIB, "PidsLimit": 9, "NanoCpus": 1_500_000_000}
    updated = daemon.http("POST", f"/containers/{container}/update", changed)
    assert updated.status == 200, updated.message
    name = unit(daemon, container)
    assert show(name, "MemoryMax", "MemorySwapMax", "TasksMax", "CPUQuotaPerSecUSec") == {
        "MemoryMax": str(128 * MIB), "MemorySwapMax": str(32 * MIB), "TasksMax": "9", "CPUQuotaPerSecUSec": "1.500000s",
    }  # fmt: skip
    directory = ROOT / "system.slice" / name
    files = ("memory.max", "memory.swap.max", "pids.max", "cpu.max")
    assert [(directory / file).read_text().strip() for file in files] == [
        str(128 * MIB), str(32 * MIB), "9", "150000 100000",
    ]  # fmt: skip
    remove(daemon, container)


def test_memory_that_runs_out_is_told(daemon: Daemon, image: str) -> None:
    for _ in range(5):
        container = run(daemon, image, "tail", "/dev/zero", Memory=32 * MIB, MemorySwap=32 * MIB)
        assert wait(daemon, container) == 137
        seen = state(daemon, container)
        assert (seen["ExitCode"], seen["OOMKilled"]) == (137, True)
        remove(daemon, container)


def test_containers_outlive_the_daemon_and_leftovers_are_taken_down(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "sleep", "1000", Memory=64 * MIB)
    name = unit(daemon, container)
    left = f"{daemon.names.cgroup_parent}-{'ab' * 32}.scope"
    subprocess.run(
        ["systemd-run", "--scope", "--unit", left, "--slice", "left.slice", "sh", "-c", "sleep 1000 & exit 0"],
        check=True, timeout=60, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert show(left, "ActiveState") == {"ActiveState": "active"}
    daemon.kill9()
    daemon.start()
    assert is_gone(left)
    assert state(daemon, container)["Status"] == "running"
    assert show(name, "ActiveState") == {"ActiveState": "active"}
    assert daemon.http("POST", f"/containers/{container}/pause").status == 204
    daemon.restart()
    assert state(daemon, container)["Status"] == "paused"
    assert daemon.http("POST", f"/containers/{container}/unpause").status == 204
    assert daemon.http("POST", f"/containers/{container}/update", {"PidsLimit": 7}).status == 200
    assert show(name, "TasksMax") == {"TasksMax": "7"}
    daemon.kill9()
    subprocess.run(
        ["systemctl", "kill", "-s", "KILL", name], check=True, timeout=60
    )  # by an administrator, meanwhile
    daemon.start()
    assert state(daemon, container)["Status"] == "exited"
    remove(daemon, container)
    subprocess.run(["systemctl", "stop", "left.slice"], check=True, timeout=60)


def test_a_cgroup_parent_is_a_slice(daemon: Daemon, image: str) -> None:
    body = {"Image": image, "Cmd": ["true"], "HostConfig": {"CgroupParent": "/team"}}
    refused = daemon.http("POST", "/containers/create", body)
    assert refused.status == 400 and "it is a slice, e.g. machine.slice" in refused.message
    container = run(daemon, image, "sleep", "1000", CgroupParent="cove-team.slice")
    name = unit(daemon, container)
    assert (ROOT / "cove.slice/cove-team.slice" / name).is_dir()
    assert inspect(daemon, container)["HostConfig"]["CgroupParent"] == "cove-team.slice"
    remove(daemon, container)
    assert is_gone(name)
    subprocess.run(["systemctl", "stop", "cove.slice"], check=True, timeout=60)


def test_a_failed_start_leaves_no_scope(daemon: Daemon, image: str) -> None:
    container = create(daemon, image, "/nowhere")
    refused = daemon.http("POST", f"/containers/{container}/start")
    assert refused.status == 400 and "no such file" in refused.message
    assert is_gone(unit(daemon, container))
    remove(daemon, container)


def test_a_daemon_whose_parent_is_no_slice_says_so() -> None:
    from tests.daemon import ROOT as checkout

    asked = ["bin/cove", "daemon", "--exec-opt", "native.cgroupdriver=systemd", "--cgroup-parent", "team"]
    directories = ["--data-root", "/tmp/cove-driver/data", "--run-dir", "/tmp/cove-driver/run"]
    done = subprocess.run([*asked, *directories], cwd=checkout, capture_output=True, text=True, timeout=60)
    assert (
        done.returncode == 1
        and "cgroup parent 'team': with systemd's cgroup driver it is a slice" in done.stderr
    )
