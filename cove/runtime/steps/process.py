"""Steps of the child that make the process what it shall be."""

from __future__ import annotations

from typing import ClassVar

from cove.runtime.steps.base import Step


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
