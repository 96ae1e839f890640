"""Explain a plan: each step in its section, what it does, and why; and where a start failed. Pure."""

from __future__ import annotations

import errno
from typing import NamedTuple

from cove.model.container import StepFailure
from cove.runtime import capabilities, steps
from cove.runtime.plan_mounts import MS_REMOUNT
from cove.runtime.plan_process import IO_CLASSES, MEMORY_MODES, PERSONALITIES, POLICIES, RLIMITS
from cove.runtime.steps import Plan, Step, namespace_names


class Explained(NamedTuple):
    """A line of `cove plan`: where it runs, its kind, what it does, why."""

    section: str  # before, clone, parent, child, exit
    kind: str  # the class in steps/, Clone
    what: str
    why: str


_WHY: dict[type[Step], str] = {
    steps.MakeHostDir: "the container's cgroup, by which it is limited, measured, paused and killed",
    steps.WriteHost: "a limit holds before the first process is in the cgroup",
    steps.WritePid: "the process is held until it is limited",
    steps.JoinCgroup: "from here on what it uses is counted and limited",
    steps.RemoveHostDir: "an ended container leaves nothing behind",
    steps.UnmountHost: "there was no mount namespace of its own to end with the container",
    steps.ReadOom: "tells a process that the kernel killed for memory from one that was killed by hand",
    steps.AttachDeviceProgram: "nodes of other devices can be made, but not opened",
    steps.SetNs: "shares what was asked for, or takes a network that was made ready before",
    steps.Unshare: "the container sees its own as if there was no other",
    steps.Propagate: "what is mounted from here on stays invisible to the host",
    steps.MountRoot: "layers of the image below, shared and read-only; the container's changes on top",
    steps.BindRoot: "pivot_root(2) wants a mount point",
    steps.MountIn: "a file system that programs expect, for these namespaces",
    steps.Bind: "a host path shown in the container; its attributes are set before anyone sees it",
    steps.AttachTree: "mounts made on one side appear on the other, or it is another container's directory",
    steps.MakeDir: "a place that is needed and that the image lacks",
    steps.MakeNode: "a device the container may use; /dev is its own, not the host's",
    steps.MakeSymlink: "a name that programs expect in /dev",
    steps.Mask: "tells about the host, or lets it be changed",
    steps.ReadonlyPath: "settings of the whole host, readable but not to be changed",
    steps.PivotRoot: "the host's file systems are out of reach from here on",
    steps.RootReadonly: "asked for: what the image brought can't be changed",
    steps.RootPropagation: "mounts below it are to propagate",
    steps.Hostname: "a name of its own, in a UTS namespace of its own",
    steps.Domainname: "a domain of its own, in a UTS namespace of its own",
    steps.Sysctl: "holds in the container's namespaces only",
    steps.LinkUp: "a new network namespace has its loopback down",
    steps.WriteSelf: "how soon the kernel picks this process when memory runs out",
    steps.Rlimit: "asked for, and inherited by all that it starts",
    steps.Umask: "doesn't depend on how its caller was started",
    steps.SessionKeyring: "keys of the host's sessions stay out of reach",
    steps.Terminal: "asked for; it is made in the container's own devpts",
    steps.ResolveUser: "users are those of the container's own passwd and group files",
    steps.SetIds: "who the process is, on host and in container alike",
    steps.DropBounding: "no program run later, set-user-ID or not, gets more than these",
    steps.Capabilities: "root in here can do what these allow and no more",
    steps.NoNewPrivs: "set-user-ID programs don't gain anything",
    steps.Seccomp: "most of the kernel's attack surface is never needed",
    steps.Chdir: "and it must lie inside the root (CVE-2024-21626)",
    steps.AttachRoot: "mounted by the host, for its layers' owners are translated into this user namespace",
    steps.Chroot: "others live in this mount namespace, and keep their root",
    steps.CopyUp: "what the image has there is kept, and changes to it are forgotten",
    steps.BecomeRoot: "root in here is an ordinary user of the host",
    steps.Pause: "this needs the process, and can't be done before it exists",
    steps.RunHook: "the configuration asks for it",
    steps.Hold: "created, and not started before somebody says so",
    steps.Affinity: "which processors it may run on is set for this process alone",
    steps.Scheduler: "how the kernel shares processors out to it",
    steps.IoPriority: "how its reads and writes queue up",
    steps.Personality: "programs see the machine that they were built for",
    steps.MemoryPolicy: "which memory nodes its pages come from",
    steps.Preserve: "the caller hands descriptors of its own to the process",
    steps.Exec: "everything that this program needs is in place",
}

