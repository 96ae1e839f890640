"""Links, addresses and routes as rtnetlink requests.

Builds requests (pure) and reads replies; `netlink.Netlink` sends them. Nothing here lists all links but
`ports_of`, which only a restart needs: on a host with 1,000 containers a list costs tens of milliseconds.

Sources: rtnetlink(7), linux/if_link.h, linux/veth.h, linux/if_addr.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from dataclasses import dataclass

from cove.network.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Netlink,
    Reply,
    Request,
    attribute,
    nested,
    parse_attributes,
    text,
    u32,
    zero_terminated,
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_RTM_NEWRULE, _RTM_DELRULE = 32, 33

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER = 1, 3, 4, 5, 10
_IFLA_LINKINFO, _IFLA_AF_SPEC, _IFLA_GROUP, _IFLA_NET_NS_FD, _IFLA_EXT_MASK = 18, 26, 27, 28, 29
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_INFO_PEER = 1
_MACVLAN_MODE, _IPVLAN_MODE, _IPVLAN_FLAGS, _VLAN_ID = 1, 1, 2, 1
_BR_FORWARD_DELAY = 1
_BRPORT_MODE, _BRPORT_ISOLATED = 4, 33
_INET6_ADDR_GEN_MODE = 8
_ADDR_GEN_NONE = b"\1"
_RTEXT_FILTER_SKIP_STATS = 8

_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_IFA_F_NODAD, _IFA_F_PERMANENT = 0x02, 0x80
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_TABLE = 1, 4, 5, 15
_FRA_PRIORITY, _FRA_FWMARK, _FR_ACT_TO_TBL = 6, 10, 1
_RULE_PRIORITY = 32000
_IFF_UP, _IFF_NOARP = 1, 0x80

_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst len, src len, tos, table, protocol, scope, type, flags


_NO_LINK_LOCAL = nested(
    _IFLA_AF_SPEC, nested(socket.AF_INET6, attribute(_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE))
)


@dataclass(frozen=True, slots=True)
class Link:
    """What a link is, as RTM_GETLINK tells."""

    index: int
    name: str
    kind: str
    mtu: int
    mac: str
    up: bool
    master: int


@dataclass(frozen=True, slots=True)
class Route:
    """A route of any table: its destination, and the link and gateway where it has them."""

    destination: Subnet
    link: int
    gateway: Address | None


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


# --- requests ------------------------------------------------------------------------------


def make_bridge(name: str, mac: str, mtu: int) -> Request:
    """A bridge, up. Its hardware address is set, or it would follow its ports' and break ARP caches."""
    return Request(
        _RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        _LINK.pack(0, 0, 0, _IFF_UP, _IFF_UP)
        + text(_IFLA_IFNAME, name)
        + attribute(_IFLA_ADDRESS, mac_bytes(mac))
        + u32(_IFLA_MTU, mtu)
        + nested(_IFLA_LINKINFO, text(_INFO_KIND, "bridge"), nested(_INFO_DATA, u32(_BR_FORWARD_DELAY, 0))),
        f"make bridge {name}",
        (errno.EEXIST,),
    )


def make_veth(host_name: str, name: str, mac: str, mtu: int, namespace: int) -> Request:
    """A veth pair: one end here, the other in `namespace` (a descriptor), named `name`; both still down."""
    peer = (
        _LINK.pack(0, 0, 0, 0, 0)
        + text(_IFLA_IFNAME, name)
        + attribute(_IFLA_ADDRESS, mac_bytes(mac))
        + u32(_IFLA_MTU, mtu)
        + u32(_IFLA_NET_NS_FD, namespace)
    )
    return Request(
        _RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        _LINK.pack(0, 0, 0, 0, 0)
        + text(_IFLA_IFNAME, host_name)
        + u32(_IFLA_MTU, mtu)
        + nested(
            _IFLA_LINKINFO,
            text(_INFO_KIND, "veth"),
            nested(_INFO_DATA, attribute(_VETH_INFO_PEER | 0x8000, peer)),
        ),
        f"make interface {name}",
    )


def make_dummy(name: str) -> Request:
    """A link that leads nowhere; still down."""
    body = _LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) + _kind("dummy")
    return Request(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"make link {name}", (errno.EEXIST,))


