"""A create body → ContainerSpec: what the fields mean and which values make sense. Pure.

Every refusal names the JSON path, the rule and, where it helps, a value that works. Rules of
older API versions are kept where they change what a client gets (moby,
api/docs/CHANGELOG.md). Mounts and limits have modules of their own.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from cove.api.docker import wire
from cove.api.docker.endpoints import (
    decode_address,
    decode_endpoints,
    decode_exposed,
    decode_extra_hosts,
    decode_links,
    decode_network_mode,
    decode_ports,
    interface_sysctls,
)
from cove.api.docker.extension import decode_extension, decode_secret_data, with_probe
from cove.api.docker.fields import check_fields
from cove.api.docker.limits import (
    decode_device_requests,
    decode_device_rules,
    decode_devices,
    decode_resources,
    decode_restart,
    decode_ulimits,
)
from cove.api.docker.mounts import decode_mounts, decode_volumes_from, hide_mount_secrets, string_map
from cove.model.container import ContainerSpec, HealthCheck, LogConfig
from cove.model.errors import Invalid
from cove.model.lines import is_word
from cove.storage.volume_options import parse_size

_HOSTNAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,62}[a-zA-Z0-9])?")
_RUNTIMES = ("", "cove", "runc", "io.containerd.runc.v2")
_MILLISECOND = 1_000_000
_VOLUME_DRIVER_WARNING = (
    "WARNING: the container-wide volume-driver configuration is ignored for volumes specified via 'mount'. "
    "Use '--mount type=volume,volume-driver=...' instead"
)
WORD_LIMIT = 128 << 10  # MAX_ARG_STRLEN of execve(2): one argument or variable


# as Go's strconv.ParseBool has them
_TRUE_WORDS = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE_WORDS = frozenset(("0", "f", "F", "false", "FALSE", "False"))

Strings = Sequence[str] | None


class Decoded(msgspec.Struct, frozen=True):
    spec: ContainerSpec
    warnings: list[str]
    secret_data: dict[str, bytes] = {}  # by target


def decode_create(
    body: wire.CreateBody, *, name: str, platform: str, version: int, cpus: int, unknown: Sequence[str] = ()
) -> Decoded:
    """The spec of a container, and warnings for the caller. Raises `Invalid`, `NotImplementedHere`.

    `unknown` are the paths of the body's fields that the API doesn't have.
    """
    host = body.host_config or wire.HostConfig()
    if not body.image:
        raise Invalid("Image: an image is needed, e.g. debian:latest")
    warnings = check_fields(body, unknown)
    if version >= 1041:
        parse_platform(platform)
    _refuse_unsupported(host)
    network_mode = decode_network_mode(host)
    endpoints, warning = decode_endpoints(body, network_mode, version)
    if warning:
        warnings.append(warning)
    security = _security(host.security_opt)
    sysctls = _sysctls(host.sysctls)
    if network_mode not in ("host", "none") and not network_mode.startswith("container:"):
        sysctls, endpoints, warning = interface_sysctls(sysctls, endpoints, network_mode, version)
        if warning:
            warnings.append(warning)
    labels = string_map(body.labels)
    extension = decode_extension(string_map(body.cove), labels)
    binds_tty = bool(body.tty)
    console = (host.console_size if version >= 1042 else None) or (0, 0)
    mode = {
        "pid_mode": _mode(host.pid_mode, "PidMode", ("host",), container=True),
        "ipc_mode": _mode(host.ipc_mode, "IpcMode", ("none", "private", "shareable", "host"), container=True),
        "uts_mode": _mode(host.uts_mode, "UTSMode", ("host",)),
        "userns_mode": _mode(host.userns_mode, "UsernsMode", ("host",)),
        "cgroupns_mode": _mode(host.cgroupns_mode, "CgroupnsMode", ("private", "host")),
    }
    if version < 1040 and not mode["ipc_mode"]:
        mode["ipc_mode"] = "shareable"  # the default of older daemons
    if version < 1041 and not mode["cgroupns_mode"]:
        mode["cgroupns_mode"] = "host"
    oom_score = host.oom_score_adj or 0
    if not -1000 <= oom_score <= 1000:
        raise Invalid(
            f"HostConfig.OomScoreAdj: Invalid value {oom_score}, range for oom score adj is [-1000, 1000]"
        )
    if version >= 1048 and host.volume_driver and _mounts_default_volumes(host):
        warnings.append(_VOLUME_DRIVER_WARNING)
    empty = [key for key, bindings in (host.port_bindings or {}).items() if not bindings]
    if empty and version >= 1052:
        warnings.append(
            f"Following container port(s) have an empty list of port-bindings: {', '.join(empty)}. "
            "Such bindings will be discarded in a future version."
        )
    if (host.shm_size or 0) < 0:
        raise Invalid("HostConfig.ShmSize: SHM size can not be less than 0")
    if version >= 1052 and host.kernel_memory_tcp:
        host = msgspec.structs.replace(host, kernel_memory_tcp=None)
        warnings.append("HostConfig.KernelMemoryTCP has no effect: it was removed with API v1.52")
    resources = decode_resources(host, "HostConfig.", cpus=cpus)
    if resources.memory_bytes and not resources.memory_swap_bytes:  # as much swap as memory, Docker's rule
        resources = msgspec.structs.replace(resources, memory_swap_bytes=2 * resources.memory_bytes)
    masked, readonly_paths = host.masked_paths, host.readonly_paths
    if security.paths_unconfined:
        masked, readonly_paths = [], []
    spec = ContainerSpec(
        image=body.image,
        name=name.removeprefix("/"),
        hostname=_hostname(body.hostname),
        domainname=_domainname(body.domainname),
        entrypoint=words(body.entrypoint, "Entrypoint"),
        command=words(body.cmd, "Cmd"),
        env=decode_env(body.env),
        working_dir=_without_nul(body.working_dir, "WorkingDir"),
        user=_without_nul(body.user, "User"),
        labels=labels,
        annotations=string_map(host.annotations) if version >= 1043 else {},
        tty=binds_tty,
        console_rows=console[0],
        console_cols=console[1],
        open_stdin=bool(body.open_stdin),
        stdin_once=bool(body.stdin_once),
        attach_stdout=bool(body.attach_stdout),
        attach_stderr=bool(body.attach_stderr),
        exposed_ports=decode_exposed(body.exposed_ports or ()),
        stop_signal=body.stop_signal or "",
        stop_timeout_s=_stop_timeout(body.stop_timeout),
        healthcheck=with_probe(decode_health(body.healthcheck, version), extension.probe),
        mounts=decode_mounts(body, host, version),
        volumes_from=decode_volumes_from(host.volumes_from),
        ports=decode_ports(host),
        publish_all=bool(host.publish_all_ports),
        network_mode=network_mode,
        network_disabled=bool(body.network_disabled),
        endpoints=endpoints,
        links=decode_links(host.links, "HostConfig.Links"),
        extra_hosts=decode_extra_hosts(host.extra_hosts),
        dns=tuple(decode_address(a, f"HostConfig.Dns[{i}]") for i, a in enumerate(host.dns or ())),
        dns_search=_resolver_words(host.dns_search, "HostConfig.DnsSearch", "example.org"),
        dns_options=_resolver_words(host.dns_options, "HostConfig.DnsOptions", "ndots:2"),
        restart=decode_restart(host.restart_policy, "HostConfig."),
        auto_remove=bool(host.auto_remove) and version >= 1025,
        log=_log(host.log_config),
        privileged=bool(host.privileged),
        readonly_rootfs=bool(host.readonly_rootfs),
        cap_add=tuple(host.cap_add or ()),
        cap_drop=tuple(host.cap_drop or ()),
        seccomp=security.seccomp,
        apparmor=security.apparmor,
        no_new_privileges=security.no_new_privileges,
        writable_cgroups=security.writable_cgroups,
        masked_paths=None if masked is None else _absolute(masked, "HostConfig.MaskedPaths"),
        readonly_paths=None
        if readonly_paths is None
        else _absolute(readonly_paths, "HostConfig.ReadonlyPaths"),
        init=host.init,
        devices=decode_devices(host),
        device_requests=decode_device_requests(host.device_requests, version),
        device_cgroup_rules=decode_device_rules(host.device_cgroup_rules),
        resources=resources,
        ulimits=decode_ulimits(host.ulimits),
        oom_score_adj=oom_score,
        shm_size_bytes=host.shm_size or 0,
        sysctls=sysctls,
        group_add=tuple(
            _without_nul(group, f"HostConfig.GroupAdd[{i}]") for i, group in enumerate(host.group_add or ())
        ),
        cgroup_parent=_without_nul(host.cgroup_parent, "HostConfig.CgroupParent"),
        storage_size_bytes=_storage_size(host.storage_opt),
        extension=extension,
        request=_request(body, host),
        **mode,
    )
    return Decoded(spec, warnings, decode_secret_data(extension, string_map(body.cove_secret_data)))


def _request(body: wire.CreateBody, host: wire.HostConfig) -> msgspec.Raw:
    """What inspect shows again of the request: known fields only, nulls left out."""
    config = msgspec.structs.replace(
        body, host_config=None, networking_config=None, cove=None, cove_secret_data=None
    )
    return msgspec.Raw(
        msgspec.json.encode(
            {
                "Config": config,
                "HostConfig": hide_mount_secrets(host),
                "NetworkingConfig": body.networking_config,
            }
        )
    )


_MACHINES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "armhf": "arm",
    "armel": "arm",
}


def parse_platform(text: str) -> tuple[str, str]:
    """Architecture and variant of `linux[/ARCHITECTURE[/VARIANT]]` or of an architecture alone; "" for any.

    Raises Invalid (github.com/containerd/platforms, Parse).
    """
    if not text:
        return "", ""
    parts = text.lower().split("/")
    if len(parts) == 1 and parts[0] not in ("linux", "unknown", "windows", "darwin", "freebsd"):
        parts = ["linux", *parts]
    if parts[0] not in ("linux", "unknown") or len(parts) > 3 or not all(parts):
        raise Invalid(f"platform {text[:80]!r}: only linux containers run here, e.g. linux/amd64")
    machine = parts[1] if len(parts) > 1 else ""
    return _MACHINES.get(machine, machine), parts[2] if len(parts) > 2 else ""


def _mounts_default_volumes(host: wire.HostConfig) -> bool:
    """Whether a mount of a volume leaves its driver open."""
    for mount in host.mounts or ():
        options = mount.volume_options or wire.VolumeOptions()
        if mount.type == "volume" and not (options.driver_config and options.driver_config.name):
            return True
    return False


def _storage_size(options: wire.StringMap) -> int:
    """`--storage-opt size=10g` in bytes; 0 without it."""
    for key in options or {}:
        if key != "size":
            raise Invalid(f"HostConfig.StorageOpt: unknown option {key!r}, expected size, e.g. size=10g")
    size = (options or {}).get("size")
    return parse_size(size, "HostConfig.StorageOpt") if size else 0


def _refuse_unsupported(host: wire.HostConfig) -> None:
    if (host.runtime or "") not in _RUNTIMES:
        raise Invalid(
            f"HostConfig.Runtime: unknown or invalid runtime name: {host.runtime}; leave it out, or use runc"
        )
    if (host.isolation or "default") != "default":
        raise Invalid(f"HostConfig.Isolation: invalid isolation '{host.isolation}' on linux")
    size = host.console_size
    if size and (len(size) != 2 or not all(0 <= n <= 65535 for n in size)):
        raise Invalid("HostConfig.ConsoleSize: expected [height, width], each from 0 to 65535")


def words(value: wire.Words, field: str) -> tuple[str, ...] | None:
    """A command: null keeps the image's, one string is one word."""
    if value is None:
        return None
    found = (value,) if isinstance(value, str) else tuple(value)
    for index, word in enumerate(found):
        if "\0" in word or len(word) >= WORD_LIMIT:
            raise Invalid(
                f"{field}[{index}]: an argument can't hold a NUL byte, or be {WORD_LIMIT} bytes long (execve(2))"
            )
    return found