_PAUSES = {
    "user": "which ids of the host those in here are, can be written only now that the namespace exists",
    "network": "its interfaces come from outside, now that the namespace exists",
    "hooks": "the configuration asks for them, when all is mounted and the host still in reach",
    "record": "whoever records what it opens begins now, before its first program",
    "cgroup": "its manager makes the cgroup, and needs the process for that",
}
_UNSHARED = {
    0x02000000: "the container sees its own cgroup as the root; it has to be in it by now",
    0x00000080: "clocks of its own; who unshares them stays outside, only what it clones is inside",
}
_MOUNTS = {
    "proc": "the processes of this pid namespace",
    "sysfs": "the devices of this network namespace",
    "devpts": "terminals of its own",
    "mqueue": "the message queues of this IPC namespace",
    "cgroup2": "the container's own limits and use",
}
_PLACES = {
    "/dev": "devices of its own, none of the host's",
    "/dev/shm": "shared memory, bounded",  # noqa: S108
    "/etc/hosts": "names are the container's, not the image's",
    "/etc/hostname": "names are the container's, not the image's",
    "/etc/resolv.conf": "names are the container's, not the image's",
}


def explain(plan: Plan) -> list[Explained]:
    """Every step of a plan, in the order in which it runs."""
    result = _section("before", plan.before)
    what = f"clone the process into new namespaces: {namespace_names(plan.clone_flags)}"
    why = "it sees its own mounts, processes and names instead of the host's"
    if not plan.clone_flags:
        what, why = "clone the process", "it joins the namespaces of a container that runs"
    if plan.cgroup_path:
        what += f", and into the cgroup {plan.cgroup_path}"
    result.append(Explained("clone", "Clone", what, why))
    for section, part in (("parent", plan.parent), ("child", plan.child), ("exit", plan.exit)):
        result += _section(section, part)
    return result


def _section(section: str, part: tuple[Step, ...]) -> list[Explained]:
    return [Explained(section, type(step).__name__, step.describe(), _why(step)) for step in part]


def explain_json(plan: Plan) -> list[dict[str, str]]:
    """The same for a program to read."""
    return [
        {"section": line.section, "kind": line.kind, "describe": line.what, "why": line.why}
        for line in explain(plan)
    ]


def find_failed(lines: list[Explained], failure: StepFailure) -> int | None:
    """The line at which that start failed; None when the plan has changed since and it isn't there any more."""
    places = [index for index, line in enumerate(lines) if line.section == failure.section]
    if failure.index < len(places) and lines[places[failure.index]].what == failure.describe:
        return places[failure.index]
    if failure.section == "clone":
        return places[0]
    return next((index for index in places if lines[index].what == failure.describe), None)


def errno_name(number: int) -> str:
    """ENOENT for 2."""
    return errno.errorcode.get(number, str(number))


def _why(step: Step) -> str:
    detail = _detail(step)
    if isinstance(step, steps.MountIn):
        if step.flags & MS_REMOUNT:
            return "asked for, and everything that belongs in it is there by now"
        return _PLACES.get(step.target) or _MOUNTS.get(step.fstype) or _WHY[steps.MountIn]
    if isinstance(step, steps.Bind):
        if step.target.startswith("/sys/fs/cgroup"):
            return "the container's own limits and use"
        return _PLACES.get(step.target) or _WHY[steps.Bind]
    if isinstance(step, steps.Pause):
        return _PAUSES.get(step.name, _WHY[steps.Pause])
    if isinstance(step, steps.Unshare):
        return _UNSHARED.get(step.flags, _WHY[steps.Unshare])
    return f"{_WHY[type(step)]}: {detail}" if detail else _WHY[type(step)]


def _detail(step: Step) -> str:
    """The words for numbers of a step."""
    match step:
        case steps.Capabilities():
            return _capability_words(step.effective | step.permitted)
        case steps.DropBounding():
            return _capability_words(step.bounding)
        case steps.Rlimit():
            return _word(RLIMITS, step.resource)
        case steps.Scheduler():
            return _word(POLICIES, step.policy)
        case steps.IoPriority():
            return _word(IO_CLASSES, step.priority_class)
        case steps.Personality():
            return _word(PERSONALITIES, step.persona)
        case steps.MemoryPolicy():
            return _word(MEMORY_MODES, step.mode & 0x1FFF)
    return ""


def _word(table: dict[str, int], number: int) -> str:
    return next((word for word, value in table.items() if value == number), "")


def _capability_words(bits: int) -> str:
    if bits & capabilities.KNOWN == capabilities.KNOWN:
        return "all of them"
    return ", ".join(name.removeprefix("CAP_").lower() for name in capabilities.names(bits)) or "none"
