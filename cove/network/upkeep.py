"""What bridge networks need of the host: bridges, the table, forwarding, and peace with other firewalls.

Owns the order of those changes. Every method blocks for milliseconds, runs in the reaper's thread (one, so
that no two change the host at a time) and is given the networks as they should be; all of it is idempotent.
Only `publish`, `withdraw`, `change` and `replace` are for the event loop's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from cove.model.errors import HostError
from cove.model.objects import Network
from cove.network import bridges, foreign, links, records
from cove.network.clients import apply_return_path
from cove.network.firewall import Firewall
from cove.network.links import Subnet
from cove.network.model import FeatureMissing, Published
from cove.network.namespaces import Workshop, hairpin_needed
from cove.network.rules import plan_removal, plan_table

log = logging.getLogger(__name__)

_GUARD = "guard"
_ESSENTIAL = {"published", "postrouting", "forward", _GUARD}


class Upkeep:
    """See the module. Without `start`, or after it raised, there are no bridge networks."""

    def __init__(self, table: str, workshop: Workshop) -> None:
        self._table = table
        self._workshop = workshop
        self._firewall: Firewall | None = None
        self._guard = False  # forwarding was off before Cove switched it on
        self._generation = 0
        self.hairpin = False

    @property
    def firewall(self) -> Firewall:
        assert self._firewall is not None, "bridge networks were used without a firewall"
        return self._firewall

    def close(self) -> None:
        if self._firewall is not None:
            self._firewall.close()

    def survey(self, own: Collection[str]) -> tuple[list[Subnet], int]:
        """The subnets that the host routes, but not over the links named `own`; and the MTU of its way out."""
        netlink = self._workshop.netlink()
        routes = links.routes(netlink)
        indexes = {link.index for name in own if (link := links.find_link(netlink, name)) is not None}
        taken = [route.destination for route in routes if route.link not in indexes]
        return taken, bridges.default_mtu(netlink, routes)

    def start(self, networks: Sequence[Network]) -> dict[str, int]:
        """Make or repair everything; returns each network's bridge (a link's index).

        Raises FeatureMissing, HostError.
        """
        firewall = Firewall(self._table)
        self._firewall = firewall
        # The table itself says whether forwarding was switched on by Cove: a daemon's restart must not forget.
        guarded = any(chain.table == self._table and chain.name == _GUARD for chain in firewall.chains())
        self._guard = guarded and "drop" in firewall.run(f"list chain inet {self._table} {_GUARD}\n")
        indexes = {network.id: self._apply(network) for network in networks}
        self._settle(networks)
        return indexes

    def keep_clients(self) -> None:
        """Let relayed connections come from their clients' addresses. After `start`. Raises HostError."""
        apply_return_path(self._workshop.netlink(), self.firewall, self._table)

    def add(self, network: Network, networks: Sequence[Network]) -> int:
        """Make one network, which is among `networks`; returns its bridge."""
        index = self._apply(network)
        self._settle(networks)
        return index

    def remove(self, bridge: str, networks: Sequence[Network]) -> None:
        """Take one network's bridge off the host; the network isn't among `networks` any more."""
        self._write_table(networks)
        foreign.take_back(self.firewall, [bridge])
        bridges.remove_bridge(self._workshop.netlink(), bridge)

    def check(self, networks: Sequence[Network]) -> bool:
        """Repair what others changed; True when the table was made anew, and has no elements."""
        rewritten = False
        if self.firewall.generation() != self._generation:
            present = {chain.name for chain in self.firewall.chains() if chain.table == self._table}
            rewritten = not present >= _ESSENTIAL
            if rewritten:
                log.warning("table inet %s was gone or damaged, and is made again", self._table)
                self._write_table(networks)
        self._let_through(networks)
        self._generation = self.firewall.generation()
        return rewritten

    def stale_links(self, bridges_: Sequence[int], known: Collection[str]) -> list[str]:
        """The interfaces on these bridges that belong to nobody."""
        netlink = self._workshop.netlink()
        return [
            port.name
            for bridge in bridges_
            for port in links.ports_of(netlink, bridge)
            if port.kind == "veth" and port.name not in known
        ]

    def uninstall(self, networks: Sequence[Network]) -> None:
        """Remove bridges, table and rules, and what was switched on for them if nobody else needs it."""
        names = [network.bridge for network in networks]
        if self._firewall is not None:
            foreign.take_back(self._firewall, names)
            others = [c for c in self._firewall.chains() if c.forward and c.table != self._table]
            if self._guard and not others:
                bridges.disable_forwarding()
            self._firewall.run(plan_removal(self._table))
        for name in names:
            bridges.remove_bridge(self._workshop.netlink(), name)

    # --- on the event loop's thread -------------------------------------------------------

    def publish(self, published: Sequence[Published]) -> None:
        """Add elements, all or none. Raises HostError."""
        self.firewall.add(_in_kernel(published))

    def withdraw(self, published: Sequence[Published]) -> None:
        """Delete elements. Raises HostError."""
        self.firewall.delete(_in_kernel(published))

    def change(self, gone: Sequence[Published], come: Sequence[Published]) -> None:
        """Delete elements and add others, in one transaction: all or nothing. Raises HostError."""
        self.firewall.change(_in_kernel(gone), _in_kernel(come))

    def replace(self, published: Sequence[Published]) -> None:
        """Make these the only elements. Raises HostError."""
        self.firewall.replace(_in_kernel(published))

    # --- parts ----------------------------------------------------------------------------

    def _apply(self, network: Network) -> int:
        return bridges.apply_bridge(self._workshop.netlink(), records.bridge_plan(network))

    def _settle(self, networks: Sequence[Network]) -> None:
        if bridges.enable_forwarding(ipv6=any(network.ipv6 for network in networks)):
            self._guard = True
        self.hairpin = hairpin_needed()
        self._write_table(networks)
        self._let_through(networks)

    def _write_table(self, networks: Sequence[Network]) -> None:
        rules = [records.bridge_rules(network) for network in networks]
        text = plan_table(self._table, rules, guard=self._guard)
        try:
            self.firewall.run(text)
        except FeatureMissing:
            raise
        except HostError:
            # A table of another release, whose maps have other types: make it anew, in one transaction.
            self.firewall.run(plan_removal(self._table) + text)

    def _let_through(self, networks: Sequence[Network]) -> None:
        names = [network.bridge for network in networks]
        try:
            for change in foreign.let_through(self.firewall, names, self.firewall.chains()):
                log.info("%s", change)
        except HostError as error:
            log.warning("another firewall's rules may drop what containers send: %s", error)


def _in_kernel(published: Sequence[Published]) -> list[Published]:
    """What the maps hold: ::1 is served by a proxy instead."""
    return [entry for entry in published if entry.host_ip != "::1"]
