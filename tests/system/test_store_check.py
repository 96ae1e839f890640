"""The image store's checker: a store in order is said to be, and each thing that breaks is found by name."""

from __future__ import annotations

import asyncio
import gzip
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cove.image.checktypes import Report
from cove.image.images import Images
from cove.image.offline import check_data_root
from cove.store.sqlite import SqliteStore
from tests.daemon import IMAGE, ROOT, Daemon
from tests.imagekit import (
    Device,
    Dir,
    Entry,
    Fifo,
    File,
    Hardlink,
    Opaque,
    Symlink,
    Whiteout,
    chunks_of,
    make_docker_archive,
    make_layer,
)

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(os.geteuid() != 0, reason="unpacking gives files their owners, which takes root"),
]

LAYER: list[Entry] = [
    Dir("etc"),
    File("etc/motd", b"hello" * 1000, mode=0o640, uid=7, gid=8),
    File("etc/replaced", b"first"),
    File("etc/replaced", b"second"),
    Dir("gone"),
    File("gone/below", b"x"),
    Symlink("gone", "etc"),
    Hardlink("etc/again", "etc/motd"),
    Device("null", 1, 3),
    Fifo("pipe"),
    File("tool", b"#!", mode=0o4755, xattrs={"user.note": "yes"}),
]
UPPER: list[Entry] = [Whiteout("etc/motd"), Dir("var"), Opaque("var"), File("var/new", b"n" * 100)]


def loaded(root: Path, *archives: bytes) -> None:
    async def load() -> None:
        store = await SqliteStore.open(root / "state.db")
        images = await Images.open(root / "images", store)
        try:
            for archive in archives:
                async for _ in images.load(chunks_of(archive)):
                    pass
        finally:
            await images.close()
            await store.close()

    root.mkdir(exist_ok=True)
    asyncio.run(load())


