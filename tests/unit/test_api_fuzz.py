"""Random bodies, query strings and bytes: refused with a sentence, never with a 500, and the server lives."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cove.api.docker import ROUTES, wire
from cove.api.docker.decode import decode_create
from cove.api.docker.text import human_duration, parse_time
from cove.model.errors import CoveError
from tests.apishapes import shaped, values
from tests.unit.fakes_engine import ApiFixture, serving

BOUNDED = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def api() -> Iterator[ApiFixture]:
    with serving() as fixture:
        fixture.create("web")
        fixture.call(fixture.engine.go.set)  # uploads aren't held
        yield fixture


@given(shaped(wire.CreateBody), st.integers(1024, 1055))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_create_body_becomes_a_spec_or_a_sentence(body: dict[str, Any], version: int) -> None:
    try:
        decoded = wire.decode(json.dumps({"Image": "debian", **body}).encode(), wire.CreateBody)
        spec = decode_create(decoded, name="x", platform="", version=version, cpus=2).spec
    except CoveError as error:
        assert str(error)
        return
    assert msgspec.json.decode(msgspec.json.encode(spec), type=type(spec)) == spec


@given(values)
@BOUNDED
def test_any_json_is_a_body_or_a_refusal(value: Any) -> None:
    for shape in (wire.CreateBody, wire.UpdateBody, wire.NetworkBody, wire.ExecStartBody):
        try:
            wire.decode(json.dumps(value).encode(), shape)
        except CoveError as error:
            assert str(error)


@given(st.text(max_size=30))
def test_any_time_is_parsed_or_refused(text: str) -> None:
    try:
        parse_time(text, "since", 10**18)
    except CoveError:
        pass


@given(st.floats(0, 1e12))
def test_every_duration_has_words(seconds: float) -> None:
    assert human_duration(seconds)


STREAMS = {"/events", "/containers/{name}/wait", "/containers/{name}/pause", "/containers/{name}/logs",
           "/containers/{name}/stats", "/containers/{name}/attach", "/exec/{name}/start"}  # fmt: skip
CALLS = [(method, pattern) for method, pattern, _ in ROUTES if pattern not in STREAMS]
PARAMETERS = (
    "all limit size filters name platform t signal force v link h w condition path type names fromSrc repo tag "
    "ps_args noprune scope"
).split()
query_values = st.sampled_from(
    ["", "1", "0", "true", "x", "-1", "9" * 20, "{}", '{"label":["a"]}', '{"status":{"running":true}}',
     '{"x":["y"]}', '{"until":["1h"]}', '{"name":["("]}', "[", "%zz", "%ff", "web", "/etc"]
) | st.text(max_size=10)  # fmt: skip


@given(
    st.sampled_from(CALLS),
    st.sampled_from(["web", "nothing", "a/b", "%00", "%2e%2e", "é", "sha256:ab"]),
    st.lists(st.tuples(st.sampled_from(PARAMETERS), query_values, st.booleans()), max_size=4),
    st.none() | values,
)
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_ends_in_a_500(
    api: ApiFixture, call: tuple[str, str], name: str, query: list[tuple[str, str, bool]], body: Any
) -> None:
    method, pattern = call
    text = "&".join(
        f"{key}={quote(value) if quoted else quote(value, safe='%&=')}" for key, value, quoted in query
    )
    target = "/v1.55" + pattern.replace("{name}", quote(name, safe="/%")) + (f"?{text}" if text else "")
    answer = api.ask(method, target, json.dumps(body).encode() if body is not None else None)
    assert answer.status != 500, answer.body
    if answer.status >= 400 and method != "HEAD":
        assert answer.message


TOKENS = st.sampled_from(
    [b"GET ", b"POST ", b"/_ping", b"/containers/web/attach", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\n", b"\r\n\r\n",
     b"Content-Length: 5", b"Content-Length: 0", b"Transfer-Encoding: chunked", b"Upgrade: tcp", b"5\r\nhello\r\n",
     b"Connection: close", b"Expect: 100-continue", b"0\r\n\r\n", b":", b" ", b"\0", b"\xff", b"%", b"?", b"v1.24/"]
)  # fmt: skip


@given(st.lists(TOKENS | st.binary(max_size=20), max_size=20), st.booleans())
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_server_lives_whatever_bytes_arrive(api: ApiFixture, parts: list[bytes], whole: bool) -> None:
    client = api.connect()
    with contextlib.suppress(OSError):
        for part in [b"".join(parts)] if whole else parts:
            client.send(part)
        client.sock.shutdown(socket.SHUT_WR)
    client.rest()  # the server answers what it can, and closes: bounded by the socket's timeout
    client.close()
    assert api.ask("GET", "/_ping").body == b"OK"
