"""Debian's containerd runs containers by bin/cove-runtime, which its shim takes for runc."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.oci_engines import Containerd, missing_program

MISSING = missing_program("containerd", "ctr", "nsenter")
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{MISSING} isn't installed: apt-get install containerd"
)


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    engine = Containerd()
    try:
        yield engine
    finally:
        engine.close()


def test_run_passes_output_and_status_on(containerd: Containerd) -> None:
    done = containerd.run("one", "sh", "-c", "echo hello; exit 4", flags=["--rm"])
    assert (done.status, done.out) == (4, "hello\n"), done.err


def test_a_task_lives_through_all_its_verbs(containerd: Containerd) -> None:
    assert containerd.run("two", "sleep", "1000", flags=["--detach"]).status == 0
    try:
        done = containerd.ctr("tasks", "exec", "--exec-id", "x", "two", "sh", "-c", "hostname; exit 3")
        assert done.status == 3, done.err
        for verb, status in (("pause", "PAUSED"), ("resume", "RUNNING")):
            assert containerd.ctr("tasks", verb, "two").status == 0
            assert status in containerd.ctr("tasks", "list").out
        assert "two" in containerd.ctr("tasks", "metrics", "two").out
        listed = containerd.ctr("tasks", "ps", "two").out.splitlines()
        assert len(listed) == 2  # the title, and sleep
        assert containerd.ctr("tasks", "kill", "--signal", "SIGKILL", "two").status == 0
    finally:
        containerd.ctr("tasks", "delete", "--force", "two")
        removed = containerd.ctr("containers", "delete", "two")
    assert removed.status == 0, removed.err


def test_a_program_that_isnt_there_is_told(containerd: Containerd) -> None:
    done = containerd.run("three", "nosuch", flags=["--rm"])
    assert done.status != 0 and 'exec: "nosuch": executable file not found in $PATH' in done.err
    containerd.ctr("containers", "delete", "three")
