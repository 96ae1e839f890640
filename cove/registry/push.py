"""What pushers send: uploads of blobs in all their forms, mounts, manifests; and deletions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cove.api.http import ClientGone, Request, Response
from cove.model.errors import Invalid
from cove.registry.documents import MANIFEST_BYTES_MAX, parse_document
from cove.registry.names import (
    Blob,
    Manifest,
    Upload,
    Uploads,
    digest_of,
    parse_algorithm,
    parse_digest,
    parse_name,
    parse_tag,
)
from cove.registry.refusals import Refused, invalid_digest
from cove.registry.uploads import Session

if TYPE_CHECKING:
    from cove.registry.app import Registry

_CONTENT_RANGE = re.compile(r"(?:bytes[ =])?(\d{1,18})-(\d{1,18})(?:/(?:\d{1,18}|\*))?", re.ASCII)
TAGS_MAX = 100  # of one push by digest


async def begin_upload(registry: Registry, request: Request, target: Uploads) -> Response:
    """POST uploads/: a session; or with `mount` the blob itself, or with `digest` the blob in the body."""
    query = request.query
    name = target.name
    if mount := query.get("mount"):
        digest = parse_digest(mount)
        source = query.get("from")
        if source:
            parse_name(source)
        if await registry.mount(request, name, digest, source):
            return _created(name, digest)
    digest = parse_digest(query.get("digest")) if query.get("digest") else ""
    algorithm = digest.partition(":")[0] or parse_algorithm(query.get("digest-algorithm"))
    session = await registry.store.uploads.begin(name, registry.client(request), algorithm)
    if not digest:
        return Response(202, headers=_session_headers(session))
    async with registry.store.uploads.owned(session):
        try:
            await registry.store.uploads.append(session, request.body, first=None, length=None)
            await registry.store.finish_upload(session, digest)
        except BaseException:
            await registry.store.uploads.end(session)  # nobody has been told of it
            raise
    return _created(name, digest)


async def serve_upload(registry: Registry, request: Request, target: Upload) -> Response:
    """GET, PATCH, PUT and DELETE of an upload under way."""
    uploads = registry.store.uploads
    session = uploads.find(target.name, target.session)
    if request.method in ("GET", "HEAD"):
        return Response(204, headers=_session_headers(session))
    if request.method == "DELETE":
        async with uploads.owned(session):
            await uploads.end(session)
        return Response(204)
    digest = ""
    if request.method == "PUT":
        if not request.query.get("digest"):
            raise invalid_digest("a PUT closes an upload and names the blob: …?digest=sha256:<64 hex digits>")
        digest = parse_digest(request.query.get("digest"))
    first, length = parse_content_range(request.headers.get("content-range", ""))
    async with uploads.owned(session):
        if not request.body.empty or request.method == "PATCH":
            await uploads.append(session, request.body, first=first, length=length)
        if request.method == "PATCH":
            return Response(202, headers=_session_headers(session))
        await registry.store.finish_upload(session, digest)
    return _created(target.name, digest)


def parse_content_range(text: str) -> tuple[int | None, int | None]:
    """The first byte and the length of a chunk; None, None without the header. Refused: 416 for one that can't be."""
    if not text:
        return None, None
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if match is None or int(match[2]) < int(match[1]):
        raise Refused(
            416,
            "BLOB_UPLOAD_INVALID",
            f"Content-Range: {text[:60]}: expected <first byte>-<last byte>, e.g. 0-1023",
        )
    return int(match[1]), int(match[2]) - int(match[1]) + 1


async def put_manifest(registry: Registry, request: Request, target: Manifest) -> Response:
    """PUT of a manifest by tag, or by digest with tags in the query."""
    extra = request.query.all("tag")
    if len(extra) > TAGS_MAX:
        raise Refused(414, "UNSUPPORTED", f"{len(extra)} tags in one request, the limit is {TAGS_MAX}")
    for each in extra:
        parse_tag(each)
    length = request.body.length
    if length is not None and length > MANIFEST_BYTES_MAX:
        raise too_large()
    try:
        data = await registry.read_body(request, MANIFEST_BYTES_MAX)
    except Invalid:
        raise too_large() from None
    if length is not None and len(data) != length:
        raise ClientGone("the manifest's end is missing")
    digest = target.digest or digest_of(data)
    if target.digest and digest_of(data, digest.partition(":")[0]) != digest:
        raise invalid_digest(
            f"the manifest's digest is {digest_of(data, digest.partition(':')[0])}, not {digest}"
        )
    document = parse_document(data, request.headers.get("content-type", ""))
    tags = [target.tag] if target.tag else list(dict.fromkeys(extra))
    await registry.store.put_manifest(target.name, digest, data, document, tags)
    registry.log_push(request, target.name, digest, tags)
    headers = {
        "Location": f"/v2/{target.name}/manifests/{target.tag or digest}",
        "Docker-Content-Digest": digest,
    }
    if document.subject:
        headers["OCI-Subject"] = document.subject
    if not target.tag and tags:
        headers["OCI-Tag"] = ", ".join(tags)
    return Response(201, headers=headers)


def too_large() -> Refused:
    return Refused(413, "SIZE_INVALID", f"a manifest has at most {MANIFEST_BYTES_MAX} bytes")


async def delete_manifest(registry: Registry, request: Request, target: Manifest) -> Response:
    """DELETE of a tag alone, or of a manifest with all its tags."""
    if target.tag:
        await registry.store.delete_tag(target.name, target.tag)
    else:
        await registry.store.delete_manifest(target.name, target.digest)
    return Response(202)


async def delete_blob(registry: Registry, request: Request, target: Blob) -> Response:
    """DELETE of a blob from a repository; the next sweep frees what no repository has."""
    await registry.store.delete_blob(target.name, target.digest)
    return Response(202)


def _session_headers(session: Session) -> dict[str, str]:
    return {
        "Location": f"/v2/{session.about.name}/blobs/uploads/{session.id}",
        "Range": f"0-{max(0, session.offset - 1)}",
        "Docker-Upload-UUID": session.id,
    }


def _created(name: str, digest: str) -> Response:
    headers = {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest}
    return Response(201, headers=headers)
