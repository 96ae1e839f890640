"""Which of its limits a container's run came up against, for inspect and for `cove ps`. Pure."""

from __future__ import annotations

from typing import Any

from cove.engine.types import View

_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def limited_json(view: View) -> list[dict[str, Any]]:
    """The limits, each with its value and a few words; [] for none."""
    resources = view.container.spec.resources
    found = []
    for resource in view.state.limited:
        if resource == "memory":
            limit = resources.memory_bytes
            text = f"out of memory ({f'limit {_size(limit)}' if limit > 0 else 'of the host'})"
        elif resource == "disk":
            limit = view.container.layer_bytes
            text = f"disk full (limit {_size(limit)})"
        else:
            limit = resources.pids_limit
            text = f"out of processes (limit {limit})"
        found.append({"Resource": resource, "Limit": limit, "Text": text})
    return found


def _size(count: int) -> str:
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count} B"
