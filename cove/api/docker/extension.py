"""What a container can be asked for beyond Docker's API: the `Cove` object of a create body, or labels. Pure.

Both have the same keys and the same text (docs/beyond-docker.md has the table): `"Cove": {"health.on-failure":
"restart"}` is what the label `cove.health.on-failure=restart` is. Only the caller's labels count: an image must
not ask for anything. A key that isn't known is refused, for a misspelt one would be silently without effect.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from cove.model.container import HealthCheck
from cove.model.errors import Invalid
from cove.model.extension import Extension, OnUnhealthy, Probe
from cove.model.lines import parse_address

PREFIX = "cove."
_URL = re.compile(r"(https?|tcp)://(\[[0-9a-fA-F:.]+\]|[0-9.]*|localhost):(\d{1,5})(/[\x21-\x7e]*)?")
_RANGE = re.compile(r"([1-5]\d\d)(?:-([1-5]\d\d))?")
_HEADER = re.compile(r"([A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}):[ \t]*([\x20-\x7e]{0,1000})")
_MAX_HEADERS = 32
_MAX_URL = 2000


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


KEYS: dict[str, Callable[[str, str, dict[str, Any]], None]] = {
    "health.probe": _probe,
    "health.probe.status": _status,
    "health.probe.headers": _headers,
    "health.on-failure": _on_failure,
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
    return found
