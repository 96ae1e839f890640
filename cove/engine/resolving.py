"""Which containers ask the embedded DNS server, what it knows of them, and whom it asks for them. Pure.

A container on at least one user-defined network asks it; one that is on the default bridge alone, or has no network of
its own, has the host's servers. Names are Docker's (moby, daemon/container_operations.go): the container's name, its
short id, its host name, and the aliases of the endpoint; on the default bridge none.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Iterator, Sequence

from cove.engine.links import parse_link
from cove.model.container import Container, Endpoint
from cove.model.errors import NotFound
from cove.model.objects import Network
from cove.network.dns.names import Client, Joined, Port, Record, Server
from cove.network.files import (
    EMBEDDED_SERVER,
    FALLBACK_NAMESERVERS,
    host_servers,
    ndots_given,
)
from cove.network.model import BRIDGE

MOST_SERVERS = 3  # as resolv.conf(5)
MOST_PORTS = 256
_MOST_NAME_BYTES = 48 << 10  # of one message to the server; no honest caller comes near
_LONGEST_NAME = 253


def named_endpoints(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """Those on user-defined networks."""
    return [endpoint for endpoint in endpoints if endpoint.network_name != BRIDGE]


def plan_client(
    container: Container,
    endpoints: Sequence[Endpoint],
    find_network: Callable[[str], Network],
    host_text: str,
    *,
    loopback: bool,
) -> Client | None:
    """What the server has to know of a container that asks it; None: this one doesn't. `host_text` is the host's
    resolv.conf, whose servers on loopback addresses are asked if `loopback`."""
    named = named_endpoints(endpoints)
    if not named:
        return None
    spec = container.spec
    links = {e.network: e.links for e in spec.endpoints if e.links}
    budget = _Budget()
    outside = any(_leads_outside(endpoint, find_network) for endpoint in endpoints)
    if spec.dns:
        servers = [Server(address, False) for address in spec.dns if address != EMBEDDED_SERVER]
    elif outside:
        found = host_servers(host_text, loopback=loopback) or ([] if loopback else FALLBACK_NAMESERVERS)
        servers = [Server(address, True) for address in found]
    else:
        servers = []  # an internal network's containers reach nobody outside, by way of the host neither
    return Client(
        container.id,
        tuple(
            Joined(
                endpoint.network_id,
                endpoint.network_name,
                _aliases_of_links(
                    links.get(endpoint.network_name, ()) or links.get(endpoint.network_id, ()), budget
                ),
            )
            for endpoint in named
        ),
        tuple(servers[:MOST_SERVERS]),
        ndots_given(host_text, spec.dns_options),
    )


def plan_records(container: Container, endpoints: Sequence[Endpoint]) -> tuple[Record, ...]:
    """What others are told of a container, by network."""
    return tuple(
        Record(
            endpoint.network_id,
            container.id,
            _names(container, endpoint),
            tuple(address for address in (endpoint.ipv4, endpoint.ipv6) if address),
            tuple(_ports(container)),
        )
        for endpoint in named_endpoints(endpoints)
    )


def shown_servers(client: Client) -> list[str]:
    """The servers behind the embedded one, as Docker shows them in resolv.conf."""
    return [f"host({s.address})" if s.from_host else s.address for s in client.servers]


def _leads_outside(endpoint: Endpoint, find_network: Callable[[str], Network]) -> bool:
    try:
        return not find_network(endpoint.network_id).internal
    except NotFound:
        return False


class _Budget:
    """How many more bytes of names fit."""

    def __init__(self) -> None:
        self._left = _MOST_NAME_BYTES

    def takes(self, *names: str) -> bool:
        """Whether these fit, and could be asked for at all; then they are counted."""
        if any(not 0 < len(name.encode()) <= _LONGEST_NAME for name in names):
            return False
        self._left -= sum(len(name.encode()) + 4 for name in names)
        return self._left > 0


def _aliases_of_links(links: Sequence[str], budget: _Budget) -> dict[str, str]:
    found = {}
    for link in links:
        name, alias = parse_link(link)
        if budget.takes(name, alias):
            found[alias.lower()] = name[:12].lower() if len(name) == 64 else name.lower()
    return found


def _names(container: Container, endpoint: Endpoint) -> tuple[str, ...]:
    names = [container.name, container.short_id, container.hostname, *endpoint.aliases]
    budget = _Budget()
    return tuple(dict.fromkeys(name.lower() for name in names if budget.takes(name)))


def _ports(container: Container) -> Iterator[Port]:
    published = [f"{port.container_port}/{port.protocol}" for port in container.spec.ports]
    count = 0
    for exposed in dict.fromkeys((*container.exposed_ports, *published)):
        numbers, _, protocol = exposed.partition("/")
        first, _, last = numbers.partition("-")
        for number in range(int(first), int(last or first) + 1):
            if count >= MOST_PORTS:
                return
            count += 1
            yield Port(number, protocol or "tcp", _service_names(number, protocol or "tcp"))


@functools.lru_cache(1024)
def _service_names(number: int, protocol: str) -> tuple[str, ...]:
    try:
        return str(number), socket.getservbyport(number, protocol)
    except OSError:
        return (str(number),)
