"""POST /cove/v1/recreate: another container, with what is asked for different, takes a container's place."""

from __future__ import annotations

from cove.api.docker import wire
from cove.api.docker.context import Api
from cove.api.docker.recreation import RecreateBody, decode_recreation
from cove.api.http import Request, Response, json_response
from cove.api.router import Route
from cove.model.errors import Invalid


async def recreate(api: Api, request: Request) -> Response:
    name = request.query.get("container")
    if not name:
        raise Invalid("container: is missing: name one, e.g. /cove/v1/recreate?container=web")
    unknown: list[str] = []
    body = await wire.read(request, RecreateBody, unknown=unknown)
    old = api.engine.find(name).container
    asked, warnings = decode_recreation(body, old, version=request.version, cpus=api.cpus, unknown=unknown)
    container, told = await api.engine.recreate(old.id, asked)
    return json_response({"Id": container.id, "Warnings": [*warnings, *told]}, 201)


ROUTES: tuple[Route[Api], ...] = (("POST", "/cove/v1/recreate", recreate),)
