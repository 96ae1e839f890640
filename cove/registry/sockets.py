"""Where the registry listens: addresses into bound sockets, those of systemd, and the word to it."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from pathlib import Path

from cove.api.sockets import BACKLOG, bind_unix
from cove.model.errors import Invalid


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, [HOST]:PORT, :PORT or PORT. Raises Invalid."""
    text = address.removeprefix("tcp://")
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise Invalid(f"--listen {address}: expected HOST:PORT or unix:///PATH, e.g. 127.0.0.1:5000")
    return host.strip("[]") or ("0.0.0.0" if text.startswith(":") else "127.0.0.1"), int(port)


def told_address(address: str, sock: socket.socket) -> str:
    """The address with the port that was found for port 0."""
    if sock.family == socket.AF_UNIX:
        return address
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_local(address: str) -> bool:
    """Whether only this machine reaches this address."""
    if address.startswith("unix://"):
        return True
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(address: str) -> socket.socket:
    """A bound socket. Raises Invalid with what is in the way."""
    if address.startswith("unix://"):
        return _listen_unix(Path(address.removeprefix("unix://")))
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Invalid(
                f"port {port} is taken: another process listens on {host}; stop it, or choose another port, "
                f"e.g. --listen {host}:{port + 1 if port < 65535 else 5000}"
            ) from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise Invalid(f"--listen {address}: this machine has no address {host}") from None
        if error.errno == errno.EACCES:
            raise Invalid(f"--listen {address}: only root may listen below port 1024") from None
        raise Invalid(f"--listen {address}: {error.strerror or error}") from None


def _listen_unix(path: Path) -> socket.socket:
    if not path.is_absolute() or len(os.fsencode(path)) > 107:
        raise Invalid(f"--listen unix://{path}: expected an absolute path of at most 107 bytes")
    sock = bind_unix(path, "--listen")
    sock.listen(BACKLOG)
    return sock
