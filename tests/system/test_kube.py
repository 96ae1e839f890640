"""Kubernetes files played on the real kernel: what runs, what is refused, what is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.apikit import create, eventually, exists, inspect, logs, state
from tests.daemon import Daemon
from tests.system.test_faults_reboot import cut_power, free_port
from tests.system.test_pods import drop

ROOT = Path(__file__).resolve().parents[2]
Play = Callable[..., Any]


def played(daemon: Daemon, text: str, verb: str = "play", **query: str) -> Any:
    path = f"/cove/v1/kube/{verb}?" + "&".join(f"{key}={quote(value)}" for key, value in query.items())
    return daemon.http("POST", path, text.encode())


@pytest.fixture
def play(daemon: Daemon, image: str) -> Iterator[Play]:
    """Play a file with IMAGE in it; everything of it is gone afterwards."""
    files = []

    def run(text: str, **query: str) -> Any:
        files.append(text.replace("IMAGE", image))
        return played(daemon, files[-1], **query)

    yield run
    for text in files:
        played(daemon, text, "down", volumes="1")
    drop(daemon)


def containers(daemon: Daemon) -> list[str]:
    return sorted(one["Names"][0][1:] for one in daemon.http("GET", "/containers/json?all=1").json())


def lines(daemon: Daemon, container: str) -> list[str]:
    """What it wrote to standard output, without the frames."""
    framed, found = daemon.http("GET", f"/containers/{container}/logs?stdout=1").body, b""
    while framed:
        size = int.from_bytes(framed[4:8], "big")
        found, framed = found + framed[8 : 8 + size], framed[8 + size :]
    return found.decode().splitlines()


def volumes(daemon: Daemon) -> list[str]:
    return sorted(one["Name"] for one in daemon.http("GET", "/volumes").json()["Volumes"] or ())


POD = """
apiVersion: v1
kind: Pod
metadata: {name: shop, labels: {app: shop}}
spec:
  hostname: till
  terminationGracePeriodSeconds: 0
  initContainers:
  - name: fill
    image: IMAGE
    command: [sh, -c, "echo $(TEXT) >/www/index.html"]
    env: [{name: TEXT, value: filled}]
    volumeMounts: [{name: www, mountPath: /www}]
  containers:
  - name: web
    image: IMAGE
    command: [sh, -c, httpd -f -p 80 -h /www]
    ports: [{containerPort: 80, hostPort: PORT, hostIP: 127.0.0.1}]
    volumeMounts: [{name: www, mountPath: /www, readOnly: true}]
    resources: {limits: {memory: 32Mi, cpu: 500m}}
  - name: side
    image: IMAGE
    args:
    - sh
    - -c
    - "hostname; until wget -qO- http://127.0.0.1/; do sleep 0.05; done; exec sleep 1000"
    volumeMounts: [{name: www, mountPath: /data}]
  volumes: [{name: www, emptyDir: {}}]
"""


def test_containers_of_a_pod_share_localhost_and_a_volume_behind_init(daemon: Daemon, play: Play) -> None:
    port = free_port()
    answer = play(POD.replace("PORT", str(port)))
    assert answer.status == 201, answer.message
    assert [one["Name"] for one in answer.json()["Pods"][0]["Containers"]] == [
        "shop-fill",
        "shop-web",
        "shop-side",
    ]
    assert containers(daemon) == ["shop-fill", "shop-infra", "shop-side", "shop-web"]
    assert volumes(daemon) == ["shop-www"]
    eventually(lambda: b"filled\n" in logs(daemon, "shop-side"))
    assert b"till\n" in logs(daemon, "shop-side")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
        assert b"200 OK" in sock.recv(4096)
    shown = inspect(daemon, "shop-web")
    assert (shown["HostConfig"]["Memory"], shown["HostConfig"]["NanoCpus"]) == (32 << 20, 500_000_000)
    assert shown["Config"]["Labels"]["app"] == "shop"
    assert state(daemon, "shop-fill")["ExitCode"] == 0
    again = play(POD.replace("PORT", str(port)))
    assert (again.status, "pod shop exists already: play it with --replace" in again.message) == (409, True)
    before = inspect(daemon, "shop-web")["Id"]
    assert play(POD.replace("PORT", str(port)), replace="1").status == 201
    assert inspect(daemon, "shop-web")["Id"] != before
    gone = played(daemon, POD.replace("PORT", str(port)), "down").json()["Removed"]
    assert gone == ["pod shop", "volume shop-www"]
    assert (containers(daemon), volumes(daemon)) == ([], [])


DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: crew}
spec:
  replicas: 2
  template:
    metadata: {labels: {app: crew}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: hand
        image: IMAGE
        command: [sh, -c, "echo $NAME; exec sleep 1000"]
        env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
"""


