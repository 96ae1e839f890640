"""Pulls and the daemon: who is killed, who leaves, what the worker that speaks with a registry may do, and memory."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.consistency import check_consistent
from tests.daemon import Daemon
from tests.imagekit import File, make_layer
from tests.nanny import descendants
from tests.registrykit import HostileRegistry, Reply, Repository, Request, digest_of

NOISE = make_layer([File("noise", random.Random(3).randbytes(24 << 20))])
BLOB = gzip.compress(NOISE, 1, mtime=0)
AUTH = base64.urlsafe_b64encode(json.dumps({"username": "ada", "password": "s3cr3t-word"}).encode()).decode()


class Gated:
    """A repository of one large layer whose second half comes when `gate` is open."""

    def __init__(self) -> None:
        self.repository = Repository()
        self.repository.add_image([(NOISE, BLOB, "+gzip")])
        self.gate = threading.Event()
        self.waiting = threading.Event()
        self.starts: list[int] = []

    def __call__(self, request: Request) -> Reply:
        if digest_of(BLOB) in request.target:
            start = int(request.headers["range"].removeprefix("bytes=").partition("-")[0])
            self.starts.append(start)
            if start >= 12 << 20:
                self.waiting.set()
                self.gate.wait(60)
        return self.repository(request)


@pytest.fixture
def gated() -> Iterator[tuple[Gated, HostileRegistry]]:
    gated = Gated()
    with HostileRegistry(gated) as registry:
        yield gated, registry
        gated.gate.set()


def begin_pull(daemon: Daemon, name: str) -> socket.socket:
    """Ask for a pull on a connection of its own."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(daemon.socket_path))
    head = (
        f"POST /images/create?fromImage={name}&tag=latest HTTP/1.1\r\nHost: d\r\nX-Registry-Auth: {AUTH}\r\n"
    )
    connection.sendall(f"{head}Content-Length: 0\r\n\r\n".encode())
    return connection


def partial(daemon: Daemon) -> int:
    """Bytes of the layer that are kept."""
    path = daemon.data_root / "images" / "partial" / digest_of(BLOB)[7:]
    return path.stat().st_size if path.exists() else -1


def eventually(what: Callable[[], bool], text: str) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline, text
        time.sleep(0.02)


def workers(daemon: Daemon) -> list[int]:
    return [
        pid
        for pid in descendants(daemon.pid)
        if b"cove.image.process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def pull(daemon: Daemon, name: str) -> list[dict[str, object]]:
    answer = daemon.http(
        "POST", f"/images/create?fromImage={name}&tag=latest", headers={"X-Registry-Auth": AUTH}
    )
    assert answer.status == 200, answer.body
    return [json.loads(line) for line in answer.body.splitlines()]


def test_a_killed_daemon_s_pull_goes_on_where_it_stopped(
    fresh_daemon: Daemon, gated: tuple[Gated, HostileRegistry]
) -> None:
    state, registry = gated
    with begin_pull(fresh_daemon, f"{registry.host}/app"):
        assert state.waiting.wait(30)
        eventually(lambda: partial(fresh_daemon) >= 12 << 20, "nothing is kept")
        fresh_daemon.kill9()
    kept = partial(fresh_daemon)
    fresh_daemon.start()
    check_consistent(fresh_daemon)
    assert partial(fresh_daemon) == kept
    state.gate.set()
    state.starts.clear()
    assert str(pull(fresh_daemon, f"{registry.host}/app")[-1]["status"]).startswith(
        "Status: Downloaded newer"
    )
    assert min(state.starts) == kept and partial(fresh_daemon) == -1
    check_consistent(fresh_daemon)


def test_a_client_that_leaves_ends_its_pull_and_no_other(
    fresh_daemon: Daemon, gated: tuple[Gated, HostileRegistry]
) -> None:
    state, registry = gated
    first = begin_pull(fresh_daemon, f"{registry.host}/app")
    assert state.waiting.wait(30)
    second = begin_pull(fresh_daemon, f"{registry.host}/app")
    eventually(
        lambda: registry.count("GET", "manifests/") == 2 and len(workers(fresh_daemon)) == 3, "no second pull"
    )
    time.sleep(0.2)  # for the second to wait for the first one's layer, which nothing outside tells
    first.close()
    third = begin_pull(fresh_daemon, f"{registry.host}/app")
    third.close()
    state.gate.set()
    answer = http.client.HTTPResponse(second)
    answer.begin()
    assert b"Status: Downloaded newer image" in answer.read()
    second.close()
    assert len(state.starts) == len(set(state.starts))  # each range once
    eventually(lambda: workers(fresh_daemon) == [], "a worker goes on for nobody")
    check_consistent(fresh_daemon)


def test_a_pull_that_nobody_waits_for_ends(
    fresh_daemon: Daemon, gated: tuple[Gated, HostileRegistry]
) -> None:
    state, registry = gated
    with begin_pull(fresh_daemon, f"{registry.host}/app"):
        assert state.waiting.wait(30)
        eventually(lambda: partial(fresh_daemon) > 0, "nothing is kept")
    eventually(lambda: workers(fresh_daemon) == [], "a worker goes on for nobody")
    assert partial(fresh_daemon) > 0
    check_consistent(fresh_daemon)


def test_the_worker_that_speaks_with_a_registry_is_nobody(
    fresh_daemon: Daemon, gated: tuple[Gated, HostileRegistry]
) -> None:
    state, registry = gated
    with begin_pull(fresh_daemon, f"{registry.host}/app"):
        assert state.waiting.wait(30)
        eventually(lambda: partial(fresh_daemon) > 0, "nothing is kept")
        found = {}
        for pid in workers(fresh_daemon):
            status = dict(
                line.split(":\t", 1)
                for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                if ":\t" in line
            )
            assert status["Seccomp"] == "2" and status["NoNewPrivs"] == "1"
            found[status["Uid"].split()[0]] = (status, os.listdir(f"/proc/{pid}/root"), pid)
        status, files, pid = found["65534"]
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0 and status["Groups"].strip() == ""
        assert files == []
        assert "s3cr3t-word" not in Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"s3cr3t-word" not in environment
        assert set(found) == {"0", "65534"}
    assert "s3cr3t-word" not in fresh_daemon.log_text() and AUTH not in fresh_daemon.log_text()


def test_a_large_layer_takes_little_memory(fresh_daemon: Daemon) -> None:
    """256 MiB that don't compress: what the daemon and its workers have at the most, all together."""
    piece = random.Random(5).randbytes(1 << 20)
    layer = make_layer([File("large", piece * 256)])
    blob = gzip.compress(layer, 0, mtime=0)
    repository = Repository()
    repository.add_image([(layer, blob, "+gzip")])
    del layer
    most = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.02):
            most = max(most, sum(map(rss, [fresh_daemon.pid, *workers(fresh_daemon)])))

    with HostileRegistry(repository) as registry:
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            pull(fresh_daemon, f"{registry.host}/app")
        finally:
            ended.set()
            watcher.join()
    assert 50 << 20 < most < 200 << 20, f"{most >> 20} MiB"


def rss(pid: int) -> int:
    """Resident bytes of a process; 0 for one that is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0
