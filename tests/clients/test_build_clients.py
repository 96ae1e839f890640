"""Builds by the clients that people use: both docker command lines, docker-py, compose in both its forms."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker.errors
import pytest

from tests.clients.composekit import Project
from tests.clients.dockercli import Docker, clean, debian_docker
from tests.clients.engines import Engine
from tests.clients.toolbox import require
from tests.daemon import Daemon

CLASSIC = {"DOCKER_BUILDKIT": "0"}
DOCKERFILE = "FROM busybox\nARG WORD=none\nCOPY page /www/index.html\nRUN echo $WORD >> /www/index.html\n"
COMPOSE = """
services:
  web:
    build:
      context: app
      args: {WORD: composed}
      labels: {made: "by compose"}
    command: [cat, /www/index.html]
"""


@pytest.fixture(autouse=True)
def cleaned(daemon: Daemon) -> Iterator[None]:
    yield
    clean(daemon.client)
    for image in daemon.client.images.list():
        if "busybox:latest" not in image.tags:
            daemon.client.images.remove(image.id, force=True)


@pytest.fixture(params=["of the day", "of Debian 12"])
def client(
    daemon: Daemon, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Docker]:
    binary = "docker"
    if request.param == "of Debian 12":
        binary = next(iter(debian_docker(tmp_path_factory.mktemp("docker"))))
        if not os.path.isabs(binary):
            pytest.skip(binary)
    found = Docker(daemon.host, binary)
    yield found
    found.close()


@pytest.fixture
def app(tmp_path: Path) -> Path:
    directory = tmp_path / "app"
    directory.mkdir()
    (directory / "Dockerfile").write_text(DOCKERFILE)
    (directory / "page").write_text("hello\n")
    (directory / ".dockerignore").write_text("left-out\n")
    (directory / "left-out").write_text("x")
    return directory


def test_docker_build(client: Docker, app: Path) -> None:
    done = client("build", "-t", "app:1", "--build-arg", "WORD=there", str(app), environment=CLASSIC)
    assert "Successfully tagged app:1" in done.out
    assert client("run", "--rm", "app:1", "cat", "/www/index.html").out == "hello\nthere\n"
    again = client("build", "-q", "-t", "app:1", "--build-arg", "WORD=there", str(app), environment=CLASSIC)
    assert again.word == client("images", "-q", "--no-trunc", "app:1").word
    cached = client("build", "--build-arg", "WORD=there", str(app), environment=CLASSIC).out
    assert cached.count("Using cache") == 2
    (app / "Dockerfile").write_text("FROM busybox\nRUN exit 9\n")
    failed = client("build", str(app), environment=CLASSIC, code=9)
    assert "returned a non-zero code: 9" in failed.err
    text = b"FROM busybox\nRUN echo from stdin\n"
    assert "from stdin" in client("build", "-", input=text, environment=CLASSIC).out
    limited = client(
        "build", "--memory", "64m", "--network", "none", "--add-host", "x:1.2.3.4", "-", environment=CLASSIC,
        input=b"FROM busybox\nRUN ls /sys/class/net && grep 1.2.3.4 /etc/hosts\n",
    ).out  # fmt: skip
    assert "eth0" not in limited and "1.2.3.4" in limited


def test_docker_py(daemon: Daemon, app: Path) -> None:
    image, log = daemon.client.images.build(path=str(app), tag="app:py", buildargs={"WORD": "py"}, rm=True)
    assert image.tags == ["app:py"]
    assert any("Successfully built" in line.get("stream", "") for line in log)
    shown = daemon.client.containers.run(image, ["cat", "/www/index.html"], remove=True)
    assert shown == b"hello\npy\n"
    (app / "Dockerfile").write_text("FROM busybox\nRUN exit 9\n")
    with pytest.raises(docker.errors.BuildError, match="non-zero code: 9"):
        daemon.client.images.build(path=str(app))
    with pytest.raises(docker.errors.APIError, match="did you mean FROM"):
        (app / "Dockerfile").write_text("FORM busybox\n")
        daemon.client.images.build(path=str(app))


def test_compose_builds_and_runs(daemon: Daemon, app: Path) -> None:
    binary = require("compose2") / "docker-compose"
    with Project(Engine("cove", daemon.host), binary, app.parent, COMPOSE) as project:
        done = project.docker(
            "compose", "--project-name", project.name, "--project-directory", str(app.parent), "up", "--build",
            "--no-color", environment=CLASSIC,
        )  # fmt: skip
        assert "composed" in done.out
        assert daemon.client.images.get(f"{project.name}-web").labels["made"] == "by compose"


def test_debians_compose_builds(daemon: Daemon, app: Path) -> None:
    program = shutil.which("docker-compose", path="/usr/bin")
    if program is None:
        pytest.skip("Debian's docker-compose isn't here: apt-get install docker-compose")
    (app.parent / "docker-compose.yml").write_text("version: '2.4'\n" + COMPOSE)
    environment = {**os.environ, "DOCKER_HOST": daemon.host, "COMPOSE_DOCKER_CLI_BUILD": "0", **CLASSIC}
    done = subprocess.run(
        [program, "--project-name", "old", "build"],
        cwd=app.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert daemon.client.images.get("old_web").labels["made"] == "by compose"
