"""Plan the namespaces of a start: which are cloned, which are joined, where, and what is set in them. Pure.

With a user namespace, its own or a joined one, every other one that is joined is joined before it (`before`, by
cove-init's helper): afterwards the rights for that are gone. Without, the child joins by itself, and the pid
namespace last of all, by the fork at the exec: until then the process has rights that those who live there must
not get at. In a user namespace they can't: the kernel asks for CAP_SYS_PTRACE where cove-init was executed.

A time namespace's offsets can be set only while nobody is in it, so the supervisor unshares it for its children.
A new cgroup namespace comes after the process is in its cgroups: its root is decided then.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from cove.model.errors import Invalid, Unavailable
from cove.runtime import oci
from cove.runtime.facts import Host
from cove.runtime.plan_inputs import PlanFacts, Slot, Slots
from cove.runtime.steps import (
    BecomeRoot,
    Domainname,
    Hostname,
    LinkUp,
    Pause,
    SetNs,
    Step,
    Sysctl,
    Unshare,
    WriteSelf,
)

CLONE_FLAGS = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "network": 0x40000000,
    "time": 0x00000080,
}
CLOCKS = ("monotonic", "boottime")  # the two that a time namespace has (time_namespaces(7))


class Namespaces(msgspec.Struct, frozen=True, kw_only=True):
    """The namespaces' share of a plan. `child` comes right after the cgroups."""

    clone_flags: int
    before: tuple[Step, ...]
    child: tuple[Step, ...]
    own_network: bool  # an empty network namespace was made
    user: bool  # the container is in a user namespace, its own or a joined one
    mount: Literal["own", "joined", "host"]


def flag_of(kind: str) -> int:
    """The CLONE_NEW* of a namespace. Raises Invalid."""
    flag = CLONE_FLAGS.get(kind)
    if flag is None:
        raise Invalid(f"linux.namespaces: type {kind!r} is unknown, use one of {', '.join(CLONE_FLAGS)}")
    return flag


def has_user_namespace(config: oci.Config) -> bool:
    return any(namespace.type == "user" for namespace in config.linux.namespaces)


def mount_mode(config: oci.Config) -> Literal["own", "joined", "host"]:
    """Whose mount namespace the container is in."""
    for namespace in config.linux.namespaces:
        if namespace.type == "mount":
            return "joined" if namespace.path else "own"
    return "host"


def plan_namespaces(config: oci.Config, facts: PlanFacts, slots: Slots) -> Namespaces:
    """Raises Invalid for a combination that can't be, Unavailable for one that isn't done."""
    kinds: dict[str, oci.Namespace] = {}
    for namespace in config.linux.namespaces:
        flag_of(namespace.type)
        if namespace.type in kinds:
            raise Invalid(f"linux.namespaces: {namespace.type} is there twice, leave one out")
        kinds[namespace.type] = namespace
    user = kinds.get("user")
    clone, before, child, own_network = 0, list[Step](), list[Step](), False
    for kind, namespace in kinds.items():
        flag = flag_of(kind)
        if kind == "user":
            continue
        if namespace.path:
            slot = Slot(kind="namespace", path=namespace.path, namespace=kind)
            join = SetNs(slot=slots.add(slot), flags=flag)
            (before if user else child).append(join)
        elif kind == "network" and facts.network_ready:
            if user:
                raise Unavailable(
                    "a ready network namespace belongs to the host's user namespace, not to a new one"
                )
            child.append(SetNs(slot=slots.add(Slot(kind="network")), flags=flag))
        elif kind == "cgroup":
            child.append(Unshare(flags=flag))
        elif kind == "time":
            before.insert(0, Unshare(flags=flag))
            if config.linux.time_offsets:
                before.insert(1, WriteSelf(name="timens_offsets", data=_time_offsets(config)))
        else:
            clone |= flag
            own_network = own_network or kind == "network"
    if user is not None:
        if user.path:
            slot = Slot(kind="namespace", path=user.path, namespace="user")
            step = SetNs(slot=slots.add(slot), flags=CLONE_FLAGS["user"])
            before.append(step)
            child.insert(0, BecomeRoot())
        else:
            if not (config.linux.uid_mappings and config.linux.gid_mappings):
                raise Invalid(
                    "linux.uidMappings and linux.gidMappings are needed with a user namespace, "
                    'e.g. [{"containerID": 0, "hostID": 100000, "size": 65536}]'
                )
            clone |= CLONE_FLAGS["user"]
            child[:0] = (Pause(name="user"), BecomeRoot())
    if (facts.network_pause and own_network) or config.linux.net_devices:
        child.append(Pause(name="network"))
    return Namespaces(
        clone_flags=clone,
        before=tuple(before),
        child=tuple(child),
        own_network=own_network,
        user=user is not None,
        mount=mount_mode(config),
    )


def _time_offsets(config: oci.Config) -> str:
    """The lines of /proc/self/timens_offsets."""
    lines = []
    for clock, offset in config.linux.time_offsets.items():
        if clock not in CLOCKS:
            raise Invalid(f"linux.timeOffsets: clock {clock!r} is unknown, use {' or '.join(CLOCKS)}")
        lines.append(f"{clock} {offset.secs} {offset.nanosecs}\n")
    return "".join(lines)


def plan_settings(config: oci.Config, namespaces: Namespaces, host: Host) -> Iterator[Step]:
    """Names, loopback, sysctls, and how soon the kernel kills the process for memory."""
    own_uts = any(namespace.type == "uts" and not namespace.path for namespace in config.linux.namespaces)
    if own_uts and config.hostname:
        yield Hostname(name=config.hostname)
    if own_uts and config.domainname:
        yield Domainname(name=config.domainname)
    if namespaces.own_network:
        yield LinkUp(name="lo")
    for key, value in config.linux.sysctl.items():
        yield Sysctl(key=sysctl_path(key), value=value)
    yield from plan_oom_score(config.process, host)


def plan_oom_score(process: oci.Process, host: Host) -> Iterator[Step]:
    score = process.oom_score_adj
    if score is not None and score != host.oom_score_adj:
        yield WriteSelf(name="oom_score_adj", data=str(score), optional=1)


def sysctl_path(key: str) -> str:
    """net.ipv4.conf.eth0/1.forwarding -> net/ipv4/conf/eth0.1/forwarding. Raises Invalid."""
    slash, dot = key.find("/"), key.find(".")
    path = key
    if slash < 0 or 0 <= dot < slash:  # sysctl(8): the first separator decides
        path = key.translate({ord("."): "/", ord("/"): "."})
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise Invalid(f'sysctl "{key}": give a name such as net.ipv4.ip_forward')
    return path
