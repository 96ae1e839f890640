"""Explain a plan: each step in its section, what it does, and why. Pure."""

from __future__ import annotations

from typing import NamedTuple

from cove.runtime import steps
from cove.runtime.steps import Plan, Step, namespace_names


class Explained(NamedTuple):
    """A line of `cove plan`: where it runs, what it does, why."""

    section: str  # before, clone, parent, child, exit
    what: str
    why: str


_WHY: dict[type[Step], str] = {
    steps.MakeHostDir: "the container's cgroup, by which it is limited, measured, paused and killed",
    steps.WriteHost: "a limit holds before the first process is in the cgroup",
    steps.WritePid: "the process is held until it is limited",
    steps.JoinCgroup: "from here on what it uses is counted and limited",
    steps.RemoveHostDir: "an ended container leaves nothing behind",
    steps.ReadOom: "tells a process that the kernel killed for memory from one that was killed by hand",
    steps.AttachDeviceProgram: "nodes of other devices can be made, but not opened",
    steps.SetNs: "shares what was asked for, or takes a network that was made ready before",
    steps.Unshare: "the container sees its own cgroup as the root; it has to be in it by now",
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
    steps.RootReadonly: "asked for with --read-only",
    steps.RootPropagation: "mounts below it are to propagate",
    steps.Hostname: "a name of its own, in a UTS namespace of its own",
    steps.Domainname: "a domain of its own, in a UTS namespace of its own",
    steps.Sysctl: "holds in the container's namespaces only",
    steps.LinkUp: "a new network namespace has its loopback down",
    steps.WriteSelf: "how soon the kernel picks this process when memory runs out",
    steps.Rlimit: "asked for with --ulimit",
    steps.Umask: "doesn't depend on how the daemon was started",
    steps.SessionKeyring: "keys of the host's sessions stay out of reach",
    steps.Terminal: "asked for with --tty; it is made in the container's own devpts",
    steps.ResolveUser: "users are those of the container's own passwd and group files",
    steps.SetIds: "who the process is, on host and in container alike",
    steps.DropBounding: "no program run later, set-user-ID or not, gets more than these",
    steps.Capabilities: "root in here can do what these allow and no more",
    steps.NoNewPrivs: "set-user-ID programs don't gain anything",
    steps.Seccomp: "most of the kernel's attack surface is never needed",
    steps.Chdir: "and it must lie inside the root (CVE-2024-21626)",
    steps.AttachRoot: "mounted by the host, for its layers' owners are translated into this user namespace",
    steps.Chroot: "the mount namespace is another one's, with mounts of its own",
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
    steps.Exec: "everything that this program needs is in place",
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
    result = [Explained("before", step.describe(), _why(step)) for step in plan.before]
    what = f"clone the process into new namespaces: {namespace_names(plan.clone_flags)}"
    why = "it sees its own mounts, processes and names instead of the host's"
    if not plan.clone_flags:
        what, why = "clone the process", "it joins the namespaces of a container that runs"
    if plan.cgroup_path:
        what += f", and into the cgroup {plan.cgroup_path}"
    result.append(Explained("clone", what, why))
    for section, part in (("parent", plan.parent), ("child", plan.child), ("exit", plan.exit)):
        result += [Explained(section, step.describe(), _why(step)) for step in part]
    return result


def _why(step: Step) -> str:
    if isinstance(step, steps.MountIn):
        return _PLACES.get(step.target) or _MOUNTS.get(step.fstype) or _WHY[steps.MountIn]
    if isinstance(step, steps.Bind):
        if step.target.startswith("/sys/fs/cgroup"):
            return "the container's own limits and use"
        return _PLACES.get(step.target) or _WHY[steps.Bind]
    return _WHY[type(step)]
