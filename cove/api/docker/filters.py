"""The `filters` query parameter: parsing it, and what each filter of a container list means. Pure.

Two notations are in use: `{"status": ["running"]}` and, from old clients,
`{"status": {"running": true}}`. Values of one key are alternatives, except labels, which must
all match; keys must all match.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from cove.api.docker.text import parse_time
from cove.engine.types import View
from cove.model.errors import Invalid

Filters = Mapping[str, Sequence[str]]

STATUSES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
CONTAINER_KEYS = frozenset(
    "ancestor before exited expose health id is-task isolation label name network publish since status volume".split()
)
_HEALTH = ("starting", "healthy", "unhealthy", "none")
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?")
_decoder = msgspec.json.Decoder(dict[str, list[str] | dict[str, bool]] | None)


def parse_filters(text: str, allowed: Collection[str]) -> dict[str, list[str]]:
    """Raises `Invalid` for what isn't a filter object and for a key that isn't `allowed`."""
    if not text:
        return {}
    try:
        decoded = _decoder.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise Invalid(
            f'invalid filter: expected JSON such as {{"label":["a=b"]}}, got {text[:80]!r}'
        ) from None
    found = {}
    for key, values in (decoded or {}).items():
        if key not in allowed:
            raise Invalid(f"invalid filter '{key}', expected one of {', '.join(sorted(allowed))}")
        found[key] = list(values) if isinstance(values, list) else [v for v, on in values.items() if on]
    return found


def boolean(filters: Filters, key: str, default: bool) -> bool:
    """A filter with one truth value, such as dangling. Raises `Invalid` for other words."""
    values = filters.get(key, ())
    if not values:
        return default
    if len(values) == 1 and values[0].lower() in ("1", "true", "0", "false"):
        return values[0].lower() in ("1", "true")
    raise Invalid(f"invalid filter '{key}={values[-1]}', expected true or false")


def matches_labels(labels: Mapping[str, str], wanted: Sequence[str]) -> bool:
    """Every `KEY` or `KEY=VALUE` is among the labels."""
    for word in wanted:
        key, equals, value = word.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


def label_filter(filters: Filters) -> Callable[[Mapping[str, str]], bool]:
    """`label` (all must match) and `label!` (none of them may)."""
    wanted, unwanted = filters.get("label", ()), filters.get("label!", ())
    return lambda labels: (
        matches_labels(labels, wanted) and not any(matches_labels(labels, [w]) for w in unwanted)
    )


def prune_before(filters: Filters, now_ns: int) -> int:
    """The `until` of a prune as ns since the epoch; objects made later stay. No filter: no bound."""
    values = filters.get("until", ())
    if len(values) > 1:
        raise Invalid("invalid filter 'until': only one value is allowed")
    return parse_time(values[0], "until", now_ns) if values else 1 << 62


def any_pattern(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Matches a text in which one of the patterns is found; a bad pattern matches nothing."""
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern[:256]))
        except (re.error, RecursionError, OverflowError):
            continue
    return lambda text: any(p.search(text) for p in compiled)


def ports_filter(values: Sequence[str], key: str) -> Callable[[int, str], bool]:
    """`80`, `80/udp` or `8000-8010/tcp`."""
    wanted: list[tuple[int, int, str]] = []
    for value in values:
        match = _PORTS.fullmatch(value)
        if match is None:
            raise Invalid(f"invalid filter '{key}={value}', e.g. 80/tcp or 8000-8010")
        wanted.append((int(match[1]), int(match[2] or match[1]), match[3] or "tcp"))
    return lambda port, protocol: any(a <= port <= b and protocol == p for a, b, p in wanted)


def container_filter(
    filters: Filters,
    *,
    find: Callable[[str], View],
    find_image_id: Callable[[str], str],
    network_names: Callable[[View], Collection[str]],
    health: Callable[[View], str],
) -> Callable[[View], bool]:
    """The predicate of a container list. Raises `Invalid`, and `NotFound` for before and since."""
    checks: list[Callable[[View], bool]] = []
    for key, values in filters.items():
        if values:
            checks.append(_container_check(key, values, find, find_image_id, network_names, health))
    return lambda view: all(check(view) for check in checks)


def _container_check(
    key: str,
    values: Sequence[str],
    find: Callable[[str], View],
    find_image_id: Callable[[str], str],
    network_names: Callable[[View], Collection[str]],
    health: Callable[[View], str],
) -> Callable[[View], bool]:
    match key:
        case "status":
            _check_words(key, values, STATUSES)
            return lambda view: view.state.status in values
        case "health":
            _check_words(key, values, _HEALTH)
            return lambda view: health(view) in values
        case "is-task":
            _check_words(key, values, ("true", "false"))
            return lambda view: "false" in values
        case "isolation":
            return lambda view: "default" in values
        case "exited":
            codes = [_exit_code(value) for value in values]
            return lambda view: (
                view.state.has_been_started
                and view.state.status == "exited"
                and view.state.exit_code in codes
            )
        case "label":
            return lambda view: matches_labels(view.container.labels, values)
        case "id":
            prefixes = tuple(values)
            return lambda view: view.container.id.startswith(prefixes)
        case "name":
            found = any_pattern(values)
            return lambda view: found(view.container.name) or found("/" + view.container.name)
        case "ancestor":
            images = {find_image_id(value) for value in values}
            return lambda view: view.container.image_id in images or view.container.image_name in values
        case "before":
            latest = find(values[-1]).container.created_ns
            return lambda view: view.container.created_ns < latest
        case "since":
            earliest = find(values[-1]).container.created_ns
            return lambda view: view.container.created_ns > earliest
        case "volume":
            return lambda view: any(m.name in values or m.target in values for m in view.container.mounts)
        case "network":
            return lambda view: any(name in values for name in network_names(view))
        case "publish":
            published = ports_filter(values, key)
            return lambda view: any(published(p.host_port, p.protocol) for p in view.state.ports)
        case _:
            assert key == "expose", key
            exposed = ports_filter(values, key)
            return lambda view: any(
                exposed(int(number), protocol or "tcp")
                for number, _, protocol in (p.partition("/") for p in view.container.exposed_ports)
                if number.isdigit()
            )


def _check_words(key: str, values: Sequence[str], allowed: Sequence[str]) -> None:
    for value in values:
        if value not in allowed:
            raise Invalid(f"invalid filter '{key}={value}', expected one of {', '.join(allowed)}")


def _exit_code(text: str) -> int:
    if not re.fullmatch(r"-?\d{1,9}", text):
        raise Invalid(f"invalid filter 'exited={text}', expected an exit code such as 0")
    return int(text)
