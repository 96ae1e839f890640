"""A document about an image beside it in its registry: an artifact whose subject is the image's manifest.

OCI image-spec 1.1, manifest.md, "Guidelines for Artifact Usage": an empty configuration, the document as the one layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from cove.image.references import is_image_id, parse_reference
from cove.image.registry import PullOptions
from cove.image.registry.artifacts import Artifact
from cove.image.registry.documents import OCI_MANIFEST, digest_of
from cove.image.registry.signatures import IMAGE_TYPES
from cove.model.errors import Conflict, Invalid, NotFound

if TYPE_CHECKING:
    from cove.image.images import Images

_EMPTY, _EMPTY_TYPE = b"{}", "application/vnd.oci.empty.v1+json"
_MANIFEST_MAX = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """A document that is there now: the digest of its manifest, and of the image's that it is about."""

    digest: str
    subject: str


class _Typed(msgspec.Struct):
    media_type: str = msgspec.field(name="mediaType", default="")


async def attach(
    images: Images, reference: str, document: bytes, media_type: str, created: str, target: PullOptions
) -> Attached:
    """Put a document about an image into the image's repository. NotFound: no image. Conflict: its registry hasn't the
    image. Invalid, and what the registry makes of it."""
    image = images.find_image(reference)
    known = {parse_reference(name).name for name in (*image.names, *image.repo_digests)}
    name = "" if is_image_id(reference) else parse_reference(reference).with_default_tag().name
    if name not in known:
        raise Invalid(
            f"{reference[:100]}: name the image by its repository, e.g. {next(iter(known), 'r.example/app')}"
        )
    async with images.artifacts.repository(name, target) as repository:
        for digest in images.image_digests(image):
            try:
                manifest = await repository.get(
                    f"manifests/{digest}", accept=IMAGE_TYPES, limit=_MANIFEST_MAX
                )
            except NotFound:
                continue
            if digest_of(manifest) != digest:
                raise Conflict(f"{name}: its registry gives another manifest than {digest}")
            subject = _descriptor(
                manifest, msgspec.json.decode(manifest, type=_Typed).media_type or OCI_MANIFEST
            )
            artifact = build_artifact(document, media_type, created, subject)
            return Attached(digest=await repository.put(artifact), subject=digest)
    raise Conflict(f"{name} has none of this image's manifests at its registry: push the image first")


def build_artifact(document: bytes, media_type: str, created: str, subject: dict[str, object]) -> Artifact:
    """The artifact that holds a document about `subject`, a descriptor. Pure; the same input gives the same bytes."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": media_type,
        "config": _descriptor(_EMPTY, _EMPTY_TYPE),
        "layers": [_descriptor(document, media_type)],
        "subject": subject,
        "annotations": {"org.opencontainers.image.created": created},
    }
    return Artifact(manifest=msgspec.json.encode(manifest), blobs=(_EMPTY, document))


def _descriptor(data: bytes, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}
