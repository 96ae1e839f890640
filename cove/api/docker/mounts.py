"""A create body's mounts, in their four notations, → the model's Bind, Volume and Tmpfs. Pure.

`HostConfig.Binds` (-v), `HostConfig.Mounts` (--mount), `HostConfig.Tmpfs` (--tmpfs) and
`Config.Volumes` (-v with a container path only). A target that the first three name wins over
the same one in `Config.Volumes`: the SDK for Python sends both.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from cove.api.docker import wire
from cove.model.container import Bind, ImageMount, Mount, Tmpfs, Volume, VolumesFrom
from cove.model.errors import Invalid, NotImplementedHere
from cove.storage.volume_options import shown_options

_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,254}")
_PROPAGATIONS = frozenset(("rprivate", "private", "rshared", "shared", "rslave", "slave"))
_PASSED_OVER = frozenset(("z", "Z", "consistent", "cached", "delegated", "default"))
_TMPFS_FLAGS = frozenset(
    (
        "ro rw suid nosuid dev nodev exec noexec sync async dirsync atime noatime diratime nodiratime "
        "relatime norelatime strictatime nostrictatime mand nomand rbind bind private rprivate shared "
        "rshared slave rslave unbindable runbindable defaults"
    ).split()
)
_TMPFS_VALUES = {
    "size": re.compile(r"\d{1,18}[kKmMgG%]?"),
    "nr_blocks": re.compile(r"\d{1,18}[kKmMgG]?"),
    "nr_inodes": re.compile(r"\d{1,18}[kKmMgG]?"),
    "mode": re.compile(r"[0-7]{1,5}"),
    "uid": re.compile(r"\d{1,10}"),
    "gid": re.compile(r"\d{1,10}"),
    "mpol": re.compile(r"[a-z=:,0-9-]{1,64}"),
    "huge": re.compile(r"never|always|within_size|advise"),
}
_TMPFS_DEFAULTS = (("noexec", "exec"), ("nosuid", "suid"), ("nodev", "dev"))
MODES = "ro, rw, nocopy, z, Z, or a propagation such as rslave"


def decode_mounts(config: wire.Config, host: wire.HostConfig, version: int) -> tuple[Mount, ...]:
    """All mounts of a create body, in the order of their notations. Raises `Invalid` with the path."""
    mounts: list[Mount] = []
    for index, text in enumerate(host.binds or ()):
        mounts.append(_parse_bind(text, f"HostConfig.Binds[{index}]", host.volume_driver or ""))
    for index, mount in enumerate(host.mounts or ()):
        mounts.append(_decode_mount(mount, f"HostConfig.Mounts[{index}]", version))
    for target, options in (host.tmpfs or {}).items():
        mounts.append(_decode_tmpfs(target, options or ""))
    named = {_clean(mount.target) for mount in mounts}
    for target in config.volumes or {}:
        if ":" in target:
            raise Invalid(
                f"Volumes[{target!r}]: invalid volume specification: expected a path in the container"
            )
        _check_target(target, "Volumes")
        if _clean(target) not in named:
            mounts.append(Volume(name="", target=target, driver=_driver(host.volume_driver)))
    return tuple(mounts)


def decode_added(mounts: Sequence[wire.Mount], version: int) -> list[tuple[Mount, dict[str, Any]]]:
    """Mounts of `update`, each with what inspect is to show. Raises `Invalid` with the path."""
    return [
        (_decode_mount(mount, f"MountsAdd[{index}]", version), msgspec.to_builtins(_hide(mount)))
        for index, mount in enumerate(mounts)
    ]


def _clean(target: str) -> str:
    return posixpath.normpath("/" + target.lstrip("/"))


def _driver(name: str | None) -> str:
    return "" if name in (None, "local") else str(name)


def _check_target(target: str, path: str) -> str:
    if not target.startswith("/") or "\0" in target:
        raise Invalid(f"{path}: invalid mount path: '{target}' mount path must be absolute")
    if _clean(target) == "/":
        raise Invalid(f"{path}: invalid specification: destination can't be '/'")
    return target


def _check_name(name: str, path: str) -> str:
    if name and not _VOLUME_NAME.fullmatch(name):
        raise Invalid(
            f'{path}: "{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, '
            "use absolute path"
        )
    return name


def _parse_bind(text: str, path: str, driver: str) -> Mount:
    parts = text.split(":")
    if not 1 <= len(parts) <= 3 or not all(parts) or "\0" in text:
        raise Invalid(f"{path}: invalid volume specification: '{text}', e.g. /srv/data:/data:ro")
    if len(parts) == 1:
        return Volume(name="", target=_check_target(text, path), driver=_driver(driver))
    source, target = parts[0], _check_target(parts[1], path)
    readonly = nocopy = False
    propagation = ""
    for word in parts[2].split(",") if len(parts) == 3 else ():
        if word in ("ro", "rw"):
            readonly = word == "ro"
        elif word == "nocopy":
            nocopy = True
        elif word in _PROPAGATIONS and not propagation:
            propagation = word
        elif word not in _PASSED_OVER:
            raise Invalid(f"{path}: invalid mode: {word}, expected {MODES}")
    if source.startswith("/"):
        if nocopy:
            raise Invalid(f"{path}: invalid mode: nocopy is for named volumes, not for host directories")
        return Bind(
            source=posixpath.normpath(source),
            target=target,
            readonly=readonly,
            propagation=propagation or "rprivate",
            create_source=True,
        )
    if propagation:
        raise Invalid(f"{path}: invalid mode: {propagation} is for host directories, not for volumes")
    name = _check_name(source, path)
    return Volume(name=name, target=target, readonly=readonly, copy_up=not nocopy, driver=_driver(driver))


def _decode_mount(mount: wire.Mount, path: str, version: int) -> Mount:
    kind = mount.type or ""
    target = _check_target(mount.target or "", f"{path}.Target")
    strict = version >= 1042
    for options, field, owner in (
        (mount.bind_options, "BindOptions", "bind"),
        (mount.volume_options, "VolumeOptions", "volume"),
        (mount.tmpfs_options, "TmpfsOptions", "tmpfs"),
        (mount.image_options, "ImageOptions", "image"),
    ):
        if strict and options is not None and kind != owner:
            raise Invalid(f'{path}.{field}: {field} must not be specified on mount type "{kind}"')
    if kind == "bind":
        return _decode_bind(mount, target, path, version)
    if kind == "volume":
        return _decode_volume(mount, target, path, version)
    if kind == "tmpfs":
        return _decode_tmpfs_mount(mount, target, path)
    if kind == "image":
        return _decode_image_mount(mount, target, path, version)
    if kind == "cluster":
        raise NotImplementedHere(
            f"{path}.Type: cluster volumes are a swarm's, and Cove is in none; use type volume"
        )
    if kind == "npipe":
        raise Invalid(f"{path}.Type: named pipes are Windows's; use type bind with the path of a socket")
    raise Invalid(f"{path}.Type: mount type unknown: '{kind}', expected bind, volume, tmpfs or image")


def _decode_image_mount(mount: wire.Mount, target: str, path: str, version: int) -> ImageMount:
    if version < 1048:
        raise Invalid(f'{path}.Type: Mount type "Image" needs API v1.48 or newer')
    if not mount.source:
        raise Invalid(f'{path}.Source: invalid mount config for type "image": field Source must not be empty')
    subpath = (mount.image_options.subpath if mount.image_options else "") or ""
    _check_subpath(subpath, f"{path}.ImageOptions.Subpath", "image")
    return ImageMount(image=mount.source, target=target, subpath=subpath)


def _check_subpath(subpath: str, path: str, what: str) -> None:
    if subpath.startswith("/") or ".." in subpath.split("/") or "\0" in subpath:
        raise Invalid(f"{path}: expected a relative path inside the {what}, got '{subpath}'")


def _decode_bind(mount: wire.Mount, target: str, path: str, version: int) -> Bind:
    source = mount.source or ""
    if not source:
        raise Invalid(f'{path}.Source: invalid mount config for type "bind": field Source must not be empty')
    if not source.startswith("/") or "\0" in source:
        raise Invalid(
            f"{path}.Source: invalid mount config for type \"bind\": invalid mount path: '{source}' "
            "mount path must be absolute"
        )
    options = mount.bind_options or wire.BindOptions()
    propagation = options.propagation or "rprivate"
    if propagation not in _PROPAGATIONS:
        raise Invalid(
            f"{path}.BindOptions.Propagation: invalid propagation mode: {propagation}, "
            f"expected one of {', '.join(sorted(_PROPAGATIONS))}"
        )
    non_recursive = bool(options.read_only_non_recursive) and version >= 1044
    force = bool(options.read_only_force_recursive)
    if force and version < 1044:
        raise Invalid(f"{path}.BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
    for field, given in (("ReadOnlyNonRecursive", non_recursive), ("ReadOnlyForceRecursive", force)):
        if given and not mount.read_only:
            raise Invalid(
                f"{path}.BindOptions.{field}: mount source must be read-only: set ReadOnly, or leave it out"
            )
    if force and non_recursive:
        raise Invalid(
            f"{path}.BindOptions: ReadOnlyForceRecursive and ReadOnlyNonRecursive exclude each other"
        )
    if force and propagation not in ("rprivate", "private"):
        raise Invalid(
            f"{path}.BindOptions.ReadOnlyForceRecursive needs the propagation rprivate, not {propagation}"
        )
    return Bind(
        source=posixpath.normpath(source),
        target=target,
        readonly=bool(mount.read_only),
        propagation=propagation,
        recursive=not (options.non_recursive and version >= 1040),
        readonly_below="force" if force else "no" if non_recursive else "",
        create_source=bool(options.create_mountpoint) and version >= 1042,
    )


def _decode_volume(mount: wire.Mount, target: str, path: str, version: int) -> Volume:
    options = mount.volume_options or wire.VolumeOptions()
    driver = options.driver_config or wire.DriverConfig()
    subpath = options.subpath or ""
    if subpath and version < 1045:
        raise Invalid(f"{path}.VolumeOptions.Subpath needs API v1.45 or newer")
    _check_subpath(subpath, f"{path}.VolumeOptions.Subpath", "volume")
    if subpath and not mount.source:
        raise Invalid(f"{path}.VolumeOptions.Subpath: must not be set when using anonymous volumes")
    return Volume(
        name=_check_name(mount.source or "", f"{path}.Source"),
        target=target,
        readonly=bool(mount.read_only),
        copy_up=not options.no_copy,
        driver=_driver(driver.name),
        driver_options=string_map(driver.options),
        labels=string_map(options.labels),
        subpath=subpath,
    )


def _decode_tmpfs_mount(mount: wire.Mount, target: str, path: str) -> Tmpfs:
    if mount.source:
        raise Invalid(
            f'{path}.Source: invalid mount config for type "tmpfs": field Source must not be specified'
        )
    options = mount.tmpfs_options or wire.TmpfsOptions()
    size, mode = options.size_bytes or 0, options.mode or 0
    if size < 0:
        raise Invalid(f"{path}.TmpfsOptions.SizeBytes: expected 0 or more, got {size}")
    if not 0 <= mode <= 0o7777:
        raise Invalid(f"{path}.TmpfsOptions.Mode: expected permission bits up to 0o7777, got {mode:#o}")
    words = []
    for index, option in enumerate(options.options or ()):
        if not 1 <= len(option) <= 2:
            raise Invalid(f"{path}.TmpfsOptions.Options[{index}]: expected a flag, or a key and a value")
        words.append("=".join(option))
    if mount.read_only:
        words.append("ro")
    checked = _tmpfs_options(words, f"{path}.TmpfsOptions.Options")
    return Tmpfs(target=target, size_bytes=size, mode=mode or 0o1777, options=checked)


def _decode_tmpfs(target: str, text: str) -> Tmpfs:
    path = f"HostConfig.Tmpfs[{target!r}]"
    _check_target(target, path)
    return Tmpfs(target=target, options=_tmpfs_options([w for w in text.split(",") if w], path))


def _tmpfs_options(words: Sequence[str], path: str) -> tuple[str, ...]:
    for word in words:
        key, equals, value = word.partition("=")
        good = (
            word in _TMPFS_FLAGS
            if not equals
            else key in _TMPFS_VALUES and _TMPFS_VALUES[key].fullmatch(value)
        )
        if not good:
            raise Invalid(f"{path}: invalid tmpfs option: '{word}', e.g. size=64m, mode=1777, noexec")
    defaults = tuple(default for default, other in _TMPFS_DEFAULTS if not {default, other} & set(words))
    return defaults + tuple(words)


def hide_mount_secrets(host: wire.HostConfig) -> wire.HostConfig:
    """The request without the passwords in volumes' options, for inspect to show."""
    if not any(mount.volume_options and mount.volume_options.driver_config for mount in host.mounts or ()):
        return host
    return msgspec.structs.replace(host, mounts=[_hide(mount) for mount in host.mounts or ()])


def _hide(mount: wire.Mount) -> wire.Mount:
    options = mount.volume_options
    if options is None or options.driver_config is None or not options.driver_config.options:
        return mount
    driver = msgspec.structs.replace(
        options.driver_config, options=dict(shown_options(string_map(options.driver_config.options)))
    )
    return msgspec.structs.replace(
        mount, volume_options=msgspec.structs.replace(options, driver_config=driver)
    )


def string_map(values: wire.StringMap) -> dict[str, str]:
    return {key: value or "" for key, value in (values or {}).items()}


def decode_volumes_from(entries: Sequence[str] | None) -> tuple[VolumesFrom, ...]:
    found = []
    for index, entry in enumerate(entries or ()):
        container, _, mode = entry.partition(":")
        words = set(mode.split(",")) if mode else set()
        if not container or not words <= {"ro", "rw", "z", "Z", "nocopy"}:
            raise Invalid(
                f"HostConfig.VolumesFrom[{index}]: invalid volumes-from specification: '{entry}', e.g. web:ro"
            )
        found.append(VolumesFrom(container=container, readonly="ro" in words))
    return tuple(found)
