"""A cache of other registries: what is here is served, what isn't is fetched, and what may have changed is asked about.

A manifest by digest and a blob hold for ever. A tag holds for `age_s`; then the upstream is asked by HEAD, and only a
tag that leads elsewhere costs a download. When the upstream can't be asked, what is cached answers, with a Warning.
Nobody pushes to a repository that is another registry's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import msgspec

from cove.api.http import JSON, FileResponse, Request, Response, encode_json
from cove.image.registry.transport import Client
from cove.model.errors import CoveError, Forbidden, Invalid, NotFound, Unauthorized
from cove.registry import pull
from cove.registry.catalog import Found
from cove.registry.documents import MANIFEST_BYTES_MAX, MEDIA_TYPES, OCI_INDEX, parse_document
from cove.registry.downloads import Download, Downloads
from cove.registry.names import Blob, Manifest, Referrers, Tags, Upload, Uploads, digest_of, parse_digest
from cove.registry.refusals import Refused, unknown_manifest
from cove.registry.upstreams import Upstream, Upstreams, choose

if TYPE_CHECKING:
    from cove.registry.app import Registry
    from cove.registry.store import Store

log = logging.getLogger("cove.registry")
T = TypeVar("T")
Local = Manifest | Blob | Uploads | Upload | Tags | Referrers
ASKING = 8  # threads for small documents
LIST_BYTES_MAX = 8 << 20
_ACCEPT = {"Accept": ", ".join(MEDIA_TYPES)}


class _TagList(msgspec.Struct):
    tags: list[str] | None = None


class Proxy:
    """All upstreams, and the cache of them in a store."""

    def __init__(self, upstreams: Upstreams, store: Store, *, age_s: float) -> None:
        self._upstreams = upstreams
        self._store = store
        self._age_s = age_s
        self._pool = ThreadPoolExecutor(ASKING, "upstream")
        self._fetching: dict[tuple[str, str], asyncio.Future[Found]] = {}
        self.downloads = Downloads(store.content, self._keep, store.bounds.reserve_bytes)

    def locate(self, target: Local, namespace: str) -> tuple[Local, Upstream | None]:
        """The target by its name here, and the upstream that it is cached from; None: it is this registry's own."""
        name, upstream = choose(self._upstreams.known, target.name, namespace)
        return (target if name == target.name else replace(target, name=name)), upstream

    async def close(self) -> None:
        await self.downloads.close()
        self._pool.shutdown(wait=True)

    async def serve(
        self, registry: Registry, request: Request, target: Local, upstream: Upstream
    ) -> Response:
        """The answer about a repository of an upstream's."""
        client = self._upstreams.client(upstream, target.name)
        if request.method not in ("GET", "HEAD"):
            raise Refused(
                405,
                "UNSUPPORTED",
                f"{target.name} is a cache of {upstream.url}: push there",
                headers={"Allow": "GET, HEAD"},
            )
        try:
            if isinstance(target, Manifest):
                response = await self._manifest(registry, request, target, client)
            elif isinstance(target, Blob):
                response = await self._blob(registry, request, target, client)
            elif isinstance(target, Tags):
                response = await self._tags(registry, request, target, client)
            elif isinstance(target, Referrers):
                response = await self._referrers(registry, request, target, client)
            else:
                raise Refused(405, "UNSUPPORTED", f"{target.name} is a cache of {upstream.url}: push there")
        except CoveError as error:
            raise _refused(error, target.name) from None
        if namespace := request.query.get("ns"):
            response.headers = {**(response.headers or {}), "OCI-Namespace": namespace}
        return response

    # --- manifests ----------------------------------------------------------------------------

    async def _manifest(
        self, registry: Registry, request: Request, target: Manifest, client: Client
    ) -> Response:
        found = self._store.catalog.find_manifest(target.name, tag=target.tag, digest=target.digest)
        if found is not None and (target.digest or 0 <= time.time() - found.at_s < self._age_s):
            registry.meters.proxy("hit")
            return pull.manifest_response(registry, request, found)
        try:
            fresh = await self._one(target, found, client)
        except (NotFound, Unauthorized, Forbidden, Invalid):
            raise
        except CoveError as error:
            if found is None:
                raise
            registry.meters.proxy("stale")
            log.warning("%s can't be asked about %s: %s", client.endpoint.host, target.name, error)
            response = pull.manifest_response(registry, request, found)
            response.headers = {
                **(response.headers or {}),
                "Warning": '299 - "the upstream registry cannot be asked; this is what was cached"',
            }
            return response
        registry.meters.proxy("hit" if found is not None and fresh.digest == found.digest else "miss")
        return pull.manifest_response(registry, request, fresh)

    async def _one(self, target: Manifest, found: Found | None, client: Client) -> Found:
        """Ask once for all who want to know now."""
        key = target.name, target.tag or target.digest
        if key in self._fetching:
            return await asyncio.shield(self._fetching[key])
        future = self._fetching[key] = asyncio.ensure_future(self._ask_manifest(target, found, client))
        future.add_done_callback(lambda _: self._fetching.pop(key, None))
        return await asyncio.shield(future)

    async def _ask_manifest(self, target: Manifest, found: Found | None, client: Client) -> Found:
        if found is not None and target.tag:
            digest = await self._run(_head_digest, client, target.tag)
            known = self._store.catalog.find_manifest(target.name, digest=digest) if digest else None
            if known is not None:
                await self._store.threads.change(
                    self._store.writer.set_tag, target.name, target.tag, known.digest
                )
                return known
        data, kind = await self._run(_get_manifest, client, target.tag or target.digest)
        digest = target.digest or digest_of(data)
        if digest_of(data, digest.partition(":")[0]) != digest:
            raise Invalid(f"{client.endpoint.host} sent another manifest than {digest}")
        try:
            document = parse_document(data, kind)
        except Refused as refused:
            raise Invalid(f"{client.endpoint.host}: {refused.message}") from None
        await self._store.put_manifest(
            target.name, digest, data, document, [target.tag] if target.tag else [], proxied=True
        )
        fresh = self._store.catalog.find_manifest(target.name, digest=digest)
        if fresh is None:
            raise unknown_manifest(target.name, digest)  # swept in this moment
        return fresh

    # --- blobs --------------------------------------------------------------------------------

    async def _blob(self, registry: Registry, request: Request, target: Blob, client: Client) -> Response:
        catalog = self._store.catalog
        if catalog.find_blob(target.name, target.digest) is None and catalog.needs(
            target.name, target.digest
        ):
            size = catalog.find_content(target.digest)  # another repository has brought it
            if size is not None:
                await self._store.take_cached(target.name, target.digest, None, size)
        if catalog.find_blob(target.name, target.digest) is not None:
            registry.meters.proxy("hit")
            return await pull.get_blob(registry, request, target, relied=False)
        if request.method == "HEAD":
            size = await self._run(_head_size, client, target.digest)
            headers = {**pull.blob_headers(target.digest), "Accept-Ranges": "bytes"}
            return Response(200, b"", pull.OCTETS, headers, size)
        joined = self.downloads.find(target.name, target.digest) is not None
        download = self.downloads.start(target.name, target.digest, client)
        registry.meters.proxy("joined" if joined else "miss")
        await asyncio.shield(download.head)
        try:
            fd = os.open(download.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # it was complete meanwhile, and has moved
            if download.done.done() and download.done.exception() is not None:
                raise download.done.exception() or AssertionError from None
            return await pull.get_blob(registry, request, target, relied=False)
        try:
            return _following(request, target, download, fd)
        except BaseException:
            os.close(fd)
            raise

    async def _keep(self, download: Download, name: str) -> None:
        await self._store.take_cached(name, download.digest, download.path, download.size)

    # --- lists --------------------------------------------------------------------------------

    async def _tags(self, registry: Registry, request: Request, target: Tags, client: Client) -> Response:
        most, after = pull.parse_page(request)
        try:
            data = await self._run(_get_list, client, "tags/list?n=10000")
            found = sorted(msgspec.json.decode(data, type=_TagList).tags or ())
        except msgspec.MsgspecError:
            raise Invalid(f"{client.endpoint.host} sent a malformed list of tags") from None
        except (NotFound, Unauthorized, Forbidden, Invalid):
            raise
        except CoveError:
            return await pull.list_tags(registry, request, target)
        found = [each for each in found if each > after][: most + 1]
        headers = pull.next_page(f"/v2/{target.name}/tags/list", request, found, most)
        return Response(200, encode_json({"name": target.name, "tags": found[:most]}) + b"\n", JSON, headers)

    async def _referrers(
        self, registry: Registry, request: Request, target: Referrers, client: Client
    ) -> Response:
        try:
            data = await self._run(_get_list, client, f"referrers/{target.digest}")
            index = msgspec.json.decode(data, type=dict[str, object])
        except (CoveError, msgspec.MsgspecError):
            return await pull.list_referrers(registry, request, target)
        wanted = request.query.get("artifactType")
        entries = index.get("manifests")
        entries = entries if isinstance(entries, list) else []
        if wanted:
            entries = [
                each for each in entries if isinstance(each, dict) and each.get("artifactType") == wanted
            ]
        headers = {"OCI-Filters-Applied": "artifactType"} if wanted else {}
        body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        return Response(200, encode_json(body), OCI_INDEX, headers)

    async def _run(self, function: Callable[[Client, str], T], client: Client, what: str) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, client, what)


