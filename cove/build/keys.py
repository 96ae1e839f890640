"""Keys of steps: a digest of what a step does and of what it does it to. Pure.

The same key means the same result. A step's definition is encoded canonically, with its inputs replaced by their keys;
what is only shown (Origin, references) and what must not count (hidden variables, secrets' contents) is left out.
Files that a copy takes count by their content, not by where they come from: so a context that was sent anew, or a
stage that was run anew, and brings the same files, changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from cove.build.graph import Clone, Copy, Download, Exec, InlineFiles, MakeDirectory, Operation, Result

_FORM = "1"  # of keys: another one when what a step does changes


def key_of(kind: str, *parts: object) -> str:
    """A key of named parts; 64 hex digits."""
    data = msgspec.json.encode([_FORM, kind, *parts], order="deterministic")
    return hashlib.sha256(data).hexdigest()


def snapshot_key(layers: Sequence[str]) -> str:
    """The key of what an image's layers show."""
    return key_of("layers", list(layers))


def source_key(operation: Download | Clone | InlineFiles) -> str:
    """The key of a tree that its definition tells."""
    return key_of("source", msgspec.to_builtins(operation))


def step_key(operation: Operation, keys: Mapping[int, str], clamp_ns: int | None, salt: str = "") -> str:
    """The key of a step that runs or makes directories, or of a copy whose sources have keys.

    `keys` are those of its inputs; `clamp_ns` is the latest time that its files may have; `salt` sets apart the steps
    of one build that must not find others' results.
    """
    definition = _definition(operation, keys)
    return key_of("step", definition, clamp_ns, salt)


def content_key(operation: Copy, base: str, content: str, clamp_ns: int | None, salt: str = "") -> str:
    """The key of a copy by what it copies: `content` is the digest of its files under the names they get."""
    definition = _definition(operation, {operation.base: base})
    return key_of("copy", definition, content, clamp_ns, salt)


def result_key(result: Result, snapshot: str, clamp_ns: int | None) -> str:
    """The key of the image at the end."""
    document = msgspec.to_builtins(result)
    document.pop("step", None)
    for item in document.get("history", ()):
        item.pop("step", None)
    return key_of("image", document, snapshot, clamp_ns)


def _definition(operation: Operation, keys: Mapping[int, str]) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(operation)
    if isinstance(operation, Exec):
        found.pop("hidden_env", None)
        found["base"] = keys[operation.base]
        mounts = []
        for mount in operation.mounts:
            one = msgspec.to_builtins(mount)
            one["source"] = keys[mount.source] if mount.source is not None else ""
            mounts.append(one)
        found["mounts"] = mounts
    elif isinstance(operation, Copy):
        # with --link the layer doesn't depend on what it goes onto, unless a name has to be looked up there
        free = operation.link and owner_ids(operation.owner) is not None
        found["base"] = "" if free else keys[operation.base]
        found["items"] = [
            [keys.get(item.source, ""), item.path, item.pivot, item.unpack] for item in operation.items
        ]
    elif isinstance(operation, MakeDirectory):
        found["base"] = keys[operation.base]
    return found


def owner_ids(owner: str) -> tuple[int, int] | None:
    """An owner in numbers; None: it has names, or isn't one. "" is root."""
    if not owner:
        return 0, 0
    user, colon, group = owner.partition(":")
    if not user.isdecimal() or (colon and not group.isdecimal()) or max(len(user), len(group)) > 10:
        return None
    return int(user), int(group) if colon else int(user)
