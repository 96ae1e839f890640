"""Devices of CDI specifications in real containers: nodes, variables, mounts, groups and hooks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.apikit import create, inspect, logs, remove, run, start, wait
from tests.daemon import Daemon

KIND = "vendor.example/thing"


def write(
    directory: Path, name: str, devices: dict[str, dict[str, Any]], kind: str = KIND, **more: Any
) -> None:
    content = {
        "cdiVersion": "0.7.0",
        "kind": kind,
        "devices": [{"name": device, "containerEdits": edits} for device, edits in devices.items()],
        **more,
    }
    (directory / name).write_text(json.dumps(content))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The directory of specifications, and one for what hooks leave behind."""
    return tmp_path_factory.mktemp("cdi"), tmp_path_factory.mktemp("left")


@pytest.fixture(scope="module")
def cdi_daemon(places: tuple[Path, Path]) -> Iterator[Daemon]:
    with Daemon("--cdi-spec-dir", str(places[0])) as running:
        running.load_image()
        yield running


def requests(*names: str, **more: Any) -> list[dict[str, Any]]:
    return [{"Driver": "cdi", "DeviceIDs": [f"{KIND}={name}" for name in names], **more}]


def test_a_device_brings_its_node_variables_mounts_and_groups(
    cdi_daemon: Daemon, places: tuple[Path, Path], image: str
) -> None:
    shared = places[1] / "shared"
    shared.mkdir()
    (shared / "driver").write_text("driver's file\n")
    write(
        places[0],
        "thing.json",
        {
            "one": {"deviceNodes": [{"path": "/dev/vendor/one", "hostPath": "/dev/loop-control", "permissions": "r"}],
                    "env": ["THING=one"], "additionalGids": [4711]},
            "two": {"mounts": [{"hostPath": str(shared), "containerPath": "/opt/vendor",
                                "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"]}]},
        },
        containerEdits={"env": ["VENDOR=yes"]},
    )  # fmt: skip
    script = (
        "echo $VENDOR $THING; (: < /dev/vendor/one) && echo opened; (: > /dev/vendor/one) 2>/dev/null && echo written;"
        "cat /opt/vendor/driver; touch /opt/vendor/x 2>/dev/null && echo touched; id -G"
    )
    container = run(cdi_daemon, image, "sh", "-c", script, DeviceRequests=requests("one", "two"))
    try:
        assert wait(cdi_daemon, container) != 125
        told = logs(cdi_daemon, container).decode(errors="replace")
        assert "yes one\n" in told and "opened\n" in told and "driver's file\n" in told and "4711" in told
        assert "written" not in told and "touched" not in told
        shown = inspect(cdi_daemon, container)["HostConfig"]["DeviceRequests"]
        assert shown[0]["Driver"] == "cdi" and shown[0]["DeviceIDs"] == [f"{KIND}=one", f"{KIND}=two"]
    finally:
        remove(cdi_daemon, container)


def test_hooks_run_on_the_host_and_in_the_container_with_its_state(
    cdi_daemon: Daemon, places: tuple[Path, Path], image: str
) -> None:
    left = places[1]
    script = left / "hook.sh"
    script.write_text(f'#!/bin/sh\ncat > {left}/"$1".state\n')
    script.chmod(0o755)
    hooks = [
        {"hookName": name, "path": str(script), "args": ["hook.sh", name], "env": ["PATH=/usr/bin:/bin"]}
        for name in ("createRuntime", "createContainer", "poststart")
    ]
    write(places[0], "hooked.json", {"x": {"hooks": hooks}}, kind="vendor.example/hooked")
    wanted = [{"Driver": "cdi", "DeviceIDs": ["vendor.example/hooked=x"]}]
    container = run(cdi_daemon, image, "sleep", "600", DeviceRequests=wanted)
    try:
        for name, status in (
            ("createRuntime", "creating"),
            ("createContainer", "creating"),
            ("poststart", "running"),
        ):
            state = json.loads((left / f"{name}.state").read_text())
            assert (state["id"], state["status"]) == (container, status), name
            assert state["pid"] == inspect(cdi_daemon, container)["State"]["Pid"]
        config = json.loads((Path(state["bundle"]) / "config.json").read_text())
        assert config["process"]["args"] == ["sleep", "600"] and config["root"]["path"]
    finally:
        remove(cdi_daemon, container)


