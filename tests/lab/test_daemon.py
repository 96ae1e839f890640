"""The engine on a machine with cgroup v2 alone: limits, their effects and what is told of them."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from tests.apikit import create, eventually, logs, remove, run, start, state, wait
from tests.daemon import Daemon

COVE = str(Path(__file__).parents[2] / "bin/cove")
MIB = 1 << 20


def cove(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line of the checkout, against this daemon."""
    environment = {**os.environ, "COVE_HOST": daemon.host}
    return subprocess.run([COVE, *arguments], env=environment, capture_output=True, text=True, timeout=60)


def cgroup(daemon: Daemon, container: str) -> Path:
    """The container's directory in the host's tree."""
    pid = state(daemon, container)["Pid"]
    return Path("/sys/fs/cgroup" + Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::"))


def disk() -> str:
    """A whole disk of the machine, as MAJ:MIN: the one that /tmp lies on."""
    device = os.stat("/tmp").st_dev
    return f"{os.major(device)}:{os.minor(device)}"


def test_limits_of_the_command_line_are_seen_inside(daemon: Daemon, image: str) -> None:
    files = "memory.max memory.swap.max memory.low cpu.max cpu.weight cpuset.cpus pids.max"
    done = cove(
        daemon, "run", "--rm", "--memory", "64m", "--memory-swap", "96m", "--memory-reservation", "16m",
        "--cpus", "0.5", "--cpu-shares", "512", "--cpuset-cpus", "1", "--pids-limit", "30", image,
        "sh", "-c", f"cd /sys/fs/cgroup; cat {files}; cat /proc/self/cgroup; mkdir mine 2>/dev/null || echo refused",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    memory, swap, low, quota, weight, cpus, pids, group, refused = done.stdout.splitlines()
    assert (memory, swap, low) == (str(64 * MIB), str(32 * MIB), str(16 * MIB))
    assert (quota, cpus, pids) == ("50000 100000", "1", "30")
    assert 1 <= int(weight) < 100  # 1024 shares are 100
    assert (group, refused) == ("0::/", "refused")


def test_a_container_killed_for_want_of_memory_is_told_as_that(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "tail", "/dev/zero", Memory=32 * MIB, MemorySwap=32 * MIB)
    assert wait(daemon, container) == 137
    seen = state(daemon, container)
    assert (seen["ExitCode"], seen["OOMKilled"]) == (137, True)
    remove(daemon, container)


def test_pause_freezes_every_process_and_unpause_lets_them_go(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "sh", "-c", "sleep 1000 & sleep 1000")
    directory = cgroup(daemon, container)
    assert cove(daemon, "pause", container).returncode == 0
    assert "frozen 1" in (directory / "cgroup.events").read_text().splitlines()
    assert state(daemon, container)["Status"] == "paused"
    assert cove(daemon, "unpause", container).returncode == 0
    assert "frozen 0" in (directory / "cgroup.events").read_text().splitlines()
    assert cove(daemon, "pause", container).returncode == 0
    assert cove(daemon, "kill", container).returncode == 0  # a frozen process dies all the same on v2
    assert wait(daemon, container) == 137
    remove(daemon, container)
    eventually(lambda: not directory.exists(), "the cgroup's removal")


def test_stats_are_the_kernels_numbers(daemon: Daemon, image: str) -> None:
    script = "dd if=/dev/zero of=/tmp/f bs=1M count=8 conv=fsync 2>/dev/null; echo up; while :; do :; done"
    container = run(daemon, image, "sh", "-c", script, Memory=64 * MIB, PidsLimit=20, NanoCpus=500_000_000)
    eventually(lambda: b"up" in logs(daemon, container), "the script's line")
    directory = cgroup(daemon, container)

    def throttled() -> bool:
        return "nr_throttled 0" not in (directory / "cpu.stat").read_text()

    eventually(throttled, "throttling")
    stats = daemon.http("GET", f"/containers/{container}/stats?stream=0").json()
    memory, cpu = stats["memory_stats"], stats["cpu_stats"]
    assert memory["limit"] == 64 * MIB
    assert 8 * MIB < memory["usage"] <= int((directory / "memory.peak").read_text() or 64 * MIB) + MIB
    assert memory["stats"]["file"] >= 8 * MIB
    assert cpu["cpu_usage"]["total_usage"] > 0 and cpu["throttling_data"]["throttled_periods"] > 0
    assert stats["pids_stats"] == {"current": 1, "limit": 20}
    written = [
        e["value"] for e in stats["blkio_stats"]["io_service_bytes_recursive"] if e["op"].lower() == "write"
    ]
    assert sum(written) >= 8 * MIB
    waited = stats["pressure_stats"]
    assert set(waited) == {"cpu", "memory", "io"} and waited["cpu"]["some"]["total"] > 0
    whole = daemon.http("GET", f"/cove/v1/stats?container={container}").json()
    assert whole["cpu"]["pressure"]["some"]["total_us"] >= waited["cpu"]["some"]["total"]
    shown = cove(
        daemon,
        "stats",
        "--no-stream",
        "--format",
        "{{.CPUPressure}} {{.MemPressure}} {{.IOPressure}}",
        container,
    )
    assert shown.stdout.count("%") == 6, shown.stderr
    assert "CPUPressure" in cove(daemon, "stats", "--no-stream", "--format", "json", container).stdout
    remove(daemon, container)


def test_an_update_changes_the_limits_of_a_running_container(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "sleep", "1000", Memory=64 * MIB, MemorySwap=64 * MIB)
    directory = cgroup(daemon, container)
    done = cove(
        daemon,
        "update",
        "--memory",
        "128m",
        "--memory-swap",
        "160m",
        "--cpus",
        "1.5",
        "--pids-limit",
        "9",
        container,
    )
    assert done.returncode == 0, done.stderr
    assert (directory / "memory.max").read_text() == f"{128 * MIB}\n"
    assert (directory / "memory.swap.max").read_text() == f"{32 * MIB}\n"
    assert (directory / "cpu.max").read_text() == "150000 100000\n"
    assert (directory / "pids.max").read_text() == "9\n"
    remove(daemon, container)


def test_a_fork_bomb_stays_within_its_limit_and_is_killed_whole(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "sh", "-c", "b() { b | b & }; b; sleep 1000", PidsLimit=40)
    directory = cgroup(daemon, container)
    eventually(lambda: "max 0" not in (directory / "pids.events").read_text(), "a fork that was refused")
    assert int((directory / "pids.current").read_text()) <= 40
    started = time.monotonic()
    assert daemon.http("POST", f"/containers/{container}/kill").status == 204
    assert wait(daemon, container) == 137
    eventually(lambda: not directory.exists(), "the cgroup's removal")
    assert time.monotonic() - started < 30
    remove(daemon, container)


def test_devices_are_denied_by_the_kernel_unless_asked_for(daemon: Daemon, image: str) -> None:
    script = (
        "busybox mknod /tmp/mem c 1 1; busybox mknod /tmp/fuse c 10 229; busybox mknod /tmp/zero c 1 5\n"
        "for node in mem fuse zero; do head -c 1 /tmp/$node >/dev/null; done 2>&1"
    )
    denied = run(daemon, image, "sh", "-c", script)
    wait(daemon, denied)
    lines = logs(daemon, denied).decode(errors="replace")
    assert lines.count("Operation not permitted") == 2 and "zero" not in lines
    rule = run(daemon, image, "sh", "-c", script, DeviceCgroupRules=["c 1:1 r"], CapAdd=["SYS_RAWIO"])
    wait(daemon, rule)
    lines = logs(daemon, rule).decode(errors="replace")
    assert "/tmp/mem: Operation not permitted" not in lines and "fuse" in lines
    remove(daemon, denied, rule)


def test_io_limits_are_those_of_the_disk(daemon: Daemon, image: str) -> None:
    number = disk()
    name = os.path.basename(os.readlink(f"/sys/dev/block/{number}"))
    limit = {"Path": f"/dev/{name}", "Rate": 2 * MIB}
    container = create(
        daemon, image, "sh", "-c", "cat /sys/fs/cgroup/io.max; sleep 1000", BlkioDeviceWriteBps=[limit]
    )
    start(daemon, container)
    eventually(lambda: b"wbps" in logs(daemon, container), "the container's line")
    assert f"{number} rbps=max wbps={2 * MIB} riops=max wiops=max" in logs(daemon, container).decode(
        errors="replace"
    )
    remove(daemon, container)


def test_containers_and_their_numbers_outlive_the_daemon(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "sleep", "1000", Memory=64 * MIB)
    directory = cgroup(daemon, container)
    daemon.kill9()
    daemon.start()
    assert state(daemon, container)["Status"] == "running"
    stats = daemon.http("GET", f"/containers/{container}/stats?stream=0").json()
    assert stats["memory_stats"]["limit"] == 64 * MIB
    remove(daemon, container)
    eventually(lambda: not directory.exists(), "the cgroup's removal")


def test_mounts_of_every_kind_start(daemon: Daemon, image: str, tmp_path: Path) -> None:
    """The kernel is older than the host's may be: each way of mounting has to find its way on it."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "file").write_text("hi\n")
    mounts = [
        {"Type": "bind", "Source": str(tmp_path), "Target": "/ro", "ReadOnly": True},
        {"Type": "bind", "Source": str(tmp_path / "file"), "Target": "/file"},
        {
            "Type": "bind",
            "Source": str(tmp_path),
            "Target": "/slave",
            "BindOptions": {"Propagation": "rslave"},
        },
        {"Type": "volume", "Source": "", "Target": "/volume"},
        {"Type": "tmpfs", "Target": "/memory", "TmpfsOptions": {"SizeBytes": MIB, "Mode": 0o700}},
    ]
    script = (
        "cat /ro/file /file /slave/file; touch /ro/x 2>&1; touch /volume/x && echo volume; "
        "stat -c %a /memory; touch /x 2>&1; stat -f -c %T /dev/shm; cat /proc/timer_list | head -c 1"
    )
    container = create(
        daemon, image, "sh", "-c", script, Mounts=mounts, ReadonlyRootfs=True, ShmSize=2 * MIB, Init=True
    )
    start(daemon, container)
    assert wait(daemon, container) == 0
    text = logs(daemon, container).decode(errors="replace")
    assert text.count("hi\n") == 3 and "volume\n" in text and "700\n" in text
    assert text.count("Read-only file system") == 2
    remove(daemon, container)
