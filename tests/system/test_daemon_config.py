"""The daemon's configuration file at work: defaults of containers, reload, and what a bad file does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon import IMAGE, ROOT, Daemon

FILE = {
    "debug": True,
    "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 512, "Hard": 1024}},
    "default-shm-size": "16m",
    "default-ipc-mode": "shareable",
    "init": True,
    "no-new-privileges": True,
    "dns": ["192.0.2.53"],
    "dns-search": ["example.test"],
    "ip": "127.0.0.1",
    "labels": ["rack=12"],
    "log-driver": "json-file",
    "log-opts": {"max-size": "1m"},
    "host-gateway-ips": ["192.0.2.7"],
    "icc": False,
    "raw-logs": True,
}
START_BOUND_S = 30.0


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_BOUND_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Path]]:
    path = tmp_path_factory.mktemp("etc") / "daemon.json"
    path.write_text(json.dumps(FILE))
    with Daemon("--config-file", str(path), "--default-cgroupns-mode=private") as daemon:
        daemon.load_image()
        yield daemon, path


def run(daemon: Daemon, *command: str, **options: object) -> str:
    return daemon.client.containers.run(IMAGE, list(command), remove=True, **options).decode()


def test_a_container_gets_the_defaults_that_it_leaves_open(configured: tuple[Daemon, Path]) -> None:
    daemon, _ = configured
    script = (
        "ulimit -Sn; ulimit -Hn; grep -c /dev/shm.*size=16384k /proc/mounts; grep NoNewPrivs /proc/self/status; "
        "cat /proc/1/comm; grep -v ^# /etc/resolv.conf; grep host.test /etc/hosts"
    )
    shown = run(daemon, "sh", "-c", script, extra_hosts={"host.test": "host-gateway"}, network_mode="bridge")
    assert shown.split("\n")[:4] == ["512", "1024", "1", "NoNewPrivs:\t1"]
    assert "192.0.2.53" in shown and "example.test" in shown and "192.0.2.7\thost.test" in shown
    assert shown.split("\n")[4] != "sh", "the init is process 1"


def test_what_a_container_says_wins(configured: tuple[Daemon, Path]) -> None:
    daemon, _ = configured
    script = "ulimit -Sn; grep NoNewPrivs /proc/self/status; cat /proc/1/comm; cat /etc/resolv.conf"
    limits = [{"Name": "nofile", "Soft": 300, "Hard": 300}]
    options = {
        "ulimits": limits,
        "init": False,
        "security_opt": ["no-new-privileges=false"],
        "dns": ["192.0.2.9"],
    }
    shown = run(daemon, "sh", "-c", script, **options)
    assert shown.split("\n")[:3] == ["300", "NoNewPrivs:\t0", "sh"]
    assert "192.0.2.9" in shown and "192.0.2.53" not in shown


def test_ports_and_logs_go_by_the_defaults(configured: tuple[Daemon, Path]) -> None:
    daemon, _ = configured
    container = daemon.client.containers.run(IMAGE, ["sleep", "100"], ports={"80/tcp": None}, detach=True)
    try:
        container.reload()
        assert [binding["HostIp"] for binding in container.ports["80/tcp"]] == ["127.0.0.1"]
        assert container.attrs["HostConfig"]["LogConfig"] == {
            "Type": "json-file",
            "Config": {"max-size": "1m"},
        }
    finally:
        container.remove(force=True)
    other = daemon.client.containers.create(IMAGE, ["true"], log_config={"Type": "local"})
    assert other.attrs["HostConfig"]["LogConfig"] == {"Type": "local", "Config": {}}, (
        "the options are json-file's"
    )
    other.remove()


def test_what_has_no_effect_is_told_in_the_log(configured: tuple[Daemon, Path]) -> None:
    daemon, _ = configured
    assert "raw-logs has no effect: the text is never coloured" in daemon.log_text()


def reload_event(daemon: Daemon, since: float) -> dict[str, object] | None:
    query = f"/events?since={since:.6f}&until={time.time():.6f}&filters=%7B%22type%22%3A%5B%22daemon%22%5D%7D"
    lines = daemon.http("GET", query).body.splitlines()
    return json.loads(lines[-1]) if lines else None


def test_a_reload_counts_for_later_containers_and_is_an_event(configured: tuple[Daemon, Path]) -> None:
    daemon, path = configured
    since = time.time()
    changed = {**FILE, "labels": ["rack=13"], "default-shm-size": "32m", "shutdown-timeout": 7, "mtu": 1400}
    try:
        path.write_text(json.dumps(changed))
        os.kill(daemon.pid, signal.SIGHUP)
        eventually(lambda: reload_event(daemon, since) is not None, "no event after SIGHUP")
        event = reload_event(daemon, since)
        assert event is not None and event["Action"] == "reload"
        attributes = event["Actor"]["Attributes"]  # type: ignore[index]
        assert attributes["labels"] == '["rack=13"]' and attributes["shutdown-timeout"] == "7"
        assert attributes["live-restore"] == "true" and attributes["default-runtime"] == "cove"
        assert "1" in run(daemon, "sh", "-c", "grep -c /dev/shm.*size=32768k /proc/mounts")
        assert "mtu has changed in the configuration and counts from the next start on" in daemon.log_text()
    finally:
        path.write_text(json.dumps(FILE))
        answer = daemon.http("POST", "/cove/v1/reload")
    assert answer.json() == {
        "reloaded": ["shutdown-timeout", "labels", "default-shm-size"],
        "waiting": [],
    }


def test_a_bad_file_changes_nothing_and_says_why(configured: tuple[Daemon, Path]) -> None:
    daemon, path = configured
    try:
        for text, why in (
            ('{"labels": "x"}', "labels: expected an array"),
            ('{"log-driver": "papyrus"}', "papyrus"),
            ("{", "not JSON"),
        ):
            path.write_text(text)
            answer = daemon.http("POST", "/cove/v1/reload")
            assert answer.status == 400 and why in answer.message
            os.kill(daemon.pid, signal.SIGHUP)
            eventually(lambda why=why: why in daemon.log_text(), "the log doesn't tell")
        assert "1" in run(daemon, "sh", "-c", "grep -c /dev/shm.*size=16384k /proc/mounts")
    finally:
        path.write_text(json.dumps(FILE))


def cove_daemon(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cove.daemon", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_validate_and_print_config_start_nothing(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.write_text('{\n "mtu": true,\n "iptables": false\n}')
    wrong = cove_daemon("--config-file", str(path), "--validate", "--data-root", str(tmp_path / "data"))
    assert wrong.returncode == 1 and wrong.stderr.splitlines() == [
        f"cove daemon: {path}:2: mtu: expected a whole number, got true, e.g. 1400",
        f"cove daemon: {path}:3: iptables: isn't supported: networks and published ports are rules of Cove's own "
        "nftables table, which leaves others alone",
    ]
    path.write_text('{"mtu": 1400}')
    right = cove_daemon("--config-file", str(path), "--validate", "--data-root", str(tmp_path / "data"))
    assert (right.returncode, right.stdout) == (0, "configuration OK\n")
    shown = cove_daemon("--config-file", str(path), "--print-config", "--debug")
    assert json.loads(shown.stdout)["mtu"] == 1400 and json.loads(shown.stdout)["debug"] is True
    both = cove_daemon("--config-file", str(path), "--mtu", "1300", "--validate")
    assert (
        "specified both as a flag and in the configuration file: mtu: (from flag: 1300, from file: 1400)"
        in both.stderr
    )
    missing = cove_daemon("--config-file", str(tmp_path / "no.json"), "--validate")
    assert missing.stderr == f"cove daemon: --config-file {tmp_path}/no.json: there is no such file\n"
    assert list(tmp_path.iterdir()) == [path]


def test_containers_stop_with_the_daemon_where_live_restore_is_off(tmp_path: Path) -> None:
    with Daemon("--live-restore=false", "--shutdown-timeout", "2") as daemon:
        daemon.load_image()
        script = "trap 'exit 7' TERM; while :; do sleep 0.1; done"
        polite = daemon.client.containers.run(IMAGE, ["sh", "-c", script], detach=True)
        stubborn = daemon.client.containers.run(IMAGE, ["sh", "-c", "trap '' TERM; sleep 1000"], detach=True)
        policy = {"Name": "always"}
        back = daemon.client.containers.run(IMAGE, ["sh", "-c", script], detach=True, restart_policy=policy)
        daemon.restart()
        states = {c.id: c.attrs["State"] for c in daemon.client.containers.list(all=True)}
        assert (states[polite.id]["Status"], states[polite.id]["ExitCode"]) == ("exited", 7)
        assert (states[stubborn.id]["Status"], states[stubborn.id]["ExitCode"]) == ("exited", 137)
        eventually(lambda: daemon.client.containers.get(back.id).status == "running", "its policy is always")
        for container in (polite, stubborn, back):
            container.remove(force=True)


def test_info_tells_what_the_configuration_says(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.write_text(
        json.dumps(
            {
                "labels": ["rack=12", "zone=a"],
                "live-restore": False,
                "registry-mirrors": ["https://mirror.example.com", "ghcr.io=https://m.example.com/g"],
                "insecure-registries": ["registry.example.com:5000", "10.0.0.0/8"],
                "seccomp-profile": "unconfined",
                "no-new-privileges": True,
            }
        )
    )
    with Daemon("--config-file", str(path)) as daemon:
        info = daemon.client.info()
        assert info["Labels"] == ["rack=12", "zone=a"] and info["LiveRestoreEnabled"] is False
        assert info["RegistryConfig"]["Mirrors"] == ["https://mirror.example.com/"]
        assert info["RegistryConfig"]["IndexConfigs"]["ghcr.io"]["Mirrors"] == ["https://m.example.com/g/"]
        assert "10.0.0.0/8" in info["RegistryConfig"]["InsecureRegistryCIDRs"]
        assert info["RegistryConfig"]["IndexConfigs"]["registry.example.com:5000"]["Secure"] is False
        assert {"name=seccomp,profile=unconfined", "name=no-new-privileges"} <= set(info["SecurityOptions"])
        daemon.load_image()
        assert "Seccomp:\t0" in run(daemon, "sh", "-c", "grep ^Seccomp: /proc/self/status")
        builtin = run(
            daemon, "sh", "-c", "grep ^Seccomp: /proc/self/status", security_opt=["seccomp=builtin"]
        )
        assert "Seccomp:\t2" in builtin


def test_a_profile_of_the_host_filters_containers_that_name_none(tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    with Daemon("--seccomp-profile", str(profile)) as daemon:
        daemon.load_image()
        script = "mkdir /tmp/x 2>&1 || true"
        assert "Operation not supported" in run(daemon, "sh", "-c", script)
        assert run(daemon, "sh", "-c", script, security_opt=["seccomp=builtin"]) == ""
        assert run(daemon, "sh", "-c", script, privileged=True) == ""
    profile.write_text("{")
    wrong = cove_daemon("--seccomp-profile", str(profile), "--config-file=", "--validate")
    assert (
        wrong.returncode == 1
        and f"seccomp-profile {profile}: Decoding seccomp profile failed" in wrong.stderr
    )


def test_the_default_bridge_is_as_the_configuration_says(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.write_text(
        json.dumps(
            {
                "bip": "10.231.7.9/24",
                "fixed-cidr": "10.231.7.128/25",
                "ipv6": False,
                "icc": False,
                "mtu": 1400,
                "default-address-pools": [{"base": "10.232.0.0/16", "size": 28}],
                "default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "1380"}},
            }
        )
    )
    with Daemon("--config-file", str(path)) as daemon:
        daemon.load_image()
        bridge = daemon.client.networks.get("bridge").attrs
        (pool,) = bridge["IPAM"]["Config"]
        assert (pool["Subnet"], pool["Gateway"], pool["IPRange"]) == (
            "10.231.7.0/24",
            "10.231.7.9",
            "10.231.7.128/25",
        )
        script = "ip -4 -o addr show eth0; ip route; cat /sys/class/net/eth0/mtu"
        shown = run(daemon, "sh", "-c", script)
        assert "10.231.7.1" in shown and "default via 10.231.7.9" in shown and "1400" in shown
        other = daemon.client.containers.run(IMAGE, ["sleep", "1000"], detach=True)
        try:
            other.reload()
            address = other.attrs["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
            assert int(address.rpartition(".")[2]) >= 128
            assert "no" in run(
                daemon, "sh", "-c", f"ping -c1 -W1 {address} >/dev/null && echo yes || echo no"
            )
        finally:
            other.remove(force=True)
        network = daemon.client.networks.create("pooled")
        try:
            network.reload()
            assert network.attrs["IPAM"]["Config"][0]["Subnet"].startswith("10.232.0.")
            assert network.attrs["IPAM"]["Config"][0]["Subnet"].endswith("/28")
            assert network.attrs["Options"]["com.docker.network.driver.mtu"] == "1380"
        finally:
            network.remove()


def test_an_ordinary_user_has_a_file_of_its_own() -> None:
    home = Path(tempfile.mkdtemp(prefix="cove-config-"))
    try:
        (home / "cove").mkdir()
        (home / "cove" / "daemon.json").write_text('{"labels": ["whose=mine"], "data-root": "/srv/mine"}')
        for path in (home, *home.rglob("*")):
            path.chmod(0o755)
        command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", sys.executable, "-P"]
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "XDG_CONFIG_HOME": str(home),
            "XDG_RUNTIME_DIR": str(home),
        }
        words = ["-m", "cove.rootless", "--print-config", "--mtu", "1400"]
        done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=60)
        shown = json.loads(done.stdout)
        assert (shown["labels"], shown["mtu"]) == (["whose=mine"], 1400)
        assert (shown["data-root"], shown["run-dir"]) == ("/srv/mine", f"{home}/cove")
    finally:
        shutil.rmtree(home)
