"""dockerode, and testcontainers for Node with its cleaner, on both engines (programs/node)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.dockercli import eventually
from tests.clients.engines import ENGINES, Engine, running_engine
from tests.clients.reaper import load_reaper
from tests.clients.toolbox import PROGRAMS, require


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    yield from running_engine(request.param)


def run_script(engine: Engine, name: str, home: Path, **environment: str) -> list[str]:
    """The lines that a program of programs/node printed."""
    modules = require("node") / "node_modules"
    # A machine that is a container itself would be taken for one of this engine.
    environment |= {"TESTCONTAINERS_HOST_OVERRIDE": "localhost"}
    environment |= {"NODE_PATH": str(modules), "HOME": str(home), "TMPDIR": str(home)}
    return engine.run(["node", str(PROGRAMS / "node" / name)], environment).splitlines()


def test_dockerode_s_calls_do_what_they_say(engine: Engine, tmp_path: Path) -> None:
    lines = run_script(engine, "dockerode.cjs", tmp_path)
    assert lines == "system run states attach logs exec archive objects images events errors".split()
    assert engine.client.containers.list(all=True) == []


def test_testcontainers_start_wait_and_are_cleaned_up(engine: Engine, tmp_path: Path) -> None:
    environment = {
        "RYUK_CONTAINER_IMAGE": load_reaper(engine),
        "TESTCONTAINERS_RYUK_RECONNECTION_TIMEOUT": "1s",
    }
    if engine.name == "cove":  # has no embedded DNS yet (docs/limitations.md)
        environment["BY_ADDRESS"] = "1"
    *steps, left = run_script(engine, "testcontainers.cjs", tmp_path, **environment)
    assert steps == "runtime http ports health logs once network".split()
    assert len(left) == 64
    eventually(lambda: not engine.client.containers.list(all=True, ignore_removed=True))