@pytest.mark.parametrize("hook", ["createRuntime", "poststart"])
def test_a_start_fails_with_its_hook_and_leaves_no_process(
    cdi_daemon: Daemon, places: tuple[Path, Path], image: str, hook: str
) -> None:
    bad = {"hooks": [{"hookName": hook, "path": "/bin/sh", "args": ["sh", "-c", "echo why >&2; exit 3"]}]}
    write(places[0], "bad.json", {"bad": bad}, kind="vendor.example/failing")
    wanted = [{"Driver": "cdi", "DeviceIDs": ["vendor.example/failing=bad"]}]
    container = create(cdi_daemon, image, "sleep", "600", DeviceRequests=wanted)
    try:
        refused = cdi_daemon.http("POST", f"/containers/{container}/start")
        assert refused.status == 500
        assert f"error running {hook} hook #0: /bin/sh: exit status 3, output: why" in refused.message
        state = inspect(cdi_daemon, container)["State"]
        assert (state["Running"], state["Pid"]) == (False, 0)
    finally:
        remove(cdi_daemon, container)


def test_info_lists_devices_and_names_bad_specifications(
    cdi_daemon: Daemon, places: tuple[Path, Path]
) -> None:
    write(
        places[0], "listed.json", {"a": {"env": ["A=1"]}, "b": {"env": ["B=1"]}}, kind="vendor.example/listed"
    )
    (places[0] / "broken.json").write_text('{"cdiVersion": "0.6.0"')
    try:
        told = cdi_daemon.http("GET", "/info").json()
        assert told["CDISpecDirs"] == [str(places[0])]
        listed = {"Source": "cdi", "ID": "vendor.example/listed=a"}
        assert listed in told["DiscoveredDevices"]
        assert any("broken.json" in warning for warning in told["Warnings"])
        assert "DiscoveredDevices" not in cdi_daemon.http("GET", "/v1.49/info").json()
    finally:
        (places[0] / "broken.json").unlink()


def test_a_device_that_is_not_there_is_told_at_the_start_and_found_once_it_is(
    cdi_daemon: Daemon, places: tuple[Path, Path], image: str
) -> None:
    wanted = [{"Driver": "cdi", "DeviceIDs": ["vendor.example/late=x"]}]
    container = create(cdi_daemon, image, "sh", "-c", "test $LATE = 1", DeviceRequests=wanted)
    try:
        refused = cdi_daemon.http("POST", f"/containers/{container}/start")
        assert "unresolvable CDI devices vendor.example/late=x" in refused.message
        write(places[0], "late.json", {"x": {"env": ["LATE=1"]}}, kind="vendor.example/late")
        start(cdi_daemon, container)
        assert wait(cdi_daemon, container) == 0
    finally:
        remove(cdi_daemon, container)


def test_gpus_are_those_of_a_vendor_s_specification(
    cdi_daemon: Daemon, places: tuple[Path, Path], image: str
) -> None:
    wanted = [{"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}]
    container = create(cdi_daemon, image, "sh", "-c", "test $GPUS = every", DeviceRequests=wanted)
    try:
        refused = cdi_daemon.http("POST", f"/containers/{container}/start")
        assert 'could not select device driver "" with capabilities: [[gpu]]' in refused.message
        write(places[0], "gpu.json", {"all": {"env": ["GPUS=every"]}}, kind="nvidia.com/gpu")
        start(cdi_daemon, container)
        assert wait(cdi_daemon, container) == 0
    finally:
        remove(cdi_daemon, container)
        (places[0] / "gpu.json").unlink(missing_ok=True)
