"""The progress of images that come and go: a line for each layer, redrawn on a terminal, plain lines elsewhere.

Takes Docker's JSON lines (`status`, `id`, `progressDetail`, `error`). What a registry says is printed without control
characters, and a line never gets wider than the terminal: a wrapped one couldn't be redrawn.
"""

from __future__ import annotations

from cove.cli import terminal
from cove.cli.fail import CliError
from cove.cli.output import human_size
from cove.cli.shown import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TextIO

BAR = 30
_DEFAULT_SIZE = (24, 80)


class Progress:
    """Draws on `stream`; `redraw` when that is a terminal of so many `rows` and `columns`."""

    def __init__(self, stream: TextIO, *, redraw: bool, rows: int = 24, columns: int = 80) -> None:
        self._stream = stream
        self._redraw = redraw
        self._rows = max(rows, 2)
        self._columns = max(columns, 20)
        self._lines: dict[str, int] = {}  # the place of each id's line, from the first one
        self._told: dict[str, str] = {}

    def tell(self, event: dict[str, Any]) -> None:
        """Show one event; CliError when it says that the work failed."""
        if "error" in event or "errorDetail" in event:
            detail = event.get("errorDetail") or {}
            raise CliError(str(event.get("error") or detail.get("message")), 1)
        status, name = str(event.get("status") or ""), str(event.get("id") or "")
        if not status:
            return
        detail = event.get("progressDetail")
        if detail is None or not name:  # not a layer's
            self._lines.clear()
            self._write(f"{name}: {status}" if name else status)
            return
        if not self._redraw:
            if not detail and self._told.get(name) != status:
                self._told[name] = status
                self._write(f"{name}: {status}")
            return
        self._draw(name, f"{name}: {status}{bar(detail)}")

    def _draw(self, name: str, text: str) -> None:
        text = printable(text)[: self._columns - 1]
        if name not in self._lines:
            self._lines[name] = len(self._lines)
            self._stream.write(f"{text}\n")
        else:
            up = len(self._lines) - self._lines[name]
            if up >= self._rows:
                return  # it left the screen
            self._stream.write(f"\x1b[{up}A\r\x1b[2K{text}\x1b[{up}B\r")
        self._stream.flush()

    def _write(self, text: str) -> None:
        self._stream.write(f"{printable(text)}\n")
        self._stream.flush()


def bar(detail: dict[str, Any]) -> str:
    """` [=====>    ]  1.2MB/3.4MB` of a progressDetail, "" when there is nothing to show."""
    current, total = detail.get("current") or 0, detail.get("total") or 0
    if not isinstance(current, int) or not isinstance(total, int) or current <= 0:
        return ""
    if total < current:
        return f"  {human_size(current)}"
    full = BAR * current // total
    drawn = "=" * full + (">" if full < BAR else "")
    return f" [{drawn:<{BAR}}]  {human_size(current)}/{human_size(total)}"


def show_progress(events: Iterable[dict[str, Any]], stream: TextIO, *, quiet: bool = False) -> None:
    """Show events as they come until they end; CliError when one says that the work failed. `quiet`: only that."""
    redraw = stream.isatty()
    rows, columns = terminal.window_size(stream.fileno()) if redraw else (0, 0)
    progress = Progress(
        stream, redraw=redraw, rows=rows or _DEFAULT_SIZE[0], columns=columns or _DEFAULT_SIZE[1]
    )
    for event in events:
        if not quiet or "error" in event or "errorDetail" in event:
            progress.tell(event)
