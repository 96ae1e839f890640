"""What a daemon's networks hold now: which networks there are, and which container is where. In memory.

No I/O: what is written to the store or done to the host is the callers' business. Changed on the event loop's
thread only, so that a check and the change that rests on it have no `await` between them.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from cove.model.container import Endpoint, EndpointSpec, PortBinding
from cove.model.errors import Conflict, Invalid, Unavailable
from cove.model.objects import Network
from cove.network import records, segments
from cove.network.addresses import Subnets
from cove.network.drivers import NetworkDriver, find_driver
from cove.network.endpoints import address_pools, free_endpoint, offered_gateways, outward, route_endpoints
from cove.network.links import Address
from cove.network.options import ROUTED, BridgeOptions, parse_bridge_options
from cove.network.ports import Behind, Held
from cove.network.segments import Segment


@dataclass(slots=True)
class Bridge:
    """A bridge network with what is on it now."""

    network: Network
    pools: Subnets
    options: BridgeOptions
    driver: NetworkDriver | None = None  # None: a bridge of the host's
    segments: list[Segment] = field(default_factory=list)  # none: its bridge couldn't be made
    growing: asyncio.Lock = field(default_factory=asyncio.Lock)
    members: dict[str, Endpoint] = field(default_factory=dict)

    @property
    def routes_by_link(self) -> bool:
        return self.driver is not None and self.driver.routes_by_link(self.network)

    def place(self, host_interface: str) -> bool:
        """Give an interface a port on the first bridge that has one left; False: none has."""
        for number, segment in enumerate(self.segments):
            if len(segment.ports) < (segments.FURTHER_PORTS if number else segments.FIRST_PORTS):
                segment.ports.add(host_interface)
                return True
        return False

    def place_of(self, host_interface: str) -> int:
        """The index of the bridge that an interface has its port on; 0: it has none."""
        return next((segment.index for segment in self.segments if host_interface in segment.ports), 0)

    @classmethod
    def of(cls, network: Network) -> Bridge:
        """Raises NotFound when there is no such driver any more."""
        driver = None if network.driver == "bridge" else find_driver(network.driver)
        return cls(network, address_pools(network), parse_bridge_options(network.options), driver)


@dataclass(slots=True)
class Attached:
    """What a container holds."""

    endpoints: list[Endpoint] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    wanted: list[PortBinding] = field(default_factory=list)  # what `held` was taken for, host ports chosen


class Holdings:
    """See the module. `networks` and `bridges` by network id, `attached` by container id.

    A network in `making` has its name, its subnets and its rules, but nobody finds it: what is removed or connected
    to is on record.
    """

    def __init__(self) -> None:
        self.networks: dict[str, Network] = {}
        self.making: dict[str, Network] = {}
        self.bridges: dict[str, Bridge] = {}
        self.attached: dict[str, Attached] = {}
        self.pending: dict[str, Endpoint] = {}  # what is being made, by its id

    def find_network(self, name_or_id: str) -> Network:
        """By name, id or unique prefix of an id; "default" is the default bridge. NotFound, Invalid."""
        return records.find_network(self.networks.values(), name_or_id)

    def list_networks(self) -> list[Network]:
        """All networks: the three built-in ones, then the others by name."""
        return records.in_order(self.networks.values())

    def known_networks(self) -> list[Network]:
        """All networks, those that are being made among them."""
        return records.in_order([*self.networks.values(), *self.making.values()])

    def enter(self, bridge: Bridge) -> None:
        """From here on a network that was made is found."""
        network = bridge.network
        self.making.pop(network.id, None)
        self.networks[network.id] = network
        self.bridges[network.id] = bridge

    def bridge_networks(self) -> list[Network]:
        """The networks that the host should have a bridge for."""
        return [network for network in self.known_networks() if network.driver == "bridge"]

    def resolve(self, requests: Sequence[EndpointSpec]) -> list[tuple[Bridge, EndpointSpec]]:
        """The networks that a container asks for. Raises NotFound, Invalid."""
        wanted: list[tuple[Bridge, EndpointSpec]] = []
        for request in requests:
            network = self.find_network(request.network)
            bridge = self.bridges.get(network.id)
            if bridge is None and network.driver not in ("host", "null"):
                raise Unavailable(
                    f"network {network.name} needs the driver {network.driver}, which isn't installed"
                )
            if bridge is None:
                raise Invalid(f"network {network.name} has no endpoints: it can't be combined with others")
            if any(bridge is other for other, _ in wanted):
                raise Invalid(f"network {network.name} is asked for twice: name each network once")
            wanted.append((bridge, request))
        if not wanted:
            raise Invalid("no network was asked for: name one, e.g. bridge")
        return wanted

    def set_members(self, container_id: str, endpoints: Iterable[Endpoint], undo: AsyncExitStack) -> None:
        """Put a container on its networks; `undo` takes it off again."""
        for endpoint in endpoints:
            self.pending.pop(endpoint.endpoint_id, None)
            self.bridges[endpoint.network_id].members[container_id] = endpoint
            undo.callback(self.forget_member, container_id, endpoint)

    def forget_member(self, container_id: str, endpoint: Endpoint) -> None:
        bridge = self.bridges.get(endpoint.network_id)
        if bridge is not None:
            bridge.members.pop(container_id, None)

    def occupy(self, network_id: str, address: Address) -> None:
        """Mark an address that a container has, or had when the daemon ended, as in use."""
        bridge = self.bridges.get(network_id)
        if bridge is None or bridge.pools.pool_of(address) is None:
            return  # of a subnet that the network had before
        try:
            bridge.pools.take_exactly(address)
        except (Conflict, Invalid):
            pass  # marked already, or reserved since

    def free(self, endpoint: Endpoint) -> None:
        """Let an endpoint's addresses be given out again."""
        bridge = self.bridges.get(endpoint.network_id)
        if bridge is not None:
            free_endpoint(endpoint, bridge.pools)
            for segment in bridge.segments:
                segment.ports.discard(endpoint.host_interface)

    def free_address(self, network_id: str, address: Address) -> None:
        """Let one address be given out again."""
        bridge = self.bridges.get(network_id)
        if bridge is not None:
            bridge.pools.free(address)

    def route(self, endpoints: Sequence[Endpoint]) -> list[Endpoint]:
        """A container's endpoints with the gateways that its default routes have."""
        gateways = {
            endpoint.endpoint_id: offered_gateways(
                endpoint, bridge.network, bridge.pools, by_link=bridge.routes_by_link
            )
            for endpoint in endpoints
            if (bridge := self.bridges.get(endpoint.network_id)) is not None
        }
        return route_endpoints(endpoints, gateways)

    def behind(self, endpoints: Sequence[Endpoint]) -> Behind:
        """What a container's published ports lead to."""
        found: dict[int, Address | None] = {}
        direct = []
        binding = ""
        for version in (4, 6):
            endpoint = outward(endpoints, version)
            if endpoint is None:
                continue
            bridge = self.bridges.get(endpoint.network_id)
            if bridge is not None and bridge.driver is not None:
                continue  # its packets don't come by the host
            found[version] = ipaddress.ip_address(endpoint.ipv4 if version == 4 else endpoint.ipv6)
            if bridge is None:
                continue
            if bridge.options.mode(version) == ROUTED:
                direct.append(version)
            if version == 4:
                binding = bridge.options.binding_ipv4
        return Behind(ipv4=found.get(4), ipv6=found.get(6), direct=tuple(direct), binding=binding)
