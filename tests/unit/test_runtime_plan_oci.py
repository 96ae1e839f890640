"""Plans of bundles: each feature of the OCI specification that containers of the engine don't use, and their order.

Golden files in tests/golden/oci, as in test_runtime_plan_golden.py: COVE_GOLDEN=write writes them anew.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cove.model.errors import CoveError, Invalid, Unavailable
from cove.runtime import oci, steps
from cove.runtime.facts import Host
from cove.runtime.plan import plan_exec, plan_start
from cove.runtime.plan_inputs import Attached, PlanFacts, Slot
from cove.runtime.plan_process import number_mask
from cove.runtime.plan_resctrl import plan_resctrl
from cove.runtime.steps import Plan
from tests.unit.runtime_samples import HOST_V1, HOST_V2

GOLDEN = Path(__file__).parent.parent / "golden/oci"
MAPS = (oci.IdMapping(container_id=0, host_id=100000, size=65536),)
OWN = tuple(oci.Namespace(type=kind) for kind in ("mount", "pid", "network", "ipc", "uts"))
USER = oci.Namespace(type="user")
HOOKS = oci.Hooks(
    prestart=(oci.Hook(path="/usr/bin/prestart"),),
    create_container=(oci.Hook(path="/usr/bin/inside", args=("inside", "-v"), env=("A=b",), timeout=5),),
    start_container=(oci.Hook(path="/bin/last"),),
)


def bundle(*namespaces: oci.Namespace, process: dict[str, Any] | None = None, **fields: Any) -> oci.Config:
    linux = fields.pop("linux", {})
    given: dict[str, Any] = {
        "args": ("sh",),
        "cwd": "/",
        "env": ("PATH=/bin", "TERM=dumb"),
        **(process or {}),
    }
    return oci.Config(
        root=oci.Root(path="/srv/bundle/rootfs"),
        process=oci.Process(**given),
        linux=oci.Linux(namespaces=namespaces or OWN, **linux),
        **fields,
    )


CASES: dict[str, tuple[oci.Config, PlanFacts, Host]] = {
    "held": (bundle(), PlanFacts(id="x", held=True), HOST_V1),
    "user": (bundle(*OWN, USER, linux={"uid_mappings": MAPS, "gid_mappings": MAPS}), PlanFacts(id="x"), HOST_V1),
    "user-joined": (
        bundle(
            oci.Namespace(type="mount"), oci.Namespace(type="uts"), oci.Namespace(type="user", path="/proc/7/ns/user"),
            oci.Namespace(type="network", path="/proc/7/ns/net"), oci.Namespace(type="pid", path="/proc/7/ns/pid"),
        ),
        PlanFacts(id="x", held=True),
        HOST_V1,
    ),
    "user-limits": (
        bundle(
            *OWN, USER, linux={"uid_mappings": MAPS, "gid_mappings": MAPS},
            process={"rlimits": (oci.Rlimit(type="RLIMIT_NOFILE", soft=10, hard=5000),
                                 oci.Rlimit(type="RLIMIT_CORE", soft=0, hard=0))},
        ),
        PlanFacts(id="x"),
        Host(
            architecture="amd64", kernel=(6, 1), capabilities=HOST_V1.capabilities, cgroups=HOST_V1.cgroups,
            limits=((7, 1024), (4, 100)),
        ),
    ),
    "user-attached-root": (
        bundle(*OWN, USER, linux={"uid_mappings": MAPS, "gid_mappings": MAPS}),
        PlanFacts(id="x", root=Attached(path="/data/containers/x/merged")),
        HOST_V1,
    ),
    "time": (
        bundle(
            *OWN, oci.Namespace(type="time"),
            linux={"time_offsets": {"monotonic": oci.TimeOffset(secs=100), "boottime": oci.TimeOffset(nanosecs=5)}},
        ),
        PlanFacts(id="x"),
        HOST_V1,
    ),
    "mount-joined": (
        bundle(oci.Namespace(type="mount", path="/proc/7/ns/mnt")), PlanFacts(id="x"), HOST_V1,
    ),
    "mount-host": (bundle(oci.Namespace(type="uts")), PlanFacts(id="x", mount_at="/run/x/root"), HOST_V1),
    "hooks": (bundle(hooks=HOOKS), PlanFacts(id="x", held=True), HOST_V1),
    "scheduling": (
        bundle(
            process={
                "scheduler": oci.Scheduler(policy="SCHED_BATCH", nice=5, flags=("SCHED_FLAG_RESET_ON_FORK",)),
                "io_priority": oci.IoPriority(io_class="IOPRIO_CLASS_IDLE", priority=7),
            },
            linux={
                "personality": oci.Personality(domain="LINUX32"),
                "memory_policy": oci.MemoryPolicy(mode="MPOL_BIND", nodes="0,2-3", flags=("MPOL_F_STATIC_NODES",)),
            },
        ),
        PlanFacts(id="x"),
        HOST_V1,
    ),
    "labels": (
        bundle(process={"apparmor_profile": "docker-default", "selinux_label": "system_u:system_r:c_t:s0"}),
        PlanFacts(id="x"),
        Host(
            architecture="amd64", kernel=(6, 1), capabilities=HOST_V1.capabilities, cgroups=HOST_V2.cgroups,
            security_modules=frozenset({"apparmor", "selinux"}),
        ),
    ),
    "resctrl": (
        bundle(linux={"intel_rdt": oci.IntelRdt(
            schemata=("L3:0=ff",), mem_bw_schema="MB:0=50", enable_monitoring=True)}),
        PlanFacts(id="x"),
        Host(
            architecture="amd64", kernel=(6, 1), capabilities=HOST_V1.capabilities, cgroups=HOST_V2.cgroups,
            resctrl="/sys/fs/resctrl",
        ),
    ),
    "ambient": (
        bundle(process={"capabilities": oci.Capabilities(
            **dict.fromkeys(("bounding", "effective", "inheritable", "permitted", "ambient"), ("CAP_KILL",)))}),
        PlanFacts(id="x"),
        HOST_V1,
    ),
}  # fmt: skip


def render(plan: Plan, slots: tuple[Slot, ...]) -> str:
    from cove.runtime.plan_explain import explain

    lines = [f"slot {index}: {slot.kind} {slot.path}".rstrip() for index, slot in enumerate(slots)]
    return "\n".join(lines + [f"{line.section:<6} {line.what}" for line in explain(plan)]) + "\n"


@pytest.mark.parametrize("name", CASES)
def test_plan_is_the_one_that_was_reviewed(name: str) -> None:
    config, given, host = CASES[name]
    text, path = render(*plan_start(config, given, host)), GOLDEN / f"{name}.txt"
    if os.environ.get("COVE_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text(), f"{path} differs: look at the diff, then run with COVE_GOLDEN=write"


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)


def position(plan: Plan, kind: type[steps.Step]) -> list[int]:
    return [index for index, step in enumerate(plan.child) if isinstance(step, kind)]


@pytest.mark.parametrize("name", CASES)
def test_what_holds_for_every_plan(name: str) -> None:
    plan, slots = plan_start(*CASES[name])
    (last,) = position(plan, steps.Exec)
    assert last == len(plan.child) - 1
    holds = position(plan, steps.Hold)
    assert len(holds) == int(CASES[name][1].held)
    if holds:
        assert max(position(plan, steps.Capabilities) + position(plan, steps.SetIds)) < holds[0]
        assert all(isinstance(step, steps.RunHook) for step in plan.child[holds[0] + 1 : -1])
    if any(namespace.type == "user" for namespace in CASES[name][0].linux.namespaces):
        (root,) = position(plan, steps.BecomeRoot)
        assert not position(plan, steps.MakeNode), "nodes can't be made in a user namespace"
        assert not position(plan, steps.SetNs), "what is joined is joined before the user namespace"
        assert root < min(position(plan, steps.BindRoot) + position(plan, steps.AttachRoot))
    used = [
        number
        for step in (*plan.before, *plan.child)
        for number in (getattr(step, name, None) for name in ("slot", "go", "status"))
        if number is not None
    ]
    assert sorted(used) == list(range(len(slots)))
    pivots = position(plan, steps.PivotRoot)
    pivots = pivots or position(plan, steps.Chroot)
    mounts = position(plan, steps.MountIn) + position(plan, steps.Bind) + position(plan, steps.Mask)
    assert not mounts or max(mounts) < pivots[0]


def test_the_host_s_hooks_are_a_pause_and_the_container_s_run_on_both_sides_of_the_pivot() -> None:
    plan, _ = plan_start(bundle(hooks=HOOKS), PlanFacts(id="x", held=True), HOST_V1)
    (pause,), (pivot,) = position(plan, steps.Pause), position(plan, steps.PivotRoot)
    inside, last = position(plan, steps.RunHook)
    (hold,) = position(plan, steps.Hold)
    assert pause < inside < pivot < hold < last
    first = plan.child[inside]
    assert isinstance(first, steps.RunHook)
    assert (first.args, first.timeout_ms) == (("inside", "-v"), 5000)


def test_an_exec_joins_the_user_namespace_and_becomes_its_root() -> None:
    config = bundle(*OWN, USER, linux={"uid_mappings": MAPS, "gid_mappings": MAPS, "cgroups_path": "/x"})
    process = replace(config.process, exec_cpu_affinity=oci.ExecCpuAffinity(initial="0", final="1-2"))
    plan, slots = plan_exec(config, process, PlanFacts(id="x", all_cgroups=True), HOST_V1)
    assert [slot.kind for slot in slots] == ["process"]
    (join,) = position(plan, steps.SetNs)
    step = plan.child[join]
    assert isinstance(step, steps.SetNs)
    assert step.flags & 0x10000000
    assert isinstance(plan.child[join + 1], steps.BecomeRoot)
    first, second = position(plan, steps.Affinity)
    joins = position(plan, steps.JoinCgroup)
    assert first < min(joins) <= max(joins) < second < join
    assert len(joins) == len(HOST_V1.cgroups.hierarchies)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"namespaces": (*OWN, USER)}, "linux.uidMappings and linux.gidMappings"),
        ({"namespaces": (*OWN, oci.Namespace(type="netns"))}, "'netns' is unknown"),
        (
            {
                "time_offsets": {"tai": oci.TimeOffset(secs=1)},
                "namespaces": (*OWN, oci.Namespace(type="time")),
            },
            "'tai'",
        ),
        ({"namespaces": (oci.Namespace(type="uts"),)}, "mount is missing"),
        ({"intel_rdt": oci.IntelRdt(clos_id="a")}, "linux.intelRdt"),
        ({"personality": oci.Personality(domain="BSD")}, "linux.personality.domain 'BSD'"),
        (
            {"memory_policy": oci.MemoryPolicy(mode="MPOL_BIND", nodes="3-1")},
            "linux.memoryPolicy.nodes '3-1'",
        ),
    ],
)
def test_what_can_not_be_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    config = bundle(linux={key: value for key, value in changes.items() if key != "namespaces"})
    if "namespaces" in changes:
        config = replace(config, linux=replace(config.linux, namespaces=changes["namespaces"]))
    with pytest.raises(CoveError) as caught:
        plan_start(config, PlanFacts(id="x"), HOST_V1)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("process", "words"),
    [
        ({"apparmor_profile": "x"}, "process.apparmorProfile 'x': AppArmor is not enabled"),
        ({"selinux_label": "x"}, "process.selinuxLabel 'x': SELinux is not enabled"),
        ({"scheduler": oci.Scheduler(policy="SCHED_EXT")}, "process.scheduler.policy 'SCHED_EXT'"),
        ({"io_priority": oci.IoPriority(io_class="fast")}, "process.ioPriority.class 'fast'"),
        ({"rlimits": (oci.Rlimit(type="RLIMIT_HEAT", soft=1, hard=1),)}, "RLIMIT_HEAT"),
    ],
)
def test_a_process_that_can_not_be_is_refused_by_name(process: dict[str, Any], words: str) -> None:
    with pytest.raises((Invalid, Unavailable)) as caught:
        plan_start(bundle(process=process), PlanFacts(id="x"), HOST_V1)
    assert words in str(caught.value)


def test_capabilities_that_this_host_cannot_give_are_named() -> None:
    poor = Host(architecture="amd64", kernel=(6, 1), capabilities=1, cgroups=HOST_V1.cgroups)
    sets = oci.Capabilities(bounding=("CAP_CHOWN", "CAP_SYS_ADMIN"), permitted=("CAP_CHOWN",))
    with pytest.raises(Unavailable, match="CAP_SYS_ADMIN"):
        plan_start(bundle(process={"capabilities": sets}), PlanFacts(id="x"), poor)
    inside = bundle(
        *OWN, USER, process={"capabilities": sets}, linux={"uid_mappings": MAPS, "gid_mappings": MAPS}
    )
    assert plan_start(inside, PlanFacts(id="x"), poor)[0].clone_flags & 0x10000000


def test_lists_of_numbers_become_the_kernel_s_masks() -> None:
    assert number_mask("0", "x", 64) == b"\1" + bytes(7)
    assert number_mask("0-3,7", "x", 64) == b"\x8f" + bytes(7)
    assert number_mask("64", "x", 100) == bytes(8) + b"\1" + bytes(7)
    for wrong in ("", "a", "1-", "3-1", "64", "-1", "1,,2"):
        with pytest.raises(Invalid, match=r"^x "):
            number_mask(wrong, "x", 64)


def test_a_class_of_service_is_made_only_with_a_schema_and_never_removed() -> None:
    host = dataclasses.replace(HOST_V1, resctrl="/sys/fs/resctrl")
    shared = plan_resctrl(oci.IntelRdt(clos_id="batch"), "x", host)
    assert (shared.before, shared.exit) == ((), ())
    made = plan_resctrl(oci.IntelRdt(clos_id="batch", l3_cache_schema="L3:0=f"), "x", host)
    assert [step.describe() for step in made.before] == [
        "make directory /sys/fs/resctrl/batch",
        "write 'L3:0=f\\n' to /sys/fs/resctrl/batch/schemata",
    ]
    assert made.exit == ()
    default = plan_resctrl(oci.IntelRdt(clos_id="/"), "x", host)
    assert default.before == ()
    assert [step.describe() for step in default.parent] == ["put the container into /sys/fs/resctrl/tasks"]
