"""Receivers of logs, as a test needs them: real sockets on this host, what came in, and ways to fail.

with Receiver("tcp") as receiver:
    … --log-opt syslog-address=receiver.address …
    receiver.wait(lambda data: b"the last line" in data)
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import msgpack

BOUND_S = 60.0


class Receiver:
    """Takes everything that arrives at one address: `kind` is tcp, udp, unix or unixgram."""

    def __init__(
        self,
        kind: str,
        path: Path | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        port: int = 0,
        answer: Callable[[bytes], bytes] | None = None,
        reads: bool = True,
    ) -> None:
        """`answer`: what is sent back, for what came since the last answer. `reads` False: it never takes anything."""
        self._kind, self._path, self._tls, self._answer, self._reads = kind, path, tls, answer, reads
        self._port = port
        self._changed = threading.Condition()
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.data = bytearray()
        self.datagrams: list[bytes] = []
        self._socket = self._listen()

    @property
    def address(self) -> str:
        scheme = "tcp+tls" if self._tls else self._kind
        return f"{scheme}://{self._path or f'127.0.0.1:{self.port}'}"

    @property
    def port(self) -> int:
        return self._port

    def wait(self, condition: Callable[[bytes], bool]) -> bytes:
        """Everything so far, once the condition holds of it."""
        with self._changed:
            done = self._changed.wait_for(lambda: condition(bytes(self.data)), BOUND_S)
            assert done, f"{len(self.data)} bytes came, ending with {bytes(self.data[-300:])!r}"
            return bytes(self.data)

    def stop(self) -> None:
        """Go away as a killed receiver does: connections are reset, what was in them is lost."""
        if self._kind in ("tcp", "unix"):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept
        self._socket.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                if self._kind == "tcp":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RD)
            connection.close()
        self._connections.clear()
        for thread in self._threads:
            thread.join(BOUND_S)
        self._threads.clear()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def restart(self) -> None:
        """Listen again where it was."""
        self._socket = self._listen()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _listen(self) -> socket.socket:
        stream = self._kind in ("tcp", "unix")
        family = socket.AF_UNIX if self._path else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(str(self._path) if self._path else ("127.0.0.1", self._port))
        if not self._path:
            self._port = sock.getsockname()[1]
        if stream:
            sock.listen(64)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            sock.settimeout(0.1)
        self._spawn(self._accept if stream else self._receive, sock)
        return sock

    def _spawn(self, work: Callable[[socket.socket], None], sock: socket.socket) -> None:
        thread = threading.Thread(target=work, args=(sock,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            if self._reads:
                self._spawn(self._read, connection)

    def _read(self, connection: socket.socket) -> None:
        try:
            if self._tls is not None:
                self._connections.remove(connection)
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._connections.append(connection)
            while data := connection.recv(65536):
                if self._answer is not None:
                    connection.sendall(self._answer(data))
                self._took(data)
        except OSError:
            pass

    def _receive(self, sock: socket.socket) -> None:
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(sock, 1 << 20, 1)
            except TimeoutError:
                continue
            except OSError:
                return
            for descriptor in descriptors:
                with open(descriptor, "rb") as file:
                    file.seek(0)
                    data = file.read()
            self.datagrams.append(data)
            self._took(data)

    def _took(self, data: bytes) -> None:
        with self._changed:
            self.data += data
            self._changed.notify_all()


class Forward:
    """The receiving end of the forward protocol: entries of what came, and acknowledgements."""

    def __init__(self, *, acknowledges: bool = True) -> None:
        self._unpacker = msgpack.Unpacker()
        self._acknowledges = acknowledges
        self.tags: set[str] = set()
        self.entries: list[tuple[object, dict[str, str]]] = []

    def __call__(self, data: bytes) -> bytes:
        self._unpacker.feed(data)
        answers = []
        for tag, entries, options in self._unpacker:
            self.tags.add(tag)
            self.entries += [(stamp, record) for stamp, record in entries]
            if self._acknowledges and "chunk" in options:
                answers.append(msgpack.packb({"ack": options["chunk"]}))
        return b"".join(answers)


def make_certificates(directory: Path) -> None:
    """ca.pem, and for server and client each NAME.pem and NAME.key, by openssl(1)."""
    directory.mkdir(exist_ok=True)

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True, timeout=60)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        "req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test ca", "-days", "30"
    )
    for name in ("server", "client"):
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (directory / "ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-out", f"{name}.pem", "-days", "30", "-extfile", "ext")  # fmt: skip
    os.chmod(directory / "client.key", 0o600)


def server_context(directory: Path) -> ssl.SSLContext:
    """A server's that wants a client's certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(directory / "ca.pem"))
    context.load_cert_chain(directory / "server.pem", directory / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    return context
