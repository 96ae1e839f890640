"""Any request to any endpoint of a real daemon: an answer or a sentence, never a 500 nor a traceback.

The endpoints are those of the reference (tests/golden/docker-api/names.txt) and Cove's own; the bodies are of the API's
shapes. The examples are the same in every run; COVE_FUZZ=N makes N random ones instead:

    COVE_FUZZ=20000 .venv/bin/python -m pytest --timeout 0 tests/system/test_fuzz_endpoints.py
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cove.api import cove_secrets, cove_storage, cove_v1
from cove.api.docker import wire
from tests.apishapes import shaped, values
from tests.daemon import Daemon

NAMES = Path(__file__).parent.parent / "golden/docker-api/names.txt"
RANDOM = int(os.environ.get("COVE_FUZZ", "0"))
BOUNDED = settings(
    max_examples=RANDOM or 300,
    derandomize=not RANDOM,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
SHAPES: dict[str, type[msgspec.Struct]] = {
    "POST /containers/create": wire.CreateBody,
    "POST /containers/{id}/update": wire.UpdateBody,
    "POST /containers/{id}/exec": wire.ExecCreateBody,
    "POST /exec/{id}/start": wire.ExecStartBody,
    "POST /networks/create": wire.NetworkBody,
    "POST /networks/{id}/connect": wire.ConnectBody,
    "POST /networks/{id}/disconnect": wire.DisconnectBody,
    "POST /volumes/create": wire.VolumeBody,
    "POST /commit": wire.Config,
    "POST /cove/v1/plan": wire.CreateBody,
}
# Nothing here is a path of the host: a bind would make it there.
words = st.sampled_from(
    ["", "web", "host", "container:web", "80/tcp", "0-1", "1-0", "no", "always", "c 1:3 rwm", "192.0.2.1", "::1", "A=b",
     "seccomp=unconfined", "seccomp={}", "bind", "volume", "tmpfs", "size=1m", "nofile", "rshared", "x" * 300, "\0",
     "8000-8010", "db:host-gateway", "data:/b:ro", "local", "net", "bridge", "172.31.255.0/24", "fd00::/64", "busybox",
     "/proc", "../x", "%n", "${jndi}", "\u202e"]
) | st.text(st.characters(exclude_characters="/"), max_size=12)  # fmt: skip
PARAMETERS = (
    "all author changes checkpoint comment condition container containers copyUIDGID detachKeys details digests filter "
    "filters follow force fromImage fromSrc h limit link logs manifests message name names noOverwriteDirNonDir "
    "noprune one-shot path pause platform ps_args quiet repo scope shared-size signal since size "
    "stderr stdin stdout stream t tag tail timestamps type until v verbose w"
).split()
query_values = st.sampled_from(
    ["", "1", "0", "true", "x", "-1", "9" * 20, "{}", '{"label":["a"]}', '{"status":{"running":true}}',
     '{"x":["y"]}', '{"until":["1h"]}', '{"name":["("]}', "[", "%zz", "%ff", "web", "/etc", "/etc/../..", "TERM", "1.5"]
) | st.text(max_size=10)  # fmt: skip
names = st.sampled_from(
    ["web", "job", "data", "net", "{exec}", "busybox", "busybox:latest", "nothing", "a/b", "%00", "%2e%2e", "é",
     "sha256:ab", "bridge", "x" * 300]
)  # fmt: skip


def endpoints() -> list[str]:
    """METHOD PATH of every endpoint, Cove's own among them."""
    lines = [line.split() for line in NAMES.read_text().splitlines() if line.startswith(tuple("GHPD"))]
    found = [f"{words[0]} {words[1]}" for words in lines if words[1].startswith("/")]
    own = (*cove_v1.ROUTES, *cove_secrets.ROUTES, *cove_storage.ROUTES)
    return [*found, *(f"{method} {pattern}" for method, pattern, _ in own)]


