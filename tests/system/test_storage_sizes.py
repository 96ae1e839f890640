"""Sizes of volumes and writable layers, where the file system has no project quotas: images, and what becomes of them.

The other way is in tests/lab/test_project_quota.py, on a kernel that has these quotas.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.apikit import create, eventually, logs, remove, run, start, wait
from tests.daemon import Daemon

MIB = 1 << 20


def make(daemon: Daemon, name: str, size: str) -> None:
    answer = daemon.http("POST", "/volumes/create", {"Name": name, "DriverOpts": {"size": size}})
    assert answer.status == 201, answer.message


def loops(directory: Path) -> list[str]:
    """The loop devices of files in a directory."""
    return [
        file.read_text().strip()
        for file in Path("/sys/block").glob("loop*/loop/backing_file")
        if file.read_text().startswith(str(directory))
    ]


def usage(daemon: Daemon, name: str) -> int:
    found = daemon.http("GET", "/system/df?type=volume").json()["Volumes"]
    return next(int(volume["UsageData"]["Size"]) for volume in found if volume["Name"] == name)


def in_container(daemon: Daemon, image: str, script: str, **host: Any) -> tuple[int, str]:
    """A container's exit code and output."""
    container = run(daemon, image, "sh", "-c", script, **host)
    code = wait(daemon, container)
    told = logs(daemon, container).decode(errors="replace")
    remove(daemon, container)
    return code, told


def test_a_volume_keeps_to_its_size_and_grows(daemon: Daemon, image: str) -> None:
    make(daemon, "small", "24m")
    binds = ["small:/data"]
    assert usage(daemon, "small") < 4 * MIB  # it takes what is in it, not its size
    code, told = in_container(daemon, image, "ls -A /data; echo x > /data/kept", Binds=binds)
    assert (code, told) == (0, "")  # no lost+found either
    code, told = in_container(daemon, image, "dd if=/dev/zero of=/data/big bs=1M count=40", Binds=binds)
    assert code != 0 and "No space left on device" in told
    assert 15 * MIB < usage(daemon, "small") <= 24 * MIB
    eventually(lambda: not loops(daemon.data_root))
    answer = daemon.http("POST", "/cove/v1/volumes/update?name=small", {"Size": "64m"})
    assert answer.status == 200 and answer.json()["Options"] == {"size": "64m"}, answer.body
    code, told = in_container(
        daemon, image, "cat /data/kept; dd if=/dev/zero of=/data/big bs=1M count=40", Binds=binds
    )
    assert code == 0, told
    code, _ = in_container(daemon, image, "rm /data/big; sync", Binds=binds)
    eventually(lambda: usage(daemon, "small") < 8 * MIB, "space given back")
    refused = daemon.http("POST", "/cove/v1/volumes/update?name=small", {"Size": "32m"})
    assert refused.status == 409 and "can only grow" in refused.message
    assert daemon.http("DELETE", "/volumes/small").status == 204
    eventually(lambda: not loops(daemon.data_root))


def test_a_volume_in_use_grows_where_the_kernel_lets_it(daemon: Daemon, image: str) -> None:
    make(daemon, "live", "16m")
    container = run(daemon, image, "sleep", "600", Binds=["live:/data"])
    answer = daemon.http("POST", "/cove/v1/volumes/update?name=live", {"Size": "48m"})
    if answer.status == 409:
        assert "stop the containers that use it first" in answer.message
    else:
        assert answer.status == 200, answer.body
    remove(daemon, container)
    assert daemon.http("DELETE", "/volumes/live").status == 204


@pytest.mark.parametrize(
    ("size", "told"),
    [
        ("1m", "too small for an image"),
        ("many", "invalid size: 'many'"),
        ("0", "out of bounds"),
        ("9e9", "invalid size"),
    ],
)
def test_a_size_that_cannot_be_is_refused(daemon: Daemon, size: str, told: str) -> None:
    answer = daemon.http("POST", "/volumes/create", {"Name": "no", "DriverOpts": {"size": size}})
    assert answer.status == 400 and told in answer.message
    assert not (daemon.data_root / "volumes/no").exists()


