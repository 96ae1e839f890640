"""Network records: check what a caller asks for, choose what it left open, find one by name. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cove.model.errors import Conflict, Forbidden, Invalid, NotFound
from cove.model.objects import IpamPool, Network
from cove.network.addresses import (
    DEFAULT_POOLS,
    choose_from_pools,
    choose_subnet_6,
    mac_of,
    overlapping,
    parse_pool,
    parse_subnet,
)
from cove.network.links import Subnet
from cove.network.model import BRIDGE, BUILT_IN, HOST, NONE, BridgePlan
from cove.network.options import (
    ENABLE_IP,
    GATEWAY_MODE,
    ISOLATED,
    NAT,
    ROUTED,
    UNPROTECTED,
    BridgeOptions,
    parse_bridge_name,
    parse_bridge_options,
    parse_mtu,
    parse_switch,
)
from cove.network.options import NAME as OPTION_NAME
from cove.network.rules import BridgeRules

MOST_SUBNETS = 32

_NAME = re.compile(
    r"[^\s/\x00-\x1f\x7f](?:[^/\x00-\x1f\x7f]{0,253}[^\s/\x00-\x1f\x7f])?"
)  # what a path segment and a terminal can show


def plan_network(
    name: str,
    *,
    id: str,
    now_ns: int,
    driver: str,
    ipam: Sequence[IpamPool],
    ipv4: bool,
    ipv6: bool,
    internal: bool,
    attachable: bool,
    labels: Mapping[str, str],
    options: Mapping[str, str],
    existing: Sequence[Network],
    taken: Sequence[Subnet],
    default_mtu: int,
    address_pools: Sequence[tuple[str, int]],
    seed: str,
) -> Network:
    """The record of a network that a caller asked for. `taken` are the subnets that the host routes.

    Another driver than bridge completes it. Raises Invalid, Conflict (name), Forbidden (built-in, overlap).
    """
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"network name {name[:40]!r}: expected 1 to 255 printable characters without '/' and with no space "
            "at either end, e.g. backend"
        )
    if driver in ("host", "null"):
        raise Forbidden(f'only one instance of "{driver}" network is allowed: use the one that exists')
    if any(network.name == name for network in existing):
        raise Conflict(f"network with name {name} already exists")
    ipv4 = parse_switch(options, ENABLE_IP[4], default=ipv4)
    ipv6 = parse_switch(options, ENABLE_IP[6], default=ipv6)
    own = [parse_subnet(pool.subnet) for network in existing for pool in network.ipam]
    pools = _complete(
        ipam,
        ipv4=ipv4,
        ipv6=ipv6,
        own=own,
        taken=[*own, *taken],
        name=name,
        seed=f"{seed} {id}",
        address_pools=address_pools,
    )
    versions = {parse_subnet(pool.subnet).version for pool in pools}
    network = Network(
        id=id,
        name=name,
        driver=driver,
        created_ns=now_ns,
        ipam=pools,
        ipv4=4 in versions,
        ipv6=6 in versions,
        internal=internal,
        attachable=attachable,
        mtu=parse_mtu(options, default_mtu if driver == "bridge" else 0, ipv6=6 in versions),
        labels=dict(labels),
        options=dict(options),
    )
    parsed = parse_bridge_options(options)
    if driver != "bridge":
        return network
    bridge = parse_bridge_name(options, f"br-{id[:12]}")
    if any(known.bridge == bridge for known in existing):
        raise Conflict(f"option {OPTION_NAME}: bridge {bridge} belongs to another network")
    _check_modes(network, parsed)
    return msgspec.structs.replace(network, bridge=bridge)


def plan_built_in(name: str, *, id: str, now_ns: int) -> Network:
    """The record of `host` or `none`."""
    driver = {HOST: "host", NONE: "null"}[name]
    return Network(id=id, name=name, driver=driver, created_ns=now_ns)


def plan_default_pools(
    asked: Sequence[IpamPool],
    *,
    with_ipv6: bool,
    taken: Sequence[Subnet],
    address_pools: Sequence[tuple[str, int]],
    seed: str,
) -> tuple[IpamPool, ...]:
    """The default bridge's subnets: those of the settings, or free ones. Raises Invalid, Unavailable."""
    return _complete(
        [pool for pool in asked if pool.subnet],
        ipv4=True,
        ipv6=with_ipv6,
        own=(),
        taken=taken,
        name=BRIDGE,
        seed=seed,
        address_pools=address_pools,
    )


def find_network(networks: Iterable[Network], name_or_id: str) -> Network:
    """By name, by id, or by an id's beginning when that is unique. Raises NotFound, Invalid."""
    wanted = BRIDGE if name_or_id == "default" else name_or_id
    listed = list(networks)
    for network in listed:
        if wanted in (network.name, network.id):
            return network
    found = [network for network in listed if wanted and network.id.startswith(wanted)]
    if len(found) > 1:
        raise Invalid(
            f"network {name_or_id} is ambiguous ({len(found)} matches found on name): use more digits"
        )
    if not found:
        raise NotFound(f"network {name_or_id} not found")
    return found[0]


