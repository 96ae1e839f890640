"""Probes without a process in the container, and what becomes of one that is unhealthy."""

from __future__ import annotations

import contextlib
import http.server
import json
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.apikit import BOUND_S, create, eventually, remove, state, wait
from tests.daemon import Daemon

MS = 10**6
_SERVE = "mkdir -p /www && echo fine >/www/ok && httpd -p 8080 -h /www && exec sleep 1000"


def start(daemon: Daemon, image: str, cove: dict[str, str], *command: str, **more: Any) -> str:
    health = {"Interval": 20 * MS, "Retries": 2, **more.pop("health", {})}
    container = create(daemon, image, *command, Cove=cove, Healthcheck=health, **more)
    assert daemon.http("POST", f"/containers/{container}/start").status == 204
    return container


def health(daemon: Daemon, container: str) -> Any:
    return state(daemon, container).get("Health") or {"Status": "", "Log": []}


def last_output(daemon: Daemon, container: str) -> str:
    log = health(daemon, container)["Log"]
    return str(log[-1]["Output"]) if log else ""


def processes(daemon: Daemon, container: str) -> int:
    return len(daemon.http("GET", f"/containers/{container}/top").json()["Processes"])


def test_an_http_probe_reaches_the_loopback_of_a_container_without_a_network(
    daemon: Daemon, image: str
) -> None:
    container = start(
        daemon,
        image,
        {"health.probe": "http://:8080/ok"},
        "sh",
        "-c",
        _SERVE,
    )
    eventually(lambda: health(daemon, container)["Status"] == "healthy")
    assert last_output(daemon, container) == "HTTP/1.0 200 OK\nfine" or last_output(
        daemon, container
    ).startswith("HTTP/1.1 200 OK\nfine")
    assert processes(daemon, container) == 2  # httpd and sleep
    shown = daemon.http("GET", f"/containers/{container}/json").json()
    assert shown["Cove"] == {"health.probe": "http://:8080/ok"}
    remove(daemon, container)


def test_a_status_out_of_the_range_is_unhealthy_and_told_with_its_body(daemon: Daemon, image: str) -> None:
    container = start(daemon, image, {"health.probe": "http://127.0.0.1:8080/gone"}, "sh", "-c", _SERVE)
    eventually(lambda: health(daemon, container)["Status"] == "unhealthy")
    assert "404 Not Found (expected 200 to 399)" in last_output(daemon, container)
    remove(daemon, container)
    lenient = {"health.probe": "http://127.0.0.1:8080/gone", "health.probe.status": "404"}
    container = start(daemon, image, lenient, "sh", "-c", _SERVE)
    eventually(lambda: health(daemon, container)["Status"] == "healthy")
    remove(daemon, container)


def test_a_tcp_probe_by_label_turns_with_the_port(daemon: Daemon, image: str) -> None:
    container = start(
        daemon,
        image,
        {},
        *("sh", "-c", 'httpd -f -p 5432 & trap "kill $!" USR1; while :; do sleep 0.05; done'),
        Labels={"cove.health.probe": "tcp://:5432"},
    )
    eventually(lambda: health(daemon, container)["Status"] == "healthy")
    assert last_output(daemon, container) == "connected to 127.0.0.1:5432"
    daemon.http("POST", f"/containers/{container}/kill?signal=USR1")
    eventually(lambda: health(daemon, container)["Status"] == "unhealthy")
    assert "Connection refused" in last_output(daemon, container)
    remove(daemon, container)


