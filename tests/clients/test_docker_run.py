"""`docker run` of the stock command line: every option that this release knows, by its effect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.clients.dockercli import Docker, clean, eventually

if TYPE_CHECKING:
    from tests.daemon import Daemon


@pytest.fixture(scope="module")
def docker(daemon: Daemon) -> Iterator[Docker]:
    docker = Docker(daemon.host)
    yield docker
    docker.close()


@pytest.fixture(autouse=True)
def cleaned(daemon: Daemon) -> Iterator[None]:
    yield
    clean(daemon.client)


def run(docker: Docker, image: str, *options: str, shell: str) -> str:
    """The output of a shell line in a new container."""
    return docker("run", "--rm", *options, image, "sh", "-c", shell).out


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["true"], 0, ""),
        (["sh", "-c", "exit 3"], 3, ""),
        (["nosuchcommand"], 127, "executable file not found in $PATH"),
        (["/etc"], 126, "permission denied"),
    ],
)
def test_exit_codes_are_docker_s(
    docker: Docker, image: str, command: list[str], code: int, words: str
) -> None:
    assert words in docker("run", "--rm", image, *command, code=code).err
    assert docker("ps", "-aq").out == ""


def test_wrong_requests_are_125(docker: Docker, image: str) -> None:
    assert "--no-such-option" in docker("run", "--no-such-option", image, code=125).err
    refused = docker("run", "--pull", "never", "no/such:image", code=125).err
    assert "No such image: no/such:image" in refused
    assert (
        "127.0.0.1:1: connection refused" in docker("run", "127.0.0.1:1/no/such:image", code=125).err.lower()
    )
    docker("create", "--name", "taken", image)
    assert "is already in use by container" in docker("run", "--name", "taken", image, code=125).err


def test_output_goes_where_it_was_written(docker: Docker, image: str) -> None:
    result = docker("run", "--rm", image, "sh", "-c", "echo out; echo err >&2")
    assert (result.out, result.err) == ("out\n", "err\n")


def test_no_output_is_lost_however_often_it_runs(docker: Docker, image: str) -> None:
    results = [
        docker("run", "--rm", "--network", "none", image, "sh", "-c", "echo a; echo b") for _ in range(20)
    ]
    assert [result.out for result in results] == ["a\nb\n"] * 20


def test_input_comes_whole_and_its_end_is_seen(docker: Docker, image: str) -> None:
    data = bytes(range(256)) * 4096
    assert docker("run", "--rm", "-i", image, "cat", input=data).raw == data
    assert docker(
        "run", "--rm", "-i", image, "sh", "-c", "wc -c; echo after", input=b"12345"
    ).out.split() == [
        "5",
        "after",
    ]


def test_detached_it_prints_its_id_and_writes_it_to_a_file(
    docker: Docker, image: str, tmp_path: Path
) -> None:
    file = tmp_path / "cid"
    container = docker("run", "-d", "--name", "box", "--cidfile", str(file), image, "sleep", "600").word
    assert len(container) == 64
    assert file.read_text() == container
    assert docker("ps", "--no-trunc", "-q").word == container
    assert docker("inspect", "-f", "{{.Name}} {{.State.Running}}", "box").word == "/box true"


def test_variables_come_from_options_files_and_the_caller(docker: Docker, image: str, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\nFROM_FILE=1 2\nPASSED\n")
    result = docker(
        "run", "--rm", "-e", "A=b=c", "-e", "CALLER", "-e", "UNSET", "--env-file", str(file), image, "env",
        environment={"CALLER": "mine", "PASSED": "through"},
    )  # fmt: skip
    found = set(result.lines)
    assert {"A=b=c", "CALLER=mine", "FROM_FILE=1 2", "PASSED=through"} <= found
    assert not any(line.startswith("UNSET") for line in found)


def test_user_directory_entrypoint_and_groups(docker: Docker, image: str) -> None:
    assert run(docker, image, "-u", "123:456", shell="id -u; id -g") == "123\n456\n"
    assert "777" in run(docker, image, "--group-add", "777", shell="id -G").split()
    assert run(docker, image, "-w", "/made/for/it", shell="pwd") == "/made/for/it\n"
    result = docker("run", "--rm", "--entrypoint", "/bin/echo", image, "it", "runs")
    assert result.out == "it runs\n"


def test_names_of_the_container_and_of_others(docker: Docker, image: str) -> None:
    out = run(
        docker, image, "--hostname", "box", "--add-host", "db:192.0.2.7", "--dns", "192.0.2.53",
        "--dns-search", "example.test", "--dns-option", "ndots:3",
        shell="hostname; cat /etc/hosts /etc/resolv.conf",
    )  # fmt: skip
    assert out.startswith("box\n")
    assert "192.0.2.7\tdb\n" in out
    assert "nameserver 192.0.2.53\nsearch example.test\noptions ndots:3\n" in out
    gateway = run(docker, image, "--add-host", "up:host-gateway", shell="grep up /etc/hosts").split()[0]
    assert gateway == docker("network", "inspect", "bridge", "-f", "{{(index .IPAM.Config 0).Gateway}}").word


def test_limits_reach_the_cgroup_and_inspect(docker: Docker, image: str) -> None:
    docker(
        "run", "-d", "--name", "limited", "-m", "64m", "--memory-reservation", "32m", "--cpus", "0.5",
        "--cpu-shares", "512", "--pids-limit", "50", image, "sleep", "600",
    )  # fmt: skip
    host = json.loads(docker("inspect", "limited").out)[0]["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["MemoryReservation"]) == (64 << 20, 128 << 20, 32 << 20)
    assert (host["NanoCpus"], host["CpuShares"], host["PidsLimit"]) == (500_000_000, 512, 50)
    line = docker("stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "limited").word
    assert line.endswith("/ 64MiB 1")
    many = "for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done"
    assert "can't fork" in docker("run", "--rm", "--pids-limit", "8", image, "sh", "-c", many, code=2).err


def test_more_memory_than_allowed_ends_it_with_137(docker: Docker, image: str) -> None:
    docker(
        "run", "--name", "greedy", "-m", "16m", image, "sh", "-c", "x=a; while :; do x=$x$x; done", code=137
    )
    assert docker("inspect", "-f", "{{.State.OOMKilled}} {{.State.ExitCode}}", "greedy").word == "true 137"


def test_volumes_named_anonymous_and_bound(docker: Docker, image: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from the host")
    docker(
        "run", "--name", "mounted", "-v", "data:/data", "-v", "/anonymous", "-v", f"{tmp_path}:/bound:ro",
        image, "sh", "-c", "echo kept > /data/file; cat /bound/in; touch /bound/x; true",
    )  # fmt: skip
    assert docker("logs", "mounted").out == "from the host"
    mounts = json.loads(docker("inspect", "-f", "{{json .Mounts}}", "mounted").out)
    by_target = {mount["Destination"]: mount for mount in mounts}
    assert (by_target["/data"]["Type"], by_target["/data"]["Name"]) == ("volume", "data")
    assert (by_target["/bound"]["Type"], by_target["/bound"]["RW"]) == ("bind", False)
    assert len(by_target["/anonymous"]["Name"]) == 64
    assert run(docker, image, "-v", "data:/d", shell="cat /d/file") == "kept\n"
    docker("rm", "-v", "mounted")
    assert docker("volume", "ls", "-q").lines == ["data"]


def test_mounts_by_their_long_notation(docker: Docker, image: str, tmp_path: Path) -> None:
    out = run(
        docker, image,
        "--mount", f"type=bind,source={tmp_path},target=/b,readonly",
        "--mount", "type=volume,source=named,target=/v,volume-label=a=b",
        "--mount", "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700",
        "--tmpfs", "/u:size=64k,noexec",
        shell="grep -E ' /(b|t|u|v) ' /proc/mounts; stat -c %a /t",
    )  # fmt: skip
    lines = {line.split()[1]: line for line in out.splitlines() if " " in line}
    assert "ro," in lines["/b"] and "size=1024k" in lines["/t"]
    assert "noexec" in lines["/u"] and "size=64k" in lines["/u"]
    assert out.endswith("700\n")
    assert docker("volume", "inspect", "-f", "{{.Labels.a}}", "named").word == "b"
    missing = docker("run", "--rm", "--mount", f"type=bind,source={tmp_path}/no,target=/b", image, code=125)
    assert "bind source path does not exist" in missing.err


def test_the_root_can_be_read_only(docker: Docker, image: str) -> None:
    out = run(docker, image, "--read-only", "--tmpfs", "/tmp", shell="touch /x || touch /tmp/x && echo only")
    assert out == "only\n"


@pytest.mark.parametrize(
    ("options", "capabilities"),
    [
        ([], 0x00000000A80425FB),
        (["--cap-drop", "ALL"], 0),
        (["--cap-drop", "ALL", "--cap-add", "NET_ADMIN"], 1 << 12),
        (["--cap-add", "cap_sys_ptrace"], 0x00000000A80425FB | 1 << 19),
    ],
)
def test_capabilities_are_docker_s_and_can_be_chosen(
    docker: Docker, image: str, options: list[str], capabilities: int
) -> None:
    out = run(docker, image, *options, shell="grep CapEff /proc/self/status")
    assert int(out.split()[1], 16) == capabilities


def test_privileged_and_security_options(docker: Docker, image: str) -> None:
    status = "grep -E 'Seccomp:|NoNewPrivs' /proc/self/status | tr -s '\\n\\t' ' '"
    assert run(docker, image, shell=status) == "NoNewPrivs: 0 Seccomp: 2 "
    assert run(docker, image, "--security-opt", "no-new-privileges", shell=status).startswith("NoNewPrivs: 1")
    assert "Seccomp: 0" in run(docker, image, "--security-opt", "seccomp=unconfined", shell=status)
    assert "Seccomp: 0" in run(docker, image, "--privileged", shell=status)
    assert run(docker, image, "--privileged", shell="grep ' /sys ' /proc/mounts").split()[3].startswith("rw")
    assert run(docker, image, shell="cat /proc/keys | wc -l") == "0\n"


def test_a_seccomp_profile_of_the_caller_s_is_kept(docker: Docker, image: str, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    denied = docker(
        "run", "--rm", "--security-opt", f"seccomp={profile}", image, "mkdir", "/made", code=1
    ).err
    assert "Operation not permitted" in denied


def test_ulimits_sysctls_devices_and_shared_memory(docker: Docker, image: str) -> None:
    out = run(
        docker, image, "--ulimit", "nofile=100:200", "--sysctl", "net.ipv4.ip_unprivileged_port_start=7",
        "--device", "/dev/null:/dev/mine:r", "--shm-size", "8m",
        shell="grep open.files /proc/self/limits; cat /proc/sys/net/ipv4/ip_unprivileged_port_start;"
        " stat -c %t:%T /dev/mine; grep /dev/shm /proc/mounts",
    )  # fmt: skip
    assert out.split()[3:8] == ["100", "200", "files", "7", "1:3"]
    assert "size=8192k" in out


def test_init_reaps_and_is_the_first_process(docker: Docker, image: str) -> None:
    out = run(docker, image, "--init", shell="cat /proc/1/comm; echo $$")
    name, number = out.split()
    assert name != "sh" and number != "1"


def test_networks_none_host_and_another_container_s(docker: Docker, image: str) -> None:
    links = "ls /sys/class/net | sort | tr '\\n' ' '"
    assert run(docker, image, "--network", "none", shell=links) == "lo "
    assert run(docker, image, shell=links) == "eth0 lo "
    here = sorted(path.name for path in Path("/sys/class/net").iterdir())
    assert "lo" in here and set(run(docker, image, "--network", "host", shell=links).split()) >= {"lo"}
    docker("run", "-d", "--name", "first", image, "sleep", "600")
    address = docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "first").word
    shared = run(docker, image, "--network", "container:first", shell="ip -4 addr show eth0; hostname")
    assert address in shared and docker("ps", "-q").word in shared


def test_a_published_port_is_reached_and_shown(docker: Docker, image: str) -> None:
    docker(
        "run", "-d", "--name", "web", "-p", "127.0.0.1::8080", "--expose", "9000/udp", image,
        "sh", "-c", "mkdir /w; echo served > /w/index.html; exec httpd -f -p 8080 -h /w",
    )  # fmt: skip
    published = docker("port", "web", "8080").word
    host, _, port = published.rpartition(":")
    assert host == "127.0.0.1"
    assert docker("port", "web").word == f"8080/tcp -> {published}"
    assert docker("ps", "--format", "{{.Ports}}").word == f"9000/udp, {published}->8080/tcp"
    eventually(lambda: _fetch(host, int(port)) == b"served\n")
    again = docker("run", "--rm", "-p", f"{published}:80", image, "true", code=125)
    assert "port is already allocated" in again.err


def _fetch(host: str, port: int) -> bytes:
    import http.client

    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", "/index.html")
        return connection.getresponse().read()
    except OSError:
        return b""
    finally:
        connection.close()


def test_every_exposed_port_is_published_with_a_capital_p(docker: Docker, image: str) -> None:
    docker("run", "-d", "--name", "all", "-P", "--expose", "81", "--expose", "82/udp", image, "sleep", "600")
    lines = docker("port", "all").lines
    assert {line.split()[0] for line in lines} == {"81/tcp", "82/udp"}


def test_a_restart_policy_starts_it_again(docker: Docker, image: str) -> None:
    docker("run", "-d", "--name", "again", "--restart", "on-failure:2", image, "sh", "-c", "exit 9")
    template = "{{.State.Status}} {{.RestartCount}} {{.State.ExitCode}} {{.HostConfig.RestartPolicy.Name}}"
    eventually(lambda: docker("inspect", "-f", template, "again").word == "exited 2 9 on-failure")


def test_log_drivers_are_chosen_and_told(docker: Docker, image: str) -> None:
    docker(
        "run", "--name", "json", "--log-driver", "json-file", "--log-opt", "max-size=1m", "--log-opt", "max-file=2",
        image, "echo", "line",
    )  # fmt: skip
    assert docker("logs", "json").out == "line\n"
    assert docker("inspect", "-f", "{{json .HostConfig.LogConfig}}", "json").word == (
        '{"Type":"json-file","Config":{"max-file":"2","max-size":"1m"}}'
    )
    docker("run", "--name", "none", "--log-driver", "none", image, "echo", "line")
    assert "does not support reading" in docker("logs", "none", code=1).err
    assert (
        "no log driver named 'nosuch'" in docker("run", "--rm", "--log-driver", "nosuch", image, code=125).err
    )


def test_labels_and_stop_signals_are_kept(docker: Docker, image: str, tmp_path: Path) -> None:
    file = tmp_path / "labels"
    file.write_text("from=file\n")
    script = "trap 'exit 42' USR1; echo up; while :; do sleep 0.05; done"
    docker(
        "run", "-d", "--name", "labelled", "-l", "a=b", "-l", "bare", "--label-file", str(file),
        "--stop-signal", "USR1", "--stop-timeout", "50", image, "sh", "-c", script,
    )  # fmt: skip
    labels = json.loads(docker("inspect", "-f", "{{json .Config.Labels}}", "labelled").out)
    assert labels == {"a": "b", "bare": "", "from": "file"}
    eventually(lambda: docker("logs", "labelled").out == "up\n")
    docker("stop", "labelled")
    assert docker("inspect", "-f", "{{.State.ExitCode}} {{.Config.StopSignal}}", "labelled").word == "42 USR1"


def test_health_is_checked_and_shown(docker: Docker, image: str) -> None:
    docker(
        "run", "-d", "--name", "sick", "--health-cmd", "test -e /well", "--health-interval", "100ms",
        "--health-retries", "1", image, "sleep", "600",
    )  # fmt: skip
    eventually(lambda: "(unhealthy)" in docker("ps", "--format", "{{.Status}}").out)
    docker("exec", "sick", "touch", "/well")
    eventually(lambda: docker("ps", "-q", "--filter", "health=healthy").out)
    assert docker("inspect", "-f", "{{.State.Health.Status}}", "sick").word == "healthy"
    docker("run", "-d", "--name", "unchecked", "--no-healthcheck", image, "sleep", "600")
    assert docker("inspect", "-f", "{{.State.Health}}", "unchecked").word == "<nil>"


def test_a_legacy_link_names_the_other_container(docker: Docker, image: str) -> None:
    docker("run", "-d", "--name", "db", "-e", "USER=me", image, "sleep", "600")
    out = run(docker, image, "--link", "db:store", shell="grep store /etc/hosts; env")
    address = docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "db").word
    assert out.startswith(f"{address}\tstore ") and "STORE_ENV_USER=me" in out
    docker("run", "-d", "--name", "web", "--link", "db:store", image, "sleep", "600")
    assert docker("inspect", "-f", "{{.HostConfig.Links}}", "web").word == "[/db:/web/store]"
    assert sorted(
        docker("ps", "--no-trunc", "--filter", "name=^db$", "--format", "{{.Names}}").word.split(",")
    ) == [
        "db",
        "web/store",
    ]
    docker("stop", "-t", "0", "db")
    docker("run", "-d", "--name", "filler", image, "sleep", "600")  # takes the address that has become free
    docker("start", "db")
    address = docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "db").word
    assert docker("exec", "web", "cat", "/etc/hosts").lines[-2].startswith(f"{address}\t")
    docker("rm", "--link", "web/store")
    assert "store" not in docker("exec", "web", "cat", "/etc/hosts").out
    docker("rm", "-f", "db")
    assert "could not get container for db" in docker("run", "--rm", "--link", "db", image, code=125).err
