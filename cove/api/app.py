"""From a request to its handler: API version, route, and errors turned into answers."""

from __future__ import annotations

import asyncio
import re
import time

from cove.api import (
    cove_build,
    cove_changes,
    cove_images,
    cove_kube,
    cove_pods,
    cove_policy,
    cove_recreate,
    cove_scan,
    cove_secrets,
    cove_signatures,
    cove_storage,
    cove_v1,
    errors,
)
from cove.api.docker import ROUTES
from cove.api.docker.context import NEWEST, OLDEST, Api, version_text
from cove.api.gate import Gate
from cove.api.http import Request, Response, error_response
from cove.api.requestlog import choose_id, log_request, request_id
from cove.api.router import Router
from cove.model.errors import CoveError, Invalid

CLIENT_GONE = 499  # in the log: nobody waits for the answer any more
_READS = ("GET", "HEAD")
_WAITING = ("wait", "attach", "build", "record")  # nearly all of their time is somebody else's
_VERSION = re.compile(r"v(\d{1,3})(?:\.(\d{1,3}))?")


class App:
    """The handler that a server calls for every request."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._router = Router(
            (
                *ROUTES,
                *cove_v1.ROUTES,
                *cove_build.ROUTES,
                *cove_pods.ROUTES,
                *cove_kube.ROUTES,
                *cove_changes.ROUTES,
                *cove_recreate.ROUTES,
                *cove_images.ROUTES,
                *cove_scan.ROUTES,
                *cove_secrets.ROUTES,
                *cove_signatures.ROUTES,
                *cove_policy.ROUTES,
                *cove_storage.ROUTES,
            )
        )
        self._meters = api.engine.meters
        self._gate = Gate(width=3 * api.cpus)

    async def __call__(self, request: Request) -> Response | None:
        request.id = choose_id(request.headers.get("x-request-id", ""))
        request_id.set(request.id)
        begun_s = time.perf_counter()
        status = 500
        try:
            response = await self._answer(request)
            status = response.status if response is not None else 200
            return response
        except (asyncio.CancelledError, ConnectionError):
            status = CLIENT_GONE
            raise
        finally:
            elapsed_s = time.perf_counter() - begun_s
            route = request.route or "-"
            log_request(request.method, route, status, elapsed_s)
            self._meters.request(request.method, route, status, elapsed_s)

    async def _answer(self, request: Request) -> Response | None:
        try:
            segments = [part for part in request.path.split("/") if part]
            request.version = NEWEST
            if segments and segments[0][0] == "v" and segments[0][1:2].isdigit():
                request.version = parse_version(segments.pop(0))
            handler = self._router.find(request, segments)
            if handler is None:
                return error_response(404, "page not found")
            if request.method in _READS or segments[-1] in _WAITING:
                return await handler(self._api, request)
            async with self._gate.turn():
                return await handler(self._api, request)
        except CoveError as error:
            return errors.response_of(error)


def parse_version(text: str) -> int:
    """A path's `v1.43` → 1043. Raises `Invalid`, in Docker's words, for one that isn't served."""
    match = _VERSION.fullmatch(text)
    if match is None:
        raise Invalid(f"invalid API version {text!r}, expected one from v{version_text(OLDEST)} on")
    version = int(match[1]) * 1000 + int(match[2] or 0)
    if version < OLDEST:
        raise Invalid(
            f"client version {text[1:]} is too old. Minimum supported API version is {version_text(OLDEST)}, "
            "please upgrade your client to a newer version"
        )
    if version > NEWEST:
        raise Invalid(
            f"client version {text[1:]} is too new. Maximum supported API version is {version_text(NEWEST)}"
        )
    return version
