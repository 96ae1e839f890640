"""From what a container asks of its networks to endpoints and interfaces, and back.

Owns the pool of ready namespaces and the way an endpoint comes to be: its addresses are taken on the event loop, its
interface is made in a maker's thread; whoever fails gives both back, behind (`reaper`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack

import msgspec

from cove.model.container import Endpoint, EndpointSpec
from cove.model.errors import Conflict
from cove.network.endpoints import plan_interface, take_endpoint
from cove.network.holdings import Bridge, Holdings
from cove.network.model import BRIDGE, FeatureMissing
from cove.network.namespaces import InterfacePlan, Workshop, new_host_name, run_in
from cove.network.netlink import NetlinkError
from cove.network.pool import NamespacePool, Ready
from cove.network.reaper import Reaper
from cove.network.upkeep import Upkeep


class Assembly:
    """See the module."""

    def __init__(
        self, holdings: Holdings, workshop: Workshop, upkeep: Upkeep, reaper: Reaper, *, pool_size: int
    ) -> None:
        self._holdings = holdings
        self._workshop = workshop
        self._upkeep = upkeep
        self._reaper = reaper
        self.pool = NamespacePool(pool_size, self._make_ready, self.bury)

    def take_ready(self, wanted: Sequence[tuple[Bridge, EndpointSpec]]) -> Ready | None:
        """A namespace of the pool, when one is what was asked for."""
        if len(wanted) != 1:
            return None
        bridge, spec = wanted[0]
        if bridge.network.name != BRIDGE or spec.ipv4 or spec.ipv6 or spec.mac or spec.link_local:
            return None
        ready = self.pool.take()
        if ready is None or not spec.aliases:
            return ready
        return Ready(ready.namespace, msgspec.structs.replace(ready.endpoint, aliases=spec.aliases))

    async def allocate(
        self,
        wanted: Sequence[tuple[Bridge, EndpointSpec]],
        undo: AsyncExitStack,
        *,
        first: str = "eth0",
        routed: bool = False,
    ) -> list[Endpoint]:
        """Endpoints with addresses of their own; `undo` takes them back."""
        endpoints = []
        for number, (bridge, spec) in enumerate(wanted, int(first.removeprefix("eth"))):
            default = not routed and not bridge.network.internal
            routed = routed or default
            try:
                endpoint = _new_endpoint(bridge, spec, f"eth{number}", default=default)
            except Conflict:
                if self._reaper.idle:
                    raise
                await self._reaper.flush()  # the address may be one that is being taken back
                endpoint = _new_endpoint(bridge, spec, f"eth{number}", default=default)
            self._holdings.pending[endpoint.host_interface] = bridge.network.id
            undo.callback(self.bury, endpoint)
            endpoints.append(endpoint)
        return endpoints

    async def make(self, endpoints: Sequence[Endpoint]) -> int:
        """A namespace with these endpoints; a cancelled caller leaves none behind."""
        plans = [self._plan(endpoint) for endpoint in endpoints]
        future = asyncio.wrap_future(self._workshop.makers.submit(self._workshop.make, plans))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(_close_result)
            raise
        except NetlinkError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise FeatureMissing(
                    "bridge networks need veth interfaces, which this kernel lacks (CONFIG_VETH)"
                ) from None
            raise

    async def fill(self, endpoints: Sequence[Endpoint], namespace: int) -> None:
        """Put these endpoints into an empty namespace that somebody else made. Raises HostError."""
        plans = [self._plan(endpoint) for endpoint in endpoints]
        await run_in(self._workshop.makers, self._workshop.fill, plans, namespace)

    async def add(self, endpoint: Endpoint, namespace: int) -> None:
        """Put one more endpoint into a namespace that lives. Raises HostError."""
        await run_in(self._workshop.makers, self._workshop.add, self._plan(endpoint), namespace)

    def bury(self, endpoint: Endpoint, *, alive: bool = False) -> None:
        """Have an endpoint's interface and addresses taken back, behind."""
        self._holdings.pending.pop(endpoint.host_interface, None)
        self._reaper.bury(endpoint, alive=alive)

    def _plan(self, endpoint: Endpoint) -> InterfacePlan:
        bridge = self._holdings.bridges[endpoint.network_id]
        hairpin = self._upkeep.hairpin
        return plan_interface(
            endpoint, bridge.network, bridge=bridge.index, hairpin=hairpin, isolated=bridge.isolated
        )

    async def _make_ready(self) -> Ready:
        bridge = self._holdings.bridges[self._holdings.find_network(BRIDGE).id]
        async with AsyncExitStack() as undo:
            endpoints = await self.allocate([(bridge, EndpointSpec(network=BRIDGE))], undo)
            namespace = await self.make(endpoints)
            undo.pop_all()
        self._holdings.pending.pop(endpoints[0].host_interface, None)
        return Ready(namespace, endpoints[0])


def _new_endpoint(bridge: Bridge, spec: EndpointSpec, name: str, *, default: bool) -> Endpoint:
    return take_endpoint(
        bridge.network,
        bridge.pools,
        spec,
        interface=name,
        host_interface=new_host_name(),
        endpoint_id=secrets.token_hex(32),
        default=default,
    )


def _close_result(future: asyncio.Future[int]) -> None:
    if not future.cancelled() and future.exception() is None:
        os.close(future.result())
