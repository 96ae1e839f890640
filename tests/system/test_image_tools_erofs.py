"""EROFS images of layers: the same files as the layers' directories, the same bytes for the same layer."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.imagekit import (
    Dir,
    File,
    Hardlink,
    Symlink,
    Whiteout,
    busybox_layer,
    digest_of,
    make_docker_archive,
)
from tests.system.test_image_tools import BASE, SECOND, THIRD, cove, load

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="erofs-utils isn't installed"),
    pytest.mark.skipif(
        "erofs" not in Path("/proc/filesystems").read_text(), reason="this kernel has no EROFS"
    ),
]


@pytest.fixture(autouse=True)
def cleared(daemon: Daemon) -> Iterator[None]:
    yield
    for name in ("stacked:1", "other:1"):
        daemon.http("DELETE", f"/images/{name}?force=1")
    assert daemon.http("GET", "/cove/v1/images/check?deep=1").json()["Problems"] == []


def tree_of(root: Path) -> dict[str, tuple[object, ...]]:
    found = {}
    for above, directories, files in os.walk(root):
        for name in [*directories, *files]:
            path = Path(above, name)
            state = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(state.st_mode) else b""
            link = os.readlink(path) if stat.S_ISLNK(state.st_mode) else ""
            notes = {
                n: os.getxattr(path, n, follow_symlinks=False)
                for n in os.listxattr(path, follow_symlinks=False)
            }
            found[str(path.relative_to(root))] = (
                state.st_mode,
                state.st_uid,
                state.st_gid,
                state.st_mtime_ns,
                state.st_rdev,
                digest_of(content),
                link,
                notes,
            )
    return found


def made(daemon: Daemon, image: str) -> list[Path]:
    answer = daemon.http("POST", f"/cove/v1/images/erofs?image={image}")
    assert answer.status == 200, answer.body
    return [Path(path) for path in answer.json()["Layers"]]


def test_a_stack_of_images_shows_what_the_stack_of_directories_does(daemon: Daemon, tmp_path: Path) -> None:
    more = [
        File(
            "caps",
            b"x" * 5000,
            xattrs={"security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00" + "\x00" * 12},
        ),
        Hardlink("caps-too", "caps"),
        File("old", b"o", mtime=3.25),
        File("deep/" * 40 + "f", b"deep"),
    ]
    load(daemon, make_docker_archive([[*BASE, *more], SECOND, THIRD], names=["stacked:1"]))
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    assert cove(daemon, "image", "mount", "stacked:1", str(one)).returncode == 0
    done = cove(daemon, "image", "mount", "--erofs", "stacked:1", str(two))
    try:
        assert done.returncode == 0, done
        assert tree_of(one) == tree_of(two)
        assert (two / "caps").stat().st_ino == (two / "caps-too").stat().st_ino
        assert not (two / "app/old").exists() and os.listdir(two / "opaque") == []
        answer = daemon.http("DELETE", "/images/stacked:1")
        assert answer.status == 409 and "is mounted on" in answer.message
        mounts = Path("/proc/self/mountinfo").read_text()
        assert str(daemon.base) not in mounts, "the layers' own mounts are gone again"
    finally:
        for place in (one, two):
            subprocess.run(["umount", str(place)], check=False)


def test_an_image_is_made_once_reproducibly_and_goes_with_its_layer(daemon: Daemon) -> None:
    first_layer, second_layer = [*BASE], [Dir("app"), Dir("opaque"), *SECOND]
    load(daemon, make_docker_archive([first_layer, second_layer], names=["stacked:1"]))
    first = made(daemon, "stacked:1")
    assert len(first) == 2 and all(path.read_bytes()[1024:1028] == b"\xe2\xe1\xf5\xe0" for path in first)
    times = [path.stat().st_mtime_ns for path in first]
    assert made(daemon, "stacked:1") == first
    assert [path.stat().st_mtime_ns for path in first] == times, "they are kept"
    before = [digest_of(path.read_bytes()) for path in first]
    assert daemon.http("DELETE", "/images/stacked:1").status == 200
    assert not any(path.exists() for path in first)
    load(daemon, make_docker_archive([first_layer, second_layer], names=["stacked:1"]))
    again = made(daemon, "stacked:1")
    assert [digest_of(path.read_bytes()) for path in again] == before


def test_images_that_no_layer_has_go_at_the_next_start(fresh_daemon: Daemon) -> None:
    load(fresh_daemon, make_docker_archive([busybox_layer()], names=["other:1"]))
    (kept,) = made(fresh_daemon, "other:1")
    stray = kept.parent / "stray"
    stray.write_bytes(b"x")
    found = fresh_daemon.http("GET", "/cove/v1/images/check").json()["Problems"]
    assert [(one["What"], one["Name"]) for one in found] == [("erofs", "stray")]
    fresh_daemon.kill9()
    fresh_daemon.start()
    assert kept.exists() and not stray.exists()


def test_hostile_names_and_special_files_are_taken_as_they_are(daemon: Daemon, tmp_path: Path) -> None:
    layer = [
        Dir("d"),
        File("d/-rf"),
        File("d/new\nline", b"1"),
        File("d/quote'\"$(touch x)", b"2"),
        File("d/" + "n" * 254, b"3"),
        Symlink("d/loop", "loop"),
        Whiteout("d/gone"),
    ]
    load(daemon, make_docker_archive([[File("d/gone")], layer], names=["other:1"]))
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    try:
        assert cove(daemon, "image", "mount", "other:1", str(one)).returncode == 0
        assert cove(daemon, "image", "mount", "--erofs", "other:1", str(two)).returncode == 0
        assert tree_of(one) == tree_of(two) and len(tree_of(two)) == 6
    finally:
        for place in (one, two):
            subprocess.run(["umount", str(place)], check=False)


def test_without_mkfs_erofs_a_sentence_says_so(daemon: Daemon, tmp_path: Path) -> None:
    from cove.image import erofs
    from cove.image.sandbox import FileCalls
    from cove.image.tooljobs import BuildErofs
    from cove.model.errors import Unavailable

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(erofs.shutil, "which", lambda *_, **__: None)
        with pytest.raises(Unavailable, match="install erofs-utils"):
            erofs.build(BuildErofs(layer="/x", staging=str(tmp_path), image="e"), FileCalls())
