"""A small HTTP/1.1 client for the Docker Engine API over unix and TCP sockets.

Owns connections: one request at a time on each, kept alive between requests, or handed over raw
after an upgrade (`hijack`). Finds the daemon by -H, COVE_HOST, DOCKER_HOST, in this order, and where
the default one isn't running lets `cove.cli.spawn` start it. Uses the C module under `socket`, whose Python
half costs 4 ms to import.
"""

from __future__ import annotations

import _socket
import errno
import os

from cove.cli.address import Address, explain_connect, open_socket, user_run_dir
from cove.cli.fail import ApiError, CliError
from cove.model import wirejson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from cove.cli.address import Tls

CHUNK = 1 << 18
HEAD_LIMIT = 1 << 16

# Left unquoted in a path or a query (RFC 3986's unreserved characters, and what image names need).
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/:@")


def quote(text: str, keep_plain: bool = True) -> str:
    """Percent-encode `text` for a path or a query value."""
    raw = text.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if byte in _PLAIN and keep_plain else f"%{byte:02X}" for byte in raw)


def query(values: dict[str, Any]) -> str:
    """`?a=1&b=…`; booleans become 1, what is None, False or "" is left out."""
    parts = []
    for name, value in values.items():
        if value is None or value is False or value == "":
            continue
        for item in value if isinstance(value, list) else [value]:
            parts.append(f"{name}={quote('1' if item is True else str(item))}")
    return "?" + "&".join(parts) if parts else ""


def filters(given: Iterable[str]) -> str:
    """`--filter name=value` flags as the API's filters parameter."""
    found: dict[str, list[str]] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise CliError(f"--filter {item}: expected NAME=VALUE, e.g. --filter status=running")
        found.setdefault(name.strip().lower(), []).append(value.strip())
    return wirejson.dumps(found) if found else ""


class Response:
    """An answer whose head was read; the body is read by `read`, `chunks` or `lines`."""

    def __init__(self, connection: Connection, status: int, headers: dict[str, str]) -> None:
        self.connection = connection
        self.status = status
        self.headers = headers
        if status in (204, 304) or 100 <= status < 200:
            self._length: int | None = 0
        elif headers.get("transfer-encoding", "").lower() == "chunked":
            self._length = None
        elif "content-length" in headers:
            self._length = int(headers["content-length"])
        else:
            self._length = -1  # until the connection ends
        if self._length == 0:
            self._finish()

    def _finish(self) -> None:
        """The body was read to its end: the connection is free for another request."""
        if self.headers.get("connection", "").lower() == "close":
            self.connection.reusable = False
        self.connection.busy = False

    def chunks(self) -> Iterator[bytes]:
        """The body as it arrives."""
        connection = self.connection
        if self._length is None:
            while True:
                size = int(connection.read_line().split(b";")[0] or b"0", 16)
                if size == 0:
                    while connection.read_line():
                        pass
                    break
                yield from connection.read_exactly(size)
                connection.read_line()
        elif self._length < 0:
            connection.reusable = False
            while data := connection.read_some():
                yield data
        else:
            yield from connection.read_exactly(self._length)
        self._length = 0
        self._finish()

    def read(self) -> bytes:
        """The whole body."""
        return b"".join(self.chunks())

    def json(self) -> Any:
        """The whole body as JSON; None when it is empty."""
        body = self.read().decode("utf-8", "replace")
        if not body.strip():
            return None
        try:
            return wirejson.loads(body)
        except ValueError as error:
            raise CliError(
                f"{self.connection.address.text}: the daemon's answer isn't JSON: {error}"
            ) from None

    def lines(self) -> Iterator[Any]:
        """The body as a stream of JSON values, one a line, as events, load and stats send it."""
        rest = b""
        for data in self.chunks():
            *complete, rest = (rest + data).split(b"\n")
            for line in complete:
                if line.strip():
                    yield wirejson.loads(line.decode("utf-8", "replace"))
        if rest.strip():
            yield wirejson.loads(rest.decode("utf-8", "replace"))

    def check(self) -> Response:
        """Self, unless the status says error: then ApiError with the daemon's sentence."""
        if self.status >= 400:
            body = self.read().decode("utf-8", "replace").strip()
            try:
                message = wirejson.loads(body)["message"]
            except (ValueError, KeyError, TypeError):
                message = body or f"the daemon answered with status {self.status} and no message"
            raise ApiError(str(message), self.status)
        return self


