"""From what a container asks of its networks to endpoints and interfaces, and back.

Owns the pool of ready namespaces and the way an endpoint comes to be: its addresses are taken on the event loop, its
interface is made in a maker's thread; whoever fails gives both back, behind (`reaper`).
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack

import msgspec

from cove.model.container import Endpoint, EndpointSpec
from cove.model.errors import Conflict, NotFound
from cove.network import segments
from cove.network.endpoints import plan_interface, take_endpoint
from cove.network.holdings import Bridge, Holdings
from cove.network.model import BRIDGE, FeatureMissing
from cove.network.namespaces import InterfacePlan, Workshop, new_host_name, run_in
from cove.network.netlink import Netlink, NetlinkError
from cove.network.options import parse_interface, parse_sysctls
from cove.network.pool import NamespacePool, Ready
from cove.network.reaper import Reaper
from cove.network.segments import Segment
from cove.network.upkeep import Upkeep


class Assembly:
    """See the module."""

    def __init__(
        self,
        holdings: Holdings,
        workshop: Workshop,
        upkeep: Upkeep,
        reaper: Reaper,
        extend: Callable[[Bridge, int], Awaitable[int]],
        *,
        pool_size: int,
    ) -> None:
        """`extend` makes a network's further bridge of that number, and returns its index."""
        self._extend = extend
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
        if spec.driver_options:
            return None
        ready = self.pool.take()
        if ready is None or not (spec.aliases or spec.gateway_priority):
            return ready
        endpoint = msgspec.structs.replace(
            ready.endpoint, aliases=spec.aliases, gateway_priority=spec.gateway_priority
        )
        return Ready(ready.namespace, endpoint)

    async def allocate(
        self,
        wanted: Sequence[tuple[Bridge, EndpointSpec]],
        undo: AsyncExitStack,
        *,
        used: Collection[str] = (),
    ) -> list[Endpoint]:
        """Endpoints with addresses and interface names of their own; `undo` takes them back.

        `used`: interface names that the container has already.
        """
        names = _interface_names(wanted, used)
        endpoints = []
        for (bridge, spec), name in zip(wanted, names, strict=True):
            self._check_there(bridge)
            try:
                endpoint = _new_endpoint(bridge, spec, name)
            except Conflict:
                if self._reaper.idle:
                    raise
                await self._reaper.flush()  # the address may be one that is being taken back
                self._check_there(bridge)
                endpoint = _new_endpoint(bridge, spec, name)
            self._holdings.pending[endpoint.endpoint_id] = endpoint
            undo.callback(self.bury, endpoint)
            await self._place(bridge, endpoint)
            endpoints.append(endpoint)
        return endpoints

    def _check_there(self, bridge: Bridge) -> None:
        if bridge.network.id not in self._holdings.bridges:  # removed while this waited
            raise NotFound(f"network {bridge.network.name} not found")

    async def make(self, endpoints: Sequence[Endpoint], specs: Sequence[EndpointSpec]) -> int:
        """A namespace with these endpoints; a cancelled caller leaves none behind."""
        plans = self._plans(endpoints, specs)
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

    async def fill(
        self, endpoints: Sequence[Endpoint], specs: Sequence[EndpointSpec], namespace: int
    ) -> None:
        """Put these endpoints into an empty namespace that somebody else made. Raises HostError."""
        plans = self._plans(endpoints, specs)
        await run_in(self._workshop.makers, self._workshop.fill, plans, namespace)

    async def add(self, endpoint: Endpoint, spec: EndpointSpec, namespace: int) -> None:
        """Put one more endpoint into a namespace that lives, without its routes. Raises HostError."""
        [plan] = self._plans([endpoint], [spec])
        await run_in(self._workshop.makers, self._workshop.add, plan, namespace)

    async def take_out(self, endpoint: Endpoint, namespace: int) -> None:
        """Take an endpoint's interface out of a namespace that lives, where no end of it is on the host. HostError."""
        await run_in(self._workshop.makers, self._workshop.take_out, endpoint.interface, namespace)

    async def reroute(self, endpoints: Sequence[Endpoint], namespace: int) -> None:
        """Give a namespace that lives the default routes of these endpoints. Raises HostError."""
        routes = {
            e.interface: [ipaddress.ip_address(g) for g in (e.gateway4, e.gateway6) if g] for e in endpoints
        }
        await run_in(self._workshop.makers, self._workshop.reroute, namespace, routes)

    def bury(self, endpoint: Endpoint, *, alive: bool = False) -> None:
        """Have an endpoint's interface and addresses taken back, behind."""
        self._holdings.pending.pop(endpoint.endpoint_id, None)
        self._reaper.bury(endpoint, alive=alive)

    async def _place(self, bridge: Bridge, endpoint: Endpoint) -> None:
        """Find a port for an endpoint's interface; a bridge whose ports are all taken is joined by another one."""
        if bridge.driver is not None or bridge.place(endpoint.host_interface):
            return
        async with bridge.growing:
            if bridge.place(endpoint.host_interface):
                return  # another one has made it
            number = len(bridge.segments)
            if number > segments.MOST_SEGMENTS:
                raise Conflict(
                    f"network {bridge.network.name} has all the endpoints that its {number} bridges can have: use "
                    "another network, made by network create"
                )
            index = await self._extend(bridge, number)
            bridge.segments.append(Segment(index, {endpoint.host_interface}))

    def _plans(self, endpoints: Sequence[Endpoint], specs: Sequence[EndpointSpec]) -> list[InterfacePlan]:
        return [self._plan(endpoint, spec) for endpoint, spec in zip(endpoints, specs, strict=True)]

    def _plan(self, endpoint: Endpoint, spec: EndpointSpec) -> InterfacePlan:
        bridge = self._holdings.bridges[endpoint.network_id]
        return plan_interface(
            endpoint,
            bridge.network,
            bridge=bridge.place_of(endpoint.host_interface),
            hairpin=self._upkeep.hairpin,
            isolated=not bridge.options.icc,
            settings=parse_sysctls(spec.driver_options),
            make=_maker(bridge),
        )

    async def _make_ready(self) -> Ready:
        bridge = self._holdings.bridges[self._holdings.find_network(BRIDGE).id]
        spec = EndpointSpec(network=BRIDGE)
        async with AsyncExitStack() as undo:
            endpoints = self._holdings.route(await self.allocate([(bridge, spec)], undo))
            namespace = await self.make(endpoints, [spec])
            undo.pop_all()
        self._holdings.pending.pop(endpoints[0].endpoint_id, None)
        return Ready(namespace, endpoints[0])


