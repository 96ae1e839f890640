"""cgroup v2 with all its controllers: each limit of linux.resources from inside a container, and what it does there."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cove.model.errors import Conflict, CoveError, Invalid, Unavailable
from cove.runtime import oci
from cove.runtime.cgroups import find_exec_path, find_path, wait_here
from cove.runtime.cgroups_bpf import list_programs, replace_programs
from cove.runtime.cgroups_detect import detect_cgroups
from cove.runtime.cgroups_devices import ALLOW_ALL, DEFAULT_RULES, DENY_ALL, v2_program
from cove.runtime.launch import Task
from tests.lab.cgroupkit import ROOT, Boxes, read
from tests.leaks import unique_name
from tests.system.native_support import Box, run, until

MIB = 1 << 20


@pytest.fixture
def boxes(tmp_path: Path) -> Iterator[Boxes]:
    cgroups = detect_cgroups(parent=unique_name())
    made = Boxes(tmp_path, cgroups)
    yield made
    made.close()
    wait_here(cgroups.killing(cgroups.layout.parent))
    wait_here(cgroups.removing(cgroups.layout.parent))


def new_path(boxes: Boxes) -> str:
    return f"{boxes.cgroups.layout.parent}/pods/{os.urandom(4).hex()}"


def inside(boxes: Boxes, script: str, resources: oci.Resources, **spec: Any) -> tuple[int, bool, str]:
    """Run a script to its end below a parent that has to be made; exit code, whether memory ran out, output."""
    path, box = new_path(boxes), boxes.box()
    boxes.cgroups.prepare(path, resources)

    async def body() -> tuple[int, bool]:
        task = await boxes.put(box, path, script, resources, **spec)
        status = await task.wait()
        await boxes.cgroups.kill(path)
        await boxes.cgroups.remove(path)
        return status.exit_code, status.oom_killed

    code, oom_killed = run(body())
    return code, oom_killed, box.output()


def seen(boxes: Boxes, resources: oci.Resources, *files: str) -> dict[str, str]:
    lines = "\n".join(f"echo {file}=$(cat /sys/fs/cgroup/{file})" for file in files)
    code, _, text = inside(boxes, lines, resources)
    assert code == 0, text
    return dict(line.split("=", 1) for line in text.splitlines())


# --- every limit, from inside -------------------------------------------------------------------------


def disk() -> tuple[int, int]:
    device = os.stat("/tmp").st_dev
    return os.major(device), os.minor(device)


def test_memory_and_swap(boxes: Boxes) -> None:
    memory = oci.Memory(
        limit=64 * MIB, swap=96 * MIB, reservation=16 * MIB, kernel=1, check_before_update=True
    )
    unified = {"memory.high": str(48 * MIB), "memory.min": str(4 * MIB), "memory.oom.group": "1"}
    files = ("memory.max", "memory.swap.max", "memory.low", "memory.high", "memory.min", "memory.oom.group")
    found = seen(boxes, oci.Resources(memory=memory, unified=unified), *files)
    assert [int(found[file]) for file in files] == [64 * MIB, 32 * MIB, 16 * MIB, 48 * MIB, 4 * MIB, 1]
    for swap, expected in ((-1, "max"), (64 * MIB, "0")):
        limited = oci.Resources(memory=oci.Memory(limit=64 * MIB, swap=swap))
        assert seen(boxes, limited, "memory.swap.max") == {"memory.swap.max": expected}


def test_processors(boxes: Boxes) -> None:
    cpu = oci.Cpu(shares=512, quota=50_000, period=80_000, burst=10_000, cpus="1", mems="0")
    files = (
        "cpu.weight",
        "cpu.max",
        "cpu.max.burst",
        "cpuset.cpus",
        "cpuset.cpus.effective",
        "cpuset.mems",
        "cpu.idle",
    )
    found = seen(boxes, oci.Resources(cpu=cpu), *files)
    assert [found[file] for file in files] == ["59", "50000 80000", "10000", "1", "1", "0", "0"]
    idle = seen(boxes, oci.Resources(cpu=oci.Cpu(idle=1, shares=512)), "cpu.idle", "cpu.max")
    assert idle == {"cpu.idle": "1", "cpu.max": "max 100000"}


@pytest.mark.parametrize(("limit", "expected"), [(30, "30"), (-1, "max"), (None, "max")])
def test_processes(boxes: Boxes, limit: int | None, expected: str) -> None:
    assert seen(boxes, oci.Resources(pids=oci.Pids(limit=limit)), "pids.max") == {"pids.max": expected}


def test_no_process_but_the_first(boxes: Boxes) -> None:
    code, _, text = inside(
        boxes,
        "read max < /sys/fs/cgroup/pids.max; echo $max; (true) && true",
        oci.Resources(pids=oci.Pids(limit=0)),
    )
    assert text.startswith("1\n") and code != 0


def test_block_devices(boxes: Boxes) -> None:
    major, minor = disk()
    throttle = (oci.IoThrottleDevice(major=major, minor=minor, rate=4 * MIB),)
    asked = oci.Resources(
        block_io=oci.BlockIo(
            weight=500, throttle_read_bps_device=throttle, throttle_write_iops_device=throttle
        )
    )
    found = seen(boxes, asked, "io.weight", "io.max")
    assert found["io.weight"].startswith("default 4950")
    assert found["io.max"] == f"{major}:{minor} rbps={4 * MIB} wbps=max riops=max wiops={4 * MIB}"


def test_huge_pages_are_limited_in_use_and_reservation(boxes: Boxes) -> None:
    asked = oci.Resources(hugepage_limits=(oci.HugepageLimit(page_size="2MB", limit=4 * MIB),))
    files = ("hugetlb.2MB.max", "hugetlb.2MB.rsvd.max")
    assert set(seen(boxes, asked, *files).values()) == {str(4 * MIB)}


def test_unified_has_the_last_word(boxes: Boxes) -> None:
    asked = oci.Resources(
        memory=oci.Memory(limit=64 * MIB),
        cpu=oci.Cpu(shares=1024),
        unified={"memory.max": str(32 * MIB), "cpu.weight": "7", "hugetlb.2MB.max": "0"},
    )
    found = seen(boxes, asked, "memory.max", "cpu.weight", "hugetlb.2MB.max")
    assert found == {"memory.max": str(32 * MIB), "cpu.weight": "7", "hugetlb.2MB.max": "0"}


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"unified": {"nonsense.max": "1"}}, r"unified\['nonsense.max'\]: .* no cgroup v2 controller nonsense"),
        ({"unified": {"memory.nonsense": "1"}}, r"unified\['memory.nonsense'\]: this host can't do memory.nonsense"),
        ({"unified": {"../x": "1"}}, "is no file of a cgroup"),
        ({"hugepage_limits": (oci.HugepageLimit(page_size="3MB", limit=0),)}, r"hugepageLimits\[0\]: .*3MB.max"),
        ({"memory": oci.Memory(swappiness=10)}, "memory.swappiness: cgroup v2 has nothing like it"),
        ({"cpu": oci.Cpu(realtime_runtime=10)}, "cpu.realtimeRuntime: cgroup v2 has nothing like it"),
        ({"network": oci.NetworkLimits(class_id=10)}, "network.classID: cgroup v2 has nothing like it"),
        ({"memory": oci.Memory(swap=MIB)}, "memory.swap: it counts memory and swap together"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name_and_nothing_is_left(
    boxes: Boxes, resources: dict[str, Any], words: str
) -> None:
    with pytest.raises(CoveError, match=words):
        boxes.cgroups.prepare(new_path(boxes), oci.Resources(**resources))
    assert not (ROOT / boxes.cgroups.layout.parent).exists()


# --- what limits do -----------------------------------------------------------------------------------


def test_memory_runs_out_at_the_limit(boxes: Boxes) -> None:
    asked = oci.Resources(memory=oci.Memory(limit=24 * MIB, swap=24 * MIB))
    code, oom_killed, _ = inside(boxes, "head -c 200000000 /dev/zero | tail", asked)
    assert oom_killed
    code, oom_killed, _ = inside(boxes, "exec tail /dev/zero", asked)
    assert (code, oom_killed) == (137, True)


def test_a_fork_bomb_stays_small_and_dies_with_its_container(boxes: Boxes) -> None:
    path, box = new_path(boxes), boxes.box()
    asked = oci.Resources(pids=oci.Pids(limit=20))
    boxes.cgroups.prepare(path, asked)

    async def body() -> None:
        task = await boxes.put(box, path, "bomb() { bomb | bomb & }; bomb; exec sleep 1000", asked)
        await until(lambda: int(read(path, "pids.events").split()[1]) > 0)
        assert int(read(path, "pids.current")) <= 20
        await boxes.cgroups.kill(path)
        assert (await task.wait()).exit_code == 137
        await boxes.cgroups.remove(path)

    run(body())


def test_a_quota_throttles_and_pressure_is_told(boxes: Boxes) -> None:
    path, box = new_path(boxes), boxes.box()
    asked = oci.Resources(cpu=oci.Cpu(quota=5_000, period=50_000))
    boxes.cgroups.prepare(path, asked)

    async def body() -> None:
        task = await boxes.put(box, path, "while :; do :; done", asked)
        await until(lambda: boxes.cgroups.read_stats(path).cpu.throttled_periods > 3)
        stats = boxes.cgroups.read_stats(path)
        assert stats.cpu.throttled_ns > 0 and stats.cpu.usage_ns > 0
        pressure = (stats.cpu.pressure, stats.memory.pressure, stats.io.pressure)
        if os.path.exists("/proc/pressure/cpu"):
            assert all(pressure)
            assert stats.cpu.pressure is not None and stats.cpu.pressure.some.total_us > 0
        else:
            assert pressure == (None, None, None)
        assert set(stats.huge_pages) >= {"2MB"}
        await boxes.cgroups.kill(path)
        await task.wait()
        await boxes.cgroups.remove(path)

    run(body())


# --- a living container -------------------------------------------------------------------------------


class Living:
    """A container whose shell waits for what is to be run in it."""

    def __init__(self, boxes: Boxes, box: Box, path: str, task: Task) -> None:
        self.boxes, self.box, self.path, self.task = boxes, box, path, task

    async def ask(self, script: str) -> str:
        before = len(self.box.output())
        path = find_exec_path(self.boxes.cgroups.layout, self.path, self.task.pid)
        done = await self.boxes.put_exec(self.box, path, self.task, script)
        await done.wait()
        return self.box.output()[before:].strip()


def with_living(
    boxes: Boxes, resources: oci.Resources, body: Any, script: str = "sleep 1000", **spec: Any
) -> None:
    path, box = new_path(boxes), boxes.box()
    boxes.cgroups.prepare(path, resources)

    async def whole() -> None:
        task = await boxes.put(box, path, script, resources, **spec)
        try:
            await body(Living(boxes, box, path, task))
        finally:
            await boxes.cgroups.kill(path)
            await task.wait()
            await boxes.cgroups.remove(path)

    run(whole())


def test_updates_are_seen_at_once(boxes: Boxes) -> None:
    async def body(living: Living) -> None:
        update = boxes.cgroups.update
        for size in (128 * MIB, 32 * MIB, 256 * MIB):
            update(living.path, oci.Resources(memory=oci.Memory(limit=size, swap=2 * size)))
            assert (read(living.path, "memory.max"), read(living.path, "memory.swap.max")) == (
                str(size),
                str(size),
            )
        update(living.path, oci.Resources(memory=oci.Memory(swap=300 * MIB)))
        assert read(living.path, "memory.swap.max") == str(44 * MIB)
        update(living.path, oci.Resources(memory=oci.Memory(limit=-1)))
        assert (read(living.path, "memory.max"), read(living.path, "memory.swap.max")) == ("max", "max")
        # a burst above the quota that holds is taken together with its new quota
        update(living.path, oci.Resources(cpu=oci.Cpu(quota=20_000, period=100_000)))
        update(living.path, oci.Resources(cpu=oci.Cpu(quota=60_000, period=100_000, burst=40_000)))
        assert (read(living.path, "cpu.max"), read(living.path, "cpu.max.burst")) == ("60000 100000", "40000")
        update(living.path, oci.Resources(cpu=oci.Cpu(cpus="0"), pids=oci.Pids(limit=9)))
        assert await living.ask("cat /sys/fs/cgroup/cpuset.cpus.effective /sys/fs/cgroup/pids.max") == "0\n9"
        with pytest.raises(Invalid, match=r"cpu\.cpus: the kernel refuses 77"):
            update(living.path, oci.Resources(cpu=oci.Cpu(cpus="77")))

    with_living(boxes, oci.Resources(), body)


def test_a_limit_below_what_is_used_is_refused_when_asked_to(boxes: Boxes) -> None:
    async def body(living: Living) -> None:
        await until(lambda: int(read(living.path, "memory.current")) > 20 * MIB)
        memory = oci.Memory(limit=8 * MIB, check_before_update=True)
        with pytest.raises(Invalid, match=r"memory\.limit: 8388608 is less than the \d+ bytes in use"):
            boxes.cgroups.update(living.path, oci.Resources(memory=memory))
        assert read(living.path, "memory.max") == "max"

    fill = "dd if=/dev/zero of=/dev/shm/x bs=1M count=24 2>/dev/null; sleep 1000"
    with_living(boxes, oci.Resources(), body, fill)


def test_device_rules_are_exchanged_under_a_living_container(boxes: Boxes) -> None:
    async def body(living: Living) -> None:
        directory = f"{ROOT}/{living.path}"
        attempt = "(: < /tmp/node) 2>/dev/null && echo opened || echo refused"
        major, minor = disk()
        await living.ask(f"mknod /tmp/node b {major} {minor}")
        assert await living.ask(attempt) == "refused"
        (first,) = list_programs(directory)
        allowed = oci.DeviceRule(allow=True, type="b", major=major, minor=minor, access="r")
        boxes.cgroups.update(living.path, oci.Resources(devices=(DENY_ALL, allowed)))
        assert await living.ask(attempt) == "opened"
        assert await living.ask("echo x > /dev/null && echo written") == "written"
        (second,) = list_programs(directory)
        assert second != first
        # several at once, of which each can refuse: all go for the new one
        attach_another(directory)
        assert await living.ask(attempt) == "refused"
        assert len(list_programs(directory)) == 2
        boxes.cgroups.update(living.path, oci.Resources(devices=(DENY_ALL, allowed)))
        assert len(list_programs(directory)) == 1
        assert await living.ask(attempt) == "opened"
        boxes.cgroups.update(living.path, oci.Resources(devices=(ALLOW_ALL,)))
        assert list_programs(directory) == []

    with_living(boxes, oci.Resources(), body)


def attach_another(directory: str) -> None:
    from cove.runtime import cgroups_bpf

    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    program = cgroups_bpf._load(v2_program(DEFAULT_RULES))
    cgroups_bpf._attach(group, program)
    os.close(program)
    os.close(group)


def test_a_device_program_comes_to_a_cgroup_without_one(boxes: Boxes) -> None:
    path = new_path(boxes)
    boxes.cgroups.prepare(path, oci.Resources())
    replace_programs(f"{ROOT}/{path}", v2_program(DEFAULT_RULES))
    assert len(list_programs(f"{ROOT}/{path}")) == 1
    replace_programs(f"{ROOT}/{path}", None)
    assert list_programs(f"{ROOT}/{path}") == []


def test_nested_cgroups_are_frozen_killed_and_removed_with_theirs(boxes: Boxes) -> None:
    async def body(living: Living) -> None:
        cgroups = boxes.cgroups
        await until(lambda: len(cgroups.list_pids(f"{living.path}/inner/most")) > 0)
        await cgroups.freeze(living.path)
        await until(lambda: "frozen 1" in read(f"{living.path}/inner/most", "cgroup.events"))
        await cgroups.thaw(living.path)
        assert "frozen 0" in read(f"{living.path}/inner/most", "cgroup.events")
        await cgroups.freeze(f"{living.path}/inner")  # by the container itself: that stays its own matter
        await cgroups.freeze(living.path)
        await cgroups.thaw(living.path)
        assert "frozen 1" in read(f"{living.path}/inner", "cgroup.events")
        await cgroups.kill(living.path)
        assert cgroups.list_pids(living.path) == []

    script = (
        "mkdir -p /sys/fs/cgroup/inner/most; (echo 0 > /sys/fs/cgroup/inner/most/cgroup.procs; exec sleep 1000) &\n"
        "sleep 1000 & wait"
    )
    with_living(boxes, oci.Resources(devices=(ALLOW_ALL,)), body, script, privileged=True)


def test_an_exec_follows_a_container_that_manages_its_own_cgroups(boxes: Boxes) -> None:
    async def body(living: Living) -> None:
        await until(lambda: read(living.path, "cgroup.subtree_control"))
        assert await living.ask("cat /proc/self/cgroup") == "0::/init"

    script = (
        "cd /sys/fs/cgroup; mkdir init; echo 0 > init/cgroup.procs; echo +memory > cgroup.subtree_control; "
        "exec sleep 1000"
    )
    with_living(boxes, oci.Resources(devices=(ALLOW_ALL,)), body, script, privileged=True)


def test_without_clone_into_cgroup_the_process_joins_by_itself(boxes: Boxes) -> None:
    boxes.host = replace(boxes.host, kernel=(5, 4))
    found = seen(boxes, oci.Resources(pids=oci.Pids(limit=17)), "pids.max", "pids.current")
    assert found["pids.max"] == "17" and int(found["pids.current"]) >= 1
    assert inside(boxes, "cat /proc/self/cgroup", oci.Resources())[2] == "0::/\n"


# --- where it is made ---------------------------------------------------------------------------------


def test_the_way_is_made_with_all_controllers_and_undone(boxes: Boxes) -> None:
    path = new_path(boxes)
    made = boxes.cgroups.prepare(path, oci.Resources())
    assert [directory.removeprefix(f"{ROOT}/") for directory in made] == [
        path.split("/")[0], "/".join(path.split("/")[:2]), path,
    ]  # fmt: skip
    wanted = {"cpu", "cpuset", "io", "memory", "pids", "hugetlb"}
    assert wanted <= set(read(path, "cgroup.controllers").split())
    assert boxes.cgroups.prepare(path, oci.Resources()) == []  # an empty one that is there is taken
    boxes.cgroups.undo(made)
    assert not (ROOT / boxes.cgroups.layout.parent).exists()


def test_a_cgroup_in_use_is_refused(boxes: Boxes) -> None:
    async def body(living: Living) -> None:
        with pytest.raises(Conflict, match=r"container's cgroup is not empty: 1 process\(es\) found"):
            boxes.cgroups.prepare(living.path, oci.Resources())

    with_living(boxes, oci.Resources(), body, "exec sleep 1000")
    frozen = new_path(boxes)
    boxes.cgroups.prepare(frozen, oci.Resources())
    (ROOT / frozen / "cgroup.freeze").write_text("1")
    with pytest.raises(Conflict, match="unexpectedly frozen"):
        boxes.cgroups.prepare(frozen, oci.Resources())


def test_a_threaded_cgroup_is_refused(boxes: Boxes) -> None:
    path = new_path(boxes)
    boxes.cgroups.prepare(path, oci.Resources())
    below = f"{path}/threads"
    (ROOT / below).mkdir()
    (ROOT / below / "cgroup.type").write_text("threaded")
    with pytest.raises(Invalid, match="is threaded, it takes threads only"):
        boxes.cgroups.prepare(below, oci.Resources())
    (ROOT / below).rmdir()


def test_a_parent_with_processes_has_no_controllers_to_give(boxes: Boxes) -> None:
    async def body(living: Living) -> None:
        with pytest.raises(Unavailable, match=r"memory\.limit: this host can't do memory\.max"):
            boxes.cgroups.prepare(f"{living.path}/below", oci.Resources(memory=oci.Memory(limit=64 * MIB)))
        assert not (ROOT / living.path / "below").exists()

    with_living(boxes, oci.Resources(), body)


def test_relative_paths_lie_beside_the_callers_own_cgroup(boxes: Boxes) -> None:
    own = Path("/proc/self/cgroup").read_text().strip().removeprefix("0::")
    above = os.path.dirname(own).strip("/")
    expected = f"{above}/box" if above else "box"
    assert find_path(boxes.cgroups.layout, "", "box") == expected
    assert find_path(boxes.cgroups.layout, "/a//b/", "box") == "a/b"


def test_waiting_needs_no_loop(boxes: Boxes) -> None:
    path = new_path(boxes)
    boxes.cgroups.prepare(path, oci.Resources())
    child = os.fork()
    if child == 0:
        time.sleep(1000)
        os._exit(0)
    (ROOT / path / "cgroup.procs").write_text(str(child))
    wait_here(boxes.cgroups.freezing(path))
    assert boxes.cgroups.is_frozen(path)
    wait_here(boxes.cgroups.thawing(path))
    boxes.cgroups.signal(path, 0)

    async def kill() -> None:
        killing = asyncio.ensure_future(boxes.cgroups.kill(path))
        await asyncio.to_thread(os.waitpid, child, 0)
        await killing

    run(kill())
    wait_here(boxes.cgroups.removing(path))
