"""plan: what isolating a container would do to the host, step by step, without doing it."""

from __future__ import annotations

import os

from cove.cli import createbody, wirejson
from cove.cli.client import query
from cove.cli.options import Command
from cove.cli.runflags import CREATE_FLAGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cove.cli.client import Client
    from cove.cli.options import Options


def run_plan(client: Client, options: Options) -> int:
    """cove plan"""
    from cove.cli.output import dim, render_value

    body = createbody.build_body(options, os.environ, detach=True)
    answer = client.post("/cove/v1/plan" + query({"name": options.text("name")}), body)
    if options.text("format"):
        if options.text("format") == "json":
            print(wirejson.pretty(answer))
        else:
            print(render_value(options.text("format"), answer))
        return 0
    print(render_plan(answer["steps"], dim), end="")
    return 0


def render_plan(steps: list[dict[str, Any]], dim: Any) -> str:
    """Numbered steps below the heading of their section; `why` follows where there is one."""
    lines: list[str] = []
    section = None
    width = len(str(len(steps)))
    for number, step in enumerate(steps, 1):
        if step.get("section") != section:
            section = step.get("section")
            if lines:
                lines.append("")
            lines.append(f"{section}:")
        lines.append(f"  {number:>{width}}  {step['describe']}")
        if step.get("why"):
            lines.append(dim(f"  {'':>{width}}    {step['why']}"))
    return "\n".join(lines) + "\n" if lines else ""


COMMANDS = {
    "plan": Command(
        "plan",
        run_plan,
        "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        "Print the steps that would isolate a container, each with its reason. Takes the flags of create.",
        flags=(
            *CREATE_FLAGS,
            (
                "",
                "format",
                "str",
                "FORMAT",
                "json or a template, e.g. '{{len .steps}}' (default: numbered text)",
            ),
        ),
        needed=1,
        most=-1,
        stops=True,
        example="cove plan --read-only debian",
    ),
}