def checked(root: Path, *, deep: bool = True) -> Report:
    """What the daemon's own check says, the store opened as it is."""

    async def check() -> Report:
        store = await SqliteStore.open(root / "state.db")
        images = await Images.open(root / "images", store)
        try:
            return await images.check(deep=deep)
        finally:
            await images.close()
            await store.close()

    return asyncio.run(check())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with a plain and a compressed image."""
    plain = make_docker_archive([LAYER, UPPER], names=["plain:1"])
    packed = make_docker_archive([[*LAYER, File("only-packed")]], names=["packed:1"], compress=gzip.compress)
    loaded(tmp_path / "data", plain, packed)
    return tmp_path / "data"


def test_a_store_in_order_has_no_problems(root: Path) -> None:
    for report in (checked(root), check_data_root(root, deep=True)):
        assert report.problems == ()
        assert (report.images, report.layers) == (2, 3)
        assert report.read_bytes > 20_000


def the_layer(root: Path, name: str) -> Path:
    return next(path / name for path in (root / "images/layers").iterdir() if os.path.lexists(path / name))


def packed(root: Path, name: str) -> Path:
    """A file of the layer that has a blob."""
    found = the_layer(root, "only-packed")
    return found.parent / name


def plain(root: Path, name: str) -> Path:
    """A file of the lower plain layer."""
    blob_layer = the_layer(root, "only-packed").parent
    layers = (path for path in (root / "images/layers").iterdir() if path != blob_layer)
    return next(path / name for path in layers if (path / "tool").exists())


def documents(root: Path) -> list[Path]:
    return sorted(p for p in (root / "images/blobs/sha256").iterdir() if p.read_bytes()[:1] == b"{")


def blob(root: Path) -> Path:
    return next(p for p in (root / "images/blobs/sha256").iterdir() if p.read_bytes()[:2] == b"\x1f\x8b")


def frame(root: Path) -> Path:
    return next(p for p in (root / "images/frames").iterdir() if p.is_file())


def in_store(root: Path, statement: str) -> None:
    with sqlite3.connect(root / "state.db") as database:
        database.execute(statement)
    database.close()


def keeping_times(path: Path, change: Callable[[Path], object]) -> None:
    found = path.stat()
    change(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# what breaks, kind, what, a piece of the text, whether it takes --deep to see it
BREAKS: dict[str, tuple[Callable[[Path], object], str, str, str, bool]] = {
    "document damaged": (lambda r: flip(documents(r)[0]), "damaged", "blob", "has the digest", False),
    "document lost": (lambda r: documents(r)[0].unlink(), "missing", "blob", "isn't there", False),
    "blob lost": (lambda r: blob(r).unlink(), "missing", "blob", "isn't there", False),
    "blob cut": (lambda r: os.truncate(blob(r), 100), "damaged", "blob", "has 100 bytes", False),
    "blob damaged": (lambda r: flip(blob(r)), "damaged", "layer", "", True),
    "frame lost": (lambda r: frame(r).unlink(), "missing", "frame", "isn't there", False),
    "frame damaged": (lambda r: os.truncate(frame(r), 40), "damaged", "layer", "", True),
    "layer lost": (
        lambda r: the_layer(r, "var").parent.rename(r / "images/trash/x"),
        "missing",
        "layer",
        "aren't there",
        False,
    ),
    "content of a plain layer": (
        lambda r: keeping_times(plain(r, "etc/motd"), flip),
        "damaged",
        "layer",
        "made again",
        True,
    ),
    "content beside a blob": (
        lambda r: keeping_times(packed(r, "etc/motd"), flip),
        "damaged",
        "layer",
        "'etc/motd': has another content",
        True,
    ),
    "owner": (lambda r: os.chown(plain(r, "etc/motd"), 1, 1), "damaged", "layer", "belongs to 1:1", True),
    "mode": (lambda r: os.chmod(plain(r, "tool"), 0o755), "damaged", "layer", "mode 755, not 4755", True),
    "attribute": (
        lambda r: os.setxattr(packed(r, "tool"), "user.note", b"no"),
        "damaged",
        "layer",
        "another attribute user.note",
        True,
    ),
    "a file more": (
        lambda r: packed(r, "etc/stranger").write_text("s"),
        "damaged",
        "layer",
        "'etc/stranger': is in no archive",
        True,
    ),
    "a file less": (lambda r: packed(r, "pipe").unlink(), "damaged", "layer", "'pipe': No such file", True),
    "a link elsewhere": (
        lambda r: (packed(r, "gone").unlink(), packed(r, "gone").symlink_to("tool")),
        "damaged",
        "layer",
        "points elsewhere",
        True,
    ),
    "loose blob": (
        lambda r: (r / "images/blobs/sha256" / ("0" * 64)).write_text("x"),
        "left",
        "blob",
        "no record",
        False,
    ),
    "loose layer": (lambda r: (r / "images/layers/stray").mkdir(), "left", "layer", "no record", False),
    "loose frame": (lambda r: (r / "images/frames/stray").touch(), "left", "frame", "no record", False),
    "loose staging": (lambda r: (r / "images/loading/t").mkdir(), "left", "staging", "no record", False),
    "a name for nothing": (
        lambda r: in_store(
            r, "UPDATE kv SET value = CAST('sha256:00' AS BLOB) WHERE key LIKE 'images/name/%plain%'"
        ),
        "dangling",
        "name",
        "plain:1 means",
        False,
    ),
    "a layer off the record": (
        lambda r: in_store(
            r, "DELETE FROM kv WHERE key = (SELECT min(key) FROM kv WHERE key LIKE 'images/layer/%')"
        ),
        "dangling",
        "image",
        "lacks the layer",
        False,
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_what_breaks_is_found(root: Path, case: str) -> None:
    broken, kind, what, text, deep = BREAKS[case]
    broken(root)
    report = check_data_root(root, deep=deep)
    found = [one for one in report.problems if (one.kind, one.what) == (kind, what) and text in one.text]
    assert found, report.problems
    assert bool(report.losses) == (kind != "left")
    if deep:
        assert not check_data_root(root).problems, "without deep nothing is read again"


def test_a_layer_that_went_from_the_disk_is_found_while_the_daemon_runs(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    assert daemon.http("GET", "/cove/v1/images/check?deep=1").json()["Problems"] == []
    layers = daemon.data_root / "images/layers"
    name = next(n for n in os.listdir(layers) if n != "0")
    (layers / name).rename(layers / "aside")
    found = daemon.http("GET", "/cove/v1/images/check").json()
    assert {(one["Kind"], one["What"]) for one in found["Problems"]} == {
        ("missing", "layer"),
        ("left", "layer"),
    }
    assert found["Lost"] == 1
    (layers / "aside").rename(layers / name)


def test_a_check_beside_loads_and_removals_sees_one_moment(fresh_daemon: Daemon) -> None:
    import threading

    stop = threading.Event()
    failures: list[str] = []

    def churn(number: int) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            layer = [File(f"f{n}", os.urandom(2000)) for n in range(50)]
            archive = make_docker_archive([layer], names=[f"churn{number}:{turn}"], compress=gzip.compress)
            headers = {"Content-Type": "application/x-tar"}
            answer = fresh_daemon.http("POST", "/images/load?quiet=1", archive, headers=headers)
            if b"error" in answer.body:
                failures.append(answer.body.decode())
            fresh_daemon.http("DELETE", f"/images/churn{number}:{turn}")

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(12):
            report = fresh_daemon.http("GET", f"/cove/v1/images/check?deep={turn % 2}").json()
            failures += [one["Text"] for one in report["Problems"]]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures


def cove(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "bin/cove"), "-H", daemon.host, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command_says_all_is_well_or_what_isnt(fresh_daemon: Daemon) -> None:
    done = cove(fresh_daemon, "image", "check", "--deep")
    assert done.returncode == 0 and "all is well" in done.stdout, done
    assert cove(fresh_daemon, "image", "check", "--format", "{{.Lost}}").stdout == "0\n"
    stray = fresh_daemon.data_root / "images/layers/stray"
    stray.mkdir()
    done = cove(fresh_daemon, "image", "check")
    assert done.returncode == 1 and "left: layers/stray is on no record" in done.stdout
    offline = subprocess.run(
        [sys.executable, "-m", "cove.image.offline", str(fresh_daemon.data_root), "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert offline.returncode == 1 and '"left"' in offline.stdout, offline
    stray.rmdir()


def test_a_kill_in_a_load_leaves_nothing_after_the_next_start(fresh_daemon: Daemon) -> None:
    layer = make_layer([File(f"f{n}", os.urandom(200_000)) for n in range(100)])
    archive = make_docker_archive([layer], names=["killed:1"])

    def pieces() -> object:
        for start in range(0, len(archive), 1 << 20):
            if start > len(archive) // 2:
                fresh_daemon.kill9()
                return
            yield archive[start : start + (1 << 20)]

    with pytest.raises(OSError):
        fresh_daemon.http("POST", "/images/load", pieces(), headers={"Content-Type": "application/x-tar"})
    fresh_daemon.start()
    assert fresh_daemon.http("GET", "/cove/v1/images/check?deep=1").json()["Problems"] == []
    assert check_data_root(fresh_daemon.data_root).problems == ()
    assert fresh_daemon.http("GET", f"/images/{IMAGE}/json").status == 200