def test_a_writable_layer_keeps_to_its_size(daemon: Daemon, image: str) -> None:
    host: Any = {"StorageOpt": {"size": "24m"}}
    container = create(
        daemon, image, "sh", "-c", "echo x > /kept; exec dd if=/dev/zero of=/big bs=1M count=40", **host
    )
    start(daemon, container)
    assert wait(daemon, container) != 0
    assert b"No space left on device" in logs(daemon, container)
    changed = {change["Path"] for change in daemon.http("GET", f"/containers/{container}/changes").json()}
    assert {"/kept", "/big"} <= changed
    shown = daemon.http("GET", f"/containers/{container}/json?size=1").json()
    assert shown["HostConfig"]["StorageOpt"] == {"size": "24m"}
    assert 15 * MIB < shown["SizeRw"] <= 24 * MIB
    assert daemon.http("GET", f"/containers/{container}/archive?path=/kept").status == 200
    remove(daemon, container)
    eventually(lambda: not loops(daemon.data_root))


def test_a_layer_that_was_unmounted_is_found_again(fresh_daemon: Daemon, image: str) -> None:
    daemon = fresh_daemon
    script = "cat /count; echo turn >> /count"
    container = create(daemon, image, "sh", "-c", script, StorageOpt={"size": "16m"})
    start(daemon, container)
    wait(daemon, container)
    daemon.kill9()
    os.system(f"umount {daemon.data_root}/containers/{container}/layer")  # as a reboot does
    stray = daemon.data_root / "containers" / ("f" * 64)
    stray.mkdir()  # a create that was cut off
    daemon.start()
    start(daemon, container)
    wait(daemon, container)
    assert logs(daemon, container).endswith(b"turn\n")
    assert not stray.exists()
    remove(daemon, container)
    eventually(lambda: not loops(daemon.data_root))


def test_what_is_mounted_in_the_trash_is_taken_off_at_the_start(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    daemon.terminate()
    place = daemon.data_root / "trash" / "0123-4" / "layer"
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    daemon.start()
    eventually(lambda: not os.listdir(daemon.data_root / "trash"))


def test_a_daemon_killed_amid_sized_things_leaves_nothing_half_made(fresh_daemon: Daemon, image: str) -> None:
    from tests.apikit import Call

    daemon = fresh_daemon
    for turn in range(3):
        calls = [
            Call(daemon, "POST", "/volumes/create", {"Name": f"v{turn}-{n}", "DriverOpts": {"size": "16m"}})
            for n in range(3)
        ]
        body = {"Image": image, "Cmd": ["true"], "HostConfig": {"StorageOpt": {"size": "16m"}}}
        calls += [Call(daemon, "POST", "/containers/create", body) for _ in range(3)]
        eventually(lambda: any((daemon.data_root / "volumes").glob(f"v{turn}-*/*")))
        daemon.kill9()
        for call in calls:
            call.join(60)
        daemon.start()
        listed = {volume["Name"] for volume in daemon.http("GET", "/volumes").json()["Volumes"] or ()}
        assert set(os.listdir(daemon.data_root / "volumes")) == listed
        known = {found["Id"] for found in daemon.http("GET", "/containers/json?all=1").json()}
        assert set(os.listdir(daemon.data_root / "containers")) == known
        for name in listed:
            assert daemon.http("DELETE", f"/volumes/{name}").status == 204
        for container in known:
            remove(daemon, container)
    eventually(lambda: not loops(daemon.data_root))


def test_the_daemon_has_a_default_size(image: str) -> None:
    with Daemon("--storage-opt", "cove.size=16m") as daemon:
        daemon.load_image()
        code, told = in_container(daemon, image, "exec dd if=/dev/zero of=/big bs=1M count=40")
        assert code != 0 and "No space left on device" in told
        code, told = in_container(
            daemon, image, "exec dd if=/dev/zero of=/big bs=1M count=20", StorageOpt={"size": "40m"}
        )
        assert code == 0, told
        eventually(lambda: not loops(daemon.data_root))


def test_a_full_layer_is_told_as_full(daemon: Daemon, image: str) -> None:
    container = create(
        daemon, image, "sh", "-c", "dd if=/dev/zero of=/big bs=64k", StorageOpt={"size": "16m"}
    )
    start(daemon, container)
    assert wait(daemon, container) != 0
    rows = daemon.http("GET", "/cove/v1/disk").json()["Items"]
    (row,) = (row for row in rows if row["Kind"] == "container" and row["Id"] == container)
    assert row["Note"].startswith("full: may grow to 1")
    remove(daemon, container)
