"""`docker system df`: what images, containers and volumes take.

Until API 1.51 each kind is a list; since 1.52 each is a sum with its list in it, which `verbose` asks for, and a client
that doesn't ask gets both, as from dockerd 29 (moby, daemon/server/router/system).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from cove.api.docker.build import cache_json, mount_json
from cove.api.docker.containers import size_of
from cove.api.docker.context import Api
from cove.api.docker.images import count_uses
from cove.api.docker.images import summary_json as image_json
from cove.api.docker.summary import summary_json
from cove.api.docker.volumes import volume_json
from cove.api.http import Request, Response, json_response
from cove.api.router import Route
from cove.engine.types import View
from cove.model.errors import Invalid, NotFound

Json = dict[str, Any]
_TYPES = frozenset(("container", "image", "volume", "build-cache"))
_ACTIVE = ("running", "paused", "restarting")


async def disk_usage(api: Api, request: Request) -> Response:
    """`type` (API 1.42) chooses among the kinds."""
    types = request.query.all("type") if request.version >= 1042 else []
    for kind in types:
        if kind not in _TYPES:
            raise Invalid(f"unknown object type: {kind}, expected one of {', '.join(sorted(_TYPES))}")
    wanted = set(types) or _TYPES
    verbose = request.version >= 1052 and request.query.flag("verbose")
    legacy = request.version < 1052 or not verbose
    found: Json = {}
    if legacy:
        found.update(LayersSize=0, Images=None, Containers=None, Volumes=None, BuildCache=None)
    sums: Json = {}
    if "image" in wanted:
        images = _images(api, request.version)
        layers = api.engine.images.size_on_disk()
        if legacy:
            found.update(LayersSize=layers, Images=images)
        sums["ImageUsage"] = _image_sum(images, layers)
    if "container" in wanted:
        containers = await _containers(api, request.version)
        if legacy:
            found["Containers"] = containers
        active = [one for one in containers if one["State"] in _ACTIVE]
        sums["ContainerUsage"] = _sum(containers, active, "SizeRw")
    if "volume" in wanted:
        volumes = await _volumes(api)
        if legacy:
            found["Volumes"] = volumes
        flat = [{**one, "Size": max(0, one["UsageData"]["Size"])} for one in volumes]
        active = [one for one in flat if one["UsageData"]["RefCount"] > 0]
        sums["VolumeUsage"] = _sum(flat, active, "Size")
        sums["VolumeUsage"]["Items"] = volumes
    if "build-cache" in wanted:
        cache = await _build_cache(api)
        if legacy:
            found["BuildCache"] = cache
        sums["BuildCacheUsage"] = _sum(cache, [one for one in cache if one["Shared"]], "Size")
    if request.version < 1042:
        found["BuilderSize"] = api.builder.cache.used_bytes()
    if request.version >= 1052:
        for name, one in sums.items():
            found[name] = one if verbose else {key: value for key, value in one.items() if key != "Items"}
    return json_response(found)


async def _build_cache(api: Api) -> list[Json]:
    """The results of steps that builds keep, and their cache mounts."""
    shared = frozenset(diff_id for diff_id, _, users in api.engine.images.layer_uses() if users)
    mounts = await asyncio.to_thread(api.builder.mounts.usage)
    entries = [entry for entry in api.builder.cache.entries() if entry.note.description]
    return [*(cache_json(entry, shared) for entry in entries), *(mount_json(mount) for mount in mounts)]


def _sum(items: list[Json], active: list[Json], size: str) -> Json:
    total, used = sum(one.get(size, 0) for one in items), sum(one.get(size, 0) for one in active)
    return {
        "ActiveCount": len(active),
        "TotalCount": len(items),
        "TotalSize": total,
        "Reclaimable": total - used,
        "Items": items,
    }


def _image_sum(images: list[Json], layers: int) -> Json:
    active = [one for one in images if one["Containers"] > 0]
    used = sum(one["Size"] - one["SharedSize"] for one in active) + max(
        (one["SharedSize"] for one in active), default=0
    )
    found = _sum(images, active, "Size")
    found.update(TotalSize=layers, Reclaimable=max(0, layers - used))
    return found


def _images(api: Api, version: int) -> list[Json]:
    counts, shared = count_uses(api), api.engine.images.shared_sizes()
    return [
        {**image_json(image, version, counts), "SharedSize": shared.get(image.id, 0)}
        for image in api.engine.images.list_images()
    ]


async def _containers(api: Api, version: int) -> list[Json]:
    now_ns = time.time_ns()
    views = api.engine.list()
    sizes = await asyncio.gather(*(_size(api, view) for view in views))
    return [
        summary_json(
            view,
            image=view.container.image_name,
            health=api.health(view),
            now_ns=now_ns,
            find_network=api.find_network,
            size=size,
            version=version,
        )
        for view, size in zip(views, sizes, strict=True)
        if size is not None
    ]


async def _size(api: Api, view: View) -> tuple[int, int] | None:
    try:
        return await size_of(api, view)
    except NotFound:
        return None  # removed meanwhile


async def _volumes(api: Api) -> list[Json]:
    records = api.engine.volumes.list()
    sizes = await asyncio.gather(*(volume_size(api, record.name) for record in records))
    return [
        {
            **volume_json(record),
            "UsageData": {"Size": size, "RefCount": len(api.engine.volume_users(record.name))},
        }
        for record, size in zip(records, sizes, strict=True)
    ]


async def volume_size(api: Api, name: str) -> int:
    """Bytes; -1, as Docker has it, where that can't be told."""
    with contextlib.suppress(NotFound):
        usage = await api.engine.volumes.usage(name)
        if usage is not None:
            return usage.size_bytes
    return -1


ROUTES: tuple[Route[Api], ...] = (("GET", "/system/df", disk_usage),)
