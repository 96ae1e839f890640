"""Network namespaces for tests: one that plays the host, others that play machines outside.

The thread that runs a test becomes the host's: everything it starts (threads, processes) lives there too,
and the machine's own links and rules stay untouched. Namespaces are descriptors, never mounts, so that
whatever a test leaves behind goes with its last descriptor.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import uvloop

from cove.model.container import EndpointSpec, PortBinding
from cove.network.model import Attachment, NetworkSettings
from cove.network.networks import Networks
from cove.store.sqlite import SqliteStore

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
PATIENCE_S = 20.0
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def own_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def private_host() -> Iterator[None]:
    """The calling thread lives in a network namespace of its own for the block."""
    before = own_namespace()
    try:
        _check(_libc.unshare(CLONE_NEWNET))
        run("ip", "link", "set", "lo", "up")
        try:
            yield
        finally:
            _check(_libc.setns(before, CLONE_NEWNET))
    finally:
        os.close(before)


def run(*command: str, pass_fds: tuple[int, ...] = (), check: bool = True) -> str:
    """Run a program in the calling thread's namespace and return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, pass_fds=pass_fds)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


def inside(namespace: int, work: Callable[[], T]) -> T:
    """Do something in a namespace, in a thread of its own, and return its result."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            _check(_libc.setns(namespace, CLONE_NEWNET))
            results.append(work())
        except BaseException as error:  # handed over to the caller
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(PATIENCE_S * 3)
    assert not thread.is_alive(), "work in a namespace took too long"
    if errors:
        raise errors[0]
    return results[0]


@dataclass(frozen=True)
class Machine:
    """A machine outside, on a wire of its own to the host."""

    namespace: int
    ipv4: str
    ipv6: str
    host_ipv4: str
    host_ipv6: str
    link: str

    def close(self) -> None:
        os.close(self.namespace)


@contextmanager
def outside(number: int = 1) -> Iterator[Machine]:
    """A machine that reaches the host by a wire; it has no route to the containers' addresses but through it."""
    link = f"wire{number}"
    v4, v6 = f"198.18.{number}", f"2001:db8:{number}:"
    namespace = inside_new()
    try:
        run(
            "ip",
            "link",
            "add",
            link,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            f"/proc/self/fd/{namespace}",
            pass_fds=(namespace,),
        )
        run("ip", "addr", "add", f"{v4}.1/24", "dev", link)
        run("ip", "-6", "addr", "add", f"{v6}:1/64", "dev", link, "nodad")
        run("ip", "link", "set", link, "up")

        def furnish() -> None:
            run("ip", "link", "set", "lo", "up")
            run("ip", "link", "set", "eth0", "up")
            run("ip", "addr", "add", f"{v4}.2/24", "dev", "eth0")
            run("ip", "-6", "addr", "add", f"{v6}:2/64", "dev", "eth0", "nodad")
            run("ip", "route", "add", "default", "via", f"{v4}.1")
            run("ip", "-6", "route", "add", "default", "via", f"{v6}:1")

        inside(namespace, furnish)
        yield Machine(namespace, f"{v4}.2", f"{v6}:2", f"{v4}.1", f"{v6}:1", link)
    finally:
        os.close(namespace)


def inside_new() -> int:
    """A descriptor of a new, empty namespace."""
    results: list[int] = []

    def body() -> None:
        _check(_libc.unshare(CLONE_NEWNET))
        results.append(own_namespace())

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return results[0]


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@contextmanager
def answering(namespace: int, port: int, *, kind: str = "tcp", name: str = "") -> Iterator[None]:
    """A server in a namespace, on both families, that answers everyone with `name` and their address."""

    def open_sockets() -> list[socket.socket]:
        opened = []
        for family, wildcard in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            sock = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((wildcard, port))
            if kind == "tcp":
                sock.listen(64)
            opened.append(sock)
        return opened

    sockets = inside(namespace, open_sockets)

    def serve_tcp(sock: socket.socket) -> None:
        while True:
            try:
                client, peer = sock.accept()
            except OSError:
                return
            with client:
                client.sendall(f"{name} {peer[0]}".encode())

    def serve_udp(sock: socket.socket) -> None:
        while True:
            try:
                data, peer = sock.recvfrom(2048)
            except OSError:
                return
            if not data:
                return
            sock.sendto(f"{name} {peer[0]}".encode(), peer)

    serve = serve_tcp if kind == "tcp" else serve_udp
    threads = [threading.Thread(target=serve, args=(sock,)) for sock in sockets]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for sock in sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # a datagram socket isn't connected; shutdown still wakes its reader
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a server of the test didn't end"
        for sock in sockets:
            sock.close()


def ask(
    address: str, port: int, *, kind: str = "tcp", timeout_s: float = PATIENCE_S, source_port: int = 0
) -> str:
    """Connect from the calling thread's namespace and return the answer. Raises OSError."""
    if kind == "udp":
        with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
            if source_port:
                sock.bind(("::" if ":" in address else "0.0.0.0", source_port))
            sock.settimeout(timeout_s)
            sock.sendto(b"?", (address, port))
            return sock.recvfrom(2048)[0].decode()
    with socket.socket(_family(address), socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect((address, port))
        parts = []
        while data := sock.recv(4096):
            parts.append(data)
        return b"".join(parts).decode()


def reachable(address: str, port: int, *, timeout_s: float = 1.5) -> bool:
    """Whether a TCP connection from the calling thread's namespace is answered."""
    try:
        ask(address, port, timeout_s=timeout_s)
    except OSError:
        return False
    return True


# --- a daemon's networks ------------------------------------------------------------------

SETTINGS = NetworkSettings(
    bridge="cvtest0", table="cvtest", ipv4="10.213.0.0/16", ipv6="fd13::/64", pool_size=1
)
DEFAULT = (EndpointSpec(network="default"),)


@contextmanager
def clean_host() -> Iterator[None]:
    """A private host; what the block leaves open in this process is an error."""
    uvloop.new_event_loop().close()  # libuv keeps two descriptors of its first loop for ever
    before = set(os.listdir("/proc/self/fd"))
    with private_host():
        yield
    left = set(os.listdir("/proc/self/fd")) - before
    assert len(left) <= 1, f"descriptors leaked: {left}"  # one is listdir's own
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("cove-")]
    assert not threads, f"threads leaked: {threads}"


@asynccontextmanager
async def networks(path: Path, settings: NetworkSettings = SETTINGS) -> AsyncIterator[Networks]:
    store = await SqliteStore.open(path / "state.db")
    try:
        opened = await Networks.open(store, settings=settings, run_dir=path)
        try:
            yield opened
        finally:
            await opened.close()
    finally:
        await store.close()


@asynccontextmanager
async def container(
    nets: Networks, id: str, *ports: PortBinding, on: tuple[EndpointSpec, ...] = DEFAULT
) -> AsyncIterator[Attachment]:
    attachment = await nets.connect(id, on, ports, id)
    try:
        yield attachment
    finally:
        os.close(attachment.namespace)
        await nets.disconnect(id)


def go(body: Callable[[], Awaitable[None]]) -> None:
    """Run a test's body on the daemon's kind of event loop, with a bound."""

    async def bounded() -> None:
        async with asyncio.timeout(100):
            await body()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on; for programs that can't be told to choose."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
