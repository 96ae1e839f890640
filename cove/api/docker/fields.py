"""The fields of a request's body that Cove has no use for: which, what becomes of them, and why.

A field of wire.py that isn't named here is honoured. One that is REFUSED fails the request when it
says something (is neither null, zero nor empty); one WITHOUT_EFFECT is told in the answer's
warnings, unless clients send it as a matter of course. docs/docker-compatibility.md is made from
this table (scripts/docker_compatibility.py).

A path has `[]` for each element of a list and `{}` for each value of a map. Such paths, and those
of bodies whose answers have no place for warnings, are only told in the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import msgspec

from cove.api.docker import wire
from cove.model.errors import Invalid

Status = Literal["refused", "without effect"]
REFUSED: Status = "refused"
WITHOUT_EFFECT: Status = "without effect"


class Note(NamedTuple):
    """What becomes of a field. `silent`: clients send it without meaning it, so no warning."""

    status: Status
    reason: str
    silent: bool = False


_WINDOWS = Note(WITHOUT_EFFECT, "it is for Windows containers")
_ANSWER = Note(
    WITHOUT_EFFECT, "it is decided when the container starts; clients send back what inspect said", True
)
_CLIENTS = Note(WITHOUT_EFFECT, "it is the client's own; inspect shows it again", True)
_AT_CREATE = Note(REFUSED, "it is settled at create; make the container anew to change it")
_KERNEL_MEMORY = Note(
    WITHOUT_EFFECT, "kernel memory counts as memory since Linux 5.4; limit Memory", silent=False
)
_ENDPOINT: Mapping[str, Note] = {
    "NetworkID": _ANSWER,
    "EndpointID": _ANSWER,
    "Gateway": _ANSWER,
    "IPAddress": _ANSWER,
    "IPPrefixLen": _ANSWER,
    "IPv6Gateway": _ANSWER,
    "GlobalIPv6Address": _ANSWER,
    "GlobalIPv6PrefixLen": _ANSWER,
    "DNSNames": _ANSWER,
}

NOTES: Mapping[type[wire.Wire], Mapping[str, Note]] = {
    wire.CreateBody: {
        "AttachStdin": _CLIENTS,
        "ArgsEscaped": _WINDOWS,
        "OnBuild": Note(WITHOUT_EFFECT, "it is an image's; inspect shows it again", True),
        "Shell": Note(WITHOUT_EFFECT, "it is an image's; inspect shows it again", True),
        "HostConfig.ContainerIDFile": _CLIENTS,
        "HostConfig.Cgroup": Note(REFUSED, "there is no cgroup to join by it; use CgroupParent"),
        "HostConfig.Capabilities": Note(REFUSED, "it was removed from the API; use CapAdd and CapDrop"),
        "HostConfig.DiskQuota": Note(WITHOUT_EFFECT, "it was for Windows containers; use StorageOpt"),
        "HostConfig.KernelMemory": _KERNEL_MEMORY,
        "HostConfig.CpuCount": _WINDOWS,
        "HostConfig.CpuPercent": _WINDOWS,
        "HostConfig.IOMaximumIOps": _WINDOWS,
        "HostConfig.IOMaximumBandwidth": _WINDOWS,
        "HostConfig.Mounts[].Consistency": Note(
            WITHOUT_EFFECT, "it is for macOS: a mount here is always consistent"
        ),
        "HostConfig.Mounts[].ClusterOptions": Note(REFUSED, "there are no cluster volumes"),
        **{f"NetworkingConfig.EndpointsConfig{{}}.{name}": note for name, note in _ENDPOINT.items()},
    },
    wire.UpdateBody: {
        "CgroupParent": _AT_CREATE,
        "Devices": _AT_CREATE,
        "DeviceCgroupRules": _AT_CREATE,
        "DeviceRequests": _AT_CREATE,
        "Ulimits": _AT_CREATE,
        "Init": _AT_CREATE,
        "DiskQuota": Note(WITHOUT_EFFECT, "it was for Windows containers"),
        "KernelMemory": _KERNEL_MEMORY,
        "CpuCount": _WINDOWS,
        "CpuPercent": _WINDOWS,
        "IOMaximumIOps": _WINDOWS,
        "IOMaximumBandwidth": _WINDOWS,
    },
    wire.ExecCreateBody: {
        "Detach": Note(WITHOUT_EFFECT, "whether to stay attached is said at the start", True),
    },
    wire.NetworkBody: {
        "CheckDuplicate": Note(WITHOUT_EFFECT, "two networks never have one name", True),
        "Ingress": Note(REFUSED, "Cove's networks live on one machine"),
        "ConfigOnly": Note(REFUSED, "Cove's networks live on one machine"),
        "ConfigFrom": Note(REFUSED, "Cove's networks live on one machine"),
    },
    wire.ConnectBody: {f"EndpointConfig.{name}": note for name, note in _ENDPOINT.items()},
    wire.VolumeBody: {
        "ClusterVolumeSpec": Note(REFUSED, "Cove has no cluster volumes"),
    },
}


def _attribute(shape: Any, path: str) -> str:
    """A JSON path as attributes: HostConfig.CpuCount → host_config.cpu_count."""
    names = []
    for part in path.split("."):
        field = next(f for f in msgspec.structs.fields(shape) if f.encode_name == part)
        names.append(field.name)
        shape = next((t for t in getattr(field.type, "__args__", (field.type,)) if t is not type(None)), None)
    return ".".join(names)


def _readers(shape: type[wire.Wire]) -> list[tuple[str, Note, attrgetter[Any]]]:
    return [
        (path, note, attrgetter(_attribute(shape, path)))
        for path, note in NOTES[shape].items()
        if not note.silent and "[" not in path and "{" not in path
    ]


_READERS: dict[type[wire.Wire], list[tuple[str, Note, attrgetter[Any]]]] = {
    shape: _readers(shape) for shape in (wire.CreateBody, wire.UpdateBody)
}


def check_fields(body: wire.Wire, unknown: Iterable[str]) -> list[str]:
    """Warnings about what a create or update says in vain. Raises `Invalid` for a field that is refused."""
    warnings = []
    for path, note, read in _READERS[type(body)]:
        try:
            value = read(body)
        except AttributeError:  # there is no HostConfig
            continue
        if not value or value == -1:
            continue
        if note.status == REFUSED:
            raise Invalid(f"{path}: {note.reason}")
        warnings.append(f"{path} has no effect: {note.reason}")
    warnings += [f"{path} has no effect: the API has no such field" for path in unknown]
    return warnings
