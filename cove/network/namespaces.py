"""Network namespaces: make ready ones, and take interfaces away again, in threads of their own.

Owns the only code that changes a thread's network namespace. A namespace is never mounted anywhere: it
lives by a descriptor of the daemon, later by the processes in it; when both are gone, the kernel frees it
and its interfaces, whatever became of the daemon.

Making one (about 1.3 ms, most of it in the kernel) in this order:

    unshare, open /proc/thread-self/ns/net and a netlink socket in there, setns back
    settings that new interfaces inherit: no router advertisements, no duplicate address detection
    the veth pair, one end in the namespace; the other one onto the bridge, up
    inside: loopback and interface up, addresses, routes

Deleting an interface costs the kernel 20 to 50 ms, for one as for fifty, because it waits for its readers.
So the reaper gathers, leaves to the kernel what goes with its namespace anyway, and deletes the rest as one
group.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from cove.model.errors import Conflict, HostError, Invalid
from cove.network import links
from cove.network.links import Address, Interface
from cove.network.netlink import NETLINK_ROUTE, Netlink

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfacePlan:
    """One interface of a container: `bridge` is the link's index, gateways are set where they are default."""

    name: str
    host_name: str
    bridge: int
    mac: str
    mtu: int
    addresses: tuple[Interface, ...]
    gateways: tuple[Address, ...] = ()
    hairpin: bool = False
    isolated: bool = False
    settings: tuple[tuple[str, str], ...] = ()  # (path below /proc/sys with IFNAME in it, value)
    # Makes the interface in a namespace (a descriptor), instead of a pair of which one end is on a bridge.
    make: Callable[[Netlink, InterfacePlan, int], None] | None = None

    @property
    def ipv6(self) -> bool:
        return any(address.version == 6 for address in self.addresses)


def new_host_name() -> str:
    """A name for the host's end of a pair: random, 11 of 15 bytes."""
    return "veth" + secrets.token_hex(4)[:7]


def open_own_namespace() -> int:
    """A descriptor of the calling thread's network namespace."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def hairpin_needed() -> bool:
    """Whether bridged packets go through netfilter here (br_netfilter): then a container reaches its own
    published port only if its bridge port may send a frame back to where it came from."""
    try:
        with open("/proc/sys/net/bridge/bridge-nf-call-iptables") as file:
            return file.read().strip() == "1"
    except OSError:
        return False


async def run_in(executor: ThreadPoolExecutor, work: Callable[..., T], *arguments: object) -> T:
    """Wait for work in one of the workshop's threads; it goes on there when its caller is cancelled."""
    future = asyncio.get_running_loop().run_in_executor(executor, work, *arguments)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:  # nobody is left to hear how it ends
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        raise