def _following(request: Request, target: Blob, download: Download, fd: int) -> FileResponse:
    """An answer that follows a download."""
    headers = {**pull.blob_headers(target.digest), "Accept-Ranges": "bytes"}
    part = pull.parse_range(request.headers.get("range", ""), download.size)
    if part is None:
        return FileResponse(200, fd, 0, download.size, pull.OCTETS, headers, download.grown)
    first, length = part
    headers["Content-Range"] = f"bytes {first}-{first + length - 1}/{download.size}"
    return FileResponse(206, fd, first, length, pull.OCTETS, headers, download.grown)


def _head_digest(client: Client, tag: str) -> str:
    """The digest that a tag has upstream; "" where the upstream doesn't say."""
    with client.request("HEAD", f"manifests/{tag}", headers=_ACCEPT) as answer:
        try:
            return parse_digest(answer.headers.get("Docker-Content-Digest", ""))
        except Refused:
            return ""


def _get_manifest(client: Client, reference: str) -> tuple[bytes, str]:
    with client.request("GET", f"manifests/{reference}", headers=_ACCEPT) as answer:
        return answer.read(MANIFEST_BYTES_MAX), answer.headers.get("Content-Type", "")


def _head_size(client: Client, digest: str) -> int:
    with client.request("HEAD", f"blobs/{digest}") as answer:
        return int(answer.headers.get("Content-Length", "0"))


def _get_list(client: Client, path: str) -> bytes:
    with client.request("GET", path) as answer:
        return answer.read(LIST_BYTES_MAX)


def _refused(error: CoveError, name: str) -> Refused:
    """What the client is told of an upstream's refusal; no credentials are in these sentences."""
    if isinstance(error, NotFound):
        return Refused(404, "MANIFEST_UNKNOWN", f"{name}: the upstream registry has no such thing: {error}")
    if isinstance(error, Unauthorized | Forbidden):
        return Refused(403, "DENIED", f"{name}: the upstream registry refused: {error}")
    return Refused(502, "UNSUPPORTED", f"{name}: the upstream registry can't be asked: {error}")
