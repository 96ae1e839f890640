"""Logs of real containers: what cove-init writes and rotates is what the reader gives back."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cove.logs.packed import is_packed
from tests.daemon import Daemon

COUNT = 20_000
SCRIPT = f"i=0; while [ $i -lt {COUNT} ]; do echo line $i; i=$((i+1)); done; echo done >&2"


@contextmanager
def container(daemon: Daemon, image: str, script: str, driver: str, **options: str) -> Iterator[Any]:
    """A created container that prints; removed at the end, whatever happened."""
    made = daemon.client.containers.create(
        image, ["sh", "-c", script], log_config={"Type": driver, "Config": options}
    )
    try:
        yield made
    finally:
        made.remove(force=True)


@pytest.mark.parametrize("driver", ["local", "json-file"])
def test_a_follower_gets_every_line_once_while_files_rotate(daemon: Daemon, image: str, driver: str) -> None:
    options = {"max-size": "50k", "max-file": "200"}
    with container(daemon, image, SCRIPT, driver, **options) as made:
        received: list[bytes] = []
        made.start()

        def follow() -> None:
            received.extend(made.logs(stream=True, follow=True, stderr=False))

        follower = threading.Thread(target=follow)
        follower.start()
        follower.join(110)
        assert not follower.is_alive(), "the follower didn't end with the container"
        expected = b"".join(b"line %d\n" % number for number in range(COUNT))
        assert b"".join(received) == expected
        assert made.logs(stderr=False) == expected
        assert made.logs(stdout=False) == b"done\n"
        assert made.logs(stderr=False, tail=3) == b"".join(b"line %d\n" % n for n in range(COUNT - 3, COUNT))
        files = list((daemon.data_root / "containers" / made.id / "log").iterdir())
        assert len(files) > 2 and all(file.stat().st_size < 150_000 for file in files)


@pytest.mark.parametrize("driver", ["local", "json-file"])
def test_the_log_is_bounded_and_ends_with_the_newest_lines(daemon: Daemon, image: str, driver: str) -> None:
    with container(daemon, image, SCRIPT, driver, **{"max-size": "20k", "max-file": "2"}) as made:
        made.start()
        made.wait(timeout=110)
        files = list((daemon.data_root / "containers" / made.id / "log").glob("*log*"))
        assert len(files) == 2
        lines = made.logs(stderr=False).splitlines()
        assert 0 < len(lines) < COUNT
        assert lines[1:] == [b"line %d" % n for n in range(COUNT - len(lines) + 1, COUNT)]


@pytest.mark.parametrize(("driver", "name"), [("local", "log"), ("json-file", "json.log")])
def test_what_was_rotated_is_packed_and_read_all_the_same(
    daemon: Daemon, image: str, driver: str, name: str
) -> None:
    """A follower that is there all the while, and readers that come later, get every line once."""
    script = (
        "i=0; while [ $i -lt 40 ]; do seq -f 'line %g of many' ${i}000 ${i}999; sleep 0.1; i=$((i+1)); done"
    )
    script = script.replace("-f 'line %g of many' ", "")
    options = {"max-size": "60k", "max-file": "100", "compress": "true"}
    with container(daemon, image, script, driver, **options) as made:
        received: list[bytes] = []
        made.start()
        follower = threading.Thread(target=lambda: received.extend(made.logs(stream=True, follow=True)))
        follower.start()
        log_dir = daemon.data_root / "containers" / made.id / "log"
        deadline = time.monotonic() + 60
        while not (
            packed := [path for path in log_dir.glob(f"{name}.*") if is_packed(path.read_bytes()[:64])]
        ):
            assert time.monotonic() < deadline, "nothing was packed"
            time.sleep(0.05)
        follower.join(110)
        assert not follower.is_alive()
        expected = b"".join(b"%d\n" % number for number in range(40_000))
        assert b"".join(received) == expected
        assert made.logs() == expected
        assert made.logs(tail=30_000) == b"".join(b"%d\n" % number for number in range(10_000, 40_000))
        assert gzip.decompress(packed[0].read_bytes())
        assert not (log_dir / "packing").exists()


def test_no_log_cannot_be_read(daemon: Daemon, image: str) -> None:
    with container(daemon, image, "echo x", "none") as made:
        made.start()
        made.wait(timeout=110)
        answer = daemon.http("GET", f"/containers/{made.id}/logs?stdout=1")
        assert answer.status == 501
        assert answer.message == "configured logging driver does not support reading"


def test_a_wrong_log_option_is_refused_at_create(daemon: Daemon, image: str) -> None:
    body = {"Image": image, "HostConfig": {"LogConfig": {"Type": "local", "Config": {"colour": "red"}}}}
    answer = daemon.http("POST", "/containers/create", body)
    assert (answer.status, answer.message) == (400, "unknown log opt 'colour' for local log driver")
    body["HostConfig"]["LogConfig"] = {"Type": "wood", "Config": {}}  # type: ignore[index]
    answer = daemon.http("POST", "/containers/create", body)
    assert (answer.status, answer.message) == (400, "logger: no log driver named 'wood' is registered")