def in_order(networks: Iterable[Network]) -> list[Network]:
    """The built-in ones first, then by name."""
    return sorted(networks, key=lambda n: (n.name not in BUILT_IN, n.name, n.id))


def bridge_plan(network: Network) -> BridgePlan:
    """The link that a bridge network needs."""
    options = parse_bridge_options(network.options)
    addresses = tuple(
        ipaddress.ip_interface(f"{pool.gateway}/{subnet.prefixlen}")
        for pool in network.ipam
        for subnet in (parse_subnet(pool.subnet),)
        if options.mode(subnet.version) != ISOLATED and not (options.inhibit_ipv4 and subnet.version == 4)
    )
    mac = mac_of(ipaddress.ip_address(network.ipam[0].gateway))
    return BridgePlan(name=network.bridge, mac=mac, mtu=network.mtu, addresses=addresses)


def bridge_rules(network: Network) -> BridgeRules:
    """What the rule set has to know of a bridge network."""
    options = parse_bridge_options(network.options)
    return BridgeRules(
        bridge=network.bridge,
        subnets=tuple(parse_subnet(pool.subnet) for pool in network.ipam),
        internal=network.internal,
        icc=options.icc,
        masquerade=tuple(v for v in (4, 6) if options.masquerade and options.mode(v) in (NAT, UNPROTECTED)),
        unprotected=tuple(v for v in (4, 6) if options.mode(v) == UNPROTECTED),
        routed=tuple(v for v in (4, 6) if options.mode(v) == ROUTED),
        sources=tuple(host for v in (4, 6) if (host := options.host(v))),
        trusted=options.trusted,
    )


def _check_modes(network: Network, options: BridgeOptions) -> None:
    for version in (4, 6):
        mode = options.mode(version)
        if mode == ISOLATED and not network.internal:
            raise Invalid(
                f"option {GATEWAY_MODE[version]}: isolated is for internal networks: add --internal, or use nat"
            )
        if network.internal and mode in (UNPROTECTED, ROUTED):
            raise Invalid(f"option {GATEWAY_MODE[version]}: {mode} isn't for internal networks: leave it out")


def _complete(
    asked: Sequence[IpamPool],
    *,
    ipv4: bool,
    ipv6: bool,
    own: Sequence[Subnet],
    taken: Sequence[Subnet],
    name: str,
    seed: str,
    address_pools: Sequence[tuple[str, int]],
) -> tuple[IpamPool, ...]:
    """IPv4 first, each with its gateway written out; a family that is missing gets a free subnet."""
    pools: list[IpamPool] = []
    subnets: list[Subnet] = []
    used = list(taken)
    if len(asked) > MOST_SUBNETS:
        raise Invalid(f"network {name}: {len(asked)} subnets: {MOST_SUBNETS} at most")
    for pool in asked:
        if not pool.subnet:
            if pool.gateway or pool.ip_range or pool.auxiliary:
                raise Invalid(
                    f"network {name}: gateway, ip-range and aux-address need a subnet, e.g. --subnet 10.1.0.0/24"
                )
            continue
        subnet = parse_subnet(pool.subnet, unspecified=True)
        if subnet.version == 4 and not ipv4:
            raise Invalid(f"network {name}: subnet {subnet} needs IPv4, which is off for this network")
        if subnet.network_address.is_unspecified:
            subnet = _choose(subnet.version, used, address_pools, f"{seed} {len(pools)}", subnet.prefixlen)
        # Only Cove's own networks count here: a route that the host has may be meant.
        other = overlapping(subnet, [*own, *subnets])
        if other is not None:
            raise Forbidden(
                "invalid pool request: Pool overlaps with other one on this address space: "
                f"{subnet} and {other}"
            )
        pool = msgspec.structs.replace(pool, subnet=str(subnet))
        gateway = parse_pool(pool, network=name).gateway
        pools.append(msgspec.structs.replace(pool, gateway=str(gateway)))
        subnets.append(subnet)
        used.append(subnet)
    present = {subnet.version for subnet in subnets}
    for version, wanted in ((4, ipv4), (6, ipv6)):
        if wanted and version not in present:
            chosen = _choose(version, used, address_pools, seed, 0)
            pools.append(IpamPool(subnet=str(chosen), gateway=str(chosen[1])))
    if not pools:
        raise Invalid(f"network {name}: IPv4 or IPv6 must be enabled")
    return tuple(sorted(pools, key=lambda pool: parse_subnet(pool.subnet).version))


def _choose(
    version: int, taken: Sequence[Subnet], pools: Sequence[tuple[str, int]], seed: str, prefix: int
) -> Subnet:
    if version == 4 or prefix or any(":" in base for base, _ in pools):
        chosen = choose_from_pools(pools or DEFAULT_POOLS, version, taken, prefix=prefix)
        if chosen is not None:
            return chosen
    if version == 4:  # the daemon's pools are all IPv6's
        chosen = choose_from_pools(DEFAULT_POOLS, version, taken)
        assert chosen is not None, "the default pools have IPv4"
        return chosen
    return choose_subnet_6(seed, taken)
