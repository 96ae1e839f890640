"""Facts, devices and mount trees of the real host."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cove.model.container import Device, MountPoint
from cove.model.errors import CoveError, Invalid
from cove.runtime import capabilities
from cove.runtime.cgroups_detect import detect_cgroups
from cove.runtime.host import find_block_numbers, find_devices, find_host
from cove.runtime.trees import check_propagation, open_tree
from tests.system.native_support import needs_root

pytestmark = needs_root


def test_the_host_is_described() -> None:
    try:
        layout = detect_cgroups().layout
    except CoveError as error:
        pytest.skip(str(error))
    host = find_host(layout)
    assert host.kernel >= (4, 18)
    assert {"proc", "tmpfs", "overlay"} <= host.filesystems
    assert host.capabilities & capabilities.DEFAULT
    assert "/proc/kcore" in host.masked_paths
    status = Path("/proc/self/status").read_text()
    bounding = int(next(line for line in status.splitlines() if line.startswith("CapBnd")).split()[1], 16)
    assert host.capabilities & ~bounding == 0
    if not bounding >> capabilities.NUMBERS["CAP_SYS_RESOURCE"] & 1:
        assert host.hard_limits


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    os.mknod(tmp_path / "null", 0o020640, os.makedev(1, 3))
    os.mknod(tmp_path / "sub/zero", 0o020600, os.makedev(1, 5))
    os.mkfifo(tmp_path / "sub/fifo")
    (tmp_path / "link").symlink_to("null")
    (tmp_path / "file").touch()
    return tmp_path


def device(host: Path | str, target: str = "/dev/x", permissions: str = "rwm") -> Device:
    return Device(host_path=str(host), container_path=target, permissions=permissions)


def test_a_device_is_found_behind_a_symlink(nodes: Path) -> None:
    (found,), (rule,) = find_devices([device(nodes / "link", permissions="r")])
    assert (found.path, found.type, found.major, found.minor, found.file_mode) == ("/dev/x", "c", 1, 3, 0o640)
    assert (rule.allow, rule.type, rule.major, rule.minor, rule.access) == (True, "c", 1, 3, "r")


def test_a_directory_stands_for_every_device_below_it(nodes: Path) -> None:
    found, rules = find_devices([device(nodes, "/dev/all/")])
    assert sorted(each.path for each in found) == ["/dev/all/null", "/dev/all/sub/zero"]
    assert len(rules) == 2


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        ("file", "/dev/x", "not a device node"),
        ("gone", "/dev/x", "no such file or directory"),
        ("null", "dev/x", "has to be absolute"),
        ("null", "/dev/../etc/x", "has to be absolute"),
    ],
)
def test_what_is_no_device_is_refused(nodes: Path, name: str, target: str, words: str) -> None:
    with pytest.raises(
        Invalid, match="error gathering device information while adding custom device"
    ) as caught:
        find_devices([device(nodes / name, target)])
    assert words in str(caught.value)


def test_privileged_containers_get_the_hosts_devices() -> None:
    found, rules = find_devices([], privileged=True)
    paths = {each.path for each in found}
    assert "/dev/null" in paths and "/dev/console" not in paths
    assert not [path for path in paths if path.startswith(("/dev/pts/", "/dev/shm/"))]
    assert rules == ()


def test_limits_are_for_block_devices(nodes: Path) -> None:
    os.mknod(nodes / "block", 0o060600, os.makedev(7, 0))
    assert find_block_numbers([str(nodes / "block")]) == {str(nodes / "block"): (7, 0)}
    with pytest.raises(Invalid, match="not a block device"):
        find_block_numbers([str(nodes / "null")])
    with pytest.raises(Invalid, match="no such file or directory"):
        find_block_numbers([str(nodes / "gone")])


def test_a_tree_of_another_mount_namespace_is_cloned(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    script = (
        f"mount -t tmpfs inner {tmp_path}/place && touch {tmp_path}/place/seen && echo ready && read line"
    )
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        try:
            assert other.stdout.readline() == b"ready\n"
            before = os.readlink("/proc/thread-self/ns/mnt")
            tree = open_tree(f"/proc/{other.pid}/root{tmp_path}/place", recursive=True)
            try:
                assert os.listdir(f"/proc/self/fd/{tree}") == ["seen"]
            finally:
                os.close(tree)
            with pytest.raises(FileNotFoundError):
                open_tree(f"/proc/{other.pid}/root{tmp_path}/none", recursive=False)
            assert os.readlink("/proc/thread-self/ns/mnt") == before
            assert os.listdir(tmp_path / "place") == []
        finally:
            other.stdin.close()
            other.wait(60)


def test_symlinks_of_another_mount_namespace_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(OSError, match="symbolic links"):
        open_tree(f"/proc/{os.getpid()}/root{tmp_path}/link", recursive=False)


def test_propagation_is_refused_where_the_source_has_none(tmp_path: Path) -> None:
    mount = MountPoint(kind="bind", target="/x", source=str(tmp_path), propagation="rshared")
    subprocess.run(["mount", "--bind", str(tmp_path), str(tmp_path)], check=True)
    try:
        subprocess.run(["mount", "--make-private", str(tmp_path)], check=True)
        with pytest.raises(
            Invalid, match=f"path {tmp_path} is mounted on {tmp_path} but it is not a shared mount"
        ):
            check_propagation([mount])
        subprocess.run(["mount", "--make-shared", str(tmp_path)], check=True)
        check_propagation([mount])
        check_propagation([MountPoint(kind="bind", target="/y", source=str(tmp_path), propagation="rslave")])
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    check_propagation([MountPoint(kind="bind", target="/y", source=str(tmp_path), propagation="rprivate")])
