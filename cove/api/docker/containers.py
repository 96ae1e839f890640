"""Containers: list, create, inspect, and every change of state."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Literal

import msgspec

from cove.api.docker import wire
from cove.api.docker.context import ARCHITECTURES, Api
from cove.api.docker.decode import decode_create, parse_platform
from cove.api.docker.encode import health_word, inspect_json, networks_json
from cove.api.docker.fields import check_fields
from cove.api.docker.filters import (
    CONTAINER_KEYS,
    container_filter,
    parse_filters,
)
from cove.api.docker.limits import decode_resources, decode_restart
from cove.api.docker.pruning import CONTAINER_PRUNE_KEYS, select_containers
from cove.api.docker.summary import summary_json
from cove.api.http import NO_CONTENT, Request, Response, encode_json, json_response
from cove.api.router import Route
from cove.engine.types import View
from cove.model.container import Resources
from cove.model.errors import CoveError, Invalid, NotFound
from cove.model.objects import Image

MAX_SECONDS = 1 << 31
CONDITIONS: tuple[Literal["not-running", "next-exit", "removed"], ...] = (
    "not-running",
    "next-exit",
    "removed",
)


# fields of an update that API 1.55 brought: null leaves what was, [] clears it
_DEVICE_RATES = {
    "blkio_weight_device": "blkio_weight_device",
    "blkio_device_read_bps": "read_bps",
    "blkio_device_write_bps": "write_bps",
    "blkio_device_read_iops": "read_iops",
    "blkio_device_write_iops": "write_iops",
}


async def list_containers(api: Api, request: Request) -> Response:
    query = request.query
    filters = parse_filters(query.get("filters"), CONTAINER_KEYS)
    limit = query.integer("limit", 0, low=-1, high=MAX_SECONDS) or 0
    everything = query.flag("all") or limit > 0 or "status" in filters
    with_size = query.flag("size")
    engine = api.engine

    def names_of_networks(view: View) -> set[str]:
        networks = networks_json(view, api.find_network)
        return {*networks, *(network["NetworkID"] for network in networks.values())}

    def image_id(reference: str) -> str:
        try:
            image: Image = engine.images.find_image(reference)
        except CoveError:
            return ""  # an image that isn't there has no descendants
        return image.id

    accepts = container_filter(
        filters,
        find=engine.find,
        find_image_id=image_id,
        network_names=names_of_networks,
        health=lambda view: health_word(api.health(view)),
    )
    names = _ImageNames(api)
    link_names = engine.link_names()
    now_ns = time.time_ns()
    found: list[dict[str, Any] | msgspec.Raw] = []
    views = engine.list()
    api.summaries.keep(views)
    for view in views:
        running = view.state.status in ("running", "paused", "restarting")
        if not (everything or running) or not accepts(view):
            continue
        shown: dict[str, Any] = {
            "image": names.shown(view),
            "health": api.health(view),
            "now_ns": now_ns,
            "find_network": api.find_network,
            "version": request.version,
            "link_names": link_names.get(view.container.id, ()),
        }
        if with_size:
            with contextlib.suppress(NotFound):  # removed meanwhile
                found.append(summary_json(view, size=await size_of(api, view), **shown))
        else:
            found.append(api.summaries.encode(view, **shown))
        if len(found) == limit:
            break
    return json_response(found)


class _ImageNames:
    """The image column of a list: the name that was given, or the id once the name means another image."""

    def __init__(self, api: Api) -> None:
        self._images = api.engine.images
        self._ids: dict[str, str] = {}

    def shown(self, view: View) -> str:
        name, image_id = view.container.image_name, view.container.image_id
        if name not in self._ids:
            try:
                self._ids[name] = self._images.find_image(name).id
            except CoveError:
                self._ids[name] = ""
        return name if self._ids[name] == image_id else image_id


async def size_of(api: Api, view: View) -> tuple[int, int]:
    """Bytes of the writable layer, and of it with all of the image's layers."""
    writable = await api.engine.writable_size(view.container.id)
    try:
        image = api.engine.images.image_by_id(view.container.image_id).size_bytes
    except CoveError:
        image = 0
    return writable, writable + image


