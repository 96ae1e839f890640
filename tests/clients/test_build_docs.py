"""docs/build.md's examples do what the page says, in its order, against a real daemon."""

from __future__ import annotations

from pathlib import Path

from tests.clients.test_cli_docs import ROOT, bin_directory, run_examples
from tests.daemon import Daemon

__all__ = ["bin_directory"]


def test_the_page_s_examples_print_what_it_says(daemon: Daemon, bin_directory: Path, tmp_path: Path) -> None:
    run_examples(ROOT / "docs" / "build.md", daemon, bin_directory, tmp_path)