def decode_env(env: Strings) -> tuple[str, ...]:
    """`NAME=value`, or a bare `NAME` that takes one of the image's away."""
    for index, entry in enumerate(env or ()):
        if "\0" in entry or not entry or entry.startswith("=") or len(entry) >= WORD_LIMIT:
            raise Invalid(f"Env[{index}]: invalid environment variable: expected NAME=value")
    return tuple(env or ())


def _without_nul(text: str | None, field: str) -> str:
    if text and "\0" in text:
        raise Invalid(f"{field}: a NUL byte is not allowed")
    return text or ""


def _hostname(name: str | None) -> str:
    if name and not _HOSTNAME.fullmatch(name):
        raise Invalid(f"Hostname: invalid hostname format: {name}; up to 64 letters, digits, '-' and '.'")
    return name or ""


def _domainname(name: str | None) -> str:
    if name and not (is_word(name) and len(name) <= 64):
        raise Invalid(
            f"Domainname: invalid domain name {name[:80]!r}; up to 64 printable characters, no spaces"
        )
    return name or ""


def _resolver_words(words: Strings, field: str, example: str) -> tuple[str, ...]:
    for index, word in enumerate(words or ()):
        if not is_word(word):
            raise Invalid(
                f"{field}[{index}]: {word[:80]!r} is not one word of printable characters, e.g. {example}"
            )
    return tuple(words or ())


