"""docs/security.md names code and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ROWS = [line for line in (ROOT / "docs/security.md").read_text().splitlines() if line.startswith("| ")]


def test_every_attack_has_tests_that_exist() -> None:
    missing = []
    for row in ROWS:
        attack, *_, tests = (cell.strip() for cell in row.strip("|").split(" | "))
        if attack.startswith(("attack", "---")):
            continue
        named = re.findall(r"`([\w/.]*)::(\w+)`", tests)
        assert named, attack
        file = ""
        for path, name in named:
            file = path or file
            if f"def {name}(" not in (ROOT / "tests" / file).read_text():
                missing.append(f"{file}::{name}")
    assert missing == []


def test_every_rule_names_code_that_exists() -> None:
    for row in ROWS:
        code = row.strip("|").split(" | ")[2]
        directory = Path()
        for path in re.findall(r"`([\w/.]+\.\w+)`", code):
            directory = Path(path).parent if "/" in path else directory
            assert (ROOT / directory / Path(path).name).exists(), path
