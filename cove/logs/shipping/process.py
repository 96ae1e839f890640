"""The shipper's life: `python -m cove.logs.shipping.process CONTROL UNSENT_DIR LOCK`.

One process for a daemon. It does what the daemon tells over CONTROL (protocol.py), and by itself what lies in
UNSENT_DIR: logs of removed containers, each in a directory named by the container's id. Where the daemon goes, it
goes too; the next one starts from the positions on disk. LOCK keeps two from sending the same.

A removed container's log is kept until it's sent, KEEP_S at most, and KEEP_BYTES of all of them together; the oldest
go first.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import socket
import sys
import time
from pathlib import Path

import msgspec

from cove.logs.destinations import Shipment
from cove.logs.shipping.carrier import Carrier
from cove.logs.shipping.connect import make_sender
from cove.logs.shipping.protocol import MOST_LINE, Ended, Follow, Left, Order, Told, decode_order, encode_line

KEEP_S = 3600.0
KEEP_BYTES = 256 << 20
_SWEEP_S = 60.0
_AGAIN_S, _MOST_AGAIN_S = 1.0, 30.0
_MOST_UNHEARD = 1 << 20  # bytes of messages to a daemon that doesn't listen


class Process:
    """All carriers of a daemon."""

    def __init__(self, unsent: Path, writer: asyncio.StreamWriter) -> None:
        self._unsent = unsent
        self._writer = writer
        self._carriers: dict[str, Carrier] = {}  # what runs now
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._places: dict[str, Path] = {}  # where the logs are
        self._running: set[str] = set()  # containers whose logs may still grow
        self._left: set[str] = set()  # removed containers

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Until the daemon is gone."""
        sweeper = asyncio.get_running_loop().create_task(self._sweep())
        try:
            for entry in sorted(os.listdir(self._unsent)):
                self._do(Left(container_id=entry, log_dir=str(self._unsent / entry)))
            while line := await reader.readline():
                self._do(decode_order(line))
        finally:
            tasks = [sweeper, *self._tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _do(self, order: Order) -> None:
        ident = order.container_id
        carrier = self._carriers.get(ident)
        if isinstance(order, Ended):
            self._running.discard(ident)
        else:
            self._places[ident] = Path(order.log_dir)
            running = isinstance(order, Follow) and order.running
            (self._running.add if running else self._running.discard)(ident)
            if isinstance(order, Left):
                self._left.add(ident)
            if ident not in self._tasks:
                self._tasks[ident] = asyncio.get_running_loop().create_task(self._carry(ident))
        if carrier is None:
            return
        if ident not in self._running:
            carrier.end()
        elif (shipment := read_shipment(self._places[ident])) is not None:
            carrier.begin(shipment)

    async def _carry(self, ident: str) -> None:
        """Until the container has ended and everything is sent."""
        pause_s = _AGAIN_S
        while (shipment := read_shipment(self._places[ident])) is not None:
            try:
                carrier = Carrier(_open(self._places[ident]), shipment, make_sender, self._tell)
                self._carriers[ident] = carrier
                if ident not in self._running:
                    carrier.end()
                await carrier.run()
                if ident not in self._running:
                    break
            except Exception as error:  # the others are to be carried on, and this one is tried again
                self._tell(Told(container_id=ident, trouble=str(error)[:200] or type(error).__name__))
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _MOST_AGAIN_S)
            finally:
                self._carriers.pop(ident, None)
        del self._tasks[ident]
        self._forget(ident)

    def _forget(self, ident: str) -> None:
        """The log is sent; what a removed container has left goes."""
        directory = self._places.pop(ident)
        self._running.discard(ident)
        if ident in self._left:
            self._left.discard(ident)
            shutil.rmtree(directory, ignore_errors=True)
            self._tell(Told(container_id=ident, done=True))

    async def _sweep(self) -> None:
        """Keep what removed containers left within its bounds."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            kept = sorted((_age_and_size(self._places[ident]), ident) for ident in self._left)
            total = 0
            for (age_s, size), ident in kept:
                total += size
                if age_s > KEEP_S or total > KEEP_BYTES:
                    await self._drop(ident, size)

    async def _drop(self, ident: str, size: int) -> None:
        task = self._tasks.pop(ident, None)
        if task is None:
            return  # it has been sent meanwhile
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._tell(Told(container_id=ident, lost_bytes=size))
        self._forget(ident)

    def _tell(self, told: Told) -> None:
        if self._writer.transport.get_write_buffer_size() < _MOST_UNHEARD:
            self._writer.write(encode_line(told))


def read_shipment(directory: Path) -> Shipment | None:
    try:
        return msgspec.json.decode((directory / "ship/destination").read_bytes(), type=Shipment)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None


def _open(directory: Path) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)


def _age_and_size(directory: Path) -> tuple[float, int]:
    """Seconds since the container was removed (the directory was moved then), and bytes."""
    try:
        age_s = time.time() - os.stat(directory).st_ctime
        return age_s, sum(entry.stat().st_size for entry in os.scandir(directory) if entry.is_file())
    except OSError:
        return 0.0, 0


async def serve(control: socket.socket, unsent: Path, lock: int) -> None:
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            await asyncio.sleep(0.05)  # a killed daemon's shipper is about to end
    reader, writer = await asyncio.open_connection(sock=control, limit=MOST_LINE)
    await Process(unsent, writer).run(reader)


def main() -> None:
    os.umask(0o077)
    with contextlib.suppress(OSError):
        os.nice(5)  # containers and the daemon come first
    control, unsent, lock = sys.argv[1:4]
    sock = socket.socket(fileno=int(control))
    sock.setblocking(False)
    asyncio.run(serve(sock, Path(unsent), int(lock)))


if __name__ == "__main__":
    main()
