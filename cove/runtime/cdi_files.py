"""The files of the Container Device Interface on this host, and the device nodes that they speak of.

Files are read again once they change (inode, time and size); a bad one is an error that names it, and hides nothing
of the others. Blocking: the engine calls this in a thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Any

import msgspec

from cove.model.errors import CoveError, Invalid
from cove.runtime import oci
from cove.runtime.cdi import DeviceNode, Edits, Registry, Spec, build_registry, parse_spec

MAX_FILES = 256  # of one directory
MAX_BYTES = 4 << 20

_Key = tuple[str, int, int, int]
_parsed: dict[_Key, Spec | str] = {}


def read_registry(directories: Sequence[str]) -> Registry:
    """All devices that the directories' files name, and what is wrong with files; the last directory wins."""
    found: list[dict[str, Spec]] = []
    errors: dict[str, str] = {}
    used: set[_Key] = set()
    for directory in directories:
        specs: dict[str, Spec] = {}
        for path in _files(directory, errors):
            try:
                key, spec = _read(path)
            except OSError as error:
                errors[path] = f"CDI specification {path}: {(error.strerror or str(error)).lower()}"
                continue
            except CoveError as error:
                errors[path] = str(error)
                continue
            used.add(key)
            if isinstance(spec, str):
                errors[path] = spec
            else:
                specs[path] = spec
        found.append(specs)
    for stale in _parsed.keys() - used:
        _parsed.pop(stale, None)
    return build_registry(found, errors)


def _files(directory: str, errors: dict[str, str]) -> list[str]:
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        errors[directory] = f"CDI directory {directory}: {(error.strerror or str(error)).lower()}"
        return []
    wanted = [name for name in names if name.endswith((".json", ".yaml", ".yml"))]
    if len(wanted) > MAX_FILES:
        errors[directory] = f"CDI directory {directory}: {len(wanted)} files, the first {MAX_FILES} are read"
    return [f"{directory}/{name}" for name in wanted[:MAX_FILES]]


def _read(path: str) -> tuple[_Key, Spec | str]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise Invalid(f"CDI specification {path}: not a regular file")
        if info.st_size > MAX_BYTES:
            raise Invalid(f"CDI specification {path}: {info.st_size} bytes, the limit is {MAX_BYTES}")
        key = (path, info.st_ino, info.st_mtime_ns, info.st_size)
        if key not in _parsed:
            try:
                _parsed[key] = parse_spec(_decode(file.read(MAX_BYTES + 1), path), path)
            except CoveError as error:
                _parsed[key] = str(error)
        return key, _parsed[key]


def _decode(data: bytes, path: str) -> Any:
    try:
        if path.endswith(".json"):
            return msgspec.json.decode(data)
        return _decode_yaml(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise Invalid(f"CDI specification {path}: {' '.join(str(error).split())[:200]}") from None


def _decode_yaml(data: bytes) -> Any:
    """Plain YAML: an alias, by which a small file becomes a huge one, is refused. Raises ValueError."""
    import yaml

    loader = yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader
    try:
        for event in yaml.parse(data, Loader=loader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("an alias isn't allowed")
        return yaml.load(data, Loader=loader)  # noqa: S506 - both are safe loaders
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def find_nodes(edits: Edits) -> tuple[tuple[oci.LinuxDevice, ...], tuple[oci.DeviceRule, ...]]:
    """The device nodes of edits, and the rules that allow them. Raises `Invalid` for one that isn't on this host."""
    nodes: dict[str, oci.LinuxDevice] = {}
    rules: list[oci.DeviceRule] = []
    for wanted in edits.device_nodes:
        node = _find_node(wanted)
        nodes[node.path] = node
        access = {"": "rwm", "none": ""}.get(wanted.permissions, wanted.permissions)
        if node.type in ("b", "c") and access:
            rules.append(
                oci.DeviceRule(allow=True, type=node.type, major=node.major, minor=node.minor, access=access)
            )
    return tuple(nodes.values()), tuple(rules)


def _find_node(wanted: DeviceNode) -> oci.LinuxDevice:
    """With what the specification leaves out taken from the host's node."""
    kind, major, minor = wanted.type, wanted.major, wanted.minor
    mode = wanted.file_mode
    if not kind or (not major and kind != "p"):
        host = wanted.host_path or wanted.path
        try:
            info = os.stat(host)
        except OSError as error:
            raise Invalid(
                f"CDI device injection failed: failed to stat CDI host device {host!r}: "
                f"{(error.strerror or str(error)).lower()}"
            ) from None
        found = "b" if stat.S_ISBLK(info.st_mode) else "c" if stat.S_ISCHR(info.st_mode) else ""
        if stat.S_ISFIFO(info.st_mode):
            found = "p"
        if not found or (kind and kind != found and (kind, found) != ("u", "c")):
            raise Invalid(
                f"CDI device injection failed: CDI device {host!r}: not a device node of type {kind or 'b or c'}"
            )
        kind = kind or found
        if found != "p":
            major, minor = os.major(info.st_rdev), os.minor(info.st_rdev)
        if mode is None:
            mode = stat.S_IMODE(info.st_mode)
    return oci.LinuxDevice(
        path=wanted.path,
        type=kind,
        major=major,
        minor=minor,
        file_mode=0o666 if mode is None else mode & 0o7777,
        uid=wanted.uid or 0,
        gid=wanted.gid or 0,
    )