def _mode(value: str | None, field: str, allowed: Sequence[str], *, container: bool = False) -> str:
    mode = value or ""
    if not mode or mode in allowed:
        return mode
    if container and mode.startswith("container:") and len(mode) > len("container:"):
        return mode
    choices = [*allowed, "container:NAME"] if container else list(allowed)
    raise Invalid(f"HostConfig.{field}: invalid mode '{mode}', expected one of {', '.join(choices)}")


def _stop_timeout(value: int | None) -> int | None:
    if value is not None and not -1 <= value <= 1 << 31:
        raise Invalid(f"StopTimeout: expected seconds, or -1 to wait for ever, got {value}")
    return value


def decode_health(health: wire.Health | None, version: int) -> HealthCheck | None:
    if health is None:
        return None
    test = words(health.test, "Healthcheck.Test") or ()
    if test and test[0] not in ("", "NONE", "CMD", "CMD-SHELL"):
        raise Invalid(
            f"Healthcheck.Test[0]: Unknown healthcheck type '{test[0]}', expected NONE, CMD or CMD-SHELL"
        )
    times = {
        "Interval": health.interval or 0,
        "Timeout": health.timeout or 0,
        "StartPeriod": health.start_period or 0,
        "StartInterval": (health.start_interval or 0) if version >= 1044 else 0,
    }
    for field, value in times.items():
        if value and value < _MILLISECOND:
            raise Invalid(
                f"Healthcheck.{field}: {field} in Healthcheck cannot be less than 1ms ({_MILLISECOND})"
            )
    if (health.retries or 0) < 0:
        raise Invalid("Healthcheck.Retries: Retries in Healthcheck cannot be negative")
    return HealthCheck(
        test=test,
        interval_ns=times["Interval"],
        timeout_ns=times["Timeout"],
        start_period_ns=times["StartPeriod"],
        start_interval_ns=times["StartInterval"],
        retries=health.retries or 0,
    )


