"""systemd's cgroup driver: what is asked for, and the conversation, against a bus of the test's own."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jeepney import HeaderFields, Message, Parser, new_error, new_method_return, new_signal
from jeepney.low_level import Endianness
from jeepney.wrappers import DBusAddress

from cove.model.errors import Conflict, HostError, Invalid, NotFound, Unavailable
from cove.runtime import oci
from cove.runtime.cgroups_devices import ALLOW_ALL, DENY_ALL
from cove.runtime.cgroups_systemd import (
    Systemd,
    Unit,
    authenticate,
    escape_name,
    parse_unit,
    resource_properties,
    scope_properties,
    slice_path,
)

INFINITY = 2**64 - 1

# --- names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "unit", "cgroup"),
    [
        ("", "cove-box.scope", "system.slice/cove-box.scope"),
        ("system.slice:docker:abc", "docker-abc.scope", "system.slice/docker-abc.scope"),
        ("kubepods-besteffort-pod1.slice:cri-containerd:abc", "cri-containerd-abc.scope",
         "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-abc.scope"),
        ("-.slice::abc", "abc.scope", "abc.scope"),
        (":x:a+b", "x-a\\x2bb.scope", "system.slice/x-a\\x2bb.scope"),
    ],
)  # fmt: skip
def test_a_path_names_a_scope_and_its_cgroup(path: str, unit: str, cgroup: str) -> None:
    found = parse_unit(path, "box")
    assert (found.name, found.path()) == (unit, cgroup)


@pytest.mark.parametrize(
    "path",
    [
        "/docker/abc", "a:b", "a:b:c:d", "system.slice:x:", "system:x:y", "a--b.slice:x:y", "-a.slice:x:y",
        "a/b.slice:x:y", "system.slice:x:y.slice", f":x:{'y' * 250}",
    ],
)  # fmt: skip
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(Invalid, match=r"linux\.cgroupsPath"):
        parse_unit(path, "box")


def test_a_users_manager_has_its_scopes_below_its_own_cgroup() -> None:
    unit = parse_unit("", "box", user=True)
    assert unit == Unit("cove-box.scope", "user.slice")
    root = "/user.slice/user-1000.slice/user@1000.service"
    assert unit.path(root) == f"{root[1:]}/user.slice/cove-box.scope"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20))
def test_any_name_becomes_one_that_a_unit_may_have(name: str) -> None:
    assert all(character.isalnum() or character in ":-_.\\" for character in escape_name(name))


def test_slices_are_nested_by_their_dashes() -> None:
    assert slice_path("a-b-c.slice") == "a.slice/a-b.slice/a-b-c.slice"
    assert slice_path("-.slice") == ""


# --- properties ---------------------------------------------------------------------------------------


def test_limits_become_properties() -> None:
    asked = oci.Resources(
        cpu=oci.Cpu(shares=1024, quota=25_001, period=50_000, cpus="0-2,9", mems="0"),
        memory=oci.Memory(limit=1 << 26, swap=-1, reservation=1 << 25),
        pids=oci.Pids(limit=0),
        unified={"memory.high": "max", "memory.oom.group": "1", "pids.max": "7"},
    )
    assert {name: value for name, (_, value) in resource_properties(asked)} == {
        "CPUWeight": 100,
        "CPUQuotaPerSecUSec": 510_000,  # whole percents, rounded up
        "CPUQuotaPeriodUSec": 50_000,
        "AllowedCPUs": b"\x07\x02",
        "AllowedMemoryNodes": b"\x01",
        "MemoryMax": 1 << 26,
        "MemoryLow": 1 << 25,
        "MemorySwapMax": INFINITY,
        "TasksMax": 7,
        "MemoryHigh": INFINITY,
    }


def test_lifted_limits_are_infinite() -> None:
    lifted = oci.Resources(
        cpu=oci.Cpu(quota=-1, idle=1, shares=5), memory=oci.Memory(limit=-1), pids=oci.Pids(limit=-1)
    )
    assert {name: value for name, (_, value) in resource_properties(lifted)} == {
        "CPUWeight": 0,
        "CPUQuotaPerSecUSec": INFINITY,
        "CPUQuotaPeriodUSec": 100_000,
        "MemoryMax": INFINITY,
        "MemorySwapMax": INFINITY,
        "TasksMax": INFINITY,
    }


@pytest.mark.parametrize(
    ("file", "value"), [("cpu.max", "x"), ("memory.max", "1k"), ("cpuset.cpus", "a"), ("cpu.max", "5 0")]
)
def test_values_that_are_none_are_refused_by_name(file: str, value: str) -> None:
    with pytest.raises(Invalid):
        resource_properties(oci.Resources(unified={file: value}))


def devices(*rules: oci.DeviceRule) -> tuple[str, list[tuple[str, str]]]:
    properties = dict(scope_properties(Unit("x.scope", "y.slice"), 1, "", oci.Resources(devices=rules)))
    return properties["DevicePolicy"][1], properties["DeviceAllow"][1]


def test_device_rules_are_told_as_far_as_systemd_has_words() -> None:
    rule = oci.DeviceRule(allow=True, type="c", major=10, minor=229, access="rw")
    policy, allowed = devices(DENY_ALL, rule)
    assert policy == "strict"
    assert {
        ("/dev/char/10:229", "rw"),
        ("/dev/char/1:3", "rwm"),
        ("char-136", "rwm"),
        ("block-*", "m"),
    } <= set(allowed)
    assert devices(ALLOW_ALL) == ("auto", [])
    assert devices(ALLOW_ALL, oci.DeviceRule(allow=False, type="c", major=1, minor=3)) == ("auto", [])
    assert devices(DENY_ALL, oci.DeviceRule(allow=True, type="c", minor=3)) == ("auto", [])


# --- the conversation ---------------------------------------------------------------------------------

Answer = Callable[["Bus", Message], None]


class Bus(threading.Thread):
    """A bus with one client, where `answers` (by method) play systemd's part; `calls` are what it was asked."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.calls: list[tuple[str, Any]] = []
        self.answers: dict[str, deque[Answer]] = {}
        self.words: list[bytes] = []
        self.matches: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._serial = 0
        self.start()

    def expect(self, method: str, *answers: Answer) -> None:
        self.answers[method] = deque(answers)

    def run(self) -> None:
        self.sock, _ = self._listener.accept()
        with self._listener, self.sock:
            for answer in (b"DATA\r\n", b"OK 0123456789abcdef\r\n"):
                self.words.append(self.sock.recv(4096))
                self.sock.sendall(answer)
            parser = Parser()
            parser.add_data(self._after_begin())
            while True:
                while (message := parser.get_next_message()) is not None:
                    self._serve(message)
                data = self.sock.recv(65536)
                if not data:
                    return
                parser.add_data(data)

    def _after_begin(self) -> bytes:
        data = b""
        while b"BEGIN\r\n" not in data:
            data += self.sock.recv(4096)
        return data.partition(b"BEGIN\r\n")[2]

    def _serve(self, message: Message) -> None:
        method = message.header.fields[HeaderFields.member]
        if method == "Hello":
            self.send(new_method_return(message, "s", (":1.7",)))
            return
        if method == "AddMatch":
            self.matches.append(message.body[0])
            self.send(new_method_return(message))
            return
        self.calls.append((method, message.body))
        self.answers[method].popleft()(self, message)

    def send(self, message: Message) -> None:
        self._serial += 1
        message.header.endianness = Endianness.little
        self.sock.sendall(message.serialise(serial=self._serial))


