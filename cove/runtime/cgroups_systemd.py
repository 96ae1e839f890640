"""systemd's cgroup driver: containers as transient scopes, asked for over D-Bus.

Where systemd manages the cgroup tree it wants to be asked: a scope is its unit for processes that others start, with
Delegate what is below the scope's cgroup is ours. A scope needs a process, so the order is:

    the container's first process waits (a plan's Pause "cgroup")
    StartTransientUnit with its pid and the limits that systemd knows, so that it keeps them when it reloads
    the job's end is awaited: the process is in the scope's cgroup
    all limits are written to the control files, the device program goes in the place of systemd's
    the process goes on

Blocking, with time limits: the daemon calls it in a thread. D-Bus is spoken by jeepney (a connection costs about 2 ms).
Names and types: org.freedesktop.systemd1(5), systemd.resource-control(5).
"""

from __future__ import annotations

import os
import socket
from collections import deque
from types import TracebackType
from typing import Any, NamedTuple

import msgspec.structs
from jeepney import (
    DBusAddress,
    HeaderFields,
    MatchRule,
    Message,
    MessageType,
    Properties,
    new_method_call,
)
from jeepney.bus import get_bus
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import DBusConnection

from cove.model.errors import Conflict, HostError, Invalid, NotFound, Unavailable
from cove.runtime import oci
from cove.runtime.cgroups import Cgroups
from cove.runtime.cgroups_devices import device_allow, effective_rules, is_unrestricted
from cove.runtime.cgroups_limits import parse_set
from cove.runtime.plan_limits import swap_alone, weight_of_shares

_BUS_NAME = "org.freedesktop.systemd1"
_MANAGER = DBusAddress("/org/freedesktop/systemd1", _BUS_NAME, "org.freedesktop.systemd1.Manager")
_CALL_S, _JOB_S = 25.0, 30.0
_INFINITY = (1 << 64) - 1
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:-_.")

Property = tuple[str, tuple[str, Any]]  # name, (D-Bus signature, value)


class Unit(NamedTuple):
    """A container's scope, and the slice that it is in."""

    name: str
    slice: str

    def path(self, root: str = "") -> str:
        """The cgroup of the scope, below the manager's own."""
        return "/".join(part for part in (root.strip("/"), slice_path(self.slice), self.name) if part)


def unit_at(path: str) -> Unit:
    """The scope whose cgroup this is."""
    parts = path.strip("/").split("/")
    return Unit(parts[-1], parts[-2] if len(parts) > 1 else "-.slice")


# --- what to ask for (pure) -------------------------------------------------------------------------


def parse_unit(cgroups_path: str, container_id: str, *, user: bool = False) -> Unit:
    """Read linux.cgroupsPath in its form for systemd, "slice:prefix:name"; the scope is prefix-name.scope.

    Without one it is cove-ID.scope in system.slice (user.slice in a user's manager). Raises Invalid.
    """
    default = "user.slice" if user else "system.slice"
    parts = (cgroups_path or f":cove:{container_id}").split(":")
    if len(parts) != 3 or not parts[2]:
        raise Invalid(
            f"linux.cgroupsPath: {cgroups_path!r} is none for systemd: give SLICE:PREFIX:NAME, e.g. "
            f"system.slice:cove:{container_id}"
        )
    slice_, prefix, name = parts
    if name.endswith(".slice"):
        raise Invalid(
            f"linux.cgroupsPath: {name} is a slice, which takes no processes: give a name without .slice"
        )
    stem = escape_name(f"{prefix}-{name}" if prefix else name)
    if len(stem) > 249:
        raise Invalid(f"linux.cgroupsPath: {stem}.scope is too long a name for a unit: 255 bytes at most")
    slice_ = slice_ or default
    slice_path(slice_)
    return Unit(f"{stem}.scope", slice_)


def escape_name(name: str) -> str:
    """A unit's name: other bytes become \\xNN, as by systemd-escape(1)."""
    return "".join(chr(byte) if chr(byte) in _PLAIN else f"\\x{byte:02x}" for byte in os.fsencode(name))


def slice_path(name: str) -> str:
    """The cgroup of a slice: dashes in its name are levels, a-b.slice is a.slice/a-b.slice. Raises Invalid."""
    stem = name.removesuffix(".slice")
    if name == "-.slice":
        return ""
    parts = stem.split("-")
    if stem == name or "/" in name or not all(parts):
        raise Invalid(
            f"linux.cgroupsPath: {name!r} is no slice: give a name such as machine.slice or team-batch.slice"
        )
    return "/".join("-".join(parts[: level + 1]) + ".slice" for level in range(len(parts)))


