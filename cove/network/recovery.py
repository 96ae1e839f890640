"""What a starting daemon finds: stored networks and addresses, and containers that outlived the daemon before it.

Order that must hold: `load_networks` (records and addresses into memory), then the host is repaired, then `readopt` for
each container that lives, then `free_stale` for what nobody has.
"""

from __future__ import annotations

import logging
import secrets
import time

import msgspec

from cove.model.errors import NotFound
from cove.model.objects import IpamPool, Network
from cove.network import bridges, records
from cove.network.addresses import parse_subnet
from cove.network.endpoints import address_keys, parse_address_key
from cove.network.holdings import Attached, Bridge, Holdings
from cove.network.links import Subnet
from cove.network.model import BRIDGE, HOST, NONE, Alive, NetworkSettings
from cove.network.namespaces import Workshop, run_in
from cove.network.publishing import Publishing
from cove.network.reaper import Reaper
from cove.network.upkeep import Upkeep
from cove.store.interface import Op, Put, Store

log = logging.getLogger(__name__)


async def load_networks(
    holdings: Holdings,
    store: Store,
    settings: NetworkSettings,
    *,
    workshop: Workshop,
    upkeep: Upkeep,
    seed: str,
) -> None:
    """Fill `holdings` from the store; the built-in networks are made where they are missing.

    Raises Invalid for settings that can't be, HostError.
    """
    for item in await store.range("networks/"):
        network = msgspec.json.decode(item.value, type=Network)
        holdings.networks[network.id] = network
    names = {network.name: network for network in holdings.networks.values()}
    made = [
        records.plan_built_in(name, id=secrets.token_hex(32), now_ns=time.time_ns())
        for name in (HOST, NONE)
        if name not in names
    ]
    for network in made:
        holdings.networks[network.id] = network
    own = [network.bridge for network in holdings.bridge_networks()]
    links = [settings.bridge, *own]
    taken, mtu = await run_in(workshop.reaper, upkeep.survey, links)
    known = names.get(BRIDGE)
    default = _plan_default(known, holdings, settings, taken=taken, mtu=mtu, seed=seed)
    if default != known:
        made.append(default)
        holdings.networks[default.id] = default
    if made:
        operations: list[Op] = [Put(f"networks/{n.id}", msgspec.json.encode(n)) for n in made]
        await store.txn([], operations)
    for network in holdings.networks.values():
        if network.name not in (HOST, NONE):
            try:
                holdings.bridges[network.id] = Bridge.of(network)
            except NotFound as error:
                log.warning("network %s can't be used: %s", network.name, error)
    for item in await store.range("addresses/"):
        holdings.occupy(*parse_address_key(item.key))


async def readopt(
    holdings: Holdings, store: Store, publishing: Publishing, container_id: str, holds: Alive
) -> None:
    """Take over a container that outlived the daemon: its endpoints, its addresses and its ports."""
    attached = Attached()
    operations: list[Op] = []
    for endpoint in holds.endpoints:
        bridge = holdings.bridges.get(endpoint.network_id)
        if bridge is None:
            log.warning(
                "container %s is on a network that is gone: %s", container_id[:12], endpoint.network_name
            )
            continue
        for key in address_keys(endpoint):
            holdings.occupy(*parse_address_key(key))
            operations.append(Put(key, container_id.encode()))
        bridge.members[container_id] = endpoint
        attached.endpoints.append(endpoint)
    holdings.attached[container_id] = attached
    if operations:
        await store.txn([], operations)
    publishing.adopt(container_id, attached, holds.ports)


async def free_stale(holdings: Holdings, store: Store, reaper: Reaper) -> None:
    """Free the stored addresses that no attached container has: it has ended, or a crash cut its connecting off."""
    kept = {
        key
        for attached in holdings.attached.values()
        for endpoint in attached.endpoints
        for key in address_keys(endpoint)
    }
    stale = [item.key for item in await store.range("addresses/") if item.key not in kept]
    await reaper.delete_keys(stale)
    for key in stale:
        holdings.free_address(*parse_address_key(key))


def _plan_default(
    known: Network | None,
    holdings: Holdings,
    settings: NetworkSettings,
    *,
    taken: list[Subnet],
    mtu: int,
    seed: str,
) -> Network:
    """The default bridge's record: as stored, as far as the settings leave it open."""
    stored = {parse_subnet(p.subnet).version: p for p in known.ipam} if known else {}
    with_ipv6 = settings.ipv6 != "none" and bridges.has_ipv6()
    asked = [
        IpamPool(
            subnet=settings.ipv4 or getattr(stored.get(4), "subnet", ""),
            gateway=settings.gateway4,
            ip_range=settings.range4,
        )
    ]
    if with_ipv6:
        asked.append(
            IpamPool(
                subnet=settings.ipv6 or getattr(stored.get(6), "subnet", ""),
                gateway=settings.gateway6,
                ip_range=settings.range6,
            )
        )
    own = [parse_subnet(p.subnet) for n in holdings.networks.values() if n is not known for p in n.ipam]
    pools = records.plan_default_pools(
        asked,
        with_ipv6=with_ipv6,
        taken=[*own, *taken],
        seed=seed,
        address_pools=settings.default_address_pools,
    )
    base = known or Network(id=secrets.token_hex(32), name=BRIDGE, driver="bridge", created_ns=time.time_ns())
    return msgspec.structs.replace(
        base,
        ipam=pools,
        ipv6=len(pools) > 1,
        bridge=settings.bridge,
        mtu=settings.mtu or mtu,
        options=dict(settings.bridge_options),
    )
