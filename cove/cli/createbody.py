"""From the flags of run and create to the body of POST /containers/create.

Decides only; reads the files that flags name (env files, a seccomp profile). Conflicts between
flags are refused here, where the sentence can name the flags; what depends on the host is the
daemon's to judge.
"""

from __future__ import annotations

import os

from cove.cli import values
from cove.cli.fail import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from cove.cli.options import Options

_STREAMS = ("stdin", "stdout", "stderr")

_SIZES = {
    "memory": "Memory",
    "memory-reservation": "MemoryReservation",
    "kernel-memory": "KernelMemory",
    "shm-size": "ShmSize",
}
_NUMBERS = {
    "memory-swappiness": "MemorySwappiness",
    "oom-score-adj": "OomScoreAdj",
    "cpu-shares": "CpuShares",
    "cpu-period": "CpuPeriod",
    "cpu-quota": "CpuQuota",
    "cpu-rt-period": "CpuRealtimePeriod",
    "cpu-rt-runtime": "CpuRealtimeRuntime",
    "pids-limit": "PidsLimit",
    "blkio-weight": "BlkioWeight",
}
_BOOLEANS = {
    "rm": "AutoRemove",
    "privileged": "Privileged",
    "publish-all": "PublishAllPorts",
    "read-only": "ReadonlyRootfs",
    "oom-kill-disable": "OomKillDisable",
    "init": "Init",
}
_TEXTS = {
    "cgroup-parent": "CgroupParent",
    "pid": "PidMode",
    "ipc": "IpcMode",
    "uts": "UTSMode",
    "userns": "UsernsMode",
    "cgroupns": "CgroupnsMode",
    "runtime": "Runtime",
    "isolation": "Isolation",
    "volume-driver": "VolumeDriver",
    "cidfile": "ContainerIDFile",
}
_LISTS = {
    "cap-add": "CapAdd",
    "cap-drop": "CapDrop",
    "group-add": "GroupAdd",
    "dns": "Dns",
    "dns-search": "DnsSearch",
    "volumes-from": "VolumesFrom",
    "link": "Links",
    "device-cgroup-rule": "DeviceCgroupRules",
}
_PARSED: dict[str, tuple[str, Callable[[str], Any]]] = {
    "add-host": ("ExtraHosts", values.parse_host),
    "ulimit": ("Ulimits", values.parse_ulimit),
    "mount": ("Mounts", values.parse_mount),
    "blkio-weight-device": ("BlkioWeightDevice", values.parse_weight_device),
}
_THROTTLES = {
    "device-read-bps": ("BlkioDeviceReadBps", True),
    "device-write-bps": ("BlkioDeviceWriteBps", True),
    "device-read-iops": ("BlkioDeviceReadIOps", False),
    "device-write-iops": ("BlkioDeviceWriteIOps", False),
}
_PAIRS = {
    "sysctl": ("Sysctls", "net.core.somaxconn=1024"),
    "storage-opt": ("StorageOpt", "size=10g"),
    "annotation": ("Annotations", "org.example.team=web"),
}


def attached_streams(options: Options, *, detach: bool) -> tuple[bool, bool, bool]:
    """Whether stdin, stdout and stderr are attached, by -a, -i and -d."""
    asked = [stream.lower() for stream in options.all("attach")]
    for stream in asked:
        if stream not in _STREAMS:
            raise values.wrong("attach", stream, "stdin, stdout or stderr")
    if detach:
        if asked:
            raise CliError("--attach and --detach: a detached container has nothing attached; leave one out")
        return False, False, False
    if asked:
        return "stdin" in asked, "stdout" in asked, "stderr" in asked
    return options.on("interactive"), True, True


