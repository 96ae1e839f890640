"""Image tools: where bytes are, what differs, one layer of many, an image mounted on the host."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import ROOT, Daemon
from tests.imagekit import (
    Dir,
    Entry,
    File,
    Hardlink,
    Opaque,
    Symlink,
    Whiteout,
    busybox_layer,
    digest_of,
    make_docker_archive,
    make_layer,
)

TAR = {"Content-Type": "application/x-tar"}
BASE: list[Entry] = [
    *busybox_layer(),
    Dir("app"),
    File("app/big", b"b" * 100_000),
    File("app/small", b"s" * 10),
    File("app/old", b"o" * 20_000),
    Dir("opaque"),
    File("opaque/hidden", b"h" * 30_000),
    File("becomes-dir", b"file"),
    Dir("becomes-file"),
    File("becomes-file/inside", b"i" * 500),
]
SECOND: list[Entry] = [
    File("app/big", b"B" * 50_000, mode=0o600),
    Whiteout("app/old"),
    Opaque("opaque"),
    File("opaque/new", b"n" * 40),
    Dir("becomes-dir"),
    File("becomes-dir/inside", b"x"),
    File("becomes-file", b"file now"),
]
THIRD: list[Entry] = [
    File("app/big", b"third", xattrs={"user.note": "kept"}),
    Hardlink("app/again", "app/big"),
    Symlink("app/link", "big"),
    Whiteout("opaque/new"),
]


def load(daemon: Daemon, archive: bytes) -> None:
    answer = daemon.http("POST", "/images/load?quiet=1", archive, headers=TAR)
    assert b'"error"' not in answer.body, answer.body


@pytest.fixture(autouse=True)
def cleared(daemon: Daemon) -> Iterator[None]:
    """Images of a test go after it; the store is in order then."""
    before = {image["Id"] for image in daemon.http("GET", "/images/json").json()}
    yield
    for image in daemon.http("GET", "/images/json?all=1").json():
        if image["Id"] not in before:
            daemon.http("DELETE", f"/images/{image['Id']}?force=1")
    assert daemon.http("GET", "/cove/v1/images/check?deep=1").json()["Problems"] == []


@pytest.fixture
def stacked(daemon: Daemon) -> str:
    load(daemon, make_docker_archive([BASE, SECOND, THIRD], names=["stacked:1"]))
    return "stacked:1"


def cove(daemon: Daemon, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "bin/cove"), "-H", daemon.host, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **more)


def files_of(daemon: Daemon, image: str) -> dict[str, tuple[Any, ...]]:
    """What a container of the image sees: kind, mode, owner, link and content by name."""
    created = daemon.http("POST", "/containers/create", {"Image": image, "Cmd": ["true"]}).json()["Id"]
    try:
        data = daemon.http("GET", f"/containers/{created}/export").body
    finally:
        daemon.http("DELETE", f"/containers/{created}")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {
            m.name: (
                m.type,
                m.mode,
                m.uid,
                m.linkname,
                m.mtime if m.isfile() else 0,
                digest_of(archive.extractfile(m).read()) if m.isfile() else "",  # type: ignore[union-attr]
                {k: v for k, v in m.pax_headers.items() if k.startswith("SCHILY")},
            )
            for m in archive
        }


def inspect(daemon: Daemon, image: str) -> Any:
    return daemon.http("GET", f"/images/{image}/json").json()


# --- tree -----------------------------------------------------------------------------------


def test_a_survey_counts_every_byte_once_and_names_what_is_wasted(daemon: Daemon, stacked: str) -> None:
    found = daemon.http("GET", f"/cove/v1/images/survey?image={stacked}").json()
    assert found["Size"] == inspect(daemon, stacked)["Size"]
    assert [layer["Size"] for layer in found["Layers"]][1:] == [50_000 + 40 + 1 + 8, 5]
    wasted = {(row["Path"], row["Layer"], row["By"], row["How"], row["Size"]) for row in found["Wasted"]}
    assert wasted == {
        ("/app/big", 1, 2, "replaced", 100_000),
        ("/app/big", 2, 3, "replaced", 50_000),
        ("/app/old", 1, 2, "deleted", 20_000),
        ("/opaque", 1, 2, "replaced", 30_000),
        ("/opaque/new", 2, 3, "deleted", 40),
        ("/becomes-dir", 1, 2, "replaced", 4),
        ("/becomes-file", 1, 2, "replaced", 500),
    }
    assert found["WastedSize"] == sum(row[-1] for row in wasted)
    assert found["Efficiency"] == round(1 - found["WastedSize"] / found["Size"], 4)
    assert [layer["Deletions"] for layer in found["Layers"]] == [0, 1, 1]
    largest = found["Layers"][0]["Largest"]
    assert largest[1] == {"Path": "/app/big", "Size": 100_000}
    assert {"Path": "/app", "Size": 120_010} in found["Layers"][0]["Directories"]


def test_the_tree_shows_which_images_share_layers(daemon: Daemon, stacked: str) -> None:
    load(daemon, make_docker_archive([BASE, [File("other", b"o" * 7)]], names=["sibling:1"]))
    top = daemon.http("GET", "/cove/v1/images/tree").json()
    base = next(node for node in top["Layers"] if node["DiffId"] == digest_of(make_layer(BASE)))
    assert base["Images"] == [] and len(base["Above"]) == 2
    sibling = next(node for node in base["Above"] if node["Images"])
    assert sibling["Images"][0]["Names"] == ["sibling:1"] and sibling["Images"][0]["UniqueSize"] == 7
    shown = cove(daemon, "image", "tree").stdout
    assert "├─ " in shown and "└─ " in shown and "● sibling:1" in shown
    survey = cove(daemon, "image", "tree", "stacked:1", "--top", "2").stdout
    assert "shared with sibling:1" in survey and "/app/big  in 1, replaced by 2" in survey


# --- diff -----------------------------------------------------------------------------------


def test_a_diff_names_each_file_and_setting(daemon: Daemon, stacked: str) -> None:
    other = [*BASE, File("added", b"123"), File("etc/group", b"root:x:0:\n", uid=9)]
    config = {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/bin:/bin", "MODE=fast"], "Labels": {"tier": "web"}}
    load(daemon, make_docker_archive([other], names=["other:1"], config=config))
    load(daemon, make_docker_archive([BASE], names=["base:1"]))
    found = daemon.http("GET", "/cove/v1/images/diff?from=base:1&to=other:1").json()
    assert [(one["Path"], one["Kind"], one["What"]) for one in found["Files"]] == [
        ("/added", "added", []),
        ("/etc/group", "changed", ["content", "owner"]),
    ]
    assert found["Config"] == [
        {"Key": "Env.MODE", "Before": None, "After": "fast"},
        {"Key": "Labels.tier", "Before": None, "After": "web"},
    ]
    found = daemon.http("GET", f"/cove/v1/images/diff?from=base:1&to={stacked}").json()
    changes = {one["Path"]: (one["Kind"], *one["What"]) for one in found["Files"]}
    assert changes == {
        "/app/again": ("added",),
        "/app/big": ("changed", "content", "attributes"),
        "/app/link": ("added",),
        "/app/old": ("removed",),
        "/becomes-dir": ("changed", "type"),
        "/becomes-dir/inside": ("added",),
        "/becomes-file": ("changed", "type"),
        "/becomes-file/inside": ("removed",),
        "/opaque/hidden": ("removed",),
    }
    done = cove(daemon, "image", "diff", "--exit-code", "base:1", "other:1")
    assert done.returncode == 1
    assert "A /added  +3B" in done.stdout and 'Env.MODE: null -> "fast"' in done.stdout
    assert cove(daemon, "image", "diff", "--exit-code", "base:1", "base:1").returncode == 0


# --- squash ---------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_squashed_image_has_the_same_files_in_fewer_layers(
    daemon: Daemon, stacked: str, first: int
) -> None:
    done = cove(daemon, "image", "squash", stacked, "-t", "flat:1", "--from", str(first))
    assert done.returncode == 0, done
    before, after = inspect(daemon, stacked), inspect(daemon, "flat:1")
    assert after["Id"] == done.stdout.strip()
    assert len(after["RootFS"]["Layers"]) == first
    assert after["RootFS"]["Layers"][: first - 1] == before["RootFS"]["Layers"][: first - 1]
    assert after["Config"] == before["Config"]
    assert files_of(daemon, "flat:1") == files_of(daemon, stacked)
    assert daemon.http("GET", f"/cove/v1/images/diff?from={stacked}&to=flat:1").json()["Files"] == []
    again = cove(daemon, "image", "squash", stacked, "--from", str(first))
    assert again.stdout == done.stdout, "the same image gives the same image"
    history = daemon.http("GET", "/images/flat:1/history").json()
    assert len(history) == 4 and before["Id"] in history[0]["Comment"]
    if first == 1:
        wasted = daemon.http("GET", "/cove/v1/images/survey?image=flat:1").json()
        assert wasted["WastedSize"] == 0 and after["Size"] < before["Size"] - 150_000


def test_what_an_opaque_directory_hides_has_no_whiteouts_in_it(daemon: Daemon, stacked: str) -> None:
    """Overlayfs shows whiteouts in the listing of a directory that it doesn't merge."""
    doubly: list[Entry] = [
        Opaque("opaque"),
        File("opaque/kept"),
        Whiteout("opaque/hidden"),
        Whiteout("app/old"),
    ]
    load(daemon, make_docker_archive([BASE, doubly], names=["doubly:1"]))
    assert cove(daemon, "image", "squash", stacked, "-t", "flat:1", "--from", "2").returncode == 0
    for image, names in (("doubly:1", "kept\n"), ("flat:1", "")):
        done = cove(daemon, "run", "--rm", "--network", "none", image, "ls", "-l", "/opaque", "/app")
        assert done.returncode == 0 and "old" not in done.stdout and done.stderr == "", done
        done = cove(daemon, "run", "--rm", "--network", "none", image, "ls", "/opaque")
        assert done.stdout == names, done


