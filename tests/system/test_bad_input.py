"""Bad input by the API: for each the status that Docker gives, one clear sentence, and nothing left behind.

In paths and bodies `{image}` is the image, `{running}`, `{stopped}` and `{paused}` are containers, `{port}` is a port
that the running one publishes, `{taken}` one that another process of the host listens at.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.apikit import create, inspect, remove, run, state
from tests.consistency import check_consistent
from tests.daemon import Daemon

_CREATE = "/containers/create"
_ENDLESS = ["sleep", "100000"]


class World(NamedTuple):
    """What there is while the table's rows are tried; none of them may change it."""

    daemon: Daemon
    names: dict[str, str]
    before: object


@pytest.fixture(scope="module")
def world(daemon: Daemon, image: str) -> Iterator[World]:
    """Containers that rows refer to, made once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = run(
            daemon, image, *_ENDLESS, name="running", NetworkMode="bridge", PortBindings={"80/tcp": [{}]}
        )
        stopped = create(daemon, image, *_ENDLESS, name="stopped")
        paused = run(daemon, image, *_ENDLESS, name="paused")
        assert daemon.http("POST", f"/containers/{paused}/pause").status == 204
        ports = inspect(daemon, running)["NetworkSettings"]["Ports"]["80/tcp"]
        names = {
            "image": image,
            "running": running,
            "stopped": stopped,
            "paused": paused,
            "port": ports[0]["HostPort"],
            "taken": str(listener.getsockname()[1]),
        }
        yield World(daemon, names, everything(daemon))
        remove(daemon, running, stopped, paused)


def everything(daemon: Daemon) -> object:
    """All names and states that the API shows."""
    containers = daemon.http("GET", "/containers/json?all=1").json()
    return (
        sorted((c["Id"], tuple(c["Names"]), c["State"]) for c in containers),
        sorted(v["Name"] for v in daemon.http("GET", "/volumes").json()["Volumes"]),
        sorted(n["Id"] for n in daemon.http("GET", "/networks").json()),
        sorted(i["Id"] for i in daemon.http("GET", "/images/json").json()),
    )


def filled(value: Any, names: dict[str, str]) -> Any:
    """The value with the names put in."""
    if isinstance(value, str):
        for name, text in names.items():
            value = value.replace("{" + name + "}", text)
        return value
    if isinstance(value, list):
        return [filled(item, names) for item in value]
    if isinstance(value, dict):
        return {filled(key, names): filled(item, names) for key, item in value.items()}
    return value


def host(**fields: Any) -> dict[str, Any]:
    """A create body that is fine but for these fields of HostConfig."""
    return {"Image": "{image}", "Cmd": _ENDLESS, "HostConfig": {"NetworkMode": "none", **fields}}


def config(**fields: Any) -> dict[str, Any]:
    """A create body that is fine but for these fields."""
    return {"Image": "{image}", "Cmd": _ENDLESS, "HostConfig": {"NetworkMode": "none"}, **fields}


def mount(**fields: Any) -> dict[str, Any]:
    return host(Mounts=[fields])


class Row(NamedTuple):
    status: int
    words: str  # part of the sentence
    body: Any = None
    path: str = _CREATE
    method: str = "POST"


REFUSED = {
    "an unknown image": Row(404, "No such image: nope:latest", config(Image="nope")),
    "an image name with capitals": Row(400, "must be lowercase", config(Image="Nope")),
    "no image": Row(400, "Image: an image is needed", {"Cmd": ["true"]}),
    "an empty configuration": Row(400, "config cannot be empty", {}),
    "no body": Row(400, "", b""),
    "half a document": Row(400, "", b'{"Image": "busy'),
    "a list for an object": Row(400, "object", b"[]"),
    "not UTF-8": Row(400, "", b'{"Image": "\xff"}'),
    "deep nesting": Row(400, "", b'{"Image": ' + b"[" * 100_000),
    "a number for a string": Row(400, "Image", config(Image=7)),
    "a string for a number": Row(400, "HostConfig.Memory", host(Memory="lots")),
    "a number in a command": Row(400, "Cmd", config(Cmd=[1])),
    "a number for a port": Row(400, "HostPort", host(PortBindings={"80/tcp": [{"HostPort": 80}]})),
    "a fraction for an integer": Row(400, "HostConfig.PidsLimit", host(PidsLimit=1.5)),
    "a number beyond 64 bits": Row(400, "HostConfig.Memory", host(Memory=1 << 70)),
    "a name in use": Row(
        409, 'The container name "/running" is already in use', config(), _CREATE + "?name=running"
    ),
    "a name with a slash": Row(400, "Invalid container name (a/b)", config(), _CREATE + "?name=a/b"),
    "a name of one character": Row(400, "Invalid container name (a)", config(), _CREATE + "?name=a"),
    "a name with a NUL byte": Row(400, "Invalid container name", config(), _CREATE + "?name=ab%00c"),
    "little memory": Row(400, "Minimum memory limit allowed is 6MB", host(Memory=6 << 20 - 1)),
    "negative memory": Row(400, "HostConfig.Memory", host(Memory=-1)),
    "less swap than memory": Row(
        400, "Minimum memoryswap limit should be larger", host(Memory=64 << 20, MemorySwap=32 << 20)
    ),
    "swap without memory": Row(400, "should always set the Memory limit", host(MemorySwap=32 << 20)),
    "more reserved than allowed": Row(
        400, "memory reservation", host(Memory=64 << 20, MemoryReservation=65 << 20)
    ),
    "swappiness beyond 100": Row(400, "valid memory swappiness range is 0-100", host(MemorySwappiness=101)),
    "more processors than there are": Row(400, "CPUs", host(NanoCpus=1000 * 10**9)),
    "negative processors": Row(400, "NanoCpus", host(NanoCpus=-1)),
    "processors twice": Row(400, "NanoCpus", host(NanoCpus=10**9, CpuQuota=50_000)),
    "a short CPU period": Row(400, "CpuPeriod", host(CpuPeriod=10)),
    "a short CPU quota": Row(400, "CpuQuota", host(CpuQuota=10)),
    "negative CPU shares": Row(400, "CpuShares", host(CpuShares=-1)),
    "a processor that isn't there": Row(400, "Requested CPUs are not available", host(CpusetCpus="4095")),
    "processors that aren't numbers": Row(400, "CpusetCpus", host(CpusetCpus="one")),
    "a range backwards": Row(400, "CpusetCpus", host(CpusetCpus="1-0")),
    "a memory node that isn't there": Row(
        400, "Requested memory nodes are not available", host(CpusetMems="77")
    ),
    "a block weight beyond 1000": Row(400, "BlkioWeight", host(BlkioWeight=1001)),
    "an OOM score beyond 1000": Row(400, "[-1000, 1000]", host(OomScoreAdj=1001)),
    "negative /dev/shm": Row(400, "SHM size can not be less than 0", host(ShmSize=-1)),
    "a relative working directory": Row(400, "it needs to be an absolute path", config(WorkingDir="srv")),
    "a stop signal that isn't one": Row(400, "Invalid signal: SIGNOPE", config(StopSignal="SIGNOPE")),
    "an environment without a name": Row(400, "Env[0]", config(Env=["=x"])),
    "a NUL byte in the environment": Row(400, "Env[0]", config(Env=["A=\0"])),
    "a NUL byte in a command": Row(400, "Cmd[1]", config(Cmd=["echo", "a\0b"])),
    "a NUL byte in a working directory": Row(400, "NUL", config(WorkingDir="/a\0b")),
    "a NUL byte in a user": Row(400, "NUL", config(User="a\0b")),
    "an argument of a megabyte": Row(400, "Cmd[0]", config(Cmd=["x" * (1 << 20)])),
    "a bad host name": Row(400, "invalid hostname format", config(Hostname="-a-")),
    "an ulimit that isn't one": Row(
        400, "invalid ulimit type: nope", host(Ulimits=[{"Name": "nope", "Soft": 1, "Hard": 1}])
    ),
    "a soft limit above the hard one": Row(
        400,
        "soft limit must be less than or equal to hard limit",
        host(Ulimits=[{"Name": "nofile", "Soft": 2, "Hard": 1}]),
    ),
    "a sysctl of the host": Row(400, "kernel.panic", host(Sysctls={"kernel.panic": "1"})),
    "a sysctl that leads elsewhere": Row(400, "net.", host(Sysctls={"net.../../kernel/panic": "1"})),
    "a capability that isn't one": Row(400, "NOPE", host(CapAdd=["NOPE"])),
    "a capability to drop that isn't one": Row(400, "NOPE", host(CapDrop=["NOPE"])),
    "a seccomp profile that isn't JSON": Row(400, "seccomp", host(SecurityOpt=["seccomp={"])),
    "a seccomp profile of another shape": Row(
        400, "seccomp", host(SecurityOpt=['seccomp={"defaultAction": 7}'])
    ),
    "a seccomp action that isn't one": Row(
        400, "SCMP_ACT_NOPE", host(SecurityOpt=['seccomp={"defaultAction": "SCMP_ACT_NOPE"}'])
    ),
    "a security option that isn't one": Row(400, "nope", host(SecurityOpt=["nope=1"])),
    "a log driver that isn't one": Row(400, "nope", host(LogConfig={"Type": "nope"})),
    "a log option that isn't one": Row(
        400, "unknown log opt 'nope'", host(LogConfig={"Type": "json-file", "Config": {"nope": "1"}})
    ),
    "a log size that isn't one": Row(
        400, "max-size", host(LogConfig={"Type": "json-file", "Config": {"max-size": "big"}})
    ),
    "a restart policy that isn't one": Row(
        400, "unknown policy 'often'", host(RestartPolicy={"Name": "often"})
    ),
    "retries for always": Row(
        400,
        "maximum retry count can only be used with 'on-failure'",
        host(RestartPolicy={"Name": "always", "MaximumRetryCount": 3}),
    ),
    "a restart policy with --rm": Row(
        400, "'AutoRemove'", host(AutoRemove=True, RestartPolicy={"Name": "always"})
    ),
    "a mount type that isn't one": Row(
        400, "mount type unknown: 'floppy'", mount(Type="floppy", Target="/a")
    ),
    "a mount without a target": Row(400, "Mounts[0].Target", mount(Type="volume")),
    "a mount with a relative target": Row(400, "must be absolute", mount(Type="tmpfs", Target="a")),
    "a mount over the root": Row(400, "destination can't be '/'", mount(Type="tmpfs", Target="/a/..")),
    "a bind without a source": Row(400, "Source must not be empty", mount(Type="bind", Target="/a")),
    "a bind source that isn't there": Row(
        400, "bind source path does not exist: /no/such", mount(Type="bind", Source="/no/such", Target="/a")
    ),
    "a NUL byte in a mount's source": Row(
        400, "Mounts[0].Source", mount(Type="bind", Source="/a\0b", Target="/a")
    ),
    "a NUL byte in a mount's target": Row(400, "Mounts[0].Target", mount(Type="tmpfs", Target="/a\0b")),
    "a mount target twice": Row(
        400,
        "Duplicate mount point: /a",
        host(Mounts=[{"Type": "tmpfs", "Target": "/a"}, {"Type": "tmpfs", "Target": "/a/"}]),
    ),
    "a mount target in two notations": Row(
        400, "Duplicate mount point: /a", host(Tmpfs={"/a": ""}, Mounts=[{"Type": "tmpfs", "Target": "/a"}])
    ),
    "a bind of four parts": Row(400, "Binds[0]", host(Binds=["/a:/b:ro:z"])),
    "a bind with an unknown mode": Row(400, "invalid mode: often", host(Binds=["/tmp:/b:often"])),
    "a volume with a bad name": Row(400, "invalid characters", host(Binds=["-a b:/b"])),
    "a volume of another driver": Row(
        404,
        "nfs",
        mount(Type="volume", Source="vol1", Target="/a", VolumeOptions={"DriverConfig": {"Name": "nfs"}}),
    ),
    "a propagation that isn't one": Row(
        400, "propagation", mount(Type="bind", Source="/tmp", Target="/a", BindOptions={"Propagation": "far"})
    ),
    "a tmpfs of another size": Row(400, "size=lots", host(Tmpfs={"/a": "size=lots"})),
    "volumes from nobody": Row(404, "No such container: nobody", host(VolumesFrom=["nobody"])),
    "a pid mode that isn't one": Row(400, "HostConfig.PidMode", host(PidMode="mine")),
    "a port that isn't one": Row(400, "invalid port specification", host(PortBindings={"http": [{}]})),
    "a host port beyond 65535": Row(
        400, "invalid port specification", host(PortBindings={"80/tcp": [{"HostPort": "65536"}]})
    ),
    "a host address that isn't one": Row(
        400, "HostIp", host(PortBindings={"80/tcp": [{"HostIp": "localhost", "HostPort": "1"}]})
    ),
    "a DNS server by name": Row(400, "HostConfig.Dns[0]", host(Dns=["dns.example.org"])),
    "an extra host without an address": Row(400, "bad format for add-host", host(ExtraHosts=["db"])),
    "a device without a path": Row(400, "HostConfig.Devices[0]", host(Devices=[{}])),
    "device permissions that aren't any": Row(
        400,
        "Devices[0]",
        host(Devices=[{"PathOnHost": "/dev/null", "PathInContainer": "/dev/x", "CgroupPermissions": "q"}]),
    ),
    "a device rule that isn't one": Row(400, "DeviceCgroupRules[0]", host(DeviceCgroupRules=["x"])),
    "a cgroup parent that leads outside": Row(400, "cgroup", host(CgroupParent="../../a")),
    "a runtime that isn't there": Row(400, "invalid runtime name: nope", host(Runtime="nope")),
    "a health check of another kind": Row(
        400, "Unknown healthcheck type", config(Healthcheck={"Test": ["X"]})
    ),
    "a platform of others": Row(400, "linux", config(), _CREATE + "?platform=windows"),
    # --- containers that are there
    "start of nobody": Row(404, "No such container: nobody", path="/containers/nobody/start"),
    "start with a configuration": Row(
        400, "non-empty request body", {"Binds": ["/:/host"]}, "/containers/{stopped}/start"
    ),
    "start of a paused one": Row(409, "cannot start a paused container", path="/containers/{paused}/start"),
    "kill of a stopped one": Row(409, "is not running", path="/containers/{stopped}/kill"),
    "kill with a signal that isn't one": Row(
        400, "Invalid signal: NOPE", path="/containers/{running}/kill?signal=NOPE"
    ),
    "kill with signal 0": Row(400, "Invalid signal: 0", path="/containers/{running}/kill?signal=0"),
    "stop with a timeout that isn't one": Row(400, "t", path="/containers/{running}/stop?t=soon"),
    "stop with a signal that isn't one": Row(
        400, "Invalid signal: NOPE", path="/containers/{running}/stop?signal=NOPE"
    ),
    "pause of a stopped one": Row(409, "is not running", path="/containers/{stopped}/pause"),
    "pause of a paused one": Row(409, "is already paused", path="/containers/{paused}/pause"),
    "unpause of a running one": Row(409, "is not paused", path="/containers/{running}/unpause"),
    "rename to a name in use": Row(409, "already in use", path="/containers/{stopped}/rename?name=running"),
    "rename to the same name": Row(400, "same name", path="/containers/{stopped}/rename?name=stopped"),
    "rename to nothing": Row(400, "name", path="/containers/{stopped}/rename"),
    "rename to a bad name": Row(400, "Invalid container name", path="/containers/{stopped}/rename?name=-x"),
    "removal of a running one": Row(
        409, "container is running", path="/containers/{running}", method="DELETE"
    ),
    "removal of a paused one": Row(409, "paused", path="/containers/{paused}", method="DELETE"),
    "removal of nobody": Row(404, "No such container: nobody", path="/containers/nobody", method="DELETE"),
    "an update with little memory": Row(
        400, "Minimum memory limit allowed is 6MB", {"Memory": 1 << 20}, "/containers/{running}/update"
    ),
    "an update with less memory than is used": Row(
        400, "", {"Memory": 64 << 20, "MemorySwap": 32 << 20}, "/containers/{running}/update"
    ),
    "a wait for what never happens": Row(
        400, "invalid condition", path="/containers/{running}/wait?condition=x"
    ),
    "a resize without a size": Row(400, "h=24&w=80", path="/containers/{running}/resize"),
    "logs of no stream": Row(400, "at least one stream", path="/containers/{running}/logs", method="GET"),
    "logs since a word": Row(
        400, "since", path="/containers/{running}/logs?stdout=1&since=noon", method="GET"
    ),
    "logs with a tail of words": Row(
        400, "tail", path="/containers/{running}/logs?stdout=1&tail=some", method="GET"
    ),
    "a filter that isn't one": Row(
        400, "invalid filter 'nope'", path='/containers/json?filters={"nope":["1"]}', method="GET"
    ),
    "a filter that isn't JSON": Row(400, "filter", path="/containers/json?filters={", method="GET"),
    "a file of nobody": Row(404, "No such container", path="/containers/nobody/archive?path=/", method="GET"),
    "a file that isn't there": Row(
        404, "/no/such", path="/containers/{running}/archive?path=/no/such", method="GET"
    ),
    "a file without a path": Row(400, "path", path="/containers/{running}/archive", method="GET"),
    "ps with options that it hasn't": Row(
        500, "Error running ps", path="/containers/{running}/top?ps_args=--nope", method="GET"
    ),
    # --- execs
    "an exec without a command": Row(400, "No exec command specified", {}, "/containers/{running}/exec"),
    "an exec with a number": Row(400, "Cmd", {"Cmd": [7]}, "/containers/{running}/exec"),
    "an exec in a stopped one": Row(409, "is not running", {"Cmd": ["true"]}, "/containers/{stopped}/exec"),
    "an exec in a paused one": Row(409, "is paused", {"Cmd": ["true"]}, "/containers/{paused}/exec"),
    "an exec that isn't there": Row(404, "No such exec instance", {"Detach": True}, "/exec/nope/start"),
    # --- images, volumes, networks
    "an image to remove that isn't there": Row(
        404, "No such image: nope", path="/images/nope", method="DELETE"
    ),
    "an image that containers use": Row(409, "container", path="/images/{image}", method="DELETE"),
    "a tag that isn't one": Row(400, "invalid reference format", path="/images/{image}/tag?repo=a&tag=a%20b"),
    "a tag of nothing": Row(404, "No such image", path="/images/nope/tag?repo=a"),
    "a volume name that isn't one": Row(400, "invalid characters", {"Name": "a/b"}, "/volumes/create"),
    "a volume of nobody's driver": Row(
        404, 'plugin "nfs" not found', {"Name": "vol1", "Driver": "nfs"}, "/volumes/create"
    ),
    "a volume option that isn't one": Row(
        400, "nope", {"Name": "vol1", "DriverOpts": {"nope": "1"}}, "/volumes/create"
    ),
    "a volume to remove that isn't there": Row(404, "no such volume", path="/volumes/nope", method="DELETE"),
    "a network without a name": Row(400, "name", {}, "/networks/create"),
    "a network whose name is in use": Row(409, "already exists", {"Name": "bridge"}, "/networks/create"),
    "a network of another driver": Row(
        404, "overlay", {"Name": "net1", "Driver": "overlay"}, "/networks/create"
    ),
    "a network with a bad subnet": Row(
        400,
        "10.0.0.0/99",
        {"Name": "net1", "IPAM": {"Config": [{"Subnet": "10.0.0.0/99"}]}},
        "/networks/create",
    ),
    "a network with a gateway elsewhere": Row(
        400,
        "10.9.0.1",
        {"Name": "net1", "IPAM": {"Config": [{"Subnet": "10.77.0.0/24", "Gateway": "10.9.0.1"}]}},
        "/networks/create",
    ),
    "the default network, removed": Row(403, "pre-defined", path="/networks/bridge", method="DELETE"),
    "a network to remove that isn't there": Row(
        404, "network nope not found", path="/networks/nope", method="DELETE"
    ),
    "nobody connected": Row(
        404, "No such container: nobody", {"Container": "nobody"}, "/networks/bridge/connect"
    ),
    # --- requests
    "a page that isn't there": Row(404, "page not found", path="/nowhere"),
    "a version to come": Row(400, "too new", path="/v9.99/version", method="GET"),
    "a version of the past": Row(400, "too old", path="/v1.1/version", method="GET"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_refused(world: World, what: str) -> None:
    row = REFUSED[what]
    headers = {"Content-Type": "application/json"} if row.body is not None else {}
    answer = world.daemon.http(
        row.method, filled(row.path, world.names), filled(row.body, world.names), headers=headers
    )
    assert answer.status == row.status, answer.body
    check_sentence(answer.message, row.words)
    assert everything(world.daemon) == world.before


def check_sentence(message: str, words: str) -> None:
    """One line, of a length that a person reads, without a trace of the code."""
    assert words in message and message.strip()
    assert "\n" not in message.strip() and "\0" not in message and len(message) < 400, message
    assert not any(mark in message for mark in ("Traceback", "Error(", "its log has the details")), message


STARTS = {
    "an unknown user": Row(
        400, "unable to find user nobodyknows: no matching entries in passwd file", config(User="nobodyknows")
    ),
    "an unknown group": Row(400, "unable to find group nobodyknows", config(User="root:nobodyknows")),
    "a command that isn't there": Row(400, "executable file not found in $PATH", config(Cmd=["nope"])),
    "an unknown network": Row(404, "network nope not found", host(NetworkMode="nope")),
    "the namespace of nobody": Row(404, "No such container: nobody", host(NetworkMode="container:nobody")),
    "a throttled device that isn't there": Row(
        400, "/dev/nope", host(BlkioDeviceReadBps=[{"Path": "/dev/nope", "Rate": 1024}])
    ),
    "a device that isn't there": Row(
        400,
        'error gathering device information while adding custom device "/dev/nope"',
        host(
            Devices=[{"PathOnHost": "/dev/nope", "PathInContainer": "/dev/nope", "CgroupPermissions": "rwm"}]
        ),
    ),
    "a port of another container": Row(
        500,
        "failed: port is already allocated",
        host(NetworkMode="bridge", PortBindings={"80/tcp": [{"HostPort": "{port}"}]}),
    ),
    "a port of another process": Row(
        500,
        "address already in use",
        host(NetworkMode="bridge", PortBindings={"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "{taken}"}]}),
    ),
    "an address of the default network": Row(
        400,
        "user specified IP address is supported on user defined networks only",
        {
            **host(NetworkMode="bridge"),
            "NetworkingConfig": {"EndpointsConfig": {"bridge": {"IPAMConfig": {"IPv4Address": "10.0.0.9"}}}},
        },
    ),
    "the namespace of a stopped container": Row(
        409, "cannot join pid of a non running container", host(PidMode="container:stopped")
    ),
    "a working directory that is a file": Row(
        400,
        'the working directory "/bin/busybox" can\'t be entered: Not a directory',
        config(WorkingDir="/bin/busybox"),
    ),
    "a mount over a file's child": Row(
        400,
        "Are you trying to mount a directory onto a file (or vice-versa)?",
        mount(Type="tmpfs", Target="/bin/busybox/x"),
    ),
    "a sysctl value that the kernel refuses": Row(
        500,
        "set sysctl net.ipv4.ip_forward = many: Invalid argument",
        host(NetworkMode="bridge", Sysctls={"net.ipv4.ip_forward": "many"}),
    ),
}


@pytest.mark.parametrize("what", STARTS)
def test_a_start_that_cannot_be_is_refused_and_told_in_the_state(world: World, what: str) -> None:
    row = STARTS[what]
    made = world.daemon.http("POST", _CREATE, filled(row.body, world.names))
    assert made.status == 201, made.message
    container = made.json()["Id"]
    refused = world.daemon.http("POST", f"/containers/{container}/start")
    seen = state(world.daemon, container)
    check_consistent(world.daemon)
    remove(world.daemon, container)
    assert refused.status == row.status, refused.message
    check_sentence(refused.message, row.words)
    assert (seen["Status"], seen["Error"], seen["Pid"]) == ("created", refused.message, 0)
    assert seen["ExitCode"] in (126, 127, 128)


def test_huge_bodies_are_refused_before_they_are_read_whole(world: World) -> None:
    label = b'{"Image": "busybox", "Labels": {"a": "' + b"x" * (65 << 20) + b'"}}'
    answer = world.daemon.http("POST", _CREATE, label, headers={"Content-Type": "application/json"})
    assert answer.status == 413 or answer.status == 400, answer.body[:200]
    check_sentence(answer.message, "")


def test_nothing_of_all_that_is_left(world: World) -> None:
    assert everything(world.daemon) == world.before
    check_consistent(world.daemon)
    assert json.loads(world.daemon.http("GET", "/info").body)["Containers"] == 3
