"""`cove recreate`: another container takes one's place, and kill -9 leaves one of the two under the name."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.apikit import Call, create, eventually, exists, inspect, remove, run, state
from tests.consistency import check_consistent
from tests.daemon import Daemon, Response

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = ("sleep", "100000")
FAST = {"StopSignal": "KILL"}


def recreate(daemon: Daemon, container: str, **body: Any) -> Response:
    return daemon.http("POST", f"/cove/v1/recreate?container={container}", body)


def names(daemon: Daemon) -> list[str]:
    return sorted(one["Names"][0] for one in daemon.http("GET", "/containers/json?all=1").json())


def in_container(daemon: Daemon, container: str, *args: str) -> str:
    result = daemon.client.containers.get(container).exec_run(list(args))
    assert result.exit_code == 0, result.output
    return bytes(result.output).decode()


def test_what_is_given_is_different_and_the_rest_stays(daemon: Daemon, image: str) -> None:
    old = run(
        daemon,
        image,
        *ENDLESS,
        name="web",
        **FAST,
        Env=["MODE=slow", "KEEP=1", "DROP=1"],
        Labels={"tier": "web", "old": "1"},
        Volumes={"/loose": {}},
        Binds=["named:/named", "/tmp:/host:ro"],
        Memory=64 << 20,
        PortBindings={"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]},
        NetworkMode="bridge",
    )
    in_container(daemon, old, "sh", "-c", "echo a >/loose/a; echo b >/named/b; echo c >/c")
    loose = next(m["Name"] for m in inspect(daemon, old)["Mounts"] if m["Destination"] == "/loose")
    answer = recreate(
        daemon,
        "web",
        Env=["MODE=fast", "NEW=secret-value"],
        Labels={"tier": "db"},
        HostConfig={"PidsLimit": 50, "Mounts": [{"Type": "tmpfs", "Target": "/memory"}]},
        CoveRemove={"Env": ["DROP"], "Labels": ["old"], "Mounts": ["/host"], "Ports": ["80"]},
    )
    assert answer.status == 201, answer.message
    new = answer.json()["Id"]
    assert new != old and not exists(daemon, old)
    shown = inspect(daemon, "web")
    assert (shown["Id"], shown["State"]["Status"]) == (new, "running")
    assert {"MODE=fast", "KEEP=1", "NEW=secret-value"} <= set(shown["Config"]["Env"])
    assert not any(entry.startswith("DROP=") for entry in shown["Config"]["Env"])
    assert shown["Config"]["Labels"] == {"tier": "db"}
    assert shown["Config"]["Cmd"] == list(ENDLESS)
    assert (shown["HostConfig"]["Memory"], shown["HostConfig"]["PidsLimit"]) == (64 << 20, 50)
    assert shown["HostConfig"]["PortBindings"] == {}
    assert {m["Destination"] for m in shown["Mounts"]} == {"/loose", "/named", "/memory"}
    assert next(m["Name"] for m in shown["Mounts"] if m["Destination"] == "/loose") == loose
    assert in_container(daemon, new, "cat", "/loose/a", "/named/b") == "a\nb\n"
    told = shown["CoveRecreated"]
    assert told["From"] == old
    assert {"Env.MODE", "Env.NEW", "HostConfig.PidsLimit", "CoveRemove.Mounts./host"} <= set(told["Changed"])
    assert "secret-value" not in str(told)
    remove(daemon, new)
    volumes = daemon.http("GET", "/volumes").json()["Volumes"]
    assert [volume["Name"] for volume in volumes] == ["named"]  # the anonymous one was the new container's
    daemon.http("DELETE", "/volumes/named")


def test_one_that_cannot_start_leaves_the_old_one_running(daemon: Daemon, image: str) -> None:
    old = run(daemon, image, *ENDLESS, name="kept", **FAST, Labels={"a": "1"}, AutoRemove=True)
    in_container(daemon, old, "sh", "-c", "echo c >/c")
    answer = recreate(daemon, "kept", Cmd=["/no/such/program"], Volumes={"/fresh": {}})
    assert answer.status == 400 and "no such file" in answer.message
    assert state(daemon, "kept")["Status"] == "running"
    assert inspect(daemon, "kept")["Id"] == old
    assert in_container(daemon, old, "cat", "/c") == "c\n"
    assert names(daemon) == ["/kept"]
    for body, said in (
        ({"CoveRemove": {"Env": ["NOSUCH"]}}, "CoveRemove.Env: NOSUCH: the container doesn't have it"),
        ({"CoveRemove": {"Mounts": ["/nosuch"]}}, "/nosuch: the container doesn't have it; it has none"),
        ({"Image": "no-such-image"}, "No such image"),
        ({"HostConfig": {"Memory": 1}}, "HostConfig.Memory"),
        ({"Cove": {"pod": "x"}}, "can't move to another pod"),
    ):
        refused = recreate(daemon, "kept", **body)
        assert refused.status in (400, 404) and said in refused.message, refused.message
    pid = state(daemon, "kept")["Pid"]
    assert recreate(daemon, "kept", Image="no-such-image").status == 404
    assert state(daemon, "kept")["Pid"] == pid
    assert daemon.http("GET", "/volumes").json()["Volumes"] == []
    remove(daemon, old)


def test_one_that_does_not_run_is_not_started_and_one_that_is_joined_stays(
    daemon: Daemon, image: str
) -> None:
    old = create(daemon, image, *ENDLESS, name="still", NetworkMode="bridge")
    new = recreate(daemon, "still", Env=["A=1"]).json()["Id"]
    assert state(daemon, new)["Status"] == "created"
    assert not exists(daemon, old)
    joined = create(daemon, image, *ENDLESS, NetworkMode=f"container:{new}")
    refused = recreate(daemon, "still")
    assert refused.status == 409 and "is joined by" in refused.message
    remove(daemon, joined, new)


def test_one_with_rm_that_ends_at_once_or_cannot_start(daemon: Daemon, image: str) -> None:
    old = run(daemon, image, *ENDLESS, name="brief", **FAST, AutoRemove=True, RestartPolicy={"Name": "no"})
    assert recreate(daemon, "brief", Cmd=["/no/such"]).status == 400
    assert inspect(daemon, "brief")["Id"] == old
    new = recreate(daemon, "brief", Cmd=["true"])
    assert new.status == 201, new.message
    eventually(lambda: not exists(daemon, new.json()["Id"]), "--rm")
    assert names(daemon) == []


def test_a_member_of_a_pod_stays_in_it_and_its_holder_is_refused(daemon: Daemon, image: str) -> None:
    made = daemon.http("POST", "/cove/v1/pods?name=p", {})
    assert made.status == 201, made.message
    run(daemon, image, *ENDLESS, name="member", NetworkMode="", **FAST, Cove={"pod": "p"})
    new = recreate(daemon, "member", Env=["A=1"])
    assert new.status == 201, new.message
    [member] = daemon.http("GET", "/cove/v1/pods/inspect?name=p").json()["Containers"]
    assert (member["Id"], member["State"]) == (new.json()["Id"], "running")
    refused = recreate(daemon, "p-infra")
    assert refused.status == 409 and "holds a pod" in refused.message
    assert daemon.http("DELETE", "/cove/v1/pods?name=p&force=1").status == 204


def test_two_at_once_and_a_policy_that_would_start_it_again(daemon: Daemon, image: str) -> None:
    old = run(daemon, image, *ENDLESS, name="both", **FAST, RestartPolicy={"Name": "always"})
    calls = [Call(daemon, "POST", "/cove/v1/recreate?container=both", {"Env": [f"N={n}"]}) for n in range(4)]
    answers = [call.result() for call in calls]
    statuses = sorted(answer.status for answer in answers if answer is not None)
    assert statuses[0] == 201 and set(statuses) <= {201, 404, 409}, statuses
    assert names(daemon) == ["/both"]
    assert not any("Traceback" in line for line in daemon.log_text().splitlines())
    shown = inspect(daemon, "both")
    assert shown["Id"] != old and shown["State"]["Status"] == "running"
    assert shown["HostConfig"]["RestartPolicy"]["Name"] == "always"
    remove(daemon, "both")


def test_files_are_kept_where_that_is_asked_for(daemon: Daemon, image: str) -> None:
    run(daemon, image, *ENDLESS, name="files", **FAST, Env=["A=1", "B=1"])
    before = {one["Id"] for one in daemon.http("GET", "/images/json?all=1").json()}
    for number in range(2):
        in_container(daemon, "files", "sh", "-c", f"echo {number} >/kept{number}; rm -f /bin/vi")
        answer = recreate(daemon, "files", CoveKeepFiles=True, CoveRemove={"Env": ["AB"[number]]})
        assert answer.status == 201, answer.message
    assert in_container(daemon, "files", "cat", "/kept0", "/kept1") == "0\n1\n"
    assert in_container(daemon, "files", "sh", "-c", "ls /bin/vi 2>/dev/null; true") == ""
    shown = inspect(daemon, "files")
    assert shown["Config"]["Image"] == image
    assert not {"A=1", "B=1"} & set(shown["Config"]["Env"])
    failed = recreate(daemon, "files", CoveKeepFiles=True, Cmd=["/no/such"])
    assert failed.status == 400
    assert in_container(daemon, "files", "cat", "/kept1") == "1\n"
    assert recreate(daemon, "files", CoveKeepFiles=True, Image=image).status == 400
    remove(daemon, "files")
    assert {one["Id"] for one in daemon.http("GET", "/images/json?all=1").json()} == before


def test_its_own_secrets_come_along_and_settings_are_merged(daemon: Daemon, image: str) -> None:
    old = run(
        daemon,
        image,
        *ENDLESS,
        name="sealed",
        **FAST,
        Cove={"secrets": ":target=key", "health.on-failure": "kill"},
        CoveSecretData={"key": "Y29udGVudA=="},
        Healthcheck={"Test": ["CMD", "true"]},
    )
    in_container(daemon, old, "cat", "/run/secrets/key")
    new = recreate(daemon, "sealed", Cove={"health.probe": "tcp://:80", "health.on-failure": "none"}).json()[
        "Id"
    ]
    assert in_container(daemon, new, "cat", "/run/secrets/key") == "content"
    assert inspect(daemon, new)["Cove"] == {"health.probe": "tcp://:80", "secrets": ":target=key"}
    newer = recreate(
        daemon, "sealed", Healthcheck={"Test": ["CMD", "true"]}, CoveRemove={"Secrets": ["key"]}
    ).json()["Id"]
    shown = inspect(daemon, newer)
    assert "Cove" not in shown and shown["Config"]["Healthcheck"]["Test"] == ["CMD", "true"]
    remove(daemon, newer)


def test_addresses_that_were_asked_for_stay(daemon: Daemon, image: str) -> None:
    made = daemon.http(
        "POST", "/networks/create", {"Name": "fixed", "IPAM": {"Config": [{"Subnet": "10.213.77.0/24"}]}}
    )
    assert made.status == 201, made.message
    endpoint = {
        "IPAMConfig": {"IPv4Address": "10.213.77.9"},
        "MacAddress": "02:42:0a:00:00:09",
        "Aliases": ["db"],
    }
    body = {
        "Image": image,
        "Cmd": list(ENDLESS),
        **FAST,
        "HostConfig": {"NetworkMode": "fixed"},
        "NetworkingConfig": {"EndpointsConfig": {"fixed": endpoint}},
    }
    daemon.http("POST", "/containers/create?name=db", body)
    daemon.http("POST", "/containers/db/start")
    new = recreate(daemon, "db", Env=["A=1"]).json()["Id"]
    on = inspect(daemon, new)["NetworkSettings"]["Networks"]["fixed"]
    assert (on["IPAddress"], on["MacAddress"]) == ("10.213.77.9", "02:42:0a:00:00:09")
    assert "db" in on["Aliases"]
    remove(daemon, new)
    daemon.http("DELETE", "/networks/fixed")


@pytest.mark.parametrize(("auto_remove", "keep_files"), [(False, False), (True, False), (False, True)])
def test_a_daemon_killed_at_each_step_leaves_one_of_the_two(
    fresh_daemon: Daemon, image: str, auto_remove: bool, keep_files: bool
) -> None:
    daemon, name = fresh_daemon, "web"
    old = run(
        daemon,
        image,
        *ENDLESS,
        name=name,
        **FAST,
        AutoRemove=auto_remove,
        Env=["ROUND=-1"],
        Volumes={"/data": {}},
        NetworkMode="bridge",
    )
    in_container(daemon, old, "sh", "-c", "echo kept >/data/file; echo kept >/file")
    seen = []
    for number, action in enumerate(("create", "kill", "die", "stop", "rename", "start", "destroy")):
        call = None
        with contextlib.closing(daemon.client.events(decode=True, filters={"type": "container"})) as events:
            body = {"Env": [f"ROUND={number}"], "CoveKeepFiles": keep_files}
            call = Call(daemon, "POST", f"/cove/v1/recreate?container={name}", body)
            for event in events:
                if event["Action"] == action:
                    daemon.kill9()
                    break
        answer = call.result()
        daemon.start()
        eventually(lambda: state(daemon, name)["Status"] == "running", "the container runs")
        eventually(lambda: names(daemon) == ["/web"], "only one is left")
        shown = inspect(daemon, name)
        seen.append(shown["Id"] != old)
        assert (f"ROUND={number}" in shown["Config"]["Env"]) == (shown["Id"] != old)
        if answer is not None:
            assert answer.status == 201 and answer.json()["Id"] == shown["Id"]
        assert in_container(daemon, name, "cat", "/data/file") == "kept\n"
        if keep_files:
            assert in_container(daemon, name, "cat", "/file") == "kept\n"
        check_consistent(daemon)
        old = shown["Id"]
    assert (seen[0], seen[-2:]) == (False, [True, True]), seen
    remove(daemon, name)
    eventually(lambda: not daemon.http("GET", "/volumes").json()["Volumes"])


def test_the_command_line_says_the_same(daemon: Daemon, image: str) -> None:
    old = run(daemon, image, *ENDLESS, name="cli", **FAST, Env=["A=1", "B=1"], Volumes={"/v": {}})
    done = subprocess.run(
        [
            *(ROOT / "bin/cove", "-H", daemon.host, "recreate", "-e", "A=2", "--env-rm", "B", "-m", "64m"),
            *("--label", "tier=web", "--mount-rm", "/v", "cli", "sleep", "99999"),
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    shown = inspect(daemon, "cli")
    assert shown["Id"] == done.stdout.strip() != old
    own = [entry for entry in shown["Config"]["Env"] if not entry.startswith("PATH=")]
    assert (own, shown["Config"]["Cmd"]) == (["A=2"], ["sleep", "99999"])
    assert (shown["HostConfig"]["Memory"], shown["Config"]["Labels"]) == (64 << 20, {"tier": "web"})
    assert shown["HostConfig"]["NetworkMode"] == "none"
    assert shown["Mounts"] == []
    hinted = subprocess.run(
        [ROOT / "bin/cove", "-H", daemon.host, "update", "--env", "A=3", "cli"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert hinted.returncode == 125 and "cove recreate --env … creates it again with it" in hinted.stderr
    remove(daemon, "cli")
    for volume in daemon.http("GET", "/volumes").json()["Volumes"]:
        daemon.http("DELETE", f"/volumes/{volume['Name']}")
