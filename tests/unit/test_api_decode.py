"""Create bodies: what each field becomes, and the sentence each wrong one gets."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from cove.api.docker import wire
from cove.api.docker.decode import decode_create
from cove.api.docker.fields import NOTES
from cove.model.container import (
    Bind,
    ContainerSpec,
    Device,
    DeviceRequest,
    EndpointSpec,
    HealthCheck,
    LogConfig,
    PortBinding,
    Resources,
    RestartPolicy,
    ThrottleDevice,
    Tmpfs,
    Ulimit,
    Volume,
    VolumesFrom,
    WeightDevice,
)
from cove.model.errors import CoveError, Invalid, NotImplementedHere

MIB = 1 << 20
TMPFS = ("noexec", "nosuid", "nodev")


def decode(body: dict[str, Any], version: int = 1055, name: str = "") -> ContainerSpec:
    decoded = wire.decode(json.dumps({"Image": "debian", **body}).encode(), wire.CreateBody)
    return decode_create(decoded, name=name, platform="", version=version, cpus=2).spec


def refusal(body: dict[str, Any], version: int = 1055) -> str:
    with pytest.raises(CoveError) as caught:
        decode(body, version)
    assert isinstance(caught.value, (Invalid, NotImplementedHere))
    return str(caught.value)


CONFIG_FIELDS: list[tuple[dict[str, Any], str, Any]] = [
    ({"Hostname": "web"}, "hostname", "web"),
    ({"Domainname": "example"}, "domainname", "example"),
    ({"User": "1000:1000"}, "user", "1000:1000"),
    ({"AttachStdout": True}, "attach_stdout", True),
    ({"AttachStderr": True}, "attach_stderr", True),
    ({"ExposedPorts": {"80": {}, "53/udp": {}}}, "exposed_ports", ("80/tcp", "53/udp")),
    ({"ExposedPorts": {"80-82/udp": {}, "81/udp": {}}}, "exposed_ports", ("80/udp", "81/udp", "82/udp")),
    ({"Tty": True}, "tty", True),
    ({"OpenStdin": True}, "open_stdin", True),
    ({"StdinOnce": True}, "stdin_once", True),
    ({"Env": ["A=b", "C"]}, "env", ("A=b", "C")),
    ({"Cmd": ["ls", "-l"]}, "command", ("ls", "-l")),
    ({"Cmd": "ls"}, "command", ("ls",)),
    ({"Cmd": None}, "command", None),
    ({"Cmd": []}, "command", ()),
    ({"Entrypoint": ["/init"]}, "entrypoint", ("/init",)),
    ({"Entrypoint": []}, "entrypoint", ()),
    ({"WorkingDir": "/srv"}, "working_dir", "/srv"),
    ({"Labels": {"a": "b", "c": None}}, "labels", {"a": "b", "c": ""}),
    ({"StopSignal": "SIGINT"}, "stop_signal", "SIGINT"),
    ({"StopTimeout": 0}, "stop_timeout_s", 0),
    ({"NetworkDisabled": True}, "network_disabled", True),
    ({"Volumes": {"/data": {}}}, "mounts", (Volume(name="", target="/data"),)),
    (
        {"Healthcheck": {"Test": ["CMD", "true"], "Interval": 1_000_000, "Retries": 3}},
        "healthcheck",
        HealthCheck(test=("CMD", "true"), interval_ns=1_000_000, retries=3),
    ),
]

HOST_FIELDS: list[tuple[dict[str, Any], str, Any]] = [
    (
        {"Binds": ["/a:/b"]},
        "mounts",
        (Bind(source="/a", target="/b", create_source=True),),
    ),
    (
        {"Binds": ["/a/../c:/b:ro,rslave,z"]},
        "mounts",
        (Bind(source="/c", target="/b", readonly=True, propagation="rslave", create_source=True),),
    ),
    ({"Binds": ["data:/b:nocopy"]}, "mounts", (Volume(name="data", target="/b", copy_up=False),)),
    ({"Binds": ["/only"]}, "mounts", (Volume(name="", target="/only"),)),
    (
        {"Mounts": [{"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": True}]},
        "mounts",
        (Bind(source="/a", target="/b", readonly=True),),
    ),
    (
        {
            "Mounts": [
                {
                    "Type": "bind",
                    "Source": "/a",
                    "Target": "/b",
                    "BindOptions": {"Propagation": "shared", "NonRecursive": True, "CreateMountpoint": True},
                }
            ]
        },
        "mounts",
        (Bind(source="/a", target="/b", propagation="shared", recursive=False, create_source=True),),
    ),
    (
        {
            "Mounts": [
                {
                    "Type": "volume",
                    "Source": "data",
                    "Target": "/b",
                    "VolumeOptions": {
                        "NoCopy": True,
                        "Labels": {"x": "y"},
                        "DriverConfig": {"Name": "local", "Options": {"o": "1"}},
                        "Subpath": "in/side",
                    },
                }
            ]
        },
        "mounts",
        (
            Volume(
                name="data",
                target="/b",
                copy_up=False,
                labels={"x": "y"},
                driver_options={"o": "1"},
                subpath="in/side",
            ),
        ),
    ),
    (
        {"Mounts": [{"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1024, "Mode": 0o700}}]},
        "mounts",
        (Tmpfs(target="/t", size_bytes=1024, mode=0o700, options=TMPFS),),
    ),
    (
        {"Tmpfs": {"/t": "size=64m,exec"}},
        "mounts",
        (Tmpfs(target="/t", options=("nosuid", "nodev", "size=64m", "exec")),),
    ),
    ({"VolumesFrom": ["web:ro"]}, "volumes_from", (VolumesFrom(container="web", readonly=True),)),
    ({"LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}}}, "log",
     LogConfig(driver="json-file", options={"max-size": "1m"})),
    ({"NetworkMode": "host"}, "network_mode", "host"),
    ({"NetworkMode": ""}, "network_mode", "default"),
    (
        {"PortBindings": {"80/tcp": [{"HostPort": "8080"}, {"HostIp": "127.0.0.1", "HostPort": ""}]}},
        "ports",
        (
            PortBinding(container_port=80, host_port=8080),
            PortBinding(container_port=80, host_ip="127.0.0.1"),
        ),
    ),
    ({"PortBindings": {"53/udp": []}}, "ports", (PortBinding(container_port=53, protocol="udp"),)),
    (
        {"PortBindings": {"80": [{"HostPort": "8000-8010"}]}},
        "ports",
        (PortBinding(container_port=80, host_port=8000, host_port_end=8010),),
    ),
    (
        {"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3}},
        "restart",
        RestartPolicy(name="on-failure", maximum_retries=3),
    ),
    ({"RestartPolicy": {"Name": ""}}, "restart", RestartPolicy()),
    ({"AutoRemove": True}, "auto_remove", True),
    ({"Annotations": {"a": "b"}}, "annotations", {"a": "b"}),
    ({"CapAdd": ["NET_ADMIN"]}, "cap_add", ("NET_ADMIN",)),
    ({"CapDrop": ["ALL"]}, "cap_drop", ("ALL",)),
    ({"CgroupnsMode": "host"}, "cgroupns_mode", "host"),
    ({"Dns": ["192.0.2.1"]}, "dns", ("192.0.2.1",)),
    ({"DnsSearch": ["example"]}, "dns_search", ("example",)),
    ({"DnsOptions": ["ndots:1"]}, "dns_options", ("ndots:1",)),
    ({"ExtraHosts": ["db:192.0.2.2", "gw:host-gateway"]}, "extra_hosts", ("db:192.0.2.2", "gw:host-gateway")),
    ({"GroupAdd": ["audio"]}, "group_add", ("audio",)),
    ({"IpcMode": "container:x"}, "ipc_mode", "container:x"),
    ({"PidMode": "host"}, "pid_mode", "host"),
    ({"UTSMode": "host"}, "uts_mode", "host"),
    ({"UsernsMode": "host"}, "userns_mode", "host"),
    ({"OomScoreAdj": -500}, "oom_score_adj", -500),
    ({"Privileged": True}, "privileged", True),
    ({"PublishAllPorts": True}, "publish_all", True),
    ({"ReadonlyRootfs": True}, "readonly_rootfs", True),
    ({"SecurityOpt": ["no-new-privileges"]}, "no_new_privileges", True),
    ({"SecurityOpt": ["no-new-privileges:false"]}, "no_new_privileges", False),
    ({"SecurityOpt": ["seccomp=unconfined"]}, "seccomp", "unconfined"),
    ({"SecurityOpt": ['seccomp={"defaultAction":"SCMP_ACT_ALLOW"}']}, "seccomp",
     '{"defaultAction":"SCMP_ACT_ALLOW"}'),
    ({"SecurityOpt": ["apparmor=unconfined"]}, "apparmor", "unconfined"),
    ({"SecurityOpt": ["systempaths=unconfined"]}, "masked_paths", ()),
    ({"MaskedPaths": ["/proc/x"]}, "masked_paths", ("/proc/x",)),
    ({"ReadonlyPaths": []}, "readonly_paths", ()),
    ({"MaskedPaths": None}, "masked_paths", None),
    ({"ShmSize": MIB}, "shm_size_bytes", MIB),
    ({"Sysctls": {"net.ipv4.ip_forward": "1"}}, "sysctls", {"net.ipv4.ip_forward": "1"}),
    ({"Init": True}, "init", True),
    ({"CgroupParent": "/x"}, "cgroup_parent", "/x"),
    (
        {"Devices": [{"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/f", "CgroupPermissions": "rw"}]},
        "devices",
        (Device(host_path="/dev/fuse", container_path="/dev/f", permissions="rw"),),
    ),
    ({"DeviceCgroupRules": ["c 1:* rwm"]}, "device_cgroup_rules", ("c 1:* rwm",)),
    ({"Ulimits": [{"Name": "NOFILE", "Soft": 1, "Hard": -1}]}, "ulimits",
     (Ulimit(name="nofile", soft=1, hard=-1),)),
    ({"Memory": 10 * MIB}, "resources", Resources(memory_bytes=10 * MIB, memory_swap_bytes=20 * MIB)),
    ({"Memory": 10 * MIB, "MemorySwap": -1}, "resources",
     Resources(memory_bytes=10 * MIB, memory_swap_bytes=-1)),
    ({"MemoryReservation": 6 * MIB}, "resources", Resources(memory_reservation_bytes=6 * MIB)),
    ({"MemorySwappiness": 0}, "resources", Resources(memory_swappiness=0)),
    ({"MemorySwappiness": -1}, "resources", Resources()),
    ({"NanoCpus": 500_000_000}, "resources", Resources(nano_cpus=500_000_000)),
    ({"CpuShares": 512}, "resources", Resources(cpu_shares=512)),
    ({"CpuPeriod": 100_000, "CpuQuota": 50_000}, "resources",
     Resources(cpu_period_us=100_000, cpu_quota_us=50_000)),
    ({"CpusetCpus": "0-1,3", "CpusetMems": "0"}, "resources", Resources(cpuset_cpus="0-1,3", cpuset_mems="0")),
    ({"PidsLimit": 100}, "resources", Resources(pids_limit=100)),
    ({"PidsLimit": -1}, "resources", Resources(pids_limit=-1)),
    ({"DeviceRequests": [{"Count": -1, "Capabilities": [["gpu"]]}]}, "device_requests",
     (DeviceRequest(count=-1, capabilities=(("gpu",),)),)),
    ({"OomKillDisable": True}, "resources", Resources(oom_kill_disable=True)),
    ({"BlkioWeight": 10}, "resources", Resources(blkio_weight=10)),
    ({"BlkioWeightDevice": [{"Path": "/dev/sda", "Weight": 100}]}, "resources",
     Resources(blkio_weight_device=(WeightDevice(path="/dev/sda", weight=100),))),
    ({"BlkioDeviceReadBps": [{"Path": "/dev/sda", "Rate": 5}]}, "resources",
     Resources(read_bps=(ThrottleDevice(path="/dev/sda", rate=5),))),
    ({"BlkioDeviceWriteIOps": [{"Path": "/dev/sda", "Rate": 5}]}, "resources",
     Resources(write_iops=(ThrottleDevice(path="/dev/sda", rate=5),))),
]  # fmt: skip


@pytest.mark.parametrize(("body", "field", "value"), CONFIG_FIELDS)
def test_a_field_of_the_config_becomes(body: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(decode(body), field) == value


@pytest.mark.parametrize(("host", "field", "value"), HOST_FIELDS)
def test_a_field_of_the_host_config_becomes(host: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(decode({"HostConfig": host}), field) == value


def test_every_field_that_clients_send_is_decoded_or_refused_somewhere() -> None:
    tested = {key for body, _, _ in HOST_FIELDS for key in body} | {
        key for body, _ in REFUSED_HOST for key in body
    }
    passed_over = {path.removeprefix("HostConfig.") for path in NOTES[wire.CreateBody]} | {
        "VolumeDriver",  # goes into volumes; see the test below
        "ConsoleSize",  # a test of its own
        "KernelMemoryTCP",
        "BlkioDeviceReadIOps",  # as its three siblings
        "BlkioDeviceWriteBps",
        "CpuRealtimePeriod",
        "CpuRealtimeRuntime",
    }
    known = {field.encode_name for field in msgspec.structs.fields(wire.HostConfig)}
    assert known - tested - passed_over == set()


REFUSED_CONFIG: list[tuple[dict[str, Any], str]] = [
    ({"ExposedPorts": {"1-65535": {}}}, "at most 4096 ports can be exposed"),
    ({"ExposedPorts": {"82-80": {}}}, 'ExposedPorts: invalid port specification: "82-80"'),
    ({"Image": ""}, "Image: an image is needed"),
    ({"Image": 1}, "Image: expected string, got integer"),
    ({"Tty": "yes"}, "Tty: expected boolean, got string"),
    ({"Env": "A=b"}, "Env: expected array, got string"),
    ({"Env": ["A=b", 1]}, "Env[1]: expected string, got integer"),
    ({"Env": ["=b"]}, "Env[0]: invalid environment variable"),
    ({"Env": ["A=\0"]}, "Env[0]: invalid environment variable"),
    ({"Cmd": ["a\0b"]}, "Cmd[0]: an argument can't hold a NUL byte"),
    ({"Cmd": {"a": 1}}, "Cmd: expected string or array, got object"),
    ({"Labels": ["a=b"]}, "Labels: expected object, got array"),
    ({"Hostname": "under score"}, "Hostname: invalid hostname format"),
    ({"ExposedPorts": {"0/tcp": {}}}, 'ExposedPorts: invalid port specification: "0/tcp"'),
    ({"ExposedPorts": {"80/icmp": {}}}, "ExposedPorts: invalid port specification"),
    ({"Volumes": {"data": {}}}, "Volumes: invalid mount path: 'data' mount path must be absolute"),
    ({"Volumes": {"/a:/b": {}}}, "Volumes['/a:/b']: invalid volume specification"),
    ({"StopTimeout": -2}, "StopTimeout: expected seconds"),
    ({"Healthcheck": {"Test": ["RUN"]}}, "Healthcheck.Test[0]: Unknown healthcheck type 'RUN'"),
    (
        {"Healthcheck": {"Interval": 5}},
        "Healthcheck.Interval: Interval in Healthcheck cannot be less than 1ms",
    ),
    ({"Healthcheck": {"Retries": -1}}, "Healthcheck.Retries:"),
    ({"MacAddress": "zz"}, "MacAddress: invalid MAC address: zz"),
    ({"HostConfig": []}, "HostConfig: expected object, got array"),
]

REFUSED_HOST: list[tuple[dict[str, Any], str]] = [
    ({"Memory": "1g"}, "HostConfig.Memory: expected integer, got string"),
    ({"Memory": 1.5}, "HostConfig.Memory: expected integer, got number"),
    ({"Memory": 1 << 64}, "HostConfig.Memory: expected an integer <= 9223372036854775807"),
    ({"Memory": -1}, "HostConfig.Memory: expected 0"),
    ({"Memory": 1000}, "HostConfig.Memory: Minimum memory limit allowed is 6MB"),
    ({"MemorySwap": MIB}, "HostConfig.MemorySwap: You should always set the Memory limit"),
    ({"Memory": 9 * MIB, "MemorySwap": 8 * MIB}, "HostConfig.MemorySwap: Minimum memoryswap limit"),
    ({"MemorySwap": -2}, "HostConfig.MemorySwap: expected memory plus swap"),
    ({"MemoryReservation": 5}, "HostConfig.MemoryReservation: Minimum memory reservation"),
    ({"Memory": 7 * MIB, "MemoryReservation": 8 * MIB}, "HostConfig.MemoryReservation: Minimum memory limit"),
    ({"MemorySwappiness": 101}, "HostConfig.MemorySwappiness: Invalid value: 101"),
    ({"NanoCpus": 3_000_000_000}, "HostConfig.NanoCpus: Range of CPUs is from 0.01 to 2.00, as there are only 2"),
    ({"NanoCpus": 1}, "HostConfig.NanoCpus: Range of CPUs"),
    ({"NanoCpus": 10**9, "CpuQuota": 5000}, "HostConfig.NanoCpus: Conflicting options"),
    ({"CpuPeriod": 5}, "HostConfig.CpuPeriod: CPU cfs period"),
    ({"CpuQuota": 5}, "HostConfig.CpuQuota: CPU cfs quota"),
    ({"CpuShares": -1}, "HostConfig.CpuShares: invalid CPU shares (-1)"),
    ({"CpusetCpus": "3-1"}, "HostConfig.CpusetCpus: Invalid value 3-1 for cpuset cpus"),
    ({"CpusetMems": "x"}, "HostConfig.CpusetMems: Invalid value x for cpuset mems"),
    ({"PidsLimit": 1 << 40}, "HostConfig.PidsLimit: expected at most"),
    ({"BlkioWeight": 5}, "HostConfig.BlkioWeight: Range of blkio weight is from 10 to 1000"),
    ({"BlkioWeightDevice": [{"Path": "/dev/sda"}]}, "HostConfig.BlkioWeightDevice[0].Weight"),
    ({"BlkioDeviceReadBps": [{"Path": "sda", "Rate": 1}]}, "HostConfig.BlkioDeviceReadBps[0].Path"),
    ({"BlkioDeviceReadBps": [{"Path": "/dev/sda", "Rate": -1}]}, "HostConfig.BlkioDeviceReadBps[0].Rate"),
    ({"OomScoreAdj": 1001}, "HostConfig.OomScoreAdj: Invalid value 1001"),
    ({"ShmSize": -1}, "HostConfig.ShmSize: SHM size can not be less than 0"),
    ({"Ulimits": [{"Name": "files"}]}, "HostConfig.Ulimits[0].Name: invalid ulimit type: files"),
    ({"Ulimits": [{"Name": "core", "Soft": 2, "Hard": 1}]}, "HostConfig.Ulimits[0]: ulimit soft limit"),
    ({"Ulimits": [{"Name": "core", "Soft": -1, "Hard": 1}]}, "HostConfig.Ulimits[0]: ulimit soft limit"),
    ({"Devices": [{"PathOnHost": "fuse"}]}, "HostConfig.Devices[0].PathOnHost"),
    ({"Devices": [{"PathOnHost": "/dev/fuse", "CgroupPermissions": "x"}]},
     "HostConfig.Devices[0].CgroupPermissions"),
    ({"DeviceCgroupRules": ["c 1 rwm"]}, "HostConfig.DeviceCgroupRules[0]: invalid device cgroup rule format"),
    ({"DeviceRequests": [{"Count": 1, "DeviceIDs": ["0"]}]}, "DeviceRequests[0]: cannot set both Count and DeviceIDs"),
    ({"DeviceRequests": [{"Count": -2}]}, "DeviceRequests[0]: expected up to 256 devices"),
    ({"Binds": ["a:b"]}, "HostConfig.Binds[0]: invalid mount path: 'b' mount path must be absolute"),
    ({"Binds": ["/a:/b:wx"]}, "HostConfig.Binds[0]: invalid mode: wx"),
    ({"Binds": ["/a:/b:ro:x"]}, "HostConfig.Binds[0]: invalid volume specification"),
    ({"Binds": ["/a:/"]}, "HostConfig.Binds[0]: invalid specification: destination can't be '/'"),
    ({"Binds": ["a b:/c"]}, 'HostConfig.Binds[0]: "a b" includes invalid characters for a local volume name'),
    ({"Binds": ["data:/c:rshared"]}, "is for host directories"),
    ({"Binds": ["/a:/c:nocopy"]}, "is for named volumes"),
    ({"Mounts": [{"Type": "bind", "Target": "/b"}]}, "HostConfig.Mounts[0].Source"),
    ({"Mounts": [{"Type": "bind", "Source": "a", "Target": "/b"}]}, "mount path must be absolute"),
    ({"Mounts": [{"Type": "bind", "Source": "/a"}]}, "HostConfig.Mounts[0].Target: invalid mount path: ''"),
    ({"Mounts": [{"Type": "disk", "Target": "/b"}]}, "HostConfig.Mounts[0].Type: mount type unknown: 'disk'"),
    ({"Mounts": [{"Type": "image", "Target": "/b"}]}, "field Source must not be empty"),
    ({"Mounts": [{"Type": "tmpfs", "Source": "/a", "Target": "/b"}]}, "field Source must not be specified"),
    ({"Mounts": [{"Type": "tmpfs", "Target": "/b", "BindOptions": {}}]},
     'BindOptions must not be specified on mount type "tmpfs"'),
    ({"Mounts": [{"Type": "tmpfs", "Target": "/b", "TmpfsOptions": {"SizeBytes": -1}}]}, "TmpfsOptions.SizeBytes"),
    ({"Mounts": [{"Type": "tmpfs", "Target": "/b", "TmpfsOptions": {"Mode": 65536}}]}, "TmpfsOptions.Mode"),
    ({"Mounts": [{"Type": "bind", "Source": "/a", "Target": "/b", "BindOptions": {"Propagation": "x"}}]},
     "BindOptions.Propagation: invalid propagation mode: x"),
    ({"Mounts": [{"Type": "volume", "Target": "/b", "VolumeOptions": {"Subpath": "../x"}}]},
     "VolumeOptions.Subpath: expected a relative path"),
    ({"Tmpfs": {"/t": "size=1x"}}, "HostConfig.Tmpfs['/t']: invalid tmpfs option: 'size=1x'"),
    ({"Tmpfs": {"/t": "lowerdir=/etc"}}, "invalid tmpfs option: 'lowerdir=/etc'"),
    ({"VolumesFrom": ["a:x"]}, "HostConfig.VolumesFrom[0]: invalid volumes-from specification"),
    ({"NetworkMode": "container:"}, "HostConfig.NetworkMode"),
    ({"PortBindings": {"99999/tcp": []}}, "HostConfig.PortBindings: invalid port specification"),
    ({"PortBindings": {"80/tcp": [{"HostPort": "x"}]}}, "HostConfig.PortBindings['80/tcp'].HostPort"),
    ({"PortBindings": {"80/tcp": [{"HostPort": 8080}]}}, "HostPort: expected string, got integer"),
    ({"PortBindings": {"80/tcp": [{"HostIp": "x"}]}}, "HostIp: invalid IP address: x"),
    ({"RestartPolicy": {"Name": "sometimes"}}, "unknown policy 'sometimes'"),
    ({"RestartPolicy": {"Name": "always", "MaximumRetryCount": 1}}, "maximum retry count can only be used"),
    ({"Dns": ["nameserver"]}, "HostConfig.Dns[0]: invalid IP address: nameserver"),
    ({"ExtraHosts": ["db"]}, 'HostConfig.ExtraHosts[0]: bad format for add-host: "db"'),
    ({"IpcMode": "x"}, "HostConfig.IpcMode: invalid mode 'x'"),
    ({"PidMode": "private"}, "HostConfig.PidMode: invalid mode"),
    ({"UsernsMode": "auto"}, "HostConfig.UsernsMode"),
    ({"Links": ["db", "db:"]}, "HostConfig.Links[1]: bad format for links: db:"),
    ({"StorageOpt": {"size": "1x"}}, "HostConfig.StorageOpt"),
    ({"StorageOpt": {"inodes": "1"}}, "HostConfig.StorageOpt"),
    ({"Runtime": "kata"}, "unknown or invalid runtime name: kata"),
    ({"Isolation": "hyperv"}, "invalid isolation 'hyperv'"),
    ({"Cgroup": "x"}, "HostConfig.Cgroup"),
    ({"SecurityOpt": ["magic=1"]}, 'HostConfig.SecurityOpt[0]: invalid --security-opt: "magic"'),
    ({"SecurityOpt": ["seccomp=/etc/profile.json"]}, "not its file name"),
    ({"Sysctls": {"../x": "1"}}, "HostConfig.Sysctls: invalid sysctl"),
    ({"MaskedPaths": ["proc"]}, "HostConfig.MaskedPaths[0]: expected an absolute path"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "sentence"), REFUSED_CONFIG)
def test_a_wrong_config_is_refused_with_its_path(body: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(body)


@pytest.mark.parametrize(("host", "sentence"), REFUSED_HOST)
def test_a_wrong_host_config_is_refused_with_its_path(host: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal({"HostConfig": host})


def test_endpoints_keep_what_was_asked_of_them() -> None:
    config = {
        "back": {
            "IPAMConfig": {"IPv4Address": "172.30.0.9", "IPv6Address": "fd00:0::9"},
            "Aliases": ["db"],
            "MacAddress": "02-42-AC-11-00-02",
            "DriverOpts": {"k": "v"},
        },
        "front": None,
    }
    spec = decode({"HostConfig": {"NetworkMode": "back"}, "NetworkingConfig": {"EndpointsConfig": config}})
    assert spec.endpoints == (
        EndpointSpec(
            network="back",
            aliases=("db",),
            ipv4="172.30.0.9",
            ipv6="fd00::9",
            mac="02:42:ac:11:00:02",
            driver_options={"k": "v"},
        ),
        EndpointSpec(network="front"),
    )


@pytest.mark.parametrize(
    ("endpoint", "sentence"),
    [
        ({"IPAMConfig": {"IPv4Address": "fd00::1"}}, "IPAMConfig.IPv4Address: invalid IPv4 address: fd00::1"),
        ({"IPAMConfig": {"IPv6Address": "x"}}, "IPAMConfig.IPv6Address: invalid IP address: x"),
        ({"IPAMConfig": {"LinkLocalIPs": ["192.0.2.1"]}}, "IPAMConfig.LinkLocalIPs"),
        ({"Links": ["db:a b"]}, "Links[0]: bad format for links"),
        ({"MacAddress": "02:42"}, "MacAddress: invalid MAC address"),
    ],
)
def test_a_wrong_endpoint_is_refused_with_its_path(endpoint: dict[str, Any], sentence: str) -> None:
    message = refusal({"NetworkingConfig": {"EndpointsConfig": {"back": endpoint}}})
    assert message.startswith("NetworkingConfig.EndpointsConfig['back']")
    assert sentence in message


def test_a_volume_of_the_config_gives_way_to_a_mount_with_its_target() -> None:
    spec = decode({"Volumes": {"/data": {}, "/other/": {}}, "HostConfig": {"Binds": ["/srv:/data/"]}})
    assert spec.mounts == (
        Bind(source="/srv", target="/data/", create_source=True),
        Volume(name="", target="/other/"),
    )


def test_the_volume_driver_goes_to_volumes_without_one_of_their_own() -> None:
    spec = decode({"HostConfig": {"VolumeDriver": "nfs", "Binds": ["data:/d"]}})
    assert spec.mounts == (Volume(name="data", target="/d", driver="nfs"),)


def test_the_name_loses_its_slash() -> None:
    assert decode({}, name="/web").name == "web"


def test_the_request_is_kept_without_nulls_and_unknown_fields() -> None:
    body = {"Tty": None, "Env": ["A=b"], "Unknown": 1, "HostConfig": {"Memory": 10 * MIB, "Binds": None}}
    assert msgspec.json.decode(decode(body).request) == {
        "Config": {"Image": "debian", "Env": ["A=b"]},
        "HostConfig": {"Memory": 10 * MIB},
        "NetworkingConfig": None,
    }


@pytest.mark.parametrize(
    ("body", "version", "field", "value"),
    [
        ({}, 1039, "ipc_mode", "shareable"),
        ({}, 1040, "ipc_mode", ""),
        ({}, 1040, "cgroupns_mode", "host"),
        ({}, 1041, "cgroupns_mode", ""),
        ({"HostConfig": {"AutoRemove": True}}, 1024, "auto_remove", False),
        ({"HostConfig": {"Annotations": {"a": "b"}}}, 1042, "annotations", {}),
        ({"Healthcheck": {"StartInterval": 1_000_000}}, 1043, "healthcheck", HealthCheck()),
        ({"MacAddress": "02:42:ac:11:00:02"}, 1043, "endpoints",
         (EndpointSpec(network="default", mac="02:42:ac:11:00:02"),)),
    ],
)  # fmt: skip
def test_older_versions_mean(body: dict[str, Any], version: int, field: str, value: Any) -> None:
    assert getattr(decode(body, version), field) == value


def test_two_networks_at_create_need_version_1_44() -> None:
    body: dict[str, Any] = {"NetworkingConfig": {"EndpointsConfig": {"a": {}, "b": {}}}}
    assert "multiple network endpoints: a, b" in refusal(body, 1043)
    assert len(decode(body, 1044).endpoints) == 2


def test_subpaths_need_version_1_45() -> None:
    mount = {"Type": "volume", "Source": "data", "Target": "/b", "VolumeOptions": {"Subpath": "x"}}
    assert "needs API v1.45" in refusal({"HostConfig": {"Mounts": [mount]}}, 1044)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "invalid JSON: unexpected end"),
        (b"{", "invalid JSON: unexpected end"),
        (b'{"Image": }', "invalid JSON: "),
        (b"{} {}", "unexpected content after JSON"),
        (b"[]", "request body: expected object, got array"),
        (b'"x"', "request body: expected object, got string"),
        (b'{"Image": "\xff"}', "invalid JSON: "),
        (b'{"x":' + b"[" * 100_000, "invalid JSON: nested too deeply"),
    ],
)
def test_what_is_not_json_is_told(data: bytes, sentence: str) -> None:
    with pytest.raises(Invalid) as caught:
        wire.decode(data, wire.CreateBody)
    assert sentence in str(caught.value)


def test_a_refusal_never_repeats_the_environment() -> None:
    assert "hunter2" not in refusal({"Env": ["=hunter2"]})
    assert "hunter2" not in refusal({"Env": [{"PASSWORD": "hunter2"}]})