def job(result: str, *, late: bool = False) -> Answer:
    """Answer with a job that has ended already, after another one's end; `late`: it ends after the answer."""

    def answer(bus: Bus, message: Message) -> None:
        manager = DBusAddress("/org/freedesktop/systemd1", interface="org.freedesktop.systemd1.Manager")
        reply = new_method_return(message, "o", ("/org/freedesktop/systemd1/job/5",))
        ends = [
            new_signal(
                manager,
                "JobRemoved",
                "uoss",
                (number, f"/org/freedesktop/systemd1/job/{number}", "x", result),
            )
            for number in (4, 5)
        ]
        for each in [reply, *ends] if late else [*ends, reply]:
            bus.send(each)

    return answer


def error(name: str, text: str = "no") -> Answer:
    return lambda bus, message: bus.send(new_error(message, f"org.freedesktop.systemd1.{name}", "s", (text,)))


def done(signature: str = "", body: tuple[Any, ...] = ()) -> Answer:
    return lambda bus, message: bus.send(new_method_return(message, signature or None, body))


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    path = tmp_path / "bus"
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={path}")
    made = Bus(path)
    yield made
    made.join(10)
    assert not made.is_alive()
    assert not any(made.answers.values()), "an answer was not asked for"


UNIT = Unit("cove-box.scope", "system.slice")
LIMITS = oci.Resources(pids=oci.Pids(limit=5))


