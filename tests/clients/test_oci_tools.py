"""skopeo and umoci of Debian read what Cove saves, and Cove loads what they write."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.dockercli import clean
from tests.imagekit import Dir, File, Hardlink, Opaque, Symlink, Whiteout, busybox_layer, make_docker_archive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.daemon import Daemon

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(
        not (shutil.which("skopeo") and shutil.which("umoci")), reason="skopeo or umoci isn't installed"
    ),
]
NAME = "tools/app:1"
# A capability as setcap writes it: version 2, cap_net_bind_service, effective.
CAPABILITY = b"\1\0\0\2\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0".decode("latin-1")
LAYERS = [
    busybox_layer(),
    [
        Dir("data"),
        File("data/plain", b"plain\n", uid=1000, gid=1001, mode=0o640),
        Hardlink("data/linked", "data/plain"),
        File("data/gone", b"gone"),
        Dir("data/sub"),
        File("data/sub/hidden", b"hidden"),
        File("data/suid", b"#!/bin/sh\n", mode=0o4755),
        Symlink("data/link", "plain"),
        File("data/capable", b"x", mode=0o755, xattrs={"security.capability": CAPABILITY}),
        File("data/ünï cödé", b"name"),
        Dir("data/sticky", mode=0o1777),
    ],
    [Dir("data"), Whiteout("data/gone"), Dir("data/sub"), Opaque("data/sub"), File("data/sub/new", b"new")],
]


@pytest.fixture
def archive(daemon: Daemon) -> Iterator[bytes]:
    """The image as `docker save` gives it."""
    daemon.client.images.load(make_docker_archive(LAYERS, names=[NAME]))
    yield b"".join(daemon.client.images.get(NAME).save(named=True))
    clean(daemon.client)


def tool(*argv: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(a) for a in argv], capture_output=True, text=True, timeout=100, cwd=cwd, check=False
    )
    assert done.returncode == 0, f"{argv}: {done.stderr[-800:]}"
    return done.stdout


def skopeo(*argv: str | Path) -> str:
    return tool("skopeo", "--insecure-policy", *argv)


Facts = dict[str, tuple[Any, ...]]


def facts(tar: tarfile.TarFile) -> Facts:
    """What is below data/: kind, mode, owner, time, content or target, attributes."""
    found: Facts = {}
    for member in tar.getmembers():
        name = member.name.removeprefix("./").removeprefix("rootfs/").rstrip("/")
        if not name.startswith("data"):
            continue
        file = tar.extractfile(member) if member.isreg() or member.islnk() else None
        content = file.read() if file is not None else member.linkname if member.issym() else ""
        kind = "file" if member.isreg() or member.islnk() else member.type.decode()
        found[name] = (kind, member.mode & 0o7777, member.uid, member.gid, int(member.mtime), content)
    return found


def files_in_cove(daemon: Daemon, reference: str) -> Facts:
    container = daemon.client.containers.create(reference, "true")
    try:
        stream = b"".join(container.get_archive("/data")[0])
    finally:
        container.remove()
    with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
        return facts(tar)


def files_unpacked(bundle: Path) -> Facts:
    done = subprocess.run(
        ["tar", "-C", str(bundle), "--format=pax", "-cf", "-", "rootfs/data"], capture_output=True, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        return facts(tar)


def packed(layout: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(layout, arcname=".")
    return buffer.getvalue()


def test_what_is_in_the_image_is_what_the_test_thinks(daemon: Daemon, archive: bytes) -> None:
    found = files_in_cove(daemon, NAME)
    assert set(found) == {
        "data", "data/plain", "data/linked", "data/sub", "data/sub/new", "data/suid", "data/link",
        "data/capable", "data/ünï cödé", "data/sticky",
    }  # fmt: skip
    assert found["data/plain"][:4] == ("file", 0o640, 1000, 1001) and found["data/suid"][1] == 0o4755
    assert found["data/linked"][5] == found["data/plain"][5] == b"plain\n"


def test_skopeo_and_umoci_read_what_cove_saves(daemon: Daemon, archive: bytes, tmp_path: Path) -> None:
    saved = tmp_path / "saved.tar"
    saved.write_bytes(archive)
    image = daemon.client.images.get(NAME)
    seen = json.loads(skopeo("inspect", "--config", f"docker-archive:{saved}"))
    assert seen["rootfs"]["diff_ids"] == image.attrs["RootFS"]["Layers"]
    skopeo("copy", f"docker-archive:{saved}", f"oci:{tmp_path}/copied:app")
    layout = tmp_path / "layout"
    layout.mkdir()
    tool("tar", "-C", layout, "-xf", saved)
    assert json.loads(skopeo("inspect", "--config", f"oci:{layout}:{image_name(layout)}")) == seen
    expected = files_in_cove(daemon, NAME)
    bundle = tmp_path / "bundle"
    tool("umoci", "unpack", "--image", f"{tmp_path}/copied:app", bundle)
    assert files_unpacked(bundle) == expected
    assert os.getxattr(bundle / "rootfs/data/capable", "security.capability") == CAPABILITY.encode("latin-1")


def image_name(layout: Path) -> str:
    """The name that the layout's index gives its image."""
    index = json.loads((layout / "index.json").read_text())
    return str(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"])


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_cove_loads_what_skopeo_writes(daemon: Daemon, archive: bytes, tmp_path: Path, form: str) -> None:
    saved = tmp_path / "saved.tar"
    saved.write_bytes(archive)
    before = files_in_cove(daemon, NAME)
    layout = tmp_path / "layout"
    skopeo("copy", "--dest-compress-format", form, f"docker-archive:{saved}", f"oci:{layout}:tools/again:2")
    manifest = next(
        json.loads(blob.read_bytes())
        for blob in (layout / "blobs/sha256").iterdir()
        if blob.stat().st_size < 5000 and b"layers" in blob.read_bytes()
    )
    kinds = {layer["mediaType"].rpartition("+")[2] for layer in manifest["layers"]}
    daemon.client.images.remove(NAME, force=True)
    daemon.client.images.load(packed(layout))
    loaded = daemon.client.images.get("tools/again:2")
    assert kinds == {form}
    assert files_in_cove(daemon, loaded.id) == before
    assert daemon.client.containers.run(loaded.id, ["cat", "/data/sub/new"], remove=True) == b"new"


def test_cove_loads_a_docker_archive_of_skopeo(daemon: Daemon, archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "saved.tar").write_bytes(archive)
    before = files_in_cove(daemon, NAME)
    skopeo(
        "copy", f"docker-archive:{tmp_path}/saved.tar", f"docker-archive:{tmp_path}/again.tar:tools/again:3"
    )
    daemon.client.images.remove(NAME, force=True)
    daemon.client.images.load((tmp_path / "again.tar").read_bytes())
    assert files_in_cove(daemon, "tools/again:3") == before


def test_cove_loads_what_umoci_makes(daemon: Daemon, archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "saved.tar").write_bytes(archive)
    layout = tmp_path / "layout"
    skopeo("copy", f"docker-archive:{tmp_path}/saved.tar", f"oci:{layout}:made")
    (tmp_path / "motd").write_text("inserted\n")
    tool("umoci", "insert", "--image", f"{layout}:made", tmp_path / "motd", "/data/motd")
    bundle = tmp_path / "bundle"
    tool("umoci", "unpack", "--image", f"{layout}:made", bundle)
    (bundle / "rootfs/data/plain").unlink()
    (bundle / "rootfs/data/repacked").write_text("repacked\n")
    tool("umoci", "repack", "--image", f"{layout}:made", bundle)
    tool("umoci", "config", "--image", f"{layout}:made", "--config.cmd", "cat", "--config.cmd", "/data/motd")
    tool("umoci", "gc", "--layout", layout)
    daemon.client.images.remove(NAME, force=True)
    (loaded,) = daemon.client.images.load(packed(layout))
    assert daemon.client.containers.run(loaded.id, remove=True) == b"inserted\n"
    found = files_in_cove(daemon, loaded.id)
    assert found["data/repacked"][5] == b"repacked\n" and "data/plain" not in found
    assert found["data/linked"][5] == b"plain\n"
