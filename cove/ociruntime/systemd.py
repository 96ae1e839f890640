"""--systemd-cgroup: the container's cgroup is a scope that systemd makes (cove/runtime/cgroups_systemd.py).

A scope is in a container's state as [unit, slice]; everything here is asked of the manager that the caller has: the
system's for root, its own for an ordinary user.
"""

from __future__ import annotations

import os

from cove.model.errors import Unavailable
from cove.runtime.cgroups_systemd import Systemd, Unit, enter_scope, parse_unit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cove.runtime.cgroups import Cgroups
    from cove.runtime.facts import Layout
    from cove.runtime.oci import Resources


def connect() -> Systemd:
    return Systemd.connect(user=os.geteuid() != 0)


def find_scope(layout: Layout, cgroups_path: str, container_id: str) -> tuple[Unit, str]:
    """The scope that linux.cgroupsPath names, and the path of its cgroup. Raises Invalid, Unavailable."""
    if layout.version != 2:
        raise Unavailable("--systemd-cgroup needs cgroup v2, and this host has v1: leave it out")
    unit = parse_unit(cgroups_path, container_id, user=os.geteuid() != 0)
    with connect() as systemd:
        return unit, systemd.find_path(unit)


def enter(cgroups: Cgroups, unit: Unit, path: str, pid: int, resources: Resources) -> None:
    """At the pause "cgroup": put the waiting process into its scope, with its limits."""
    with connect() as systemd:
        enter_scope(systemd, cgroups, unit, path, pid, resources)


def set_limits(scope: Sequence[str], resources: Resources) -> None:
    with connect() as systemd:
        systemd.set_limits(Unit(*scope), resources)


def stop(scope: Sequence[str]) -> None:
    """Once all processes are gone: systemd removes the cgroup. Fine when the scope is gone."""
    with connect() as systemd:
        systemd.stop(Unit(*scope))
