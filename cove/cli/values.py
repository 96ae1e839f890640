"""Parse the values of flags: sizes, durations, ports, mounts, devices. Pure, but for files that a flag names.

Every function takes the flag's name for its error, which names the input, the rule and a value that works.
"""

from __future__ import annotations

import _socket
import os

from cove.cli.fail import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_SIZE = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_DURATION_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
PROTOCOLS = ("tcp", "udp", "sctp")


def wrong(flag: str, value: str, rule: str) -> CliError:
    """The error of a flag's value: `error: --memory 2x: expected …`."""
    return CliError(f"--{flag} {value}: expected {rule}")


def parse_size(flag: str, text: str) -> int:
    """Bytes of `512m`, `1.5g`, `64kb`, `100`: units are powers of 1024, as in Docker."""
    word = text.strip().lower()
    if word[-2:-1].isalpha():
        word = word.removesuffix("ib") if word.endswith("ib") else word.removesuffix("b")
    unit = word[-1:] if word[-1:].isalpha() else ""
    number = word.removesuffix(unit) if unit else word
    if unit not in _SIZE or not _is_number(number):
        raise wrong(flag, text, "a number and b, k, m or g, e.g. 512m")
    return int(float(number) * _SIZE[unit]) if "." in number else int(number) * _SIZE[unit]


def _is_number(text: str) -> bool:
    whole, dot, fraction = text.partition(".")
    return text.isascii() and whole.isdecimal() and (fraction.isdecimal() if dot else True)


def parse_duration_ns(flag: str, text: str) -> int:
    """Nanoseconds of Go's notation: `1m30s`, `500ms`, `0`."""
    rest, total = text.strip(), 0.0
    if rest == "0":
        return 0
    while rest:
        length = 0
        while length < len(rest) and (rest[length].isdecimal() or rest[length] == "."):
            length += 1
        number, rest = rest[:length], rest[length:]
        unit = next((name for name in ("ns", "us", "µs", "ms", "s", "m", "h") if rest.startswith(name)), "")
        if not unit or not _is_number(number):
            total = -1
            break
        total += float(number) * _DURATION_NS[unit]
        rest = rest[len(unit) :]
    if total < 0 or not text.strip():
        raise wrong(flag, text, "a duration such as 30s, 1m30s or 500ms")
    return int(total)


def parse_cpus(flag: str, text: str) -> int:
    """Billionths of a CPU of `1.5`."""
    whole, _, fraction = text.partition(".")
    whole = whole or "0"
    if not _is_number(f"{whole}.{fraction or '0'}") or len(fraction) > 9 or text in ("", "."):
        raise wrong(flag, text, "a number of CPUs with at most nine decimals, e.g. 1.5")
    return int(whole) * 1_000_000_000 + int(fraction.ljust(9, "0") or "0")


def split_csv(flag: str, text: str) -> list[str]:
    """The fields of one CSV line; a field in double quotes may hold commas."""
    fields, field, quoted, position = [], "", False, 0
    while position < len(text):
        letter = text[position]
        if quoted and letter == '"' and text[position + 1 : position + 2] == '"':
            field += '"'
            position += 1
        elif letter == '"' and (quoted or field == ""):
            quoted = not quoted
        elif letter == "," and not quoted:
            fields.append(field)
            field = ""
        else:
            field += letter
        position += 1
    if quoted:
        raise wrong(flag, text, "a closing double quote")
    return [*fields, field]


def parse_bool(flag: str, whole: str, text: str) -> bool:
    """true, false, 1 or 0."""
    if text.lower() in ("true", "1"):
        return True
    if text.lower() in ("false", "0"):
        return False
    raise wrong(flag, whole, f"true or false, not {text!r}")


