"""Kinds of configuration values: what a key takes in the file and as a flag, checked.

Pure. A kind turns a JSON value, or the words of its flag, into a plain value, and says in `Wrong` what it would have
taken. Units: sizes are bytes, times seconds.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_SIZE = re.compile(r"(\d{1,18})\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_TRUE = ("1", "t", "true", "yes", "on")
_FALSE = ("0", "f", "false", "no", "off")
MAX_ITEMS = 1_000
MAX_TEXT = 4_096

# of getrlimit(2)
RLIMITS = tuple(
    "core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack".split()
)


class Wrong(ValueError):
    """A value that its key doesn't take; the text says what is expected."""


class Kind:
    """One kind of value. `metavar` names it in help, `json` in the documentation."""

    repeats = False
    json = "string"

    def __init__(self, metavar: str, check: Callable[[str], str] | None = None) -> None:
        self.metavar = metavar
        self._check = check

    def from_json(self, value: Any) -> Any:
        """The file's value. Raises Wrong."""
        if not isinstance(value, str):
            raise Wrong(f"expected a string, got {describe(value)}")
        return self.from_text(value)

    def from_text(self, text: str) -> Any:
        """One word of a flag. Raises Wrong."""
        if "\0" in text or len(text) > MAX_TEXT:
            raise Wrong(f"expected at most {MAX_TEXT} characters without a NUL")
        return self._check(text) if self._check else text

    def from_flags(self, words: Sequence[str]) -> Any:
        """A flag that was given once or several times: the last counts. Raises Wrong."""
        return self.from_text(words[-1])

    def to_json(self, value: Any) -> Any:
        """The value as the file would say it."""
        return value


class Text(Kind):
    """Any string, or one that a check lets through."""


class Switch(Kind):
    json = "boolean"

    def from_json(self, value: Any) -> Any:
        if not isinstance(value, bool):
            raise Wrong(f"expected true or false, got {describe(value)}")
        return value

    def from_text(self, text: str) -> Any:
        if text.lower() in _TRUE:
            return True
        if text.lower() in _FALSE:
            return False
        raise Wrong(f"expected true or false, got {text!r}")


class Choice(Kind):
    def __init__(self, metavar: str, words: Sequence[str]) -> None:
        super().__init__(metavar)
        self.words = words

    def from_text(self, text: str) -> Any:
        if text not in self.words:
            raise Wrong(f"expected one of {', '.join(filter(None, self.words))}, got {text!r}")
        return text


class Number(Kind):
    json = "number"

    def __init__(self, metavar: str, low: int, high: int) -> None:
        super().__init__(metavar)
        self.low, self.high = low, high

    def from_json(self, value: Any) -> Any:
        if not isinstance(value, int) or isinstance(value, bool):
            raise Wrong(f"expected a whole number, got {describe(value)}")
        if not self.low <= value <= self.high:
            raise Wrong(f"expected {self.low} to {self.high}, got {value}")
        return value

    def from_text(self, text: str) -> Any:
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
            raise Wrong(f"expected a whole number, got {text!r}")
        return self.from_json(int(text))


