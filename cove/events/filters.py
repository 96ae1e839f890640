"""Docker's event filters as a pure function: what `GET /events?filters=` means.

Semantics (moby, daemon/events/filter.go): values of one key are alternatives, keys must all match,
labels must all match. A container, volume, network or daemon filter matches an id or a name by its
beginning, whatever the event's kind; an image matches exactly, with or without its tag, and matches
containers made from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cove.model.errors import Invalid
from cove.model.objects import Event

_NAMED = ("daemon", "container", "plugin", "volume", "network", "node", "service", "secret", "config")
KEYS = ("type", "event", "scope", "label", "image", *_NAMED)
_SCOPE = "local"  # of everything on one machine

# exec_create and health_status carry a detail after a colon ("exec_create: ls"): they match by beginning.
_WITH_DETAIL = frozenset({"health_status", "exec_create", "exec_start"})


def event_filter(filters: Mapping[str, Sequence[str]]) -> Callable[[Event], bool]:
    """The predicate of a filter mapping, key → alternatives. Raises Invalid for a key that isn't one."""
    for key in filters:
        if key not in KEYS:
            raise Invalid(f"invalid filter '{key}': events can be filtered by {', '.join(KEYS)}")
    checks = [_check(key, tuple(values)) for key, values in filters.items() if values]
    return lambda event: all(check(event) for check in checks)


def _check(key: str, values: tuple[str, ...]) -> Callable[[Event], bool]:
    match key:
        case "type":
            return lambda event: event.kind in values
        case "event":
            if _WITH_DETAIL.intersection(values):
                return lambda event: event.action.startswith(values)
            return lambda event: event.action in values
        case "scope":
            return lambda event: _SCOPE in values
        case "label":
            return lambda event: all(_has_label(event.attributes, value) for value in values)
        case "image":
            return lambda event: any(name in values for name in _image_names(event))
        case _:
            return lambda event: (
                event.actor_id.startswith(values) or event.attributes.get("name", "").startswith(values)
            )


def _has_label(attributes: Mapping[str, str], wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    return name in attributes and (not equals or attributes[name] == value)


def _image_names(event: Event) -> tuple[str, ...]:
    name = event.attributes.get("name" if event.kind == "image" else "image", "")
    return (event.actor_id, name, _without_tag(event.actor_id), _without_tag(name))


def _without_tag(reference: str) -> str:
    """The familiar name of a reference: no digest, no tag, no docker.io; a bare digest stays as it is."""
    name = reference.partition("@")[0]
    before, colon, after = name.rpartition(":")
    if colon and "/" not in after:
        if before == "sha256":
            return reference
        name = before
    return name.removeprefix("docker.io/").removeprefix("library/")