class Workshop:
    """Threads that make namespaces and reap interfaces, in the namespace of the thread that makes this."""

    def __init__(self, *, makers: int = 2) -> None:
        self._home = open_own_namespace()
        self._local = threading.local()
        self._netlinks: list[Netlink] = []
        self.makers = ThreadPoolExecutor(makers, "cove-netns", self._enter)
        self.reaper = ThreadPoolExecutor(1, "cove-reap", self._enter)

    def close(self) -> None:
        """Wait for what is under way, then end the threads. Blocks for the bounded time of that work."""
        self.makers.shutdown()
        self.reaper.shutdown()
        for netlink in self._netlinks:
            netlink.close()
        self._netlinks.clear()
        os.close(self._home)

    def netlink(self) -> Netlink:
        """The calling thread's socket in the host's namespace."""
        found: Netlink = self._local.netlink
        return found

    def make(self, plans: Sequence[InterfacePlan]) -> int:
        """Make a namespace with these interfaces; returns its descriptor. Raises HostError.

        Nothing is left of a failed one. Runs in a maker's thread.
        """
        namespace, inside = self._new_namespace()
        try:
            with inside:
                inside.batch([links.set_up(1)])
                for plan in plans:
                    self._furnish(plan, namespace, inside)
        except BaseException:
            os.close(namespace)
            raise
        return namespace

    def add(self, plan: InterfacePlan, namespace: int) -> None:
        """Add an interface to a namespace that lives. Runs in a maker's thread. Raises HostError."""
        inside = self._visit(namespace)
        with inside:
            self._furnish(plan, namespace, inside)

    def fill(self, plans: Sequence[InterfacePlan], namespace: int) -> None:
        """Set up an empty namespace that somebody else made, as `make` sets up its own. Runs in a maker's thread.
        Raises HostError; what is there by then goes with the namespace."""
        inside = self._visit(namespace, fresh=True)
        with inside:
            inside.batch([links.set_up(1)])
            for plan in plans:
                self._furnish(plan, namespace, inside)

    def take_out(self, name: str, namespace: int) -> None:
        """Delete an interface that has no end on the host. Runs in a maker's thread. Raises HostError."""
        with self._visit(namespace) as inside:
            inside.batch([links.delete_link(name)])

    def reroute(self, namespace: int, routes: Mapping[str, Sequence[Address]]) -> None:
        """Replace the default routes of a namespace that lives: by interface, its gateways.

        Runs in a maker's thread. Raises HostError.
        """
        with self._visit(namespace) as inside:
            for name, gateways in routes.items():
                link = links.find_link(inside, name)
                if link is not None:
                    inside.batch(
                        [links.default_route(link.index, gateway, replace=True) for gateway in gateways]
                    )

    def inside(self, namespace: int, work: Callable[[], T]) -> T:
        """Do something in a namespace that lives; nothing slow. Runs in a maker's thread. Raises HostError."""
        if _libc.setns(namespace, CLONE_NEWNET) != 0:
            raise HostError(
                f"cannot enter the container's network namespace: {os.strerror(ctypes.get_errno())}"
            )
        try:
            return work()
        finally:
            self._go_home()

    def reap(self, host_names: Sequence[str], group: int) -> None:
        """Delete those of these links that still exist. Runs in the reaper's thread. Raises HostError."""
        netlink = self.netlink()
        left = [
            link.index for name in host_names if name and (link := links.find_link(netlink, name)) is not None
        ]
        if left:
            netlink.batch([links.set_group(index, group) for index in left])
            netlink.batch([links.delete_group(group)])

    def _enter(self) -> None:
        netlink = Netlink(NETLINK_ROUTE)
        self._local.netlink = netlink
        self._netlinks.append(netlink)

    def _new_namespace(self) -> tuple[int, Netlink]:
        if _libc.unshare(CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise HostError(f"cannot make a network namespace: {os.strerror(code)}")
        namespace = -1
        try:
            namespace = open_own_namespace()
            _write_defaults()
            inside = Netlink(NETLINK_ROUTE)
        except BaseException as error:
            if namespace >= 0:
                os.close(namespace)
            if isinstance(error, OSError):
                raise HostError(f"cannot set up a network namespace: {error.strerror}") from None
            raise
        finally:
            self._go_home()
        return namespace, inside

    def _visit(self, namespace: int, *, fresh: bool = False) -> Netlink:
        _enter_namespace(namespace)
        try:
            if fresh:
                _write_defaults()
            return Netlink(NETLINK_ROUTE)
        except OSError as error:
            raise HostError(f"cannot set up a network namespace: {error.strerror}") from None
        finally:
            self._go_home()

    def _within(self, namespace: int, work: Callable[[], None]) -> None:
        _enter_namespace(namespace)
        try:
            work()
        finally:
            self._go_home()

    def _go_home(self) -> None:
        # A thread that stayed in a container's namespace would do the next job there.
        if _libc.setns(self._home, CLONE_NEWNET) != 0:
            os.abort()

    def _furnish(self, plan: InterfacePlan, namespace: int, inside: Netlink) -> None:
        outside = self.netlink()
        if links.find_link(inside, plan.name) is not None:
            raise Conflict(f"interface {plan.name} exists in the container: ask for another name")
        self._make_link(outside, plan, namespace)
        try:
            self._finish(plan, namespace, inside)
        except BaseException:
            if plan.make is None:
                outside.batch([links.delete_link(plan.host_name)])
            else:
                inside.batch([links.delete_link(plan.name)])
            raise

    def _make_link(self, outside: Netlink, plan: InterfacePlan, namespace: int) -> None:
        if plan.make is not None:
            plan.make(outside, plan, namespace)
            return
        outside.batch([links.make_veth(plan.host_name, plan.name, plan.mac, plan.mtu, namespace)])
        try:
            requests = [links.enslave(plan.host_name, plan.bridge, plan.mtu)]
            if plan.hairpin or plan.isolated:
                requests.append(
                    links.port_flags(plan.host_name, hairpin=plan.hairpin, isolated=plan.isolated)
                )
            outside.batch(requests)
        except BaseException:
            outside.batch([links.delete_link(plan.host_name)])
            raise

    def _finish(self, plan: InterfacePlan, namespace: int, inside: Netlink) -> None:
        link = links.find_link(inside, plan.name)
        if link is None:
            raise HostError(f"interface {plan.name} went away while it was set up")
        inside.batch(
            [
                links.set_up(link.index, link_local=plan.ipv6 or 0 < plan.mtu < 1280),
                *(links.add_address(link.index, address) for address in plan.addresses),
                *(links.default_route(link.index, gateway) for gateway in plan.gateways),
            ]
        )
        if plan.settings:
            self._within(namespace, lambda: _write_settings(plan))


def _enter_namespace(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET) != 0:
        raise HostError(f"cannot enter the container's network namespace: {os.strerror(ctypes.get_errno())}")


def _write_settings(plan: InterfacePlan) -> None:
    """An interface's own settings. Raises Invalid."""
    for path, value in plan.settings:
        place = path.replace("IFNAME", plan.name)
        try:
            descriptor = os.open(f"/proc/sys/{place}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, value.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            raise Invalid(f"setting {place.replace('/', '.')}={value}: {error.strerror}") from None


def _write_defaults() -> None:
    """What new interfaces of the calling thread's namespace inherit; a kernel without IPv6 has none."""
    for key in ("accept_ra", "accept_dad"):
        write_setting(f"net/ipv6/conf/default/{key}", "0")


def write_setting(key: str, value: str) -> None:
    """Write a file below /proc/sys of the calling thread's namespace; a missing one is fine. OSError."""
    try:
        descriptor = os.open(f"/proc/sys/{key}", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)
