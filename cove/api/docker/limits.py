"""Limits of a container: HostConfig's resource fields → `Resources`, with the rules that need no host.

Pure; the number of CPUs is an argument. Wording and bounds are Docker's (moby,
daemon/daemon_unix.go, verifyPlatformContainerResources), each with the field in front.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cove.api.docker import wire
from cove.api.docker.mounts import string_map
from cove.model.container import (
    Device,
    DeviceRequest,
    Resources,
    RestartPolicy,
    ThrottleDevice,
    Ulimit,
    WeightDevice,
)
from cove.model.errors import Invalid

MIN_MEMORY = 6 << 20
_INT32 = (1 << 31) - 1
_RLIMITS = frozenset(
    "core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack".split()
)


def decode_resources(body: wire.Resources, at: str, *, cpus: int) -> Resources:
    """`at` is the JSON path in front of a field's name: "HostConfig." or "". Raises `Invalid`."""
    memory = _not_negative(at, "Memory", body.memory)
    swap = body.memory_swap or 0
    reservation = _not_negative(at, "MemoryReservation", body.memory_reservation)
    if 0 < memory < MIN_MEMORY:
        raise Invalid(f"{at}Memory: Minimum memory limit allowed is 6MB, e.g. {MIN_MEMORY}")
    if swap < -1:
        raise Invalid(f"{at}MemorySwap: expected memory plus swap in bytes, or -1 for no limit, got {swap}")
    if swap > 0 and not memory:
        raise Invalid(
            f"{at}MemorySwap: You should always set the Memory limit when using Memoryswap limit, see usage"
        )
    if 0 < swap < memory:
        raise Invalid(
            f"{at}MemorySwap: Minimum memoryswap limit should be larger than memory limit, see usage"
        )
    if 0 < reservation < MIN_MEMORY:
        raise Invalid(f"{at}MemoryReservation: Minimum memory reservation allowed is 6MB, e.g. {MIN_MEMORY}")
    if memory and reservation > memory:
        raise Invalid(
            f"{at}MemoryReservation: Minimum memory limit can not be less than memory reservation limit, "
            "see usage"
        )
    swappiness = body.memory_swappiness
    if swappiness == -1:  # what older clients send for "not given"
        swappiness = None
    if swappiness is not None and not 0 <= swappiness <= 100:
        raise Invalid(
            f"{at}MemorySwappiness: Invalid value: {swappiness}, valid memory swappiness range is 0-100"
        )
    pids = body.pids_limit or 0
    if pids > _INT32:
        raise Invalid(f"{at}PidsLimit: expected at most {_INT32}, or -1 for no limit, got {pids}")
    weight = body.blkio_weight or 0
    if weight and not 10 <= weight <= 1000:
        raise Invalid(f"{at}BlkioWeight: Range of blkio weight is from 10 to 1000, got {weight}")
    nano, period, quota = _cpu_time(body, at, cpus)
    return Resources(
        nano_cpus=nano,
        cpu_shares=_shares(at, body.cpu_shares),
        cpu_period_us=period,
        cpu_quota_us=quota,
        cpu_rt_period_us=_not_negative(at, "CpuRealtimePeriod", body.cpu_realtime_period),
        cpu_rt_runtime_us=body.cpu_realtime_runtime or 0,
        cpuset_cpus=_cpuset(at, "CpusetCpus", body.cpuset_cpus, "cpus"),
        cpuset_mems=_cpuset(at, "CpusetMems", body.cpuset_mems, "mems"),
        memory_bytes=memory,
        memory_swap_bytes=swap,
        memory_reservation_bytes=reservation,
        memory_swappiness=swappiness,
        kernel_memory_tcp_bytes=body.kernel_memory_tcp or 0,
        oom_kill_disable=bool(body.oom_kill_disable),
        pids_limit=pids,
        blkio_weight=weight,
        blkio_weight_device=_weights(at, body.blkio_weight_device),
        read_bps=_rates(at, "BlkioDeviceReadBps", body.blkio_device_read_bps),
        write_bps=_rates(at, "BlkioDeviceWriteBps", body.blkio_device_write_bps),
        read_iops=_rates(at, "BlkioDeviceReadIOps", body.blkio_device_read_iops),
        write_iops=_rates(at, "BlkioDeviceWriteIOps", body.blkio_device_write_iops),
    )


