"""Work on the files of containers that start, end and are removed meanwhile, and on networks that come and go."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence

from tests.apikit import create
from tests.consistency import check_consistent
from tests.daemon import Daemon, Response

TURNS = 18
_CALM = (200, 201, 204, 304, 400, 403, 404, 409)


def _at_once(*works: Callable[[random.Random], Sequence[Response]]) -> list[str]:
    """Do all of these many times, side by side; what went wrong."""
    wrong: list[str] = []

    def work(number: int) -> None:
        generator = random.Random(number)
        for _ in range(TURNS):
            for answer in works[number](generator):
                if answer.status not in _CALM:
                    wrong.append(f"work {number}: {answer.status} {answer.message}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def test_no_error_of_the_hosts_is_told_when_a_container_went_away_meanwhile(
    fresh_daemon: Daemon, image: str
) -> None:
    daemon = fresh_daemon

    def come_and_go(generator: random.Random) -> list[Response]:
        body = {"Image": image, "Cmd": ["sleep", "100"], "HostConfig": {"NetworkMode": "none"}}
        answers = [daemon.http("POST", "/containers/create?name=brief", body)]
        answers.append(daemon.http("POST", "/containers/brief/start"))
        if generator.random() < 0.5:
            answers.append(daemon.http("POST", "/containers/brief/kill"))
        answers.append(daemon.http("DELETE", "/containers/brief?force=1"))
        return answers

    def read(generator: random.Random) -> list[Response]:
        way = generator.choice(("archive?path=/etc", "changes", "json?size=1", "export"))
        return [daemon.http("GET", f"/containers/brief/{way}")]

    def execute(_: random.Random) -> list[Response]:
        made = daemon.http("POST", "/containers/brief/exec", {"Cmd": ["true"]})
        if made.status != 201:
            return [made]
        return [daemon.http("POST", f"/exec/{made.json()['Id']}/start", {"Detach": True})]

    def commit(generator: random.Random) -> list[Response]:
        answers = [daemon.http("POST", "/commit?container=brief&repo=taken")]
        answers.append(daemon.http("DELETE", f"/images/taken?force={generator.randrange(2)}"))
        return answers

    lasting = create(daemon, image, "true", name="lasting")

    def commit_and_remove(generator: random.Random) -> list[Response]:
        answers = [daemon.http("POST", f"/commit?container={lasting}&repo=kept{generator.randrange(2)}")]
        answers.append(daemon.http("DELETE", f"/images/kept{generator.randrange(2)}"))
        return answers

    wrong = _at_once(come_and_go, read, read, execute, execute, commit, commit_and_remove, commit_and_remove)
    daemon.http("DELETE", f"/containers/{lasting}")
    for name in ("taken", "kept0", "kept1"):
        daemon.http("DELETE", f"/images/{name}?force=1")
    assert not wrong, "\n".join(wrong)
    check_consistent(daemon)


def test_sizes_are_told_and_containers_pruned_while_containers_go(fresh_daemon: Daemon, image: str) -> None:
    daemon = fresh_daemon
    wrong: list[str] = []

    def come_and_go(generator: random.Random) -> list[Response]:
        body = {"Image": image, "Cmd": ["true"], "HostConfig": {"StorageOpt": {"size": "8m"}}}
        made = daemon.http("POST", "/containers/create", body)
        if made.status != 201 or generator.random() < 0.3:
            return [made]  # for the prune
        return [made, daemon.http("DELETE", f"/containers/{made.json()['Id']}?force=1")]

    def read(generator: random.Random) -> list[Response]:
        answer = daemon.http("GET", generator.choice(("/containers/json?all=1&size=1", "/system/df")))
        if answer.status != 200:
            wrong.append(answer.message)
        return [answer]

    def prune(_: random.Random) -> list[Response]:
        return [daemon.http("POST", "/containers/prune")]

    wrong += _at_once(come_and_go, come_and_go, read, read, prune, prune)
    daemon.http("POST", "/containers/prune")
    assert not wrong, "\n".join(wrong)
    check_consistent(daemon)


def test_networks_made_and_removed_by_the_same_name_leave_nothing(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon

    def make(_: random.Random) -> list[Response]:
        return [daemon.http("POST", "/networks/create", {"Name": "brief"})]

    def remove(_: random.Random) -> list[Response]:
        return [daemon.http("DELETE", "/networks/brief")]

    wrong = _at_once(make, make, remove, remove)
    daemon.http("DELETE", "/networks/brief")
    assert not wrong, "\n".join(wrong)
    check_consistent(daemon)
