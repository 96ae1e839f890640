"""Limits: which ones make sense (Docker's checks, in Docker's words), and their form in an OCI config. Pure.

What a caller got wrong raises Invalid. What this host can't do is discarded with a warning where Docker does
so, and refused where Docker does. `FEATURES` are the names in `Layout.features`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from cove.model.container import Resources, ThrottleDevice
from cove.model.errors import Invalid
from cove.runtime import oci
from cove.runtime.facts import Layout

MINIMUM_MEMORY_BYTES = 6 << 20

FEATURES = {
    "memory": "memory limit",
    "swap": "swap limit",
    "reservation": "memory soft limit",
    "swappiness": "memory swappiness",
    "oom_kill_disable": "OomKillDisable",
    "kernel_memory_tcp": "kernel memory TCP limit",
    "cpu_shares": "CPU shares",
    "cpu_cfs": "CPU CFS scheduler",
    "cpu_realtime": "CPU real-time scheduler",
    "cpuset": "cpuset",
    "pids": "PIDs limit",
    "blkio_weight": "Block I/O weight",
    "blkio_weight_device": "Block I/O weight_device",
    "read_bps": "BPS Block I/O read limit",
    "write_bps": "BPS Block I/O write limit",
    "read_iops": "IOPS Block I/O read limit",
    "write_iops": "IOPS Block I/O write limit",
    "devices": "device rules",
    "freezer": "freezer",
}


def missing_features(layout: Layout) -> list[str]:
    """A sentence for each limit that this host can't do, for `info` and its warnings."""
    return [f"No {text} support" for name, text in FEATURES.items() if name not in layout.features]


def check_resources(given: Resources, layout: Layout, *, update: bool = False) -> tuple[Resources, list[str]]:
    """The resources to use, and warnings about what was discarded or changed.

    `--memory` without `--memory-swap` gets twice its size. Raises Invalid.
    """
    warnings: list[str] = []
    result = _check_memory(given, layout, warnings, update=update)
    result = _check_cpu(result, layout, warnings)
    result = _check_cpuset(result, layout, warnings)
    result = _check_io(result, layout, warnings)
    if result.pids_limit > 0 and "pids" not in layout.features:
        warnings.append(
            "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. "
            "PIDs limit discarded."
        )
        result = replace(result, pids_limit=0)
    return result, warnings


def _check_memory(r: Resources, layout: Layout, warnings: list[str], *, update: bool) -> Resources:
    has = layout.features
    unmounted = "capabilities or the cgroup is not mounted."
    if r.memory_bytes < -1 or 0 < r.memory_bytes < MINIMUM_MEMORY_BYTES:
        raise Invalid("Minimum memory limit allowed is 6MB")
    if r.memory_bytes > 0 and "memory" not in has:
        warnings.append(f"Your kernel does not support memory limit {unmounted} Limitation discarded.")
        r = replace(r, memory_bytes=0, memory_swap_bytes=0)
    if r.memory_bytes > 0 and r.memory_swap_bytes != -1 and "swap" not in has:
        warnings.append(f"Your kernel does not support swap limit {unmounted} Memory limited without swap.")
        r = replace(r, memory_swap_bytes=-1)
    if r.memory_swap_bytes < -1:
        raise Invalid(
            f"memory-swap {r.memory_swap_bytes}: give bytes, at least the memory limit, or -1 for no limit"
        )
    if r.memory_bytes > 0 and 0 < r.memory_swap_bytes < r.memory_bytes:
        raise Invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
    if r.memory_bytes <= 0 and r.memory_swap_bytes > 0 and not update:
        raise Invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
    if r.memory_bytes > 0 and r.memory_swap_bytes == 0 and not update:
        r = replace(r, memory_swap_bytes=2 * r.memory_bytes)
    if r.memory_swappiness is not None and r.memory_swappiness == -1:  # Docker's older way of saying unset
        r = replace(r, memory_swappiness=None)
    if r.memory_swappiness is not None and "swappiness" not in has:
        warnings.append(
            f"Your kernel does not support memory swappiness {unmounted} Memory swappiness discarded."
        )
        r = replace(r, memory_swappiness=None)
    if r.memory_swappiness is not None and not 0 <= r.memory_swappiness <= 100:
        raise Invalid(f"Invalid value: {r.memory_swappiness}, valid memory swappiness range is 0-100")
    if r.memory_reservation_bytes > 0 and "reservation" not in has:
        warnings.append(f"Your kernel does not support memory soft limit {unmounted} Limitation discarded.")
        r = replace(r, memory_reservation_bytes=0)
    if r.memory_reservation_bytes < 0 or 0 < r.memory_reservation_bytes < MINIMUM_MEMORY_BYTES:
        raise Invalid("Minimum memory reservation allowed is 6MB")
    if 0 < r.memory_bytes < r.memory_reservation_bytes:
        raise Invalid("Minimum memory limit can not be less than memory reservation limit, see usage")
    if r.kernel_memory_tcp_bytes > 0 and "kernel_memory_tcp" not in has:
        warnings.append(
            f"Your kernel does not support kernel memory TCP limit {unmounted} Limitation discarded."
        )
        r = replace(r, kernel_memory_tcp_bytes=0)
    if r.oom_kill_disable and "oom_kill_disable" not in has:
        warnings.append("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
        r = replace(r, oom_kill_disable=False)
    if r.oom_kill_disable and r.memory_bytes <= 0:
        warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the "
            "system running out of resources."
        )
    return r


