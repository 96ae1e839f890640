"""Prometheus' text format, version 0.0.4: families of samples become lines. Pure.

Written here rather than with prometheus-client, whose import takes 5 MiB of the daemon's memory; a test reads the
result with that library's parser.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


class Histogram:
    """How many observations were at most so large, their sum and their number."""

    __slots__ = ("bounds", "count", "counts", "total")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * len(bounds)  # each for its own bucket; rendered as running sums
        self.count = 0
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.count += 1
        self.total += value
        place = bisect_left(self.bounds, value)
        if place < len(self.counts):
            self.counts[place] += 1


class Page:
    """The text of one scrape, family by family."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, help: str) -> None:
        """Begin a family; `kind` is counter, gauge or histogram."""
        self._lines += [f"# HELP {name} {help}", f"# TYPE {name} {kind}"]

    def sample(self, name: str, value: float, labels: Mapping[str, str] | None = None) -> None:
        self._lines.append(f"{name}{_labels(labels)} {_number(value)}")

    def single(self, name: str, kind: str, help: str, value: float) -> None:
        """A family with one sample."""
        self.family(name, kind, help)
        self.sample(name, value)

    def histogram(self, name: str, found: Histogram, labels: Mapping[str, str] | None = None) -> None:
        """The samples of a histogram."""
        running = 0
        for bound, count in zip(found.bounds, found.counts, strict=True):
            running += count
            self.sample(f"{name}_bucket", running, {**(labels or {}), "le": f"{bound:g}"})
        self.sample(f"{name}_bucket", found.count, {**(labels or {}), "le": "+Inf"})
        self.sample(f"{name}_sum", found.total, labels)
        self.sample(f"{name}_count", found.count, labels)

    def render(self) -> bytes:
        return ("\n".join(self._lines) + "\n").encode("utf-8", "replace")


def _labels(labels: Mapping[str, str] | None) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items()) + "}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))
