"""Draw the result: a table for the terminal, Markdown for docs/benchmarks.md, JSON. Pure."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

from bench.stats import Row, judge, ratio, significant

HEADINGS = ("what", "Cove", "beside", "ratio", "target", "verdict")


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, in the order of HEADINGS."""
    cove = f"{significant(row.cove)} {row.unit}" if row.cove is not None else "none"
    beside = row.against
    if row.base is not None:
        beside = f"{row.against} {significant(row.base)} {row.unit}".strip()
    elif row.problem and row.cove is not None:
        beside = f"{row.against}: none"
    target = ", ".join(target.describe() for target in row.targets)
    return (row.what, cove, beside, ratio(row), target, judge(row))


def remarks(rows: Sequence[Row]) -> list[str]:
    """What has to be said below the table: why sides are missing (once each), then how rows were measured."""
    problems = dict.fromkeys(row.problem for row in rows if row.problem)
    notes = [f"{row.what}: {row.note}" for row in rows if row.note]
    return [" ".join(remark.split()) for remark in (*problems, *notes)]


def render_text(rows: Sequence[Row], width: int = 0) -> str:
    """The terminal's table; notes follow it. `width` 0: as wide as the cells are; else the
    first column gives way, down to 24."""
    lines = [HEADINGS, *(cells(row) for row in rows)]
    widths = [max(display_width(line[column]) for line in lines) for column in range(len(HEADINGS))]
    if width:
        spare = width - sum(widths) - 2 * (len(widths) - 1)
        if spare < 0:
            widths[0] = max(min(widths[0], 24), widths[0] + spare)
    drawn = [
        "  ".join(pad(cell, size) for cell, size in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
    drawn.insert(1, "  ".join("-" * size for size in widths))
    notes = remarks(rows)
    return "\n".join([*drawn, *([""] if notes else []), *notes]) + "\n"


def render_markdown(rows: Sequence[Row], machine: Sequence[tuple[str, str]], *, quick: bool) -> str:
    """The page docs/benchmarks.md."""
    page = [
        "# Benchmarks",
        "",
        "Written by `make bench` (`python -m bench --write`). Every row measures both sides in the same run"
        " on the same machine, taking turns, and shows medians; only the ratios mean something elsewhere.",
        "",
        "*The floor* is `bench/floor.c`: the very same isolation made with bare system calls and nothing"
        " else. dockerd, containerd and runc are Debian's packages, with directories and namespaces of their"
        " own (`bench/peers.py` says how).",
        "",
    ]
    if quick:
        page += ["This was a quick run: few samples, smaller numbers of containers.", ""]
    page += [markdown_line(HEADINGS), markdown_line(["---"] * len(HEADINGS))]
    page += [markdown_line(cells(row)) for row in rows]
    notes = [f"- {remark}" for remark in remarks(rows)]
    if notes:
        page += ["", "## How each row was measured", "", *notes]
    page += ["", "## The machine", "", markdown_line(["", ""]), markdown_line(["---", "---"])]
    page += [markdown_line(line) for line in machine]
    return "\n".join(page) + "\n"


def render_json(rows: Sequence[Row], machine: Sequence[tuple[str, str]], *, quick: bool) -> str:
    """The same, for programs: {"machine": {…}, "quick": …, "rows": […]}."""
    listed: list[dict[str, Any]] = [
        {
            "what": row.what,
            "unit": row.unit,
            "cove": row.cove,
            "against": row.against,
            "base": row.base,
            "ratio": ratio(row),
            "targets": [target.describe() for target in row.targets],
            "verdict": judge(row),
            "note": row.note,
            "problem": row.problem,
        }
        for row in rows
    ]
    return (
        json.dumps({"machine": dict(machine), "quick": quick, "rows": listed}, indent=2, ensure_ascii=False)
        + "\n"
    )


def markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def display_width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def pad(text: str, size: int) -> str:
    """Exactly `size` columns: filled with spaces, or cut with an ellipsis."""
    if display_width(text) > size:
        return text[: size - 1] + "…"
    return text + " " * (size - display_width(text))
