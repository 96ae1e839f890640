"""A container → the JSON of inspect and of the list (moby, api/docs/v1.55.yaml). Pure.

The request as received comes first, the daemon's defaults fill it up, and what the engine
decided or changed since covers both: so a tool that reads back what it sent finds it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from cove.api.docker.extension import extension_json
from cove.api.docker.limited import limited_json
from cove.api.docker.text import rfc3339
from cove.engine.health import Health, healthcheck_json
from cove.engine.types import Settings, View
from cove.model.container import (
    Container,
    Endpoint,
    EndpointSpec,
    MountPoint,
    Resources,
    State,
    ThrottleDevice,
)
from cove.model.objects import Network
from cove.runtime.host import MASKED_PATHS, READONLY_PATHS
from cove.storage.layers import writable_layer

Json = dict[str, Any]
FindNetwork = Callable[[str], Network | None]

DEFAULT_SHM_BYTES = 64 << 20

_HOST_DEFAULTS: Json = {
    "Binds": None,
    "ContainerIDFile": "",
    "LogConfig": {"Type": "local", "Config": {}},
    "NetworkMode": "bridge",
    "PortBindings": {},
    "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
    "AutoRemove": False,
    "VolumeDriver": "",
    "VolumesFrom": None,
    "ConsoleSize": [0, 0],
    "CapAdd": None,
    "CapDrop": None,
    "CgroupnsMode": "private",
    "Dns": [],
    "DnsOptions": [],
    "DnsSearch": [],
    "ExtraHosts": None,
    "GroupAdd": None,
    "IpcMode": "private",
    "Cgroup": "",
    "Links": None,
    "OomScoreAdj": 0,
    "PidMode": "",
    "Privileged": False,
    "PublishAllPorts": False,
    "ReadonlyRootfs": False,
    "SecurityOpt": None,
    "UTSMode": "",
    "UsernsMode": "",
    "ShmSize": DEFAULT_SHM_BYTES,
    "Runtime": "runc",
    "Isolation": "",
    "CpuShares": 0,
    "Memory": 0,
    "NanoCpus": 0,
    "CgroupParent": "",
    "BlkioWeight": 0,
    "BlkioWeightDevice": [],
    "BlkioDeviceReadBps": [],
    "BlkioDeviceWriteBps": [],
    "BlkioDeviceReadIOps": [],
    "BlkioDeviceWriteIOps": [],
    "CpuPeriod": 0,
    "CpuQuota": 0,
    "CpuRealtimePeriod": 0,
    "CpuRealtimeRuntime": 0,
    "CpusetCpus": "",
    "CpusetMems": "",
    "Devices": [],
    "DeviceCgroupRules": None,
    "DeviceRequests": None,
    "MemoryReservation": 0,
    "MemorySwap": 0,
    "MemorySwappiness": None,
    "OomKillDisable": False,
    "PidsLimit": None,
    "Ulimits": [],
    "CpuCount": 0,
    "CpuPercent": 0,
    "IOMaximumIOps": 0,
    "IOMaximumBandwidth": 0,
    "MaskedPaths": list(MASKED_PATHS),
    "ReadonlyPaths": list(READONLY_PATHS),
}

# shown until API 1.52: those of the default bridge
_LEGACY_NETWORK_FIELDS = (
    "Bridge HairpinMode LinkLocalIPv6Address LinkLocalIPv6PrefixLen SecondaryIPAddresses SecondaryIPv6Addresses "
    "EndpointID Gateway GlobalIPv6Address GlobalIPv6PrefixLen IPAddress IPPrefixLen IPv6Gateway MacAddress"
).split()
_BUILT_IN_NETWORKS = frozenset(("bridge", "host", "none", "default"))

_CONFIG_DEFAULTS: Json = {
    "Hostname": "",
    "Domainname": "",
    "User": "",
    "AttachStdin": False,
    "AttachStdout": False,
    "AttachStderr": False,
    "Tty": False,
    "OpenStdin": False,
    "StdinOnce": False,
    "Env": [],
    "Cmd": None,
    "Image": "",
    "Volumes": None,
    "WorkingDir": "",
    "Entrypoint": None,
    "OnBuild": None,
    "Labels": {},
}


class Echo(msgspec.Struct, frozen=True, rename="pascal"):
    """A create request as the spec keeps it."""

    config: Json = {}
    host_config: Json = {}
    networking_config: Json | None = None


_echo_decoder = msgspec.json.Decoder(Echo)


def read_echo(container: Container) -> Echo:
    return _echo_decoder.decode(container.spec.request)


def inspect_json(
    view: View,
    *,
    settings: Settings,
    health: Health | None,
    find_network: FindNetwork,
    exec_ids: Sequence[str],
    size: tuple[int, int] | None,
    version: int,
    links: Sequence[str] = (),
) -> Json:
    """What `GET /containers/X/json` answers; `size` is (writable layer, all layers) in bytes, `links` are
    the legacy ones as `/child:/parent/alias`."""
    container, state = view
    echo = read_echo(container)
    directory = settings.container_dir(container.id)
    layer = writable_layer(directory, container.layer)
    log_path = ""
    if container.log.driver == "json-file":
        log_path = str(settings.log_dir(container.id) / "json.log")
    found: Json = {
        "Id": container.id,
        "Created": rfc3339(container.created_ns),
        "Path": container.args[0] if container.args else "",
        "Args": list(container.args[1:]),
        "State": state_json(state, health) | _limited(view),
        "Image": container.image_id,
        "ResolvConfPath": f"{directory}/resolv.conf",
        "HostnamePath": f"{directory}/hostname",
        "HostsPath": f"{directory}/hosts",
        "LogPath": log_path,
        "Name": f"/{container.name}",
        "RestartCount": state.restart_count,
        "Driver": "overlay2",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": container.spec.apparmor,
        "ExecIDs": list(exec_ids) or None,
        "HostConfig": host_config_json(container, echo),
        "GraphDriver": {
            "Data": {
                "ID": container.id,
                "UpperDir": str(layer.upper),
                "WorkDir": str(layer.work),
            },
            "Name": "overlay2",
        },
        "Mounts": [mount_json(mount) for mount in container.mounts if _is_shown(mount, echo)],
        "Config": config_json(container, echo),
        "NetworkSettings": network_settings_json(view, find_network),
    }
    found["HostConfig"]["Links"] = list(links) or None
    _fit_inspect(found, view, version)
    extension = extension_json(container.spec.extension)
    if extension:
        found["Cove"] = extension
    if container.recreated is not None:
        found["CoveRecreated"] = {
            "From": container.recreated.origin,
            "At": rfc3339(container.recreated.at_ns),
            "Changed": list(container.recreated.changed),
        }
    if size is not None:
        found["SizeRw"], found["SizeRootFs"] = size
    return found


def _fit_inspect(found: Json, view: View, version: int) -> None:
    """What differs between the API's versions (moby, api/docs/CHANGELOG.md)."""
    networks = found["NetworkSettings"]["Networks"]
    mode = found["HostConfig"]["NetworkMode"]
    if version >= 1052:
        for name in _LEGACY_NETWORK_FIELDS:
            del found["NetworkSettings"][name]
        found["Config"].pop("MacAddress", None)
        if not found["Config"]["OnBuild"]:
            del found["Config"]["OnBuild"]
        found["HostConfig"].pop("KernelMemoryTCP", None)
    else:
        asked = next((e.mac for e in view.container.spec.endpoints if e.mac and e.network == mode), "")
        if asked:
            found["Config"]["MacAddress"] = asked
    if version < 1045:
        container = view.container
        for name, network in networks.items():
            if name not in _BUILT_IN_NETWORKS:
                aliases = (*(network["Aliases"] or ()), container.short_id, container.hostname)
                network["Aliases"] = list(dict.fromkeys(aliases))
    if version < 1044:
        for network in networks.values():
            del network["DNSNames"]


