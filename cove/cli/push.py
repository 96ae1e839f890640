"""push and search: images to registries, and what registries have."""

from __future__ import annotations

import sys

from cove.cli import output
from cove.cli.client import filters, query, quote
from cove.cli.credentials import encode_header, find_credentials, registry_of
from cove.cli.fail import CliError
from cove.cli.images import split_reference
from cove.cli.options import Command
from cove.cli.progress import show_progress
from cove.model import wirejson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from cove.cli.client import Client
    from cove.cli.options import Options

COLUMNS = (
    ("Name", "NAME"),
    ("Description", "DESCRIPTION"),
    ("StarCount", "STARS"),
    ("IsOfficial", "OFFICIAL"),
)
FORMATS = ("", "json")


def run_push(client: Client, options: Options) -> int:
    """cove push"""
    reference = options.args[0]
    if "@" in reference:
        raise CliError(
            f"{reference}: a digest can't be pushed to: name a tag, e.g. registry.example/app:1", 1
        )
    repository, tag = split_reference(reference)
    if options.on("all-tags"):
        if tag:
            raise CliError("tag can't be used with --all-tags/-a", 1)
    else:
        tag = tag or "latest"
        if not options.on("quiet") and repository == reference and not options.text("output"):
            print("Using default tag: latest")
    if options.text("output") not in FORMATS:
        raise CliError(f"--output {options.text('output')}: expected json, e.g. --output json")
    machine = options.text("output") == "json"
    parameters = {
        "tag": tag,
        "platform": options.text("platform"),
        "compression": options.text("compression"),
        "compression-level": options.number("compression-level"),
        "format": options.text("format"),
    }
    answer = client.request(
        "POST",
        f"/images/{quote(repository)}/push" + query(parameters),
        headers=encode_header(find_credentials(registry_of(reference))),
    )
    pushed: list[dict[str, Any]] = []
    show_progress(_keep_results(answer.lines(), pushed), sys.stdout, quiet=options.on("quiet") or machine)
    if machine:
        for one in pushed:
            print(wirejson.dumps(one))
    elif options.on("quiet"):
        for one in pushed:
            print(f"{repository}:{one['Tag']}")
    return 0


def _keep_results(
    events: Iterable[dict[str, Any]], results: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The events as they come; what was pushed, which is nothing to show, goes into `results`."""
    for event in events:
        if isinstance(event.get("aux"), dict):
            results.append(event["aux"])
        else:
            yield event


def run_search(client: Client, options: Options) -> int:
    """cove search"""
    term = options.args[0]
    limit = options.number("limit")
    asked = {"term": term, "limit": limit, "filters": filters(options.all("filter"))}
    answer = client.request(
        "GET", "/images/search" + query(asked), headers=encode_header(find_credentials(registry_of(term)))
    )
    whole = options.on("no-trunc")
    rows = [
        {
            "Name": found["name"],
            "Description": found["description"] if whole else output.ellipsis(found["description"], 45),
            "StarCount": str(found["star_count"]),
            "IsOfficial": "[OK]" if found["is_official"] else "",
            "IsAutomated": "[OK]" if found.get("is_automated") else "",
        }
        for found in answer.json() or ()
    ]
    output.print_rows(rows, COLUMNS, format=options.text("format"))
    return 0


COMMANDS = {
    "push": Command(
        "push",
        run_push,
        "[OPTIONS] NAME[:TAG]",
        "Push an image to the registry that its name says (default: Docker Hub).",
        flags=(
            ("a", "all-tags", "bool", "", "Push every tag of the name"),
            ("q", "quiet", "bool", "", "Print the pushed names only"),
            (
                "",
                "compression",
                "str",
                "KIND",
                "Compress layers by gzip or zstd (default: as they came, else gzip)",
            ),
            ("", "compression-level", "int", "N", "1 (fast) to 9 for gzip, to 19 for zstd (default: 2, 3)"),
            ("", "format", "str", "KIND", "Write an oci or docker manifest (default: as it came, else oci)"),
            ("", "output", "str", "json", "Print tag, digest and size of what was pushed as JSON"),
            ("", "platform", "str", "OS/ARCH", "Push this platform: an image here has just one"),
        ),
        needed=1,
        example="cove push registry.example:5000/team/app:1.0\n"
        "cove push --compression zstd registry.example:5000/team/app:1.0",
    ),
    "search": Command(
        "search",
        run_search,
        "[OPTIONS] TERM",
        "Look for repositories at Docker Hub, or at the registry that TERM begins with.",
        flags=(
            ("f", "filter", "list", "NAME=VALUE", "Only those that match: is-official=true, stars=3"),
            ("", "format", "str", "FORMAT", "json, a template, or 'table …', e.g. '{{.Name}}'"),
            ("", "limit", "int", "N", "Show up to N, at most 100 (default: 25)"),
            ("", "no-trunc", "bool", "", "Show descriptions in full"),
        ),
        needed=1,
        example="cove search --filter stars=10 postgres\ncove search registry.example:5000/team",
    ),
}
