"""The create body of Cove's command line is that of Docker's: both run against one fake daemon and are compared."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli_fake_daemon import Answer, FakeDaemon, Request, run_cove

DOCKER = shutil.which("docker")
pytestmark = pytest.mark.skipif(DOCKER is None, reason="there is no docker command line to compare with")


def docker_version() -> int:
    """The major version: Debian 12 has 20.10, which lacks some flags and knows no API after 1.41."""
    if DOCKER is None:
        return 0
    said = subprocess.run(
        [DOCKER, "--version"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    return int(said.removeprefix("Docker version ").split(".")[0])


since_25 = pytest.mark.skipif(docker_version() < 25, reason="docker sends this from version 25 on")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    def create(request: Request) -> Answer:
        return 201, {"Id": "c" * 64, "Warnings": []}

    fake = FakeDaemon(tmp_path / "d.sock", {"POST /containers/create": create})
    yield fake
    fake.close()


def bodies(daemon: FakeDaemon, tmp_path: Path, arguments: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What Cove and docker send for `create ARGUMENTS`."""
    assert DOCKER is not None
    result = run_cove("create", *arguments, host=daemon.address, env={"FROM_CALLER": "yes"}, cwd=tmp_path)
    assert result.returncode == 0, result.stderr.decode()
    ours = daemon.find("POST", "/create")
    daemon.requests.clear()
    subprocess.run(
        [DOCKER, "create", *arguments],
        env={
            "PATH": os.environ["PATH"],
            "DOCKER_HOST": daemon.address,
            "DOCKER_CONFIG": str(tmp_path / "config"),
            "FROM_CALLER": "yes",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=tmp_path,
        timeout=60,
        check=True,
    )
    theirs = daemon.find("POST", "/create")
    assert ours.query == {key: value for key, value in theirs.query.items() if value != [""]}
    sent = ours.json()
    if sent.pop("Cove", None) != {"init": "auto"}:
        assert any(argument.startswith("--init") for argument in arguments)
    return without_defaults(sent), without_defaults(theirs.json())


def without_defaults(value: Any) -> Any:
    """What was asked for: docker's body spells out every field, ours only what isn't empty."""
    if isinstance(value, dict):
        cleaned = {key: without_defaults(item) for key, item in value.items()}
        cleaned.pop("ConsoleSize", None)
        if cleaned.get("MemorySwappiness") == -1:
            del cleaned["MemorySwappiness"]
        if cleaned.get("RestartPolicy") == {"Name": "no"}:
            del cleaned["RestartPolicy"]
        for name in {"Binds", "Env"} & set(cleaned):
            cleaned[name] = sorted(cleaned[name] or ())  # docker keeps them in maps
        empty: tuple[Any, ...] = (None, "", 0, [], {}, False)
        keep = ("MaskedPaths", "ReadonlyPaths", "80/tcp", "StopTimeout", "Init")
        return {
            key: item
            for key, item in cleaned.items()
            if not any(
                item is nothing or (item == nothing and type(item) is type(nothing)) for nothing in empty
            )
            or (key in keep and item is not None)
        }
    if isinstance(value, list):
        return [without_defaults(item) for item in value]
    return value


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["-it", "--name", "web"],
        ["-a", "stdout"],
        ["-e", "A=b", "-e", "FROM_CALLER", "-e", "MISSING", "--env-file", "env"],
        ["-w", "/srv", "-u", "1000:1000", "--group-add", "audio", "--group-add", "20"],
        ["--entrypoint", "/bin/sh"],
        ["--entrypoint", ""],
        ["--init", "--stop-signal", "SIGINT", "--stop-timeout", "3", "--rm"],
        ["--restart", "on-failure:3"],
        ["--restart", "always"],
        ["-l", "a=b", "-l", "bare", "--label-file", "env"],
        pytest.param(["--annotation", "a=b"], marks=since_25),
        ["-p", "8080:80", "-p", "127.0.0.1:53:53/udp", "-p", "8000-8002:9000-9002"],
        ["-p", "8000-8010:80", "-p", "[::1]:443:443", "-P", "--expose", "90-92/udp", "--expose", "70"],
        ["-p", "published=8080,target=80,protocol=tcp"],
        ["--network", "none"],
        ["--network", "host"],
        pytest.param(
            [
                "--network",
                "back",
                "--ip",
                "10.0.0.5",
                "--network-alias",
                "db",
                "--mac-address",
                "02:42:ac:11:00:0a",
            ],
            marks=since_25,
        ),
        ["--network", "name=back,alias=db,alias=db2,ip=10.0.0.5,driver-opt=a=b"],
        [
            "--dns",
            "9.9.9.9",
            "--dns-search",
            "example.org",
            "--dns-option",
            "ndots:2",
            "--add-host",
            "db:10.0.0.5",
        ],
        ["-h", "box", "--domainname", "example.org"],
        pytest.param(
            ["-v", "data:/data", "-v", "/srv:/srv:ro", "-v", "/anonymous", "-v", "./here:/here"],
            marks=since_25,
        ),
        ["--mount", "type=bind,source=/srv,target=/srv,readonly,bind-propagation=rslave"],
        ["--mount", "type=volume,source=data,target=/d,volume-nocopy,volume-label=a=b,volume-driver=local"],
        ["--mount", "type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=700"],
        ["--tmpfs", "/run:size=64m,mode=755", "--tmpfs", "/tmp", "--read-only", "--volumes-from", "other:ro"],
        ["--shm-size", "256m", "--storage-opt", "size=10g", "--volume-driver", "local"],
        ["-m", "512m", "--memory-swap", "1g", "--memory-reservation", "256m", "--memory-swappiness", "10"],
        ["--memory-swap", "-1", "-m", "1g", "--oom-kill-disable", "--oom-score-adj", "100"],
        [
            "--cpus",
            "0.5",
            "--cpu-shares",
            "512",
            "--cpuset-cpus",
            "0-1",
            "--cpuset-mems",
            "0",
            "--pids-limit",
            "100",
        ],
        [
            "--cpu-period",
            "100000",
            "--cpu-quota",
            "50000",
            "--cpu-rt-period",
            "10000",
            "--cpu-rt-runtime",
            "100",
        ],
        ["--blkio-weight", "300", "--blkio-weight-device", "/dev/null:500"],
        ["--device-read-bps", "/dev/null:1mb", "--device-write-bps", "/dev/null:2mb"],
        ["--device-read-iops", "/dev/null:1000", "--device-write-iops", "/dev/null:2000"],
        ["--ulimit", "core=1", "--ulimit", "nofile=1024:2048", "--cgroup-parent", "/mine"],
        ["--cap-add", "CAP_NET_ADMIN", "--cap-drop", "ALL", "--privileged"],
        ["--security-opt", "no-new-privileges", "--security-opt", "seccomp=unconfined"],
        ["--security-opt", "systempaths=unconfined"],
        ["--pid", "host", "--ipc", "shareable", "--uts", "host", "--userns", "host", "--cgroupns", "private"],
        ["--sysctl", "net.core.somaxconn=1024", "--device", "/dev/null", "--device", "/dev/null:/dev/x:r"],
        ["--device-cgroup-rule", "c 10:229 rwm", "--runtime", "runc"],
        [
            "--health-cmd",
            "true",
            "--health-interval",
            "1m30s",
            "--health-timeout",
            "5s",
            "--health-retries",
            "2",
        ],
        pytest.param(
            ["--health-cmd", "true", "--health-start-period", "10s", "--health-start-interval", "500ms"],
            marks=since_25,
        ),
        ["--no-healthcheck"],
        ["--log-driver", "json-file", "--log-opt", "max-size=10m", "--log-opt", "max-file=2"],
        ["--platform", "linux/amd64", "--pull", "never"],
    ],
    ids=lambda flags: " ".join(flags),
)
def test_create_sends_what_docker_sends(daemon: FakeDaemon, tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "env").write_text("# comment\nX=1\nFROM_CALLER\n\n")
    ours, theirs = bodies(daemon, tmp_path, [*flags, "debian", "echo", "-n", "hello"])
    assert ours == theirs


def test_a_seccomp_profile_is_sent_as_its_content(daemon: FakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    result = run_cove(
        "create", "--security-opt", "seccomp=profile.json", "debian", host=daemon.address, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr.decode()
    options = daemon.find("POST", "/create").json()["HostConfig"]["SecurityOpt"]
    assert options == ['seccomp={"defaultAction": "SCMP_ACT_ALLOW"}']
