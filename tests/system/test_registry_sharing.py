"""Blobs of the machine's image store are linked into the registry, not uploaded; and nobody reads them who may not."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.imagekit import File, make_oci_layout
from tests.registryserver import Registry, digest_of, run_registry, serving

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the daemon's store is root's")


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


@pytest.fixture
def layer() -> bytes:
    """A layer that doesn't compress."""
    return os.urandom(8 << 20)


@pytest.fixture
def loaded(layer: bytes) -> Iterator[tuple[Daemon, list[Path], Path]]:
    """A daemon with an image whose layer came by gzip, its blobs, and the image's archive."""
    with Daemon() as daemon:
        archive = daemon.base / "image.tar"
        archive.write_bytes(make_oci_layout([[File("data", layer)]], names=["big:1"], compress=gzipped))
        daemon.client.images.load(archive.read_bytes())
        blobs = sorted(
            (daemon.data_root / "images/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size
        )
        yield daemon, blobs, archive


def used(*paths: Path) -> int:
    """Bytes on the disk, each file once."""
    done = subprocess.run(
        ["du", "-s", "-B1", "-c", *map(str, paths)], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-2])


def test_a_push_of_an_image_that_is_here_sends_no_layer(loaded: tuple[Daemon, list[Path], Path]) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo isn't installed")
    daemon, blobs, archive = loaded
    big = blobs[-1]
    assert big.stat().st_size > 8 << 20
    before = used(daemon.data_root)
    with serving(daemon.data_root / "registry", f"--data-root={daemon.data_root}") as registry:
        subprocess.run(
            [
                *("skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false"),
                *(f"oci-archive:{archive}", f"docker://{registry.address}/big:1"),
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )
        metrics = registry.ask("GET", "/metrics").body.decode()
        assert "cove_registry_received_bytes_total 0" in metrics
        assert "cove_registry_linked_total 2" in metrics  # the layer and the configuration
        assert big.stat().st_nlink == 2
        assert (registry.root / "blobs/sha256" / big.name).stat().st_ino == big.stat().st_ino
        assert used(daemon.data_root) - before < 1 << 20
        pulled = registry.ask("GET", f"/v2/big/blobs/sha256:{big.name}").body
        assert digest_of(pulled) == f"sha256:{big.name}"
        assert daemon.client.images.get("big:1").tags == ["big:1"]
        daemon.client.images.remove("big:1")
        assert registry.ask("GET", f"/v2/big/blobs/sha256:{big.name}").body == pulled
        done = run_registry("check", f"--root={registry.root}")
        assert done.returncode == 0, done.stdout


def test_a_blob_of_the_store_is_no_puller_s(loaded: tuple[Daemon, list[Path], Path], tmp_path: Path) -> None:
    daemon, blobs, _ = loaded
    digest = f"sha256:{blobs[-1].name}"
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[[rule]]\nrepositories = "open/**"\npush = ["*"]\n[[rule]]\nrepositories = "**"\npull = ["*"]\n'
    )
    options = [f"--data-root={daemon.data_root}", f"--policy={rules}"]
    with serving(daemon.data_root / "registry", *options) as registry:
        assert registry.ask("HEAD", f"/v2/closed/blobs/{digest}").status == 404
        assert registry.ask("GET", f"/v2/open/app/blobs/{digest}").status == 404  # reading links nothing
        assert registry.ask("POST", f"/v2/closed/blobs/uploads/?mount={digest}").status in (401, 403)
        assert blobs[-1].stat().st_nlink == 1
        assert registry.ask("POST", f"/v2/open/app/blobs/uploads/?mount={digest}&from=x").status == 201
        assert registry.ask("GET", f"/v2/open/app/blobs/{digest}").status == 200
    with serving(daemon.data_root / "other", *options, "--share=none") as registry:
        assert registry.ask("POST", f"/v2/open/app/blobs/uploads/?mount={digest}").status == 202


def test_a_damaged_blob_of_the_store_is_not_taken(loaded: tuple[Daemon, list[Path], Path]) -> None:
    daemon, blobs, _ = loaded
    with open(blobs[-1], "r+b") as stream:
        stream.seek(1000)
        stream.write(b"damage")
    with serving(daemon.data_root / "registry", f"--data-root={daemon.data_root}") as registry:
        assert registry.ask("POST", f"/v2/app/blobs/uploads/?mount=sha256:{blobs[-1].name}").status == 202
        assert [*(registry.root / "uploads").glob("*.link")] == []


def test_the_process_that_links_ends_with_the_server(loaded: tuple[Daemon, list[Path], Path]) -> None:
    daemon, _, _ = loaded

    def children(registry: Registry) -> list[str]:
        return Path(f"/proc/{registry.process.pid}/task/{registry.process.pid}/children").read_text().split()

    with serving(daemon.data_root / "registry", f"--data-root={daemon.data_root}") as registry:
        [child] = children(registry)
        words = Path(f"/proc/{child}/status").read_text()
        assert "CapEff:\t0000000000000002" in words  # CAP_DAC_OVERRIDE
        registry.kill()
        registry.start()
        [child] = children(registry)
        assert registry.stop() == 0
        assert not Path(f"/proc/{child}").exists()


def test_the_daemon_s_pull_takes_a_blob_from_the_registry_by_a_link(layer: bytes) -> None:
    with Daemon() as daemon:
        archive = daemon.base / "image.tar"
        archive.write_bytes(make_oci_layout([[File("data", layer)]], names=["big:1"], compress=gzipped))
        with serving(daemon.data_root / "registry", f"--data-root={daemon.data_root}") as registry:
            subprocess.run(
                [
                    *("skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false"),
                    *(f"oci-archive:{archive}", f"docker://{registry.address}/big:1"),
                ],
                check=True,
                capture_output=True,
                timeout=60,
            )
            daemon.client.images.pull(f"{registry.address}/big", "1")
            [big] = [
                path for path in (registry.root / "blobs/sha256").iterdir() if path.stat().st_size > 8 << 20
            ]
            assert big.stat().st_nlink == 2
            assert (daemon.data_root / "images/blobs/sha256" / big.name).stat().st_ino == big.stat().st_ino
            assert run_registry("check", f"--root={registry.root}").returncode == 0
