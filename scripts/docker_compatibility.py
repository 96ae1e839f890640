"""Write docs/docker-compatibility.md: every endpoint and field of the Docker Engine API, and what Cove does with it.

`python -P scripts/docker_compatibility.py >docs/docker-compatibility.md`. The names are the reference's
(tests/golden/docker-api/names.txt), the statuses the code's: the routes, the shapes of wire.py and fields.py's notes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args, get_origin

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cove.api.docker import ROUTES, wire
from cove.api.docker.context import NEWEST, OLDEST, Api, version_text
from cove.api.docker.fields import NOTES
from cove.api.http import Body, Request, Writer
from cove.api.router import Router
from cove.model.errors import CoveError, NotFound, NotImplementedHere, Unavailable

NAMES = Path(__file__).resolve().parent.parent / "tests/golden/docker-api/names.txt"
HONOURED = "honoured"
BODIES: dict[str, tuple[type[wire.Wire], str]] = {
    "ContainerCreate": (wire.CreateBody, "POST /containers/create"),
    "ContainerUpdate": (wire.UpdateBody, "POST /containers/{id}/update"),
    "ExecCreate": (wire.ExecCreateBody, "POST /containers/{id}/exec"),
    "ExecStart": (wire.ExecStartBody, "POST /exec/{id}/start"),
    "NetworkCreate": (wire.NetworkBody, "POST /networks/create"),
    "NetworkConnect": (wire.ConnectBody, "POST /networks/{id}/connect"),
    "NetworkDisconnect": (wire.DisconnectBody, "POST /networks/{id}/disconnect"),
    "VolumeCreate": (wire.VolumeBody, "POST /volumes/create"),
}
# what a field's name alone doesn't tell of those that are honoured
REMARKS = {
    ("ContainerCreate", "MacAddress"): "until 1.51; since 1.52 refused: give it to the endpoint",
    ("ContainerCreate", "HostConfig.KernelMemoryTCP"): "cgroup v1; passed over since 1.52",
    ("ContainerUpdate", "KernelMemoryTCP"): "cgroup v1; passed over since 1.52",
    ("ContainerCreate", "HostConfig.Isolation"): "default; other values are for Windows and refused",
    (
        "ContainerCreate",
        "HostConfig.Runtime",
    ): "cove, runc, io.containerd.runc.v2: the same one; others are refused",
    ("ContainerCreate", "HostConfig.OomKillDisable"): "cgroup v1; v2 has no such thing: a warning",
    ("ContainerCreate", "HostConfig.MemorySwappiness"): "cgroup v1; v2 has no such thing: a warning",
    ("ContainerCreate", "HostConfig.CpuRealtimePeriod"): "where the kernel has it; else a warning",
    ("ContainerCreate", "HostConfig.CpuRealtimeRuntime"): "where the kernel has it; else a warning",
    ("ExecStart", "Tty"): "how the output is framed; whether there is a terminal was said at create",
}


class Name(NamedTuple):
    body: str  # or an endpoint's method
    field: str  # or its path
    since: str
    last: str


class Row(NamedTuple):
    name: Name
    status: str
    reason: str


def read_names() -> tuple[list[Name], list[Name]]:
    """The reference's endpoints and fields."""
    endpoints, fields = [], []
    for line in NAMES.read_text().splitlines():
        if line and not line.startswith("#"):
            first, second, since, *last = line.split()
            name = Name(first, second, since, last[0] if last else "")
            (fields if first in BODIES else endpoints).append(name)
    return endpoints, fields


# --- endpoints ----------------------------------------------------------------------------


def judge_endpoint(router: Router[Api], name: Name) -> Row:
    """By asking the route's handler, without an engine: one that Cove doesn't have needs none to refuse."""
    request = Request(cast(Writer, None))
    request.method, request.path, request.version = name.body, name.field, NEWEST
    request.name = "name"
    request.body = Body(0, lambda wanted: None)
    segments = [part if part[0] != "{" else "name" for part in name.field.split("/") if part]
    handler = router.find(request, segments)
    if handler is None:
        return Row(name, "refused", "the path isn't served (404)")
    try:
        asyncio.run(_call(handler, request))
    except (NotImplementedHere, Unavailable, NotFound) as error:
        return Row(name, "refused", str(error))
    except CoveError:
        pass
    except Exception:  # it needs an engine: so it does something
        pass
    return Row(name, HONOURED, "")


