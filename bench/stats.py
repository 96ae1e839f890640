"""Numbers and verdicts: medians, ratios, and what a target says about them. Pure.

A `Row` is one line of the result. Its `cove` and `base` are in `unit`; `base` is what the row
is compared with (`against`). `judge` turns a row's targets into a verdict:

    ok       every target holds           missed   some target doesn't
    no peer  the other side is missing    failed   Cove's side is missing
    -        the row has no target
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["ok", "missed", "no peer", "failed", "-"]
Unit = Literal["ms", "s", "MiB", "KiB", "per s", "MB/s", "x"]


@dataclass(frozen=True, slots=True)
class AtMostTimes:
    """Cove's value is at most `times` the other's (less is better)."""

    times: float

    def describe(self) -> str:
        return f"≤ {self.times:g} times"

    def holds(self, cove: float, base: float | None) -> bool | None:
        return None if base is None else cove <= self.times * base


@dataclass(frozen=True, slots=True)
class TimesFaster:
    """Cove takes at most 1/`times` of what the other takes (less is better)."""

    times: float

    def describe(self) -> str:
        return f"≥ {self.times:g} times faster"

    def holds(self, cove: float, base: float | None) -> bool | None:
        return None if base is None else cove * self.times <= base


@dataclass(frozen=True, slots=True)
class TimesMore:
    """Cove reaches at least `times` what the other reaches (more is better)."""

    times: float

    def describe(self) -> str:
        return f"≥ {self.times:g} times more"

    def holds(self, cove: float, base: float | None) -> bool | None:
        return None if base is None else cove >= self.times * base


@dataclass(frozen=True, slots=True)
class AtMost:
    """Cove's value is at most `limit`, in the row's unit; needs no peer."""

    limit: float
    unit: Unit

    def describe(self) -> str:
        return f"≤ {self.limit:g} {self.unit}"

    def holds(self, cove: float, base: float | None) -> bool | None:
        return cove <= self.limit


Target = AtMostTimes | TimesFaster | TimesMore | AtMost


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the result; None where there is no value, and `problem` says why."""

    what: str
    unit: Unit
    cove: float | None
    base: float | None = None
    against: str = ""
    more_is_better: bool = False
    comparable: bool = True  # False: the two sides had different amounts to do, so no ratio is shown
    targets: tuple[Target, ...] = ()
    note: str = ""
    problem: str = ""


def judge(row: Row) -> Verdict:
    """The verdict of a row. A missed target counts before a missing peer."""
    if row.cove is None:
        return "failed"
    answers = [target.holds(row.cove, row.base) for target in row.targets]
    if False in answers:
        return "missed"
    if None in answers:
        return "no peer"
    return "ok" if answers else "-"


def exit_status(rows: Sequence[Row]) -> int:
    """0: every target holds; 1: one is missed; 2: a side is missing or failed, so some can't be told."""
    verdicts = {judge(row) for row in rows}
    if verdicts & {"failed", "no peer"} or any(row.problem for row in rows):
        return 2
    return 1 if "missed" in verdicts else 0


def ratio(row: Row) -> str:
    """How the two sides relate, for a person: "2.1 times", "12 times faster", or "" without two values."""
    if row.cove is None or row.base is None or row.cove <= 0 or row.base <= 0 or not row.comparable:
        return ""
    if any(isinstance(target, AtMostTimes) for target in row.targets):
        return f"{significant(row.cove / row.base)} times"
    if row.more_is_better:
        return f"{significant(row.cove / row.base)} times more"
    if row.unit in ("ms", "s"):
        return f"{significant(row.base / row.cove)} times faster"
    return f"{significant(row.cove / row.base)} times"


def significant(value: float) -> str:
    """Three digits at most, never an exponent: 0.034, 2.51, 31.2, 1043."""
    if value == 0:
        return "0"
    magnitude = abs(value)
    if magnitude >= 100:
        return f"{value:.0f}"
    for limit, digits in ((10, 1), (1, 2), (0.1, 3)):
        if magnitude >= limit:
            return f"{value:.{digits}f}"
    return f"{value:.4f}"


def median(samples: Sequence[float]) -> float:
    """The median; samples must not be empty."""
    return statistics.median(samples)


def spread(samples: Sequence[float]) -> str:
    """How far apart the middle half of the samples lies: "7.9 to 8.4"."""
    if len(samples) < 2:
        return significant(samples[0])
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return f"{significant(low)} to {significant(high)}"


@dataclass(slots=True)
class Samples:
    """What each side measured, and why a side that failed has nothing more."""

    values: dict[str, list[float]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def median(self, side: str) -> float | None:
        values = self.values.get(side)
        return median(values) if values else None

    def describe(self, side: str, unit: Unit) -> str:
        """A side in a note: "dockerd 241 ms (middle half 230 to 252)"."""
        values = self.values.get(side)
        if not values:
            return f"{side} none"
        text = f"{side} {significant(median(values))} {unit}"
        return f"{text} (middle half {spread(values)})" if len(values) > 3 else text


def interleave(
    rounds: int,
    sides: Mapping[str, Callable[[], Iterable[float]]],
    failures: tuple[type[Exception], ...] = (),
) -> Samples:
    """Run every side once a round, A B A B, so that a busy moment of the machine meets all of them.

    A side that raises one of `failures` is left out from then on; its samples so far are dropped.
    """
    samples = Samples({name: [] for name in sides})
    for _ in range(rounds):
        for name, measure in sides.items():
            if name in samples.problems:
                continue
            try:
                samples.values[name].extend(measure())
            except failures as error:
                samples.problems[name] = str(error) or type(error).__name__
                samples.values[name].clear()
    return samples
