"""What pullers ask for: manifests, blobs and parts of blobs, lists of tags, referrers and repositories."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import msgspec

from cove.api.http import JSON, FileResponse, Request, Response, encode_json
from cove.model.errors import Invalid
from cove.registry.catalog import Found
from cove.registry.documents import OCI_INDEX
from cove.registry.names import Blob, Manifest, Referrers, Tags
from cove.registry.refusals import Refused, unknown_blob, unknown_manifest, unknown_repository

if TYPE_CHECKING:
    from cove.registry.app import Registry

OCTETS = "application/octet-stream"
PAGE = 1000  # entries of a list without n
PAGE_MAX = 10_000
REFERRERS_BYTES = 3 << 20  # of descriptors in one answer; clients bound an index to 4 MiB
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_FOR_EVER = "public, max-age=31536000, immutable"


async def get_manifest(registry: Registry, request: Request, target: Manifest) -> Response:
    """GET and HEAD of a manifest."""
    store = registry.store
    found = store.catalog.find_manifest(target.name, tag=target.tag, digest=target.digest)
    if found is None:
        raise unknown_manifest(target.name, target.tag or target.digest)
    return manifest_response(registry, request, found)


def manifest_response(registry: Registry, request: Request, found: Found) -> Response:
    """A manifest's bytes, or only their length."""
    headers = {"Docker-Content-Digest": found.digest, "ETag": f'"{found.digest}"'}
    if _matches(request.headers.get("if-none-match", ""), headers["ETag"]):
        return Response(304, headers=headers)
    if request.method == "HEAD":
        return Response(200, b"", found.media_type, headers, found.size)
    try:
        data = registry.store.content.read(found.digest)
    except FileNotFoundError:
        registry.damaged(found.digest)
        raise Refused(404, "MANIFEST_UNKNOWN", f"{found.digest} is missing on the registry's disk") from None
    return Response(200, data, found.media_type, headers)


async def get_blob(registry: Registry, request: Request, target: Blob, *, relied: bool) -> Response:
    """GET and HEAD of a blob, whole or in part. `relied`: whoever asks may push, and may now rely on it."""
    store = registry.store
    found = store.catalog.find_blob(target.name, target.digest)
    if found is None:
        raise unknown_blob(target.name, target.digest)
    size, at_s = found
    if request.method == "HEAD":
        if relied and not await store.rely_on(target.name, target.digest, at_s):
            raise unknown_blob(target.name, target.digest)
        headers = {**blob_headers(target.digest), "Accept-Ranges": "bytes"}
        return Response(200, b"", OCTETS, headers, size)
    return blob_response(registry, request, target)


def blob_headers(digest: str) -> dict[str, str]:
    return {
        "Docker-Content-Digest": digest,
        "ETag": f'"{digest}"',
        "Cache-Control": _FOR_EVER,
    }


