"""What a container can be asked for beyond Docker's API: the `Cove` object of a create body, or labels. Pure.

Both have the same keys and the same text (docs/beyond-docker.md has the table): `"Cove": {"health.on-failure":
"restart"}` is what the label `cove.health.on-failure=restart` is. Only the caller's labels count: an image must
not ask for anything. A key that isn't known is refused, for a misspelt one would be silently without effect.
"""

from __future__ import annotations

import base64
import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from cove.model.container import HealthCheck
from cove.model.errors import Invalid
from cove.model.extension import Dependency, Extension, OnUnhealthy, Probe, SecretUse
from cove.model.lines import parse_address

PREFIX = "cove."
_URL = re.compile(r"(https?|tcp)://(\[[0-9a-fA-F:.]+\]|[0-9.]*|localhost):(\d{1,5})(/[\x21-\x7e]*)?")
_RANGE = re.compile(r"([1-5]\d\d)(?:-([1-5]\d\d))?")
_HEADER = re.compile(r"([A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}):[ \t]*([\x20-\x7e]{0,1000})")
_MAX_HEADERS = 32
_MAX_URL = 2000
_FILE = re.compile(r"(?!\.\.?$)[A-Za-z0-9_.-]{1,128}")
_SECRETS_DIR = "/run/secrets/"
_MAX_SECRETS = 64
_CONDITIONS = ("started", "healthy", "completed")
_MAX_DEPENDENCIES = 64
_DURATION = re.compile(r"(\d{1,5})([smh]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
_MAX_ID = 2**31 - 1


def decode_extension(given: Mapping[str, str], labels: Mapping[str, str]) -> Extension:
    """The settings of both forms. Raises `Invalid` for an unknown key, a bad value, or two that differ."""
    found: dict[str, tuple[str, str]] = {key: (f"Cove.{key}", value) for key, value in given.items()}
    for label, value in labels.items():
        if not label.startswith(PREFIX):
            continue
        key = label.removeprefix(PREFIX)
        if key in found and found[key][1] != value:
            raise Invalid(f"label {label}: differs from Cove.{key}: leave one out")
        found[key] = (f"label {label}", value)
    changes: dict[str, Any] = {}
    for key, (shown, value) in found.items():
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(KEYS)}"
            raise Invalid(f"{shown}: no such setting; {hint}")
        KEYS[key](shown, value, changes)
    return _settle(changes)


def _settle(changes: dict[str, Any]) -> Extension:
    probe: Probe | None = changes.get("probe")
    for field in ("status", "headers"):
        if field in changes and (probe is None or probe.scheme == "tcp"):
            raise Invalid(f"health.probe.{field}: only an http or https health.probe has that")
    if probe is not None:
        low, high = changes.pop("status", (probe.status_low, probe.status_high))
        changes["probe"] = Probe(
            scheme=probe.scheme,
            host=probe.host,
            port=probe.port,
            path=probe.path,
            status_low=low,
            status_high=high,
            headers=changes.pop("headers", ()),
        )
    return Extension(**changes)


def with_probe(check: HealthCheck | None, probe: Probe | None) -> HealthCheck | None:
    """The health check with a probe in its test's place. Raises `Invalid` when both are asked for."""
    if probe is None:
        return check
    if check is not None and check.test not in ((), ("",)):
        raise Invalid("health.probe: there is a Healthcheck.Test as well: leave one out")
    check = check or HealthCheck()
    return HealthCheck(
        test=(),
        probe=probe,
        interval_ns=check.interval_ns,
        timeout_ns=check.timeout_ns,
        start_period_ns=check.start_period_ns,
        start_interval_ns=check.start_interval_ns,
        retries=check.retries,
    )


# --- one setting each ---------------------------------------------------------------------


def _on_failure(shown: str, value: str, changes: dict[str, Any]) -> None:
    if value not in get_args(OnUnhealthy):
        raise Invalid(f"{shown}: {value[:80]!r}: expected {', '.join(get_args(OnUnhealthy))}, e.g. restart")
    changes["on_unhealthy"] = value


def _probe(shown: str, value: str, changes: dict[str, Any]) -> None:
    changes["probe"] = parse_probe(shown, value)


