"""Write the keys' reference in docs/daemon.md from the table: `python -P scripts/config_reference.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cove.config.table import KEYS, Key  # noqa: E402

PAGE = ROOT / "docs" / "daemon.md"
BEGIN = "<!-- written by scripts/config_reference.py -->\n"
END = "<!-- end -->\n"


def render_keys() -> str:
    """A section for each part of the table, and one for what has no effect or is refused."""
    lines: list[str] = []
    section = ""
    for key in (key for key in KEYS if not key.ignored and not key.refused):
        if key.section != section:
            section = key.section
            lines += ["", f"### {section}", "", "| key | takes | what it does |", "| --- | --- | --- |"]
        lines.append(_row(key))
    for title, found in (
        ("Taken without effect", [key for key in KEYS if key.ignored]),
        ("Refused", [key for key in KEYS if key.refused]),
    ):
        lines += ["", f"### {title}", "", "| key | why |", "| --- | --- |"]
        lines += [f"| `{key.name}` | {key.ignored or key.refused} |" for key in found]
    return "\n".join(lines[1:]) + "\n"


def _row(key: Key) -> str:
    default = key.kind.to_json(key.default)
    notes = [key.help]
    if default not in ("", [], {}):
        notes.append(f"default `{json.dumps(default)}`")
    notes.append(f"e.g. `{json.dumps(key.example)}`")
    text = "; ".join(notes)
    flag = f"; flag `{key.option}`" if key.flag else ""
    names = ", ".join(f"`{name}`" for name in (key.name, *key.aliases))
    marks = ("" if key.own is False else " *") + (" ↻" if key.reload else "")
    return f"| {names}{marks} | {key.kind.json} | {text}{flag} |"


def renew(page: str) -> str:
    """The page with the reference of today."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{render_keys()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(renew(PAGE.read_text()))
