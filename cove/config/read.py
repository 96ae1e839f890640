"""From a file's text and the flags to one checked configuration. Pure.

Order that must hold: each source by itself (kinds, unknown names), then both together (a key in both is refused, as
dockerd does), then what a key doesn't do here, then what must fit together. All that is wrong is told at once.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cove.config import kinds
from cove.config.kinds import Wrong, describe
from cove.config.table import BY_NAME, KEYS, Key
from cove.model.errors import Invalid

MAX_FILE_BYTES = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True)
class Config:
    """Every key's value in effect, and which of them a file or a flag gave."""

    values: Mapping[str, Any]
    given: frozenset[str]

    def text(self, name: str) -> str:
        value = self.values[name]
        assert isinstance(value, str), name
        return value

    def switch(self, name: str) -> bool:
        value = self.values[name]
        assert isinstance(value, bool), name
        return value

    def number(self, name: str) -> int:
        value = self.values[name]
        assert isinstance(value, int), name
        return value

    def words(self, name: str) -> tuple[str, ...]:
        value = self.values[name]
        assert isinstance(value, tuple), name
        return value

    def pairs(self, name: str) -> dict[str, Any]:
        value = self.values[name]
        assert isinstance(value, dict), name
        return value


@dataclass(frozen=True, slots=True)
class Given:
    """A value as a source gave it; `where` is `FILE:LINE: KEY` or the flag."""

    value: Any
    where: str


def parse_file(text: str, path: str) -> dict[str, Given]:
    """The keys of a configuration file with their JSON values. Raises Invalid for what isn't a JSON object.

    An empty file has no keys. A key twice is refused: JSON's readers don't agree which of them counts.
    """
    text = text.removeprefix("\ufeff")
    at = _skip(text, 0)
    if at == len(text):
        return {}
    if text[at] != "{":
        raise Invalid(f'{path}:{_line(text, at)}: expected an object, e.g. {{"debug": true}}')
    found: dict[str, Given] = {}
    decoder = json.JSONDecoder(object_pairs_hook=_distinct)
    at = _skip(text, at + 1)
    try:
        if text[at : at + 1] == "}":
            at += 1
        else:
            while True:
                if text[at : at + 1] != '"':
                    raise json.JSONDecodeError("expected a key in double quotes", text, at)
                line = _line(text, at)
                name, at = decoder.raw_decode(text, at)
                at = _skip(text, at)
                if text[at : at + 1] != ":":
                    raise json.JSONDecodeError("expected a colon after the key", text, at)
                value, at = decoder.raw_decode(text, _skip(text, at + 1))
                if name in found:
                    raise Invalid(f"{path}:{line}: {name}: the key is there twice, leave one out")
                found[name] = Given(value, f"{path}:{line}: {name}")
                at = _skip(text, at)
                if text[at : at + 1] == "}":
                    at += 1
                    break
                if text[at : at + 1] != ",":
                    raise json.JSONDecodeError("expected a comma or the object's end", text, at)
                at = _skip(text, at + 1)
        if (rest := _skip(text, at)) != len(text):
            raise json.JSONDecodeError("expected nothing after the object", text, rest)
    except json.JSONDecodeError as error:
        reason = error.msg[0].lower() + error.msg[1:]
        raise Invalid(f"{path}:{error.lineno}: column {error.colno}: not JSON: {reason}") from None
    except RecursionError:
        raise Invalid(f"{path}: objects lie too deep in each other") from None
    except ValueError as error:  # Wrong of _distinct, or a number with thousands of digits
        raise Invalid(f"{path}:{_line(text, at)}: {error}") from None
    return found


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Wrong("a key is there twice in an object, leave one out")
    return found


def read_config(
    text: str, path: str, flags: Mapping[str, Sequence[str]], defaults: Mapping[str, Any] | None = None
) -> Config:
    """The configuration of a file's text ("" without a file) and of flags, by key's name.

    `defaults` replace the table's, for a rootless daemon. Raises Invalid, with every fault that was found, one a line.
    """
    faults: list[str] = []
    in_file = _read_file(parse_file(text, path), path, faults)
    by_flag = {name: _from_flags(BY_NAME[name], words, faults) for name, words in flags.items()}
    for name in in_file.keys() & by_flag.keys():
        faults.append(
            "the following directives are specified both as a flag and in the configuration file: "
            f"{name}: (from flag: {_shown(name, by_flag[name].value)}, from file: "
            f"{_shown(name, in_file[name].value)}): leave one out"
        )
    given = {**in_file, **by_flag}
    values = {key.name: key.default for key in KEYS}
    values.update(defaults or {})
    for name, item in given.items():
        key = BY_NAME[name]
        if key.refused and item.value != key.default:
            faults.append(f"{item.where}: isn't supported: {key.refused}")
        values[name] = item.value
    if not faults:
        faults += check_together(values, {name: item.where for name, item in given.items()})
    if faults:
        raise Invalid("\n".join(faults))
    return Config(values, frozenset(given))