async def create(api: Api, request: Request) -> Response:
    unknown: list[str] = []
    body = await wire.read(request, wire.CreateBody, unknown=unknown)
    if body == wire.CreateBody():
        raise Invalid("config cannot be empty in order to create a container")
    decoded = decode_create(
        body,
        name=request.query.get("name"),
        platform=request.query.get("platform"),
        version=request.version,
        cpus=api.cpus,
        unknown=unknown,
    )
    if request.version >= 1041:
        told = _check_image_platform(api, decoded.spec.image, request.query.get("platform"))
        decoded.warnings.extend(told)
    container, warnings = await api.engine.create(decoded.spec, decoded.secret_data)
    return json_response({"Id": container.id, "Warnings": [*decoded.warnings, *warnings]}, 201)


def _check_image_platform(api: Api, reference: str, asked: str) -> list[str]:
    """A warning for an image that isn't for this host's machine. Raises NotFound for one that isn't for the asked."""
    image: Image = api.engine.images.find_image(reference)
    architecture, variant = parse_platform(asked)
    here = f"{image.os or 'linux'}/{image.architecture}" + (f"/{image.variant}" if image.variant else "")
    if not image.architecture:
        return []
    if asked:
        if (architecture and architecture != image.architecture) or (
            variant and image.variant and variant != image.variant
        ):
            raise NotFound(
                f"image with reference {reference} was found but its platform ({here}) does not match the specified "
                f"platform ({asked})"
            )
        return []
    machine = ARCHITECTURES.get(api.machine, api.machine)
    if image.architecture == machine:
        return []
    return [
        f"The requested image's platform ({here}) does not match the detected host platform (linux/{machine}) and no "
        "specific platform was requested"
    ]


async def inspect(api: Api, request: Request) -> Response:
    view = api.engine.find(request.name)
    found = inspect_json(
        view,
        settings=api.engine.settings,
        health=api.health(view),
        find_network=api.find_network,
        exec_ids=api.engine.exec_ids(view.container.id),
        size=await size_of(api, view) if request.query.flag("size") else None,
        links=api.engine.shown_links(view),
        version=request.version,
    )
    return json_response(found)


async def top(api: Api, request: Request) -> Response:
    found = await api.engine.top(request.name, request.query.get("ps_args", "-ef"))
    return json_response({"Titles": found.titles, "Processes": found.processes})


async def start(api: Api, request: Request) -> Response:
    if request.query.get("checkpoint"):
        raise Invalid("checkpoint: Cove can't restore checkpoints; leave it out")
    await _refuse_body(request)
    await api.engine.start(request.name)
    return NO_CONTENT


async def _refuse_body(request: Request) -> None:
    """A start once took a host configuration; a client that still sends one must not be misled."""
    if request.body.empty:
        return
    body = (await request.body.read_all()).strip()
    if body not in (b"", b"{}", b"null"):
        raise Invalid(
            "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24"
        )


def _stop_options(request: Request) -> tuple[float | None, str]:
    seconds = request.query.integer("t", None, low=-1, high=MAX_SECONDS)
    signal = request.query.get("signal") if request.version >= 1042 else ""
    return None if seconds is None else float(seconds), signal


async def stop(api: Api, request: Request) -> Response:
    timeout_s, signal = _stop_options(request)
    await api.engine.stop(request.name, timeout_s=timeout_s, signal=signal)
    return NO_CONTENT


async def restart(api: Api, request: Request) -> Response:
    timeout_s, signal = _stop_options(request)
    await api.engine.restart(request.name, timeout_s=timeout_s, signal=signal)
    return NO_CONTENT


async def kill(api: Api, request: Request) -> Response:
    await api.engine.kill(request.name, request.query.get("signal") or "KILL")
    return NO_CONTENT


async def pause(api: Api, request: Request) -> Response:
    await api.engine.pause(request.name)
    return NO_CONTENT


async def unpause(api: Api, request: Request) -> Response:
    await api.engine.unpause(request.name)
    return NO_CONTENT


async def rename(api: Api, request: Request) -> Response:
    await api.engine.rename(request.name, request.query.get("name"))
    return NO_CONTENT


