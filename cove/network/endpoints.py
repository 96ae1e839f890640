"""Endpoints: from what a caller asked of a network to addresses, and from those to an interface. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from cove.model.container import Endpoint, EndpointSpec, PortBinding
from cove.model.errors import CoveError, Invalid
from cove.model.objects import Network
from cove.network.addresses import AddressPool, mac_of, parse_address, parse_link_local, parse_mac, parse_pool
from cove.network.links import Address
from cove.network.model import BRIDGE, Published
from cove.network.namespaces import InterfacePlan


def address_pools(network: Network) -> dict[int, AddressPool]:
    """The bookkeeping of a bridge network's subnets, by IP version."""
    pools = [parse_pool(pool, network=network.name) for pool in network.ipam]
    return {pool.subnet.version: pool for pool in pools}


def take_endpoint(
    network: Network,
    pools: Mapping[int, AddressPool],
    spec: EndpointSpec,
    *,
    interface: str,
    host_interface: str,
    endpoint_id: str,
    default: bool,
) -> Endpoint:
    """An endpoint whose addresses are taken from `pools`; none is when this raises.

    `default`: the network's gateways become the container's. Raises Invalid, Conflict (address in use, none
    left).
    """
    mac = parse_mac(spec.mac) if spec.mac else ""
    for text in spec.link_local:
        parse_link_local(text)
    asked = _asked(network, pools, spec)
    taken: dict[int, Address] = {}
    try:
        for version, pool in pools.items():
            taken[version] = pool.take_exactly(asked[version]) if version in asked else pool.take()
    except CoveError:
        for version, address in taken.items():
            pools[version].free(address)
        raise
    gateways = {version: str(pool.gateway) if default else "" for version, pool in pools.items()}
    v6 = taken.get(6)
    return Endpoint(
        network_id=network.id,
        network_name=network.name,
        endpoint_id=endpoint_id,
        mac=mac or mac_of(taken[4]),
        ipv4=str(taken[4]),
        ipv4_prefix=pools[4].subnet.prefixlen,
        gateway4=gateways[4],
        ipv6=str(v6) if v6 is not None else "",
        ipv6_prefix=pools[6].subnet.prefixlen if v6 is not None else 0,
        gateway6=gateways.get(6, ""),
        interface=interface,
        host_interface=host_interface,
        aliases=spec.aliases,
        link_local=spec.link_local,
    )


def free_endpoint(endpoint: Endpoint, pools: Mapping[int, AddressPool]) -> None:
    """Give an endpoint's addresses back."""
    for text in (endpoint.ipv4, endpoint.ipv6):
        if text:
            address = ipaddress.ip_address(text)
            if address.version in pools:
                pools[address.version].free(address)


def plan_interface(
    endpoint: Endpoint, network: Network, *, bridge: int, hairpin: bool, isolated: bool
) -> InterfacePlan:
    """The interface of an endpoint, on the bridge with this index."""
    addresses = [ipaddress.ip_interface(f"{endpoint.ipv4}/{endpoint.ipv4_prefix}")]
    if endpoint.ipv6:
        addresses.append(ipaddress.ip_interface(f"{endpoint.ipv6}/{endpoint.ipv6_prefix}"))
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
    )


def outward(endpoints: Iterable[Endpoint]) -> Endpoint | None:
    """The endpoint with the default route, whose addresses ports are published for; None: all internal."""
    return next((endpoint for endpoint in endpoints if endpoint.gateway4 or endpoint.gateway6), None)


def living_ports(endpoint: Endpoint, ports: Iterable[PortBinding]) -> list[Published]:
    """What a living container's ports, as `Attachment.ports` gave them, are in the rule set."""
    found = []
    for binding in ports:
        address = endpoint.ipv6 if ":" in binding.host_ip else endpoint.ipv4
        if address:
            found.append(
                Published(
                    protocol=binding.protocol,
                    host_ip=binding.host_ip or "0.0.0.0",
                    host_port=binding.host_port,
                    address=address,
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


def _asked(network: Network, pools: Mapping[int, AddressPool], spec: EndpointSpec) -> dict[int, Address]:
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
