"""/cove/v1/images/sbom: what is in an image. GET, with the image in the query."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator

from cove.api.docker.context import Api
from cove.api.http import Request, Response
from cove.api.router import Route
from cove.model.errors import Invalid

_EPOCH_MAX = 253_402_300_799  # the year 9999's last second
_TYPES = {
    "cyclonedx": "application/vnd.cyclonedx+json; version=1.6",
    "spdx": "application/spdx+json",
    "json": "application/json",
}


async def send(request: Request, kind: str, pieces: AsyncGenerator[bytes, None]) -> Response | None:
    """Send a report as it comes; what fails before its first byte has a status of its own."""
    async with contextlib.aclosing(pieces):
        first = await anext(pieces, b"")
        stream = await request.start_stream(kind)
        await stream.write(first)
        async for piece in pieces:
            await stream.write(piece)
    return None


def image_of(request: Request, path: str) -> str:
    name = request.query.get("image")
    if not name:
        raise Invalid(f"image: is missing: name one, e.g. {path}?image=debian:latest")
    return name


async def bill(api: Api, request: Request) -> Response | None:
    """An image's bill of materials: `format` cyclonedx, spdx or json, `epoch` the time that it names."""
    name = image_of(request, "/cove/v1/images/sbom")
    form = request.query.get("format", "cyclonedx")
    epoch_s = request.query.integer("epoch", None, low=0, high=_EPOCH_MAX)
    pieces = api.engine.images.scanning.bill(
        name, form, epoch_s=int(time.time()) if epoch_s is None else epoch_s
    )
    return await send(request, _TYPES.get(form, "application/json"), pieces)


ROUTES: tuple[Route[Api], ...] = (("GET", "/cove/v1/images/sbom", bill),)
