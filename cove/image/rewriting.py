"""Configurations of images that are made from others, and what differs between two. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec


def squashed_config(base: bytes, keep: int, layer: Sequence[str], comment: str) -> dict[str, Any]:
    """The configuration of an image whose layers above the lowest `keep` became one. The history stays, its lines
    without a layer of their own, and one more line stands for the new layer, as Docker's squash does (moby
    daemon/images/image_squash.go). The time of creation stays, so that squashing twice gives one image."""
    document: dict[str, Any] = msgspec.json.decode(base, type=dict[str, Any])
    history = []
    seen = 0
    for line in document.get("history") or ():
        if not line.get("empty_layer"):
            seen += 1
            if seen > keep:
                line = {**line, "empty_layer": True}
        history.append(line)
    created = document.get("created")
    added = {"created": created, "comment": comment, "empty_layer": None if layer else True}
    document["history"] = [*history, {key: value for key, value in added.items() if value is not None}]
    kept = list(document["rootfs"].get("diff_ids") or ())[:keep]
    document["rootfs"]["diff_ids"] = [*kept, *layer]
    return document


def config_changes(before: bytes, after: bytes) -> list[dict[str, Any]]:
    """What differs between two configurations' settings: `Key` (dotted), `Before` and `After` (None: isn't there).
    Histories and layers are left to others."""
    first, second = (dict(_flat("", _settings(data))) for data in (before, after))
    return [
        {"Key": key, "Before": first.get(key), "After": second.get(key)}
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key)
    ]


def _settings(data: bytes) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    found = {
        key: document.get(key) for key in ("architecture", "variant", "os", "author") if document.get(key)
    }
    config = dict(document.get("config") or {})
    for key in ("Env", "ExposedPorts", "Volumes", "Labels"):
        value = config.get(key)
        if key == "Env" and isinstance(value, list):
            config[key] = dict(str(item).partition("=")[::2] for item in value)
        elif isinstance(value, dict):
            config[key] = {name: item if item != {} else True for name, item in value.items()}
    return {**found, **config}


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        if value not in (None, "", [], False):
            yield prefix, value
        return
    for key, item in value.items():
        yield from _flat(f"{prefix}.{key}" if prefix else key, item)
