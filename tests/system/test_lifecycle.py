"""The state machine by the API: start, exit, stop, kill, pause, restart policies, remove, wait."""

from __future__ import annotations

import json
import threading

import pytest

from tests.apikit import BOUND_S, create, eventually, remove, run, state, wait
from tests.daemon import Daemon


def test_a_container_goes_from_created_to_running_to_exited(daemon: Daemon, image: str) -> None:
    container = create(daemon, image, "sh", "-c", "exit 3")
    assert state(daemon, container)["Status"] == "created"
    assert daemon.http("POST", f"/containers/{container}/start").status == 204
    assert wait(daemon, container) == 3
    seen = state(daemon, container)
    assert (seen["Status"], seen["ExitCode"], seen["Running"], seen["Pid"]) == ("exited", 3, False, 0)
    assert seen["StartedAt"] < seen["FinishedAt"]
    remove(daemon, container)


def test_starting_a_running_container_changes_nothing(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "sleep", "1000")
    pid = state(daemon, container)["Pid"]
    assert daemon.http("POST", f"/containers/{container}/start").status == 304
    assert state(daemon, container)["Pid"] == pid
    remove(daemon, container)


def test_a_stopped_container_starts_again_with_its_files(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "sh", "-c", "test -e /mark && exit 7; touch /mark")
    assert wait(daemon, container) == 0
    assert daemon.http("POST", f"/containers/{container}/start").status == 204
    assert wait(daemon, container) == 7
    remove(daemon, container)


