"""docs/beyond-docker.md's examples do what the page says, in its order, against a real daemon."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cove.api.docker.extension import KEYS
from tests.clients.test_cli_docs import ROOT, bin_directory, run_examples

if TYPE_CHECKING:
    from tests.daemon import Daemon

__all__ = ["bin_directory"]
PAGE = ROOT / "docs" / "beyond-docker.md"


def test_the_page_s_examples_print_what_it_says(
    fresh_daemon: Daemon, bin_directory: Path, tmp_path: Path
) -> None:
    run_examples(PAGE, fresh_daemon, bin_directory, tmp_path)


def test_the_page_s_table_has_every_key() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(KEYS)
