"""A machine's images as a registry for other machines: asked of the daemon, linked, read-only."""

from __future__ import annotations

import gzip
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.daemon import Daemon
from tests.imagekit import File, make_oci_layout
from tests.registryserver import Registry, run_registry, serving

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the daemon is root's")


def archive(*names: str, size: int = 1 << 20) -> bytes:
    return make_oci_layout([[File("data", os.urandom(size))]], names=names, compress=gzip.compress)


@pytest.fixture
def source() -> Iterator[tuple[Daemon, Registry]]:
    with Daemon() as daemon:
        daemon.client.images.load(archive("docker.io/library/app:1", "peer.test/team/app:1"))
        options = ["--images", f"--daemon={daemon.host}", f"--data-root={daemon.data_root}"]
        with serving(daemon.data_root / "registry-images", *options) as registry:
            yield daemon, registry


def test_images_are_served_under_their_names_and_cost_a_manifest(source: tuple[Daemon, Registry]) -> None:
    daemon, registry = source
    names = daemon.client.images.get("app:1").tags
    for path in (
        "library/app/manifests/1",
        "app/manifests/1",
        "team/app/manifests/1?ns=peer.test",
        "peer.test/team/app/manifests/1",
    ):
        answer = registry.ask("GET", f"/v2/{path}")
        assert answer.status == 200, (path, answer)
    for layer in answer.json()["layers"]:
        blob = registry.ask("GET", f"/v2/peer.test/team/app/blobs/{layer['digest']}")
        assert len(blob.body) == layer["size"]
        assert (registry.root / "blobs/sha256" / layer["digest"][7:]).stat().st_nlink == 2
    assert b"cove_registry_received_bytes_total 0" in registry.ask("GET", "/metrics").body
    assert daemon.client.images.get("app:1").tags == names  # the name that it was pushed by has gone
    assert registry.ask("GET", "/v2/library/none/manifests/1").code == "MANIFEST_UNKNOWN"
    for method, path in (("POST", "/v2/app/blobs/uploads/"), ("PUT", "/v2/app/manifests/2")):
        assert registry.ask(method, path, b"{}").code == "UNSUPPORTED"


def test_a_tag_that_moves_or_goes_is_followed(source: tuple[Daemon, Registry]) -> None:
    daemon, registry = source
    first = registry.ask("HEAD", "/v2/app/manifests/1").headers["docker-content-digest"]
    with ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(lambda _: registry.ask("HEAD", "/v2/app/manifests/1").status, range(24))]
    assert answers == [200] * 24
    daemon.client.images.load(archive("docker.io/library/app:1"))
    second = registry.ask("HEAD", "/v2/app/manifests/1").headers["docker-content-digest"]
    assert first != second
    daemon.client.images.remove("app:1")
    assert registry.ask("GET", "/v2/app/manifests/1").status == 404
    daemon.kill9()
    assert registry.ask("GET", "/v2/app/manifests/1").status == 404
    daemon.start()
    assert run_registry("check", f"--root={registry.root}").returncode == 0


def test_another_machine_pulls_from_it_as_a_mirror(source: tuple[Daemon, Registry]) -> None:
    daemon, registry = source
    digest = daemon.client.images.get("app:1").id
    with Daemon("--registry-mirror", f"http://{registry.address}") as other:
        other.client.images.pull("app", "1")
        assert other.client.images.get("app:1").id == digest
    program = subprocess.run(["ls", registry.root / "uploads"], capture_output=True, text=True, check=True)
    assert program.stdout == ""