def test_stop_sends_the_stop_signal_and_kills_after_the_timeout(daemon: Daemon, image: str) -> None:
    polite = run(daemon, image, "sh", "-c", "trap 'exit 42' TERM; echo up; while :; do sleep 0.05; done")
    stubborn = run(daemon, image, "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
    for container in (polite, stubborn):
        eventually(lambda c=container: b"up" in daemon.http("GET", f"/containers/{c}/logs?stdout=1").body)  # type: ignore[misc]
    assert daemon.http("POST", f"/containers/{polite}/stop?t=50").status == 204
    assert state(daemon, polite)["ExitCode"] == 42
    assert daemon.http("POST", f"/containers/{stubborn}/stop?t=1").status == 204
    assert state(daemon, stubborn)["ExitCode"] == 137
    assert daemon.http("POST", f"/containers/{polite}/stop").status == 304
    for container in (polite, stubborn):
        remove(daemon, container)


def test_a_kill_does_not_queue_behind_a_stop(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
    eventually(lambda: b"up" in daemon.http("GET", f"/containers/{container}/logs?stdout=1").body)
    stopping = threading.Thread(target=daemon.http, args=("POST", f"/containers/{container}/stop?t=3600"))
    stopping.start()
    assert daemon.http("POST", f"/containers/{container}/kill").status == 204
    stopping.join(BOUND_S)
    assert not stopping.is_alive()
    assert state(daemon, container)["ExitCode"] == 137
    remove(daemon, container)


def test_pause_freezes_and_unpause_goes_on(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "sh", "-c", "while :; do echo x; sleep 0.01; done")
    assert daemon.http("POST", f"/containers/{container}/pause").status == 204
    assert state(daemon, container)["Status"] == "paused"
    length = len(daemon.http("GET", f"/containers/{container}/logs?stdout=1").body)
    again = daemon.http("POST", f"/containers/{container}/pause")
    assert (again.status, again.message) == (409, f"Container {container} is already paused")
    refused = daemon.http("POST", f"/containers/{container}/exec", {"Cmd": ["true"]})
    assert refused.status == 409 and "unpause" in refused.message
    assert len(daemon.http("GET", f"/containers/{container}/logs?stdout=1").body) == length
    assert daemon.http("POST", f"/containers/{container}/unpause").status == 204
    eventually(lambda: len(daemon.http("GET", f"/containers/{container}/logs?stdout=1").body) > length)
    remove(daemon, container)


@pytest.mark.parametrize("how", ["kill", "stop?t=0", "remove"])
def test_a_paused_container_can_be_ended(daemon: Daemon, image: str, how: str) -> None:
    container = run(daemon, image, "sleep", "1000")
    assert daemon.http("POST", f"/containers/{container}/pause").status == 204
    if how == "remove":
        assert daemon.http("DELETE", f"/containers/{container}?force=1").status == 204
        return
    assert daemon.http("POST", f"/containers/{container}/{how}").status == 204
    assert wait(daemon, container) == 137
    remove(daemon, container)


def test_a_running_container_is_removed_only_by_force(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "sleep", "1000", name="busy1")
    refused = daemon.http("DELETE", f"/containers/{container}")
    assert refused.status == 409
    assert refused.message == (
        'cannot remove container "busy1": container is running: '
        "stop the container before removing or force remove"
    )
    assert daemon.http("DELETE", f"/containers/{container}?force=1").status == 204
    assert daemon.http("GET", f"/containers/{container}/json").status == 404


def test_auto_remove_takes_the_container_and_its_anonymous_volumes(daemon: Daemon, image: str) -> None:
    body = {
        "Image": image,
        "Cmd": ["true"],
        "Volumes": {"/data": {}},
        "HostConfig": {"AutoRemove": True, "NetworkMode": "none"},
    }
    container = daemon.http("POST", "/containers/create", body).json()["Id"]
    before = {v["Name"] for v in daemon.http("GET", "/volumes").json()["Volumes"]}
    assert before
    assert daemon.http("POST", f"/containers/{container}/start").status == 204
    eventually(lambda: daemon.http("GET", f"/containers/{container}/json").status == 404)
    after = {v["Name"] for v in daemon.http("GET", "/volumes").json()["Volumes"] or []}
    assert not before & after


def test_on_failure_restarts_up_to_its_maximum_and_then_stays_exited(daemon: Daemon, image: str) -> None:
    container = run(
        daemon, image, "sh", "-c", "exit 5", RestartPolicy={"Name": "on-failure", "MaximumRetryCount": 2}
    )
    eventually(lambda: state(daemon, container)["Status"] == "exited")
    seen = state(daemon, container)
    assert (seen["RestartCount"], seen["ExitCode"]) == (2, 5)
    remove(daemon, container)


def test_always_restarts_until_it_is_stopped(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "true", RestartPolicy={"Name": "always"})
    eventually(lambda: state(daemon, container)["RestartCount"] >= 2)
    assert daemon.http("POST", f"/containers/{container}/stop").status in (204, 304)
    seen = state(daemon, container)
    assert seen["Status"] == "exited"
    remove(daemon, container)


def test_every_kind_of_wait_is_woken(daemon: Daemon, image: str) -> None:
    container = create(daemon, image, "sh", "-c", "exit 9")
    codes: dict[str, int] = {}
    registered = threading.Barrier(3)

    def waiter(condition: str) -> None:
        with daemon.connect() as sock:
            sock.sendall(
                f"POST /v1.43/containers/{container}/wait?condition={condition} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            )
            stream = sock.makefile("rb")
            assert b"200" in stream.readline()  # the header comes once the wait is registered
            registered.wait(BOUND_S)
            for line in stream:
                if line.startswith(b"{"):
                    codes[condition] = json.loads(line)["StatusCode"]
                    return

    threads = [threading.Thread(target=waiter, args=(c,)) for c in ("next-exit", "removed")]
    for thread in threads:
        thread.start()
    registered.wait(BOUND_S)
    assert daemon.http("POST", f"/containers/{container}/start").status == 204
    assert wait(daemon, container) == 9
    remove(daemon, container)
    for thread in threads:
        thread.join(BOUND_S)
    assert codes == {"next-exit": 9, "removed": 9}


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("nope",), 127, 'exec: "nope": executable file not found in $PATH'),
        (("/no/such",), 127, 'exec: "/no/such": no such file or directory'),
        (("/etc",), 126, 'exec: "/etc": permission denied'),
    ],
)
def test_a_command_that_cannot_run_is_told_and_leaves_a_created_container(
    daemon: Daemon, image: str, args: tuple[str, ...], code: int, words: str
) -> None:
    container = create(daemon, image, *args)
    refused = daemon.http("POST", f"/containers/{container}/start")
    assert (refused.status, refused.message) == (400, words)
    seen = state(daemon, container)
    assert (seen["Status"], seen["ExitCode"], seen["Error"]) == ("created", code, words)
    remove(daemon, container)


def test_an_unknown_user_is_told(daemon: Daemon, image: str) -> None:
    body = {"Image": image, "Cmd": ["true"], "User": "nobodyknows", "HostConfig": {"NetworkMode": "none"}}
    container = daemon.http("POST", "/containers/create", body).json()["Id"]
    refused = daemon.http("POST", f"/containers/{container}/start")
    assert refused.status == 400
    assert refused.message == "unable to find user nobodyknows: no matching entries in passwd file"
    remove(daemon, container)


def test_an_out_of_memory_kill_is_marked(daemon: Daemon, image: str) -> None:
    script = "x=a; while :; do x=$x$x; done"
    container = run(daemon, image, "sh", "-c", script, Memory=16 << 20)
    assert wait(daemon, container) == 137
    assert state(daemon, container)["OOMKilled"] is True
    remove(daemon, container)