def _limited(view: View) -> Json:
    limited = limited_json(view)
    return {"Limited": limited} if limited else {}


def state_json(state: State, health: Health | None) -> Json:
    found: Json = {
        "Status": state.status,
        "Running": state.status in ("running", "paused", "restarting"),
        "Paused": state.status == "paused",
        "Restarting": state.status == "restarting",
        "OOMKilled": state.oom_killed,
        "Dead": state.status == "dead",
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": rfc3339(state.started_ns),
        "FinishedAt": rfc3339(state.finished_ns),
    }
    if health is not None:
        found["Health"] = {
            "Status": health.status,
            "FailingStreak": health.failing_streak,
            "Log": [
                {
                    "Start": rfc3339(result.started_ns),
                    "End": rfc3339(result.ended_ns),
                    "ExitCode": result.exit_code,
                    "Output": result.output,
                }
                for result in health.results
            ],
        }
    return found


def health_word(health: Health | None) -> str:
    """A container's health in one word; "none" without a check."""
    return health.status if health is not None else "none"


def config_json(container: Container, echo: Echo) -> Json:
    config = {**_CONFIG_DEFAULTS, **echo.config}
    volumes = dict(echo.config.get("Volumes") or {})
    volumes.update({mount.target: {} for mount in container.mounts if mount.anonymous})
    config.update(
        Hostname=container.hostname,
        User=container.user,
        Env=list(container.env),
        Cmd=list(container.command) or None,
        Entrypoint=list(container.entrypoint) or None,
        Image=container.image_name,
        WorkingDir=container.working_dir,
        Labels=container.labels,
        Volumes=volumes or None,
    )
    if container.exposed_ports:
        config["ExposedPorts"] = {port: {} for port in container.exposed_ports}
    if container.spec.stop_signal or container.stop_signal != "SIGTERM":
        config["StopSignal"] = container.stop_signal
    health = container.healthcheck
    if health is not None:
        config["Healthcheck"] = healthcheck_json(health)
    return config


