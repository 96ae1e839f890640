"""Forget connections that the kernel tracked before a port was published, or after it was withdrawn.

A UDP client that keeps sending keeps its entry alive, and an entry's translation is decided once: such a
client would never see a newly published port, or would go on to a container that is gone. TCP needs none
of this: a new connection is a new entry. Blocking; the kernel filters (Linux 5.8).

Sources: linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c (CTA_FILTER).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable

from cove.network.netlink import (
    NETLINK_NETFILTER,
    Netlink,
    Request,
    attribute,
    nested,
    parse_attributes,
    u32,
)

_NFNL_SUBSYS_CTNETLINK = 1
_GET, _DELETE = (_NFNL_SUBSYS_CTNETLINK << 8) | 1, (_NFNL_SUBSYS_CTNETLINK << 8) | 2
_CTA_TUPLE_ORIG, _CTA_ID, _CTA_ZONE, _CTA_FILTER = 1, 12, 18, 25
_CTA_TUPLE_PROTO = 2
_CTA_PROTO_NUM, _CTA_PROTO_DST_PORT = 1, 3
_CTA_FILTER_ORIG_FLAGS = 1
_BY_PROTOCOL, _BY_DESTINATION_PORT = 1 << 3, 1 << 5  # CTA_FILTER_F_CTA_PROTO_NUM, …_PROTO_DST_PORT


def forget_udp(ports: Iterable[int]) -> None:
    """Delete the entries of UDP packets that were sent to these ports of the host, both families.

    Opens a socket of its own: the network namespace is the calling thread's. Raises NetlinkError, OSError.
    """
    wanted = frozenset(ports)
    if not wanted:
        return
    with Netlink(NETLINK_NETFILTER) as netlink:
        # The kernel walks its whole hash table for each list (some 10 ms), and filters one family only.
        for family in (socket.AF_INET, socket.AF_INET6):
            _forget(netlink, family, wanted)


def _forget(netlink: Netlink, family: int, ports: frozenset[int]) -> None:
    header = struct.pack(">BBH", family, 0, 0)
    protocol = attribute(_CTA_PROTO_NUM, bytes([socket.IPPROTO_UDP]))
    flags = _BY_PROTOCOL
    if len(ports) == 1:
        protocol += attribute(_CTA_PROTO_DST_PORT, struct.pack(">H", *ports))
        flags |= _BY_DESTINATION_PORT
    wanted = nested(_CTA_TUPLE_ORIG, nested(_CTA_TUPLE_PROTO, protocol))
    wanted += nested(_CTA_FILTER, u32(_CTA_FILTER_ORIG_FLAGS, flags))
    doomed = []
    for reply in netlink.dump(Request(_GET, 0, header + wanted, "look through tracked connections")):
        attributes = parse_attributes(reply.body, 4)
        original = attributes.get(_CTA_TUPLE_ORIG, b"")
        found = parse_attributes(parse_attributes(original).get(_CTA_TUPLE_PROTO, b""))
        port = int.from_bytes(found.get(_CTA_PROTO_DST_PORT, b""), "big")
        if found.get(_CTA_PROTO_NUM) != bytes([socket.IPPROTO_UDP]) or port not in ports:
            continue
        body = header + nested(_CTA_TUPLE_ORIG, original)
        for extra in (_CTA_ID, _CTA_ZONE):
            if extra in attributes:
                body += attribute(extra, attributes[extra])
        doomed.append(Request(_DELETE, 0, body, "forget a tracked connection", (errno.ENOENT,)))
    if doomed:
        netlink.batch(doomed)
