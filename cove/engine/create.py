"""From what was asked to what will be: a ContainerSpec and its image become a Container.

Pure: reads no file, clock or store. The merging rules are Docker's (Docker Engine API, "Create a
container"; Dockerfile reference, "ENTRYPOINT and CMD"). Volumes keep the names they were given;
anonymous ones are named by the ids handed in.
"""

from __future__ import annotations

import posixpath
import signal
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import msgspec

from cove.model.container import (
    Container,
    ContainerSpec,
    HealthCheck,
    LogConfig,
    Mount,
    MountPoint,
    Resources,
    ThrottleDevice,
    Tmpfs,
    Volume,
)
from cove.model.errors import Invalid
from cove.model.objects import Image, ImageConfig


class PlannedMount(NamedTuple):
    """A mount of the caller's or the image's, its target clean and its volume named."""

    mount: Mount
    anonymous: bool


INITS = frozenset(
    "systemd init tini tini-static docker-init catatonit dumb-init s6-svscan s6-overlay-suexec runit runit-init "
    "runsvdir runsvdir-start my_init pid1 openrc-init supervisord".split()
)


def is_init(args: Sequence[str]) -> bool:
    """Whether a command reaps orphans itself, by its program's name."""
    return bool(args) and posixpath.basename(args[0]) in INITS


def merge_env(image_env: Iterable[str], asked: Iterable[str]) -> tuple[str, ...]:
    """The caller's entries, then the image's that it didn't name. A bare `KEY` stays in the record and
    removes the variable when the container starts."""
    merged: dict[str, str] = {}
    for entry in asked:
        key = entry.partition("=")[0]
        if not key:
            raise Invalid(f"invalid environment variable: {entry!r}: expected NAME=value")
        if "\0" in entry:
            raise Invalid(f"invalid environment variable: {key!r}: a NUL byte is not allowed")
        merged.pop(key, None)
        merged[key] = entry
    for entry in image_env:
        merged.setdefault(entry.partition("=")[0], entry)
    return tuple(merged.values())


