"""What a daemon calls the host's objects."""

from __future__ import annotations

from pathlib import Path

from cove.daemon import DEFAULT_RUN_DIR, plan_names


def test_a_daemon_elsewhere_has_names_of_its_own() -> None:
    default, other, third = (
        plan_names(DEFAULT_RUN_DIR),
        plan_names(Path("/tmp/x")),
        plan_names(Path("/tmp/y")),
    )
    assert (default.bridge, default.table, default.cgroup_parent) == ("cove0", "cove", "cove")
    assert len({default.bridge, other.bridge, third.bridge}) == 3
    assert len(other.bridge) <= 15, "the kernel's limit for a link's name (IFNAMSIZ)"
    assert other == plan_names(Path("/tmp/x"))
