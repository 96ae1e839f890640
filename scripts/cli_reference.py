"""Write docs/cli-reference.md from the command tables: `python -P scripts/cli_reference.py >docs/cli-reference.md`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cove.cli import main
from cove.cli.options import Command, render_help


def every_command() -> dict[str, Command]:
    """Each command once, by the words that call it."""
    found = {name: main.load_command(module, name) for name, module, _ in main.COMMANDS}
    for group, (_, members) in main.GROUPS.items():
        for word, (module, name) in members.items():
            command = main.load_command(module, name)
            if command not in found.values():
                found[f"{group} {word}"] = command
    return found


def render_reference() -> str:
    """The page's text."""
    parts = [
        "# cove: every command\n\n"
        "What `cove COMMAND --help` prints, on one page. Written by scripts/cli_reference.py.\n"
    ]
    for name, command in every_command().items():
        parts.append(f"## cove {name}\n\n```\n{render_help(command)}```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(render_reference())
