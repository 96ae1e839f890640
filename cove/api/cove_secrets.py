"""/cove/v1/secrets: make, list, inspect, change and remove secrets. A content goes in and never comes out."""

from __future__ import annotations

import base64
from typing import Any

from cove.api.docker import wire
from cove.api.docker.context import Api
from cove.api.docker.mounts import string_map
from cove.api.docker.text import rfc3339
from cove.api.http import NO_CONTENT, Request, Response, json_response
from cove.api.router import Route
from cove.model.errors import Invalid
from cove.storage.secrets import SecretRecord


class SecretBody(wire.Wire, frozen=True, kw_only=True):
    name: str | None = None
    labels: wire.StringMap = None
    data: str | None = None  # base64


def secret_json(api: Api, record: SecretRecord) -> dict[str, Any]:
    return {
        "ID": record.id,
        "Name": record.name,
        "CreatedAt": rfc3339(record.created_ns),
        "UpdatedAt": rfc3339(record.updated_ns),
        "Version": record.version,
        "Size": record.size_bytes,
        "Labels": record.labels,
        "Containers": list(api.engine.secrets.users(record.name)),
    }


def _content(body: SecretBody) -> bytes:
    try:
        return base64.b64decode(body.data or "", validate=True)
    except ValueError:
        raise Invalid("Data: expected the content in base64") from None


def _name(request: Request) -> str:
    name = request.query.get("name")
    if not name:
        raise Invalid("name: is missing: name a secret, e.g. /cove/v1/secrets/inspect?name=db")
    return name


async def list_secrets(api: Api, request: Request) -> Response:
    return json_response([secret_json(api, record) for record in api.engine.secrets.list()])


async def create(api: Api, request: Request) -> Response:
    body = await wire.read(request, SecretBody, required=True)
    record = await api.engine.secrets.create(body.name or "", _content(body), string_map(body.labels))
    return json_response({"ID": record.id}, 201)


async def inspect(api: Api, request: Request) -> Response:
    return json_response(secret_json(api, api.engine.secrets.find(_name(request))))


async def update(api: Api, request: Request) -> Response:
    name = _name(request)
    body = await wire.read(request, SecretBody, required=True)
    return json_response(secret_json(api, await api.engine.secrets.update(name, _content(body))))


async def remove(api: Api, request: Request) -> Response:
    await api.engine.secrets.remove(_name(request))
    return NO_CONTENT


ROUTES: tuple[Route[Api], ...] = (
    ("GET", "/cove/v1/secrets", list_secrets),
    ("POST", "/cove/v1/secrets", create),
    ("DELETE", "/cove/v1/secrets", remove),
    ("GET", "/cove/v1/secrets/inspect", inspect),
    ("POST", "/cove/v1/secrets/update", update),
)
