"""Pulling: POST /images/create?fromImage=…, and what a registry has under a name (GET /distribution/…/json)."""

from __future__ import annotations

import base64
import binascii
import contextlib
from typing import Any

import msgspec

from cove.api.docker.context import Api
from cove.api.http import Request, Response, Stream, encode_json, json_response
from cove.api.router import Route
from cove.image.references import parse_reference
from cove.image.registry import PullEvent, PullOptions
from cove.image.registry.auth import Credentials
from cove.image.registry.endpoints import Registries
from cove.image.registry.messages import Timing
from cove.model.errors import CoveError, Invalid, NotFound

Json = dict[str, Any]


class _Auth(msgspec.Struct):
    """X-Registry-Auth (moby, api/types/registry/authconfig.go); `serveraddress` says nothing new."""

    username: str = ""
    password: str = ""
    auth: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


def read_credentials(header: str) -> Credentials:
    """X-Registry-Auth: base64url of JSON, none for "". Invalid, which tells nothing of what is in it."""
    if not header or header == "null":
        return Credentials()
    try:
        data = base64.b64decode(header.strip() + "=" * (-len(header.strip()) % 4), b"-_", validate=True)
        found = msgspec.json.decode(data or b"{}", type=_Auth | None) or _Auth()
        if found.auth and not found.username:
            user, _, password = base64.b64decode(found.auth, validate=True).decode().partition(":")
            found = msgspec.structs.replace(found, username=user, password=password.strip("\0"))
    except (binascii.Error, msgspec.MsgspecError, UnicodeError, ValueError, RecursionError):
        raise Invalid(
            "X-Registry-Auth: expected base64url of a JSON object with username and password, or identitytoken"
        ) from None
    return Credentials(
        username=found.username,
        password=found.password,
        identity_token=found.identitytoken,
        registry_token=found.registrytoken,
    )


def pull_options(api: Api, request: Request) -> PullOptions:
    """What a request to a registry goes by: the daemon's settings and the client's credentials."""
    settings = api.engine.settings
    return PullOptions(
        platform=request.query.get("platform"),
        credentials=read_credentials(request.headers.get("x-registry-auth", "")),
        registries=Registries(mirrors=settings.registry_mirrors, insecure=settings.insecure_registries),
        downloads=settings.max_downloads,
        timing=Timing(attempts=settings.download_attempts),
        check=api.engine.admission.pull_check,
    )


async def pull(api: Api, request: Request, name: str, tag: str) -> None:
    """Pull `name`, which may have a tag or digest, or `name` with `tag` (a digest, too); without any, every tag.

    What fails before there is anything to tell is a status of its own, later it is a line of the stream.
    """
    reference = name if not tag else f"{name}@{tag}" if ":" in tag else f"{name}:{tag}"
    parsed = parse_reference(reference)
    options = pull_options(api, request)
    if not parsed.tag and not parsed.digest:
        options = _all_tags(options)
    request.bind_to_client(ends_clean=False)
    stream: Stream | None = None
    try:
        async with contextlib.aclosing(api.engine.images.pull(reference, options)) as events:
            async for event in events:
                if stream is None:
                    stream = await request.start_stream("application/json")
                await stream.write(encode_json(event_json(event)) + b"\n")
                if event.status.startswith("Status: "):
                    _publish(api, event.status.rpartition(" ")[2])
    except CoveError as error:
        if stream is None:
            raise
        message = str(error)
        await stream.write(encode_json({"errorDetail": {"message": message}, "error": message}) + b"\n")
        return
    if stream is None:  # a repository without a tag
        await request.start_stream("application/json")


def _all_tags(options: PullOptions) -> PullOptions:
    import dataclasses

    return dataclasses.replace(options, all_tags=True)


def _publish(api: Api, name: str) -> None:
    """The event `pull`, named as it was asked for (moby, daemon/images/image_events.go)."""
    try:
        labels = api.engine.images.find_image(name).config.labels
    except NotFound:  # removed in the same moment
        labels = {}
    repository = name.partition("@")[0] if "@" in name else name.rpartition(":")[0]
    api.publish("image", "pull", name, {**labels, "name": repository})


def event_json(event: PullEvent) -> Json:
    """A line of the stream."""
    found: Json = {"status": event.status}
    if event.total:
        found["progressDetail"] = {"current": event.current, "total": event.total}
        found["progress"] = f"{event.current}/{event.total} B"
    elif event.id and not event.status.startswith("Pulling from"):
        found["progressDetail"] = {}
    if event.id:
        found["id"] = event.id
    return found


async def distribution(api: Api, request: Request) -> Response:
    """What a registry has under a name: the first document's descriptor, and the platforms."""
    images = api.engine.images
    found = await images.puller.distribution(request.name, pull_options(api, request))
    return json_response(
        {
            "Descriptor": {"mediaType": found.media_type, "digest": found.digest, "size": found.size},
            "Platforms": [msgspec.to_builtins(platform) for platform in found.platforms],
        }
    )


ROUTES: tuple[Route[Api], ...] = (("GET", "/distribution/{name}/json", distribution),)