async def update(api: Api, request: Request) -> Response:
    unknown: list[str] = []
    body = await wire.read(request, wire.UpdateBody, required=True, unknown=unknown)
    told = check_fields(body, unknown)
    if request.version < 1040:
        body = msgspec.structs.replace(body, pids_limit=None)
    if request.version >= 1052:
        body = msgspec.structs.replace(body, kernel_memory_tcp=None)
    if request.version < 1055:  # ignored until then
        body = msgspec.structs.replace(body, **dict.fromkeys(_DEVICE_RATES))
    resources: Resources = decode_resources(body, "", cpus=api.cpus)
    restart_policy = None
    if body.restart_policy is not None and body.restart_policy.name:
        restart_policy = decode_restart(body.restart_policy, "")
    cleared = [name for field, name in _DEVICE_RATES.items() if getattr(body, field) == []]
    warnings = await api.engine.update(request.name, resources, restart_policy, cleared)
    return json_response({"Warnings": [*told, *warnings]})


async def remove(api: Api, request: Request) -> Response:
    query = request.query
    await api.engine.remove(
        request.name, force=query.flag("force"), volumes=query.flag("v"), link=query.flag("link")
    )
    return NO_CONTENT


async def wait(api: Api, request: Request) -> Response | None:
    """The header goes out once the wait is registered: clients start the container after it."""
    condition = request.query.get("condition") if request.version >= 1030 else ""
    wanted = next((c for c in CONDITIONS if c == (condition or "not-running")), None)
    if wanted is None:
        raise Invalid(f'invalid condition: "{condition}", expected one of {", ".join(CONDITIONS)}')
    handle = await api.engine.wait(request.name, wanted)
    try:
        request.bind_to_client(ends_clean=False)
        stream = await request.start_stream("application/json") if request.version >= 1030 else None
        result = await handle.result()
        answer: dict[str, object] = {"StatusCode": result.exit_code}
        if result.error:
            answer["Error"] = {"Message": result.error}
        if stream is None:
            return json_response(answer)
        await stream.write(encode_json(answer) + b"\n")
        return None
    finally:
        handle.cancel()


async def resize(api: Api, request: Request) -> Response:
    rows, cols = read_size(request)
    await api.engine.resize(request.name, rows, cols)
    return Response(200)


def read_size(request: Request) -> tuple[int, int]:
    """`h` and `w`, rows and columns; struct winsize of tty_ioctl(4) holds 16 bits of each."""
    rows = request.query.integer("h", None, low=0, high=65535)
    cols = request.query.integer("w", None, low=0, high=65535)
    if rows is None or cols is None:
        raise Invalid("resize: the query parameters h and w are needed, e.g. h=24&w=80")
    return rows, cols


async def prune(api: Api, request: Request) -> Response:
    filters = parse_filters(request.query.get("filters"), CONTAINER_PRUNE_KEYS)
    pruned = await api.engine.prune(select_containers(filters))
    api.publish("container", "prune", "", {"reclaimed": str(pruned.reclaimed_bytes)})
    return json_response(
        {"ContainersDeleted": pruned.deleted or None, "SpaceReclaimed": pruned.reclaimed_bytes}
    )


ROUTES: tuple[Route[Api], ...] = (
    ("GET", "/containers/json", list_containers),
    ("POST", "/containers/create", create),
    ("POST", "/containers/prune", prune),
    ("GET", "/containers/{name}/json", inspect),
    ("GET", "/containers/{name}/top", top),
    ("POST", "/containers/{name}/start", start),
    ("POST", "/containers/{name}/stop", stop),
    ("POST", "/containers/{name}/restart", restart),
    ("POST", "/containers/{name}/kill", kill),
    ("POST", "/containers/{name}/pause", pause),
    ("POST", "/containers/{name}/unpause", unpause),
    ("POST", "/containers/{name}/rename", rename),
    ("POST", "/containers/{name}/update", update),
    ("POST", "/containers/{name}/wait", wait),
    ("POST", "/containers/{name}/resize", resize),
    ("DELETE", "/containers/{name}", remove),
)
