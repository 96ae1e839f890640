"""docs/daemon.md's examples: files are taken, and commands print what the page says."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

from cove.config.read import read_config
from tests.clients.test_cli_docs import examples, matches

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "daemon.md"


def test_the_page_s_files_are_taken() -> None:
    blocks = re.findall(r"^```json\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(blocks) >= 2
    for block in blocks:
        assert read_config(block, "daemon.json", {}).given == set(json.loads(block))


def test_the_page_s_first_commands_print_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cove").symlink_to(ROOT / "bin" / "cove")
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    for command, expected in examples(PAGE)[0]:
        done = subprocess.run(
            ["sh", "-c", command],
            env=environment,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        actual = done.stdout.splitlines() + ([f"[exit {done.returncode}]"] if done.returncode else [])
        assert matches(expected, actual), f"$ {command}\n{done.stdout}[exit {done.returncode}]"
