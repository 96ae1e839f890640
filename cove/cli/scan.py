"""What is in an image: bills of materials."""

from __future__ import annotations

import os

from cove.cli.archivefile import save_stream
from cove.cli.client import query
from cove.cli.fail import CliError
from cove.cli.options import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.cli.client import Client
    from cove.cli.options import Options

FORMATS = ("cyclonedx", "spdx", "json")


def source_date() -> str:
    """SOURCE_DATE_EPOCH (reproducible-builds.org/specs/source-date-epoch), or ""."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if text and not text.isdecimal():
        raise CliError(f"SOURCE_DATE_EPOCH={text}: expected seconds since 1970, e.g. 1700000000")
    return text


def run_sbom(client: Client, options: Options) -> int:
    """cove sbom"""
    form = options.text("format") or "cyclonedx"
    if form not in FORMATS:
        raise CliError(f"--format {form}: expected one of {', '.join(FORMATS)}, e.g. --format spdx")
    parameters = query({"image": options.args[0], "format": form, "epoch": source_date()})
    answer = client.request("GET", f"/cove/v1/images/sbom{parameters}")
    if options.text("output"):
        save_stream(answer, options.text("output"), "sbom")
        return 0
    from cove.cli.session import write_all

    for data in answer.chunks():
        write_all(1, data)
    return 0


COMMANDS = {
    "sbom": Command(
        "sbom",
        run_sbom,
        "[OPTIONS] IMAGE",
        "Write an image's bill of materials: every package that is found in it, and the layer that brought it.",
        flags=(
            ("", "format", "str", "FORMAT", "cyclonedx, spdx or json (default: cyclonedx)"),
            ("o", "output", "str", "FILE", "Write to FILE (default: standard output)"),
        ),
        needed=1,
        example="cove sbom --format spdx -o debian.spdx.json debian",
    ),
}
