"""The daemon's side of its TLS addresses: starts the relay (cove/tls/relay.py) and takes what it hands over.

The listening sockets stay the daemon's, for the relay's successors: after one that died, or at a reload. An old relay
serves its connections to their end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cove.config.read import Config
from cove.model.errors import CoveError, HostError, Invalid

log = logging.getLogger("cove.daemon")

READY_S = 30.0
AGAIN_S = 1.0  # before a relay that died has a successor
SYSTEM = "system"  # the host's authorities


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """Files in PEM format; without an authority, clients need no certificate."""

    certificate: str
    key: str
    authority: str


def find_certificates(config: Config) -> Certificates | None:
    """What TLS addresses use; None: they don't speak TLS. Raises Invalid for a file that can't be read."""
    if not (config.switch("tls") or config.switch("tlsverify")):
        return None
    authority = config.text("tlscacert") or SYSTEM if config.switch("tlsverify") else ""
    found = Certificates(certificate=config.text("tlscert"), key=config.text("tlskey"), authority=authority)
    for name, path in (("tlscert", found.certificate), ("tlskey", found.key), ("tlscacert", found.authority)):
        if path and path != SYSTEM and not os.access(path, os.R_OK):
            raise Invalid(f"{name} {path}: can't be read: expected a file in PEM format")
    return found


class TlsDoor:
    """The relay of this daemon's TLS addresses."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        certificates: Certificates,
        take: Callable[[socket.socket, str], None],
    ) -> None:
        """`take` gets each connection's plain socket, and who is at its other end."""
        self._listeners = listeners
        self._certificates = certificates
        self._take = take
        self._control: socket.socket | None = None
        self._children: list[subprocess.Popen[bytes]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Start the relay. Raises Invalid for certificates that it can't use."""
        await self.renew(self._certificates)

    async def renew(self, certificates: Certificates) -> None:
        """Let a relay with these certificates accept from here on; nothing has changed when it raises Invalid."""
        control, child = await self._spawn(certificates)
        self._certificates = certificates
        self._hang_up()
        self._control = control
        self._children = [old for old in self._children if old.poll() is None]
        self._children.append(child)
        asyncio.get_running_loop().add_reader(control.fileno(), self._told)

    async def _spawn(self, certificates: Certificates) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptors = [theirs.fileno(), *(sock.fileno() for sock in self._listeners)]
        command = [
            sys.executable, "-S", "-P", "-m", "cove.tls.relay", *map(str, descriptors), "--",
            certificates.certificate, certificates.key, certificates.authority,
        ]  # fmt: skip
        environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent.parent),
        }
        for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
            if name in os.environ:
                environment[name] = os.environ[name]
        try:
            with theirs:
                child = await asyncio.to_thread(
                    subprocess.Popen,
                    command,
                    env=environment,
                    pass_fds=descriptors,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                    cwd="/",
                )
            ours.setblocking(False)
            async with asyncio.timeout(READY_S):
                answer = (await asyncio.get_running_loop().sock_recv(ours, 2048)).decode(errors="replace")
        except (OSError, TimeoutError) as error:
            ours.close()
            raise HostError(f"the process that speaks TLS didn't start: {error}") from None
        if answer != "READY":
            ours.close()
            raise Invalid(f"TLS: {answer.removeprefix('ERROR ') or 'the relay ended before it was ready'}")
        return ours, child

    def _told(self) -> None:
        """Take the connections that the relay hands over; at its end, start another."""
        assert self._control is not None
        while True:
            try:
                told, descriptors, _, _ = socket.recv_fds(self._control, 1024, 1)
            except BlockingIOError:
                return
            except OSError:
                told, descriptors = b"", []
            if not told:
                break
            for fd in descriptors:
                self._take(socket.socket(fileno=fd), told.decode(errors="replace"))
        self._hang_up()
        log.error("the process that speaks TLS has ended: starting another")
        self._timer = asyncio.get_running_loop().call_later(AGAIN_S, self._again)

    def _again(self) -> None:
        async def renew() -> None:
            try:
                await self.renew(self._certificates)
            except CoveError as error:
                log.error("%s", error)
                self._timer = asyncio.get_running_loop().call_later(AGAIN_S, self._again)

        task = asyncio.get_running_loop().create_task(renew())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _hang_up(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            asyncio.get_running_loop().remove_reader(control.fileno())
            control.close()

    def close(self) -> None:
        """Accept nobody any more; the relay ends with its last connection."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(OSError):
            self._hang_up()
