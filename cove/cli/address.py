"""Where a daemon listens, and a socket that is connected to it.

Uses the C module under `socket`, whose Python half costs 4 ms to import.
"""

from __future__ import annotations

import _socket
import errno
import os

from cove.cli.fail import CliError


class Address:
    """Where a daemon listens: a unix socket's path, or a TCP host and port."""

    __slots__ = ("host", "path", "port", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.path, self.host, self.port = "", "", 0
        scheme, separator, rest = text.partition("://")
        if scheme == "unix" and separator and rest.startswith("/"):
            self.path = rest
        elif scheme in ("tcp", "http") and separator:
            host, colon, port = rest.rstrip("/").rpartition(":")
            self.host = host.strip("[]") if colon else rest
            if colon and not (port.isdecimal() and 0 < int(port) < 65536):
                raise CliError(f"{text}: expected a port from 1 to 65535, e.g. tcp://127.0.0.1:2375")
            self.port = int(port) if colon else 2375
        else:
            raise CliError(
                f"{text}: expected unix:///path or tcp://host:port, e.g. unix:///run/cove/docker.sock"
            )


def user_run_dir() -> str:
    """Where an ordinary user's daemon keeps its socket: $XDG_RUNTIME_DIR/cove, or /tmp/cove-UID without that."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "").rstrip("/")
    return f"{runtime}/cove" if runtime else f"/tmp/cove-{os.geteuid()}"  # noqa: S108 - the daemon checks whose it is


def open_socket(address: Address) -> _socket.socket:
    """A connected socket; OSError as connect(2) gives it."""
    if address.path:
        return _open_unix(address.path)
    last: OSError | None = None
    try:
        found = _socket.getaddrinfo(address.host, address.port, 0, _socket.SOCK_STREAM)
    except OSError as error:
        raise CliError(f"{address.text}: {error.args[-1]}; check the host's name") from None
    for family, kind, protocol, _, target in found:
        sock = _socket.socket(family, kind | _socket.SOCK_CLOEXEC, protocol)
        try:
            sock.connect(target)
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            return sock
        except OSError as error:
            sock.close()
            last = error
    raise last or OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))


def _open_unix(path: str) -> _socket.socket:
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    directory = -1
    try:
        if len(os.fsencode(path)) > 107:  # unix(7): sun_path has 108 bytes; a descriptor shortens it
            directory = os.open(os.path.dirname(path), os.O_PATH | os.O_CLOEXEC)
            path = f"/proc/self/fd/{directory}/{os.path.basename(path)}"
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    finally:
        if directory >= 0:
            os.close(directory)
    return sock


def explain_connect(address: Address, error: OSError) -> str:
    """One sentence for a failed connect(2)."""
    if error.errno in (errno.EACCES, errno.EPERM):
        shown = address.path or address.text
        return f"no permission for {shown}: run as root (sudo), or join the group that owns it"
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        return (
            f"no daemon listens at {address.text}: start one (cove daemon), or name another by -H, "
            "COVE_HOST or DOCKER_HOST"
        )
    return f"{address.text}: {error.strerror or error}"
