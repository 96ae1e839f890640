"""What the runtime specification demands of a runtime, seen from inside a container that bin/cove-runtime runs.

One test for each property of config.md and config-linux.md that no other test looks at from inside, and for what
runtime.md says of the operations.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import leaks
from tests.system.oci_support import Box, opened

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """For what runs to its end, one after the other."""
    with opened(tmp_path_factory.mktemp("spec")) as made:
        yield made


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with opened(tmp_path) as made:
        yield made


def printed(box: Box, script: str, change: Change | None = None, *, status: int = 0) -> str:
    """What a shell script says in a container."""
    box.configure(["sh", "-c", script], change)
    done = box.cove("run", "one")
    assert done.status == status, done.err
    return done.out


def process(**members: Any) -> Change:
    return lambda config: config["process"].update(members)


def linux(**members: Any) -> Change:
    return lambda config: config["linux"].update(members)


def with_namespaces(config: dict[str, Any], *kinds: str) -> None:
    config["linux"]["namespaces"] += [{"type": kind} for kind in kinds]


# --- process ----------------------------------------------------------------------------------------


def test_each_rlimit_is_what_the_process_gets(shared: Box) -> None:
    names = [name for name in dir(resource) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"]
    limits: list[dict[str, Any]] = [
        {"type": name, "soft": 5 if hard > 5 else hard, "hard": hard}
        for name in names
        if name
        not in (
            "RLIMIT_AS",
            "RLIMIT_DATA",
            "RLIMIT_STACK",
            "RLIMIT_FSIZE",
            "RLIMIT_NOFILE",
            "RLIMIT_CPU",
            "RLIMIT_RSS",
        )
        for hard in [min(10, resource.getrlimit(getattr(resource, name))[1] % 2**64)]
    ]
    assert len(limits) >= 8
    out = printed(shared, "cat /proc/self/limits", process(rlimits=limits))
    rows = {line[:25].strip(): line[26:].split()[:2] for line in out.splitlines()}
    told = {
        "RLIMIT_CORE": "Max core file size", "RLIMIT_NPROC": "Max processes", "RLIMIT_MEMLOCK": "Max locked memory",
        "RLIMIT_SIGPENDING": "Max pending signals", "RLIMIT_MSGQUEUE": "Max msgqueue size",
        "RLIMIT_NICE": "Max nice priority", "RLIMIT_RTPRIO": "Max realtime priority",
        "RLIMIT_RTTIME": "Max realtime timeout",
    }  # fmt: skip
    for limit in limits:
        assert rows[told[limit["type"]]] == [str(limit["soft"]), str(limit["hard"])], limit["type"]


def test_an_rlimit_twice_is_an_error(shared: Box) -> None:
    twice = [{"type": "RLIMIT_CORE", "soft": 1, "hard": 1}] * 2
    shared.configure(["true"], process(rlimits=twice))
    done = shared.cove("run", "one")
    assert done.status == 1 and "process.rlimits[1]" in done.error


def test_user_group_groups_and_umask(shared: Box) -> None:
    user = {"uid": 12, "gid": 34, "umask": 0o27, "additionalGids": [5, 6]}
    assert printed(shared, "id -u; id -g; id -G; umask", process(user=user)).splitlines() == [
        "12",
        "34",
        "34 5 6",
        "0027",
    ]


def test_a_umask_that_is_not_given_is_022_whoever_calls(shared: Box) -> None:
    """As runc has it: what the specification says, the caller's, would be 0 below a daemon that has none."""
    shared.configure(["sh", "-c", "umask"])
    before = os.umask(0o31)
    try:
        assert shared.cove("run", "one").out == "0022\n"
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"class": "IOPRIO_CLASS_BE", "priority": 6}, "best-effort: prio 6"),
        ({"class": "IOPRIO_CLASS_IDLE", "priority": 0}, "idle"),
    ],
)
def test_the_io_priority_holds_and_is_inherited(shared: Box, given: dict[str, Any], told: str) -> None:
    assert printed(shared, "ionice; sh -c 'ionice'", process(ioPriority=given)).splitlines() == [told, told]


@pytest.mark.parametrize(
    ("given", "policy", "nice"),
    [
        ({"policy": "SCHED_BATCH", "nice": 3}, 3, 3),
        ({"policy": "SCHED_IDLE"}, 5, 0),
        ({"policy": "SCHED_OTHER", "nice": 7, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}, 0, 7),
    ],
)
def test_the_scheduler_holds(shared: Box, given: dict[str, Any], policy: int, nice: int) -> None:
    # proc_pid_stat(5): nice is field 19, policy field 41
    out = printed(shared, "exec cat /proc/self/stat", process(scheduler=given)).rpartition(")")[2].split()
    assert (int(out[41 - 3]), int(out[19 - 3])) == (policy, nice)


