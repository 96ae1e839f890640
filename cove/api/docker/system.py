"""The daemon itself: ping, version, info, events, disk use."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cove import __version__
from cove.api.docker import wire
from cove.api.docker.context import ARCHITECTURES, NEWEST, OLDEST, Api, version_text
from cove.api.docker.filters import parse_filters
from cove.api.docker.pulling import pull_options
from cove.api.docker.text import parse_time, rfc3339
from cove.api.http import TEXT, Request, Response, encode_json, json_response
from cove.api.router import Route
from cove.events.filters import KEYS as EVENT_KEYS
from cove.events.filters import event_filter
from cove.image.registry.auth import Credentials
from cove.image.registry.endpoints import parse_mirror
from cove.model.errors import Invalid
from cove.model.objects import Event
from cove.runtime.cdi_files import read_registry

Json = dict[str, Any]

_PING = Response(
    200,
    b"OK",
    TEXT,
    {
        "Builder-Version": "1",
        "Cache-Control": "no-cache, no-store, must-revalidate",
        "Pragma": "no-cache",
        "Swarm": "inactive",
    },
)
_PING_HEAD = Response(200, b"", TEXT, _PING.headers)


async def ping(api: Api, request: Request) -> Response:
    return _PING


async def ping_head(api: Api, request: Request) -> Response:
    return _PING_HEAD


async def version(api: Api, request: Request) -> Response:
    info = api.engine.info()
    facts = {
        "GitCommit": "",
        "GoVersion": f"python{platform.python_version()}",
        "BuildTime": "",
        "ApiVersion": version_text(NEWEST),
        "MinAPIVersion": version_text(OLDEST),
        "Os": "linux",
        "Arch": ARCHITECTURES.get(info.architecture, info.architecture),
        "KernelVersion": info.kernel,
    }
    component = {"Name": "Engine", "Version": __version__, "Details": {**facts, "Experimental": "false"}}
    return json_response(
        {
            "Platform": {"Name": "Cove"},
            "Components": [component],
            "Version": __version__,
            **facts,
        }
    )


def registry_json(mirrors: Sequence[str], insecure: Sequence[str]) -> Json:
    """What a registry client would go by, as the reference daemon shows it: hosts apart from networks."""
    networks = [entry for entry in insecure if "/" in entry]
    hosts = [entry for entry in insecure if "/" not in entry]
    by_host: dict[str, list[str]] = {}
    for host, url in map(parse_mirror, mirrors):
        by_host.setdefault(host, []).append(url + "/")
    hub = {"Name": "docker.io", "Mirrors": by_host.pop("docker.io", []), "Secure": True, "Official": True}
    others = {
        name: {"Name": name, "Mirrors": by_host.get(name, []), "Secure": name not in hosts, "Official": False}
        for name in dict.fromkeys((*hosts, *by_host))
    }
    return {
        "InsecureRegistryCIDRs": ["::1/128", "127.0.0.0/8", *networks],
        "IndexConfigs": {"docker.io": hub, **others},
        "Mirrors": hub["Mirrors"] or None,
    }


async def info(api: Api, request: Request) -> Response:
    facts = api.engine.info()
    settings = api.engine.settings

    def has(limit: str) -> bool:
        return f"No {limit} support" not in facts.missing

    found: Json = {
        "ID": facts.id,
        "Containers": facts.containers,
        "ContainersRunning": facts.running,
        "ContainersPaused": facts.paused,
        "ContainersStopped": facts.stopped,
        "Images": facts.images,
        "Driver": "overlay2",
        "DriverStatus": [["Data Root", facts.data_root]],
        "Plugins": {
            "Volume": ["local", *api.engine.volumes.drivers.names()],
            "Network": ["bridge", "host", "ipvlan", "macvlan", "null"],
            "Authorization": None,
            "Log": facts.log_drivers,
        },
        "MemoryLimit": has("memory limit"),
        "SwapLimit": has("swap limit"),
        "CpuCfsPeriod": has("CPU CFS scheduler"),
        "CpuCfsQuota": has("CPU CFS scheduler"),
        "CPUShares": has("CPU shares"),
        "CPUSet": has("cpuset"),
        "PidsLimit": has("PIDs limit"),
        "IPv4Forwarding": True,
        "Debug": api.engine.settings.debug,
        "NFd": facts.open_files,
        "OomKillDisable": facts.cgroup_version == 1,
        "NGoroutines": facts.tasks,
        "SystemTime": rfc3339(time.time_ns()),
        "LoggingDriver": facts.default_log_driver,
        "CgroupDriver": facts.cgroup_driver,
        "CgroupVersion": str(facts.cgroup_version),
        "NEventsListener": len(api.engine.events.streams),
        "KernelVersion": facts.kernel,
        "OperatingSystem": facts.operating_system,
        "OSVersion": facts.os_version,
        "OSType": "linux",
        "Architecture": facts.architecture,
        "IndexServerAddress": "",
        "RegistryConfig": registry_json(settings.registry_mirrors, settings.insecure_registries),
        "NCPU": facts.cpus,
        "MemTotal": facts.memory_bytes,
        "GenericResources": None,
        "DockerRootDir": facts.data_root,
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Name": facts.name,
        "Labels": list(settings.labels),
        "ExperimentalBuild": False,
        "ServerVersion": __version__,
        "Runtimes": {"cove": {"path": "cove-init"}, "runc": {"path": "cove-init"}},
        "DefaultRuntime": "runc",
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": False,
            "Error": "",
            "RemoteManagers": None,
        },
        "LiveRestoreEnabled": settings.live_restore,
        "Isolation": "",
        "InitBinary": "cove-init",
        "ContainerdCommit": {"ID": ""},
        "RuncCommit": {"ID": ""},
        "InitCommit": {"ID": ""},
        "SecurityOptions": facts.security,
        "CDISpecDirs": list(settings.cdi_spec_dirs),
        "Warnings": [f"WARNING: {sentence}" for sentence in facts.missing] or None,
    }
    if request.version >= 1049:
        decides = api.engine.networks.firewall()
        found["FirewallBackend"] = {"Driver": "nftables", "Info": [["PublishedPorts", decides]]}
    else:
        for commit in ("ContainerdCommit", "RuncCommit", "InitCommit"):
            found[commit]["Expected"] = ""
    if request.version >= 1050:
        devices = await asyncio.to_thread(read_registry, settings.cdi_spec_dirs)
        found["DiscoveredDevices"] = [
            {"Source": "cdi", "ID": name} for name in sorted(devices.devices)
        ] or None
        troubles = [f"WARNING: {sentence}" for _, sentence in sorted(devices.errors.items())]
        found["Warnings"] = [*(found["Warnings"] or ()), *troubles] or None
    else:
        found.update(BridgeNfIptables=False, BridgeNfIp6tables=False)
    return json_response(found)


async def events(api: Api, request: Request) -> None:
    query = request.query
    now_ns = time.time_ns()
    since_ns = parse_time(query.get("since"), "since", now_ns)
    until_ns = parse_time(query.get("until"), "until", now_ns)
    if until_ns and since_ns > until_ns:
        raise Invalid(
            f"`since` time ({query.get('since')}) cannot be after `until` time ({query.get('until')})"
        )
    accepts = event_filter(parse_filters(query.get("filters"), EVENT_KEYS))
    async with contextlib.aclosing(api.engine.events.stream(since_ns, until_ns, accepts)) as found:
        request.bind_to_client()
        stream = await request.start_stream("application/json")
        async for event in found:
            await stream.write(encode_json(event_json(event, request.version)) + b"\n")


def event_json(event: Event, version: int) -> Json:
    """An event, with the three fields that were replaced in API 1.22 and sent until 1.52."""
    found: Json = {}
    if version < 1052 and event.kind in ("container", "image"):
        found["status"] = event.action
        found["id"] = event.actor_id
        if event.kind == "container" and "image" in event.attributes:
            found["from"] = event.attributes["image"]
    found.update(
        Type=event.kind,
        Action=event.action,
        Actor={"ID": event.actor_id, "Attributes": event.attributes},
        scope="local",
        time=event.time_ns // 1_000_000_000,
        timeNano=event.time_ns,
    )
    return found


async def auth(api: Api, request: Request) -> Response:
    """Ask a registry whether it takes a user's password, or a token that it gave; nothing is kept."""
    body = await wire.read(request, wire.AuthBody, required=True)
    if not (body.username or body.identitytoken or body.registrytoken):
        raise Invalid("username: is missing")
    given = Credentials(
        username=body.username or "",
        password=body.password or "",
        identity_token=body.identitytoken or "",
        registry_token=body.registrytoken or "",
    )
    options = replace(pull_options(api, request), credentials=given)
    await api.engine.images.check_login(body.serveraddress or "", options)
    return json_response({"Status": "Login Succeeded", "IdentityToken": ""})


ROUTES: tuple[Route[Api], ...] = (
    ("POST", "/auth", auth),
    ("GET", "/_ping", ping),
    ("HEAD", "/_ping", ping_head),
    ("GET", "/version", version),
    ("GET", "/info", info),
    ("GET", "/events", events),
)
