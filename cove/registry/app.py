"""From a request to its answer: who asks, what for, whether they may, and who does it."""

from __future__ import annotations

import asyncio
import contextvars
import ipaddress
import logging
import time
from typing import Protocol

from cove.api.http import JSON, TEXT, Request, Response, unescape
from cove.api.requestlog import choose_id, request_id
from cove.metrics.exposition import CONTENT_TYPE
from cove.model.errors import HostError, Invalid
from cove.registry import pull, push
from cove.registry.access import ACTIONS, DELETE, PULL, PUSH, Caller
from cove.registry.meters import Meters
from cove.registry.names import (
    METHODS,
    Base,
    Blob,
    Catalog,
    Manifest,
    Referrers,
    Tags,
    Target,
    Upload,
    Uploads,
    parse_target,
)
from cove.registry.proxy import Proxy
from cove.registry.refusals import Refused, full_disk, refuse_http, visible
from cove.registry.source import Source
from cove.registry.store import Store

log = logging.getLogger("cove.registry")
CLIENT_GONE = 499
BODY_STALL_S = 60.0
_caller: contextvars.ContextVar[Caller] = contextvars.ContextVar(
    "caller"
)  # of the request that a task serves
VERSION_HEADER = ("Docker-Distribution-Api-Version", "registry/2.0")


class Guard(Protocol):
    """Who knows the users: login.Login."""

    async def identify(self, request: Request, client: str) -> Caller:
        """Who asks. Refused: 401 with the challenge."""

    def may(self, caller: Caller, action: str, name: str) -> bool: ...

    def refuse(self, request: Request, caller: Caller, action: str, name: str, source: str = "") -> Refused:
        """401 for whoever could log in, 403 for whoever has. `source`: a repository that is to be read, too."""

    async def serve_token(self, request: Request, client: str) -> Response:
        """The token server's answer."""

    failures: int  # wrong passwords

    @property
    def asks(self) -> bool:
        """Whether anybody can log in."""

    @property
    def closed(self) -> bool:
        """Whether somebody must log in to see anything."""


class Links(Protocol):
    """Who links blobs of the machine's image store: sharing.Linker, sharing.Broker."""

    def link(self, digest: str) -> str: ...


