"""What bridge networks need of the host: bridges, the table, forwarding, and peace with other firewalls.

Owns the order of those changes. Every method blocks for milliseconds, runs in the reaper's thread (one, so
that no two change the host at a time) and is given the networks as they should be; all of it is idempotent.
Only `publish`, `withdraw`, `change` and `replace` are for the event loop's thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence

from cove.model.errors import HostError
from cove.model.objects import Network
from cove.network import bridges, foreign, links, records
from cove.network.clients import apply_return_path
from cove.network.firewall import Firewall
from cove.network.firewalld import ZONE, join_zone, leave_zone
from cove.network.links import Subnet
from cove.network.model import FeatureMissing, Published
from cove.network.namespaces import Workshop, hairpin_needed
from cove.network.options import parse_bridge_options
from cove.network.rules import plan_removal, plan_table
from cove.network.screen import apply_loop, find_refusing, remove_screen
from cove.network.screening import FAMILIES, loop_of, plan_no_screen, plan_screen, table_of
from cove.network.segments import (
    Segment,
    allow_neighbours,
    apply_segment,
    find_segments,
    remove_segments,
    segment_name,
    trunk_names,
)

log = logging.getLogger(__name__)

_CALM_S = 20.0
_GUARD = "guard"
_ESSENTIAL = {"published", "postrouting", "forward", _GUARD}


class Upkeep:
    """See the module. Without `start`, or after it raised, there are no bridge networks."""

    def __init__(self, table: str, workshop: Workshop, *, mode: str = "docker") -> None:
        """`mode`: what decides who reaches published ports, see `NetworkSettings.firewall`."""
        self._table = table
        self._mode = mode
        self._refusing = ""  # the host's chain that made "auto" choose "host"
        self._calm_since = 0.0  # since when there is no such chain any more (monotonic); 0: there is one
        self._workshop = workshop
        self._firewall: Firewall | None = None
        self._guard = False  # forwarding was off before Cove switched it on
        self._generation = 0
        self._segments: dict[
            str, list[str]
        ] = {}  # by a network's first bridge, the names of its further ones
        self.hairpin = False

    @property
    def screened(self) -> str:
        """Why the host's INPUT rules decide about published ports; "": they don't."""
        if self._firewall is None or not self._firewall.screened:
            return ""
        return self._refusing or "asked for"

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

    def start(self, networks: Sequence[Network]) -> dict[str, list[Segment]]:
        """Make or repair everything; returns each network's bridges with the ports that they have.

        Raises FeatureMissing, HostError.
        """
        firewall = Firewall(self._table)
        self._firewall = firewall
        # The table itself says whether forwarding was switched on by Cove: a daemon's restart must not forget.
        guarded = any(chain.table == self._table and chain.name == _GUARD for chain in firewall.chains())
        self._guard = guarded and "drop" in firewall.run(f"list chain inet {self._table} {_GUARD}\n")
        made = {network.id: self._start_bridges(network) for network in networks}
        self._choose_mode()
        if not firewall.screened:
            remove_screen(self._workshop.netlink(), firewall)
        self._settle(networks)
        return made

    def keep_clients(self) -> None:
        """Let relayed connections come from their clients' addresses. After `start`. Raises HostError."""
        apply_return_path(self._workshop.netlink(), self.firewall, self._table)

    def extend(self, network: Network, number: int, networks: Sequence[Network]) -> int:
        """Join one more bridge to a network's first; returns its index. Raises HostError."""
        netlink = self._workshop.netlink()
        allow_neighbours()
        index = self._apply_segment(network, number)
        names = self._segments.setdefault(network.bridge, [])
        if len(names) < number:
            names.append(segment_name(network.bridge, number))
        try:
            self._write_table(networks)
            self._let_through(networks)
        except BaseException:
            names.remove(segment_name(network.bridge, number))
            remove_segments(netlink, network.bridge, beyond=number - 1)
            raise
        log.info("network %s has a further bridge: %d", network.name, number + 1)
        return index

    def add(self, network: Network, networks: Sequence[Network]) -> int:
        """Make one network, which is among `networks`; returns its bridge."""
        index = self._apply(network)
        self._settle(networks)
        return index

    def remove(self, bridge: str, networks: Sequence[Network]) -> None:
        """Take one network's bridge off the host; the network isn't among `networks` any more."""
        gone = [bridge, *self._segments.pop(bridge, ())]
        self._write_table(networks)
        foreign.take_back(self.firewall, gone)
        self._leave_zone(gone)
        remove_segments(self._workshop.netlink(), bridge)
        bridges.remove_bridge(self._workshop.netlink(), bridge)

    def check(self, networks: Sequence[Network]) -> bool:
        """Repair what others changed; True when tables were made anew, and lack elements."""
        damaged = False
        if self.firewall.generation() != self._generation:
            chains = self.firewall.chains()
            present = {chain.name for chain in chains if chain.table == self._table}
            damaged = not present >= _ESSENTIAL
            if self.firewall.screened:
                screens = [chain for chain in chains if chain.table == table_of(self._table)]
                damaged = damaged or len(screens) < len(FAMILIES)
            if damaged:
                log.warning("table inet %s was gone or damaged, and is made again", self._table)
        rewritten = self._choose_mode() or damaged
        if rewritten:
            self._write_table(networks)
        self._let_through(networks)
        self._generation = self.firewall.generation()
        return rewritten

    def stale_links(self, bridges_: Sequence[int], known: Collection[str]) -> list[str]:
        """The interfaces on these bridges that belong to nobody."""
        netlink = self._workshop.netlink()
        trunks = {
            trunk_names(bridge, number)[end]
            for bridge, names in self._segments.items()
            for number in range(1, len(names) + 1)
            for end in (0, 1)
        }
        return [
            port.name
            for bridge in bridges_
            for port in links.ports_of(netlink, bridge)
            if port.kind == "veth" and port.name not in known and port.name not in trunks
        ]

    def uninstall(self, networks: Sequence[Network]) -> None:
        """Remove bridges, table and rules, and what was switched on for them if nobody else needs it."""
        names = [network.bridge for network in networks]
        segments = [name for found in self._segments.values() for name in found]
        if self._firewall is not None:
            foreign.take_back(self._firewall, [*names, *segments, loop_of(self._table)[0]])
            self._leave_zone([*names, *segments])
            others = [c for c in self._firewall.chains() if c.forward and c.table != self._table]
            if self._guard and not others:
                bridges.disable_forwarding()
            self._firewall.run(plan_removal(self._table))
            remove_screen(self._workshop.netlink(), self._firewall)
        for name in names:
            remove_segments(self._workshop.netlink(), name)
            bridges.remove_bridge(self._workshop.netlink(), name)
        self._segments.clear()

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

    def _start_bridges(self, network: Network) -> list[Segment]:
        """A network's bridges as they are, those at the end that nobody uses any more left out."""
        netlink = self._workshop.netlink()
        made = [Segment(self._apply(network), set())]
        further = find_segments(netlink, network.bridge)
        ports = [self._ports_of(network, number, link.index) for number, link in enumerate(further, 1)]
        while ports and not ports[-1]:
            ports.pop()
        remove_segments(netlink, network.bridge, beyond=len(ports))
        trunks = {trunk_names(network.bridge, n)[0] for n in range(1, len(further) + 1)}
        made[0].ports.update(link.name for link in links.ports_of(netlink, made[0].index))
        made[0].ports.difference_update(trunks)
        for number, names in enumerate(ports, 1):
            made.append(Segment(self._apply_segment(network, number), names))
        self._segments[network.bridge] = [
            segment_name(network.bridge, number) for number in range(1, len(made))
        ]
        return made

    def _ports_of(self, network: Network, number: int, index: int) -> set[str]:
        names = {link.name for link in links.ports_of(self._workshop.netlink(), index)}
        return names - {trunk_names(network.bridge, number)[1]}

    def _apply_segment(self, network: Network, number: int) -> int:
        isolated = not parse_bridge_options(network.options).icc
        netlink = self._workshop.netlink()
        return apply_segment(netlink, network.bridge, number, mtu=network.mtu, isolated=isolated)

    def _settle(self, networks: Sequence[Network]) -> None:
        if bridges.enable_forwarding(ipv6=any(network.ipv6 for network in networks)):
            self._guard = True
        self.hairpin = hairpin_needed()
        self._write_table(networks)
        self._let_through(networks)

    def _choose_mode(self) -> bool:
        """Decide whether the host's INPUT rules are asked; True when that changed. Raises HostError."""
        refusing = find_refusing(self.firewall) if self._mode == "auto" else ""
        wanted = self._mode == "host" or bool(refusing)
        # A firewall that is loaded anew is gone for a moment: it takes a while to believe that it has left.
        if self.firewall.screened and not wanted:
            now_s = time.monotonic()
            self._calm_since = self._calm_since or now_s
            if now_s - self._calm_since < _CALM_S:
                return False
        self._calm_since = 0.0
        if wanted == self.firewall.screened:
            return False
        self._refusing = refusing
        if wanted and not self._can_screen():
            return False
        self.firewall.screened = wanted
        log.info("published ports: %s", self._describe_mode())
        return True

    def _can_screen(self) -> bool:
        try:
            apply_loop(self._workshop.netlink(), self._table)
            self.firewall.run(plan_screen(self._table, []))
        except HostError as error:
            if self._mode == "host":
                raise HostError(
                    f"firewall=host needs nf_tables' dup and veth interfaces: {error}; use firewall=docker"
                ) from None
            log.warning(
                "published ports bypass this host's INPUT rules (%s), for this kernel has no way to ask them: %s",
                self._refusing,
                error,
            )
            self._mode = "docker"
            return False
        return True

    def _describe_mode(self) -> str:
        if not self.firewall.screened:
            return "open to whoever reaches this host"
        return f"this host's INPUT rules decide ({self.screened})"

    def _write_table(self, networks: Sequence[Network]) -> None:
        rules = [records.bridge_rules(network) for network in networks]
        screened = self.firewall.screened
        if screened:
            apply_loop(self._workshop.netlink(), self._table)
        # Without a screen its tables stay until the next start: a port may be on its way into their sets.
        screen = plan_screen(self._table, [network.bridge for network in networks]) if screened else ""
        text = screen + plan_table(
            self._table, rules, guard=self._guard, screened=screened, segments=self._segment_names(networks)
        )
        try:
            self.firewall.run(text)
        except FeatureMissing:
            raise
        except HostError:
            # A table of another release, whose maps have other types: make it anew, in one transaction.
            self.firewall.run(plan_removal(self._table) + plan_no_screen(self._table) + text)

    def _leave_zone(self, names: Sequence[str]) -> None:
        try:
            leave_zone(self.firewall, names)
        except HostError as error:
            log.warning(
                "firewalld keeps %s in zone %s until it is reloaded: %s", ", ".join(names), ZONE, error
            )

    def _segment_names(self, networks: Sequence[Network]) -> list[str]:
        return [name for network in networks for name in self._segments.get(network.bridge, ())]

    def _let_through(self, networks: Sequence[Network]) -> None:
        names = [*(network.bridge for network in networks), *self._segment_names(networks)]
        try:
            chains = self.firewall.chains()
            changes = foreign.let_through(self.firewall, names, chains)
            if self.firewall.screened:
                changes += foreign.let_out(self.firewall, loop_of(self._table)[0], chains)
            for change in changes:
                log.info("%s", change)
            joined = join_zone(self.firewall, names, chains)
            if joined:
                log.info("firewalld forwards for %s now: zone %s", ", ".join(joined), ZONE)
        except HostError as error:
            log.warning("another firewall's rules may drop what containers send: %s", error)


def _in_kernel(published: Sequence[Published]) -> list[Published]:
    """What the maps hold: ::1 is served by a proxy instead."""
    return [entry for entry in published if entry.host_ip != "::1"]
