"""`docker compose` projects whose services find each other, and use what a Compose file can say of a container."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.composekit import Project
from tests.clients.engines import ENGINES, Engine, running_engine
from tests.clients.toolbox import require

TIERS = """
x-service: &service
  image: busybox
  command: [sleep, "600"]
  stop_signal: SIGKILL
services:
  api:
    <<: *service
    command: [sh, -c, "mkdir /www; hostname > /www/name; exec busybox httpd -f -p 80 -h /www"]
    hostname: api-host
    deploy: {replicas: 2}
    networks: {inner: {aliases: [backend]}}
  db:
    <<: *service
    networks:
      inner: {ipv4_address: 10.214.3.77, aliases: [database]}
  proxy:
    <<: *service
    networks: [inner, outer]
    extra_hosts: ["elsewhere:192.0.2.7"]
  guest:
    <<: *service
    networks: [outer]
  sidecar:
    <<: *service
    network_mode: service:proxy
networks:
  inner: {internal: true, ipam: {config: [{subnet: 10.214.3.0/24, gateway: 10.214.3.254}]}}
  outer: {}
"""
EVERYTHING = """
services:
  base:
    image: busybox
    command: [sleep, "600"]
    stop_signal: SIGKILL
    ipc: shareable
    volumes: [/shared]
  full:
    image: busybox
    entrypoint: [sh, -c]
    command: ["trap 'exit 0' USR1; while :; do sleep 0.05; done"]
    cap_add: [NET_ADMIN]
    cap_drop: [MKNOD]
    cgroup_parent: ""
    cpu_shares: 512
    cpuset: "0"
    container_name: all-of-it
    deploy: {resources: {limits: {cpus: "0.5", memory: 64M, pids: 30}, reservations: {memory: 16M}}}
    devices: ["/dev/null:/dev/empty:rw"]
    device_cgroup_rules: ["c 1:3 rwm"]
    dns: [192.0.2.53]
    dns_opt: ["ndots:3"]
    dns_search: [example.test]
    env_file: [./full.env]
    environment: [FROM_LIST=yes, INTERPOLATED]
    expose: ["7000"]
    group_add: ["2000"]
    healthcheck: {disable: true}
    hostname: full
    domainname: example.test
    init: true
    ipc: service:base
    labels: {purpose: everything}
    links: ["base:root"]
    logging: {driver: json-file, options: {max-size: 1m, max-file: "2"}}
    mac_address: "02:42:ac:11:00:99"
    oom_score_adj: 500
    pid: service:base
    privileged: false
    read_only: true
    restart: unless-stopped
    security_opt: ["no-new-privileges:true"]
    shm_size: 8m
    stdin_open: true
    stop_grace_period: 2s
    stop_signal: SIGUSR1
    sysctls: {net.ipv4.ip_forward: "0"}
    tmpfs: ["/scratch:size=1m"]
    tty: true
    ulimits: {nofile: {soft: 100, hard: 200}}
    user: "1000:1000"
    volumes:
      - {type: bind, source: ./full.env, target: /etc/full.env, read_only: true}
      - {type: volume, source: named, target: /named, volume: {nocopy: true}}
      - {type: tmpfs, target: /small, tmpfs: {size: 65536, mode: 0o1777}}
    volumes_from: [base]
    working_dir: /tmp
volumes:
  named: {labels: {kept: "no"}, driver: local}
