"""The daemon's side of the DNS server: which containers are answered, and with what.

Owns the wanted state, and the server's life: it is started with the first container that needs it, found again after
a restart of the daemon (it goes on meanwhile), and started again when it ends. The daemon keeps a container's two
sockets, too: what arrives while no server is there waits in them. Nothing here waits for the server; `serve` waits
for the container's sockets alone.

    nobody needs it ──first container──> started (or found) ──> told everything ──changes──> told
                                            ▲                         │
                                            └────────it ended─────────┘
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cove.model.errors import CoveError
from cove.network.dns import control
from cove.network.dns.control import Channel, Closed, Order
from cove.network.dns.doors import Doors, open_doors
from cove.network.dns.names import Client, Record
from cove.network.dns.process import CONTROL

log = logging.getLogger(__name__)

READY_BOUND_S = 20.0  # a machine under load starts Python slowly
IDLE_S = 60.0
END_BOUND_S = 10.0
_PAUSES_S = (0.0, 0.1, 0.5, 2.0, 5.0)
_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from cove.network.dns.process import main; main()"
_ROOT = str(Path(__file__).resolve().parents[3])
Visit = Callable[[int, Callable[[], Doors]], Awaitable[Doors]]  # do something in a namespace, in a thread


@dataclass(slots=True)
class _Slot:
    """A container that is to be answered."""

    client: Client
    records: dict[str, Record]  # by network
    doors: Doors | None = None
    pid: int = 0
    pidfd: int = -1
    serving: bool = False  # this server has its sockets

    def close(self) -> None:
        if self.doors is not None:
            self.doors.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.doors, self.pidfd = None, -1


@dataclass(slots=True)
class _Process:
    """A running server."""

    channel: Channel
    pidfd: int
    child: subprocess.Popen[bytes] | None = None
    found: dict[str, Doors] = field(default_factory=dict)  # the sockets that it told of

    def close(self) -> None:
        self.channel.close()
        for doors in self.found.values():
            doors.close()
        self.found.clear()
        os.close(self.pidfd)
        if self.child is not None:
            self.child.returncode = 0  # reaped when it ends, by whoever it belongs to then


class DnsService:
    """See the module. Every method is called on the event loop's thread."""

    def __init__(self, directory: Path, visit: Visit) -> None:
        self._directory = directory
        self._visit = visit
        self._slots: dict[str, _Slot] = {}
        self._process: _Process | None = None  # told everything
        self._needed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._closing = False
        self._idle: asyncio.TimerHandle | None = None

    # --- containers ---------------------------------------------------------------------------

    async def serve(
        self, client: Client, records: Sequence[Record], namespace: int, *, again: bool = False
    ) -> None:
        """Answer a container from its first instruction on; `namespace` is a descriptor, borrowed, `again`: of one
        that runs, and may have been served before. Raises HostError."""
        self.leave(client.container)
        doors = await self._open(namespace, lambda: open_doors(again=again))
        slot = _Slot(client, {record.network: record for record in records}, doors)
        self._slots[client.container] = slot
        self._tell_of(slot)

    def adopt(self, client: Client, records: Sequence[Record], pid: int, pidfd: int) -> None:
        """A container that runs since before this daemon. `pidfd` is borrowed."""
        slot = _Slot(client, {record.network: record for record in records}, None, pid, os.dup(pidfd))
        self._slots[client.container] = slot
        self._needed.set()

    def serves(self, container: str) -> bool:
        return container in self._slots

    def update(self, client: Client, records: Sequence[Record]) -> None:
        """What a container that is served is answered, or is called, has changed."""
        slot = self._slots.get(client.container)
        if slot is None:
            return
        gone = slot.records.keys() - {record.network for record in records}
        slot.client = client
        slot.records = {record.network: record for record in records}
        self._tell(*(control.Drop(network, client.container) for network in gone))
        self._tell_of(slot)

    def watch(self, container: str, pid: int, pidfd: int) -> None:
        """The container's first process, which is borrowed: with it the container is gone, whoever sees it."""
        slot = self._slots.get(container)
        if slot is None:
            return
        if slot.pidfd >= 0:
            os.close(slot.pidfd)
        slot.pid, slot.pidfd = pid, os.dup(pidfd)
        self._tell_with(control.Watch(container), (slot.pidfd,))

    def leave(self, container: str) -> None:
        """A container is gone: its sockets close at once. Idempotent."""
        slot = self._slots.pop(container, None)
        if slot is None:
            return
        self._tell(*(control.Drop(network, container) for network in slot.records), control.Leave(container))
        slot.close()
        if not self._slots and self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._let_go)

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Find the server that an earlier daemon left; it is told which containers there are now."""
        if (self._directory / CONTROL).exists():
            self._needed.set()
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        """Leave the server to itself; it goes on as long as there is a container."""
        self._closing = True
        if self._idle is not None:
            self._idle.cancel()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        for slot in self._slots.values():
            slot.close()
        self._slots.clear()

    async def uninstall(self) -> None:
        """No container is left: have the server end, and wait for it."""
        pidfd = self._find_pidfd()
        await self.close()
        if pidfd < 0:
            return
        try:
            if not await _wait_ended(pidfd, END_BOUND_S):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)

    # --- telling the server -------------------------------------------------------------------

    def _tell_of(self, slot: _Slot) -> None:
        self._needed.set()
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._process is None:
            return  # it will be told everything
        self._tell(*(control.Put(record) for record in slot.records.values()))
        self._tell_serve(slot)

    def _tell_serve(self, slot: _Slot) -> None:
        doors = (slot.doors.udp, slot.doors.tcp) if slot.doors is not None and not slot.serving else ()
        slot.serving = slot.serving or bool(doors)
        self._tell_with(control.Serve(slot.client), doors)

    def _tell(self, *orders: Order) -> None:
        for order in orders:
            self._tell_with(order, ())

    def _tell_with(self, order: Order, descriptors: Sequence[int]) -> None:
        if self._process is None:
            return
        try:
            self._process.channel.send(order, descriptors)
        except Closed:
            pass  # the keeper sees it, too, and the next server is told everything

    # --- keeping it ---------------------------------------------------------------------------

    async def _keep(self) -> None:
        failures = 0
        while True:
            await self._needed.wait()
            await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
            try:
                process = await self._find() or (await self._spawn() if self._slots else None)
                if process is None:
                    self._needed.clear()
                    continue
                failures = 0 if await self._accompany(process) else failures + 1
            except (CoveError, OSError) as error:
                failures += 1
                log.error("the DNS server can't be started, containers don't find each other: %s", error)
            if not self._slots:
                self._needed.clear()

    async def _accompany(self, process: _Process) -> bool:
        """Tell a server everything and wait for its end; whether it had become ready."""
        try:
            # A new server has nothing to say: what it is told waits for it, even if this daemon dies meanwhile.
            if process.child is None and not await self._wait_ready(process):
                return False
            await self._settle_doors(process)
            self._tell_everything(process)
            if process.child is not None and not await self._wait_ready(process):
                return False
            if not self._slots:
                self._let_go()  # what an earlier daemon left is needed by nobody
            await self._wait_hung_up(process)
            if self._slots:
                log.warning("the DNS server ended and is started again")
            return True
        finally:
            self._process = None
            if process.child is not None and not self._closing:
                await asyncio.to_thread(_reap, process.child)
            process.close()

    async def _wait_ready(self, process: _Process) -> bool:
        """Take in which containers it serves; False when it doesn't say."""
        try:
            async with asyncio.timeout(READY_BOUND_S):
                while True:
                    await _wait_readable(process.channel.fileno())
                    while (got := process.channel.receive_report()) is not None:
                        report, descriptors = got
                        if isinstance(report, control.Serving) and len(descriptors) == 2:
                            earlier = process.found.pop(report.container, None)
                            if earlier is not None:
                                earlier.close()
                            process.found[report.container] = Doors(*descriptors)
                            continue
                        for fd in descriptors:
                            os.close(fd)
                        if isinstance(report, control.Ready):
                            return True
        except Closed:
            return False  # it was about to end
        except TimeoutError:
            log.error("the DNS server doesn't answer and is killed")
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
            return False

    async def _settle_doors(self, process: _Process) -> None:
        """The sockets of containers that this daemon hasn't opened: the server's, or new ones."""
        for slot in self._slots.values():
            slot.serving = False
        for container, slot in list(self._slots.items()):
            if slot.doors is None and container in process.found:
                slot.doors, slot.serving = process.found.pop(container), True
            if slot.doors is None:
                await self._open_again(container, slot)

    async def _open_again(self, container: str, slot: _Slot) -> None:
        """The server that had the sockets is gone, and the daemon that opened them is, too."""
        try:
            namespace = os.open(f"/proc/{slot.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return  # it has just ended
        try:
            doors = await self._open(namespace, lambda: open_doors(again=True))
        except CoveError as error:
            log.error("container %s resolves no names any more: %s", container[:12], error)
            return
        finally:
            os.close(namespace)
        if self._slots.get(container) is slot and slot.doors is None:
            slot.doors = doors
        else:
            doors.close()

    def _tell_everything(self, process: _Process) -> None:
        self._process = process
        self._tell(control.Begin())
        for slot in self._slots.values():
            self._tell(*(control.Put(record) for record in slot.records.values()))
        for container, slot in self._slots.items():
            self._tell_serve(slot)
            if slot.pidfd >= 0:
                self._tell_with(control.Watch(container), (slot.pidfd,))
        self._tell(control.Complete())
        for doors in process.found.values():
            doors.close()
        process.found.clear()

    async def _wait_hung_up(self, process: _Process) -> None:
        with contextlib.suppress(Closed):
            while True:
                await _wait_readable(process.channel.fileno())
                while (got := process.channel.receive_report()) is not None:
                    for fd in got[1]:
                        os.close(fd)

    async def _open(self, namespace: int, work: Callable[[], Doors]) -> Doors:
        opening = asyncio.ensure_future(self._visit(namespace, work))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_result)
            raise

    def _let_go(self) -> None:
        """No container has needed it for a while: hung up on, it ends."""
        self._idle = None
        if self._process is not None and not self._slots:
            with contextlib.suppress(OSError):
                self._process.channel.shut_down()

    # --- processes ----------------------------------------------------------------------------

    async def _find(self) -> _Process | None:
        """The server that listens in the directory, if there is one."""
        found = self._connect()
        if found is None:
            return None
        sock, pidfd = found
        return _Process(Channel(sock), pidfd)

    def _find_pidfd(self) -> int:
        if self._process is not None:
            return os.dup(self._process.pidfd)
        found = self._connect()
        if found is None:
            return -1
        found[0].close()
        return found[1]

    def _connect(self) -> tuple[socket.socket, int] | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            at = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sock.setblocking(False)
                sock.connect(f"/proc/self/fd/{at}/{CONTROL}")
            finally:
                os.close(at)
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            return sock, os.pidfd_open(struct.unpack("3i", credentials)[0])
        except OSError:
            sock.close()
            return None

    async def _spawn(self) -> _Process:
        self._directory.mkdir(exist_ok=True, mode=0o711)
        ours, theirs = control.pair()
        try:
            with theirs:
                child = await asyncio.to_thread(self._start_child, theirs)
            return _Process(Channel(ours), os.pidfd_open(child.pid), child)
        except BaseException:
            ours.close()
            raise

    def _start_child(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        with open(self._directory.parent / "dns.log", "wb") as output:
            return subprocess.Popen(
                [sys.executable, "-I", "-c", _START, _ROOT, str(self._directory), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={"LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                cwd="/",
                start_new_session=True,
            )


def _close_result(opening: asyncio.Future[Doors]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


async def _wait_readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    readable = loop.create_future()

    def tell() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(fd, tell)
    try:
        await readable
    finally:
        loop.remove_reader(fd)


async def _wait_ended(pidfd: int, bound_s: float) -> bool:
    """Whether a process has ended within the bound."""
    try:
        async with asyncio.timeout(bound_s):
            await _wait_readable(pidfd)
    except TimeoutError:
        return False
    return True


def _reap(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(END_BOUND_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
