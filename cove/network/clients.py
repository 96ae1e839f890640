"""Let a relayed connection come from its client's own address, as an untranslated one would.

For a rootless daemon alone, which relays what reaches its published ports, in a network namespace of its own. The
socket towards the container is bound to the client's address, which isn't this namespace's (IP_TRANSPARENT, ip(7)),
and carries a mark. What the container answers is addressed to somebody elsewhere, so it has to be told apart from
what is to be forwarded: conntrack remembers the mark, and a routing rule delivers such answers here.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct

from cove.network.firewall import Firewall
from cove.network.netlink import NLM_F_CREATE, NLM_F_EXCL, Netlink, Request, u32

_OUT, _BACK = (
    0xC07E,
    0xC07F,
)  # marks: of what goes to the container, and of its answers, which alone are routed here
_TABLE = 126  # of routes; only this namespace's
_LOOPBACK = 1  # the index of lo
_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75

_RTM_NEWROUTE, _RTM_NEWRULE = 24, 32
_RTA_OIF, _FRA_FWMARK = 4, 10
_FR_ACT_TO_TBL, _RTN_LOCAL, _RTPROT_BOOT, _RT_SCOPE_HOST = 1, 2, 3, 254
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg; struct fib_rule_hdr has the same layout


def plan_table(table: str) -> str:
    """nft(8) commands: marks go from sockets to connections, and back to what answers them."""
    name = f"inet {table}-clients"
    return (
        f"add table {name}\n"
        f"add chain {name} output {{ type filter hook output priority mangle; }}\n"
        f"add chain {name} prerouting {{ type filter hook prerouting priority mangle; }}\n"
        f"flush table {name}\n"
        f"add rule {name} output meta mark {_OUT} ct mark set {_BACK}\n"
        f"add rule {name} prerouting ct direction reply ct mark {_BACK} meta mark set {_BACK}\n"
    )


def apply_return_path(netlink: Netlink, firewall: Firewall, table: str) -> None:
    """Make rules and routes; there already is fine. Raises HostError."""
    firewall.run(plan_table(table))
    for family in (socket.AF_INET, socket.AF_INET6):
        rule = _ROUTE.pack(family, 0, 0, 0, _TABLE, 0, 0, _FR_ACT_TO_TBL, 0) + u32(_FRA_FWMARK, _BACK)
        route = _ROUTE.pack(family, 0, 0, 0, _TABLE, _RTPROT_BOOT, _RT_SCOPE_HOST, _RTN_LOCAL, 0)
        netlink.batch(
            [
                _new(
                    _RTM_NEWROUTE, route + u32(_RTA_OIF, _LOOPBACK), "deliver answers to relayed clients here"
                ),
                _new(_RTM_NEWRULE, rule, "find answers to relayed clients by their mark"),
            ]
        )


def _new(kind: int, body: bytes, what: str) -> Request:
    tolerated = (errno.EEXIST, errno.EAFNOSUPPORT, errno.EOPNOTSUPP)  # the last two: a kernel without IPv6
    return Request(kind, NLM_F_CREATE | NLM_F_EXCL, body, what, tolerated)


def socket_from(client: str, target: str) -> socket.socket | None:
    """A socket that connects to `target` as if from `client`, both addresses as text; None where that can't be: from
    loopback, which no network carries, or from another family."""
    source, destination = ipaddress.ip_address(client.partition("%")[0]), ipaddress.ip_address(target)
    if source.is_loopback or source.is_link_local or source.version != destination.version:
        return None
    family = socket.AF_INET if source.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if source.version == 4:
            sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _OUT)
        sock.bind((str(source), 0))
    except OSError:
        sock.close()
        return None
    return sock
