"""Published ports of containers: the sockets that hold them, the rules, and what serves ::1.

Owns the order in which a port comes and goes: its socket is held first and released last, so that nobody else
listens while a rule still leads away. On the event loop's thread; one netlink message for all ports of a container.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack

import msgspec

from cove.model.container import Endpoint, PortBinding
from cove.model.errors import Conflict, HostError
from cove.network.endpoints import living_ports
from cove.network.holdings import Attached, Holdings
from cove.network.loopback import LoopbackProxies
from cove.network.model import NetworkSettings, Published
from cove.network.ports import Behind, Held, Ports, bind_port, plan_change
from cove.network.reaper import Reaper
from cove.network.upkeep import Upkeep

log = logging.getLogger(__name__)


class Publishing:
    """See the module."""

    def __init__(self, settings: NetworkSettings, holdings: Holdings, upkeep: Upkeep, reaper: Reaper) -> None:
        self._holdings = holdings
        self._ports = Ports(settings.bind_outside or bind_port)
        self._proxies = LoopbackProxies(everything=settings.bind_outside is not None)
        self._upkeep = upkeep
        self._reaper = reaper

    def held(self) -> list[Held]:
        """Every port that is published now."""
        return self._ports.held()

    def close(self) -> None:
        """Let go of sockets and listeners; the rules stay."""
        self._proxies.close()
        self._ports.release(self._ports.held())

    def publish(
        self, attached: Attached, ports: Sequence[PortBinding], owner: str, undo: AsyncExitStack
    ) -> None:
        """Publish all of a starting container's ports, or raise PortInUse, Invalid or HostError and none."""
        attached.wanted = list(ports)
        behind = self._holdings.behind(attached.endpoints)
        # As Docker: only a network that isn't internal publishes ports.
        if not ports or not behind.reachable:
            return
        parts = self._ports.reserve(ports, behind, endpoint=owner)
        held = [item for items in parts for item in items]
        attached.held = held
        attached.wanted = [_pinned(binding, items) for binding, items in zip(ports, parts, strict=True)]
        undo.callback(self.withdraw, held)
        self._upkeep.publish(_published(held))
        for item in held:
            self._proxies.add(item)
        self._reaper.forget_udp(_udp_ports(held))

    def withdraw(self, held: Sequence[Held]) -> None:
        """Ports go at once."""
        if held:
            try:
                self._upkeep.withdraw(_published(held))
            except HostError as error:
                log.error("ports of a stopped container stay published: %s", error)
        self._let_go(held)
        self._reaper.forget_udp(_udp_ports(held))

    def republish(self, attached: Attached, ports: Sequence[PortBinding], owner: str) -> None:
        """Make `ports` the published ones of a running container: all of them, or all stays as it was.

        What stays is untouched, with its connections; connections through a port that goes last until they end.
        Raises PortInUse, Invalid, HostError, and Conflict when the container is on no network that publishes.
        """
        behind = self._holdings.behind(attached.endpoints)
        if not behind.reachable:
            raise Conflict(
                f"container {owner} is on no network that publishes ports: it has to run, and to be on a network "
                "of its own that isn't internal"
            )
        self._change(attached, ports, behind, owner)

    def follow(self, attached: Attached, owner: str) -> None:
        """Lead a container's published ports to where its default routes are now; no port, where there is none.

        Raises PortInUse, HostError; the ports then lead to where they did.
        """
        behind = self._holdings.behind(attached.endpoints)
        by_version = {4: behind.ipv4, 6: behind.ipv6}
        ports = [b for b in attached.wanted if not b.host_ip or by_version[6 if ":" in b.host_ip else 4]]
        wanted = attached.wanted
        self._change(attached, ports if behind.reachable else [], behind, owner)
        attached.wanted = wanted

    def withdraw_from(self, attached: Attached, endpoint: Endpoint) -> None:
        """Take the ports back that lead to one endpoint of a running container."""
        gone = [item for item in attached.held if item.published.address in (endpoint.ipv4, endpoint.ipv6)]
        attached.held = [item for item in attached.held if item not in gone]
        self.withdraw(gone)

    def _change(self, attached: Attached, ports: Sequence[PortBinding], behind: Behind, owner: str) -> None:
        change = plan_change(attached.held, ports, behind)
        parts: list[list[Held]] = []
        added: list[Held] = []
        self._let_go(change.dropped)  # a new one may take an old one's port
        try:
            for binding, standing in change.parts:
                if standing is None:
                    [standing] = self._ports.reserve([binding], behind, endpoint=owner)
                    added += standing
                parts.append(standing)
            self._upkeep.change(_published(change.dropped), _published(added))
        except BaseException:
            self._ports.release(added)
            again = {item: self._adopt(item.published, owner) for item in change.dropped}
            attached.held = [again.get(item, item) for item in attached.held]
            raise
        for item in added:
            self._proxies.add(item)
        self._reaper.forget_udp(_udp_ports([*change.dropped, *added]))
        attached.held = [item for items in parts for item in items]
        attached.wanted = [_pinned(b, items) for (b, _), items in zip(change.parts, parts, strict=True)]

    def adopt(self, container_id: str, attached: Attached, ports: Iterable[PortBinding]) -> None:
        """Hold the ports of a container that outlived a daemon; the rules follow by `replace`."""
        attached.wanted = list(ports)
        living = living_ports(self._holdings.behind(attached.endpoints), attached.wanted)
        attached.held = [self._adopt(entry, container_id[:12]) for entry in living]

    def replace(self) -> None:
        """Make what is held the only elements of the rules. Raises HostError."""
        self._upkeep.replace(_published(self._ports.held()))

    def _adopt(self, entry: Published, owner: str) -> Held:
        item, problem = self._ports.adopt(entry)
        if problem:
            log.warning("port %d of %s works, but isn't held: %s", entry.host_port, owner, problem)
        self._proxies.add(item)
        return item

    def _let_go(self, held: Sequence[Held]) -> None:
        for item in held:
            self._proxies.remove(item)
        self._ports.release(held)


def _pinned(binding: PortBinding, held: Iterable[Held]) -> PortBinding:
    """A binding with the host port that was chosen for it."""
    for item in held:
        if not item.published.direct:
            return msgspec.structs.replace(binding, host_port=item.published.host_port, host_port_end=0)
    return binding


def _published(held: Iterable[Held]) -> list[Published]:
    return [item.published for item in held]


def _udp_ports(held: Iterable[Held]) -> set[int]:
    return {item.published.host_port for item in held if item.published.protocol == "udp"}
