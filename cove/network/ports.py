"""Host ports: which are given out, and the sockets that hold them against other programs.

A published port is a map element in the kernel, and needs no socket to work. But without one another
program could listen on the same port, and would never see a connection; so each port is also bound by a
socket, as Docker does it. The kernel's own answer to bind(2) is what tells that a port is taken.

All of a container's ports are taken or none. Not thread-safe; nothing here blocks.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cove.model.container import PortBinding
from cove.model.errors import HostError, Invalid
from cove.network.links import Address
from cove.network.model import PortInUse, Published

_PREFIX = (  # Docker's words
    "failed to set up container networking: driver failed programming external connectivity"
)
_ANY = {4: "0.0.0.0", 6: "::"}
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_ATTEMPTS = 64  # for a port that Cove may choose: each is free for IPv4, and may be taken for IPv6


@dataclass(frozen=True, slots=True)
class Held:
    """A published port and the descriptor that holds it (-1: the kernel has no such sockets)."""

    published: Published
    descriptor: int

    @property
    def binding(self) -> PortBinding:
        entry = self.published
        return PortBinding(
            container_port=entry.port,
            protocol=entry.protocol,  # type: ignore[arg-type]  # it came from a PortBinding
            host_ip=entry.host_ip,
            host_port=entry.host_port,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """What published ports lead to: a container's addresses on the networks that it goes out by."""

    ipv4: Address | None = None
    ipv6: Address | None = None
    direct: tuple[int, ...] = ()  # IP versions whose packets are routed to the container as they are
    # the host's address for bindings that name none, instead of every address
    binding: str = ""

    @property
    def reachable(self) -> bool:
        return self.ipv4 is not None or self.ipv6 is not None


