"""What the embedded server knows, and what it makes of a question. Pure.

Known by network: who is on it, under which names. A container is answered by the networks that it is on, in their
order; nothing of any other network can be asked for. The first network that knows a name answers it.

    NAME, NAME.NETWORK       A, AAAA: every container that has the name there, in a random order
    ADDRESS (in-addr, ip6)   PTR: the container's name and its network's
    _PORT._PROTOCOL.NAME     SRV: of the containers with that name those that expose the port, by number or by the
                             service's name in services(5)

A known name has no other records: that is an empty answer, and nobody else is asked.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from cove.network.dns import wire
from cove.network.dns.wire import Answer, Query

MAX_SERVERS = 8


class Port(msgspec.Struct, frozen=True, array_like=True):
    """A port that a container exposes, and the names it has in SRV questions."""

    number: int
    protocol: str
    names: tuple[str, ...]


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One container on one network. `names` are in lower case; the first is shown where one name has to do."""

    network: str
    container: str
    names: tuple[str, ...]
    addresses: tuple[str, ...]
    ports: tuple[Port, ...] = ()


class Joined(msgspec.Struct, frozen=True, array_like=True):
    """A network as one container sees it: `links` are names that only this container knows others by."""

    network: str
    name: str
    links: dict[str, str] = {}


class Server(msgspec.Struct, frozen=True, array_like=True):
    """A server to forward to, as seen from the host or from the container."""

    address: str
    from_host: bool


class Client(msgspec.Struct, frozen=True, array_like=True):
    """A container that asks."""

    container: str
    networks: tuple[Joined, ...]
    servers: tuple[Server, ...] = ()
    ndots_given: bool = False  # then a single word isn't forwarded: its search domains are


@dataclass(frozen=True, slots=True)
class Found:
    answers: Sequence[Answer]
    additional: Sequence[Answer] = ()


@dataclass(slots=True)
class _Network:
    records: dict[str, Record] = field(default_factory=dict)  # by container
    names: dict[str, dict[str, Record]] = field(default_factory=dict)  # by name, by container
    addresses: dict[str, Record] = field(default_factory=dict)


class Directory:
    """All records of all networks."""

    def __init__(self) -> None:
        self._networks: dict[str, _Network] = {}

    def put(self, record: Record) -> None:
        """Add a container to a network, or change it."""
        self.drop(record.network, record.container)
        network = self._networks.setdefault(record.network, _Network())
        network.records[record.container] = record
        for name in record.names:
            network.names.setdefault(name, {})[record.container] = record
        for address in record.addresses:
            network.addresses[address] = record

    def drop(self, network_id: str, container: str) -> None:
        """Forget a container on a network; one that isn't there is fine."""
        network = self._networks.get(network_id)
        record = network.records.pop(container, None) if network is not None else None
        if network is None or record is None:
            return
        for name in record.names:
            holders = network.names[name]
            holders.pop(container, None)
            if not holders:
                del network.names[name]
        for address in record.addresses:
            if network.addresses.get(address) is record:
                del network.addresses[address]
        if not network.records:
            del self._networks[network_id]

    def entries(self) -> list[tuple[str, str]]:
        """Every record's network and container."""
        return [
            (network_id, container)
            for network_id, network in self._networks.items()
            for container in network.records
        ]

    def find(self, client: Client, query: Query) -> Found | None:
        """What the client is answered; None: nothing of this name is known here."""
        if query.name is None or query.klass not in (wire.IN, wire.ANY):
            return None
        if query.kind == wire.PTR and query.name.endswith(".arpa"):
            return self._find_address(client, wire.parse_reverse(query.name))
        if query.kind == wire.SRV and query.name.startswith("_"):
            return self._find_service(client, query.name)
        found = self._find_name(client, query.name)
        if found is None:
            return None
        wanted = {wire.A: (wire.A,), wire.AAAA: (wire.AAAA,), wire.ANY: (wire.A, wire.AAAA)}.get(
            query.kind, ()
        )
        answers = [a for _, record in found for a in _addresses(record) if a.kind in wanted]
        random.shuffle(answers)
        return Found(answers)

    def _find_name(self, client: Client, name: str) -> list[tuple[Joined, Record]] | None:
        for base, network_name in _readings(name):
            for joined in client.networks:
                if network_name and joined.name.lower() != network_name:
                    continue
                network = self._networks.get(joined.network)
                if network is None:
                    continue
                holders = network.names.get(joined.links.get(base, base))
                if holders:
                    return [(joined, record) for record in holders.values()]
        return None

    def _find_address(self, client: Client, address: str) -> Found | None:
        for joined in client.networks:
            network = self._networks.get(joined.network)
            record = network.addresses.get(address) if network is not None else None
            if record is not None:
                target = _full_name(record, joined)
                return Found([wire.pointer_answer(target)] if target else [])
        return None

    def _find_service(self, client: Client, name: str) -> Found | None:
        port_name, _, rest = name.partition(".")
        protocol, _, base = rest.partition(".")
        found = self._find_name(client, base)
        if found is None or not protocol.startswith("_"):
            return None
        answers: list[Answer] = []
        additional: list[Answer] = []
        random.shuffle(found)
        for joined, record in found:
            target = _full_name(record, joined)
            if not target:
                continue
            ports = [p for p in record.ports if p.protocol == protocol[1:] and port_name[1:] in p.names]
            answers += (wire.service_answer(port.number, target) for port in ports)
            additional += _addresses(record, target) if ports else ()
        return Found(answers, additional)


def _readings(name: str) -> Iterator[tuple[str, str]]:
    """a.b.c: the name a.b.c, a.b on the network c, a on the network b.c."""
    yield name, ""
    end = len(name)
    while (end := name.rfind(".", 0, end)) > 0:
        yield name[:end], name[end + 1 :]


def _full_name(record: Record, joined: Joined) -> str:
    """The name that every container on the network can ask for; "" when it is too long for a message."""
    name = f"{record.names[0]}.{joined.name}"
    try:
        wire.encode_name(name)
    except ValueError:
        return ""
    return name


def _addresses(record: Record, owner: str = "") -> Iterable[Answer]:
    return [wire.address_answer(address, owner) for address in record.addresses]
