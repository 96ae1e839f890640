"""Limits, device rules and statistics of cgroups, and v2's effects on a fake tree."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.model.container import Resources, ThrottleDevice, WeightDevice
from cove.model.errors import HostError, Invalid, NotFound, Unavailable
from cove.runtime import oci
from cove.runtime.cgroups_detect import detect_cgroups
from cove.runtime.cgroups_devices import (
    ALLOW_ALL,
    DEFAULT_RULES,
    DENY_ALL,
    effective_rules,
    is_unrestricted,
    parse_rule,
    v1_changes,
    v1_lines,
    v2_program,
)
from cove.runtime.cgroups_limits import (
    FEATURES,
    check_resources,
    missing_features,
    parse_set,
    plan_resources,
)
from cove.runtime.cgroups_stats import (
    parse_blkio,
    parse_flat,
    parse_io_stat,
    parse_number,
    parse_pressure,
    parse_proc_stat,
    parse_rdma,
)
from cove.runtime.facts import Hierarchy, Layout, check_parent
from cove.runtime.plan_cgroups import NO_RESOURCES, plan_cgroup
from cove.runtime.plan_limits import io_weight_of_blkio, limit_writes, weight_of_shares
from cove.runtime.steps import AttachDeviceProgram, WriteHost
from tests.unit.runtime_samples import LAYOUT_V1, LAYOUT_V2

MIB = 1 << 20
POOR = Layout(version=1, online_cpus=2)  # a host without any controller


# --- checks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"memory_bytes": 6 * MIB - 1}, "Minimum memory limit allowed is 6MB"),
        (
            {"memory_bytes": 8 * MIB, "memory_swap_bytes": 7 * MIB},
            "Minimum memoryswap limit should be larger",
        ),
        ({"memory_swap_bytes": 8 * MIB}, "You should always set the Memory limit when using Memoryswap"),
        ({"memory_swap_bytes": -2}, "memory-swap -2"),
        ({"memory_swappiness": 101}, "valid memory swappiness range is 0-100"),
        ({"memory_reservation_bytes": 1}, "Minimum memory reservation allowed is 6MB"),
        (
            {"memory_bytes": 8 * MIB, "memory_reservation_bytes": 9 * MIB},
            "can not be less than memory reservation",
        ),
        (
            {"nano_cpus": 4_000_000_001},
            "range of CPUs is from 0.01 to 4.00, as there are only 4 CPUs available",
        ),
        ({"nano_cpus": -1}, "range of CPUs is from 0.01 to 4.00"),
        ({"nano_cpus": 1}, "range of CPUs is from 0.01 to 4.00"),
        ({"nano_cpus": 10**9, "cpu_period_us": 1000}, "Nano CPUs and CPU Period cannot both be set"),
        ({"nano_cpus": 10**9, "cpu_quota_us": 1000}, "Nano CPUs and CPU Quota cannot both be set"),
        ({"cpu_period_us": 999}, "CPU cfs period can not be less than 1ms"),
        ({"cpu_period_us": 1_000_001}, "larger than 1s"),
        ({"cpu_quota_us": 999}, "CPU cfs quota can not be less than 1ms"),
        ({"cpu_shares": -1}, "invalid CPU shares (-1)"),
        ({"cpu_rt_period_us": 10, "cpu_rt_runtime_us": 11}, "cannot be higher than cpu real-time period"),
        ({"cpuset_cpus": "0-4"}, "Requested CPUs are not available - requested 0-4, available: 0-3"),
        ({"cpuset_cpus": "a"}, "Invalid value a for cpuset cpus"),
        ({"cpuset_cpus": "3-1"}, "Invalid value 3-1"),
        ({"cpuset_mems": "1"}, "Requested memory nodes are not available - requested 1, available: 0"),
        ({"blkio_weight": 5}, "Range of blkio weight is from 10 to 1000"),
        ({"blkio_weight_device": (WeightDevice(path="/dev/x", weight=1001),)}, "from 10 to 1000"),
        ({"read_bps": (ThrottleDevice(path="/dev/x", rate=0),)}, "give a positive number"),
    ],
)
def test_an_impossible_limit_is_refused_in_dockers_words(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_resources(Resources(**asked), LAYOUT_V1)
    assert words in str(caught.value)


def test_memory_alone_gets_as_much_swap_again() -> None:
    checked, warnings = check_resources(Resources(memory_bytes=64 * MIB), LAYOUT_V1)
    assert (checked.memory_swap_bytes, warnings) == (128 * MIB, [])
    lifted, _ = check_resources(Resources(memory_bytes=64 * MIB, memory_swap_bytes=-1), LAYOUT_V1)
    assert lifted.memory_swap_bytes == -1


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"memory_bytes": 64 * MIB}, "does not support memory limit"),
        ({"memory_swappiness": 10}, "memory swappiness"),
        ({"memory_reservation_bytes": 64 * MIB}, "memory soft limit"),
        ({"kernel_memory_tcp_bytes": MIB}, "kernel memory TCP"),
        ({"oom_kill_disable": True}, "OomKillDisable discarded"),
        ({"pids_limit": 5}, "PIDs limit discarded"),
        ({"cpu_shares": 5}, "Shares discarded"),
        ({"cpu_quota_us": 5000}, "CPU period/quota discarded"),
        ({"cpuset_cpus": "0"}, "Cpuset discarded"),
        ({"blkio_weight": 50}, "Weight discarded"),
        ({"blkio_weight_device": (WeightDevice(path="/dev/x", weight=10),)}, "Weight-device discarded"),
        ({"read_bps": (ThrottleDevice(path="/dev/x", rate=1),)}, "BPS read limit discarded"),
        ({"write_iops": (ThrottleDevice(path="/dev/x", rate=1),)}, "IOPS write limit discarded"),
    ],
)
def test_a_limit_that_the_host_lacks_is_discarded_with_a_warning(asked: dict[str, Any], words: str) -> None:
    checked, warnings = check_resources(Resources(**asked), POOR)
    assert [warning for warning in warnings if words in warning]
    assert checked == Resources()


def test_processor_limits_that_the_host_lacks_are_refused() -> None:
    with pytest.raises(Invalid, match="NanoCPUs can not be set"):
        check_resources(Resources(nano_cpus=10**9), POOR)
    with pytest.raises(Invalid, match="real-time scheduler"):
        check_resources(Resources(cpu_rt_period_us=1), POOR)


def test_memory_without_swap_accounting_is_limited_alone() -> None:
    layout = Layout(version=1, features=frozenset({"memory"}))
    checked, warnings = check_resources(Resources(memory_bytes=64 * MIB), layout)
    assert checked.memory_swap_bytes == -1
    assert "Memory limited without swap" in warnings[0]


def test_info_lists_what_is_missing() -> None:
    assert missing_features(LAYOUT_V1) == []
    assert len(missing_features(POOR)) == len(FEATURES)


@given(st.sets(st.integers(0, 300), max_size=20))
def test_sets_of_processors_are_read_as_the_kernel_writes_them(numbers: set[int]) -> None:
    assert parse_set(",".join(map(str, sorted(numbers)))) == numbers
    assert parse_set("0-3,7") == {0, 1, 2, 3, 7}


@pytest.mark.parametrize("text", ["-1", "1-", "99999", "1;2", "٣", "1 2"])
def test_other_sets_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_set(text)


# --- conversions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1024, 100), (262144, 10000), (1, 1), (10**9, 10000)])
def test_shares_and_weights_meet_at_their_ends_and_defaults(shares: int, weight: int) -> None:
    assert weight_of_shares(shares) == weight


@given(st.integers(2, 262143))
def test_more_shares_never_weigh_less(shares: int) -> None:
    assert 1 <= weight_of_shares(shares) <= weight_of_shares(shares + 1) <= 10000


def test_io_weights_cover_the_whole_range() -> None:
    assert (io_weight_of_blkio(10), io_weight_of_blkio(1000)) == (1, 10000)


def writes(resources: Resources, layout: Layout) -> dict[str, str]:
    planned = plan_resources(resources, {"/dev/vda": (254, 0)})
    return {write.file: write.value for write in limit_writes(layout, planned)}


def test_nothing_is_written_that_nobody_asked_for() -> None:
    assert plan_resources(Resources(), {}) == NO_RESOURCES
    assert writes(Resources(), LAYOUT_V1) == writes(Resources(), LAYOUT_V2) == {}


def test_fractions_of_processors_become_a_quota() -> None:
    half = Resources(nano_cpus=500_000_000)
    assert writes(half, LAYOUT_V1) == {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}
    assert writes(half, LAYOUT_V2) == {"cpu.max": "50000 100000"}


def test_lifting_limits_says_so_in_each_versions_way() -> None:
    lifted = Resources(memory_bytes=-1, memory_swap_bytes=-1, cpu_quota_us=-1, pids_limit=-1)
    assert writes(lifted, LAYOUT_V1) == {
        "memory.limit_in_bytes": "-1", "memory.memsw.limit_in_bytes": "-1", "cpu.cfs_quota_us": "-1",
        "pids.max": "max",
    }  # fmt: skip
    assert writes(lifted, LAYOUT_V2) == {
        "memory.max": "max", "memory.swap.max": "max", "cpu.max": "max 100000", "pids.max": "max",
    }  # fmt: skip


def test_swap_counts_alone_on_v2() -> None:
    both = Resources(memory_bytes=64 * MIB, memory_swap_bytes=96 * MIB)
    assert writes(both, LAYOUT_V2)["memory.swap.max"] == str(32 * MIB)
    assert writes(both, LAYOUT_V1)["memory.memsw.limit_in_bytes"] == str(96 * MIB)


def test_throttles_name_devices_by_number() -> None:
    throttle = (ThrottleDevice(path="/dev/vda", rate=7),)
    assert writes(Resources(read_bps=throttle), LAYOUT_V1) == {"blkio.throttle.read_bps_device": "254:0 7"}
    assert writes(Resources(read_bps=throttle, write_iops=throttle), LAYOUT_V2) == {
        "io.max": "254:0 rbps=7 wiops=7"
    }


# --- devices ------------------------------------------------------------------------------------------

MKNOD, READ, WRITE = 1, 2, 4


def run_bpf(program: bytes, kind: str, major: int, minor: int, access: int) -> bool:
    """Run a BPF_PROG_TYPE_CGROUP_DEVICE program, as far as ours use the machine."""
    context = struct.pack("<III", {"b": 1, "c": 2}[kind] | access << 16, major, minor)
    registers = [0] * 11
    at = 0
    while True:
        code, regs, offset, immediate = struct.unpack_from("<BBhI", program, at * 8)
        dst, src = regs & 15, regs >> 4
        at += 1
        if code == 0x61:
            (registers[dst],) = struct.unpack_from("<I", context, offset)
        elif code == 0x54:
            registers[dst] &= immediate
        elif code == 0x74:
            registers[dst] >>= immediate
        elif code == 0xBC:
            registers[dst] = registers[src]
        elif code == 0xB7:
            registers[dst] = immediate
        elif code in (0x55, 0x15, 0x5D):
            other = registers[src] if code == 0x5D else immediate
            equal = registers[dst] == other
            at += offset if equal == (code == 0x15) else 0
        else:
            assert code == 0x95
            return bool(registers[0])


@pytest.mark.parametrize(
    ("kind", "major", "minor", "access", "allowed"),
    [
        ("c", 1, 3, READ | WRITE, True),
        ("c", 5, 2, READ | WRITE, True),
        ("c", 136, 77, READ, True),
        ("c", 10, 229, READ, False),
        ("c", 10, 229, MKNOD, True),
        ("b", 254, 0, READ, False),
        ("b", 254, 0, MKNOD, True),
        ("b", 254, 0, MKNOD | READ, False),
        ("b", 1, 3, READ, False),
        ("c", 1, 1, WRITE, False),
    ],
)
def test_default_device_program_lets_the_default_devices_through(
    kind: str, major: int, minor: int, access: int, allowed: bool
) -> None:
    assert run_bpf(v2_program(DEFAULT_RULES), kind, major, minor, access) is allowed


rule_sets = st.lists(
    st.builds(
        oci.DeviceRule, allow=st.booleans(), type=st.sampled_from(["a", "b", "c", ""]),
        major=st.sampled_from([None, -1, 1, 2]), minor=st.sampled_from([None, -1, 1, 2]),
        access=st.sampled_from(["r", "w", "m", "rw", "rwm", ""]),
    ),
    max_size=6,
).map(tuple)  # fmt: skip


def decide(rules: tuple[oci.DeviceRule, ...], kind: str, major: int, minor: int, access: int) -> bool:
    """The rules' meaning, spelled out: the last that matches decides."""
    for rule in reversed(rules):
        bits = sum({"m": MKNOD, "r": READ, "w": WRITE}[letter] for letter in rule.access or "rwm")
        same = (
            rule.type in ("", "a", kind)
            and rule.major in (None, -1, major)
            and rule.minor in (None, -1, minor)
        )
        if same and (access & ~bits == 0 if rule.allow else access & bits):
            return rule.allow
    return False


