"""The journald driver and systemd's own journal: what a container prints is found by journalctl."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.apikit import eventually
from tests.daemon import Daemon


def entries(container: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["journalctl", "-o", "json", "--no-pager", f"CONTAINER_NAME={container}"],
        capture_output=True,
        timeout=60,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_container_s_lines_are_in_the_journal(daemon: Daemon, image: str) -> None:
    config = {"Type": "journald", "Config": {"tag": "app-{{.Name}}", "labels": "team", "env": "BIG"}}
    script = "echo hello; echo oops >&2; head -c 20000 /dev/zero | tr '\\0' x; echo; echo end"
    made = daemon.client.containers.create(
        image, ["sh", "-c", script], name="journalled", log_config=config,
        labels={"team": "red"}, environment={"BIG": "y" * 60_000},
    )  # fmt: skip
    try:
        made.start()
        assert made.wait(timeout=60)["StatusCode"] == 0
        eventually(lambda: any(entry["MESSAGE"] == "end" for entry in entries("journalled")))
        found = entries("journalled")
        assert made.logs(stderr=False).startswith(b"hello\n")
    finally:
        made.remove(force=True)
    hello = next(entry for entry in found if entry["MESSAGE"] == "hello")
    assert (hello["PRIORITY"], hello["SYSLOG_IDENTIFIER"], hello["TEAM"]) == ("6", "app-journalled", "red")
    assert (hello["CONTAINER_ID_FULL"], hello["IMAGE_NAME"]) == (made.id, image)
    assert len(hello["BIG"] or "") in (0, 60_000)  # journalctl leaves long fields out unless --all
    assert next(entry for entry in found if entry["MESSAGE"] == "oops")["PRIORITY"] == "3"
    pieces = [entry for entry in found if "CONTAINER_PARTIAL_ID" in entry]
    assert [entry["CONTAINER_PARTIAL_LAST"] for entry in pieces] == ["false", "true"]
