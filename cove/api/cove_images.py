"""/cove/v1/images: what Docker's API doesn't tell of images, and the tools that make others of them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from cove.api.docker import wire
from cove.api.docker.context import Api
from cove.api.http import Request, Response, json_response
from cove.api.router import Route
from cove.image.checktypes import Report
from cove.image.content import EMPTY_LAYER
from cove.image.tooljobs import FileChange, Share, SizedPath, Surveyed
from cove.model.errors import Invalid
from cove.model.objects import Image

Json = dict[str, Any]
_SLIM_BODY_MAX = 64 << 20


def _image(api: Api, request: Request, parameter: str = "image") -> Image:
    name = request.query.get(parameter)
    if not name:
        raise Invalid(f"{parameter}: is missing: name an image, e.g. {parameter}=debian:latest")
    return api.engine.images.find_image(name)


# --- check ----------------------------------------------------------------------------------


def report_json(report: Report) -> Json:
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


# --- where the bytes are --------------------------------------------------------------------


async def tree(api: Api, request: Request) -> Response:
    """Every layer and the images that end with it, as trees: what lies above a layer is its children."""
    images = api.engine.images
    sizes = {diff_id: size for diff_id, size, _ in images.layer_uses()}
    roots: dict[str, Json] = {}
    empty: list[Json] = []
    shared = images.shared_sizes()
    for image in sorted(images.list_images(), key=lambda one: (one.names, one.id)):
        shown = {
            "Id": image.id,
            "Names": list(image.names),
            "Size": image.size_bytes,
            "UniqueSize": image.size_bytes - max(shared.get(image.id, 0), 0),
        }
        level, node = roots, None
        for diff_id, size in zip(image.diff_ids, images.layer_sizes(image), strict=True):
            node = level.setdefault(
                diff_id,
                {"DiffId": diff_id, "Size": size, "DiskSize": sizes[diff_id], "Images": [], "Above": {}},
            )
            level = node["Above"]
        (node["Images"] if node is not None else empty).append(shown)
    return json_response({"Layers": [_node_json(node) for node in roots.values()], "Empty": empty})


def _node_json(top: Json) -> Json:
    """Children as lists; by hand, for a stack is as deep as an image has layers."""
    waiting = [top]
    while waiting:
        node = waiting.pop()
        node["Above"] = list(node["Above"].values())
        waiting += node["Above"]
    return top


def _sized_json(paths: Sequence[SizedPath]) -> list[Json]:
    return [{"Path": one.path, "Size": one.bytes} for one in paths]


def survey_json(image: Image, found: Surveyed, created_by: Sequence[str], users: Sequence[list[str]]) -> Json:
    total = sum(layer.bytes for layer in found.layers)
    wasted = sum(layer.hidden_bytes for layer in found.layers)
    return {
        "Id": image.id,
        "Names": list(image.names),
        "Size": total,
        "WastedSize": wasted,
        "Efficiency": round(1 - wasted / total, 4) if total else 1.0,
        "Layers": [
            {
                "DiffId": diff_id,
                "CreatedBy": made,
                "Files": layer.files,
                "Size": layer.bytes,
                "HiddenFiles": layer.hidden_files,
                "HiddenSize": layer.hidden_bytes,
                "Deletions": layer.whiteouts,
                "SharedWith": shared,
                "Directories": _sized_json(layer.directories),
                "Largest": _sized_json(layer.largest),
            }
            for diff_id, made, shared, layer in zip(
                image.diff_ids, created_by, users, found.layers, strict=False
            )
        ],
        "Wasted": [
            {"Path": one.path, "Size": one.bytes, "Layer": one.layer + 1, "By": one.by + 1, "How": one.how}
            for one in found.wasted
        ],
    }


async def survey(api: Api, request: Request) -> Response:
    """One image's layers: their largest directories and files, and what later layers replace or delete."""
    images = api.engine.images
    image = _image(api, request)
    found = await images.survey(image)
    made = [line.created_by or line.comment for line in image.history if not line.empty_layer]
    made += [""] * (len(image.diff_ids) - len(made))
    by_layer = {diff_id: users for diff_id, _, users in images.layer_uses()}
    users = [
        sorted(
            {
                other.names[0] if other.names else other.id
                for other in by_layer[diff_id]
                if other.id != image.id
            }
        )
        if diff_id in by_layer
        else []
        for diff_id in image.diff_ids
    ]
    return json_response(survey_json(image, found, made, users))


def _change_json(one: FileChange) -> Json:
    return {
        "Path": one.path,
        "Kind": one.kind,
        "Type": one.type,
        "What": list(one.what),
        "SizeBefore": one.size_before,
        "SizeAfter": one.size_after,
    }


async def diff(api: Api, request: Request) -> Response:
    """What differs between the images `from` and `to`, in their files and their settings."""
    first, second = _image(api, request, "from"), _image(api, request, "to")
    found, settings = await api.engine.images.compare(first, second)
    return json_response(
        {
            "From": first.id,
            "To": second.id,
            "Files": [_change_json(one) for one in found.changes],
            "Truncated": found.truncated,
            "Config": settings,
        }
    )


# --- others of them -------------------------------------------------------------------------


