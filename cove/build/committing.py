"""The image at the end of a build: its configuration and history, put on record. Pure but for `commit_image`.

Times: the image's own is that of its cache record, so that a build that finds everything gives the same image again;
a layer's line of history has the time at which its step ran. Nothing is later than SOURCE_DATE_EPOCH, where given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from cove.build.graph import Result
from cove.image import manifests
from cove.image.images import Images
from cove.image.manifests import FoundImage
from cove.image.references import parse_tagged
from cove.image.types import Limits
from cove.model.objects import Image


def rfc3339(time_ns: int) -> str:
    """A time as configurations have it."""
    whole, rest = divmod(time_ns, 10**9)
    text = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{rest:09d}".rstrip("0").rstrip(".") + "Z"


def plan_config(
    result: Result,
    base: bytes | None,
    layers: Sequence[str],
    created_ns: int,
    added: Mapping[int, tuple[str, int]],
) -> dict[str, Any]:
    """The configuration document. `base` is the base image's, `added` says of steps that made a layer which and when
    (nanoseconds)."""
    history: list[dict[str, Any]] = []
    if base is not None:
        history += msgspec.json.decode(base, type=dict[str, Any]).get("history") or ()
    for item in result.history:
        layer = added.get(item.step) if item.step is not None else None
        line = {
            "created": rfc3339(layer[1] if layer else created_ns),
            "created_by": item.created_by,
            "author": item.author,
            "comment": item.comment,
            "empty_layer": layer is None or not layer[0],
        }
        history.append({key: value for key, value in line.items() if value})
    document: dict[str, Any] = {
        "architecture": result.architecture,
        "author": result.author,
        "config": result.config,
        "created": rfc3339(created_ns),
        "history": history,
        "os": result.os,
        "rootfs": {"type": "layers", "diff_ids": list(layers)},
        "variant": result.variant,
    }
    return {key: value for key, value in document.items() if value != ""}


async def commit_image(images: Images, document: Mapping[str, Any], names: Sequence[str]) -> Image:
    """Put an image of layers that are on record there, under its names."""
    data = msgspec.json.encode(document)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    found = FoundImage(
        image=manifests.parse_config(data, digest, Limits()),
        config=data,
        manifest=None,
        manifest_layers=(),
        layers=(),
        names=tuple(parse_tagged(name) for name in names),
    )
    async with images.staging() as staging:
        return await images.add(staging, found)