def _check_cpu(r: Resources, layout: Layout, warnings: list[str]) -> Resources:
    has = layout.features
    if r.nano_cpus != 0:
        if r.cpu_period_us > 0:
            raise Invalid("Conflicting options: Nano CPUs and CPU Period cannot both be set")
        if r.cpu_quota_us > 0:
            raise Invalid("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
        if "cpu_cfs" not in has:
            raise Invalid(
                "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is "
                "not mounted"
            )
        count = layout.online_cpus
        # the kernel's least quota is 1 ms; of Docker's period of 100 ms that is 0.01 processors
        if not 10_000_000 <= r.nano_cpus <= count * 1_000_000_000:
            raise Invalid(
                f"range of CPUs is from 0.01 to {count}.00, as there are only {count} CPUs available"
            )
    if r.cpu_shares < 0:
        raise Invalid(f"invalid CPU shares ({r.cpu_shares}): value must be a positive integer")
    if r.cpu_shares and "cpu_shares" not in has:
        warnings.append(
            "Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded."
        )
        r = replace(r, cpu_shares=0)
    if (r.cpu_period_us or r.cpu_quota_us) and "cpu_cfs" not in has:
        warnings.append("Your kernel does not support CPU CFS scheduler. CPU period/quota discarded.")
        r = replace(r, cpu_period_us=0, cpu_quota_us=0)
    if r.cpu_period_us and not 1000 <= r.cpu_period_us <= 1_000_000:
        raise Invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if 0 < r.cpu_quota_us < 1000 or r.cpu_quota_us < -1:
        raise Invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if (r.cpu_rt_period_us or r.cpu_rt_runtime_us) and "cpu_realtime" not in has:
        raise Invalid("kernel does not support CPU real-time scheduler")
    if r.cpu_rt_period_us and r.cpu_rt_runtime_us > r.cpu_rt_period_us:
        raise Invalid("cpu real-time runtime cannot be higher than cpu real-time period")
    return r


def _check_cpuset(r: Resources, layout: Layout, warnings: list[str]) -> Resources:
    if not r.cpuset_cpus and not r.cpuset_mems:
        return r
    if "cpuset" not in layout.features:
        warnings.append("Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.")
        return replace(r, cpuset_cpus="", cpuset_mems="")
    for field, text, available, noun in (
        ("cpus", r.cpuset_cpus, layout.cpus, "CPUs"),
        ("mems", r.cpuset_mems, layout.mems, "memory nodes"),
    ):
        if not text:
            continue
        try:
            wanted = parse_set(text)
        except ValueError:
            raise Invalid(
                f"Invalid value {text} for cpuset {field}: give numbers and ranges, e.g. 0-2,4"
            ) from None
        if not wanted <= parse_set(available):
            raise Invalid(f"Requested {noun} are not available - requested {text}, available: {available}")
    return r


_IO_LIMITS = (
    ("read_bps", "BPS Block I/O read limit", "Block I/O BPS read limit"),
    ("write_bps", "BPS Block I/O write limit", "Block I/O BPS write limit"),
    ("read_iops", "IOPS Block read limit", "Block I/O IOPS read limit"),
    ("write_iops", "IOPS Block write limit", "Block I/O IOPS write limit"),
)


def _check_io(r: Resources, layout: Layout, warnings: list[str]) -> Resources:
    has = layout.features
    unmounted = "or the cgroup is not mounted."
    if r.blkio_weight and "blkio_weight" not in has:
        warnings.append(f"Your kernel does not support Block I/O weight {unmounted} Weight discarded.")
        r = replace(r, blkio_weight=0)
    if r.blkio_weight and not 10 <= r.blkio_weight <= 1000:
        raise Invalid("Range of blkio weight is from 10 to 1000")
    if r.blkio_weight_device and "blkio_weight_device" not in has:
        warnings.append(
            f"Your kernel does not support Block I/O weight_device {unmounted} Weight-device discarded."
        )
        r = replace(r, blkio_weight_device=())
    for device in r.blkio_weight_device:
        if not 10 <= device.weight <= 1000:
            raise Invalid(
                f"blkio weight {device.weight} of {device.path}: Range of blkio weight is from 10 to 1000"
            )
    for name, limit, discarded in _IO_LIMITS:
        throttles: tuple[ThrottleDevice, ...] = getattr(r, name)
        for throttle in throttles:
            if throttle.rate <= 0:
                raise Invalid(
                    f"invalid rate {throttle.rate} for device {throttle.path}: give a positive number"
                )
        if throttles and name not in has:
            warnings.append(f"Your kernel does not support {limit} {unmounted} {discarded} discarded.")
            r = replace(r, **{name: ()})
    return r


def parse_set(text: str) -> set[int]:
    """A list of the kernel's form, "0-2,4". Raises ValueError for anything else or a number above 8191."""
    result: set[int] = set()
    for part in text.strip().split(","):
        if not part:
            continue
        first, dash, last = part.partition("-")
        ends = (first, last) if dash else (first, first)
        if not all(end.isascii() and end.isdigit() and len(end) <= 4 for end in ends):
            raise ValueError(part)
        low, high = int(ends[0]), int(ends[1])
        if low > high or high > 8191:
            raise ValueError(part)
        result.update(range(low, high + 1))
    return result


# --- to the OCI config ------------------------------------------------------------------------------

_PERIOD_US = 100_000


def block_devices(resources: Resources) -> tuple[str, ...]:
    """The paths of block devices whose numbers `plan_resources` needs."""
    throttles = (*resources.read_bps, *resources.write_bps, *resources.read_iops, *resources.write_iops)
    paths = [device.path for device in resources.blkio_weight_device]
    paths += [device.path for device in throttles]
    return tuple(dict.fromkeys(paths))


def plan_resources(
    r: Resources, numbers: Mapping[str, tuple[int, int]], rules: tuple[oci.DeviceRule, ...] = ()
) -> oci.Resources:
    """The OCI form of checked resources; `numbers` are (major, minor) of the `block_devices`.

    Fields of the answer are set only when asked for, so that nothing is written that nobody wanted.
    """
    return oci.Resources(
        devices=rules,
        memory=_plan_memory(r),
        cpu=_plan_cpu(r),
        pids=oci.Pids(limit=max(r.pids_limit, -1)) if r.pids_limit else None,
        block_io=_plan_io(r, numbers),
    )


def _plan_memory(r: Resources) -> oci.Memory | None:
    memory = oci.Memory(
        limit=r.memory_bytes or None,
        reservation=r.memory_reservation_bytes or None,
        swap=r.memory_swap_bytes or None,
        kernel_tcp=r.kernel_memory_tcp_bytes or None,
        swappiness=r.memory_swappiness,
        disable_oom_killer=r.oom_kill_disable,
    )
    return memory if memory != oci.Memory() else None


def _plan_cpu(r: Resources) -> oci.Cpu | None:
    period, quota = r.cpu_period_us or None, r.cpu_quota_us or None
    if r.nano_cpus > 0:
        period, quota = _PERIOD_US, r.nano_cpus * _PERIOD_US // 1_000_000_000
    cpu = oci.Cpu(
        shares=r.cpu_shares or None,
        period=period,
        quota=quota,
        realtime_period=r.cpu_rt_period_us or None,
        realtime_runtime=r.cpu_rt_runtime_us or None,
        cpus=r.cpuset_cpus,
        mems=r.cpuset_mems,
    )
    return cpu if cpu != oci.Cpu() else None


def _plan_io(r: Resources, numbers: Mapping[str, tuple[int, int]]) -> oci.BlockIo | None:
    def throttles(devices: Iterable[ThrottleDevice]) -> tuple[oci.IoThrottleDevice, ...]:
        return tuple(
            oci.IoThrottleDevice(major=numbers[d.path][0], minor=numbers[d.path][1], rate=d.rate)
            for d in devices
        )

    io = oci.BlockIo(
        weight=r.blkio_weight or None,
        weight_device=tuple(
            oci.IoWeightDevice(major=numbers[d.path][0], minor=numbers[d.path][1], weight=d.weight)
            for d in r.blkio_weight_device
        ),
        throttle_read_bps_device=throttles(r.read_bps),
        throttle_write_bps_device=throttles(r.write_bps),
        throttle_read_iops_device=throttles(r.read_iops),
        throttle_write_iops_device=throttles(r.write_iops),
    )
    return io if io != oci.BlockIo() else None
