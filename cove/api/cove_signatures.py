"""/cove/v1/images/signatures: what there is to sign of an image, its signatures, new ones. Keys stay at the client."""

from __future__ import annotations

import base64
from typing import Any

from cove.api.docker import wire
from cove.api.docker.context import Api
from cove.api.docker.pulling import pull_options
from cove.api.http import Request, Response, json_response
from cove.api.router import Route
from cove.image.references import id_prefix, parse_reference
from cove.image.signing import FORMS, fetch_kept, push_kept
from cove.model.errors import Invalid
from cove.model.objects import Image
from cove.signing.types import BUNDLE_TYPE, PER_IMAGE_MAX, SIMPLE_TYPE, Signature


class SignatureBody(wire.Wire, frozen=True, kw_only=True):
    media_type: str | None = None
    content: str | None = None  # base64
    annotations: wire.StringMap = None


class SignaturesBody(wire.Wire, frozen=True, kw_only=True):
    digest: str | None = None
    signatures: list[SignatureBody] | None = None


def _name(request: Request) -> str:
    name = request.query.get("image")
    if not name:
        raise Invalid("image: is missing: name one, e.g. /cove/v1/images/signatures?image=debian")
    return name


def repositories(image: Image) -> list[str]:
    """The repositories that an image's names are of, in full: docker.io/library/debian."""
    names = (parse_reference(name).name for name in (*image.names, *image.repo_digests))
    return list(dict.fromkeys(names))


def signed_as(image: Image, asked: str, digests: tuple[str, ...]) -> tuple[str, str]:
    """The repository and the digest that a signature of the image, asked for by this name, is to name."""
    named = repositories(image)
    by_id = asked.removeprefix("sha256:") and image.id.removeprefix("sha256:").startswith(
        id_prefix(asked) or "-"
    )
    repository = "" if by_id and asked not in image.names else parse_reference(asked).name
    if not repository or repository not in named:
        repository = named[0] if len(named) == 1 else ""
    for pulled in image.repo_digests:
        reference = parse_reference(pulled)
        if reference.name == repository:
            return repository, reference.digest
    return repository, digests[0]


def signature_json(digest: str, signature: Signature) -> dict[str, Any]:
    return {
        "Digest": digest,
        "MediaType": signature.media_type,
        "Content": base64.b64encode(signature.content).decode(),
        "Annotations": signature.annotations,
    }


def decode_signature(body: SignatureBody) -> Signature:
    """Raises Invalid."""
    if body.media_type not in (SIMPLE_TYPE, BUNDLE_TYPE):
        raise Invalid(
            f"MediaType: expected {SIMPLE_TYPE} or {BUNDLE_TYPE}, got {str(body.media_type)[:100]!r}"
        )
    try:
        content = base64.b64decode(body.content or "", validate=True)
    except ValueError:
        raise Invalid("Content: expected the signed content in base64") from None
    if not content:
        raise Invalid("Content: is empty: expected the signed content in base64")
    annotations = {key: value or "" for key, value in (body.annotations or {}).items()}
    return Signature(media_type=body.media_type, content=content, annotations=annotations)  # type: ignore[arg-type]


async def show(api: Api, request: Request) -> Response:
    """The image's digests, as what it is to be signed, and all of its signatures, unchecked."""
    name = _name(request)
    images = api.engine.images
    image = images.find_image(name)
    digests = images.image_digests(image)
    repository, digest = signed_as(image, name, digests)
    found = await images.signatures.list(digests)
    return json_response(
        {
            "Image": image.id,
            "Repository": repository,
            "Repositories": repositories(image),
            "Digest": digest,
            "Digests": list(digests),
            "Signatures": [signature_json(*one) for one in found],
        }
    )


async def add(api: Api, request: Request) -> Response:
    """Keep signatures of one of the image's digests."""
    name = _name(request)
    body = await wire.read(request, SignaturesBody, required=True)
    given = body.signatures or []
    if not 0 < len(given) <= PER_IMAGE_MAX:
        raise Invalid(f"Signatures: expected 1 to {PER_IMAGE_MAX}, got {len(given)}")
    signatures = [decode_signature(one) for one in given]
    images = api.engine.images
    image = images.find_image(name)
    added = await images.add_signatures(name, body.digest or "", signatures)
    if added:
        api.publish("image", "sign", image.id, {"name": name, "digest": body.digest or ""})
    return json_response({"Added": added}, 201)


async def remove(api: Api, request: Request) -> Response:
    """Forget every signature of the image that is kept here; a registry keeps its own."""
    images = api.engine.images
    removed = await images.remove_signatures(_name(request))
    return json_response({"Removed": removed})


async def push(api: Api, request: Request) -> Response:
    """Put the image's signatures, as the repository of this name, into its registry."""
    form = request.query.get("format") or "tag"
    if form not in FORMS:
        raise Invalid(f"format {form[:40]}: expected one of {', '.join(FORMS)}, e.g. format=tag")
    pushed = await push_kept(api.engine.images, _name(request), form, pull_options(api, request))
    return json_response({"Pushed": pushed})


async def fetch(api: Api, request: Request) -> Response:
    """Keep what the image's registry has of signatures of it."""
    found = await fetch_kept(api.engine.images, _name(request), pull_options(api, request))
    return json_response({"Found": found})


ROUTES: tuple[Route[Api], ...] = (
    ("GET", "/cove/v1/images/signatures", show),
    ("POST", "/cove/v1/images/signatures", add),
    ("DELETE", "/cove/v1/images/signatures", remove),
    ("POST", "/cove/v1/images/signatures/push", push),
    ("POST", "/cove/v1/images/signatures/fetch", fetch),
)
