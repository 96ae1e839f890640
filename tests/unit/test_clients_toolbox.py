"""The toolbox of tests/clients: what is built is found by its content, and what can't be is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients import toolbox
from tests.clients.toolbox import GoBuild, NodeModules, Unavailable

BUILD = GoBuild(name="tool", packages={"tool": "example.test/tool"})
GO = """#!/bin/sh
case $1 in
env) echo {version} ;;
*) echo "go: example.test/tool: 404 Not Found" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that pins the build; programs come from tmp_path/bin alone."""
    directory = tmp_path / "programs/tool"
    directory.mkdir(parents=True)
    (directory / "go.mod").write_text("module tool\n\ngo 1.24.1\n")
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(toolbox, "PROGRAMS", tmp_path / "programs")
    monkeypatch.setattr(toolbox, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(toolbox, "BUILDS", (BUILD,))
    monkeypatch.setattr(toolbox, "_GO_DIRECTORIES", ())
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return directory


def put_go(tmp_path: Path, version: str) -> None:
    program = tmp_path / "bin/go"
    program.write_text(GO.format(version=version))
    program.chmod(0o755)


def test_what_pins_a_build_names_its_directory(source: Path) -> None:
    before = toolbox.target_of(BUILD)
    (source / "notes.txt").write_text("nothing of it")
    assert toolbox.target_of(BUILD) == before
    (source / "go.sum").write_text("example.test/tool v1 h1:x\n")
    after = toolbox.target_of(BUILD)
    assert after != before
    assert toolbox.target_of(GoBuild(name="tool", packages=BUILD.packages, tags="other")) != after


@pytest.mark.parametrize(
    ("version", "problem"),
    [("go1.23.9", "go1.23.9 is too old: tool needs go 1.24.1"), ("go1.24.1", ""), ("go1.30", "")],
)
def test_a_go_that_is_too_old_is_told(source: Path, tmp_path: Path, version: str, problem: str) -> None:
    put_go(tmp_path, version)
    assert BUILD.find_problem() == problem


def test_what_a_registry_refuses_is_told_and_leaves_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_go(tmp_path, "go1.25")
    with pytest.raises(Unavailable, match=r"go build: go: example\.test/tool: 404 Not Found"):
        toolbox.make(BUILD)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".tool.lock"]
    assert toolbox.main() == 0
    assert "clients: tool can't be had: " in capsys.readouterr().err


def test_a_client_that_was_not_built_is_a_skip_with_its_reason(source: Path, tmp_path: Path) -> None:
    put_go(tmp_path, "go1.25")
    with pytest.raises(pytest.skip.Exception, match=r"tool: it isn't built: sh scripts/clients.sh"):
        toolbox.require("tool")
    toolbox.target_of(BUILD).mkdir(parents=True)
    assert toolbox.require("tool") == toolbox.make(BUILD) == toolbox.target_of(BUILD)


def test_node_modules_need_npm(source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert NodeModules(name="tool").find_problem() == "node isn't installed"
