"""bin/cove-runtime on cgroup v2: `exec` into a container that runs an init system of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.oci_support import Box, opened, wait_until

INIT = (
    "cd /sys/fs/cgroup; mkdir init; echo 0 > init/cgroup.procs; echo '+memory +pids' > cgroup.subtree_control; "
    "exec sleep 1000"
)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with opened(tmp_path) as made:
        yield made


def with_cgroups(config: dict[str, Any]) -> None:
    """The container may write to its own cgroup."""
    config["linux"]["namespaces"].append({"type": "cgroup"})
    mount = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]}
    config["mounts"].append(mount)


def test_an_exec_follows_a_container_that_moved_below_its_own_cgroup(box: Box) -> None:
    box.configure(["sh", "-c", INIT], with_cgroups)
    directory = Path("/sys/fs/cgroup", box.cgroup, "box")
    assert box.cove("run", "--detach", "one").status == 0
    wait_until(
        lambda: bool((directory / "cgroup.subtree_control").read_text().strip()), "the container's move"
    )
    done = box.cove("exec", "one", "cat", "/proc/self/cgroup")
    assert (done.status, done.out) == (0, "0::/init\n"), done.err
    assert box.cove("delete", "--force", "one").status == 0
    assert not directory.exists()


def test_an_exec_joins_the_containers_cgroup(box: Box) -> None:
    box.configure(["sleep", "1000"], with_cgroups)
    assert box.cove("run", "--detach", "one").status == 0
    done = box.cove("exec", "one", "cat", "/proc/self/cgroup")
    assert (done.status, done.out) == (0, "0::/\n"), done.err
    assert box.cove("delete", "--force", "one").status == 0
