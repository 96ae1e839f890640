"""Transitions that meet each other: an exit and a stop, an attach and a start, a failure while all is cleaned up.

The rooms below are fakes; registry, store and bus are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from cove.engine import lifecycle
from cove.engine.lifecycle import Lifecycle
from cove.engine.live import MAX_PENDING, Background, Live
from cove.engine.logs import ContainerLogs
from cove.engine.notices import run_events
from cove.engine.parts import Parts
from cove.engine.registry import Registry
from cove.engine.start import Running, StartRefused
from cove.engine.types import Settings
from cove.events.bus import Bus
from cove.metrics.meters import Meters
from cove.model.container import (
    Container,
    ContainerSpec,
    Endpoint,
    MountPoint,
    RestartPolicy,
    State,
)
from cove.model.errors import Conflict, HostError, Invalid
from cove.model.objects import Network
from cove.runtime.launch import Attach, ExitStatus
from cove.store.sqlite import SqliteStore

ID = "aa" + "0" * 62
BOUND_S = 30.0


class FakeTask:
    """A process that ends when the test says so."""

    pid, supervisor_pid = 10, 11
    on_orphaned: Callable[[], object] | None = None

    def __init__(self) -> None:
        self.status: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self.reaped = False
        self.attached: list[Attach] = []
        self.has_attached = asyncio.Event()

    def when_orphaned(self, callback: Callable[[], object]) -> None:
        pass

    async def wait(self) -> ExitStatus:
        return await asyncio.shield(self.status)

    async def signal(self, signo: int) -> None:
        if self.reaped:
            raise Conflict("process 10 has ended already")
        self.end(128 + signo)

    def end(self, code: int, *, oom: bool = False) -> None:
        self.status.set_result(ExitStatus(exit_code=code, oom_killed=oom, finished_ns=1))

    async def attach(self, attach: Attach) -> None:
        self.attached.append(attach)
        self.has_attached.set()


class FakeParts:
    """What the lifecycle calls of the rooms below."""

    publish = Parts.publish
    cleaning: Callable[[], Awaitable[None]] | None = None

    def __init__(self, root: Path, registry: Registry) -> None:
        self.settings = Settings(data_root=root, run_dir=root, native=root)
        self.registry = registry
        self.logs = ContainerLogs(self.settings)
        self.meters = Meters()
        self.events = Bus()
        self.releasing: Callable[[], None] = lambda: None
        self.layer_usage: Callable[[Container], None] = lambda container: None
        self.networks = SimpleNamespace(list_networks=list)
        self.leave_networks = self._nothing
        self.trash = SimpleNamespace(discard=lambda path: None)
        self.images = SimpleNamespace(release=self._release)
        self.image_users = self.forget_execs = lambda *arguments: None
        self.refreshing: Callable[[], None] = lambda: None
        self.cleaned = 0

    async def _nothing(self, *arguments: object) -> None:
        pass

    async def _release(self, users: object) -> None:
        self.releasing()

    async def clean_after_exit(self, container: Container, *, killed: bool = False) -> None:
        self.cleaned += 1
        if self.cleaning is not None:
            await self.cleaning()

    def refresh_hosts(self, container: Container) -> None:
        self.refreshing()

    def actions(self) -> list[str]:
        return [event.action for event in self.events.recent]


class Room:
    """A lifecycle with one container; `launching` is what a start does."""

    def __init__(self, parts: FakeParts, background: Background) -> None:
        self.parts = parts
        self.lifecycle = Lifecycle(parts, background)  # type: ignore[arg-type]
        self.tasks: list[FakeTask] = []
        self.launching: Callable[[], Awaitable[None]] | None = None

    async def launch(self, parts: object, container: Container, attaches: Sequence[Attach]) -> Running:
        if self.launching is not None:
            await self.launching()
        self.tasks.append(FakeTask())
        return Running(task=self.tasks[-1], endpoints=(), ports=())  # type: ignore[arg-type]

    @property
    def live(self) -> Live:
        return self.lifecycle.live(ID)

    def state(self) -> State:
        view = self.parts.registry.get(ID)
        assert view is not None
        return view.state

    async def settled(self) -> None:
        async with asyncio.timeout(BOUND_S):
            await self.live.settled.wait()


@pytest.fixture
def in_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run(work: Callable[[Room], Coroutine[Any, Any, None]], **spec: Any) -> None:
        async def inside() -> None:
            store = await SqliteStore.open(tmp_path / "state.db")
            background = Background()
            try:
                room = Room(FakeParts(tmp_path, await Registry.open(store)), background)
                monkeypatch.setattr(lifecycle, "launch_container", room.launch)
                await room.parts.registry.insert(container(**spec), State())
                async with asyncio.timeout(BOUND_S):
                    await work(room)
                room.lifecycle.close()
            finally:
                await background.close()
                await store.close()

        asyncio.run(inside())

    return run


def container(**spec: Any) -> Container:
    return Container(
        id=ID,
        name="web",
        created_ns=1,
        image_id="sha256:1",
        image_name="x",
        spec=ContainerSpec(image="x", **spec),
        args=("true",),
    )


@pytest.mark.parametrize("how", ["stop", "kill", "remove"])
def test_a_process_that_has_just_ended_is_no_conflict(in_room: Callable[..., None], how: str) -> None:
    async def work(room: Room) -> None:
        await room.lifecycle.start(ID)
        room.tasks[0].reaped = True  # its supervisor is still busy with the output
        match how:
            case "stop":
                call = room.lifecycle.stop(ID, timeout_s=-1, signal_name="")
            case "kill":
                call = room.lifecycle.kill(ID, "KILL")
            case _:
                call = room.lifecycle.remove(ID, force=True, volumes=False)
        asyncio.get_running_loop().call_soon(room.tasks[0].end, 3)
        await call
        if how == "remove":
            assert room.parts.registry.get(ID) is None
        else:
            assert (room.state().status, room.state().exit_code) == ("exited", 3)

    in_room(work)


def test_what_fails_after_an_exit_hides_it_from_nobody(in_room: Callable[..., None]) -> None:
    async def busy() -> None:
        raise HostError("cgroup x is still busy")

    async def work(room: Room) -> None:
        room.parts.cleaning = busy
        await room.lifecycle.start(ID)
        handle = room.lifecycle.wait(ID, "next-exit")
        room.tasks[0].end(7)
        assert (await handle.result()).exit_code == 7
        assert (room.state().status, room.state().pid) == ("exited", 0)

    in_room(work)


def test_what_fails_after_a_removal_leaves_no_waiter_asleep(in_room: Callable[..., None]) -> None:
    def fail() -> None:
        raise HostError("disk full")

    async def work(room: Room) -> None:
        room.parts.releasing = fail
        handle = room.lifecycle.wait(ID, "removed")
        with pytest.raises(HostError):
            await room.lifecycle.remove(ID, force=False, volumes=False)
        assert (await handle.result()).exit_code == 0
        assert room.parts.actions() == ["destroy"]

    in_room(work)


def test_a_stop_between_restarts_wakes_who_waits(in_room: Callable[..., None]) -> None:
    async def work(room: Room) -> None:
        await room.lifecycle.start(ID)
        first = room.lifecycle.wait(ID, "next-exit")
        room.live.cancel_restart()
        room.tasks[0].end(4)
        await first.result()
        assert room.state().status == "restarting"
        second = room.lifecycle.wait(ID, "not-running")
        await room.lifecycle.stop(ID, timeout_s=None, signal_name="")
        assert (await second.result()).exit_code == 4
        assert room.state().status == "exited"

    in_room(work, restart=RestartPolicy(name="always"))


def test_a_client_that_attaches_during_a_start_is_served(in_room: Callable[..., None]) -> None:
    async def work(room: Room) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            attach = Attach(sock=theirs)

            async def attach_meanwhile() -> None:
                room.live.add_pending(attach)

            room.launching = attach_meanwhile
            await room.lifecycle.start(ID)
            await room.tasks[0].has_attached.wait()
            assert room.tasks[0].attached == [attach]
            assert room.live.pending == []
            room.tasks[0].end(0)
            await room.settled()

    in_room(work)


def test_a_refused_start_hangs_up_on_all_clients(in_room: Callable[..., None]) -> None:
    async def work(room: Room) -> None:
        pairs = [socket.socketpair() for _ in range(2)]
        with contextlib.ExitStack() as closing:
            for pair in pairs:
                closing.enter_context(pair[0])
                closing.enter_context(pair[1])
            room.live.add_pending(Attach(sock=pairs[0][1]))

            async def refuse() -> None:
                room.live.add_pending(Attach(sock=pairs[1][1]))
                raise StartRefused(127, Invalid("nope"))

            room.launching = refuse
            handle = room.lifecycle.wait(ID, "removed")
            with pytest.raises(Invalid, match="nope"):
                await room.lifecycle.start(ID)
            assert [pair[0].recv(1) for pair in pairs] == [b"", b""]
            assert (await handle.result()).exit_code == 127

    in_room(work, auto_remove=True)


def test_a_restart_by_hand_does_not_remove_a_container_with_rm(in_room: Callable[..., None]) -> None:
    async def work(room: Room) -> None:
        await room.lifecycle.start(ID)
        await room.lifecycle.restart(ID, timeout_s=None, signal_name="")
        assert (room.state().status, len(room.tasks)) == ("running", 2)
        handle = room.lifecycle.wait(ID, "removed")
        room.tasks[1].end(5)
        assert (await handle.result()).exit_code == 5
        assert room.parts.registry.get(ID) is None

    in_room(work, auto_remove=True)


def test_a_start_succeeds_though_linked_containers_cannot_be_told(in_room: Callable[..., None]) -> None:
    def fail() -> None:
        raise HostError("disk full")

    async def work(room: Room) -> None:
        room.parts.refreshing = fail
        await room.lifecycle.start(ID)
        assert room.state().status == "running"
        assert room.parts.actions() == ["start"]
        room.tasks[0].end(0)
        await room.settled()

    in_room(work, auto_remove=True)


def test_an_out_of_memory_kill_is_told_before_the_end(in_room: Callable[..., None]) -> None:
    async def work(room: Room) -> None:
        await room.lifecycle.start(ID)
        handle = room.lifecycle.wait(ID, "next-exit")
        room.tasks[0].end(137, oom=True)
        await handle.result()
        assert room.parts.actions() == ["start", "oom", "die"]

    in_room(work)


def test_clients_that_left_before_the_start_make_room_for_others() -> None:
    live = Live()
    pairs = [socket.socketpair() for _ in range(MAX_PENDING)]
    try:
        for _, theirs in pairs:
            live.add_pending(Attach(sock=theirs))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            with pytest.raises(Conflict, match=f"{MAX_PENDING} clients are attached"):
                live.add_pending(Attach(sock=theirs))
            pairs[0][0].shutdown(socket.SHUT_WR)  # has no more input: still wants output
            pairs[1][0].close()
            live.add_pending(Attach(sock=theirs))
            assert len(live.pending) == MAX_PENDING
            assert pairs[0][1].fileno() >= 0
            assert pairs[1][1].fileno() == -1
    finally:
        live.drop_pending()
        for ours, _ in pairs:
            ours.close()


def test_a_volume_is_in_use_from_a_create_on_also_one_in_memory(in_room: Callable[..., None]) -> None:
    async def work(room: Room) -> None:
        parts: Any = room.parts
        parts.claims = {"creating": {"data"}}
        point = MountPoint(kind="tmpfs", target="/x", name="memory")
        await room.parts.registry.set_container(msgspec.structs.replace(container(), mounts=(point,)))
        assert Parts.volume_users(parts, "data") == ["creating"]
        assert Parts.volume_users(parts, "memory") == [ID]
        assert Parts.volume_users(parts, "other") == []

    in_room(work)


def test_networks_and_volumes_are_told_in_dockers_order() -> None:
    bridge = Network(id="b1", name="bridge", driver="bridge", created_ns=1)
    none = Network(id="n1", name="none", driver="none", created_ns=1)
    volume = MountPoint(kind="volume", target="/data", name="data", driver="local", readonly=True)
    box = msgspec.structs.replace(container(), mounts=(MountPoint(kind="bind", target="/b"), volume))
    endpoint = Endpoint(network_id="b1", network_name="bridge")
    begun = run_events(box, [endpoint], [bridge, none], begun=True, now_ns=5)
    assert [(e.kind, e.action, e.actor_id) for e in begun] == [
        ("network", "connect", "b1"),
        ("volume", "mount", "data"),
    ]
    assert begun[0].attributes == {"container": ID, "name": "bridge", "type": "bridge"}
    assert begun[1].attributes["read/write"] == "false"
    alone = msgspec.structs.replace(box, spec=ContainerSpec(image="x", network_mode="none"))
    ended = run_events(alone, [], [bridge, none], begun=False, now_ns=5)
    assert [(e.action, e.attributes.get("type", "")) for e in ended] == [
        ("disconnect", "null"),
        ("unmount", ""),
    ]