def test_squash_refuses_a_layer_that_isnt_there_and_a_bad_name(daemon: Daemon, stacked: str) -> None:
    answer = daemon.http("POST", f"/cove/v1/images/squash?image={stacked}&from=4")
    assert answer.status == 400 and "has 3 layers" in answer.message
    assert daemon.http("POST", f"/cove/v1/images/squash?image={stacked}&tag=A/B").status == 400
    assert daemon.http("POST", "/cove/v1/images/squash").status == 400
    assert daemon.http("POST", "/cove/v1/images/squash?image=nobody:1").status == 404


# --- mount ----------------------------------------------------------------------------------


def test_an_image_is_mounted_by_whoever_asks_and_cant_go_meanwhile(
    daemon: Daemon, stacked: str, tmp_path: Path
) -> None:
    target = tmp_path / "mnt with space"
    target.mkdir()
    done = cove(daemon, "image", "mount", stacked, str(target))
    assert (done.returncode, done.stdout) == (0, f"{target}\n"), done
    try:
        assert (target / "app/big").read_bytes() == b"third"
        assert not (target / "app/old").exists() and os.listdir(target / "opaque") == []
        with pytest.raises(OSError, match="Read-only"):
            (target / "new").touch()
        listed = cove(daemon, "image", "mount", "--format", "{{.Mountpoint}}").stdout
        assert str(target) in listed
        for path in (f"/images/{stacked}", f"/images/{stacked}?force=1"):
            answer = daemon.http("DELETE", path)
            assert answer.status == 409 and f"is mounted on {target}" in answer.message
        pruned = daemon.http("POST", '/images/prune?filters={"dangling":["false"]}').json()
        removed = json.dumps(pruned["ImagesDeleted"])
        assert "stacked" not in removed
    finally:
        done = cove(daemon, "image", "unmount", stacked)
    assert (done.returncode, done.stdout) == (0, f"{target}\n"), done
    assert os.listdir(target) == []
    assert cove(daemon, "image", "unmount", str(target)).returncode == 1
    assert daemon.http("DELETE", f"/images/{stacked}").status == 200
    daemon.load_image()


def test_an_image_of_one_layer_and_one_of_none_are_mounted_too(daemon: Daemon, tmp_path: Path) -> None:
    load(daemon, make_docker_archive([[File("only", b"1")]], names=["single:1"]))
    load(daemon, make_docker_archive([], names=["empty:1"]))
    for name, files in (("single:1", ["only"]), ("empty:1", [])):
        done = cove(daemon, "image", "mount", name, str(tmp_path))
        assert done.returncode == 0, done
        try:
            assert os.listdir(tmp_path) == files
        finally:
            assert cove(daemon, "image", "unmount", str(tmp_path)).returncode == 0
    done = cove(daemon, "image", "mount", "single:1", str(tmp_path / "nowhere"))
    assert done.returncode == 1 or done.returncode == 125
    assert "expected a directory" in done.stderr
