"""Many clients at once: nothing is lost, nothing is left, and a list doesn't wait for them (bench/cases/crowd.py is the
whole size)."""

from __future__ import annotations

from bench.crowd import crowd
from tests.apikit import eventually
from tests.daemon import Daemon


def test_fifty_clients_lose_nothing_and_leave_nothing(fresh_daemon: Daemon, image: str) -> None:
    daemon = fresh_daemon
    for _ in range(50):
        made = daemon.http("POST", "/containers/create", {"Image": image, "Cmd": ["true"]})
        assert made.status == 201
    seen = crowd(daemon.socket_path, clients=50, seconds=6, network="bridge", listed=50, image=image)
    assert not seen.wrong, seen.words
    assert seen.lives > 10 and len(seen.lists_ms) > 10
    left = daemon.http("GET", "/containers/json?all=1").json()
    assert {found["State"] for found in left} == {"created"} and len(left) == 50
    for found in left:
        assert daemon.http("DELETE", f"/containers/{found['Id']}").status == 204
    execs = daemon.run_dir / "exec"
    eventually(lambda: not execs.exists() or not list(execs.iterdir()), "the execs' directories to go")
