"""The cases: each measures one thing on every side and yields rows of the table, in the table's order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.context import Bench
from bench.stats import Row


@dataclass(frozen=True, slots=True)
class Case:
    """One case: `name` is what `--only` takes."""

    name: str
    title: str
    run: Callable[[Bench], Iterator[Row]]


def all_cases() -> list[Case]:
    """Every case, in the order of DESIGN's table of speed."""
    from bench.cases import build, crowd, daemon, data, life, many, memory, registry, runtime

    return [
        *memory.CASES,
        *life.CASES,
        *many.CASES,
        *daemon.CASES,
        *data.CASES,
        *registry.CASES,
        *build.CASES,
        *runtime.CASES,
        *crowd.CASES,
    ]
