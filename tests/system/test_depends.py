"""Start order: a start waits for what it depends on, in vain only so long, and a daemon's start keeps the order."""

from __future__ import annotations

from typing import Any

import pytest

from tests.apikit import Call, create, eventually, inspect, remove, run, state, wait
from tests.daemon import Daemon
from tests.system.test_faults_reboot import cut_power

MS = 10**6
READY = {
    "Test": ["CMD-SHELL", "test -e /ready"],
    "Interval": 20 * MS,
    "Retries": 1,
    "StartPeriod": 3_600_000 * MS,
}


def touch(daemon: Daemon, container: str, path: str = "/ready") -> None:
    made = daemon.http("POST", f"/containers/{container}/exec", {"Cmd": ["touch", path]}).json()["Id"]
    daemon.http("POST", f"/exec/{made}/start", {"Detach": True})


def test_a_start_waits_until_all_are_as_asked(daemon: Daemon, image: str) -> None:
    db = create(daemon, image, "sleep", "1000", name="db", Healthcheck={**READY, "StartInterval": 20 * MS})
    job = create(daemon, image, "sh", "-c", "exit 0", name="job")
    cove = {"depends-on": "db:healthy,job:completed,db"}
    web = create(daemon, image, "sleep", "1000", name="web", Cove=cove)
    starting = Call(daemon, "POST", f"/containers/{web}/start")
    told = daemon.http("GET", "/cove/v1/waits?container=web").json()
    assert [(one["Text"], one["Met"]) for one in told] == [
        ("db to be healthy (it is created)", False),
        ("job to have completed (it is created)", False),
        ("db to run (it is created)", False),
    ]
    for container in (db, job):
        assert daemon.http("POST", f"/containers/{container}/start").status == 204
    wait(daemon, job)
    assert state(daemon, web)["Status"] == "created"
    touch(daemon, db)
    answer = starting.result()
    assert answer is not None and answer.status == 204, answer
    assert state(daemon, db)["Health"]["Status"] == "healthy"
    remove(daemon, web, job, db)


@pytest.mark.parametrize(
    ("condition", "command", "said"),
    [
        ("completed", "exit 3", "job to have completed (it is exited (3)), and that won't change"),
        ("healthy", "sleep 1000", "job to be healthy (it is without a health check)"),
    ],
)
def test_what_can_not_come_fails_the_start_at_once(
    daemon: Daemon, image: str, condition: str, command: str, said: str
) -> None:
    job = run(daemon, image, "sh", "-c", command, name="job")
    if condition == "completed":
        wait(daemon, job)
    web = create(daemon, image, "true", Labels={"cove.depends-on": f"job:{condition}"})
    answer = daemon.http("POST", f"/containers/{web}/start")
    assert (answer.status, said in answer.message) == (409, True), answer.message
    remove(daemon, web, job)


def test_a_wait_ends_with_its_time_and_says_for_what(daemon: Daemon, image: str) -> None:
    web = create(daemon, image, "true", name="web", Cove={"depends-on": "nosuch", "depends-timeout": "1s"})
    answer = daemon.http("POST", f"/containers/{web}/start")
    assert answer.status == 409
    assert "has waited 1 s for nosuch to run (it is not there)" in answer.message
    assert inspect(daemon, web)["Cove"] == {"depends-on": "nosuch:started", "depends-timeout": "1s"}
    remove(daemon, web)


def test_a_circle_is_refused(daemon: Daemon, image: str) -> None:
    first = create(daemon, image, "true", name="first", Cove={"depends-on": "second"})
    body: dict[str, Any] = {"Image": image, "Cmd": ["true"], "Cove": {"depends-on": "first:healthy"}}
    answer = daemon.http("POST", "/containers/create?name=second", body)
    assert answer.status == 400
    assert "a circle: second waits for first waits for second" in answer.message
    for bad in ("db:ready", ",", ":healthy"):
        body["Cove"]["depends-on"] = bad
        assert daemon.http("POST", "/containers/create", body).status == 400
    remove(daemon, first)


def test_a_daemon_s_start_keeps_the_order(fresh_daemon: Daemon, image: str) -> None:
    web = create(
        fresh_daemon,
        image,
        *("sleep", "1000"),
        name="web",
        Cove={"depends-on": "db:healthy"},
        RestartPolicy={"Name": "always"},
    )
    script = "rm -f /ready; sleep 0.3; touch /ready; exec sleep 1000"
    db = create(
        fresh_daemon,
        image,
        *("sh", "-c", script),
        name="db",
        Healthcheck={**READY, "StartInterval": 20 * MS},
        RestartPolicy={"Name": "always"},
    )
    for container in (db, web):
        assert fresh_daemon.http("POST", f"/containers/{container}/start").status == 204
    pids = {state(fresh_daemon, container)["Pid"] for container in (web, db)}
    cut_power(fresh_daemon, keep_run_dir=False)
    fresh_daemon.start()
    eventually(lambda: state(fresh_daemon, web)["Status"] == "running")
    assert state(fresh_daemon, db)["Health"]["Status"] == "healthy"
    assert state(fresh_daemon, db)["StartedAt"] < state(fresh_daemon, web)["StartedAt"]
    assert pids.isdisjoint({state(fresh_daemon, container)["Pid"] for container in (web, db)})
    remove(fresh_daemon, web, db)
