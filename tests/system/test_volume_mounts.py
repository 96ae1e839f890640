"""Volumes of the local driver's types: mounted at the first use, unmounted after the last, whoever dies between."""

from __future__ import annotations

import http.client
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.apikit import eventually
from tests.daemon import Daemon


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An image file with an empty ext4."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", path], check=True)
    yield path


def create(daemon: Daemon, name: str, **options: str) -> None:
    answer = daemon.http("POST", "/volumes/create", {"Name": name, "DriverOpts": options})
    assert answer.status == 201, answer.message


def remove(daemon: Daemon, *names: str) -> None:
    for name in names:
        assert daemon.http("DELETE", f"/volumes/{name}").status == 204


def run(daemon: Daemon, image: str, script: str, *binds: str) -> str:
    output = daemon.client.containers.run(image, ["sh", "-c", script], volumes=list(binds), remove=True)
    return str(output.decode())


def start(daemon: Daemon, image: str, *binds: str) -> Any:
    return daemon.client.containers.run(image, ["sleep", "600"], volumes=list(binds), detach=True)


def mounted(daemon: Daemon, name: str) -> list[str]:
    """The types of what is mounted at a volume's directory."""
    place = str(daemon.data_root / "volumes" / name / "_data")
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        if head.split()[4] == place:
            found.append(tail.split()[0])
    return found


def loops(disk: Path) -> list[str]:
    """The loop devices of an image file."""
    return [
        file.parent.parent.name
        for file in Path("/sys/block").glob("loop*/loop/backing_file")
        if file.read_text().strip() == str(disk)
    ]


def test_an_image_file_is_mounted_while_containers_use_it(daemon: Daemon, image: str, disk: Path) -> None:
    create(daemon, "disk", type="ext4", device=str(disk), o="loop,noatime")
    create(daemon, "again", type="ext4", device=str(disk), o="noatime")
    assert (
        run(daemon, image, "echo kept > /data/file; df -T /data | tail -n 1", "disk:/data").split()[1]
        == "ext4"
    )
    eventually(lambda: not mounted(daemon, "disk") and not loops(disk))
    first, second = start(daemon, image, "disk:/data"), start(daemon, image, "disk:/data", "again:/again")
    assert mounted(daemon, "disk") == mounted(daemon, "again") == ["ext4"]
    assert len(loops(disk)) == 1  # two would write past each other
    assert second.exec_run(["cat", "/data/file", "/again/file"]).output == b"kept\nkept\n"
    first.remove(force=True)
    assert mounted(daemon, "disk") == ["ext4"]
    second.remove(force=True)
    eventually(lambda: not mounted(daemon, "disk") and not mounted(daemon, "again"))
    eventually(lambda: not loops(disk))
    remove(daemon, "disk", "again")
    assert disk.exists()


def test_a_tmpfs_volume_is_shared_and_forgotten_with_its_last_user(daemon: Daemon, image: str) -> None:
    create(daemon, "memory", type="tmpfs", device="tmpfs", o="size=1m,mode=0750,uid=7")
    first, second = start(daemon, image, "memory:/m"), start(daemon, image, "memory:/m")
    assert first.exec_run(["sh", "-c", "echo hello > /m/x; stat -c %a-%u /m"]).output == b"750-7\n"
    assert second.exec_run(["cat", "/m/x"]).output == b"hello\n"
    assert second.exec_run(["dd", "if=/dev/zero", "of=/m/full", "bs=64k", "count=32"]).exit_code != 0
    first.remove(force=True)
    second.remove(force=True)
    assert run(daemon, image, "ls /m", "memory:/m") == ""
    remove(daemon, "memory")


def test_a_killed_daemon_finds_its_mounts_again(fresh_daemon: Daemon, image: str, disk: Path) -> None:
    daemon = fresh_daemon
    create(daemon, "stays", type="ext4", device=str(disk))
    create(daemon, "goes", type="tmpfs", device="tmpfs")
    stays, goes = start(daemon, image, "stays:/data"), start(daemon, image, "goes:/data")
    goes.reload()
    pid = goes.attrs["State"]["Pid"]
    daemon.kill9()
    os.kill(pid, 9)
    daemon.start()
    eventually(lambda: not mounted(daemon, "goes"))
    assert mounted(daemon, "stays") == ["ext4"]
    more = start(daemon, image, "stays:/data")
    stays.remove(force=True)
    assert mounted(daemon, "stays") == ["ext4"]
    more.remove(force=True)
    goes.remove(force=True)
    eventually(lambda: not mounted(daemon, "stays") and not loops(disk))
    remove(daemon, "stays", "goes")


