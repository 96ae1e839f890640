"""Cove's own API, /cove/v1: what Docker's doesn't have."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from cove import __version__
from cove.api.docker import wire
from cove.api.docker.context import Api
from cove.api.docker.decode import decode_create
from cove.api.docker.text import rfc3339
from cove.api.http import Request, Response, json_response
from cove.api.router import Route
from cove.model.container import StepFailure
from cove.model.errors import Invalid, Unavailable
from cove.runtime.plan_explain import errno_name, explain, explain_json, find_failed
from cove.runtime.steps import Plan


async def ping(api: Api, request: Request) -> Response:
    return json_response({"name": "cove", "version": __version__})


async def plan(api: Api, request: Request) -> Response:
    """The isolation plan of a create body, step by step; nothing is made."""
    body = await wire.read(request, wire.CreateBody, required=True)
    decoded = decode_create(body, name="", platform="", version=request.version, cpus=api.cpus)
    made = await api.engine.plan(decoded.spec)
    return json_response({"steps": explain_json(made), "warnings": decoded.warnings})


async def plan_of_container(api: Api, request: Request) -> Response:
    """The plan of the container that the query names, and where its last start failed, or null."""
    name = request.query.get("container")
    if not name:
        raise Invalid("container: is missing: name one, e.g. /cove/v1/plan?container=web")
    made, failure = api.engine.plan_existing(name)
    failed = failure_json(made, failure) if failure else None
    return json_response({"steps": explain_json(made), "warnings": [], "failed": failed})


async def stats(api: Api, request: Request) -> Response:
    """One reading of the container that the query names: all that its cgroup tells, in the units of the names."""
    name = request.query.get("container")
    if not name:
        raise Invalid("container: is missing: name one, e.g. /cove/v1/stats?container=web")
    found = await api.engine.stats(name)
    return json_response({"read": rfc3339(found.read_ns), **msgspec.to_builtins(found.cgroup)})


async def reload(api: Api, request: Request) -> Response:
    """Have the daemon read its configuration again: what counts now, and what waits for its next start."""
    if api.reload is None:
        raise Unavailable("this daemon has no configuration to read again")
    now, later = await api.reload()
    return json_response({"reloaded": now, "waiting": later})


async def waits(api: Api, request: Request) -> Response:
    """How it stands with what a start of the container that the query names waits for."""
    name = request.query.get("container")
    if not name:
        raise Invalid("container: is missing: name one, e.g. /cove/v1/waits?container=web")
    return json_response(
        [
            {
                "Container": one.dependency.container,
                "Condition": one.dependency.condition,
                "Now": one.now,
                "Met": one.met,
                "Text": str(one),
            }
            for one in api.engine.waits(name)
        ]
    )


def failure_json(plan: Plan, failure: StepFailure) -> dict[str, Any]:
    """`step` counts from 0 in `steps`; null when the plan of today has no such step any more."""
    return {
        "step": find_failed(explain(plan), failure),
        "section": failure.section,
        "describe": failure.describe,
        "errno": failure.errno,
        "name": errno_name(failure.errno),
        "text": os.strerror(failure.errno),
    }


ROUTES: tuple[Route[Api], ...] = (
    ("GET", "/cove/v1/ping", ping),
    ("POST", "/cove/v1/plan", plan),
    ("GET", "/cove/v1/plan", plan_of_container),
    ("GET", "/cove/v1/stats", stats),
    ("GET", "/cove/v1/waits", waits),
    ("POST", "/cove/v1/reload", reload),
)