def host_config_json(container: Container, echo: Echo) -> Json:
    spec = container.spec
    host = {**_HOST_DEFAULTS, **echo.host_config}
    if spec.privileged:
        host.update(MaskedPaths=None, ReadonlyPaths=None)
        host.update(
            {
                key: echo.host_config[key]
                for key in ("MaskedPaths", "ReadonlyPaths")
                if key in echo.host_config
            }
        )
    host.update(resources_json(spec.resources))
    host["LogConfig"] = {"Type": shown_log_driver(container), "Config": container.log.options}
    host["NetworkMode"] = "bridge" if spec.network_mode == "default" else spec.network_mode
    host["RestartPolicy"] = {"Name": spec.restart.name, "MaximumRetryCount": spec.restart.maximum_retries}
    host["AutoRemove"] = spec.auto_remove
    if spec.init is not None:
        host["Init"] = spec.init
    host["PortBindings"] = {key: _bindings(asked) for key, asked in host["PortBindings"].items()}
    host["IpcMode"] = spec.ipc_mode or "private"
    host["CgroupnsMode"] = spec.cgroupns_mode or "private"
    host["ShmSize"] = spec.shm_size_bytes or DEFAULT_SHM_BYTES
    host["Runtime"] = host["Runtime"] or "runc"
    return host


def _bindings(asked: Sequence[Json] | None) -> list[Json]:
    """Both fields of every binding; none at all was taken for "any address, any port"."""
    empty: Json = {"HostIp": "", "HostPort": ""}
    return [{**empty, **binding} for binding in asked or (empty,)]


def shown_log_driver(container: Container) -> str:
    """The driver as named; json-file where none was, which makes clients read the log (decisions/0005)."""
    driver = container.log.driver
    return "json-file" if driver == "local" and not container.spec.log.driver else driver


