"""docs/cli.md's examples do what the page says, in its order, against a real daemon."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.daemon import Daemon

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "cli.md"


def examples(page: Path = PAGE) -> list[list[tuple[str, list[str]]]]:
    """The page's console blocks: each a list of a command and the lines that it prints."""
    blocks = []
    for block in re.findall(r"^```console\n(.*?)^```", page.read_text(), re.M | re.S):
        steps: list[tuple[str, list[str]]] = []
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], []))
            else:
                steps[-1][1].append(line)
        blocks.append(steps)
    return blocks


def matches(expected: list[str], actual: list[str]) -> bool:
    """Whether the output is as on the page; `...` alone is any number of lines, in a line anything."""
    pattern = ""
    for line in expected:
        pattern += "(?:.*\n)*" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + "\n"
    return re.fullmatch(pattern, "".join(line + "\n" for line in actual)) is not None


@pytest.fixture(scope="module")
def bin_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bin")
    for name in ("cove", "cove-runtime"):
        (directory / name).symlink_to(ROOT / "bin" / name)
    return directory


def test_the_page_s_examples_print_what_it_says(daemon: Daemon, bin_directory: Path, tmp_path: Path) -> None:
    assert len(examples()) > 8
    run_examples(PAGE, daemon, bin_directory, tmp_path)


def run_examples(page: Path, daemon: Daemon, bin_directory: Path, tmp_path: Path) -> None:
    """Run a page's commands in its order, compare what they print, and remove what they made."""
    daemon.client.images.get("busybox:latest").tag("debian", "latest")
    environment = {
        "PATH": f"{bin_directory}:{os.environ['PATH']}",
        "COVE_HOST": daemon.host,
        "HOME": str(tmp_path),
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
    }
    try:
        for command, expected in [step for block in examples(page) for step in block]:
            result = subprocess.run(
                ["sh", "-c", command],
                env=environment,
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=100,
                text=True,
            )
            actual = result.stdout.splitlines()
            if result.returncode:
                actual.append(f"[exit {result.returncode}]")
            assert matches(expected, actual), f"$ {command}\n{result.stdout}[exit {result.returncode}]"
    finally:
        for container in daemon.client.containers.list(all=True):
            container.remove(force=True, v=True)
        for volume in daemon.client.volumes.list():
            volume.remove(force=True)
        daemon.client.images.remove("debian:latest", force=True)
