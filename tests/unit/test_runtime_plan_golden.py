"""Golden plans: a change of a plan shows as a diff of tests/golden, to be reviewed like code.

Regenerate with COVE_GOLDEN=write. Filters are shown without their size, which depends on libseccomp's version.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from cove.model.container import Device, MountPoint, Resources, ThrottleDevice, Ulimit
from cove.runtime import oci
from cove.runtime.facts import Host
from cove.runtime.plan import plan_exec
from cove.runtime.plan_explain import explain
from cove.runtime.plan_inputs import Directory
from cove.runtime.spec import plan_exec_process, plan_facts, plan_spec
from cove.runtime.steps import Plan
from tests.unit.runtime_samples import HOST_V1, HOST_V2, ROOT_USER, container, facts, plan_of

GOLDEN = Path(__file__).parent.parent / "golden"


def render(plan: Plan, slots: tuple[Any, ...]) -> str:
    lines = [f"slot {index}: {slot.kind} {slot.path}".rstrip() for index, slot in enumerate(slots)]
    lines += [f"{line.section:<6} {line.what}" for line in explain(plan)]
    text = "\n".join(lines) + "\n"
    text = re.sub(r"c0ffee0{58}", "ID", text)
    return re.sub(r"filter of \d+ instructions\n", "filter\n", text)


MOUNTS = (
    MountPoint(kind="volume", target="/var/lib/data", source="/data/volumes/v/_data", name="v"),
    MountPoint(kind="bind", target="/var", source="/srv/var", readonly=True, propagation="rprivate"),
    MountPoint(kind="tmpfs", target="/tmp/", options=("size=1m", "mode=1777", "exec")),
    MountPoint(kind="bind", target="/mnt", source="/srv/shared", propagation="rshared"),
)

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Host]] = {
    "default-v1": ({}, {}, HOST_V1),
    "default-v2": ({}, {}, HOST_V2),
    "privileged-v1": (
        {"privileged": True},
        {"devices": (oci.LinuxDevice(path="/dev/kvm", type="c", major=10, minor=232, gid=104),)},
        HOST_V1,
    ),
    "privileged-v2": ({"privileged": True}, {}, HOST_V2),
    "read-only": ({"readonly_rootfs": True, "working_dir": "/srv"}, {}, HOST_V1),
    "mounts": ({"mounts": MOUNTS}, {}, HOST_V1),
    "limits-v1": (
        {
            "resources": Resources(
                nano_cpus=500_000_000, cpu_shares=512, cpuset_cpus="0-1", memory_bytes=64 << 20,
                memory_swap_bytes=128 << 20, memory_reservation_bytes=32 << 20, memory_swappiness=0,
                oom_kill_disable=True, pids_limit=10, blkio_weight=300,
                read_bps=(ThrottleDevice(path="/dev/vda", rate=1024),),
            )
        },
        {"block_numbers": {"/dev/vda": (254, 0)}},
        HOST_V1,
    ),
    "limits-v2": (
        {
            "resources": Resources(
                cpu_period_us=50_000, cpu_quota_us=25_000, cpu_shares=512, cpuset_cpus="0-1", cpuset_mems="0",
                memory_bytes=64 << 20, memory_swap_bytes=128 << 20, memory_reservation_bytes=32 << 20,
                pids_limit=10, blkio_weight=300, write_iops=(ThrottleDevice(path="/dev/vda", rate=100),),
                write_bps=(ThrottleDevice(path="/dev/vda", rate=4096),),
            )
        },
        {"block_numbers": {"/dev/vda": (254, 0)}},
        HOST_V2,
    ),
    "host-namespaces": (
        {"network_mode": "host", "pid_mode": "host", "ipc_mode": "host", "uts_mode": "host"}, {}, HOST_V1,
    ),
    "joined-namespaces": (
        {"network_mode": "container:x", "pid_mode": "container:x", "ipc_mode": "container:x"},
        {"joined": {"network": 41, "pid": 42, "ipc": 43}, "shm_path": "/proc/43/root/dev/shm"},
        HOST_V1,
    ),
    "no-network": ({"network_mode": "none", "cgroupns_mode": "private"}, {}, HOST_V1),
    "user-by-name": (
        {"user": "daemon:adm", "group_add": ("audio",), "no_new_privileges": True}, {"identity": None}, HOST_V1,
    ),
    "terminal-init": ({"tty": True, "init": True}, {"rows": 24, "cols": 80}, HOST_V1),
    "device": (
        {
            "devices": (Device(host_path="/dev/fuse", container_path="/dev/x/fuse", permissions="rw"),),
            "device_cgroup_rules": ("c 42:* rmw",),
        },
        {
            "devices": (oci.LinuxDevice(path="/dev/x/fuse", type="c", major=10, minor=229),),
            "device_rules": (oci.DeviceRule(allow=True, type="c", major=10, minor=229, access="rw"),),
        },
        HOST_V1,
    ),
    "process-settings": (
        {
            "cap_drop": ("ALL",), "cap_add": ("NET_BIND_SERVICE",), "seccomp": "unconfined", "oom_score_adj": 300,
            "ulimits": (Ulimit(name="nofile", soft=100, hard=-1),),
            "sysctls": {"net.ipv4.ip_forward": "1", "kernel.msgmax": "65536"}, "masked_paths": (),
            "readonly_paths": ("/proc/sys",), "ipc_mode": "none", "domainname": "example.org",
            "env": ("A=b", "PATH=/bin", "HOSTNAME"),
        },
        {},
        HOST_V1,
    ),
    "bundle": ({}, {"root": Directory(path="/srv/bundle/rootfs"), "hosts_path": ""}, HOST_V1),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_plan_is_the_one_that_was_reviewed(name: str) -> None:
    given, start, host = CASES[name]
    plan, slots = plan_of(container(**given), host, facts(**start))
    check_golden(name, render(plan, slots))


@pytest.mark.parametrize(("name", "host"), [("exec-v1", HOST_V1), ("exec-v2", HOST_V2)])
def test_exec_plan_is_the_one_that_was_reviewed(name: str, host: Host) -> None:
    sample = container(network_mode="host", working_dir="/srv")
    config = plan_spec(sample, facts(), host)
    process = plan_exec_process(
        sample, config, args=("ls",), env=("A=b",), tty=True, rows=10, cols=20, identity=ROOT_USER, host=host
    )
    plan, slots = plan_exec(config, process, plan_facts(sample, facts(), network_ready=False), host)
    check_golden(name, render(plan, slots))


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("COVE_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text(), f"{path} differs: look at the diff, then run with COVE_GOLDEN=write"


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == {*CASES, "exec-v1", "exec-v2"}