def merge_args(spec: ContainerSpec, config: ImageConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Entrypoint and command. An entrypoint of the caller's drops the image's command."""
    entrypoint, command = spec.entrypoint, spec.command or ()
    if not entrypoint:
        if not command:
            command = config.command
        if entrypoint is None:
            entrypoint = config.entrypoint
    if entrypoint == ("",):
        entrypoint = ()
    if not entrypoint and not command:
        raise Invalid("no command specified")
    for arg in (*entrypoint, *command):
        if "\0" in arg:
            raise Invalid("invalid command: a NUL byte is not allowed in an argument")
    if not (*entrypoint, *command)[0]:
        raise Invalid("invalid command: the program's name is empty, e.g. use /bin/sh")
    return entrypoint, command


def merge_health(asked: HealthCheck | None, image: HealthCheck | None) -> HealthCheck | None:
    """The caller's health check with the image's for what it leaves out."""
    if asked is None or image is None:
        return asked if asked is not None else image
    return HealthCheck(
        test=() if asked.probe is not None else asked.test or image.test,
        probe=asked.probe,
        interval_ns=asked.interval_ns or image.interval_ns,
        timeout_ns=asked.timeout_ns or image.timeout_ns,
        start_period_ns=asked.start_period_ns or image.start_period_ns,
        start_interval_ns=asked.start_interval_ns or image.start_interval_ns,
        retries=asked.retries or image.retries,
    )


def parse_signal(text: str) -> int:
    """A signal by number, `TERM` or `SIGTERM`, `RTMIN+1`; Invalid otherwise (signal(7))."""
    name = text.upper().removeprefix("SIG")
    if name.isdecimal() and len(name) < 4:
        number = int(name)
        if 0 < number < signal.NSIG:
            return number
        raise Invalid(f"Invalid signal: {text}: expected 1 to {signal.NSIG - 1} or a name, e.g. SIGTERM")
    base, plus, offset = name.partition("+")
    if base == "RTMIN" and plus and offset.isdecimal() and int(offset) <= 30:
        return 34 + int(offset)
    base, minus, offset = name.partition("-")
    if base == "RTMAX" and minus and offset.isdecimal() and int(offset) <= 30:
        return 64 - int(offset)
    known = {"RTMIN": 34, "RTMAX": 64, "CLD": 17, "POLL": 29, "IOT": 6, "STKFLT": 16}
    if name in known:
        return known[name]
    try:
        return int(signal.Signals["SIG" + name])
    except KeyError:
        raise Invalid(f"Invalid signal: {text}: expected a number or a name, e.g. SIGTERM") from None


DEVICE_RATES = ("read_bps", "write_bps", "read_iops", "write_iops")


def merge_resources(current: Resources, given: Resources, cleared: Collection[str] = ()) -> Resources:
    """The limits after an update: what is given replaces, a field at its default leaves what was, unless it is
    among the `cleared`."""
    empty = Resources()
    changes = {
        name: getattr(given, name)
        for name in Resources.__struct_fields__
        if getattr(given, name) != getattr(empty, name) or name in cleared
    }
    return msgspec.structs.replace(current, **changes)


def with_lifted_rates(before: Resources, after: Resources) -> Resources:
    """`after`, with a rate of 0, which lifts a limit, for the devices that only `before` limits."""
    changes = {}
    for name in DEVICE_RATES:
        kept = {device.path for device in getattr(after, name)}
        gone = [device.path for device in getattr(before, name) if device.path not in kept]
        if gone:
            changes[name] = (*getattr(after, name), *(ThrottleDevice(path=path, rate=0) for path in gone))
    return msgspec.structs.replace(after, **changes) if changes else after


def check_target(target: str) -> str:
    """A mount's target, cleaned; Invalid unless it's absolute and not the root."""
    if not target.startswith("/"):
        raise Invalid(f"invalid mount path: '{target}' mount path must be absolute")
    clean = posixpath.normpath(target)
    if clean.startswith("//"):
        clean = clean[1:]
    if clean == "/":
        raise Invalid("invalid volume specification: destination can't be '/'")
    return clean


def plan_mounts(
    spec: ContainerSpec,
    config: ImageConfig,
    inherited: Sequence[MountPoint],
    new_volume_name: Callable[[], str],
    carried: Sequence[MountPoint] = (),
) -> list[PlannedMount | MountPoint]:
    """All mounts, each target once: the caller's win over --volumes-from, these over the image's volumes.

    Anonymous volumes get their names here. `carried` are mounts of the container whose place this one takes: they
    come before a new anonymous volume. Raises Invalid for a target that two of the caller's mounts share.
    """
    by_target: dict[str, PlannedMount | MountPoint] = {}
    kept = {point.target: point for point in carried}
    for mount in spec.mounts:
        target = check_target(mount.target)
        if target in by_target:
            raise Invalid(f"Duplicate mount point: {target}")
        cleaned: Mount = msgspec.structs.replace(mount, target=target)
        if target in kept and isinstance(mount, Volume) and not mount.name:
            by_target[target] = kept[target]
        else:
            by_target[target] = _planned(cleaned, new_volume_name)
    for target, point in kept.items():
        by_target.setdefault(target, point)
    for point in inherited:
        by_target.setdefault(point.target, point)
    for volume in config.volumes:
        target = check_target(volume)
        if target not in by_target:
            by_target[target] = _planned(Volume(name="", target=target), new_volume_name)
    return list(by_target.values())


def _planned(mount: Mount, new_volume_name: Callable[[], str]) -> PlannedMount:
    if isinstance(mount, Volume) and not mount.name:
        return PlannedMount(msgspec.structs.replace(mount, name=new_volume_name()), True)
    return PlannedMount(mount, False)


def anonymous_names(planned: Iterable[PlannedMount | MountPoint]) -> tuple[str, ...]:
    """The volumes that are to be made for this container alone."""
    return tuple(
        item.mount.name
        for item in planned
        if isinstance(item, PlannedMount) and item.anonymous and isinstance(item.mount, Volume)
    )


def volume_names(planned: Iterable[PlannedMount | MountPoint]) -> set[str]:
    """Every volume that is to be mounted."""
    names = set()
    for item in planned:
        shown = item if isinstance(item, MountPoint) else item.mount
        if isinstance(shown, MountPoint | Volume) and shown.name:
            names.add(shown.name)
    return names


def tmpfs_point(mount: Tmpfs) -> MountPoint:
    """The mount options of a tmpfs as mount(8) writes them."""
    options = list(mount.options)
    given = {option.partition("=")[0] for option in options}
    if mount.size_bytes and "size" not in given:
        options.append(f"size={mount.size_bytes}")
    if "mode" not in given:
        options.append(f"mode={mount.mode:o}")
    return MountPoint(kind="tmpfs", target=mount.target, options=tuple(options))


def plan_container(
    spec: ContainerSpec,
    image: Image,
    *,
    container_id: str,
    name: str,
    created_ns: int,
    mounts: tuple[MountPoint, ...],
    log: LogConfig,
    host_name: str,
) -> Container:
    """The record of a new container. Raises Invalid where spec and image together make no sense."""
    config = image.config
    entrypoint, command = merge_args(spec, config)
    stop_signal = spec.stop_signal or config.stop_signal or "SIGTERM"
    parse_signal(stop_signal)
    if spec.auto_remove and spec.restart.name != "no":
        raise Invalid("can't create 'AutoRemove' container with restart policy")
    if spec.restart.name != "on-failure" and spec.restart.maximum_retries:
        raise Invalid(
            "invalid restart policy: maximum retry count can only be used with 'on-failure', "
            f"not with '{spec.restart.name}'"
        )
    if spec.restart.maximum_retries < 0:
        raise Invalid("invalid restart policy: maximum retry count cannot be negative, e.g. on-failure:3")
    working_dir = spec.working_dir or config.working_dir or "/"
    if not working_dir.startswith("/"):
        raise Invalid(f"the working directory '{working_dir}' is invalid, it needs to be an absolute path")
    if spec.stop_timeout_s is not None and spec.stop_timeout_s < -1:
        raise Invalid("invalid stop timeout: expected seconds, or -1 to wait for ever")
    if spec.network_mode == "host" or spec.uts_mode == "host":
        hostname = host_name
    else:
        hostname = spec.hostname or container_id[:12]
    return Container(
        id=container_id,
        name=name,
        created_ns=created_ns,
        image_id=image.id,
        image_name=spec.image,
        spec=spec,
        args=entrypoint + command,
        entrypoint=entrypoint,
        command=command,
        env=merge_env(config.env, spec.env),
        working_dir=posixpath.normpath(working_dir),
        user=spec.user or config.user,
        hostname=hostname,
        labels=config.labels | spec.labels,
        exposed_ports=tuple(dict.fromkeys((*config.exposed_ports, *spec.exposed_ports))),
        stop_signal=stop_signal,
        mounts=mounts,
        log=log,
        healthcheck=merge_health(spec.healthcheck, config.healthcheck),
    )
