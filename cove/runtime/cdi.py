"""CDI: what a specification file says of devices, and what a container gets for the ones it asks for. Pure.

The Container Device Interface (github.com/cncf-tags/container-device-interface, SPEC.md, 1.1.0): a
vendor writes a file that names devices (`vendor.com/class=name`) and the edits that a container
needs to use them. cdi_files.py finds the files; the engine applies `Edits` at a start.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from cove.model.errors import Invalid, NotFound
from cove.runtime import oci

VERSIONS = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
MAX_DEVICES = 4096  # of one file
MAX_EDITS = 1024  # entries of one kind, of one device or file
HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_RUN_HERE = HOOKS[:5]
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_VENDOR = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*", re.IGNORECASE)
_CLASS = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_DEVICE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]{0,253}[A-Za-z0-9])?")


class _Cdi(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Base: as the files have it. SPEC.md: loading fails on unknown fields."""


class DeviceNode(_Cdi, frozen=True, kw_only=True):
    path: str
    host_path: str = ""
    type: str = ""
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    permissions: str = ""
    uid: oci.U32 | None = None
    gid: oci.U32 | None = None


class Mount(_Cdi, frozen=True, kw_only=True):
    host_path: str
    container_path: str
    options: tuple[str, ...] = ()
    type: str = ""


class Hook(_Cdi, frozen=True, kw_only=True):
    hook_name: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


class Edits(_Cdi, frozen=True, kw_only=True):
    """What a container gets: of one device, of a file, or of all that were asked for."""

    env: tuple[str, ...] = ()
    device_nodes: tuple[DeviceNode, ...] = ()
    net_devices: tuple[dict[str, str], ...] = ()
    hooks: tuple[Hook, ...] = ()
    mounts: tuple[Mount, ...] = ()
    intel_rdt: dict[str, Any] | None = None
    additional_gids: tuple[oci.U32, ...] = ()


class Device(_Cdi, frozen=True, kw_only=True):
    name: str
    annotations: dict[str, str] = {}
    container_edits: Edits = Edits()


class Spec(_Cdi, frozen=True, kw_only=True):
    """One file."""

    cdi_version: str
    kind: str
    annotations: dict[str, str] = {}
    devices: tuple[Device, ...]
    container_edits: Edits = Edits()


class Found(NamedTuple):
    """A device and the file that it is from."""

    spec: Spec
    device: Device


class Registry(NamedTuple):
    """All devices by their qualified names, and the files and names that are no good, with the reason."""

    devices: Mapping[str, Found]
    errors: Mapping[str, str]


# --- one file -----------------------------------------------------------------------------


def parse_spec(content: Any, file: str) -> Spec:
    """A file's content, decoded from JSON or YAML, as a Spec. Raises `Invalid`, with the file's name."""
    try:
        spec = msgspec.convert(content, Spec, strict=True)
    except msgspec.ValidationError as error:
        raise Invalid(f"CDI specification {file}: {error}") from None
    trouble = _trouble(spec)
    if trouble:
        raise Invalid(f"CDI specification {file}: {trouble}")
    return spec


def _trouble(spec: Spec) -> str:
    """What is wrong with a specification; "" for nothing."""
    version = spec.cdi_version.removeprefix("v")
    if version not in VERSIONS:
        return f"cdiVersion {spec.cdi_version!r} isn't known, expected one of {', '.join(VERSIONS)}"
    vendor, _, name = spec.kind.partition("/")
    if not _VENDOR.fullmatch(vendor) or not _CLASS.fullmatch(name):
        return f"kind {spec.kind!r} isn't valid, expected VENDOR/CLASS, e.g. vendor.com/device"
    if not spec.devices:
        return "devices: at least one is needed"
    if len(spec.devices) > MAX_DEVICES:
        return f"devices: {len(spec.devices)} are too many, at most {MAX_DEVICES} are possible"
    names = [device.name for device in spec.devices]
    for index, device in enumerate(spec.devices):
        if not _DEVICE.fullmatch(device.name):
            return f"devices[{index}].name: {device.name[:80]!r} isn't valid, e.g. gpu0"
        if device.container_edits == Edits():
            return f"devices[{index}]: {device.name}: its containerEdits are empty"
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        return f"devices: {twice} is there twice"
    for place, edits in _all_edits(spec):
        if found := _edits_trouble(edits):
            return f"{place}{found}"
    needed = minimum_version(spec)
    if VERSIONS.index(needed) > VERSIONS.index(version):
        return f"cdiVersion {version} is older than {needed}, which what it says needs"
    return ""