def _log(log: wire.LogConfig | None) -> LogConfig:
    if log is None:
        return LogConfig()
    return LogConfig(driver=log.type or "", options=string_map(log.config))


def _sysctls(values: wire.StringMap) -> dict[str, str]:
    for key, value in (values or {}).items():
        if not re.fullmatch(r"[a-z0-9_]+([./][a-zA-Z0-9_*:@-]+)+", key) or "\0" in (value or ""):
            raise Invalid(f"HostConfig.Sysctls: invalid sysctl '{key}', e.g. net.ipv4.ip_forward")
    return string_map(values)


def _absolute(paths: Sequence[str], field: str) -> tuple[str, ...]:
    for index, path in enumerate(paths):
        if not path.startswith("/") or "\0" in path:
            raise Invalid(f"{field}[{index}]: expected an absolute path, got '{path}'")
    return tuple(posixpath.normpath(path) for path in paths)


class _Security(msgspec.Struct):
    seccomp: str = ""
    apparmor: str = ""
    no_new_privileges: bool | None = None
    paths_unconfined: bool = False
    writable_cgroups: bool | None = None


def _security(options: Strings) -> _Security:
    found = _Security()
    for index, option in enumerate(options or ()):
        path = f"HostConfig.SecurityOpt[{index}]"
        key, separator, value = option.partition("=")
        if not separator:
            key, separator, value = option.partition(":")  # the notation of old clients
        if key == "no-new-privileges":
            if value not in ("", *_TRUE_WORDS, *_FALSE_WORDS):
                raise Invalid(f"{path}: invalid --security-opt: no-new-privileges is true or false")
            found.no_new_privileges = value not in _FALSE_WORDS
        elif key == "writable-cgroups":
            found.writable_cgroups = value not in _FALSE_WORDS
            if value not in ("", *_TRUE_WORDS, *_FALSE_WORDS):
                raise Invalid(f"{path}: invalid --security-opt: writable-cgroups is true or false")
        elif key == "seccomp" and value:
            found.seccomp = _seccomp(value, path)
        elif key == "apparmor" and value:
            found.apparmor = value
        elif key == "systempaths" and value == "unconfined":
            found.paths_unconfined = True
        elif key == "label" and value:
            continue  # for hosts with SELinux; without it, as here, the reference daemon passes over it too
        else:
            raise Invalid(
                f'{path}: invalid --security-opt: "{key}", expected no-new-privileges, seccomp, apparmor, '
                "systempaths, writable-cgroups or label"
            )
    return found


def _seccomp(value: str, path: str) -> str:
    if value in ("unconfined", "builtin"):
        return value
    try:
        profile: Any = msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        profile = None
    if not isinstance(profile, dict):
        raise Invalid(
            f"{path}: seccomp: expected unconfined, builtin, or a profile's JSON (not its file name)"
        )
    return value