def resources_json(resources: Resources) -> Json:
    """The limits in force: those of the request, or of the last update."""
    return {
        "CpuShares": resources.cpu_shares,
        "Memory": resources.memory_bytes,
        "NanoCpus": resources.nano_cpus,
        "BlkioWeight": resources.blkio_weight,
        "BlkioWeightDevice": [{"Path": d.path, "Weight": d.weight} for d in resources.blkio_weight_device],
        "BlkioDeviceReadBps": _rates(resources.read_bps),
        "BlkioDeviceWriteBps": _rates(resources.write_bps),
        "BlkioDeviceReadIOps": _rates(resources.read_iops),
        "BlkioDeviceWriteIOps": _rates(resources.write_iops),
        "CpuPeriod": resources.cpu_period_us,
        "CpuQuota": resources.cpu_quota_us,
        "CpuRealtimePeriod": resources.cpu_rt_period_us,
        "CpuRealtimeRuntime": resources.cpu_rt_runtime_us,
        "CpusetCpus": resources.cpuset_cpus,
        "CpusetMems": resources.cpuset_mems,
        "MemoryReservation": resources.memory_reservation_bytes,
        "MemorySwap": resources.memory_swap_bytes,
        "MemorySwappiness": resources.memory_swappiness,
        "OomKillDisable": resources.oom_kill_disable,
        "PidsLimit": resources.pids_limit or None,
    }


def _rates(devices: Sequence[ThrottleDevice]) -> list[Json]:
    return [{"Path": device.path, "Rate": device.rate} for device in devices]


def _is_shown(mount: MountPoint, echo: Echo) -> bool:
    """A --tmpfs is shown in HostConfig.Tmpfs only, as the reference daemon does."""
    return mount.kind != "tmpfs" or mount.target not in (echo.host_config.get("Tmpfs") or {})


def mount_json(mount: MountPoint) -> Json:
    found: Json = {"Type": mount.kind}
    if mount.kind == "volume":
        found["Name"] = mount.name
    elif mount.kind == "image":
        found["Name"] = mount.image
    found["Source"] = mount.source
    found["Destination"] = mount.target
    if mount.kind == "volume":
        found["Driver"] = mount.driver or "local"
    found["Mode"] = "ro" if mount.readonly and mount.kind == "bind" else "z" if mount.kind == "volume" else ""
    found["RW"] = not mount.readonly
    found["Propagation"] = mount.propagation if mount.kind == "bind" else ""
    return found


# --- networks -----------------------------------------------------------------------------


def network_settings_json(view: View, find_network: FindNetwork) -> Json:
    networks = networks_json(view, find_network)
    default = networks.get("bridge", {})
    running = view.state.pid > 0
    return {
        "Bridge": "",
        "SandboxID": view.container.id if running else "",
        "SandboxKey": f"/proc/{view.state.pid}/ns/net" if running else "",
        "Ports": ports_json(view) if running else {},
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": default.get("EndpointID", ""),
        "Gateway": default.get("Gateway", ""),
        "GlobalIPv6Address": default.get("GlobalIPv6Address", ""),
        "GlobalIPv6PrefixLen": default.get("GlobalIPv6PrefixLen", 0),
        "IPAddress": default.get("IPAddress", ""),
        "IPPrefixLen": default.get("IPPrefixLen", 0),
        "IPv6Gateway": default.get("IPv6Gateway", ""),
        "MacAddress": default.get("MacAddress", ""),
        "Networks": networks,
    }


