"""docs/logging.md: its examples do what the page says, and every driver and option is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cove.logs.drivers import DRIVERS
from tests.clients.test_cli_docs import ROOT, bin_directory, run_examples

if TYPE_CHECKING:
    from tests.daemon import Daemon

__all__ = ["bin_directory"]
PAGE = ROOT / "docs" / "logging.md"


def test_the_page_s_examples_print_what_it_says(
    fresh_daemon: Daemon, bin_directory: Path, tmp_path: Path
) -> None:
    run_examples(PAGE, fresh_daemon, bin_directory, tmp_path)


def test_the_page_has_every_driver_and_option() -> None:
    text = PAGE.read_text()
    names = {name for driver in DRIVERS.values() for name in (driver.name, *(driver.options or ()))}
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []
