"""Network records: check what a caller asks for, choose what it left open, find one by name. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cove.model.errors import Conflict, Forbidden, Invalid, NotFound
from cove.model.objects import IpamPool, Network
from cove.network.addresses import (
    choose_subnet_4,
    choose_subnet_6,
    mac_of,
    overlapping,
    parse_pool,
    parse_subnet,
)
from cove.network.links import Subnet
from cove.network.model import BRIDGE, BUILT_IN, HOST, NONE, BridgePlan
from cove.network.rules import BridgeRules

OPTION_NAME = "com.docker.network.bridge.name"
OPTION_ICC = "com.docker.network.bridge.enable_icc"
OPTION_MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
OPTION_MTU = "com.docker.network.driver.mtu"

_NAME = re.compile(
    r"[^\s/\x00-\x1f\x7f](?:[^/\x00-\x1f\x7f]{0,253}[^\s/\x00-\x1f\x7f])?"
)  # what a path segment and a terminal can show
_LINK_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,14}")
_TRUE, _FALSE = ("true", "1"), ("false", "0")


def plan_network(
    name: str,
    *,
    id: str,
    now_ns: int,
    driver: str,
    ipam: Sequence[IpamPool],
    ipv6: bool,
    internal: bool,
    attachable: bool,
    labels: Mapping[str, str],
    options: Mapping[str, str],
    existing: Sequence[Network],
    taken: Sequence[Subnet],
    default_mtu: int,
    seed: str,
) -> Network:
    """The record of a network that a caller asked for. `taken` are the subnets that the host routes.

    Raises Invalid, Conflict (name), Forbidden (built-in, overlap), NotFound (driver).
    """
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"network name {name[:40]!r}: expected 1 to 255 printable characters without '/' and with no space "
            "at either end, e.g. backend"
        )
    if driver in ("host", "null"):
        raise Forbidden(f'only one instance of "{driver}" network is allowed: use the one that exists')
    if driver != "bridge":
        raise NotFound(f'network driver "{driver}" isn\'t available: use bridge')
    if any(network.name == name for network in existing):
        raise Conflict(f"network with name {name} already exists")
    own = [parse_subnet(pool.subnet) for network in existing for pool in network.ipam]
    pools = _complete(ipam, ipv6=ipv6, own=own, taken=[*own, *taken], name=name, seed=f"{seed} {id}")
    bridge = options.get(OPTION_NAME, "") or f"br-{id[:12]}"
    if not _LINK_NAME.fullmatch(bridge):
        raise Invalid(f"option {OPTION_NAME}: {bridge!r} isn't a link's name: 15 letters or digits at most")
    if any(network.bridge == bridge for network in existing):
        raise Conflict(f"option {OPTION_NAME}: bridge {bridge} belongs to another network")
    for key in (OPTION_ICC, OPTION_MASQUERADE):
        parse_switch(options, key, default=True)
    return Network(
        id=id,
        name=name,
        driver="bridge",
        created_ns=now_ns,
        ipam=pools,
        ipv6=any(parse_subnet(pool.subnet).version == 6 for pool in pools),
        internal=internal,
        attachable=attachable,
        bridge=bridge,
        mtu=_parse_mtu(options, default_mtu),
        labels=dict(labels),
        options=dict(options),
    )


def plan_built_in(name: str, *, id: str, now_ns: int) -> Network:
    """The record of `host` or `none`."""
    driver = {HOST: "host", NONE: "null"}[name]
    return Network(id=id, name=name, driver=driver, created_ns=now_ns)


def plan_default_pools(
    asked: Sequence[IpamPool], *, with_ipv6: bool, taken: Sequence[Subnet], seed: str
) -> tuple[IpamPool, ...]:
    """The default bridge's subnets: those of the settings, or free ones. Raises Invalid, Unavailable."""
    return _complete(
        [pool for pool in asked if pool.subnet], ipv6=with_ipv6, own=(), taken=taken, name=BRIDGE, seed=seed
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
    addresses = tuple(
        ipaddress.ip_interface(f"{pool.gateway}/{parse_subnet(pool.subnet).prefixlen}")
        for pool in network.ipam
    )
    return BridgePlan(name=network.bridge, mac=mac_of(addresses[0].ip), mtu=network.mtu, addresses=addresses)


def bridge_rules(network: Network) -> BridgeRules:
    """What the rule set has to know of a bridge network."""
    return BridgeRules(
        bridge=network.bridge,
        subnets=tuple(parse_subnet(pool.subnet) for pool in network.ipam),
        internal=network.internal,
        masquerade=parse_switch(network.options, OPTION_MASQUERADE, default=True),
    )


def parse_switch(options: Mapping[str, str], key: str, *, default: bool) -> bool:
    """A boolean option. Raises Invalid."""
    value = options.get(key, "").lower()
    if not value:
        return default
    if value not in _TRUE + _FALSE:
        raise Invalid(f"option {key}: {options[key]!r} isn't a boolean: expected true or false")
    return value in _TRUE


def _parse_mtu(options: Mapping[str, str], default: int) -> int:
    value = options.get(OPTION_MTU, "")
    if not value:
        return default
    if not value.isascii() or not value.isdigit() or not 1280 <= int(value) <= 65535:
        raise Invalid(f"option {OPTION_MTU}: {value!r}: expected 1280 to 65535 bytes, e.g. 1450")
    return int(value)


def _complete(
    asked: Sequence[IpamPool],
    *,
    ipv6: bool,
    own: Sequence[Subnet],
    taken: Sequence[Subnet],
    name: str,
    seed: str,
) -> tuple[IpamPool, ...]:
    """IPv4 first, each with its gateway written out; a family that is missing gets a free subnet."""
    pools: dict[int, IpamPool] = {}
    for pool in asked:
        if not pool.subnet:
            if pool.gateway or pool.ip_range or pool.auxiliary:
                raise Invalid(
                    f"network {name}: gateway, ip-range and aux-address need a subnet, e.g. --subnet 10.1.0.0/24"
                )
            continue
        subnet = parse_subnet(pool.subnet)
        if subnet.version in pools:
            raise Invalid(
                f"network {name}: one subnet of each address family is supported, {subnet} is the second"
            )
        # Only Cove's own networks count here: a route that the host has may be meant.
        other = overlapping(subnet, own)
        if other is not None:
            raise Forbidden(
                "invalid pool request: Pool overlaps with other one on this address space: "
                f"{subnet} and {other}"
            )
        gateway = parse_pool(pool, network=name).gateway
        pools[subnet.version] = msgspec.structs.replace(pool, subnet=str(subnet), gateway=str(gateway))
    if 4 not in pools:
        chosen = choose_subnet_4(taken)
        pools[4] = IpamPool(subnet=str(chosen), gateway=str(chosen[1]))
    if 6 not in pools and ipv6:
        chosen = choose_subnet_6(seed, taken)
        pools[6] = IpamPool(subnet=str(chosen), gateway=str(chosen[1]))
    return tuple(pools[version] for version in sorted(pools))
