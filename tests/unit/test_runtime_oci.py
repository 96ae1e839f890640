"""config.json to the letter: what is read, what is refused with which sentence, what `spec` and `features` print."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cove.model.errors import CoveError, Invalid, Unavailable
from cove.runtime import oci
from cove.runtime.default_spec import default_spec
from cove.runtime.features import features
from cove.runtime.host_check import check_host
from cove.runtime.oci_check import check_config
from tests.unit.runtime_samples import HOST_V1

Change = Callable[[dict[str, Any]], object]


def sample(change: Change = lambda config: None) -> str:
    config = default_spec(rootless=False)
    change(config)
    return json.dumps(config)


def at(path: str, value: Any) -> Change:
    """Set the field at a path such as process.user.uid or mounts.0.type."""
    *parents, last = path.split(".")

    def change(config: dict[str, Any]) -> None:
        place: Any = config
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        if isinstance(place, list):
            place[int(last)] = value
        elif value is ...:
            del place[last]
        else:
            place[last] = value

    return change


def both(*changes: Change) -> Change:
    def change(config: dict[str, Any]) -> None:
        for each in changes:
            each(config)

    return change


def kinds(*names: str | dict[str, str]) -> Change:
    wanted = [{"type": name} if isinstance(name, str) else name for name in names]
    return at("linux.namespaces", wanted)


def in_user(*changes: Change) -> Change:
    mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    maps = both(at("linux.uidMappings", mapping), at("linux.gidMappings", mapping))
    return both(kinds("mount", "user", "uts", "network", "ipc"), maps, *changes)


def maps(*lines: tuple[int, int, int]) -> Change:
    return in_user(at("linux.uidMappings", [{"containerID": a, "hostID": b, "size": c} for a, b, c in lines]))


def scheduler(**fields: Any) -> Change:
    return at("process.scheduler", fields)


def seccomp(**fields: Any) -> Change:
    return at("linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW", **fields})


NAMESPACES = "use mount, cgroup, uts, ipc, user, pid, network or time"
BAD: list[tuple[Change, str]] = [
    # shape
    (at("root", ...), 'root: is missing: give it, e.g. {"path": "rootfs"}'),
    (at("root.path", ...), 'root.path: is missing: give it, e.g. "rootfs" for root, an absolute path elsewhere'),
    (at("root.path", 5), "root.path: expected a string, got an integer"),
    (at("root.path", ""), 'root.path: is empty: give a directory, e.g. "rootfs"'),
    (at("process.terminal", "yes"), "process.terminal: expected true or false, got a string"),
    (at("process.args", "sh"), "process.args: expected an array, got a string"),
    (at("process.args", [1]), "process.args[0]: expected a string, got an integer"),
    (at("process.args", ["a\0b"]), "process.args[0]: holds a NUL character, leave it out"),
    (at("process.user.uid", 2**32), "process.user.uid: expected a number up to 4294967295"),
    (at("process.user.uid", -1), "process.user.uid: expected a number from 0 up"),
    (at("process.user.uid", 1.5), "process.user.uid: expected an integer, got a number with a fraction"),
    (at("process.rlimits.0.hard", 2**64), "process.rlimits[0].hard: expected a number up to 18446744073709551615"),
    (at("process.rlimits.0.soft", ...), "process.rlimits[0].soft: is missing: give it, e.g. 1024"),
    (at("linux.sysctl", {"net.ipv4.ip_forward": 1}),
     'linux.sysctl["net.ipv4.ip_forward"]: expected a string, got an integer'),
    (at("linux.resources.memory", {"limit": 2**63}),
     "linux.resources.memory.limit: expected a number up to 9223372036854775807"),
    (at("linux.resources.blockIO", {"weight": 70000}), "linux.resources.blockIO.weight: expected a number up to 65535"),
    # versions
    (at("ociVersion", ...),
     'ociVersion: is missing: name the version of the specification, e.g. "1.3.0"'),
    (at("ociVersion", "2.0.0"), 'ociVersion: "2.0.0" is not supported: use 1.0.0 to 1.x, e.g. "1.3.0"'),
    (at("ociVersion", "0.9.0"), 'ociVersion: "0.9.0" is not supported: use 1.0.0 to 1.x, e.g. "1.3.0"'),
    (at("ociVersion", "newest"), 'ociVersion: "newest" is no version of the specification: use e.g. "1.3.0"'),
    # the process
    (at("process", ...),
     'process: is missing: give it, e.g. {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}}'),
    (at("process.args", []), "process.args: is empty: name the program to run"),
    (at("process.cwd", ...), 'process.cwd: is missing: give it, e.g. "/"'),
    (at("process.cwd", "srv"), 'process.cwd: "srv" must be an absolute path, e.g. /'),
    (at("process.env", ["A"]), 'process.env[0]: "A" is no variable: write NAME=VALUE, e.g. TERM=xterm'),
    (at("process.user.username", "web"),
     "process.user.username: is for Windows alone: look the name up, and give uid and gid"),
    (at("process.user.uid", 2**32 - 1), "process.user.uid: 4294967295 means no user at all: use 0 to 4294967294"),
    (at("process.oomScoreAdj", 1001), "process.oomScoreAdj: 1001 is out of range: use -1000 (never killed) to 1000"),
    (at("process.rlimits.0.type", "RLIMIT_FILES"), 'process.rlimits[0].type: "RLIMIT_FILES" is no resource: use '
     "RLIMIT_CPU, RLIMIT_FSIZE, RLIMIT_DATA, RLIMIT_STACK, RLIMIT_CORE, RLIMIT_RSS, RLIMIT_NPROC, RLIMIT_NOFILE, "
     "RLIMIT_MEMLOCK, RLIMIT_AS, RLIMIT_LOCKS, RLIMIT_SIGPENDING, RLIMIT_MSGQUEUE, RLIMIT_NICE, RLIMIT_RTPRIO or "
     "RLIMIT_RTTIME"),
    (lambda config: config["process"]["rlimits"].append(config["process"]["rlimits"][0]),
     "process.rlimits[1].type: RLIMIT_NOFILE is there twice: leave one out"),
    (at("process.rlimits.0.soft", 2000), "process.rlimits[0].soft: 2000 is more than hard, 1024: give 1024 at most"),
    (at("process.capabilities.effective", ["CAP_SYSLOG"]), "process.capabilities.effective: CAP_SYSLOG isn't "
     "permitted: add it to process.capabilities.permitted, too"),
    (scheduler(policy="SCHED_FAST"), 'process.scheduler.policy: "SCHED_FAST" is no policy: use SCHED_OTHER, '
     "SCHED_FIFO, SCHED_RR, SCHED_BATCH, SCHED_IDLE or SCHED_DEADLINE"),
    (scheduler(policy="SCHED_OTHER", nice=20),
     "process.scheduler.nice: 20 is out of range: use -20 (most) to 19 (least)"),
    (scheduler(policy="SCHED_OTHER", priority=1),
     "process.scheduler.priority: is for SCHED_FIFO and SCHED_RR: leave it out with SCHED_OTHER"),
    (scheduler(policy="SCHED_FIFO"), "process.scheduler.priority: 0 is out of range for SCHED_FIFO: use 1 to 99"),
    (scheduler(policy="SCHED_BATCH", runtime=5),
     "process.scheduler.runtime: is for SCHED_DEADLINE: leave it out with SCHED_BATCH"),
    (scheduler(policy="SCHED_DEADLINE", runtime=5000, deadline=4000), "process.scheduler.runtime: has to be 1024 at "
     "least, deadline at least runtime, period at least deadline, e.g. 10000000, 30000000 and 30000000 nanoseconds"),
    (at("process.ioPriority", {"class": "IOPRIO_CLASS_BE", "priority": 8}),
     "process.ioPriority.priority: 8 is out of range: use 0 (first) to 7 (last)"),
    (at("process.execCPUAffinity", {"initial": "3-1"}), 'process.execCPUAffinity.initial: "3-1" must have numbers '
     "from 0 to 8191, lower ones first, e.g. 0-3,7"),
    # names, mounts, hooks
    (both(kinds("mount"), at("domainname", "")), 'hostname: needs a UTS namespace: add {"type": "uts"} to '
     "linux.namespaces, or leave it out"),
    (at("hostname", "h" * 65), "hostname: has 65 bytes: give 64 at most, e.g. web"),
    (at("mounts.0.destination", "/../"),
     'mounts[0].destination: "/" is the root itself: name its directory in root.path'),
    (at("mounts.0.destination", ""), "mounts[0].destination: is empty: give an absolute path, e.g. /data"),
    (at("mounts.0.type", ""), 'mounts[0].type: is empty: name a file system, e.g. tmpfs, or add "rbind" to options'),
    (at("mounts.0", {"destination": "/a", "options": ["rbind"]}),
     "mounts[0].source: is empty: name what to bind, e.g. /srv/data"),
    (at("mounts.0.uidMappings", [{"containerID": 0, "hostID": 1, "size": 1}]),
     "mounts[0].gidMappings: is missing: an id-mapped mount needs both kinds"),
    (at("hooks", {"prestart": [{"path": "hook"}]}),
     'hooks.prestart[0].path: "hook" must be absolute, e.g. /usr/bin/hook'),
    (at("hooks", {"poststop": [{"path": "/h", "timeout": 0}]}),
     "hooks.poststop[0].timeout: 0 must be a positive number of seconds, e.g. 5"),
    (at("annotations", {"": "x"}), "annotations: a key is empty: give it a name, e.g. org.example.key"),
    # namespaces
    (at("linux.namespaces.2.type", "netns"), f'linux.namespaces[2].type: "netns" is no namespace: {NAMESPACES}'),
    (kinds("mount", "uts", "pid", "pid"), "linux.namespaces[3].type: pid is there twice: leave one out"),
    (kinds("mount", "uts", {"type": "pid", "path": "ns/pid"}),
     'linux.namespaces[2].path: "ns/pid" must be absolute, e.g. /proc/123/ns/net'),
    (kinds("mount", "uts", "user"), "linux.uidMappings: is needed by the user namespace in linux.namespaces: "
     'give e.g. [{"containerID": 0, "hostID": 100000, "size": 65536}]'),
    (at("linux.gidMappings", [{"containerID": 0, "hostID": 1, "size": 1}]), 'linux.gidMappings: needs a user '
     'namespace: add {"type": "user"} to linux.namespaces, or leave it out'),
    (maps((0, 1000, 0)), "linux.uidMappings[0].size: is 0: map at least one id, e.g. 65536"),
    (maps((0, 1000, 10), (9, 5000, 1)), "linux.uidMappings[1].containerID: 9 is mapped by another line, too: "
     "make them disjoint"),
    (maps((0, 1000, 10), (20, 1005, 1)), "linux.uidMappings[1].hostID: 1005 is mapped by another line, too: "
     "make them disjoint"),
    (maps((2**32 - 1, 0, 1)), "linux.uidMappings[0].containerID: and size go beyond 4294967294, the last id there is"),
    (maps(*((n, n, 1) for n in range(341))), "linux.uidMappings: has 341 lines: the kernel takes 340 at most"),
    (at("linux.timeOffsets", {"monotonic": {"secs": 1}}), 'linux.timeOffsets: needs a time namespace: add '
     '{"type": "time"} to linux.namespaces, or leave it out'),
    (both(kinds("mount", "uts", "time"), at("linux.timeOffsets", {"realtime": {"secs": 1}})),
     'linux.timeOffsets["realtime"]: is no clock of a time namespace: use monotonic or boottime'),
    (both(kinds("mount", "uts", {"type": "time", "path": "/proc/1/ns/time"}),
          at("linux.timeOffsets", {"boottime": {}})),
     "linux.timeOffsets: can't be changed in a time namespace that is joined: leave it out"),
    (both(kinds("mount", "uts"), at("linux.sysctl", {"net.ipv4.ip_forward": "1"})),
     'linux.sysctl["net.ipv4.ip_forward"]: would change the host: add {"type": "network"} to linux.namespaces, '
     "or leave it out"),
    (both(kinds("mount", "uts"), at("linux.sysctl", {"kernel.shmmax": "1"})),
     'linux.sysctl["kernel.shmmax"]: would change the host: add {"type": "ipc"} to linux.namespaces, or leave it out'),
    (at("linux.sysctl", {"vm.swappiness": "1"}),
     'linux.sysctl["vm.swappiness"]: would change the whole host: leave it out, and set it on the host'),
    (at("linux.sysctl", {"net/../kernel/x": "1"}),
     'linux.sysctl["net/../kernel/x"]: is no setting\'s name: use e.g. net.ipv4.ip_forward'),
    # the file system
    (both(kinds("uts"), at("linux.readonlyPaths", [])), 'linux.maskedPaths: needs a mount namespace: add '
     '{"type": "mount"} to linux.namespaces, or leave it out'),
    (at("linux.maskedPaths", ["proc/x"]), 'linux.maskedPaths[0]: "proc/x" must be absolute, e.g. /proc/kcore'),
    (at("linux.rootfsPropagation", "up"), 'linux.rootfsPropagation: "up" is no propagation: use private, slave, '
     "shared, unbindable, rprivate, rslave, rshared or runbindable"),
    (at("linux.devices", [{"path": "/dev/x", "type": "z"}]),
     'linux.devices[0].type: "z" is no kind of device: use c, u, b or p'),
    (at("linux.devices", [{"path": "/dev/x", "type": "c", "major": 4096}]),
     "linux.devices[0].major: 4096 is out of range: use 0 to 4095"),
    (at("linux.devices", [{"path": "/opt/x", "type": "c", "major": 1, "minor": 3}]), 'linux.devices[0].path: "/opt/x" '
     "can't be made on a read-only root: place it below a mount, e.g. in /dev, or set root.readonly to false"),
    (at("linux.netDevices", {"eth0": {"name": "a/b"}}),
     'linux.netDevices.eth0: "a/b" is no name of a device: use e.g. eth0'),
    # limits and kernel features
    (at("linux.cgroupsPath", "/a/../b"), 'linux.cgroupsPath: "/a/../b" must not have .. in it: use e.g. /team/web'),
    (at("linux.resources.devices.0.access", "rx"),
     'linux.resources.devices[0].access: "rx" must be made of r, w and m, e.g. rwm'),
    (at("linux.resources.cpu", {"cpus": "a"}),
     'linux.resources.cpu.cpus: "a" is no list of numbers: write e.g. 0-3,7'),
    (at("linux.resources.hugepageLimits", [{"pageSize": "2M", "limit": 1}]),
     'linux.resources.hugepageLimits[0].pageSize: "2M" is no size: use e.g. 2MB or 1GB'),
    (at("linux.resources.unified", {"../memory.high": "1"}),
     'linux.resources.unified["../memory.high"]: is no file of a cgroup: use e.g. memory.high'),
    (at("linux.intelRdt", {"closID": "a/b"}), 'linux.intelRdt.closID: "a/b" must be a name without /, e.g. batch'),
    (at("linux.intelRdt", {"memBwSchema": "L3:0=f"}),
     'linux.intelRdt.memBwSchema: "L3:0=f" must begin with MB:, e.g. MB:0=50'),
    (at("linux.personality", {"domain": "BSD"}), 'linux.personality.domain: "BSD" is no domain: use LINUX or LINUX32'),
    (at("linux.memoryPolicy", {"mode": "MPOL_BIND"}),
     "linux.memoryPolicy.nodes: is needed by MPOL_BIND: give e.g. 0-3,7"),
    (at("linux.memoryPolicy", {"mode": "MPOL_LOCAL", "nodes": "0"}),
     "linux.memoryPolicy.nodes: has no place with MPOL_LOCAL: leave it out"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), BAD, ids=[sentence[:40] for _, sentence in BAD])
def test_a_bad_config_is_refused_with_path_rule_and_remedy(change: Change, sentence: str) -> None:
    with pytest.raises((Invalid, Unavailable)) as caught:
        check_config(oci.parse_config(sample(change)))
    assert str(caught.value) == f"config.json: {sentence}"


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (seccomp(defaultAction="ALLOW"), "defaultAction"),
        (seccomp(architectures=["X86"]), "architectures[0]"),
        (seccomp(flags=["FAST"]), "flags[0]"),
        (seccomp(syscalls=[{"names": [], "action": "SCMP_ACT_ALLOW"}]), "syscalls[0].names"),
        (
            seccomp(
                syscalls=[
                    {
                        "names": ["read"],
                        "action": "SCMP_ACT_ERRNO",
                        "args": [{"index": 0, "value": 1, "op": "EQ"}],
                    }
                ]
            ),
            "syscalls[0].args[0].op",
        ),
    ],
)
def test_a_filter_s_fault_is_named_by_its_place(change: Change, place: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_config(oci.parse_config(sample(change)))
    assert str(caught.value).startswith(f"config.json: linux.seccomp.{place}: ")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is no JSON: it ends too early"),
        ("{", "is no JSON: it ends too early"),
        ('{"root": tru}', "is no JSON: invalid character (byte 13)"),
        (b'{"ociVersion": "1.0.0", "hostname": "\xff"}', "is no JSON: it holds bytes that aren't UTF-8"),
        ("[]", "expected an object, got an array"),
        ("null", "expected an object, got null"),
        ('{"x": ' + "[" * 100_000, "is nested too deeply: write less than some hundred levels"),
        (b" " * (oci.MAX_BYTES + 1), f"{oci.MAX_BYTES + 1} bytes is too long: write less than 16 MiB"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_config_at_all_is_refused_by_sentence(text: str | bytes, sentence: str) -> None:
    with pytest.raises(Invalid) as caught:
        oci.parse_config(text)
    assert str(caught.value) == f"config.json: {sentence}"


@pytest.mark.parametrize(
    "change",
    [
        lambda config: None,
        at("ociVersion", "1.0.0-rc5-dev"),
        at("ociVersion", "1.9.0+vendor"),
        at("process.args", ["sh", "-c", "echo \\u0000"]),
        at("process.capabilities", None),
        at("process.rlimits", None),
        at("process.noSuchField", {"x": [1]}),
        at("windows", {"layerFolders": 5}),
        at("annotations", {"org.example": "a\0b"}),
        at("linux.intelRdt", {"closID": "/"}),
        in_user(
            at("linux.sysctl", {"user.max_user_namespaces": "0", "net/ipv4/conf/eth0.5/forwarding": "1"})
        ),
        both(
            kinds("mount", "uts", {"type": "user", "path": "/proc/1/ns/user"}),
            at("linux.uidMappings", [{"containerID": 0, "hostID": 0, "size": 4294967295}]),
        ),
        scheduler(policy="SCHED_DEADLINE", runtime=10**7, deadline=3 * 10**7, period=3 * 10**7),
        at("linux.devices", [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]),
    ],
)
def test_what_the_specification_allows_is_taken(change: Change) -> None:
    warnings: list[str] = []
    config = oci.parse_config(sample(change), warnings)
    assert check_config(config) + warnings == []
    assert oci.parse_config(oci.encode_config(config)) == config


def test_what_can_be_settled_is_settled_with_a_warning() -> None:
    warnings: list[str] = []
    changes = both(
        at("mounts.0.destination", "proc"),
        at("mounts.1.destination", "/dev/./x/..//"),
        at("process.capabilities.bounding", ["CAP_KILL", "CAP_FUTURE"]),
        at("process.capabilities.ambient", ["CAP_KILL"]),
    )
    config = oci.parse_config(sample(changes), warnings)
    assert [mount.destination for mount in config.mounts[:2]] == ["/proc", "/dev"]
    assert config.process.capabilities is not None
    assert config.process.capabilities.bounding == ("CAP_KILL",)
    assert config.process.capabilities.ambient == ()
    assert warnings == [
        'config.json: mounts[0].destination: "proc" is relative, which is deprecated: it is taken as relative to /',
        "config.json: process.capabilities.bounding: left out, for they are unknown: CAP_FUTURE",
    ]


def test_what_will_have_no_effect_is_told() -> None:
    joined = kinds("mount", {"type": "uts", "path": "/proc/1/ns/uts"})
    config = oci.parse_config(sample(both(joined, at("linux.resources.memory", {"kernel": 1 << 30}))))
    assert [warning.split(": ")[1] for warning in check_config(config)] == [
        "hostname",
        "linux.resources.memory.kernel",
    ]


def test_paths_of_a_bundle_become_absolute() -> None:
    binds = [
        {"destination": "/a", "source": "data", "options": ["rbind"]},
        {"destination": "/b", "source": "/srv", "type": "bind"},
        {"destination": "/c", "source": "tmpfs", "type": "tmpfs"},
    ]
    config = oci.place_in_bundle(oci.parse_config(sample(at("mounts", binds))), "/run/bundle")
    assert config.root.path == "/run/bundle/rootfs"
    assert [mount.source for mount in config.mounts] == ["/run/bundle/data", "/srv", "tmpfs"]


def test_a_process_and_limits_are_read_alone() -> None:
    process = oci.parse_process('{"args": ["ls"], "cwd": "/srv", "user": {"uid": 5, "gid": 6}}')
    assert (process.args, process.user.uid) == (("ls",), 5)
    with pytest.raises(Invalid, match=r"^process: args: is empty"):
        oci.parse_process('{"cwd": "/"}')
    assert oci.parse_resources('{"pids": {"limit": 5}}').pids == oci.Pids(limit=5)
    with pytest.raises(Invalid, match=r"^resources: pids\.limit: expected an integer, got a string"):
        oci.parse_resources('{"pids": {"limit": "5"}}')


# --- this host ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            at("process.apparmorProfile", "web"),
            "process.apparmorProfile: AppArmor is not enabled on this host",
        ),
        (at("process.selinuxLabel", "a:b"), "process.selinuxLabel: SELinux is not enabled on this host"),
        (at("linux.mountLabel", "a:b"), "linux.mountLabel: SELinux is not enabled on this host"),
        (at("linux.intelRdt", {"closID": "a"}), "linux.intelRdt: this host has no resctrl file system"),
        (
            kinds("mount", "uts", {"type": "pid", "path": "/nowhere"}),
            "linux.namespaces[2].path: /nowhere: No such file",
        ),
        (
            kinds("mount", "uts", {"type": "pid", "path": "/etc/passwd"}),
            "linux.namespaces[2].path: /etc/passwd is no",
        ),
        (
            both(
                kinds("uts", {"type": "network", "path": f"/proc/{os.getpid()}/ns/net"}),
                at("linux.sysctl", {"net.ipv4.ip_forward": "1"}),
            ),
            'linux.sysctl["net.ipv4.ip_forward"]: would change the host, whose network linux.namespaces[1].path is',
        ),
        (
            both(
                kinds("uts", {"type": "user", "path": f"/proc/{os.getpid()}/ns/user"}),
                at("linux.uidMappings", [{"containerID": 1, "hostID": 2, "size": 3}]),
            ),
            "linux.uidMappings: isn't what the user namespace",
        ),
    ],
)
def test_what_this_host_lacks_is_told_by_its_path(change: Change, sentence: str) -> None:
    with pytest.raises(CoveError) as caught:
        check_host(oci.parse_config(sample(change)), HOST_V1)
    assert str(caught.value).startswith(f"config.json: {sentence}")


def test_an_ordinary_config_fits_this_host() -> None:
    check_host(oci.parse_config(sample()), HOST_V1)


# --- spec, features -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rootless", [False, True])
def test_spec_prints_what_runc_s_does(rootless: bool, tmp_path: Path) -> None:
    runc = shutil.which("runc", path="/usr/sbin:/usr/bin")
    if runc is None:
        pytest.skip("runc isn't installed")
    subprocess.run(
        [runc, "spec", *(["--rootless"] if rootless else [])], cwd=tmp_path, check=True, timeout=30
    )
    theirs = json.loads((tmp_path / "config.json").read_text())
    theirs["ociVersion"] = oci.VERSION
    unified = {"type": "cgroup"} in theirs["linux"]["namespaces"]
    ours = default_spec(rootless, uid=os.geteuid(), gid=os.getegid(), cgroup_namespace=unified)
    # json.dumps, for the order counts, too: people read it
    assert json.dumps(ours, indent=1) == json.dumps(theirs, indent=1)


def test_what_spec_prints_is_a_good_config() -> None:
    for rootless in (False, True):
        config = oci.parse_config(json.dumps(default_spec(rootless, uid=1000, gid=1000)))
        assert check_config(config) == []


def test_every_word_in_features_is_known() -> None:
    found = features()
    linux = found["linux"]
    for kind in linux["namespaces"]:
        mapping = [{"containerID": 0, "hostID": 1, "size": 1}] if kind == "user" else []
        changes = both(
            kinds(*({"mount", "uts", kind})),
            at("linux.uidMappings", mapping),
            at("linux.gidMappings", mapping),
        )
        check_config(oci.parse_config(sample(changes)))
    for action in set(linux["seccomp"]["actions"]) - {"SCMP_ACT_NOTIFY"}:
        rule = {"names": ["mkdir"], "action": action}
        check_config(oci.parse_config(sample(seccomp(syscalls=[rule]))))
    warnings: list[str] = []
    oci.parse_config(sample(at("process.capabilities.bounding", linux["capabilities"])), warnings)
    assert warnings == []
    assert {"ro", "rro", "rbind", "idmap", "tmpcopyup", "rprivate"} <= set(found["mountOptions"])
    assert set(linux["seccomp"]["supportedFlags"]) <= set(linux["seccomp"]["knownFlags"])
    json.dumps(found)


# --- whatever comes -----------------------------------------------------------------------------------

_scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
_words = st.sampled_from(
    [
        "",
        "/",
        "/dev",
        "..",
        "user",
        "time",
        "mount",
        "pid",
        "SCHED_FIFO",
        "MPOL_BIND",
        "rbind",
        "0-3",
        "a\0",
        "9" * 5000,
    ]
)
_values = st.recursive(
    _scalars | _words,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(_words | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


def _paths(value: Any, path: str = "") -> list[str]:
    """Every place in the sample that can be replaced."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    found = [path] if path else []
    for key, item in items:
        found += _paths(item, f"{path}.{key}" if path else str(key))
    return found


