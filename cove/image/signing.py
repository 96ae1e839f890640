"""Signatures between this machine and an image's registry: those that are kept here go there, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cove.image.references import Reference, is_image_id, parse_reference
from cove.image.registry import PullOptions
from cove.image.registry.signatures import IMAGE_TYPES, fetch_signatures, push_referrer, push_tagged
from cove.model.errors import Conflict, Invalid, NotFound
from cove.model.objects import Image
from cove.signing.manifests import MANIFEST_MAX
from cove.signing.payload import parse_payload, repository_of
from cove.signing.types import BUNDLE_TYPE, Signature

if TYPE_CHECKING:
    from cove.image.images import Images

Form = Literal["tag", "referrer", "both"]
FORMS: tuple[Form, ...] = ("tag", "referrer", "both")


async def push_kept(images: Images, reference: str, form: Form, target: PullOptions) -> int:
    """Put the signatures of an image as this repository's, which are kept here, into its registry; how many.

    Those that are there already stay, once. NotFound: no image, or no signature. Conflict: the registry hasn't the
    manifest that was signed. And what the registry makes of it.
    """
    image, parsed = _find(images, reference)
    kept = await images.signatures.list(images.image_digests(image))
    mine = [(digest, one) for digest, one in kept if _is_of(one, parsed)]
    if not mine:
        raise NotFound(f"{reference} has no signature as {parsed.name} here: make one with cove sign")
    pushed = 0
    async with images.artifacts.repository(parsed.name, target) as repository:
        for digest in dict.fromkeys(digest for digest, _ in mine):
            try:
                await repository.get(f"manifests/{digest}", accept=IMAGE_TYPES, limit=MANIFEST_MAX)
            except NotFound:
                continue
            signatures = [one for of, one in mine if of == digest]
            if form != "referrer":
                await push_tagged(repository, digest, signatures)
            for one in signatures:
                if form != "tag" or one.media_type == BUNDLE_TYPE:
                    await push_referrer(repository, digest, one)
            pushed += len(signatures)
    if not pushed:
        raise Conflict(
            f"{parsed.name} has no manifest {mine[0][0]} at its registry: push the image, and sign what is there then"
        )
    return pushed


async def fetch_kept(images: Images, reference: str, target: PullOptions) -> int:
    """Keep the signatures that an image's registry has of it; how many it has. NotFound: no image, and what the
    registry makes of it."""
    image, parsed = _find(images, reference)
    digests = images.image_digests(image)
    async with images.artifacts.repository(parsed.name, target) as repository:
        found = await fetch_signatures(repository, digests)
    for digest in digests:
        await images.signatures.hold(digest, [one for of, one in found if of == digest])
    return len(found)


def _find(images: Images, reference: str) -> tuple[Image, Reference]:
    """An image, and the repository that its name says. Raises NotFound, Invalid."""
    image = images.find_image(reference)
    known = {parse_reference(name).name for name in (*image.names, *image.repo_digests)}
    parsed = None if is_image_id(reference) else parse_reference(reference).with_default_tag()
    if parsed is None or parsed.name not in known:
        raise Invalid(
            f"{reference[:100]}: name the image by its repository, e.g. {next(iter(known), 'r.example/app')}"
        )
    return image, parsed


def _is_of(signature: Signature, reference: Reference) -> bool:
    """Whether a signature names this repository; one that names none is of any."""
    try:
        named = parse_payload(signature.content).reference
    except Invalid:
        return True
    return not named or repository_of(named) == reference.name
