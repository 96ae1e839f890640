"""kill -9 of the daemon amid volumes being made and removed: what was answered holds, nothing is half there."""

from __future__ import annotations

import os
import threading
from http.client import HTTPException

from tests.daemon import Daemon

ROUNDS = 4
WORKERS = 3


def test_answered_volumes_survive_kill_9_and_the_others_are_whole_or_gone(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    made: set[str] = set()  # creation answered, removal not begun
    removed: set[str] = set()  # removal answered
    for turn in range(ROUNDS):
        enough = threading.Event()

        def work(worker: int, turn: int = turn, enough: threading.Event = enough) -> None:
            for number in range(10_000):
                name = f"v{turn}-{worker}-{number}"
                try:
                    answer = daemon.http("POST", "/volumes/create", {"Name": name})
                    assert answer.status == 201, answer.body
                    made.add(name)
                    if number % 2:
                        made.discard(name)
                        assert daemon.http("DELETE", f"/volumes/{name}").status == 204
                        removed.add(name)
                except (OSError, HTTPException):
                    return  # the daemon is gone
                if number == 5 + 3 * turn:
                    enough.set()

        workers = [threading.Thread(target=work, args=(worker,)) for worker in range(WORKERS)]
        for worker in workers:
            worker.start()
        assert enough.wait(60)
        daemon.kill9()
        for worker in workers:
            worker.join(60)
            assert not worker.is_alive()
        daemon.start()
        listed = {volume["Name"] for volume in daemon.http("GET", "/volumes").json()["Volumes"]}
        assert made <= listed
        assert not removed & listed
        assert set(os.listdir(daemon.data_root / "volumes")) == listed
        assert all((daemon.data_root / "volumes" / name / "_data").is_dir() for name in listed)
    for name in listed:
        assert daemon.http("DELETE", f"/volumes/{name}").status == 204