def split_pair(flag: str, text: str, example: str) -> tuple[str, str]:
    """NAME and VALUE of `NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise wrong(flag, text, f"NAME=VALUE, e.g. {example}")
    return name, value


# --- ports --------------------------------------------------------------------------------


def parse_port_range(flag: str, whole: str, text: str) -> tuple[int, int]:
    """First and last port of `80` or `8000-8010`."""
    first, dash, last = text.partition("-")
    last = last if dash else first
    for port in (first, last):
        if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
            raise wrong(flag, whole, "a port from 1 to 65535 or a range, e.g. 8000-8010")
    if int(last) < int(first):
        raise wrong(flag, whole, f"a range that rises, e.g. {last}-{first}")
    return int(first), int(last)


def split_protocol(flag: str, whole: str) -> tuple[str, str]:
    """`80/udp` as ("80", "udp"); tcp where none is named."""
    text, slash, protocol = whole.rpartition("/")
    if not slash:
        return whole, "tcp"
    if protocol.lower() not in PROTOCOLS:
        raise wrong(flag, whole, "tcp, udp or sctp after the slash, e.g. 53/udp")
    return text, protocol.lower()


def parse_publish(text: str) -> list[tuple[str, str, str]]:
    """`-p [IP:][HOST:]PORT[/PROTOCOL]` as (container port and protocol, host IP, host port) of each.

    Ranges of equal length are paired; one container port with a host range lets the daemon choose.
    """
    rest, protocol = split_protocol("publish", text)
    if rest.startswith("["):
        ip, bracket, rest = rest[1:].partition("]:")
        if not bracket:
            raise wrong("publish", text, "an IPv6 address in brackets and a port, e.g. [::1]:8080:80")
    else:
        ip = ""
        if rest.count(":") == 2:
            ip, _, rest = rest.partition(":")
        elif rest.count(":") > 2:
            raise wrong("publish", text, "an IPv6 address in brackets, e.g. [::1]:8080:80")
    if ip and not _is_address(ip):
        raise wrong("publish", text, "an IP address before the ports, e.g. 127.0.0.1:8080:80")
    host, colon, inside = rest.rpartition(":")
    first, last = parse_port_range("publish", text, inside)
    if not colon or not host:
        return [(f"{port}/{protocol}", ip, "") for port in range(first, last + 1)]
    host_first, host_last = parse_port_range("publish", text, host) if host != "0" else (0, 0)
    if host_last - host_first == last - first:
        return [
            (f"{first + step}/{protocol}", ip, str(host_first + step) if host_first else "")
            for step in range(last - first + 1)
        ]
    if first == last:
        return [(f"{first}/{protocol}", ip, f"{host_first}-{host_last}")]
    raise wrong("publish", text, "as many host ports as container ports, e.g. 8000-8002:80-82")


def _is_address(text: str) -> bool:
    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            _socket.inet_pton(family, text)
        except (OSError, ValueError):
            continue
        return True
    return False


def parse_publish_long(text: str) -> list[tuple[str, str, str]]:
    """`-p published=8080,target=80,protocol=tcp`, Docker's long form."""
    fields = dict(split_pair("publish", field, "target=80") for field in split_csv("publish", text))
    protocol = fields.pop("protocol", "tcp")
    target, published = fields.pop("target", ""), fields.pop("published", "")
    fields.pop("mode", None)
    if not target or fields:
        raise wrong(
            "publish", text, "target= and, if wanted, published= and protocol=, e.g. published=8080,target=80"
        )
    return parse_publish(f"{published}:{target}/{protocol}" if published else f"{target}/{protocol}")


def parse_expose(text: str) -> list[str]:
    """`--expose 80`, `8000-8002/udp`: every port as `80/tcp`."""
    rest, protocol = split_protocol("expose", text)
    first, last = parse_port_range("expose", text, rest)
    return [f"{port}/{protocol}" for port in range(first, last + 1)]


# --- mounts -------------------------------------------------------------------------------


def parse_volume(text: str) -> str:
    """`-v SOURCE:TARGET[:OPTIONS]` as the API's bind; a source that starts with . or ~ becomes absolute."""
    source, colon, rest = text.partition(":")
    if not source or (colon and not rest):
        raise wrong("volume", text, "SOURCE:TARGET[:ro], e.g. data:/var/lib/data")
    if source == "." or source.startswith(("./", "..")):
        source = os.path.abspath(source)
    target = rest.partition(":")[0]
    if colon and not target.startswith("/"):
        raise wrong("volume", text, f"an absolute path in the container, e.g. {source}:/{target}")
    if not colon and not source.startswith("/"):
        raise wrong("volume", text, f"an absolute path in the container, e.g. /{source}")
    return source + colon + rest