def make_vlan(name: str, below: int, number: int) -> Request:
    """An interface for one VLAN of a link; still down."""
    body = _LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) + u32(_IFLA_LINK, below)
    body += _kind("vlan", attribute(_VLAN_ID, struct.pack("=H", number)))
    return Request(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"make link {name}", (errno.EEXIST,))


def make_macvlan(name: str, parent: int, mode: int, *, mac: str, mtu: int, namespace: int) -> Request:
    """A macvlan interface in `namespace` (a descriptor; 0: here), still down.

    A `mac` "" and an `mtu` 0 are left to the kernel.
    """
    return _make_child(name, parent, _kind("macvlan", u32(_MACVLAN_MODE, mode)), mac, mtu, namespace)


def make_ipvlan(name: str, parent: int, mode: int, flag: int, *, mtu: int, namespace: int) -> Request:
    """An ipvlan interface, as `make_macvlan` makes its kind."""
    data = (
        attribute(_IPVLAN_MODE, struct.pack("=H", mode)),
        attribute(_IPVLAN_FLAGS, struct.pack("=H", flag)),
    )
    return _make_child(name, parent, _kind("ipvlan", *data), "", mtu, namespace)


def _make_child(name: str, parent: int, kind: bytes, mac: str, mtu: int, namespace: int) -> Request:
    body = _LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) + u32(_IFLA_LINK, parent)
    if mac:
        body += attribute(_IFLA_ADDRESS, mac_bytes(mac))
    if mtu:
        body += u32(_IFLA_MTU, mtu)
    if namespace:
        body += u32(_IFLA_NET_NS_FD, namespace)
    return Request(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body + kind, f"make interface {name}")


def _kind(name: str, *data: bytes) -> bytes:
    return nested(_IFLA_LINKINFO, text(_INFO_KIND, name), nested(_INFO_DATA, *data))


def make_pair(near: str, far: str, mtu: int) -> Request:
    """A veth pair whose both ends are here, both still down."""
    peer = _LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, far) + u32(_IFLA_MTU, mtu)
    return Request(
        _RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        _LINK.pack(0, 0, 0, 0, 0)
        + text(_IFLA_IFNAME, near)
        + u32(_IFLA_MTU, mtu)
        + nested(
            _IFLA_LINKINFO,
            text(_INFO_KIND, "veth"),
            nested(_INFO_DATA, attribute(_VETH_INFO_PEER | 0x8000, peer)),
        ),
        f"make the pair {near}",
        (errno.EEXIST,),
    )


def make_loop(out: str, into: str, mac: str, mtu: int) -> Request:
    """A veth pair whose both ends are here, and which asks for no neighbours; both still down."""
    end = attribute(_IFLA_ADDRESS, mac_bytes(mac)) + u32(_IFLA_MTU, mtu)
    header = _LINK.pack(0, 0, 0, _IFF_NOARP, _IFF_NOARP)
    peer = header + text(_IFLA_IFNAME, into) + end
    return Request(
        _RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        header
        + text(_IFLA_IFNAME, out)
        + end
        + nested(
            _IFLA_LINKINFO,
            text(_INFO_KIND, "veth"),
            nested(_INFO_DATA, attribute(_VETH_INFO_PEER | 0x8000, peer)),
        ),
        f"make the loop {out}",
        (errno.EEXIST,),
    )


def enslave(name: str, bridge: int, mtu: int) -> Request:
    """Put a link on a bridge and bring it up, without an IPv6 address: a port needs none."""
    # With less than 1280 bytes a link has no IPv6 at all (RFC 8200), nor settings for it.
    return Request(
        _RTM_NEWLINK,
        0,
        _LINK.pack(0, 0, 0, _IFF_UP, _IFF_UP)
        + text(_IFLA_IFNAME, name)
        + u32(_IFLA_MASTER, bridge)
        + (_NO_LINK_LOCAL if mtu >= 1280 else b""),
        "put an interface on its bridge",
    )


def port_flags(name: str, *, hairpin: bool, isolated: bool) -> Request:
    """Flags of a bridge's port: reflect frames to their sender; keep ports from talking to each other."""
    return Request(
        _RTM_NEWLINK,
        0,
        _LINK.pack(0, 0, 0, 0, 0)
        + text(_IFLA_IFNAME, name)
        + nested(
            _IFLA_LINKINFO,
            text(_INFO_SLAVE_KIND, "bridge"),
            nested(
                _INFO_SLAVE_DATA,
                attribute(_BRPORT_MODE, bytes([hairpin])),
                attribute(_BRPORT_ISOLATED, bytes([isolated])),
            ),
        ),
        "set up an interface's bridge port",
    )


