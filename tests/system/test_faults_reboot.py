"""A reboot: every process ends at once, what lives in the kernel is gone, files are there.

Played by freezing and killing all of a daemon's processes, and taking its bridge, table and cgroups off the host. The
run dir is kept (a directory on a disk) or emptied (a tmpfs, as /run is).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.apikit import create, eventually, exists, inspect, logs, remove, run, state, wait
from tests.consistency import check_consistent
from tests.daemon import Daemon
from tests.nanny import descendants

_ENDLESS = ("sh", "-c", "echo up $(cat /count 2>/dev/null); echo again >> /count; sleep 100000")


def cut_power(daemon: Daemon, *, keep_run_dir: bool) -> None:
    """Everything of the daemon that a reboot ends has ended."""
    victims = descendants(daemon.nanny_pid)
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(pid, signal.SIGSTOP)  # nobody sees another's end
    daemon.kill9()
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for frozen in Path("/sys/fs/cgroup/freezer", daemon.names.cgroup_parent).glob("*/freezer.state"):
        frozen.write_text("THAWED")  # killed already: paused processes see nothing but that
    eventually(lambda: not descendants(daemon.nanny_pid), "the end of all processes")
    subprocess.run(["nft", "delete", "table", "inet", daemon.names.table], check=True)
    for _, name in socket.if_nameindex():
        if name.startswith(daemon.names.bridge):
            subprocess.run(["ip", "link", "delete", name], check=True)
    for hierarchy in Path("/sys/fs/cgroup").iterdir():
        for directory, _, _ in os.walk(hierarchy / daemon.names.cgroup_parent, topdown=False):
            os.rmdir(directory)
    if not keep_run_dir:
        shutil.rmtree(daemon.run_dir)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("keep_run_dir", [True, False])
def test_a_reboot_leaves_states_that_are_right(daemon: Daemon, image: str, keep_run_dir: bool) -> None:
    policies = {name: {"Name": name} for name in ("no", "on-failure", "unless-stopped", "always")}
    running = {
        name: run(daemon, image, *_ENDLESS, name=f"run-{name}", RestartPolicy=policy)
        for name, policy in policies.items()
    }
    stopped = {
        name: run(daemon, image, *_ENDLESS, name=f"stop-{name}", RestartPolicy=policy)
        for name, policy in policies.items()
    }
    done = run(daemon, image, "sh", "-c", "exit 0", RestartPolicy=policies["on-failure"])
    fresh = create(daemon, image, *_ENDLESS, RestartPolicy=policies["always"])
    paused = run(daemon, image, *_ENDLESS)
    paused_wanted = run(daemon, image, *_ENDLESS, RestartPolicy=policies["unless-stopped"])
    ephemeral = run(daemon, image, *_ENDLESS, AutoRemove=True, Volumes={"/data": {}})
    exec_id = daemon.http("POST", f"/containers/{running['no']}/exec", {"Cmd": ["sleep", "1000"]}).json()[
        "Id"
    ]
    assert daemon.http("POST", f"/exec/{exec_id}/start", {"Detach": True}).status == 200
    for container in stopped.values():
        assert daemon.http("POST", f"/containers/{container}/stop?t=0").status == 204
    assert wait(daemon, done) == 0
    for container in (paused, paused_wanted):
        assert daemon.http("POST", f"/containers/{container}/pause").status == 204
    for container in running.values():
        eventually(lambda c=container: b"up" in logs(daemon, c))  # type: ignore[misc]
    cut_power(daemon, keep_run_dir=keep_run_dir)
    daemon.start()

    ended = [running["no"], paused]
    for container in ended:
        seen = state(daemon, container)
        assert (seen["Status"], seen["ExitCode"], seen["Pid"]) == ("exited", 137, 0), container
        assert seen["Error"] == (
            "the container's supervisor was gone when the daemon started, and its processes with it"
        )
    again = [running[name] for name in ("on-failure", "unless-stopped", "always")]
    again += [stopped["always"], paused_wanted]
    for container in again:
        eventually(lambda c=container: state(daemon, c)["Status"] == "running", "the restart")  # type: ignore[misc]
        assert state(daemon, container)["Error"] == ""
        eventually(lambda c=container: b"up again" in logs(daemon, c), "the new run's output")  # type: ignore[misc]
    for name in ("no", "on-failure", "unless-stopped"):
        seen = state(daemon, stopped[name])
        assert (seen["Status"], seen["ExitCode"]) == ("exited", 137), name
    assert (state(daemon, done)["Status"], state(daemon, done)["ExitCode"]) == ("exited", 0)
    assert state(daemon, fresh)["Status"] == "created"
    assert not exists(daemon, ephemeral)
    assert daemon.http("GET", "/volumes").json()["Volumes"] == []
    assert b"up" in logs(daemon, running["no"])
    assert not os.listdir(daemon.run_dir / "exec")
    check_consistent(daemon)
    remove(daemon, *running.values(), *stopped.values(), done, fresh, paused, paused_wanted)
    check_consistent(daemon)


def test_published_ports_and_addresses_work_again_after_a_reboot(daemon: Daemon, image: str) -> None:
    port = free_port()
    network = daemon.http(
        "POST",
        "/networks/create",
        {"Name": "apps", "Options": {"com.docker.network.bridge.name": f"{daemon.names.bridge}n"}},
    )
    assert network.status == 201, network.message
    server = ("sh", "-c", "while :; do echo hello | nc -l -p 80; done")
    container = run(
        daemon,
        image,
        *server,
        NetworkMode="apps",
        PortBindings={"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]},
        RestartPolicy={"Name": "always"},
    )
    eventually(lambda: greets(port), "an answer before the reboot")
    cut_power(daemon, keep_run_dir=False)
    daemon.start()
    eventually(lambda: state(daemon, container)["Status"] == "running", "the restart")
    eventually(lambda: greets(port), "an answer after the reboot")
    check_consistent(daemon)
    assert list(inspect(daemon, container)["NetworkSettings"]["Networks"]) == ["apps"]
    remove(daemon, container)
    check_consistent(daemon)
    assert daemon.http("DELETE", "/networks/apps").status == 204


def greets(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            return client.recv(16) == b"hello\n"
    except OSError:
        return False
