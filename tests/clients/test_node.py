"""dockerode, as programs use it: programs/node/dockerode.cjs goes through its calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.engines import COMPARED_ON_DEMAND, Engine, running_engine
from tests.clients.toolbox import PROGRAMS, require


@pytest.fixture(scope="module", params=COMPARED_ON_DEMAND)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    yield from running_engine(request.param)


def test_dockerode_s_calls_do_what_they_say(engine: Engine, tmp_path: Path) -> None:
    modules = str(require("node") / "node_modules")
    program = str(PROGRAMS / "node/dockerode.cjs")
    environment = {"NODE_PATH": modules, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    lines = engine.run(["node", program], environment).splitlines()
    assert lines == "system run states attach logs exec archive objects images events errors".split()
    assert engine.client.containers.list(all=True) == []
