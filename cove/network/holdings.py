"""What a daemon's networks hold now: which networks there are, and which container is where. In memory.

No I/O: what is written to the store or done to the host is the callers' business. Changed on the event loop's
thread only, so that a check and the change that rests on it have no `await` between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from cove.model.container import Endpoint, EndpointSpec
from cove.model.errors import Conflict, Invalid
from cove.model.objects import Network
from cove.network import records
from cove.network.addresses import AddressPool
from cove.network.endpoints import free_endpoint
from cove.network.links import Address
from cove.network.model import BRIDGE
from cove.network.ports import Held


@dataclass(slots=True)
class Bridge:
    """A bridge network with what is on it now."""

    network: Network
    pools: dict[int, AddressPool]
    index: int = 0  # of the link; 0: it couldn't be made
    members: dict[str, Endpoint] = field(default_factory=dict)

    @property
    def isolated(self) -> bool:
        return not records.parse_switch(self.network.options, records.OPTION_ICC, default=True)


@dataclass(slots=True)
class Attached:
    """What a container holds."""

    endpoints: list[Endpoint]
    held: list[Held]


class Holdings:
    """See the module. `networks` and `bridges` by network id, `attached` by container id."""

    def __init__(self) -> None:
        self.networks: dict[str, Network] = {}
        self.bridges: dict[str, Bridge] = {}
        self.attached: dict[str, Attached] = {}
        self.pending: dict[str, str] = {}  # host ends of interfaces that are being made → network

    def find_network(self, name_or_id: str) -> Network:
        """By name, id or unique prefix of an id; "default" is the default bridge. NotFound, Invalid."""
        return records.find_network(self.networks.values(), name_or_id)

    def list_networks(self) -> list[Network]:
        """All networks: the three built-in ones, then the others by name."""
        return records.in_order(self.networks.values())

    def bridge_networks(self) -> list[Network]:
        return [network for network in self.list_networks() if network.driver == "bridge"]

    def resolve(
        self, requests: Sequence[EndpointSpec], *, ready: int, most: int
    ) -> list[tuple[Bridge, EndpointSpec]]:
        """The networks that a container asks for. `ready` endpoints of the default bridge wait in the pool.

        Raises NotFound, Invalid, Conflict (a network has `most` endpoints already).
        """
        wanted: list[tuple[Bridge, EndpointSpec]] = []
        for request in requests:
            network = self.find_network(request.network)
            bridge = self.bridges.get(network.id)
            if bridge is None:
                raise Invalid(f"network {network.name} has no endpoints: it can't be combined with others")
            if any(bridge is other for other, _ in wanted):
                raise Invalid(f"network {network.name} is asked for twice: name each network once")
            waiting = sum(1 for other in self.pending.values() if other == network.id)
            if len(bridge.members) + waiting + (ready if network.name == BRIDGE else 0) >= most:
                raise Conflict(
                    f"network {network.name} has {most} endpoints, the most that a Linux bridge can "
                    "have: use another network, made by network create"
                )
            wanted.append((bridge, request))
        if not wanted:
            raise Invalid("no network was asked for: name one, e.g. bridge")
        return wanted

    def set_members(self, container_id: str, endpoints: Iterable[Endpoint], undo: AsyncExitStack) -> None:
        """Put a container on its networks; `undo` takes it off again."""
        for endpoint in endpoints:
            self.pending.pop(endpoint.host_interface, None)
            self.bridges[endpoint.network_id].members[container_id] = endpoint
            undo.callback(self.forget_member, container_id, endpoint)

    def forget_member(self, container_id: str, endpoint: Endpoint) -> None:
        bridge = self.bridges.get(endpoint.network_id)
        if bridge is not None:
            bridge.members.pop(container_id, None)

    def occupy(self, network_id: str, address: Address) -> None:
        """Mark an address that a container has, or had when the daemon ended, as in use."""
        bridge = self.bridges.get(network_id)
        if bridge is None or address.version not in bridge.pools:
            return
        try:
            bridge.pools[address.version].take_exactly(address)
        except (Conflict, Invalid):
            pass  # marked already, or of a subnet that the network had before

    def free(self, endpoint: Endpoint) -> None:
        """Let an endpoint's addresses be given out again."""
        bridge = self.bridges.get(endpoint.network_id)
        if bridge is not None:
            free_endpoint(endpoint, bridge.pools)

    def free_address(self, network_id: str, address: Address) -> None:
        """Let one address be given out again."""
        bridge = self.bridges.get(network_id)
        if bridge is not None and address.version in bridge.pools:
            bridge.pools[address.version].free(address)