class Ports:
    """The host ports of all containers of a daemon; `bind` is `bind_port`, or does the same elsewhere."""

    def __init__(self, bind: Callable[[str, str, int], int]) -> None:
        self._bind = bind
        self._taken: dict[tuple[int, str, int], dict[str, Held]] = {}

    def reserve(self, bindings: Sequence[PortBinding], behind: Behind, *, endpoint: str) -> list[list[Held]]:
        """Take all of a container's ports, or none: for each binding, what it takes. `endpoint` names the container.

        A `host_ip` "" is every address of each family that the container has an address of, with the same
        port. Raises PortInUse, Invalid, HostError.
        """
        held: list[list[Held]] = []
        try:
            for binding in bindings:
                held.append(self._reserve_one(binding, behind))
        except BaseException as error:
            self.release(item for items in held for item in items)
            if isinstance(error, HostError):
                raise type(error)(f"{_PREFIX} on endpoint {endpoint}: {error}") from None
            raise
        return held

    def adopt(self, entry: Published) -> tuple[Held, str]:
        """Take a port that a living container has, whoever else holds it now.

        Returns the port and what was in the way ("": nothing).
        """
        problem = ""
        if entry.direct:
            return self._remember(entry, -1), problem
        try:
            descriptor = self._bind(entry.protocol, entry.host_ip, entry.host_port)
        except OSError as error:
            descriptor = -1
            problem = error.strerror or str(error)
        return self._remember(entry, descriptor), problem

    def release(self, held: Iterable[Held]) -> None:
        """Give ports back; one that was given back already is fine."""
        for item in held:
            key = _key(item.published)
            others = self._taken.get(key, {})
            place = _place(item.published)
            if others.get(place) is item:
                del others[place]
                if not others:
                    del self._taken[key]
                if item.descriptor >= 0:
                    os.close(item.descriptor)

    def held(self) -> list[Held]:
        """Every port that is taken now."""
        return [item for others in self._taken.values() for item in others.values()]

    def _reserve_one(self, binding: PortBinding, behind: Behind) -> list[Held]:
        targets = _targets(binding, behind)
        direct = [target for target in targets if target[1].version in behind.direct]
        if direct:
            targets = [target for target in targets if target not in direct]
            held = self._open(binding, direct)
            try:
                return [*(self._reserve_at(binding, targets) if targets else ()), *held]
            except BaseException:
                self.release(held)
                raise
        return self._reserve_at(binding, targets)

    def _open(self, binding: PortBinding, targets: Sequence[tuple[str, Address]]) -> list[Held]:
        """Ports that are reached without the host's: nobody else can have them."""
        opened = []
        for host_ip, address in targets:
            entry = Published(
                protocol=binding.protocol,
                host_ip=host_ip,
                host_port=0,
                address=str(address),
                port=binding.container_port,
            )
            if _place(entry) not in self._taken.get(_key(entry), {}):  # named twice, it is open once
                opened.append(self._remember(entry, -1))
        return opened

    def _reserve_at(self, binding: PortBinding, targets: Sequence[tuple[str, Address]]) -> list[Held]:
        first, last = binding.host_port, max(binding.host_port, binding.host_port_end)
        if first == 0:
            return self._choose(binding, targets)
        for port in range(first, last + 1):
            try:
                return self._take(binding, targets, port)
            except PortInUse:
                if port == last:
                    raise
        raise AssertionError("a range has at least one port")

    def _choose(self, binding: PortBinding, targets: Sequence[tuple[str, Address]]) -> list[Held]:
        for _ in range(_ATTEMPTS):
            # The kernel picks from net.ipv4.ip_local_port_range, and knows what is bound.
            try:
                port = self._free_port(binding.protocol, targets[0][0])
                return self._take(binding, targets, port)
            except PortInUse:
                continue
            except OSError as error:
                raise _refused(binding, targets[0][0], 0, error) from None
        raise PortInUse(
            f"no free port was found for {binding.container_port}/{binding.protocol}: "
            "widen the sysctl net.ipv4.ip_local_port_range, or name a host port"
        )

    def _take(self, binding: PortBinding, targets: Sequence[tuple[str, Address]], port: int) -> list[Held]:
        taken: list[Held] = []
        try:
            for host_ip, address in targets:
                entry = Published(
                    protocol=binding.protocol,
                    host_ip=host_ip,
                    host_port=port,
                    address=str(address),
                    port=binding.container_port,
                )
                self._check(entry)
                try:
                    descriptor = self._bind(entry.protocol, host_ip, port)
                except OSError as error:
                    raise _refused(binding, host_ip, port, error) from None
                taken.append(self._remember(entry, descriptor))
        except BaseException:
            self.release(taken)
            raise
        return taken

    def _free_port(self, protocol: str, host_ip: str) -> int:
        descriptor = self._bind(protocol if protocol in _KINDS else "tcp", host_ip, 0)
        with socket.socket(fileno=descriptor) as sock:
            port: int = sock.getsockname()[1]
            return port

    def _check(self, entry: Published) -> None:
        others = self._taken.get(_key(entry))
        if not others:
            return
        if entry.wildcard or entry.host_ip in others or _ANY[entry.version] in others:
            raise PortInUse(
                f"Bind for {_shown(entry.host_ip)}:{entry.host_port} failed: port is already allocated"
            )

    def _remember(self, entry: Published, descriptor: int) -> Held:
        item = Held(entry, descriptor)
        self._taken.setdefault(_key(entry), {})[_place(entry)] = item
        return item


@dataclass(frozen=True, slots=True)
class Change:
    """How published ports become other ones: each binding with what serves it already, None where nothing does."""

    parts: list[tuple[PortBinding, list[Held] | None]]
    dropped: list[Held]


def plan_change(held: Sequence[Held], bindings: Sequence[PortBinding], behind: Behind) -> Change:
    """Which of `held` stay so that `bindings` are published. Pure.

    A binding that leaves the host's port open keeps the one that was chosen before. Raises Invalid.
    """
    left = list(held)
    parts: list[tuple[PortBinding, list[Held] | None]] = []
    for binding in bindings:
        found = _standing(binding, _targets(binding, behind), left, behind)
        parts.append((binding, found))
        for item in found or ():
            left.remove(item)
    return Change(parts, left)


