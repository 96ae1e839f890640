"""The daemon's end by SIGTERM: what clients see, what is finished, and that nobody holds it up."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.daemon import IMAGE, Daemon


@pytest.fixture
def running(daemon: Daemon) -> Iterator[str]:
    container = daemon.client.containers.run(IMAGE, ["sh", "-c", "echo hello; sleep 1000"], detach=True)
    yield str(container.id)
    if not daemon.pid:
        daemon.start()
    container.remove(force=True)


def request(daemon: Daemon, line: str) -> socket.socket:
    sock = daemon.connect(60)
    sock.sendall(f"{line} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    return sock


def until(sock: socket.socket, wanted: bytes) -> bytes:
    data = b""
    while wanted not in data:
        piece = sock.recv(65536)
        assert piece, data
        data += piece
    return data


def rest(sock: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            data += piece
    return data


def test_events_end_and_what_is_incomplete_breaks_off(daemon: Daemon, running: str) -> None:
    events = request(daemon, "GET /events")
    until(events, b"\r\n\r\n")
    logs = request(daemon, f"GET /containers/{running}/logs?follow=1&stdout=1")
    until(logs, b"hello\n")
    stats = request(daemon, f"GET /containers/{running}/stats")
    until(stats, b'"read"')
    waiter = request(daemon, f"POST /containers/{running}/wait")
    until(waiter, b"\r\n\r\n")
    idle = daemon.connect()
    daemon.terminate()
    for sock in (events, stats):
        assert rest(sock).endswith(b"0\r\n\r\n")
    for sock in (logs, waiter):  # the log goes on, and no exit code was told: the client must see that
        assert not rest(sock).endswith(b"0\r\n\r\n")
    assert rest(idle) == b""
    daemon.start()
    assert daemon.client.containers.get(running).status == "running"


def test_a_change_that_is_under_way_is_finished_and_answered(daemon: Daemon, running: str) -> None:
    stop = request(
        daemon, f"POST /containers/{running}/stop?t=2"
    )  # sh as process 1 ignores SIGTERM: two seconds
    deadline = time.monotonic() + 30
    while (
        b'"kill"'
        not in daemon.http(
            "GET",
            f"/events?since=1&until={time.time() + 0.01:.3f}&filters=%7B%22container%22%3A%5B%22{running}%22%5D%7D",
        ).body
    ):
        assert time.monotonic() < deadline
    daemon.terminate()
    assert rest(stop).startswith(b"HTTP/1.1 204")
    daemon.start()
    assert daemon.client.containers.get(running).attrs["State"]["ExitCode"] == 137


def test_clients_that_never_read_or_end_hold_nobody_up(daemon: Daemon, running: str) -> None:
    deaf = [request(daemon, "GET /events") for _ in range(3)]
    deaf += [request(daemon, f"GET /containers/{running}/export") for _ in range(3)]
    slow = daemon.connect()
    slow.sendall(b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    half = daemon.connect()
    half.sendall(b"GET /cont")
    begun = time.monotonic()
    daemon.terminate()
    assert time.monotonic() - begun < 30
    for sock in (*deaf, slow, half):
        sock.close()
    daemon.start()


def test_a_second_signal_ends_it_at_once(daemon: Daemon, running: str) -> None:
    stop = request(daemon, f"POST /containers/{running}/stop?t=300")
    deadline = time.monotonic() + 30
    while (
        b'"kill"'
        not in daemon.http(
            "GET",
            f"/events?since=1&until={time.time() + 0.01:.3f}&filters=%7B%22container%22%3A%5B%22{running}%22%5D%7D",
        ).body
    ):
        assert time.monotonic() < deadline
    pidfd = os.pidfd_open(daemon.pid)
    ended = threading.Event()

    def wait() -> None:
        select.select([pidfd], [], [])
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    os.kill(daemon.pid, signal.SIGTERM)
    while "ending at once" not in daemon.log_text():
        assert time.monotonic() < deadline + 30
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon.pid, signal.SIGTERM)
        time.sleep(0.05)
    assert ended.wait(5)
    os.close(pidfd)
    assert rest(stop) == b""
    daemon.terminate()  # takes note of the end
    daemon.start()
    assert daemon.client.containers.get(running).status == "running"