def test_a_deployment_has_as_many_pods_as_replicas(daemon: Daemon, play: Play) -> None:
    assert play(DEPLOYMENT).status == 201
    pods = {one["Name"]: one["Status"] for one in daemon.http("GET", "/cove/v1/pods").json()}
    assert pods == {"crew-pod": "running", "crew-pod-2": "running"}
    eventually(lambda: b"crew-pod-2\n" in logs(daemon, "crew-pod-2-hand"))


CONFIG = """
apiVersion: v1
kind: Pod
metadata: {name: conf}
spec:
  restartPolicy: Never
  securityContext: {runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000}
  containers:
  - name: show
    image: IMAGE
    command: [sh, -c]
    args:
    - |
      echo $MODE $PASSWORD; cat /etc/conf/sub/app.conf /etc/keys/password
      stat -c '%a %g' -L /etc/keys/password
      touch /etc/conf/x || echo ro
      touch /work/x /mem/x && stat -c %g /work/x
      touch /claim/x || echo foreign
    env:
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: keys, key: password}}}
    envFrom: [{configMapRef: {name: conf}}]
    volumeMounts:
    - {name: conf, mountPath: /etc/conf}
    - {name: keys, mountPath: /etc/keys}
    - {name: work, mountPath: /work}
    - {name: mem, mountPath: /mem}
    - {name: claim, mountPath: /claim, subPath: a/b}
  volumes:
  - {name: conf, configMap: {name: conf, items: [{key: app.conf, path: sub/app.conf}]}}
  - {name: keys, secret: {secretName: keys, defaultMode: 0400}}
  - {name: work, emptyDir: {}}
  - {name: mem, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: claim, persistentVolumeClaim: {claimName: kept}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {MODE: fast, app.conf: "a = 1\\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {password: "pass\\n"}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: kept}
spec: {accessModes: [ReadWriteOnce]}
"""


def test_configuration_comes_as_variables_and_files(daemon: Daemon, play: Play) -> None:
    answer = play(CONFIG)
    assert answer.status == 201, answer.message
    eventually(lambda: state(daemon, "conf-show")["Status"] == "exited")
    told = lines(daemon, "conf-show")
    assert told[:2] == ["fast pass", "a = 1"]
    assert "pass" in told
    assert "440 2000" in told
    assert "ro" in told
    assert "2000" in told
    assert "foreign" not in told
    assert volumes(daemon) == ["conf-conf", "conf-keys", "conf-mem", "conf-work", "kept"]
    played(daemon, play_text := CONFIG, "down")
    assert volumes(daemon) == ["kept"]
    played(daemon, play_text, "down", volumes="1")
    assert volumes(daemon) == []


LIVENESS = """
apiVersion: v1
kind: Pod
metadata: {name: alive}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: sick
    image: IMAGE
    command: [sleep, "1000"]
    livenessProbe: {tcpSocket: {port: 9}, periodSeconds: 1, failureThreshold: 1}
"""


def test_a_container_that_fails_its_liveness_probe_starts_again(daemon: Daemon, play: Play) -> None:
    assert play(LIVENESS).status == 201
    eventually(lambda: state(daemon, "alive-sick")["RestartCount"] > 0)


FAILING = """
apiVersion: v1
kind: Pod
metadata: {name: fails}
spec:
  initContainers: [{name: first, image: IMAGE, command: [sh, -c, "echo no database; exit 3"]}]
  containers: [{name: never, image: IMAGE, volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, emptyDir: {}}]
"""


def test_a_play_that_fails_leaves_nothing_and_tells_why(daemon: Daemon, play: Play) -> None:
    answer = play(FAILING)
    assert answer.status == 409
    assert "fails-first to have completed (it is exited (3)), and that won't change" in answer.message
    assert "its last words: no database" in answer.message
    assert (containers(daemon), volumes(daemon)) == ([], [])


def test_what_isnt_here_is_refused_before_anything_is_made(daemon: Daemon, play: Play) -> None:
    answer = play(DEPLOYMENT.replace("IMAGE", "nowhere:1"))
    assert (answer.status, "No such image: nowhere:1" in answer.message) == (404, True)
    missing = FAILING.replace("emptyDir: {}", "hostPath: {path: /no/such/place}")
    answer = play(missing)
    assert (answer.status, "there is no /no/such/place on this host" in answer.message) == (400, True)
    assert (containers(daemon), volumes(daemon)) == ([], [])


