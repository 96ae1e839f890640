"""AppArmor profiles by name: applied at the exec, for `exec` too, and a clear word where there is none of that name."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.apikit import create, eventually, inspect, logs, remove, run, wait
from tests.daemon import Daemon

PROFILE = """
profile cove-lab flags=(attach_disconnected,mediate_deleted) {
  file,
  capability,
  network,
  signal,
  deny /etc/group r,
}
"""
LABEL = "cat /proc/self/attr/current; cat /etc/passwd >/dev/null && echo passwd; cat /etc/group 2>&1"


@pytest.fixture(autouse=True)
def profile() -> Iterator[None]:
    """The profile is in the kernel, as an administrator puts it there."""
    subprocess.run(["apparmor_parser", "--add"], input=PROFILE, text=True, check=True, timeout=60)
    yield
    subprocess.run(["apparmor_parser", "--remove"], input=PROFILE, text=True, check=True, timeout=60)


def test_a_named_profile_confines_the_container_and_what_is_executed_in_it(
    daemon: Daemon, image: str
) -> None:
    options = ["apparmor=cove-lab", "no-new-privileges"]
    container = run(daemon, image, "sh", "-c", f"{LABEL}; sleep 1000", SecurityOpt=options)
    assert inspect(daemon, container)["AppArmorProfile"] == "cove-lab"
    made = daemon.http(
        "POST", f"/containers/{container}/exec", {"Cmd": ["sh", "-c", LABEL], "AttachStdout": True}
    ).json()
    executed = daemon.http("POST", f"/exec/{made['Id']}/start", {"Detach": False}).body.decode(
        errors="replace"
    )
    eventually(lambda: b"Permission denied" in logs(daemon, container), "the first process's lines")
    for text in (logs(daemon, container).decode(errors="replace"), executed):
        assert "cove-lab (enforce)" in text and "passwd" in text and "Permission denied" in text
    remove(daemon, container)


def test_without_a_profile_a_container_is_unconfined(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "sh", "-c", LABEL, SecurityOpt=["apparmor=unconfined"])
    assert wait(daemon, container) == 0
    text = logs(daemon, container).decode(errors="replace")
    assert "unconfined" in text and "Permission denied" not in text
    remove(daemon, container)


def test_a_profile_that_is_not_loaded_fails_the_start_with_its_name(daemon: Daemon, image: str) -> None:
    container = create(daemon, image, "true", SecurityOpt=["apparmor=cove-nowhere"])
    refused = daemon.http("POST", f"/containers/{container}/start")
    assert refused.status >= 400 and "cove-nowhere" in refused.message
    remove(daemon, container)
