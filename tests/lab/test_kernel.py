"""What the lab itself promises: another kernel, cgroup v2 alone with all its controllers, AppArmor."""

from __future__ import annotations

from pathlib import Path


def test_cgroup_v2_is_alone_and_has_its_controllers() -> None:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    assert [words[2] for words in mounts if words[2].startswith("cgroup")] == ["cgroup2"]
    controllers = set(Path("/sys/fs/cgroup/cgroup.controllers").read_text().split())
    assert controllers >= {"cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc"}


def test_apparmor_is_on() -> None:
    assert Path("/sys/module/apparmor/parameters/enabled").read_text().strip() == "Y"


def test_temporary_files_are_on_a_real_disk(tmp_path: Path) -> None:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    assert [words[2] for words in mounts if words[1] == "/tmp"] == ["ext4"]
    assert str(tmp_path).startswith("/tmp/")
