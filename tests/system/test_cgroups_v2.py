"""cgroup v2 for real: on the host's own tree, or on the empty one beside v1's hierarchies.

There the tree has no controllers, but starting in a cgroup, device programs, freezing and killing need none.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cove.model.container import Resources
from cove.model.errors import HostError, NotFound, Unavailable
from cove.runtime.cgroups import Cgroups
from cove.runtime.cgroups_detect import detect_cgroups
from cove.runtime.cgroups_limits import plan_resources
from tests.leaks import unique_name
from tests.system.native_support import needs_root, run
from tests.system.test_plan_run import Runtime
from tests.unit.runtime_samples import container

ROOTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
ROOT = next((root for root in ROOTS if os.path.exists(f"{root}/cgroup.controllers")), "")
pytestmark = [needs_root, pytest.mark.skipif(not ROOT, reason="this host has no cgroup v2 tree")]


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    cgroups = detect_cgroups(ROOT, parent=unique_name())
    assert cgroups.layout.version == 2
    cgroups.setup()
    cgroups.setup()
    made = Runtime(tmp_path, cgroups)
    yield made
    made.close()
    left = cgroups.list_containers()
    cgroups.teardown()
    assert left == []
    assert not os.path.exists(f"{ROOT}/{cgroups.layout.parent}")


def test_a_container_starts_in_its_cgroup_and_sees_it_as_the_root(runtime: Runtime) -> None:
    text = runtime.output(
        """
sed -n 's/^0:://p' /proc/self/cgroup
cat /sys/fs/cgroup/cgroup.procs
(echo 1 > /sys/fs/cgroup/cgroup.freeze) 2>/dev/null && echo written || echo refused
"""
    )
    lines = text.splitlines()
    assert lines[0] == "/"
    assert "1" in lines[1:-1]
    assert lines[-1] == "refused"


def test_the_device_program_holds(runtime: Runtime) -> None:
    found = runtime.facts(
        """
mknod /tmp/x c 10 229 && echo node=made
(: < /tmp/x) 2>/tmp/why && echo open=yes || echo open=no
echo why=$(cat /tmp/why)
head -c 1 /dev/zero > /dev/null && echo zero=yes
"""
    )
    assert (found["node"], found["open"], found["zero"]) == ("made", "no", "yes")
    assert "Operation not permitted" in found["why"]


def test_a_privileged_container_has_no_device_program(runtime: Runtime) -> None:
    found = runtime.facts("(echo 0 > /sys/fs/cgroup/cgroup.freeze) && echo group=written", privileged=True)
    assert found == {"group": "written"}


def paused(cgroups: Cgroups, path: str) -> str:
    return Path(f"{ROOT}/{path}/cgroup.events").read_text()


def test_a_container_is_frozen_thawed_and_killed_as_a_whole(runtime: Runtime) -> None:
    cgroups = runtime.cgroups

    async def body() -> None:
        box = runtime.box()
        task, asked = await runtime.start(box, container(args=("sh", "-c", "sleep 1000 & sleep 1000 & wait")))
        path = f"{cgroups.layout.parent}/{asked.id}"
        while len(cgroups.list_pids(path)) < 3:
            await asyncio.sleep(0.02)
        await cgroups.freeze(path)
        assert cgroups.is_frozen(path)
        assert "frozen 1" in paused(cgroups, path)
        await cgroups.thaw(path)
        assert "frozen 0" in paused(cgroups, path)
        assert cgroups.read_stats(path).cpu.usage_ns > 0
        await cgroups.freeze(path)
        await cgroups.kill(path)
        assert cgroups.list_pids(path) == []
        status = await task.wait()
        assert status.exit_code == 137
        await cgroups.remove(path)
        assert not cgroups.is_frozen(path)
        with pytest.raises(NotFound):
            cgroups.read_stats(path)
        with pytest.raises(NotFound):
            await cgroups.freeze(path)
        await cgroups.kill(path)

    run(body())


def test_exec_joins_the_containers_cgroup(runtime: Runtime) -> None:
    async def body() -> str:
        box = runtime.box()
        task, asked = await runtime.start(box, container(args=("sleep", "1000")))
        path = f"{runtime.cgroups.layout.parent}/{asked.id}"
        try:
            done = await runtime.start_exec(box, asked, task.pid, "sed -n 's/^0:://p' /proc/self/cgroup")
            assert (await done.wait()).exit_code == 0
        finally:
            await runtime.cgroups.kill(path)
            await task.wait()
        await runtime.cgroups.remove(path)
        return box.output()

    assert run(body()) == "/\n"


def test_what_the_tree_cannot_do_is_reported(runtime: Runtime) -> None:
    cgroups = runtime.cgroups
    if "memory" in cgroups.layout.controllers:
        pytest.skip("this tree has the memory controller")
    assert "memory" not in cgroups.layout.features
    path = f"{cgroups.layout.parent}/x"
    os.mkdir(f"{ROOT}/{path}")
    with pytest.raises(Unavailable, match=r"can't do memory\.max"):
        cgroups.update(path, plan_resources(Resources(memory_bytes=1 << 25), {}))
    with pytest.raises(Unavailable, match="OOM events need the memory controller"):
        cgroups.watch_oom(path)
    run(cgroups.remove(path))


def test_limits_hold_where_there_are_controllers(runtime: Runtime) -> None:
    if not {"memory", "pids"} <= runtime.cgroups.layout.controllers:
        pytest.skip("this tree has no memory and pids controllers")
    limits = Resources(memory_bytes=32 << 20, pids_limit=20, nano_cpus=500_000_000)
    found = runtime.facts(
        "cd /sys/fs/cgroup; echo memory=$(cat memory.max); echo pids=$(cat pids.max); echo cpu=$(cat cpu.max)",
        resources=limits,
    )
    assert found == {"memory": str(32 << 20), "pids": "20", "cpu": "50000 100000"}


def test_a_busy_cgroup_is_named_and_then_removed(runtime: Runtime) -> None:
    async def body() -> None:
        box = runtime.box()
        task, asked = await runtime.start(box, container(args=("sleep", "1000")))
        path = f"{runtime.cgroups.layout.parent}/{asked.id}"
        assert runtime.cgroups.list_containers() == [path]
        with pytest.raises(HostError, match=rf"still busy .*{task.pid}"):
            await runtime.cgroups.remove(path, 0.01)
        await task.signal(9)
        await task.wait()
        await runtime.cgroups.remove(path)

    run(body())
