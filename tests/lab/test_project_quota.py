"""Sizes by project quotas: ext4 mounted with prjquota, which this machine's kernel has."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cove.storage.project_quota import ProjectQuotas, project_of
from tests.apikit import create, eventually, logs, remove, run, start, wait
from tests.daemon import Daemon

MIB = 1 << 20


@pytest.fixture(scope="module")
def quota_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose data root enforces project quotas."""
    image = tmp_path_factory.mktemp("disk") / "disk.img"
    with image.open("wb") as file:
        file.truncate(512 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-O", "project,quota", image], check=True)
    disk = tmp_path_factory.mktemp("mounted")
    daemon = Daemon()
    daemon.data_root = disk / "data"
    subprocess.run(["mount", "-o", "loop,prjquota", image, disk], check=True)
    try:
        with daemon:
            daemon.load_image()
            yield daemon
    finally:
        subprocess.run(["umount", disk], check=True)


def limits(daemon: Daemon) -> list[tuple[int, int]]:
    """Every id of the data root's that has a limit, and the limit."""
    quotas = ProjectQuotas.find(daemon.data_root)
    assert quotas is not None
    try:
        return [
            (number, usage.limit_bytes)
            for number in range(quotas._first, quotas._first + 40)
            if (usage := quotas.usage(number)).limit_bytes
        ]
    finally:
        quotas.close()


def test_a_volume_has_a_quota_that_grows_and_shrinks(quota_daemon: Daemon, image: str) -> None:
    daemon = quota_daemon
    made = daemon.http("POST", "/volumes/create", {"Name": "data", "DriverOpts": {"size": "8m"}})
    assert made.status == 201, made.body
    place = daemon.data_root / "volumes/data/_data"
    assert project_of(place) and [limit for _, limit in limits(daemon)] == [8 * MIB]
    script = "mkdir -p /data/deep && dd if=/dev/zero of=/data/deep/big bs=1M count=20"
    container = run(daemon, image, "sh", "-c", script, Binds=["data:/data"])
    assert wait(daemon, container) != 0
    assert b"quota exceeded" in logs(daemon, container).lower() or b"No space" in logs(daemon, container)
    remove(daemon, container)
    used = daemon.http("GET", "/system/df?type=volume").json()["Volumes"][0]["UsageData"]["Size"]
    assert 7 * MIB < used <= 8 * MIB
    small = daemon.http("POST", "/cove/v1/volumes/update?name=data", {"Size": "4m"})
    assert small.status == 409 and "delete some first" in small.message
    assert daemon.http("POST", "/cove/v1/volumes/update?name=data", {"Size": "40m"}).status == 200
    container = run(daemon, image, "sh", "-c", script, Binds=["data:/data"])
    assert wait(daemon, container) == 0
    remove(daemon, container)
    assert daemon.http("DELETE", "/volumes/data").status == 204
    assert limits(daemon) == []


def test_a_writable_layer_has_a_quota_and_is_whole(quota_daemon: Daemon, image: str) -> None:
    daemon = quota_daemon
    script = "mv /etc/passwd /etc/moved && dd if=/dev/zero of=/big bs=1M count=20"
    container = create(daemon, image, "sh", "-c", script, StorageOpt={"size": "8m"})
    start(daemon, container)
    assert wait(daemon, container) != 0
    told = logs(daemon, container)
    assert b"mv:" not in told and (b"quota" in told.lower() or b"No space" in told), told
    shown = daemon.http("GET", f"/containers/{container}/json?size=1").json()
    assert 7 * MIB < shown["SizeRw"] <= 8 * MIB
    remove(daemon, container)
    assert limits(daemon) == []


def test_what_a_killed_daemon_left_is_freed(quota_daemon: Daemon, image: str) -> None:
    daemon = quota_daemon
    keep = create(daemon, image, "true", StorageOpt={"size": "8m"})
    daemon.http("POST", "/volumes/create", {"Name": "keep", "DriverOpts": {"size": "16m"}})
    quotas = ProjectQuotas.find(daemon.data_root)
    assert quotas is not None
    stray = daemon.data_root / "containers" / ("e" * 64)
    (stray / "upper").mkdir(parents=True)
    (stray / "work").mkdir()
    daemon.kill9()
    quotas.sweep([daemon.data_root / "containers" / keep / "upper", daemon.data_root / "volumes/keep/_data"])
    assert quotas.assign([stray / "upper", stray / "work"], 32 * MIB)
    quotas.close()
    assert sorted(limit for _, limit in limits(daemon)) == [8 * MIB, 16 * MIB, 32 * MIB]
    daemon.start()
    assert sorted(limit for _, limit in limits(daemon)) == [8 * MIB, 16 * MIB]
    remove(daemon, keep)
    assert daemon.http("DELETE", "/volumes/keep").status == 204
    eventually(lambda: not Path(stray).exists())
    assert limits(daemon) == []
