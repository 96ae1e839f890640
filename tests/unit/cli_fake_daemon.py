"""A tiny HTTP server that stands in for a daemon: it records requests and answers as a test says."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Request:
    """One request as it came in; `sock` is the raw connection, for answers that take it over."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    sock: socket.socket

    def json(self) -> Any:
        return json.loads(self.body)


Answer = tuple[int, Any]  # status and JSON value, or bytes; None: the handler wrote to the socket itself


@dataclass
class FakeDaemon:
    """Listens at `path`; `handlers` maps "METHOD /path" to a function of the request."""

    path: Path
    handlers: dict[str, Callable[[Request], Answer | None]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(16)
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    @property
    def address(self) -> str:
        return f"unix://{self.path}"

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(10)
        self._listener.close()
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join(10)
        for connection in self._connections:
            connection.close()

    def find(self, method: str, ending: str) -> Request:
        """The first recorded request of that method whose path ends so."""
        return next(
            request for request in self.requests if request.method == method and request.path.endswith(ending)
        )

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection.makefile("rb") as stream:
                while self._serve_one(connection, stream):
                    pass
        except (OSError, ValueError):
            pass

    def _serve_one(self, connection: socket.socket, stream: Any) -> bool:
        line = stream.readline().split()
        if len(line) != 3:
            return False
        headers = {}
        while header := stream.readline().strip():
            name, _, value = header.decode().partition(":")
            headers[name.lower()] = value.strip()
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            while size := int(stream.readline(), 16):
                body += stream.read(size)
                stream.readline()
            stream.readline()
        elif "content-length" in headers:
            body = stream.read(int(headers["content-length"]))
        target, _, text = line[1].decode().partition("?")
        from urllib.parse import parse_qs

        if target.startswith("/v1."):
            target = "/" + target.split("/", 2)[2]
        query = parse_qs(text, keep_blank_values=True)
        request = Request(line[0].decode(), target, query, headers, body, connection)
        self.requests.append(request)
        handler = self.handlers.get(f"{request.method} {request.path}")
        answer: Answer | None
        if handler is not None:
            answer = handler(request)
        elif request.path == "/_ping":
            answer = (200, b"OK")
        else:
            answer = (404, {"message": f"No such thing: {request.method} {request.path}"})
        if answer is None:
            return False
        self.send(connection, answer, head_only=request.method == "HEAD")
        return True

    @staticmethod
    def send(connection: socket.socket, answer: Answer, *, head_only: bool = False) -> None:
        """Write a whole answer."""
        status, value = answer
        data = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
        head = f"HTTP/1.1 {status} Status\r\nApi-Version: 1.47\r\nOSType: linux\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + (b"" if head_only else data))


def frame(stream: int, data: bytes) -> bytes:
    """One of Docker's multiplexed frames."""
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


def run_cove(
    *arguments: str, host: str = "", env: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run the command line of this checkout as bin/cove does, with a bound."""
    command = [sys.executable, "-I", "-S", "-X", "utf8", str(ROOT / "cove/cli/boot.py"), *arguments]
    environment = {"PATH": "/usr/bin:/bin", "COVE_HOST": host, "TZ": "UTC", **(env or {})}
    options.setdefault("stdin", subprocess.DEVNULL)
    if "input" in options:
        options.pop("stdin")
    return subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False, **options)
