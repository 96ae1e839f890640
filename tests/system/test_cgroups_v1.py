"""cgroup v1 for real, below a parent of the test's own that is removed again."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cove.model.container import Resources
from cove.model.errors import Conflict, CoveError, HostError, Invalid, NotFound
from cove.runtime import oci
from cove.runtime.cgroups import Cgroups, wait_here
from cove.runtime.cgroups_detect import detect_cgroups
from cove.runtime.cgroups_limits import FEATURES, plan_resources
from cove.runtime.cgroups_oom import OomWatch
from cove.runtime.cgroups_stats import parse_number
from cove.runtime.facts import GUARDED
from cove.runtime.plan_cgroups import NO_RESOURCES, plan_cgroup
from cove.runtime.steps import JoinCgroup, MakeHostDir, RemoveHostDir, WriteHost
from tests.leaks import unique_name


def unusable() -> str:
    if os.geteuid() != 0:
        return "makes cgroups: needs root"
    try:
        if detect_cgroups().layout.version != 1:
            return "this host has cgroup v2 only"
    except CoveError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(unusable()), reason=unusable() or "usable")
MIB = 1 << 20


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    made = detect_cgroups(parent=unique_name())
    made.setup()
    yield made
    for path in made.list_containers():
        asyncio.run(made.kill(path))
        asyncio.run(made.remove(path))
    made.teardown()
    root = Path(made.layout.root)
    assert not list(root.glob(f"*/{made.layout.parent}")), "the parent is still there"


def make(cgroups: Cgroups, resources: oci.Resources = NO_RESOURCES, name: str = "one") -> str:
    """Run a plan's `before` steps, as cove-init does."""
    path = f"{cgroups.layout.parent}/{name}"
    for step in plan_cgroup(cgroups.layout, path, resources).before:
        match step:
            case MakeHostDir():
                os.mkdir(step.path, step.mode)
            case WriteHost():
                write(step.path, step.data, optional=bool(step.optional))
            case _:
                raise AssertionError(step)
    return path


def write(path: str, data: str, *, optional: bool = False) -> None:
    try:
        with open(path, "w") as file:
            file.write(data)
    except FileNotFoundError:
        if not optional:
            raise


@contextmanager
def process(
    cgroups: Cgroups, path: str, code: str, resources: oci.Resources = NO_RESOURCES
) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process in the cgroup; `code` runs once it is there, after a line on its stdin."""
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", f"import sys, os\nsys.stdin.readline()\n{code}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        for step in plan_cgroup(cgroups.layout, path, resources).child:
            assert isinstance(step, JoinCgroup)
            write(step.path, str(child.pid))
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
        yield child
    finally:
        if cgroups.is_frozen(path):
            asyncio.run(cgroups.thaw(path))
        child.kill()
        child.wait(30)
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            pipe.close()


WAIT = "print('ready', flush=True)\nsys.stdin.readline()"


def ready(child: subprocess.Popen[bytes]) -> None:
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"


def value(cgroups: Cgroups, controller: str, path: str, file: str) -> str:
    return Path(cgroups.layout.directory(controller, path), file).read_text().strip()


def resources(**limits: Any) -> oci.Resources:
    return plan_resources(Resources(**limits), {})


# --- the parent ---------------------------------------------------------------------------------------


def test_setup_is_repeatable_and_finds_what_works(cgroups: Cgroups) -> None:
    before = cgroups.layout
    cgroups.setup()
    assert cgroups.layout == before
    assert before.features <= set(FEATURES)
    if "memory" in before.controllers:
        assert {"memory", "reservation"} <= before.features


def test_setup_completes_one_that_was_cut_short(cgroups: Cgroups) -> None:
    guarded = cgroups.layout.directory("devices", f"{cgroups.layout.parent}/{GUARDED}")
    write(f"{guarded}/devices.deny", "c 1:3 rwm")
    assert "c 1:3 rwm" not in Path(guarded, "devices.list").read_text()
    cgroups.setup()
    assert "c 1:3 rwm" in Path(guarded, "devices.list").read_text()


def test_containers_inherit_the_default_device_rules(cgroups: Cgroups) -> None:
    path = make(cgroups)
    name = path.rpartition("/")[2]
    listed = value(
        cgroups, "devices", f"{cgroups.layout.parent}/{GUARDED}/{name}", "devices.list"
    ).splitlines()
    assert "a *:* rwm" not in listed
    assert {"c *:* m", "c 1:3 rwm", "c 136:* rwm"} <= set(listed)


def test_device_rules_of_ones_own_stand_in_a_cgroup_of_ones_own(cgroups: Cgroups) -> None:
    rules = (
        oci.DeviceRule(allow=False, access="rwm"),
        oci.DeviceRule(allow=True, type="c", major=10, minor=229, access="r"),
    )
    path = make(cgroups, oci.Resources(devices=rules))
    listed = value(cgroups, "devices", path, "devices.list").splitlines()
    assert {"c 10:229 r", "c 1:3 rwm"} <= set(listed) and "a *:* rwm" not in listed


def test_an_unrestricted_container_inherits_everything(cgroups: Cgroups) -> None:
    path = make(cgroups, oci.Resources(devices=(oci.DeviceRule(allow=True, access="rwm"),)))
    assert value(cgroups, "devices", path, "devices.list") == "a *:* rwm"


def test_the_device_rules_hold_for_a_process(cgroups: Cgroups, tmp_path: Path) -> None:
    node = tmp_path / "node"
    os.mknod(node, 0o020600, os.makedev(10, 229))
    path = make(cgroups)
    code = f"""
