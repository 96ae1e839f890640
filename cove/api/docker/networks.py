"""Networks: list, inspect, create, delete, connect, disconnect, prune."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import msgspec

from cove.api.docker import wire
from cove.api.docker.context import Api
from cove.api.docker.endpoints import decode_endpoint
from cove.api.docker.filters import (
    any_pattern,
    boolean,
    matches_labels,
    parse_filters,
)
from cove.api.docker.mounts import string_map
from cove.api.docker.pruning import NETWORK_PRUNE_KEYS, select_networks
from cove.api.docker.text import rfc3339
from cove.api.http import NO_CONTENT, Request, Response, json_response
from cove.api.router import Route
from cove.model.errors import CoveError, Invalid, NotImplementedHere
from cove.model.objects import IpamPool, Network
from cove.network.model import BUILT_IN

Json = dict[str, Any]

LIST_KEYS = frozenset(("dangling", "driver", "id", "label", "name", "scope", "type"))


def network_json(api: Api, network: Network, version: int, *, members: bool) -> Json:
    """A network; `members`: with the containers that are connected now."""
    config = []
    for pool in network.ipam:
        entry: Json = {"Subnet": pool.subnet}
        if pool.gateway:
            entry["Gateway"] = pool.gateway
        if pool.ip_range:
            entry["IPRange"] = pool.ip_range
        if pool.auxiliary:
            entry["AuxiliaryAddresses"] = pool.auxiliary
        config.append(entry)
    found: Json = {
        "Name": network.name,
        "Id": network.id,
        "Created": rfc3339(network.created_ns),
        "Scope": "local",
        "Driver": "null" if network.driver == "none" else network.driver,
        "EnableIPv4": network.ipv4,
        "EnableIPv6": network.ipv6,
        "IPAM": {"Driver": "default", "Options": network.ipam_options or None, "Config": config or None},
        "Internal": network.internal,
        "Attachable": network.attachable,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": _members(api, network) if members else {},
        "Options": network.options,
        "Labels": network.labels,
    }
    if version < 1048:
        del found["EnableIPv4"]
    return found


def _members(api: Api, network: Network) -> Json:
    found: Json = {}
    for container_id, endpoint in api.engine.networks.members(network.id):
        try:
            name = api.engine.find(container_id).container.name
        except CoveError:
            continue  # gone since
        found[container_id] = {
            "Name": name,
            "EndpointID": endpoint.endpoint_id,
            "MacAddress": endpoint.mac,
            "IPv4Address": f"{endpoint.ipv4}/{endpoint.ipv4_prefix}" if endpoint.ipv4 else "",
            "IPv6Address": f"{endpoint.ipv6}/{endpoint.ipv6_prefix}" if endpoint.ipv6 else "",
        }
    return found


def used_networks(api: Api, without: Container[str] = ()) -> set[str]:
    """Ids of the networks that a container is on, or will be on once it starts; containers `without` don't count."""
    used: set[str] = set()
    for view in api.engine.list():
        if view.container.id in without:
            continue
        used.update(endpoint.network_id for endpoint in view.state.endpoints)
        for name in (view.container.spec.network_mode, *(e.network for e in view.container.spec.endpoints)):
            network = api.find_network(name)
            if network is not None:
                used.add(network.id)
    return used


async def list_networks(api: Api, request: Request) -> Response:
    filters = parse_filters(request.query.get("filters"), LIST_KEYS)
    accepts = _network_filter(api, filters)
    # containers were part of a list before API 1.28
    members = request.version < 1028
    return json_response(
        [
            network_json(api, network, request.version, members=members)
            for network in api.engine.networks.list_networks()
            if accepts(network)
        ]
    )


def _network_filter(api: Api, filters: Mapping[str, Sequence[str]]) -> Callable[[Network], bool]:
    drivers, ids, labels = filters.get("driver", ()), filters.get("id", ()), filters.get("label", ())
    scopes, types = filters.get("scope", ()), filters.get("type", ())
    named = any_pattern(filters["name"]) if filters.get("name") else None
    dangling = boolean(filters, "dangling", False) if "dangling" in filters else None
    for kind in types:
        if kind not in ("custom", "builtin"):
            raise Invalid(f"invalid filter 'type={kind}', expected custom or builtin")
    used = used_networks(api) if dangling is not None else set[str]()

    def accepts(network: Network) -> bool:
        built_in = network.name in BUILT_IN
        driver = "null" if network.driver == "none" else network.driver
        return (
            (not drivers or driver in drivers)
            and (not ids or network.id.startswith(tuple(ids)))
            and matches_labels(network.labels, labels)
            and (not scopes or "local" in scopes)
            and (not types or ("builtin" if built_in else "custom") in types)
            and (named is None or named(network.name))
            and (dangling is None or dangling == (network.id not in used and not built_in))
        )

    return accepts


