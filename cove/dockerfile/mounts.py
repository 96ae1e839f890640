"""`RUN --mount`: type, target and the options of each type. Pure.

docs.docker.com/reference/dockerfile, "RUN --mount".
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from typing import Literal, cast

import msgspec

from cove.dockerfile.errors import DockerfileError, suggestion
from cove.dockerfile.values import size_bytes

Kind = Literal["bind", "cache", "tmpfs", "secret", "ssh"]
Sharing = Literal["shared", "private", "locked"]
KINDS = ("bind", "cache", "tmpfs", "secret", "ssh")
SHARING = ("shared", "private", "locked")
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")
_ALIASES = {
    "src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite",
}  # fmt: skip
_KEYS = (
    "type", "from", "source", "target", "readonly", "readwrite", "id", "sharing", "required", "size", "mode", "uid",
    "gid", "env",
)  # fmt: skip
_SWITCHES = ("readonly", "readwrite", "required")


class RunMount(msgspec.Struct, frozen=True, kw_only=True):
    """One mount as it is written; None and "" are what wasn't said."""

    kind: Kind = "bind"
    source_stage: str = ""  # from=: a stage or an image
    source: str = ""
    target: str = ""
    read_only: bool = True
    id: str = ""
    sharing: Sharing | None = None
    required: bool = False
    size_bytes: int = 0
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    env: str | None = None


def mount_source(text: str) -> str:
    """The `from=` of a mount, in which no variables are replaced; "" when there is none. Raises DockerfileError."""
    found = ""
    for key, value in _fields(text):
        if key == "from":
            found = value or ""
    if "$" in found[:-1]:
        raise DockerfileError("'from' doesn't support variable expansion, define alias stage instead")
    return found


def parse_mount(text: str, expand: Callable[[str], str]) -> RunMount:
    """The mount, its values expanded. Raises DockerfileError."""
    given: dict[str, str | None] = {}
    writable: bool | None = None
    for key, value in _fields(text):
        if value is None and key not in _SWITCHES:
            raise DockerfileError(f"invalid field '{key}' must be a key=value pair")
        if key not in _KEYS:
            raise DockerfileError(f"unexpected key '{key}' in '{text}'{suggestion(key, _KEYS)}")
        value = value if value is None or key == "from" else expand(value)
        given[key] = value
        if key in ("readonly", "readwrite"):
            writable = _switch(key, value) == (key == "readwrite")
    kind = _choice("mount type", (given.get("type") or "bind").lower(), KINDS)
    _check_keys(kind, given)
    sharing = given.get("sharing")
    mount = RunMount(
        kind=cast(Kind, kind),
        source_stage=given.get("from") or "",
        source=given.get("source") or "",
        target=given.get("target") or "",
        read_only=not (kind in ("cache", "tmpfs") if writable is None else writable),
        id=given.get("id") or "",
        sharing=cast(Sharing, _choice("sharing value", sharing.lower(), SHARING)) if sharing else None,
        required="required" in given and _switch("required", given["required"]),
        size_bytes=size_bytes("size", given["size"] or "") if "size" in given else 0,
        mode=_number("mode", given.get("mode"), 8),
        uid=_number("uid", given.get("uid"), 10),
        gid=_number("gid", given.get("gid"), 10),
        env=given.get("env"),
    )
    _check_place(mount)
    return mount


def _fields(text: str) -> list[tuple[str, str | None]]:
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise DockerfileError(f"--mount: not a list of key=value with commas between them: {error}") from None
    pairs: list[tuple[str, str | None]] = []
    for field in rows[0] if rows else ():
        key, equals, value = field.partition("=")
        key = key.strip().lower()
        pairs.append((_ALIASES.get(key, key), value if equals else None))
    return pairs


def _check_keys(kind: str, given: dict[str, str | None]) -> None:
    """Keys that this type doesn't have."""
    allowed = {
        "required": ("secret", "ssh"), "size": ("tmpfs",), "sharing": ("cache",), "env": ("secret",),
        "mode": ("secret", "ssh", "cache"), "uid": ("secret", "ssh", "cache"), "gid": ("secret", "ssh", "cache"),
    }  # fmt: skip
    for key, kinds in allowed.items():
        if key in given and kind not in kinds:
            raise DockerfileError(f"unexpected key '{key}' for mount type '{kind}'")
    if kind in ("secret", "ssh") and given.get("from"):
        raise DockerfileError(f"{kind} mount should not have a from")


def _check_place(mount: RunMount) -> None:
    if mount.kind == "secret":
        if not (mount.source or mount.target or mount.id):
            raise DockerfileError("invalid secret mount: one of id, source, target required, e.g. id=token")
        if mount.source and mount.id:
            raise DockerfileError("secret mount: both source and id can't be set")
    elif mount.kind == "ssh":
        if mount.source:
            raise DockerfileError("ssh mount does not support source")
    elif not mount.target:
        raise DockerfileError(
            f"{mount.kind} mount has no target, e.g. --mount=type={mount.kind},target=/data"
        )


def _switch(key: str, value: str | None) -> bool:
    if value is None or value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise DockerfileError(f"invalid value for {key}: {value}: expected true or false")


def _choice(what: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise DockerfileError(
            f'unsupported {what} "{value}"{suggestion(value, known)}: expected {", ".join(known)}'
        )
    return value


def _number(what: str, text: str | None, base: int) -> int | None:
    if text is None:
        return None
    digits = "01234567" if base == 8 else "0123456789"
    if not text or len(text) > 10 or text.strip(digits) or (number := int(text, base)) >= 1 << 32:
        raise DockerfileError(
            f"invalid value {text} for {what}: expected e.g. {'0755' if base == 8 else '1000'}"
        )
    if base == 8 and number > 0o7777:
        raise DockerfileError(f"invalid value {text} for {what}: at most 07777")
    return number
