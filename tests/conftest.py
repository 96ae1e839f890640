"""Fixtures for all tests. What drives the kernel is checked for leaks in tests/system and tests/clients."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.daemon import Daemon

# No call of bin/cove-runtime leaves a process behind, but for tests of just that.
os.environ["COVE_RUNTIME_WARM"] = "0"
# A shell's background job ignores SIGINT, and so would every program that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A running daemon for the module's tests, with the image loaded; each test removes what it makes."""
    from tests.daemon import Daemon

    with Daemon() as running:
        running.load_image()
        yield running


@pytest.fixture
def fresh_daemon() -> Iterator[Daemon]:
    """A running daemon of the test's own, with the image loaded: to be killed, restarted and filled."""
    from tests.daemon import Daemon

    with Daemon() as running:
        running.load_image()
        yield running


@pytest.fixture(scope="session")
def image() -> str:
    """The name of the image that both daemons have: busybox with its applets."""
    from tests.daemon import IMAGE

    return IMAGE


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows the logs of the daemons that were running."""
    report: pytest.TestReport = yield
    if report.failed:
        import sys

        from tests.leaks import FAILED

        item.stash[FAILED] = True

        daemons: Any = sys.modules.get("tests.daemon")
        if daemons is not None:
            report.sections.extend(daemons.live_logs())
    return report