def blob_response(registry: Registry, request: Request, target: Blob) -> Response:
    """A blob's bytes, from its file."""
    headers = {**blob_headers(target.digest), "Accept-Ranges": "bytes"}
    if _matches(request.headers.get("if-none-match", ""), headers["ETag"]):
        return Response(304, headers=headers)
    try:
        fd, size = registry.store.content.open(target.digest)
    except FileNotFoundError:
        registry.damaged(target.digest)
        raise Refused(404, "BLOB_UNKNOWN", f"{target.digest} is missing on the registry's disk") from None
    try:
        wanted = request.headers.get("range", "")
        if wanted and request.headers.get("if-range", headers["ETag"]) != headers["ETag"]:
            wanted = ""  # RFC 9110, 13.1.5: what the client has is of something else
        part = parse_range(wanted, size)
    except BaseException:
        os.close(fd)
        raise
    if part is None:
        return FileResponse(200, fd, 0, size, OCTETS, headers)
    first, length = part
    headers["Content-Range"] = f"bytes {first}-{first + length - 1}/{size}"
    return FileResponse(206, fd, first, length, OCTETS, headers)


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """The first byte and the length that a Range header asks for; None: the whole (RFC 9110, 14.2: what can't be read,
    and more than one range, is ignored). Refused: 416."""
    match = _RANGE.fullmatch(text.replace(" ", ""))
    if match is None or match[1] == match[2] == "":
        return None
    if match[1]:
        first = int(match[1])
        last = min(int(match[2]), size - 1) if match[2] else size - 1
        wrong = bool(match[2]) and int(match[2]) < first
    else:
        first, last = max(0, size - int(match[2])), size - 1
        wrong = int(match[2]) == 0
    if wrong or first >= size:
        raise Refused(
            416,
            "SIZE_INVALID",
            f"Range: {text[:60]} is outside the blob's {size} bytes",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return first, last - first + 1


async def list_tags(registry: Registry, request: Request, target: Tags) -> Response:
    """GET tags/list"""
    most, after = parse_page(request)
    found = registry.store.catalog.tags(target.name, after=after, most=most + 1 if most else 0)
    if found is None:
        raise unknown_repository(target.name)
    headers = next_page(f"/v2/{target.name}/tags/list", request, found, most)
    return Response(200, encode_json({"name": target.name, "tags": found[:most]}) + b"\n", JSON, headers)


async def list_repositories(registry: Registry, request: Request) -> Response:
    """GET _catalog: those that the caller may pull from."""
    most, after = parse_page(request)
    names: list[str] = []
    while most and len(names) <= most:
        page = registry.store.catalog.repositories(after=after, most=PAGE)
        names += [name for name in page if registry.may_pull(request, name)]
        if len(page) < PAGE:
            break
        after = page[-1]
    headers = next_page("/v2/_catalog", request, names, most)
    return Response(200, encode_json({"repositories": names[:most]}) + b"\n", JSON, headers)


async def list_referrers(registry: Registry, request: Request, target: Referrers) -> Response:
    """GET referrers: an index of the manifests whose subject this is; of none, where there is no such thing."""
    wanted = request.query.get("artifactType")
    after = request.query.get("last")
    rows = registry.store.catalog.referrers(
        target.name, target.digest, artifact_type=wanted, after=after, most=PAGE + 1
    )
    descriptors: list[msgspec.Raw] = []
    size = 0
    for row in rows[:PAGE]:
        descriptor: dict[str, object] = {"mediaType": row.media_type, "digest": row.digest, "size": row.size}
        if row.artifact_type:
            descriptor["artifactType"] = row.artifact_type
        if row.annotations:
            descriptor["annotations"] = row.annotations
        encoded = encode_json(descriptor)
        if descriptors and size + len(encoded) > REFERRERS_BYTES:
            break
        size += len(encoded)
        descriptors.append(msgspec.Raw(encoded))
    headers: dict[str, str] = {}
    if wanted:
        headers["OCI-Filters-Applied"] = "artifactType"
    if len(descriptors) < len(rows):
        query = {"last": rows[len(descriptors) - 1].digest, **({"artifactType": wanted} if wanted else {})}
        headers["Link"] = f'</v2/{target.name}/referrers/{target.digest}?{urlencode(query)}>; rel="next"'
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors}
    return Response(200, encode_json(index), OCI_INDEX, headers)


def parse_page(request: Request) -> tuple[int, str]:
    """How many entries a list may have, and behind which one it begins."""
    try:
        most = request.query.integer("n", PAGE, low=0, high=(1 << 63) - 1)
    except Invalid as error:
        raise Refused(400, "UNSUPPORTED", f"n: {error}") from None
    assert most is not None
    return min(most, PAGE_MAX), request.query.get("last")


def next_page(path: str, request: Request, found: list[str], most: int) -> dict[str, str] | None:
    """The Link header (RFC 5988) where there are more entries than fit."""
    if not most or len(found) <= most:
        return None
    return {"Link": f'<{path}?{urlencode({"last": found[most - 1], "n": most})}>; rel="next"'}


def _matches(header: str, etag: str) -> bool:
    return any(word.strip().removeprefix("W/") in (etag, "*") for word in header.split(","))
