"""Dedupe: equal files of layers become one inode, and nothing that anybody can tell changes but the count of links."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cove.image.dedupe import Dedupe
from cove.image.tooljobs import Deduped
from tests.daemon import Daemon
from tests.imagekit import Dir, Entry, File, Hardlink, busybox_layer, make_docker_archive
from tests.system.test_image_tools import cove, files_of, load

BIG = b"equal" * 20_000


@pytest.fixture(autouse=True)
def cleared(daemon: Daemon) -> Iterator[None]:
    before = {image["Id"] for image in daemon.http("GET", "/images/json").json()}
    yield
    for found in daemon.http("GET", "/containers/json?all=1").json():
        daemon.http("DELETE", f"/containers/{found['Id']}?force=1")
    for image in daemon.http("GET", "/images/json?all=1").json():
        if image["Id"] not in before:
            daemon.http("DELETE", f"/images/{image['Id']}?force=1")
    assert daemon.http("GET", "/cove/v1/images/check?deep=1").json()["Problems"] == []


def layer(*more: Entry) -> list[Entry]:
    return [
        *busybox_layer(),
        Dir("d", mtime=1_600_000_000),
        File("d/equal", BIG),
        File("d/other-time", BIG, mtime=1_650_000_000 + len(more)),
        File("d/linked", BIG + b"l"),
        Hardlink("d/linked-too", "d/linked"),
        *more,
    ]


def dedupe(daemon: Daemon, **query: str) -> Any:
    asked = "&".join(f"{key.replace('_', '-')}={value}" for key, value in query.items())
    answer = daemon.http("POST", f"/cove/v1/images/dedupe?{asked}")
    assert answer.status == 200, answer.body
    return answer.json()


def inodes(daemon: Daemon, path: str) -> list[int]:
    layers = sorted((daemon.data_root / "images/layers").iterdir())
    return [(one / path).stat().st_ino for one in layers if (one / path).exists()]


def test_equal_files_share_an_inode_and_images_stay_what_they_are(daemon: Daemon) -> None:
    load(daemon, make_docker_archive([layer(File("one", b"1"))], names=["one:1"]))
    load(daemon, make_docker_archive([layer(File("two", b"2"), File("three", b"3"))], names=["two:1"]))
    before = files_of(daemon, "one:1"), files_of(daemon, "two:1")
    saved = daemon.http("GET", "/images/two:1/get").body
    expected = dedupe(daemon, dry_run="1")
    assert len(set(inodes(daemon, "d/equal"))) == 2, "a dry run changes nothing"
    found = dedupe(daemon)
    assert (found["Joined"], found["SavedSize"]) == (expected["Joined"], expected["SavedSize"])
    assert found["Joined"] >= 3 and found["SavedSize"] > len(BIG) + os.stat("/bin/busybox").st_size
    for name, count in (("d/equal", 1), ("etc/passwd", 1), ("d/other-time", 2), ("d/linked", 2)):
        assert len(set(inodes(daemon, name))) == count, name
    assert (files_of(daemon, "one:1"), files_of(daemon, "two:1")) == before
    assert daemon.http("GET", "/images/two:1/get").body == saved
    directory = next((daemon.data_root / "images/layers").glob("*/d"))
    assert directory.stat().st_mtime == 1_600_000_000
    again = dedupe(daemon)
    assert (again["Joined"], again["SavedSize"]) == (0, 0)
    assert daemon.http("DELETE", "/images/one:1").status == 200
    assert files_of(daemon, "two:1") == before[1], "the other image's removal takes names only"


def test_a_container_that_runs_keeps_its_files_and_writes_to_its_own(daemon: Daemon) -> None:
    load(daemon, make_docker_archive([layer(File("one", b"1"))], names=["one:1"]))
    load(daemon, make_docker_archive([layer(File("two", b"2"), File("three", b"3"))], names=["two:1"]))
    ids = {}
    for name in ("one:1", "two:1"):
        body = {"Image": name, "Cmd": ["sleep", "600"], "HostConfig": {"NetworkMode": "none"}}
        ids[name] = daemon.http("POST", "/containers/create", body).json()["Id"]
        assert daemon.http("POST", f"/containers/{ids[name]}/start").status == 204
    found = dedupe(daemon)
    assert found["InUse"] >= 3 and len(set(inodes(daemon, "d/equal"))) == 2
    daemon.http("DELETE", f"/containers/{ids['two:1']}?force=1")
    kept = inodes(daemon, "d/equal")
    dedupe(daemon)
    (joined,) = set(inodes(daemon, "d/equal"))
    assert joined in kept
    script = "echo changed >>/d/equal; tail -c 8 /d/equal; ls /d"
    done = cove(daemon, "exec", ids["one:1"], "sh", "-c", script)
    assert done.stdout.startswith("changed\n"), done
    done = cove(daemon, "run", "--rm", "--network", "none", "two:1", "sh", "-c", "tail -c 5 /d/equal")
    assert done.stdout == "equal", done


def test_a_kill_in_between_loses_nothing(fresh_daemon: Daemon) -> None:
    import threading

    files = [File(f"many/{n}", b"x" * 5000 + str(n).encode()) for n in range(4000)]
    load(fresh_daemon, make_docker_archive([[Dir("many"), *files, File("a", b"a")]], names=["one:1"]))
    load(fresh_daemon, make_docker_archive([[Dir("many"), *files, File("b", b"b")]], names=["two:1"]))

    def ask() -> None:
        try:
            fresh_daemon.http("POST", "/cove/v1/images/dedupe")
        except OSError:
            pass

    thread = threading.Thread(target=ask)
    thread.start()
    layers = fresh_daemon.data_root / "images/layers"
    while not any(os.stat(found).st_nlink > 1 for found in layers.glob("*/many/1*")):
        pass
    fresh_daemon.kill9()
    thread.join()
    fresh_daemon.start()
    report = fresh_daemon.http("GET", "/cove/v1/images/check?deep=1").json()
    assert report["Problems"] == []
    linked = sum(os.stat(found).st_nlink > 1 for found in layers.glob("*/many/*"))
    assert 0 < linked < 8000
    found = dedupe(fresh_daemon)
    assert found["Joined"] == 4000 - linked // 2
    assert fresh_daemon.http("GET", "/cove/v1/images/check?deep=1").json()["Problems"] == []


def test_by_itself_after_a_load_where_the_key_says_so() -> None:
    import time

    with Daemon("--dedupe") as daemon:
        load(daemon, make_docker_archive([layer(File("one", b"1"))], names=["one:1"]))
        load(daemon, make_docker_archive([layer(File("two", b"2"), File("three", b"3"))], names=["two:1"]))
        deadline = time.monotonic() + 20
        while len(set(inodes(daemon, "d/equal"))) > 1:
            assert time.monotonic() < deadline, daemon.log_text()
            time.sleep(0.1)
        assert daemon.http("GET", "/cove/v1/images/check?deep=1").json()["Problems"] == []


# --- the module alone -----------------------------------------------------------------------


def joined(roots: list[Path], staging: Path, **more: Any) -> Deduped:
    staging.mkdir(exist_ok=True)
    opened = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in [*roots, staging]]
    try:
        work = Dedupe(
            roots=opened[:-1],
            mounted=more.get("mounted", frozenset()),
            fresh=more.get("fresh"),
            staging=opened[-1],
        )
        return work.run()
    finally:
        for fd in opened:
            os.close(fd)


def write(path: Path, data: bytes = BIG, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    os.utime(path, (1, 1))


@pytest.mark.parametrize("differs", ["mode", "owner", "time", "content", "attribute", "capability", "kind"])
def test_files_that_differ_in_anything_stay_two(tmp_path: Path, differs: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write(one / "f")
    write(
        two / "f",
        BIG[:-1] + b"!" if differs == "content" else BIG,
        mode=0o600 if differs == "mode" else 0o644,
    )
    if differs == "owner":
        os.chown(two / "f", 1, 1)
    if differs == "time":
        os.utime(two / "f", (2, 2))
    if differs == "attribute":
        os.setxattr(two / "f", "user.x", b"1")
    if differs == "capability":
        os.setxattr(
            two / "f", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000")
        )
    if differs == "kind":
        (two / "f").unlink()
        (two / "f").symlink_to("../one/f")
    assert joined([one, two], tmp_path / "staging").joined == 0
    assert os.listdir(tmp_path / "staging") == []


def test_three_layers_and_a_fresh_one(tmp_path: Path) -> None:
    roots = [tmp_path / name for name in "abc"]
    for root in roots:
        write(root / "deep/er/f")
        write(root / "empty", b"")
    assert joined(roots, tmp_path / "s", fresh=frozenset()).files == 0
    assert joined(roots[:2], tmp_path / "s").joined == 1
    mounted = joined(roots, tmp_path / "s", mounted=frozenset({2}), fresh=frozenset({2}))
    assert (mounted.joined, mounted.kept) == (2, 0)
    assert len({(root / "deep/er/f").stat().st_ino for root in roots}) == 1
    assert len({(root / "empty").stat().st_ino for root in roots}) == 3, "empty files take no blocks"


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_extents_are_shared_where_the_file_system_can(tmp_path: Path, kind: str) -> None:
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"there is no mkfs.{kind} here")
    if f"\t{kind}\n" not in Path("/proc/filesystems").read_text():
        pytest.skip(f"this kernel has no {kind}")
    image, place = tmp_path / "image", tmp_path / "mnt"
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(512 << 20)
    subprocess.run([f"mkfs.{kind}", "-q", str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        write(place / "one/f", BIG * 10)
        write(place / "two/f", BIG * 10)
        os.sync()
        found = joined([place / "one", place / "two"], place / "staging")
        assert found.how == "extents" and found.saved_bytes >= len(BIG) * 10 - 65536
        assert (place / "one/f").stat().st_ino != (place / "two/f").stat().st_ino
    finally:
        subprocess.run(["umount", str(place)], check=True)
