"""plan: what isolating a container would do to the host, step by step, without doing it."""

from __future__ import annotations

import os

from cove.cli import createbody
from cove.cli.client import query
from cove.cli.options import Command
from cove.cli.runflags import CREATE_FLAGS
from cove.model import wirejson

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
    """Numbered steps below the heading of their section; a reason follows the last step that it is for.

    A planned container has no id yet: the API's 64 zeros are shown as ID.
    """
    lines: list[str] = []
    width = len(str(len(steps)))
    for number, step in enumerate(steps, 1):
        following = steps[number] if number < len(steps) else {}
        if number == 1 or step["section"] != steps[number - 2]["section"]:
            lines += ["", f"{step['section']}:"] if lines else [f"{step['section']}:"]
        lines.append(
            f"  {number:>{width}}  {step['describe'].replace('0' * 64, 'ID').replace('0' * 12, 'ID')}"
        )
        why = step.get("why")
        if why and (following.get("why"), following.get("section")) != (why, step["section"]):
            lines.append(dim(f"  {'':>{width}}    {why}"))
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
