"""/cove/v1/pods: create, list, inspect, start, stop, remove."""

from __future__ import annotations

from typing import Any

import msgspec

from cove.api.docker import wire
from cove.api.docker.context import Api
from cove.api.docker.decode import decode_create
from cove.api.docker.text import rfc3339
from cove.api.http import NO_CONTENT, Request, Response, json_response
from cove.api.router import Route
from cove.engine.pods import IMAGE, Pod
from cove.model.errors import Invalid

MAX_SECONDS = 1 << 31


def pod_json(pod: Pod) -> dict[str, Any]:
    infra = pod.infra.container
    return {
        "Name": pod.name,
        "Status": pod.status,
        "Created": rfc3339(infra.created_ns),
        "Hostname": infra.hostname,
        "Labels": infra.spec.labels,
        "InfraID": infra.id,
        "Containers": [
            {"Id": view.container.id, "Name": view.container.name, "State": view.state.status}
            for view in pod.members
        ],
        "Ports": [
            f"{port.host_ip or '0.0.0.0'}:{port.host_port}->{port.container_port}/{port.protocol}"
            for port in pod.infra.state.ports
        ],
    }


def _name(request: Request) -> str:
    name = request.query.get("name")
    if not name:
        raise Invalid("name: is missing: name a pod, e.g. /cove/v1/pods/inspect?name=web")
    return name


async def list_pods(api: Api, request: Request) -> Response:
    return json_response([pod_json(pod) for pod in api.engine.pods.list()])


async def create(api: Api, request: Request) -> Response:
    """The body is a container's, of which networks, ports, names, labels and limits count."""
    name = _name(request)
    body = await wire.read(request, wire.CreateBody)
    decoded = decode_create(
        msgspec.structs.replace(body, image=IMAGE),
        name="",
        platform="",
        version=request.version,
        cpus=api.cpus,
    )
    pod, warnings = await api.engine.pods.create(name, decoded.spec)
    return json_response({**pod_json(pod), "Warnings": [*decoded.warnings, *warnings]}, 201)


async def inspect(api: Api, request: Request) -> Response:
    return json_response(pod_json(api.engine.pods.find(_name(request))))


async def start(api: Api, request: Request) -> Response:
    await api.engine.pods.start(_name(request))
    return NO_CONTENT


async def stop(api: Api, request: Request) -> Response:
    seconds = request.query.integer("t", None, low=-1, high=MAX_SECONDS)
    await api.engine.pods.stop(_name(request), timeout_s=None if seconds is None else float(seconds))
    return NO_CONTENT


async def remove(api: Api, request: Request) -> Response:
    await api.engine.pods.remove(_name(request), force=request.query.flag("force"))
    return NO_CONTENT


ROUTES: tuple[Route[Api], ...] = (
    ("GET", "/cove/v1/pods", list_pods),
    ("POST", "/cove/v1/pods", create),
    ("DELETE", "/cove/v1/pods", remove),
    ("GET", "/cove/v1/pods/inspect", inspect),
    ("POST", "/cove/v1/pods/start", start),
    ("POST", "/cove/v1/pods/stop", stop),
)
