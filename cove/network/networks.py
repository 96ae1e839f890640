"""The networks of one daemon: what the engine calls.

Owns the order of a container's connection and of a network's making. Decides on the event loop, with no
`await` between a check and the change that rests on it; whatever waits for the kernel runs in the threads of
`namespaces.Workshop`, and the store is written before a call returns. Behind it: `holdings` (what is where),
`assembly` (endpoints and interfaces), `publishing` (ports), `recovery` (what a start finds), `upkeep` (the host).

What makes a start quick: its namespace is taken from the pool, and publishing ports is one netlink message.
What makes a stop quick: ports go at once; interfaces and addresses are taken back behind (`reaper`),
and an address isn't given out again before its interface is gone.

Order that must hold in `connect`: addresses, namespace, ports, rules, store; undone in reverse. A network's bridge
is noted in the store (`bridges/NAME`) as long as it is on the host without the network's record: while it is being
made or removed. What a crash leaves so is removed at the next start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec

from cove.model.container import Endpoint, EndpointSpec, PortBinding
from cove.model.errors import Conflict, CoveError, Forbidden, HostError, NotFound
from cove.model.objects import IpamPool, Network
from cove.network import records, recovery
from cove.network.assembly import Assembly
from cove.network.drivers import NetworkDriver
from cove.network.endpoints import address_keys, address_pools
from cove.network.holdings import Attached, Bridge, Holdings
from cove.network.model import (
    BRIDGE,
    BUILT_IN,
    Alive,
    Attachment,
    FeatureMissing,
    NetworkSettings,
)
from cove.network.namespaces import Workshop, run_in
from cove.network.options import BridgeOptions
from cove.network.publishing import Publishing
from cove.network.reaper import Reaper
from cove.network.segments import Segment
from cove.network.upkeep import Upkeep
from cove.network.watch import RuleWatch
from cove.store.interface import Delete, DeletePrefix, Op, Put, Store, absent

log = logging.getLogger(__name__)
T = TypeVar("T")

_CHECK_PERIOD_S = 30.0
_GATHER_S = 0.1
_PAUSE_S = 1.0  # between two checks, however often rules change
_NOTED = "bridges/"


class Networks:
    """See the module. Made by `open`; every method is called on the event loop's thread."""

    def __init__(self, store: Store, settings: NetworkSettings, run_dir: str) -> None:
        self._store = store
        self._settings = settings
        self._seed = f"{_machine_id()} {run_dir}"
        self._holdings = Holdings()
        self._workshop = Workshop()
        # A rootless daemon's ports are sockets of the host: its INPUT rules see them anyway.
        mode = settings.firewall if settings.bind_outside is None else "docker"
        self._upkeep = Upkeep(settings.table, self._workshop, mode=mode)
        self._missing: FeatureMissing | None = None
        group = 0x40000000 | zlib.crc32(settings.table.encode()) >> 2
        self._reaper = Reaper(self._workshop, store, group, self._holdings.free)
        self._publishing = Publishing(settings, self._holdings, self._upkeep, self._reaper)
        self._assembly = Assembly(
            self._holdings,
            self._workshop,
            self._upkeep,
            self._reaper,
            self._extend,
            pool_size=settings.pool_size,
        )
        self._pool = self._assembly.pool
        self._checker: asyncio.Task[None] | None = None
        self._watch: RuleWatch | None = None
        self._disturbed = asyncio.Event()  # somebody changed rules
        self._host = asyncio.Lock()  # what changes bridges and rules knows all networks until it is done
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
            await recovery.load_networks(
                self._holdings,
                store,
                settings,
                workshop=self._workshop,
                upkeep=self._upkeep,
                seed=self._seed,
            )
            await self._repair()
            self._reaper.start()
            if self._missing is None:
                self._watch_rules()
                self._pool.start()
            self._checker = asyncio.get_running_loop().create_task(self._check_forever())
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
        await self._stop_checking()
        await self._reaper.close()
        self._publishing.close()
        await asyncio.to_thread(self._workshop.close)
        self._upkeep.close()

    async def _stop_checking(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._checker is not None:
            self._checker.cancel()
            await asyncio.gather(self._checker, return_exceptions=True)

    async def uninstall(self) -> None:
        """Remove every link, table and rule of this daemon from the host, then close."""
        await self._stop_checking()
        await self._pool.close()
        for container_id in list(self._holdings.attached):
            await self.disconnect(container_id)
        await self._reaper.flush()
        await run_in(self._workshop.reaper, self._upkeep.uninstall, self._holdings.bridge_networks())
        await self.close()

    # --- networks -------------------------------------------------------------------------

    def list_networks(self) -> list[Network]:
        """All networks: the three built-in ones, then the others by name."""
        return self._holdings.list_networks()

    def find_network(self, name_or_id: str) -> Network:
        """By name, id or unique prefix of an id; "default" is the default bridge. NotFound, Invalid."""
        return self._holdings.find_network(name_or_id)

    def members(self, network_id: str) -> list[tuple[str, Endpoint]]:
        """The container ids and endpoints that are connected now (what network inspect shows)."""
        bridge = self._holdings.bridges.get(network_id)
        return list(bridge.members.items()) if bridge is not None else []

    def firewall(self) -> str:
        """Which rules let clients outside reach published ports: "docker", or "host: " and why the host's do."""
        if self._settings.bind_outside is not None:
            return "host: ports are sockets of the host"
        return f"host: {self._upkeep.screened}" if self._upkeep.screened else "docker"

    def gateways(self) -> list[str]:
        """The default bridge's own addresses: what "host-gateway" stands for."""
        return [pool.gateway for pool in self.find_network(BRIDGE).ipam]

    async def create(
        self,
        name: str,
        *,
        driver: str = "bridge",
        ipam: Sequence[IpamPool] = (),
        ipv4: bool = True,
        ipv6: bool = False,
        internal: bool = False,
        attachable: bool = False,
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
        ipam_options: Mapping[str, str] | None = None,
    ) -> Network:
        """Make a network. Conflict (name in use), Invalid, Forbidden, NotFound (driver), Unavailable."""
        self._check_feature()
        own = [known.bridge for known in self._holdings.bridge_networks()]
        taken, mtu = await run_in(self._workshop.reaper, self._upkeep.survey, own)
        network = records.plan_network(
            name,
            id=secrets.token_hex(32),
            now_ns=time.time_ns(),
            driver=driver,
            ipam=ipam,
            ipv4=ipv4,
            ipv6=ipv6,
            internal=internal,
            attachable=attachable,
            labels=labels or {},
            options={**self._settings.default_options.get(driver, {}), **(options or {})},
            existing=self._holdings.known_networks(),
            taken=taken,
            default_mtu=self._settings.mtu or mtu,
            address_pools=self._settings.default_address_pools,
            seed=self._seed,
        )
        network = msgspec.structs.replace(network, ipam_options=dict(ipam_options or {}))
        bridge = Bridge.of(network)
        if bridge.driver is not None:
            return await self._create_by(bridge.driver, network)
        self._holdings.making[network.id] = network  # from here on its name and subnets are taken
        try:
            await self._store.txn([], [Put(_NOTED + network.bridge, b"")])
            async with self._host:
                index = await run_in(
                    self._workshop.reaper, self._upkeep.add, network, self._holdings.bridge_networks()
                )
            bridge.segments.append(Segment(index, set()))
            record = Put(f"networks/{network.id}", msgspec.json.encode(network))
            await self._store.txn([], [record, Delete(_NOTED + network.bridge)])
        except BaseException:
            del self._holdings.making[network.id]
            await asyncio.shield(self._take_off(network))
            raise
        self._holdings.enter(bridge)
        return network

    async def _create_by(self, driver: NetworkDriver, network: Network) -> Network:
        """Make a network that another driver than bridge has."""
        network = driver.plan(network, self._holdings.known_networks())
        self._holdings.making[network.id] = network
        made = False
        try:
            made = await run_in(self._workshop.reaper, self._apply, driver, network)
            network = msgspec.structs.replace(network, link_made=made)
            await self._store.txn([], [Put(f"networks/{network.id}", msgspec.json.encode(network))])
        except BaseException:
            del self._holdings.making[network.id]
            if made:
                await asyncio.shield(run_in(self._workshop.reaper, self._remove_by, driver, network))
            raise
        self._holdings.enter(Bridge.of(network))
        return network

    def _apply(self, driver: NetworkDriver, network: Network) -> bool:
        return driver.apply(self._workshop.netlink(), network)

    def _remove_by(self, driver: NetworkDriver, network: Network) -> None:
        driver.remove(self._workshop.netlink(), network)

    async def remove(self, name_or_id: str) -> Network:
        """Remove a network. NotFound, Invalid, Forbidden (built-in, or it has endpoints)."""
        network = self.find_network(name_or_id)
        if network.name in BUILT_IN:
            raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
        bridge = self._holdings.bridges.get(network.id)
        if bridge is None:  # its driver has left
            bridge = Bridge(network, address_pools(network), BridgeOptions())
        if bridge.members or any(
            endpoint.network_id == network.id for endpoint in self._holdings.pending.values()
        ):
            raise Forbidden(
                f"error while removing network: network {network.name} has active endpoints "
                f"({len(bridge.members)}): disconnect them first"
            )
        del self._holdings.networks[network.id]
        self._holdings.bridges.pop(network.id, None)
        operations: list[Op] = [
            Delete(f"networks/{network.id}"),
            DeletePrefix(f"addresses/{network.id}/"),
        ]
        if network.driver != "bridge":
            await self._store.txn([], operations)
            if bridge.driver is not None and network.link_made:
                await run_in(self._workshop.reaper, self._remove_by, bridge.driver, network)
            return network
        await self._store.txn([], [*operations, Put(_NOTED + network.bridge, b"")])
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

        The first request is eth0, the next eth1 …, as far as they ask for no other name. For each IP version, the
        first with the highest gateway priority that isn't internal has the default route and the published
        ports. `namespace` is a descriptor of the container's own empty network namespace, borrowed,
        when it has one that belongs to its user namespace; else one of the host's is handed out.

        Raises NotFound, Invalid, Conflict (address in use, container connected), PortInUse, Unavailable, HostError.
        """
        self._check_feature()
        if container_id in self._holdings.attached:
            raise Conflict(f"container {container_id[:12]} is connected already: disconnect it first")
        wanted = self._holdings.resolve(requests)
        specs = [spec for _, spec in wanted]
        attached = Attached()
        self._holdings.attached[container_id] = attached
        async with AsyncExitStack() as undo:
            undo.callback(self._holdings.attached.pop, container_id)
            ready = self._assembly.take_ready(wanted) if namespace < 0 else None
            if ready is not None:
                namespace, endpoints = ready.namespace, [ready.endpoint]
                undo.callback(self._assembly.bury, ready.endpoint)
                undo.callback(os.close, namespace)
            elif namespace < 0:
                endpoints = self._holdings.route(await self._assembly.allocate(wanted, undo))
                namespace = await self._assembly.make(endpoints, specs)
                undo.callback(os.close, namespace)
            else:
                endpoints = self._holdings.route(await self._assembly.allocate(wanted, undo))
                await self._assembly.fill(endpoints, specs, namespace)
            self._holdings.set_members(container_id, endpoints, undo)
            attached.endpoints = endpoints
            self._publishing.publish(attached, ports, f"{hostname} ({container_id[:12]})", undo)
            await self._write_addresses(container_id, endpoints)
            undo.pop_all()
        return replace(_attachment(attached), namespace=namespace)

    async def disconnect(self, container_id: str) -> None:
        """Take a container's ports and addresses back. Idempotent; slow deletions happen behind."""
        attached = self._holdings.attached.pop(container_id, None)
        if attached is None:
            return
        for endpoint in attached.endpoints:
            self._holdings.forget_member(container_id, endpoint)
        self._publishing.withdraw(attached.held)
        for endpoint in attached.endpoints:
            self._assembly.bury(endpoint)

    async def republish(self, container_id: str, ports: Sequence[PortBinding]) -> tuple[PortBinding, ...]:
        """Make `ports` the published ones of a running container, and return them with the host ports chosen.

        All of them, or all stays as it was; what stays is untouched, with its connections. Nothing is stored: the
        caller keeps what comes back, for `reconcile`. Raises PortInUse, Invalid, HostError, Unavailable, and
        Conflict for a container that isn't connected or is on internal networks alone.
        """
        self._check_feature()
        attached = self._holdings.attached.get(container_id) or Attached()
        self._publishing.republish(attached, ports, container_id[:12])
        return _attachment(attached).ports

    async def attach(self, container_id: str, request: EndpointSpec, namespace: int) -> Attachment:
        """Connect a running container to one more network; `namespace` is a descriptor, borrowed.

        Returns all that the container holds now, without a namespace: default routes and published ports may have
        gone over to the new endpoint. Raises as `connect` does, and Forbidden when the container is on that network
        already.
        """
        self._check_feature()
        attached = self._holdings.attached.get(container_id) or Attached()
        [(bridge, spec)] = self._holdings.resolve([request])
        if container_id in bridge.members:
            raise Forbidden(f"container is already connected to network {bridge.network.name}")
        before = attached.endpoints
        used = {endpoint.interface for endpoint in before}
        async with AsyncExitStack() as undo:
            endpoints = await self._assembly.allocate([(bridge, spec)], undo, used=used)
            await self._assembly.add(endpoints[0], spec, namespace)
            self._holdings.set_members(container_id, endpoints, undo)
            await self._write_addresses(container_id, endpoints)
            await self._settle(container_id, attached, [*before, *endpoints], namespace)
            self._holdings.attached[container_id] = attached
            undo.pop_all()
        return _attachment(attached)

    async def detach(self, container_id: str, network: str, namespace: int = -1) -> Attachment:
        """Disconnect a running container from one network. NotFound when it isn't connected.

        With `namespace`, the container's, its default routes and published ports go over to another network, if one
        is left that has them. Returns all that the container holds now.
        """
        found = self.find_network(network)
        attached = self._holdings.attached.get(container_id)
        endpoint = next(
            (e for e in (attached.endpoints if attached else ()) if e.network_id == found.id), None
        )
        if attached is None or endpoint is None:
            raise NotFound(f"container {container_id[:12]} is not connected to network {found.name}")
        left = [e for e in attached.endpoints if e is not endpoint]
        attached.endpoints = left
        self._holdings.forget_member(container_id, endpoint)
        self._publishing.withdraw_from(attached, endpoint)
        if not endpoint.host_interface and namespace >= 0:
            await self._assembly.take_out(endpoint, namespace)
        self._assembly.bury(endpoint, alive=True)
        await self._reaper.flush()  # the container may be connected again at once, by the same interface name
        if left and namespace >= 0:
            try:
                await self._settle(container_id, attached, left, namespace)
            except CoveError as error:
                log.warning("container %s is left without a way out: %s", container_id[:12], error)
        return _attachment(attached)

    async def _settle(
        self, container_id: str, attached: Attached, endpoints: Sequence[Endpoint], namespace: int
    ) -> None:
        """Give a running container's endpoints the default routes and the published ports that they should have."""
        before = attached.endpoints
        routed = self._holdings.route(endpoints)
        changed = [e for e, old in zip(routed, endpoints, strict=True) if _routes(e) - _routes(old)]
        attached.endpoints = routed
        try:
            self._publishing.follow(attached, container_id[:12])
            if changed:
                await self._assembly.reroute(changed, namespace)
        except BaseException:
            attached.endpoints = before
            self._publishing.follow(attached, container_id[:12])
            raise
        for endpoint in routed:
            self._holdings.bridges[endpoint.network_id].members[container_id] = endpoint

    async def visit(self, namespace: int, work: Callable[[], T]) -> T:
        """Do something quick in a container's namespace (a descriptor, borrowed), in a thread. Raises HostError."""
        return await run_in(self._workshop.makers, self._workshop.inside, namespace, work)

    async def reconcile(self, alive: Mapping[str, Alive]) -> None:
        """After a restart: publish again what is alive, free everything else. Before the first connect."""
        for container_id, holds in alive.items():
            if container_id not in self._holdings.attached:
                await recovery.readopt(self._holdings, self._store, self._publishing, container_id, holds)
        if self._missing is None:
            self._publishing.replace()
        await recovery.free_stale(self._holdings, self._store, self._reaper)
        if self._missing is None:
            known = {e.host_interface for a in self._holdings.attached.values() for e in a.endpoints}
            known |= self._pool.names()
            known |= {endpoint.host_interface for endpoint in self._holdings.pending.values()}
            made = [s for bridge in self._holdings.bridges.values() for s in bridge.segments]
            for segment in made:
                segment.ports.intersection_update(known)
            indexes = [segment.index for segment in made]
            stale = await run_in(self._workshop.reaper, self._upkeep.stale_links, indexes, known)
            if stale:
                await self._reaper.delete_links(stale)

    async def check(self) -> None:
        """Repair what others changed: rules that are gone, firewalls that drop. Called periodically."""
        self._pool.relax()
        if self._missing is not None:
            return
        async with self._host:
            rewritten = await run_in(
                self._workshop.reaper, self._upkeep.check, self._holdings.bridge_networks()
            )
        if rewritten:
            self._publishing.replace()

    # --- parts ---------------------------------------------------------------------------

    async def _repair(self) -> None:
        try:
            made = await run_in(self._workshop.reaper, self._upkeep.start, self._holdings.bridge_networks())
        except FeatureMissing as error:
            self._missing = error
            log.warning("%s; networks host and none work", error)
            return
        for network_id, found in made.items():
            self._holdings.bridges[network_id].segments = found
        if self._settings.bind_outside is not None:
            try:
                await run_in(self._workshop.reaper, self._upkeep.keep_clients)
            except HostError as error:
                log.warning("published ports show containers the bridge instead of their clients: %s", error)
        for bridge in self._holdings.bridges.values():
            if bridge.driver is not None:
                try:
                    await run_in(self._workshop.reaper, self._apply, bridge.driver, bridge.network)
                except CoveError as error:
                    log.warning("network %s can't be used: %s", bridge.network.name, error)
        for item in await self._store.range(_NOTED):
            await self._take_link_off(item.key.removeprefix(_NOTED))

    async def _write_addresses(self, container_id: str, endpoints: Iterable[Endpoint]) -> None:
        keys = [key for endpoint in endpoints for key in address_keys(endpoint)]
        puts = [Put(key, container_id.encode()) for key in keys]
        result = await self._store.txn([absent(key) for key in keys], puts)
        if not result.succeeded:
            raise Conflict(
                f"Address already in use: one of {', '.join(keys)} was given out meanwhile; try again"
            )

    async def _take_off(self, network: Network) -> None:
        """Remove the bridge of a network that has no record, and its rules."""
        await self._take_link_off(network.bridge)

    async def _take_link_off(self, bridge: str) -> None:
        async with self._host:
            networks = self._holdings.bridge_networks()
            if all(network.bridge != bridge for network in networks):
                await run_in(self._workshop.reaper, self._upkeep.remove, bridge, networks)
        await self._store.txn([], [Delete(_NOTED + bridge)])

    def _check_feature(self) -> None:
        if self._missing is not None:
            raise FeatureMissing(str(self._missing))

    async def _extend(self, bridge: Bridge, number: int) -> int:
        async with self._host:
            networks = self._holdings.bridge_networks()
            return await run_in(self._workshop.reaper, self._upkeep.extend, bridge.network, number, networks)

    def _watch_rules(self) -> None:
        try:
            self._watch = RuleWatch(self._disturbed.set)
        except OSError as error:
            log.warning("changes of others' rules are noticed after %d s: %s", _CHECK_PERIOD_S, error)

    async def _check_forever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_CHECK_PERIOD_S):
                    await self._disturbed.wait()
                await asyncio.sleep(_GATHER_S)  # a firewall's reload is many changes
            except TimeoutError:
                pass
            self._disturbed.clear()
            try:
                await self.check()
            except (CoveError, OSError) as error:
                log.warning("the network's rules can't be checked: %s", error)
            await asyncio.sleep(_PAUSE_S)


def _attachment(attached: Attached) -> Attachment:
    return Attachment(
        namespace=-1,
        endpoints=tuple(attached.endpoints),
        ports=tuple(item.binding for item in attached.held),
    )


def _routes(endpoint: Endpoint) -> set[str]:
    return {gateway for gateway in (endpoint.gateway4, endpoint.gateway6) if gateway}


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError:
        return ""
