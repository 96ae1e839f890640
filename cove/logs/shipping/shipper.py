"""The daemon's side of the shipper: starts it at first need, tells it what to carry, hears what it says.

A shipper that ended is started again and told everything anew: what is under way is known here, how far it got is
on disk. Order that must hold when a log begins: `ship/destination` is written, then the shipper is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from contextvars import Context
from pathlib import Path

import msgspec

from cove.logs.destinations import Shipment
from cove.logs.shipping.position import has_unsent
from cove.logs.shipping.protocol import MOST_LINE, Ended, Follow, Left, Order, Told, decode_told, encode_line
from cove.model.errors import HostError

_ROOT = str(Path(__file__).resolve().parents[3])
_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from cove.logs.shipping.process import main; main()"
)
_MOST_UNREAD = 4 << 20  # bytes of orders to a shipper that doesn't read
_MOST_PAUSE_S = 30.0
_LOST_SAY_S = 10.0  # at most that often, losses of one log are told

_log = logging.getLogger("cove.logs")


class Totals(msgspec.Struct):
    """Since the daemon started."""

    sent: int = 0  # messages
    lost_bytes: int = 0
    away: int = 0  # logs whose receiver can't be reached now


class Shipper:
    """All logs of a daemon that are sent on."""

    def __init__(self, unsent_dir: Path, lock_path: Path) -> None:
        self._unsent = unsent_dir
        self._lock_path = lock_path
        self._under_way: dict[str, Order] = {}  # by container, what a new process has to be told
        self._away: set[str] = set()
        self._lost: dict[str, tuple[float, int]] = {}  # by container: when it was told last, bytes since
        self._task: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._closed = False
        self._totals = Totals()
        self.pid = 0  # of the process; 0: there is none

    def totals(self) -> Totals:
        return msgspec.structs.replace(self._totals, away=len(self._away))

    def resume(self) -> None:
        """After a daemon's start: go on with the logs that removed containers left."""
        with contextlib.suppress(FileNotFoundError):
            if os.listdir(self._unsent):
                self._ensure()

    def follow(self, container_id: str, log_dir: Path, *, running: bool) -> None:
        """Send a log on, as its `ship/destination` says."""
        self._give(Follow(container_id=container_id, log_dir=str(log_dir), running=running))

    def ended(self, container_id: str) -> None:
        order = self._under_way.get(container_id)
        if isinstance(order, Follow) and order.running:
            self._under_way[container_id] = msgspec.structs.replace(order, running=False)
            self._send(Ended(container_id=container_id))

    def keep(self, container_id: str, log_dir: Path) -> None:
        """The container is being removed: what of its log isn't sent yet is kept until it is. Idempotent."""
        if not has_unsent(log_dir):
            self._forget(container_id)
            return
        place = self._unsent / container_id
        try:
            self._unsent.mkdir(mode=0o700, exist_ok=True)
            os.rename(log_dir, place)
        except OSError as error:
            _log.warning("what was unsent of container %s is lost: %s", container_id[:12], error.strerror)
            return
        self._give(Left(container_id=container_id, log_dir=str(place)))

    async def close(self) -> None:
        """End the process; what it hasn't sent is on disk."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # --- the process ----------------------------------------------------------------------

    def _give(self, order: Order) -> None:
        self._under_way[order.container_id] = order
        self._ensure()
        self._send(order)

    def _send(self, order: Order) -> None:
        if self._writer is None:
            return  # it's told all that is under way once it runs
        if self._writer.transport.get_write_buffer_size() > _MOST_UNREAD:
            _log.error("the log shipper (process %d) doesn't listen and is started again", self.pid)
            self._writer.transport.abort()
            return
        self._writer.write(encode_line(order))

    def _ensure(self) -> None:
        if self._task is None and not self._closed:
            # a context of its own: what it says is about no request
            self._task = asyncio.get_running_loop().create_task(self._run(), context=Context())

    async def _run(self) -> None:
        pause_s = 0.1
        while True:
            begun = time.monotonic()
            try:
                await self._run_once()
            except OSError as error:
                _log.error("the log shipper can't be started: %s", error.strerror)
            pause_s = 0.1 if time.monotonic() - begun > _MOST_PAUSE_S else min(pause_s * 2, _MOST_PAUSE_S)
            _log.warning("the log shipper ended; it's started again in %.1f s", pause_s)
            await asyncio.sleep(pause_s)

    async def _run_once(self) -> None:
        process, ours = self._spawn()
        self.pid = process.pid
        try:
            reader, writer = await asyncio.open_connection(sock=ours, limit=MOST_LINE)
            try:
                for order in self._under_way.values():
                    writer.write(encode_line(order))
                self._writer = writer
                while line := await reader.readline():
                    self._hear(decode_told(line))
            except (OSError, ValueError, msgspec.MsgspecError) as error:
                _log.error("the log shipper's words make no sense: %s", error)
            finally:
                self._writer = None
                writer.transport.abort()
        finally:
            self.pid = 0
            await _end(process)

    def _spawn(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        self._unsent.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                return self._popen(theirs.fileno(), lock), ours
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(lock)

    def _popen(self, control: int, lock: int) -> subprocess.Popen[bytes]:
        arguments = [str(control), str(self._unsent), str(lock)]
        kept = ("COVE_JOURNAL_SOCKET", "SSL_CERT_FILE", "SSL_CERT_DIR", "TZ")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _START, _ROOT, *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=(control, lock),
            env=environment,
            start_new_session=True,  # a terminal's ctrl-c is the daemon's
        )

    # --- what it says ---------------------------------------------------------------------

    def _hear(self, told: Told) -> None:
        ident = told.container_id
        self._totals.sent += told.sent
        self._totals.lost_bytes += told.lost_bytes
        if told.trouble:
            self._away.add(ident)
            _log.warning(
                "the log of container %s can't be sent: %s; it's kept, within its bounds, and tried again",
                ident[:12],
                told.trouble,
            )
        if told.recovered:
            self._away.discard(ident)
            _log.info("the log of container %s is sent again", ident[:12])
        if told.lost_bytes:
            self._hear_lost(ident, told.lost_bytes)
        if told.done:
            self._forget(ident)

    def _forget(self, ident: str) -> None:
        self._under_way.pop(ident, None)
        self._away.discard(ident)
        self._lost.pop(ident, None)

    def _hear_lost(self, ident: str, lost_bytes: int) -> None:
        when, before = self._lost.get(ident, (-_LOST_SAY_S, 0))
        now = time.monotonic()
        if now - when < _LOST_SAY_S:
            self._lost[ident] = (when, before + lost_bytes)
            return
        self._lost[ident] = (now, 0)
        _log.warning(
            "the log of container %s: at least %d bytes were rotated away before they could be sent",
            ident[:12],
            before + lost_bytes,
        )


def write_shipment(log_dir: Path, shipment: Shipment) -> None:
    """Put down where a log goes: for the shipper only, for what labels and variables hold may be secret. Raises
    HostError (disk full)."""
    directory = log_dir / "ship"
    new = directory / "destination.new"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.encode(shipment))
        os.rename(new, directory / "destination")
    except OSError as error:
        raise HostError(f"{directory}: {error.strerror}") from error


async def _end(process: subprocess.Popen[bytes]) -> None:
    """It ends by itself when its connection ends; it is killed when it doesn't within a second."""
    loop = asyncio.get_running_loop()
    deadline = time.monotonic() + 1.0
    while process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()
            await loop.run_in_executor(None, process.wait)
            return
        await asyncio.sleep(0.01)
