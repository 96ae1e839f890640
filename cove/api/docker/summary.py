"""One entry of `GET /containers/json`, as `docker ps` shows it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cove.api.docker.encode import mount_json, networks_json
from cove.api.docker.limited import limited_json
from cove.api.docker.text import human_duration
from cove.engine.health import Health
from cove.engine.types import View
from cove.model.container import PortBinding, State
from cove.model.objects import Network

Json = dict[str, Any]
FindNetwork = Callable[[str], Network | None]


def summary_json(
    view: View,
    *,
    image: str,
    health: Health | None,
    now_ns: int,
    find_network: FindNetwork,
    size: tuple[int, int] | None,
    version: int,
    link_names: Sequence[str] = (),
) -> Json:
    """One entry of `GET /containers/json`."""
    container, state = view
    spec = container.spec
    host: Json = {"NetworkMode": "bridge" if spec.network_mode == "default" else spec.network_mode}
    if version >= 1046 and spec.annotations:
        host["Annotations"] = spec.annotations
    networks = networks_json(view, find_network)
    if version < 1048:
        for network in networks.values():
            del network["GwPriority"]
    if version < 1044:
        for network in networks.values():
            del network["DNSNames"]
    found: Json = {
        "Id": container.id,
        "Names": [f"/{container.name}", *link_names],
        "Image": image,
        "ImageID": container.image_id,
        "Command": _command(container.args),
        "Created": container.created_ns // 1_000_000_000,
        "Ports": _port_list(view),
        "Labels": container.labels,
        "State": state.status,
        "Status": status_text(state, health, now_ns),
        "HostConfig": host,
        "NetworkSettings": {"Networks": networks},
        "Mounts": [mount_json(mount) for mount in container.mounts],
    }
    limited = limited_json(view)
    own: Json = {"Limited": ", ".join(one["Text"] for one in limited)} if limited else {}
    if container.spec.extension.pod:
        own["Pod"] = container.spec.extension.pod
    if own:
        found["Cove"] = own
    if version >= 1052 and health is not None:
        found["Health"] = {"Status": health.status, "FailingStreak": health.failing_streak}
    if size is not None:
        found["SizeRw"], found["SizeRootFs"] = size
    return found


def _command(args: Sequence[str]) -> str:
    return " ".join([*args[:1], *(f"'{arg}'" if " " in arg else arg for arg in args[1:])])


def _port_list(view: View) -> list[Json]:
    found: list[Json] = []
    bound: set[str] = set()
    ports: Sequence[PortBinding] = view.state.ports
    for port in ports:
        bound.add(f"{port.container_port}/{port.protocol}")
        entry: Json = {"IP": port.host_ip or "0.0.0.0", "PrivatePort": port.container_port}
        if port.host_port:  # 0: routed, without a port of the host
            entry["PublicPort"] = port.host_port
        found.append({**entry, "Type": port.protocol})
    if view.state.pid:
        for key in view.container.exposed_ports:
            number, _, protocol = key.partition("/")
            if key not in bound and number.isdigit():
                found.append({"PrivatePort": int(number), "Type": protocol or "tcp"})
    return found


def status_text(state: State, health: Health | None, now_ns: int) -> str:
    """As docker ps shows it: `Up 5 minutes (healthy)`, `Exited (0) 2 hours ago`."""
    up = human_duration((now_ns - state.started_ns) / 1e9)
    ago = human_duration((now_ns - state.finished_ns) / 1e9)
    match state.status:
        case "running":
            if health is None:
                return f"Up {up}"
            return f"Up {up} ({'health: starting' if health.status == 'starting' else health.status})"
        case "paused":
            return f"Up {up} (Paused)"
        case "restarting":
            return f"Restarting ({state.exit_code}) {ago} ago"
        case "removing":
            return "Removal In Progress"
        case "dead":
            return "Dead"
        case "created":
            return "Created"
    return f"Exited ({state.exit_code}) {ago} ago" if state.finished_ns else ""
