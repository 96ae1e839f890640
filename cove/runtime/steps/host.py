"""Steps in the supervisor: cgroups and other files of the host."""

from __future__ import annotations

from typing import ClassVar

from cove.runtime.steps.base import Step


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
