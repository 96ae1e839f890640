"""What a pull or a push tells: a line for each layer, redrawn in place on a terminal, and plain lines elsewhere."""

from __future__ import annotations

import os
import sys

from cove.cli.fail import CliError
from cove.cli.output import human_size
from cove.cli.shown import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_BAR = 50
_REDRAW_S = 0.05
_UNKNOWN_HEIGHT, _UNKNOWN_WIDTH = 24, 80


def follow_transfer(events: Iterable[dict[str, Any]], *, quiet: bool = False) -> list[dict[str, Any]]:
    """Show the events of a transfer as they come; what they carried besides (`aux`). CliError: the stream says so."""
    shown: Plain | Screen = Screen() if os.isatty(1) and os.environ.get("TERM", "dumb") != "dumb" else Plain()
    carried = []
    try:
        for event in events:
            if "error" in event or "errorDetail" in event:
                detail = event.get("errorDetail") or {}
                raise CliError(str(event.get("error") or detail.get("message")), 1)
            if isinstance(event.get("aux"), dict):
                carried.append(event["aux"])
            elif not quiet and event.get("status"):
                shown.show(event)
    finally:
        shown.close()
    return carried


class Plain:
    """Lines for a file or a pipe: each change of a layer's state once, no counts."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def show(self, event: dict[str, Any]) -> None:
        name, status = str(event.get("id") or ""), str(event["status"])
        counts = (event.get("progressDetail") or {}).get("total")
        if name and (counts or self._last.get(name) == status):
            return
        self._last[name] = status
        print(printable(f"{name}: {status}" if name else status), flush=True)

    def close(self) -> None:
        pass


class Screen:
    """Lines of a terminal, the layers' ones redrawn in place while they still fit onto it."""

    def __init__(self) -> None:
        import time

        self._clock = time.monotonic
        self._rows: dict[str, str] = {}
        self._drawn = 0
        self._due_s = 0.0
        self._stale = False

    def show(self, event: dict[str, Any]) -> None:
        name, status = str(event.get("id") or ""), str(event["status"])
        if not name:
            self._draw(also=printable(status))
            return
        detail = event.get("progressDetail") or {}
        total = int(detail.get("total") or 0)
        text = printable(f"{name}: {status}")
        if total:
            text += " " + render_bar(int(detail.get("current") or 0), total)
        fresh = name not in self._rows
        self._rows[name] = text
        if fresh or self._clock() >= self._due_s:
            self._draw()
        else:
            self._stale = True

    def close(self) -> None:
        if self._stale:
            self._draw()

    def _draw(self, also: str = "") -> None:
        """Redraw the layers; `also` goes below them and stays, and layers that come after it begin a new block."""
        width, height = _terminal_size()
        rows = [row[: width - 1] for row in self._rows.values()][-(height - 1) :]
        out = f"\x1b[{self._drawn}A" if self._drawn else ""
        out += "".join(f"\r\x1b[2K{row}\n" for row in rows)
        self._drawn = len(rows)
        if also:
            out += f"\r\x1b[2K{also}\n"
            self._rows.clear()
            self._drawn = 0
        sys.stdout.write(out)
        sys.stdout.flush()
        self._due_s, self._stale = self._clock() + _REDRAW_S, False


def render_bar(current: int, total: int) -> str:
    """`[=====>     ]  1.2MB/5.4MB`, as docker draws it."""
    done = min(_BAR, _BAR * current // total) if total else 0
    bar = "=" * _BAR if done >= _BAR else "=" * done + ">" + " " * (_BAR - done - 1)
    return f"[{bar}]  {human_size(min(current, total))}/{human_size(total)}"


def _terminal_size() -> tuple[int, int]:
    try:
        columns, lines = os.get_terminal_size(1)
    except OSError:
        columns, lines = 0, 0
    return columns or _UNKNOWN_WIDTH, max(2, lines or _UNKNOWN_HEIGHT)
