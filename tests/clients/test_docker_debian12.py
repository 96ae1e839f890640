"""Debian 12's own docker (20.10, API 1.41) against the daemon: a walk through what people do with it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.clients.dockercli import Docker, clean, debian_docker, eventually

if TYPE_CHECKING:
    from tests.daemon import Daemon


@pytest.fixture(scope="module")
def docker(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    for found in debian_docker(tmp_path_factory.mktemp("docker")):
        if not os.path.isabs(found):
            pytest.skip(found)
        docker = Docker(daemon.host, found)
        yield docker
        docker.close()


@pytest.fixture(autouse=True)
def cleaned(daemon: Daemon) -> Iterator[None]:
    yield
    clean(daemon.client)


def test_it_is_the_version_that_debian_has(docker: Docker) -> None:
    assert docker.version == (20, 10)
    version = json.loads(docker("version", "--format", "{{json .}}").out)
    assert version["Client"]["ApiVersion"] == "1.41" and version["Server"]["MinAPIVersion"] == "1.24"


@pytest.mark.parametrize(
    ("command", "code"), [("true", 0), ("exit 3", 3), ("nosuchcommand", 127), ("/etc", 126)]
)
def test_a_run_has_docker_s_exit_codes(docker: Docker, image: str, command: str, code: int) -> None:
    assert docker("run", "--rm", image, "sh", "-c", command, code=code).code == code
    if command == "nosuchcommand":
        assert "executable file not found" in docker("run", "--rm", image, command, code=127).err
    assert docker("ps", "-aq").out == ""


def test_output_input_and_errors_have_their_streams(docker: Docker, image: str) -> None:
    result = docker("run", "--rm", "-i", image, "sh", "-c", "cat; echo err >&2", input=b"in\n")
    assert (result.out, result.err) == ("in\n", "err\n")
    results = [
        docker("run", "--rm", "--network", "none", image, "sh", "-c", "echo a; echo b") for _ in range(10)
    ]
    assert [result.out for result in results] == ["a\nb\n"] * 10


def test_options_are_taken(docker: Docker, image: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("bound\n")
    docker(
        "run", "-d", "--name", "box", "-h", "named", "-e", "A=b", "-p", "127.0.0.1::80", "-m", "64m", "--cpus", "0.5",
        "-v", "data:/data", "-v", f"{tmp_path}:/bound:ro", "--tmpfs", "/t", "--restart", "on-failure:2", "-l", "a=b",
        "-w", "/data", "--group-add", "77", "--init", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
        "--ulimit", "nofile=99", "--health-cmd", "true", "--health-interval", "100ms", image, "sleep", "600",
    )  # fmt: skip
    out = docker("exec", "box", "sh", "-c", "hostname; pwd; id -G; cat /bound/f; echo $A").lines
    assert out == ["named", "/data", "0 77", "bound", "b"]
    assert docker("port", "box", "80").word.startswith("127.0.0.1:")
    host = json.loads(docker("inspect", "-f", "{{json .HostConfig}}", "box").out)
    assert (host["Memory"], host["NanoCpus"], host["LogConfig"]["Type"]) == (
        64 << 20,
        500_000_000,
        "json-file",
    )
    eventually(lambda: docker("ps", "-q", "--filter", "health=healthy").out)
    assert "(healthy)" in docker("ps").out


def test_a_terminal_resizes_detaches_and_attaches(docker: Docker, image: str) -> None:
    with docker.terminal("run", "-it", "--name", "box", image, "sh") as terminal:
        terminal.enter(b"while ! stty size | grep 40.100; do sleep 0.05; done\r")
        terminal.expect(b"40 100")
        terminal.resize(50, 120)
        terminal.enter(b"while ! stty size | grep 50.120; do sleep 0.05; done; echo se''en\r")
        while not (terminal.ended() or b"seen" in terminal.seen):
            terminal.process.send_signal(signal.SIGWINCH)  # the first one may come before the client listens
            time.sleep(0.05)
        terminal.enter(b"\x10\x11")
        assert terminal.wait() == 0
    with docker.terminal("attach", "box") as terminal:
        terminal.enter(b"exit 4\r")
        assert terminal.wait() == 4


def test_signals_are_passed_on(docker: Docker, image: str) -> None:
    script = "trap 'echo got; exit 8' TERM; echo ready; while :; do sleep 0.05; done"
    with docker.start("run", "--rm", image, "sh", "-c", script, stdin=False) as process:
        assert process.line() == b"ready\n"
        process.process.send_signal(signal.SIGTERM)
        assert process.line() == b"got\n"
        assert process.wait() == 8


def test_a_life_from_create_to_remove(docker: Docker, image: str) -> None:
    docker("create", "--name", "box", image, "sh", "-c", "echo one; sleep 600")
    docker("start", "box")
    docker("pause", "box")
    assert "(Paused)" in docker("ps").out
    docker("unpause", "box")
    docker("rename", "box", "crate")
    docker("restart", "-t", "0", "crate")
    eventually(lambda: docker("logs", "--tail", "5", "-t", "crate").out.count("one") == 2)
    assert "sleep 600" in docker("top", "crate").out
    assert "crate" in docker("stats", "--no-stream").out
    docker("update", "-m", "100m", "--memory-swap", "200m", "crate")
    docker("stop", "-t", "0", "crate")
    assert docker("wait", "crate").word == "137"
    assert "is running" not in docker("rm", "crate").err


def test_files_images_and_differences(docker: Docker, image: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("copied")
    docker("run", "-d", "--name", "box", image, "sleep", "600")
    docker("cp", str(tmp_path / "file"), "box:/tmp/")
    docker("cp", "box:/tmp/file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "copied"
    assert docker("diff", "box").lines == ["C /tmp", "A /tmp/file"]
    tree = docker("export", "box").raw
    docker("import", "-", "tree:1", input=tree)
    docker("tag", "tree:1", "tree:2")
    docker("save", "-o", str(tmp_path / "images.tar"), "tree:1", "tree:2")
    docker("rmi", "tree:1", "tree:2")
    assert docker("load", "-i", str(tmp_path / "images.tar")).lines[-1] == "Loaded image: tree:2"
    assert docker("run", "--rm", "tree:2", "cat", "/tmp/file").out == "copied"
    assert "tree" in docker("images").out and docker("history", "tree:1").lines
    docker("rmi", "tree:1", "tree:2")


def test_networks_volumes_and_the_system(docker: Docker, image: str) -> None:
    start = f"{time.time():.6f}"
    docker("network", "create", "back")
    docker("volume", "create", "data")
    docker(
        "run",
        "-d",
        "--name",
        "box",
        "--network",
        "back",
        "--network-alias",
        "svc",
        "-v",
        "data:/d",
        image,
        "sleep",
        "9",
    )
    docker("network", "connect", "bridge", "box")
    assert json.loads(docker("network", "inspect", "back").out)[0]["Containers"]
    docker("network", "disconnect", "back", "box")
    assert "Server Version" in docker("info").out
    assert "Images" in docker("system", "df").out
    docker("rm", "-f", "box")
    assert docker("network", "rm", "back").word == "back"
    assert docker("volume", "rm", "data").word == "data"
    now = f"{time.time():.6f}"
    events = docker("events", "--since", start, "--until", now, "--format", "{{.Type}} {{.Action}}").lines
    assert events[:3] == ["network create", "volume create", "container create"]
    assert events[-2:] == ["network destroy", "volume destroy"]
