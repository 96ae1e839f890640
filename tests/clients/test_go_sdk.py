"""The Docker SDK for Go, as programs use it: programs/gosdk/walk goes through its calls on both engines."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.clients.engines import ENGINES, Engine, running_engine
from tests.clients.toolbox import require

STEPS = (
    "system container streams logs exec terminal copy changes stats volumes networks events images errors"
).split()


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    yield from running_engine(request.param)


def test_every_call_does_what_it_says(engine: Engine) -> None:
    walk = require("gosdk") / "walk"
    environment = {**os.environ, "DOCKER_HOST": engine.host}
    done = subprocess.run([walk], env=environment, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == STEPS
    assert engine.client.containers.list(all=True) == []
