"""A rootless daemon with a cgroup that was delegated to its user, as systemd's Delegate=yes does it: cgroup v2."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import IMAGE
from tests.rootlesskit import USER, RootlessDaemon

DELEGATED = Path("/sys/fs/cgroup/delegated-to-walker")
_ENTER = f'd={DELEGATED}; test -d $d/daemon && d=$d/daemon; echo $$ > $d/cgroup.procs && exec "$@"'
_CONTROLLERS = "+cpu +memory +pids"


@pytest.fixture
def daemon() -> Iterator[RootlessDaemon]:
    """cgroups(7), "Delegation": the directory, its cgroup.procs, cgroup.threads and cgroup.subtree_control."""
    Path("/sys/fs/cgroup/cgroup.subtree_control").write_text(_CONTROLLERS)
    DELEGATED.mkdir()
    for path in (
        DELEGATED,
        *(DELEGATED / f"cgroup.{name}" for name in ("procs", "threads", "subtree_control")),
    ):
        os.chown(path, USER, USER)
    enter = ["/bin/sh", "-c", _ENTER, "sh"]
    try:
        with RootlessDaemon(ranges=False, network="none", before=enter) as running:
            running.load_image()
            yield running
    finally:
        for path in sorted(DELEGATED.glob("**/"), reverse=True):
            path.rmdir()


def test_limits_pause_and_statistics_work_in_a_delegated_cgroup(daemon: RootlessDaemon) -> None:
    info = daemon.client.info()
    assert (info["CgroupDriver"], info["CgroupVersion"], info["MemoryLimit"]) == ("cgroupfs", "2", True)
    container = daemon.client.containers.run(
        IMAGE, ["sleep", "1000"], detach=True, mem_limit="64m", pids_limit=20, nano_cpus=500_000_000
    )
    try:
        container.reload()
        own = Path(f"/proc/{container.attrs['State']['Pid']}/cgroup").read_text().strip().removeprefix("0::/")
        directory = Path("/sys/fs/cgroup") / own
        assert DELEGATED in directory.parents
        assert (directory / "memory.max").read_text().strip() == str(64 << 20)
        assert (directory / "pids.max").read_text().strip() == "20"
        assert (directory / "cpu.max").read_text().split() == ["50000", "100000"]
        container.pause()
        assert (directory / "cgroup.freeze").read_text().strip() == "1"
        container.unpause()
        assert container.exec_run("id -u").output == b"0\n"
        assert container.stats(stream=False)["memory_stats"]["usage"] > 0
    finally:
        container.remove(force=True)
    assert not directory.exists()
