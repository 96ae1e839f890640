"""Cove's own API, /cove/v1: sizes of volumes."""

from __future__ import annotations

from cove.api.docker import wire
from cove.api.docker.context import Api
from cove.api.docker.volumes import volume_json
from cove.api.http import Request, Response, json_response
from cove.api.router import Route
from cove.model.errors import Invalid


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


ROUTES: tuple[Route[Api], ...] = (("POST", "/cove/v1/volumes/update", update_volume),)