def set_up(index: int, *, link_local: bool = True, neighbours: bool = True) -> Request:
    """Bring a link up.

    Without `link_local` the kernel gives it no IPv6 address, without `neighbours` it answers no ARP.
    """
    flags = _IFF_UP if neighbours else _IFF_UP | _IFF_NOARP
    body = _LINK.pack(0, 0, index, flags, flags)
    return Request(_RTM_NEWLINK, 0, body if link_local else body + _NO_LINK_LOCAL, "bring a link up")


def move_link(index: int, name: str, namespace: int) -> Request:
    """Move a link to `namespace` (a descriptor), where it is called `name`; it goes down and loses its addresses."""
    body = _LINK.pack(0, 0, index, 0, 0) + text(_IFLA_IFNAME, name) + u32(_IFLA_NET_NS_FD, namespace)
    return Request(_RTM_NEWLINK, 0, body, f"move a link to another network namespace as {name}")


def set_group(index: int, group: int) -> Request:
    """Mark a link as a member of a group; one that is gone already is fine."""
    return Request(
        _RTM_NEWLINK,
        0,
        _LINK.pack(0, 0, index, 0, 0) + u32(_IFLA_GROUP, group),
        "mark an interface for deletion",
        (errno.ENODEV,),
    )


def delete_group(group: int) -> Request:
    """Delete all links of a group in one go: the kernel waits for its readers once, not once each."""
    return Request(
        _RTM_DELLINK,
        0,
        _LINK.pack(0, 0, 0, 0, 0) + u32(_IFLA_GROUP, group),
        "delete interfaces",
        (errno.ENODEV,),
    )


def delete_link(name: str) -> Request:
    return Request(
        _RTM_DELLINK,
        0,
        _LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name),
        f"delete link {name}",
        (errno.ENODEV,),
    )


def add_address(index: int, interface: Interface) -> Request:
    """An address, usable at once (no duplicate address detection). There already is fine."""
    packed = interface.ip.packed
    v4 = interface.version == 4
    body = _ADDRESS.pack(
        socket.AF_INET if v4 else socket.AF_INET6,
        interface.network.prefixlen,
        0 if v4 else _IFA_F_NODAD,
        0,
        index,
    )
    body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
    if v4 and interface.network.prefixlen < 31:
        body += attribute(_IFA_BROADCAST, interface.network.broadcast_address.packed)
    return Request(
        _RTM_NEWADDR,
        NLM_F_CREATE | NLM_F_REPLACE,
        body,
        f"give a link the address {interface}",
        (errno.EEXIST,),
    )


def delete_address(index: int, interface: Interface) -> Request:
    family = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    body = _ADDRESS.pack(family, interface.network.prefixlen, 0, 0, index)
    body += attribute(_IFA_LOCAL, interface.ip.packed) + attribute(_IFA_ADDRESS, interface.ip.packed)
    return Request(_RTM_DELADDR, 0, body, f"remove the address {interface}", (errno.EADDRNOTAVAIL,))


def default_route(index: int, gateway: Address, *, replace: bool = False) -> Request:
    """The default route through a gateway: table main, protocol boot, scope universe, type unicast.

    An unspecified gateway (0.0.0.0, ::) stands for the link itself: whatever is addressed is on it.
    `replace`: instead of the one that is there, if there is one.
    """
    family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
    return Request(
        _RTM_NEWROUTE,
        NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL),
        _ROUTE.pack(family, 0, 0, 0, 254, 3, 253 if gateway.is_unspecified else 0, 1, 0)
        + (b"" if gateway.is_unspecified else attribute(_RTA_GATEWAY, gateway.packed))
        + u32(_RTA_OIF, index),
        f"set the default route through {gateway}",
    )


def default_route_of(table: int, index: int) -> Request:
    """IPv6: a table's default route, to a link; there already is fine, and so is a kernel without IPv6."""
    return Request(
        _RTM_NEWROUTE,
        NLM_F_CREATE | NLM_F_EXCL,
        _ROUTE.pack(socket.AF_INET6, 0, 0, 0, table, 3, 0, 1, 0) + u32(_RTA_OIF, index),
        "set the loop's route",
        (errno.EEXIST, errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.ENODEV, errno.EACCES),
    )