def _standing(
    binding: PortBinding, targets: Sequence[tuple[str, Address]], held: Sequence[Held], behind: Behind
) -> list[Held] | None:
    """What serves a binding on all its targets by one and the same host port."""
    serving = [
        [item for item in held if _serves(item.published, binding, host_ip, address)]
        for host_ip, address in targets
    ]
    translated = [
        items for items, (_, a) in zip(serving, targets, strict=True) if a.version not in behind.direct
    ]
    for port in [item.published.host_port for item in translated[0]] if translated else [0]:
        found = [
            next((item for item in items if item.published.host_port in (0, port)), None) for items in serving
        ]
        whole = [item for item in found if item is not None]
        if len(whole) == len(targets):
            return whole
    return None


def _serves(entry: Published, binding: PortBinding, host_ip: str, address: Address) -> bool:
    first, last = binding.host_port, max(binding.host_port, binding.host_port_end)
    return (
        entry.protocol == binding.protocol
        and entry.port == binding.container_port
        and entry.host_ip == host_ip
        and entry.address == str(address)
        and (first == 0 or entry.direct or first <= entry.host_port <= last)
    )


def _key(entry: Published) -> tuple[int, str, int]:
    return entry.version, entry.protocol, entry.host_port


def _place(entry: Published) -> str:
    """What tells entries with one key apart: the host's address, or whose port is open."""
    return f"{entry.address} {entry.port}" if entry.direct else entry.host_ip


def _targets(binding: PortBinding, behind: Behind) -> list[tuple[str, Address]]:
    """The host addresses to publish on, each with the container's address behind it."""
    if not 0 < binding.container_port <= 65535 or not 0 <= binding.host_port <= 65535:
        raise Invalid(
            f"ports: {binding.host_port}:{binding.container_port}: expected numbers up to 65535, e.g. 8080:80"
        )
    by_version = {4: behind.ipv4, 6: behind.ipv6}
    wanted = binding.host_ip or (behind.binding if behind.ipv4 else "")
    if not wanted:
        targets = [(_ANY[version], address) for version, address in by_version.items() if address]
        if not targets:
            raise Invalid("ports: the container has no address that ports could be published for")
        return targets
    try:
        host_ip = ipaddress.ip_address(wanted)
    except ValueError:
        raise Invalid(
            f"ports: host address {binding.host_ip!r} isn't an IP address: expected one such as 127.0.0.1"
        ) from None
    address = by_version[host_ip.version]
    if address is None:
        other = "an IPv4 address such as 127.0.0.1" if host_ip.version == 6 else "an IPv6 address such as ::1"
        raise Invalid(
            f"ports: cannot publish on {host_ip}: "
            f"the container's network has no IPv{host_ip.version}; use {other}"
        )
    return [(str(host_ip), address)]


def bind_port(protocol: str, host_ip: str, port: int) -> int:
    """Bind a port and return the descriptor. A TCP port that only old connections hold is taken too. OSError."""
    kind = _KINDS.get(protocol)
    if kind is None:
        return -1  # sctp: the kernel forwards it, but Debian's needs a module for a socket
    family = socket.AF_INET6 if ":" in host_ip else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            sock.bind((host_ip, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or protocol != "tcp":
                raise
            # Connections in TIME_WAIT of a server that ended hold its port for a minute. With
            # SO_REUSEADDR they don't count, and listen(2) still fails when someone else listens.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host_ip, port))
            sock.listen(1)
    except OSError:
        sock.close()
        raise
    return sock.detach()


def _refused(binding: PortBinding, host_ip: str, port: int, error: OSError) -> HostError:
    kind = PortInUse if error.errno == errno.EADDRINUSE else HostError
    if error.errno == errno.EACCES and port < 1024:
        return HostError(
            f"cannot expose privileged port {port}: use one from 1024 on, or, as root: "
            f"sysctl net.ipv4.ip_unprivileged_port_start={port}"
        )
    if error.errno == errno.EPROTONOSUPPORT:
        return HostError(f"a rootless daemon can't publish {binding.protocol}, only tcp and udp")
    reason = (error.strerror or str(error)).lower()
    return kind(f"failed to bind host port {_shown(host_ip)}:{port}/{binding.protocol}: {reason}")


def _shown(host_ip: str) -> str:
    return f"[{host_ip}]" if ":" in host_ip else host_ip
