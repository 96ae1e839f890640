"""Secrets: in a container's memory and nowhere else, exchanged while it runs, back after a crash."""

from __future__ import annotations

import asyncio
import base64
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cove.engine.secret_files import SecretFiles
from cove.model.container import Container
from cove.model.extension import Extension, SecretUse
from cove.storage.secrets import Secrets
from tests.apikit import create, eventually, inspect, logs, remove, run, start, wait
from tests.daemon import Daemon
from tests.system.test_userns import RemapDaemon

WORD = "s3cr3t-hunter2"
OTHER = "0ther-correcthorse"


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def make(daemon: Daemon, name: str, content: str = WORD) -> Any:
    return daemon.http("POST", "/cove/v1/secrets", {"Name": name, "Data": encoded(content)})


@pytest.fixture
def secret(daemon: Daemon) -> Iterator[str]:
    assert make(daemon, "db").status == 201
    yield "db"
    daemon.http("DELETE", "/cove/v1/secrets?name=db")


def test_a_container_reads_its_secret_from_memory_and_can_not_write(
    daemon: Daemon, image: str, secret: str
) -> None:
    script = (
        "cat /run/secrets/db; stat -c ' %a %u %g' /run/secrets/pw; grep ' /run/secrets ' /proc/mounts; "
        "touch /run/secrets/x; echo x >/run/secrets/db"
    )
    container = run(
        daemon, image, "sh", "-c", script, Cove={"secrets": "db,db:target=pw;uid=7;gid=8;mode=0400"}
    )
    wait(daemon, container)
    told = logs(daemon, container).decode(errors="replace")
    assert f"{WORD} 400 7 8" in told
    mount = next(line for line in told.splitlines() if " /run/secrets " in line)
    assert mount.split()[2] == "tmpfs"
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(mount.split()[3].split(","))
    assert told.count("Read-only file system") == 2
    assert not (daemon.run_dir / "secrets").exists()  # nothing stays in memory
    remove(daemon, container)


def test_nothing_shows_a_content(daemon: Daemon, image: str) -> None:
    assert make(daemon, "db").status == 201
    container = run(
        daemon,
        image,
        "sleep",
        "1000",
        Cove={"secrets": "db,:target=own"},
        CoveSecretData={"own": encoded(OTHER)},
    )
    assert inspect(daemon, container)["Cove"] == {"secrets": "db,:target=own"}
    shown = [
        daemon.http("GET", f"/containers/{container}/json").body,
        daemon.http("GET", "/containers/json").body,
        daemon.http("GET", f"/containers/{container}/export").body,
        daemon.http("GET", f"/containers/{container}/changes").body,
        daemon.http("GET", f"/cove/v1/plan?container={container}").body,
        daemon.http("GET", "/cove/v1/secrets").body,
        daemon.http("GET", "/cove/v1/secrets/inspect?name=db").body,
        daemon.http("GET", "/events?since=1&until=2").body,
        daemon.log_text().encode(),
        *(path.read_bytes() for path in daemon.data_root.glob("state.db*")),
        *(path.read_bytes() for path in (daemon.data_root / "events").glob("*")),
    ]
    for text in shown:
        for word in (WORD, OTHER):
            assert word.encode() not in text
            assert encoded(word).encode() not in text
    for path in (daemon.data_root / "secrets").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert (daemon.data_root / "secrets").stat().st_mode & 0o777 == 0o700
    refused = daemon.http("DELETE", "/cove/v1/secrets?name=db")
    assert (refused.status, "in use by" in refused.message) == (409, True)
    remove(daemon, container)
    assert len(list((daemon.data_root / "secrets").iterdir())) == 1  # the container's own has gone with it
    assert daemon.http("DELETE", "/cove/v1/secrets?name=db").status == 204
    assert list((daemon.data_root / "secrets").iterdir()) == []


