"""`cove push` and `cove search`: what is asked of the daemon, and what is printed of its answers."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli_fake_daemon import FakeDaemon, run_cove

LINES: list[dict[str, Any]] = [
    {"status": "The push refers to repository [r.example/app]"},
    {"status": "Preparing", "progressDetail": {}, "id": "abc"},
    {"status": "Pushing", "progressDetail": {"current": 1, "total": 2}, "progress": "1/2 B", "id": "abc"},
    {"status": "Pushing", "progressDetail": {"current": 2, "total": 2}, "progress": "2/2 B", "id": "abc"},
    {"status": "Pushed", "progressDetail": {}, "id": "abc"},
    {"status": "1: digest: sha256:d size: 9"},
    {"progressDetail": {}, "aux": {"Tag": "1", "Digest": "sha256:d", "Size": 9}},
]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path / "d.sock")
    yield daemon
    daemon.close()


def answer_push(fake: FakeDaemon, lines: list[dict[str, Any]]) -> None:
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    fake.handlers["POST /images/r.example/app/push"] = lambda request: (200, body)


def call(fake: FakeDaemon, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return run_cove(*arguments, host=fake.address, env={"DOCKER_CONFIG": str(tmp_path / "docker")})


def test_a_push_takes_the_user_s_credentials_along(fake: FakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    auth = base64.b64encode(b"ada:s3cret").decode()
    (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {"r.example": {"auth": auth}}}))
    answer_push(fake, LINES)
    done = call(fake, tmp_path, "push", "--compression", "zstd", "--compression-level=7", "r.example/app:1")
    assert done.returncode == 0, done.stderr
    request = fake.find("POST", "/push")
    assert request.query == {"tag": ["1"], "compression": ["zstd"], "compression-level": ["7"]}
    sent = json.loads(base64.urlsafe_b64decode(request.headers["x-registry-auth"]))
    assert sent == {"username": "ada", "password": "s3cret", "serveraddress": "r.example"}
    assert done.stdout.decode().splitlines() == [
        "The push refers to repository [r.example/app]",
        "abc: Preparing",
        "abc: Pushed",
        "1: digest: sha256:d size: 9",
    ]


@pytest.mark.parametrize(
    ("arguments", "query", "printed"),
    [
        (["-q", "r.example/app:1"], {"tag": ["1"]}, "r.example/app:1\n"),
        (["-q", "-a", "r.example/app"], {}, "r.example/app:1\n"),
        (
            ["--output", "json", "r.example/app"],
            {"tag": ["latest"]},
            '{"Tag":"1","Digest":"sha256:d","Size":9}\n',
        ),
        (["-q", "--format", "docker", "r.example/app"], {"tag": ["latest"], "format": ["docker"]}, None),
    ],
)
def test_what_scripts_want_is_all_that_is_printed(
    fake: FakeDaemon, tmp_path: Path, arguments: list[str], query: dict[str, list[str]], printed: str | None
) -> None:
    answer_push(fake, LINES)
    done = call(fake, tmp_path, "push", *arguments)
    assert done.returncode == 0 and fake.find("POST", "/push").query == query
    assert printed is None or done.stdout.decode() == printed


def test_a_push_that_fails_ends_with_the_reason(fake: FakeDaemon, tmp_path: Path) -> None:
    answer_push(fake, [*LINES[:2], {"errorDetail": {"message": "denied"}, "error": "denied"}])
    done = call(fake, tmp_path, "push", "-q", "r.example/app:1")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"error: denied\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["r.example/app@sha256:" + "a" * 64], b"a digest can't be pushed to"),
        (["-a", "r.example/app:1"], b"tag can't be used with --all-tags/-a"),
        (["--output", "xml", "r.example/app"], b"--output xml: expected json"),
        (["--compression-level", "high", "r.example/app"], b"expected a whole number"),
    ],
)
def test_a_push_that_makes_no_sense_asks_nobody(
    fake: FakeDaemon, tmp_path: Path, arguments: list[str], sentence: bytes
) -> None:
    done = call(fake, tmp_path, "push", *arguments)
    assert done.returncode and sentence in done.stderr and not fake.requests


def test_a_search_s_table_and_json(fake: FakeDaemon, tmp_path: Path) -> None:
    found = {"name": "r.example/app", "description": "d" * 60, "star_count": 7, "is_official": True}
    fake.handlers["GET /images/search"] = lambda request: (200, [found])
    done = call(fake, tmp_path, "search", "--limit", "3", "-f", "stars=2", "r.example/app")
    assert done.returncode == 0, done.stderr
    rows = done.stdout.decode().splitlines()
    assert rows[0].split() == ["NAME", "DESCRIPTION", "STARS", "OFFICIAL"]
    assert rows[1].split() == ["r.example/app", "d" * 44 + "…", "7", "[OK]"]
    assert fake.find("GET", "/search").query == {
        "term": ["r.example/app"],
        "limit": ["3"],
        "filters": ['{"stars":["2"]}'],
    }
    done = call(fake, tmp_path, "search", "--format", "json", "--no-trunc", "r.example/app")
    assert json.loads(done.stdout)["Description"] == "d" * 60