def attempt(path):
    try:
        os.close(os.open(path, os.O_RDONLY))
        return 'opened'
    except OSError as error:
        return error.strerror
print(attempt('/dev/zero'), attempt({str(node)!r}), sep=',', flush=True)
"""
    with process(cgroups, path, code) as child:
        assert child.stdout is not None
        zero, other = child.stdout.readline().decode().strip().split(",")
    assert zero == "opened"
    assert other == "Operation not permitted"


def test_a_parent_of_the_callers_is_made_ready_with_its_own_parents(cgroups: Cgroups) -> None:
    parent = f"{cgroups.layout.parent}/team/batch"
    cgroups.ensure_parent(f"/{parent}/")
    for hierarchy in cgroups.layout.hierarchies:
        assert os.path.isdir(f"{cgroups.layout.root}/{hierarchy.directory}/{parent}")
    if "cpuset" in cgroups.layout.controllers:
        assert value(cgroups, "cpuset", parent, "cpuset.cpus")
    with pytest.raises(Invalid):
        cgroups.ensure_parent("../elsewhere")


# --- limits -------------------------------------------------------------------------------------------


def test_limits_are_in_the_files(cgroups: Cgroups) -> None:
    asked = resources(
        nano_cpus=500_000_000, cpu_shares=512, memory_bytes=64 * MIB, memory_reservation_bytes=32 * MIB,
        pids_limit=20, cpuset_cpus="0", memory_swappiness=10,
    )  # fmt: skip
    path = make(cgroups, asked)
    assert value(cgroups, "cpu", path, "cpu.cfs_quota_us") == "50000"
    assert value(cgroups, "cpu", path, "cpu.shares") == "512"
    assert value(cgroups, "memory", path, "memory.limit_in_bytes") == str(64 * MIB)
    assert value(cgroups, "memory", path, "memory.soft_limit_in_bytes") == str(32 * MIB)
    assert value(cgroups, "memory", path, "memory.swappiness") == "10"
    assert value(cgroups, "pids", path, "pids.max") == "20"
    assert value(cgroups, "cpuset", path, "cpuset.cpus") == "0"
    assert value(cgroups, "cpuset", path, "cpuset.mems") == cgroups.layout.mems


def test_updates_lower_and_raise_memory_with_swap(cgroups: Cgroups) -> None:
    swap = "swap" in cgroups.layout.features
    both = {"memory_bytes": 64 * MIB, "memory_swap_bytes": 64 * MIB if swap else 0}
    path = make(cgroups, resources(**both))
    for size in (256 * MIB, 32 * MIB, 512 * MIB):
        cgroups.update(path, resources(memory_bytes=size, memory_swap_bytes=size if swap else 0))
        assert value(cgroups, "memory", path, "memory.limit_in_bytes") == str(size)
        if swap:
            assert value(cgroups, "memory", path, "memory.memsw.limit_in_bytes") == str(size)


def test_an_update_joins_a_hierarchy_that_the_container_was_not_in(cgroups: Cgroups) -> None:
    path = make(cgroups)
    with process(cgroups, path, WAIT) as child:
        ready(child)
        assert not os.path.exists(cgroups.layout.directory("cpuset", path))
        cgroups.update(path, resources(cpuset_cpus="0"))
        assert value(cgroups, "cpuset", path, "cgroup.procs") == str(child.pid)
        assert os.sched_getaffinity(child.pid) == {0}


def test_the_kernels_refusal_of_a_value_is_told(cgroups: Cgroups) -> None:
    path = make(cgroups)
    with pytest.raises(Invalid, match=r"the kernel refuses 999 for cpuset\.cpus"):
        cgroups.update(path, oci.Resources(cpu=oci.Cpu(cpus="999")))
    with pytest.raises(NotFound):
        cgroups.update(f"{cgroups.layout.parent}/none", resources(pids_limit=1))


def test_a_limit_of_processes_holds(cgroups: Cgroups) -> None:
    limit = resources(pids_limit=3)
    path = make(cgroups, limit)
    code = """
