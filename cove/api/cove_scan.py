"""/cove/v1/images/{sbom,scan} and /cove/v1/vulns: what is in an image, and what is known to be wrong with it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator

from cove.api.docker import wire
from cove.api.docker.context import Api
from cove.api.docker.pulling import pull_options
from cove.api.docker.text import rfc3339
from cove.api.http import Request, Response, json_response
from cove.api.router import Route
from cove.image.attaching import attach
from cove.image.registry.artifacts import BLOB_BYTES_MAX
from cove.model.errors import Invalid

_EPOCH_MAX = 253_402_300_799  # the year 9999's last second
_TYPES = {
    "cyclonedx": "application/vnd.cyclonedx+json; version=1.6",
    "spdx": "application/spdx+json",
    "sarif": "application/sarif+json",
}
_JSON = "application/json"
PUSHED = {"cyclonedx": "application/vnd.cyclonedx+json", "spdx": "application/spdx+json"}


async def send(request: Request, kind: str, pieces: AsyncGenerator[bytes, None]) -> Response | None:
    """Send a report as it comes; what fails before its first byte has a status of its own."""
    async with contextlib.aclosing(pieces):
        first = await anext(pieces, b"")
        stream = await request.start_stream(kind)
        await stream.write(first)
        async for piece in pieces:
            await stream.write(piece)
    return None


async def bill(api: Api, request: Request) -> Response | None:
    """An image's bill of materials: `format` cyclonedx, spdx or json, `epoch` the time that it names."""
    name = request.query.get("image")
    if not name:
        raise Invalid("image: is missing: name one, e.g. /cove/v1/images/sbom?image=debian:latest")
    form = request.query.get("format", "cyclonedx")
    epoch_s = request.query.integer("epoch", None, low=0, high=_EPOCH_MAX)
    pieces = api.engine.images.scanning.bill(
        name, form, epoch_s=int(time.time()) if epoch_s is None else epoch_s
    )
    return await send(request, _TYPES.get(form, _JSON), pieces)


async def push_bill(api: Api, request: Request) -> Response:
    """Put an image's bill of materials beside the image in its registry, as an artifact that refers to it."""
    name = request.query.get("image")
    if not name:
        raise Invalid(
            "image: is missing: name one, e.g. /cove/v1/images/sbom/push?image=registry.example/app:1"
        )
    form = request.query.get("format", "cyclonedx")
    if form not in PUSHED:
        raise Invalid(f"format {form}: expected one of {', '.join(PUSHED)}, e.g. format=cyclonedx")
    epoch_s = request.query.integer("epoch", None, low=0, high=_EPOCH_MAX)
    now_s = int(time.time()) if epoch_s is None else epoch_s
    images = api.engine.images
    pieces = images.scanning.bill(name, form, epoch_s=now_s)
    size = 0
    kept = []
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            size += len(piece)
            if size > BLOB_BYTES_MAX:
                raise Invalid(f"the bill has more than {BLOB_BYTES_MAX} bytes, the most that can be pushed")
            kept.append(piece)
    created = rfc3339(now_s * 1_000_000_000)
    attached = await attach(images, name, b"".join(kept), PUSHED[form], created, pull_options(api, request))
    return json_response({"Digest": attached.digest, "Subject": attached.subject})


class ScanBody(wire.Wire, frozen=True, kw_only=True):
    image: str | None = None
    format: str | None = None
    severity: str | None = None
    ignore: wire.Strings = None
    only_fixed: bool | None = None
    secrets: bool | None = None
    vulnerabilities: bool | None = None


async def scan(api: Api, request: Request) -> Response | None:
    """The vulnerabilities of an image, by the body's `Image`; `Format` json, sarif or summary."""
    body = await wire.read(request, ScanBody, required=True)
    if not body.image:
        raise Invalid('Image: is missing: name one, e.g. {"Image": "debian:latest"}')
    form = body.format or "json"
    pieces = api.engine.images.scanning.scan(
        body.image,
        form,
        level=body.severity or "",
        ignore=tuple(body.ignore or ()),
        only_fixed=bool(body.only_fixed),
        secrets=body.secrets is not False,
        vulnerabilities=body.vulnerabilities is not False,
    )
    return await send(request, _TYPES.get(form, _JSON), pieces)


async def take_vulnerabilities(api: Api, request: Request) -> Response:
    """Import what the body holds: an entry of OSV, a zip of them, Debian's tracker, or a tar of those."""
    done = await api.engine.images.scanning.vulnerabilities.take(request.body)
    return json_response(
        {
            "Read": done.read,
            "Added": done.added,
            "Changed": done.changed,
            "Unchanged": done.unchanged,
            "Removed": done.removed,
        }
    )


async def tell_vulnerabilities(api: Api, request: Request) -> Response | None:
    """What was imported, when, and how much there is."""
    return await send(request, _JSON, api.engine.images.scanning.vulnerabilities.tell())


ROUTES: tuple[Route[Api], ...] = (
    ("GET", "/cove/v1/images/sbom", bill),
    ("POST", "/cove/v1/images/sbom/push", push_bill),
    ("POST", "/cove/v1/images/scan", scan),
    ("POST", "/cove/v1/vulns/import", take_vulnerabilities),
    ("GET", "/cove/v1/vulns", tell_vulnerabilities),
)
