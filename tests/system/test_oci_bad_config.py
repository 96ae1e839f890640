"""A bad config.json given to the real runtime: one sentence with the path of the field, and nothing half-made stays."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.oci_support import Box, hierarchies, opened
from tests.unit.test_runtime_oci import Change, at, both, kinds, maps, scheduler


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with opened(tmp_path_factory.mktemp("bad")) as made:
        yield made


def left(box: Box) -> list[str]:
    """What is there of containers: their state, and cgroups below the box's own."""
    found = [str(path) for path in box.state["cove"].glob("*/state.json")]
    for hierarchy in hierarchies():
        found += [entry.path for entry in os.scandir(hierarchy / box.cgroup) if entry.is_dir()]
    return found


@pytest.mark.parametrize("verb", ["create", "run"])
@pytest.mark.parametrize(
    ("change", "place"),
    [
        (at("process.user.uid", "0"), "process.user.uid: expected an integer, got a string"),
        (at("ociVersion", "2.0.0"), "ociVersion: "),
        (at("linux.namespaces.2.type", "netns"), "linux.namespaces[2].type: "),
        (kinds("mount", "uts", "user"), "linux.uidMappings: "),
        (maps((0, 1000, 10), (5, 5000, 1)), "linux.uidMappings[1].containerID: "),
        (
            at("linux.devices", [{"path": "/opt/x", "type": "c", "major": 1, "minor": 3}]),
            "linux.devices[0].path: ",
        ),
        (both(kinds("mount", "uts"), at("linux.sysctl", {"net.core.somaxconn": "1"})), "linux.sysctl["),
        (scheduler(policy="SCHED_FIFO", priority=100), "process.scheduler.priority: "),
        (at("process.apparmorProfile", "no-such-profile"), "process.apparmorProfile: "),
        (at("linux.seccomp", {"defaultAction": "SCMP_ACT_NONE"}), "linux.seccomp.defaultAction: "),
    ],
)
def test_a_bad_config_leaves_a_sentence_and_nothing_else(
    box: Box, change: Change, place: str, verb: str
) -> None:
    box.configure(["true"], change)
    if place.startswith("process.apparmor") and Path("/sys/module/apparmor/parameters/enabled").exists():
        pytest.skip("AppArmor is there: a profile that it lacks is its own error")
    done = box.cove(verb, "bad")
    assert done.status == 1
    assert done.error.startswith(f"config.json: {place}"), done.err
    assert len(done.err.splitlines()) == 1
    assert left(box) == []


def test_text_that_is_no_config_leaves_nothing_either(box: Box) -> None:
    for text in (b"", b"[1]", b"\xff", b'{"a":' * 5000, json.dumps({"ociVersion": "1.2.0"}).encode()):
        (box.bundle / "config.json").write_bytes(text)
        done = box.cove("create", "bad")
        assert done.status == 1
        assert done.error.startswith("config.json: "), done.err
    assert left(box) == []
