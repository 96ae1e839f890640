"""Plan a container's group in the resctrl file system: shares of cache and memory bandwidth (linux.intelRdt).

Pure. The kernel's side: Documentation/arch/x86/resctrl.rst.
"""

from __future__ import annotations

import msgspec

from cove.model.errors import Invalid, Unavailable
from cove.runtime.facts import Host
from cove.runtime.oci import IntelRdt
from cove.runtime.steps import MakeHostDir, RemoveHostDir, Step, WriteHost, WritePid


class ResctrlPlan(msgspec.Struct, frozen=True, kw_only=True):
    before: tuple[Step, ...] = ()
    parent: tuple[Step, ...] = ()
    exit: tuple[Step, ...] = ()


def plan_resctrl(rdt: IntelRdt | None, name: str, host: Host) -> ResctrlPlan:
    """Make, fill and join the group; a named one without a schema has to be there already, "/" is the default group.
    Raises Invalid, Unavailable."""
    if rdt is None:
        return ResctrlPlan()
    if not host.resctrl:
        raise Unavailable(
            "linux.intelRdt: this host has no resctrl file system (a processor with RDT or similar, mounted at "
            "/sys/fs/resctrl), leave it out"
        )
    group = rdt.clos_id or name
    if group in (".", "..") or ("/" in group and group != "/"):
        raise Invalid(f"linux.intelRdt.closID {rdt.clos_id!r}: give a name without /, e.g. batch")
    directory = host.resctrl if group == "/" else f"{host.resctrl}/{group}"
    lines = [*(line for line in (rdt.l3_cache_schema, rdt.mem_bw_schema) if line), *rdt.schemata]
    before: list[Step] = []
    if group != "/" and (lines or not rdt.clos_id):
        before.append(MakeHostDir(path=directory))
    if lines:
        before.append(WriteHost(path=f"{directory}/schemata", data="\n".join(lines) + "\n"))
    leave: list[Step] = [] if rdt.clos_id else [RemoveHostDir(path=directory)]
    monitor = f"{directory}/mon_groups/{name}"
    if rdt.enable_cmt or rdt.enable_mbm or rdt.enable_monitoring:
        before.append(MakeHostDir(path=monitor))
        leave.insert(0, RemoveHostDir(path=monitor))
        return ResctrlPlan(
            before=tuple(before),
            parent=(WritePid(path=f"{directory}/tasks"), WritePid(path=f"{monitor}/tasks")),
            exit=tuple(leave),
        )
    return ResctrlPlan(before=tuple(before), parent=(WritePid(path=f"{directory}/tasks"),), exit=tuple(leave))