_MOUNT_NAMES = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}


def parse_mount(text: str) -> dict[str, Any]:
    """`--mount type=bind,source=…,target=…` as the API's Mount."""
    mount: dict[str, Any] = {"Type": "volume"}
    bind: dict[str, Any] = {}
    volume: dict[str, Any] = {}
    driver: dict[str, Any] = {}
    tmpfs: dict[str, Any] = {}
    image: dict[str, Any] = {}
    for field in split_csv("mount", text):
        given, equals, value = field.partition("=")
        name = _MOUNT_NAMES.get(given.lower(), given.lower())
        if name == "readonly":
            mount["ReadOnly"] = parse_bool("mount", text, value) if equals else True
        elif name == "volume-nocopy":
            volume["NoCopy"] = parse_bool("mount", text, value) if equals else True
        elif name == "bind-create-src":
            bind["CreateMountpoint"] = parse_bool("mount", text, value) if equals else True
        elif name == "bind-nonrecursive":
            bind["NonRecursive"] = parse_bool("mount", text, value) if equals else True
        elif not equals:
            raise wrong("mount", text, f"a value for {given}, e.g. type=bind,source=/srv,target=/srv")
        elif name == "type":
            mount["Type"] = value.lower()
        elif name == "source":
            relative = value.startswith(".") and (value.startswith(("./", "../")) or value in (".", ".."))
            mount["Source"] = os.path.abspath(value) if relative else value
        elif name == "target":
            mount["Target"] = value
        elif name == "consistency":
            mount["Consistency"] = value
        elif name == "bind-propagation":
            bind["Propagation"] = value
        elif name == "bind-recursive":
            _set_recursive(bind, text, value)
        elif name == "volume-driver":
            driver["Name"] = value
        elif name == "volume-opt":
            key, option = split_pair("mount", value, "volume-opt=type=nfs")
            driver.setdefault("Options", {})[key] = option
        elif name == "volume-label":
            key, _, label = value.partition("=")
            volume.setdefault("Labels", {})[key] = label
        elif name == "volume-subpath":
            volume["Subpath"] = value
        elif name == "image-subpath":
            image["Subpath"] = value
        elif name == "tmpfs-size":
            tmpfs["SizeBytes"] = parse_size("mount", value)
        elif name == "tmpfs-mode":
            if not value or set(value) - set("01234567"):
                raise wrong("mount", text, "an octal tmpfs-mode, e.g. tmpfs-mode=1777")
            tmpfs["Mode"] = int(value, 8)
        else:
            raise wrong(
                "mount", text, f"type, source, target, readonly or an option of the type, not {given!r}"
            )
    if not mount.get("Target"):
        raise wrong("mount", text, f"a target, e.g. {text},target=/data")
    if driver:
        volume["DriverConfig"] = driver
    for kind, name, options in (
        ("bind", "BindOptions", bind),
        ("volume", "VolumeOptions", volume),
        ("tmpfs", "TmpfsOptions", tmpfs),
        ("image", "ImageOptions", image),
    ):
        if options and mount["Type"] != kind:
            raise wrong("mount", text, f"type={kind} where options of {kind} are given")
        if options:
            mount[name] = options
    return mount


def _set_recursive(bind: dict[str, Any], text: str, value: str) -> None:
    if value == "disabled":
        bind["NonRecursive"] = True
    elif value == "writable":
        bind["ReadOnlyNonRecursive"] = True
    elif value == "readonly":
        bind["ReadOnlyForceRecursive"] = True
    elif value != "enabled":
        raise wrong("mount", text, "bind-recursive=enabled, disabled, writable or readonly")


# --- the rest -----------------------------------------------------------------------------


