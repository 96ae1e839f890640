"""When containers start again."""

from __future__ import annotations

import pytest

from cove.engine.restart import (
    LONGEST_PAUSE_S,
    count_failure,
    forget_failures,
    pause_s,
    plan_restart,
    wants_start_after_boot,
)
from cove.model.container import RestartPolicy, State

S = 10**9


def state(**fields: object) -> State:
    base: dict[str, object] = {"status": "exited", "wanted": True, "has_been_started": True, "exit_code": 1}
    return State(**{**base, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "fields", "starts"),
    [
        ("no", {}, False),
        ("always", {}, True),
        ("always", {"exit_code": 0}, True),
        ("always", {"wanted": False}, False),
        ("unless-stopped", {}, True),
        ("unless-stopped", {"wanted": False}, False),
        ("on-failure", {}, True),
        ("on-failure", {"exit_code": 0}, False),
        ("on-failure", {"wanted": False}, False),
    ],
)
def test_a_policy_decides_whether_an_exited_container_starts_again(
    policy: str, fields: dict[str, object], starts: bool
) -> None:
    assert (plan_restart(RestartPolicy(name=policy), state(**fields)) is not None) is starts  # type: ignore[arg-type]


def test_on_failure_gives_up_after_its_maximum() -> None:
    policy = RestartPolicy(name="on-failure", maximum_retries=3)
    assert plan_restart(policy, state(restart_count=2)) is not None
    assert plan_restart(policy, state(restart_count=3)) is None


def test_the_pause_doubles_from_a_tenth_of_a_second_to_a_minute() -> None:
    pauses = [pause_s(n) for n in range(12)]
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_S


def test_ten_seconds_of_running_make_the_pause_begin_anew() -> None:
    assert count_failure(state(started_ns=5 * S, failures_in_row=7), 14 * S) == 8
    assert count_failure(state(started_ns=5 * S, failures_in_row=7), 15 * S) == 0


@pytest.mark.parametrize(
    ("policy", "fields", "starts"),
    [
        ("always", {"wanted": False}, True),
        ("always", {"has_been_started": False}, False),
        ("unless-stopped", {"wanted": False}, False),
        ("unless-stopped", {}, True),
        ("on-failure", {"exit_code": 0}, False),
        ("on-failure", {"exit_code": 3}, True),
        ("no", {}, False),
    ],
)
def test_a_starting_daemon_starts_what_its_policy_wants(
    policy: str, fields: dict[str, object], starts: bool
) -> None:
    assert wants_start_after_boot(RestartPolicy(name=policy), state(**fields)) is starts  # type: ignore[arg-type]


def test_one_that_became_unhealthy_restarts_under_any_policy_with_growing_pauses() -> None:
    unhealthy = state(unhealthy="restart", failures_in_row=3)
    assert plan_restart(RestartPolicy(), unhealthy) == pause_s(3)
    assert plan_restart(RestartPolicy(), state(unhealthy="restart", wanted=False)) is None
    limited = RestartPolicy(name="on-failure", maximum_retries=2)
    assert plan_restart(limited, state(unhealthy="restart", restart_count=2)) is None
    assert count_failure(unhealthy, 10**18) == 4
    assert forget_failures(unhealthy, was_healthy=True) == 0
    assert forget_failures(unhealthy, was_healthy=False) == 3
