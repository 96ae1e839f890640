"""Pushing: POST /images/{name}/push, its stream in Docker's words."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import msgspec

from cove.api.docker.context import Api
from cove.api.docker.pulling import pull_options
from cove.api.http import Request, Stream, encode_json
from cove.api.router import Route
from cove.image.references import parse_reference
from cove.image.registry.documents import Platform, parse_platform
from cove.image.registry.push import Event, PushedTag, PushOptions
from cove.image.registry.pushplan import parse_wanted
from cove.model.errors import CoveError, Invalid, NotFound

Json = dict[str, Any]

# A registry that moves a large blob to its place, or reads it once more, says nothing meanwhile.
PATIENCE = {"idle_s": 120.0, "head_s": 180.0, "patience_s": 300.0}


async def push(api: Api, request: Request) -> None:
    """Push the image of this name; without `tag`, every tag of it.

    `compression`, `compression-level` and `format` are Cove's own. What can't be asked for is a status of its own; all
    else is a line of the stream, as from Docker.
    """
    query = request.query
    parsed = parse_reference(request.name)
    if parsed.tag or parsed.digest:
        raise Invalid(
            f"invalid reference: {request.name[:200]}: a push names the repository, and the tag as tag=…"
        )
    reference = f"{request.name}:{query.get('tag')}" if query.get("tag") else request.name
    if platform := query.get("platform"):
        _check_platform(platform, api)
    target = pull_options(api, request)
    options = PushOptions(
        target=replace(target, timing=msgspec.structs.replace(target.timing, **PATIENCE)),
        wanted=parse_wanted(
            query.get("compression"),
            query.integer("compression-level", None, low=-(1 << 31), high=1 << 31),
            query.get("format"),
        ),
        uploads=api.engine.settings.max_uploads,
        all_tags=not query.get("tag"),
    )
    request.bind_to_client(ends_clean=False)
    events = api.engine.images.push(reference, options)
    stream: Stream | None = None
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                if stream is None:
                    stream = await request.start_stream("application/json")
                for line in event_lines(event):
                    await stream.write(encode_json(line) + b"\n")
                if isinstance(event, PushedTag):
                    _publish(api, event)
    except CoveError as error:
        if stream is None:
            raise
        message = str(error)
        await stream.write(encode_json({"errorDetail": {"message": message}, "error": message}) + b"\n")


def _check_platform(text: str, api: Api) -> None:
    """An image here is of one platform: whoever names it (JSON of OCI's, or os/arch) must mean no other."""
    if text.startswith("{"):
        try:
            msgspec.json.decode(text, type=Platform)
        except msgspec.MsgspecError:
            raise Invalid(
                'query parameter platform: expected JSON such as {"os":"linux","architecture":"amd64"}'
            ) from None
    else:
        parse_platform(text, api.engine.images.architecture)


def _publish(api: Api, event: PushedTag) -> None:
    """The event `push` (moby, daemon/containerd/image_push.go: the name with its tag, and the name alone)."""
    name = parse_reference(event.reference)
    try:
        labels = api.engine.images.image_by_id(event.image_id).config.labels
    except NotFound:  # removed in the same moment
        labels = {}
    api.publish("image", "push", event.reference, {**labels, "name": name.familiar_name})


def event_lines(event: Event) -> list[Json]:
    """An event as lines of the stream."""
    if isinstance(event, PushedTag):
        status = f"{event.tag}: digest: {event.digest} size: {event.size}"
        aux = {"Tag": event.tag, "Digest": event.digest, "Size": event.size}
        return [{"status": status}, {"progressDetail": {}, "aux": aux}]
    found: Json = {"status": event.status}
    if event.total:
        found["progressDetail"] = {"current": event.current, "total": event.total}
        found["progress"] = f"{event.current}/{event.total} B"
    elif event.id:
        found["progressDetail"] = {}
    if event.id:
        found["id"] = event.id
    return [found]


ROUTES: tuple[Route[Api], ...] = (("POST", "/images/{name}/push", push),)