def parse_network(text: str) -> tuple[str, dict[str, Any]]:
    """`--network NAME` or `name=…,alias=…,ip=…` as a name and an EndpointSettings."""
    if "=" not in text:
        return text, {}
    name, endpoint, ipam = "", {}, {}  # type: str, dict[str, Any], dict[str, Any]
    for field in split_csv("network", text):
        key, value = split_pair("network", field, "name=backend,alias=db")
        key = key.lower()
        if key == "name":
            name = value
        elif key == "alias":
            endpoint.setdefault("Aliases", []).append(value)
        elif key == "ip":
            ipam["IPv4Address"] = value
        elif key == "ip6":
            ipam["IPv6Address"] = value
        elif key == "link-local-ip":
            ipam.setdefault("LinkLocalIPs", []).append(value)
        elif key == "mac-address":
            endpoint["MacAddress"] = value
        elif key == "driver-opt":
            option, setting = split_pair("network", value, "driver-opt=a=b")
            endpoint.setdefault("DriverOpts", {})[option] = setting
        elif key == "gw-priority":
            endpoint["GwPriority"] = int(value) if value.lstrip("-").isdecimal() else 0
        else:
            raise wrong("network", text, "name, alias, ip, ip6, mac-address or driver-opt")
    if not name:
        raise wrong("network", text, f"a name, e.g. name=backend,{text}")
    if ipam:
        endpoint["IPAMConfig"] = ipam
    return name, endpoint


def parse_device(text: str) -> dict[str, str]:
    """`--device /dev/x[:/dev/y][:rwm]`."""
    parts = text.split(":")
    host = parts[0]
    inside, permissions = host, "rwm"
    if len(parts) == 2 and parts[1] and not set(parts[1]) - set("rwm"):
        permissions = parts[1]
    elif len(parts) >= 2:
        inside = parts[1] or host
    if len(parts) == 3:
        permissions = parts[2]
    if len(parts) > 3 or not host.startswith("/") or not permissions or set(permissions) - set("rwm"):
        raise wrong("device", text, "HOST[:CONTAINER][:rwm] with absolute paths, e.g. /dev/fuse:/dev/fuse:rw")
    return {"PathOnHost": host, "PathInContainer": inside, "CgroupPermissions": permissions}


def is_cdi_device(text: str) -> bool:
    """Whether a `--device` is a CDI name (`vendor.com/class=name`), not a path."""
    kind, equals, name = text.partition("=")
    vendor, slash, word = kind.partition("/")
    return bool(vendor and slash and word and equals and name) and "/" not in word


def parse_gpus(text: str) -> dict[str, Any]:
    """`--gpus all`, a number, or docker's list: `"device=0,1",capabilities=utility` or `driver=nvidia,count=2`."""
    request: dict[str, Any] = {"Driver": "", "Count": 0, "DeviceIDs": [], "Capabilities": [["gpu"]]}
    expected = "all, a number, or device=ID, e.g. --gpus all or --gpus device=0"
    quoted = text.split('"')
    if len(quoted) % 2 == 0:
        raise wrong("gpus", text, expected)
    # a comma within quotes belongs to its value
    fields = "".join(
        part.replace(",", "\0") if index % 2 else part for index, part in enumerate(quoted)
    ).split(",")
    counted = False
    for field in fields:
        key, equals, value = field.replace("\0", ",").partition("=")
        if not equals:
            key, value = "count", key
        if key == "count" and (value == "all" or value.isdecimal()):
            request["Count"] = -1 if value == "all" else int(value)
            counted = True
        elif key == "device" and value:
            request["DeviceIDs"] = value.split(",")
        elif key == "driver":
            request["Driver"] = value
        elif key == "capabilities" and value:
            request["Capabilities"] = [["gpu", *value.split(",")]]
        else:
            raise wrong("gpus", text, expected)
    if not counted and not request["DeviceIDs"]:
        request["Count"] = 1
    return request


def parse_throttle(flag: str, text: str, *, is_size: bool) -> dict[str, Any]:
    """`/dev/sda:1mb` (bytes a second) or `/dev/sda:1000` (operations a second)."""
    path, colon, rate = text.rpartition(":")
    example = f"/dev/sda:{'1mb' if is_size else '1000'}"
    if not colon or not path.startswith("/dev/"):
        raise wrong(flag, text, f"a device's path and a rate, e.g. {example}")
    if is_size:
        return {"Path": path, "Rate": parse_size(flag, rate)}
    if not rate.isdecimal():
        raise wrong(flag, text, f"a whole number of operations a second, e.g. {example}")
    return {"Path": path, "Rate": int(rate)}


