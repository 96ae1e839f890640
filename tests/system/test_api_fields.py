"""Fields of a create that docs/docker-compatibility.md calls honoured: what a container sees of each, and inspect.

Each case makes one container. A field counts as proved by a case that names it, or by another test's file in
ELSEWHERE; one that neither has fails.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.apikit import eventually, inspect, remove
from tests.daemon import Daemon

ROOT = Path(__file__).parent.parent.parent
GROUP = "/sys/fs/cgroup"
MEMORY, CPU, PIDS, BLKIO = (f"{GROUP}/{name}" for name in ("memory", "cpu", "pids", "blkio"))


class Case(NamedTuple):
    name: str
    body: dict[str, Any]
    script: str = "true"
    wanted: tuple[str, ...] = ()  # regular expressions of whole lines of the output
    refused: tuple[str, ...] = ()  # and what no line may match
    hides: frozenset[str] = frozenset()  # fields that inspect shows otherwise
    warned: str = ""  # a warning that stands for the effect where the kernel has none


def host(**fields: Any) -> dict[str, Any]:
    return {"HostConfig": fields}


def device() -> str:
    """A block device of this host."""
    names = (name for name in sorted(os.listdir("/sys/block")) if Path(f"/dev/{name}").is_block_device())
    return f"/dev/{next(names, 'null')}"


def cat(path: str) -> str:
    return f"cat {path}"


CASES = (
    Case("process", {"Entrypoint": ["sh", "-c"], "Env": ["A=b", "PATH"], "WorkingDir": "/var", "User": "1:2"},
         "echo $A; pwd; id -u; id -g", ("b", "/var", "1", "2"), hides=frozenset({"Env"})),
    Case("names", {"Hostname": "web", "Domainname": "example.org", "Labels": {"a": "b"}},
         "hostname; cat /proc/sys/kernel/domainname", ("web", "example.org")),
    Case("terminal", {"Tty": True, "OpenStdin": True, "StdinOnce": True, **host(ConsoleSize=[33, 77])},
         "test -t 0 && echo terminal; stty size", (r"terminal\r?", r"33 77\r?")),
    Case("stop", {"StopSignal": "SIGUSR1", "StopTimeout": 33}),
    Case("health", {"Healthcheck": {"Test": ["CMD", "true"], "Interval": 10**10, "Timeout": 10**9, "Retries": 5,
                                    "StartPeriod": 10**9, "StartInterval": 2 * 10**9}}),
    Case("ports", {"ExposedPorts": {"81/tcp": {}, "82-83/udp": {}}, **host(
        NetworkMode="bridge", PublishAllPorts=True,
        PortBindings={"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]})},
        hides=frozenset({"ExposedPorts"})),
    Case("no network", {"NetworkDisabled": True}, "ls /sys/class/net", ("lo",), ("eth0",)),
    Case("volumes", {"Volumes": {"/fresh": {}}, **host(
        Binds=["/usr:/ro:ro", "kept:/kept"], Tmpfs={"/tmpfs": "size=1m"})},
         "grep -E ' /(fresh|ro|kept|tmpfs) ' /proc/mounts; touch /fresh/x /kept/x; touch /ro/x", (
             r".* /fresh .*rw.*", r".* /ro .*ro[, ].*", r".* /kept .*", r"tmpfs /tmpfs .*size=1024k.*",
             r".*/ro/x.*Read-only.*")),
    Case("mounts", host(Mounts=[
        {"Type": "bind", "Source": "/usr", "Target": "/b", "ReadOnly": True,
         "BindOptions": {"Propagation": "rprivate", "NonRecursive": True}},
        {"Type": "volume", "Source": "made", "Target": "/v", "VolumeOptions": {
            "NoCopy": True, "Labels": {"v": "1"}, "DriverConfig": {"Name": "local", "Options": {}}}},
        {"Type": "tmpfs", "Target": "/t",
         "TmpfsOptions": {"SizeBytes": 1 << 20, "Mode": 0o700, "Options": [["noexec"]]}},
    ]), "grep -E ' /[bvt] ' /proc/mounts", (
        r".* /b .*ro[, ].*", r".* /v .*", r"tmpfs /t .*noexec.*size=1024k.*mode=700.*")),
    Case("capabilities", host(CapAdd=["SYS_TIME"], CapDrop=["CHOWN"]),
         "grep CapEff /proc/self/status", (r"CapEff:\s+00000000a[0-9a-f]*5fa",)),
    Case("privileged", host(Privileged=True),
         "mount -t tmpfs x /dev/shm && echo mounted; grep Seccomp: /proc/self/status",
         ("mounted", r"Seccomp:\s+0"), hides=frozenset({"MaskedPaths", "ReadonlyPaths"})),
    Case("read-only", host(ReadonlyRootfs=True), "touch /x", (r".*Read-only file system.*",)),
    Case("masks", host(MaskedPaths=["/proc/version"], ReadonlyPaths=["/proc/sys/kernel"]),
         "cat /proc/version | wc -c; cat /proc/kcore 2>&1 | head -c 0; echo x > /proc/sys/kernel/hostname",
         ("0", r".*Read-only.*")),
    Case("security", host(SecurityOpt=["no-new-privileges", "seccomp=unconfined", "label=disable"]),
         "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status", (r"NoNewPrivs:\s+1", r"Seccomp:\s+0")),
    Case("security off again", host(SecurityOpt=["no-new-privileges=false", "systempaths=unconfined"]),
         "grep NoNewPrivs /proc/self/status; grep -c ' /proc/' /proc/mounts", (r"NoNewPrivs:\s+0", "0")),
    Case("writable cgroups", host(SecurityOpt=["writable-cgroups=true"]),
         f"mkdir {PIDS}/inner && echo made", ("made",)),
    Case("cgroups as they are", host(SecurityOpt=["writable-cgroups=false"]),
         f"mkdir {PIDS}/inner", (".*Read-only.*",)),
    Case("groups", host(GroupAdd=["4711"]), "id -G", (r".*\b4711\b.*",)),
    Case("init", host(Init=True), cat("/proc/1/comm"), (r"(docker|cove)-init",)),
    Case("namespaces of the host", host(
        PidMode="host", IpcMode="host", UTSMode="host", CgroupnsMode="host", UsernsMode="host"),
         "for n in pid ipc uts cgroup; do readlink /proc/self/ns/$n; done",
         tuple(re.escape(os.readlink(f"/proc/self/ns/{name}")) for name in ("pid", "ipc", "uts", "cgroup"))),
    Case("ipc none", host(IpcMode="none"), "grep -c ' /dev/shm ' /proc/mounts", ("0",)),
    Case("shm", host(ShmSize=1 << 20), "grep ' /dev/shm ' /proc/mounts", (r".*size=1024k.*",)),
    Case("sysctls", host(Sysctls={"net.ipv4.ip_forward": "0", "kernel.shmmni": "100"}),
         "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni", ("0", "100")),
    Case("ulimits", host(Ulimits=[{"Name": "nofile", "Soft": 77, "Hard": 99}]), "ulimit -n; ulimit -Hn", ("77", "99")),
    Case("oom score", host(OomScoreAdj=500), cat("/proc/self/oom_score_adj"), ("500",)),
    Case("memory", host(Memory=64 << 20, MemorySwap=128 << 20, MemoryReservation=32 << 20, MemorySwappiness=7,
                        OomKillDisable=True),
         f"cd {MEMORY}; cat memory.limit_in_bytes memory.memsw.limit_in_bytes memory.soft_limit_in_bytes;"
         " cat memory.swappiness memory.oom_control",
         (str(64 << 20), str(128 << 20), str(32 << 20), "7", "oom_kill_disable 1")),
    Case("cpu quota", host(CpuPeriod=50_000, CpuQuota=25_000, CpuShares=512),
         f"cd {CPU}; cat cpu.cfs_period_us cpu.cfs_quota_us cpu.shares", ("50000", "25000", "512")),
    Case("cpus", host(NanoCpus=500_000_000), f"cat {CPU}/cpu.cfs_quota_us", ("50000",)),
    Case("cpu set", host(CpusetCpus="0", CpusetMems="0"),
         "grep -E '(Cpus|Mems)_allowed_list' /proc/self/status", (r"Cpus_.*:\s+0", r"Mems_.*:\s+0")),
    Case("pids", host(PidsLimit=33), f"cat {PIDS}/pids.max", ("33",)),
    Case("device rates", host(
        BlkioDeviceReadBps=[{"Path": device(), "Rate": 1 << 20}],
        BlkioDeviceWriteBps=[{"Path": device(), "Rate": 2 << 20}],
        BlkioDeviceReadIOps=[{"Path": device(), "Rate": 100}], BlkioDeviceWriteIOps=[{"Path": device(), "Rate": 200}]),
        f"cd {BLKIO}; cat blkio.throttle.read_bps_device blkio.throttle.write_bps_device "
        "blkio.throttle.read_iops_device blkio.throttle.write_iops_device",
        (rf"\d+:\d+ {1 << 20}", rf"\d+:\d+ {2 << 20}", r"\d+:\d+ 100", r"\d+:\d+ 200")),
    Case("block weight", host(BlkioWeight=300), f"cat {BLKIO}/blkio.bfq.weight", ("300",),
         hides=frozenset({"BlkioWeight"}), warned="weight"),
    Case("devices", host(
        Devices=[{"PathOnHost": "/dev/null", "PathInContainer": "/dev/mine", "CgroupPermissions": "rw"}],
        DeviceCgroupRules=["c 42:* rwm"]),
         f"echo x > /dev/mine && echo written; cat {GROUP}/devices/devices.list", ("written", r"c 42:\* rwm")),
    Case("resolver", host(NetworkMode="none", Dns=["192.0.2.1"], DnsSearch=["example.org"], DnsOptions=["ndots:2"],
                          ExtraHosts=["db:192.0.2.2"]),
         "cat /etc/resolv.conf /etc/hosts", ("nameserver 192.0.2.1", "search example.org", "options ndots:2",
                                             r"192\.0\.2\.2\s+db")),
    Case("logs", host(LogConfig={"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}})),
    Case("restarts", host(RestartPolicy={"Name": "on-failure", "MaximumRetryCount": 2})),
    Case("words", host(Annotations={"org.example.a": "1"}, Isolation="default", Runtime="io.containerd.runc.v2",
                       VolumeDriver="local", CgroupParent="")),
)  # fmt: skip

# honoured fields, and the test that shows it
ELSEWHERE: dict[str, str] = {
    "AttachStd(out|err)": "tests/clients/test_sdk_containers.py",
    "Cmd|Image": "every case",
    "MacAddress": "tests/unit/test_api_compatibility.py",
    r"HostConfig\.AutoRemove": "tests/system/test_lifecycle.py",
    r"HostConfig\.CgroupParent": "tests/system/test_cgroups_v1.py",
    r"HostConfig\.DeviceRequests.*": "tests/system/test_cdi.py",
    r"HostConfig\.KernelMemoryTCP": "tests/unit/test_runtime_cgroups.py",
    r"HostConfig\.(BlkioWeightDevice|CpuRealtime).*": "tests/unit/test_runtime_cgroups.py",
    r"HostConfig\.Links": "tests/clients/test_docker_run.py",
    r"HostConfig\.VolumesFrom": "tests/clients/test_docker_run.py",
    r"HostConfig\.StorageOpt": "tests/lab/test_project_quota.py",
    r"HostConfig\.Mounts\[\]\.BindOptions\.(CreateMountpoint|ReadOnly.*)": "tests/unit/test_api_decode.py",
    r"HostConfig\.Mounts\[\]\.VolumeOptions\.Subpath": "tests/system/test_mounts.py",
    r"HostConfig\.Mounts\[\]\.ImageOptions.*": "tests/unit/test_api_decode.py",
    r"NetworkingConfig.*": "tests/clients/test_docker_objects.py",
}


def ids(case: Case) -> str:
    return case.name


@pytest.fixture
def made(daemon: Daemon) -> Iterator[list[str]]:
    found: list[str] = []
    yield found
    remove(daemon, *found)
    daemon.http("POST", '/volumes/prune?filters={"all":["1"]}')


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_a_container_has_what_it_was_created_with(
    daemon: Daemon, image: str, made: list[str], case: Case
) -> None:
    body = {
        "Image": image,
        "Cmd": ["sh", "-c", case.script],
        "HostConfig": {"NetworkMode": "none"},
        **case.body,
    }
    if "Entrypoint" in body:
        body["Cmd"] = [case.script]
    body["HostConfig"] = {"NetworkMode": "none", **body["HostConfig"]}
    answer = daemon.http("POST", "/containers/create", body)
    assert answer.status == 201, answer.message
    container = answer.json()["Id"]
    made.append(container)
    warnings = " ".join(answer.json()["Warnings"]).lower()
    if case.warned and case.warned in warnings:
        return
    assert not warnings, warnings
    found = inspect(daemon, container)
    for place, sent in ((found["Config"], case.body), (found["HostConfig"], case.body.get("HostConfig", {}))):
        for name, value in sent.items():
            if name != "HostConfig" and name not in case.hides:
                assert place[name] == value, name
    started = daemon.http("POST", f"/containers/{container}/start")
    assert started.status == 204, started.message
    if case.wanted or case.refused:
        ended = daemon.http("POST", f"/containers/{container}/wait").json()
        assert "Error" not in ended
        logs = daemon.http("GET", f"/containers/{container}/logs?stdout=1&stderr=1").body
        text = re.sub(rb"[\x01\x02]\0\0\0....", b"", logs, flags=re.DOTALL).decode(errors="replace")
        lines = text.splitlines()
        for pattern in case.wanted:
            assert any(re.fullmatch(pattern, line) for line in lines), (pattern, text)
        for pattern in case.refused:
            assert not any(re.fullmatch(pattern, line) for line in lines), (pattern, text)


def test_published_and_exposed_ports_are_told_while_it_runs(
    daemon: Daemon, image: str, made: list[str]
) -> None:
    body = {"Image": image, "Cmd": ["sleep", "600"], "ExposedPorts": {"81/tcp": {}, "82-83/udp": {}}, **host(
        PublishAllPorts=True, PortBindings={"80/tcp": [{"HostIp": "127.0.0.1"}]})}  # fmt: skip
    made.append(daemon.http("POST", "/containers/create", body).json()["Id"])
    assert daemon.http("POST", f"/containers/{made[0]}/start").status == 204
    ports = inspect(daemon, made[0])["NetworkSettings"]["Ports"]
    assert set(ports) == {"80/tcp", "81/tcp", "82/udp", "83/udp"}
    assert [binding["HostIp"] for binding in ports["80/tcp"]] == ["127.0.0.1"]
    assert all(int(binding["HostPort"]) for bindings in ports.values() for binding in bindings)


def test_a_stop_signal_and_its_time_are_kept_to(daemon: Daemon, image: str, made: list[str]) -> None:
    script = "trap 'echo told; exit 3' USR1; echo ready; while :; do sleep 0.05; done"
    body = {"Image": image, "Cmd": ["sh", "-c", script], "StopSignal": "SIGUSR1", "StopTimeout": 60}
    made.append(daemon.http("POST", "/containers/create", body).json()["Id"])
    daemon.http("POST", f"/containers/{made[0]}/start")
    path = f"/containers/{made[0]}/logs?stdout=1"
    eventually(lambda: b"ready" in daemon.http("GET", path).body)
    assert daemon.http("POST", f"/containers/{made[0]}/stop").status == 204
    assert inspect(daemon, made[0])["State"]["ExitCode"] == 3 and b"told" in daemon.http("GET", path).body


def _paths(value: Any, at: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield f"{at}.{name}" if at else name
            yield from _paths(item, f"{at}.{name}" if at else name)
            if isinstance(item, dict):  # of a map, any key
                for inner in item.values():
                    yield from _paths(inner, f"{at}.{name}{{}}" if at else f"{name}{{}}")
    elif isinstance(value, list):
        for item in value:
            yield from _paths(item, f"{at}[]")


def test_every_honoured_field_has_a_case_or_another_test() -> None:
    spec = importlib.util.spec_from_file_location("page", ROOT / "scripts/docker_compatibility.py")
    assert spec is not None and spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    sys.modules["page"] = page
    spec.loader.exec_module(page)
    proved = {path for case in CASES for path in _paths(case.body, "")}
    named = [name for name in page.read_names()[1] if name.body == "ContainerCreate"]
    honoured = {name.field for name in named if page.judge_field(name).status == "honoured"}
    left = {f for f in honoured - proved if not any(re.fullmatch(pattern, f) for pattern in ELSEWHERE)}
    assert left == set()
    assert all((ROOT / place).exists() for place in ELSEWHERE.values() if place.startswith("tests/"))
    assert json.dumps(sorted(honoured)).count(",") > 100


def test_an_update_changes_what_it_names_and_clears_empty_lists(
    daemon: Daemon, image: str, made: list[str]
) -> None:
    path = device()
    rates = {
        "BlkioDeviceReadBps": [{"Path": path, "Rate": 1 << 20}],
        "BlkioDeviceWriteIOps": [{"Path": path, "Rate": 9}],
    }
    body = {
        "Image": image,
        "Cmd": ["sleep", "600"],
        **host(NetworkMode="none", Memory=64 << 20, PidsLimit=50, **rates),
    }
    made.append(daemon.http("POST", "/containers/create", body).json()["Id"])
    assert daemon.http("POST", f"/containers/{made[0]}/start").status == 204
    changes = {
        "CpuShares": 256, "CpuPeriod": 50_000, "CpuQuota": 20_000, "CpusetCpus": "0", "CpusetMems": "0",
        "Memory": 96 << 20, "MemorySwap": 192 << 20, "MemoryReservation": 48 << 20, "MemorySwappiness": 3,
        "OomKillDisable": True, "PidsLimit": 77, "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 4},
        "BlkioDeviceReadBps": [], "BlkioDeviceWriteBps": [{"Path": path, "Rate": 2 << 20}],
    }  # fmt: skip
    answer = daemon.http("POST", f"/containers/{made[0]}/update", changes)
    assert (answer.status, answer.json()) == (200, {"Warnings": []})
    shown = inspect(daemon, made[0])["HostConfig"]
    assert {name: shown[name] for name in changes} == changes
    assert shown["BlkioDeviceWriteIOps"] == rates["BlkioDeviceWriteIOps"]  # wasn't named

    def kernel(controller: str, file: str) -> str:
        group = daemon.names.cgroup_parent
        found = list(Path(f"{GROUP}/{controller}/{group}").glob(f"**/{made[0]}/{file}"))
        return found[0].read_text().strip()

    assert kernel("cpu", "cpu.shares") == "256" and kernel("cpu", "cpu.cfs_quota_us") == "20000"
    assert kernel("memory", "memory.limit_in_bytes") == str(96 << 20)
    assert kernel("memory", "memory.memsw.limit_in_bytes") == str(192 << 20)
    assert kernel("memory", "memory.swappiness") == "3" and kernel("pids", "pids.max") == "77"
    assert kernel("blkio", "blkio.throttle.read_bps_device") == ""
    assert kernel("blkio", "blkio.throttle.write_bps_device").endswith(str(2 << 20))
    assert kernel("blkio", "blkio.throttle.write_iops_device").endswith(" 9")
    assert kernel("cpuset", "cpuset.cpus") == "0"

    before = daemon.http("POST", f"/v1.54/containers/{made[0]}/update", {"BlkioDeviceWriteBps": []})
    assert (
        before.status == 200 and inspect(daemon, made[0])["HostConfig"]["BlkioDeviceWriteBps"]
    )  # ignored till 1.55
