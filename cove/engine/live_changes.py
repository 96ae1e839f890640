"""What `cove update` changes beyond limits: published ports, labels, health checks, mounts, what a start waits for.

Ports change first, as one (`Networks.republish`), then the record; a crash in between leaves the ports of the record
that was committed last, for the next daemon goes by that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import msgspec

from cove.engine.create import merge_health
from cove.engine.lifecycle import Lifecycle
from cove.engine.live_mounts import AddedMount, change_mounts
from cove.engine.parts import Parts
from cove.engine.start import all_ports
from cove.model.container import Container, HealthCheck, PortBinding
from cove.model.errors import Conflict, Invalid
from cove.model.extension import Extension

MAX_LABELS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What is to be different; a port to remove is `80/tcp`."""

    ports_add: tuple[PortBinding, ...] = ()
    ports_remove: tuple[str, ...] = ()
    mounts_add: tuple[AddedMount, ...] = ()
    mounts_remove: tuple[str, ...] = ()  # targets
    labels_add: Mapping[str, str] = field(default_factory=dict)
    labels_remove: tuple[str, ...] = ()
    healthcheck: HealthCheck | None = None  # merged into the one that there is
    extension: Extension | None = None  # takes the old one's place
    extension_labels: Mapping[str, str] = field(default_factory=dict)  # labels that say so already


def changed(container: Container, changes: Changes) -> Container:
    """The record afterwards. Pure. Raises Invalid for a port or a label that isn't there."""
    spec = container.spec
    ports = _change_ports(spec.ports, changes)
    for label in changes.labels_remove:
        if label not in container.labels:
            raise Invalid(f"label {label[:80]}: the container doesn't have it")
    added = {**changes.labels_add, **changes.extension_labels}
    own = {k: v for k, v in (spec.labels | added).items() if k not in changes.labels_remove}
    labels = {k: v for k, v in (container.labels | added).items() if k not in changes.labels_remove}
    if len(labels) > MAX_LABELS:
        raise Invalid(f"labels: {len(labels)}, and there can be {MAX_LABELS}")
    check = container.healthcheck
    extension = changes.extension or spec.extension
    if changes.healthcheck is not None or changes.extension is not None:
        asked = changes.healthcheck or HealthCheck()
        if asked.test and extension.probe is not None:
            raise Invalid("Healthcheck.Test: the container has a health.probe: leave the command out")
        if extension.probe is not None:
            asked = msgspec.structs.replace(asked, test=(), probe=extension.probe)
        if asked != HealthCheck():
            check = merge_health(asked, check)
            spec = msgspec.structs.replace(spec, healthcheck=merge_health(asked, spec.healthcheck))
    exposed = dict.fromkeys((*container.exposed_ports, *(_key(port) for port in ports)))
    spec = msgspec.structs.replace(
        spec, ports=ports, labels=own, extension=extension, request=_with_ports(spec.request, ports)
    )
    return msgspec.structs.replace(
        container, spec=spec, labels=labels, healthcheck=check, exposed_ports=tuple(exposed)
    )


def _key(port: PortBinding) -> str:
    return f"{port.container_port}/{port.protocol}"


def _change_ports(ports: Sequence[PortBinding], changes: Changes) -> tuple[PortBinding, ...]:
    published = {_key(port) for port in ports}
    for key in changes.ports_remove:
        if key not in published:
            raise Invalid(
                f"port {key} isn't published; published are {', '.join(sorted(published)) or 'none'}"
            )
    kept = [port for port in ports if _key(port) not in changes.ports_remove]
    return (*kept, *(port for port in changes.ports_add if port not in kept))


def _with_ports(request: msgspec.Raw, ports: Sequence[PortBinding]) -> msgspec.Raw:
    """The request as inspect shows it again, with the ports of now."""
    shown: dict[str, Any] = msgspec.json.decode(request)
    bindings: dict[str, list[dict[str, str]]] = {}
    for port in ports:
        text = str(port.host_port) if port.host_port else ""
        if port.host_port_end > port.host_port:
            text += f"-{port.host_port_end}"
        bindings.setdefault(_key(port), []).append({"HostIp": port.host_ip, "HostPort": text})
    shown.setdefault("HostConfig", {})["PortBindings"] = bindings
    return msgspec.Raw(msgspec.json.encode(shown))


async def change(parts: Parts, lifecycle: Lifecycle, container_id: str, changes: Changes) -> Container:
    """Apply changes to a container, running or not. Raises Invalid, Conflict, what `republish` raises."""
    live = lifecycle.live(container_id)
    async with live.lock, AsyncExitStack() as undo:
        view = parts.registry.find(container_id)
        if view.state.status in ("removing", "dead"):
            raise Conflict("container is marked for removal and cannot be updated")
        container = changed(view.container, changes)
        state = view.state
        if changes.mounts_add or changes.mounts_remove:
            pid = live.task.pid if live.task is not None else 0
            container, ids = await change_mounts(
                parts, view, container, pid, changes.mounts_add, changes.mounts_remove, undo
            )
            state = msgspec.structs.replace(state, live_mounts=ids)
        moved = live.task is not None and container.spec.ports != view.container.spec.ports
        if moved:
            wanted = container.spec.ports if not container.spec.publish_all else all_ports(container)
            ports = await parts.networks.republish(container_id, wanted)
            state = msgspec.structs.replace(state, ports=ports)
        try:
            await parts.registry.set_container(container)
            await parts.registry.set_state(container_id, state)
        except BaseException:
            if moved:
                await parts.networks.republish(container_id, view.state.ports)
            raise
        undo.pop_all()
        parts.claims.pop(container_id, None)
        if live.task is not None and live.health is None:
            lifecycle.begin_health(container, live, live.task)
    parts.publish(container, "update")
    return container
