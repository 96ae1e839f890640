"""The daemon's containers under systemd's cgroup driver: one transient scope for each (cgroups_systemd.py).

A container's cgroup is SLICE/PREFIX-ID.scope; the path tells the unit. systemd makes the scope around a process that
waits, takes it away once its last process is gone, and hears of every limit; what it has no words for, freezing,
killing and statistics go by the control files, as with the other driver.

Each question opens a connection of its own (about 2 ms), so that a bus that was restarted is no trouble. `update` and
`list_containers` block for it.
"""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import replace

from cove.model.errors import Invalid, Unavailable
from cove.runtime import oci
from cove.runtime.cgroups_detect import detect_cgroups
from cove.runtime.cgroups_systemd import Systemd, Unit, enter_scope, slice_path, unit_at
from cove.runtime.cgroups_v2 import CgroupsV2
from cove.runtime.facts import Layout

_DEFAULT_SLICE = "system.slice"


def detect_scopes(slice_: str, prefix: str) -> CgroupsScopes:
    """The driver for containers in `slice_` ("": system.slice), whose scopes are PREFIX-ID.scope.

    Raises Unavailable on a host with cgroup v1 or without systemd, Invalid for a parent that is no slice.
    """
    if not os.path.isdir("/run/systemd/system"):  # sd_booted(3)
        raise Unavailable(
            "native.cgroupdriver=systemd: this host's process 1 isn't systemd: leave it out, or say cgroupfs"
        )
    layout = detect_cgroups().layout
    if layout.version != 2:
        raise Unavailable(
            "native.cgroupdriver=systemd needs cgroup v2, and this host has v1: leave it out, or say cgroupfs"
        )
    with Systemd.connect() as systemd:
        root = systemd.find_path(Unit("", "-.slice"))
    return CgroupsScopes(layout, root, slice_ or _DEFAULT_SLICE, prefix)


class CgroupsScopes(CgroupsV2):
    driver = "systemd"

    def __init__(self, layout: Layout, root: str, slice_: str, prefix: str) -> None:
        """`root` is the cgroup of systemd itself; scopes are called PREFIX-ID.scope."""
        self._root, self._prefix = root, prefix
        super().__init__(replace(layout, parent=self._slice(slice_)))

    def _slice(self, name: str) -> str:
        try:
            path = slice_path(name)
        except Invalid:
            raise Invalid(
                f"cgroup parent {name!r}: with systemd's cgroup driver it is a slice, e.g. machine.slice or "
                "team-batch.slice"
            ) from None
        return f"{self._root}/{path}".strip("/")

    # --- the slice --------------------------------------------------------------------------------

    def setup(self) -> None:
        """Find out which limits work, in a cgroup beside systemd's own units; the slice is left to systemd."""
        probe = f"{self._slice(_DEFAULT_SLICE)}/{self._prefix}-probe"
        made: list[str] = []
        try:
            self._make_way(probe, made)
            self._find_features(f"{self.layout.root}/{probe}")
        finally:
            self.undo(made)

    def ensure_parent(self, parent: str) -> None:
        self._slice(parent)  # systemd makes a slice for its first scope

    def teardown(self) -> None:
        """Nothing: slices are systemd's."""

    def check_parent(self, parent: str) -> None:
        self._slice(parent)

    def container_path(self, parent: str, container_id: str) -> str:
        try:
            slice_ = self._slice(parent) if parent else self.layout.parent
        except Invalid:  # made under the other driver: it doesn't start before that is back
            slice_ = self.layout.parent
        return f"{slice_}/{self._prefix}-{container_id}.scope".lstrip("/")

    def list_containers(self) -> list[str]:
        """The cgroups of this daemon's scopes, in whichever slice."""
        own = re.compile(rf"{re.escape(self._prefix)}-[0-9a-f]{{64}}\.scope")
        with Systemd.connect() as systemd:
            paths = systemd.list_scopes(f"{self._prefix}-*.scope")
        return sorted(path for path in paths if own.fullmatch(os.path.basename(path)))

    # --- one container ----------------------------------------------------------------------------

    async def enter(self, path: str, pid: int, resources: oci.Resources) -> None:
        """At the pause "cgroup": have a waiting process put into its scope, with all its limits. Raises Conflict,
        Invalid, HostError; the process is dead and the scope gone then."""
        await asyncio.to_thread(self._enter, path, pid, resources)

    def _enter(self, path: str, pid: int, resources: oci.Resources) -> None:
        with Systemd.connect() as systemd:
            enter_scope(systemd, CgroupsV2(self.layout), unit_at(path), path, pid, resources)

    def update(self, path: str, resources: oci.Resources) -> None:
        with Systemd.connect() as systemd:
            systemd.set_limits(unit_at(path), resources)
        super().update(path, resources)

    async def remove(self, path: str, timeout_s: float = 2.0) -> None:
        """The unit too: the container's next start wants its name."""
        await asyncio.to_thread(self._stop, path)
        await super().remove(path, timeout_s)

    def _stop(self, path: str) -> None:
        with Systemd.connect() as systemd:
            systemd.stop(unit_at(path))
