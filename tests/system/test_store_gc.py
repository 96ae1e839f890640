"""Garbage collection under kill -9: nothing acknowledged is lost, and after the next start nothing is left over.

Several clients load, tag, squash, save, run and remove images, while the daemon is killed at random moments. What a
client was told counts: an image that was loaded and not removed since is there, whole; one that was removed is gone.
Requests that were under way may have happened or not.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import os
import random
import threading
import time

import pytest

from cove.image.offline import check_data_root
from tests.daemon import Daemon, Response
from tests.imagekit import Entry, File, busybox_layer, make_docker_archive

SEED = int(os.environ.get("COVE_GC_SEED", "0")) or random.SystemRandom().randrange(1 << 30)
ROUNDS = int(os.environ.get("COVE_GC_ROUNDS", "6"))
TAR = {"Content-Type": "application/x-tar"}
BASES: list[list[Entry]] = [
    [*busybox_layer(), *(File(f"base{number}/{n}", os.urandom(3000)) for n in range(60))]
    for number in range(2)
]


class Client:
    """One client's names, and what it knows of each: there, gone, or (None) unsure."""

    def __init__(self, number: int, seed: int, daemon: Daemon) -> None:
        self.random = random.Random(seed)
        self.number = number
        self.daemon = daemon
        self.known: dict[str, bool | None] = {}
        self.errors: list[str] = []
        self.count = 0

    def run(self, stop: threading.Event) -> None:
        steps = (self.load, self.load, self.tag, self.squash, self.save, self.remove, self.remove, self.start)
        while not stop.is_set():
            try:
                self.random.choice(steps)()
            except (OSError, http.client.HTTPException):
                return  # the daemon was killed

    def changing(self, name: str, after: bool, method: str, path: str, body: bytes | None = None) -> Response:
        before = self.known.get(name, False)
        self.known[name] = None
        answer = self.daemon.http(method, path, body, headers=TAR if body else None)
        failed = answer.status >= 400 or b'"error"' in answer.body
        self.known[name] = before if failed else after
        if failed and answer.status not in (404, 409):
            self.errors.append(f"{method} {path}: {answer.status} {answer.body[:300]!r}")
        return answer

    def fresh(self) -> str:
        self.count += 1
        return f"gc{self.number}:{self.count}"

    def some(self) -> str | None:
        names = [name for name, there in self.known.items() if there]
        return self.random.choice(names) if names else None

    def load(self) -> None:
        own = [File(f"own/{n}", self.random.randbytes(2000)) for n in range(20)]
        layers = [self.random.choice(BASES), own, own[:10]][: self.random.randint(1, 3)]
        name = self.fresh()
        archive = make_docker_archive(
            layers, names=[name], compress=self.random.choice((bytes, gzip.compress))
        )
        self.changing(name, True, "POST", "/images/load?quiet=1", archive)

    def tag(self) -> None:
        if (source := self.some()) is not None:
            name = self.fresh()
            repository, _, tag = name.partition(":")
            self.changing(name, True, "POST", f"/images/{source}/tag?repo={repository}&tag={tag}")

    def squash(self) -> None:
        if (source := self.some()) is not None:
            name = self.fresh()
            self.changing(name, True, "POST", f"/cove/v1/images/squash?image={source}&tag={name}")

    def save(self) -> None:
        if (source := self.some()) is not None:
            answer = self.daemon.http("GET", f"/images/{source}/get")
            if answer.status != 200:
                self.errors.append(f"save {source}: {answer.body[:300]!r}")

    def remove(self) -> None:
        if (name := self.some()) is not None:
            self.changing(name, False, "DELETE", f"/images/{name}?force=1")

    def start(self) -> None:
        if (name := self.some()) is None:
            return
        made = {"Image": name, "Cmd": ["true"], "HostConfig": {"NetworkMode": "none", "AutoRemove": True}}
        answer = self.daemon.http("POST", "/containers/create", made)
        if answer.status != 201:
            self.errors.append(f"create of {name}: {answer.body!r}")
            return
        answer = self.daemon.http("POST", f"/containers/{answer.json()['Id']}/start")
        if answer.status != 204 and b"true" not in answer.body:  # an image without a base has no program
            self.errors.append(f"start of {name}: {answer.body!r}")


@pytest.mark.timeout(300)
def test_kills_lose_nothing_acknowledged_and_leave_nothing(fresh_daemon: Daemon) -> None:
    print(f"COVE_GC_SEED={SEED}")
    daemon = fresh_daemon
    chance = random.Random(SEED)
    clients = [Client(number, chance.randrange(1 << 30), daemon) for number in range(3)]
    for turn in range(ROUNDS):
        stop = threading.Event()
        threads = [threading.Thread(target=client.run, args=(stop,)) for client in clients]
        for thread in threads:
            thread.start()
        time.sleep(chance.uniform(0.05, 2.0))
        if turn % 3 == 2:
            with contextlib.suppress(OSError, http.client.HTTPException):  # collections, too, are killed
                threading.Timer(chance.uniform(0, 0.02), daemon.kill9).start()
                daemon.http("POST", '/images/prune?filters={"dangling":["true"]}')
            deadline = time.monotonic() + 10
            while daemon.pid and time.monotonic() < deadline:
                time.sleep(0.01)
        else:
            daemon.kill9()
        stop.set()
        for thread in threads:
            thread.join()
        daemon.start()
        report = daemon.http("GET", "/cove/v1/images/check?deep=1").json()
        assert report["Problems"] == [], f"seed {SEED}, round {turn}"
        offline = check_data_root(daemon.data_root).problems
        assert [one for one in offline if one.is_loss] == [], f"seed {SEED}, round {turn}"
        for client in clients:
            assert client.errors == [], f"seed {SEED}, round {turn}"
            for name, there in client.known.items():
                status = daemon.http("GET", f"/images/{name}/json").status
                assert there is None or (status == 200) == there, (
                    f"seed {SEED}, round {turn}: {name} {status}"
                )
                client.known[name] = status == 200
    for found in daemon.http("GET", "/containers/json?all=1").json():
        daemon.http("DELETE", f"/containers/{found['Id']}?force=1")
    for image in daemon.http("GET", "/images/json?all=1").json():
        daemon.http("DELETE", f"/images/{image['Id']}?force=1")
    assert daemon.http("GET", "/images/json?all=1").json() == []
    deadline = time.monotonic() + 10
    while problems := daemon.http("GET", "/cove/v1/images/check").json()["Problems"]:
        assert time.monotonic() < deadline, problems
        time.sleep(0.05)
    root = daemon.data_root / "images"
    assert os.listdir(root / "layers") == ["0"]
    assert os.listdir(root / "blobs" / "sha256") == [] and os.listdir(root / "frames") == []