def _all_edits(spec: Spec) -> Iterator[tuple[str, Edits]]:
    yield "containerEdits.", spec.container_edits
    for index, device in enumerate(spec.devices):
        yield f"devices[{index}].containerEdits.", device.container_edits


def _edits_trouble(edits: Edits) -> str:
    for name in ("env", "device_nodes", "net_devices", "hooks", "mounts", "additional_gids"):
        if len(getattr(edits, name)) > MAX_EDITS:
            return f"{name}: more than {MAX_EDITS} entries"
    for index, entry in enumerate(edits.env):
        if entry.find("=") < 1 or "\0" in entry:
            return f"env[{index}]: {entry[:80]!r} isn't NAME=value"
    for index, node in enumerate(edits.device_nodes):
        at = f"deviceNodes[{index}]."
        if not _is_path(node.path):
            return f"{at}path: {node.path!r} isn't an absolute path, e.g. /dev/x"
        if node.host_path and not _is_path(node.host_path):
            return f"{at}hostPath: {node.host_path!r} isn't an absolute path, e.g. /dev/x"
        if node.type not in ("", "b", "c", "u", "p"):
            return f"{at}type: {node.type!r} isn't one of b, c, u and p"
        if node.permissions != "none" and set(node.permissions) - set("rwm"):
            return f"{at}permissions: {node.permissions!r} isn't a selection of rwm, or none"
        if not 0 <= node.major < 1 << 32 or not 0 <= node.minor < 1 << 32:
            return f"{at}major, minor: expected numbers from 0 up"
    for index, mount in enumerate(edits.mounts):
        if not _is_path(mount.container_path) or posixpath.normpath(mount.container_path) == "/":
            return f"mounts[{index}].containerPath: {mount.container_path!r} isn't an absolute path below /"
        if not mount.host_path or "\0" in mount.host_path:
            return f"mounts[{index}].hostPath: a path is needed"
    for index, hook in enumerate(edits.hooks):
        if hook.hook_name not in HOOKS:
            return f"hooks[{index}].hookName: {hook.hook_name!r} isn't one of {', '.join(HOOKS)}"
        if not _is_path(hook.path):
            return f"hooks[{index}].path: {hook.path!r} isn't an absolute path"
        if hook.timeout is not None and not 0 < hook.timeout < 1 << 31:
            return f"hooks[{index}].timeout: expected a positive number of seconds, got {hook.timeout}"
    return ""


def _is_path(path: str) -> bool:
    return path.startswith("/") and "\0" not in path and ".." not in path.split("/")


def minimum_version(spec: Spec) -> str:
    """The oldest version of the interface that has all that a specification says (SPEC.md, "Released versions")."""
    edits = [edits for _, edits in _all_edits(spec)]
    if any(e.net_devices for e in edits) or any(
        {"schemata", "enableMonitoring"} & set(e.intel_rdt or ()) for e in edits
    ):
        return "1.1.0"
    if any(e.intel_rdt is not None or e.additional_gids for e in edits):
        return "0.7.0"
    if spec.annotations or any(d.annotations for d in spec.devices) or "." in spec.kind.partition("/")[2]:
        return "0.6.0"
    if any(d.name[0].isdigit() for d in spec.devices) or any(
        n.host_path for e in edits for n in e.device_nodes
    ):
        return "0.5.0"
    if any(m.type for e in edits for m in e.mounts):
        return "0.4.0"
    return "0.3.0"


# --- all files ----------------------------------------------------------------------------