def test_a_scheduler_that_the_kernel_refuses_is_an_error(shared: Box) -> None:
    shared.configure(
        ["true"], process(scheduler={"policy": "SCHED_DEADLINE", "runtime": 5, "deadline": 1, "period": 1})
    )
    done = shared.cove("run", "one")
    assert done.status == 1 and "scheduler" in done.error, done.err
    assert shared.ids("cove") == []


def test_ambient_capabilities_reach_what_another_user_executes(shared: Box) -> None:
    kinds = ("bounding", "permitted", "inheritable", "ambient", "effective")
    sets = {kind: ["CAP_NET_BIND_SERVICE", "CAP_KILL"] for kind in kinds}
    out = printed(
        shared, "grep ^Cap /proc/self/status", process(user={"uid": 12, "gid": 12}, capabilities=sets)
    )
    assert {int(line.split()[1], 16) for line in out.splitlines()} == {1 << 10 | 1 << 5}


def test_an_unknown_capability_is_a_warning(shared: Box) -> None:
    shared.configure(
        ["true"], lambda config: config["process"]["capabilities"]["bounding"].append("CAP_NOSUCH")
    )
    done = shared.cove("run", "one")
    assert done.status == 0 and "CAP_NOSUCH" in done.err and "warning" in done.err


@pytest.mark.parametrize("score", [None, 0, 500])
def test_the_oom_score_is_set_or_left(shared: Box, score: int | None) -> None:
    own = Path("/proc/self/oom_score_adj")
    before = own.read_text()
    change = None if score is None else process(oomScoreAdj=score)
    if score is None:
        own.write_text("77")  # may be raised; lowering it again takes no right, down to what it was
    try:
        assert int(printed(shared, "cat /proc/self/oom_score_adj", change)) == (
            77 if score is None else score
        )
    finally:
        own.write_text(before)


def test_the_console_size_counts_for_a_terminal_alone(shared: Box) -> None:
    assert printed(
        shared, "stty size 2>&1; true", process(consoleSize={"height": 25, "width": 81})
    ).startswith("stty:")


def test_cpu_affinity_of_an_exec_is_that_of_the_process(box: Box) -> None:
    own = os.sched_getaffinity(0)
    last = max(own)

    def change(config: dict[str, Any]) -> None:
        config["process"]["execCPUAffinity"] = {"initial": str(min(own)), "final": str(last)}

    box.configure(["sleep", "1000"], change)
    assert box.cove("run", "--detach", "one").status == 0
    done = box.cove("exec", "one", "grep", "^Cpus_allowed_list", "/proc/self/status")
    assert done.out.split()[1:] == [str(last)], done.err
    assert (
        os.sched_getaffinity(box.cove("state", "one").json()["pid"]) == own
    )  # the first process isn't pinned


# --- linux ------------------------------------------------------------------------------------------


def test_clocks_are_shifted_in_a_time_namespace(shared: Box) -> None:
    def change(config: dict[str, Any]) -> None:
        with_namespaces(config, "time")
        config["linux"]["timeOffsets"] = {
            "boottime": {"secs": 1000000},
            "monotonic": {"secs": 5, "nanosecs": 7},
        }

    before = float(Path("/proc/uptime").read_text().split()[0])
    inside, *offsets = printed(shared, "cat /proc/uptime /proc/self/timens_offsets", change).splitlines()
    assert 1000000 <= float(inside.split()[0]) - before < 1000060
    assert [line.split() for line in offsets] == [["monotonic", "5", "7"], ["boottime", "1000000", "0"]]


def test_offsets_need_a_time_namespace(shared: Box) -> None:
    shared.configure(["true"], linux(timeOffsets={"boottime": {"secs": 1}}))
    done = shared.cove("run", "one")
    assert done.status == 1 and "timeOffsets" in done.error


@pytest.mark.parametrize(("domain", "machine"), [("LINUX", os.uname().machine), ("LINUX32", "i686")])
def test_the_personality_shows_in_uname(shared: Box, domain: str, machine: str) -> None:
    assert printed(shared, "uname -m", linux(personality={"domain": domain})) == f"{machine}\n"