@given(rule_sets, st.sampled_from("bc"), st.integers(1, 3), st.integers(1, 3), st.integers(1, 7))
def test_device_programs_mean_what_their_rules_say(
    rules: tuple[oci.DeviceRule, ...], kind: str, major: int, minor: int, access: int
) -> None:
    assert run_bpf(v2_program(rules), kind, major, minor, access) == decide(rules, kind, major, minor, access)


def test_device_rules_are_written_for_v1() -> None:
    rules = (DENY_ALL, parse_rule("c 1:* rw"), ALLOW_ALL)
    assert v1_lines(rules) == [("devices.deny", "a"), ("devices.allow", "c 1:* rw"), ("devices.allow", "a")]


@pytest.mark.parametrize(
    "text", ["", "c 1:3", "x 1:3 r", "c 1:3 q", "c 1:3 rwmr", "c -1:3 r", "c 1:3 r\n", "c 1 3 r"]
)
def test_other_device_rules_are_refused(text: str) -> None:
    with pytest.raises(Invalid, match="invalid device cgroup rule format"):
        parse_rule(text)


def test_unrestricted_rules_need_no_program() -> None:
    assert is_unrestricted((DENY_ALL, ALLOW_ALL)) and not is_unrestricted(DEFAULT_RULES)
    plan = plan_cgroup(LAYOUT_V2, "cove/x", oci.Resources(devices=(ALLOW_ALL,)))
    assert not [step for step in plan.before if isinstance(step, AttachDeviceProgram)]


