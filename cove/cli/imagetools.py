"""Image tools: check, and what shows where the bytes are."""

from __future__ import annotations

from cove.cli import output
from cove.cli.client import query
from cove.cli.options import Command
from cove.cli.shown import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.cli.client import Client
    from cove.cli.options import Options


def run_check(client: Client, options: Options) -> int:
    """cove image check"""
    found = client.get("/cove/v1/images/check" + query({"deep": options.on("deep")}))
    if options.text("format"):
        print(output.render_value(options.text("format"), found))
    else:
        for problem in found["Problems"]:
            print(printable(f"{problem['Kind']}: {problem['Text']}"))
        read = f", {output.human_size(found['ReadBytes'])} read again" if options.on("deep") else ""
        print(
            f"{found['Images']} images, {found['Layers']} layers, {found['Blobs']} blobs{read}: "
            + (f"{len(found['Problems'])} problems" if found["Problems"] else "all is well")
        )
    return 1 if found["Problems"] else 0


_JSON = ("", "format", "str", "FORMAT", "json or a template, e.g. '{{.Lost}}'")

COMMANDS = {
    "image check": Command(
        "image check",
        run_check,
        "[OPTIONS]",
        "Compare the image store's records with what is on the disk; exit status 1 says that they differ.",
        flags=(("", "deep", "bool", "", "Read every layer again and compare it with its digest"), _JSON),
        example="cove image check --deep",
    ),
}
