"""Pulling by Docker's clients, from Debian's docker-registry."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.clients.composekit import Project
from tests.clients.dockercli import Docker
from tests.clients.engines import Engine
from tests.clients.toolbox import require
from tests.daemon import IMAGE, Daemon
from tests.imagekit import File, busybox_layer, make_docker_archive
from tests.registrykit import docker_registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that has app:1, app:2 (the same) and box:latest."""
    directory = tmp_path_factory.mktemp("registry")
    archive = directory / "box.tar"
    layers = [busybox_layer(), [File("etc/pulled", b"yes")]]
    archive.write_bytes(make_docker_archive(layers, names=["box:latest"]))
    with docker_registry(directory) as host:
        for name in ("box:latest", "app:1", "app:2"):
            copy_to(f"docker-archive:{archive}", f"{host}/{name}")
        yield host


def copy_to(source: str, name: str) -> None:
    """Have skopeo write an image to a registry."""
    subprocess.run(
        ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", source, f"docker://{name}"],
        check=True,
        timeout=60,
    )


@pytest.fixture
def cli(daemon: Daemon) -> Iterator[Docker]:
    cli = Docker(daemon.host)
    yield cli
    cli.close()


def test_docker_pull_and_what_it_prints(cli: Docker, registry: str) -> None:
    name = f"{registry}/box"
    out = cli("pull", name).lines
    assert out[0] == "Using default tag: latest" and out[1] == "latest: Pulling from box"
    assert any(line.endswith(": Pull complete") for line in out)
    assert out[-3].startswith("Digest: sha256:")
    assert out[-2:] == [f"Status: Downloaded newer image for {name}:latest", f"{name}:latest"]
    assert f"Status: Image is up to date for {name}:latest" in cli("pull", name).out
    digest = out[-3].removeprefix("Digest: ")
    shown = json.loads(cli("image", "inspect", name).out)[0]
    assert shown["RepoDigests"] == [f"{name}@{digest}"] and shown["RepoTags"] == [f"{name}:latest"]
    assert cli("image", "inspect", "--format", "{{.Id}}", f"{name}@{digest}").word == shown["Id"]
    assert digest in cli("images", "--digests", name).out
    assert cli("run", "--rm", name, "echo", "hi").out == "hi\n"
    removed = cli("rmi", name).lines
    assert removed[:2] == [f"Untagged: {name}:latest", f"Untagged: {name}@{digest}"]
    assert f"Deleted: {shown['Id']}" in removed


def test_docker_run_pulls_what_is_missing(cli: Docker, registry: str) -> None:
    name = f"{registry}/app:1"
    ran = cli("run", "--rm", name, "echo", "hi")
    assert ran.out == "hi\n" and f"Unable to find image '{name}' locally" in ran.err
    assert f"Status: Downloaded newer image for {name}" in ran.err
    assert "up to date" in cli("run", "--rm", "--pull", "always", name, "true").err
    cli("rmi", name)


def test_pull_by_digest_and_all_tags(cli: Docker, registry: str) -> None:
    out = cli("pull", "-a", f"{registry}/app").lines
    assert [line for line in out if line.endswith(": Pulling from app")] == [
        "1: Pulling from app",
        "2: Pulling from app",
    ]
    digest = next(line for line in out if line.startswith("Digest: ")).removeprefix("Digest: ")
    cli("rmi", f"{registry}/app:1", f"{registry}/app:2")
    pinned = f"{registry}/app@{digest}"
    assert cli("pull", pinned).lines[-1] == pinned
    image = json.loads(cli("image", "inspect", pinned).out)[0]
    assert image["RepoTags"] == [] and image["RepoDigests"] == [pinned]
    assert cli("images", "--filter", "dangling=true", "-q", "--no-trunc").word == image["Id"]
    assert cli("run", "--rm", pinned, "echo", "x").out == "x\n"
    assert cli("rmi", pinned).lines[0] == f"Untagged: {pinned}"


def test_what_isn_t_there_is_said_as_docker_says_it(cli: Docker, registry: str) -> None:
    failed = cli("pull", f"{registry}/box:none", code=1)
    assert f"manifest for {registry}/box:none not found: manifest unknown: manifest unknown" in failed.err
    failed = cli("pull", "127.0.0.1:1/x", code=1)
    assert "127.0.0.1:1: connection refused" in failed.err


def test_docker_manifest_and_distribution(daemon: Daemon, registry: str) -> None:
    client = docker.APIClient(base_url=daemon.host, version="auto")
    found = client.inspect_distribution(f"{registry}/box:latest")
    assert found["Descriptor"]["digest"].startswith("sha256:") and found["Descriptor"]["size"] > 100
    assert [(p["os"], p["architecture"]) for p in found["Platforms"]] == [("linux", "amd64")]
    client.close()


def test_the_sdk_pulls_and_events_tell(daemon: Daemon, registry: str) -> None:
    events = daemon.client.events(decode=True, filters={"type": "image", "event": "pull"})
    image = daemon.client.images.pull(f"{registry}/app", tag="1")
    assert f"{registry}/app:1" in image.tags
    event = next(iter(events))
    assert event["Actor"]["ID"] == f"{registry}/app:1"
    assert event["Actor"]["Attributes"]["name"] == f"{registry}/app"
    events.close()
    assert [i.tags for i in daemon.client.images.pull(f"{registry}/app", all_tags=True)]
    assert IMAGE in [tag for i in daemon.client.images.list() for tag in i.tags]
    for name in ("app:1", "app:2"):
        daemon.client.images.remove(f"{registry}/{name}")


@pytest.mark.parametrize("compose", ["compose2", "compose5"])
def test_compose_pulls(daemon: Daemon, compose: str, registry: str, tmp_path: Path) -> None:
    document = f"services: {{a: {{image: '{registry}/app:2', command: ['echo', 'it ran']}}}}\n"
    with Project(
        Engine("cove", daemon.host), require(compose) / "docker-compose", tmp_path, document
    ) as project:
        project("pull")
        assert project.docker("images", "-q", f"{registry}/app:2").word
        project.docker("rmi", f"{registry}/app:2")
        assert "it ran" in project("up", "--abort-on-container-exit").out
        project("down", "--rmi", "all")
