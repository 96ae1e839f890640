"""How a build shows itself: lines for a log, a picture that is redrawn for a terminal, the id alone, or JSON.

Steps are called as in BuildKit: `[stage 2/5] RUN make`; one that was found in the cache is CACHED.
"""

from __future__ import annotations

import binascii
import os
import sys

from cove.cli.output import human_size
from cove.cli.shown import printable
from cove.model import wirejson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

_TAIL_LINES = 6  # of a step that runs, on a terminal
_KEPT_LINES = 40  # of a step, for when it fails


class Progress:
    """Shows nothing by itself; keeps what a failure needs."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.kinds: list[str] = []
        self.tails: dict[int, list[str]] = {}
        self.partial: dict[int, str] = {}

    def plan(self, line: Json) -> None:
        """The first line: steps with their texts."""
        steps = line["steps"]
        totals: dict[str, int] = {}
        places = []
        for step in steps:
            totals[step["stage"]] = totals.get(step["stage"], 0) + 1
            places.append(totals[step["stage"]])
        for step, place in zip(steps, places, strict=True):
            self.kinds.append(step["kind"])
            if step["kind"] == "context":
                self.titles.append("[internal] build context")
            else:
                stage = f"stage-{step['stage']}" if step["stage"].isdecimal() else step["stage"]
                self.titles.append(f"[{stage} {place}/{totals[step['stage']]}] {one_line(step['text'])}")
        for warning in line.get("warnings", ()):
            self.say(f"warning: {warning['rule']}: {warning['message']} (line {warning['line']})")

    def say(self, text: str) -> None:
        """A sentence that belongs to no step."""

    def feed(self, line: Json) -> None:
        """One event."""
        if "steps" in line:
            self.plan(line)
        elif "output" in line:
            text = binascii.a2b_base64(line["data"]).decode("utf-8", "replace")
            self._lines(line["output"], text)
        elif "started" in line:
            self.started(line["started"])
        elif "done" in line:
            self.done(line)
        elif "note" in line:
            self.say(line["note"])
        elif "pull" in line and not line["pull"].get("progress"):
            pulled = line["pull"]
            self.say(f"{pulled['id']}: {pulled['status']}" if pulled.get("id") else pulled["status"])

    def _lines(self, step: int, text: str) -> None:
        whole = self.partial.pop(step, "") + text
        *lines, rest = whole.replace("\r\n", "\n").split("\n")
        if rest:
            self.partial[step] = rest[-4096:]
        tail = self.tails.setdefault(step, [])
        for one in lines:
            shown = printable(one.rpartition("\r")[2])
            tail.append(shown)
            self.output(step, shown)
        del tail[:-_KEPT_LINES]

    def started(self, step: int) -> None:
        """A step has begun."""

    def output(self, step: int, text: str) -> None:
        """A line of a step's process."""

    def done(self, line: Json) -> None:
        """A step has its result."""

    def finish(self) -> None:
        """Nothing more comes."""

    def failure(self, line: Json, dockerfile: str) -> str:
        """What is shown of a build that failed, before the error's own sentence."""
        step = line.get("step", -1)
        if not 0 <= step < len(self.titles):
            return ""
        tail = self.tails.get(step, [])
        if rest := self.partial.get(step):
            tail = [*tail, printable(rest)]
        shown = "".join(f"{text}\n" for text in tail)
        place = f"{dockerfile}:{line['line']}\n" if line.get("line") else ""
        return f"------\n > {self.titles[step]}:\n{shown}------\n{place}"


class Plain(Progress):
    """A line for each thing that happens."""

    def __init__(self) -> None:
        super().__init__()
        self._announced: set[int] = set()

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def _announce(self, step: int) -> None:
        if step not in self._announced:
            self._announced.add(step)
            self.say(f"#{step + 1} {self.titles[step]}")

    def started(self, step: int) -> None:
        self._announce(step)

    def output(self, step: int, text: str) -> None:
        self.say(f"#{step + 1} {text}")

    def done(self, line: Json) -> None:
        step = line["done"]
        self._announce(step)
        if rest := self.partial.pop(step, ""):
            self.output(step, printable(rest))
        if line["cached"] and self.kinds[step] not in ("imagesource", "context", "scratch"):
            self.say(f"#{step + 1} CACHED")
        else:
            size = f", {human_size(line['bytes'])}" if line["bytes"] else ""
            self.say(f"#{step + 1} DONE {line['seconds']:.1f}s{size}")


class Redrawn(Progress):
    """For a terminal: what is done scrolls away, what runs is below it with the end of its output."""

    def __init__(self) -> None:
        super().__init__()
        self._running: list[int] = []
        self._drawn = 0

    def say(self, text: str) -> None:
        self._draw(text + "\n")

    def started(self, step: int) -> None:
        if step not in self._running:
            self._running.append(step)
        self._draw()

    def output(self, step: int, text: str) -> None:
        self._draw()

    def done(self, line: Json) -> None:
        step = line["done"]
        if step in self._running:
            self._running.remove(step)
        cached = line["cached"] and self.kinds[step] not in ("imagesource", "context", "scratch")
        how = "CACHED" if cached else f"{line['seconds']:.1f}s"
        width = self._width()
        title = self.titles[step][: width - 14]
        self._draw(f" => {title.ljust(width - 14)} {how:>8}\n")

    def finish(self) -> None:
        self._running.clear()
        self._draw()

    def _width(self) -> int:
        try:
            return max(40, os.get_terminal_size(2).columns)
        except OSError:
            return 80

    def _draw(self, above: str = "") -> None:
        width = self._width()
        lines = []
        for step in self._running[:8]:
            lines.append(f" => {self.titles[step]}"[: width - 1])
            lines += [f" # {text}"[: width - 1] for text in self.tails.get(step, [])[-_TAIL_LINES:]]
        up = f"\x1b[{self._drawn}A\x1b[0J" if self._drawn else ""
        sys.stderr.write(up + above + "".join(f"{line}\n" for line in lines))
        sys.stderr.flush()
        self._drawn = len(lines)


class Lines(Progress):
    """Every event as JSON."""

    def feed(self, line: Json) -> None:
        super().feed(line)
        print(wirejson.dumps(line), flush=True)


def one_line(text: str) -> str:
    """An instruction on one line."""
    return printable(" ".join(text.split()))


def make_progress(kind: str) -> Progress:
    """By the name of --progress."""
    if kind == "quiet":
        return Progress()
    if kind in ("json", "rawjson"):
        return Lines()
    if kind == "plain" or not sys.stderr.isatty():
        return Plain()
    return Redrawn()
