"""`update`: change a living container's limits."""

from __future__ import annotations

import sys

import msgspec

from cove.model.errors import Conflict, Invalid, Unavailable
from cove.ociruntime.execute import read_config
from cove.ociruntime.state import load, write_atomically
from cove.runtime.cgroups_detect import detect_cgroups
from cove.runtime.oci import BlockIo, Cpu, Memory, Pids, Resources, encode_config, parse_resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.ociruntime.main import Call
    from cove.ociruntime.options import Options

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


def update_command(call: Call) -> int:
    options = call.options
    container = load(call.root, options.args[0])
    status = container.status()
    if status in ("stopped", "creating"):
        raise Conflict("container not running")
    for flag in ("l3-cache-schema", "mem-bw-schema"):
        if options.text(flag):
            raise Unavailable(
                f"--{flag}: resctrl groups aren't changed once a container is made, leave it out"
            )
    config = read_config(container)
    wanted = read_resources(options)
    if wanted.memory is not None and (wanted.memory.kernel or wanted.memory.kernel_tcp):
        call.log.warn("kernel memory settings are ignored: it is part of the memory limit")
    old = config.linux.resources or Resources()
    changed = complete(wanted, old)
    if container.data["scope"]:
        from cove.ociruntime.systemd import set_limits

        set_limits(container.data["scope"], changed)
    detect_cgroups().update(container.cgroup, changed)
    linux = msgspec.structs.replace(config.linux, resources=merge(old, wanted))
    text = encode_config(msgspec.structs.replace(config, linux=linux)).decode()
    write_atomically(f"{container.directory}/config.json", text)
    return 0


def read_resources(options: Options) -> Resources:
    """--resources, or what the other flags say. Raises Invalid."""
    path = options.text("resources")
    if path:
        try:
            if path == "-":
                return parse_resources(sys.stdin.buffer.read())
            with open(path, "rb") as file:
                return parse_resources(file.read())
        except OSError as error:
            raise Invalid(f"--resources {path}: {(error.strerror or '').lower()}") from None
    memory = Memory(
        limit=_size(options, "memory"),
        reservation=_size(options, "memory-reservation"),
        swap=_size(options, "memory-swap"),
        kernel=_size(options, "kernel-memory"),
        kernel_tcp=_size(options, "kernel-memory-tcp"),
    )
    cpu = Cpu(
        shares=options.number("cpu-share"),
        quota=options.number("cpu-quota"),
        period=options.number("cpu-period"),
        burst=options.number("cpu-burst"),
        realtime_runtime=options.number("cpu-rt-runtime"),
        realtime_period=options.number("cpu-rt-period"),
        idle=options.number("cpu-idle"),
        cpus=options.text("cpuset-cpus"),
        mems=options.text("cpuset-mems"),
    )
    pids, weight = options.number("pids-limit"), options.number("blkio-weight")
    return Resources(
        memory=None if memory == Memory() else memory,
        cpu=None if cpu == Cpu() else cpu,
        pids=None if pids is None else Pids(limit=pids),
        block_io=None if weight is None else BlockIo(weight=weight),
    )


def _size(options: Options, flag: str) -> int | None:
    """Bytes of "512m"; -1 is no limit. Raises Invalid."""
    text = options.text(flag)
    if not text:
        return None
    if text == "-1":
        return -1
    letters = text.lower().removesuffix("ib") if text.lower().endswith("ib") else text.lower()
    if letters[-1:] == "b" and letters[-2:-1].isalpha():
        letters = letters[:-1]
    number = letters.rstrip("bkmgtp")
    unit = letters[len(number) :]
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if value < 0 or unit not in _UNITS or value * _UNITS[unit] >= 2**63:
        raise Invalid(f"invalid value for {flag}: {text}: expected a number and b, k, m or g, e.g. 512m")
    return int(value * _UNITS[unit])


def complete(wanted: Resources, old: Resources) -> Resources:
    """What is written together has to be known together: a quota with its period; and a memory limit that is lifted
    lifts that of memory plus swap."""
    cpu, memory = wanted.cpu, wanted.memory
    before = old.cpu or Cpu()
    if cpu is not None and (cpu.quota is None) != (cpu.period is None):
        cpu = msgspec.structs.replace(
            cpu,
            quota=before.quota if cpu.quota is None else cpu.quota,
            period=before.period if cpu.period is None else cpu.period,
        )
    if memory is not None and memory.limit == -1 and memory.swap is None:
        memory = msgspec.structs.replace(memory, swap=-1)
    return msgspec.structs.replace(wanted, cpu=cpu, memory=memory)


def merge(old: Resources, wanted: Resources) -> Resources:
    """The limits that hold from now on: set fields of `wanted`, and the rest of `old`."""
    changed = {}
    for name in Resources.__struct_fields__:
        new, before = getattr(wanted, name), getattr(old, name)
        if isinstance(new, msgspec.Struct) and before is not None:
            fields = type(new).__struct_fields__
            default = type(new)() if not isinstance(new, Pids) else None
            changed[name] = msgspec.structs.replace(
                before,
                **{
                    field: getattr(new, field)
                    for field in fields
                    if default is None or getattr(new, field) != getattr(default, field)
                },
            )
        elif new:
            changed[name] = new
    return msgspec.structs.replace(old, **changed)
