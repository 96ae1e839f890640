"""Attach by WebSocket: what clients send and get, in whatever frames, and what ends a session."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator

import docker
import pytest
import websocket
from websocket import ABNF

from tests.apikit import create, eventually, remove, run, start, state, wait
from tests.daemon import Daemon

BOUND_S = 60.0
CAT = ("sh", "-c", "while read line; do echo got $line; test $line = end && exit 7; done")


def attach(daemon: Daemon, container: str, query: str = "stdin=1&stdout=1&stderr=1&stream=1", version: str = "1.55",
           **options: object) -> websocket.WebSocket:  # fmt: skip
    """A connected client."""
    return websocket.create_connection(
        f"ws://localhost/v{version}/containers/{container}/attach/ws?{query}",
        sockopt=(), timeout=BOUND_S, socket=daemon.connect(BOUND_S), suppress_origin=True, **options,
    )  # fmt: skip


def read_until(client: websocket.WebSocket, wanted: bytes) -> bytes:
    found = b""
    while wanted not in found:
        opcode, data = client.recv_data()
        assert opcode in (ABNF.OPCODE_BINARY, ABNF.OPCODE_TEXT), (opcode, data, found)
        found += data
    return found


@pytest.fixture
def echo(daemon: Daemon, image: str) -> Iterator[str]:
    """A container that answers lines."""
    container = run(daemon, image, *CAT, OpenStdin=True)
    yield container
    remove(daemon, container)


def test_input_goes_in_and_output_comes_out(daemon: Daemon, echo: str) -> None:
    client = attach(daemon, echo)
    client.send_binary(b"one\n")
    assert read_until(client, b"\n") == b"got one\n"
    client.send("two\n")  # text is as good
    assert read_until(client, b"\n") == b"got two\n"
    client.send_binary(b"end\n")
    read_until(client, b"got end\n")
    opcode, data = client.recv_data()
    assert opcode == ABNF.OPCODE_CLOSE and struct.unpack("!H", data[:2]) == (1000,)
    assert wait(daemon, echo) == 7
    client.close()


def test_fragments_and_pings_between_them_are_one_message(daemon: Daemon, echo: str) -> None:
    client = attach(daemon, echo)
    client.send_frame(ABNF.create_frame(b"par", ABNF.OPCODE_BINARY, fin=0))
    client.ping(b"still there?")
    client.send_frame(ABNF.create_frame(b"", ABNF.OPCODE_CONT, fin=0))
    client.send_frame(ABNF.create_frame(b"ts\n", ABNF.OPCODE_CONT, fin=1))
    opcode, frame = client.recv_data_frame(control_frame=True)
    assert (opcode, frame.data) == (ABNF.OPCODE_PONG, b"still there?")
    assert read_until(client, b"\n") == b"got parts\n"
    client.close()


def test_a_client_that_attaches_before_the_start_misses_nothing(daemon: Daemon, image: str) -> None:
    container = create(daemon, image, "sh", "-c", "echo out; echo err >&2")
    try:
        client = attach(daemon, container, "stdout=1&stream=1")
        every = attach(daemon, container, "stream=1", version="1.41")  # they chose all streams
        start(daemon, container)
        assert read_until(client, b"\n") == b"out\n"
        assert client.recv_data()[0] == ABNF.OPCODE_CLOSE
        both = read_until(every, b"\n")
        both += b"" if both.count(b"\n") == 2 else read_until(every, b"\n")
        assert sorted(both.split()) == [b"err", b"out"]
        client.close()
        every.close()
    finally:
        remove(daemon, container)


def test_logs_come_first_and_without_stream_alone(daemon: Daemon, image: str) -> None:
    lines = 20_000  # more than a pair of sockets holds
    container = run(daemon, image, "sh", "-c", f"seq {lines}; read x; echo end", OpenStdin=True)
    try:
        eventually(
            lambda: f"{lines}\n".encode() in daemon.http("GET", f"/containers/{container}/logs?stdout=1").body
        )
        client = attach(daemon, container, "stdin=1&stdout=1&stream=1&logs=1")
        assert read_until(client, f"\n{lines}\n".encode()).count(b"\n") == lines
        client.send_binary(b"\n")
        assert read_until(client, b"\n") == b"end\n"
        client.close()
        wait(daemon, container)
        again = attach(daemon, container, "stdout=1&logs=1")
        assert read_until(again, b"end\n").count(b"\n") == lines + 1
        assert again.recv_data()[0] == ABNF.OPCODE_CLOSE
        again.close()
    finally:
        remove(daemon, container)


@pytest.mark.parametrize(("version", "opcode"), [("1.27", ABNF.OPCODE_TEXT), ("1.28", ABNF.OPCODE_BINARY)])
def test_messages_are_text_before_1_28_and_binary_since(
    daemon: Daemon, image: str, version: str, opcode: int
) -> None:
    container = create(daemon, image, "sh", "-c", r"printf 'caf\303\251 \377'")
    try:
        client = attach(daemon, container, "stream=1", version=version)
        start(daemon, container)
        first, found = client.recv_data()
        while (next_ := client.recv_data())[0] != ABNF.OPCODE_CLOSE:
            found += next_[1]
        assert first == opcode
        assert found == (
            "café \N{REPLACEMENT CHARACTER}".encode() if opcode == ABNF.OPCODE_TEXT else b"caf\xc3\xa9 \xff"
        )
        client.close()
    finally:
        remove(daemon, container)


def test_a_client_that_goes_leaves_the_container_running(daemon: Daemon, echo: str) -> None:
    polite = attach(daemon, echo)
    polite.close(status=1000)
    cut = attach(daemon, echo)
    cut.sock.shutdown(socket.SHUT_RDWR)
    cut.sock.close()
    client = attach(daemon, echo)
    client.send_binary(b"on\n")
    assert read_until(client, b"\n") == b"got on\n"
    client.close()
    assert state(daemon, echo)["Running"]


def test_detach_keys_end_the_session_and_not_the_container(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "cat", OpenStdin=True, Tty=True)
    try:
        client = attach(daemon, container, "stdin=1&stdout=1&stream=1&detachKeys=ctrl-a,b")
        client.send_binary(b"\x01b")
        while (found := client.recv_data())[0] != ABNF.OPCODE_CLOSE:
            pass
        assert struct.unpack("!H", found[1][:2]) == (1000,)
        assert state(daemon, container)["Running"]
        client.close()
    finally:
        remove(daemon, container)


def test_a_frame_against_the_protocol_ends_the_session_with_its_code(daemon: Daemon, echo: str) -> None:
    client = attach(daemon, echo)
    client.sock.sendall(b"\x82\x02hi")  # a client's frame has to be masked
    answer = client.sock.recv(4096)  # the library would answer a session that has ended
    assert answer[0] == 0x88 and struct.unpack("!H", answer[2:4]) == (1002,)
    client.sock.close()
    assert state(daemon, echo)["Running"]


def test_a_client_that_never_reads_holds_back_only_itself(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "sh", "-c", "while :; do echo 0123456789abcdef; done")
    try:
        slow = attach(daemon, container, "stdout=1&stream=1")
        before = memory_kib(daemon.pid)
        assert daemon.http("GET", "/containers/json").status == 200
        assert memory_kib(daemon.pid) - before < 16 << 10
        slow.sock.close()
        remove(daemon, container)
    finally:
        remove(daemon, container)


def memory_kib(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:"))


def handshake(daemon: Daemon, path: str, **changes: str) -> tuple[int, str]:
    headers = {
        "Host": "localhost", "Upgrade": "websocket", "Connection": "keep-alive, Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(), "Sec-WebSocket-Version": "13",
    }  # fmt: skip
    for name, value in changes.items():
        headers[name.replace("_", "-")] = value
    sock = daemon.connect(BOUND_S)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)
    sock.sendall(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
    with sock, sock.makefile("rb") as file:
        status = int(file.readline().split()[1])
        size = 0
        while (line := file.readline().strip()) != b"":
            if line.lower().startswith(b"content-length:"):
                size = int(line.split(b":")[1])
        return status, json.loads(file.read(size))["message"] if size else ""


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({}, 101, ""),
        ({"Upgrade": "tcp"}, 400, "expected Upgrade: websocket"),
        ({"Connection": ""}, 400, "expected Upgrade: websocket and Connection"),
        ({"Sec_WebSocket_Version": "8"}, 400, "expected Sec-WebSocket-Version: 13"),
        ({"Sec_WebSocket_Key": "short"}, 400, "has to be 16 bytes"),
        ({"Origin": "http://localhost"}, 101, ""),
        ({"Origin": "https://evil.example"}, 403, "isn't this daemon"),
    ],
)
def test_a_handshake_is_checked(
    daemon: Daemon, echo: str, changes: dict[str, str], status: int, message: str
) -> None:
    got, told = handshake(daemon, f"/containers/{echo}/attach/ws?stream=1&stdout=1", **changes)
    assert got == status and message in told


def test_what_can_not_be_attached_is_told_by_status(daemon: Daemon, echo: str) -> None:
    assert handshake(daemon, "/containers/nosuch/attach/ws?stream=1")[0] == 404
    assert handshake(daemon, f"/containers/{echo}/attach/ws")[0] == 400
    assert handshake(daemon, f"/containers/{echo}/ws?stream=1")[0] == 404
    daemon.http("POST", f"/containers/{echo}/pause")
    assert handshake(daemon, f"/containers/{echo}/attach/ws?stream=1")[0] == 409
    daemon.http("POST", f"/containers/{echo}/unpause")


def test_a_daemon_that_ends_says_so_and_its_container_goes_on(fresh_daemon: Daemon, image: str) -> None:
    container = run(fresh_daemon, image, *CAT, OpenStdin=True)
    client = attach(fresh_daemon, container)
    found: list[ABNF] = []
    reader = threading.Thread(target=lambda: found.append(client.recv_frame()))
    reader.start()
    fresh_daemon.restart()
    reader.join(BOUND_S)
    assert found[0].opcode == ABNF.OPCODE_CLOSE and struct.unpack("!H", found[0].data[:2]) == (1001,)
    again = attach(fresh_daemon, container)
    again.send_binary(b"still\n")
    assert read_until(again, b"\n") == b"got still\n"
    again.close()
    client.close()


def test_the_docker_sdk_attaches_by_websocket_over_tcp(image: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with Daemon("-H", f"tcp://127.0.0.1:{port}") as daemon:
        daemon.load_image()
        client = docker.APIClient(base_url=f"tcp://127.0.0.1:{port}", version="auto")
        container = client.create_container(image, ["sh", "-c", "echo hi there"], detach=True)
        stream = client.attach_socket(container, {"stdout": 1, "stream": 1, "logs": 1}, ws=True)
        client.start(container)
        assert stream.recv() == b"hi there\n"
        stream.close()
        client.remove_container(container, force=True)
        client.close()
