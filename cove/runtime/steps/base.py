"""What every step is, and the plan that they make up."""

from __future__ import annotations

from typing import ClassVar

import msgspec

PLAN_VERSION = 1


class Step(msgspec.Struct, frozen=True, kw_only=True):
    KIND: ClassVar[int]

    def describe(self) -> str:
        """One line for a person: what this step does to the host or the container."""
        raise NotImplementedError


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