def _interface_names(wanted: Sequence[tuple[Bridge, EndpointSpec]], used: Collection[str]) -> list[str]:
    """Each interface's name in the container: the one asked for, or the next free number. Raises Invalid, Conflict."""
    asked = [parse_interface(spec.driver_options) for _, spec in wanted]
    taken = {*used, *asked}
    for number, name in enumerate(asked):
        if name and (name in used or name in asked[:number]):
            raise Conflict(f"interface name {name} is taken in this container: choose another one")
    names = []
    for (bridge, _), name in zip(wanted, asked, strict=True):
        if not name:
            prefix = bridge.options.prefix
            name = next(n for i in range(len(taken) + 1) if (n := f"{prefix}{i}") not in taken)
            taken.add(name)
        names.append(name)
    return names


def _maker(bridge: Bridge) -> Callable[[Netlink, InterfacePlan, int], None] | None:
    """How an interface on a network of another driver is made."""
    driver, network = bridge.driver, bridge.network
    if driver is None:
        return None
    return lambda netlink, plan, namespace: driver.make(netlink, network, plan, namespace)


def _new_endpoint(bridge: Bridge, spec: EndpointSpec, name: str) -> Endpoint:
    driver = bridge.driver
    if driver is not None:
        driver.check_endpoint(bridge.network, spec)
    endpoint = take_endpoint(
        bridge.network,
        bridge.pools,
        spec,
        interface=name,
        host_interface=new_host_name() if driver is None else "",
        endpoint_id=secrets.token_hex(32),
    )
    if driver is not None and not driver.has_mac(bridge.network):
        endpoint = msgspec.structs.replace(endpoint, mac="")
    return endpoint


def _close_result(future: asyncio.Future[int]) -> None:
    if not future.cancelled() and future.exception() is None:
        os.close(future.result())
