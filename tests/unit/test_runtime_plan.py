"""What holds for every plan, whatever was asked for, and the semantics of single options."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cove.model.container import MountPoint, Resources, Ulimit
from cove.model.errors import CoveError, Invalid, Unavailable
from cove.runtime import capabilities, oci, steps
from cove.runtime.encode import encode
from cove.runtime.facts import Host
from cove.runtime.plan import overlay_options, plan_exec, plan_start
from cove.runtime.plan_explain import explain
from cove.runtime.plan_inputs import Directory, Overlay
from cove.runtime.plan_namespaces import sysctl_path
from cove.runtime.spec import check_spec, plan_environment, plan_exec_process, plan_facts, plan_spec
from cove.runtime.steps import Plan, Step
from tests.unit.runtime_samples import HOST_V1, HOST_V2, OVERLAY, ROOT_USER, container, facts, plan_of

MOUNTING = (steps.MountIn, steps.Bind, steps.AttachTree, steps.Mask, steps.ReadonlyPath, steps.MakeNode,
            steps.MakeSymlink, steps.MakeDir, steps.MountRoot, steps.BindRoot, steps.Terminal,
            steps.ResolveUser)  # fmt: skip


def position(plan: Plan, kind: type[Step] | tuple[type[Step], ...]) -> list[int]:
    return [index for index, step in enumerate(plan.child) if isinstance(step, kind)]


def find(plan: Plan, kind: type[Step]) -> Any:
    found = [step for step in plan.child if isinstance(step, kind)]
    assert len(found) <= 1, f"{kind.__name__} is there {len(found)} times"
    return found[0] if found else None


# --- properties ---------------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "c", "data", "etc"])
paths = st.lists(names, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
mounts = st.lists(
    st.one_of(
        st.builds(
            MountPoint, kind=st.just("bind"), target=paths, source=st.just("/srv"), readonly=st.booleans(),
            propagation=st.sampled_from(["", "rprivate", "rslave", "rshared"]), recursive=st.booleans(),
        ),
        st.builds(MountPoint, kind=st.just("tmpfs"), target=paths, options=st.just(("size=1m", "exec"))),
    ),
    max_size=5,
).map(tuple)  # fmt: skip
modes = {
    "network_mode": st.sampled_from(["default", "none", "host", "container:x"]),
    "pid_mode": st.sampled_from(["", "host", "container:x"]),
    "ipc_mode": st.sampled_from(["", "none", "private", "shareable", "host", "container:x"]),
    "uts_mode": st.sampled_from(["", "host"]),
    "cgroupns_mode": st.sampled_from(["", "host", "private"]),
}
options = st.fixed_dictionaries(
    {
        **modes,
        "privileged": st.booleans(),
        "readonly_rootfs": st.booleans(),
        "tty": st.booleans(),
        "init": st.booleans(),
        "no_new_privileges": st.booleans(),
        "seccomp": st.sampled_from(["", "unconfined"]),
        "cap_add": st.lists(st.sampled_from(["ALL", "net_admin", "CAP_SYS_ADMIN"]), max_size=2).map(tuple),
        "cap_drop": st.lists(st.sampled_from(["ALL", "CHOWN"]), max_size=2).map(tuple),
        "mounts": mounts,
        "oom_score_adj": st.integers(-1000, 1000),
        "resources": st.sampled_from([Resources(), Resources(memory_bytes=64 << 20, cpuset_cpus="0")]),
        "device_cgroup_rules": st.sampled_from([(), ("c 42:* rmw",)]),
    }
)


@given(options, st.sampled_from([HOST_V1, HOST_V2]), st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_plan_keeps_the_order(asked: dict[str, Any], host: Host, known_user: bool) -> None:
    joined = {"network": 1, "pid": 2, "ipc": 3}
    start = facts(joined=joined, identity=ROOT_USER if known_user else None)
    plan, slots = plan_of(container(**asked), host, start)
    child = plan.child

    assert isinstance(child[-1], steps.Exec)
    assert len(position(plan, steps.Exec)) == 1
    (pivot,) = position(plan, steps.PivotRoot)
    (root,) = position(plan, (steps.MountRoot, steps.BindRoot))
    (propagate,) = position(plan, steps.Propagate)
    assert propagate < root
    assert all(index < pivot for index in position(plan, MOUNTING)), "something is mounted after the pivot"
    assert all(index > root for index in position(plan, MOUNTING) if index != root)

    hidden = position(plan, (steps.Mask, steps.ReadonlyPath))
    mounted = position(plan, (steps.MountIn, steps.Bind, steps.AttachTree, steps.MakeNode))
    assert not hidden or max(mounted) < min(hidden), "a mask could be covered by a mount"
    if asked["privileged"]:
        assert not hidden
    else:
        masked = {step.path for step in child if isinstance(step, steps.Mask)}
        assert masked == set(host.masked_paths)

    (bounding,), (ids,) = position(plan, steps.DropBounding), position(plan, steps.SetIds)
    (caps,) = position(plan, steps.Capabilities)
    assert pivot < bounding < ids < caps
    filters, nnp = position(plan, steps.Seccomp), position(plan, steps.NoNewPrivs)
    assert len(nnp) == int(asked["no_new_privileges"])
    if filters and nnp:
        assert caps < nnp[0] < filters[0]
    elif filters:
        assert bounding < filters[0] < ids
    no_filter = asked["seccomp"] == "unconfined" or asked["privileged"]
    assert bool(filters) != no_filter

    settings_ = position(plan, (steps.Hostname, steps.Sysctl, steps.WriteSelf, steps.SetNs, steps.Unshare))
    assert all(index < propagate for index in settings_)

    targets = [
        step.target for step in child if isinstance(step, steps.MountIn | steps.Bind | steps.AttachTree)
    ]
    for index, target in enumerate(targets):
        below = [later for later in targets[:index] if later.startswith(target + "/")]
        assert not below, f"{target} would cover {below}"

    used = [step.slot for step in (*plan.before, *child) if isinstance(step, steps.SetNs | steps.AttachTree)]
    assert sorted(used) == list(range(len(slots)))
    new = plan.clone_flags
    assert new & 0x00020000
    for flag in (0x40000000, 0x20000000, 0x08000000):
        joins = sum(
            1 for step in (*plan.before, *child) if isinstance(step, steps.SetNs) and step.flags & flag
        )
        assert joins + bool(new & flag) <= 1
    assert encode(plan)
    assert len(explain(plan)) == 1 + sum(map(len, (plan.before, plan.parent, plan.child, plan.exit)))


@given(options, st.sampled_from([HOST_V1, HOST_V2]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_config_survives_json(asked: dict[str, Any], host: Host) -> None:
    config = plan_spec(container(**asked), facts(joined={"network": 1, "pid": 2, "ipc": 3}), host)
    assert oci.parse_config(oci.encode_config(config)) == config


def test_every_step_can_be_explained() -> None:
    from cove.runtime.plan_explain import _WHY

    known = {kind for kind in vars(steps).values() if isinstance(kind, type) and issubclass(kind, Step)} - {
        Step
    }
    assert set(_WHY) == known


def test_planning_a_default_container_takes_well_under_a_millisecond() -> None:
    sample, start = container(), facts()
    more = plan_facts(sample, start, network_ready=True)
    plan_start(plan_spec(sample, start, HOST_V1), more, HOST_V1)
    best = float("inf")
    for _ in range(50):  # the best of many: the machine may be busy
        began = time.perf_counter()
        plan_start(plan_spec(sample, start, HOST_V1), more, HOST_V1)
        best = min(best, time.perf_counter() - began)
    assert best < 0.001


# --- single options -----------------------------------------------------------------------------------


def child_of(host: Host = HOST_V1, **asked: Any) -> Plan:
    return plan_of(container(**asked), host, facts(joined={"network": 1, "pid": 2, "ipc": 3}))[0]


def mounted_at(plan: Plan, target: str) -> Any:
    found = [
        step
        for step in plan.child
        if isinstance(step, steps.MountIn | steps.Bind | steps.AttachTree) and step.target == target
    ]
    return found[-1] if found else None


def test_environment_is_dockers() -> None:
    sample = container(env=("A=1", "PATH=/image", "B", "A=2"))
    expected = ("PATH=/image", f"HOSTNAME={sample.hostname}", "A=2")
    assert plan_environment(sample, tty=False) == expected
    with_terminal = plan_environment(sample, tty=True, extra=("TERM=vt100", "HOSTNAME"))
    assert with_terminal == ("PATH=/image", "TERM=vt100", "A=2")
    plan = child_of(env=("HOME=/mine",))
    assert [item for item in find(plan, steps.Exec).env if item.startswith("HOME=")] == ["HOME=/mine"]
    assert "HOME=/root" in find(child_of(), steps.Exec).env


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, capabilities.DEFAULT),
        ({"privileged": True}, capabilities.KNOWN),
        ({"cap_drop": ("ALL",)}, 0),
        ({"cap_drop": ("all",), "cap_add": ("cap_chown",)}, 1),
        ({"cap_add": ("ALL",), "cap_drop": ("CHOWN",)}, capabilities.KNOWN & ~1),
        ({"cap_add": ("SYS_ADMIN",)}, capabilities.DEFAULT | 1 << 21),
        ({"cap_drop": ("CAP_CHOWN",)}, capabilities.DEFAULT & ~1),
        ({"cap_add": ("CHOWN",), "cap_drop": ("CHOWN",)}, capabilities.DEFAULT),
    ],
)
def test_capabilities_are_dockers(asked: dict[str, Any], expected: int) -> None:
    plan = child_of(**asked)
    kept = find(plan, steps.Capabilities)
    assert (kept.effective, kept.permitted, kept.inheritable, kept.ambient) == (expected, expected, 0, 0)
    assert find(plan, steps.DropBounding).bounding == expected


def test_capabilities_that_do_not_exist_or_cannot_be_given_are_refused() -> None:
    with pytest.raises(Invalid, match='unknown capability: "CAP_FLY"'):
        check_spec(container(cap_add=("fly",)).spec, HOST_V1)
    poor = Host(architecture="amd64", kernel=(6, 1), capabilities=1, cgroups=HOST_V1.cgroups)
    with pytest.raises(Invalid, match="not available in the current environment"):
        check_spec(container(cap_add=("SYS_ADMIN",)).spec, poor)
    assert find(plan_of(container(privileged=True), poor)[0], steps.Capabilities).effective == 1


def test_ipc_none_has_no_shared_memory_and_host_shows_the_hosts() -> None:
    assert mounted_at(child_of(ipc_mode="none"), "/dev/shm") is None
    assert mounted_at(child_of(ipc_mode="host"), "/dev/shm").source == "/dev/shm"
    assert mounted_at(child_of(shm_size_bytes=1 << 20), "/dev/shm").data == "mode=1777,size=1048576"


def test_a_mount_replaces_dockers_default_at_its_place() -> None:
    bind = MountPoint(kind="bind", target="/dev/shm/", source="/srv")
    plan = child_of(mounts=(bind,))
    assert mounted_at(plan, "/dev/shm").source == "/srv"
    hosts = MountPoint(kind="bind", target="/etc/hosts", source="/srv/hosts")
    assert mounted_at(child_of(mounts=(hosts,)), "/etc/hosts").source == "/srv/hosts"


def test_a_dev_of_ones_own_brings_its_own_devices() -> None:
    plan = child_of(mounts=(MountPoint(kind="bind", target="/dev", source="/dev"),))
    assert not position(plan, steps.MakeNode)
    assert mounted_at(plan, "/dev/pts") is None
    assert mounted_at(plan, "/dev").source == "/dev"


def test_readonly_binds_are_readonly_with_everything_below() -> None:
    bind = mounted_at(
        child_of(mounts=(MountPoint(kind="bind", target="/d", source="/s", readonly=True),)), "/d"
    )
    assert (bind.recursive_set, bind.recursive) == (1, 1)


def test_tmpfs_is_careful_unless_told_otherwise() -> None:
    tmpfs = mounted_at(
        child_of(mounts=(MountPoint(kind="tmpfs", target="/t", options=("exec", "size=1k")),)), "/t"
    )
    assert (tmpfs.flags, tmpfs.data) == (0x2 | 0x4, "size=1k")


def test_privileged_lifts_what_holds_others() -> None:
    device = oci.LinuxDevice(path="/dev/kvm", type="c", major=10, minor=232)
    plan, _ = plan_of(container(privileged=True), HOST_V1, facts(devices=(device,)))
    assert not position(plan, (steps.Mask, steps.ReadonlyPath, steps.Seccomp))
    assert not mounted_at(plan, "/sys").flags & 1
    assert not mounted_at(plan, "/sys/fs/cgroup").flags & 1
    assert "/dev/kvm" in [step.path for step in plan.child if isinstance(step, steps.MakeNode)]
    assert not [step for step in plan.before if isinstance(step, steps.WriteHost)]
    joined = [step.path for step in plan.child if isinstance(step, steps.JoinCgroup)]
    assert len(joined) == len(HOST_V1.cgroups.hierarchies)


def test_a_privileged_container_keeps_a_filter_that_was_asked_for() -> None:
    text = (
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}]}'
    )
    assert position(child_of(privileged=True, seccomp=text), steps.Seccomp)


def test_default_containers_write_no_limits() -> None:
    assert not [step for step in child_of().before if not isinstance(step, steps.MakeHostDir)]


def test_devices_of_other_cgroup_parents_get_the_rules_themselves() -> None:
    plan, _ = plan_of(container(cgroup_parent="/team"), HOST_V1, facts(cgroup_path="team/x"))
    denied = [
        step for step in plan.before if isinstance(step, steps.WriteHost) and "devices.deny" in step.path
    ]
    assert [step.data for step in denied] == ["a"]
    assert denied[0].path == "/sys/fs/cgroup/devices/team/x/devices.deny"


def test_init_counts_only_with_a_pid_namespace_of_its_own() -> None:
    assert find(child_of(init=True), steps.Exec).init == 1
    assert find(child_of(init=True, pid_mode="host"), steps.Exec).init == 0


def test_oom_score_is_written_only_when_it_differs_from_the_daemons() -> None:
    assert not position(child_of(), steps.WriteSelf)
    assert find(child_of(oom_score_adj=-5), steps.WriteSelf).data == "-5"


@pytest.mark.parametrize(
    ("sysctls", "asked", "words"),
    [
        ({"kernel.panic": "1"}, {}, "not in a separate kernel namespace"),
        ({"net.core.somaxconn": "1"}, {"network_mode": "host"}, "not allowed in the host network namespace"),
        ({"kernel.shmmax": "1"}, {"ipc_mode": "host"}, "not allowed in the hosts ipc namespace"),
        ({"kernel.hostname": "x"}, {}, "use --hostname"),
        ({"kernel.domainname": "x"}, {"uts_mode": "host"}, "not allowed in the host UTS namespace"),
        ({"../../kernel/panic": "1"}, {}, "give a name"),
        ({"net": "1"}, {}, "give a name"),
        ({"vm.swappiness": "1"}, {}, "not in a separate kernel namespace"),
        ({"net.x": "1\n2"}, {}, "one line"),
    ],
)
def test_sysctls_outside_the_containers_namespaces_are_refused(
    sysctls: dict[str, str], asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(Invalid) as caught:
        check_spec(container(sysctls=sysctls, **asked).spec, HOST_V1)
    assert words in str(caught.value)


def test_sysctl_names_may_have_dots_in_interfaces() -> None:
    plan = child_of(sysctls={"net/ipv4/conf/eth0.1/forwarding": "1"})
    keys = [step.key for step in plan.child if isinstance(step, steps.Sysctl)]
    assert "net/ipv4/conf/eth0.1/forwarding" in keys
    with pytest.raises(Invalid):
        sysctl_path("net...x")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"pid_mode": "moon"}, "invalid PID mode: moon"),
        ({"ipc_mode": "container:"}, "invalid IPC mode: container:"),
        ({"uts_mode": "container:x"}, "invalid UTS mode"),
        ({"userns_mode": "keep-id"}, "invalid USER mode"),
        ({"cgroupns_mode": "x"}, "invalid cgroup namespace mode"),
        ({"oom_score_adj": 1001}, "range for oom score adj is [-1000, 1000]"),
        ({"shm_size_bytes": -1}, "SHM size can not be less than 0"),
        ({"hostname": "x" * 65}, "too long (maximum 64 bytes)"),
        ({"hostname": "x", "uts_mode": "host"}, "conflicting options: hostname and the UTS mode"),
        ({"device_cgroup_rules": ("d 1:3 r",)}, "invalid device cgroup rule format"),
        ({"ulimits": (Ulimit(name="x", soft=1, hard=1),)}, "invalid ulimit type: x"),
        (
            {"ulimits": (Ulimit(name="nofile", soft=5, hard=3),)},
            "must be less than or equal to hard limit: 5 > 3",
        ),
        ({"ulimits": (Ulimit(name="nofile", soft=-2, hard=3),)}, "from 0 up"),
        ({"seccomp": "{"}, "Decoding seccomp profile failed"),
        ({"annotations": {"": "x"}}, "annotation"),
        ({"cgroup_parent": "/a/../.."}, "cgroup parent"),
    ],
)
def test_what_can_never_start_is_refused_at_create(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_spec(container(**asked).spec, HOST_V1)
    assert words in str(caught.value)


def test_hard_limits_above_the_daemons_are_refused_where_they_cannot_be_raised() -> None:
    poor = Host(
        architecture="amd64", kernel=(6, 1), capabilities=1, cgroups=HOST_V1.cgroups, hard_limits=((7, 1024),)
    )
    allowed = container(ulimits=(Ulimit(name="nofile", soft=10, hard=1024),)).spec
    assert check_spec(allowed, poor) == []
    with pytest.raises(Unavailable, match="can't raise a hard limit above its own, 1024"):
        check_spec(container(ulimits=(Ulimit(name="nofile", soft=10, hard=2048),)).spec, poor)


def test_apparmor_profiles_are_refused_rather_than_ignored() -> None:
    with pytest.raises(Unavailable, match="apparmor=unconfined"):
        check_spec(container(apparmor="docker-default").spec, HOST_V1)


@pytest.mark.parametrize("target", ["relative", "/", "/..", "", "/a\0b"])
def test_mounts_on_impossible_targets_are_refused(target: str) -> None:
    with pytest.raises(Invalid, match="invalid mount target"):
        child_of(mounts=(MountPoint(kind="tmpfs", target=target),))


@pytest.mark.parametrize("target", ["/proc", "/proc/self", "/proc/../proc/sys"])
def test_mounts_inside_proc_are_refused(target: str) -> None:
    with pytest.raises(Invalid, match="inside /proc"):
        child_of(mounts=(MountPoint(kind="bind", target=target, source="/srv"),))
    lxcfs = MountPoint(kind="bind", target="/proc/meminfo", source="/srv/meminfo")
    assert mounted_at(child_of(mounts=(lxcfs,)), "/proc/meminfo")


def test_joining_a_container_that_does_not_run_is_refused() -> None:
    with pytest.raises(Invalid, match="not running"):
        plan_of(container(pid_mode="container:x"), HOST_V1, facts())


# --- configs from elsewhere ---------------------------------------------------------------------------


def bundle(**linux: Any) -> oci.Config:
    namespaces = linux.pop("namespaces", (oci.Namespace(type="mount"), oci.Namespace(type="pid")))
    return oci.Config(
        root=oci.Root(path="/srv/rootfs"),
        process=oci.Process(args=("true",), cwd="/", user=oci.User(uid=1000, gid=1000)),
        linux=oci.Linux(namespaces=namespaces, **linux),
    )


def test_a_bundle_is_executed_as_it_is() -> None:
    plan, slots = plan_start(
        bundle(), plan_facts(container(), facts(root=Directory(path="/r")), network_ready=False), HOST_V1
    )
    assert slots == ()
    assert find(plan, steps.BindRoot).path == "/r"
    assert find(plan, steps.SetIds).groups == ()
    assert find(plan, steps.Capabilities).effective == 0
    assert plan.before == plan.parent == plan.exit == ()


@pytest.mark.parametrize(
    ("linux", "words"),
    [
        ({"namespaces": ()}, "mount is missing"),
        ({"namespaces": (oci.Namespace(type="mount"),) * 2}, "there twice"),
        (
            {"namespaces": (oci.Namespace(type="mount"), oci.Namespace(type="user"))},
            "linux.uidMappings",
        ),
        ({"rootfs_propagation": "up"}, "rootfsPropagation 'up'"),
        ({"devices": (oci.LinuxDevice(path="/dev/x", type="z"),)}, "use c, u, b or p"),
    ],
)
def test_a_config_that_cannot_be_executed_is_refused(linux: dict[str, Any], words: str) -> None:
    with pytest.raises(CoveError) as caught:
        plan_start(bundle(**linux), plan_facts(container(), facts(), network_ready=False), HOST_V1)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "config.json"),
        ('{"root": {"path": "/"}, "process": {"args": [], "cwd": "/"}}', "process.args: is empty"),
        ('{"root": {"path": "/"}, "process": {"args": ["a"], "cwd": "x"}}', "process.cwd"),
        ('{"root": {"path": 1}, "process": {"args": ["a"]}}', "root.path: expected a string"),
    ],
)
def test_a_wrong_config_names_the_field(text: str, words: str) -> None:
    with pytest.raises(Invalid) as caught:
        oci.parse_config(text.replace("{", '{"ociVersion": "1.2.0", ', 1))
    assert words in str(caught.value)


def test_unknown_filesystems_are_refused_with_the_reason() -> None:
    mount = oci.Mount(destination="/x", type="zfs")
    config = oci.Config(
        root=oci.Root(path="/r"), process=oci.Process(args=("a",), cwd="/"), mounts=(mount,),
        linux=oci.Linux(namespaces=(oci.Namespace(type="mount"),)),
    )  # fmt: skip
    with pytest.raises(Unavailable, match="no filesystem 'zfs'"):
        plan_start(config, plan_facts(container(), facts(), network_ready=False), HOST_V1)


def test_overlay_options_name_the_highest_layer_first_and_escape_separators() -> None:
    root = Overlay(
        lower=("low", "hi:gh"), layers_dir="/l", upper="/u,1", work="/w", merged="/m", volatile=True
    )
    expected = "lowerdir=hi\\:gh:low,upperdir=/u\\,1,workdir=/w,index=off,volatile"
    assert overlay_options(root) == expected


def test_more_layers_than_one_mount_takes_are_refused() -> None:
    root = Overlay(lower=("x" * 60,) * 100, layers_dir="/l", upper="/u", work="/w", merged="/m")
    with pytest.raises(Unavailable, match="100 layers, too many"):
        plan_of(container(), HOST_V1, facts(root=root))


# --- exec ---------------------------------------------------------------------------------------------


def exec_plan(host: Host = HOST_V1, *, privileged: bool = False, user: str = "", **asked: Any) -> Plan:
    sample = container(**asked)
    start = facts(joined={"network": 1, "pid": 2, "ipc": 3})
    config = plan_spec(sample, start, host)
    process = plan_exec_process(sample, config, args=("ls",), privileged=privileged, user=user, host=host)
    plan, slots = plan_exec(config, process, plan_facts(sample, start, network_ready=False), host)
    assert [slot.kind for slot in slots] == ["process"]
    return plan


def test_exec_joins_what_the_container_does_not_share_with_the_host() -> None:
    plan = exec_plan(network_mode="host", uts_mode="host")
    assert not plan.before, "a child that lived in the pid namespace from the clone on could be traced there"
    first = next(step for step in plan.child if not isinstance(step, steps.JoinCgroup))
    assert first == steps.SetNs(slot=0, flags=0x20000000 | 0x00020000 | 0x08000000)
    assert exec_plan(pid_mode="host").before == ()
    assert exec_plan(HOST_V2).cgroup_path == "/sys/fs/cgroup/cove/" + container().id


def test_exec_keeps_the_containers_restrictions() -> None:
    plan = exec_plan(
        no_new_privileges=True, cap_drop=("ALL",), ulimits=(Ulimit(name="nofile", soft=1, hard=2),)
    )
    assert position(plan, steps.NoNewPrivs) and position(plan, steps.Seccomp) and position(plan, steps.Rlimit)
    assert find(plan, steps.Capabilities).effective == 0
    assert find(exec_plan(privileged=True), steps.Capabilities).effective == capabilities.KNOWN


def test_exec_as_a_name_asks_the_containers_files() -> None:
    assert find(exec_plan(user="web"), steps.ResolveUser).user == "web"


def test_overlay_sample_is_small_enough() -> None:
    assert len(overlay_options(OVERLAY)) < 4096