def test_nobody_elses_pod_or_volume_is_touched(daemon: Daemon, play: Play, image: str) -> None:
    daemon.http("POST", "/volumes/create", {"Name": "fails-data"})
    assert "volume fails-data exists already" in play(FAILING).message
    played(daemon, FAILING, "down", volumes="1")
    assert volumes(daemon) == ["fails-data"]
    daemon.http("DELETE", "/volumes/fails-data")
    assert daemon.http("POST", "/cove/v1/pods?name=fails", {}).status == 201
    for verb in ("play", "down"):
        answer = played(daemon, FAILING.replace("IMAGE", image), verb, replace="1")
        assert (answer.status, "pod fails exists already, made by no file" in answer.message) == (409, True)
    drop(daemon, "fails")


SLOW = """
apiVersion: v1
kind: Pod
metadata: {name: slow}
spec:
  terminationGracePeriodSeconds: 0
  initContainers: [{name: first, image: IMAGE, command: [sleep, "1000"]}]
  containers: [{name: app, image: IMAGE, volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, emptyDir: {}}]
"""


def test_a_play_that_a_crash_cut_short_is_taken_back(fresh_daemon: Daemon, image: str) -> None:
    text = SLOW.replace("IMAGE", image)
    command = [ROOT / "bin/cove", "-H", f"unix://{fresh_daemon.socket_path}", "kube", "play", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as cli:
        assert cli.stdin is not None
        cli.stdin.write(text.encode())
        cli.stdin.close()
        eventually(
            lambda: exists(fresh_daemon, "slow-first") and state(fresh_daemon, "slow-first")["Running"]
        )
        busy = played(fresh_daemon, text)
        assert (busy.status, "is being played or taken down at the moment" in busy.message) == (409, True)
        fresh_daemon.kill9()
        assert cli.wait(30) != 0
    fresh_daemon.start()
    assert (containers(fresh_daemon), volumes(fresh_daemon)) == ([], [])
    drop(fresh_daemon)


def test_the_command_line_plays_shows_and_takes_down(
    daemon: Daemon, play: Play, image: str, tmp_path: Path
) -> None:
    file = tmp_path / "crew.yaml"
    file.write_text(DEPLOYMENT.replace("IMAGE", image))
    environment = {**os.environ, "COVE_HOST": f"unix://{daemon.socket_path}"}

    def cove(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "bin/cove", "kube", *words], env=environment, capture_output=True, text=True, timeout=60
        )

    wanted = [
        f"pod crew-pod\ncontainer crew-pod-hand {image}\npod crew-pod-2\ncontainer crew-pod-2-hand {image}\n"
    ]
    assert [cove("play", "--dry-run", str(file)).stdout] == wanted
    assert containers(daemon) == []
    done = cove("play", "--start=false", str(file))
    assert ([done.stdout], done.stderr) == (wanted, "")
    assert state(daemon, "crew-pod-hand")["Status"] == "created"
    assert cove("down", str(file)).stdout == "pod crew-pod-2\npod crew-pod\n"
    file.write_text(DEPLOYMENT.replace("image: IMAGE", "imag: x"))
    refused = cove("play", str(file))
    assert refused.returncode == 1
    assert (
        "Deployment/crew: spec.template.spec.containers[0].imag: no such field; did you mean image?"
        in refused.stderr
    )
    assert json.dumps(containers(daemon)) == "[]"


