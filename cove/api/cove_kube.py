"""/cove/v1/kube: play a Kubernetes file, take it down, and write one of what there is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec

from cove.api.docker import wire
from cove.api.docker.context import Api
from cove.api.docker.decode import decode_create
from cove.api.http import Request, Response, json_response
from cove.api.router import Route
from cove.engine.plays import PlayedPod
from cove.engine.pods import IMAGE
from cove.kube.types import Group, Options, Plan, PodPlan
from cove.kube.yamlfile import MAX_BYTES
from cove.model.container import ContainerSpec
from cove.model.errors import Invalid, NotFound

_MAX_PUBLISHED = 1000


async def _read(request: Request) -> Plan:
    data = await request.body.read_all(MAX_BYTES)
    publish = request.query.all("publish")
    if len(publish) > _MAX_PUBLISHED:
        raise Invalid(f"publish: {len(publish)} ports, and there can be {_MAX_PUBLISHED}")
    # the room's tables cost memory, and most daemons are never given a file
    from cove.kube.plan import plan_file

    options = Options(network=request.query.get("network"), publish=tuple(publish))
    return await asyncio.to_thread(plan_file, data, options)


def _spec(
    api: Api, request: Request, name: str, body: Mapping[str, Any], warnings: list[str]
) -> ContainerSpec:
    """What a planned body means, by the rules of every create."""
    try:
        shape = wire.decode(msgspec.json.encode(body), wire.CreateBody)
        decoded = decode_create(shape, name=name, platform="", version=request.version, cpus=api.cpus)
    except Invalid as error:
        raise Invalid(f"container {name}: {error}") from None
    warnings += [f"container {name}: {warning}" for warning in decoded.warnings]
    return decoded.spec


def _pods(api: Api, request: Request, plan: Plan, warnings: list[str]) -> list[PlayedPod]:
    return [
        PlayedPod(
            name=pod.name,
            owner=pod.owner,
            infra=_spec(api, request, "", {**pod.body, "Image": IMAGE}, warnings),
            containers=tuple(_spec(api, request, one.name, one.body, warnings) for one in pod.containers),
            host_paths=pod.host_paths,
        )
        for pod in plan.pods
    ]


def _pod_json(pod: PodPlan) -> dict[str, Any]:
    return {
        "Name": pod.name,
        "Owner": pod.owner,
        "Containers": [{"Name": one.name, "Image": one.image, "Init": one.init} for one in pod.containers],
        "Ports": pod.body["HostConfig"].get("PortBindings", {}),
    }


async def play(api: Api, request: Request) -> Response:
    """The body is YAML. `dry-run` makes nothing, `replace` takes down what the same file has made before."""
    plan = await _read(request)
    warnings = list(plan.warnings)
    pods = _pods(api, request, plan, warnings)
    replace = request.query.flag("replace")
    dry = request.query.flag("dry-run")
    if dry:
        api.engine.plays.check(plan.volumes, pods, replace=replace)
    else:
        start = request.query.flag("start", True)
        warnings += await api.engine.plays.play(plan.volumes, pods, replace=replace, start=start)
    answer = {
        "Pods": [_pod_json(pod) for pod in plan.pods],
        "Volumes": [{"Name": one.name, "Owner": one.owner} for one in plan.volumes],
        "Warnings": warnings,
    }
    return json_response(answer, 200 if dry else 201)


async def down(api: Api, request: Request) -> Response:
    """The body is the YAML that was played; with `volumes` those of its claims go, too."""
    plan = await _read(request)
    removed = await api.engine.plays.down(
        plan.volumes, [(pod.name, pod.owner) for pod in plan.pods], claims=request.query.flag("volumes")
    )
    return json_response({"Removed": removed})


async def generate(api: Api, request: Request) -> Response:
    """The pods and containers that the query names, as YAML."""
    from cove.kube.generate import generate_file

    names = request.query.all("name")
    if not names:
        raise Invalid("name: is missing: name a pod or a container, e.g. /cove/v1/kube/generate?name=web")
    return json_response({"Text": generate_file([_group(api, name) for name in dict.fromkeys(names)])})


def _group(api: Api, name: str) -> Group:
    with contextlib.suppress(NotFound):
        pod = api.engine.pods.find(name)
        members = [view.container for view in pod.members]
        return Group(name=pod.name, infra=pod.infra.container, containers=members)
    container = api.engine.find(name).container
    if container.spec.extension.pod:
        raise Invalid(f"{name}: is in the pod {container.spec.extension.pod}: name that one")
    return Group(name=container.name, infra=None, containers=[container])


ROUTES: tuple[Route[Api], ...] = (
    ("POST", "/cove/v1/kube/play", play),
    ("POST", "/cove/v1/kube/down", down),
    ("GET", "/cove/v1/kube/generate", generate),
)
