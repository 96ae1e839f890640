"""Hosts, containers and starts that the planning tests share. Nothing here looks at the real host."""

from __future__ import annotations

from typing import Any

from cove.model.container import Container, ContainerSpec
from cove.runtime import capabilities
from cove.runtime.cgroups_limits import FEATURES
from cove.runtime.facts import Hierarchy, Host, Layout
from cove.runtime.plan import plan_start
from cove.runtime.plan_inputs import Overlay, PlanFacts, Slot
from cove.runtime.spec import StartFacts, plan_facts, plan_spec
from cove.runtime.steps import Plan
from cove.runtime.users import Resolved

CONTAINER_ID = "c0ffee" + "0" * 58

_V1_NAMES = ("blkio", "cpu,cpuacct", "cpuset", "devices", "freezer", "memory", "pids")
LAYOUT_V1 = Layout(
    version=1,
    hierarchies=(
        *(Hierarchy(directory=name, controllers=tuple(name.split(","))) for name in _V1_NAMES),
        Hierarchy(directory="systemd", controllers=("name=systemd",)),
    ),
    controllers=frozenset(",".join(_V1_NAMES).split(",")) | {"name=systemd"},
    features=frozenset(FEATURES),
    cpus="0-3",
    mems="0",
    online_cpus=4,
)
LAYOUT_V2 = Layout(
    version=2,
    controllers=frozenset({"cpu", "cpuset", "io", "memory", "pids"}),
    features=frozenset(FEATURES) - {"swappiness", "oom_kill_disable", "kernel_memory_tcp", "cpu_realtime"},
    cpus="0-3",
    mems="0",
    online_cpus=4,
)
HOST_V1 = Host(architecture="amd64", kernel=(6, 1), capabilities=capabilities.KNOWN, cgroups=LAYOUT_V1)
HOST_V2 = Host(architecture="amd64", kernel=(6, 1), capabilities=capabilities.KNOWN, cgroups=LAYOUT_V2)

OVERLAY = Overlay(
    lower=("aa", "bb"),
    layers_dir="/data/layers",
    upper="/data/containers/c0ffee/upper",
    work="/data/containers/c0ffee/work",
    merged="/data/containers/c0ffee/merged",
)
ROOT_USER = Resolved(uid=0, gid=0, groups=(0,), home="/root")


def container(
    *,
    args: tuple[str, ...] = ("sh", "-c", "true"),
    mounts: tuple[Any, ...] = (),
    env: tuple[str, ...] = (),
    user: str = "",
    working_dir: str = "/",
    **spec: Any,
) -> Container:
    return Container(
        id=CONTAINER_ID, name="sample", created_ns=1, image_id="sha256:" + "0" * 64, image_name="sample:latest",
        spec=ContainerSpec(image="sample:latest", **spec),
        args=args, mounts=mounts, env=env, user=user, working_dir=working_dir, hostname=CONTAINER_ID[:12],
    )  # fmt: skip


def facts(**changes: Any) -> StartFacts:
    given: dict[str, Any] = {
        "root": OVERLAY,
        "cgroup_path": f"cove/{CONTAINER_ID}",
        "hosts_path": "/data/containers/c0ffee/hosts",
        "hostname_path": "/data/containers/c0ffee/hostname",
        "resolv_path": "/data/containers/c0ffee/resolv.conf",
        "identity": ROOT_USER,
    }
    return StartFacts(**(given | changes))


def plan_of(
    sample: Container,
    host: Host = HOST_V1,
    start: StartFacts | None = None,
    *,
    network_ready: bool | None = None,
) -> tuple[Plan, tuple[Slot, ...]]:
    """A container's plan, as a start makes it."""
    start = start or facts()
    mode = sample.spec.network_mode
    ready = mode in ("default", "bridge") if network_ready is None else network_ready
    more: PlanFacts = plan_facts(sample, start, network_ready=ready)
    return plan_start(plan_spec(sample, start, host), more, host)