def test_no_kill_of_the_daemon_leaks_a_mount(fresh_daemon: Daemon, image: str, disk: Path) -> None:
    """Killed again and again amid starts and ends, which mount and unmount."""
    daemon = fresh_daemon
    create(daemon, "amid", type="ext4", device=str(disk))
    body = {
        "Image": image,
        "Cmd": ["true"],
        "HostConfig": {"Binds": ["amid:/data:nocopy"], "NetworkMode": "none"},
    }

    def work(enough: threading.Event) -> None:
        for number in range(10_000):
            try:
                made = daemon.http("POST", "/containers/create", body).json()["Id"]
                daemon.http("POST", f"/containers/{made}/start")
                daemon.http("DELETE", f"/containers/{made}?force=1")
            except (OSError, http.client.HTTPException):
                return  # the daemon is gone
            if number == 1:
                enough.set()

    for turn in range(4):
        enough = threading.Event()
        workers = [threading.Thread(target=work, args=(enough,)) for _ in range(2)]
        for worker in workers:
            worker.start()
        assert enough.wait(60)
        time.sleep(0.013 * turn)  # at another step of the work each time
        daemon.kill9()
        for worker in workers:
            worker.join(60)
        daemon.start()
    for container in daemon.http("GET", "/containers/json?all=1").json():
        daemon.http("DELETE", f"/containers/{container['Id']}?force=1")
    eventually(lambda: not mounted(daemon, "amid") and not loops(disk))
    assert run(daemon, image, "ls -A /data", "amid:/data").split() == ["lost+found"]
    remove(daemon, "amid")


def test_files_of_a_stopped_container_are_on_its_volumes(daemon: Daemon, image: str, disk: Path) -> None:
    create(daemon, "cold", type="ext4", device=str(disk))
    container = daemon.client.containers.create(image, "true", volumes=["cold:/data"])
    assert container.put_archive("/data", tar_of("note", b"written cold"))
    eventually(lambda: not mounted(daemon, "cold") and not loops(disk))
    chunks, stat = container.get_archive("/data/note")
    assert stat["size"] == 12 and b"written cold" in b"".join(chunks)
    eventually(lambda: not mounted(daemon, "cold"))
    assert run(daemon, image, "cat /data/note", "cold:/data") == "written cold"
    container.remove()
    remove(daemon, "cold")


def tar_of(name: str, content: bytes) -> bytes:
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"type": "nfs", "device": ":/export", "o": "addr=127.0.0.1,vers=4"}, "type nfs"),
        ({"type": "ext4", "device": "/dev/no-such-disk"}, "/dev/no-such-disk: No such file or directory"),
        ({"type": "ext4", "device": "/dev/null"}, "expected a block device or an image file"),
        ({"type": "tmpfs", "device": "tmpfs", "o": "size=0x"}, "Bad value for 'size'"),
        ({"type": "nosuchfs", "device": "/dev/null"}, "no such file system"),
    ],
)
def test_what_the_kernel_refuses_is_told(
    daemon: Daemon, image: str, options: dict[str, str], told: str
) -> None:
    if options["type"] == "nosuchfs":
        options = {**options, "device": "/etc/hostname"}
    if options["type"] == "nfs" and "\tnfs\n" in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has NFS, and would ask the server")
    create(daemon, "refused", **options)
    container = daemon.client.containers.create(image, "true", volumes=["refused:/data"])
    answer = daemon.http("POST", f"/containers/{container.id}/start")
    assert answer.status == 500
    assert "error while mounting volume 'refused': failed to mount local volume" in answer.message
    assert told in answer.message
    container.remove()
    remove(daemon, "refused")


def test_a_password_is_shown_nowhere(daemon: Daemon, image: str) -> None:
    secret = "hunter2-of-the-share"
    options = {"type": "cifs", "device": "//127.0.0.1/share", "o": f"username=me,password={secret},vers=3.0"}
    create(daemon, "share", **options)
    mount = {
        "Type": "volume", "Source": "other", "Target": "/other",
        "VolumeOptions": {"DriverConfig": {"Name": "local", "Options": options}},
    }  # fmt: skip
    body = {
        "Image": image,
        "Cmd": ["true"],
        "HostConfig": {"Binds": ["share:/data:nocopy"], "Mounts": [mount]},
    }
    made = daemon.http("POST", "/containers/create", body).json()
    answers = [
        daemon.http("GET", "/volumes/share"),
        daemon.http("GET", "/volumes"),
        daemon.http("POST", f"/containers/{made['Id']}/start"),
        daemon.http("GET", f"/containers/{made['Id']}/json"),
        daemon.http(
            "POST", "/volumes/create", {"Name": "share", "DriverOpts": {**options, "o": "password=x"}}
        ),
    ]
    assert [answer.status for answer in answers] == [200, 200, 500, 200, 409]
    assert all(secret.encode() not in answer.body for answer in answers)
    assert answers[0].json()["Options"]["o"] == "username=me,password=****,vers=3.0"
    assert secret not in daemon.log_text()
    daemon.http("DELETE", f"/containers/{made['Id']}")
    remove(daemon, "share", "other")
