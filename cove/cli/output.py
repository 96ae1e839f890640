"""What commands print: tables, rows by template, sizes, ages; colour only on a terminal."""

from __future__ import annotations

import os
import sys

from cove.cli.shown import for_terminal, printable
from cove.model import wirejson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any


def dim(text: str) -> str:
    """Less prominent text, where standard output is a terminal that can show it."""
    return paint(text, "2")


def paint(text: str, code: str) -> str:
    """Text in a colour or style (2 dim, 31 red, 32 green), on the same terms."""
    if os.isatty(1) and os.environ.get("TERM", "dumb") != "dumb" and "NO_COLOR" not in os.environ:
        return f"\x1b[{code}m{text}\x1b[0m"
    return text


def render_value(text: str, value: Any) -> str:
    """One value by a template; `json` alone is compact JSON."""
    from cove.cli.template import apply_template, parse_template

    return wirejson.dumps(value) if text == "json" else apply_template(parse_template(text), value)


def render_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns three spaces apart, as docker prints them."""
    table = [list(headings), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def print_rows(
    rows: Sequence[dict[str, Any]],
    columns: Sequence[tuple[str, str]],
    *,
    format: str = "",
    quiet: str = "",
) -> None:
    """Print rows: the named columns (field, heading) as a table, or by --format, or one field for -q.

    Formats: `json` (an object a line), `table {{.A}}\\t{{.B}}`, or a template for each row.
    """
    headings = dict(columns)
    if quiet and not format:
        out = "".join(f"{row[quiet]}\n" for row in rows)
    elif format in ("", "table"):
        out = render_table(
            [heading for _, heading in columns], [[row[field] for field, _ in columns] for row in rows]
        )
    elif format == "json":
        out = "".join(wirejson.dumps(row) + "\n" for row in rows)
    else:
        out = _by_template(rows, headings, format)
    sys.stdout.write(for_terminal(out))


def _by_template(rows: Sequence[dict[str, Any]], headings: dict[str, str], format: str) -> str:
    from cove.cli.template import apply_template, parse_template

    format = format.replace("\\t", "\t").replace("\\n", "\n")
    is_table = format.startswith("table ")
    nodes = parse_template(format.removeprefix("table ").lstrip() if is_table else format)
    lines = [apply_template(nodes, row, strict=True) for row in rows]
    if not is_table:
        return "".join(line + "\n" for line in lines)
    known = set(headings)
    for row in rows:
        known |= set(row)
    titles = {name: headings.get(name, _heading(name)) for name in known}
    top = _headings_of(nodes, titles)
    cells = [top.split("\t"), *(line.split("\t") for line in lines)]
    width = max(map(len, cells))
    padded = [row + [""] * (width - len(row)) for row in cells]
    return render_table(padded[0], padded[1:])


def _heading(field: str) -> str:
    """`CreatedAt` as CREATED AT."""
    out = ""
    for position, letter in enumerate(field):
        if letter.isupper() and position and not field[position - 1].isupper():
            out += " "
        out += letter.upper()
    return out


def _headings_of(nodes: list[tuple[Any, ...]], titles: dict[str, str]) -> str:
    """A table template's first line: each action replaced by its field's heading."""
    out = ""
    for node in nodes:
        if node[0] == "text":
            out += node[1]
            continue
        if node[0] == "print":
            operands = [operand for stage in node[2] for operand in stage]
            field = next((operand for operand in operands if operand[0] == "field" and operand[1]), None)
            label = next((operand[1] for operand in operands if operand[0] == "value"), "")
            if field is not None:
                name = field[1][-1]
                out += str(label).upper() if name == "Label" else titles.get(name, _heading(name))
    return out


def short_id(text: str, whole: bool = False) -> str:
    """Twelve digits of an id, without its sha256: prefix; `whole` leaves it as it is."""
    return text if whole else text.removeprefix("sha256:")[:12]


def human_size(count: float) -> str:
    """`12.3MB`: powers of 1000, three significant digits, as Docker shows disk space."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return _three_digits(count) + unit


def human_memory(count: float) -> str:
    """`12.3MiB`: powers of 1024, four significant digits, as Docker shows memory."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.4g}{unit}"


def _three_digits(count: float) -> str:
    return f"{count:.3g}" if count < 1000 else str(int(count))


def human_duration(seconds: float) -> str:
    """`About a minute`, `3 hours`: Docker's wording (go-units, HumanDuration)."""
    seconds = int(seconds)
    minutes, hours = seconds // 60, round(seconds / 3600)
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return f"{seconds} second{'s' if seconds > 1 else ''}"
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{seconds // (24 * 3600 * 365)} years"


def ago(epoch_s: float, now_s: float) -> str:
    """`3 hours ago`; N/A for a time that isn't known."""
    return f"{human_duration(max(now_s - epoch_s, 0))} ago" if epoch_s > 0 else "N/A"


def local_time(epoch_s: float) -> str:
    """`2026-01-31 09:30:00 +0100 CET`, as docker prints CreatedAt."""
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(epoch_s))


def parse_rfc3339(text: str) -> float:
    """Seconds since the epoch of an API's time, without the fraction; 0.0 for what isn't one.

    By hand, because the library's parsers import re and locale tables.
    """
    digits = text[:19]
    fields = [digits[0:4], digits[5:7], digits[8:10], digits[11:13], digits[14:16], digits[17:19]]
    if len(digits) != 19 or not all(field.isdecimal() for field in fields):
        return 0.0
    year, month, day, hour, minute, second = map(int, fields)
    # days since 1970-01-01 of the proleptic Gregorian calendar; years begin in March
    year -= month <= 2
    era, of_era = divmod(year, 400)
    days = era * 146097 + of_era * 365 + of_era // 4 - of_era // 100
    days += (153 * ((month + 9) % 12) + 2) // 5 + day - 1 - 719468
    seconds = days * 86400 + hour * 3600 + minute * 60 + second
    zone = text[19:].lstrip(".0123456789")
    if len(zone) == 6 and zone[1:3].isdecimal() and zone[4:6].isdecimal():
        offset = int(zone[1:3]) * 3600 + int(zone[4:6]) * 60
        seconds += offset if zone[0] == "-" else -offset
    return float(max(seconds, 0))


def ellipsis(text: str, width: int) -> str:
    """At most `width` characters, the last one … when something was cut."""
    return text if len(text) <= width else text[: width - 1] + "…"


def key_values(pairs: dict[str, str] | None) -> str:
    """`a=b,c=d`, as docker shows labels."""
    return ",".join(f"{name}={value}" for name, value in (pairs or {}).items())
