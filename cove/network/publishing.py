"""Published ports of containers: the sockets that hold them, the rules, and what serves ::1.

Owns the order in which a port comes and goes: its socket is held first and released last, so that nobody else
listens while a rule still leads away. On the event loop's thread; one netlink message for all ports of a container.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack

from cove.model.container import Endpoint, PortBinding
from cove.model.errors import HostError
from cove.network.endpoints import living_ports, outward
from cove.network.holdings import Attached
from cove.network.links import Address
from cove.network.loopback import LoopbackProxies
from cove.network.model import NetworkSettings, Published
from cove.network.ports import Held, Ports, bind_port
from cove.network.reaper import Reaper
from cove.network.upkeep import Upkeep

log = logging.getLogger(__name__)


class Publishing:
    """See the module."""

    def __init__(self, settings: NetworkSettings, upkeep: Upkeep, reaper: Reaper) -> None:
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
        # As Docker: only a network that isn't internal publishes ports.
        routed = outward(attached.endpoints)
        if not ports or routed is None:
            return
        held = self._ports.reserve(ports, _address(routed.ipv4), _address(routed.ipv6), endpoint=owner)
        attached.held = held
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
        for item in held:
            self._proxies.remove(item)
        self._ports.release(held)
        self._reaper.forget_udp(_udp_ports(held))

    def adopt(self, container_id: str, routed: Endpoint, ports: Iterable[PortBinding]) -> list[Held]:
        """Hold the ports of a container that outlived a daemon; the rules follow by `replace`."""
        adopted = []
        for entry in living_ports(routed, ports):
            item, problem = self._ports.adopt(entry)
            if problem:
                log.warning(
                    "port %d of %s works, but isn't held: %s", entry.host_port, container_id[:12], problem
                )
            adopted.append(item)
            self._proxies.add(item)
        return adopted

    def replace(self) -> None:
        """Make what is held the only elements of the rules. Raises HostError."""
        self._upkeep.replace(_published(self._ports.held()))


def _address(text: str) -> Address | None:
    return ipaddress.ip_address(text) if text else None


def _published(held: Iterable[Held]) -> list[Published]:
    return [item.published for item in held]


def _udp_ports(held: Iterable[Held]) -> set[int]:
    return {item.published.host_port for item in held if item.published.protocol == "udp"}
