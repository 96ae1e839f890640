"""POST /cove/v1/update: published ports, labels, health checks, mounts and start order of a container."""

from __future__ import annotations

import msgspec

from cove.api.docker import wire
from cove.api.docker.context import Api
from cove.api.docker.decode import decode_health
from cove.api.docker.endpoints import decode_ports, parse_port
from cove.api.docker.extension import PREFIX, decode_extension, extension_json, with_probe
from cove.api.docker.mounts import decode_added, string_map
from cove.api.http import Request, Response, json_response
from cove.api.router import Route
from cove.engine.live_changes import Changes
from cove.engine.live_mounts import AddedMount
from cove.engine.types import View
from cove.model.container import HealthCheck
from cove.model.errors import Invalid
from cove.model.extension import Extension

LIVE = frozenset(
    "health.probe health.probe.status health.probe.headers health.on-failure depends-on depends-timeout".split()
)


class ChangeBody(wire.Wire, frozen=True, kw_only=True):
    publish_add: dict[str, list[wire.PortBinding] | None] | None = None
    publish_remove: wire.Strings = None
    mounts_add: list[wire.Mount] | None = None
    mounts_remove: wire.Strings = None
    labels_add: wire.StringMap = None
    labels_remove: wire.Strings = None
    healthcheck: wire.Health | None = None
    cove: wire.StringMap = None


def decode_changes(body: ChangeBody, view: View, version: int) -> Changes:
    """What is to be different. Raises `Invalid`."""
    labels = string_map(body.labels_add)
    for label in (*labels, *(body.labels_remove or ())):
        if label.startswith(PREFIX):
            key = label.removeprefix(PREFIX)
            raise Invalid(
                f'label {label}: it is a setting: give "Cove": {{"{key}": …}}, or a flag of cove update'
            )
    extension = _extension(string_map(body.cove), view.container.spec.extension)
    check: HealthCheck | None = decode_health(body.healthcheck, version)
    if extension is not None and extension.probe is not None:
        check = with_probe(check, extension.probe)
    shown = {f"{PREFIX}{key}": value for key, value in string_map(body.cove).items()}
    return Changes(
        ports_add=decode_ports(wire.HostConfig(port_bindings=body.publish_add)),
        ports_remove=tuple(
            "{}/{}".format(*parse_port(text, "PublishRemove")) for text in body.publish_remove or ()
        ),
        mounts_add=tuple(AddedMount(*one) for one in decode_added(body.mounts_add or (), version)),
        mounts_remove=tuple(body.mounts_remove or ()),
        labels_add=labels,
        labels_remove=tuple(body.labels_remove or ()),
        healthcheck=check,
        extension=extension,
        extension_labels={k: v for k, v in shown.items() if k in view.container.labels},
    )


def _extension(given: dict[str, str], old: Extension) -> Extension | None:
    if not given:
        return None
    for key in given:
        if key not in LIVE:
            raise Invalid(
                f"Cove.{key}: can't be changed on a container that is there: create it again with it, by cove recreate"
            )
    before = {key: value for key, value in extension_json(old).items() if key in LIVE}
    new = decode_extension({**before, **given}, {})
    return msgspec.structs.replace(
        old,
        probe=new.probe,
        on_unhealthy=new.on_unhealthy,
        depends_on=new.depends_on,
        depends_timeout_s=new.depends_timeout_s,
    )


async def update(api: Api, request: Request) -> Response:
    name = request.query.get("container")
    if not name:
        raise Invalid("container: is missing: name one, e.g. /cove/v1/update?container=web")
    body = await wire.read(request, ChangeBody, required=True)
    view = api.engine.find(name)
    container = await api.engine.change(view.container.id, decode_changes(body, view, request.version))
    return json_response({"Id": container.id})


ROUTES: tuple[Route[Api], ...] = (("POST", "/cove/v1/update", update),)