def parse_weight_device(text: str) -> dict[str, Any]:
    """`/dev/sda:500`."""
    path, _, weight = text.rpartition(":")
    if (
        not path.startswith("/dev/")
        or not weight.isdecimal()
        or not (10 <= int(weight) <= 1000 or weight == "0")
    ):
        raise wrong(
            "blkio-weight-device", text, "a device's path and a weight from 10 to 1000, e.g. /dev/sda:500"
        )
    return {"Path": path, "Weight": int(weight)}


def parse_ulimit(text: str) -> dict[str, Any]:
    """`nofile=1024[:2048]`; -1 is no limit."""
    name, equals, limits = text.partition("=")
    soft, colon, hard = limits.partition(":")
    hard = hard if colon else soft
    for limit in (soft, hard):
        if not equals or not name or not (limit.isdecimal() or limit == "-1"):
            raise wrong("ulimit", text, "NAME=SOFT[:HARD], e.g. nofile=1024:2048")
    if hard != "-1" and (soft == "-1" or int(soft) > int(hard)):
        raise wrong("ulimit", text, f"a soft limit not above the hard one, e.g. {name}={hard}:{hard}")
    return {"Name": name, "Soft": int(soft), "Hard": int(hard)}


def parse_restart(text: str) -> dict[str, Any]:
    """`no`, `always`, `unless-stopped`, `on-failure[:5]`."""
    name, colon, count = text.partition(":")
    if (
        name not in ("no", "always", "unless-stopped", "on-failure")
        or (colon and not count.isdecimal())
        or (colon and name != "on-failure")
    ):
        raise wrong("restart", text, "no, always, unless-stopped or on-failure[:COUNT], e.g. on-failure:5")
    return {"Name": name, "MaximumRetryCount": int(count or 0)}


def parse_host(text: str) -> str:
    """`--add-host NAME:ADDRESS` (or NAME=ADDRESS)."""
    name, sign, address = text.partition("=") if "=" in text else text.partition(":")
    address = address.removeprefix("[").removesuffix("]")
    plausible = address == "host-gateway" or (
        address and not set(address.lower()) - set("0123456789abcdef.:")
    )
    if not sign or not name or not plausible:
        raise wrong("add-host", text, "NAME:ADDRESS, e.g. db:10.0.0.5")
    return f"{name}:{address}"


def read_lines(flag: str, path: str) -> list[str]:
    """A file of one setting a line: blank lines and those that start with # don't count."""
    try:
        with open(path, encoding="utf-8-sig") as lines:
            rows = [line.rstrip("\r\n").lstrip() for line in lines]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it isn't UTF-8 text"
        raise CliError(f"--{flag} {path}: {reason}; name a text file with one NAME=VALUE a line") from None
    return [row for row in rows if row and not row.startswith("#")]


def collect_env(given: Sequence[str], files: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """`--env-file` then `--env`; a bare NAME takes the caller's value.

    Where the caller has none, a file's NAME is left out, and a flag's NAME stays bare: the API
    takes that as "not even the image's".
    """
    found: list[str] = []
    rows = [("env-file", row) for path in files for row in read_lines("env-file", path)]
    rows += [("env", row) for row in given]
    for flag, row in rows:
        name, equals, _ = row.partition("=")
        if not name:
            raise wrong(flag, row, "NAME=VALUE, e.g. LANG=C.UTF-8")
        if flag == "env-file" and any(letter.isspace() for letter in name):
            raise wrong(flag, row, "a name without spaces before the =")
        if equals:
            found.append(row)
        elif name in environment:
            found.append(f"{name}={environment[name]}")
        elif flag == "env":
            found.append(name)
    return found


def collect_labels(given: Sequence[str], files: Sequence[str]) -> dict[str, str]:
    """`--label-file` then `--label`; a bare NAME has an empty value."""
    labels: dict[str, str] = {}
    for row in [row for path in files for row in read_lines("label-file", path)] + list(given):
        name, _, value = row.partition("=")
        if not name:
            raise wrong("label", row, "NAME=VALUE, e.g. tier=web")
        labels[name] = value
    return labels