def parse_probe(shown: str, value: str) -> Probe:
    """`http://:8080/healthz`, `https://[::1]:8443/`, `tcp://:5432`. Raises `Invalid`."""
    match = _URL.fullmatch(value) if len(value) <= _MAX_URL else None
    if match is None or not 0 < int(match[3]) <= 65535 or (match[1] == "tcp" and match[4]):
        raise Invalid(
            f"{shown}: {value[:80]!r}: expected http://[ADDRESS]:PORT/PATH, https://… or tcp://[ADDRESS]:PORT, "
            "e.g. http://:8080/healthz"
        )
    host = match[2].strip("[]")
    if host == "localhost":
        host = ""
    if host:
        try:
            host = str(parse_address(host))
        except ValueError:
            raise Invalid(
                f"{shown}: {host[:80]!r} is not an address, e.g. 127.0.0.1, or nothing for the loopback"
            ) from None
    path = (match[4] or "/").partition("#")[0]
    return Probe(scheme=match[1], host=host, port=int(match[3]), path=path)  # type: ignore[arg-type]


def _status(shown: str, value: str, changes: dict[str, Any]) -> None:
    match = _RANGE.fullmatch(value)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if low > high:
        raise Invalid(f"{shown}: {value[:80]!r}: expected a status or a range, e.g. 200-299")
    changes["status"] = (low, high)


def _headers(shown: str, value: str, changes: dict[str, Any]) -> None:
    found = []
    for line in value.splitlines():
        match = _HEADER.fullmatch(line)
        if match is None:
            raise Invalid(f"{shown}: {line[:80]!r}: expected Name: value, e.g. Host: example.org")
        found.append((match[1], match[2]))
    if len(found) > _MAX_HEADERS:
        raise Invalid(f"{shown}: {len(found)} headers, and there can be {_MAX_HEADERS}")
    changes["headers"] = tuple(found)


def _secrets(shown: str, value: str, changes: dict[str, Any]) -> None:
    changes["secrets"] = found = tuple(_secret(shown, text.strip()) for text in value.split(","))
    targets = [use.target for use in found]
    for target in targets:
        if targets.count(target) > 1:
            raise Invalid(f"{shown}: two secrets have the target {target}: give one of them another target=")
    if len(found) > _MAX_SECRETS:
        raise Invalid(f"{shown}: {len(found)} secrets, and a container can have {_MAX_SECRETS}")


def _secret(shown: str, text: str) -> SecretUse:
    """`NAME[:target=FILE;uid=N;gid=N;mode=OCTAL]`; without a name its content comes along by the target."""
    name, _, rest = text.partition(":")
    fields = {"target": name, "uid": "0", "gid": "0", "mode": "444"}
    for pair in filter(None, rest.split(";")):
        field, _, value = pair.partition("=")
        if field not in fields:
            raise Invalid(f"{shown}: {field[:80]!r}: expected target, uid, gid or mode, e.g. db:mode=0400")
        fields[field] = value
    target = fields["target"].removeprefix(_SECRETS_DIR)
    if not _FILE.fullmatch(target):
        raise Invalid(
            f"{shown}: {target[:80]!r}: expected a secret's name, or target= a file below {_SECRETS_DIR}, "
            "e.g. db:target=password"
        )
    numbers = {}
    for field in ("uid", "gid"):
        if not fields[field].isdecimal() or not fields[field].isascii() or int(fields[field][:12]) > _MAX_ID:
            raise Invalid(f"{shown}: {field}={fields[field][:80]}: expected a number, e.g. {field}=1000")
        numbers[field] = int(fields[field])
    if not re.fullmatch("0?[0-7]{3}", fields["mode"]):
        raise Invalid(f"{shown}: mode={fields['mode'][:80]}: expected three octal digits, e.g. mode=0400")
    return SecretUse(
        name=name, target=target, uid=numbers["uid"], gid=numbers["gid"], mode=int(fields["mode"], 8)
    )