children = []
try:
    for _ in range(10):
        pid = os.fork()
        if pid == 0:
            sys.stdin.readline()
            os._exit(0)
        children.append(pid)
except OSError as error:
    print(len(children), error.strerror, sep=',', flush=True)
sys.stdin.readline()
"""
    with process(cgroups, path, code, limit) as child:
        assert child.stdout is not None
        count, reason = child.stdout.readline().decode().strip().split(",")
        assert (count, reason) == ("2", "Resource temporarily unavailable")
        assert len(cgroups.list_pids(path)) == 3
        asyncio.run(cgroups.kill(path))


# --- processes ----------------------------------------------------------------------------------------


def test_frozen_processes_stand_still_until_thawed(cgroups: Cgroups) -> None:
    path = make(cgroups)
    code = (
        "print('ready', flush=True)\nsys.stdin.readline()\nprint('went on', flush=True)\nsys.stdin.readline()"
    )
    with process(cgroups, path, code) as child:
        ready(child)
        assert not cgroups.is_frozen(path)
        asyncio.run(cgroups.freeze(path))
        assert cgroups.is_frozen(path)
        assert value(cgroups, "freezer", path, "freezer.state") == "FROZEN"
        asyncio.run(cgroups.freeze(path))
        asyncio.run(cgroups.thaw(path))
        assert not cgroups.is_frozen(path)
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"went on\n"
        asyncio.run(cgroups.thaw(path))


def test_freezing_what_does_not_exist_is_told(cgroups: Cgroups) -> None:
    with pytest.raises(NotFound):
        asyncio.run(cgroups.freeze(f"{cgroups.layout.parent}/none"))
    assert not cgroups.is_frozen(f"{cgroups.layout.parent}/none")


def test_kill_ends_every_process_even_frozen_and_nested_ones(cgroups: Cgroups) -> None:
    path = make(cgroups)
    nested = f"{path}/nested"
    os.mkdir(cgroups.layout.directory("pids", nested))
    code = f"""
pid = os.fork()
if pid == 0:
    with open({cgroups.layout.directory("pids", nested) + "/cgroup.procs"!r}, 'w') as file:
        file.write(str(os.getpid()))
    print('ready', flush=True)
    while True:
        sys.stdin.readline()
