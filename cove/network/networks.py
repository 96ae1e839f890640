"""The networks of one daemon: what the engine calls.

Owns which container is on which network, with which addresses and ports. Decides on the event loop, with no
`await` between a check and the change that rests on it; whatever waits for the kernel runs in the threads of
`namespaces.Workshop`, and the store is written before a call returns.

What makes a start quick: its namespace is taken from the pool, and publishing ports is one netlink message.
What makes a stop quick: ports go at once; interfaces and addresses are taken back behind (`reaper`),
and an address isn't given out again before its interface is gone.

Order that must hold in `connect`: addresses, namespace, ports, rules, store; undone in reverse. A network's bridge
is noted in the store (`bridges/NAME`) as long as it is on the host without the network's record: while it is being
made or removed. What a crash leaves so is removed at the next start.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import secrets
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from cove.model.container import Endpoint, EndpointSpec, PortBinding
from cove.model.errors import Conflict, CoveError, Forbidden, HostError, Invalid, NotFound
from cove.model.objects import IpamPool, Network
from cove.network import bridges, records
from cove.network.addresses import AddressPool, parse_subnet
from cove.network.endpoints import (
    address_keys,
    address_pools,
    free_endpoint,
    living_ports,
    outward,
    parse_address_key,
    plan_interface,
    take_endpoint,
)
from cove.network.links import Address
from cove.network.loopback import LoopbackProxies
from cove.network.model import (
    BRIDGE,
    BUILT_IN,
    HOST,
    MAX_ENDPOINTS,
    NONE,
    Alive,
    Attachment,
    FeatureMissing,
    NetworkSettings,
    Published,
)
from cove.network.namespaces import InterfacePlan, Workshop, new_host_name
from cove.network.netlink import NetlinkError
from cove.network.pool import NamespacePool, Ready
from cove.network.ports import Held, Ports, bind_port
from cove.network.reaper import Reaper
from cove.network.upkeep import Upkeep
from cove.store.interface import Delete, DeletePrefix, Op, Put, Store, absent

log = logging.getLogger(__name__)
T = TypeVar("T")

_CHECK_PERIOD_S = 30.0
_NOTED = "bridges/"


@dataclass(slots=True)
class _Bridge:
    """A bridge network with what is on it now."""

    network: Network
    pools: dict[int, AddressPool]
    index: int = 0  # of the link; 0: it couldn't be made
    members: dict[str, Endpoint] = field(default_factory=dict)

    @property
    def isolated(self) -> bool:
        return not records.parse_switch(self.network.options, records.OPTION_ICC, default=True)


@dataclass(slots=True)
class _Attached:
    """What a container holds."""

    endpoints: list[Endpoint]
    held: list[Held]


class Networks:
    """See the module. Made by `open`; every method is called on the event loop's thread."""

    def __init__(self, store: Store, settings: NetworkSettings, run_dir: str) -> None:
        self._store = store
        self._settings = settings
        self._seed = f"{_machine_id()} {run_dir}"
        self._networks: dict[str, Network] = {}
        self._bridges: dict[str, _Bridge] = {}
        self._attached: dict[str, _Attached] = {}
        self._pending: dict[str, str] = {}  # host ends of interfaces that are being made → network
        self._ports = Ports(settings.bind_outside or bind_port)
        self._proxies = LoopbackProxies(everything=settings.bind_outside is not None)
        self._workshop = Workshop()
        self._upkeep = Upkeep(settings.table, self._workshop)
        self._missing: FeatureMissing | None = None
        group = 0x40000000 | zlib.crc32(settings.table.encode()) >> 2
        self._reaper = Reaper(self._workshop, store, group, self._free)
        self._pool = NamespacePool(settings.pool_size, self._make_ready, self._bury)
        self._checker: asyncio.Task[None] | None = None
        self._closed = False

    # --- start and end --------------------------------------------------------------------

    @classmethod
    async def open(cls, store: Store, *, settings: NetworkSettings, run_dir: str | Path) -> Networks:
        """Make or repair bridges and rules, and start filling the pool.

        A missing kernel feature doesn't fail it: bridge networks then raise Unavailable when used. Raises
        Invalid for settings that can't be, HostError.
        """
        self = cls(store, settings, str(run_dir))
        try:
            await self._load()
            await self._repair()
            self._reaper.start()
            self._checker = asyncio.get_running_loop().create_task(self._check_forever())
            if self._missing is None:
                self._pool.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Stop helping: pool, listeners and threads go; bridges, rules and living containers stay."""
        if self._closed:
            return
        self._closed = True
        await self._pool.close()
        if self._checker is not None:
            self._checker.cancel()
            await asyncio.gather(self._checker, return_exceptions=True)
        await self._reaper.close()
        self._proxies.close()
        self._ports.release(self._ports.held())
        await asyncio.to_thread(self._workshop.close)
        self._upkeep.close()

    async def uninstall(self) -> None:
        """Remove every link, table and rule of this daemon from the host, then close."""
        await self._pool.close()
        for container_id in list(self._attached):
            await self.disconnect(container_id)
        await self._reaper.flush()
        await self._in(self._workshop.reaper, self._upkeep.uninstall, self._bridge_networks())
        await self.close()

    # --- networks -------------------------------------------------------------------------

    def list_networks(self) -> list[Network]:
        """All networks: the three built-in ones, then the others by name."""
        return records.in_order(self._networks.values())

    def find_network(self, name_or_id: str) -> Network:
        """By name, id or unique prefix of an id; "default" is the default bridge. NotFound, Invalid."""
        return records.find_network(self._networks.values(), name_or_id)

    def members(self, network_id: str) -> list[tuple[str, Endpoint]]:
        """The container ids and endpoints that are connected now (what network inspect shows)."""
        bridge = self._bridges.get(network_id)
        return list(bridge.members.items()) if bridge is not None else []

    def gateways(self) -> list[str]:
        """The default bridge's own addresses: what "host-gateway" stands for."""
        return [pool.gateway for pool in self.find_network(BRIDGE).ipam]

    async def create(
        self,
        name: str,
        *,
        driver: str = "bridge",
        ipam: Sequence[IpamPool] = (),
        ipv6: bool = False,
        internal: bool = False,
        attachable: bool = False,
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Network:
        """Make a network. Conflict (name in use), Invalid, Forbidden, NotFound (driver), Unavailable."""
        self._check_feature()
        own = [known.bridge for known in self._bridge_networks()]
        taken, mtu = await self._in(self._workshop.reaper, self._upkeep.survey, own)
        network = records.plan_network(
            name,
            id=secrets.token_hex(32),
            now_ns=time.time_ns(),
            driver=driver,
            ipam=ipam,
            ipv6=ipv6,
            internal=internal,
            attachable=attachable,
            labels=labels or {},
            options=options or {},
            existing=list(self._networks.values()),
            taken=taken,
            default_mtu=self._settings.mtu or mtu,
            seed=self._seed,
        )
        bridge = _Bridge(network, address_pools(network))
        self._networks[network.id] = network  # from here on its name and subnets are taken
        try:
            await self._store.txn([], [Put(_NOTED + network.bridge, b"")])
            bridge.index = await self._in(
                self._workshop.reaper, self._upkeep.add, network, self._bridge_networks()
            )
            record = Put(f"networks/{network.id}", msgspec.json.encode(network))
            await self._store.txn([], [record, Delete(_NOTED + network.bridge)])
        except BaseException:
            del self._networks[network.id]
            await asyncio.shield(self._take_off(network))
            raise
        self._bridges[network.id] = bridge
        return network

    async def remove(self, name_or_id: str) -> Network:
        """Remove a network. NotFound, Invalid, Forbidden (built-in, or it has endpoints)."""
        network = self.find_network(name_or_id)
        if network.name in BUILT_IN:
            raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
        bridge = self._bridges[network.id]
        if bridge.members or network.id in self._pending.values():
            raise Forbidden(
                f"error while removing network: network {network.name} has active endpoints "
                f"({len(bridge.members)}): disconnect them first"
            )
        del self._networks[network.id]
        del self._bridges[network.id]
        operations: list[Op] = [
            Delete(f"networks/{network.id}"),
            DeletePrefix(f"addresses/{network.id}/"),
            Put(_NOTED + network.bridge, b""),
        ]
        await self._store.txn([], operations)
        await self._take_off(network)
        return network

    # --- endpoints ------------------------------------------------------------------------

    async def connect(
        self,
        container_id: str,
        requests: Sequence[EndpointSpec],
        ports: Sequence[PortBinding],
        hostname: str,
        *,
        namespace: int = -1,
    ) -> Attachment:
        """Attach a container that is about to start. Nothing remains of a call that raised.

        The first request is eth0, the next eth1 …; the first that isn't internal has the default route and
        the published ports. `namespace` is a descriptor of the container's own empty network namespace, borrowed,
        when it has one that belongs to its user namespace; else one of the host's is handed out.

        Raises NotFound, Invalid, Conflict (address in use, container connected), PortInUse, Unavailable, HostError.
        """
        self._check_feature()
        if container_id in self._attached:
            raise Conflict(f"container {container_id[:12]} is connected already: disconnect it first")
        wanted = self._resolve(requests)
        attached = _Attached([], [])
        self._attached[container_id] = attached
        async with AsyncExitStack() as undo:
            undo.callback(self._attached.pop, container_id)
            ready = self._take_ready(wanted) if namespace < 0 else None
            if ready is not None:
                namespace, endpoints = ready.namespace, [ready.endpoint]
                undo.callback(self._bury, ready.endpoint)
                undo.callback(os.close, namespace)
            elif namespace < 0:
                endpoints = await self._allocate(wanted, undo)
                namespace = await self._make(endpoints)
                undo.callback(os.close, namespace)
            else:
                endpoints = await self._allocate(wanted, undo)
                plans = [self._plan(endpoint) for endpoint in endpoints]
                await self._in(self._workshop.makers, self._workshop.fill, plans, namespace)
            self._set_members(container_id, endpoints, undo)
            attached.endpoints = endpoints
            self._publish(attached, ports, f"{hostname} ({container_id[:12]})", undo)
            await self._write_addresses(container_id, endpoints)
            undo.pop_all()
        return Attachment(
            namespace=namespace,
            endpoints=tuple(endpoints),
            ports=tuple(item.binding for item in attached.held),
        )

    async def disconnect(self, container_id: str) -> None:
        """Take a container's ports and addresses back. Idempotent; slow deletions happen behind."""
        attached = self._attached.pop(container_id, None)
        if attached is None:
            return
        for endpoint in attached.endpoints:
            self._forget_member(container_id, endpoint)
        self._withdraw(attached.held)
        for endpoint in attached.endpoints:
            self._bury(endpoint)

    async def attach(self, container_id: str, request: EndpointSpec, namespace: int) -> Endpoint:
        """Connect a running container to one more network; `namespace` is a descriptor, borrowed.

        Raises as `connect` does, and Forbidden when the container is on that network already.
        """
        self._check_feature()
        attached = self._attached.get(container_id) or _Attached([], [])
        [(bridge, spec)] = self._resolve([request])
        if container_id in bridge.members:
            raise Forbidden(f"container is already connected to network {bridge.network.name}")
        used = {endpoint.interface for endpoint in attached.endpoints}
        name = next(name for i in range(len(used) + 1) if (name := f"eth{i}") not in used)
        routed = outward(attached.endpoints) is not None
        async with AsyncExitStack() as undo:
            [endpoint] = await self._allocate([(bridge, spec)], undo, first=name, routed=routed)
            plan = self._plan(endpoint)
            await self._in(self._workshop.makers, self._workshop.add, plan, namespace)
            self._set_members(container_id, [endpoint], undo)
            await self._write_addresses(container_id, [endpoint])
            attached.endpoints = [*attached.endpoints, endpoint]
            self._attached[container_id] = attached
            undo.pop_all()
        return endpoint

    async def detach(self, container_id: str, network: str) -> None:
        """Disconnect a running container from one network. NotFound when it isn't connected."""
        found = self.find_network(network)
        attached = self._attached.get(container_id)
        endpoint = next(
            (e for e in (attached.endpoints if attached else ()) if e.network_id == found.id), None
        )
        if attached is None or endpoint is None:
            raise NotFound(f"container {container_id[:12]} is not connected to network {found.name}")
        gone = [item for item in attached.held if item.published.address in (endpoint.ipv4, endpoint.ipv6)]
        attached.held = [item for item in attached.held if item not in gone]
        attached.endpoints = [e for e in attached.endpoints if e is not endpoint]
        self._forget_member(container_id, endpoint)
        self._withdraw(gone)
        self._bury(endpoint, alive=True)
        await self._reaper.flush()  # the container may be connected again at once, by the same interface name

    async def reconcile(self, alive: Mapping[str, Alive]) -> None:
        """After a restart: publish again what is alive, free everything else. Before the first connect."""
        for container_id, holds in alive.items():
            if container_id not in self._attached:
                await self._readopt(container_id, holds)
        if self._missing is None:
            self._upkeep.replace(_published(self._ports.held()))
        await self._free_stale()
        if self._missing is None:
            known = {e.host_interface for a in self._attached.values() for e in a.endpoints}
            known |= self._pool.names() | set(self._pending)
            indexes = [bridge.index for bridge in self._bridges.values()]
            stale = await self._in(self._workshop.reaper, self._upkeep.stale_links, indexes, known)
            if stale:
                await self._reaper.delete_links(stale)

    async def check(self) -> None:
        """Repair what others changed: rules that are gone, firewalls that drop. Called periodically."""
        self._pool.relax()
        if self._missing is not None:
            return
        rewritten = await self._in(self._workshop.reaper, self._upkeep.check, self._bridge_networks())
        if rewritten:
            self._upkeep.replace(_published(self._ports.held()))

    # --- starting up ----------------------------------------------------------------------

    async def _load(self) -> None:
        for item in await self._store.range("networks/"):
            network = msgspec.json.decode(item.value, type=Network)
            self._networks[network.id] = network
        names = {network.name: network for network in self._networks.values()}
        operations: list[Op] = []
        for name in (HOST, NONE):
            if name not in names:
                operations.append(
                    self._record(records.plan_built_in(name, id=secrets.token_hex(32), now_ns=time.time_ns()))
                )
        default = await self._plan_default(names.get(BRIDGE))
        if default != names.get(BRIDGE):
            operations.append(self._record(default))
        if operations:
            await self._store.txn([], operations)
        for network in self._networks.values():
            if network.driver == "bridge":
                self._bridges[network.id] = _Bridge(network, address_pools(network))
        for item in await self._store.range("addresses/"):
            self._occupy(*parse_address_key(item.key))

    def _record(self, network: Network) -> Op:
        self._networks[network.id] = network
        return Put(f"networks/{network.id}", msgspec.json.encode(network))

    async def _plan_default(self, known: Network | None) -> Network:
        """The default bridge's record: as stored, as far as the settings leave it open."""
        settings = self._settings
        stored = {parse_subnet(p.subnet).version: p for p in known.ipam} if known else {}
        asked = {4: settings.ipv4 or getattr(stored.get(4), "subnet", "")}
        with_ipv6 = settings.ipv6 != "none" and bridges.has_ipv6()
        asked[6] = (settings.ipv6 or getattr(stored.get(6), "subnet", "")) if with_ipv6 else ""
        links = [settings.bridge, *(n.bridge for n in self._bridge_networks())]
        taken, mtu = await self._in(self._workshop.reaper, self._upkeep.survey, links)
        own = [parse_subnet(p.subnet) for n in self._networks.values() if n is not known for p in n.ipam]
        pools = records.plan_default_pools(
            ipv4=asked[4], ipv6=asked[6], with_ipv6=with_ipv6, taken=[*own, *taken], seed=self._seed
        )
        base = known or Network(
            id=secrets.token_hex(32), name=BRIDGE, driver="bridge", created_ns=time.time_ns()
        )
        return msgspec.structs.replace(
            base, ipam=pools, ipv6=len(pools) > 1, bridge=settings.bridge, mtu=settings.mtu or mtu
        )

    async def _repair(self) -> None:
        try:
            indexes = await self._in(self._workshop.reaper, self._upkeep.start, self._bridge_networks())
        except FeatureMissing as error:
            self._missing = error
            log.warning("%s; networks host and none work", error)
            return
        for network_id, index in indexes.items():
            self._bridges[network_id].index = index
        if self._settings.bind_outside is not None:
            try:
                await self._in(self._workshop.reaper, self._upkeep.keep_clients)
            except HostError as error:
                log.warning("published ports show containers the bridge instead of their clients: %s", error)
        for item in await self._store.range(_NOTED):
            await self._take_link_off(item.key.removeprefix(_NOTED))

    # --- the parts of connect -------------------------------------------------------------

    def _resolve(self, requests: Sequence[EndpointSpec]) -> list[tuple[_Bridge, EndpointSpec]]:
        wanted: list[tuple[_Bridge, EndpointSpec]] = []
        for request in requests:
            network = self.find_network(request.network)
            bridge = self._bridges.get(network.id)
            if bridge is None:
                raise Invalid(f"network {network.name} has no endpoints: it can't be combined with others")
            if any(bridge is other for other, _ in wanted):
                raise Invalid(f"network {network.name} is asked for twice: name each network once")
            if len(bridge.members) + self._count_pending(network.id) >= MAX_ENDPOINTS:
                raise Conflict(
                    f"network {network.name} has {MAX_ENDPOINTS} endpoints, the most that a Linux bridge can "
                    "have: use another network, made by network create"
                )
            wanted.append((bridge, request))
        if not wanted:
            raise Invalid("no network was asked for: name one, e.g. bridge")
        return wanted

    def _count_pending(self, network_id: str) -> int:
        ready = len(self._pool.names()) if self._networks[network_id].name == BRIDGE else 0
        return ready + sum(1 for other in self._pending.values() if other == network_id)

    def _take_ready(self, wanted: Sequence[tuple[_Bridge, EndpointSpec]]) -> Ready | None:
        if len(wanted) != 1:
            return None
        bridge, spec = wanted[0]
        if bridge.network.name != BRIDGE or spec.ipv4 or spec.ipv6 or spec.mac or spec.link_local:
            return None
        ready = self._pool.take()
        if ready is None or not spec.aliases:
            return ready
        return Ready(ready.namespace, msgspec.structs.replace(ready.endpoint, aliases=spec.aliases))

    async def _allocate(
        self,
        wanted: Sequence[tuple[_Bridge, EndpointSpec]],
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
                endpoint = self._new_endpoint(bridge, spec, f"eth{number}", default=default)
            except Conflict:
                if self._reaper.idle:
                    raise
                await self._reaper.flush()  # the address may be one that is being taken back
                endpoint = self._new_endpoint(bridge, spec, f"eth{number}", default=default)
            self._pending[endpoint.host_interface] = bridge.network.id
            undo.callback(self._bury, endpoint)
            endpoints.append(endpoint)
        return endpoints

    def _new_endpoint(self, bridge: _Bridge, spec: EndpointSpec, name: str, *, default: bool) -> Endpoint:
        return take_endpoint(
            bridge.network,
            bridge.pools,
            spec,
            interface=name,
            host_interface=new_host_name(),
            endpoint_id=secrets.token_hex(32),
            default=default,
        )

    def _plan(self, endpoint: Endpoint) -> InterfacePlan:
        bridge = self._bridges[endpoint.network_id]
        hairpin = self._upkeep.hairpin
        return plan_interface(
            endpoint, bridge.network, bridge=bridge.index, hairpin=hairpin, isolated=bridge.isolated
        )

    async def _make(self, endpoints: Sequence[Endpoint]) -> int:
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

    async def _make_ready(self) -> Ready:
        bridge = self._bridges[self.find_network(BRIDGE).id]
        async with AsyncExitStack() as undo:
            endpoints = await self._allocate([(bridge, EndpointSpec(network=BRIDGE))], undo)
            namespace = await self._make(endpoints)
            undo.pop_all()
        self._pending.pop(endpoints[0].host_interface, None)
        return Ready(namespace, endpoints[0])

    def _set_members(self, container_id: str, endpoints: Iterable[Endpoint], undo: AsyncExitStack) -> None:
        for endpoint in endpoints:
            self._pending.pop(endpoint.host_interface, None)
            self._bridges[endpoint.network_id].members[container_id] = endpoint
            undo.callback(self._forget_member, container_id, endpoint)

    def _forget_member(self, container_id: str, endpoint: Endpoint) -> None:
        bridge = self._bridges.get(endpoint.network_id)
        if bridge is not None:
            bridge.members.pop(container_id, None)

    def _publish(
        self, attached: _Attached, ports: Sequence[PortBinding], owner: str, undo: AsyncExitStack
    ) -> None:
        # As Docker: only a network that isn't internal publishes ports.
        routed = outward(attached.endpoints)
        if not ports or routed is None:
            return
        held = self._ports.reserve(ports, _address(routed.ipv4), _address(routed.ipv6), endpoint=owner)
        attached.held = held
        undo.callback(self._withdraw, held)
        self._upkeep.publish(_published(held))
        for item in held:
            self._proxies.add(item)
        self._reaper.forget_udp(_udp_ports(held))

    async def _write_addresses(self, container_id: str, endpoints: Iterable[Endpoint]) -> None:
        keys = [key for endpoint in endpoints for key in address_keys(endpoint)]
        puts = [Put(key, container_id.encode()) for key in keys]
        result = await self._store.txn([absent(key) for key in keys], puts)
        if not result.succeeded:
            raise Conflict(
                f"Address already in use: one of {', '.join(keys)} was given out meanwhile; try again"
            )

    # --- taking back ----------------------------------------------------------------------

    def _withdraw(self, held: Sequence[Held]) -> None:
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

    def _bury(self, endpoint: Endpoint, *, alive: bool = False) -> None:
        """Have an endpoint's interface and addresses taken back, behind."""
        self._pending.pop(endpoint.host_interface, None)
        self._reaper.bury(endpoint, alive=alive)

    def _free(self, endpoint: Endpoint) -> None:
        bridge = self._bridges.get(endpoint.network_id)
        if bridge is not None:
            free_endpoint(endpoint, bridge.pools)

    # --- after a restart ------------------------------------------------------------------

    async def _readopt(self, container_id: str, holds: Alive) -> None:
        attached = _Attached([], [])
        operations: list[Op] = []
        for endpoint in holds.endpoints:
            bridge = self._bridges.get(endpoint.network_id)
            if bridge is None:
                log.warning(
                    "container %s is on a network that is gone: %s", container_id[:12], endpoint.network_name
                )
                continue
            for key in address_keys(endpoint):
                self._occupy(*parse_address_key(key))
                operations.append(Put(key, container_id.encode()))
            bridge.members[container_id] = endpoint
            attached.endpoints.append(endpoint)
        self._attached[container_id] = attached
        if operations:
            await self._store.txn([], operations)
        routed = outward(attached.endpoints)
        if routed is None:
            return
        for entry in living_ports(routed, holds.ports):
            item, problem = self._ports.adopt(entry)
            if problem:
                log.warning(
                    "port %d of %s works, but isn't held: %s", entry.host_port, container_id[:12], problem
                )
            attached.held.append(item)
            self._proxies.add(item)

    async def _free_stale(self) -> None:
        """Free the stored addresses of containers that aren't attached."""
        stale = [
            item.key
            for item in await self._store.range("addresses/")
            if item.value.decode(errors="replace") not in self._attached
        ]
        await self._reaper.delete_keys(stale)
        for key in stale:
            network_id, address = parse_address_key(key)
            bridge = self._bridges.get(network_id)
            if bridge is not None and address.version in bridge.pools:
                bridge.pools[address.version].free(address)

    def _occupy(self, network_id: str, address: Address) -> None:
        """Mark an address that a container has, or had when the daemon ended, as in use."""
        bridge = self._bridges.get(network_id)
        if bridge is None or address.version not in bridge.pools:
            return
        try:
            bridge.pools[address.version].take_exactly(address)
        except (Conflict, Invalid):
            pass  # marked already, or of a subnet that the network had before

    # --- helpers --------------------------------------------------------------------------

    def _bridge_networks(self) -> list[Network]:
        return [network for network in self.list_networks() if network.driver == "bridge"]

    async def _take_off(self, network: Network) -> None:
        """Remove the bridge of a network that has no record, and its rules."""
        await self._take_link_off(network.bridge)

    async def _take_link_off(self, bridge: str) -> None:
        if all(network.bridge != bridge for network in self._bridge_networks()):
            await self._in(self._workshop.reaper, self._upkeep.remove, bridge, self._bridge_networks())
        await self._store.txn([], [Delete(_NOTED + bridge)])

    def _check_feature(self) -> None:
        if self._missing is not None:
            raise FeatureMissing(str(self._missing))

    async def _check_forever(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_PERIOD_S)
            try:
                await self.check()
            except (CoveError, OSError) as error:
                log.warning("the network's rules can't be checked: %s", error)

    async def _in(self, executor: ThreadPoolExecutor, work: Callable[..., T], *arguments: object) -> T:
        future = asyncio.get_running_loop().run_in_executor(executor, work, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:  # the work goes on in its thread; nobody is left to hear how it ends
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise


def _address(text: str) -> Address | None:
    return ipaddress.ip_address(text) if text else None


def _published(held: Iterable[Held]) -> list[Published]:
    return [item.published for item in held]


def _udp_ports(held: Iterable[Held]) -> set[int]:
    return {item.published.host_port for item in held if item.published.protocol == "udp"}


def _close_result(future: asyncio.Future[int]) -> None:
    if not future.cancelled() and future.exception() is None:
        os.close(future.result())


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError:
        return ""
