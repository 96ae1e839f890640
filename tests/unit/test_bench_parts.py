"""The benchmark's client, its reading of /proc and its image archives."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.client import ApiError, Client
from bench.images import LINES_SIZE, archive_of, log_lines, synthetic_layer
from bench.procfs import Memory, descendants, memory_of, parse_rollup, parse_status
from bench.workdir import lock, sweep


@contextmanager
def server(path: Path, *answers: bytes, close: bool = False) -> Iterator[list[bytes]]:
    """Answer one connection's requests in turn; yields the requests as they came."""
    requests: list[bytes] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(30)

    def serve() -> None:
        connection, _ = listener.accept()
        connection.settimeout(30)
        with connection:
            for answer in answers:
                requests.append(connection.recv(65536))
                # In pieces, so that a response never arrives at once.
                for start in range(0, len(answer), 7):
                    connection.sendall(answer[start : start + 7])
            if not close:
                connection.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield requests
    finally:
        thread.join(30)
        listener.close()


def test_one_connection_carries_bodies_of_every_kind(tmp_path: Path) -> None:
    answers = (
        b'HTTP/1.1 201 Created\r\nContent-Length: 12\r\n\r\n{"Id":"abc"}',
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{"Status\r\n9\r\nCode": 7}\r\n0\r\n\r\n',
    )
    with server(tmp_path / "s", *answers) as requests, Client(tmp_path / "s") as client:
        assert client.call("POST", "/containers/create", {"Image": "a"}) == {"Id": "abc"}
        assert client.call("POST", "/containers/abc/start") is None
        assert client.call("POST", "/containers/abc/wait") == {"StatusCode": 7}
    assert requests[0].startswith(b"POST /containers/create HTTP/1.1\r\n")
    assert requests[0].endswith(b'Content-Length: 14\r\n\r\n{"Image": "a"}')


def test_an_error_carries_its_status_and_sentence(tmp_path: Path) -> None:
    answer = b'HTTP/1.1 409 Conflict\r\nContent-Length: 27\r\n\r\n{"message":"name is in use"}'
    with server(tmp_path / "s", answer) as _, Client(tmp_path / "s") as client:
        with pytest.raises(ApiError, match="name is in use") as caught:
            client.call("POST", "/containers/create", {})
        assert caught.value.status == 409


def test_an_upload_that_the_engine_refuses_in_its_stream_fails(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"x" * 10)
    answer = b'HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n{"error":"bad archive"}'
    refused = pytest.raises(ApiError, match="bad archive")
    with server(tmp_path / "s", answer), Client(tmp_path / "s") as client, refused:
        client.upload("/images/load", tmp_path / "a.tar")


def test_a_hijacked_stream_is_read_to_its_end(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n" + b"y" * 1000
    with server(tmp_path / "s", answer, close=True) as requests, Client(tmp_path / "s") as client:
        assert client.hijack("/exec/1/start", {"Detach": False}) == 1000
    assert b"Upgrade: tcp" in requests[0]


def test_a_response_cut_short_is_an_error(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"
    refused = pytest.raises(ConnectionError, match="in the middle of a response")
    with server(tmp_path / "s", answer, close=True), Client(tmp_path / "s") as client, refused:
        client.call("GET", "/info")


def test_a_rollup_gives_resident_proportional_and_private_memory() -> None:
    lines = (
        "0-7f rollup",
        "Rss: 120 kB",
        "Pss: 60 kB",
        "Pss_Anon: 9 kB",
        "Private_Clean: 8 kB",
        "Private_Dirty: 32 kB",
    )
    text = "\n".join(lines)
    assert parse_rollup(text) == Memory(rss=120, pss=60, private=40)


def test_memory_of_a_process_that_has_gone_is_nothing() -> None:
    assert memory_of([2**22 + 1]) == Memory()
    assert memory_of([os.getpid()]).rss > 1000


def test_a_status_gives_the_parent_and_the_pids_in_each_namespace() -> None:
    assert parse_status("Name:\ta\nPPid:\t17\nNSpid:\t400\t12\t1\n") == (17, (400, 12, 1))


def test_descendants_hold_the_root_and_what_it_started() -> None:
    ready, end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        os.read(ready, 1)
        os._exit(0)
    try:
        found = descendants(os.getpid())
        assert found[child].parent == os.getpid()
        assert os.getpid() in found
        assert os.getppid() not in found
    finally:
        os.close(end)
        os.close(ready)
        os.waitpid(child, 0)


def test_an_archive_names_layers_by_the_digest_of_their_tar(tmp_path: Path) -> None:
    layer = synthetic_layer(1, 40, 100_000)
    path = archive_of(tmp_path / "a.tar", "bench/a:latest", lambda: iter([layer]))
    with tarfile.open(path) as archive:
        manifest = json.load(archive.extractfile("manifest.json") or io.BytesIO())
        config = json.load(archive.extractfile(manifest[0]["Config"]) or io.BytesIO())
    digest = hashlib.sha256(layer).hexdigest()
    assert manifest[0]["RepoTags"] == ["bench/a:latest"]
    assert manifest[0]["Layers"] == [f"{digest}/layer.tar"]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{digest}"]


def test_a_synthetic_layer_is_the_same_bytes_every_time() -> None:
    layer = synthetic_layer(2, 60, 200_000)
    assert layer == synthetic_layer(2, 60, 200_000)
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        sizes = [entry.size for entry in archive if entry.isfile()]
    assert len(sizes) == 60
    assert abs(sum(sizes) - 200_000) < 2_000


def test_a_failed_archive_leaves_nothing_behind(tmp_path: Path) -> None:
    def layers() -> Iterator[bytes]:
        yield b"x"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        archive_of(tmp_path / "a.tar", "bench/a", layers)
    assert list(tmp_path.iterdir()) == []


def test_the_log_lines_are_whole_lines_of_one_mebibyte() -> None:
    lines = log_lines()
    assert len(lines) == LINES_SIZE
    assert lines.endswith(b"\n")
    assert 60 < len(lines.splitlines()[0]) < 120


def test_what_a_killed_run_left_is_swept_and_a_living_run_is_left_alone(tmp_path: Path) -> None:
    for name in ("cove-bench-dead", "cove-bench-alive", "other"):
        (tmp_path / name / "data").mkdir(parents=True)
    (tmp_path / "cove-bench-new").mkdir()
    held = lock(tmp_path / "cove-bench-alive")
    try:
        sweep(tmp_path)
    finally:
        os.close(held)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cove-bench-alive", "cove-bench-new", "other"]
    sweep(tmp_path)
    assert not (tmp_path / "cove-bench-alive").exists()


def test_a_run_directory_is_locked_once(tmp_path: Path) -> None:
    held = lock(tmp_path)
    try:
        with pytest.raises(BlockingIOError):
            lock(tmp_path)
    finally:
        os.close(held)