# --- statistics ---------------------------------------------------------------------------------------


def test_numbers_without_a_limit_are_zero() -> None:
    assert [parse_number(text) for text in ("max\n", "9223372036854771712\n", "", "42\n")] == [0, 0, 0, 42]


def test_control_files_are_parsed() -> None:
    assert parse_flat("a 1\nb x\nc 3\n") == {"a": 1, "c": 3}
    entries = parse_blkio("254:0 Read 10\n254:0 Write 20\nTotal 30\n")
    assert [(entry.major, entry.operation, entry.value) for entry in entries] == [
        (254, "Read", 10),
        (254, "Write", 20),
    ]
    io = parse_io_stat("254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n(unknown) rbytes=9\n")
    assert [entry.value for entry in (*io.bytes_recursive, *io.operations_recursive)] == [1, 2, 3, 4]
    clock = parse_proc_stat("cpu  1 1 1 1 1 1 1 1 9 9\ncpu0 1\ncpu1 1\nintr 5\n")
    assert (clock.system_ns, clock.online) == (80_000_000, 2)


# --- names and detection ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "/", "..", "a/../b", "a//b", "./a", "a\0"])
def test_parents_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(Invalid, match="cgroup parent"):
        check_parent(name)


def test_a_host_without_cgroups_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no control groups are mounted"):
        detect_cgroups(str(tmp_path))