def test_the_memory_policy_is_that_of_the_processs_pages(shared: Box) -> None:
    if not Path("/proc/self/numa_maps").exists():
        pytest.skip("this kernel has no NUMA")
    out = printed(shared, "cat /proc/self/numa_maps", linux(memoryPolicy={"mode": "MPOL_BIND", "nodes": "0"}))
    anonymous = [line for line in out.splitlines() if "heap" in line or "stack" in line]
    assert anonymous and all(line.split()[1] == "bind:0" for line in anonymous), out


def test_sysctls_are_set_in_the_containers_namespaces(shared: Box) -> None:
    given = {"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1", "net/ipv4/ip_default_ttl": "33"}
    files = "/proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_default_ttl"
    assert printed(shared, f"cat {files}", linux(sysctl=given)).split() == ["1", "1", "33"]


@pytest.mark.parametrize(
    ("propagation", "field"),
    [("shared", "shared:"), ("slave", ""), ("private", ""), ("unbindable", "unbindable")],
)
def test_the_root_propagates_as_it_should(shared: Box, propagation: str, field: str) -> None:
    out = printed(
        shared,
        "grep ' / / \\| / rw\\| / ro' /proc/self/mountinfo | head -1",
        linux(rootfsPropagation=propagation),
    )
    optional = " ".join(out.split(" - ")[0].split()[6:])
    assert optional.startswith(field) if field else "shared:" not in optional and "unbindable" not in optional


