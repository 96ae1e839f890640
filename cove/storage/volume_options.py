"""What a volume may be called and what the local driver's options mean. Pure.

The options are mount(8)'s, as Docker's local driver takes them: type, o, device; and size, a limit of Cove's own
volumes. A bind is made by the container's plan, in its own namespace. Any other file system is mounted on the host,
at the volume's directory, while a container uses it (`volume_mounts`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from cove.model.errors import Invalid

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_OPTIONS = ("type", "o", "device", "size")
_PROPAGATION = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
_BIND_FLAGS = ("bind", "rbind", "ro", "rw", "defaults", *_PROPAGATION)
_TMPFS_VALUES = ("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "huge", "mpol")
_REMOTE = frozenset(("nfs", "nfs4", "cifs", "smb3"))
_TYPE = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_OPTION_BYTES = 255  # of a value: fsconfig(2)
_OPTIONS_BYTES = 4095  # of all: mount(2)

# MOUNT_ATTR_* of fsmount(2): option -> (to set, to clear). The times are one choice of three.
_ATTRIBUTES = {
    "ro": (0x1, 0),
    "rw": (0, 0x1),
    "nosuid": (0x2, 0),
    "suid": (0, 0x2),
    "nodev": (0x4, 0),
    "dev": (0, 0x4),
    "noexec": (0x8, 0),
    "exec": (0, 0x8),
    "noatime": (0x10, 0x70),
    "strictatime": (0x20, 0x70),
    "relatime": (0, 0x70),
    "atime": (0, 0x70),
    "nodiratime": (0x80, 0),
    "diratime": (0, 0x80),
}
# mount(8)'s own, which no kernel sees
_PASSED_OVER = frozenset(
    ("defaults", "auto", "noauto", "nofail", "_netdev", "loop", "user", "nouser", "users")
)
_SECRETS = ("password", "password2", "pass", "passwd")
_SECRET = re.compile(rf"(?<![a-z0-9])({'|'.join(_SECRETS)})=[^,]*", re.IGNORECASE)

MIN_SIZE_BYTES = 1 << 20
_SIZE = re.compile(r"(\d{1,15})([bkmgtp]?)(?:i?b)?", re.IGNORECASE)


class Filesystem(msgspec.Struct, frozen=True, kw_only=True):
    """A file system to mount: what fsopen(2), fsconfig(2) and fsmount(2) are told."""

    type: str
    source: str = ""  # as the file system has it; a file or block device with `device`
    device: bool = False  # `source` is a block device, or an image file, which gets a loop device
    remote: bool = False  # `source` starts with a host's name
    attributes: int = 0  # MOUNT_ATTR_*
    parameters: tuple[tuple[str, str | None], ...] = ()  # None: a flag
    sized: bool = False  # an image of Cove's own

    @property
    def readonly(self) -> bool:
        return bool(self.attributes & 0x1)


class VolumeSource(msgspec.Struct, frozen=True, kw_only=True):
    """How a container's plan shows a volume: a bind of `source`, on which `filesystem` is mounted by then."""

    kind: Literal["bind"] = "bind"
    source: str = ""  # host directory
    readonly: bool = False
    recursive: bool = True
    propagation: str = ""
    filesystem: Filesystem | None = None


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


def hide_secrets(text: str) -> str:
    """Mount options, or a sentence with them, without the passwords."""
    return _SECRET.sub(r"\1=****", text)


def shown_options(options: Mapping[str, str]) -> dict[str, str]:
    """A volume's options as anybody may see them."""
    return {key: hide_secrets(value) for key, value in options.items()}