def build_body(options: Options, environment: Mapping[str, str], *, detach: bool) -> dict[str, Any]:
    """The create body of `[flags] IMAGE [COMMAND] [ARG…]`; what wasn't asked for isn't in it."""
    _refuse_conflicts(options)
    image, *command = options.args
    if not image:
        raise CliError("IMAGE: expected an image's name or id, e.g. debian")
    stdin, stdout, stderr = attached_streams(options, detach=detach)
    body: dict[str, Any] = {
        "Image": image,
        "AttachStdin": stdin,
        "AttachStdout": stdout,
        "AttachStderr": stderr,
        "Tty": options.on("tty"),
        "OpenStdin": options.on("interactive"),
        "StdinOnce": options.on("interactive") and stdin,
        "Env": values.collect_env(options.all("env"), options.all("env-file"), environment),
        "Labels": values.collect_labels(options.all("label"), options.all("label-file")),
    }
    if command:
        body["Cmd"] = command
    if "entrypoint" in options:
        # docker's way to say "none": one empty word
        body["Entrypoint"] = [options.text("entrypoint")]
    for flag, name in (
        ("hostname", "Hostname"),
        ("domainname", "Domainname"),
        ("user", "User"),
        ("workdir", "WorkingDir"),
        ("stop-signal", "StopSignal"),
    ):
        if options.text(flag):
            body[name] = options.text(flag)
    if "stop-timeout" in options:
        body["StopTimeout"] = options.number("stop-timeout")
    health = _health(options)
    if health:
        body["Healthcheck"] = health
    extension = build_extension(options)
    if "secret" in options:
        extension["secrets"], data = _secrets(options, environment)
        if data:
            body["CoveSecretData"] = data
    if extension:
        body["Cove"] = extension
    host = _host_config(options)
    _add_ports(options, body, host)
    _add_volumes(options, body, host)
    _add_networks(options, body, host)
    body["HostConfig"] = host
    return body


def _refuse_conflicts(options: Options) -> None:
    if options.on("rm") and options.text("restart", "no") != "no":
        raise CliError(
            "--rm and --restart: a container that is removed when it ends can't restart; leave one out"
        )
    if options.text("pull", "missing") not in ("always", "missing", "never"):
        raise CliError(f"--pull {options.text('pull')}: expected always, missing or never")
    if options.on("no-healthcheck") and any(name.startswith("health-") for name in options.given):
        raise CliError("--no-healthcheck and --health-*: leave one out")
    swappiness = options.number("memory-swappiness")
    if swappiness is not None and not -1 <= swappiness <= 100:
        raise values.wrong("memory-swappiness", str(swappiness), "a number from 0 to 100, e.g. 60")


def build_limits(options: Options) -> dict[str, Any]:
    """The limits that run and update share, as the API's Resources."""
    limits: dict[str, Any] = {}
    for flag, name in _SIZES.items():
        if flag in options:
            limits[name] = values.parse_size(flag, options.text(flag))
    if "memory-swap" in options:
        text = options.text("memory-swap")
        limits["MemorySwap"] = -1 if text == "-1" else values.parse_size("memory-swap", text)
    for flag, name in _NUMBERS.items():
        if flag in options:
            limits[name] = options.number(flag)
    if limits.get("MemorySwappiness") == -1:  # docker's spelling of "the host's"
        del limits["MemorySwappiness"]
    for flag in ("cpuset-cpus", "cpuset-mems"):
        if options.text(flag):
            limits["CpusetCpus" if flag == "cpuset-cpus" else "CpusetMems"] = options.text(flag)
    if "cpus" in options:
        limits["NanoCpus"] = values.parse_cpus("cpus", options.text("cpus"))
    return limits


