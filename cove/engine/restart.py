"""When an exited container starts again. Pure: the clock is an argument.

Docker's rules (docs: "Start containers automatically"): a stop by hand ends every policy until
the next start by hand; `unless-stopped` also keeps it over a daemon's restart; the pause doubles
from 0.1 s to a minute and begins anew once a container has run for ten seconds. Beyond Docker's, a container
that is to restart when it becomes unhealthy does so under any policy, and its pause begins anew once it has been
healthy.
"""

from __future__ import annotations

from cove.model.container import RestartPolicy, State

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 60.0
STEADY_NS = 10 * 10**9


def plan_restart(policy: RestartPolicy, state: State) -> float | None:
    """Seconds to wait before the next start of a container that has just ended; None: never."""
    if not state.wanted:
        return None
    if state.unhealthy == "restart":
        spent = policy.maximum_retries and state.restart_count >= policy.maximum_retries
        return None if spent else pause_s(state.failures_in_row)
    if policy.name == "no":
        return None
    if policy.name == "on-failure":
        if state.exit_code == 0:
            return None
        if policy.maximum_retries and state.restart_count >= policy.maximum_retries:
            return None
    return pause_s(state.failures_in_row)


def pause_s(failures_in_row: int) -> float:
    """0.1 s, doubling, at most a minute."""
    return float(min(FIRST_PAUSE_S * 2 ** min(failures_in_row, 12), LONGEST_PAUSE_S))


def count_failure(state: State, ended_ns: int) -> int:
    """How many runs in a row were too short to be called steady, the one that just ended included.

    One that ended for being unhealthy counts however long it took; those before it are forgotten at that moment
    (`forget_failures`) when it had been healthy.
    """
    if state.unhealthy != "none":
        return state.failures_in_row + 1
    return 0 if ended_ns - state.started_ns >= STEADY_NS else state.failures_in_row + 1


def forget_failures(state: State, *, was_healthy: bool) -> int:
    """The failures in a row to go on from, when a run becomes unhealthy."""
    return 0 if was_healthy else state.failures_in_row


def wants_start_after_boot(policy: RestartPolicy, state: State) -> bool:
    """Whether a daemon that starts, and finds the container not running, starts it.

    `always` starts even a container that was stopped by hand before, as Docker documents it;
    `unless-stopped` and `on-failure` only one that was still wanted.
    """
    if not state.has_been_started:
        return False
    if policy.name == "always":
        return True
    if policy.name == "unless-stopped":
        return state.wanted
    if policy.name == "on-failure":
        return plan_restart(policy, state) is not None
    return False