def route_by_mark(mark: int, table: int, *, remove: bool = False) -> Request:
    """IPv6: packets with this mark find their routes in a table. There already, or gone already, is fine."""
    return Request(
        _RTM_DELRULE if remove else _RTM_NEWRULE,
        0 if remove else NLM_F_CREATE | NLM_F_EXCL,
        _ROUTE.pack(socket.AF_INET6, 0, 0, 0, table, 0, 0, _FR_ACT_TO_TBL, 0)
        + u32(_FRA_FWMARK, mark)
        + u32(_FRA_PRIORITY, _RULE_PRIORITY),  # chosen by the kernel, each call would make one more
        "route by a mark",
        (errno.EEXIST, errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP),
    )


# --- questions -----------------------------------------------------------------------------


def find_link(netlink: Netlink, name: str) -> Link | None:
    """A link by its name, or None."""
    return _find(netlink, _LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name), f"look up link {name}")


def find_link_by_index(netlink: Netlink, index: int) -> Link | None:
    """A link by its index, or None."""
    return _find(netlink, _LINK.pack(0, 0, index, 0, 0), f"look up link {index}")


def _find(netlink: Netlink, body: bytes, what: str) -> Link | None:
    body += u32(_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)
    reply = netlink.ask(Request(_RTM_GETLINK, 0, body, what, (errno.ENODEV,)))
    return None if reply is None else _parse_link(reply)


def ports_of(netlink: Netlink, bridge: int) -> list[Link]:
    """Every port of a bridge (the kernel filters)."""
    body = _LINK.pack(0, 0, 0, 0, 0) + u32(_IFLA_MASTER, bridge)
    return [
        _parse_link(reply) for reply in netlink.dump(Request(_RTM_GETLINK, 0, body, "list a bridge's ports"))
    ]


def permanent_addresses_of(netlink: Netlink, index: int) -> list[Interface]:
    """The addresses of a link that are valid everywhere and don't expire: scope universe, IFA_F_PERMANENT."""
    return addresses_of(netlink, index, permanent=True)


def addresses_of(netlink: Netlink, index: int, *, permanent: bool = False) -> list[Interface]:
    """The addresses of a link that a person or Cove gave it (link-local IPv6 left out)."""
    found: list[Interface] = []
    body = _ADDRESS.pack(0, 0, 0, 0, index)
    for reply in netlink.dump(Request(_RTM_GETADDR, 0, body, "list a link's addresses")):
        _, prefix, flags, scope, link = _ADDRESS.unpack_from(reply.body)
        attributes = parse_attributes(reply.body, _ADDRESS.size)
        packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
        if link != index or packed is None or (permanent and (scope or not flags & _IFA_F_PERMANENT)):
            continue
        interface = ipaddress.ip_interface((packed, prefix))
        if not interface.ip.is_link_local:
            found.append(interface)
    return found


def routes(netlink: Netlink) -> list[Route]:
    """Every unicast and local route of both families, all tables."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        body = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
        for reply in netlink.dump(Request(_RTM_GETROUTE, 0, body, "list routes")):
            fields = _ROUTE.unpack_from(reply.body)
            if fields[0] != family or fields[7] not in (1, 2):
                continue
            attributes = parse_attributes(reply.body, _ROUTE.size)
            packed = attributes.get(_RTA_DST, bytes(4 if family == socket.AF_INET else 16))
            oif = attributes.get(_RTA_OIF)
            gateway = attributes.get(_RTA_GATEWAY)
            found.append(
                Route(
                    ipaddress.ip_network((packed, fields[1]), strict=False),
                    struct.unpack("=I", oif)[0] if oif else 0,
                    ipaddress.ip_address(gateway) if gateway else None,
                )
            )
    return found


def _parse_link(reply: Reply) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(reply.body)
    attributes = parse_attributes(reply.body, _LINK.size)
    info = parse_attributes(attributes.get(_IFLA_LINKINFO, b""))
    return Link(
        index=index,
        name=zero_terminated(attributes.get(_IFLA_IFNAME, b"")),
        kind=zero_terminated(info.get(_INFO_KIND, b"")),
        mtu=int.from_bytes(attributes.get(_IFLA_MTU, b""), "little"),
        mac=attributes.get(_IFLA_ADDRESS, b"").hex(":"),
        up=bool(flags & _IFF_UP),
        master=int.from_bytes(attributes.get(_IFLA_MASTER, b""), "little"),
    )
