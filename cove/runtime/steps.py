"""The vocabulary of plans: every primitive step that cove-init can execute.

Pure data. A plan is five ordered lists of steps, and each list has one place where it runs:

    before   in the supervisor, before the clone: make cgroups, write limits.
             A SetNs of anything but a pid namespace is done by a helper process instead, which then clones the
             child: the supervisor stays where it is
    (clone with the plan's flags)
    parent   in the supervisor: put the child into cgroups. The child's steps run at the same time, but
             it waits for the end of these before Unshare of a cgroup namespace, Seccomp and Exec
    child    in the child: namespaces, mounts, pivot, identity, seccomp, and `Exec` last
    exit     in the supervisor, once the child is gone: read the OOM counter, remove cgroups

A descriptor is named by its *slot*: an index into the descriptors handed over with the plan.
Paths of `before`, `parent` and `exit` steps are host paths made by Cove. In `child` steps,
`source` is a host path, looked up before the pivot, and `target`/`path` is a path inside the
new root, resolved with openat2(2) RESOLVE_IN_ROOT, so that no symlink of an image leads outside.

Each class has a KIND, the number on the wire (encode.py, native/plan.c); numbers are never reused.
The fields' order is the wire's order. Allowed field types: int (u64, or s64 two's complement),
str, bytes, tuple[str, ...].
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

PLAN_VERSION = 1


class Step(msgspec.Struct, frozen=True, kw_only=True):
    KIND: ClassVar[int]

    def describe(self) -> str:
        """One line for a person: what this step does to the host or the container."""
        raise NotImplementedError


# --- in the supervisor --------------------------------------------------------------------


class MakeHostDir(Step, frozen=True, kw_only=True):
    """mkdir(2) of a host path; there already is fine when `exist_ok`."""

    KIND: ClassVar[int] = 1
    path: str
    mode: int = 0o755
    exist_ok: int = 1

    def describe(self) -> str:
        return f"make directory {self.path}"


class WriteHost(Step, frozen=True, kw_only=True):
    """Write `data` to an existing host file (a cgroup's control file), in one write(2)."""

    KIND: ClassVar[int] = 2
    path: str
    data: str
    optional: int = 0  # 1: a missing file (ENOENT) is passed over

    def describe(self) -> str:
        return f"write {self.data!r} to {self.path}"


class WritePid(Step, frozen=True, kw_only=True):
    """Write the child's pid (decimal) to a host file: a cgroup's cgroup.procs."""

    KIND: ClassVar[int] = 3
    path: str

    def describe(self) -> str:
        return f"put the container into {self.path.removesuffix('/cgroup.procs')}"


class JoinCgroup(Step, frozen=True, kw_only=True):
    """In `child`, before the mounts: the process puts itself into a v1 cgroup, by a 0 into its `tasks` file.

    The kernel moves a single thread that is the caller without its global lock (kernel/cgroup/cgroup.c,
    cgroup_procs_write_start); moving another process takes that lock, which on an idle machine first waits for
    an RCU grace period: 10 ms where this takes 0.2 (measured on 6.18).
    """

    KIND: ClassVar[int] = 7
    path: str  # of the tasks file

    def describe(self) -> str:
        return f"join {self.path.removesuffix('/tasks')}"


class RemoveHostDir(Step, frozen=True, kw_only=True):
    """rmdir(2) of a host path; missing is fine; EBUSY is retried for a bounded time."""

    KIND: ClassVar[int] = 4
    path: str

    def describe(self) -> str:
        return f"remove directory {self.path}"


class UnmountHost(Step, frozen=True, kw_only=True):
    """umount2(2) with MNT_DETACH of a host path, with all that is mounted below it; nothing mounted there is fine."""

    KIND: ClassVar[int] = 8
    path: str

    def describe(self) -> str:
        return f"unmount what is at {self.path}"


class ReadOom(Step, frozen=True, kw_only=True):
    """Read `KEY NUMBER` lines of a host file; a positive number after `key` sets the OOM flag."""

    KIND: ClassVar[int] = 5
    path: str
    key: str = "oom_kill"

    def describe(self) -> str:
        return f"read {self.key} from {self.path}"


class AttachDeviceProgram(Step, frozen=True, kw_only=True):
    """bpf(2): load a BPF_PROG_TYPE_CGROUP_DEVICE program, attach it to a v2 cgroup directory."""

    KIND: ClassVar[int] = 6
    path: str
    program: bytes  # struct bpf_insn[]

    def describe(self) -> str:
        return f"attach a device filter of {len(self.program) // 8} instructions to {self.path}"


# --- in the child: namespaces and mounts --------------------------------------------------


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


class Propagate(Step, frozen=True, kw_only=True):
    """Change the propagation of the whole mount tree at "/" (MS_REC with MS_PRIVATE or MS_SLAVE)."""

    KIND: ClassVar[int] = 17
    flags: int

    def describe(self) -> str:
        return "cut mount propagation from the host"


class MountRoot(Step, frozen=True, kw_only=True):
    """Mount the container's root filesystem at the host directory `target`, which becomes the root.

    mount(2) is called with the working directory at `cwd`, so that `data` (overlay's options,
    one page at most) can name layers by short relative paths.
    """

    KIND: ClassVar[int] = 18
    fstype: str
    source: str
    target: str
    flags: int
    data: str
    cwd: str = "/"

    def describe(self) -> str:
        return f"mount {self.fstype} as the root at {self.target}"


class BindRoot(Step, frozen=True, kw_only=True):
    """Bind-mount a host directory onto itself, recursively: it becomes the root (OCI bundles)."""

    KIND: ClassVar[int] = 19
    path: str

    def describe(self) -> str:
        return f"use {self.path} as the root"


class MountIn(Step, frozen=True, kw_only=True):
    """Mount a new filesystem at `target` inside the root, which is made (a directory) when missing.

    With MS_REMOUNT what is mounted there gets other flags. A proc or a sysfs isn't mounted through a symlink
    (CVE-2019-19921), and nothing but what is named below /proc is mounted on a procfs.
    """

    KIND: ClassVar[int] = 20
    fstype: str
    source: str
    target: str
    flags: int  # MS_* of mount(2)
    data: str = ""
    optional: int = 0  # 1: a kernel that lacks it (ENODEV, EPERM, EINVAL) is passed over
    propagation: int = 0  # MS_SHARED, MS_UNBINDABLE; 0: private, as every new mount
    keep_mode: int = 0  # 1: its root gets the mode of the directory that was there, by the option mode=

    def describe(self) -> str:
        data = f" ({self.data})" if self.data else ""
        if self.flags & 0x20:
            return f"remount {self.target}{' read-only' if self.flags & 1 else ''}{data}"
        return f"mount {self.fstype} on {self.target}{data}"


class Bind(Step, frozen=True, kw_only=True):
    """Bind a host path into the root; `target` is made (file or directory, as the source) when missing.

    The source is opened once with open_tree(2) OPEN_TREE_CLONE, its attributes are set with
    mount_setattr(2), those of the mount itself before those of all mounts below it, too, and it is attached with
    move_mount(2). On a kernel without these calls mount(2) does it, but for the attributes of all (EOPNOTSUPP).
    """

    KIND: ClassVar[int] = 21
    source: str
    target: str
    recursive: int = 1
    attr_set: int = 0  # MOUNT_ATTR_* of the mount itself
    attr_clear: int = 0
    propagation: int = 0  # MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE, with MS_REC for all; 0: leave
    recursive_set: int = 0  # MOUNT_ATTR_* of all
    recursive_clear: int = 0

    def describe(self) -> str:
        readonly = _readonly(self)
        return f"bind {self.source} -> {self.target}{readonly}{' recursive' if self.recursive else ''}"


class MakeDir(Step, frozen=True, kw_only=True):
    """Make a directory (and its missing parents) inside the root; there already is fine."""

    KIND: ClassVar[int] = 22
    path: str
    mode: int = 0o755
    uid: int = 0
    gid: int = 0

    def describe(self) -> str:
        return f"make directory {self.path} in the root"


class MakeNode(Step, frozen=True, kw_only=True):
    """mknod(2) inside the root; `mode` has the type bits. The very same node there already is fine,
    anything else fails with EEXIST."""

    KIND: ClassVar[int] = 23
    path: str
    mode: int
    major: int
    minor: int
    uid: int = 0
    gid: int = 0

    def describe(self) -> str:
        return f"make device {self.path} ({self.major}:{self.minor})"


class MakeSymlink(Step, frozen=True, kw_only=True):
    """symlink(2) inside the root; there already is fine."""

    KIND: ClassVar[int] = 24
    target: str
    path: str

    def describe(self) -> str:
        return f"link {self.path} -> {self.target}"


class Mask(Step, frozen=True, kw_only=True):
    """Hide a path: a file under the root's /dev/null, a directory under an empty read-only one.

    Missing is fine. All masked directories share one empty tmpfs (superblocks contend).
    """

    KIND: ClassVar[int] = 25
    path: str

    def describe(self) -> str:
        return f"hide {self.path}"


class ReadonlyPath(Step, frozen=True, kw_only=True):
    """Make a path inside the root read-only (bind onto itself, recursively). Missing is fine."""

    KIND: ClassVar[int] = 26
    path: str

    def describe(self) -> str:
        return f"make {self.path} read-only"


class PivotRoot(Step, frozen=True, kw_only=True):
    """pivot_root(2) into the root, detach the old one, chdir to "/"."""

    KIND: ClassVar[int] = 27

    def describe(self) -> str:
        return "pivot into the root"


class RootReadonly(Step, frozen=True, kw_only=True):
    """Make the root mount itself read-only (not what is mounted below it)."""

    KIND: ClassVar[int] = 28

    def describe(self) -> str:
        return "make the root filesystem read-only"


class RootPropagation(Step, frozen=True, kw_only=True):
    """Set the propagation of the root mount (MS_SHARED, MS_SLAVE … with or without MS_REC).
    After the pivot: pivot_root(2) refuses a shared root."""

    KIND: ClassVar[int] = 29
    flags: int

    def describe(self) -> str:
        return "set the root's mount propagation"


class Unshare(Step, frozen=True, kw_only=True):
    """unshare(2) of namespaces in the child. For CLONE_NEWCGROUP above all: its root is the cgroup of
    whoever unshares it (cgroup_namespaces(7)), so it comes after the child was put into its cgroups;
    given to clone3(2) the supervisor's cgroup would become the root."""

    KIND: ClassVar[int] = 30
    flags: int

    def describe(self) -> str:
        return f"enter {namespace_names(self.flags)} namespaces of its own"


class AttachTree(Step, frozen=True, kw_only=True):
    """Attach the detached mount tree in `slot` (open_tree(2) OPEN_TREE_CLONE, made by the daemon in the
    host's mount namespace, so that it still is a peer of its source) at `target` inside the root, which is
    made (file or directory, as the tree's root) when missing. Attributes and move_mount(2) as in `Bind`,
    which this is for sources with shared or slave propagation, and for idmapped ones."""

    KIND: ClassVar[int] = 31
    slot: int
    target: str
    recursive: int = 1
    attr_set: int = 0  # as in Bind
    attr_clear: int = 0
    propagation: int = 0
    recursive_set: int = 0
    recursive_clear: int = 0

    def describe(self) -> str:
        return f"attach the mounts of descriptor {self.slot} -> {self.target}{_readonly(self)}"


def _readonly(step: Bind | AttachTree) -> str:
    if step.recursive_set & 1 or (step.attr_set & 1 and not step.recursive):
        return " read-only"
    return " read-only (but for what is mounted below)" if step.attr_set & 1 else ""


class AttachRoot(Step, frozen=True, kw_only=True):
    """Attach the detached mount in `slot` at the host directory `target`; it becomes the root. For a root that only
    the host's user namespace can mount: an overlay of idmapped layers (mount_setattr(2), MOUNT_ATTR_IDMAP)."""

    KIND: ClassVar[int] = 40
    slot: int
    target: str

    def describe(self) -> str:
        return f"use the mount of descriptor {self.slot} as the root at {self.target}"


class Chroot(Step, frozen=True, kw_only=True):
    """chroot(2) into a directory of a mount namespace that others are in, too: pivot_root(2) would move their root."""

    KIND: ClassVar[int] = 41
    path: str

    def describe(self) -> str:
        return f"change the root to {self.path}"


class CopyUp(Step, frozen=True, kw_only=True):
    """Mount a tmpfs at `target` inside the root that starts with a copy of what was there (option tmpcopyup): files,
    directories, symlinks, devices and FIFOs with their modes, owners and times; sockets are left out, as by runc."""

    KIND: ClassVar[int] = 42
    target: str
    flags: int  # MS_* of mount(2); MS_RDONLY holds once the copy is made
    data: str = ""
    source: str = "tmpfs"
    propagation: int = 0  # as in MountIn

    def describe(self) -> str:
        return f"mount a tmpfs on {self.target} that starts with a copy of what is there"


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


# --- in the child: system settings --------------------------------------------------------


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


# --- in the child: the process ------------------------------------------------------------


class Rlimit(Step, frozen=True, kw_only=True):
    """setrlimit(2). `soft`/`hard` ~0 (2**64-1) mean RLIM_INFINITY."""

    KIND: ClassVar[int] = 48
    resource: int
    soft: int
    hard: int

    def describe(self) -> str:
        return f"limit resource {self.resource} to {self.soft}/{self.hard}"


class Umask(Step, frozen=True, kw_only=True):
    KIND: ClassVar[int] = 49
    mask: int

    def describe(self) -> str:
        return f"set umask {self.mask:04o}"


class SessionKeyring(Step, frozen=True, kw_only=True):
    """keyctl(2) KEYCTL_JOIN_SESSION_KEYRING, so that the host's keys aren't inherited. Optional by nature."""

    KIND: ClassVar[int] = 50
    name: str

    def describe(self) -> str:
        return f"join a session keyring of its own, {self.name}"


class Terminal(Step, frozen=True, kw_only=True):
    """Open a terminal in the root's devpts; its master end goes to the supervisor; bind it on /dev/console
    when `console`; it becomes the controlling terminal and descriptors 0, 1 and 2. Before the pivot."""

    KIND: ClassVar[int] = 51
    rows: int = 0
    cols: int = 0
    console: int = 1
    uid: int = 0

    def describe(self) -> str:
        return "open a terminal"


class ResolveUser(Step, frozen=True, kw_only=True):
    """Sync point: hand a descriptor of the root to the daemon, which reads passwd and group there and
    answers with uid, gid, groups and environment additions; they replace those of SetIds and Exec.
    `user` and `groups` are only for a person to read. After the mounts, before the pivot."""

    KIND: ClassVar[int] = 52
    user: str
    groups: tuple[str, ...] = ()

    def describe(self) -> str:
        return f"look up user {self.user or 'root'}"


class SetIds(Step, frozen=True, kw_only=True):
    """setgroups(2), setresgid(2), setresuid(2); PR_SET_KEEPCAPS is used, capabilities come after."""

    KIND: ClassVar[int] = 53
    uid: int
    gid: int
    groups: tuple[str, ...] = ()  # decimal

    def describe(self) -> str:
        return f"become user {self.uid}, group {self.gid}"


class DropBounding(Step, frozen=True, kw_only=True):
    """PR_CAPBSET_DROP of every capability that isn't in the mask. Before SetIds."""

    KIND: ClassVar[int] = 54
    bounding: int

    def describe(self) -> str:
        return f"bound capabilities to {self.bounding:#x}"


class Capabilities(Step, frozen=True, kw_only=True):
    """capset(2), then PR_CAP_AMBIENT for each ambient bit. Masks of 1 << CAP_*."""

    KIND: ClassVar[int] = 55
    effective: int
    permitted: int
    inheritable: int
    ambient: int

    def describe(self) -> str:
        return f"keep capabilities {self.effective:#x}"


class NoNewPrivs(Step, frozen=True, kw_only=True):
    KIND: ClassVar[int] = 56

    def describe(self) -> str:
        return "forbid new privileges"


class Seccomp(Step, frozen=True, kw_only=True):
    """seccomp(2) SECCOMP_SET_MODE_FILTER with a compiled program (struct sock_filter[])."""

    KIND: ClassVar[int] = 57
    program: bytes
    flags: int = 0

    def describe(self) -> str:
        return f"install a system call filter of {len(self.program) // 8} instructions"


class Chdir(Step, frozen=True, kw_only=True):
    """chdir(2) after the pivot; then the working directory must lie inside the root (getcwd(2) starts
    with "/", CVE-2024-21626). `create` 1 makes it when missing, as Docker does, before identity changes."""

    KIND: ClassVar[int] = 58
    path: str
    create: int = 0

    def describe(self) -> str:
        return f"change to {self.path}"


class Exec(Step, frozen=True, kw_only=True):
    """execve(2), searching the environment's PATH when the name has no slash. Every other descriptor is
    closed (close_range). With `init`, cove-init stays as process 1, reaps and forwards signals."""

    KIND: ClassVar[int] = 59
    args: tuple[str, ...]
    env: tuple[str, ...]
    init: int = 0

    def describe(self) -> str:
        return "run " + " ".join(self.args)


class Hold(Step, frozen=True, kw_only=True):
    """The container is created: look `program` up as Exec will (ENOENT and EACCES fail here), tell the supervisor,
    and wait until somebody writes to the FIFO in slot `go` (open for reading and writing): u32 length, then a text
    for RunHook. From here on failures go to the FIFO in slot `status`, as `u32 index, s32 errno`, and both close at
    the exec. After all that changes identity; nothing but read(2), write(2) and execve(2) follows for a plan without
    hooks. The process is split off into a pid namespace that was joined here, rather than by Exec."""

    KIND: ClassVar[int] = 60
    go: int
    status: int
    program: str
    path: str = ""  # the environment's PATH

    def describe(self) -> str:
        return f"wait for the start of {self.program}"


class Affinity(Step, frozen=True, kw_only=True):
    """sched_setaffinity(2); `mask` has a bit for each processor, as the kernel's unsigned long[]."""

    KIND: ClassVar[int] = 61
    mask: bytes

    def describe(self) -> str:
        cpus = [str(i) for i in range(len(self.mask) * 8) if self.mask[i // 8] >> i % 8 & 1]
        return f"run on processors {','.join(cpus)}"


class Scheduler(Step, frozen=True, kw_only=True):
    """sched_setattr(2); times are nanoseconds. Before identity and capabilities change (CAP_SYS_NICE)."""

    KIND: ClassVar[int] = 62
    policy: int  # SCHED_*
    flags: int = 0
    nice: int = 0
    priority: int = 0
    runtime: int = 0
    deadline: int = 0
    period: int = 0

    def describe(self) -> str:
        return f"use scheduling policy {self.policy}, nice {self.nice}, priority {self.priority}"


class IoPriority(Step, frozen=True, kw_only=True):
    """ioprio_set(2) of the process."""

    KIND: ClassVar[int] = 63
    priority_class: int  # IOPRIO_CLASS_*: 1 real-time, 2 best effort, 3 idle
    priority: int

    def describe(self) -> str:
        return f"use I/O class {self.priority_class}, priority {self.priority}"


class Personality(Step, frozen=True, kw_only=True):
    """personality(2): PER_LINUX32 shows a 32-bit machine."""

    KIND: ClassVar[int] = 64
    persona: int

    def describe(self) -> str:
        return f"set personality {self.persona:#x}"


class MemoryPolicy(Step, frozen=True, kw_only=True):
    """set_mempolicy(2); `nodes` has a bit for each NUMA node, as the kernel's unsigned long[]."""

    KIND: ClassVar[int] = 65
    mode: int  # MPOL_* with MPOL_F_*
    nodes: bytes

    def describe(self) -> str:
        return f"set memory policy {self.mode:#x}"


class Preserve(Step, frozen=True, kw_only=True):
    """The descriptors of the slots from `first` to `last` become 3 and up of the process, which finds them open after
    the exec. The first step of `child`, if any."""

    KIND: ClassVar[int] = 66
    first: int
    last: int

    def describe(self) -> str:
        return f"pass {self.last - self.first + 1} descriptors on, from 3 up"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A plan: everything the executor needs. `clone_flags` are CLONE_NEW* for clone3(2);
    a `cgroup_path` (opened after the `before` steps) adds CLONE_INTO_CGROUP (cgroup v2)."""

    clone_flags: int
    cgroup_path: str = ""
    before: tuple[Step, ...] = ()
    parent: tuple[Step, ...] = ()
    child: tuple[Step, ...] = ()
    exit: tuple[Step, ...] = ()


_NAMESPACES = (
    (0x00020000, "mount"),
    (0x02000000, "cgroup"),
    (0x04000000, "uts"),
    (0x08000000, "ipc"),
    (0x10000000, "user"),
    (0x20000000, "pid"),
    (0x40000000, "network"),
    (0x00000080, "time"),
)


def namespace_names(flags: int) -> str:
    """The namespaces of CLONE_NEW* flags, for a person: "mount, pid"."""
    return ", ".join(name for bit, name in _NAMESPACES if flags & bit) or "none"