class Target:
    """A daemon with one of each kind of object, made again when a request took it away."""

    def __init__(self, daemon: Daemon, image: str) -> None:
        self.daemon = daemon
        self.image = image
        self.exec_id = ""
        self.ensure()

    def ensure(self) -> None:
        daemon = self.daemon
        if daemon.http("GET", "/images/busybox/json").status != 200:
            daemon.load_image()
        for name, command in (("web", ["sleep", "1000"]), ("job", ["true"])):
            if daemon.http("GET", f"/containers/{name}/json").status != 200:
                body = {"Image": self.image, "Cmd": command, "HostConfig": {"NetworkMode": "none"}}
                assert daemon.http("POST", f"/containers/create?name={name}", body).status == 201
                daemon.http("POST", f"/containers/{name}/start")
                self.exec_id = ""
        if not self.exec_id:
            made = daemon.http("POST", "/containers/web/exec", {"Cmd": ["true"], "AttachStdout": True})
            self.exec_id = str(made.json().get("Id", "")) if made.status == 201 else ""
        daemon.http("POST", "/volumes/create", {"Name": "data"})
        if daemon.http("GET", "/networks/net").status != 200:
            daemon.http("POST", "/networks/create", {"Name": "net"})

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of an answer; the body of an endless one is what came within a moment."""
        with self.daemon.connect() as sock:
            sock.settimeout(60)
            sock.sendall(request)
            data = b""
            while b"\r\n\r\n" not in data and (piece := sock.recv(65536)):
                data += piece
            head, _, body = data.partition(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            if match := re.search(rb"content-length: (\d+)", head, re.IGNORECASE):
                while (
                    len(body) < int(match[1])
                    and not request.startswith(b"HEAD")
                    and (piece := sock.recv(65536))
                ):
                    body += piece
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            return status, body


@pytest.fixture
def target(daemon: Daemon, image: str) -> Iterator[Target]:
    target = Target(daemon, image)
    yield target
    for found in daemon.http("GET", "/containers/json?all=1").json():
        daemon.http("POST", f"/containers/{found['Id']}/unpause")
        assert daemon.http("DELETE", f"/containers/{found['Id']}?force=1&v=1").status == 204
    daemon.http("POST", "/networks/prune")
    daemon.http("POST", '/volumes/prune?filters={"all":["true"]}')


def safe(body: Any, base: str) -> Any:
    """A body without what would leave the test's own ground: cgroups elsewhere, restarts for ever."""
    if isinstance(body, dict) and isinstance(host := body.get("HostConfig"), dict):
        if host.get("CgroupParent"):
            host["CgroupParent"] = f"{base}/fuzz"
        host.pop("RestartPolicy", None)
    return body


def bodies(endpoint: str) -> st.SearchStrategy[Any]:
    shape = SHAPES.get(endpoint)
    if shape is None:
        return st.none() | values
    filled = shaped(shape, words)
    if shape is wire.CreateBody:  # most of these would stop at the image
        filled = st.builds(lambda body: {"Image": "busybox", "Cmd": ["true"], **body}, filled)
    return filled | filled | values


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, str, list[tuple[str, str, bool]], Any, int]:
    endpoint = draw(st.sampled_from(endpoints()))
    query = draw(st.lists(st.tuples(st.sampled_from(PARAMETERS), query_values, st.booleans()), max_size=4))
    return (
        endpoint,
        draw(names),
        query,
        draw(bodies(endpoint)),
        draw(st.sampled_from([1024, 1040, 1043, 1047, 1055])),
    )


@given(requests())
@BOUNDED
def test_no_request_to_a_real_daemon_ends_in_a_500(
    target: Target, request_: tuple[str, str, list[tuple[str, str, bool]], Any, int]
) -> None:
    endpoint, name, query, body, version = request_
    method, path = endpoint.split(" ")
    if path.endswith("/wait") or (endpoint == "POST /containers/{id}/pause" and name == "web"):
        name = "job"
    name = target.exec_id or "none" if name == "{exec}" else name
    parameters = "&".join(
        f"{key}={quote(value) if quoted else quote(value, safe='%&=')}" for key, value, quoted in query
    )
    path = re.sub(r"\{\w+\}", lambda _: quote(name, safe="/%"), path)
    if not path.startswith("/cove"):
        path = f"/v{version // 1000}.{version % 1000}{path}"
    payload = b"" if body is None else json.dumps(safe(body, target.daemon.names.cgroup_parent)).encode()
    path += f"?{parameters}" if parameters else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(payload)}\r\n"
    head += "Content-Type: application/json\r\n" if payload else ""
    status, answer = target.ask(head.encode() + b"\r\n" + payload)
    assert status < 500 or status in (501, 503), (head, payload, answer)
    if status >= 400 and method != "HEAD":
        assert json.loads(answer)["message"], (head, answer)
    if endpoint == "POST /containers/create" and status == 201:
        made = json.loads(answer)["Id"]
        started, said = target.ask(f"POST /containers/{made}/start HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert started in (204, 400, 404, 409), (payload, said)
        target.daemon.http("DELETE", f"/containers/{made}?force=1&v=1")
    if method != "GET":
        target.ensure()
    assert target.daemon.http("GET", "/_ping").body == b"OK"
    assert "Traceback" not in target.daemon.log_text()
