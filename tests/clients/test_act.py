"""act runs a workflow's `run:` steps in containers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.engines import COMPARED_ON_DEMAND, Engine, running_engine
from tests.clients.shellimage import load_shell
from tests.clients.toolbox import require

WORKFLOW = """
on: push
env: {GREETING: hello}
defaults: {run: {shell: sh}}
jobs:
  build:
    runs-on: local
    outputs: {made: "${{ steps.make.outputs.made }}"}
    steps:
      - run: |
          echo "greeting=$GREETING" > made.txt
          echo "LATER=kept" >> "$GITHUB_ENV"
      - id: make
        run: |
          cat made.txt; echo "later=$LATER"
          echo "made=$(cat made.txt)" >> "$GITHUB_OUTPUT"
      - if: failure()
        run: echo never
  use:
    needs: build
    runs-on: local
    strategy: {matrix: {number: [1, 2]}}
    steps:
      - run: echo "number ${{ matrix.number }} got ${{ needs.build.outputs.made }}"
"""


@pytest.fixture(scope="module", params=COMPARED_ON_DEMAND)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    yield from running_engine(request.param)


def test_a_workflow_runs_and_leaves_only_its_cache(engine: Engine, tmp_path: Path) -> None:
    act, image = require("act") / "act", load_shell(engine)
    workflows = tmp_path / "project/.github/workflows"
    workflows.mkdir(parents=True)
    (workflows / "ci.yml").write_text(WORKFLOW)
    command = [
        str(act),
        "push",
        "--platform",
        f"local={image}",
        "--pull=false",
        "--directory",
        str(tmp_path / "project"),
    ]
    environment = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    local = ["--artifact-server-addr", "127.0.0.1", "--no-cache-server"]  # it looks for a way out otherwise
    out = engine.run([*command, *local, "--container-daemon-socket", "-", "--rm"], environment)
    for line in (
        "greeting=hello",
        "later=kept",
        "number 1 got greeting=hello",
        "number 2 got greeting=hello",
    ):
        assert f"| {line}\n" in out, out
    assert "never" not in out.replace("echo never", "")
    assert engine.client.containers.list(all=True) == []
    [kept] = engine.client.volumes.list()
    assert kept.name == "act-toolcache"
    kept.remove()
