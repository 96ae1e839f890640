"""cove pull and what run pulls: which requests they make, and how progress is drawn."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cove.cli.fail import CliError
from cove.cli.progress import Progress, bar
from cove.cli.pull import full_name, split_name
from tests.unit.cli_fake_daemon import Answer, FakeDaemon, Request, run_cove

LAYER = "0123456789ab"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(tmp_path / "d.sock")
    yield fake
    fake.close()


def lines(*events: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


PULLED = lines(
    {"status": "Pulling from library/debian", "id": "latest"},
    {"status": "Pulling fs layer", "progressDetail": {}, "id": LAYER},
    {"status": "Downloading", "progressDetail": {"current": 1, "total": 2}, "id": LAYER},
    {"status": "Pull complete", "progressDetail": {}, "id": LAYER},
    {"status": "Digest: sha256:00"},
)


@pytest.mark.parametrize(
    ("name", "parts", "full"),
    [
        ("debian", ("debian", ""), "docker.io/library/debian:latest"),
        ("user/app:1", ("user/app", "1"), "docker.io/user/app:1"),
        ("localhost:5000/a:2", ("localhost:5000/a", "2"), "localhost:5000/a:2"),
        ("r.example:5000/a", ("r.example:5000/a", ""), "r.example:5000/a:latest"),
        ("docker.io/user/app", ("docker.io/user/app", ""), "docker.io/user/app:latest"),
        ("a@sha256:00", ("a", "sha256:00"), "docker.io/library/a@sha256:00"),
    ],
)
def test_a_name_s_parts_and_the_name_in_full(name: str, parts: tuple[str, str], full: str) -> None:
    assert split_name(name) == parts
    assert full_name(parts[0], parts[1] or "latest") == full


def test_pull_asks_and_prints_plain_lines_to_a_pipe(daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.handlers["POST /images/create"] = lambda _: (200, PULLED)
    done = run_cove("pull", "debian", "--platform", "linux/arm64", host=daemon.address)
    assert done.stdout.decode().splitlines() == [
        "Using default tag: latest",
        "latest: Pulling from library/debian",
        f"{LAYER}: Pulling fs layer",
        f"{LAYER}: Pull complete",
        "Digest: sha256:00",
        "docker.io/library/debian:latest",
    ]
    asked = daemon.find("POST", "/images/create")
    assert asked.query == {"fromImage": ["debian"], "tag": ["latest"], "platform": ["linux/arm64"]}
    quiet = run_cove("pull", "-q", "debian:1", host=daemon.address)
    assert quiet.stdout == b"docker.io/library/debian:1\n"
    run_cove("pull", "-a", "debian", host=daemon.address)
    assert daemon.requests[-1].query == {"fromImage": ["debian"]}
    assert run_cove("pull", "-a", "debian:1", host=daemon.address).returncode == 125


def test_a_pull_that_fails_says_why(daemon: FakeDaemon) -> None:
    error = {"errorDetail": {"message": "no space left"}, "error": "no space left"}
    daemon.handlers["POST /images/create"] = lambda _: (200, PULLED + lines(error))
    done = run_cove("pull", "-q", "debian", host=daemon.address)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"error: no space left\n")
    daemon.handlers["POST /images/create"] = lambda _: (404, {"message": "manifest unknown"})
    assert run_cove("pull", "debian", host=daemon.address).stderr == b"error: manifest unknown\n"


@pytest.mark.parametrize(
    ("when", "here", "pulls", "code"),
    [
        ("missing", False, 1, 0),
        ("missing", True, 0, 0),
        ("always", True, 1, 0),
        ("never", False, 0, 125),
    ],
)
def test_create_pulls_as_it_is_told(daemon: FakeDaemon, when: str, here: bool, pulls: int, code: int) -> None:
    there = [here]

    def create(_: Request) -> Answer:
        return (201, {"Id": "c" * 64}) if there[0] else (404, {"message": "No such image: debian:latest"})

    def pull(_: Request) -> Answer:
        there[0] = True
        return 200, PULLED

    daemon.handlers["POST /containers/create"] = create
    daemon.handlers["POST /images/create"] = pull
    done = run_cove("create", "--pull", when, "debian", host=daemon.address)
    assert done.returncode == code, done.stderr
    assert sum(r.path.endswith("/images/create") for r in daemon.requests) == pulls
    if when == "missing" and not here:
        assert b"Unable to find image 'debian' locally\nlatest: Pulling from library/debian\n" in done.stderr
        assert done.stdout == b"c" * 64 + b"\n"


def test_layers_are_redrawn_in_their_places() -> None:
    out = io.StringIO()
    progress = Progress(out, redraw=True, rows=24, columns=60)
    for name in ("a", "b"):
        progress.tell({"status": "Waiting", "progressDetail": {}, "id": name})
    progress.tell({"status": "Downloading", "progressDetail": {"current": 5, "total": 10}, "id": "a"})
    progress.tell({"status": "Done\x1b[31m", "progressDetail": {}, "id": "b"})
    text = out.getvalue()
    assert text.startswith("a: Waiting\nb: Waiting\n\x1b[2A\r\x1b[2Ka: Downloading [===============>")
    assert "\x1b[1A\r\x1b[2Kb: Done" in text and "\x1b[31m" not in text
    assert all(len(line) < 60 + 12 for line in text.split("\x1b[2K"))


def test_lines_that_left_the_screen_are_let_be() -> None:
    out = io.StringIO()
    progress = Progress(out, redraw=True, rows=3, columns=60)
    for name in "abcd":
        progress.tell({"status": "Waiting", "progressDetail": {}, "id": name})
    before = out.getvalue()
    progress.tell({"status": "Done", "progressDetail": {}, "id": "a"})
    assert out.getvalue() == before


def test_an_error_among_events_is_raised() -> None:
    with pytest.raises(CliError, match=r"^gone$"):
        Progress(io.StringIO(), redraw=False).tell({"errorDetail": {"message": "gone"}})


@pytest.mark.parametrize(
    ("detail", "text"),
    [
        ({}, ""),
        ({"current": 0, "total": 5}, ""),
        ({"current": 1000, "total": 0}, "  1kB"),
        ({"current": 10, "total": 10}, f" [{'=' * 30}]  10B/10B"),
        ({"current": "x", "total": []}, ""),
    ],
)
def test_bars(detail: dict[str, Any], text: str) -> None:
    assert bar(detail) == text