def scope_properties(unit: Unit, pid: int, description: str, resources: oci.Resources) -> list[Property]:
    """The properties of a new scope. Accounting is on whether or not there are limits, or a later one would count
    from its own start; a failed scope is forgotten at once, so that its name is free again."""
    return [
        ("Description", ("s", description)),
        ("Slice", ("s", unit.slice)),
        ("Delegate", ("b", True)),
        ("PIDs", ("au", [pid])),
        ("DefaultDependencies", ("b", False)),
        ("CollectMode", ("s", "inactive-or-failed")),
        *((f"{kind}Accounting", ("b", True)) for kind in ("CPU", "Memory", "IO", "Tasks")),
        *resource_properties(resources),
        *_device_properties(resources.devices),
    ]


def resource_properties(resources: oci.Resources) -> list[Property]:
    """Limits as properties, as far as systemd has them; those of `unified` have the last word.

    Raises Invalid for values that contradict each other.
    """
    found: dict[str, tuple[str, Any]] = {}
    cpu, memory, pids = resources.cpu, resources.memory, resources.pids
    if cpu is not None:
        if cpu.idle == 1:
            found["CPUWeight"] = ("t", 0)  # cpu.idle, from systemd 252 on
        elif cpu.shares:
            found["CPUWeight"] = ("t", weight_of_shares(cpu.shares))
        if cpu.quota or cpu.period:
            _quota(found, cpu.quota or 0, cpu.period or 100_000)
        for name, text in (("AllowedCPUs", cpu.cpus), ("AllowedMemoryNodes", cpu.mems)):
            if text:
                found[name] = ("ay", _set_bytes(text, name))
    if memory is not None:
        if memory.limit:
            found["MemoryMax"] = ("t", _limit(memory.limit))
        if memory.reservation:
            found["MemoryLow"] = ("t", _limit(memory.reservation))
        swap = swap_alone(memory)
        if swap is not None:
            found["MemorySwapMax"] = ("t", _limit(swap))
    if pids is not None and pids.limit is not None:
        found["TasksMax"] = ("t", _INFINITY if pids.limit < 0 else max(pids.limit, 1))
    for file, value in resources.unified.items():
        _unified(found, file, value.strip())
    return list(found.items())


def _limit(value: int) -> int:
    return _INFINITY if value < 0 else value