def _depends_on(shown: str, value: str, changes: dict[str, Any]) -> None:
    found = []
    for text in value.split(","):
        name, _, condition = text.strip().partition(":")
        if not name or (condition or "started") not in _CONDITIONS:
            raise Invalid(
                f"{shown}: {text[:80]!r}: expected CONTAINER:CONDITION, one of {', '.join(_CONDITIONS)}, "
                "e.g. db:healthy,migrate:completed"
            )
        found.append(Dependency(container=name, condition=condition or "started"))  # type: ignore[arg-type]
    if len(found) > _MAX_DEPENDENCIES:
        raise Invalid(f"{shown}: {len(found)} containers, and there can be {_MAX_DEPENDENCIES}")
    changes["depends_on"] = tuple(found)


def _depends_timeout(shown: str, value: str, changes: dict[str, Any]) -> None:
    match = _DURATION.fullmatch(value)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not 0 < seconds <= 86400:
        raise Invalid(f"{shown}: {value[:80]!r}: expected 1s to 24h, e.g. 90s or 5m")
    changes["depends_timeout_s"] = seconds


def _init(shown: str, value: str, changes: dict[str, Any]) -> None:
    if value != "auto":
        raise Invalid(f"{shown}: {value[:80]!r}: expected auto; HostConfig.Init says yes or no")
    changes["init"] = value


def _pod(shown: str, value: str, changes: dict[str, Any]) -> None:
    if not _FILE.fullmatch(value):
        raise Invalid(f"{shown}: {value[:80]!r}: expected a pod's name, e.g. web")
    changes["pod"] = value


def decode_secret_data(extension: Extension, data: Mapping[str, str]) -> dict[str, bytes]:
    """The contents that came along, by target. Raises `Invalid`, without a word of the content."""
    wanted = {use.target for use in extension.secrets if not use.name}
    found = {}
    for target, text in data.items():
        if target not in wanted:
            raise Invalid(f"CoveSecretData: {target[:80]!r}: no secret without a name has this target")
        try:
            found[target] = base64.b64decode(text, validate=True)
        except ValueError:
            raise Invalid(f"CoveSecretData: {target}: expected base64") from None
    for target in wanted - found.keys():
        raise Invalid(f"secret {target}: it has no name, so its content is needed in CoveSecretData")
    return found


KEYS: dict[str, Callable[[str, str, dict[str, Any]], None]] = {
    "health.probe": _probe,
    "health.probe.status": _status,
    "health.probe.headers": _headers,
    "health.on-failure": _on_failure,
    "secrets": _secrets,
    "depends-on": _depends_on,
    "depends-timeout": _depends_timeout,
    "init": _init,
    "pod": _pod,
}


# --- shown again --------------------------------------------------------------------------


def extension_json(extension: Extension) -> dict[str, str]:
    """The settings that aren't Docker's behaviour, by their keys, as inspect shows them and create takes them."""
    found: dict[str, str] = {}
    probe = extension.probe
    if probe is not None:
        found["health.probe"] = probe.url
        if (probe.status_low, probe.status_high) != (200, 399) and probe.scheme != "tcp":
            found["health.probe.status"] = f"{probe.status_low}-{probe.status_high}"
        if probe.headers:
            found["health.probe.headers"] = "\n".join(f"{name}: {value}" for name, value in probe.headers)
    if extension.on_unhealthy != "none":
        found["health.on-failure"] = extension.on_unhealthy
    if extension.secrets:
        found["secrets"] = ",".join(_secret_text(use) for use in extension.secrets)
    if extension.depends_on:
        found["depends-on"] = ",".join(f"{one.container}:{one.condition}" for one in extension.depends_on)
    if extension.pod:
        found["pod"] = extension.pod
    if extension.depends_timeout_s:
        found["depends-timeout"] = f"{extension.depends_timeout_s}s"
    return found


def _secret_text(use: SecretUse) -> str:
    fields = []
    if use.target != use.name:
        fields.append(f"target={use.target}")
    fields += [f"{name}={value}" for name, value in (("uid", use.uid), ("gid", use.gid)) if value]
    if use.mode != 0o444:
        fields.append(f"mode={use.mode:04o}")
    return f"{use.name}:{';'.join(fields)}" if fields else use.name
