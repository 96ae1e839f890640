"""bin/cove-runtime --systemd-cgroup, with systemd: from create to delete."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.oci_support import Box, opened

ROOT = Path("/sys/fs/cgroup")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with opened(tmp_path) as made:
        yield made


def limited(config: dict[str, Any]) -> None:
    config["linux"]["cgroupsPath"] = "cove-oci.slice:cove:one"
    config["linux"]["namespaces"].append({"type": "cgroup"})
    mount = {
        "destination": "/sys/fs/cgroup",
        "type": "cgroup",
        "source": "cgroup",
        "options": ["ro", "nosuid"],
    }
    config["mounts"].append(mount)
    config["linux"]["resources"]["pids"] = {"limit": 30}
    config["linux"]["resources"]["memory"] = {"limit": 64 << 20}


def active(unit: str) -> str:
    done = subprocess.run(["systemctl", "is-active", unit], capture_output=True, text=True, timeout=30)
    return done.stdout.strip()


def test_a_container_is_a_scope_from_create_to_delete(box: Box) -> None:
    box.configure(["sleep", "1000"], limited)
    directory = ROOT / "cove.slice/cove-oci.slice/cove-one.scope"
    assert box.cove("--systemd-cgroup", "create", "one").status == 0
    assert active("cove-one.scope") == "active"
    assert (directory / "pids.max").read_text() == "30\n"
    assert box.cove("start", "one").status == 0
    done = box.cove(
        "exec", "one", "sh", "-c", "cat /proc/self/cgroup /sys/fs/cgroup/memory.max; : < /dev/null"
    )
    assert (done.status, done.out) == (0, f"0::/\n{64 << 20}\n"), done.err
    assert box.cove("pause", "one").status == 0
    assert box.status("cove", "one") == "paused"
    assert box.cove("resume", "one").status == 0
    assert box.cove("update", "--pids-limit", "20", "one").status == 0
    assert (directory / "pids.max").read_text() == "20\n"
    shown = subprocess.run(
        ["systemctl", "show", "-P", "TasksMax", "cove-one.scope"], capture_output=True, text=True, timeout=30
    )
    assert shown.stdout == "20\n"
    assert box.cove("delete", "--force", "one").status == 0
    assert not directory.exists()
    assert active("cove-one.scope") == "inactive"


def test_run_ends_its_scope_and_a_path_of_the_other_kind_is_refused(box: Box) -> None:
    box.configure(["cat", "/proc/self/cgroup"], limited)
    done = box.cove("--systemd-cgroup", "run", "one")
    assert (done.status, done.out) == (0, "0::/\n"), done.err
    assert active("cove-one.scope") == "inactive"
    box.configure(["true"])
    done = box.cove("--systemd-cgroup", "run", "two")
    assert done.status == 1 and "give SLICE:PREFIX:NAME" in done.err
    assert box.ids("cove") == []
