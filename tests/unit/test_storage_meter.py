"""Measuring trees: at the same time once, and a slow one seldom."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from cove.storage import usage
from cove.storage.usage import Meter, Usage


def test_who_asks_meanwhile_gets_the_same_answer_and_a_slow_tree_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    walks: list[Path] = []

    def measure(path: Path) -> Usage:
        walks.append(path)
        assert go_on.wait(60)
        return Usage(len(walks))

    monkeypatch.setattr(usage, "measure_tree", measure)
    monkeypatch.setattr(usage, "QUICK_S", -1.0)  # everything counts as slow
    monkeypatch.setattr(usage, "REST", 1e6)

    async def body() -> None:
        meter = Meter()
        asked = [asyncio.create_task(meter.measure(tmp_path)) for _ in range(5)]
        asked.append(asyncio.create_task(meter.measure(tmp_path)))
        await asyncio.sleep(0)
        asked.pop().cancel()  # one who leaves takes nothing from the others
        go_on.set()
        assert await asyncio.gather(*asked) == [Usage(1)] * 5
        assert await meter.measure(tmp_path) == Usage(1)
        assert walks == [tmp_path]
        monkeypatch.setattr(usage, "QUICK_S", 1e6)
        other = tmp_path / "other"
        assert await meter.measure(other) == Usage(2)
        assert await meter.measure(other) == Usage(3)  # a quick one is measured each time

    asyncio.run(body())