def test_an_update_reaches_the_containers_that_run_at_once_and_whole(
    daemon: Daemon, image: str, secret: str
) -> None:
    script = "while :; do cat /run/secrets/db; echo; sleep 0.02; done"
    container = run(daemon, image, "sh", "-c", script, Labels={"cove.secrets": "db"})
    eventually(lambda: WORD.encode() in logs(daemon, container))
    answer = daemon.http("POST", "/cove/v1/secrets/update?name=db", {"Data": encoded(OTHER)})
    assert (answer.status, answer.json()["Version"]) == (200, 2)
    eventually(lambda: OTHER.encode() in logs(daemon, container))
    lines = {line[8:] for line in logs(daemon, container).split(b"\n") if line}
    assert lines <= {WORD.encode(), OTHER.encode()}
    remove(daemon, container)


def test_secrets_are_there_after_a_kill_and_after_a_reboot(fresh_daemon: Daemon, image: str) -> None:
    assert make(fresh_daemon, "db").status == 201
    script = "while [ ! -e /go ]; do sleep 0.02; done; cat /run/secrets/db /run/secrets/own"
    container = run(
        fresh_daemon,
        image,
        *("sh", "-c", script),
        Cove={"secrets": "db,:target=own"},
        CoveSecretData={"own": encoded(OTHER)},
    )
    fresh_daemon.kill9()
    # what a crash in the middle of a create leaves
    (fresh_daemon.data_root / "secrets" / "0123.1").write_bytes(b"x")
    fresh_daemon.start()
    assert not (fresh_daemon.data_root / "secrets" / "0123.1").exists()
    assert (
        fresh_daemon.http("POST", "/cove/v1/secrets/update?name=db", {"Data": encoded("new")}).status == 200
    )
    made = fresh_daemon.http("POST", f"/containers/{container}/exec", {"Cmd": ["touch", "/go"]}).json()["Id"]
    fresh_daemon.http("POST", f"/exec/{made}/start", {"Detach": True})
    wait(fresh_daemon, container)
    assert f"new{OTHER}".encode() in logs(fresh_daemon, container)
    assert not (fresh_daemon.run_dir / "secrets").exists()  # as after a reboot
    start(fresh_daemon, container)
    wait(fresh_daemon, container)
    assert logs(fresh_daemon, container).count(f"new{OTHER}".encode()) == 2
    remove(fresh_daemon, container)


def test_a_container_in_a_user_namespace_reads_its_secret(image: str) -> None:
    with RemapDaemon() as daemon:
        daemon.load_image()
        assert make(daemon, "db").status == 201
        script = "stat -c '%u %g' /run/secrets /run/secrets/db; cat /run/secrets/db"
        container = run(
            daemon, image, "sh", "-c", script, Cove={"secrets": "db:uid=5;gid=6;mode=0400"}, User="5"
        )
        wait(daemon, container)
        told = logs(daemon, container).decode(errors="replace")
        assert "0 0\n" in told
        assert "5 6\n" in told
        assert WORD in told
        remove(daemon, container)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nosuch", "No such secret: nosuch"),
        ("db:target=../x", "a file below /run/secrets/"),
        ("db:target=/etc/x", "a file below /run/secrets/"),
        ("db:target=..", "a file below /run/secrets/"),
        ("db:mode=9", "three octal digits"),
        ("db:uid=root", "expected a number"),
        ("db:size=3", "expected target, uid, gid or mode"),
        ("db,db", "two secrets have the target db"),
        (":target=own", "its content is needed"),
    ],
)
def test_a_bad_use_is_refused_by_name(daemon: Daemon, image: str, secret: str, value: str, said: str) -> None:
    body = {"Image": image, "Cmd": ["true"], "Labels": {"cove.secrets": value}}
    answer = daemon.http("POST", "/containers/create", body)
    assert answer.status in (400, 404)
    assert said in answer.message


