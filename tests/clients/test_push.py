"""Pushing and logging in by Docker's clients; dockerd reads what Cove pushed, and Cove what dockerd pushed."""

from __future__ import annotations

import json
import subprocess
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.clients.composekit import Project
from tests.clients.dockercli import Docker
from tests.clients.engines import Engine, running_engine
from tests.clients.toolbox import require
from tests.daemon import Daemon
from tests.imagekit import File, busybox_layer, make_docker_archive
from tests.registrykit import docker_registry


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two docker-registries serve, one on the host and one beside dockerd."""
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def registry(storage: Path) -> Iterator[str]:
    with docker_registry(storage) as host:
        yield host


@pytest.fixture(scope="module")
def dockerd() -> Iterator[Engine]:
    yield from running_engine("dockerd")


@pytest.fixture(scope="module")
def beside_dockerd(dockerd: Engine, registry: str, storage: Path) -> Iterator[str]:
    """A registry on dockerd's loopback, over the same files and at the same address as the one on the host."""
    pid = dockerd.inner_pid
    process = subprocess.Popen(
        ["nsenter", "--net", "--target", str(pid), "docker-registry", "serve", str(storage / "config.yml")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers() -> bool:
        try:
            urllib.request.urlopen(f"http://{registry}/v2/", timeout=5).close()
        except OSError:
            return False
        return True

    try:
        while not dockerd.here(answers):
            assert process.poll() is None
        yield registry
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def cli(daemon: Daemon) -> Iterator[Docker]:
    with closing(Docker(daemon.host)) as cli:
        yield cli


@pytest.fixture(scope="module")
def app(daemon: Daemon) -> str:
    archive = make_docker_archive([busybox_layer(), [File("etc/pushed", b"yes\n")]], names=["app:1"])
    answer = daemon.http("POST", "/images/load", archive, headers={"Content-Type": "application/x-tar"})
    assert answer.status == 200 and b'"error"' not in answer.body
    return "app:1"


def test_docker_push_and_what_it_prints(cli: Docker, registry: str, app: str) -> None:
    name = f"{registry}/cli/app"
    cli("tag", app, name)
    out = cli("push", name).lines
    assert out[0] == "Using default tag: latest"
    assert out[1] == f"The push refers to repository [{name}]"
    assert sum(line.endswith(": Pushed") for line in out) == 2
    assert out[-1].startswith("latest: digest: sha256:")
    digest = out[-1].split()[2]
    again = cli("push", name).lines
    assert sum(line.endswith(": Layer already exists") for line in again) == 2 and again[-1] == out[-1]
    assert cli("push", "-q", name).word == f"{name}:latest"
    assert json.loads(cli("image", "inspect", name).out)[0]["RepoDigests"] == [f"{name}@{digest}"]
    cli("rmi", name)
    assert cli("run", "--rm", f"{name}@{digest}", "cat", "etc/pushed").out == "yes\n"
    cli("rmi", f"{name}@{digest}")
    missing = cli("push", f"{registry}/nothing", code=1)
    assert f"An image does not exist locally with the tag: {registry}/nothing" in missing.err


def test_docker_push_of_every_tag(cli: Docker, registry: str, app: str) -> None:
    for tag in ("1", "2"):
        cli("tag", app, f"{registry}/all/app:{tag}")
    out = cli("push", "--all-tags", f"{registry}/all/app").out
    assert "1: digest: sha256:" in out and "2: digest: sha256:" in out
    cli("rmi", f"{registry}/all/app:1", f"{registry}/all/app:2")


@pytest.mark.parametrize("compose", ["compose2", "compose5"])
def test_compose_pushes(daemon: Daemon, compose: str, registry: str, app: str, tmp_path: Path) -> None:
    document = f"services: {{a: {{image: '{registry}/{compose}/app:1', build: .}}}}\n"
    with (
        Project(
            Engine("cove", daemon.host), require(compose) / "docker-compose", tmp_path, document
        ) as project,
        closing(Docker(daemon.host)) as cli,
    ):
        cli("tag", app, f"{registry}/{compose}/app:1")
        project("push")
        cli("rmi", f"{registry}/{compose}/app:1")
        assert "Status: Downloaded" in cli("pull", f"{registry}/{compose}/app:1").out
        cli("rmi", f"{registry}/{compose}/app:1")


@pytest.mark.parametrize("format", ["", "oci", "docker"])
def test_dockerd_runs_what_cove_pushed(
    daemon: Daemon, cli: Docker, dockerd: Engine, beside_dockerd: str, app: str, format: str
) -> None:
    name = f"{beside_dockerd}/given/app{format}"
    cli("tag", app, f"{name}:1")
    answer = daemon.http("POST", f"/images/{name}/push?tag=1&format={format}")
    assert b'"error"' not in answer.body, answer.body
    with closing(Docker(dockerd.host)) as other:
        other("pull", f"{name}:1")
        assert other("run", "--rm", "--net=none", f"{name}:1", "cat", "/etc/pushed").out == "yes\n"
        ids = [one("image", "inspect", "-f", "{{.Id}}", f"{name}:1").word for one in (cli, other)]
        assert ids[0] == ids[1]
        digests = [
            one("image", "inspect", "-f", "{{.RepoDigests}}", f"{name}:1").word for one in (cli, other)
        ]
        assert digests[0] == digests[1]


def test_cove_runs_what_dockerd_pushed_and_gives_it_back_unchanged(
    cli: Docker, dockerd: Engine, beside_dockerd: str
) -> None:
    name = f"{beside_dockerd}/taken/app:1"
    dockerd.load(make_docker_archive([busybox_layer(), [File("etc/made", b"by dockerd\n")]], names=[name]))
    with closing(Docker(dockerd.host)) as other:
        pushed = other("push", name).lines[-1].split()[2]
    cli("pull", name)
    assert cli("run", "--rm", name, "cat", "/etc/made").out == "by dockerd\n"
    back = f"{beside_dockerd}/back/app:1"
    cli("tag", name, back)
    out = cli("push", back).lines
    assert out[-1].split()[2] == pushed  # manifest and layers as they came
    assert sum(": Mounted from " in line for line in out) == 2


def test_docker_login_search_and_logout(cli: Docker, tmp_path: Path, app: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import crypt

        hashed = crypt.crypt("s3cret", crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=1 << 5))
    (tmp_path / "htpasswd").write_text(f"ada:{hashed}\n")
    with docker_registry(
        tmp_path / "closed",
        REGISTRY_AUTH="htpasswd",
        REGISTRY_AUTH_HTPASSWD_REALM="test",
        REGISTRY_AUTH_HTPASSWD_PATH=str(tmp_path / "htpasswd"),
    ) as host:
        cli("tag", app, f"{host}/app:1")
        refused = cli("push", f"{host}/app:1", code=1)
        assert "no basic auth credentials" in refused.err
        assert "wrong password" in cli("login", "-u", "ada", "-p", "no", host, code=1).err
        cli("login", "-u", "ada", "--password-stdin", host, input=b"s3cret\n")
        assert "1: digest: sha256:" in cli("push", f"{host}/app:1").out
        assert f"{host}/app" in cli("search", f"{host}/app").out
        assert cli("pull", f"{host}/app:1").code == 0
        cli("logout", host)
        assert "no basic auth credentials" in cli("push", f"{host}/app:1", code=1).err
        cli("rmi", f"{host}/app:1")
