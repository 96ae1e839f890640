"""testcontainers for Python and Node with their cleaner (programs/python, programs/node)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.dockercli import eventually
from tests.clients.engines import COMPARED_ON_DEMAND, Engine, running_engine
from tests.clients.reaper import load_reaper
from tests.clients.toolbox import PROGRAMS, require


@pytest.fixture(scope="module", params=COMPARED_ON_DEMAND)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    yield from running_engine(request.param)


def walk(engine: Engine, home: Path, command: list[str], environment: dict[str, str]) -> list[str]:
    """The steps that a program printed, whose last container the cleaner has removed."""
    environment |= {
        "HOME": str(home),
        "TMPDIR": str(home),
        "RYUK_CONTAINER_IMAGE": load_reaper(engine),
        "RYUK_RECONNECTION_TIMEOUT": "1s",
        "TESTCONTAINERS_RYUK_RECONNECTION_TIMEOUT": "1s",
        # A machine that is a container itself would be taken for one of this engine.
        "TESTCONTAINERS_HOST_OVERRIDE": "localhost",
    }
    *steps, left = engine.run(command, environment).splitlines()
    assert len(left) == 64
    eventually(lambda: not engine.client.containers.list(all=True, ignore_removed=True))
    return steps


def test_node_s_start_wait_and_are_cleaned_up(engine: Engine, tmp_path: Path) -> None:
    modules = str(require("node") / "node_modules")
    program = str(PROGRAMS / "node/testcontainers.cjs")
    steps = walk(engine, tmp_path, ["node", program], {"NODE_PATH": modules})
    assert steps == "runtime http ports health logs once network".split()


def test_python_s_start_wait_and_are_cleaned_up(engine: Engine, tmp_path: Path) -> None:
    program = str(PROGRAMS / "python/containers_walk.py")
    # An address in TC_HOST would be asked for with the ports of a bridge: the mapped ones are wanted.
    environment = {"TESTCONTAINERS_CONNECTION_MODE": "docker_host"}
    assert (
        walk(engine, tmp_path, [sys.executable, program], environment) == "http logs health network".split()
    )
