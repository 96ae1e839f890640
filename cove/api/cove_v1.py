"""Cove's own API, /cove/v1: what Docker's doesn't have."""

from __future__ import annotations

from cove import __version__
from cove.api.docker import wire
from cove.api.docker.context import Api
from cove.api.docker.decode import decode_create
from cove.api.http import Request, Response, json_response
from cove.api.router import Route
from cove.runtime.plan_explain import explain
from cove.runtime.steps import Plan


async def ping(api: Api, request: Request) -> Response:
    return json_response({"name": "cove", "version": __version__})


async def plan(api: Api, request: Request) -> Response:
    """The isolation plan of a create body, step by step; nothing is made."""
    body = await wire.read(request, wire.CreateBody, required=True)
    decoded = decode_create(body, name="", platform="", version=request.version, cpus=api.cpus)
    made = await api.engine.plan(decoded.spec)
    return json_response({"steps": steps_json(made), "warnings": decoded.warnings})


def steps_json(plan: Plan) -> list[dict[str, str]]:
    """Every step with the section it runs in, what it does, and why."""
    return [{"section": line.section, "describe": line.what, "why": line.why} for line in explain(plan)]


ROUTES: tuple[Route[Api], ...] = (
    ("GET", "/cove/v1/ping", ping),
    ("POST", "/cove/v1/plan", plan),
)