def _quota(found: dict[str, tuple[str, Any]], quota_us: int, period_us: int) -> None:
    """systemd keeps whole percents of a processor: rounded up, so that a reload never takes from the container."""
    per_second = _INFINITY
    if quota_us > 0:
        per_second = -(-quota_us * 1_000_000 // period_us // 10_000) * 10_000
    found["CPUQuotaPerSecUSec"] = ("t", per_second)
    found["CPUQuotaPeriodUSec"] = ("t", period_us)


_UNIFIED = {
    "cpu.weight": "CPUWeight",
    "memory.high": "MemoryHigh",
    "memory.low": "MemoryLow",
    "memory.max": "MemoryMax",
    "memory.min": "MemoryMin",
    "memory.swap.max": "MemorySwapMax",
    "pids.max": "TasksMax",
}
_UNIFIED_SETS = {"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}


def _unified(found: dict[str, tuple[str, Any]], file: str, value: str) -> None:
    """What systemd has no property for is written to the file all the same, when the scope is there."""
    try:
        if file == "cpu.max":
            quota, _, period = value.partition(" ")
            _quota(found, 0 if quota == "max" else int(quota), int(period or 100_000))
        elif file in _UNIFIED:
            found[_UNIFIED[file]] = ("t", _INFINITY if value == "max" else int(value))
        elif file in _UNIFIED_SETS:
            found[_UNIFIED_SETS[file]] = ("ay", _set_bytes(value, file))
        elif file == "cpu.idle" and value == "1":
            found["CPUWeight"] = ("t", 0)
    except (ValueError, ZeroDivisionError):
        raise Invalid(f"linux.resources.unified[{file!r}]: {value!r} is no value for it") from None


def _set_bytes(text: str, name: str) -> bytes:
    """A bit for each number of "0-2,4", the first in the lowest bit of the first byte."""
    try:
        numbers = parse_set(text)
    except ValueError:
        raise Invalid(f"{name}: {text!r} is no list of numbers: give ranges, e.g. 0-2,4") from None
    mask = sum(1 << number for number in numbers)
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


def _device_properties(rules: tuple[oci.DeviceRule, ...]) -> list[Property]:
    """Rules for systemd to attach again when it reloads. Those it has no words for are left to our own program."""
    rules = effective_rules(rules)
    allowed = None if is_unrestricted(rules) else device_allow(rules)
    if allowed is None:
        return [("DevicePolicy", ("s", "auto")), ("DeviceAllow", ("a(ss)", []))]
    return [("DevicePolicy", ("s", "strict")), ("DeviceAllow", ("a(ss)", allowed))]


# --- asking -----------------------------------------------------------------------------------------


class Systemd:
    """A connection to a manager: the system's, or the caller's own (`user`). Not for several threads at once."""

    def __init__(self, connection: DBusConnection) -> None:
        self._connection = connection
        self._hears = False  # of jobs

    @classmethod
    def connect(cls, *, user: bool = False) -> Systemd:
        """Raises Unavailable where no systemd answers."""
        address = "unix:path=/run/dbus/system_bus_socket"
        if user:
            directory = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
            address = f"unix:path={directory}/bus"
        address = os.environ.get("DBUS_SESSION_BUS_ADDRESS" if user else "DBUS_SYSTEM_BUS_ADDRESS") or address
        try:
            return cls(DBusConnection(authenticate(get_bus(address))))
        except (OSError, ValueError, RuntimeError) as error:
            raise Unavailable(
                f"systemd can't be asked for a cgroup: {address}: {error}: use the cgroupfs driver, "
                "or start systemd and D-Bus"
            ) from None

    def __enter__(self) -> Systemd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def find_path(self, unit: Unit) -> str:
        """The cgroup that the scope will have, relative to the unified tree's root: a user's manager has its own
        somewhere below. Raises HostError."""
        reply = self._call(Properties(_MANAGER).get("ControlGroup"), "ControlGroup")
        return unit.path(reply[0][1])

    def start_scope(self, unit: Unit, pid: int, description: str, resources: oci.Resources) -> None:
        """Make the scope, with a process in it; returns once it is there. Raises Conflict when there is such a unit,
        Invalid for limits that contradict each other, HostError for what systemd refuses."""
        properties = scope_properties(unit, pid, description, resources)
        body: tuple[Any, ...] = (unit.name, "fail", properties, [])
        try:
            self._run_job("StartTransientUnit", "ssa(sv)a(sa(sv))", body)
        except Conflict:
            # one of that name failed and was kept by an older systemd; a living one can't be reset
            self._reset(unit)
            self._run_job("StartTransientUnit", "ssa(sv)a(sa(sv))", body)

    def set_limits(self, unit: Unit, resources: oci.Resources) -> None:
        """Change the properties of a living scope, for as long as it lives. Raises NotFound, HostError."""
        properties = resource_properties(resources)
        if resources.devices:
            properties += _device_properties(resources.devices)
        if properties:
            message = new_method_call(_MANAGER, "SetUnitProperties", "sba(sv)", (unit.name, True, properties))
            self._call(message, "SetUnitProperties")

    def list_scopes(self, pattern: str) -> list[str]:
        """The cgroups of the loaded scopes whose names match (fnmatch(3)), relative to the unified tree's root. Raises
        HostError."""
        message = new_method_call(_MANAGER, "ListUnitsByPatterns", "asas", ([], [pattern]))
        (units,) = self._call(message, "ListUnitsByPatterns")
        found = []
        for unit in units:
            scope = DBusAddress(unit[6], _BUS_NAME, "org.freedesktop.systemd1.Scope")
            try:
                reply = self._call(Properties(scope).get("ControlGroup"), "ControlGroup")
            except (NotFound, HostError):
                continue  # it has ended meanwhile
            found.append(reply[0][1].strip("/"))
        return [path for path in found if path]

    def attach(self, unit: Unit, pid: int, below: str = "") -> None:
        """Put a process into the scope, at the path `below` there: for callers that can't write to cgroup.procs
        themselves. Raises NotFound, HostError."""
        body = (unit.name, f"/{below.strip('/')}", [pid])
        self._call(new_method_call(_MANAGER, "AttachProcessesToUnit", "ssau", body), "AttachProcessesToUnit")

    def stop(self, unit: Unit) -> None:
        """Stop the scope, whose processes get a SIGTERM; returns once it is gone. Fine when it is. A failed one is
        forgotten. Raises HostError."""
        try:
            self._run_job("StopUnit", "ss", (unit.name, "replace"))
        except NotFound:
            return
        self._reset(unit)

    def _reset(self, unit: Unit) -> None:
        try:
            self._call(new_method_call(_MANAGER, "ResetFailedUnit", "s", (unit.name,)), "ResetFailedUnit")
        except (NotFound, HostError):
            pass  # it didn't fail, or is forgotten already

    def _run_job(self, method: str, signature: str, body: tuple[Any, ...]) -> None:
        """Call a method that answers with a job, and wait for its JobRemoved (u id, o job, s unit, s result).

        systemd tells the bus as long as the one who asked for the job is there; it may come before the answer.
        """
        rule = MatchRule(
            type="signal", interface=_MANAGER.interface, member="JobRemoved", path=_MANAGER.object_path
        )
        if not self._hears:
            self._call(message_bus.AddMatch(rule), "AddMatch")
            self._hears = True
        removed: deque[Message] = deque()
        with self._connection.filter(rule, queue=removed):
            (job,) = self._call(new_method_call(_MANAGER, method, signature, body), method)
            while True:
                try:
                    message = self._connection.recv_until_filtered(removed, timeout=_JOB_S)
                except (TimeoutError, OSError) as error:
                    raise HostError(
                        f"systemd: {body[0]}: {method} did not end: {error or 'time limit'}"
                    ) from None
                if message.body[1] == job:
                    break
        if message.body[3] != "done":
            raise HostError(
                f"systemd: {body[0]}: {method} ended with {message.body[3]!r}: see journalctl -u {body[0]}"
            )

    def _call(self, message: Message, method: str) -> tuple[Any, ...]:
        try:
            reply = self._connection.send_and_get_reply(message, timeout=_CALL_S)
        except (TimeoutError, OSError) as error:
            raise HostError(f"systemd: {method}: no answer: {error or 'time limit'}") from None
        if reply.header.message_type is not MessageType.error:
            return tuple(reply.body)
        name = reply.header.fields.get(HeaderFields.error_name, "")
        text = f"systemd: {method}: {reply.body[0] if reply.body else name}"
        kind = _ERRORS.get(name.rpartition(".")[2], HostError)
        raise kind(text)


_ERRORS: dict[str, type[HostError | Conflict | NotFound]] = {"UnitExists": Conflict, "NoSuchUnit": NotFound}


def authenticate(address: str, timeout_s: float = 5.0) -> socket.socket:
    """A connected, authenticated socket. The bus is to take our user from the socket, rather than a number that we
    say: in a user namespace ours isn't the bus's (dbus-specification, "EXTERNAL"). Raises OSError, ValueError."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(timeout_s)
        sock.connect(address)
        for words, expected in ((b"\0AUTH EXTERNAL\r\n", b"DATA"), (b"DATA\r\n", b"OK ")):
            sock.sendall(words)
            answer = _read_line(sock)
            if not answer.startswith(expected):
                raise ValueError(f"the bus refuses this user: {answer.decode(errors='replace')!r}")
        sock.sendall(b"BEGIN\r\n")
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


def _read_line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\r\n"):
        byte = sock.recv(256)
        if not byte or len(line) > 4096:
            raise ValueError("the bus closed the connection")
        line += byte
    return line[:-2]


def enter_scope(
    systemd: Systemd, cgroups: Cgroups, unit: Unit, path: str, pid: int, resources: oci.Resources
) -> None:
    """Everything at the pause: the scope, and the limits and device rules by files. `path` is `find_path`'s.

    Raises what `start_scope` and `Cgroups.update` do; the scope is stopped again then.
    """
    systemd.start_scope(unit, pid, f"container {unit.name.removesuffix('.scope')}", resources)
    try:
        cgroups.enable(path)
        cgroups.update(path, with_devices(resources))
    except BaseException:
        cgroups.signal(path, 9)  # it waits for us, and a SIGTERM is nothing to it
        systemd.stop(unit)
        raise


def with_devices(resources: oci.Resources) -> oci.Resources:
    """The resources with their device rules spelled out, the default ones too, as an update has to have them."""
    return msgspec.structs.replace(resources, devices=effective_rules(resources.devices))