async def _call(handler: Callable[[Api, Request], Awaitable[Any]], request: Request) -> None:
    await handler(cast(Api, None), request)


# --- fields -------------------------------------------------------------------------------


def has_field(shape: Any, path: str) -> bool:
    """Whether wire.py's shape has a field, by its JSON path."""
    for part in path.replace("{}", ".{}").replace("[]", ".[]").split("."):
        if part in ("{}", "[]"):
            found = _inner(shape, dict if part == "{}" else list)
        else:
            owner = _inner(shape, None)
            fields = msgspec.structs.fields(owner) if owner is not None else ()
            found = next((f.type for f in fields if f.encode_name == part), None)
            if found is None and _inner(shape, dict) is not None:
                return True  # taken as a whole
        if found is None:
            return False
        shape = found
    return True


def _inner(shape: Any, container: type | None) -> Any:
    """Of a field's type: the elements of its list or map, or (None) the object that it is."""
    for kind in (shape, *get_args(shape)):
        if container is None and isinstance(kind, type) and issubclass(kind, wire.Wire):
            return kind
        if container is not None and get_origin(kind) is container:
            return get_args(kind)[-1]
    return None


def judge_field(name: Name) -> Row:
    shape = BODIES[name.body][0]
    notes = NOTES.get(shape, {})
    parts = name.field.split(".")
    for count in range(len(parts), 0, -1):  # a note speaks for all that lies below, too
        prefix = ".".join(parts[:count])
        for path in (prefix, prefix.removesuffix("[]").removesuffix("{}")):
            if path in notes:
                return Row(name, notes[path].status, notes[path].reason)
    assert has_field(shape, name.field), f"{name.body}: {name.field} is neither in wire.py nor in fields.py"
    return Row(name, HONOURED, REMARKS.get((name.body, name.field), ""))


# --- the page -----------------------------------------------------------------------------

_INTRODUCTION = f"""# Docker's API, name by name

Cove serves versions {version_text(OLDEST)} to {version_text(NEWEST)} of the Docker Engine API. This page has every
endpoint of its reference and every field of the bodies that make and change containers, execs, networks and volumes.

- **honoured**: it does what the reference says.
- **without effect**: it is accepted and does nothing, for the reason given. A create or update that says something by
  it gets a warning, unless clients send it as a matter of course.
- **refused**: the request fails with a sentence that names it.

A field that the API doesn't have is passed over, as dockerd does, and named in the warnings of a create or update
(decisions/0012-fields-nobody-knows.md). A path without a version is served as {version_text(NEWEST)}; what changed from
one version to the next is honoured by the version in the path.

Written by scripts/docker_compatibility.py from the code; tests/unit/test_api_compatibility.py fails when it is out of
date, tests/system/test_api_fields.py shows that the honoured fields of a container are honoured.
"""


def _table(rows: list[Row], heading: str) -> list[str]:
    lines = [f"| {heading} | since | status | |", "| --- | --- | --- | --- |"]
    for row in rows:
        since = row.name.since + (f" to {row.name.last}" if row.name.last else "")
        shown = f"{row.name.body} {row.name.field}" if row.name.body not in BODIES else row.name.field
        lines.append(f"| `{shown}` | {since} | {row.status} | {row.reason} |")
    return lines


def render() -> str:
    """The page's text."""
    endpoints, fields = read_names()
    router = Router(ROUTES)
    lines = [_INTRODUCTION, "## Endpoints", ""]
    lines += _table([judge_endpoint(router, name) for name in endpoints], "endpoint")
    for body, (_, title) in BODIES.items():
        lines += ["", f"## {title}", ""]
        lines += _table([judge_field(name) for name in fields if name.body == body], "field")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
