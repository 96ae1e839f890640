"""Artifacts: small manifests with blobs beside an image, and which there are (signatures, bills of materials, …).

OCI distribution-spec 1.1, "Pushing Manifests with Subject", "Listing Referrers" and "Referrers Tag Schema": a registry
that knows referrers lists what has a `subject`; for one that doesn't, the list is kept by clients as an index under the
tag `sha256-HEX`. One daemon writes a list once at a time; two machines that write it at once may lose an entry: it is
read again after each write, which finds most of those.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import msgspec

from cove.image.references import Reference, parse_digest, parse_reference
from cove.image.registry import PullOptions
from cove.image.registry.documents import ACCEPT, OCI_INDEX, OCI_MANIFEST, Descriptor, digest_of
from cove.image.registry.fetcher import Fetcher
from cove.model.errors import Conflict, Invalid, NotFound
from cove.model.waiting import NamedLocks

if TYPE_CHECKING:
    from cove.image.registry.push import Pusher

BLOBS_MAX = 64
BLOB_BYTES_MAX = 64 << 20  # of one; a layer is pushed as a layer
REFERRERS_MAX = 1000
_INDEX_BYTES = 4 << 20
_PAGES_MAX = 10
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A manifest as it is to be put, and the blobs it names that the repository may lack."""

    manifest: bytes
    blobs: tuple[bytes, ...] = ()
    media_type: str = OCI_MANIFEST


class _Manifest(msgspec.Struct):
    subject: Descriptor | None = None
    config: Descriptor | None = None
    artifact_type: str = msgspec.field(name="artifactType", default="")
    annotations: dict[str, str] | None = None


class _Index(msgspec.Struct):
    manifests: list[Descriptor] | None = None


class Artifacts:
    """Artifacts of the repositories that this machine may write to or read."""

    def __init__(self, pusher: Pusher) -> None:
        self._pusher = pusher
        self._lists = NamedLocks()  # lists of referrers that are being written from here

    @asynccontextmanager
    async def repository(self, reference: str, options: PullOptions) -> AsyncGenerator[Repository, None]:
        """A repository to put artifacts into and to list them; its tag or digest in `reference` says nothing. Invalid,
        HostError."""
        parsed = parse_reference(reference)
        async with self._pusher.sending(parsed, options) as sender:
            yield Repository(self._pusher, parsed, sender, self._lists)

    async def push(self, reference: str, artifact: Artifact, options: PullOptions) -> str:
        """Put an artifact under the tag of `reference`, or under its digest where that has none; the digest.

        Invalid, NotFound, Unauthorized, Forbidden, Conflict (others write the same list of referrers), Unavailable,
        HostError. Whatever of it is there then names nothing.
        """
        tag = parse_reference(reference).tag
        async with self.repository(reference, options) as repository:
            return await repository.put(artifact, tag=tag)

    async def referrers(
        self, reference: str, digest: str, options: PullOptions, *, artifact_type: str = ""
    ) -> list[Descriptor]:
        """What refers to a manifest of the repository, of one type or of all. As `push`."""
        async with self.repository(reference, options) as repository:
            return await repository.referrers(digest, artifact_type=artifact_type)


