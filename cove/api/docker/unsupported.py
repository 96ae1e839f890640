"""The routes of the Docker Engine API that this release doesn't have, each with a sentence that says so."""

from __future__ import annotations

from cove.api.docker.context import Api
from cove.api.http import Request, Response, json_response
from cove.api.router import Route
from cove.model.errors import NotFound, NotImplementedHere, Unavailable

_NO_SWARM = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" '
    "to connect this node to swarm and try again."
)
_NO_PLUGINS = "Cove has no Docker plugins"


async def no_swarm(api: Api, request: Request) -> Response:
    raise Unavailable(_NO_SWARM)


async def no_swarm_here(api: Api, request: Request) -> Response:
    raise NotImplementedHere("Cove isn't a swarm: it runs containers on this machine only")


async def no_swarm_to_leave(api: Api, request: Request) -> Response:
    raise Unavailable("This node is not part of a swarm")


async def no_checkpoint(api: Api, request: Request) -> Response:
    raise NotImplementedHere("this release of Cove has no checkpoints")


async def no_plugins(api: Api, request: Request) -> Response:
    raise NotImplementedHere(_NO_PLUGINS)


async def no_such_plugin(api: Api, request: Request) -> Response:
    """A 404, for `docker inspect` asks every kind of object for a name."""
    raise NotFound(f'plugin "{request.name}" not found: {_NO_PLUGINS}')


async def list_plugins(api: Api, request: Request) -> Response:
    return json_response([])


_SWARM_KINDS = ("services", "nodes", "tasks", "secrets", "configs")

ROUTES: tuple[Route[Api], ...] = (
    *(("GET", f"/{kind}", no_swarm) for kind in (*_SWARM_KINDS, "swarm")),
    *(
        (method, f"/{kind}/{{name}}", no_swarm)
        for kind in _SWARM_KINDS
        for method in ("GET", "POST", "DELETE")
    ),
    *(("POST", f"/{kind}/{{name}}/update", no_swarm) for kind in ("services", "nodes", "secrets", "configs")),
    *(("GET", f"/{kind}/{{name}}/logs", no_swarm) for kind in ("services", "tasks")),
    ("POST", "/swarm/init", no_swarm_here),
    ("POST", "/swarm/join", no_swarm_here),
    ("POST", "/swarm/leave", no_swarm_to_leave),
    ("POST", "/swarm/update", no_swarm),
    ("GET", "/swarm/unlockkey", no_swarm),
    ("POST", "/swarm/unlock", no_swarm),
    ("GET", "/plugins", list_plugins),
    ("POST", "/plugins/pull", no_plugins),
    ("POST", "/plugins/create", no_plugins),
    ("GET", "/plugins/{name}/json", no_such_plugin),
    ("DELETE", "/plugins/{name}", no_such_plugin),
    ("GET", "/containers/{name}/checkpoints", no_checkpoint),
    ("POST", "/containers/{name}/checkpoints", no_checkpoint),
)
