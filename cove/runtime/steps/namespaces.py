"""Steps of the child that enter namespaces, wait for the host, and set what a namespace has."""

from __future__ import annotations

from typing import ClassVar

from cove.runtime.steps.base import Step, namespace_names


class SetNs(Step, frozen=True, kw_only=True):
    """setns(2) to the namespace (or pidfd) in `slot`; `flags` are the CLONE_NEW* it must be.

    With CLONE_NEWPID, `Exec` splits the process off into that pid namespace right before the execve(2), so that
    whoever lives there never sees it with more than its own rights; it has to come before the mounts, for a
    MountIn of a proc shows the namespace that is joined. In `before` (CLONE_NEWPID only) the child lives there from
    the clone on, for whoever can trace it to see.
    """

    KIND: ClassVar[int] = 16
    slot: int
    flags: int

    def describe(self) -> str:
        return f"join the namespaces {namespace_names(self.flags)} of descriptor {self.slot}"


class Unshare(Step, frozen=True, kw_only=True):
    """unshare(2) of namespaces in the child. For CLONE_NEWCGROUP above all: its root is the cgroup of
    whoever unshares it (cgroup_namespaces(7)), so it comes after the child was put into its cgroups;
    given to clone3(2) the supervisor's cgroup would become the root."""

    KIND: ClassVar[int] = 30
    flags: int

    def describe(self) -> str:
        return f"enter {namespace_names(self.flags)} namespaces of its own"


class BecomeRoot(Step, frozen=True, kw_only=True):
    """Become user 0, group 0 of the user namespace that was entered, without supplementary groups (setgroups(2);
    passed over where user_namespaces(7) denies it). Needs the maps, so a Pause or the end of `parent` before."""

    KIND: ClassVar[int] = 37

    def describe(self) -> str:
        return "become root of the user namespace"


class Pause(Step, frozen=True, kw_only=True):
    """Sync point: Python is told, and does what needs the running child (writes its uid_map, runs hooks, connects its
    network); the child goes on when it answers. The answer may carry a text, the input of later RunHook steps."""

    KIND: ClassVar[int] = 38
    name: str  # user, network, hooks, cgroup

    def describe(self) -> str:
        return _PAUSES.get(self.name, f"wait for {self.name}")


_PAUSES = {
    "user": "wait for the maps of the user namespace",
    "network": "wait for the interfaces of the network namespace",
    "hooks": "wait for the hooks that run on the host",
}


class RunHook(Step, frozen=True, kw_only=True):
    """Run a hook in the container's namespaces: fork, text of the last Pause or Hold on its stdin, execve(2) of
    `path`, wait. Before the pivot `path` is the host's, after it the container's. It starts in the
    root's directory (behind a Hold: in the process's), its stdout is /dev/null, its stderr that of the process. Fails
    with EPROTO when the hook doesn't end with 0, with ETIME (after a SIGKILL) when it takes longer than
    `timeout_ms`."""

    KIND: ClassVar[int] = 39
    path: str
    args: tuple[str, ...] = ()  # (): just the path
    env: tuple[str, ...] = ()
    timeout_ms: int = 0  # 0: no limit

    def describe(self) -> str:
        return f"run hook {self.path}"


class Hostname(Step, frozen=True, kw_only=True):
    KIND: ClassVar[int] = 32
    name: str

    def describe(self) -> str:
        return f"set the host name to {self.name}"


class Domainname(Step, frozen=True, kw_only=True):
    KIND: ClassVar[int] = 33
    name: str

    def describe(self) -> str:
        return f"set the domain name to {self.name}"


class Sysctl(Step, frozen=True, kw_only=True):
    """Write a value below the host's /proc/sys as seen in the new namespaces (before the pivot)
    or the container's own /proc/sys; the file must lie on procfs (checked with fstatfs)."""

    KIND: ClassVar[int] = 34
    key: str  # with slashes: net/ipv4/ip_forward
    value: str

    def describe(self) -> str:
        return f"set sysctl {self.key.replace('/', '.')} = {self.value}"


class LinkUp(Step, frozen=True, kw_only=True):
    """Bring a network link up in the child's network namespace (SIOCSIFFLAGS)."""

    KIND: ClassVar[int] = 35
    name: str

    def describe(self) -> str:
        return f"bring link {self.name} up"


class WriteSelf(Step, frozen=True, kw_only=True):
    """Write to a file below the host's /proc/self (oom_score_adj), before the pivot.

    `optional` 1: EACCES and EPERM are passed over (lowering oom_score_adj needs CAP_SYS_RESOURCE).
    """

    KIND: ClassVar[int] = 36
    name: str
    data: str
    optional: int = 0

    def describe(self) -> str:
        return f"write {self.data!r} to /proc/self/{self.name}"