def _not_negative(at: str, field: str, value: int | None) -> int:
    if value is not None and value < 0:
        raise Invalid(f"{at}{field}: expected 0 (no limit) or more, got {value}")
    return value or 0


def _shares(at: str, value: int | None) -> int:
    if value is not None and value < 0:
        raise Invalid(f"{at}CpuShares: invalid CPU shares ({value}): value must be a positive integer")
    return value or 0


def _cpu_time(body: wire.Resources, at: str, cpus: int) -> tuple[int, int, int]:
    nano = body.nano_cpus or 0
    period, quota = body.cpu_period or 0, body.cpu_quota or 0
    if nano > 0 and period:
        raise Invalid(f"{at}NanoCpus: Conflicting options: Nano CPUs and CPU Period cannot both be set")
    if nano > 0 and quota:
        raise Invalid(f"{at}NanoCpus: Conflicting options: Nano CPUs and CPU Quota cannot both be set")
    if nano < 0 or nano > cpus * 1_000_000_000:
        raise Invalid(
            f"{at}NanoCpus: Range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
        )
    if 0 < nano < 10_000_000:
        raise Invalid(f"{at}NanoCpus: Range of CPUs is from 0.01 to {cpus}.00, e.g. 500000000 for half a CPU")
    if period and not 1000 <= period <= 1_000_000:
        raise Invalid(
            f"{at}CpuPeriod: CPU cfs period can not be less than 1ms (i.e. 1000) "
            "or larger than 1s (i.e. 1000000)"
        )
    if quota < -1 or 0 < quota < 1000:
        raise Invalid(f"{at}CpuQuota: CPU cfs quota can not be less than 1ms (i.e. 1000), -1 lifts it")
    return nano, period, quota


def _cpuset(at: str, field: str, text: str | None, noun: str) -> str:
    """A list as in cpuset(7), "List format": 0-2,4. The kernel bounds it further."""
    if not text:
        return ""
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = [first, last] if dash else [first]
        if not all(e.isascii() and e.isdigit() and len(e) <= 5 for e in ends) or int(ends[-1]) < int(ends[0]):
            raise Invalid(
                f"{at}{field}: Invalid value {text} for cpuset {noun}: expected a list such as 0-2,4"
            )
    return text


def _weights(at: str, devices: Iterable[wire.WeightDevice] | None) -> tuple[WeightDevice, ...]:
    found = []
    for index, device in enumerate(devices or ()):
        field = f"{at}BlkioWeightDevice[{index}]"
        if not 10 <= (device.weight or 0) <= 1000:
            raise Invalid(f"{field}.Weight: expected 10 to 1000, got {device.weight or 0}")
        found.append(WeightDevice(path=_device_path(field, device.path), weight=device.weight or 0))
    return tuple(found)


def _rates(at: str, name: str, devices: Iterable[wire.ThrottleDevice] | None) -> tuple[ThrottleDevice, ...]:
    found = []
    for index, device in enumerate(devices or ()):
        field = f"{at}{name}[{index}]"
        if (device.rate or 0) < 0:
            raise Invalid(f"{field}.Rate: expected 0 or more, got {device.rate}")
        found.append(ThrottleDevice(path=_device_path(field, device.path), rate=device.rate or 0))
    return tuple(found)


def _device_path(field: str, path: str | None) -> str:
    if not path or not path.startswith("/") or "\0" in path:
        raise Invalid(f"{field}.Path: expected a device's absolute path, e.g. /dev/sda")
    return path


MAX_REQUESTED = 256  # devices of one request


