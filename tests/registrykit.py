"""A registry of the tests' own, which does as badly as it is told; and Debian's docker-registry.

with HostileRegistry(handler) as registry:    # handler(Request) -> Reply, on a thread for each connection
    registry.host, registry.requests
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    target: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes = b""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass
class Reply:
    """What is sent: `raw` as it is, or a status, headers and a body; an iterable body comes piece by piece, and the
    connection is closed after it when it is shorter than `length`."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Iterable[bytes] = b""
    length: int | None = None
    raw: Iterable[bytes] | None = None
    close: bool = False


Handler = Callable[[Request], Reply]


class HostileRegistry:
    """An HTTP/1.1 server on loopback. A connection that begins with TLS is closed at once."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.requests: list[Request] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.host}"
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._ended = threading.Event()

    def __enter__(self) -> HostileRegistry:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def stall(self, seconds: float = 60.0) -> Iterator[bytes]:
        """A body that never comes, until the registry ends."""
        self._ended.wait(seconds)
        yield from ()

    def drip(self, data: bytes, pause_s: float) -> Iterator[bytes]:
        """A body that comes a byte at a time."""
        for byte in data:
            if self._ended.wait(pause_s):
                return
            yield bytes([byte])

    def count(self, method: str, part: str) -> int:
        """How many requests had this method and `part` in their target."""
        return sum(1 for r in list(self.requests) if r.method == method and part in r.target)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as stream:
                if connection.recv(1, socket.MSG_PEEK) == b"\x16":
                    return
                while (request := _read_request(stream)) is not None:
                    self.requests.append(request)
                    if not _send(connection, request, self.handler(request)):
                        return
        except (OSError, ValueError):
            pass
        finally:
            with self._lock:
                self._open.discard(connection)


def _read_request(stream: Any) -> Request | None:
    line = stream.readline(65536).decode("latin-1").split()
    if len(line) != 3:
        return None
    headers: dict[str, str] = {}
    while (text := stream.readline(65536).decode("latin-1").strip()) != "":
        name, _, value = text.partition(":")
        headers[name.lower()] = value.strip()
    body = stream.read(int(headers.get("content-length", "0")))
    return Request(line[0], line[1], headers, body)


def _send(connection: socket.socket, request: Request, reply: Reply) -> bool:
    """Whether the connection goes on."""
    if reply.raw is not None:
        for piece in reply.raw:
            connection.sendall(piece)
        return False
    whole = reply.body if isinstance(reply.body, bytes) else None
    length = reply.length if reply.length is not None else len(whole) if whole is not None else None
    headers = dict(reply.headers)
    if length is not None:
        headers.setdefault("Content-Length", str(length))
    else:
        headers.setdefault("Connection", "close")
    head = f"HTTP/1.1 {reply.status} X\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items()) + "\r\n"
    connection.sendall(head.encode("latin-1"))
    sent = 0
    if request.method != "HEAD":
        pieces: Iterable[bytes] = (reply.body,) if isinstance(reply.body, bytes) else reply.body
        for piece in pieces:
            connection.sendall(piece)
            sent += len(piece)
    return not reply.close and length is not None and (sent == length or request.method == "HEAD")


# --- content ------------------------------------------------------------------------------


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Repository:
    """Content of one repository, served as the distribution specification says, Range included; a Handler."""

    name: str = "app"
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # tag or digest: type and document
    ranges: bool = True

    def add_blob(self, data: bytes) -> str:
        digest = digest_of(data)
        self.blobs[digest] = data
        return digest

    def add_manifest(self, document: object, tag: str = "", media_type: str = MANIFEST) -> str:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        digest = digest_of(data)
        for name in filter(None, (tag, digest)):
            self.manifests[name] = (media_type, data)
        return digest

    def add_image(
        self,
        layers: Iterable[tuple[bytes, bytes, str]],
        tag: str = "latest",
        *,
        architecture: str = "amd64",
        config: dict[str, Any] | None = None,
    ) -> str:
        """An image of layers (the plain tar, the blob, the suffix of its type, e.g. "+gzip"); its manifest's digest."""
        layers = list(layers)
        document = {
            "architecture": architecture,
            "os": "linux",
            "config": config or {"Cmd": ["/hello"]},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(plain) for plain, _, _ in layers]},
        }
        data = json.dumps(document).encode()
        return self.add_manifest(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {"mediaType": CONFIG, "digest": self.add_blob(data), "size": len(data)},
                "layers": [
                    {"mediaType": LAYER + suffix, "digest": self.add_blob(blob), "size": len(blob)}
                    for _, blob, suffix in layers
                ],
            },
            tag,
        )

    def __call__(self, request: Request) -> Reply:
        head = f"/v2/{self.name}/"
        if request.path == "/v2/":
            return Reply()
        kind, _, reference = request.path.removeprefix(head).partition("/")
        if request.path.startswith(head) and kind == "manifests" and reference in self.manifests:
            media_type, data = self.manifests[reference]
            return Reply(
                headers={"Content-Type": media_type, "Docker-Content-Digest": digest_of(data)}, body=data
            )
        if request.path.startswith(head) and kind == "blobs" and reference in self.blobs:
            return self.blob(request, self.blobs[reference])
        if request.path == f"{head}tags/list":
            tags = [name for name in self.manifests if not name.startswith("sha256:")]
            return Reply(body=json.dumps({"name": self.name, "tags": tags}).encode())
        code = "MANIFEST_UNKNOWN" if kind == "manifests" else "BLOB_UNKNOWN"
        return error(404, code, code.lower().replace("_", " "))

    def blob(self, request: Request, data: bytes) -> Reply:
        asked = request.headers.get("range", "").removeprefix("bytes=")
        if not asked or not self.ranges:
            return Reply(headers={"Content-Type": "application/octet-stream"}, body=data)
        first, _, last = asked.partition("-")
        end = min(int(last) + 1 if last else len(data), len(data))
        if int(first) >= len(data):
            return Reply(416)
        piece = data[int(first) : end]
        return Reply(206, {"Content-Range": f"bytes {first}-{end - 1}/{len(data)}"}, piece)


def error(status: int, code: str, message: str) -> Reply:
    """An error of the distribution specification."""
    return Reply(status, {}, json.dumps({"errors": [{"code": code, "message": message}]}).encode())


# --- Debian's docker-registry -------------------------------------------------------------


@contextlib.contextmanager
def docker_registry(directory: Path, **environment: str) -> Iterator[str]:
    """Run Debian's docker-registry on loopback, its data below `directory`; yields host:port."""
    program = shutil.which("docker-registry")
    assert program, "the package docker-registry is needed"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yml").write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {directory}/data\n  delete:\n    enabled: true\n"
        f"http:\n  addr: {host}\nlog:\n  level: error\n  accesslog:\n    disabled: true\n"
    )
    process = subprocess.Popen(
        [program, "serve", str(directory / "config.yml")],
        env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none", **environment},
        stdout=subprocess.DEVNULL,
        stderr=(directory / "log").open("wb"),
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(f"http://{host}/v2/", timeout=5).close()
                break
            except urllib.error.HTTPError:
                break  # it asks for a password: it is there
            except OSError:
                assert process.poll() is None, (directory / "log").read_text()
                assert time.monotonic() < deadline, "docker-registry doesn't answer"
                time.sleep(0.02)  # it tells nobody that it listens
        yield host
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
