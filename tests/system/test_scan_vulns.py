"""Vulnerabilities by a real daemon: imports that are whole or nothing, scans, exit statuses, a crash in between."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import ROOT, Daemon
from tests.imagekit import Dir, Entry, File, Whiteout
from tests.system.test_scan import RELEASE, load
from tests.unit.test_scan_packages import POM, jar
from tests.unit.test_scan_secrets import TOKENS
from tests.vulnkit import ENTRIES, LOG4SHELL, TRACKER, entry, package, since, tarred, zipped

STATUS = """Package: libcurl4
Status: install ok installed
Architecture: amd64
Source: curl
Version: 7.88.1-10+deb12u3

Package: libblkid1
Status: install ok installed
Architecture: amd64
Source: util-linux (2.38.1-5)
Version: 2.38.1-5+b1
"""
LAYERS: list[list[Entry]] = [
    [RELEASE, File("var/lib/dpkg/status", STATUS.encode())],
    [
        File("opt/flask.dist-info/METADATA", b"Name: Flask\nVersion: 2.2.4\n"),
        File("app/node_modules/lodash/package.json", b'{"name":"lodash","version":"4.17.20"}'),
        File("app/log4j-core-2.14.1.jar", jar({"META-INF/maven/o/l/pom.properties": POM})),
    ],
]
ALL = tarred({"all.zip": zipped(*ENTRIES), "tracker.json": json.dumps(TRACKER).encode()})


@pytest.fixture(scope="module")
def scanned(daemon: Daemon) -> Iterator[Daemon]:
    load(daemon, "app:1", list(LAYERS))
    answer = daemon.http("POST", "/cove/v1/vulns/import", ALL)
    assert answer.status == 200, answer.body
    assert answer.json()["Added"] == len(ENTRIES) + 2
    yield daemon
    daemon.http("DELETE", "/images/app:1")


def scan(daemon: Daemon, **body: Any) -> Any:
    answer = daemon.http("POST", "/cove/v1/images/scan", {"Image": "app:1", **body})
    assert answer.status == 200, answer.body
    return answer.json()


def ids(report: Any) -> list[str]:
    return [f"{one['Package']} {one['ID']}" for one in report["Vulnerabilities"]]


def cove(daemon: Daemon, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COVE_HOST": daemon.host}
    return subprocess.run(
        [str(ROOT / "bin" / "cove"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        **more,
    )


def test_what_is_wrong_with_an_image_and_which_layer_brought_it(scanned: Daemon) -> None:
    report = scan(scanned)
    assert ids(report) == [
        "org.apache.logging.log4j:log4j-core CVE-2021-44228",
        "Flask CVE-2023-30861",
        "lodash CVE-2021-23337",
        "libblkid1 CVE-2022-0563",
        "libcurl4 CVE-2023-38545",
        "libcurl4 CVE-2023-38546",
    ]
    assert [one["Layer"] for one in report["Vulnerabilities"]] == [1, 1, 1, 0, 0, 0]
    assert report["Summary"]["critical"] == 1 and report["Summary"]["fixable"] == 5
    assert report["Vulnerabilities"][0]["Paths"] == ["/app/log4j-core-2.14.1.jar"]
    assert [one["Name"] for one in report["Databases"]] == ["Debian security tracker", "OSV"]


def test_choosing_what_is_shown(scanned: Daemon) -> None:
    assert len(ids(scan(scanned, Severity="high"))) == 3
    assert len(ids(scan(scanned, OnlyFixed=True))) == 5
    assert len(ids(scan(scanned, Ignore=["GHSA-jfh8-c2jp-5v3r", "CVE-2023-38545:libcurl4"]))) == 4
    assert scan(scanned, Format="summary") == {
        "critical": 1, "high": 2, "medium": 0, "low": 0, "negligible": 1, "unknown": 2,
    }  # fmt: skip
    assert scan(scanned, Format="sarif")["version"] == "2.1.0"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "Image: is missing"),
        ({"Image": "nothing-here"}, 404, "No such image: nothing-here:latest"),
        ({"Image": "app:1", "Severity": "bad"}, 400, "severity bad: expected one of"),
        ({"Image": "app:1", "Format": "xml"}, 400, "format xml: expected one of json, sarif, summary"),
        ({"Image": "app:1", "Ignore": ["x"] * 10_001}, 400, "ignore: 10001 ids; up to 10000"),
    ],
)
def test_errors_name_what_is_wrong(scanned: Daemon, body: Any, status: int, words: str) -> None:
    answer = scanned.http("POST", "/cove/v1/images/scan", body)
    assert answer.status == status and words in answer.message


def test_the_exit_status_is_3_where_something_is_as_bad_as_asked(scanned: Daemon, tmp_path: Path) -> None:
    plain = cove(scanned, "scan", "app:1")
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout.startswith("app:1: debian 12, 5 packages\n")
    assert re.search(
        r"^critical +CVE-2021-44228 +org.apache.logging.log4j:log4j-core +2.14.1 +2.15.0 +1 ",
        plain.stdout,
        re.M,
    )
    assert "Vulnerabilities: 1 critical, 2 high, 1 negligible, 2 unknown; 5 of them fixed" in plain.stdout
    assert cove(scanned, "scan", "--severity", "critical", "app:1").returncode == 3
    ignored = tmp_path / "ignored"
    ignored.write_text(
        "# by the team\nCVE-2021-44228  # behind a proxy\n\nCVE-2023-30861:flask\nCVE-2021-23337\n"
    )
    left = cove(scanned, "scan", "--severity", "high", "--ignore-file", str(ignored), "app:1")
    assert left.returncode == 0 and "Not shown: 3 ignored, 3 below what was asked for" in left.stdout
    ignored.write_text("CVE-1 because\n")
    wrong = cove(scanned, "scan", "--ignore-file", str(ignored), "app:1")
    assert wrong.returncode == 125 and "line 1: expected one id" in wrong.stderr
    assert cove(scanned, "scan", "--severity", "worst", "app:1").returncode == 125
    assert cove(scanned, "scan", "none").returncode == 1


def test_a_broken_import_changes_nothing_and_names_file_and_field(scanned: Daemon) -> None:
    before = scanned.http("GET", "/cove/v1/vulns").body
    broken = tarred(
        {"good.zip": zipped(entry("X-1", package("npm", "a", *since("0")))), "bad.json": b'{"id": "X-2"}'}
    )
    answer = scanned.http("POST", "/cove/v1/vulns/import", broken)
    assert answer.status == 400
    assert answer.message == (
        "bad.json: it isn't an entry of OSV: Object missing required field `modified`; nothing was imported"
    )
    assert scanned.http("GET", "/cove/v1/vulns").body == before
    assert not list((scanned.data_root / "vulns" / "loading").iterdir())


def test_files_and_directories_are_taken_in_by_the_command(fresh_daemon: Daemon, tmp_path: Path) -> None:
    missing = cove(fresh_daemon, "vulns", "info")
    assert missing.returncode == 1 and "there is no database of vulnerabilities yet" in missing.stderr
    load(fresh_daemon, "app:1", list(LAYERS))
    assert "cove vulns import" in cove(fresh_daemon, "scan", "app:1").stderr
    osv = tmp_path / "osv"
    (osv / "below").mkdir(parents=True)
    (osv / "below" / "all.zip").write_bytes(zipped(*ENTRIES[1:]))
    (osv / "one.json").write_text(json.dumps(LOG4SHELL))
    (osv / "README").write_text("not taken")
    tracker = tmp_path / "tracker"
    tracker.write_text(json.dumps(TRACKER))
    done = cove(fresh_daemon, "vulns", "import", str(osv), str(tracker))
    assert done.stdout == "11 entries read: 11 added, 0 changed, 0 unchanged, 0 removed before\n", done.stderr
    again = cove(fresh_daemon, "vulns", "import", str(osv))
    assert again.stdout == "9 entries read: 0 added, 0 changed, 9 unchanged, 0 removed before\n"
    told = cove(fresh_daemon, "vulns", "info").stdout
    assert "OSV                       9" in told and "Debian security tracker   2" in told
    (osv / "one.json").chmod(0)
    assert cove(fresh_daemon, "vulns", "import", str(tmp_path / "none")).returncode == 1


def test_a_daemon_that_is_killed_in_an_import_has_the_old_database_and_nothing_else(
    fresh_daemon: Daemon,
) -> None:
    daemon = fresh_daemon
    assert daemon.http("POST", "/cove/v1/vulns/import", ALL).status == 200
    load(daemon, "app:1", list(LAYERS))
    before = ids(scan(daemon))
    loading = daemon.data_root / "vulns" / "loading"
    begun = threading.Event()

    def slowly() -> Iterator[bytes]:
        yield zipped(*(entry(f"X-{n}", package("npm", "lodash", *since("0"))) for n in range(500)))[:20_000]
        begun.set()
        time.sleep(30)

    def send() -> None:
        try:
            daemon.http("POST", "/cove/v1/vulns/import", slowly())
        except OSError:
            pass

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    assert begun.wait(20)
    deadline = time.monotonic() + 20
    while not list(loading.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(loading.iterdir())
    daemon.kill9()
    daemon.start()
    assert not list(loading.iterdir())
    assert ids(scan(daemon)) == before
    assert sorted(path.name for path in (daemon.data_root / "vulns").iterdir()) == [
        "database.sqlite",
        "loading",
    ]


def test_two_imports_at_once_both_count(fresh_daemon: Daemon) -> None:
    statuses: list[int] = []

    def send(number: int) -> None:
        data = zipped(*(entry(f"X-{number}-{n}", package("npm", "a", *since("0"))) for n in range(50)))
        statuses.append(fresh_daemon.http("POST", "/cove/v1/vulns/import", data).status)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 4
    assert fresh_daemon.http("GET", "/cove/v1/vulns").json()["Sources"][0]["Entries"] == 200


def test_secrets_of_every_layer_are_found_those_too_that_a_later_one_deletes(scanned: Daemon) -> None:
    token = TOKENS["github-token"]
    config = {"Cmd": ["sh"], "Env": ["DB_PASSWORD=hunter2hunter2"]}
    layers = [
        [File("root/.netrc", b"machine example.org login me password hunter2hunter2\n", mode=0o600)],
        [File("app/.env", f"A=1\nTOKEN={token}\n".encode())],
        [Whiteout("root/.netrc"), Dir("app")],
    ]
    load(scanned, "secrets:1", list(layers), config=config)
    try:
        report = scan(scanned, Image="secrets:1", Vulnerabilities=False)
        shown = [
            (one["Rule"], one["Path"], one["Line"], one["Layer"], one["Deleted"]) for one in report["Secrets"]
        ]
        assert shown == [
            ("netrc", "/root/.netrc", 1, 0, True),
            ("github-token", "/app/.env", 2, 1, False),
            ("environment", "ENV DB_PASSWORD", 1, -1, False),
        ]
        assert report["Secrets"][0]["CreatedBy"].startswith("layer ")
        assert "hunter2" not in json.dumps(report) and token not in json.dumps(report)
        assert scan(scanned, Image="secrets:1", Secrets=False)["Secrets"] == []
        left = scan(
            scanned, Image="secrets:1", Vulnerabilities=False, Ignore=["netrc:/root/.netrc", "environment"]
        )
        assert [one["Rule"] for one in left["Secrets"]] == ["github-token"]
        kept = b"".join(path.read_bytes() for path in (scanned.data_root / "images" / "scans").iterdir())
        assert b"hunter2" not in kept and token.encode() not in kept
        table = cove(scanned, "scan", "--secrets-only", "--severity", "high", "secrets:1")
        assert table.returncode == 3
        assert re.search(r"^high +token of GitHub +/app/.env:2 +ghp_\w{4}… +1 +- +layer ", table.stdout, re.M)
        assert (
            "Secrets: 3; take them out of the build" in table.stdout and "Vulnerabilities" not in table.stdout
        )
        sarif = scan(scanned, Image="secrets:1", Vulnerabilities=False, Format="sarif")["runs"][0]
        assert [one["ruleId"] for one in sarif["results"]] == [
            "secret/netrc", "secret/github-token", "secret/environment",
        ]  # fmt: skip
    finally:
        scanned.http("DELETE", "/images/secrets:1")
