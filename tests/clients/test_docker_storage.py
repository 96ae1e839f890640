"""Volumes, mounts and prunes with the stock command line, and cove's prune on a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.clients.dockercli import Docker, clean
from tests.unit.test_cli_run import BOUND_S, Terminal

if TYPE_CHECKING:
    from tests.daemon import Daemon


@pytest.fixture(scope="module")
def docker(daemon: Daemon) -> Iterator[Docker]:
    docker = Docker(daemon.host)
    yield docker
    docker.close()


@pytest.fixture(autouse=True)
def cleaned(daemon: Daemon) -> Iterator[None]:
    yield
    clean(daemon.client)


def test_volumes_of_the_local_driver(docker: Docker, image: str) -> None:
    docker(
        "volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m,mode=0711", "memory"
    )
    shown = json.loads(docker("volume", "inspect", "memory").out)[0]
    assert shown["Options"] == {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,mode=0711"}
    assert docker("run", "--rm", "-v", "memory:/m", image, "busybox", "stat", "-c", "%a", "/m").word == "711"
    docker("volume", "create", "--label", "tier=db", "-o", "size=16m", "small")
    full = docker(
        "run",
        "--rm",
        "-v",
        "small:/s",
        image,
        "busybox",
        "dd",
        "if=/dev/zero",
        "of=/s/x",
        "bs=1M",
        "count=20",
        code=1,
    )
    assert "No space left on device" in full.err
    assert docker("volume", "ls", "-q", "--filter", "label=tier=db").word == "small"
    assert sorted(docker("volume", "ls", "-q", "--filter", "dangling=true").lines) == ["memory", "small"]
    assert "small" in docker("system", "df", "-v").out
    docker("volume", "rm", "memory", "small")


def test_mounts_of_every_kind(docker: Docker, image: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_text("deep\n")
    told = docker(
        "run", "--rm",
        "--mount", f"type=image,source={image},target=/image,image-subpath=bin",
        "--mount", f"type=bind,source={tmp_path},target=/bind,readonly,bind-recursive=writable",
        "--mount", "type=tmpfs,target=/memory,tmpfs-size=1m,tmpfs-mode=0700",
        "--mount", "type=volume,source=named,target=/volume,volume-nocopy",
        "-v", f"{tmp_path}/a/file:/bind-file:ro",
        image, "sh", "-c", "ls /image/busybox; cat /bind/a/file /bind-file; stat -c %a /memory; touch /volume/x",
    )  # fmt: skip
    assert told.lines == ["/image/busybox", "deep", "deep", "700"]
    refused = docker("run", "--rm", "--mount", "type=cluster,source=x,target=/x", image, "true", code=125)
    assert "swarm" in refused.err
    docker("run", "--rm", "-v", "named:/v", image, "busybox", "mkdir", "/v/sub")
    shown = docker(
        "run",
        "--rm",
        "--mount",
        "source=named,target=/v,volume-subpath=sub",
        image,
        "sh",
        "-c",
        "ls /v; touch /v/in",
    )
    assert shown.out == ""
    assert docker("run", "--rm", "-v", "named:/v", image, "ls", "/v/sub").word == "in"


def test_a_container_keeps_to_its_size(docker: Docker, image: str) -> None:
    full = docker(
        "run",
        "--rm",
        "--storage-opt",
        "size=16m",
        image,
        "busybox",
        "dd",
        "if=/dev/zero",
        "of=/x",
        "bs=1M",
        "count=20",
        code=1,
    )
    assert "No space left on device" in full.err
    wrong = docker("run", "--rm", "--storage-opt", "size=huge", image, "true", code=125)
    assert "invalid size: 'huge'" in wrong.err


def test_a_prune_on_a_terminal_shows_what_it_takes_before_it_asks(
    daemon: Daemon, docker: Docker, image: str
) -> None:
    docker("volume", "create", "unused")
    with Terminal(["volume", "prune", "--all"], daemon.host) as terminal:
        terminal.expect(b"unused  (0B)")
        terminal.expect(b"Continue? [y/N] ")
        terminal.type(b"n\r")
        assert terminal.process.wait(BOUND_S) == 0
    assert docker("volume", "ls", "-q").word == "unused"
    with Terminal(["volume", "prune", "--all"], daemon.host) as terminal:
        terminal.expect(b"Continue? [y/N] ")
        terminal.type(b"y\r")
        terminal.expect(b"Total reclaimed space")
        assert terminal.process.wait(BOUND_S) == 0
    assert docker("volume", "ls", "-q").out == ""
    with Terminal(["volume", "prune", "--all"], daemon.host) as terminal:  # nothing to ask about
        terminal.expect(b"Space that this frees: 0B")
        assert terminal.process.wait(BOUND_S) == 0