def networks_json(view: View, find_network: FindNetwork) -> dict[str, Json]:
    """The attachments: as they are while it runs, as they were asked for otherwise."""
    spec = view.container.spec
    if spec.network_mode.startswith("container:"):
        return {}
    asked = {}
    for endpoint in spec.endpoints:
        network = find_network(endpoint.network)
        asked[network.name if network else endpoint.network] = endpoint
    found: dict[str, Json] = {}
    for live in view.state.endpoints:
        spec_of = asked.get(live.network_name)
        found[live.network_name] = _endpoint_json(
            live,
            aliases=live.aliases or (spec_of.aliases if spec_of else ()),
            ipam=_ipam(spec_of),
            links=spec_of.links if spec_of else (),
            driver_options=spec_of.driver_options if spec_of else {},
            names=(view.container.name, *live.aliases, view.container.short_id),
            network=find_network(live.network_id),
        )
    if not found:
        mode = "bridge" if spec.network_mode == "default" else spec.network_mode
        network = find_network(mode)
        mode = network.name if network else mode
        for name in [mode, *(n for n in asked if n != mode)]:
            network, spec_of = find_network(name), asked.get(name)
            live = Endpoint(
                network_id=network.id if network else "",
                network_name=name,
                mac=spec_of.mac if spec_of else "",
                gateway_priority=spec_of.gateway_priority if spec_of else 0,
            )
            found[name] = _endpoint_json(
                live,
                aliases=spec_of.aliases if spec_of else (),
                ipam=_ipam(spec_of),
                links=spec_of.links if spec_of else (),
                driver_options=spec_of.driver_options if spec_of else {},
                names=(),
            )
    return found


def _ipam(asked: EndpointSpec | None) -> Json | None:
    found: Json = {}
    if asked is not None:
        if asked.ipv4:
            found["IPv4Address"] = asked.ipv4
        if asked.ipv6:
            found["IPv6Address"] = asked.ipv6
        if asked.link_local:
            found["LinkLocalIPs"] = list(asked.link_local)
    return found or None


def _endpoint_json(
    endpoint: Endpoint,
    *,
    aliases: Sequence[str],
    ipam: Json | None,
    links: Sequence[str],
    driver_options: Mapping[str, str],
    names: Sequence[str],
    network: Network | None = None,
) -> Json:
    return {
        "IPAMConfig": ipam,
        "Links": list(links) or None,
        "Aliases": list(aliases) or None,
        "MacAddress": endpoint.mac,
        "DriverOpts": dict(driver_options) or None,
        "GwPriority": endpoint.gateway_priority,
        "NetworkID": endpoint.network_id,
        "EndpointID": endpoint.endpoint_id,
        "Gateway": _shown_gateway(endpoint.gateway4) or _gateway(network, endpoint.ipv4),
        "IPAddress": endpoint.ipv4,
        "IPPrefixLen": endpoint.ipv4_prefix,
        "IPv6Gateway": _shown_gateway(endpoint.gateway6) or _gateway(network, endpoint.ipv6),
        "GlobalIPv6Address": endpoint.ipv6,
        "GlobalIPv6PrefixLen": endpoint.ipv6_prefix,
        "DNSNames": list(dict.fromkeys(names)) or None,
    }


def _shown_gateway(gateway: str) -> str:
    """A default route without a gateway, by the link itself, is stored as the unspecified address."""
    return "" if gateway in ("0.0.0.0", "::") else gateway


def _gateway(network: Network | None, address: str) -> str:
    """The gateway of an address's subnet: also where another network has the default route."""
    if network is None or network.internal or not address:
        return ""
    found = ipaddress.ip_address(address)
    return next((p.gateway for p in network.ipam if found in ipaddress.ip_network(p.subnet)), "")


def ports_json(view: View) -> Json:
    """Exposed ports with their bindings: `{"80/tcp": [{"HostIp": …}], "90/tcp": null}`."""
    found: Json = dict.fromkeys(view.container.exposed_ports)
    for port in view.state.ports:
        key = f"{port.container_port}/{port.protocol}"
        binding = {"HostIp": port.host_ip or "0.0.0.0", "HostPort": str(port.host_port or "")}
        found[key] = [*(found.get(key) or ()), binding]
    return found
