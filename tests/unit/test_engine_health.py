"""What probe results say of a container's health."""

from __future__ import annotations

import pytest

from cove.engine.health import KEPT_RESULTS, Health, ProbeResult, after_probe, pause_ns, probe_args
from cove.model.container import HealthCheck

S = 10**9


def result(code: int) -> ProbeResult:
    return ProbeResult(started_ns=0, ended_ns=1, exit_code=code, output="")


@pytest.mark.parametrize(
    ("test", "args"),
    [
        (("CMD", "a", "b"), ("a", "b")),
        (("CMD-SHELL", "a | b"), ("/bin/sh", "-c", "a | b")),
        (("NONE",), ()),
        ((), ()),
    ],
)
def test_the_probe_is_a_command_or_a_shell_line(test: tuple[str, ...], args: tuple[str, ...]) -> None:
    assert probe_args(HealthCheck(test=test)) == args
    assert probe_args(None) == ()


def test_the_images_shell_runs_a_shell_line() -> None:
    assert probe_args(HealthCheck(test=("CMD-SHELL", "x")), ("/bin/bash", "-ec")) == ("/bin/bash", "-ec", "x")


def test_failures_in_a_row_make_it_unhealthy_and_one_success_heals() -> None:
    health, check = Health(), HealthCheck(test=("CMD", "x"), retries=2)
    after_probe(health, result(1), check, 0)
    assert (health.status, health.failing_streak) == ("starting", 1)
    after_probe(health, result(1), check, 0)
    assert (health.status, health.failing_streak) == ("unhealthy", 2)
    after_probe(health, result(0), check, 0)
    assert (health.status, health.failing_streak) == ("healthy", 0)


def test_failures_within_the_start_period_do_not_count_until_the_first_success() -> None:
    health, check = Health(), HealthCheck(test=("CMD", "x"), retries=1, start_period_ns=10 * S)
    after_probe(health, result(1), check, 5 * S)
    assert (health.status, health.failing_streak) == ("starting", 0)
    after_probe(health, result(0), check, 6 * S)
    after_probe(health, result(1), check, 7 * S)
    assert health.status == "unhealthy"


def test_probes_come_faster_within_the_start_period() -> None:
    check = HealthCheck(
        test=("CMD", "x"), interval_ns=60 * S, start_interval_ns=2 * S, start_period_ns=10 * S
    )
    assert pause_ns(Health(), check, 1 * S) == 2 * S
    assert pause_ns(Health(), check, 11 * S) == 60 * S
    assert pause_ns(Health(status="healthy"), check, 1 * S) == 60 * S


def test_only_the_last_results_are_kept() -> None:
    health, check = Health(), HealthCheck(test=("CMD", "x"))
    for code in range(KEPT_RESULTS + 3):
        after_probe(health, result(code), check, 0)
    assert [kept.exit_code for kept in health.results] == list(range(3, KEPT_RESULTS + 3))
