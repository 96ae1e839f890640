"""Dockerfile instructions as changes of a configuration (`docker import --change`, `commit --change`).

Pure: text and a configuration's `config` object in, a new object out. The instructions and their wording are
Docker's (moby builder/dockerfile, BuildFromConfig; docs.docker.com/reference/dockerfile).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from cove.model.errors import Invalid

_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_WORD = re.compile(r"""\s*((?:[^\s"'\\]|\\.|"(?:[^"\\]|\\.)*"|'[^']*')+)""")
_UNITS_NS = {"ns": 1, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9, "m": 60e9, "h": 3600e9}
_SHELL = ["/bin/sh", "-c"]
_HEALTH_OPTIONS = {
    "interval": "Interval",
    "timeout": "Timeout",
    "start-period": "StartPeriod",
    "start-interval": "StartInterval",
}


def apply_changes(config: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The `config` object of an image configuration after the instructions. Invalid."""
    result = dict(config)
    for change in changes:
        for line in re.sub(r"\\\n", "", change).splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                _apply(result, line.strip())
    return result


def _apply(config: dict[str, Any], line: str) -> None:
    word, _, rest = line.partition(" ")
    name, rest = word.upper(), rest.strip()
    apply = _INSTRUCTIONS.get(name)
    if apply is None:
        raise Invalid(f"{name} is not a valid change command")
    if not rest:
        raise Invalid(f"{name} requires at least one argument")
    apply(config, rest)


def _command(config: dict[str, Any], rest: str) -> None:
    config["Cmd"] = _words(config, rest)


def _entrypoint(config: dict[str, Any], rest: str) -> None:
    config["Entrypoint"] = _words(config, rest)


def _words(config: dict[str, Any], rest: str) -> list[str]:
    """The JSON form as it is, the other form as an argument of the shell."""
    listed = _json_list(rest)
    return listed if listed is not None else [*(config.get("Shell") or _SHELL), rest]


def _json_list(rest: str) -> list[str] | None:
    if not rest.startswith("["):
        return None
    try:
        return msgspec.json.decode(rest, type=list[str])
    except msgspec.MsgspecError:
        return None


def _env(config: dict[str, Any], rest: str) -> None:
    env: list[str] = list(config.get("Env") or [])
    for key, value in _pairs("ENV", rest):
        env = [item for item in env if item.partition("=")[0] != key] + [f"{key}={value}"]
    config["Env"] = env


def _label(config: dict[str, Any], rest: str) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **dict(_pairs("LABEL", rest))}


def _pairs(name: str, rest: str) -> list[tuple[str, str]]:
    words = _split(rest)
    if "=" not in words[0]:
        key, _, value = rest.partition(" ")
        if not value.strip():
            raise Invalid(f"{name} must have two arguments, e.g. {name} {key}=value")
        return [(key, _unquote(value.strip()))]
    pairs = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise Invalid(f"{name}: {word!r} should be KEY=VALUE")
        pairs.append((_unquote(key), _unquote(value)))
    return pairs


def _split(text: str) -> list[str]:
    """Words at spaces outside quotes; quotes and backslashes stay in them."""
    words = []
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _WORD.match(text, position)
        if match is None:
            raise Invalid(f"a quote isn't closed, or a backslash comes last: {text!r}")
        words.append(match[1])
        position = match.end()
    return words


def _unquote(text: str) -> str:
    def part(match: re.Match[str]) -> str:
        single, double, escaped, plain = match.groups()
        if single is not None:
            return single
        if double is not None:
            return re.sub(r"\\([\\\"$])", r"\1", double)
        return escaped if escaped is not None else plain

    return re.sub(r"""'([^']*)'|"((?:[^"\\]|\\.)*)"|\\(.)|([^'"\\]+)""", part, text)


def _expose(config: dict[str, Any], rest: str) -> None:
    ports = dict(config.get("ExposedPorts") or {})
    for word in rest.split():
        match = _PORT.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if match is None or not 1 <= first <= last <= 65535:
            raise Invalid(f"Invalid containerPort: {word}: expected 1 to 65535, e.g. 80/tcp or 8000-8010")
        protocol = (match[3] or "tcp").lower()
        ports.update({f"{port}/{protocol}": {} for port in range(first, last + 1)})
    config["ExposedPorts"] = ports


def _user(config: dict[str, Any], rest: str) -> None:
    if len(rest.split()) != 1:
        raise Invalid("USER requires exactly one argument")
    config["User"] = _unquote(rest)


def _volume(config: dict[str, Any], rest: str) -> None:
    listed = _json_list(rest)
    paths = [_unquote(word) for word in _split(rest)] if listed is None else listed
    if not all(path.strip() for path in paths):
        raise Invalid("VOLUME specified can not be an empty string")
    config["Volumes"] = {**(config.get("Volumes") or {}), **{path: {} for path in paths}}


def _workdir(config: dict[str, Any], rest: str) -> None:
    path = posixpath.join("/", config.get("WorkingDir") or "/", _unquote(rest))
    config["WorkingDir"] = "/" + posixpath.normpath(path).lstrip("/")


def _stop_signal(config: dict[str, Any], rest: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9+-]{1,32}", rest):
        raise Invalid(f"STOPSIGNAL: {rest!r} isn't a signal, e.g. SIGTERM or 15")
    config["StopSignal"] = rest


def _on_build(config: dict[str, Any], rest: str) -> None:
    trigger = rest.split()[0].upper()
    if trigger == "ONBUILD":
        raise Invalid("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("FROM", "MAINTAINER"):
        raise Invalid(f"{trigger} isn't allowed as an ONBUILD trigger")
    config["OnBuild"] = [*(config.get("OnBuild") or []), rest]


def _health(config: dict[str, Any], rest: str) -> None:
    health: dict[str, Any] = {}
    while rest.startswith("--"):
        option, _, rest = rest.partition(" ")
        key, _, value = option[2:].partition("=")
        rest = rest.lstrip()
        if key == "retries" and value.isdigit():
            health["Retries"] = int(value)
        elif key in _HEALTH_OPTIONS:
            health[_HEALTH_OPTIONS[key]] = _duration_ns(value)
        else:
            raise Invalid(f"HEALTHCHECK: unknown option {option!r}")
    kind, _, command = rest.partition(" ")
    if kind.upper() == "NONE":
        config["Healthcheck"] = {"Test": ["NONE"]}
        return
    if kind.upper() != "CMD" or not command.strip():
        raise Invalid(f"HEALTHCHECK: expected CMD and a command, or NONE, not {rest!r}")
    listed = _json_list(command.strip())
    health["Test"] = ["CMD", *listed] if listed is not None else ["CMD-SHELL", command.strip()]
    config["Healthcheck"] = health


def _duration_ns(text: str) -> int:
    if not text or not re.fullmatch(rf"(?:{_DURATION.pattern})+", text):
        raise Invalid(f"HEALTHCHECK: {text!r} isn't a duration, e.g. 30s or 1m30s")
    return int(sum(float(number) * _UNITS_NS[unit] for number, unit in _DURATION.findall(text)))


_INSTRUCTIONS = {
    "CMD": _command,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _health,
    "LABEL": _label,
    "ONBUILD": _on_build,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