def build_registry(
    directories: Iterable[Mapping[str, Spec]], errors: Mapping[str, str] | None = None
) -> Registry:
    """The devices of directories, in the order of rising priority; each maps its files to what they say.

    A device in a later directory takes the place of an earlier one's; in two files of one directory it is nobody's.
    """
    devices: dict[str, Found] = {}
    troubles = dict(errors or {})
    for specs in directories:
        here: dict[str, tuple[str, Found]] = {}
        conflicts: set[str] = set()
        for file, spec in specs.items():
            for device in spec.devices:
                name = f"{spec.kind}={device.name}"
                if name in here:
                    conflicts.add(name)
                    troubles[name] = f"conflicting device {name}: it is in {here[name][0]} and in {file}"
                here.setdefault(name, (file, Found(spec, device)))
        for name, (_, found) in here.items():
            if name in conflicts:
                devices.pop(name, None)
            else:
                devices[name] = found
    return Registry(devices, troubles)


def find_edits(registry: Registry, names: Sequence[str]) -> Edits:
    """All edits for the devices named: each file's own, once, and each device's. Raises `NotFound`, `Invalid`."""
    parts: list[Edits] = []
    files: list[Spec] = []
    for name in dict.fromkeys(names):
        found = registry.devices.get(name)
        if found is None:
            why = registry.errors.get(name)
            more = why or "; ".join(sorted(registry.errors.values())[:3])
            raise NotFound(
                f"CDI device injection failed: unresolvable CDI devices {name}"
                + (f" ({more})" if more else "")
            )
        if not any(found.spec is spec for spec in files):
            files.append(found.spec)
            parts.append(found.spec.container_edits)
        parts.append(found.device.container_edits)
    edits = Edits(
        env=tuple(entry for part in parts for entry in part.env),
        device_nodes=tuple(node for part in parts for node in part.device_nodes),
        net_devices=tuple(device for part in parts for device in part.net_devices),
        hooks=tuple(hook for part in parts for hook in part.hooks),
        mounts=tuple(mount for part in parts for mount in part.mounts),
        intel_rdt=next((part.intel_rdt for part in reversed(parts) if part.intel_rdt is not None), None),
        additional_gids=tuple(gid for part in parts for gid in part.additional_gids if gid),
    )
    asked = ", ".join(names)
    if edits.net_devices:
        raise Invalid(
            f"CDI device injection failed: {asked}: netDevices can't be moved into a container here"
        )
    if edits.intel_rdt is not None:
        raise Invalid(f"CDI device injection failed: {asked}: intelRdt can't be set here")
    if late := next((hook for hook in edits.hooks if hook.hook_name not in _RUN_HERE), None):
        raise Invalid(f"CDI device injection failed: {asked}: a {late.hook_name} hook isn't run here")
    return edits


# --- into a configuration -----------------------------------------------------------------


def with_edits(config: oci.Config, edits: Edits) -> oci.Config:
    """The configuration with mounts and hooks; variables, nodes and groups come with the facts of a start."""
    replaced = {posixpath.normpath(mount.container_path) for mount in edits.mounts}
    mounts = [mount for mount in config.mounts if mount.destination not in replaced]
    added = [
        oci.Mount(
            destination=posixpath.normpath(mount.container_path),
            source=mount.host_path,
            type=mount.type or "bind",
            options=mount.options or ("rbind", "rprivate"),
        )
        for mount in edits.mounts
    ]
    added.sort(key=lambda mount: mount.destination.count("/"))
    return msgspec.structs.replace(config, mounts=(*mounts, *added), hooks=_hooks(edits))


def _hooks(edits: Edits) -> oci.Hooks:
    found: dict[str, list[oci.Hook]] = {name: [] for name in HOOKS}
    for hook in edits.hooks:
        found[hook.hook_name].append(
            oci.Hook(path=hook.path, args=hook.args or (hook.path,), env=hook.env, timeout=hook.timeout)
        )
    return oci.Hooks(
        prestart=tuple(found["prestart"]),
        create_runtime=tuple(found["createRuntime"]),
        create_container=tuple(found["createContainer"]),
        start_container=tuple(found["startContainer"]),
        poststart=tuple(found["poststart"]),
    )
