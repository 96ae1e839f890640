"""Slim: what a container opens is recorded from its first program on, and the image of it does the same."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cove.image.globs import match_name, matches, parse_patterns
from cove.image.slimming import resolve
from cove.model.errors import Invalid
from tests.daemon import Daemon
from tests.imagekit import Dir, Entry, Fifo, File, Hardlink, Symlink, busybox_layer, make_docker_archive
from tests.system.test_image_tools import cove, files_of, load

LAYER: list[Entry] = [
    *busybox_layer(),
    Dir("opt"),
    File("opt/used", b"used"),
    File("opt/unused", b"u" * 200_000),
    File("opt/script", b"#!/bin/sh\ncat /opt/way/used /opt/chain\n", mode=0o755),
    Symlink("opt/way", "../data"),
    Symlink("opt/chain", "/opt/way/second"),
    Symlink("opt/dangling", "nowhere"),
    Symlink("opt/to-unused", "unused"),
    Dir("data"),
    File("data/used", b"data used\n"),
    File("data/target", b"second\n"),
    Symlink("data/second", "target"),
    Dir("keep"),
    File("keep/a.txt", b"a"),
    File("keep/b.bin", b"b"),
    Dir("empty"),
    Fifo("fifo"),
    Dir("var/lib"),
    Dir("var/lib/dpkg"),
    Dir("var/lib/dpkg/info"),
    File("var/lib/dpkg/status", b"Package: tool\n"),
    File("var/lib/dpkg/info/tool:amd64.list", b"/.\n/opt\n/opt/used\n/opt/unused\n"),
]
UPPER: list[Entry] = [File("opt/over", b"upper\n"), Hardlink("opt/over-again", "opt/over")]


@pytest.fixture(autouse=True)
def cleared(daemon: Daemon) -> Iterator[None]:
    load(daemon, make_docker_archive([LAYER, UPPER], names=["fat:1"]))
    yield
    for found in daemon.http("GET", "/containers/json?all=1").json():
        daemon.http("DELETE", f"/containers/{found['Id']}?force=1")
    for name in ("slim:1", "fat:1", "perl:1"):
        daemon.http("DELETE", f"/images/{name}?force=1")
    assert daemon.http("GET", "/cove/v1/images/check?deep=1").json()["Problems"] == []


def slim(daemon: Daemon, *words: str) -> Any:
    done = cove(daemon, "image", "slim", "--network", "none", "--format", "json", *words)
    assert done.returncode == 0, done
    output, brace, report = done.stdout.partition('{"Image":')
    return output.strip(), json.loads(brace + report)


def test_what_a_command_opens_is_kept_and_the_slim_image_runs_it(daemon: Daemon) -> None:
    output, report = slim(daemon, "-t", "slim:1", "fat:1", "/opt/script")
    assert output == "data used\nsecond"
    names = set(files_of(daemon, "slim:1"))
    assert {"opt/script", "data/used", "data/target", "data/second", "bin/busybox", "bin/sh"} <= names
    assert {"opt/way", "opt/chain"} <= names, "the links on the way"
    assert {"empty", "tmp", "etc/passwd", "var/lib/dpkg/status"} <= names
    assert not {"opt/unused", "opt/to-unused", "keep/a.txt", "opt/over", "fifo"} & names
    assert report["KeptFiles"] < report["Files"] and report["Size"] - report["KeptSize"] > 200_000
    done = cove(daemon, "run", "--rm", "--network", "none", "slim:1", "/opt/script")
    assert (done.returncode, done.stdout) == (0, "data used\nsecond\n"), done
    package = next(one for one in report["Packages"] if one["Name"] == "tool")
    assert (package["KeptFiles"], package["Files"], package["Size"]) == (0, 2, 200_004)
    assert report["LargestLeft"][0] == {"Path": "/opt/unused", "Size": 200_000}
    before, after = (daemon.http("GET", f"/images/{name}/json").json() for name in ("fat:1", "slim:1"))
    assert after["Config"] == before["Config"] and len(after["RootFS"]["Layers"]) == 1


def test_include_keeps_what_nobody_opened(daemon: Daemon) -> None:
    include = ("--include", "/keep/*.txt", "--include", "/opt/over*", "--include", "/not/there")
    _, report = slim(daemon, *include, "-t", "slim:1", "fat:1", "true")
    assert report["Unmatched"] == ["/not/there"]
    files = files_of(daemon, "slim:1")
    assert {"keep/a.txt", "opt/over", "opt/over-again"} <= set(files) and "keep/b.bin" not in files
    done = cove(daemon, "image", "slim", "--include", "relative", "fat:1", "true")
    assert done.returncode != 0 and "isn't an absolute path" in done.stderr


def test_without_a_name_nothing_is_made_and_recordings_add_up(daemon: Daemon, tmp_path: Path) -> None:
    before = daemon.http("GET", "/images/json").json()
    recording = str(tmp_path / "opened.json")
    _, first = slim(daemon, "--recording", recording, "fat:1", "cat", "/keep/a.txt")
    _, second = slim(daemon, "--recording", recording, "fat:1", "cat", "/keep/b.bin")
    assert {"/keep/a.txt", "/keep/b.bin", "/bin/busybox"} <= set(
        json.loads(Path(recording).read_text())["Opened"]
    )
    assert second["KeptFiles"] == first["KeptFiles"] + 1
    assert daemon.http("GET", "/images/json").json() == before
    assert daemon.http("GET", "/containers/json?all=1").json() == []


def test_a_running_container_is_recorded_for_a_while(daemon: Daemon) -> None:
    made = {"Image": "fat:1", "Cmd": ["sleep", "600"], "HostConfig": {"NetworkMode": "none"}}
    container = daemon.http("POST", "/containers/create?name=recorded", made).json()["Id"]
    assert daemon.http("POST", f"/containers/{container}/start").status == 204
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            cove(daemon, "exec", "recorded", "cat", "/opt/used")
            time.sleep(0.1)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        found = daemon.http("POST", "/cove/v1/images/record?container=recorded&for=2").json()
        again = daemon.http("POST", "/cove/v1/images/record?container=recorded&start=1")
        assert again.status == 409 and "runs already" in again.message
    finally:
        stop.set()
        thread.join()
    assert "/opt/used" in found["Opened"] and "/opt/unused" not in found["Opened"]


def test_a_recording_that_cannot_begin_leaves_no_container_running(daemon: Daemon) -> None:
    made = {"Image": "fat:1", "Cmd": ["/no/such/program"], "HostConfig": {"NetworkMode": "none"}}
    container = daemon.http("POST", "/containers/create", made).json()["Id"]
    answer = daemon.http("POST", f"/cove/v1/images/record?container={container}")
    assert answer.status == 409 and "isn't running" in answer.message
    answer = daemon.http("POST", f"/cove/v1/images/record?container={container}&start=1")
    assert answer.status >= 400 and "no such file" in answer.message.lower()
    made["Cmd"] = ["true"]
    container = daemon.http("POST", "/containers/create", made).json()["Id"]
    found = daemon.http("POST", f"/cove/v1/images/record?container={container}&start=1").json()
    assert "/bin/busybox" in found["Opened"], "the next recording works"


def test_a_client_that_goes_away_ends_the_recording(daemon: Daemon) -> None:
    made = {"Image": "fat:1", "Cmd": ["sleep", "600"], "HostConfig": {"NetworkMode": "none"}}
    container = daemon.http("POST", "/containers/create", made).json()["Id"]
    assert daemon.http("POST", f"/containers/{container}/start").status == 204
    with daemon.connect() as sock:
        sock.sendall(
            f"POST /cove/v1/images/record?container={container} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        )
        time.sleep(0.5)
    deadline = time.monotonic() + 20
    while True:
        answer = daemon.http("POST", f"/cove/v1/images/record?container={container}&for=1")
        if answer.status == 200:
            break
        assert time.monotonic() < deadline, answer.message
        time.sleep(0.1)


def test_slim_of_a_real_debian_program(daemon: Daemon, tmp_path: Path) -> None:
    """perl with its library, as this machine has them: a program with a loader, libraries and modules."""
    files = subprocess.run(
        "ldd /usr/bin/perl | grep -o '/[^ ]*' | grep -v : ; echo /usr/bin/perl; dpkg -L perl-base",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    tar = tmp_path / "perl.tar"
    found = [Path(name).parent.resolve() / Path(name).name for name in files if Path(name).is_file()]
    names = "\n".join(sorted({str(path) for path in [*found, *(path.resolve() for path in found)]}))
    command = [
        "tar",
        "cf",
        str(tar),
        "--no-recursion",
        "-T",
        "-",
        "/lib64",
        "/lib",
        "/bin",
    ]
    subprocess.run(command, input=names, text=True, check=True, capture_output=True, cwd="/")
    headers = {"Content-Type": "application/x-tar"}
    answer = daemon.http(
        "POST", "/images/create?fromSrc=-&repo=perl&tag=1", tar.read_bytes(), headers=headers
    )
    assert answer.status == 200 and b"error" not in answer.body, answer.body
    program = ("perl", "-e", "use POSIX; print POSIX::floor(3.7), $], qq(\\n)")
    output, report = slim(daemon, "-t", "slim:1", "perl:1", *program)
    assert output.startswith("35.0"), output
    assert report["KeptSize"] < report["Size"]
    done = cove(daemon, "run", "--rm", "--network", "none", "slim:1", *program)
    assert done.stdout.strip() == output, done


# --- pure -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/etc", "etc/ssl/cert.pem", True),
        ("/etc", "etcetera", False),
        ("/etc/*.conf", "etc/a.conf", True),
        ("/etc/*.conf", "etc/d/a.conf", False),
        ("/etc/**/*.conf", "etc/a.conf", True),
        ("/etc/**/*.conf", "etc/d/e/a.conf", True),
        ("/**/x", "x", True),
        ("/a/?b*", "a/xbc", True),
        ("/a/?b*", "a/b", False),
        ("/a/**", "a", True),
        ("/" + "*a" * 60 + "b", "a" * 250, False),
        ("/" + "/".join(["**", "a"] * 40) + "/b", "/".join("a" * 200), False),
    ],
)
def test_patterns(pattern: str, path: str, expected: bool) -> None:
    (parsed,) = parse_patterns([pattern])
    begun = time.monotonic()
    assert matches(parsed, path.encode().split(b"/")) is expected
    assert time.monotonic() - begun < 1


def test_patterns_that_lead_outside_are_refused() -> None:
    for text in ("etc", "/a/../b", "/", "", "/" + "x" * 2000):
        with pytest.raises(Invalid):
            parse_patterns([text])
    with pytest.raises(Invalid):
        parse_patterns(["/a"] * 1001)
    assert match_name(b"", b"") and match_name(b"***", b"") and not match_name(b"?", b"")


def test_links_are_followed_within_the_image() -> None:
    links = {b"lib": b"usr/lib", b"usr/lib/x": b"/lib/y", b"up": b"../../etc", b"a": b"b", b"b": b"a"}
    assert resolve(b"lib/x", links) == b"usr/lib/y"
    assert resolve(b"up/passwd", links) == b"etc/passwd"
    assert resolve(b"a", links) == b"a"
