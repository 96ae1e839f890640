"""From a container and the body of a re-creation to the new container's spec. Pure.

The body is a create body of which every field may be missing. The rule: a field that is given takes the old one's
place; environment, labels, mounts, ports, exposed ports, secrets and Cove's own settings are merged by their key (name,
target, port), and `CoveRemove` takes entries of these away. `NetworkMode` or `NetworkingConfig` replace every network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from cove.api.docker import wire
from cove.api.docker.decode import decode_create
from cove.api.docker.endpoints import parse_port
from cove.api.docker.extension import (
    PREFIX,
    decode_extension,
    decode_secret_data,
    extension_json,
    with_probe,
)
from cove.api.docker.mounts import string_map
from cove.engine.create import check_target
from cove.engine.recreate import Asked
from cove.model.container import Container, ContainerSpec, PortBinding
from cove.model.errors import Invalid
from cove.model.extension import Extension

MAX_CHANGED = 100  # entries that a record keeps of what was asked for
_CHANGED_CHARS = 200


class RemoveBody(wire.Wire, frozen=True, kw_only=True):
    env: wire.Strings = None  # names
    labels: wire.Strings = None
    mounts: wire.Strings = None  # targets
    ports: wire.Strings = None  # 80/tcp
    secrets: wire.Strings = None  # targets


class RecreateBody(wire.CreateBody, frozen=True, kw_only=True):
    cove_remove: RemoveBody | None = None
    cove_keep_files: bool | None = None


# wire field: the spec's fields that it decides
_CONFIG: Mapping[str, tuple[str, ...]] = {
    **{
        name: (name,)
        for name in (
            "hostname domainname user tty open_stdin stdin_once attach_stdout attach_stderr entrypoint image "
            "working_dir network_disabled stop_signal"
        ).split()
    },
    "cmd": ("command",),
    "stop_timeout": ("stop_timeout_s",),
}
_HOST: Mapping[str, tuple[str, ...]] = {
    **{
        name: (name,)
        for name in (
            "auto_remove annotations cap_add cap_drop cgroupns_mode dns dns_options dns_search extra_hosts group_add "
            "ipc_mode links oom_score_adj pid_mode privileged readonly_rootfs uts_mode userns_mode sysctls "
            "masked_paths readonly_paths init devices device_requests device_cgroup_rules ulimits cgroup_parent "
            "volumes_from"
        ).split()
    },
    "log_config": ("log",),
    "restart_policy": ("restart",),
    "console_size": ("console_rows", "console_cols"),
    "publish_all_ports": ("publish_all",),
    "security_opt": (
        "seccomp",
        "apparmor",
        "no_new_privileges",
        "writable_cgroups",
        "masked_paths",
        "readonly_paths",
    ),
    "storage_opt": ("storage_size_bytes",),
    "shm_size": ("shm_size_bytes",),
    "network_mode": ("network_mode", "endpoints"),
}
_RESOURCES: Mapping[str, tuple[str, ...]] = {
    **{
        name: (name,)
        for name in (
            "cpu_shares blkio_weight blkio_weight_device cpuset_cpus cpuset_mems memory_swappiness oom_kill_disable "
            "pids_limit"
        ).split()
    },
    "memory": ("memory_bytes", "memory_swap_bytes"),
    "memory_swap": ("memory_swap_bytes",),
    "memory_reservation": ("memory_reservation_bytes",),
    "kernel_memory_tcp": ("kernel_memory_tcp_bytes",),
    "nano_cpus": ("nano_cpus", "cpu_period_us", "cpu_quota_us"),
    "cpu_period": ("nano_cpus", "cpu_period_us"),
    "cpu_quota": ("nano_cpus", "cpu_quota_us"),
    "cpu_realtime_period": ("cpu_rt_period_us",),
    "cpu_realtime_runtime": ("cpu_rt_runtime_us",),
    "blkio_device_read_bps": ("read_bps",),
    "blkio_device_write_bps": ("write_bps",),
    "blkio_device_read_iops": ("read_iops",),
    "blkio_device_write_iops": ("write_iops",),
}


def decode_recreation(
    body: RecreateBody, old: Container, *, version: int, cpus: int, unknown: Sequence[str] = ()
) -> tuple[Asked, list[str]]:
    """What the new container is to be, and warnings. Raises `Invalid`, `NotImplementedHere`."""
    remove = body.cove_remove or RemoveBody()
    labels = string_map(body.labels)
    settings = {**_settings(labels), **string_map(body.cove)}
    shape = {name: getattr(body, name) for name in wire.CreateBody.__struct_fields__}
    shape.update(
        image=body.image or old.image_name,
        labels={key: value for key, value in labels.items() if not key.startswith(PREFIX)},
        cove=None,
        cove_secret_data=None,
    )
    decoded = decode_create(
        wire.CreateBody(**shape), name="", platform="", version=version, cpus=cpus, unknown=unknown
    )
    if body.cove_keep_files and body.image:
        raise Invalid(
            "CoveKeepFiles: files are kept above the old image, and Image names another: leave one out"
        )
    host = body.host_config or wire.HostConfig()
    spec, given = old.spec, decoded.spec
    extension = _extension(spec.extension, settings, remove)
    if given.healthcheck is not None and given.healthcheck.test and "health.probe" not in settings:
        extension = msgspec.structs.replace(extension, probe=None)
    changes: dict[str, Any] = {
        **_replaced(body, _CONFIG, given),
        **_replaced(host, _HOST, given),
        "resources": msgspec.structs.replace(spec.resources, **_replaced(host, _RESOURCES, given.resources)),
        "env": _merge_env(spec.env, given.env, _removed(remove.env, "Env", map(_env_name, spec.env))),
        "labels": _labels(spec.labels, labels, settings, remove),
        "exposed_ports": tuple(dict.fromkeys((*spec.exposed_ports, *given.exposed_ports))),
        "extension": extension,
    }
    if body.networking_config is not None:
        changes["endpoints"] = given.endpoints
    if extension.init == "auto" and "init" not in changes:
        changes["init"] = None  # judged again by the new command
    check = spec.healthcheck if given.healthcheck is None else given.healthcheck
    if check is not None and (extension.probe is not None or check.probe is not None):
        check = msgspec.structs.replace(
            check, test=() if extension.probe is not None else check.test, probe=None
        )
    changes["healthcheck"] = with_probe(check, extension.probe)
    targets = [check_target(target) for target in remove.mounts or ()]
    _removed(targets, "Mounts", (check_target(m.target) for m in (*old.mounts, *spec.mounts)))
    fresh = {check_target(mount.target) for mount in given.mounts}
    gone = fresh | set(targets)
    changes["mounts"] = (*(m for m in spec.mounts if check_target(m.target) not in gone), *given.mounts)
    ports = ["{}/{}".format(*parse_port(text, "CoveRemove.Ports")) for text in remove.ports or ()]
    _removed(ports, "Ports", map(_port_key, spec.ports))
    renewed = {*ports, *map(_port_key, given.ports)}
    changes["ports"] = (*(p for p in spec.ports if _port_key(p) not in renewed), *given.ports)
    changes["request"] = _request(spec, given, gone, changes)
    asked = Asked(
        spec=msgspec.structs.replace(spec, name="", **changes),
        secret_data=_secret_data(spec.extension, extension, string_map(body.cove_secret_data)),
        new_image=bool(body.image),
        keep_files=bool(body.cove_keep_files),
        new_sources=host.volumes_from is not None,
        unmounted=tuple(gone),
        changed=tuple(_told(body, host, settings, remove)),
    )
    return asked, decoded.warnings


def _replaced(shape: Any, table: Mapping[str, tuple[str, ...]], given: Any) -> dict[str, Any]:
    return {
        field: getattr(given, field)
        for name, fields in table.items()
        if getattr(shape, name) not in (None, "")
        for field in fields
    }


def _removed(names: Iterable[str] | None, what: str, there: Iterable[str]) -> set[str]:
    """The names, which have to be there: a misspelt one would be silently without effect."""
    found, known = set(names or ()), set(there)
    for name in sorted(found - known):
        shown = ", ".join(sorted(known)[:10]) or "none"
        raise Invalid(f"CoveRemove.{what}: {name[:80]}: the container doesn't have it; it has {shown}")
    return found


def _env_name(entry: str) -> str:
    return entry.partition("=")[0]


def _port_key(port: PortBinding) -> str:
    return f"{port.container_port}/{port.protocol}"


def _merge_env(old: Sequence[str], given: Sequence[str], removed: set[str]) -> tuple[str, ...]:
    renewed = {_env_name(entry) for entry in given} | removed
    return (*(entry for entry in old if _env_name(entry) not in renewed), *given)


def _settings(labels: Mapping[str, str]) -> dict[str, str]:
    return {key.removeprefix(PREFIX): value for key, value in labels.items() if key.startswith(PREFIX)}


def _labels(
    old: Mapping[str, str], given: Mapping[str, str], settings: Mapping[str, str], remove: RemoveBody
) -> dict[str, str]:
    removed = _removed(remove.labels, "Labels", old)
    for name in removed:
        if name.startswith(PREFIX):
            raise Invalid(f"CoveRemove.Labels: {name[:80]}: it is a setting: give another value of it")
    said = {
        f"{PREFIX}{key}": value
        for key, value in settings.items()
        if f"{PREFIX}{key}" in old and key != "secrets"
    }
    return {key: value for key, value in {**old, **given, **said}.items() if key not in removed}


def _extension(old: Extension, given: Mapping[str, str], remove: RemoveBody) -> Extension:
    """Cove's own settings, by key; secrets by their target."""
    if "pod" in given:
        raise Invalid("Cove.pod: a container can't move to another pod: remove it and create it there")
    new = decode_extension(given if "health.probe" in given else _with_old_probe(old, given), {})
    names = {"health.on-failure": "on_unhealthy", "depends-on": "depends_on"}
    names |= {"depends-timeout": "depends_timeout_s", "init": "init"}
    changes: dict[str, Any] = {field: getattr(new, field) for key, field in names.items() if key in given}
    if any(key.startswith("health.probe") for key in given):
        changes["probe"] = new.probe
    removed = _removed(remove.secrets, "Secrets", (use.target for use in old.secrets))
    renewed = removed | {use.target for use in new.secrets}
    changes["secrets"] = (*(use for use in old.secrets if use.target not in renewed), *new.secrets)
    return msgspec.structs.replace(old, **changes)


