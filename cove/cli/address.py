"""Where a daemon listens, and a socket that is connected to it.

Uses the C module under `socket`, whose Python half costs 4 ms to import.
"""

from __future__ import annotations

import _socket
import errno
import os

from cove.cli.fail import CliError


class Tls:
    """How a TCP address is spoken to: whether the daemon's certificate is checked, and files in PEM format or ""."""

    __slots__ = ("authority", "certificate", "key", "verify")

    def __init__(self, verify: bool, authority: str, certificate: str, key: str) -> None:
        self.verify = verify
        self.authority = authority
        self.certificate = certificate
        self.key = key


class Address:
    """Where a daemon listens: a unix socket's path, a TCP host and port, or a host that ssh(1) reaches."""

    __slots__ = ("failure", "host", "path", "port", "ssh", "text", "tls")

    def __init__(self, text: str, tls: Tls | None = None) -> None:
        self.text = text
        self.tls = tls
        self.failure = ""  # why the last connection ended, as TLS says
        self.ssh = ""
        self.path, self.host, self.port = "", "", 0
        scheme, separator, rest = text.partition("://")
        if scheme == "unix" and separator and rest.startswith("/"):
            self.path = rest
        elif scheme in ("tcp", "http") and separator:
            host, colon, port = rest.rstrip("/").rpartition(":")
            self.host = host.strip("[]") if colon else rest
            if colon and not (port.isdecimal() and 0 < int(port) < 65536):
                raise CliError(f"{text}: expected a port from 1 to 65535, e.g. tcp://127.0.0.1:2375")
            self.port = int(port) if colon else 2376 if tls else 2375
        elif scheme == "ssh" and rest.strip("/") and not rest.startswith("-"):
            self.ssh = rest.rstrip("/")
        else:
            raise CliError(
                f"{text}: expected unix:///path, tcp://host:port or ssh://user@host, "
                "e.g. unix:///run/cove/docker.sock"
            )


def user_run_dir() -> str:
    """Where an ordinary user's daemon keeps its socket: $XDG_RUNTIME_DIR/cove, or /tmp/cove-UID without that."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "").rstrip("/")
    return f"{runtime}/cove" if runtime else f"/tmp/cove-{os.geteuid()}"  # noqa: S108 - the daemon checks whose it is


def open_socket(address: Address) -> _socket.socket:
    """A connected socket; OSError as connect(2) gives it."""
    if address.path:
        return _open_unix(address.path)
    if address.ssh:
        return _open_ssh(address)
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
        except OSError as error:
            sock.close()
            last = error
            continue
        if address.tls is None:
            return sock
        import socket

        from cove.cli.secure import open_tls

        return open_tls(address, address.tls, socket.socket(fileno=sock.detach()))
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


def _open_ssh(address: Address) -> _socket.socket:
    """A socket whose other end is `cove system dial-stdio` on the host that ssh(1) reaches."""
    import socket
    import subprocess

    where, _, port = address.ssh.partition(":")
    command = ["ssh", "-T", *(["-p", port] if port else []), "--", where, "cove", "system", "dial-stdio"]
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            subprocess.Popen(command, stdin=theirs.fileno(), stdout=theirs.fileno(), start_new_session=True)
        except FileNotFoundError:
            raise CliError(f"{address.text}: there is no ssh here: install openssh-client") from None
    return ours


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
