"""What is wrong with a config.json that its typed decoder refused, as a sentence with the path of the field.

Pure, and loaded only for a text that is out of the ordinary: a decoder that is right first time never comes here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from cove.model.errors import Invalid
from cove.runtime.oci_words import invalid

_TYPES = {
    "int": "an integer",
    "float": "a number with a fraction",
    "str": "a string",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
}
# what to write for a field that is missing
_EXAMPLES = {
    "root": '{"path": "rootfs"}',
    "process": '{"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}}',
    "path": '"rootfs" for root, an absolute path elsewhere',
    "cwd": '"/"',
    "destination": '"/data"',
    "containerID": "0",
    "hostID": "100000",
    "size": "65536",
    "soft": "1024",
    "hard": "4096",
    "height": "24",
    "width": "80",
    "policy": '"SCHED_OTHER"',
    "class": '"IOPRIO_CLASS_BE"',
    "priority": "4",
    "allow": "true",
    "pageSize": '"2MB"',
    "limit": "100",
    "name": '"eth0"',
    "major": "1",
    "minor": "3",
    "weight": "500",
    "rate": "1048576",
    "index": "0",
    "value": "1",
    "names": '["mknod"]',
    "action": '"SCMP_ACT_ALLOW"',
    "defaultAction": '"SCMP_ACT_ERRNO"',
    "domain": '"LINUX32"',
    "mode": '"MPOL_BIND"',
}
_MAX_UINT64 = 2**64 - 1


def without_nulls(text: bytes | str, name: str) -> bytes:
    """The same JSON without members that are null: they count as absent, as for the engines' own decoders (Go's).

    Raises Invalid for what is no JSON at all.
    """
    try:
        return msgspec.json.encode(_drop_nulls(msgspec.json.decode(text)))
    except msgspec.DecodeError as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        if "truncated" in reason:
            reason = "it ends too early"
        raise invalid(f"{name}: is no JSON: {reason}") from None
    except UnicodeError:
        raise invalid(f"{name}: is no JSON: it holds bytes that aren't UTF-8") from None
    except RecursionError:
        raise invalid(f"{name}: is nested too deeply: write less than some hundred levels") from None


def _drop_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _drop_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_drop_nulls(item) for item in value]
    return value


def explain(error: msgspec.ValidationError, data: bytes, shape: type[Any], name: str) -> Invalid:
    """msgspec's message ("Expected `int`, got `str` - at `$.process.user.uid`") in our form."""
    text, _, place = str(error).partition(" - at `")
    path = place.rstrip("`")
    if "[...]" in path:
        path = _name_key(msgspec.json.decode(data), shape, path)
    path = path.removeprefix("$").removeprefix(".")
    quoted = text.split("`")[1::2]
    if text.startswith("Object missing"):
        path = f"{path}.{quoted[0]}" if path else quoted[0]
        example = _EXAMPLES.get(quoted[0], "")
        text = f"is missing: give it, e.g. {example}" if example else "is missing: give it"
    elif ", got " in text:
        text = f"expected {_kind(quoted[0])}, got {_kind(quoted[1])}"
    elif ">=" in text or "<=" in text:
        bound = text.rpartition("= ")[2]
        text = f"expected a number from {bound} up" if ">=" in text else f"expected a number up to {bound}"
    else:
        text = text[:1].lower() + text[1:]
    return invalid(f"{name}: {path}: {text}" if path else f"{name}: {text}")


def _kind(words: str) -> str:
    return " or ".join(_TYPES.get(word, word) for word in words.split(" | ") if word != "null") or "null"


def _name_key(raw: Any, shape: type[Any], path: str) -> str:
    """The path with the key in place of [...], which stands for a value of any key: each is tried alone."""
    before, _, after = path.partition("[...]")
    place = raw
    for part in before.removeprefix("$").removeprefix(".").split("."):
        place = place[part]
    for key, value in list(place.items()):
        place.clear()
        place[key] = value
        try:
            msgspec.convert(raw, shape)
        except msgspec.ValidationError:
            return f'{before}["{key}"]{after}'
    return path


def check_values(value: Any, name: str) -> None:
    """Refuse what no field can take: numbers beyond 64 bits, and NUL in what the kernel gets to see as C strings."""
    raw = msgspec.to_builtins(value)
    if isinstance(raw, dict):
        raw.pop("annotations", None)
    for path, leaf in _leaves(raw, ""):
        if isinstance(leaf, str) and "\0" in leaf:
            raise invalid(f"{name}: {path}: holds a NUL character, leave it out")
        if isinstance(leaf, int) and leaf > _MAX_UINT64:
            raise invalid(f"{name}: {path}: expected a number up to {_MAX_UINT64}")


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            below = f"{path}.{key}" if path else key
            yield below, key
            yield from _leaves(item, below)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, value
