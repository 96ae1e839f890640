"""From method and path to a handler: three dictionaries, compiled once, no regular expressions.

A pattern is fixed (`/containers/json`), has the object's name in its middle
(`/containers/{name}/json`) or at its end (`/images/{name}`). A name may hold slashes. Fixed
ones win over names in the middle, those over names at the end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

from cove.api.http import Request, Response, unescape

C = TypeVar("C")
Found = tuple[Callable[[C, Request], Awaitable[Response | None]], str]
Route = tuple[str, str, Callable[[C, Request], Awaitable[Response | None]]]


class Router(Generic[C]):
    """Routes to handlers that take a context of type C and a request."""

    def __init__(self, routes: Iterable[Route[C]]) -> None:
        self._fixed: dict[tuple[str, str], Found[C]] = {}
        self._middle: dict[tuple[str, str, str], Found[C]] = {}
        self._end: dict[tuple[str, str], Found[C]] = {}
        for method, pattern, handler in routes:
            parts = pattern.strip("/").split("/")
            if "{name}" not in parts:
                self._fixed[method, "/".join(parts)] = handler, pattern
            elif parts[-1] == "{name}":
                assert len(parts) == 2, pattern
                self._end[method, parts[0]] = handler, pattern
            else:
                assert len(parts) == 3 and parts[1] == "{name}", pattern
                self._middle[method, parts[0], parts[2]] = handler, pattern

    def find(
        self, request: Request, segments: list[str]
    ) -> Callable[[C, Request], Awaitable[Response | None]] | None:
        """The handler for a path's segments, with `request.name` and `request.route` set; None: no such page."""
        method = request.method
        found = self._fixed.get((method, "/".join(segments)))
        if found is None and len(segments) > 2:
            found = self._middle.get((method, segments[0], segments[-1]))
            if found is not None:
                request.name = unescape("/".join(segments[1:-1]))
        if found is None and len(segments) > 1:
            found = self._end.get((method, segments[0]))
            if found is not None:
                request.name = unescape("/".join(segments[1:]))
        if found is None:
            return None
        handler, request.route = found
        return handler
