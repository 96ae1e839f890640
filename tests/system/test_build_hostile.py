"""Contexts and Dockerfiles that mean harm: the build ends, quickly, and the daemon answers others meanwhile."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.daemon import IMAGE, Daemon
from tests.imagekit import Entry, File, Hardlink, Symlink, make_layer

TAR = {"Content-Type": "application/x-tar"}


def build(daemon: Daemon, dockerfile: str, *entries: Entry) -> str:
    """The whole stream of a build."""
    context = make_layer([File("Dockerfile", dockerfile.encode()), *entries])
    return daemon.http("POST", "/build?nocache=1&rm=1", context, headers=TAR).body.decode()


@pytest.mark.parametrize("source", ["*a" * 40 + "b", "*?" * 40 + "b", "*[ab]" * 20 + "c"])
def test_a_wildcard_of_many_stars_holds_nobody_up(daemon: Daemon, source: str) -> None:
    answers: list[str] = []
    thread = threading.Thread(
        target=lambda: answers.append(build(daemon, f"FROM scratch\nCOPY {source} /x/\n", File("a" * 250)))
    )
    begun = time.monotonic()
    thread.start()
    while thread.is_alive() and time.monotonic() - begun < 60:
        asked = time.monotonic()
        assert daemon.http("GET", "/_ping", timeout_s=10).status == 200
        assert time.monotonic() - asked < 5
        thread.join(0.1)
    assert answers and "no source files were specified" in answers[0]


def test_a_wildcard_of_many_stars_in_a_stage_is_as_quick(daemon: Daemon) -> None:
    long = "a" * 250
    told = build(
        daemon,
        f"FROM scratch AS one\nCOPY {long} /\nFROM scratch\nCOPY --from=one /{'*a' * 40}b /x/\n",
        File(long, b"x"),
    )
    assert "no source files were specified" in told


def test_a_context_as_deep_as_a_path_can_be_is_built_or_refused_in_a_sentence(daemon: Daemon) -> None:
    deep = "/".join(["d"] * 1900)
    told = build(daemon, "FROM scratch\nCOPY . /\n", File(f"{deep}/f", b"x"))
    assert "Successfully built" in told or "errorDetail" in told
    assert "recursion" not in told.lower() and "Traceback" not in daemon.log_text()
    assert daemon.http("GET", "/_ping").status == 200


@pytest.mark.parametrize(
    "entries",
    [
        (Symlink("out", "/"), File("out/etc/passwd", b"x")),
        (Symlink("a", "../../../../etc"), Hardlink("b", "a")),
        (Symlink("loop", "loop"),),
        (Symlink("one", "two"), Symlink("two", "one")),
        (Entry("fifo", type=b"6"),),
        (File("d", b"x"), File("d/e", b"y")),
    ],
)
def test_links_pipes_and_files_in_the_way_do_no_harm(daemon: Daemon, entries: tuple[Entry, ...]) -> None:
    for line in ("COPY . /x/", "COPY * /x/", "COPY out /x/", "COPY loop one fifo /x/", "COPY a/passwd /x/"):
        told = build(daemon, f"FROM {IMAGE}\n{line}\n", *entries)
        assert "Successfully built" in told or '"errorDetail"' in told
        assert "worker process ended" not in told and "Traceback" not in daemon.log_text(), told


def test_targets_through_links_of_the_image_stay_in_it(daemon: Daemon) -> None:
    told = build(
        daemon,
        f"FROM {IMAGE}\nRUN ln -s ../../../../../../../../../tmp/escape /out && ln -s loop /loop && mkfifo /pipe\n"
        "COPY f /out/f\nRUN test \"$(cat /tmp/escape/f)\" = x\n",
        File("f", b"x"),
    )  # fmt: skip
    assert "Successfully built" in told or '"errorDetail"' in told
    for target in ("/loop/f", "/loop", "/pipe", "/pipe/f", "/proc/self/root/f", "/dev/null"):
        told = build(
            daemon, f"FROM {IMAGE}\nRUN ln -s loop /loop && mkfifo /pipe\nCOPY f {target}\n", File("f", b"x")
        )
        assert "Successfully built" in told or '"errorDetail"' in told
        assert "worker process ended" not in told, (target, told)
    assert "Traceback" not in daemon.log_text()


def test_a_small_context_of_many_deep_directories_is_refused_and_costs_the_daemon_little(
    fresh_daemon: Daemon,
) -> None:
    deep = "/".join(["d"] * 1900)
    told = build(fresh_daemon, "FROM scratch\nCOPY . /\n", *(File(f"{n}/{deep}/f") for n in range(150)))
    assert "more than 128 MiB together" in told
    status = Path(f"/proc/{fresh_daemon.pid}/status").read_text()
    peak_kb = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    assert peak_kb < 600 << 10
    assert fresh_daemon.http("GET", "/_ping").status == 200
