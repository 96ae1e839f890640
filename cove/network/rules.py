"""The rule set as data: which text and which map elements stand for networks and published ports. Pure.

One table (family inet) holds everything. Its chains are few and depend on the networks alone; a published
port is one element of one of four maps, whatever the number of ports:

    any4, any6    protocol . port            → address . port    (every address of the host)
    host4, host6  address . protocol . port  → address . port    (one address of the host)

and, on a network whose packets are routed to containers untranslated, of one of two sets:

    open4, open6  address . protocol . port                      (the container's)

What a packet meets, by the hooks' order:

    raw       a packet from a bridge to 127.0.0.0/8 is dropped: route_localnet would let it in
    dnat      from other machines and containers, and (hook output) from the host itself
    forward   to a bridge: replies, neighbours on the bridge and published ports, nothing else
    snat      masquerade for what leaves; for what comes back to the bridge it left (hairpin); for loopback

A packet for 127.0.0.0/8 isn't translated in the prerouting hook: the kernel drops it as martian only after
that hook, so a neighbour could reach ports that were published on 127.0.0.1.

Sources: nft(8), linux/netfilter/nf_tables.h; the layout of concatenated keys is nft_set_hash(5)'s: each
part padded to four bytes.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cove.network.links import Subnet
from cove.network.model import Published
from cove.network.netlink import NLM_F_CREATE, Request, attribute, nested, text
from cove.network.screening import loop_of, table_of

MAPS = ("any4", "any6", "host4", "host6")
SETS = ("open4", "open6")
NFNL_SUBSYS_NFTABLES = 10
_NFT_MSG_NEWSETELEM = (NFNL_SUBSYS_NFTABLES << 8) | 12
_NFT_MSG_DELSETELEM = (NFNL_SUBSYS_NFTABLES << 8) | 14
_NFPROTO_INET = 1
_SCREENS = {4: 2, 6: 10}  # NFPROTO_IPV4, NFPROTO_IPV6: the families of the screen's tables
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_LIST_ELEM = 1
_ELEM_KEY, _ELEM_DATA = 1, 2
_DATA_VALUE = 1
_ELEMENTS_A_MESSAGE = 256  # an attribute holds 64 KiB at most
_PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": 132}

_SET_TYPES = {
    "open4": "ipv4_addr . inet_proto . inet_service",
    "open6": "ipv6_addr . inet_proto . inet_service",
}
_MAP_TYPES = {
    "any4": "inet_proto . inet_service : ipv4_addr . inet_service",
    "any6": "inet_proto . inet_service : ipv6_addr . inet_service",
    "host4": "ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service",
    "host6": "ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeRules:
    """What the rule set has to know of one bridge network."""

    bridge: str
    subnets: tuple[Subnet, ...]
    internal: bool = False
    icc: bool = True  # containers on it may talk to each other
    masquerade: tuple[int, ...] = (4, 6)  # IP versions, as in the next two
    unprotected: tuple[int, ...] = ()  # whoever can route to a container reaches all its ports
    routed: tuple[int, ...] = ()  # published ports are reached at the containers' own addresses
    sources: tuple[
        str, ...
    ] = ()  # the host's addresses that replace the containers', one for each version at most
    trusted: tuple[str, ...] = ()  # links of the host from which all ports are reached


def plan_table(
    table: str,
    networks: Sequence[BridgeRules],
    *,
    guard: bool,
    screened: bool = False,
    segments: Sequence[str] = (),
) -> str:
    """The text that makes or repairs the table: maps keep their elements, chains are written anew.

    `guard` keeps packets between two network cards blocked: it is set when forwarding was off before Cove
    switched it on for its bridges. Links made by software (bridges, tunnels, veth) have a kind; cards don't.

    `segments` are further bridges of networks: where br_netfilter shows their frames to this table, tracking would
    translate a connection there, before it reaches the first bridge, where that is decided.

    `screened`: published ports are translated for containers and for what comes out of the loop (see `screening`).
    """
    lines = [f"add table inet {table}"]
    lines += [f"add map inet {table} {name} {{ type {kind}; }}" for name, kind in _MAP_TYPES.items()]
    lines += [f"add set inet {table} {name} {{ type {kind}; }}" for name, kind in _SET_TYPES.items()]
    lines += [
        f"add chain inet {table} {name} {definition}".rstrip()
        for name, definition in (
            ("raw", "{ type filter hook prerouting priority raw; policy accept; }"),
            ("prerouting", "{ type nat hook prerouting priority dstnat; policy accept; }"),
            ("output", "{ type nat hook output priority -100; policy accept; }"),
            ("forward", "{ type filter hook forward priority filter; policy accept; }"),
            ("postrouting", "{ type nat hook postrouting priority srcnat; policy accept; }"),
            ("published", ""),
            ("guard", ""),
            ("to_bridge", ""),
        )
    ]
    lines.append(f"flush table inet {table}")
    rules = [rule for network in networks if network.internal for rule in _internal_rules(network)]
    bridges = [network.bridge for network in networks]
    if segments:
        rules.append(f"raw iifname {_one_of(segments)} notrack")
    rules += [rule for network in networks for rule in _network_rules(network, bridges)]
    lines += [f"add rule inet {table} {rule}" for rule in rules]
    lines += [f"add rule inet {table} {rule}" for rule in _COMMON_RULES]
    inner = f"iifname {_one_of([loop_of(table)[1], *bridges])} " if screened else ""
    lines.append(f"add rule inet {table} prerouting {inner}fib daddr type local jump published")
    if guard:
        lines += [f"add rule inet {table} {rule}" for rule in _GUARD_RULES]
    return "\n".join(lines) + "\n"


def plan_removal(table: str) -> str:
    """The text that removes the table; one that is gone is fine (it is made first)."""
    return f"add table inet {table}\ndelete table inet {table}\n"


_COMMON_RULES = (
    "published dnat ip to ip daddr . meta l4proto . th dport map @host4",
    "published dnat ip6 to ip6 daddr . meta l4proto . th dport map @host6",
    "published dnat ip to meta l4proto . th dport map @any4",
    "published dnat ip6 to meta l4proto . th dport map @any6",
    "prerouting ip daddr 127.0.0.0/8 return",
    # ::1 is served by listeners (see loopback): the kernel drops replies to it from another link.
    "output ip6 daddr ::1 return",
    "output fib daddr type local jump published",
    "to_bridge ct state established,related accept",
    "to_bridge ct status dnat accept",
    "to_bridge ip daddr . meta l4proto . th dport @open4 accept",
    "to_bridge ip6 daddr . meta l4proto . th dport @open6 accept",
    "to_bridge drop",
    "forward jump guard",
)

_GUARD_RULES = (
    "guard ct state established,related return",
    'guard meta iifkind != "-" return',
    'guard meta oifkind != "-" return',
    "guard drop",
)


def _internal_rules(network: BridgeRules) -> list[str]:
    # Before all other rules of `forward`: another network's published port would accept the packet.
    name = f'"{network.bridge}"'
    return [
        f"forward iifname {name} oifname != {name} drop",
        f"forward oifname {name} iifname != {name} drop",
    ]


def _network_rules(network: BridgeRules, bridges: Sequence[str]) -> list[str]:
    name = f'"{network.bridge}"'
    rules = [f"raw iifname {name} ip daddr 127.0.0.0/8 drop"]
    if not network.icc:
        # Frames are kept apart by the bridge itself; this is for packets by way of the host, as a router. Published
        # ports are no way round it: where br_netfilter is on, the bridge would stop those anyway.
        rules.append(f"forward iifname {name} oifname {name} drop")
    if network.trusted:
        rules.append(f"forward oifname {name} iifname {_one_of(network.trusted)} accept")
    for version in network.unprotected:
        # Other networks' containers stay out: networks are apart from each other.
        rules.append(f"forward oifname {name} iifname != {_one_of(bridges)} meta nfproto ipv{version} accept")
    for version in network.routed:
        rules.append(f"forward oifname {name} meta l4proto {'icmp' if version == 4 else 'icmpv6'} accept")
    rules.append(f"forward oifname {name} iifname != {name} jump to_bridge")
    sources = {6 if ":" in source else 4: source for source in network.sources}
    for subnet in network.subnets:
        family = "ip" if subnet.version == 4 else "ip6"
        rules.append(f"postrouting oifname {name} {family} saddr {subnet} ct status dnat masquerade")
        if subnet.version in network.masquerade and not network.internal:
            source = sources.get(subnet.version)
            how = f"snat {family} to {source}" if source else "masquerade"
            rules.append(f"postrouting oifname != {name} {family} saddr {subnet} {how}")
    if any(subnet.version == 4 for subnet in network.subnets):
        rules.append(f"postrouting oifname {name} ip saddr 127.0.0.0/8 masquerade")
    return rules


def _one_of(links: Sequence[str]) -> str:
    return "{ " + ", ".join(f'"{link}"' for link in links) + " }"


# --- elements ------------------------------------------------------------------------------


def map_of(published: Published) -> str:
    """The map or set that a published port belongs to."""
    if published.direct:
        return f"open{published.version}"
    return f"{'any' if published.wildcard else 'host'}{published.version}"


def plan_add(table: str, published: Iterable[Published], *, screened: bool = False) -> list[Request]:
    """Requests that add elements; they belong into one transaction."""
    return _element_requests(table, published, add=True, screened=screened)


def plan_delete(table: str, published: Iterable[Published], *, screened: bool = False) -> list[Request]:
    """Requests that delete elements; they belong into one transaction."""
    return _element_requests(table, published, add=False, screened=screened)


def plan_flush(table: str, *, screened: bool = False) -> list[Request]:
    """Requests that empty all maps and sets."""
    places = [_Place(_NFPROTO_INET, table, name) for name in (*MAPS, *SETS)]
    if screened:
        places += [
            _Place(family, table_of(table), name) for family in _SCREENS.values() for name in ("any", "host")
        ]
    return [
        Request(_NFT_MSG_DELSETELEM, 0, place.header(), f"empty {place.name} of table {place.table}")
        for place in places
    ]


@dataclass(frozen=True, slots=True)
class _Place:
    """A map or a set."""

    family: int
    table: str
    name: str

    def header(self) -> bytes:
        return (
            struct.pack(">BBH", self.family, 0, 0)
            + text(_LIST_TABLE, self.table)
            + text(_LIST_SET, self.name)
        )


def _element_requests(
    table: str, published: Iterable[Published], *, add: bool, screened: bool
) -> list[Request]:
    by_place: dict[_Place, list[bytes]] = {}
    for entry in published:
        place = _Place(_NFPROTO_INET, table, map_of(entry))
        by_place.setdefault(place, []).append(_element(entry, with_data=add and not entry.direct))
        if screened and not entry.direct:
            name = "any" if entry.wildcard else "host"
            place = _Place(_SCREENS[entry.version], table_of(table), name)
            by_place.setdefault(place, []).append(_element(entry, with_data=False))
    verb, kind, flags = (
        ("publish", _NFT_MSG_NEWSETELEM, NLM_F_CREATE) if add else ("withdraw", _NFT_MSG_DELSETELEM, 0)
    )
    return [
        Request(
            kind,
            flags,
            place.header() + nested(_LIST_ELEMENTS, *elements[start : start + _ELEMENTS_A_MESSAGE]),
            f"{verb} ports in table {place.table}",
        )
        for place, elements in by_place.items()
        for start in range(0, len(elements), _ELEMENTS_A_MESSAGE)
    ]


def _element(published: Published, *, with_data: bool) -> bytes:
    protocol = _PROTOCOLS[published.protocol]
    if published.direct:
        key = ipaddress.ip_address(published.address).packed
        key += struct.pack(">B3xH2x", protocol, published.port)
    else:
        key = struct.pack(">B3xH2x", protocol, published.host_port)
        if not published.wildcard:
            key = ipaddress.ip_address(published.host_ip).packed + key
    element = nested(_ELEM_KEY, attribute(_DATA_VALUE, key))
    if with_data:
        data = ipaddress.ip_address(published.address).packed + struct.pack(">H2x", published.port)
        element += nested(_ELEM_DATA, attribute(_DATA_VALUE, data))
    return nested(_LIST_ELEM, element)
