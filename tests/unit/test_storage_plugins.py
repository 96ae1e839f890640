"""The plugin protocol's client against servers that answer nonsense, too much, or nothing."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest

from cove.model.errors import CoveError, HostError, Invalid, NotFound, Unavailable
from cove.storage.drivers import Drivers
from cove.storage.plugin_client import Plugin, Tls, call, find_plugin, list_plugins


def ask(tmp_path: Path, answer: bytes, *, keep_open: bool = False, bound_s: float = 20) -> object:
    """What a call to a plugin with this answer returns."""

    async def body() -> object:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"POST /VolumeDriver.Get HTTP/1.1\r\n")
            writer.write(answer)
            await writer.drain()
            if keep_open:
                await reader.read()  # until the caller leaves
            writer.close()

        server = await asyncio.start_unix_server(serve, str(tmp_path / "x.sock"))
        try:
            plugin = find_plugin("x", [tmp_path], ())
            return await call(plugin, "VolumeDriver.Get", {"Name": "v"}, bound_s)
        finally:
            server.close()

    return asyncio.run(body())


def answer(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.parametrize(
    "told",
    [
        answer(b'{"a": 1}', Content_Length="8"),
        answer(b'{"a": 1}'),
        answer(b'4\r\n{"a"\r\n4;x=y\r\n: 1}\r\n0\r\n\r\n', Transfer_Encoding="chunked"),
    ],
)
def test_each_framing_of_http_is_read(tmp_path: Path, told: bytes) -> None:
    assert ask(tmp_path, told) == {"a": 1}


@pytest.mark.parametrize(
    ("told", "error", "sentence"),
    [
        (b"nonsense\r\n\r\n", HostError, "no status line"),
        (b"x: " + b"y" * (1 << 18) + b"\r\n\r\n", HostError, "bytes of headers"),
        (answer(b"", Content_Length="99999999999"), HostError, "the limit is"),
        (answer(b"-5\r\n", Transfer_Encoding="chunked"), HostError, "the limit|more than"),
        (answer(b"zz\r\n", Transfer_Encoding="chunked"), HostError, "no HTTP"),
        (answer(b"{", Content_Length="1"), HostError, "expected a JSON object"),
        (answer(b"[1]", Content_Length="3"), HostError, "expected a JSON object"),
        (answer(b'{"Err": "no"}', "500 Oops", Content_Length="13"), HostError, "VolumeDriver.Get: no"),
        (answer(b"sorry", "500 Oops", Content_Length="5"), HostError, "status 500: sorry"),
        (answer(b"what?", "404 Not Found", Content_Length="5"), NotFound, "has no VolumeDriver.Get"),
        (answer(b"{}", Content_Length="50"), Unavailable, "VolumeDriver.Get"),
    ],
)
def test_nonsense_is_told_as_that(tmp_path: Path, told: bytes, error: type[CoveError], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        ask(tmp_path, told)


def test_a_body_without_end_is_bounded(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="a body of more than"):
        ask(tmp_path, answer(b"x" * (9 << 20)))


def test_no_answer_in_time_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no answer within"):
        ask(tmp_path, b"HTTP/1.1 200 OK\r\n", keep_open=True, bound_s=0.2)


def test_plugins_are_found_by_socket_before_specification(tmp_path: Path) -> None:
    sockets, specs = tmp_path / "sockets", tmp_path / "specs"
    (sockets / "deep").mkdir(parents=True)
    specs.mkdir()
    listening = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    listening[0].bind(str(sockets / "plain.sock"))
    listening[1].bind(str(sockets / "deep/deep.sock"))
    (sockets / "file.sock").write_text("no socket")
    (specs / "plain.spec").write_text("tcp://other:1")
    (specs / "text.spec").write_text(" tcp://host:99\n")
    told = {
        "Name": "json",
        "Addr": "https://host:1",
        "TLSConfig": {"CAFile": "/ca.pem", "InsecureSkipVerify": True},
    }
    (specs / "json.json").write_text(json.dumps(told))
    (specs / "bad.json").write_text("{")
    try:
        find = lambda name: find_plugin(name, [sockets], [specs])  # noqa: E731
        assert find("plain") == Plugin("plain", f"unix://{sockets}/plain.sock")
        assert find("deep").address == f"unix://{sockets}/deep/deep.sock"
        assert find("text") == Plugin("text", "tcp://host:99")
        assert find("json") == Plugin("json", "https://host:1", Tls(ca="/ca.pem", insecure=True))
        with pytest.raises(Invalid):
            find("bad")
        for name in ("file", "gone", "../specs/text", "", "a/b"):
            with pytest.raises(NotFound):
                find(name)
        assert list_plugins([sockets], [specs]) == ["deep", "json", "plain", "text"]
    finally:
        for one in listening:
            one.close()


def test_a_silent_plugin_is_asked_once_and_then_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cove.storage.drivers.LIST_S", 0.2)
    asked = 0

    async def body() -> None:
        nonlocal asked

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            asked += 1
            await reader.read()
            writer.close()

        server = await asyncio.start_unix_server(serve, str(tmp_path / "mute.sock"))
        try:
            drivers = Drivers([tmp_path])
            for _ in range(3):
                found, warnings = await drivers.list(())
                assert not found and "mute" in warnings[0]
        finally:
            server.close()

    asyncio.run(body())
    assert asked == 1