def _with_old_probe(old: Extension, given: Mapping[str, str]) -> dict[str, str]:
    if not any(key.startswith("health.probe") for key in given):
        return dict(given)
    probe = {key: value for key, value in extension_json(old).items() if key.startswith("health.probe")}
    return {**probe, **given}


def _secret_data(old: Extension, new: Extension, data: Mapping[str, str]) -> dict[str, bytes]:
    """The contents that came along; a secret of the old container's own that stays brings its content itself."""
    kept = {use.target for use in old.secrets if not use.name and use.id} - set(data)
    asked = tuple(use for use in new.secrets if use.name or use.target not in kept)
    return decode_secret_data(msgspec.structs.replace(new, secrets=asked), data)


def _request(
    spec: ContainerSpec, given: ContainerSpec, unmounted: set[str], changes: Mapping[str, Any]
) -> msgspec.Raw:
    """The create body as inspect shows it again."""
    old, new = msgspec.json.decode(spec.request), msgspec.json.decode(given.request)
    config = {**(old.get("Config") or {}), **(new.get("Config") or {}), "Env": list(changes["env"])}
    volumes = [{**(one.get("Config") or {}).get("Volumes", {})} for one in (old, new)]
    config["Volumes"] = _without(volumes[0], unmounted) | volumes[1]
    before, after = old.get("HostConfig") or {}, new.get("HostConfig") or {}
    host = {**before, **after}
    host["Binds"] = [
        *(text for text in before.get("Binds") or () if _bind_target(text) not in unmounted),
        *(after.get("Binds") or ()),
    ]
    host["Mounts"] = [
        *(m for m in before.get("Mounts") or () if check_target(m.get("Target", "/-")) not in unmounted),
        *(after.get("Mounts") or ()),
    ]
    host["Tmpfs"] = _without(before.get("Tmpfs") or {}, unmounted) | (after.get("Tmpfs") or {})
    bindings: dict[str, list[dict[str, str]]] = {}
    for port in changes["ports"]:
        text = str(port.host_port) if port.host_port else ""
        if port.host_port_end > port.host_port:
            text += f"-{port.host_port_end}"
        bindings.setdefault(_port_key(port), []).append({"HostIp": port.host_ip, "HostPort": text})
    host["PortBindings"] = bindings
    for name in ("Binds", "Mounts", "Tmpfs"):
        if not host[name] and name not in before:
            del host[name]
    networking = new.get("NetworkingConfig") or (
        None if "endpoints" in changes else old.get("NetworkingConfig")
    )
    return msgspec.Raw(
        msgspec.json.encode({"Config": config, "HostConfig": host, "NetworkingConfig": networking})
    )


