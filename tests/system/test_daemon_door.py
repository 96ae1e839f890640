"""Clients that never read, never finish, or come by the thousand: memory stays bounded, and nobody else waits."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon import IMAGE, Daemon
from tests.nanny import descendants

BOUND_S = 60.0
LATENCY_S = 3.0  # on two processors that everybody else's tests use, too
GROWTH_MIB = 60


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def rss_mib(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


class Clients:
    """Raw connections that are kept open, and closed together."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.sockets: list[socket.socket] = []

    def send(self, request: str, count: int) -> None:
        for _ in range(count):
            sock = self._connect()
            self.sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(request.encode())

    def _connect(self) -> socket.socket:
        while True:
            try:
                return self.daemon.connect()
            except BlockingIOError:  # as many wait as may
                time.sleep(0.01)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        self.sockets.clear()


@pytest.fixture
def clients(daemon: Daemon) -> Iterator[Clients]:
    found = Clients(daemon)
    yield found
    found.close()


@contextlib.contextmanager
def unharmed(daemon: Daemon) -> Iterator[Callable[[], None]]:
    """What it yields checks that others are served and memory is bounded; at the end everything is given back."""
    assert daemon.http("GET", "/containers/json").status == 200
    memory, open_files = rss_mib(daemon.pid), descriptors(daemon.pid)
    processes = len(descendants(daemon.nanny_pid))

    def check() -> None:
        for _ in range(10):
            for path in ("/_ping", "/containers/json?all=1"):
                begun = time.monotonic()
                assert daemon.http("GET", path).status == 200
                assert time.monotonic() - begun < LATENCY_S
        assert rss_mib(daemon.pid) < memory + GROWTH_MIB

    yield check
    eventually(
        lambda: descriptors(daemon.pid) <= open_files + 8, f"descriptors stay open: {open_files} before"
    )
    eventually(
        lambda: len(descendants(daemon.nanny_pid)) <= processes, f"workers stay: {processes} processes before"
    )
    assert rss_mib(daemon.pid) < memory + GROWTH_MIB


def get(path: str) -> str:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"


def test_readers_that_never_read(daemon: Daemon, clients: Clients) -> None:
    talker = daemon.client.containers.run(
        IMAGE,
        ["sh", "-c", "while :; do echo $RANDOM$RANDOM$RANDOM$RANDOM; done"],
        detach=True,
        nano_cpus=200_000_000,
    )
    try:
        with unharmed(daemon) as check:
            name = f"/containers/{talker.id}"
            clients.send(get(f"{name}/logs?follow=1&stdout=1&stderr=1"), 20)
            clients.send(get("/events"), 20)
            clients.send(get(f"{name}/stats"), 20)
            for _ in range(300):
                daemon.http("POST", f"{name}/resize?h=10&w=10")  # an event each
            check()
            clients.send(get(f"{name}/archive?path=/"), 10)
            clients.send(get(f"{name}/export"), 10)
            clients.send(get(f"/images/{IMAGE}/get"), 10)
            check()
            clients.close()
    finally:
        talker.remove(force=True)


def test_a_reader_that_never_reads_holds_its_own_container_only(daemon: Daemon, clients: Clients) -> None:
    talker = daemon.client.containers.create(IMAGE, ["cat", "/dev/zero"])
    try:
        upgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        clients.send(
            f"POST /containers/{talker.id}/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: x\r\n{upgrade}", 1
        )
        clients.sockets[0].settimeout(BOUND_S)
        assert clients.sockets[0].recv(12) == b"HTTP/1.1 101"
        talker.start()
        with unharmed(daemon) as check:
            check()
            assert daemon.client.containers.run(IMAGE, ["echo", "hi"], remove=True) == b"hi\n"
    finally:
        clients.close()
        talker.remove(force=True)


def test_bodies_that_never_end(daemon: Daemon, clients: Clients) -> None:
    container = daemon.client.containers.create(IMAGE, ["true"])
    try:
        with unharmed(daemon) as check:
            chunked = "HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n400\r\nab"
            clients.send(f"POST /images/load {chunked}", 10)
            clients.send(f"PUT /containers/{container.id}/archive?path=/tmp {chunked}", 10)
            clients.send(
                f"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n{'x' * 90_000}",
                50,
            )
            check()
            clients.close()
    finally:
        container.remove()


def test_heads_that_never_end_and_idle_connections(daemon: Daemon, clients: Clients) -> None:
    with unharmed(daemon) as check:
        clients.send("", 1500)
        clients.send("GET /_ping HTTP/1.1\r\nX-Slow: " + "y" * 30_000, 200)
        check()
        clients.close()


def test_requests_sent_without_reading_an_answer(daemon: Daemon, clients: Clients) -> None:
    with unharmed(daemon) as check:
        clients.send("", 5)
        for sock in clients.sockets:
            sock.settimeout(1)
            with pytest.raises(TimeoutError):
                for _ in range(2000):
                    sock.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        check()
        clients.close()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /_ping HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n", b"400"),
        (b"GET /_ping HTTP/1.1\r\nX: " + b"y" * 70_000, b"431"),
        (b"GET /" + b"y" * 70_000, b"431"),
        (b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", b"400"),
        (b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"400"),
    ],
)
def test_what_is_too_large_is_refused_by_its_head(
    daemon: Daemon, request_bytes: bytes, status: bytes
) -> None:
    with daemon.connect(30) as sock:
        sock.sendall(request_bytes)
        assert sock.recv(12) == b"HTTP/1.1 " + status


def test_sockets_cut_in_the_middle(daemon: Daemon, clients: Clients) -> None:
    container = daemon.client.containers.run(IMAGE, ["sleep", "1000"], detach=True)
    try:
        with unharmed(daemon) as check:
            made = daemon.http(
                "POST", f"/containers/{container.id}/exec", {"Cmd": ["cat"], "AttachStdin": True}
            ).json()
            body = "HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 2\r\n\r\n{"
            clients.send(f"POST /exec/{made['Id']}/start {body}", 5)
            clients.send(f"POST /containers/{container.id}/attach?stream=1&stdin=1 {body}", 5)
            clients.send(
                f"PUT /containers/{container.id}/archive?path=/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab",
                5,
            )
            clients.send(get(f"/containers/{container.id}/archive?path=/"), 5)
            clients.close()
            check()
    finally:
        container.remove(force=True)