def test_a_bad_secret_is_refused(daemon: Daemon, secret: str) -> None:
    assert make(daemon, "db").status == 409
    assert make(daemon, "../db").status == 400
    assert make(daemon, "empty", "").status == 400
    big = make(daemon, "big", "x" * (501 << 10))
    assert (big.status, "512000" in big.message) == (400, True)
    bad = daemon.http("POST", "/cove/v1/secrets", {"Name": "x", "Data": "%%%"})
    assert (bad.status, bad.message) == (400, "Data: expected the content in base64")
    assert daemon.http("GET", "/cove/v1/secrets/inspect?name=nosuch").status == 404
    names = [one["Name"] for one in daemon.http("GET", "/cove/v1/secrets").json()]
    assert names == ["db"]


def test_an_images_label_asks_for_nothing(daemon: Daemon, image: str, secret: str) -> None:
    container = create(daemon, image, "true")
    body = daemon.http(
        "POST",
        f"/commit?container={container}&repo=labelled&changes={'LABEL cove.secrets=db'.replace(' ', '%20')}",
    )
    assert body.status == 201, body.message
    taken = run(daemon, "labelled", "ls", "/run/secrets")
    assert wait(daemon, taken) != 0
    remove(daemon, container, taken)
    daemon.http("DELETE", "/images/labelled?force=1")


def test_updates_amid_starts_and_ends_leave_nothing_in_memory_and_reach_who_runs(
    daemon: Daemon, image: str, secret: str
) -> None:
    briefs = [create(daemon, image, "true", Cove={"secrets": "db"}) for _ in range(4)]
    enough = threading.Event()
    wrong: list[str] = []

    def come_and_go(brief: str) -> None:
        while not enough.is_set():
            answer = daemon.http("POST", f"/containers/{brief}/start")
            if answer.status not in (204, 304):
                wrong.append(answer.message)
            wait(daemon, brief)

    workers = [threading.Thread(target=come_and_go, args=(brief,)) for brief in briefs]
    for worker in workers:
        worker.start()
    for number in range(150):
        answer = daemon.http("POST", "/cove/v1/secrets/update?name=db", {"Data": encoded(f"word {number}")})
        assert answer.status == 200, answer.message
    enough.set()
    for worker in workers:
        worker.join()
    assert not wrong
    assert not (daemon.run_dir / "secrets").exists()
    remove(daemon, *briefs)


def test_a_secret_named_by_its_id_is_in_use_too_and_what_a_container_brought_is_its_own(
    daemon: Daemon, image: str
) -> None:
    made = make(daemon, "db").json()["ID"]
    container = create(
        daemon,
        image,
        "true",
        Cove={"secrets": f"{made}:target=db,:target=own"},
        CoveSecretData={"own": encoded(OTHER)},
    )
    refused = daemon.http("DELETE", "/cove/v1/secrets?name=db")
    assert (refused.status, "in use by" in refused.message) == (409, True)
    [owned] = {path.name.split(".")[0] for path in (daemon.data_root / "secrets").iterdir()} - {made}
    body = {"Image": image, "Cmd": ["true"], "Cove": {"secrets": f"{owned}:target=theirs"}}
    assert daemon.http("POST", "/containers/create", body).status == 404
    remove(daemon, container)
    assert daemon.http("DELETE", "/cove/v1/secrets?name=db").status == 204


def test_only_who_has_secrets_in_memory_is_given_new_ones() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as base:
        root = Path(base, "secrets")
        container = cast(
            Container,
            SimpleNamespace(
                id="a" * 64,
                short_id="a" * 12,
                spec=SimpleNamespace(extension=Extension(secrets=(SecretUse(name="db", target="db"),))),
            ),
        )
        words = iter((b"first", b"second", b"third"))
        files = SecretFiles(cast(Secrets, SimpleNamespace(read=lambda _: next(words))), root)

        async def body() -> None:
            await files.refresh(container, None)
            assert not root.exists()
            await files.fill(container, None)
            await files.refresh(container, None)  # between a start's beginning and its record
            assert (root / container.id / "db").read_bytes() == b"second"
            await files.withdraw(container)
            await files.refresh(container, None)  # between an end and its record
            assert not root.exists()

        asyncio.run(body())