class Registry:
    """The handler that the server calls for every request."""

    def __init__(
        self,
        store: Store,
        guard: Guard,
        *,
        read_only: bool = False,
        links: Links | None = None,
        share_with: str = "local",
        proxy: Proxy | None = None,
        source: Source | None = None,
    ) -> None:
        self.store = store
        self.guard = guard
        self.meters = Meters()
        self.read_only = read_only
        self._links = links
        self._share_with = share_with
        self._proxy = proxy
        self._source = source

    async def __call__(self, request: Request) -> Response | None:
        request.id = choose_id(request.headers.get("x-request-id", ""))
        request_id.set(request.id)
        begun_s = time.perf_counter()
        status = 500
        try:
            response = await self._answer(request)
            status = response.status
            return response
        except (asyncio.CancelledError, ConnectionError):
            status = CLIENT_GONE
            raise
        finally:
            caller = _caller.get(Caller())
            elapsed_s = time.perf_counter() - begun_s
            self.meters.request(request.method, request.route or "-", status, elapsed_s)
            level = logging.ERROR if status >= 500 and status != 507 else logging.INFO
            log.log(
                level,
                "%s %s %s -> %d in %.1f ms, client=%s user=%s request=%s",
                request.method,
                visible(request.path[:300]),
                request.route or "-",
                status,
                elapsed_s * 1000,
                self.client(request),
                caller.name or "-",
                request.id,
            )

    async def _answer(self, request: Request) -> Response:
        try:
            try:
                path = unescape(request.path)
                return await self._route(request, path)
            except Invalid as error:
                raise Refused(400, "UNSUPPORTED", str(error)) from None
            except HostError as error:
                log.error("%s", error)
                if "full" in str(error):
                    raise full_disk("the registry's disk is full") from None
                raise Refused(
                    500, "UNSUPPORTED", "the registry failed at this request; its log has the details"
                ) from None
        except Refused as refused:
            return refused.response()

    async def _route(self, request: Request, path: str) -> Response:
        if path == "/token" and request.method in ("GET", "POST"):
            request.route = "token"
            return await self.guard.serve_token(request, self.client(request))
        if path == "/healthz" and request.method in ("GET", "HEAD"):
            request.route = "healthz"
            return Response(200, b"ok\n", TEXT)
        caller = await self.guard.identify(request, self.client(request))
        _caller.set(caller)
        if path == "/metrics" and request.method in ("GET", "HEAD"):
            request.route = "metrics"
            if self.guard.closed and not caller.name:
                raise self.guard.refuse(request, caller, PULL, "")
            return Response(200, self.meters.render(self.store, self.guard.failures), CONTENT_TYPE)
        target = parse_target(path)
        request.route = type(target).__name__.lower()
        allowed = METHODS[type(target)]
        if request.method not in allowed:
            raise Refused(
                405,
                "UNSUPPORTED",
                f"{request.method} isn't defined here, but {', '.join(allowed)}",
                headers={"Allow": ", ".join(allowed)},
            )
        if self._proxy is not None and not isinstance(target, Base | Catalog):
            target, upstream = self._proxy.locate(target, request.query.get("ns"))
            if upstream is not None:
                self._check_access(request, caller, target)
                return await self._proxy.serve(self, request, target, upstream)
        if self._source is not None and not isinstance(target, Base | Catalog):
            target = self._source.locate(target, request.query.get("ns"))
        self._check_access(request, caller, target)
        if self._source is not None and isinstance(target, Manifest) and target.tag:
            await self._source.fill(target)
        return await self._serve(request, caller, target)

    def _check_access(self, request: Request, caller: Caller, target: Target) -> None:
        if isinstance(target, Base):
            # Clients log in where this page asks them to, and nowhere else: also where some may come without.
            if self.guard.asks and not caller.name and caller.grants is None:
                raise self.guard.refuse(request, caller, "", "")
            return
        if isinstance(target, Catalog):  # it shows what the caller may pull
            if self.guard.closed and not caller.name and caller.grants is None:
                raise self.guard.refuse(request, caller, "", "")
            return
        action = needed_action(request.method, target)
        if action != PULL and self.read_only:
            raise Refused(
                405, "UNSUPPORTED", "this registry is read-only (--read-only)", headers={"Allow": "GET, HEAD"}
            )
        if not self.guard.may(caller, action, target.name):
            raise self.guard.refuse(request, caller, action, target.name)

    async def _serve(self, request: Request, caller: Caller, target: Target) -> Response:
        method = request.method
        if isinstance(target, Manifest):
            if method in ("GET", "HEAD"):
                return await pull.get_manifest(self, request, target)
            return await (push.put_manifest if method == "PUT" else push.delete_manifest)(
                self, request, target
            )
        if isinstance(target, Blob):
            if method == "DELETE":
                return await push.delete_blob(self, request, target)
            relied = not self.read_only and self.guard.may(caller, PUSH, target.name)
            if (
                relied
                and method == "HEAD"
                and self.store.catalog.find_blob(target.name, target.digest) is None
            ):
                await self.share(request, target.name, target.digest)
            return await pull.get_blob(self, request, target, relied=relied)
        if isinstance(target, Uploads):
            return await push.begin_upload(self, request, target)
        if isinstance(target, Upload):
            return await push.serve_upload(self, request, target)
        if isinstance(target, Tags):
            return await pull.list_tags(self, request, target)
        if isinstance(target, Referrers):
            return await pull.list_referrers(self, request, target)
        if isinstance(target, Catalog):
            return await pull.list_repositories(self, request)
        return Response(200, b"{}\n", JSON)

    # --- what handlers ask for ----------------------------------------------------------------

    def client(self, request: Request) -> str:
        """The client's address; a local socket's peer has none."""
        peer = request.about_client("peername")
        return str(peer[0]) if isinstance(peer, tuple) and peer else "local"

    def may_pull(self, request: Request, name: str) -> bool:
        caller = _caller.get(Caller())
        return self.guard.may(Caller(name=caller.name) if caller.catalog else caller, PULL, name)

    async def mount(self, request: Request, name: str, digest: str, source: str) -> bool:
        """Make a blob that exists elsewhere one of this repository, where the caller could read it there."""
        caller = _caller.get(Caller())
        if (
            source
            and caller.grants is not None
            and not self.guard.may(caller, PULL, source)
            and self.guard.may(Caller(name=caller.name), PULL, source)
        ):  # a token for both repositories would do, as at distribution
            raise self.guard.refuse(request, caller, PUSH, name, source)
        if self.holder(caller, digest, source) and await self.store.mount(name, digest):
            return True
        return await self.share(request, name, digest)

    async def share(self, request: Request, name: str, digest: str) -> bool:
        """Make a blob of the machine's image store one of this repository, by a link. For a caller who may push to it.

        False: the store lacks it, or this caller is none to share with.
        """
        if self._links is None or (self._share_with == "local" and not self._is_local(request)):
            return False
        link = await self.store.threads.run(self._links.link, digest)
        if not link:
            return False
        size = await self.store.take_link(name, digest, link)
        self.meters.linked += 1
        self.meters.linked_bytes += size
        log.info("linked %s of the image store into %s: %d bytes", digest, name, size)
        return True

    def _is_local(self, request: Request) -> bool:
        client = self.client(request)
        if client == "local":
            return True
        try:
            return ipaddress.ip_address(client.partition("%")[0]).is_loopback
        except ValueError:
            return False

    def holder(self, caller: Caller, digest: str, source: str) -> bool:
        """Whether a repository has this blob that the caller may pull from: `source`, or any without one."""
        names = [source] if source else self.store.catalog.holders(digest)
        for each in names:
            if self.guard.may(caller, PULL, each) and self.store.catalog.find_blob(each, digest) is not None:
                return True
        return False

    async def read_body(self, request: Request, most: int) -> bytes:
        """A small body. Raises Invalid above `most` bytes. Refused: 408 for one that doesn't come."""
        try:
            async with asyncio.timeout(BODY_STALL_S):
                return await request.body.read_all(most)
        except TimeoutError:
            raise Refused(
                408, "MANIFEST_INVALID", f"the body wasn't complete after {BODY_STALL_S:.0f} seconds"
            ) from None

    def log_push(self, request: Request, name: str, digest: str, tags: list[str]) -> None:
        self.meters.pushes += 1
        log.info("pushed %s@%s%s", name, digest, f" as {', '.join(tags)}" if tags else "")

    def damaged(self, digest: str) -> None:
        log.error("%s is in the catalog but not on the disk: cove registry check tells what needs it", digest)


def needed_action(method: str, target: Target) -> str:
    """What a caller must be allowed to do for this."""
    if isinstance(target, Uploads | Upload):
        return PUSH
    action = {"PUT": PUSH, "DELETE": DELETE}.get(method, PULL)
    assert action in ACTIONS
    return action


__all__ = ["CLIENT_GONE", "Guard", "Registry", "needed_action", "refuse_http"]