class Connection:
    """One socket to the daemon; requests follow each other on it."""

    def __init__(self, address: Address, sock: _socket.socket) -> None:
        self.address = address
        self.sock = sock
        self.reusable = True
        self.busy = False
        self._buffer = b""

    def send(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send a request; `receive` reads its answer. A body given as an iterable is sent in chunks."""
        self.busy = True
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.address.host or 'docker'}", "User-Agent: cove"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if isinstance(body, bytes):
            lines.append(f"Content-Length: {len(body)}")
        elif body is not None:
            lines.append("Transfer-Encoding: chunked")
        elif method in ("POST", "PUT"):
            lines.append("Content-Length: 0")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")
        try:
            if isinstance(body, bytes):
                self.sock.sendall(head + body)
            else:
                self.sock.sendall(head)
                if body is not None:
                    self._send_chunks(body)
        except (BrokenPipeError, ConnectionResetError):
            # The daemon may have refused the request before the body's end: its answer says why.
            self.reusable = False

    def _send_chunks(self, body: Iterable[bytes]) -> None:
        for data in body:
            if data:
                self.sock.sendall(b"%x\r\n" % len(data))
                self.sock.sendall(data)
                self.sock.sendall(b"\r\n")
        self.sock.sendall(b"0\r\n\r\n")

    def receive(self) -> Response:
        """The answer to the request sent: status and headers; interim answers (100) are skipped."""
        while True:
            line = self.read_line()
            version, _, rest = line.partition(b" ")
            if not version.startswith(b"HTTP/1."):
                raise CliError(
                    f"{self.address.text}: expected HTTP, got {line[:60]!r}; is this a daemon's socket?"
                )
            status = int(rest[:3])
            headers: dict[str, str] = {}
            size = 0
            while header := self.read_line():
                size += len(header)
                if size > HEAD_LIMIT:
                    raise CliError(f"{self.address.text}: the answer's headers are over {HEAD_LIMIT} bytes")
                name, _, value = header.partition(b":")
                headers[name.decode("latin-1").strip().lower()] = value.decode("latin-1").strip()
            if status != 100:
                return Response(self, status, headers)

    def hijack(self) -> tuple[_socket.socket, bytes]:
        """The raw socket after an upgrade, and what was read of its stream already."""
        self.reusable = False
        data, self._buffer = self._buffer, b""
        return self.sock, data

    def read_some(self) -> bytes:
        """Whatever comes next, b"" at the end."""
        if self._buffer:
            data, self._buffer = self._buffer, b""
            return data
        try:
            return self.sock.recv(CHUNK)
        except ConnectionResetError:
            return b""

    def read_line(self) -> bytes:
        """A line without its end."""
        while True:
            line, end, rest = self._buffer.partition(b"\r\n")
            if end:
                self._buffer = rest
                return line
            try:
                data = self.sock.recv(CHUNK)
            except ConnectionResetError:
                data = b""
            if not data or len(self._buffer) > HEAD_LIMIT:
                raise CliError(self._cut_off())
            self._buffer += data

    def _cut_off(self) -> str:
        if self.address.failure:
            return f"{self.address.text}: the daemon refused the TLS connection: {self.address.failure}"
        return f"{self.address.text}: the daemon closed the connection in the middle of its answer"

    def read_exactly(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes in pieces."""
        while size:
            data = self.read_some()
            if not data:
                raise CliError(self._cut_off())
            if len(data) > size:
                data, self._buffer = data[:size], data[size:] + self._buffer
            size -= len(data)
            yield data

    def close(self) -> None:
        self.sock.close()


class Client:
    """The daemon as a command sees it."""

    def __init__(self, host: str, *, spawn: bool = False, tls: Tls | None = None) -> None:
        self.address = Address(host, tls)
        self._spawn = spawn
        self._idle: Connection | None = None

    def connect(self) -> Connection:
        """A new connection; starts the default daemon where it isn't running."""
        try:
            return Connection(self.address, open_socket(self.address))
        except OSError as error:
            if self._spawn and error.errno in (errno.ENOENT, errno.ECONNREFUSED):
                from cove.cli import spawn

                spawn.start_daemon(self.address.path)
                self._spawn = False
                return Connection(self.address, open_socket(self.address))
            raise CliError(explain_connect(self.address, error)) from None

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        stream: Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Response:
        """Send `body` as JSON or `stream` as it is, and read the head of the answer; raises ApiError."""
        connection = self._idle
        if connection is None or connection.busy or not connection.reusable:
            connection = self._idle = self.connect()
        payload: bytes | Iterable[bytes] | None = stream
        if body is not None:
            payload = wirejson.dumps(body).encode("utf-8", "surrogateescape")
            headers = {"Content-Type": "application/json", **(headers or {})}
        connection.send(method, path, payload, headers)
        return connection.receive().check()

    def forget(self) -> None:
        """Let go of a connection that broke, and start no daemon for the next one."""
        if self._idle is not None:
            self._idle.close()
        self._idle, self._spawn = None, False

    def get(self, path: str) -> Any:
        """GET a JSON value."""
        return self.request("GET", path).json()

    def post(self, path: str, body: Any = None) -> Any:
        """POST and return the answer's JSON value."""
        return self.request("POST", path, body).json()

    def delete(self, path: str) -> Any:
        """DELETE and return the answer's JSON value."""
        return self.request("DELETE", path).json()


def default_socket() -> str:
    """The path of the default daemon's socket; COVE_RUN_DIR moves it. An ordinary user's own daemon comes first, then
    root's where it runs."""
    system = (os.environ.get("COVE_RUN_DIR") or "/run/cove").rstrip("/") + "/docker.sock"
    if os.geteuid() == 0 or os.environ.get("COVE_RUN_DIR"):
        return system
    own = user_run_dir() + "/docker.sock"
    return system if os.path.exists(system) and not os.path.exists(own) else own


def find_client(host: str, tls_flags: dict[str, str] | None = None) -> Client:
    """The daemon by -H (`host`), COVE_HOST, DOCKER_HOST or the default, which may be started on demand."""
    chosen = host or os.environ.get("COVE_HOST") or os.environ.get("DOCKER_HOST") or ""
    default = "unix://" + default_socket()
    asked = tls_flags or os.environ.get("DOCKER_TLS_VERIFY") or os.environ.get("DOCKER_TLS")
    if asked and chosen.startswith(("tcp://", "http://")):
        from cove.cli.secure import find_tls

        return Client(chosen, tls=find_tls(tls_flags or {}))
    return Client(chosen or default, spawn=not chosen or chosen == default)
