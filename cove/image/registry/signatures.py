"""The signatures that a registry has of an image, by both ways in which it may have them (signing/manifests.py).

A registry is a stranger: every document is bounded, and taken for what it is only when its digest is the one that was
named. Whether a signature is good isn't told here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from cove.image.registry.artifacts import Artifact
from cove.image.registry.documents import digest_of
from cove.model.errors import Conflict, Invalid, NotFound
from cove.signing.manifests import (
    MANIFEST_MAX,
    MANIFEST_TYPE,
    Layer,
    Referrer,
    Subject,
    build_referrer,
    build_tagged,
    manifest_type,
    parse_manifest,
    parse_referrers,
    referrers_tag,
    signature_tag,
)
from cove.signing.types import PER_IMAGE_MAX, SIMPLE_TYPE, Signature

_ATTEMPTS = 5
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
IMAGE_TYPES = ", ".join(
    (
        MANIFEST_TYPE,
        INDEX_TYPE,
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)
_log = logging.getLogger(__name__)


class Reader(Protocol):
    """Small documents of one repository, not verified."""

    async def get(self, path: str, *, accept: str = "", limit: int = 4 << 20) -> bytes:
        """`path` in the repository: manifests/REFERENCE, blobs/DIGEST, referrers/DIGEST. NotFound, Invalid, …"""


class Writer(Reader, Protocol):
    """A repository that artifacts are put into (artifacts.py)."""

    async def put(self, artifact: Artifact, *, tag: str = "") -> str: ...


async def fetch_signatures(documents: Reader, digests: Sequence[str]) -> list[tuple[str, Signature]]:
    """Every signature of these digests, each with the digest that it is kept for; () when there is none.

    Raises what the registry makes impossible, and Invalid when all that there is can't be read.
    """
    found: dict[tuple[str, str], tuple[str, Signature]] = {}
    problems: list[Invalid] = []
    for digest in dict.fromkeys(digests):
        for layers in await _manifests(documents, digest, problems):
            for layer in layers:
                if (digest, layer.digest + str(layer.annotations)) in found:
                    continue
                if len(found) >= PER_IMAGE_MAX:
                    return list(found.values())
                try:
                    content = await documents.get(f"blobs/{layer.digest}", limit=layer.size + 1)
                    signature = layer.with_content(content)
                except (Invalid, NotFound) as error:
                    problems.append(Invalid(str(error)))
                    continue
                found[digest, layer.digest + str(layer.annotations)] = (digest, signature)
    if problems and not found:
        raise problems[0]
    for problem in problems:
        _log.warning("a signature was passed over: %s", problem)
    return list(found.values())


async def tagged_signatures(documents: Reader, digest: str) -> list[Signature]:
    """Those under the tag alone; what can't be read among them is an error, for they are about to be written anew."""
    try:
        data = await documents.get(
            f"manifests/{signature_tag(digest)}", accept=MANIFEST_TYPE, limit=MANIFEST_MAX
        )
    except NotFound:
        return []
    return [
        layer.with_content(await documents.get(f"blobs/{layer.digest}", limit=layer.size + 1))
        for layer in parse_manifest(data)
    ]


async def list_referrers(documents: Reader, digest: str) -> tuple[Referrer, ...]:
    """The signatures among the image's referrers, by the API or by the tag that stands for it."""
    try:
        return parse_referrers(
            await documents.get(f"referrers/{digest}", accept=INDEX_TYPE, limit=MANIFEST_MAX)
        )
    except NotFound:
        pass
    try:
        return parse_referrers(
            await documents.get(f"manifests/{referrers_tag(digest)}", accept=INDEX_TYPE, limit=MANIFEST_MAX)
        )
    except NotFound:
        return ()


async def _manifests(documents: Reader, digest: str, problems: list[Invalid]) -> list[tuple[Layer, ...]]:
    found = []
    try:
        data = await documents.get(
            f"manifests/{signature_tag(digest)}", accept=MANIFEST_TYPE, limit=MANIFEST_MAX
        )
        found.append(parse_manifest(data))
    except NotFound:
        pass
    except Invalid as error:
        problems.append(error)
    try:
        listed = await list_referrers(documents, digest)
    except Invalid as error:
        problems.append(error)
        listed = ()
    for one in listed:
        try:
            data = await documents.get(f"manifests/{one.digest}", accept=MANIFEST_TYPE, limit=one.size + 1)
            if digest_of(data) != one.digest:
                raise Invalid(f"the referrer {one.digest} has another content than its digest says")
            found.append(parse_manifest(data, subject=digest))
        except (Invalid, NotFound) as error:
            problems.append(Invalid(str(error)))
    return found


# --- writing ------------------------------------------------------------------------------


async def push_tagged(repository: Writer, digest: str, signatures: Sequence[Signature]) -> None:
    """Put signatures beside those that the tag has already. The tag has no compare-and-swap: it is read again after
    each write, for another signer may have written it meanwhile. Conflict, and what the registry makes of it."""
    for _ in range(_ATTEMPTS):
        there = await tagged_signatures(repository, digest)
        fresh = [one for one in signatures if one not in there and one.media_type == SIMPLE_TYPE]
        if not fresh:
            return
        made = build_tagged([*there, *fresh])
        blobs = tuple(content for _, content in made.blobs)
        await repository.put(Artifact(manifest=made.manifest, blobs=blobs), tag=signature_tag(digest))
    raise Conflict(f"others write the signatures of {digest} at the same time: try again")


async def push_referrer(repository: Writer, digest: str, signature: Signature) -> None:
    """Put a signature as a referrer of the image. Invalid, and what the registry makes of it."""
    data = await repository.get(f"manifests/{digest}", accept=IMAGE_TYPES, limit=MANIFEST_MAX)
    if digest_of(data) != digest:
        raise Invalid(f"the registry has another manifest under {digest}")
    subject = Subject(digest=digest, size=len(data), media_type=manifest_type(data))
    made = build_referrer(signature, subject)
    await repository.put(Artifact(manifest=made.manifest, blobs=tuple(content for _, content in made.blobs)))