def _host_config(options: Options) -> dict[str, Any]:
    host = build_limits(options)
    for flag, name in _BOOLEANS.items():
        if flag in options:
            host[name] = options.on(flag)
    for flag, name in _TEXTS.items():
        if options.text(flag):
            host[name] = options.text(flag)
    for flag, name in _LISTS.items():
        if flag in options:
            host[name] = options.all(flag)
    for flag, (name, parse) in _PARSED.items():
        if flag in options:
            host[name] = [parse(text) for text in options.all(flag)]
    named = [text for text in options.all("device") if values.is_cdi_device(text)]
    files = [values.parse_device(text) for text in options.all("device") if text not in named]
    requests = [{"Driver": "cdi", "DeviceIDs": named}] if named else []
    if "gpus" in options:
        requests.append(values.parse_gpus(options.text("gpus")))
    if files:
        host["Devices"] = files
    if requests:
        host["DeviceRequests"] = requests
    for flag, (name, is_size) in _THROTTLES.items():
        if flag in options:
            host[name] = [values.parse_throttle(flag, text, is_size=is_size) for text in options.all(flag)]
    for flag, (name, example) in _PAIRS.items():
        if flag in options:
            host[name] = dict(values.split_pair(flag, text, example) for text in options.all(flag))
    dns_options = options.all("dns-option") + options.all("dns-opt")
    if dns_options:
        host["DnsOptions"] = dns_options
    if "restart" in options:
        host["RestartPolicy"] = values.parse_restart(options.text("restart"))
    if "log-driver" in options or "log-opt" in options:
        pairs = [values.split_pair("log-opt", text, "max-size=10m") for text in options.all("log-opt")]
        host["LogConfig"] = {"Type": options.text("log-driver"), "Config": dict(pairs)}
    _add_security(options, host)
    return host


def _add_security(options: Options, host: dict[str, Any]) -> None:
    found = []
    for option in options.all("security-opt"):
        name, sign, value = option.partition("=") if "=" in option else option.partition(":")
        if name == "systempaths" and value == "unconfined":
            host["MaskedPaths"], host["ReadonlyPaths"] = [], []
        elif name == "seccomp" and sign and value not in ("unconfined", "builtin"):
            try:
                with open(value, encoding="utf-8") as profile:
                    found.append(f"seccomp={profile.read()}")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it isn't UTF-8 text"
                raise CliError(
                    f"--security-opt {option}: {value}: {reason}; name a seccomp profile's JSON file"
                ) from None
        elif sign or name == "no-new-privileges":
            found.append(option)
        else:
            raise values.wrong(
                "security-opt", option, "NAME=VALUE or no-new-privileges, e.g. seccomp=unconfined"
            )
    if found:
        host["SecurityOpt"] = found


def _health(options: Options) -> dict[str, Any]:
    if options.on("no-healthcheck"):
        return {"Test": ["NONE"]}
    health: dict[str, Any] = {}
    if options.text("health-cmd"):
        health["Test"] = ["CMD-SHELL", options.text("health-cmd")]
    for flag, name in (
        ("health-interval", "Interval"),
        ("health-timeout", "Timeout"),
        ("health-start-period", "StartPeriod"),
        ("health-start-interval", "StartInterval"),
    ):
        if flag in options:
            health[name] = values.parse_duration_ns(flag, options.text(flag))
    if "health-retries" in options:
        health["Retries"] = options.number("health-retries")
    return health


_EXTENSION = {
    "health-probe": "health.probe",
    "health-probe-status": "health.probe.status",
    "health-on-failure": "health.on-failure",
    "depends-timeout": "depends-timeout",
    "pod": "pod",
}


def build_changes(options: Options) -> dict[str, Any]:
    """What `update` changes beyond limits, as the body of /cove/v1/update."""
    changes: dict[str, Any] = {}
    for text in options.all("publish-add"):
        published = values.parse_publish_long(text) if "target=" in text else values.parse_publish(text)
        for port, ip, host_port in published:
            bindings = changes.setdefault("PublishAdd", {}).setdefault(port, [])
            bindings.append({"HostIp": ip, "HostPort": host_port})
    if "publish-rm" in options:
        changes["PublishRemove"] = options.all("publish-rm")
    if "mount-add" in options:
        changes["MountsAdd"] = [values.parse_mount(text) for text in options.all("mount-add")]
    if "mount-rm" in options:
        changes["MountsRemove"] = options.all("mount-rm")
    if "label-add" in options:
        changes["LabelsAdd"] = values.collect_labels(options.all("label-add"), ())
    if "label-rm" in options:
        changes["LabelsRemove"] = options.all("label-rm")
    health, extension = _health(options), build_extension(options)
    if health:
        changes["Healthcheck"] = health
    if extension:
        changes["Cove"] = extension
    return changes


