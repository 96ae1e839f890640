"""Cove's own API, /cove/v1/build: contexts of which only what has changed is sent, and builds told as events.

    POST /cove/v1/build/context?key=HEX      a listing (contexts.py) -> {"Id": …, "Missing": [numbers of rows]}
    POST /cove/v1/build/context/contents?id= the missing contents, one after the other
    POST /cove/v1/build                      {"Dockerfile": text, "Context": id, …} -> a line of JSON for each event

The first line of a build is its plan: the steps with their texts. The last has `image`, or `error`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec

from cove.api.docker import wire
from cove.api.docker.build import Answer, parse_epoch, read_registry_config
from cove.api.docker.context import Api
from cove.api.docker.limits import decode_resources, decode_ulimits
from cove.api.docker.pulling import event_json as event_json_of_pull
from cove.api.http import Request, Response, json_response
from cove.api.router import Route
from cove.build.builder import Order
from cove.build.checks import check
from cove.build.contexts import MAX_LISTING_BYTES
from cove.build.errors import BuildFailed
from cove.build.events import BuildEvent, ImageBuilt, StepDone, StepOutput, StepStarted
from cove.build.graph import Graph
from cove.build.planning import MAX_DOCKERFILE_BYTES, plan
from cove.build.request import PlanRequest
from cove.dockerfile.findings import findings_text, summary_text
from cove.dockerfile.instructions import Dockerfile
from cove.dockerfile.parser import parse_dockerfile
from cove.image.references import parse_tagged
from cove.image.registry import PullEvent
from cove.image.registry.auth import Credentials
from cove.model.container import ContainerSpec
from cove.model.errors import CoveError, Invalid
from cove.model.objects import Image

Json = dict[str, Any]
MAX_SECRETS = 100
MAX_BODY_BYTES = 64 << 20


class BuildBody(wire.Wire, frozen=True, kw_only=True):
    """What a build is asked for."""

    dockerfile: str
    name: str = "Dockerfile"  # for errors
    context: str = ""
    contexts: dict[str, str] | None = None  # ids by name, of --build-context
    named: dict[str, str] | None = None  # docker-image://… by name
    tags: list[str] | None = None
    build_args: dict[str, str] | None = None
    target: str = ""
    labels: dict[str, str] | None = None
    platform: str = ""
    no_cache: bool = False
    no_cache_stages: list[str] | None = None
    pull: bool = False
    network: str = ""
    hosts: list[str] | None = None
    memory: int = 0
    shm_size: int = 0
    ulimits: list[wire.Ulimit] | None = None
    secrets: dict[str, str] | None = None  # base64
    agents: dict[str, str] | None = None  # sockets of SSH agents on this machine


async def plan_context(api: Api, request: Request) -> Response:
    listing = await request.body.read_all(MAX_LISTING_BYTES)
    pending = await api.builder.contexts.plan(
        request.query.get("key"), listing, api.engine.images.budget_bytes()
    )
    return json_response({"Id": pending.id, "Missing": pending.missing, "Bytes": pending.missing_bytes})


async def take_contents(api: Api, request: Request) -> Response:
    await api.builder.contexts.receive(request.query.get("id"), request.body)
    return Response(204)


async def check_dockerfile(api: Api, request: Request) -> Response:
    """What there is to say of a Dockerfile: nothing is pulled or built."""
    body = await wire.read(request, BuildBody, required=True)
    dockerfile = _parsed(body)
    findings = check(dockerfile, _asked(api, body))
    lines = body.dockerfile.splitlines()
    text = findings_text(findings, lines, body.name) + summary_text(findings)
    found = [msgspec.to_builtins(finding) for finding in findings]
    return json_response({"Findings": found, "Count": len(found), "Text": text})


async def build(api: Api, request: Request) -> None:
    body = await wire.read(request, BuildBody, required=True)
    async with AsyncExitStack() as undo:
        request.bind_to_client(ends_clean=False)
        answer = Answer(request, "application/x-ndjson")
        credentials = read_registry_config(request.headers.get("x-registry-config", ""))
        try:
            order = await _order(api, body, undo, credentials, answer)
        except CoveError as error:
            if not answer.begun:
                raise
            await answer.tell([failure_json(error)])
            return
        await _run(api, answer, order)


async def _order(
    api: Api,
    body: BuildBody,
    undo: AsyncExitStack,
    credentials: Mapping[str, Credentials],
    answer: Answer,
) -> Order:
    contexts = {}
    for name, context_id in {"": body.context, **(body.contexts or {})}.items():
        if context_id:
            pending = api.builder.contexts.take(context_id)
            undo.callback(pending.close)
            contexts[name] = pending.open
    args = body.build_args or {}
    graph = await _plan(api, body, credentials, answer)
    network = body.network
    spec = ContainerSpec(
        image="",
        network_mode=network if network not in ("", "default") else "default",
        resources=decode_resources(wire.Resources(memory=body.memory), "", cpus=api.cpus),
        ulimits=decode_ulimits(body.ulimits or []),
        shm_size_bytes=body.shm_size,
        extra_hosts=tuple(body.hosts or ()),
    )
    return Order(
        graph=graph,
        contexts=contexts,
        names=tuple(dict.fromkeys(parse_tagged(tag).familiar for tag in body.tags or ())),
        spec=spec,
        source_date_epoch_s=parse_epoch(args.get("SOURCE_DATE_EPOCH", "")),
        secrets=_secrets(body.secrets or {}),
        agents={name: _agent(name, path) for name, path in (body.agents or {}).items()},
    )


async def _plan(api: Api, body: BuildBody, credentials: Mapping[str, Credentials], answer: Answer) -> Graph:
    async def told(event: PullEvent) -> None:
        await answer.tell([{"pull": event_json_of_pull(event)}])

    async def pull(reference: str, platform: str) -> Image:
        return await api.builder.pull(reference, platform, credentials, told)

    asked = _asked(api, body)
    return await plan(
        api.engine.images, _parsed(body), asked, pull, api.engine.admission.check, always=body.pull
    )


def _parsed(body: BuildBody) -> Dockerfile:
    data = body.dockerfile.encode("utf-8", "surrogateescape")
    if len(data) > MAX_DOCKERFILE_BYTES:
        raise Invalid(f"Dockerfile: it has {len(data)} bytes, the limit is {MAX_DOCKERFILE_BYTES}")
    return parse_dockerfile(data, body.name)


def _asked(api: Api, body: BuildBody) -> PlanRequest:
    return PlanRequest(
        build_args=body.build_args or {},
        target=body.target,
        labels=body.labels or {},
        platform=body.platform,
        build_platform=f"linux/{api.engine.images.architecture}",
        no_cache=body.no_cache,
        no_cache_stages=tuple(body.no_cache_stages or ()),
        contexts={**{name: name for name in body.contexts or ()}, **(body.named or {})},
    )


def _secrets(given: dict[str, str]) -> dict[str, bytes]:
    from cove.build.mounts import MAX_SECRET_BYTES

    if len(given) > MAX_SECRETS:
        raise Invalid(f"Secrets: there are {len(given)}, the limit is {MAX_SECRETS}")
    found = {}
    for name, text in given.items():
        try:
            found[name] = base64.b64decode(text, validate=True)
        except ValueError:
            raise Invalid(f"Secrets.{name}: expected base64") from None
        if len(found[name]) > MAX_SECRET_BYTES:
            raise Invalid(f"Secrets.{name}: it has {len(found[name])} bytes, the limit is {MAX_SECRET_BYTES}")
    return found


def _agent(name: str, path: str) -> Path:
    socket = Path(path)
    if not socket.is_absolute() or not socket.is_socket():
        raise Invalid(
            f"Agents.{name}: {path} is no socket of this machine: start ssh-agent, or leave --ssh out"
        )
    return socket


async def _run(api: Api, answer: Answer, order: Order) -> None:
    async def tell(line: Json) -> None:
        await answer.tell([line])

    async def emit(event: BuildEvent) -> None:
        await tell(event_json(event))

    await tell(plan_json(order.graph))
    try:
        await api.builder.build(order, emit)
    except CoveError as error:
        await tell(failure_json(error))


def plan_json(graph: Graph) -> Json:
    """The first line: every step with its text, and what a check found."""
    return {
        "steps": [
            {
                "kind": type(step.operation).__name__.lower(),
                "stage": step.origin.stage,
                "line": step.origin.line,
                "text": step.origin.text,
                "inputs": list(step.inputs()),
            }
            for step in graph.steps
        ],
        "warnings": [msgspec.to_builtins(finding) for finding in graph.warnings],
    }


def event_json(event: BuildEvent) -> Json:
    match event:
        case StepStarted():
            return {"started": event.step, "run": event.run}
        case StepOutput():
            data = base64.b64encode(event.data).decode()
            return {"output": event.step, "stream": event.stream, "data": data}
        case StepDone():
            return {
                "done": event.step,
                "cached": event.cached,
                "seconds": round(event.seconds, 4),
                "bytes": event.size_bytes,
            }
        case ImageBuilt():
            return {"image": event.image_id, "names": list(event.names), "cached": event.cached}
        case _:
            return {"note": event.text}


def failure_json(error: CoveError) -> Json:
    found: Json = {"error": str(error)}
    if isinstance(error, BuildFailed):
        found.update(step=error.step, line=error.line, code=error.exit_code)
    return found


ROUTES: tuple[Route[Api], ...] = (
    ("POST", "/cove/v1/build", build),
    ("POST", "/cove/v1/build/check", check_dockerfile),
    ("POST", "/cove/v1/build/context", plan_context),
    ("POST", "/cove/v1/build/context/contents", take_contents),
)
