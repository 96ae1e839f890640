"""`docker login`: the engine asks the registry, with a password or for a token. The registry is the test's own."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import docker
import pytest

from tests.daemon import Daemon

BASIC = "Basic " + base64.b64encode(b"ada:right").decode()


class Registry(BaseHTTPRequestHandler):
    """Takes ada's password, at /v2/ itself or at its token service."""

    tokens: ClassVar[bool] = False

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "")
        if self.path.startswith("/token?"):
            ok = given == BASIC and "service=test" in self.path and "account=ada" in self.path
            self.answer(200 if ok else 401, json.dumps({"token": "t0ken"} if ok else {}).encode())
        elif given == ("Bearer t0ken" if self.tokens else BASIC):
            self.answer(200)
        else:
            realm = f"http://{self.headers['Host']}/token"
            self.answer(401, challenge=f'Bearer realm="{realm}",service="test"' if self.tokens else "Basic")

    def answer(self, status: int, body: bytes = b"{}", challenge: str = "") -> None:
        self.send_response(status)
        if challenge:
            self.send_header("WWW-Authenticate", challenge)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=[False, True], ids=["password", "token"])
def registry(request: pytest.FixtureRequest) -> Iterator[str]:
    kind = type("Kind", (Registry,), {"tokens": request.param})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_registry_s_word_is_passed_on(daemon: Daemon, registry: str) -> None:
    client = docker.APIClient(base_url=daemon.host, version="auto")
    assert client.login("ada", "right", registry=registry)["Status"] == "Login Succeeded"
    wrong = daemon.http(
        "POST", "/auth", {"username": "ada", "password": "wr0ng-secret", "serveraddress": registry}
    )
    assert wrong.status == 401 and "wrong password" in wrong.message
    assert "wr0ng-secret" not in wrong.message + daemon.log_text()
    client.close()


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({}, 400, "username: is missing"),
        ({"username": "a", "serveraddress": "ftp://x"}, 400, "isn't a registry's address"),
        ({"username": "a", "serveraddress": "x:99999"}, 400, "isn't a registry's address"),
        ({"username": "a", "serveraddress": "127.0.0.1:1"}, 503, "the registry 127.0.0.1:1 can't be asked"),
        ({"identitytoken": "t", "serveraddress": "x y"}, 400, "isn't a registry's address"),
    ],
)
def test_what_can_t_be_asked_is_said(
    daemon: Daemon, body: dict[str, str], status: int, sentence: str
) -> None:
    answer = daemon.http("POST", "/auth", body)
    assert (answer.status, sentence in answer.message) == (status, True), answer.message
