"""Names of scopes and slices, and the daemon's option for systemd's driver."""

from __future__ import annotations

import pytest

from cove.model.errors import Invalid
from cove.runtime.cgroups_scopes import CgroupsScopes
from cove.runtime.cgroups_systemd import Unit, unit_at
from cove.runtime.facts import Layout

LAYOUT = Layout(version=2, root="/sys/fs/cgroup", parent="cove", controllers=frozenset(("memory", "pids")))


def test_a_containers_path_tells_its_unit() -> None:
    scopes = CgroupsScopes(LAYOUT, "", "system.slice", "cove")
    assert scopes.layout.parent == "system.slice" and scopes.driver == "systemd"
    for parent, path, unit in (
        ("", "system.slice/cove-ab.scope", Unit("cove-ab.scope", "system.slice")),
        ("a-b.slice", "a.slice/a-b.slice/cove-ab.scope", Unit("cove-ab.scope", "a-b.slice")),
        ("-.slice", "cove-ab.scope", Unit("cove-ab.scope", "-.slice")),
    ):
        assert scopes.container_path(parent, "ab") == path
        assert unit_at(path) == unit and unit.path() == path
    inner = CgroupsScopes(LAYOUT, "machine.slice/box.scope", "team.slice", "cove-1")
    assert inner.container_path("", "ab") == "machine.slice/box.scope/team.slice/cove-1-ab.scope"


@pytest.mark.parametrize("parent", ["team", "/team.slice", "a--b.slice", "../x.slice", "x.scope"])
def test_a_parent_that_is_no_slice_is_refused_at_create_and_start(parent: str) -> None:
    scopes = CgroupsScopes(LAYOUT, "", "system.slice", "cove")
    with pytest.raises(Invalid, match=r"it is a slice, e\.g\. machine\.slice"):
        scopes.check_parent(parent)
    with pytest.raises(Invalid, match=r"it is a slice, e\.g\. machine\.slice"):
        scopes.ensure_parent(parent)
    # one that was created under the other driver is listed, stopped and removed all the same
    assert scopes.container_path(parent, "ab") == "system.slice/cove-ab.scope"
