"""A container's two DNS sockets, and the rules that lead port 53 of 127.0.0.11 to them.

The sockets are bound to a free port beside port 53, which stays the container's own. Two rules in its network
namespace write the other port number into what goes to 127.0.0.11:53, and 53 into what comes back: plain rewriting, by
which no packet of the container is ever tracked, as NAT would have it. A query is rewritten after all other rules (300)
and an answer before them (raw), so that those of the container's own see port 53 both ways.

Runs in a thread that is in the container's namespace. The rules are one nfnetlink transaction (nf_tables.h).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass

from cove.model.errors import HostError
from cove.network.netlink import (
    NETLINK_NETFILTER,
    NLM_F_CREATE,
    Netlink,
    Request,
    attribute,
    nested,
    text,
)
from cove.network.rules import NFNL_SUBSYS_NFTABLES

ADDRESS = "127.0.0.11"
PORT = 53
TABLE = "cove_dns"
_BACKLOG = 64
_ATTEMPTS = 20

_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = 0, 2, 3, 6
_NFPROTO_IPV4 = 2
_GENMSG = struct.pack(">BBH", _NFPROTO_IPV4, 0, 0)
_NLM_F_APPEND = 0x800
_HOOK_OUTPUT, _ACCEPT = 3, 1
_LAST, _RAW = 300, -300
_REGISTER = 1
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_SOURCE_ADDRESS, _TARGET_ADDRESS = 12, 16  # in an IPv4 header
_SOURCE_PORT, _TARGET_PORT = 0, 2
_META_L4PROTO, _EQUAL = 16, 0
_INTERNET_CHECKSUM = 1
_CHECKSUM_AT = {socket.IPPROTO_UDP: 6, socket.IPPROTO_TCP: 16}


@dataclass(frozen=True, slots=True)
class Doors:
    """Descriptors of a container's UDP socket and TCP listener; whoever holds them closes them."""

    udp: int
    tcp: int

    def close(self) -> None:
        os.close(self.udp)
        os.close(self.tcp)


def open_doors(*, again: bool = False) -> Doors:
    """Open the calling thread's namespace's doors; `again`: it may have rules of earlier ones. Raises HostError."""
    try:
        tcp, udp, port = _bind()
    except OSError as error:
        raise HostError(f"the container's DNS sockets can't be opened: {error.strerror}") from None
    with tcp, udp:
        try:
            netlink = Netlink(NETLINK_NETFILTER)
        except OSError as error:
            raise HostError(f"no way to nftables in a container's network: {error.strerror}") from None
        with netlink:
            requests = plan_rules(port, again=again)
            netlink.transaction(
                NFNL_SUBSYS_NFTABLES, requests, "lead a container's DNS queries to the server"
            )
        return Doors(udp.detach(), tcp.detach())


def _bind() -> tuple[socket.socket, socket.socket, int]:
    """A listener and a UDP socket on the same free port."""
    for _ in range(_ATTEMPTS):
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            tcp.bind((ADDRESS, 0))
            port = int(tcp.getsockname()[1])
            udp.bind((ADDRESS, port))
            tcp.listen(_BACKLOG)
        except OSError as error:
            tcp.close()
            udp.close()
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        for sock in (tcp, udp):
            sock.setblocking(False)
        return tcp, udp, port
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def plan_rules(port: int, *, again: bool = False) -> list[Request]:
    """The requests of the transaction. Pure."""
    table = Request(_message(_NEWTABLE), NLM_F_CREATE, _GENMSG + text(1, TABLE), "make an nftables table")
    requests = [table]
    if again:
        gone = Request(_message(_DELTABLE), 0, _GENMSG + text(1, TABLE), "remove an nftables table")
        requests += [gone, table]
    for name, priority, address_at, port_at, old, new in (
        ("query", _LAST, _TARGET_ADDRESS, _TARGET_PORT, PORT, port),
        ("reply", _RAW, _SOURCE_ADDRESS, _SOURCE_PORT, port, PORT),
    ):
        requests.append(_chain(name, priority))
        for protocol in (socket.IPPROTO_UDP, socket.IPPROTO_TCP):
            expressions = (
                *_load_and_compare(_NETWORK_HEADER, address_at, socket.inet_aton(ADDRESS)),
                _expression("meta", _u32(1, _REGISTER), _u32(2, _META_L4PROTO)),
                _compare(bytes((protocol,))),
                *_load_and_compare(_TRANSPORT_HEADER, port_at, struct.pack(">H", old)),
                _expression("immediate", _u32(1, _REGISTER), _value(2, struct.pack(">H", new))),
                _write(port_at, 2, _CHECKSUM_AT[protocol]),
            )
            body = text(1, TABLE) + text(2, name) + nested(4, *expressions)
            requests.append(
                Request(
                    _message(_NEWRULE), NLM_F_CREATE | _NLM_F_APPEND, _GENMSG + body, "make an nftables rule"
                )
            )
    return requests


def _chain(name: str, priority: int) -> Request:
    hook = nested(4, _u32(1, _HOOK_OUTPUT), attribute(2, struct.pack(">i", priority)))
    body = text(1, TABLE) + text(3, name) + hook + _u32(5, _ACCEPT) + text(7, "filter")
    return Request(_message(_NEWCHAIN), NLM_F_CREATE, _GENMSG + body, "make an nftables chain")


def _load_and_compare(base: int, offset: int, value: bytes) -> tuple[bytes, bytes]:
    load = _expression("payload", _u32(1, _REGISTER), _u32(2, base), _u32(3, offset), _u32(4, len(value)))
    return load, _compare(value)


def _compare(value: bytes) -> bytes:
    return _expression("cmp", _u32(1, _REGISTER), _u32(2, _EQUAL), _value(3, value))


def _write(offset: int, size: int, checksum_at: int) -> bytes:
    """Write the register into the transport header; the checksum follows."""
    return _expression(
        "payload",
        _u32(5, _REGISTER),
        _u32(2, _TRANSPORT_HEADER),
        _u32(3, offset),
        _u32(4, size),
        _u32(6, _INTERNET_CHECKSUM),
        _u32(7, checksum_at),
    )


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *attributes))


def _value(kind: int, value: bytes) -> bytes:
    return nested(kind, attribute(1, value))


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


def _message(kind: int) -> int:
    return (NFNL_SUBSYS_NFTABLES << 8) | kind