class Repository:
    """One repository of a registry, while it is open."""

    def __init__(self, pusher: Pusher, reference: Reference, sender: Fetcher, lists: NamedLocks) -> None:
        self._pusher = pusher
        self._lists = lists
        self.reference = reference
        self.sender = sender

    async def get(self, path: str, *, accept: str = "", limit: int = 4 << 20) -> bytes:
        """A small document (`manifests/REFERENCE`, `blobs/DIGEST`), not verified. NotFound and others."""
        if path.startswith("manifests/"):
            accept = accept or ACCEPT
        return await self.sender.get(path, accept=accept, limit=limit)

    async def put(self, artifact: Artifact, *, tag: str = "") -> str:
        """Bring an artifact into the repository: its blobs, its manifest, and its place among the referrers."""
        manifest = parse_artifact(artifact)
        for blob in artifact.blobs:
            await self._pusher.push_document(blob, self.sender)
        digest = digest_of(artifact.manifest)
        listed = await self.sender.put_manifest(tag or digest, artifact.manifest, artifact.media_type, digest)
        if manifest.subject is not None and listed != manifest.subject.digest:
            async with self._lists.alone(f"{self.reference.name}@{manifest.subject.digest}"):
                await self._list(describe(artifact, manifest), manifest.subject.digest)
        return digest

    async def referrers(self, digest: str, *, artifact_type: str = "") -> list[Descriptor]:
        """See `Artifacts.referrers`."""
        parse_digest(digest)
        try:
            found = await self._ask(digest, artifact_type)
        except NotFound:  # a registry without that API
            _, found = await self._listed(digest)
        return [one for one in found if artifact_type in ("", one.artifact_type)]

    async def _ask(self, digest: str, artifact_type: str) -> list[Descriptor]:
        asked = f"?{urlencode({'artifactType': artifact_type})}" if artifact_type else ""
        found: list[Descriptor] = []
        for _ in range(_PAGES_MAX):
            document = await self.sender.document(
                f"referrers/{digest}{asked}", accept=OCI_INDEX, limit=_INDEX_BYTES
            )
            found += parse_index(document.data)
            asked = next_query(document.link)
            if not asked or len(found) > REFERRERS_MAX:
                break
        return found[:REFERRERS_MAX]

    async def _listed(self, digest: str) -> tuple[dict[str, Any], list[Descriptor]]:
        """The index under the tag of the referrers, raw and read; an empty one where there is none."""
        try:
            document = await self.sender.document(
                f"manifests/{referrers_tag(digest)}", accept=OCI_INDEX, limit=_INDEX_BYTES
            )
        except NotFound:
            return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}, []
        found = parse_index(document.data)
        raw: dict[str, Any] = msgspec.json.decode(document.data)
        return raw, found

    async def _list(self, entry: dict[str, Any], subject: str) -> None:
        """Add an entry to the index under the tag of the referrers, unless it is in it."""
        tag = referrers_tag(subject)
        for _ in range(_ATTEMPTS):
            raw, found = await self._listed(subject)
            if any(one.digest == entry["digest"] for one in found):
                return
            if len(found) >= REFERRERS_MAX:
                raise Invalid(f"{subject} has {len(found)} referrers; the limit is {REFERRERS_MAX}")
            data = msgspec.json.encode(raw | {"manifests": [*(raw.get("manifests") or ()), entry]})
            await self.sender.put_manifest(tag, data, OCI_INDEX, digest_of(data))
            # Another client may have read the tag before this and written it after: look whether ours is still there.
        raise Conflict(f"others write the referrers of {subject} at the same time: try again")


def parse_artifact(artifact: Artifact) -> _Manifest:
    """An artifact's manifest. Invalid: it isn't one, or it is too large."""
    if len(artifact.manifest) > _INDEX_BYTES:
        raise Invalid(f"the manifest has {len(artifact.manifest)} bytes; the limit is {_INDEX_BYTES}")
    if len(artifact.blobs) > BLOBS_MAX:
        raise Invalid(f"an artifact has {len(artifact.blobs)} blobs; the limit is {BLOBS_MAX}")
    for blob in artifact.blobs:
        if len(blob) > BLOB_BYTES_MAX:
            raise Invalid(f"a blob of an artifact has {len(blob)} bytes; the limit is {BLOB_BYTES_MAX}")
    try:
        manifest = msgspec.json.decode(artifact.manifest, type=_Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the artifact's manifest is malformed: {str(error)[:200]}") from None
    if manifest.subject is not None:
        parse_digest(manifest.subject.digest)
    return manifest


def describe(artifact: Artifact, manifest: _Manifest) -> dict[str, Any]:
    """The entry of an artifact in an index of referrers."""
    kind = manifest.artifact_type or (manifest.config.media_type if manifest.config else "")
    entry: dict[str, Any] = {
        "mediaType": artifact.media_type,
        "digest": digest_of(artifact.manifest),
        "size": len(artifact.manifest),
    }
    if kind:
        entry["artifactType"] = kind
    if manifest.annotations:
        entry["annotations"] = manifest.annotations
    return entry


def parse_index(data: bytes) -> list[Descriptor]:
    """The entries of an index of referrers; what isn't a digest is left out. Invalid."""
    try:
        found = msgspec.json.decode(data, type=_Index).manifests or []
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the registry's list of referrers is malformed: {str(error)[:200]}") from None
    return [one for one in found if re.fullmatch(r"sha(256:[a-f0-9]{64}|512:[a-f0-9]{128})", one.digest)]


def referrers_tag(digest: str) -> str:
    """The tag under which clients keep the referrers of a manifest where the registry doesn't."""
    algorithm, _, value = digest.partition(":")
    return f"{algorithm[:32]}-{value[:64]}"


def next_query(link: str) -> str:
    """The query of a `Link` with rel="next" (RFC 8288), with its question mark, or ""."""
    address, _, parameters = link.partition(">")
    if not address.startswith("<") or not re.search(r'rel="?next"?(;|,|\s|$)', parameters):
        return ""
    try:
        query = urlsplit(address[1:]).query
    except ValueError:
        return ""
    return f"?{query}" if query and query.isascii() and query.isprintable() and " " not in query else ""