def _read_file(found: Mapping[str, Given], path: str, faults: list[str]) -> dict[str, Given]:
    """The file's values, checked, by the keys' first names."""
    values: dict[str, Given] = {}
    unknown = [name for name in found if name not in BY_NAME]
    for name in unknown:
        near = difflib.get_close_matches(name, list(BY_NAME), 1)
        hint = f"did you mean {near[0]}?" if near else "docs/daemon.md lists them"
        faults.append(
            f"{found[name].where}: the following directives don't match any configuration option: {name}; {hint}"
        )
    for name, item in found.items():
        key = BY_NAME.get(name)
        if key is None:
            continue
        if key.name in values:
            faults.append(f"{item.where}: {key.name} says the same already, leave one out")
            continue
        try:
            values[key.name] = Given(key.kind.from_json(item.value), item.where)
        except Wrong as wrong:
            faults.append(f"{item.where}: {wrong}, e.g. {json.dumps(key.example)}")
    return values


def _from_flags(key: Key, words: Sequence[str], faults: list[str]) -> Given:
    try:
        return Given(key.kind.from_flags(words), key.option)
    except Wrong as wrong:
        faults.append(f"{key.option} {words[-1]}: {wrong}, e.g. {flag_example(key)}")
        return Given(key.default, key.option)


def flag_example(key: Key) -> str:
    """The key's example as words of its flag."""
    value = key.example
    if isinstance(key.kind, kinds.Switch):
        return key.option if value else f"{key.option}=false"
    if isinstance(key.kind, kinds.Ulimits):
        limit = next(iter(value.values()))
        return f"{key.option} {limit['Name']}={limit['Soft']}:{limit['Hard']}"
    if isinstance(key.kind, kinds.Pools):
        return f"{key.option} base={value[0]['base']},size={value[0]['size']}"
    if isinstance(value, dict):
        name, item = next(iter(value.items()), ("NAME", "VALUE"))
        return f"{key.option} {name}={str(item).lower() if isinstance(item, bool) else item}"
    return f"{key.option} {value[0] if isinstance(value, list) else value}"


def _shown(name: str, value: Any) -> str:
    return json.dumps(BY_NAME[name].kind.to_json(value))


def check_together(values: Mapping[str, Any], where: Mapping[str, str]) -> list[str]:
    """What is wrong with values that are right by themselves, as sentences."""
    faults = []

    def fault(name: str, text: str) -> None:
        faults.append(f"{where.get(name, name)}: {text}")

    tls = values["tls"] or values["tlsverify"]
    if tls and not (values["tlscert"] and values["tlskey"]):
        fault("tlsverify" if values["tlsverify"] else "tls", "needs tlscert and tlskey, files in PEM format")
    for address in values["hosts"]:
        if (
            address.startswith("tcp://")
            and not tls
            and not values["insecure-tcp"]
            and not is_loopback(address)
        ):
            fault(
                "hosts",
                f"{address}: whoever reaches this address would be root here: use tlsverify with certificates, an "
                "address of loopback, e.g. tcp://127.0.0.1:2375, or insecure-tcp to have it all the same",
            )
    for option in values["exec-opts"]:
        if option not in ("native.cgroupdriver=systemd", "native.cgroupdriver=cgroupfs"):
            fault(
                "exec-opts", f"{option}: expected native.cgroupdriver=systemd or native.cgroupdriver=cgroupfs"
            )
    for option in values["storage-opts"]:
        name, equals, size = option.partition("=")
        try:
            if name != "cove.size" or not equals:
                raise Wrong(f"expected cove.size=SIZE, got {option!r}")
            kinds.Size("").from_text(size)
        except Wrong as wrong:
            fault("storage-opts", f"{wrong}, e.g. cove.size=10g")
    for driver, options in values["default-network-opts"].items():
        if not all(isinstance(value, str) for value in options.values()):
            fault("default-network-opts", f"{driver}: expected strings as values, got {describe(options)}")
    for name, bridge in (("fixed-cidr", "bip"), ("fixed-cidr-v6", "bip6")):
        if values[name] and not within(values[name], values[bridge]):
            fault(
                name,
                f"{values[name]} is no part of {bridge}'s subnet: give {bridge}, e.g. {BY_NAME[bridge].example}",
            )
    return faults


def is_loopback(address: str) -> bool:
    """Whether tcp://HOST:PORT can be reached from this host alone."""
    import ipaddress

    host = address.removeprefix("tcp://").rstrip("/").rpartition(":")[0].strip("[]")
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def within(part: str, interface: str) -> bool:
    """Whether the network `part` lies in the one of ADDRESS/BITS."""
    import ipaddress

    if not interface:
        return False
    inner, outer = ipaddress.ip_network(part), ipaddress.ip_interface(interface).network
    return (
        inner.version == outer.version
        and inner.prefixlen >= outer.prefixlen
        and int(inner.network_address) >> (outer.max_prefixlen - outer.prefixlen)
        == int(outer.network_address) >> (outer.max_prefixlen - outer.prefixlen)
    )


def without_effect(config: Config) -> list[str]:
    """The given keys that do nothing here, as sentences for the log."""
    return [
        f"{key.name} has no effect: {key.ignored}"
        for key in KEYS
        if key.ignored and key.name in config.given and config.values[key.name] != key.default
    ]


def changed_keys(old: Config, new: Config) -> tuple[list[Key], list[Key]]:
    """What differs: the keys that a reload makes count, and those that wait for the next start."""
    differing = [key for key in KEYS if old.values[key.name] != new.values[key.name]]
    return [key for key in differing if key.reload], [key for key in differing if not key.reload]


def shown_config(config: Config) -> dict[str, Any]:
    """Every key's value as the file would say it."""
    return {key.name: key.kind.to_json(config.values[key.name]) for key in KEYS}