def test_an_idmapped_bind_shows_mapped_owners(box: Box, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").touch()
    os.chown(source / "file", 1000, 1000)
    mapping = [{"containerID": 1000, "hostID": 0, "size": 1}]

    def change(config: dict[str, Any]) -> None:
        config["mounts"].append(
            {"destination": "/tmp", "type": "none", "source": str(source), "options": ["bind", "idmap"],
             "uidMappings": mapping, "gidMappings": mapping}
        )  # fmt: skip

    assert printed(box, "stat -c '%u %g' /tmp/file", change) == "0 0\n"


def test_devices_and_their_symlinks_are_there_without_being_asked_for(shared: Box) -> None:
    names = ("null", "zero", "full", "random", "urandom", "tty", "ptmx")
    script = "".join(f"test -c /dev/{name} || echo {name};" for name in names)
    assert printed(shared, script + "for each in fd stdin stdout stderr; do readlink /dev/$each; done").split() == [
        "/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2",
    ]  # fmt: skip


def test_a_device_may_lie_anywhere_and_must_fit_what_is_there(shared: Box) -> None:
    device = {"path": "/tmp/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4}

    def change(config: dict[str, Any]) -> None:
        config["linux"]["devices"] = [device]
        config["root"]["readonly"] = False

    shown = printed(shared, "stat -c '%t:%T %a %u %g' /tmp/zero; rm /tmp/zero; true", change)
    assert shown == "1:5 640 3 4\n"
    place = shared.bundle / "rootfs/tmp/zero"
    place.unlink(missing_ok=True)
    place.write_text("a file")
    try:
        shared.configure(["true"], change)
        done = shared.cove("run", "one")
        assert done.status == 1 and "/tmp/zero" in done.error
        assert place.read_text() == "a file"
    finally:
        place.unlink()


def test_a_namespace_of_another_type_is_refused(shared: Box) -> None:
    def change(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"] = [{"type": "mount"}, {"type": "uts", "path": "/proc/self/ns/ipc"}]
        config.pop("hostname")

    shared.configure(["true"], change)
    done = shared.cove("run", "one")
    assert done.status == 1 and "/proc/self/ns/ipc" in done.error, done.err
    assert shared.ids("cove") == []


def test_a_namespace_twice_is_refused(shared: Box) -> None:
    shared.configure(["true"], lambda config: with_namespaces(config, "ipc"))
    done = shared.cove("run", "one")
    assert done.status == 1 and "linux.namespaces[" in done.error


def test_a_namespace_that_is_not_named_is_the_runtimes(shared: Box) -> None:
    def change(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"] = [{"type": "mount"}, {"type": "pid"}]
        config.pop("hostname")

    kinds = ("uts", "ipc", "net", "user", "cgroup", "time")
    out = printed(shared, "".join(f"readlink /proc/self/ns/{kind};" for kind in kinds), change)
    assert out.split() == [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds]


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """One end of a pair, with addresses."""
    name = leaks.unique_name()
    for command in (
        f"link add {name} type veth peer name {name}p",
        f"address add 10.99.7.1/24 dev {name}",
        f"address add 2001:db8:99::7/64 dev {name}",
        f"address add 10.99.8.1/24 dev {name} valid_lft 1000 preferred_lft 1000",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    yield name
    subprocess.run(["ip", "link", "delete", f"{name}p"], stderr=subprocess.DEVNULL, check=False)


@pytest.mark.parametrize("user", [False, True])
def test_a_network_device_is_moved_with_its_lasting_addresses(shared: Box, device: str, user: bool) -> None:
    def change(config: dict[str, Any]) -> None:
        config["linux"]["netDevices"] = {device: {"name": "inner%d"}}
        if user:
            with_namespaces(config, "user")
            own = [{"containerID": 0, "hostID": 0, "size": 1000}]
            config["linux"].update(uidMappings=own, gidMappings=own)

    out = printed(shared, "ip address show inner0; test -e /sys/class/net/inner0 && echo there", change)
    assert "inet 10.99.7.1/24" in out and "inet6 2001:db8:99::7/64" in out and "10.99.8.1" not in out
    assert re.search(r"inner0@\w+: <[^>]*\bUP\b", out) and out.endswith("there\n")
    assert not Path(f"/sys/class/net/{device}").exists()


def test_a_network_device_that_cant_be_moved_stays(shared: Box, device: str) -> None:
    for given, words in (
        ({device: {"name": "lo"}}, "has a device lo already"),
        ({device: {}, "nosuch0": {}}, "no network device nosuch0"),
    ):
        shared.configure(["true"], linux(netDevices=given))
        done = shared.cove("run", "one")
        assert done.status == 1 and words in done.error, done.err
        assert Path(f"/sys/class/net/{device}").exists() and shared.ids("cove") == []


def test_what_asks_for_a_controller_that_is_not_there_is_an_error(shared: Box) -> None:
    shared.configure(["true"], linux(resources={"unified": {"nosuch.max": "1"}}))
    done = shared.cove("run", "one")
    assert done.status == 1 and "linux.resources.unified" in done.error, done.err
    assert shared.ids("cove") == []


# --- the whole --------------------------------------------------------------------------------------


def test_host_name_and_domain_name_are_set(shared: Box) -> None:
    change: Change = lambda config: config.update(hostname="one", domainname="example.org")  # noqa: E731
    assert printed(shared, "hostname; cat /proc/sys/kernel/domainname", change).split() == [
        "one",
        "example.org",
    ]


def test_mounts_are_made_in_order_and_a_relative_place_is_below_the_root(box: Box) -> None:
    """A later mount lies over an earlier one, also where they are of different kinds."""
    source = box.bundle / "source"
    source.mkdir()
    (source / "file").touch()

    def change(config: dict[str, Any]) -> None:
        config["mounts"] += [
            {"destination": "/tmp", "type": "none", "source": str(source), "options": ["rbind", "rslave"]},
            {"destination": "tmp", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]},
            {"destination": "/root", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/root", "type": "none", "source": str(source), "options": ["bind", "shared"]},
        ]

    assert printed(box, "ls /tmp; echo .; ls /root", change).split() == [".", "file"]


def test_what_nobody_knows_is_ignored(shared: Box) -> None:
    def change(config: dict[str, Any]) -> None:
        config.update(nosuch={"a": 1}, annotations={"org.example.nosuch": "value", "other": ""})
        for part in ("process", "root", "linux"):
            config[part]["nosuch"] = [1]
        config["mounts"][0]["nosuch"] = True

    assert printed(shared, "echo hello", change) == "hello\n"


def test_annotations_are_told_with_the_state_and_to_hooks(box: Box) -> None:
    notes = box.bundle / "state.json"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"cat > {notes}"]}

    def change(config: dict[str, Any]) -> None:
        config.update(annotations={"org.example.key": "value"}, hooks={"createRuntime": [hook]})

    box.configure(["sleep", "1000"], change)
    assert box.cove("create", "one").status == 0
    state = box.cove("state", "one").json()
    assert (
        state["annotations"] == json.loads(notes.read_text())["annotations"] == {"org.example.key": "value"}
    )
    assert set(state) >= {"ociVersion", "id", "status", "pid", "bundle"}


def test_an_annotation_needs_a_key(shared: Box) -> None:
    shared.configure(["true"], lambda config: config.update(annotations={"": "value"}))
    done = shared.cove("run", "one")
    assert done.status == 1 and "annotations" in done.error


def test_hooks_of_one_kind_run_in_order_up_to_the_first_that_fails(box: Box) -> None:
    notes = box.bundle / "notes"
    hooks = {
        kind: [
            {"path": "/bin/sh", "args": ["sh", "-c", f"echo {kind}{index} >> {notes}; exit {status}"]}
            for index, status in enumerate(statuses)
        ]
        for kind, statuses in {"createRuntime": (0, 0, 1, 0), "poststop": (0, 1, 0)}.items()
    }
    box.configure(["true"], lambda config: config.update(hooks=hooks))
    done = box.cove("create", "one")
    assert done.status == 1 and "createRuntime hook #2" in done.error
    assert notes.read_text().split() == [
        "createRuntime0", "createRuntime1", "createRuntime2", "poststop0", "poststop1", "poststop2",
    ]  # fmt: skip
    assert box.ids("cove") == []


def test_a_hook_needs_some_time_and_an_absolute_path(shared: Box) -> None:
    for hook, place in (({"path": "/bin/true", "timeout": 0}, "timeout"), ({"path": "true"}, "path")):
        shared.configure(["true"], lambda config, hook=hook: config.update(hooks={"poststop": [hook]}))  # type: ignore[misc]
        done = shared.cove("run", "one")
        assert done.status == 1 and f"hooks.poststop[0].{place}" in done.error, done.err


def test_hooks_run_in_the_namespaces_that_they_should(box: Box) -> None:
    notes = box.bundle / "rootfs/notes"
    notes.mkdir(mode=0o777)
    kinds = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")

    def change(config: dict[str, Any]) -> None:
        config["root"]["readonly"] = False
        config["hooks"] = {}
        for kind in kinds:
            directory = "/notes" if kind == "startContainer" else str(notes)
            script = f"readlink /proc/self/ns/mnt /proc/self/ns/uts > {directory}/{kind}"
            if kind == "startContainer":
                script = f"for each in mnt uts; do readlink /proc/self/ns/$each; done > {directory}/{kind}"
            config["hooks"][kind] = [
                {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}
            ]

    box.configure(["sleep", "1000"], change)
    assert box.cove("run", "--detach", "one").status == 0
    pid = box.cove("state", "one").json()["pid"]
    inside = [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("mnt", "uts")]
    assert box.cove("delete", "--force", "one").status == 0
    outside = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "uts")]
    for kind in kinds:
        expected = inside if kind in ("createContainer", "startContainer") else outside
        assert (notes / kind).read_text().split() == expected, kind


def test_a_change_of_the_config_after_create_has_no_effect(box: Box) -> None:
    box.configure(["sh", "-c", "sleep 1000"])
    assert box.cove("create", "one").status == 0
    box.configure(["nosuch"], lambda config: config.update(annotations={"a": "b"}))
    assert box.cove("start", "one").status == 0
    assert "annotations" not in box.cove("state", "one").json()


def test_delete_leaves_what_create_did_not_make(box: Box) -> None:
    others = Path("/sys/fs/cgroup/pids") / box.cgroup / "others"
    if not others.parent.exists():
        others = Path("/sys/fs/cgroup") / box.cgroup / "others"
    others.mkdir()
    kept = box.bundle / "kept"
    kept.mkdir()
    box.configure(
        ["true"],
        lambda config: config["mounts"].append(
            {"destination": "/tmp", "type": "none", "source": str(kept), "options": ["bind"]}
        ),
    )
    before = Path("/proc/self/mountinfo").read_text()
    assert box.cove("run", "one").status == 0
    assert others.is_dir() and kept.is_dir() and Path("/proc/self/mountinfo").read_text() == before
    assert {path.name for path in others.parent.iterdir() if path.is_dir()} == {"others"}


def test_an_id_in_use_is_refused_and_its_owner_unharmed(box: Box) -> None:
    box.configure(["sleep", "1000"])
    assert box.cove("create", "one").status == 0
    before = box.cove("state", "one").json()
    assert box.cove("create", "one").status == 1
    assert box.cove("state", "one").json() == before


def test_start_and_state_and_kill_and_delete_need_an_id(shared: Box) -> None:
    for verb in ("start", "state", "kill", "delete", "create"):
        assert shared.cove(verb).status == 1, verb
        if verb != "create":
            assert shared.cove(verb, "nosuch").status == 1, verb


def test_only_the_standard_streams_are_open(shared: Box) -> None:
    shared.configure(["sh", "-c", "ls -1 /proc/self/fd | wc -l"])
    with open("/dev/null") as file:
        number = fcntl.fcntl(file.fileno(), fcntl.F_DUPFD, 300)  # without FD_CLOEXEC
    try:
        child = subprocess.run(
            shared.argv("cove", "run", "one"), cwd=shared.bundle, capture_output=True, text=True, close_fds=False,
            stdin=subprocess.DEVNULL, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(number)
    assert child.stdout.split() == ["4"], child.stderr  # the fourth is ls's own
