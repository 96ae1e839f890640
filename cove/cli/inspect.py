"""inspect: the API's answers as they are, a list of them, or by a template."""

from __future__ import annotations

from cove.cli.client import query, quote
from cove.cli.fail import ApiError, CliError
from cove.cli.options import Command
from cove.cli.run import complain
from cove.cli.shown import for_terminal
from cove.model import wirejson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cove.cli.client import Client
    from cove.cli.options import Options

# API 1.52 dropped .NetworkSettings.IPAddress and its like, which years of scripts ask for
PATHS = {
    "container": "/v1.51/containers/{}/json",
    "image": "/images/{}/json",
    "network": "/networks/{}",
    "volume": "/volumes/{}",
    "pod": "/cove/v1/pods/inspect?name={}",
    "secret": "/cove/v1/secrets/inspect?name={}",
}


def find_object(client: Client, kinds: list[str], name: str, *, sized: bool) -> Any:
    """The first kind that knows the name, in docker's order."""
    for kind in kinds:
        path = PATHS[kind].format(quote(name))
        try:
            return client.get(path + (query({"size": True}) if sized and kind == "container" else ""))
        except ApiError as error:
            if error.http != 404 or len(kinds) == 1:
                raise
    raise CliError(f"{name}: there is no such {', '.join(kinds[:-1])} or {kinds[-1]}", 1)


def inspector(*kinds: str) -> Callable[[Client, Options], int]:
    """The function of an inspect command over these kinds of objects."""

    def run_inspect(client: Client, options: Options) -> int:
        chosen = list(kinds)
        if options.text("type"):
            if options.text("type") not in PATHS:
                raise CliError(
                    f"--type {options.text('type')}: expected {', '.join(PATHS)}, e.g. --type image"
                )
            chosen = [options.text("type")]
        found, status = [], 0
        for name in options.args:
            try:
                found.append(find_object(client, chosen, name, sized=options.on("size")))
            except CliError as error:
                complain(f"error: {error}")
                status = 1
        format = options.text("format")
        if format == "json":
            print(wirejson.dumps(found))
        elif format:
            from cove.cli.template import apply_template, parse_template

            nodes = parse_template(format)
            for value in found:
                print(for_terminal(apply_template(nodes, value, strict=True)))
        else:
            print(wirejson.pretty(found))
        return status

    return run_inspect


_FORMAT = (
    "f",
    "format",
    "str",
    "FORMAT",
    "json or a template, e.g. '{{.State.Status}}' (default: indented JSON)",
)
_TYPE = ("", "type", "str", "KIND", "Only a container, image, network or volume")
_SIZE = ("s", "size", "bool", "", "Add the size of what a container wrote")


def _entry(name: str, kinds: tuple[str, ...], what: str, flags: tuple[Any, ...], example: str) -> Command:
    return Command(
        name,
        inspector(*kinds),
        "[OPTIONS] NAME...",
        f"Show everything about {what}, as JSON.",
        flags=flags,
        needed=1,
        most=-1,
        example=example,
    )


COMMANDS = {
    "inspect": _entry(
        "inspect",
        ("container", "image", "network", "volume"),
        "containers, images, networks or volumes",
        (_FORMAT, _TYPE, _SIZE),
        "cove inspect -f '{{.State.Status}}' web",
    ),
    "container inspect": _entry(
        "container inspect", ("container",), "containers", (_FORMAT, _SIZE), "cove container inspect web"
    ),
    "image inspect": _entry(
        "image inspect", ("image",), "images", (_FORMAT,), "cove image inspect -f '{{.Id}}' debian"
    ),
    "network inspect": _entry(
        "network inspect", ("network",), "networks", (_FORMAT,), "cove network inspect bridge"
    ),
    "pod inspect": _entry("pod inspect", ("pod",), "pods", (_FORMAT,), "cove pod inspect web"),
    "secret inspect": _entry(
        "secret inspect",
        ("secret",),
        "secrets, but for their content",
        (_FORMAT,),
        "cove secret inspect db-password",
    ),
    "volume inspect": _entry(
        "volume inspect", ("volume",), "volumes", (_FORMAT,), "cove volume inspect -f '{{.Mountpoint}}' data"
    ),
}
