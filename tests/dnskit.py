"""For tests of the embedded DNS server: questions from within a container's network, and servers to forward to."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset
from docker.models.containers import Container

from tests.daemon import Daemon
from tests.nanny import descendants
from tests.nethelp import inside
from tests.privatemounts import private_mounts

T = TypeVar("T")
EMBEDDED = "127.0.0.11"


def network_of(container: Container) -> int:
    """A descriptor of a running container's network namespace; no daemon is needed when its process is known."""
    return os.open(f"/proc/{pid_of(container)}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def pid_of(container: Container) -> int:
    """The first process of a running container, as last seen if it lives."""
    pid = int(container.attrs["State"]["Pid"])
    if not pid or not os.path.exists(f"/proc/{pid}"):
        container.reload()
        pid = int(container.attrs["State"]["Pid"])
    if not os.path.exists(f"/proc/{pid}"):
        pid = _pid_by_cgroup(str(container.id))  # the engine has a pid namespace of its own
    return pid


def _pid_by_cgroup(container_id: str) -> int:
    """The oldest process in a container's cgroup."""
    pids = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if container_id in Path(f"/proc/{name}/cgroup").read_text():
                pids.append(int(name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return min(pids)


def within(container: Container, work: Callable[[], T]) -> T:
    """Do something in a container's network namespace."""
    namespace = network_of(container)
    try:
        return inside(namespace, work)
    finally:
        os.close(namespace)


def ask(
    container: Container,
    name: str,
    kind: str = "A",
    *,
    tcp: bool = False,
    timeout_s: float = 10,
    **options: object,
) -> dns.message.Message:
    """The embedded server's answer to a container."""
    question = dns.message.make_query(name, kind, **options)  # type: ignore[arg-type]
    send = dns.query.tcp if tcp else dns.query.udp
    return within(container, lambda: send(question, EMBEDDED, timeout=timeout_s))


def found(container: Container, name: str, kind: str = "A", **options: object) -> list[str] | None:
    """The answers' text, sorted; None: the name isn't known, or nobody is asked."""
    answer = ask(container, name, kind, **options)  # type: ignore[arg-type]
    if answer.rcode() != dns.rcode.NOERROR:
        return None
    return sorted(str(rdata) for rrset in answer.answer for rdata in rrset)


def answered(container: Container, name: str, *, tcp: bool = False) -> bool:
    """Whether a name is answered soon."""
    try:
        return bool(found(container, name, tcp=tcp, timeout_s=1))
    except (dns.exception.Timeout, ConnectionError, EOFError):
        return False


def eventually(holds: Callable[[], bool], bound_s: float = 30) -> None:
    deadline = time.monotonic() + bound_s
    while not holds():
        assert time.monotonic() < deadline, "it didn't come about"
        time.sleep(0.02)  # the condition is another process's


def address(container: Container, network: str, key: str = "IPAddress") -> str:
    container.reload()
    return str(container.attrs["NetworkSettings"]["Networks"][network][key])


def servers(daemon: Daemon) -> list[int]:
    """The processes of a daemon's DNS server: the broker and the server."""
    found = []
    for pid in sorted(descendants(daemon.nanny_pid)):
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() == "cove-dns":
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


Reply = Callable[[dns.message.Message, bool], list[bytes]]  # by TCP? Every packet to send back


@dataclass
class Upstream:
    """A server on port 53 that answers as it is told, and remembers what it was asked."""

    reply: Reply
    asked: list[tuple[str, str, bool]] = field(default_factory=list)
    _sockets: list[socket.socket] = field(default_factory=list)

    def open(self, address: str) -> None:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sockets = [udp, tcp]
        for sock in self._sockets:
            sock.bind((address, 53))
        tcp.listen(16)

    def serve_udp(self) -> None:
        udp = self._sockets[0]
        while True:
            try:
                data, peer = udp.recvfrom(65535)
            except OSError:
                return
            if not data:
                return
            for packet in self._answer(data, False):
                udp.sendto(packet, peer)

    def serve_tcp(self) -> None:
        tcp = self._sockets[1]
        while True:
            try:
                client, _ = tcp.accept()
            except OSError:
                return
            with client:
                (size,) = struct.unpack(">H", client.recv(2, socket.MSG_WAITALL))
                data = client.recv(size, socket.MSG_WAITALL)
                for packet in self._answer(data, True):
                    client.sendall(struct.pack(">H", len(packet)) + packet)

    def _answer(self, data: bytes, tcp: bool) -> list[bytes]:
        message = dns.message.from_wire(data)
        question = message.question[0]
        self.asked.append((question.name.to_text(), dns.rdatatype.to_text(question.rdtype), tcp))
        return self.reply(message, tcp)

    def close(self) -> None:
        for sock in self._sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # a datagram socket isn't connected; shutdown still wakes its reader
            sock.close()


@contextmanager
def upstream(reply: Reply, address: str, at: Container | None = None) -> Iterator[Upstream]:
    """A server at an address of a container's network, or of this machine's loopback."""
    server = Upstream(reply)
    if at is None:
        server.open(address)
    else:
        within(at, lambda: server.open(address))
    threads = [threading.Thread(target=work) for work in (server.serve_udp, server.serve_tcp)]
    for thread in threads:
        thread.start()
    try:
        yield server
    finally:
        server.close()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive(), "a server of the test didn't end"


def records(message: dns.message.Message, *addresses: str) -> dns.message.Message:
    """An answer with these addresses."""
    response = dns.message.make_response(message, recursion_available=True)
    if addresses:
        response.answer.append(dns.rrset.from_text(message.question[0].name, 60, "IN", "A", *addresses))
    return response


def says(*addresses: str) -> Reply:
    """Answers every question with these addresses."""
    return lambda message, tcp: [records(message, *addresses).to_wire()]


def fails(code: int) -> Reply:
    def reply(message: dns.message.Message, tcp: bool) -> list[bytes]:
        response = dns.message.make_response(message)
        response.set_rcode(code)
        return [response.to_wire()]

    return reply


class ResolvDaemon(Daemon):
    """A daemon whose host's resolv.conf is the test's own, in a mount namespace of its own."""

    def __init__(self, text: str, *options: str) -> None:
        super().__init__(*options)
        self.resolv = self.base / "resolv.conf"
        self.resolv.write_text(text)

    def _command(self) -> list[str]:
        return [*private_mounts({"/etc/resolv.conf": self.resolv}), *super()._command()]