def parse_size(text: str, what: str) -> int:
    """Bytes: a number and b, k, m, g, t or p, powers of 1024. Raises Invalid, which names `what`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise Invalid(f"{what}: invalid size: '{text}', expected a number and b, k, m, g or t, e.g. size=10g")
    size = int(match[1]) << 10 * "bkmgtp".index(match[2].lower() or "b")
    if not MIN_SIZE_BYTES <= size < 1 << 60:
        raise Invalid(f"{what}: size {text} is out of bounds: 1m to 1000000t, e.g. size=10g")
    return size


def volume_source(name: str, options: Mapping[str, str], directory: str) -> VolumeSource:
    """What a volume with these options is to a container; `directory` is the one without any.

    Raises Invalid, with a sentence that names the volume and the option.
    """
    for option in options:
        if option not in _OPTIONS:
            raise Invalid(f'create {name}: invalid option: "{option}" (type, o, device and size are known)')
    if "size" in options:
        parse_size(options["size"], f"create {name}")
        if len(options) > 1:
            raise Invalid(
                f"create {name}: size limits a volume that is Cove's own: with type, say o=size=… for a tmpfs, "
                "or leave size out"
            )
    for option, needed in (("type", "device"), ("device", "type"), ("o", "device"), ("o", "type")):
        if option in options and needed not in options:
            raise Invalid(f'create {name}: missing required option: "{needed}"')
    if "type" not in options:
        return VolumeSource(source=directory)
    flags = tuple(flag for flag in options.get("o", "").split(",") if flag)
    kind, device = options["type"], options["device"]
    if "bind" in flags or "rbind" in flags:
        if kind not in ("none", "bind", ""):
            raise Invalid(f'create {name}: o=bind goes with type=none, not with type="{kind}"')
        return _bind(name, device, flags)
    filesystem = plan_filesystem(name, kind, device, flags)
    return VolumeSource(source=directory, readonly=filesystem.readonly, filesystem=filesystem)


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
        source=device,
        readonly="ro" in flags,
        recursive="rbind" in flags,
        propagation=propagation,
    )


def plan_filesystem(name: str, kind: str, device: str, flags: Sequence[str]) -> Filesystem:
    """The file system of `type=kind,device=device,o=flags`. Raises Invalid."""
    if not _TYPE.fullmatch(kind) or kind == "none":
        raise Invalid(
            f'create {name}: type "{kind}" is no file system: name one, e.g. nfs, ext4 or tmpfs, or '
            "use type=none with o=bind"
        )
    if "\0" in device or len(device.encode()) > _OPTIONS_BYTES:
        raise Invalid(f"create {name}: device is no path: it is longer than 4095 bytes, or has a NUL byte")
    if sum(len(flag.encode()) + 1 for flag in flags) > _OPTIONS_BYTES:
        raise Invalid(f"create {name}: option o is longer than {_OPTIONS_BYTES} bytes, the kernel's limit")
    attributes, parameters = 0, []
    for flag in flags:
        key, equals, value = flag.partition("=")
        if flag in _ATTRIBUTES:
            to_set, to_clear = _ATTRIBUTES[flag]
            attributes = attributes & ~to_clear | to_set
        elif key not in _PASSED_OVER and not key.startswith("x-") and key != "comment":
            _check_parameter(name, kind, key, value if equals else None)
            parameters.append((key, value if equals else None))
    if attributes & 0x1:
        parameters.append(("ro", None))
    remote = kind in _REMOTE
    if remote:
        _check_remote(name, kind, device, dict(parameters))
    elif kind == "tmpfs":
        device = "tmpfs"
    elif not device.startswith("/"):
        raise Invalid(
            f'create {name}: device "{device}" must be a block device or an image file, e.g. device=/dev/sdb1'
        )
    return Filesystem(
        type=kind,
        source=device,
        device=not remote and kind != "tmpfs",
        remote=remote,
        attributes=attributes,
        parameters=tuple(parameters),
    )


def _check_parameter(name: str, kind: str, key: str, value: str | None) -> None:
    if "\0" in key or not key:
        raise Invalid(f"create {name}: option o has an empty word or a NUL byte: leave it out")
    if len((value or "").encode()) > _OPTION_BYTES or len(key.encode()) > _OPTION_BYTES:
        raise Invalid(
            f"create {name}: {key} in option o is longer than {_OPTION_BYTES} bytes, the kernel's limit"
        )
    if kind == "tmpfs" and (value is None or not value or key not in _TMPFS_VALUES):
        told = key if value is None else f"{key}={value}"
        raise Invalid(f'create {name}: "{told}" in option o isn\'t one of tmpfs, e.g. size=64m,mode=0700')


def _check_remote(name: str, kind: str, device: str, parameters: Mapping[str, str | None]) -> None:
    if kind in ("nfs", "nfs4"):
        host, colon, _ = device.rpartition(":/")
        if not colon or (not host and not parameters.get("addr")):
            raise Invalid(
                f'create {name}: device "{device}" must be a server\'s export, e.g. device=192.0.2.1:/export, or '
                "device=:/export with o=addr=192.0.2.1"
            )
    elif not re.fullmatch(r"//[^/]+/.+", device.replace("\\", "/")):
        raise Invalid(f'create {name}: device "{device}" must be a share, e.g. device=//192.0.2.1/share')
    for word in ("credentials", "cred"):
        if word in parameters:
            raise Invalid(
                f"create {name}: {word} in option o is for mount.cifs: say username=… and password=… here; the "
                "password is shown nowhere"
            )


def remote_host(filesystem: Filesystem) -> str:
    """The host that has to be resolved: what addr names, else what the source starts with."""
    address = dict(filesystem.parameters).get("addr")
    if address:
        return address
    if filesystem.type in ("nfs", "nfs4"):
        host = filesystem.source.rpartition(":/")[0]
    else:
        host = filesystem.source.replace("\\", "/").lstrip("/").split("/", 1)[0]
    return host.strip("[]")