class Size(Kind):
    """Bytes: a number, or a string with b, k, m, g or t."""

    json = "string or number"

    def from_json(self, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
            return value
        return super().from_json(value)

    def from_text(self, text: str) -> Any:
        found = _SIZE.fullmatch(text.strip())
        if found is None or int(found[1]) * _UNITS[found[2].lower()] >= 1 << 63:
            raise Wrong(f"expected a number and b, k, m or g, got {text!r}")
        return int(found[1]) * _UNITS[found[2].lower()]


class Words(Kind):
    """A list of strings; its flag may be repeated."""

    repeats = True
    json = "array of strings"

    def from_json(self, value: Any) -> Any:
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise Wrong(f"expected an array of at most {MAX_ITEMS} strings, got {describe(value)}")
        for item in value:
            if not isinstance(item, str):
                raise Wrong(f"expected an array of strings, got {describe(item)} in it")
        return self.from_flags(value)

    def from_flags(self, words: Sequence[str]) -> Any:
        return tuple(self.from_text(word) for word in words)

    def to_json(self, value: Any) -> Any:
        return list(value)


class Pairs(Kind):
    """An object of strings; its flag is NAME=VALUE and may be repeated."""

    repeats = True
    json = "object of strings"

    def from_json(self, value: Any) -> Any:
        if not isinstance(value, dict) or len(value) > MAX_ITEMS:
            raise Wrong(f"expected an object with strings as values, got {describe(value)}")
        for name, item in value.items():
            if not isinstance(item, str):
                raise Wrong(f'expected a string for "{name}", got {describe(item)}: write it in quotes')
        return dict(value)

    def from_flags(self, words: Sequence[str]) -> Any:
        found = {}
        for word in words:
            name, equals, value = word.partition("=")
            if not name or not equals:
                raise Wrong(f"expected NAME=VALUE, got {word!r}")
            found[name] = value
        return self.from_json(found)


class Switches(Kind):
    """An object of booleans; its flag is NAME or NAME=BOOL and may be repeated."""

    repeats = True
    json = "object of booleans"

    def from_json(self, value: Any) -> Any:
        if not isinstance(value, dict) or not all(isinstance(item, bool) for item in value.values()):
            raise Wrong(f"expected an object with true or false as values, got {describe(value)}")
        return dict(value)

    def from_flags(self, words: Sequence[str]) -> Any:
        switch = Switch("")
        return {
            name: switch.from_text(value if equals else "true")
            for name, equals, value in (word.partition("=") for word in words)
        }


class Objects(Kind):
    """An object of objects, which only the file can give."""

    json = "object"

    def from_json(self, value: Any) -> Any:
        if not isinstance(value, dict) or not all(isinstance(item, dict) for item in value.values()):
            raise Wrong(f"expected an object of objects, got {describe(value)}")
        return value

    def from_text(self, text: str) -> Any:
        raise Wrong("expected in the configuration file, where an object can be written")


class BuilderSettings(Kind):
    """dockerd's `{"gc": {"enabled": true, "defaultKeepStorage": "20GB"}}`, which only the file can give. The value is
    the bytes that are kept, 0 for all of them; policies are passed over."""

    json = "object"

    def from_json(self, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("gc", {}), dict):
            raise Wrong(f'expected an object such as {{"gc": {{"enabled": true}}}}, got {describe(value)}')
        gc = value.get("gc", {})
        if unknown := sorted(set(gc) - _GC):
            raise Wrong(f'"gc": {unknown[0]!r} isn\'t one of {", ".join(sorted(_GC))}')
        if not isinstance(gc.get("enabled", True), bool):
            raise Wrong(f'"gc.enabled": expected true or false, got {describe(gc["enabled"])}')
        if not gc.get("enabled", True):
            return 0
        for name in ("defaultKeepStorage", "defaultMaxUsedSpace", "defaultReservedSpace"):
            if name in gc:
                size = gc[name]
                return Size("SIZE").from_json(size[:-1] if _is_long_unit(size) else size)
        return DEFAULT_BUILD_CACHE

    def from_text(self, text: str) -> Any:
        raise Wrong("expected in the configuration file, where an object can be written")

    def to_json(self, value: Any) -> Any:
        return {"gc": {"defaultKeepStorage": value} if value else {"enabled": False}}


DEFAULT_BUILD_CACHE = 20 << 30
_GC = frozenset(
    (
        "enabled",
        "defaultKeepStorage",
        "defaultMaxUsedSpace",
        "defaultReservedSpace",
        "defaultMinFreeSpace",
        "policy",
    )
)


def _is_long_unit(size: Any) -> bool:
    """10GB, as dockerd's examples have it."""
    return isinstance(size, str) and len(size) > 2 and size[-1] in "bB" and size[-2] in "kKmMgGtT"


class Ulimits(Kind):
    """`{"nofile": {"Name": "nofile", "Soft": 1024, "Hard": 4096}}`, as a flag nofile=1024:4096.

    Values are (soft, hard) by name.
    """

    repeats = True
    json = "object"

    def from_json(self, value: Any) -> Any:
        if not isinstance(value, dict):
            raise Wrong(f"expected an object, got {describe(value)}")
        found = {}
        for key, item in value.items():
            if not isinstance(item, dict) or set(item) - {"Name", "Soft", "Hard"}:
                raise Wrong(f'"{key}": expected an object with Name, Soft and Hard, got {describe(item)}')
            name = item.get("Name", key)
            soft, hard = item.get("Soft", 0), item.get("Hard", item.get("Soft", 0))
            if not isinstance(soft, int) or not isinstance(hard, int) or bool in (type(soft), type(hard)):
                raise Wrong(f'"{key}": expected whole numbers for Soft and Hard, -1 for no limit')
            found[str(name)] = _limits(str(name), soft, hard)
        return found

    def from_flags(self, words: Sequence[str]) -> Any:
        found = {}
        for word in words:
            name, _, values = word.partition("=")
            soft, _, hard = values.partition(":")
            try:
                found[name] = _limits(name, int(soft), int(hard or soft))
            except ValueError as error:
                if isinstance(error, Wrong):
                    raise
                raise Wrong(f"expected NAME=SOFT[:HARD], got {word!r}") from None
        return found

    def to_json(self, value: Any) -> Any:
        return {name: {"Name": name, "Soft": soft, "Hard": hard} for name, (soft, hard) in value.items()}


def _limits(name: str, soft: int, hard: int) -> tuple[int, int]:
    if name not in RLIMITS:
        raise Wrong(f"expected one of {', '.join(RLIMITS)}, got {name!r}")
    if soft < -1 or hard < -1 or hard >= 1 << 63:
        raise Wrong(f"{name}: expected numbers from 0 on, or -1 for no limit")
    if hard != -1 and (soft == -1 or soft > hard):
        raise Wrong(f"{name}: ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
    return soft, hard


class Pools(Kind):
    """`[{"base": "172.80.0.0/16", "size": 24}]`; as a flag base=172.80.0.0/16,size=24. Pairs of network and size."""

    repeats = True
    json = "array of objects"

    def from_json(self, value: Any) -> Any:
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise Wrong(f"expected an array of objects with base and size, got {describe(value)}")
        found = []
        for item in value:
            if not isinstance(item, dict) or set(item) != {"base", "size"}:
                raise Wrong(f"expected an object with base and size, got {describe(item)}")
            found.append(_pool(item["base"], item["size"]))
        return tuple(found)

    def from_flags(self, words: Sequence[str]) -> Any:
        found = []
        for word in words:
            fields = dict(part.partition("=")[::2] for part in word.split(","))
            size = fields.get("size", "")
            if set(fields) != {"base", "size"} or not (size.isascii() and size.isdigit() and len(size) < 4):
                raise Wrong(f"expected base=NETWORK,size=BITS, got {word!r}")
            found.append(_pool(fields["base"], int(size)))
        return tuple(found)

    def to_json(self, value: Any) -> Any:
        return [{"base": base, "size": size} for base, size in value]


def _pool(base: object, size: object) -> tuple[str, int]:
    text = check_network(str(base))
    if not isinstance(size, int) or isinstance(size, bool):
        raise Wrong(f"{base}: expected a whole number as size, got {describe(size)}")
    network = ipaddress.ip_network(text)
    if not network.prefixlen <= size <= network.max_prefixlen - 1:
        raise Wrong(
            f"{base}: expected a size from {network.prefixlen} to {network.max_prefixlen - 1}, got {size}"
        )
    return text, size


# --- checks of strings ----------------------------------------------------------------------


def check_network(text: str) -> str:
    """A network in CIDR notation without host bits. Raises Wrong."""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise Wrong(f"expected a network, got {text!r}") from None


def check_interface(text: str) -> str:
    """An address with its network's prefix length. Raises Wrong."""
    try:
        if "/" in text:
            return str(ipaddress.ip_interface(text))
    except ValueError:
        pass
    raise Wrong(f"expected an address and a prefix length, got {text!r}")


def check_address(text: str) -> str:
    """A numeric address. Raises Wrong."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise Wrong(f"expected an address, got {text!r}") from None


def check_path(text: str) -> str:
    """An absolute path. Raises Wrong."""
    if not text.startswith("/"):
        raise Wrong(f"expected an absolute path, got {text!r}")
    return text


def check_label(text: str) -> str:
    """NAME=VALUE, or a bare name. Raises Wrong."""
    if not text.partition("=")[0].strip():
        raise Wrong(f"expected NAME=VALUE, got {text!r}")
    return text


def check_host_port(text: str) -> str:
    """HOST:PORT. Raises Wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise Wrong(f"expected ADDRESS:PORT, got {text!r}")
    return text


def check_listen(text: str) -> str:
    """unix://PATH, tcp://HOST:PORT or fd://. Raises Wrong."""
    scheme, _, rest = text.partition("://")
    if (scheme == "unix" and rest.startswith("/")) or scheme == "fd":
        return text
    if scheme == "tcp":
        port = rest.rstrip("/").rpartition(":")[2]
        if ":" in rest and port.isascii() and port.isdigit() and int(port) < 65536:
            return text
    raise Wrong(f"expected unix://PATH with an absolute path or tcp://HOST:PORT, got {text!r}")


def optional(check: Callable[[str], str]) -> Callable[[str], str]:
    """The check, and the empty string for: nothing was asked for."""
    return lambda text: check(text) if text else text


def describe(value: object) -> str:
    """A JSON value of the wrong kind, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, str):
        return f"the string {value[:80]!r}"
    return f"the number {value!s:.40}"
