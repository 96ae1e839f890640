"""A lean HTTP client over one keep-alive unix connection.

Owns nothing but its socket. It exists so that the client's own work doesn't show in the
figures: requests are sent in one write, responses parsed by hand. Its CPU time is part of
what it measures; `cpu_ns` keeps count, so that a row can say how little it is.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TIMEOUT_S = 300.0


class ApiError(Exception):
    """An engine answered with an error, or not in HTTP."""

    def __init__(self, request: str, status: int, message: str) -> None:
        super().__init__(f"{request}: {status} {message}")
        self.status = status


class Client:
    """One connection to an engine's API socket. Not for several threads at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        self.cpu_ns = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._buffer.clear()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Send one request, return the decoded JSON (None: empty). Raises ApiError, OSError."""
        start = time.thread_time_ns()
        try:
            payload = b"" if body is None else json.dumps(body).encode()
            status, content = self.exchange(method, path, payload)
            if status >= 400:
                raise ApiError(f"{method} {path}", status, content.decode("utf-8", "replace")[:300])
            return json.loads(content) if content.strip() else None
        finally:
            self.cpu_ns += time.thread_time_ns() - start

    def exchange(self, method: str, path: str, payload: bytes) -> tuple[int, bytes]:
        """One request and its whole response: status and body."""
        self._send(_head(method, path, len(payload)) + payload)
        status, headers = self._read_head(f"{method} {path}")
        content = b"".join(self._body(status, headers))
        if headers.get("connection", "").lower() == "close":
            self.close()
        return status, content

    def upload(self, path: str, file: Path) -> int:
        """POST a file (an archive); return the size of the response, having checked it for an error."""
        size = file.stat().st_size
        connection = self._send(_head("POST", path, size, "application/x-tar"))
        with file.open("rb") as source:
            connection.sendfile(source)
        status, headers = self._read_head(f"POST {path}")
        content = b"".join(self._body(status, headers))
        if status >= 400 or b'"error"' in content:
            raise ApiError(f"POST {path}", status, content.decode("utf-8", "replace")[-300:])
        return len(content)

    def download(self, path: str) -> int:
        """GET a stream to its end and drop it; return its size in bytes."""
        self._send(_head("GET", path, 0))
        status, headers = self._read_head(f"GET {path}")
        size = sum(len(piece) for piece in self._body(status, headers))
        if status >= 400:
            raise ApiError(f"GET {path}", status, f"{size} bytes of error")
        return size

    def hijack(self, path: str, body: Any) -> int:
        """POST and read the raw stream that follows to its end (attach, exec); the connection is used up."""
        payload = json.dumps(body).encode()
        head = _head("POST", path, len(payload)).replace(
            b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        )
        connection = self._send(head + payload)
        status, headers = self._read_head(f"POST {path}")
        if status >= 400:
            content = b"".join(self._body(status, headers))
            raise ApiError(f"POST {path}", status, content.decode("utf-8", "replace")[:300])
        size = len(self._buffer)
        while piece := connection.recv(1 << 16):
            size += len(piece)
        self.close()
        return size

    def _send(self, data: bytes) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(TIMEOUT_S)
            self._socket.connect(str(self._path))
        self._socket.sendall(data)
        return self._socket

    def _fill(self) -> None:
        assert self._socket is not None
        piece = self._socket.recv(1 << 18)
        if not piece:
            raise ConnectionError(
                f"{self._path}: the engine closed the connection in the middle of a response"
            )
        self._buffer += piece

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return data

    def _take_line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            self._fill()
        return self._take(end + 2)[:-2]

    def _read_head(self, request: str) -> tuple[int, dict[str, str]]:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            self._fill()
        first, *lines = self._take(end + 4)[:-4].decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise ApiError(request, 0, f"not an HTTP response: {first[:80]!r}")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return int(rest[:3]), headers

    def _body(self, status: int, headers: dict[str, str]) -> Iterator[bytes]:
        if status in (204, 304) or status < 200:
            return
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self._take_line().split(b";")[0], 16):
                yield self._take(size)
                self._take(2)
            self._take_line()
        elif "content-length" in headers:
            remaining = int(headers["content-length"])
            while remaining > 0:
                if not self._buffer:
                    self._fill()
                piece = self._take(min(remaining, len(self._buffer)))
                remaining -= len(piece)
                yield piece
        else:
            assert self._socket is not None
            yield bytes(self._buffer)
            while piece := self._socket.recv(1 << 18):
                yield piece
            self.close()


def _head(method: str, path: str, length: int, content_type: str = "application/json") -> bytes:
    lines = f"{method} {path} HTTP/1.1\r\nHost: bench\r\n"
    if method == "POST":
        lines += f"Content-Type: {content_type}\r\nContent-Length: {length}\r\n"
    return (lines + "\r\n").encode()
