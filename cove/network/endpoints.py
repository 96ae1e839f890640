"""Endpoints: from what a caller asked of a network to addresses, and from those to an interface. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from cove.model.container import Endpoint, EndpointSpec, PortBinding
from cove.model.errors import CoveError, Invalid
from cove.model.objects import Network
from cove.network.addresses import Subnets, mac_of, parse_address, parse_link_local, parse_mac, parse_pool
from cove.network.links import Address
from cove.network.model import BRIDGE, Published
from cove.network.namespaces import InterfacePlan
from cove.network.netlink import Netlink
from cove.network.ports import Behind


def address_pools(network: Network) -> Subnets:
    """The bookkeeping of a network's subnets."""
    return Subnets(parse_pool(pool, network=network.name) for pool in network.ipam)


def take_endpoint(
    network: Network,
    pools: Subnets,
    spec: EndpointSpec,
    *,
    interface: str,
    host_interface: str,
    endpoint_id: str,
) -> Endpoint:
    """An endpoint whose addresses are taken from `pools`; none is when this raises. It has no gateways yet.

    Raises Invalid, Conflict (address in use, none left).
    """
    mac = parse_mac(spec.mac) if spec.mac else ""
    for text in spec.link_local:
        parse_link_local(text)
    asked = _asked(network, pools, spec)
    taken: dict[int, Address] = {}
    try:
        for version in pools.versions:
            wanted = asked.get(version)
            taken[version] = pools.take_exactly(wanted) if wanted is not None else pools.take(version)
    except CoveError:
        for address in taken.values():
            pools.free(address)
        raise
    v4, v6 = taken.get(4), taken.get(6)
    return Endpoint(
        network_id=network.id,
        network_name=network.name,
        endpoint_id=endpoint_id,
        mac=mac or mac_of(v4 or taken[6]),
        ipv4=str(v4 or ""),
        ipv4_prefix=_prefix(pools, v4),
        ipv6=str(v6 or ""),
        ipv6_prefix=_prefix(pools, v6),
        interface=interface,
        host_interface=host_interface,
        aliases=spec.aliases,
        link_local=spec.link_local,
        gateway_priority=spec.gateway_priority,
    )


def _prefix(pools: Subnets, address: Address | None) -> int:
    pool = pools.pool_of(address) if address is not None else None
    return pool.subnet.prefixlen if pool is not None else 0


def route_endpoints(
    endpoints: Sequence[Endpoint], gateways: Mapping[str, Mapping[int, str]]
) -> list[Endpoint]:
    """The same endpoints, of which one for each IP version has its network's gateway: the default route.

    `gateways`: by endpoint id, what each could offer. The highest priority counts, then the order.
    """
    chosen: dict[int, str] = {}
    for version in (4, 6):
        offers = [e for e in endpoints if gateways.get(e.endpoint_id, {}).get(version)]
        if offers:
            chosen[version] = max(offers, key=lambda e: e.gateway_priority).endpoint_id
    return [
        msgspec.structs.replace(
            endpoint,
            gateway4=gateways[endpoint.endpoint_id][4] if chosen.get(4) == endpoint.endpoint_id else "",
            gateway6=gateways[endpoint.endpoint_id][6] if chosen.get(6) == endpoint.endpoint_id else "",
        )
        for endpoint in endpoints
    ]


def offered_gateways(
    endpoint: Endpoint, network: Network, pools: Subnets, *, by_link: bool = False
) -> dict[int, str]:
    """The gateways by which a container could leave through this network, by IP version.

    `by_link`: the link itself is the way out, which 0.0.0.0 and :: stand for.
    """
    found: dict[int, str] = {}
    if network.internal:
        return found
    for version, text in ((4, endpoint.ipv4), (6, endpoint.ipv6)):
        pool = pools.pool_of(ipaddress.ip_address(text)) if text else None
        if pool is not None:
            found[version] = ("0.0.0.0" if version == 4 else "::") if by_link else str(pool.gateway)
    return found


def free_endpoint(endpoint: Endpoint, pools: Subnets) -> None:
    """Give an endpoint's addresses back."""
    for text in (endpoint.ipv4, endpoint.ipv6):
        if text:
            pools.free(ipaddress.ip_address(text))


def plan_interface(
    endpoint: Endpoint,
    network: Network,
    *,
    bridge: int,
    hairpin: bool,
    isolated: bool,
    settings: Sequence[tuple[str, str]] = (),
    make: Callable[[Netlink, InterfacePlan, int], None] | None = None,
) -> InterfacePlan:
    """The interface of an endpoint, on the bridge with this index."""
    addresses = [
        ipaddress.ip_interface(f"{text}/{prefix}")
        for text, prefix in ((endpoint.ipv4, endpoint.ipv4_prefix), (endpoint.ipv6, endpoint.ipv6_prefix))
        if text
    ]
    addresses += [parse_link_local(text) for text in endpoint.link_local]
    return InterfacePlan(
        name=endpoint.interface,
        host_name=endpoint.host_interface,
        bridge=bridge,
        mac=endpoint.mac,
        mtu=network.mtu,
        addresses=tuple(addresses),
        gateways=tuple(ipaddress.ip_address(g) for g in (endpoint.gateway4, endpoint.gateway6) if g),
        hairpin=hairpin,
        isolated=isolated,
        settings=tuple(settings),
        make=make,
    )


def outward(endpoints: Iterable[Endpoint], version: int) -> Endpoint | None:
    """The endpoint with the default route of an IP version, whose address ports are published for."""
    for endpoint in endpoints:
        if endpoint.gateway4 if version == 4 else endpoint.gateway6:
            return endpoint
    return None


def living_ports(behind: Behind, ports: Iterable[PortBinding]) -> list[Published]:
    """What a living container's ports, as `Attachment.ports` gave them, are in the rule set."""
    found = []
    for binding in ports:
        address = behind.ipv6 if ":" in binding.host_ip else behind.ipv4
        if address is not None:
            found.append(
                Published(
                    protocol=binding.protocol,
                    host_ip=binding.host_ip or "0.0.0.0",
                    host_port=binding.host_port,
                    address=str(address),
                    port=binding.container_port,
                )
            )
    return found


def address_keys(endpoint: Endpoint) -> list[str]:
    """The keys of the store that say whose an endpoint's addresses are."""
    return [f"addresses/{endpoint.network_id}/{text}" for text in (endpoint.ipv4, endpoint.ipv6) if text]


def parse_address_key(key: str) -> tuple[str, Address]:
    """The network and the address of such a key."""
    _, network_id, text = key.split("/", 2)
    return network_id, ipaddress.ip_address(text)


def _asked(network: Network, pools: Subnets, spec: EndpointSpec) -> dict[int, Address]:
    asked: dict[int, Address] = {}
    for version, field, text in ((4, "ip", spec.ipv4), (6, "ip6", spec.ipv6)):
        if text:
            asked[version] = parse_address(text, field=field, version=version)
            if version not in pools:
                raise Invalid(f"network {network.name} has no IPv{version} subnet: leave {text} out")
    if asked and network.name == BRIDGE:
        raise Invalid(
            "user specified IP address is supported on user defined networks only: "
            "make one with network create --subnet"
        )
    return asked