def test_an_interrupted_play_is_taken_back(daemon: Daemon, play: Play, image: str) -> None:
    command = [ROOT / "bin/cove", "-H", f"unix://{daemon.socket_path}", "kube", "play", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as cli:
        assert cli.stdin is not None
        cli.stdin.write(SLOW.replace("IMAGE", image).encode())
        cli.stdin.close()
        eventually(lambda: exists(daemon, "slow-first") and state(daemon, "slow-first")["Running"])
        cli.send_signal(signal.SIGINT)
        assert cli.wait(30) == 130
    assert (containers(daemon), volumes(daemon)) == ([], [])


def generated(daemon: Daemon, *names: str) -> Any:
    answer = daemon.http("GET", "/cove/v1/kube/generate?" + "&".join(f"name={name}" for name in names))
    assert answer.status == 200, answer.message
    return answer.json()["Text"]


def test_what_is_generated_of_a_pod_plays_as_that_pod(daemon: Daemon, play: Play, image: str) -> None:
    port = free_port()
    assert play(POD.replace("PORT", str(port))).status == 201
    text = generated(daemon, "shop")
    fields = ("Config", "HostConfig")
    before = {name: [inspect(daemon, name)[key] for key in fields] for name in ("shop-fill", "shop-web")}
    played(daemon, POD.replace("PORT", str(port)), "down")
    again = play(text)
    assert again.status == 201, again.message
    assert [one["Name"] for one in again.json()["Pods"][0]["Containers"]] == [
        "shop-fill",
        "shop-web",
        "shop-side",
    ]
    assert generated(daemon, "shop") == text
    for name, (config, host) in before.items():
        shown = inspect(daemon, name)
        for key in ("Cmd", "Entrypoint", "Env", "WorkingDir", "User", "Healthcheck", "StopTimeout"):
            assert shown["Config"].get(key) == config.get(key)
        for key in ("Memory", "NanoCpus", "RestartPolicy", "ReadonlyRootfs", "CapAdd", "CapDrop"):
            assert shown["HostConfig"][key] == host[key]


def test_what_a_file_cant_say_of_a_container_is_told_at_its_head(daemon: Daemon, image: str) -> None:
    create(
        daemon,
        image,
        "sh",
        "-c",
        "echo $HOME",
        name="plain",
        NetworkMode="bridge",
        ShmSize=1 << 20,
        Tmpfs={"/t": "size=1m"},
        Binds=["/etc:/host:ro"],
        Healthcheck={"Test": ["CMD-SHELL", "true"], "Interval": 2_000_000_000},
    )
    text = generated(daemon, "plain")
    assert text.startswith("# container plain: not in this file: shm_size_bytes\napiVersion: v1\nkind: Pod\n")
    assert "name: plain" in text
    assert "- echo $$HOME" in text
    assert played(daemon, text, **{"dry-run": "1"}).status == 200
    daemon.http("DELETE", "/containers/plain?v=1")
    assert daemon.http("GET", "/cove/v1/kube/generate?name=plain").status == 404


def test_the_example_of_the_docs_does_what_the_page_says(
    daemon: Daemon, play: Play, image: str, tmp_path: Path
) -> None:
    page = (ROOT / "docs/kube.md").read_text()
    text = page.partition("```yaml\n")[2].partition("```")[0].replace("busybox", image)
    port = free_port()
    (tmp_path / "web.yaml").write_text(text.replace("18080", str(port)))
    session = page.partition("```console\n$ ")[2].partition("```")[0].replace("busybox", image)
    for step in session.split("$ "):
        command, _, shown = step.partition("\n")
        words = [ROOT / "bin/cove", "-H", f"unix://{daemon.socket_path}", *command.split()[1:]]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert (done.stdout, done.stderr) == (shown, "")
        if command == "cove kube play web.yaml":
            eventually(lambda: state(daemon, "web-pod-server")["Health"]["Status"] == "healthy")
            with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert b"200 OK" in sock.recv(4096)
    assert (containers(daemon), volumes(daemon)) == ([], [])


REMAINS = POD.replace("hostPort: PORT, hostIP: 127.0.0.1", "")


def test_a_pod_starts_again_with_its_init_containers(daemon: Daemon, play: Play) -> None:
    assert play(REMAINS).status == 201
    before = state(daemon, "shop-fill")["StartedAt"]
    assert daemon.http("POST", "/cove/v1/pods/stop?name=shop").status == 204
    assert daemon.http("POST", "/cove/v1/pods/start?name=shop").status == 204
    assert state(daemon, "shop-fill")["StartedAt"] != before
    assert state(daemon, "shop-web")["Running"]


def test_a_pod_is_back_after_a_boot(fresh_daemon: Daemon, image: str) -> None:
    text = REMAINS.replace("IMAGE", image)
    assert played(fresh_daemon, text).status == 201
    eventually(lambda: b"filled\n" in logs(fresh_daemon, "shop-side"))
    cut_power(fresh_daemon, keep_run_dir=False)
    fresh_daemon.start()
    names = ("shop-infra", "shop-web", "shop-side")
    eventually(lambda: all(state(fresh_daemon, name)["Running"] for name in names))
    eventually(lambda: logs(fresh_daemon, "shop-side").count(b"filled\n") == 2)
    assert played(fresh_daemon, text, "down").json()["Removed"] == ["pod shop", "volume shop-www"]
    drop(fresh_daemon)