@pytest.mark.parametrize("late", [False, True])
def test_a_scope_is_asked_for_and_its_job_awaited(bus: Bus, late: bool) -> None:
    bus.expect("StartTransientUnit", job("done", late=late))
    with Systemd.connect() as systemd:
        systemd.start_scope(UNIT, 77, "container box", LIMITS)
    assert bus.words == [b"\0AUTH EXTERNAL\r\n", b"DATA\r\n"]
    ((method, (name, mode, properties, others)),) = bus.calls
    assert (method, name, mode, others) == ("StartTransientUnit", "cove-box.scope", "fail", [])
    given = {key: value for key, (_, value) in properties}
    assert given["PIDs"] == [77]
    assert (given["Slice"], given["Delegate"], given["TasksMax"]) == ("system.slice", True, 5)
    assert dict(properties)["PIDs"][0] == "au"


def test_a_failed_scope_of_the_same_name_is_forgotten_first(bus: Bus) -> None:
    bus.expect("StartTransientUnit", error("UnitExists"), job("done"))
    bus.expect("ResetFailedUnit", done())
    with Systemd.connect() as systemd:
        systemd.start_scope(UNIT, 77, "box", LIMITS)
    assert [method for method, _ in bus.calls] == [
        "StartTransientUnit",
        "ResetFailedUnit",
        "StartTransientUnit",
    ]


def test_a_living_scope_of_the_same_name_is_a_conflict(bus: Bus) -> None:
    bus.expect("StartTransientUnit", error("UnitExists"), error("UnitExists", "Unit cove-box.scope exists"))
    bus.expect("ResetFailedUnit", error("UnitNotFailed"))
    with Systemd.connect() as systemd, pytest.raises(Conflict, match=r"Unit cove-box\.scope exists"):
        systemd.start_scope(UNIT, 77, "box", LIMITS)


def test_a_job_that_fails_is_told(bus: Bus) -> None:
    bus.expect("StartTransientUnit", job("failed"))
    with Systemd.connect() as systemd, pytest.raises(HostError, match="ended with 'failed': see journalctl"):
        systemd.start_scope(UNIT, 77, "box", LIMITS)


def test_stopping_waits_and_what_is_gone_is_fine(bus: Bus) -> None:
    bus.expect("StopUnit", job("done"), error("NoSuchUnit"))
    bus.expect("ResetFailedUnit", error("NoSuchUnit"))
    with Systemd.connect() as systemd:
        systemd.stop(UNIT)
        systemd.stop(UNIT)
    assert len(bus.matches) == 1 and "JobRemoved" in bus.matches[0]


def test_limits_of_a_living_scope_are_changed_until_it_ends(bus: Bus) -> None:
    bus.expect("SetUnitProperties", done(), error("NoSuchUnit"))
    bus.expect("AttachProcessesToUnit", done())
    with Systemd.connect() as systemd:
        systemd.set_limits(UNIT, LIMITS)
        systemd.attach(UNIT, 78, "below")
        with pytest.raises(NotFound):
            systemd.set_limits(UNIT, LIMITS)
        systemd.set_limits(UNIT, oci.Resources())
    assert bus.calls[0] == ("SetUnitProperties", ("cove-box.scope", True, [("TasksMax", ("t", 5))]))
    assert bus.calls[1] == ("AttachProcessesToUnit", ("cove-box.scope", "/below", [78]))


def test_the_scopes_cgroup_lies_below_the_managers(bus: Bus) -> None:
    bus.expect("Get", done("v", (("s", "/user.slice"),)))
    with Systemd.connect() as systemd:
        assert systemd.find_path(UNIT) == "user.slice/system.slice/cove-box.scope"
    assert bus.calls == [("Get", ("org.freedesktop.systemd1.Manager", "ControlGroup"))]


def test_a_bus_that_goes_away_is_told(bus: Bus) -> None:
    def hang_up(bus: Bus, message: Message) -> None:
        bus.sock.shutdown(socket.SHUT_RDWR)

    bus.expect("StartTransientUnit", hang_up)
    with Systemd.connect() as systemd, pytest.raises(HostError, match="StartTransientUnit: no answer"):
        systemd.start_scope(UNIT, 77, "box", LIMITS)


def test_a_host_without_systemd_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    with pytest.raises(Unavailable, match="use the cgroupfs driver"):
        Systemd.connect()


def test_a_bus_that_refuses_the_user_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "bus"))
        listener.listen()

        def refuse() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(100)
                sock.sendall(b"REJECTED EXTERNAL\r\n")

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        with pytest.raises(ValueError, match="refuses this user: 'REJECTED EXTERNAL'"):
            authenticate(str(tmp_path / "bus"))
        thread.join(10)