def test_a_hybrid_host_is_v1(tmp_path: Path) -> None:
    for name in ("memory", "cpu,cpuacct", "systemd", "unified"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").touch()
    (tmp_path / "unified/cgroup.controllers").touch()
    (tmp_path / "cpu").symlink_to("cpu,cpuacct")
    layout = detect_cgroups(str(tmp_path)).layout
    assert layout.version == 1
    assert layout.controllers == {"memory", "cpu", "cpuacct", "name=systemd"}
    assert layout.directory("cpuacct", "cove/x") == f"{tmp_path}/cpu,cpuacct/cove/x"


# --- v2, on a fake tree -------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.controllers").write_text("cpu cpuset io memory pids hugetlb\n")
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")
    (tmp_path / "cpuset.cpus.effective").write_text("0-3\n")
    (tmp_path / "cpuset.mems.effective").write_text("0\n")
    return tmp_path


def fill(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("_", ".", 1)).write_text(text)


def test_v2_is_detected_with_its_controllers(tree: Path) -> None:
    layout = detect_cgroups(str(tree), parent="cove").layout
    assert (layout.version, layout.cpus, layout.mems) == (2, "0-3", "0")
    assert layout.controllers >= {"cpu", "io", "memory"}


def test_v2_statistics_are_read(tree: Path) -> None:
    fill(
        tree / "cove/x", cpu_stat="usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_throttled 1\n",
        memory_current="4096\n", memory_max="max\n", memory_events="max 7\noom_kill 2\n", memory_stat="anon 9\n",
        pids_current="3\n", pids_max="10\n", io_stat="254:0 rbytes=1 wbytes=2 rios=3 wios=4\n",
    )  # fmt: skip
    stats = detect_cgroups(str(tree)).read_stats("cove/x")
    assert (stats.cpu.usage_ns, stats.cpu.user_ns, stats.cpu.throttled_periods) == (5000, 3000, 1)
    assert (stats.memory.usage_bytes, stats.memory.limit_bytes, stats.memory.oom_kills) == (4096, 0, 2)
    assert (stats.memory.failures, stats.memory.stat) == (7, {"anon": 9})
    assert (stats.pids.current, stats.pids.limit) == (3, 10)
    assert stats.io.bytes_recursive[0].value == 1


def test_v2_updates_write_only_what_changes(tree: Path) -> None:
    fill(tree / "cove/x", memory_max="max", pids_max="max", cpu_max="max 100000")
    cgroups = detect_cgroups(str(tree))
    cgroups.update("cove/x", plan_resources(Resources(pids_limit=5), {}))
    assert (tree / "cove/x/pids.max").read_text().startswith("5")
    assert (tree / "cove/x/memory.max").read_text() == "max"
    with pytest.raises(NotFound):
        cgroups.update("cove/y", plan_resources(Resources(pids_limit=5), {}))
    with pytest.raises(Unavailable, match=r"can't do cpu\.weight"):
        cgroups.update("cove/x", plan_resources(Resources(cpu_shares=5), {}))


def test_v2_swap_alone_goes_by_the_memory_limit_that_holds(tree: Path) -> None:
    fill(tree / "cove/x", memory_max=f"{64 * MIB}\n")
    (tree / "cove/x/memory.swap.max").write_text("0000000000")
    detect_cgroups(str(tree)).update("cove/x", plan_resources(Resources(memory_swap_bytes=96 * MIB), {}))
    assert (tree / "cove/x/memory.swap.max").read_text().startswith(str(32 * MIB))
    assert (tree / "cove/x/memory.max").read_text() == f"{64 * MIB}\n"


def test_v2_freezing_waits_for_the_event_and_gives_up_in_time(tree: Path) -> None:
    fill(tree / "cove/x", cgroup_freeze="0", cgroup_events="populated 1\nfrozen 1\n")
    cgroups = detect_cgroups(str(tree))
    asyncio.run(cgroups.freeze("cove/x", 5))
    assert cgroups.is_frozen("cove/x")
    with pytest.raises(HostError, match="not all processes were thawed"):
        asyncio.run(cgroups.thaw("cove/x", 0.01))
    (tree / "cove/x/cgroup.events").write_text("frozen 0\n")
    with pytest.raises(HostError, match="not all processes were frozen"):
        asyncio.run(cgroups.freeze("cove/x", 0.01))
    assert not cgroups.is_frozen("cove/x")


def test_v2_oom_events_are_told_once(tree: Path) -> None:
    fill(tree / "cove/x", memory_events="oom_kill 1\n")
    watch = detect_cgroups(str(tree)).watch_oom("cove/x")
    try:
        assert not watch.take()
        (tree / "cove/x/memory.events").write_text("oom_kill 2\n")
        assert watch.take()
        assert not watch.take()
    finally:
        watch.close()
        watch.close()


def test_removing_what_is_gone_is_fine(tree: Path) -> None:
    cgroups = detect_cgroups(str(tree))
    (tree / "cove/x/nested").mkdir(parents=True)
    asyncio.run(cgroups.remove("cove/x"))
    asyncio.run(cgroups.remove("cove/x"))
    assert cgroups.list_containers() == []


def test_a_cgroup_that_cannot_be_removed_is_named_in_time(tree: Path) -> None:
    fill(tree / "cove/x", cgroup_procs="1234\n")
    with pytest.raises(HostError, match=r"cove/x is still busy after 0\.01 s \(processes: 1234\)"):
        asyncio.run(detect_cgroups(str(tree)).remove("cove/x", 0.01))


# --- linux.resources, field by field ------------------------------------------------------------------

_V1 = ("cpu", "cpuset", "memory", "blkio", "pids", "hugetlb", "net_cls", "net_prio", "rdma", "devices")
ALL_V1 = Layout(
    version=1, hierarchies=(Hierarchy(directory="all", controllers=_V1),), controllers=frozenset(_V1)
)
ALL_V2 = Layout(version=2, controllers=frozenset("cpu cpuset io memory pids hugetlb rdma misc".split()))


@pytest.mark.parametrize(
    ("asked", "v1", "v2"),
    [
        ({"cpu": oci.Cpu(burst=5, idle=0)}, {"cpu.cfs_burst_us": "5", "cpu.idle": "0"},
         {"cpu.max.burst": "5", "cpu.idle": "0"}),
        ({"cpu": oci.Cpu(shares=0, quota=0, period=0)}, {}, {}),
        ({"cpu": oci.Cpu(idle=1, shares=5)}, {"cpu.idle": "1", "cpu.shares": "5"}, {"cpu.idle": "1"}),
        ({"memory": oci.Memory(limit=-1)}, {"memory.limit_in_bytes": "-1", "memory.memsw.limit_in_bytes": "-1"},
         {"memory.max": "max", "memory.swap.max": "max"}),
        ({"memory": oci.Memory(limit=8, swap=8)}, {"memory.limit_in_bytes": "8", "memory.memsw.limit_in_bytes": "8"},
         {"memory.max": "8", "memory.swap.max": "0"}),
        ({"memory": oci.Memory(limit=-1, swap=8)}, {"memory.limit_in_bytes": "-1", "memory.memsw.limit_in_bytes": "8"},
         {"memory.max": "max", "memory.swap.max": "8"}),
        ({"memory": oci.Memory(kernel=5, kernel_tcp=0, swappiness=2**64 - 1, use_hierarchy=False)}, {}, {}),
        ({"pids": oci.Pids(limit=0)}, {"pids.max": "1"}, {"pids.max": "1"}),
        ({"pids": oci.Pids(limit=-1)}, {"pids.max": "max"}, {"pids.max": "max"}),
        ({"pids": oci.Pids()}, {}, {}),
        ({"hugepage_limits": (oci.HugepageLimit(page_size="2MB", limit=7),)},
         {"hugetlb.2MB.limit_in_bytes": "7", "hugetlb.2MB.rsvd.limit_in_bytes": "7"},
         {"hugetlb.2MB.max": "7", "hugetlb.2MB.rsvd.max": "7"}),
        ({"rdma": {"mlx5_1": oci.Rdma(hca_handles=3, hca_objects=9)}},
         {"rdma.max": "mlx5_1 hca_handle=3 hca_object=9"}, {"rdma.max": "mlx5_1 hca_handle=3 hca_object=9"}),
        ({"block_io": oci.BlockIo(weight_device=(oci.IoWeightDevice(major=8, minor=0, weight=10),))},
         {"blkio.weight_device": "8:0 10", "blkio.bfq.weight_device": "8:0 10"},
         {"io.bfq.weight": "8:0 10", "io.weight": "8:0 1"}),
        ({"block_io": oci.BlockIo(throttle_read_bps_device=(oci.IoThrottleDevice(major=8, minor=0, rate=0),))},
         {"blkio.throttle.read_bps_device": "8:0 0"}, {"io.max": "8:0 rbps=max"}),
    ],
)  # fmt: skip
def test_each_field_has_its_files(asked: dict[str, Any], v1: dict[str, str], v2: dict[str, str]) -> None:
    for layout, expected in ((ALL_V1, v1), (ALL_V2, v2)):
        found = limit_writes(layout, oci.Resources(**asked))
        assert {write.file: write.value for write in found} == expected
        assert all(write.field.startswith("linux.resources.") for write in found)


def test_v1_has_network_classes_and_leaf_weights() -> None:
    asked = oci.Resources(
        network=oci.NetworkLimits(class_id=7, priorities=(oci.InterfacePriority(name="eth0", priority=5),)),
        block_io=oci.BlockIo(leaf_weight=20),
        memory=oci.Memory(swappiness=0, disable_oom_killer=True),
    )
    assert {write.file: write.value for write in limit_writes(ALL_V1, asked)} == {
        "net_cls.classid": "7", "net_prio.ifpriomap": "eth0 5", "blkio.leaf_weight": "20",
        "memory.swappiness": "0", "memory.oom_control": "1",
    }  # fmt: skip


def test_unified_comes_last_a_line_at_a_time() -> None:
    asked = oci.Resources(
        pids=oci.Pids(limit=5), unified={"io.max": "8:0 rbps=1\n8:16 wbps=2", "pids.max": "6"}
    )
    assert [(write.file, write.value) for write in limit_writes(ALL_V2, asked)] == [
        ("pids.max", "5"), ("io.max", "8:0 rbps=1"), ("io.max", "8:16 wbps=2"), ("pids.max", "6"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "asked", "words"),
    [
        (ALL_V2, {"memory": oci.Memory(limit=9, swap=8)}, r"memory\.swap: 8 is less than memory\.limit 9"),
        (ALL_V2, {"memory": oci.Memory(swap=8)}, r"memory\.swap: .* give memory\.limit, too"),
        (ALL_V2, {"memory": oci.Memory(disable_oom_killer=True)}, r"memory\.disableOOMKiller: cgroup v2 has nothing"),
        (ALL_V2, {"block_io": oci.BlockIo(leaf_weight=5)}, r"blockIO\.leafWeight: cgroup v2 has nothing"),
        (ALL_V2, {"unified": {"a/b": ""}}, r"unified\['a/b'\]: it is no file of a cgroup"),
        (ALL_V2, {"unified": {"memory": ""}}, "is no file of a cgroup"),
        (ALL_V2, {"unified": {"perf.x": ""}}, "no cgroup v2 controller perf"),
        (ALL_V1, {"unified": {"memory.high": "1"}}, "has cgroup v1, which has no such files"),
        (ALL_V2, {"rdma": {"x": oci.Rdma()}}, "give hcaHandles, hcaObjects or both"),
        (ALL_V2, {"hugepage_limits": (oci.HugepageLimit(page_size="../2MB", limit=1),)}, "is no size of pages"),
        (Layout(version=1), {"pids": oci.Pids(limit=5)}, r"pids\.limit: this host has no cgroup v1 controller pids"),
    ],
)  # fmt: skip
def test_limits_that_cannot_be_are_refused_by_their_place(
    layout: Layout, asked: dict[str, Any], words: str
) -> None:
    with pytest.raises((Invalid, Unavailable), match=words):
        limit_writes(layout, oci.Resources(**asked))


def test_a_scopes_cgroup_is_left_to_its_pause() -> None:
    plan = plan_cgroup(ALL_V2, "system.slice/x.scope", oci.Resources(pids=oci.Pids(limit=5)), systemd=True)
    assert [type(step).__name__ for step in (*plan.before, *plan.child, *plan.exit)] == ["Pause", "ReadOom"]
    assert plan.clone_into == ""


@pytest.mark.parametrize("path", ["docker/x", "cove/x"])
def test_who_joins_everything_has_its_device_rules_itself(path: str) -> None:
    plan = plan_cgroup(ALL_V1, path, oci.Resources(), everything=True)
    devices = [step for step in plan.before if isinstance(step, WriteHost)]
    assert devices[0].path.endswith(f"/{path}/devices.deny") and devices[0].data == "a"


def test_default_devices_are_allowed_whatever_the_rules_say() -> None:
    rule = oci.DeviceRule(allow=True, type="c", major=10, minor=1, access="r")
    rules = effective_rules((DENY_ALL, rule))
    assert run_bpf(v2_program(rules), "c", 1, 3, READ | WRITE) and run_bpf(
        v2_program(rules), "c", 10, 1, READ
    )
    assert not run_bpf(v2_program(rules), "c", 10, 2, READ)
    assert effective_rules(()) == effective_rules(DEFAULT_RULES) == DEFAULT_RULES
    assert effective_rules((ALLOW_ALL,)) == (ALLOW_ALL,)


def test_v1_rules_change_without_a_gap() -> None:
    one = oci.DeviceRule(allow=True, type="c", major=10, minor=1, access="rw")
    two = oci.DeviceRule(allow=True, type="b", major=8, access="r")
    assert v1_changes("c 10:1 rwm\nc 1:3 rwm\n", (DENY_ALL, one, two)) == [
        ("devices.allow", "b 8:* r"), ("devices.deny", "c 10:1 m"), ("devices.deny", "c 1:3 rwm"),
    ]  # fmt: skip
    assert v1_changes("a *:* rwm\n", (DENY_ALL, one)) == [
        ("devices.deny", "a"),
        ("devices.allow", "c 10:1 rw"),
    ]
    assert v1_changes("c 10:1 rw\n", (ALLOW_ALL,)) == [("devices.allow", "a")]
    assert v1_changes("c 10:1 rw\n", (DENY_ALL, one)) == []


def test_pressure_is_read() -> None:
    text = "some avg10=1.50 avg60=0.20 avg300=0.00 total=77\nfull avg10=0.10 avg60=0.00 avg300=0.00 total=5\n"
    pressure = parse_pressure(text)
    assert pressure is not None
    assert (pressure.some.avg10, pressure.some.total_us, pressure.full.total_us) == (1.5, 77, 5)
    assert parse_pressure("") is None
    assert parse_rdma("mlx5_1 hca_handle=2 hca_object=max\n") == {"mlx5_1": {"hca_handle": 2}}