def decode_device_requests(
    requests: Sequence[wire.DeviceRequest] | None, version: int
) -> tuple[DeviceRequest, ...]:
    """`--gpus` and CDI devices, which API 1.40 brought. Which devices there are is a start's matter."""
    found = []
    for index, request in enumerate(requests or () if version >= 1040 else ()):
        field = f"HostConfig.DeviceRequests[{index}]"
        ids = tuple(request.device_ids or ())
        count = request.count or 0
        if count < -1 or count > MAX_REQUESTED or len(ids) > MAX_REQUESTED:
            raise Invalid(f"{field}: expected up to {MAX_REQUESTED} devices, or a Count of -1 for all")
        if count and ids:
            raise Invalid(f"{field}: cannot set both Count and DeviceIDs on device request")
        found.append(
            DeviceRequest(
                driver=request.driver or "",
                count=count,
                device_ids=ids,
                capabilities=tuple(tuple(words) for words in request.capabilities or ()),
                options=string_map(request.options),
            )
        )
    return tuple(found)


def decode_devices(body: wire.Resources) -> tuple[Device, ...]:
    found = []
    for index, device in enumerate(body.devices or ()):
        field = f"HostConfig.Devices[{index}]"
        permissions = device.cgroup_permissions or "rwm"
        if not set(permissions) <= set("rwm") or len(set(permissions)) != len(permissions):
            raise Invalid(f"{field}.CgroupPermissions: expected a selection of rwm, got {permissions!r}")
        host = _device_path(f"{field}.PathOnHost", device.path_on_host).rstrip("/")
        inside = device.path_in_container or host
        found.append(
            Device(
                host_path=host,
                container_path=_device_path(f"{field}.PathInContainer", inside),
                permissions=permissions,
            )
        )
    return tuple(found)


def decode_device_rules(rules: Sequence[str] | None) -> tuple[str, ...]:
    """Rules as in the v1 devices controller: `c 1:3 rwm` (kernel, cgroup-v1/devices.rst)."""
    for index, rule in enumerate(rules or ()):
        kind, _, rest = rule.partition(" ")
        numbers, _, permissions = rest.partition(" ")
        major, colon, minor = numbers.partition(":")
        good = kind in ("a", "b", "c") and colon and permissions and set(permissions) <= set("rwm")
        if not good or not all(n == "*" or (n.isascii() and n.isdigit()) for n in (major, minor)):
            raise Invalid(
                f"HostConfig.DeviceCgroupRules[{index}]: invalid device cgroup rule format: '{rule}', "
                "e.g. 'c 1:3 rwm'"
            )
    return tuple(rules or ())


def decode_ulimits(ulimits: Sequence[wire.Ulimit] | None) -> tuple[Ulimit, ...]:
    found = []
    for index, limit in enumerate(ulimits or ()):
        field = f"HostConfig.Ulimits[{index}]"
        name = (limit.name or "").lower()
        soft, hard = limit.soft or 0, limit.hard or 0
        if name not in _RLIMITS:
            raise Invalid(f"{field}.Name: invalid ulimit type: {name}, e.g. nofile")
        if soft < -1 or hard < -1:
            raise Invalid(f"{field}: expected limits of 0 or more, or -1 for none")
        if hard != -1 and (soft == -1 or soft > hard):
            raise Invalid(
                f"{field}: ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
            )
        found.append(Ulimit(name=name, soft=soft, hard=hard))
    return tuple(found)


def decode_restart(policy: wire.RestartPolicy | None, at: str) -> RestartPolicy:
    if policy is None:
        return RestartPolicy()
    name = policy.name or "no"
    retries = policy.maximum_retry_count or 0
    if name not in ("no", "always", "on-failure", "unless-stopped"):
        raise Invalid(
            f"{at}RestartPolicy.Name: invalid restart policy: unknown policy '{name}'; "
            "use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )
    if retries and name != "on-failure":
        raise Invalid(
            f"{at}RestartPolicy.MaximumRetryCount: invalid restart policy: "
            "maximum retry count can only be used with 'on-failure'"
        )
    if not 0 <= retries <= _INT32:
        raise Invalid(
            f"{at}RestartPolicy.MaximumRetryCount: invalid restart policy: "
            "maximum retry count cannot be negative"
        )
    return RestartPolicy(name=name, maximum_retries=retries)  # type: ignore[arg-type]
