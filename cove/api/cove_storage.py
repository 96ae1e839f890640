"""Cove's own API, /cove/v1: sizes of volumes, what takes the disk's space, and what a prune would take."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from cove.api.docker import wire
from cove.api.docker.context import Api
from cove.api.docker.filters import parse_filters
from cove.api.docker.networks import used_networks
from cove.api.docker.pruning import (
    CONTAINER_PRUNE_KEYS,
    IMAGE_PRUNE_KEYS,
    NETWORK_PRUNE_KEYS,
    VOLUME_PRUNE_KEYS,
    select_containers,
    select_images,
    select_networks,
    select_volumes,
)
from cove.api.docker.usage import volume_size
from cove.api.docker.volumes import volume_json
from cove.api.http import Request, Response, json_response
from cove.api.router import Route
from cove.engine.types import View
from cove.image.types import Use
from cove.model.errors import CoveError, Invalid
from cove.model.objects import Image
from cove.network.model import BUILT_IN

Json = dict[str, Any]
KINDS = ("containers", "networks", "volumes", "images")
_STOPPED = ("created", "exited", "dead")


class VolumeUpdate(wire.Wire, frozen=True, kw_only=True):
    size: str | None = None


async def update_volume(api: Api, request: Request) -> Response:
    """Change the size of the volume that the query names; it was made with one."""
    name = request.query.get("name")
    if not name:
        raise Invalid("name: is missing: name a volume, e.g. /cove/v1/volumes/update?name=data")
    body = await wire.read(request, VolumeUpdate, required=True)
    if not body.size:
        raise Invalid("Size: is missing: say how large the volume may be, e.g. 20g")
    record = await api.engine.volumes.resize(name, body.size)
    api.publish("volume", "update", record.name, {"driver": record.driver})
    return json_response(volume_json(record))


# --- prune, seen beforehand -----------------------------------------------------------------


async def plan_prune(api: Api, request: Request) -> Response:
    """What prunes of these kinds would delete, one after the other as `system prune` does; nothing is.

    `kind` is repeated: containers, networks, volumes, images; each has its filters in the query by its name, as
    they are given to the prune itself.
    """
    kinds = request.query.all("kind")
    for kind in kinds:
        if kind not in KINDS:
            raise Invalid(f"kind: {kind!r} isn't one of {', '.join(KINDS)}")
    found: Json = {}
    gone: set[str] = set()
    freed = 0
    if "containers" in kinds:
        views = api.engine.prunable(
            select_containers(parse_filters(request.query.get("containers"), CONTAINER_PRUNE_KEYS))
        )
        gone = {view.container.id for view in views}
        found["Containers"] = [await _container(api, view) for view in views]
        freed += sum(one["Size"] for one in found["Containers"])
    if "networks" in kinds:
        accepts = select_networks(parse_filters(request.query.get("networks"), NETWORK_PRUNE_KEYS))
        used = used_networks(api, gone)
        found["Networks"] = [
            {"Id": network.id, "Name": network.name}
            for network in api.engine.networks.list_networks()
            if network.name not in BUILT_IN and network.id not in used and accepts(network)
        ]
    if "volumes" in kinds:
        chosen = select_volumes(
            parse_filters(request.query.get("volumes"), VOLUME_PRUNE_KEYS), request.version
        )
        found["Volumes"] = [
            {"Name": record.name, "Size": max(0, await volume_size(api, record.name))}
            for record in api.engine.volumes.list()
            if record.driver == "local"
            and chosen(record)
            and not set(api.engine.volume_users(record.name)) - gone
        ]
        freed += sum(one["Size"] for one in found["Volumes"])
    if "images" in kinds:
        lines, size = api.engine.images.plan_prune(
            select_images(parse_filters(request.query.get("images"), IMAGE_PRUNE_KEYS)),
            _uses_without(api, gone),
        )
        found["Images"] = [
            {"Untagged": line.untagged} if line.untagged else {"Deleted": line.deleted} for line in lines
        ]
        freed += size
    return json_response({**found, "SpaceReclaimed": freed})


async def _container(api: Api, view: View) -> Json:
    return {
        "Id": view.container.id,
        "Name": view.container.name,
        "Image": view.container.image_name,
        "State": view.state.status,
        "Size": await _writable(api, view),
    }


def _uses_without(api: Api, gone: set[str]) -> Any:
    def uses(image_id: str) -> Sequence[Use]:
        return [use for use in api.engine.image_users(image_id) if use.container_id not in gone]

    return uses


async def _writable(api: Api, view: View) -> int:
    try:
        return await api.engine.writable_size(view.container.id)
    except CoveError:
        return 0  # removed meanwhile


# --- what takes the space -------------------------------------------------------------------


async def disk(api: Api, request: Request) -> Response:
    """Everything that takes space, largest first: what it is, who uses it, and the command that would free it."""
    views = api.engine.list()
    rows = _layers(api, views)
    parts = await asyncio.gather(
        *(_container_rows(api, view) for view in views),
        *(_volume_row(api, record.name, views) for record in api.engine.volumes.list()),
    )
    for part in parts:
        rows += part
    trash = await api.engine.trash_size()
    if trash:
        rows.append(_row("trash", "trash", "", trash, [], "", "is being deleted"))
    rows.sort(key=lambda row: (-row["Size"], row["Kind"], row["Name"]))
    total = sum(row["Size"] for row in rows)
    free = sum(row["Size"] for row in rows if row["Free"] and not row["UsedBy"])
    return json_response(
        {"Items": rows, "TotalSize": total, "Unused": free, "DataRoot": str(api.engine.settings.data_root)}
    )


def _row(
    kind: str, name: str, ident: str, size: int, users: Sequence[str], free: str, note: str = ""
) -> Json:
    return {
        "Kind": kind,
        "Name": name,
        "Id": ident,
        "Size": size,
        "UsedBy": list(users),
        "Free": free,
        "Note": note,
    }


def _layers(api: Api, views: Sequence[View]) -> list[Json]:
    rows = []
    for diff_id, size, images in api.engine.images.layer_uses():
        ids = {image.id for image in images}
        users = [
            view
            for view in views
            if view.container.image_id in ids or any(point.image_id in ids for point in view.container.mounts)
        ]
        names = [_image_name(image) for image in images]
        note = f"shared by {len(images)} images" if len(images) > 1 else ""
        free = _remove_containers(users)
        removal = "cove image rm " + " ".join(names) if names else "cove image prune"
        rows.append(
            _row(
                "layer",
                ", ".join(names) or "no image",
                diff_id,
                size,
                [f"container {view.container.name}" for view in users],
                f"{free} && {removal}" if free else removal,
                note,
            )
        )
    return rows


def _image_name(image: Image) -> str:
    return image.names[0] if image.names else image.id.removeprefix("sha256:")[:12]


def _remove_containers(views: Sequence[View]) -> str:
    if not views:
        return ""
    running = any(view.state.status not in _STOPPED for view in views)
    names = " ".join(view.container.name for view in views)
    return f"cove rm {'-f ' if running else ''}{names}"


async def _container_rows(api: Api, view: View) -> list[Json]:
    container = view.container
    status = view.state.status
    users = [f"container {container.name}"] if status not in _STOPPED else []
    free = _remove_containers([view])
    usage = api.engine.layer_usage(view)
    size, log = await asyncio.gather(_writable(api, view), api.engine.log_size(view))
    note = "" if usage is None else f"{'full: ' if usage.full else ''}may grow to {usage.limit_bytes} bytes"
    rows = [_row("container", container.name, container.id, size, users, free, note or status)]
    if log:
        told = "" if container.log.options.get("max-size") else "--log-opt max-size=10m bounds it"
        rows.append(_row("log", container.name, container.id, log, users, free, told))
    return rows


async def _volume_row(api: Api, name: str, views: Sequence[View]) -> list[Json]:
    size = await volume_size(api, name)
    record = api.engine.volumes.find(name)
    if record is None or size < 0:
        return []
    users = set(api.engine.volume_users(name))
    using = [view for view in views if view.container.id in users]
    removal = f"cove volume rm {name}"
    containers = _remove_containers(using)
    return [
        _row(
            "volume",
            name,
            "",
            size,
            [f"container {view.container.name}" for view in using],
            f"{containers} && {removal}" if containers else removal,
            "anonymous"
            if record.anonymous
            else f"may grow to {record.size_bytes} bytes"
            if record.size_bytes
            else "",
        )
    ]


ROUTES: tuple[Route[Api], ...] = (
    ("POST", "/cove/v1/volumes/update", update_volume),
    ("GET", "/cove/v1/prune", plan_prune),
    ("GET", "/cove/v1/disk", disk),
)