def build_extension(options: Options) -> dict[str, str]:
    """Cove's own settings, by the keys of docs/beyond-docker.md; the daemon judges the values."""
    found = {key: options.text(flag) for flag, key in _EXTENSION.items() if flag in options}
    if "health-probe-header" in options:
        found["health.probe.headers"] = "\n".join(options.all("health-probe-header"))
    if "depends-on" in options:
        found["depends-on"] = ",".join(options.all("depends-on"))
    return found


def _secrets(options: Options, environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The value of `secrets`, and the contents that come along, by target."""
    from cove.cli.secrets import parse_secret

    parsed = [parse_secret(text, environment) for text in options.all("secret")]
    data = {target: content for _, target, content in parsed if content is not None}
    return ",".join(text for text, _, _ in parsed), data


def _add_ports(options: Options, body: dict[str, Any], host: dict[str, Any]) -> None:
    exposed: dict[str, dict[str, str]] = {}
    bindings: dict[str, list[dict[str, str]]] = {}
    for text in options.all("publish"):
        published = values.parse_publish_long(text) if "target=" in text else values.parse_publish(text)
        for port, ip, host_port in published:
            exposed[port] = {}
            bindings.setdefault(port, []).append({"HostIp": ip, "HostPort": host_port})
    for text in options.all("expose"):
        for port in values.parse_expose(text):
            exposed[port] = {}
    if exposed:
        body["ExposedPorts"] = exposed
    if bindings:
        host["PortBindings"] = bindings


def _add_volumes(options: Options, body: dict[str, Any], host: dict[str, Any]) -> None:
    binds: list[str] = []
    anonymous: dict[str, dict[str, str]] = {}
    for text in options.all("volume"):
        volume = values.parse_volume(text)
        if ":" in volume:
            binds.append(volume)
        else:
            anonymous[volume] = {}
    if binds:
        host["Binds"] = binds
    if anonymous:
        body["Volumes"] = anonymous
    tmpfs = {}
    for text in options.all("tmpfs"):
        target, _, settings = text.partition(":")
        if not target.startswith("/"):
            raise values.wrong("tmpfs", text, "an absolute path, e.g. /run:size=64m")
        tmpfs[target] = settings
    if tmpfs:
        host["Tmpfs"] = tmpfs


def _add_networks(options: Options, body: dict[str, Any], host: dict[str, Any]) -> None:
    chosen = [values.parse_network(text) for text in options.all("network") + options.all("net")]
    aliases = options.all("network-alias") + options.all("net-alias")
    first: dict[str, Any] = chosen[0][1] if chosen else {}
    name = chosen[0][0] if chosen else "default"
    if aliases:
        first.setdefault("Aliases", []).extend(aliases)
    for flag, key in (("ip", "IPv4Address"), ("ip6", "IPv6Address")):
        if options.text(flag):
            first.setdefault("IPAMConfig", {})[key] = options.text(flag)
    if options.all("link-local-ip"):
        first.setdefault("IPAMConfig", {})["LinkLocalIPs"] = options.all("link-local-ip")
    if options.text("mac-address"):
        first["MacAddress"] = options.text("mac-address")
    if len({network for network, _ in chosen}) != len(chosen):
        raise CliError(
            f"--network {chosen[-1][0]}: a network is named once for each container; leave one out"
        )
    host["NetworkMode"] = name
    if first or len(chosen) > 1:
        endpoints = {name: first}
        endpoints.update(dict(chosen[1:]))
        body["NetworkingConfig"] = {"EndpointsConfig": endpoints}


def write_cidfile(path: str) -> int:
    """Create the file of --cidfile before anything else and return its descriptor; it must be new."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        hint = (
            "remove it, or name another"
            if isinstance(error, FileExistsError)
            else "name a file in a directory"
        )
        raise CliError(f"--cidfile {path}: {error.strerror}; {hint}") from None
