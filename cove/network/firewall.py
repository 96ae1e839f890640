"""The nftables table on the host: apply rule sets, change elements, look at other tables' chains.

Owns the two ways into nf_tables: libnftables for rule text (seldom: at start and when a network comes or
goes) and netlink for map elements (at every start of a container with ports; 0.03 ms). Both are atomic:
the kernel takes all of a transaction or nothing.

Two threads may use one object: the event loop's changes elements, another one does everything else, which
blocks for milliseconds.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cove.model.errors import HostError
from cove.network.model import FeatureMissing, Published
from cove.network.netlink import (
    NETLINK_NETFILTER,
    Netlink,
    NetlinkError,
    Request,
    parse_attributes,
    zero_terminated,
)
from cove.network.rules import NFNL_SUBSYS_NFTABLES, plan_add, plan_delete, plan_flush

_GETCHAIN = (NFNL_SUBSYS_NFTABLES << 8) | 4
_GETGEN = (NFNL_SUBSYS_NFTABLES << 8) | 16
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_HOOK_NUMBER = 1
_GEN_ID = 1
_INPUT, _FORWARD, _OUTPUT = 1, 2, 3  # NF_INET_LOCAL_IN, FORWARD, LOCAL_OUT
_DROP = 0  # NF_DROP
_ATTEMPTS = 10
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}  # NFPROTO_*


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of any table: which packets does it see, and does it drop those that no rule decides about?"""

    family: str
    table: str
    name: str
    forward: bool
    drops: bool
    input: bool = False
    output: bool = False

    @property
    def forward_drop(self) -> bool:
        return self.forward and self.drops


class Firewall:
    """nf_tables of the network namespace of the thread that makes this object."""

    def __init__(self, table: str) -> None:
        self.table = table
        self.screened = False  # published ports have elements in the tables of `screening`, too
        try:
            self._netlink = Netlink(NETLINK_NETFILTER)
            self._reader = Netlink(NETLINK_NETFILTER)
        except OSError as error:
            raise FeatureMissing(
                f"bridge networks need nf_tables, which this kernel lacks (CONFIG_NF_TABLES): "
                f"{error.strerror}"
            ) from None
        # libnftables keeps a socket of this namespace, so it is loaded here, not at the first use.
        self._library = _load_library()

    def close(self) -> None:
        self._netlink.close()
        self._reader.close()
        self._library = None

    def run(self, commands: str) -> str:
        """Run nft(8) commands as one transaction and return what they print. Raises HostError."""
        assert self._library is not None, "the firewall is closed"
        for _ in range(_ATTEMPTS):
            status, output, error = self._library.cmd(commands)
            if status == 0:
                return str(output)
            if os.strerror(errno.ERESTART) not in error and os.strerror(errno.EINTR) not in error:
                break  # those two say that someone else changed rules at the same time
        reason = _first_line(error)
        if os.strerror(errno.EOPNOTSUPP) in error:
            raise FeatureMissing(
                f"bridge networks need nf_tables with nat and fib, which this kernel lacks: {reason}"
            )
        raise HostError(f"nftables refused a change of its rules: {reason}")

    def add(self, published: Sequence[Published]) -> None:
        """Add elements, all or none. Raises NetlinkError."""
        self._transaction(plan_add(self.table, published, screened=self.screened))

    def delete(self, published: Sequence[Published]) -> None:
        """Delete elements; where some are gone already, the others go one by one. Raises NetlinkError."""
        try:
            self._transaction(plan_delete(self.table, published, screened=self.screened))
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            for entry in published:
                self._delete_one(entry)

    def change(self, gone: Sequence[Published], come: Sequence[Published]) -> None:
        """Delete elements and add others, all or nothing; those to delete may be missing. Raises NetlinkError."""
        added = plan_add(self.table, come, screened=self.screened)
        try:
            self._transaction([*plan_delete(self.table, gone, screened=self.screened), *added])
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            self.delete(gone)
            self._transaction(added)

    def replace(self, published: Iterable[Published]) -> None:
        """Make these the only elements, in one transaction: none that stays is ever missing."""
        screened = self.screened
        added = plan_add(self.table, published, screened=screened)
        self._transaction([*plan_flush(self.table, screened=screened), *added])

    def chains(self) -> list[Chain]:
        """Every chain of the families ip, ip6 and inet."""
        found = []
        request = Request(_GETCHAIN, 0, struct.pack(">BBH", 0, 0, 0), "list nftables chains")
        for reply in self._reader.dump(request):
            family = _FAMILIES.get(reply.body[0])
            if family is None:
                continue
            attributes = parse_attributes(reply.body, 4)
            hook = parse_attributes(attributes.get(_CHAIN_HOOK, b"")).get(_HOOK_NUMBER)
            policy = attributes.get(_CHAIN_POLICY)
            kind = zero_terminated(attributes.get(_CHAIN_TYPE, b""))
            number = int.from_bytes(hook, "big") if hook is not None and kind == "filter" else -1
            found.append(
                Chain(
                    family,
                    zero_terminated(attributes.get(_CHAIN_TABLE, b"")),
                    zero_terminated(attributes.get(_CHAIN_NAME, b"")),
                    forward=number == _FORWARD,
                    input=number == _INPUT,
                    output=number == _OUTPUT,
                    drops=policy is not None and int.from_bytes(policy, "big") == _DROP,
                )
            )
        return found

    def generation(self) -> int:
        """A number that changes whenever anyone changes any rule."""
        reply = self._reader.ask(
            Request(_GETGEN, 0, struct.pack(">BBH", 0, 0, 0), "ask nftables for its generation")
        )
        value = parse_attributes(reply.body, 4).get(_GEN_ID, b"") if reply else b""
        return int.from_bytes(value, "big")

    def _delete_one(self, entry: Published) -> None:
        for request in plan_delete(self.table, [entry], screened=self.screened):
            try:
                self._transaction([request])
            except NetlinkError as error:
                if error.errno != errno.ENOENT:
                    raise

    def _transaction(self, requests: Sequence[Request]) -> None:
        if requests:
            self._netlink.transaction(NFNL_SUBSYS_NFTABLES, requests, "change published ports")


def _load_library() -> Any:  # the binding has no types
    try:
        import nftables

        library = nftables.Nftables()
    except OSError as error:
        raise FeatureMissing(
            f"bridge networks need libnftables (Debian: apt install libnftables1): {error}"
        ) from None
    library.set_handle_output(True)
    library.set_stateless_output(True)
    return library


def _first_line(error: str) -> str:
    lines = [line for line in error.splitlines() if line.strip()]
    return lines[0].strip() if lines else "no reason given"