@pytest.mark.parametrize(
    ("piece", "repeats", "code", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 1000, True, 1, "the head of the answer is over 16384 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"y" * 9000, True, 0, "HTTP/1.1 200 OK\nyyyy"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 100, True, -1, "exceeded timeout (1s)"),
        (b"\0\377 no HTTP", False, 1, "no HTTP answer, but 10 bytes"),
        (b"", True, -1, "exceeded timeout (1s)"),
    ],
)
def test_a_hostile_server_costs_one_bounded_result(
    daemon: Daemon, image: str, piece: bytes, repeats: bool, code: int, said: str
) -> None:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(BOUND_S)
            with contextlib.suppress(OSError):
                self.request.recv(4096)
                self.request.sendall(piece)
                while repeats and piece:
                    self.request.sendall(piece)
                if repeats:
                    self.request.recv(4096)  # until the probe hangs up

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        cove = {"health.probe": f"http://127.0.0.1:{server.server_address[1]}/"}
        timeout = {"Timeout": 1000 * MS}
        container = start(daemon, image, cove, "sleep", "1000", NetworkMode="host", health=timeout)
        eventually(lambda: len(health(daemon, container)["Log"]) > 0)
        first = health(daemon, container)["Log"][0]
        assert first["ExitCode"] == code
        assert said in first["Output"]
        assert len(first["Output"]) <= 4096
        remove(daemon, container)
        server.shutdown()
        thread.join()


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[int]:
    """A server with a certificate of its own, on the host's loopback."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-subj", "/CN=test", "-keyout", key, "-out", certificate],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200 if self.headers["X-Token"] == "abc" else 403)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"3\r\nall\r\n5\r\n good\r\n0\r\n\r\n")

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_https_probe_sends_headers_and_verifies_nothing(
    daemon: Daemon, image: str, tls_server: int
) -> None:
    cove = {"health.probe": f"https://127.0.0.1:{tls_server}/x", "health.probe.headers": "X-Token: abc"}
    container = start(daemon, image, cove, "sleep", "1000", NetworkMode="host")
    eventually(lambda: health(daemon, container)["Status"] == "healthy")
    assert last_output(daemon, container) == "HTTP/1.1 200 OK\nall good"
    remove(daemon, container)


def test_one_that_is_unhealthy_restarts_and_its_pauses_grow(daemon: Daemon, image: str) -> None:
    cove = {"health.probe": "tcp://:1", "health.on-failure": "restart"}
    container = start(daemon, image, cove, "sleep", "1000", StopSignal="KILL")
    eventually(
        lambda: daemon.http("GET", f"/containers/{container}/json").json()["RestartCount"] >= 3,
    )
    daemon.http("POST", f"/containers/{container}/stop")
    shown = daemon.http("GET", f"/containers/{container}/json").json()
    assert shown["State"]["Status"] == "exited"
    filters = json.dumps({"container": [container]})
    events = daemon.http("GET", f"/events?since=1&until={time.time():.0f}&filters={quote(filters)}")
    actions = [line for line in events.body.decode().splitlines() if "health_action: restart" in line]
    assert len(actions) >= 2  # the last one may have come within this second
    remove(daemon, container)


@pytest.mark.parametrize(("action", "policy", "code"), [("stop", "always", 0), ("kill", "no", 137)])
def test_one_that_is_unhealthy_is_stopped_or_killed(
    daemon: Daemon, image: str, action: str, policy: str, code: int
) -> None:
    container = create(
        daemon,
        image,
        *("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done"),
        Healthcheck={"Test": ["CMD", "false"], "Interval": 20 * MS, "Retries": 1},
        RestartPolicy={"Name": policy},
        Labels={"cove.health.on-failure": action},
    )
    daemon.http("POST", f"/containers/{container}/start")
    assert wait(daemon, container) in (code, 143)
    eventually(lambda: state(daemon, container)["Status"] == "exited")
    kept = health(daemon, container)
    assert kept["Status"] == "unhealthy"
    assert kept["FailingStreak"] == len(kept["Log"]) >= 1
    assert daemon.http("GET", f"/containers/{container}/json").json()["RestartCount"] == 0
    remove(daemon, container)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"cove.health.on-failur": "restart"}, "did you mean health.on-failure?"),
        ({"cove.health.on-failure": "reboot"}, "expected none, kill, stop, restart"),
        ({"cove.health.probe": "ftp://:1"}, "e.g. http://:8080/healthz"),
        ({"cove.health.probe": "http://:8080/a b"}, "e.g. http://:8080/healthz"),
        ({"cove.health.probe": "http://999.1.1.1:80"}, "is not an address"),
        ({"cove.health.probe.status": "200"}, "only an http or https health.probe"),
        ({"cove.health.probe": "http://:1", "cove.health.probe.headers": "a: b\r\nno header"}, "Name: value"),
    ],
)
def test_a_bad_setting_is_refused_by_name(
    daemon: Daemon, image: str, labels: dict[str, str], said: str
) -> None:
    answer = daemon.http("POST", "/containers/create", {"Image": image, "Cmd": ["true"], "Labels": labels})
    assert answer.status == 400
    assert said in answer.message
    assert next(iter(labels)).removeprefix("cove.").split(".")[0] in answer.message
