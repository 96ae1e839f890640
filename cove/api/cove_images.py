"""/cove/v1/images: what Docker's API doesn't tell of images."""

from __future__ import annotations

from typing import Any

from cove.api.docker.context import Api
from cove.api.http import Request, Response, json_response
from cove.api.router import Route
from cove.image.checktypes import Report


def report_json(report: Report) -> dict[str, Any]:
    return {
        "Images": report.images,
        "Layers": report.layers,
        "Blobs": report.blobs,
        "ReadBytes": report.read_bytes,
        "Lost": len(report.losses),
        "Problems": [
            {"Kind": one.kind, "What": one.what, "Name": one.name, "Text": one.text}
            for one in report.problems
        ],
    }


async def check(api: Api, request: Request) -> Response:
    """Compare records and disk; `deep=1` reads every layer again, which takes as long as the disk and hashing do."""
    report = await api.engine.images.check(deep=request.query.flag("deep"))
    return json_response(report_json(report))


ROUTES: tuple[Route[Api], ...] = (("GET", "/cove/v1/images/check", check),)