def test_limits_change_while_it_runs(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "sleep", "1000", Memory=64 << 20)
    changed = daemon.http(
        "POST", f"/containers/{container}/update", {"Memory": 128 << 20, "MemorySwap": 256 << 20}
    )
    assert changed.status == 200, changed.message
    host_config = daemon.http("GET", f"/containers/{container}/json").json()["HostConfig"]
    assert host_config["Memory"] == 128 << 20
    stats = daemon.http("GET", f"/containers/{container}/stats?stream=0").json()
    assert stats["memory_stats"]["limit"] == 128 << 20
    remove(daemon, container)


def test_a_rename_takes_effect_at_once_and_a_taken_name_is_refused(daemon: Daemon, image: str) -> None:
    one = create(daemon, image, "true", name="one1")
    two = create(daemon, image, "true", name="two2")
    assert daemon.http("POST", f"/containers/{one}/rename?name=three3").status == 204
    assert daemon.http("GET", "/containers/three3/json").json()["Id"] == one
    assert daemon.http("GET", "/containers/one1/json").status == 404
    refused = daemon.http("POST", f"/containers/{two}/rename?name=three3")
    assert refused.status == 409 and one in refused.message
    for container in (one, two):
        remove(daemon, container)


def test_namespaces_of_another_container_are_joined(daemon: Daemon, image: str) -> None:
    first = run(daemon, image, "sleep", "1000", IpcMode="shareable")
    joined = {
        "PidMode": f"container:{first}",
        "IpcMode": f"container:{first}",
        "NetworkMode": f"container:{first}",
    }
    second = run(
        daemon,
        image,
        "sh",
        "-c",
        "ps | grep -q '[s]leep 1000' && ls -l /proc/1/ns/net /proc/self/ns/net",
        **joined,
    )
    assert wait(daemon, second) == 0
    output = daemon.http("GET", f"/containers/{second}/logs?stdout=1").body
    links = [line[-16:] for line in output.splitlines()]
    assert len(links) == 2 and links[0] == links[1]
    for container in (second, first):
        remove(daemon, container)


def test_joining_a_container_that_does_not_run_is_refused(daemon: Daemon, image: str) -> None:
    first = create(daemon, image, "true")
    second = create(daemon, image, "true", PidMode=f"container:{first}")
    refused = daemon.http("POST", f"/containers/{second}/start")
    assert refused.status == 409 and "start it first" in refused.message
    for container in (second, first):
        remove(daemon, container)


def test_health_goes_from_starting_to_healthy_to_unhealthy(daemon: Daemon, image: str) -> None:
    body = {
        "Image": image,
        "Cmd": ["sleep", "1000"],
        "Healthcheck": {
            "Test": ["CMD-SHELL", "echo probed; test ! -e /sick"],
            "Interval": 50_000_000,
            "Retries": 2,
        },
        "HostConfig": {"NetworkMode": "none"},
    }
    container = daemon.http("POST", "/containers/create", body).json()["Id"]
    assert daemon.http("POST", f"/containers/{container}/start").status == 204
    eventually(lambda: state(daemon, container)["Health"]["Status"] == "healthy")
    assert state(daemon, container)["Health"]["Log"][-1]["Output"] == "probed\n"
    made = daemon.http("POST", f"/containers/{container}/exec", {"Cmd": ["touch", "/sick"]}).json()["Id"]
    assert daemon.http("POST", f"/exec/{made}/start", {"Detach": True}).status == 200
    eventually(lambda: state(daemon, container)["Health"]["Status"] == "unhealthy")
    assert state(daemon, container)["Health"]["FailingStreak"] >= 2
    remove(daemon, container)


def test_thirty_two_containers_start_at_once(daemon: Daemon, image: str) -> None:
    containers = [create(daemon, image, "sh", "-c", f"exit {n}") for n in range(32)]
    answers: list[int] = []
    threads = [
        threading.Thread(
            target=lambda c=c: answers.append(daemon.http("POST", f"/containers/{c}/start").status)
        )  # type: ignore[misc]
        for c in containers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    assert answers == [204] * 32
    assert [wait(daemon, c) for c in containers] == list(range(32))
    for container in containers:
        remove(daemon, container)


def test_an_execs_exit_code_is_known_as_soon_as_its_stream_has_ended(daemon: Daemon, image: str) -> None:
    container = run(daemon, image, "sleep", "1000")
    for _ in range(30):
        made = daemon.http(
            "POST", f"/containers/{container}/exec", {"AttachStdout": True, "Cmd": ["sh", "-c", "exit 4"]}
        )
        exec_id = made.json()["Id"]
        with daemon.connect() as sock:
            body = b"{}"
            sock.sendall(
                f"POST /exec/{exec_id}/start HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            while sock.recv(65536):
                pass
        seen = daemon.http("GET", f"/exec/{exec_id}/json").json()
        assert (seen["Running"], seen["ExitCode"]) == (False, 4)
    remove(daemon, container)
