"""The run dir's lock, listening sockets, and the service manager's: sd_listen_fds(3)."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from cove.api.sockets import BACKLOG, bind_unix
from cove.model.errors import Invalid


def lock_run_dir(run_dir: Path) -> int:
    """A descriptor that holds the run dir's lock for the process's life; Invalid when another daemon has it."""
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
    fd = os.open(run_dir / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise Invalid(
            f"a daemon is running already in {run_dir}: stop it, or choose another --run-dir"
        ) from None
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd


def inherited_sockets() -> list[socket.socket]:
    """Sockets that systemd hands over (sd_listen_fds(3)); none when LISTEN_PID isn't this process."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    sockets = []
    for fd in range(3, 3 + count):
        os.set_inheritable(fd, False)
        sockets.append(socket.socket(fileno=fd))
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    return sockets


def listen(address: str, group: str) -> socket.socket:
    """A listening socket for `unix://PATH` or `tcp://HOST:PORT`. Invalid says what is wrong with the address."""
    if address.startswith("unix://"):
        path = Path(address.removeprefix("unix://"))
        if not path.is_absolute():
            raise Invalid(f"-H {address}: expected an absolute path, e.g. unix:///run/cove/docker.sock")
        return _listen_unix(path, group)
    if address.startswith("tcp://"):
        host, colon, port = address.removeprefix("tcp://").rstrip("/").rpartition(":")
        if not colon or not port.isdecimal() or int(port) > 65535:
            raise Invalid(f"-H {address}: expected a host and a port up to 65535, e.g. tcp://127.0.0.1:2375")
        host = host.strip("[]") or "127.0.0.1"
        try:
            return socket.create_server(
                (host, int(port)),
                family=socket.AF_INET6 if ":" in host else socket.AF_INET,
                backlog=BACKLOG,
            )
        except OSError as error:
            raise Invalid(f"-H {address}: {error.strerror or error}") from None
    raise Invalid(f"-H {address}: expected unix://PATH or tcp://HOST:PORT, e.g. unix:///run/cove/docker.sock")


def _listen_unix(path: Path, group: str) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    gid = -1
    if group:
        import grp

        try:
            gid = grp.getgrnam(group).gr_gid
        except KeyError:
            raise Invalid(
                f"--group {group}: no such group; make it with groupadd, or leave the option out"
            ) from None
    sock = bind_unix(path, "-H")
    if gid >= 0:
        os.chown(path, -1, gid)
    sock.listen(BACKLOG)
    return sock