def _without(by_target: Mapping[str, Any], unmounted: set[str]) -> dict[str, Any]:
    return {target: value for target, value in by_target.items() if check_target(target) not in unmounted}


def _bind_target(text: str) -> str:
    parts = text.split(":")
    return check_target(parts[1] if len(parts) > 1 else parts[0])


def _told(
    body: RecreateBody, host: wire.HostConfig, settings: Mapping[str, str], remove: RemoveBody
) -> list[str]:
    """What was asked for, without a value: by the body's names, and by keys where these are merged."""
    keyed: dict[str, Iterable[str]] = {
        "env": map(_env_name, body.env or ()),
        "labels": body.labels or (),
        "volumes": body.volumes or (),
    }
    found = _names(body, keyed, ("host_config", "cove", "cove_secret_data", "cove_remove"))
    keyed = {
        "port_bindings": host.port_bindings or (),
        "binds": map(_bind_target, host.binds or ()),
        "mounts": ((mount.target or "") for mount in host.mounts or ()),
        "tmpfs": host.tmpfs or (),
    }
    found += [f"HostConfig.{name}" for name in _names(host, keyed, ())]
    found += [f"Cove.{key}" for key in settings]
    for field in msgspec.structs.fields(remove):
        found += [f"CoveRemove.{field.encode_name}.{name}" for name in getattr(remove, field.name) or ()]
    return [name[:_CHANGED_CHARS] for name in found[:MAX_CHANGED]]


def _names(shape: Any, keyed: Mapping[str, Iterable[str]], left_out: Sequence[str]) -> list[str]:
    found = []
    for field in msgspec.structs.fields(shape):
        if field.name in left_out or getattr(shape, field.name) is None:
            continue
        if field.name in keyed:
            found += [f"{field.encode_name}.{key}" for key in keyed[field.name]]
        else:
            found.append(field.encode_name)
    return found
