"""Volumes: list, create, inspect, delete, prune."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cove.api.docker import wire
from cove.api.docker.context import Api
from cove.api.docker.filters import any_pattern, boolean, matches_labels, parse_filters
from cove.api.docker.mounts import string_map
from cove.api.docker.pruning import VOLUME_PRUNE_KEYS, select_volumes
from cove.api.docker.text import rfc3339
from cove.api.http import NO_CONTENT, Request, Response, json_response
from cove.api.router import Route
from cove.model.errors import Invalid, NotImplementedHere, Unavailable
from cove.model.objects import VolumeRecord
from cove.storage.drivers import DriverVolume
from cove.storage.volume_options import shown_options

LIST_KEYS = frozenset(("dangling", "driver", "label", "name"))


def volume_json(record: VolumeRecord, told: DriverVolume | None = None) -> dict[str, Any]:
    """`told` is what the volume's driver says of it."""
    found: dict[str, Any] = {
        "CreatedAt": rfc3339(record.created_ns // 1_000_000_000 * 1_000_000_000),
        "Driver": record.driver,
        "Labels": record.labels or None,
        "Mountpoint": (told.mountpoint if told is not None else "") or record.mountpoint,
        "Name": record.name,
        "Options": shown_options(record.options) or None,
        "Scope": record.scope,
    }
    if told is not None:
        if told.created:
            found["CreatedAt"] = told.created
        if told.status:
            found["Status"] = told.status
    return found


async def list_volumes(api: Api, request: Request) -> Response:
    filters = parse_filters(request.query.get("filters"), LIST_KEYS)
    accepts = _volume_filter(api, filters)
    entries, warnings = await api.engine.volumes.survey()
    found = [volume_json(record, told) for record, told in entries if accepts(record)]
    return json_response({"Volumes": found, "Warnings": list(warnings) or None})


def _volume_filter(api: Api, filters: Mapping[str, Sequence[str]]) -> Callable[[VolumeRecord], bool]:
    dangling = boolean(filters, "dangling", False) if "dangling" in filters else None
    drivers, labels = filters.get("driver", ()), filters.get("label", ())
    named = any_pattern(filters["name"]) if filters.get("name") else None
    used = {m.name for view in api.engine.list() for m in view.container.mounts if m.name}
    return lambda record: (
        (dangling is None or dangling == (record.name not in used))
        and (not drivers or record.driver in drivers)
        and matches_labels(record.labels, labels)
        and (named is None or named(record.name))
    )


async def create(api: Api, request: Request) -> Response:
    body = await wire.read(request, wire.VolumeBody)
    if body.cluster_volume_spec:
        raise NotImplementedHere("ClusterVolumeSpec: Cove has no cluster volumes; leave it out")
    if body.name and "\0" in body.name:
        raise Invalid("Name: a NUL byte isn't allowed")
    known = body.name is not None and api.engine.volumes.find(body.name) is not None
    record = await api.engine.volumes.create(
        body.name or "", body.driver or "", string_map(body.driver_opts), string_map(body.labels)
    )
    if not known:
        api.publish("volume", "create", record.name, {"driver": record.driver})
    return json_response(volume_json(record), 201)


async def inspect(api: Api, request: Request) -> Response:
    return json_response(volume_json(*await api.engine.volumes.look(request.name)))


async def update(api: Api, request: Request) -> Response:
    """Only a swarm's cluster volumes are updated here."""
    raise Unavailable(
        "This node is not a swarm manager, and only a swarm's cluster volumes can be updated here"
    )


async def remove(api: Api, request: Request) -> Response:
    record = api.engine.volumes.find(request.name)
    await api.engine.volumes.remove(
        request.name, force=request.query.flag("force"), in_use=api.engine.volume_users
    )
    if record is not None:
        api.publish("volume", "destroy", record.name, {"driver": record.driver})
    return NO_CONTENT


async def prune(api: Api, request: Request) -> Response:
    """Unused anonymous volumes; with the filter `all` (always, before API 1.42) those with names too."""
    selected = select_volumes(parse_filters(request.query.get("filters"), VOLUME_PRUNE_KEYS), request.version)
    pruned = await api.engine.volumes.prune(
        in_use=api.engine.volume_users, keep=lambda record: not selected(record), named_too=True
    )
    for name in pruned.names:
        api.publish("volume", "destroy", name, {"driver": "local"})
    api.publish("volume", "prune", "", {"reclaimed": str(pruned.reclaimed_bytes)})
    return json_response(
        {"VolumesDeleted": list(pruned.names) or None, "SpaceReclaimed": pruned.reclaimed_bytes}
    )


ROUTES: tuple[Route[Api], ...] = (
    ("GET", "/volumes", list_volumes),
    ("POST", "/volumes/create", create),
    ("POST", "/volumes/prune", prune),
    ("GET", "/volumes/{name}", inspect),
    ("PUT", "/volumes/{name}", update),
    ("DELETE", "/volumes/{name}", remove),
)
