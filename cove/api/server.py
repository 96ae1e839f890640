"""The daemon's API server: the HTTP server, with both APIs of an engine behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cove import __version__
from cove.api.app import App
from cove.api.docker.context import NEWEST, Api, Reload, version_text
from cove.api.listener import HttpServer

if TYPE_CHECKING:
    from cove.engine.engine import Engine

HEADERS = (
    ("Api-Version", version_text(NEWEST)),
    ("Docker-Experimental", "false"),
    ("Ostype", "linux"),
    ("Server", f"Cove/{__version__} (linux)"),
)


class ApiServer(HttpServer):
    """Serves the Docker Engine API and Cove's own; sockets are given to `listen`."""

    def __init__(self, engine: Engine, *, reload: Reload | None = None) -> None:
        self._api = Api(engine, reload=reload)
        super().__init__(App(self._api), HEADERS)

    async def close(self, grace_s: float = 10.0) -> None:
        await self._api.sessions.close()
        await super().close(grace_s)