os.waitpid(pid, 0)
"""
    with process(cgroups, path, code) as child:
        ready(child)
        assert len(cgroups.list_pids(path)) == 2
        asyncio.run(cgroups.freeze(path))
        asyncio.run(cgroups.kill(path))
        assert cgroups.list_pids(path) == []
        child.wait(30)
        asyncio.run(cgroups.remove(path))
    assert cgroups.list_containers() == []


def test_killing_nothing_is_fine(cgroups: Cgroups) -> None:
    asyncio.run(cgroups.kill(make(cgroups)))
    asyncio.run(cgroups.kill(f"{cgroups.layout.parent}/none"))


def test_removal_waits_for_the_last_process_and_names_it(cgroups: Cgroups) -> None:
    path = make(cgroups)
    with process(cgroups, path, WAIT) as child:
        ready(child)
        with pytest.raises(HostError, match=rf"still busy .*{child.pid}"):
            asyncio.run(cgroups.remove(path, 0.05))

        async def end_while_removing() -> None:
            removal = asyncio.ensure_future(cgroups.remove(path, 30))
            await asyncio.sleep(0)
            child.kill()
            await asyncio.to_thread(child.wait)
            await removal

        asyncio.run(end_while_removing())
    assert cgroups.list_containers() == []


def test_what_is_left_below_the_parent_is_listed(cgroups: Cgroups) -> None:
    made = {make(cgroups, name="one"), make(cgroups, name="two")}
    os.mkdir(cgroups.layout.directory("devices", f"{cgroups.layout.parent}/{GUARDED}/three"))
    assert set(cgroups.list_containers()) == made | {f"{cgroups.layout.parent}/three"}


def test_the_planned_removal_leaves_nothing(cgroups: Cgroups) -> None:
    path = make(cgroups)
    for step in plan_cgroup(cgroups.layout, path, NO_RESOURCES).exit:
        if isinstance(step, RemoveHostDir):
            os.rmdir(step.path)
    assert cgroups.list_containers() == []


# --- observation --------------------------------------------------------------------------------------


def test_statistics_grow_with_use(cgroups: Cgroups) -> None:
    path = make(cgroups, resources(memory_bytes=256 * MIB, pids_limit=9))
    code = f"block = b'x' * {32 * MIB}\nsum(range(2_000_000))\n{WAIT}"
    with process(cgroups, path, code) as child:
        ready(child)
        stats = cgroups.read_stats(path)
    assert stats.cpu.usage_ns > 0
    assert sum(stats.cpu.percpu_ns) > 0
    assert stats.memory.usage_bytes > 16 * MIB
    assert stats.memory.limit_bytes == 256 * MIB
    assert stats.memory.stat["rss"] > 16 * MIB
    assert (stats.pids.current, stats.pids.limit) == (1, 9)
    with pytest.raises(NotFound):
        cgroups.read_stats(f"{cgroups.layout.parent}/none")


def test_an_unlimited_container_shows_no_limits(cgroups: Cgroups) -> None:
    stats = cgroups.read_stats(make(cgroups))
    assert (stats.memory.limit_bytes, stats.pids.limit, stats.memory.oom_kills) == (0, 0, 0)


def test_a_kill_for_want_of_memory_is_an_event(cgroups: Cgroups) -> None:
    limit = resources(
        memory_bytes=24 * MIB, memory_swap_bytes=24 * MIB if "swap" in cgroups.layout.features else 0
    )
    path = make(cgroups, limit)
    watch = cgroups.watch_oom(path)
    try:
        with process(cgroups, path, f"block = bytearray(os.urandom({MIB}) * 200)\n{WAIT}", limit) as child:
            await_event(watch)
            assert watch.take()  # whether or not the kill has been counted yet
            assert child.wait(60) == -9
        assert cgroups.read_stats(path).memory.oom_kills == 1
    finally:
        watch.close()


def await_event(watch: OomWatch) -> None:
    async def event() -> None:
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        loop.add_reader(watch.fileno(), arrived.set)
        async with asyncio.timeout(60):
            await arrived.wait()
        loop.remove_reader(watch.fileno())

    asyncio.run(event())


def test_the_end_of_a_cgroup_is_no_want_of_memory(cgroups: Cgroups) -> None:
    path = make(cgroups)
    watch = cgroups.watch_oom(path)
    try:
        asyncio.run(cgroups.remove(path))
        await_event(watch)
        assert not watch.take()
    finally:
        watch.close()
    with pytest.raises(NotFound):
        cgroups.watch_oom(path)


# --- a container anywhere -----------------------------------------------------------------------------


def test_the_way_is_made_in_every_hierarchy_and_undone(cgroups: Cgroups) -> None:
    path = f"{cgroups.layout.parent}/pods/deep/one"
    made = cgroups.prepare(path, resources(pids_limit=9))
    assert len([directory for directory in made if directory.endswith("/pods/deep/one")]) == len(
        cgroups.layout.hierarchies
    )
    assert value(cgroups, "cpuset", path, "cpuset.cpus")
    assert cgroups.prepare(path, resources(pids_limit=9)) == []
    cgroups.undo(made)
    assert not os.path.exists(cgroups.layout.directory("pids", f"{cgroups.layout.parent}/pods"))


def test_a_cgroup_in_use_or_frozen_is_refused(cgroups: Cgroups) -> None:
    path = make(cgroups)
    with process(cgroups, path, WAIT) as child:
        ready(child)
        with pytest.raises(Conflict, match=r"cgroup is not empty: 1 process\(es\)"):
            cgroups.prepare(path, NO_RESOURCES)
    write(f"{cgroups.layout.directory('freezer', path)}/freezer.state", "FROZEN")
    with pytest.raises(Conflict, match="unexpectedly frozen"):
        cgroups.prepare(path, NO_RESOURCES)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"unified": {"memory.high": "1"}}, "this host has cgroup v1, which has no such files"),
        ({"hugepage_limits": (oci.HugepageLimit(page_size="2MB", limit=0),)}, "no cgroup v1 controller hugetlb"),
        ({"network": oci.NetworkLimits(class_id=1)}, "no cgroup v1 controller net_cls"),
        ({"block_io": oci.BlockIo(leaf_weight=10)}, "leafWeight: this host can't do blkio.leaf_weight"),
        ({"memory": oci.Memory(swappiness=101)}, "give 0 to 100"),
    ],
)  # fmt: skip
def test_what_this_host_lacks_is_refused_by_name_and_nothing_is_left(
    cgroups: Cgroups, asked: dict[str, Any], words: str
) -> None:
    if "controller" in words and words.rpartition(" ")[2] in cgroups.layout.controllers:
        pytest.skip("this host has that controller")
    path = f"{cgroups.layout.parent}/pods/one"
    with pytest.raises(CoveError, match=words):
        cgroups.prepare(path, oci.Resources(**asked))
    assert not os.path.exists(cgroups.layout.directory("pids", f"{cgroups.layout.parent}/pods"))


def test_every_field_of_processors_and_memory_is_written(cgroups: Cgroups) -> None:
    asked = oci.Resources(
        cpu=oci.Cpu(quota=50_000, period=100_000, burst=10_000, idle=0),
        memory=oci.Memory(
            limit=64 * MIB, swap=96 * MIB, kernel_tcp=8 * MIB, swappiness=5, use_hierarchy=True, kernel=1,
            disable_oom_killer=True,
        ),
        pids=oci.Pids(limit=0),
    )  # fmt: skip
    path = f"{cgroups.layout.parent}/pods/one"
    cgroups.prepare(path, asked)
    for step in plan_cgroup(cgroups.layout, path, asked, everything=True).before:
        if isinstance(step, WriteHost):
            write(step.path, step.data, optional=bool(step.optional))
    assert value(cgroups, "cpu", path, "cpu.cfs_burst_us") == "10000"
    assert value(cgroups, "memory", path, "memory.kmem.tcp.limit_in_bytes") == str(8 * MIB)
    assert "oom_kill_disable 1" in value(cgroups, "memory", path, "memory.oom_control")
    assert value(cgroups, "pids", path, "pids.max") == "1"
    listed = value(cgroups, "devices", path, "devices.list").splitlines()
    assert "a *:* rwm" not in listed and "c 1:3 rwm" in listed
    cgroups.update(path, oci.Resources(cpu=oci.Cpu(quota=90_000, burst=80_000)))
    assert value(cgroups, "cpu", path, "cpu.cfs_burst_us") == "80000"
    cgroups.update(path, oci.Resources(memory=oci.Memory(limit=-1)))
    assert parse_number(value(cgroups, "memory", path, "memory.limit_in_bytes")) == 0


def test_device_rules_are_changed_in_place(cgroups: Cgroups) -> None:
    deny = oci.DeviceRule(allow=False, access="rwm")
    one, two = (oci.DeviceRule(allow=True, type="c", major=10, minor=n, access="rw") for n in (1, 2))
    path = make(cgroups, oci.Resources(devices=(deny, one)))
    cgroups.update(path, oci.Resources(devices=(deny, two)))
    listed = value(cgroups, "devices", path, "devices.list").splitlines()
    assert (
        "c 10:2 rw" in listed and "c 1:3 rwm" in listed and not [x for x in listed if x.startswith("c 10:1 ")]
    )
    cgroups.update(path, oci.Resources(devices=(oci.DeviceRule(allow=True, access="rwm"),)))
    assert value(cgroups, "devices", path, "devices.list") == "a *:* rwm"


def test_waiting_needs_no_loop(cgroups: Cgroups) -> None:
    path = make(cgroups)
    with process(cgroups, path, WAIT) as child:
        ready(child)
        wait_here(cgroups.freezing(path))
        assert cgroups.is_frozen(path)
        wait_here(cgroups.thawing(path))
        cgroups.signal(path, 9)
        assert child.wait(30) == -9
    wait_here(cgroups.removing(path))
