"""What a volume may be called and what the local driver's options mean. Pure.

The options are mount(8)'s, as Docker's local driver takes them: type, o, device. Cove mounts nothing on
the host for them; a container's plan mounts the volume, in its own namespace. That covers binds and
tmpfs, and leaves no mount behind; a filesystem on a device or a server is for the host to mount.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import msgspec

from cove.model.errors import Invalid, Unavailable

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_OPTIONS = ("type", "o", "device", "size")
_PROPAGATION = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
_BIND_FLAGS = ("bind", "rbind", "ro", "rw", "defaults", *_PROPAGATION)
_TMPFS_FLAGS = (
    "ro",
    "rw",
    "noexec",
    "exec",
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "noatime",
    "relatime",
    "defaults",
)
_TMPFS_VALUES = ("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks")


class VolumeSource(msgspec.Struct, frozen=True, kw_only=True):
    """How a container's plan shows a volume: a bind of `source`, or a tmpfs with `options`.

    A tmpfs volume is the container's own, empty at each start; Docker shares one between containers
    that run at the same time.
    """

    kind: Literal["bind", "tmpfs"]
    source: str = ""  # host directory; "" for tmpfs
    readonly: bool = False
    recursive: bool = True
    propagation: str = ""
    options: tuple[str, ...] = ()


def check_name(name: str) -> None:
    """Raise Invalid unless `name` can be a volume's."""
    if len(name) == 1:
        raise Invalid(
            f"create {name}: volume name is too short, names should be at least two alphanumeric characters"
        )
    if not _NAME.fullmatch(name):
        raise Invalid(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. '
            "If you intended to pass a host directory, use absolute path"
        )
    if len(name) > 255:
        raise Invalid(f"create {name[:20]}…: volume name is {len(name)} characters long, 255 are the limit")


def volume_source(name: str, options: Mapping[str, str], directory: str) -> VolumeSource:
    """What a volume with these options is to a container; `directory` is the one without any.

    Raises Invalid or Unavailable, with a sentence that names the volume and the option.
    """
    for option in options:
        if option not in _OPTIONS:
            raise Invalid(f'create {name}: invalid option: "{option}" (type, o and device are known)')
    if options.get("size"):
        raise Unavailable(
            f"create {name}: quota size requested but no quota support; use type=tmpfs,o=size=…"
        )
    for option, needed in (("type", "device"), ("device", "type"), ("o", "device"), ("o", "type")):
        if option in options and needed not in options:
            raise Invalid(f'create {name}: missing required option: "{needed}"')
    if "type" not in options:
        return VolumeSource(kind="bind", source=directory)
    flags = tuple(flag for flag in options.get("o", "").split(",") if flag)
    kind, device = options["type"], options["device"]
    if kind == "tmpfs":
        return _tmpfs(name, flags)
    if kind in ("none", "bind", "") and ("bind" in flags or "rbind" in flags):
        return _bind(name, device, flags)
    raise Unavailable(
        f'create {name}: the local driver mounts no volume of type "{kind}": mount it on the host, '
        "and use type=none, o=bind and device=DIRECTORY"
    )


def _tmpfs(name: str, flags: tuple[str, ...]) -> VolumeSource:
    for flag in flags:
        key, equals, value = flag.partition("=")
        known = key in _TMPFS_VALUES and value if equals else key in _TMPFS_FLAGS
        if not known:
            raise Invalid(f'create {name}: "{flag}" in option o isn\'t one of tmpfs, e.g. size=64m,mode=0700')
    kept = tuple(flag for flag in flags if flag not in ("ro", "rw", "defaults"))
    return VolumeSource(kind="tmpfs", readonly="ro" in flags, options=kept)


def _bind(name: str, device: str, flags: tuple[str, ...]) -> VolumeSource:
    if not device.startswith("/") or "\0" in device:
        raise Invalid(f'create {name}: device "{device}" must be an absolute path, e.g. device=/srv/data')
    for flag in flags:
        if flag not in _BIND_FLAGS:
            raise Invalid(
                f'create {name}: "{flag}" in option o isn\'t one of a bind: {", ".join(_BIND_FLAGS)}'
            )
    propagation = next((flag for flag in reversed(flags) if flag in _PROPAGATION), "")
    return VolumeSource(
        kind="bind",
        source=device,
        readonly="ro" in flags,
        recursive="rbind" in flags,
        propagation=propagation,
    )
