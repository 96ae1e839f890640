"""Requests: their ids, and the lines that they leave in the daemon's log."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon import IMAGE, Daemon


@pytest.fixture(scope="module")
def talkative() -> Iterator[Daemon]:
    with Daemon("--log-format", "json") as daemon:
        daemon.load_image()
        yield daemon


def lines(daemon: Daemon, request: str) -> list[dict[str, Any]]:
    """The log's lines about a request, once its own is there."""
    deadline = time.monotonic() + 30
    while True:
        found = [
            line for line in map(json.loads, daemon.log_text().splitlines()) if line.get("request") == request
        ]
        if any("route" in line for line in found):
            return found
        assert time.monotonic() < deadline, f"no line about {request}"
        time.sleep(0.02)


def test_a_clients_id_comes_back_and_stands_on_the_requests_line(talkative: Daemon) -> None:
    answer = talkative.http(
        "GET", "/v1.43/containers/nothing-secret/json?size=1", headers={"X-Request-Id": "abc-1"}
    )
    assert answer.status == 404 and answer.headers["x-request-id"] == "abc-1"
    (line,) = lines(talkative, "abc-1")
    assert (line["method"], line["route"], line["status"]) == ("GET", "/containers/{name}/json", 404)
    assert 0 <= line["ms"] < 10_000 and line["level"] == "debug"
    assert "nothing-secret" not in talkative.log_text()


@pytest.mark.parametrize("asked", ["", "a b", 'x"y', "é", "x" * 129])
def test_an_id_that_is_no_plain_word_is_replaced(talkative: Daemon, asked: str) -> None:
    first, second = (
        talkative.http("GET", "/_ping", headers={"X-Request-Id": asked.encode("latin-1").decode("latin-1")})
        for _ in range(2)
    )
    assert first.headers["x-request-id"] not in ("", asked, second.headers["x-request-id"])


def test_secrets_in_bodies_and_queries_are_never_logged(talkative: Daemon) -> None:
    body = {
        "Image": IMAGE,
        "Cmd": ["true"],
        "Env": ["PASSWORD=hunter2-env"],
        "Labels": {"x": "hunter2-label"},
    }
    answer = talkative.http(
        "POST", "/containers/create?name=q-hunter2", body, headers={"X-Request-Id": "made"}
    )
    talkative.http(
        "POST", "/auth", {"username": "u", "password": "hunter2-auth"}, headers={"X-Request-Id": "auth"}
    )
    lines(talkative, "made"), lines(talkative, "auth")
    talkative.http("DELETE", f"/containers/{answer.json()['Id']}")
    assert "hunter2" not in talkative.log_text()


def test_a_flood_of_requests_leaves_a_bounded_log(talkative: Daemon) -> None:
    before = talkative.log_path.stat().st_size
    begun = time.monotonic()
    for _ in range(1500):
        talkative.http("GET", "/nothing/here")
    allowed = 200 + 50 * (time.monotonic() - begun) + 10
    grown = talkative.log_path.read_bytes()[before:].splitlines()
    assert len(grown) <= allowed
    deadline = time.monotonic() + 30
    while "left_out" not in (text := talkative.log_text()):
        talkative.http("GET", "/_ping")
        assert time.monotonic() < deadline, text[-500:]
        time.sleep(0.05)