"""


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    yield from running_engine(request.param)


@pytest.fixture
def binary() -> Path:
    return require("compose2") / "docker-compose"


def test_services_find_each_other_where_they_share_a_network(
    engine: Engine, binary: Path, tmp_path: Path
) -> None:
    with Project(engine, binary, tmp_path, TIERS) as project:
        project("up", "--detach")

        def asked(service: str, *command: str, code: int | None = 0) -> str:
            return project("exec", "-T", service, *command, code=code).out

        for name in ("api", "backend"):
            told = asked("proxy", "busybox", "nslookup", name)
            addresses = re.findall(r"^Address: (10\.214\.3\.\d+)$", told, re.M)
            assert len(addresses) == 2, f"one of each replica: {told}"
            page = asked("proxy", "wget", "-q", "-O", "-", f"http://{name}/name")
            assert page == asked("proxy", "wget", "-q", "-O", "-", "http://shop-api-2/name") == "api-host\n"
        assert "10.214.3.77" in asked("proxy", "busybox", "nslookup", "database")
        assert "10.214.3.77" in asked("sidecar", "busybox", "nslookup", "db")
        assert "elsewhere" in asked("proxy", "cat", "/etc/hosts")
        assert "Address: " in asked("guest", "busybox", "nslookup", "proxy")
        # A container that is made anew keeps its names, with an address of today.
        project("up", "--detach", "--force-recreate", "--no-deps", "db")
        assert "10.214.3.77" in asked("proxy", "busybox", "nslookup", "database")
        project("stop", "--timeout", "0", "db")
        if engine.name == "cove":  # dockerd asks servers that its room can't reach, until that times out
            asked("guest", "busybox", "nslookup", "api", code=1)
            asked("proxy", "busybox", "nslookup", "database", code=1)


def test_what_a_file_can_say_of_a_container_reaches_it(engine: Engine, binary: Path, tmp_path: Path) -> None:
    (tmp_path / "full.env").write_text("FROM_FILE=here\n")
    with Project(engine, binary, tmp_path, EVERYTHING) as project:
        project.docker.environment["INTERPOLATED"] = "too"
        project("up", "--detach")
        found = project.inspect("full")
        config, host = found["Config"], found["HostConfig"]
        [base] = project.ids("base")
        assert set(config["Env"]) >= {"FROM_FILE=here", "FROM_LIST=yes", "INTERPOLATED=too"}
        assert (found["Name"], config["Hostname"], config["Domainname"]) == (
            "/all-of-it",
            "full",
            "example.test",
        )
        assert (config["User"], config["WorkingDir"], config["Tty"]) == ("1000:1000", "/tmp", True)
        assert (config["StopSignal"], config["StopTimeout"]) == ("SIGUSR1", 2)
        assert config["Healthcheck"]["Test"] == ["NONE"] and config["Labels"]["purpose"] == "everything"
        assert (host["Memory"], host["MemoryReservation"], host["PidsLimit"]) == (64 << 20, 16 << 20, 30)
        assert (host["NanoCpus"], host["CpuShares"], host["CpusetCpus"]) == (500_000_000, 512, "0")
        assert (host["IpcMode"], host["PidMode"]) == (f"container:{base}", f"container:{base}")
        assert (host["Dns"], host["DnsOptions"], host["DnsSearch"]) == (
            ["192.0.2.53"],
            ["ndots:3"],
            ["example.test"],
        )
        assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-file": "2", "max-size": "1m"}}
        assert (host["CapAdd"], host["CapDrop"]) in (
            (["NET_ADMIN"], ["MKNOD"]),
            (["CAP_NET_ADMIN"], ["CAP_MKNOD"]),
        )
        assert host["RestartPolicy"]["Name"] == "unless-stopped" and host["OomScoreAdj"] == 500
        assert host["VolumesFrom"][0].startswith(base) and host["ReadonlyRootfs"] and host["Init"]
        assert host["DeviceCgroupRules"] == ["c 1:3 rwm"] and host["GroupAdd"] == ["2000"]
        mounts = {mount["Destination"]: mount for mount in found["Mounts"]}
        assert {"/etc/full.env", "/named", "/shared"} <= set(mounts)
        assert mounts["/named"]["Name"] == "shop_named"
        script = "id -u; id -G; hostname; ulimit -n; cat /etc/full.env /proc/sys/net/ipv4/ip_forward; ls -d /dev/empty"
        assert project("exec", "-T", "full", "sh", "-c", script).lines == [
            "1000", "1000 2000", "full", "100", "FROM_FILE=here", "0", "/dev/empty",
        ]  # fmt: skip
        tmpfs = project(
            "exec", "-T", "full", "sh", "-c", "cat /proc/mounts | grep -E ' /(scratch|small) '"
        ).lines
        assert len(tmpfs) == 2 and "size=64k" in "".join(tmpfs)
        project("stop", "full")
        assert project.inspect("full")["State"]["ExitCode"] == 0
