"""The data root on a full disk: one sentence each, nothing half-made, and all is well again once there is space."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apikit import create, eventually, exists, inspect, logs, remove, run, start, state, wait
from tests.consistency import check_consistent, find_supervisors
from tests.daemon import Daemon
from tests.imagekit import File, make_docker_archive

_ENDLESS = ("sleep", "100000")


class Disk:
    """A small ext4 on a loop device, so that it fills as disks do."""

    def __init__(self, image: Path, mountpoint: Path) -> None:
        self._filler = mountpoint / "filler"
        self.mountpoint = mountpoint
        with open(image, "wb") as file:
            file.truncate(112 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-N", "2000", image], check=True)
        mountpoint.mkdir()
        subprocess.run(["mount", "-o", "loop", image, mountpoint], check=True)

    def fill(self) -> None:
        """Not a block is left."""
        with open(self._filler, "ab", buffering=0) as file:
            size = 1 << 20
            while size >= 512:
                try:
                    if file.write(b"x" * size) < size:
                        size //= 2
                except OSError:
                    size //= 2
            os.fsync(file.fileno())

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Daemon, Disk]]:
    """A daemon with a data root on a disk that can be filled."""
    daemon = Daemon()
    daemon.data_root = tmp_path / "data"
    small = Disk(tmp_path / "disk.img", daemon.data_root)
    try:
        with daemon:
            daemon.load_image()
            yield daemon, small
            small.free()
    finally:
        subprocess.run(["umount", small.mountpoint], check=True)


def test_a_full_disk_is_told_and_leaves_nothing_half_made(disk: tuple[Daemon, Disk], image: str) -> None:
    daemon, small = disk
    waiting = create(daemon, image, *_ENDLESS, NetworkMode="bridge", PortBindings={"80/tcp": [{}]})
    running = run(daemon, image, "sh", "-c", "while :; do echo x; sleep 0.05; done")
    ends = run(daemon, image, *_ENDLESS)
    goes = run(daemon, image, *_ENDLESS)
    small.fill()
    body = {
        "Image": image,
        "Cmd": [*_ENDLESS],
        "HostConfig": {"NetworkMode": "none"},
        "Volumes": {"/data": {}},
    }
    big = make_docker_archive([[File("big", os.urandom(1 << 20))]], names=["big:1"])
    tar = {"Content-Type": "application/x-tar"}

    refused = daemon.http("POST", "/containers/create?name=nope", body)
    assert refused.status == 500 and told(refused.message), refused.message
    refused = daemon.http("POST", "/volumes/create", {"Name": "nope"})
    assert refused.status == 500 and told(refused.message), refused.message
    refused = daemon.http("POST", "/images/load?quiet=1", big, headers=tar)
    assert refused.status == 200 and told(refused.json()["error"]), (
        refused.body
    )  # in the stream, as Docker does
    started = daemon.http("POST", f"/containers/{waiting}/start")
    if started.status != 204:  # its files were made before
        assert started.status == 500 and told(started.message), started.message
        assert state(daemon, waiting)["Status"] == "created"
    made = daemon.http("POST", "/networks/create", {"Name": "nope"})
    assert made.status == 201 or (made.status == 500 and told(made.message))
    assert not exists(daemon, "nope")
    assert state(daemon, running)["Status"] == "running"

    # What has ended has ended, whether or not that could be written; and space can be made with the daemon.
    assert daemon.http("POST", f"/containers/{ends}/kill").status == 204
    assert wait(daemon, ends) == 137
    gone = daemon.http("DELETE", f"/containers/{goes}?force=1")
    assert gone.status == 204, gone.message

    small.free()
    eventually(lambda: state(daemon, ends)["Status"] == "exited", "the exit, recorded")
    if made.status == 201:
        assert daemon.http("DELETE", "/networks/nope").status == 204
    check_consistent(daemon)
    start(daemon, ends)
    assert daemon.http("POST", f"/containers/{waiting}/start").status in (204, 304)
    assert daemon.http("POST", "/volumes/create", {"Name": "nope"}).status == 201
    assert daemon.http("DELETE", "/volumes/nope").status == 204
    answer = daemon.http("POST", "/images/load?quiet=1", big, headers=tar)
    assert answer.status == 200 and b'"error"' not in answer.body, answer.body
    assert daemon.http("DELETE", "/images/big:1").status == 200
    length = len(logs(daemon, running))
    eventually(lambda: len(logs(daemon, running)) > length, "output in the log again")
    check_consistent(daemon)
    remove(daemon, waiting, running, ends)
    check_consistent(daemon)


def told(message: str) -> bool:
    """One sentence that says what is missing."""
    return ("No space left on device" in message or "disk is full" in message) and "\n" not in message


def test_a_daemon_starts_on_a_full_disk_and_finds_what_ended(disk: tuple[Daemon, Disk], image: str) -> None:
    daemon, small = disk
    lives = run(daemon, image, *_ENDLESS, NetworkMode="bridge")
    ended = run(daemon, image, *_ENDLESS)
    pid = state(daemon, lives)["Pid"]
    small.fill()
    daemon.kill9()
    [victim] = [s for s in find_supervisors(daemon) if s.title == ended]
    os.kill(victim.children[0], signal.SIGKILL)
    daemon.start()
    assert state(daemon, lives)["Pid"] == pid
    small.free()
    eventually(lambda: state(daemon, ended)["Status"] == "exited", "the exit, recorded")
    assert state(daemon, ended)["ExitCode"] == 137
    check_consistent(daemon)
    assert inspect(daemon, lives)["State"]["Running"]
    remove(daemon, lives, ended)
    check_consistent(daemon)