async def squash(api: Api, request: Request) -> Response:
    """Make an image whose layers from the layer `from` on (1: the lowest) are one."""
    image = _image(api, request)
    query = request.query
    made = await api.engine.images.squash(
        image,
        first=query.integer("from", 1, low=1, high=1000) or 1,
        reference=query.get("tag"),
        comment=query.get("message"),
    )
    api.publish("image", "create", made.id, {"name": query.get("tag") or made.id})
    return json_response(
        {"Id": made.id, "Size": made.size_bytes, "Saved": image.size_bytes - made.size_bytes}, 201
    )


async def record(api: Api, request: Request) -> Response:
    """Wait until the container that the query names has ended (or for `for` seconds), and tell what it opened of its
    image. `start=1`: it is recorded from before its first program, and started."""
    query = request.query
    name = query.get("container")
    if not name:
        raise Invalid("container: is missing: name one, e.g. /cove/v1/images/record?container=web&for=60")
    seconds = query.integer("for", 0, low=0, high=86_400) or 0
    request.bind_to_client(ends_clean=False)
    container, found = await api.engine.record(name, start=query.flag("start"), for_s=float(seconds))
    opened, raw = [], []
    for path in found.opened:
        try:
            opened.append(path.decode())
        except UnicodeDecodeError:
            raw.append(base64.b64encode(path).decode())
    return json_response(
        {
            "Container": container.id,
            "Image": container.image_id,
            "Opened": opened,
            "OpenedRaw": raw,
            "Lost": found.lost,
        }
    )


class SlimBody(wire.Wire, frozen=True, kw_only=True):
    """Paths as `record` gives them, and patterns of what is kept beside them."""

    opened: list[str] | None = None
    opened_raw: list[str] | None = None
    include: list[str] | None = None


def _share_json(one: Share) -> Json:
    return {
        "Name": one.name,
        "KeptFiles": one.kept_files,
        "KeptSize": one.kept_bytes,
        "Files": one.files,
        "Size": one.bytes,
    }


async def slim(api: Api, request: Request) -> Response:
    """What an image of the files that the body names would keep of an image and leave out; with `make=1` or `tag`
    it is made."""
    image = _image(api, request)
    data = await request.body.read_all(_SLIM_BODY_MAX)
    body = wire.decode(data or b"{}", SlimBody)
    try:
        raw = [base64.b64decode(text, validate=True) for text in body.opened_raw or ()]
    except ValueError:
        raise Invalid("OpenedRaw: expected paths in base64, as record gives them") from None
    opened = [*(path.encode() for path in body.opened or ()), *raw]
    include = body.include or []
    images = api.engine.images
    found = await images.plan_slim(image, opened, include)
    answer: Json = {
        "Image": image.id,
        "Files": found.files,
        "Size": found.bytes,
        "KeptFiles": found.kept_files,
        "KeptSize": found.kept_bytes,
        "Layers": [_share_json(one) for one in found.layers],
        "Directories": [_share_json(one) for one in found.directories],
        "Packages": [_share_json(one) for one in found.packages],
        "LargestLeft": _sized_json(found.largest_left),
        "Unmatched": list(found.missing),
    }
    tag = request.query.get("tag")
    if not tag and not request.query.flag("make"):
        return json_response(answer)
    comment = f"slim {image.id}: {found.kept_files} of {found.files} files"
    made = await images.slim(image, opened, include, reference=tag, comment=comment)
    api.publish("image", "create", made.id, {"name": tag or made.id})
    return json_response({**answer, "Id": made.id}, 201)


async def dedupe(api: Api, request: Request) -> Response:
    """Have equal files of layers share their blocks; `dry-run=1`: only tell what that would save."""
    found = await api.engine.dedupe(dry_run=request.query.flag("dry-run"))
    return json_response(
        {
            "Files": found.files,
            "Compared": found.compared,
            "Joined": found.joined,
            "SavedSize": found.saved_bytes,
            "InUse": found.kept,
            "How": found.how,
        }
    )


async def erofs(api: Api, request: Request) -> Response:
    """The image's layers as EROFS images, lowest first, made where they aren't there."""
    image = _image(api, request)
    paths = await api.engine.images.erofs_layers(image)
    return json_response(
        {
            "Id": image.id,
            "Layers": [str(path) for path in paths],
            "Empty": str(api.engine.images.layers_dir / EMPTY_LAYER),
        }
    )


async def place(api: Api, request: Request) -> Response:
    """Where an image's layers are on the daemon's host, lowest first, for who mounts them there."""
    image = _image(api, request)
    images = api.engine.images
    return json_response(
        {"Id": image.id, "Directory": str(images.layers_dir), "Layers": images.layer_paths(image)}
    )


ROUTES: tuple[Route[Api], ...] = (
    ("GET", "/cove/v1/images/check", check),
    ("GET", "/cove/v1/images/tree", tree),
    ("GET", "/cove/v1/images/survey", survey),
    ("GET", "/cove/v1/images/diff", diff),
    ("POST", "/cove/v1/images/squash", squash),
    ("POST", "/cove/v1/images/record", record),
    ("POST", "/cove/v1/images/slim", slim),
    ("POST", "/cove/v1/images/dedupe", dedupe),
    ("POST", "/cove/v1/images/erofs", erofs),
    ("GET", "/cove/v1/images/place", place),
)
