"""systemd's cgroup driver against systemd itself: containers as scopes, their limits, and their ends."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cove.model.errors import Conflict, HostError, NotFound
from cove.runtime import oci
from cove.runtime.cgroups_bpf import list_programs
from cove.runtime.cgroups_detect import detect_cgroups
from cove.runtime.cgroups_devices import DENY_ALL
from cove.runtime.cgroups_systemd import Systemd, Unit, enter_scope, parse_unit
from cove.runtime.launch import Task
from tests.lab.cgroupkit import ROOT, Boxes, read
from tests.system.native_support import Box, run, until

MIB = 1 << 20
LIMITS = oci.Resources(
    memory=oci.Memory(limit=64 * MIB, swap=96 * MIB, reservation=16 * MIB),
    cpu=oci.Cpu(shares=512, quota=25_500, period=50_000, cpus="0"),
    pids=oci.Pids(limit=40),
    unified={"memory.high": str(48 * MIB)},
    hugepage_limits=(oci.HugepageLimit(page_size="2MB", limit=4 * MIB),),
)


@pytest.fixture
def boxes(tmp_path: Path) -> Iterator[Boxes]:
    made = Boxes(tmp_path, detect_cgroups(parent="cove-lab"))
    yield made
    made.close()


def show(unit: Unit, *properties: str) -> dict[str, str]:
    names = ",".join(properties)
    done = subprocess.run(
        ["systemctl", "show", unit.name, "-p", names], capture_output=True, text=True, timeout=30
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def new_unit(slice_: str = "system.slice") -> Unit:
    return parse_unit(f"{slice_}:cove:{os.urandom(4).hex()}", "")


def with_scope(
    boxes: Boxes,
    resources: oci.Resources,
    body: Callable[[Box, str, Task, Systemd], Awaitable[None]],
    *,
    unit: Unit | None = None,
    script: str = "exec sleep 1000",
) -> None:
    unit, box = unit or new_unit(), boxes.box()
    with Systemd.connect() as systemd:
        path = systemd.find_path(unit)

        async def on_pause(name: str, pid: int) -> bytes:
            assert name == "cgroup"
            await asyncio.to_thread(enter_scope, systemd, boxes.cgroups, unit, path, pid, resources)
            return b""

        async def whole() -> None:
            task = await boxes.put(box, path, script, resources, on_pause=on_pause)
            try:
                await body(box, path, task, systemd)
            finally:
                await boxes.cgroups.kill(path)
                await task.wait()
                systemd.stop(unit)

        run(whole())
    assert not (ROOT / path).exists()
    assert show(unit, "LoadState") == {"LoadState": "not-found"}


def test_a_container_runs_in_a_scope_that_systemd_knows(boxes: Boxes) -> None:
    unit = new_unit("cove-lab.slice")

    async def body(box: Box, path: str, task: Task, systemd: Systemd) -> None:
        assert path == f"cove.slice/cove-lab.slice/{unit.name}"
        assert read(path, "cgroup.procs").splitlines() == [str(task.pid)]
        done = await boxes.put_exec(box, path, task, "cat /proc/self/cgroup; cat /sys/fs/cgroup/pids.max")
        await done.wait()
        assert box.output() == "0::/\n40\n"
        found = show(
            unit, "Delegate", "MemoryMax", "MemoryHigh", "MemoryLow", "MemorySwapMax", "TasksMax", "CPUWeight",
            "CPUQuotaPerSecUSec", "AllowedCPUs", "ActiveState", "Slice", "DevicePolicy",
        )  # fmt: skip
        assert found == {
            "Delegate": "yes", "MemoryMax": str(64 * MIB), "MemoryHigh": str(48 * MIB), "MemoryLow": str(16 * MIB),
            "MemorySwapMax": str(32 * MIB), "TasksMax": "40", "CPUWeight": "59", "CPUQuotaPerSecUSec": "510ms",
            "AllowedCPUs": "0", "ActiveState": "active", "Slice": "cove-lab.slice", "DevicePolicy": "strict",
        }  # fmt: skip

    with_scope(boxes, LIMITS, body, unit=unit)


LIMIT_FILES = {
    "memory.max": str(64 * MIB),
    "memory.high": str(48 * MIB),
    "memory.low": str(16 * MIB),
    "memory.swap.max": str(32 * MIB),
    "cpu.weight": "59",
    "cpu.max": "25500 50000",
    "cpuset.cpus": "0",
    "pids.max": "40",
    "hugetlb.2MB.max": str(4 * MIB),
}


def test_limits_and_device_rules_outlast_a_reload(boxes: Boxes) -> None:
    async def body(box: Box, path: str, task: Task, systemd: Systemd) -> None:
        def limits() -> dict[str, str]:
            return {file: read(path, file) for file in LIMIT_FILES if (ROOT / path / file).exists()}

        assert limits() == LIMIT_FILES
        assert len(list_programs(f"{ROOT}/{path}")) == 1
        await asyncio.to_thread(subprocess.run, ["systemctl", "daemon-reload"], check=True, timeout=60)
        assert limits() == LIMIT_FILES
        attempt = (
            "(: < /tmp/x) 2>/dev/null && echo opened || echo refused; echo x > /dev/null && echo written"
        )
        done = await boxes.put_exec(box, path, task, f"mknod /tmp/x b 254 0; {attempt}")
        await done.wait()
        assert box.output() == "refused\nwritten\n"

    with_scope(boxes, LIMITS, body)


def test_updates_go_to_systemd_and_to_the_files(boxes: Boxes) -> None:
    unit = new_unit()

    async def body(box: Box, path: str, task: Task, systemd: Systemd) -> None:
        changed = oci.Resources(memory=oci.Memory(limit=128 * MIB, swap=128 * MIB), pids=oci.Pids(limit=-1))
        systemd.set_limits(unit, changed)
        boxes.cgroups.update(path, changed)
        assert show(unit, "MemoryMax", "TasksMax") == {"MemoryMax": str(128 * MIB), "TasksMax": "infinity"}
        assert [read(path, file) for file in ("memory.max", "memory.swap.max", "pids.max")] == [
            str(128 * MIB), "0", "max",
        ]  # fmt: skip

    with_scope(boxes, LIMITS, body, unit=unit)


def test_memory_that_runs_out_is_told(boxes: Boxes) -> None:
    unit, box = new_unit(), boxes.box()
    limit = oci.Resources(memory=oci.Memory(limit=24 * MIB, swap=24 * MIB))
    with Systemd.connect() as systemd:
        path = systemd.find_path(unit)

        async def on_pause(name: str, pid: int) -> bytes:
            await asyncio.to_thread(enter_scope, systemd, boxes.cgroups, unit, path, pid, limit)
            return b""

        async def body() -> Any:
            task = await boxes.put(box, path, "exec tail /dev/zero", limit, on_pause=on_pause)
            return await task.wait()

        status = run(body())
        assert status.exit_code == 137
        systemd.stop(unit)
    assert show(unit, "LoadState") == {"LoadState": "not-found"}


def test_a_scope_ends_with_its_last_process(boxes: Boxes) -> None:
    async def body(box: Box, path: str, task: Task, systemd: Systemd) -> None:
        await boxes.cgroups.kill(path)
        await until(lambda: not (ROOT / path).exists())

    with_scope(boxes, LIMITS, body)


def test_names_in_use_and_values_that_systemd_refuses_are_told(boxes: Boxes) -> None:
    unit = new_unit()

    async def body(box: Box, path: str, task: Task, systemd: Systemd) -> None:
        with pytest.raises(Conflict, match=f"{unit.name} was already loaded"):
            systemd.start_scope(unit, task.pid, "another", oci.Resources())
        with pytest.raises(HostError, match="StartTransientUnit"):
            systemd.start_scope(new_unit(), 2**31 - 1, "nobody", oci.Resources())

    with_scope(boxes, oci.Resources(devices=(DENY_ALL,)), body, unit=unit)
    with Systemd.connect() as systemd:
        systemd.stop(unit)
        with pytest.raises(NotFound):
            systemd.set_limits(unit, LIMITS)


def test_a_failed_start_leaves_no_scope(boxes: Boxes) -> None:
    unit, box = new_unit(), boxes.box()
    bad = oci.Resources(cpu=oci.Cpu(quota=20_000, burst=10**9))
    with Systemd.connect() as systemd:
        path = systemd.find_path(unit)

        async def on_pause(name: str, pid: int) -> bytes:
            await asyncio.to_thread(enter_scope, systemd, boxes.cgroups, unit, path, pid, bad)
            return b""

        async def body() -> None:
            with pytest.raises(Exception, match=r"cpu\.burst: the kernel refuses"):
                await boxes.put(box, path, "true", bad, on_pause=on_pause)

        run(body())
    assert not (ROOT / path).exists()
    assert show(unit, "LoadState") == {"LoadState": "not-found"}