_optional = [
    "linux.sysctl", "linux.uidMappings", "linux.gidMappings", "linux.timeOffsets", "linux.devices", "linux.seccomp",
    "linux.intelRdt", "linux.memoryPolicy", "linux.personality", "linux.resources.cpu", "linux.resources.unified",
    "linux.resources.hugepageLimits", "linux.cgroupsPath", "linux.rootfsPropagation", "process.scheduler",
    "process.ioPriority", "process.execCPUAffinity", "process.oomScoreAdj", "hooks", "hooks.prestart", "annotations",
    "mounts.0.uidMappings", "linux.netDevices",
]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from([*_paths(default_spec(False)), *_optional]), _values), max_size=4))
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_nothing_but_a_sentence_comes_of_a_strange_config(changes: list[tuple[str, Any]]) -> None:
    def change(config: dict[str, Any]) -> None:
        for path, value in changes:
            try:
                at(path, value)(config)
            except (TypeError, KeyError, IndexError, AttributeError, ValueError):
                continue  # an earlier change has taken the place away

    try:
        config = oci.parse_config(sample(change))
        check_config(config)
    except (Invalid, Unavailable) as error:
        assert str(error).startswith("config.json: ")
        assert "\n" not in str(error).replace("\\n", "") or any(
            "\n" in json.dumps(change) for change in changes
        )
    else:
        assert oci.parse_config(oci.encode_config(config)) == config


@given(st.binary(max_size=200) | st.text(max_size=200))
@settings(max_examples=150, deadline=None)
def test_nothing_but_a_sentence_comes_of_a_strange_text(text: bytes | str) -> None:
    with pytest.raises(Invalid, match=r"^config\.json: "):
        oci.parse_config(text)
