"""POST /commit: an image of a container."""

from __future__ import annotations

from typing import Any

import msgspec

from cove.api.docker import wire
from cove.api.docker.context import Api
from cove.api.docker.decode import decode_env, words
from cove.api.http import Request, Response, json_response
from cove.api.router import Route
from cove.model.errors import Invalid

_FIELDS = frozenset(
    "User ExposedPorts Env Cmd Healthcheck Volumes WorkingDir Entrypoint OnBuild Labels StopSignal Shell".split()
)
_COMMANDS = ("Cmd", "Entrypoint", "Shell")
_TEXT_MAX = 64 << 10


async def commit(api: Api, request: Request) -> Response:
    query = request.query
    container = query.get("container")
    if not container:
        raise Invalid("container: is missing: name the container to commit, e.g. container=web")
    for field in ("comment", "author"):
        if len(query.get(field)) > _TEXT_MAX:
            raise Invalid(f"{field}: is longer than {_TEXT_MAX} characters")
    body = await wire.read(request, wire.Config)
    repository, tag = query.get("repo"), query.get("tag")
    if tag and not repository:
        raise Invalid("tag: needs the parameter repo beside it, e.g. repo=app&tag=1.0")
    image = await api.engine.commit(
        container,
        given=_given(body),
        changes=query.all("changes"),
        comment=query.get("comment"),
        author=query.get("author"),
        image=f"{repository}:{tag}" if tag else repository,
        pause=query.flag("pause", True),
    )
    return json_response({"Id": image.id}, 201)


def _given(body: wire.Config) -> dict[str, Any]:
    """The part of a create body that an image's configuration has, as it is written there. Raises Invalid."""
    decode_env(body.env)
    found = msgspec.to_builtins(body)
    given: dict[str, Any] = {key: value for key, value in found.items() if key in _FIELDS and value}
    for key in _COMMANDS:
        if key in given:
            given[key] = list(words(given[key], key) or ())
    for key in ("ExposedPorts", "Volumes"):
        if key in given:
            given[key] = {name: {} for name in given[key]}
    if "Labels" in given:
        given["Labels"] = {key: value or "" for key, value in given["Labels"].items()}
    return given


ROUTES: tuple[Route[Api], ...] = (("POST", "/commit", commit),)
