"""Unix sockets to listen on, and the service manager's: what the daemon and the registry share."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

from cove.model.errors import Invalid

BACKLOG = 1024


def bind_unix(path: Path, flag: str) -> socket.socket:
    """A bound socket at `path`, mode 0660; one nobody listens on is replaced. Raises Invalid, which names `flag`."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise Invalid(f"{flag} unix://{path}: there is a file that isn't a socket; move it away")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(_short(path))
            except OSError:
                pass
            else:
                raise Invalid(f"{flag} unix://{path}: another process listens there")
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o117)
    try:
        sock.bind(_short(path))
    except OSError as error:
        sock.close()
        raise Invalid(f"{flag} unix://{path}: {error.strerror or error}") from None
    finally:
        os.umask(mask)
    return sock


def _short(path: Path) -> str:
    """The path, or one through its directory's descriptor where it is longer than sun_path (unix(7))."""
    if len(os.fsencode(path)) <= 107:
        return str(path)
    fd = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)  # stays open: one for each long socket path
    return f"/proc/self/fd/{fd}/{path.name}"


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); nothing happens without NOTIFY_SOCKET."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect(address)
        sock.sendall(state.encode())
