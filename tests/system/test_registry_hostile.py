"""Clients that mean ill, or are only slow: what each gets, and that the others don't notice."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.registryserver import Registry, digest_of, make_manifest, run_registry, serving


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with serving(tmp_path_factory.mktemp("registry") / "root", "--max-blob=8m") as running:
        yield running


def raw(registry: Registry, data: bytes, *, close: bool = True) -> bytes:
    """What comes back for these bytes, until the server closes."""
    with registry.connect() as sock:
        sock.sendall(data)
        if close:
            sock.shutdown(socket.SHUT_WR)
        seen = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(1 << 16):
                seen += piece
        return seen


@pytest.mark.parametrize(
    "path",
    [
        "/v2/%2e%2e/%2e%2e/etc/manifests/passwd",
        "/v2/..%2f..%2fetc/manifests/passwd",
        "/v2/a%00b/manifests/1",
        "/v2/a/blobs/sha256%3a..%2f..%2f..%2fetc%2fpasswd",
        "/v2/a/blobs/uploads/..%2f..%2fcatalog.db",
        "/v2/a/manifests/%ff%fe",
        "/v2/a/manifests/%zz",
        "/v2/a/tags/list?n=-1",
        "/v2/a/tags/list?n=99999999999999999999999",
        "/v2/a/referrers/sha256:x",
        "//v2/a/tags/list",
        "/v2/a/tags/list/../../../x",
    ],
)
def test_paths_lead_nowhere(registry: Registry, path: str) -> None:
    answer = registry.ask("GET", path)
    assert answer.status in (400, 404), answer
    assert answer.code and b"/etc" not in answer.body.replace(path.encode(), b"").replace(
        b"../etc", b""
    ).replace(b"etc/passwd", b"")


def test_requests_that_are_too_large_or_no_http_are_refused(registry: Registry) -> None:
    huge = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (70 << 10) + b"\r\n\r\n"
    assert raw(registry, huge, close=False).startswith(b"HTTP/1.1 431 ")
    many = b"GET /v2/ HTTP/1.1\r\n" + b"".join(b"X%d: 1\r\n" % n for n in range(200)) + b"\r\n"
    assert raw(registry, many).startswith(b"HTTP/1.1 400 ")
    both = b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert raw(registry, both).startswith(b"HTTP/1.1 400 ")
    assert raw(registry, b"\0\1\2\3\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert b'"errors"' in raw(registry, b"BREW / HTTP/1.1\r\n\r\n")


def test_a_manifest_has_4_mib_and_not_more(registry: Registry) -> None:
    registry.push_blob("large/app", b"{}")
    fits = make_manifest(b"{}", [], annotations={"x": "y" * (4 << 20)})
    fits = fits.replace(b"y" * (len(fits) - (4 << 20)), b"", 1)
    assert len(fits) == 4 << 20
    assert registry.push_manifest("large/app", "1", fits).status == 201
    answer = registry.push_manifest("large/app", "1", fits + b" ")
    assert (answer.status, answer.code) == (413, "SIZE_INVALID")
    chunked = b"".join(b"%x\r\n%b\r\n" % (1 << 20, b" " * (1 << 20)) for _ in range(5)) + b"0\r\n\r\n"
    head = b"PUT /v2/large/app/manifests/1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert raw(registry, head + chunked).startswith(b"HTTP/1.1 413 ")


def test_a_blob_has_the_size_that_is_allowed(registry: Registry) -> None:
    where = registry.begin("large/app")
    with registry.connect() as sock:
        sock.sendall(f"PATCH {where} HTTP/1.1\r\nHost: x\r\nContent-Length: {9 << 20}\r\n\r\n".encode())
        assert sock.recv(1000).startswith(b"HTTP/1.1 413 ")  # before a byte of it came
    with registry.connect() as sock:
        sock.sendall(f"PATCH {where} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                sock.sendall(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 413 ")
    assert int(registry.ask("GET", where).headers["range"].removeprefix("0-")) < 8 << 20


def test_offsets_and_digests_that_are_wrong_change_nothing(registry: Registry) -> None:
    data = os.urandom(50_000)
    where = registry.begin("offsets/app")
    assert registry.ask("PATCH", where, data[:10_000], {"Content-Range": "0-9999"}).status == 202
    for content_range, status in (
        ("0-9999", 416),
        ("20000-29999", 416),
        ("x-y", 416),
        ("9-1", 416),
        ("99999999999999999999-99999999999999999999", 416),
        ("10000-10001", 400),
        ("10000-29999", 400),
    ):
        assert (
            registry.ask("PATCH", where, data[10_000:20_000], {"Content-Range": content_range}).status
            == status
        )
        assert registry.ask("GET", where).headers["range"] == "0-9999", content_range
    for digest in ("", "sha256:xyz", "md5:" + "0" * 32):
        assert registry.ask("PUT", f"{where}?digest={digest}", data[10_000:]).code == "DIGEST_INVALID"
        assert registry.ask("GET", where).headers["range"] == "0-9999"
    assert registry.ask("PATCH", where.replace("offsets", "other"), b"x").code == "BLOB_UPLOAD_UNKNOWN"
    wrong = registry.ask("PUT", f"{where}?digest={digest_of(data)}", data[10_000:-1])
    assert (wrong.status, wrong.code) == (400, "DIGEST_INVALID")
    assert registry.ask("GET", where).code == "BLOB_UPLOAD_UNKNOWN"
    assert registry.ask("HEAD", f"/v2/offsets/app/blobs/{digest_of(data)}").status == 404


def test_parallel_chunks_of_one_upload_never_mix(registry: Registry) -> None:
    for _ in range(5):
        where = registry.begin("parallel/app")
        bodies = [bytes([number]) * 200_000 for number in range(4)]
        statuses: list[int] = []

        def send(body: bytes, where: str = where, statuses: list[int] = statuses) -> None:
            statuses.append(registry.ask("PATCH", where, body).status)

        threads = [threading.Thread(target=send, args=(body,)) for body in bodies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [202] * 4
        # whichever order they came in, it is one of whole bodies
        digests = [digest_of(b"".join(order)) for order in itertools.permutations(bodies)]
        done = registry.ask("PUT", f"{where}?digest={digests[0]}")
        if done.status == 400:
            assert any(digest in done.message for digest in digests)
        else:
            assert done.status == 201


def test_100_idle_and_slow_clients_hold_nobody_up(registry: Registry) -> None:
    pid = registry.process.pid

    def resident_kib() -> int:
        return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])

    before = resident_kib()
    with contextlib.ExitStack() as stack:
        for number in range(100):
            sock = stack.enter_context(registry.connect())
            if number % 2:
                sock.sendall(b"GET /v2/ HTTP/1.1\r\nHost: ")  # and no more
        where = [registry.begin("slow/app") for _ in range(60)]
        for each in where:
            sock = stack.enter_context(registry.connect())
            sock.sendall(
                f"PATCH {each} HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n".encode()
                + bytes(100_000)
            )
        layer = os.urandom(7 << 20)
        digest = registry.push_blob("slow/big", layer)
        for _ in range(30):  # readers who take nothing
            sock = stack.enter_context(registry.connect())
            sock.sendall(f"GET /v2/slow/big/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        began = time.monotonic()
        registry.push_image("quick/app", "1", [b"a layer", os.urandom(1 << 20)])
        assert registry.ask("GET", f"/v2/slow/big/blobs/{digest}").body == layer
        assert time.monotonic() - began < 3.0
        assert resident_kib() - before < 24 << 10


def test_uploads_of_one_client_are_counted(tmp_path: Path) -> None:
    with serving(tmp_path / "root") as registry:
        where = [registry.begin(f"many/app{number}") for number in range(256)]
        answer = registry.ask("POST", "/v2/many/more/blobs/uploads/")
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (429, "TOOMANYREQUESTS", "60")
        assert registry.ask("DELETE", where[0]).status == 204
        assert registry.ask("POST", "/v2/many/more/blobs/uploads/").status == 202
        registry.kill()
        registry.start()
        assert registry.ask("POST", "/v2/many/more/blobs/uploads/").status == 429


def test_a_full_disk_is_told_and_nothing_half_made_stays(tmp_path: Path) -> None:
    with serving(tmp_path / "root", "--reserve=8000t") as registry:
        for answer in (
            registry.ask("POST", "/v2/app/blobs/uploads/"),
            registry.ask("POST", f"/v2/app/blobs/uploads/?digest={digest_of(b'x')}", b"x"),
        ):
            assert (answer.status, answer.code) == (507, "DENIED") and "--reserve" in answer.message
        assert [*(registry.root / "uploads").iterdir()] == []
        assert run_registry("check", f"--root={registry.root}").returncode == 0


def test_read_only_means_no_change(tmp_path: Path) -> None:
    with serving(tmp_path / "root") as registry:
        digest = registry.push_image("app", "1", [b"layer"])
    with serving(tmp_path / "root", "--read-only") as registry:
        assert registry.ask("GET", "/v2/app/manifests/1").status == 200
        for method, path in (
            ("POST", "/v2/app/blobs/uploads/"),
            ("PUT", "/v2/app/manifests/2"),
            ("DELETE", f"/v2/app/manifests/{digest}"),
        ):
            answer = registry.ask(method, path, b"{}")
            assert (answer.status, answer.code) == (405, "UNSUPPORTED") and "read-only" in answer.message
