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

from cove.runtime.steps.base import (
    PLAN_VERSION,
    Plan,
    Step,
    namespace_names,
)
from cove.runtime.steps.host import (
    AttachDeviceProgram,
    JoinCgroup,
    MakeHostDir,
    ReadOom,
    RemoveHostDir,
    UnmountHost,
    WriteHost,
    WritePid,
)
from cove.runtime.steps.mounts import (
    AttachRoot,
    AttachTree,
    Bind,
    BindRoot,
    Chroot,
    CopyUp,
    MakeDir,
    MakeNode,
    MakeSymlink,
    Mask,
    MountIn,
    MountRoot,
    PivotRoot,
    Propagate,
    ReadonlyPath,
    RootPropagation,
    RootReadonly,
)
from cove.runtime.steps.namespaces import (
    BecomeRoot,
    Domainname,
    Hostname,
    LinkUp,
    Pause,
    RunHook,
    SetNs,
    Sysctl,
    Unshare,
    WriteSelf,
)
from cove.runtime.steps.process import (
    Affinity,
    Capabilities,
    Chdir,
    DropBounding,
    Exec,
    Hold,
    IoPriority,
    MemoryPolicy,
    NoNewPrivs,
    Personality,
    Preserve,
    ResolveUser,
    Rlimit,
    Scheduler,
    Seccomp,
    SessionKeyring,
    SetIds,
    Terminal,
    Umask,
)

__all__ = [
    "PLAN_VERSION",
    "Affinity",
    "AttachDeviceProgram",
    "AttachRoot",
    "AttachTree",
    "BecomeRoot",
    "Bind",
    "BindRoot",
    "Capabilities",
    "Chdir",
    "Chroot",
    "CopyUp",
    "Domainname",
    "DropBounding",
    "Exec",
    "Hold",
    "Hostname",
    "IoPriority",
    "JoinCgroup",
    "LinkUp",
    "MakeDir",
    "MakeHostDir",
    "MakeNode",
    "MakeSymlink",
    "Mask",
    "MemoryPolicy",
    "MountIn",
    "MountRoot",
    "NoNewPrivs",
    "Pause",
    "Personality",
    "PivotRoot",
    "Plan",
    "Preserve",
    "Propagate",
    "ReadOom",
    "ReadonlyPath",
    "RemoveHostDir",
    "ResolveUser",
    "Rlimit",
    "RootPropagation",
    "RootReadonly",
    "RunHook",
    "Scheduler",
    "Seccomp",
    "SessionKeyring",
    "SetIds",
    "SetNs",
    "Step",
    "Sysctl",
    "Terminal",
    "Umask",
    "UnmountHost",
    "Unshare",
    "WriteHost",
    "WritePid",
    "WriteSelf",
    "namespace_names",
]
