"""Blobs that the machine's image store has: linked into the registry instead of uploaded, or asked of the daemon.

The server isn't root and can't enter the store. A small process that was forked while root was still there does
that for it, over a socket pair: `link DIGEST` makes a link of images/blobs/sha256/HEX in the registry's uploads,
once its content has been hashed and found to be what its name says. Another one asks the daemon, see source.py.
They take nothing but a digest or an image's name, and keep no capability but the one to write where the server's files
are. Where the server's user owns the store (an ordinary user's own daemon), the same is done without them.

Order that must hold: fork before threads, sockets' addresses and root are gone.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import socket
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cove.image.sandbox import CAP_DAC_OVERRIDE, die_with_parent, hide_from_tracers, keep_capabilities
from cove.registry.content import READ_BYTES
from cove.registry.names import parse_digest
from cove.registry.refusals import Refused

MESSAGE_BYTES_MAX = 4096
_AT_FDCWD, _AT_SYMLINK_FOLLOW = -100, 0x400
_O_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
SHARES = ("local", "pushers", "none")


class Linker:
    """Links blobs of an image store into a directory on the same file system."""

    def __init__(self, images: Path, uploads: Path) -> None:
        self._images = images
        self._uploads = uploads

    def link(self, digest: str) -> str:
        """The new link's name in `uploads`; "" where the store lacks the blob, or it can't be linked."""
        algorithm, _, value = parse_digest(digest).partition(":")
        if algorithm != "sha256":
            return ""
        try:
            fd = os.open(self._images / "blobs/sha256" / value, _O_FLAGS)
        except OSError:
            return ""
        try:
            found = os.fstat(fd)
            if (
                not stat.S_ISREG(found.st_mode)
                or found.st_dev != self._uploads.stat().st_dev
                or _hash(fd) != value
            ):
                return ""
            if not found.st_mode & 0o004:
                os.fchmod(fd, 0o644)  # both its directories are their owners' alone
            name = f"{secrets.token_hex(8)}.link"
            # By descriptor: what is linked is what was hashed.
            libc = ctypes.CDLL(None, use_errno=True)
            source = f"/proc/self/fd/{fd}".encode()
            uploads = os.open(self._uploads, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if libc.linkat(_AT_FDCWD, source, uploads, name.encode(), _AT_SYMLINK_FOLLOW) < 0:
                    return ""  # EXDEV: another file system; EMLINK
            finally:
                os.close(uploads)
            return name
        except OSError:
            return ""
        finally:
            os.close(fd)


def _hash(fd: int) -> str:
    import hashlib

    hasher = hashlib.sha256()
    offset = 0
    while piece := os.pread(fd, READ_BYTES, offset):
        hasher.update(piece)
        offset += len(piece)
    return hasher.hexdigest()


class Broker:
    """The server's end: asks the process that still is root. Blocking, for threads; one question at a time."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.sock = sock
        self._pid = pid
        self._lock = threading.Lock()

    def link(self, digest: str) -> str:
        """As Linker.link."""
        return self._ask(f"link {digest}")

    def image(self, reference: str) -> str:
        """As source.DaemonClient.image."""
        return self._ask(f"image {reference}")

    def push(self, reference: str, target: str) -> str:
        """As source.DaemonClient.push."""
        return self._ask(f"push {reference} {target}")

    def _ask(self, words: str) -> str:
        with self._lock:
            try:
                self.sock.send(words.encode())
                return self.sock.recv(MESSAGE_BYTES_MAX).decode().strip()
            except OSError:
                return ""

    def close(self) -> None:
        """End the process, and wait for its end."""
        self.sock.close()
        try:
            os.waitpid(self._pid, 0)
        except ChildProcessError:
            pass


Verbs = Mapping[str, Callable[..., str]]  # what may be asked for, and who answers


def start_broker(verbs: Verbs, closing: Sequence[socket.socket]) -> Broker:
    """Fork the process; it closes the sockets of `closing`, which are the server's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        theirs.close()
        return Broker(ours, pid)
    try:
        ours.close()
        for sock in closing:
            sock.close()
        die_with_parent()
        hide_from_tracers()
        keep_capabilities((CAP_DAC_OVERRIDE,))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # it ends with the socket
        _answer(theirs, verbs)
    finally:
        os._exit(0)


def _answer(sock: socket.socket, verbs: Verbs) -> None:
    while words := sock.recv(MESSAGE_BYTES_MAX):
        verb, *rest = words.decode("utf-8", "replace").split(" ")
        try:
            answer = verbs[verb](*rest)
        except (Refused, LookupError, TypeError, ValueError) as error:
            answer = "" if verb == "link" else f"{type(error).__name__}"
        sock.send(answer[: MESSAGE_BYTES_MAX // 4].encode() or b"\n")
