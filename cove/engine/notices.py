"""What the bus is told of a run's networks and volumes: `run_events` decides (pure), `publish_run` tells.

Docker tells of them at every start and every end: `network connect` and `volume mount` before the container's
`start`, `network disconnect` and `volume unmount` after its `die` (Docker Engine API, "Monitor events").
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from cove.engine.parts import Parts
from cove.model.container import Container, Endpoint
from cove.model.objects import Event, Network


def publish_run(parts: Parts, container: Container, endpoints: Sequence[Endpoint], *, begun: bool) -> None:
    """Tell which networks and volumes a container takes up at its start, or lets go of at its end."""
    networks = parts.networks.list_networks()
    for event in run_events(container, endpoints, networks, begun=begun, now_ns=time.time_ns()):
        parts.events.publish(event)


def run_events(
    container: Container,
    endpoints: Sequence[Endpoint],
    networks: Iterable[Network],
    *,
    begun: bool,
    now_ns: int,
) -> list[Event]:
    """The events of a run's start or end, in their order. `networks` are all that there are."""
    by_id = {network.id: network for network in networks}
    mode = container.spec.network_mode
    if mode in ("host", "none") and not container.spec.network_disabled:
        used = [(network.id, network.name) for network in by_id.values() if network.name == mode]
    else:
        used = [(endpoint.network_id, endpoint.network_name) for endpoint in endpoints]
    found = []
    for network_id, name in used:
        driver = by_id[network_id].driver if network_id in by_id else "bridge"
        found.append(
            Event(
                kind="network",
                action="connect" if begun else "disconnect",
                actor_id=network_id,
                attributes={
                    "container": container.id,
                    "name": name,
                    "type": "null" if driver == "none" else driver,
                },
                time_ns=now_ns,
            )
        )
    for point in container.mounts:
        if point.name:
            attributes = {"container": container.id, "driver": point.driver or "local"}
            if begun:
                attributes |= {
                    "destination": point.target,
                    "propagation": point.propagation,
                    "read/write": "false" if point.readonly else "true",
                }
            found.append(
                Event(
                    kind="volume",
                    action="mount" if begun else "unmount",
                    actor_id=point.name,
                    attributes=attributes,
                    time_ns=now_ns,
                )
            )
    return found
