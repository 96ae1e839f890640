"""From a shipment to its sender: which encoding over which connection."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence

from cove.logs.destinations import Address, Fluentd, Gelf, Journald, Shipment, Syslog
from cove.logs.drivers import LOCAL_SYSLOG, journal_socket
from cove.logs.shipping.cut import Message
from cove.logs.shipping.encode import FluentdEncoder, GelfEncoder, JournaldEncoder, SyslogEncoder
from cove.logs.shipping.senders import STALL_S, DatagramSender, Sender, StreamSender

_STREAMS = ("tcp", "unix")


def make_sender(shipment: Shipment) -> Sender:
    source = shipment.source
    match shipment.destination:
        case Syslog() as syslog:
            local = tuple(Address(kind="unixgram", path=path) for path in LOCAL_SYSLOG)
            addresses = local if syslog.address is None else (syslog.address,)
            encoder = SyslogEncoder(syslog, source, os.getpid(), octets=addresses[0].tls is not None)
            return _make_sender(addresses, encoder.encode, lambda message: _one(encoder.encode(message)))
        case Gelf() as gelf:
            texts = GelfEncoder(gelf, source)

            def text(message: Message) -> bytes:
                data = texts.encode(message)
                return data + b"\0" if data else data

            return _make_sender((gelf.address,), text, texts.datagrams)
        case Fluentd() as fluentd:
            return StreamSender(
                fluentd.address,
                FluentdEncoder(fluentd, source).encode,
                stall_s=fluentd.write_timeout_s or STALL_S,
                ack_s=fluentd.read_timeout_s or STALL_S,
                reconnect_s=fluentd.reconnect_s,
            )
        case Journald():
            journal = JournaldEncoder(source, secrets.token_hex(32))
            address = Address(kind="unixgram", path=journal_socket(os.environ))
            return DatagramSender((address,), lambda message: [journal.encode(message)], attach=True)


def _one(data: bytes) -> list[bytes]:
    return [data] if data else []


def _make_sender(
    addresses: Sequence[Address],
    encode: Callable[[Message], bytes],
    datagrams: Callable[[Message], list[bytes] | None],
) -> Sender:
    """Over a stream messages follow one another, otherwise each is its own datagram."""
    if addresses[0].kind in _STREAMS:
        return StreamSender(addresses[0], lambda batch: (b"".join(map(encode, batch)), ""))
    return DatagramSender(addresses, datagrams)