async def inspect(api: Api, request: Request) -> Response:
    if request.query.get("scope") not in ("", "local"):
        raise Invalid(
            f"query parameter scope: Cove's networks have the scope local, got {request.query.get('scope')!r}"
        )
    network = api.engine.networks.find_network(request.name)
    return json_response(network_json(api, network, request.version, members=True))


async def create(api: Api, request: Request) -> Response:
    body = await wire.read(request, wire.NetworkBody, required=True)
    if not body.name:
        raise Invalid("Name: a network needs a name, e.g. backend")
    config_from = any((body.config_from or {}).values())
    if body.ingress or body.config_only or config_from or (body.scope or "local") != "local":
        raise NotImplementedHere(
            "Ingress, ConfigOnly, ConfigFrom and Scope: Cove's networks live on one machine; leave them out"
        )
    ipam = body.ipam or wire.IpamBody()
    if (ipam.driver or "default") != "default":
        raise Invalid(f"IPAM.Driver: ipam driver {ipam.driver!r} not found; leave it out, or use default")
    pools = []
    for index, pool in enumerate(ipam.config or ()):
        if not pool.subnet:
            raise Invalid(
                f"IPAM.Config[{index}].Subnet: invalid subnet: a subnet is needed, e.g. 172.30.0.0/16"
            )
        pools.append(
            IpamPool(
                subnet=pool.subnet,
                gateway=pool.gateway or "",
                ip_range=pool.ip_range or "",
                auxiliary=string_map(pool.auxiliary_addresses),
            )
        )
    network = await api.engine.networks.create(
        body.name,
        driver=body.driver or "bridge",
        ipam=pools,
        ipv4=body.enable_ipv4 is not False,
        ipv6=bool(body.enable_ipv6),
        internal=bool(body.internal),
        attachable=bool(body.attachable),
        labels=string_map(body.labels),
        options=string_map(body.options),
        ipam_options=string_map(ipam.options),
    )
    api.publish("network", "create", network.id, {"name": network.name, "type": network.driver})
    return json_response({"Id": network.id, "Warning": ""}, 201)


async def remove(api: Api, request: Request) -> Response:
    network = await api.engine.networks.remove(request.name)
    api.publish("network", "destroy", network.id, {"name": network.name, "type": network.driver})
    return NO_CONTENT


async def connect(api: Api, request: Request) -> Response:
    body = await wire.read(request, wire.ConnectBody, required=True)
    container = _container(body.container)
    network = api.engine.networks.find_network(request.name)
    config = body.endpoint_config or wire.EndpointConfig()
    if request.version < 1054:  # clients sent back what inspect had said, and it was ignored
        config = msgspec.structs.replace(config, mac_address=None)
    endpoint = decode_endpoint(network.id, config, "EndpointConfig")
    view = api.engine.find(container)
    await api.engine.connect_network(view.container.id, endpoint)
    if view.state.pid:  # else the start tells of it
        api.publish(
            "network",
            "connect",
            network.id,
            {"container": view.container.id, "name": network.name, "type": network.driver},
        )
    return Response(200)


async def disconnect(api: Api, request: Request) -> Response:
    body = await wire.read(request, wire.DisconnectBody, required=True)
    container = _container(body.container)
    network = api.engine.networks.find_network(request.name)
    view = api.engine.find(container)
    await api.engine.disconnect_network(view.container.id, network.id, force=bool(body.force))
    api.publish(
        "network",
        "disconnect",
        network.id,
        {"container": view.container.id, "name": network.name, "type": network.driver},
    )
    return Response(200)


def _container(name: str | None) -> str:
    if not name:
        raise Invalid("Container: a container's name or id is needed")
    return name


async def prune(api: Api, request: Request) -> Response:
    selected = select_networks(parse_filters(request.query.get("filters"), NETWORK_PRUNE_KEYS))
    used = used_networks(api)
    deleted = []
    for network in api.engine.networks.list_networks():
        if network.name in BUILT_IN or network.id in used:
            continue
        if not selected(network):
            continue
        try:
            await api.engine.networks.remove(network.id)
        except CoveError:
            continue  # taken into use, or removed, since
        deleted.append(network.name)
        api.publish("network", "destroy", network.id, {"name": network.name, "type": network.driver})
    api.publish("network", "prune", "", {"reclaimed": "0"})
    return json_response({"NetworksDeleted": deleted or None})


ROUTES: tuple[Route[Api], ...] = (
    ("GET", "/networks", list_networks),
    ("POST", "/networks/create", create),
    ("POST", "/networks/prune", prune),
    ("POST", "/networks/{name}/connect", connect),
    ("POST", "/networks/{name}/disconnect", disconnect),
    ("GET", "/networks/{name}", inspect),
    ("DELETE", "/networks/{name}", remove),
)
