"""Hear at once when somebody changes rules: a reload of the host's firewall may take Cove's table along.

The kernel tells every change of nf_tables, also Cove's own at every start of a container with ports; those are changes
of elements, which are passed over. xtables' older rules tell nobody: the periodic check is for those.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable

from cove.network.netlink import NETLINK_NETFILTER

_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_GROUP_NFTABLES = 7  # NFNLGRP_NFTABLES
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
# Elements come and go, and each transaction ends with its number: NFT_MSG_NEWSETELEM, DELSETELEM, NEWGEN.
_PASSED_OVER = {(_SUBSYSTEM << 8) | number for number in (12, 14, 15)}
_RECEIVE_BYTES = 1 << 16
_AT_ONCE = 32
_HEADER = struct.Struct("=IHHII")


class RuleWatch:
    """Calls `disturbed` on the event loop when rules, chains or tables changed. Raises OSError."""

    def __init__(self, disturbed: Callable[[], None]) -> None:
        self._disturbed = disturbed
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES)
        except OSError:
            self._socket.close()
            raise
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._receive)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _receive(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENOBUFS:  # more than fits: something changed, whatever it was
                    self._disturbed()
                return
            if matters(data):
                self._disturbed()


def matters(data: bytes) -> bool:
    """Whether one of these messages is more than elements that came or went."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        size, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        if size < _HEADER.size:
            return False
        if kind >> 8 == _SUBSYSTEM and kind not in _PASSED_OVER:
            return True
        offset += (size + 3) & ~3
    return False
