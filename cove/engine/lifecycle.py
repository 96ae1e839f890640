"""Transitions of a container: start, exit, stop, pause, restart, remove.

One lock for each container guards its transitions, and nothing slow but the transition itself
happens under it: who waits for an exit waits outside, so that a kill never queues behind a stop.

Order that must hold at an exit: the process is gone (followers of the log finish), endpoints are
freed (a port can be taken again), the state is committed, the event goes out, waiters wake, and only
then is the container removed or started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import replace

import msgspec

from cove.engine.create import merge_resources, parse_signal, with_lifted_rates
from cove.engine.depends import wait_ready
from cove.engine.health import Health, is_checked, watch_health
from cove.engine.limitwatch import LimitWatch
from cove.engine.live import Background, Live, done_wait, wake
from cove.engine.notices import publish_run
from cove.engine.parts import Parts
from cove.engine.removal import remove_container
from cove.engine.restart import count_failure, forget_failures, plan_restart
from cove.engine.start import StartRefused, launch_container
from cove.engine.types import View, WaitCondition, WaitHandle, WaitResult
from cove.model.container import Container, Resources, RestartPolicy, State
from cove.model.errors import Conflict, CoveError, HostError, Invalid, NotFound, NotModified
from cove.runtime.cgroups_limits import check_resources
from cove.runtime.launch import Attach, ExitStatus, Task

log = logging.getLogger("cove.engine")

KILL_BOUND_S = 30.0  # a killed process that isn't gone by then hangs in the kernel


class Lifecycle:
    """The state machine; `lives` holds what isn't stored."""

    def __init__(self, parts: Parts, background: Background) -> None:
        self._parts = parts
        self._background = background
        self._limits = LimitWatch(parts, background)
        self._lives: dict[str, Live] = {}
        self._ending = (
            False  # containers are being stopped with the daemon: no policy acts before the next start
        )

    def live(self, container_id: str) -> Live:
        live = self._lives.get(container_id)
        if live is None:
            live = self._lives[container_id] = Live()
        return live

    def health_word(self, container_id: str) -> str:
        """A running container's health; "" without a check."""
        health = self.live(container_id).health
        return health.status if health is not None else ""

    def _view(self, container_id: str) -> View:
        view = self._parts.registry.get(container_id)
        if view is None:
            raise NotFound(f"No such container: {container_id}")
        return view

    # --- start --------------------------------------------------------------------------------

    async def start(self, container_id: str) -> None:
        """Start by hand. NotModified when it runs, Conflict when it's paused or being removed."""
        live = self.live(container_id)
        view = self._view(container_id)
        await self._start_pod(view)
        if view.container.spec.extension.depends_on and view.state.status in ("created", "exited"):
            await wait_ready(self._parts, view.container, self.health_word)
        async with live.lock:
            view = self._view(container_id)
            match view.state.status:
                case "running":
                    raise NotModified(f"container {view.container.name} is running already")
                case "paused":
                    raise Conflict("cannot start a paused container, try unpause instead")
                case "removing" | "dead":
                    raise Conflict("container is marked for removal and cannot be started")
                case _:
                    live.cancel_restart()
            try:
                await self._launch(view, live, restart_count=0, failures=0)
            except CoveError:
                if view.container.spec.auto_remove and not live.restarting:
                    await self._remove_locked(self._view(container_id), live, volumes=True)
                raise

    async def _start_pod(self, view: View) -> None:
        """Who is in a pod needs the container that holds it."""
        extension = view.container.spec.extension
        if extension.pod and not extension.infra:
            infra = view.container.spec.network_mode.removeprefix("container:")
            with contextlib.suppress(NotModified, NotFound):  # that it's gone, the start will say
                await self.start(infra)

    async def _launch(self, view: View, live: Live, *, restart_count: int, failures: int) -> None:
        """Start under the lock; a refused start is committed as the state's error before it is raised."""
        container = view.container
        pending, live.pending = live.pending, []
        try:
            begun_s = time.perf_counter()
            running = await launch_container(self._parts, container, pending)
            self._parts.meters.starts.observe(time.perf_counter() - begun_s)
        except StartRefused as refused:
            self._parts.meters.starts_failed += 1
            live.pending += pending
            live.drop_pending()
            await self._parts.registry.set_state(
                container.id,
                msgspec.structs.replace(
                    view.state,
                    status="created" if not view.state.has_been_started else "exited",
                    exit_code=refused.exit_code,
                    error=str(refused.cause),
                    failure=refused.failure,
                    wanted=False,
                    pid=0,
                    supervisor_pid=0,
                ),
            )
            wake(live.next_exit, WaitResult(refused.exit_code, str(refused.cause)))
            raise refused.cause from None
        except BaseException:
            live.pending += pending
            live.drop_pending()
            raise
        state = State(
            status="running",
            pid=running.task.pid,
            supervisor_pid=running.task.supervisor_pid,
            started_ns=time.time_ns(),
            finished_ns=view.state.finished_ns,
            restart_count=restart_count,
            failures_in_row=failures,
            wanted=True,
            has_been_started=True,
            endpoints=running.endpoints,
            ports=running.ports,
        )
        try:
            await self._parts.registry.set_state(container.id, state)
        except BaseException:
            await _send(running.task, 9)
            await running.task.wait()
            self._parts.volumes.mounts.release(container.id)
            await self._parts.leave_networks(container.id)
            raise
        self.adopt(container, live, running.task)
        publish_run(self._parts, container, running.endpoints, begun=True)
        self._parts.publish(container, "start")
        late, live.pending = live.pending, []
        if late:
            about = f"attaching clients to {container.short_id}"
            self._background.spawn(_hand_over(running.task, late), about)
        try:
            self._parts.refresh_hosts(container)
        except (CoveError, OSError) as error:  # it runs all the same; the files are others'
            log.warning("who is linked to container %s wasn't told of it: %s", container.short_id, error)

    def adopt(self, container: Container, live: Live, task: Task) -> None:
        """Watch a running task: a fresh one, or one that an earlier daemon left."""
        live.task = task
        self._parts.logs.follow(container, running=True)
        live.saw_oom = False
        live.ended.clear()
        live.settled.clear()
        about_orphan = f"ending the processes of {container.short_id}"
        task.when_orphaned(lambda: self._background.spawn(self._parts.kill_all(container), about_orphan))
        self._background.spawn(
            self._watch(container.id, live, task), f"watching container {container.short_id}"
        )
        self._limits.begin(container, live)
        if container.healthcheck is not None:
            self.begin_health(container, live, task)

    def begin_health(self, container: Container, live: Live, task: Task) -> None:
        about = f"health of {container.short_id}"

        def show(health: Health) -> None:
            live.health = health

        def on_unhealthy(health: Health) -> None:
            work = self._answer_unhealthy(container.id, live, task, was_healthy=health.was_healthy)
            self._background.spawn(work, about)

        if is_checked(self._parts, container):
            work = watch_health(self._parts, container.id, task, show, on_unhealthy)
            live.watchers.append(self._background.spawn(work, about))

    async def _answer_unhealthy(
        self, container_id: str, live: Live, task: Task, *, was_healthy: bool
    ) -> None:
        """End a run that became unhealthy, where that was asked for; committed first, so that its exit is
        answered as wanted even by another daemon."""
        async with live.lock:
            view = self._parts.registry.get(container_id)
            if view is None or live.task is not task or view.state.status != "running":
                return
            container, what = view.container, view.container.spec.extension.on_unhealthy
            if what == "none":
                return
            state = msgspec.structs.replace(
                view.state,
                unhealthy=what,
                wanted=view.state.wanted and what != "stop",
                failures_in_row=forget_failures(view.state, was_healthy=was_healthy),
            )
            await self._parts.registry.set_state(container_id, state)
            self._parts.publish(container, f"health_action: {what}")
            number = 9 if what == "kill" else parse_signal(container.stop_signal)
            await _send(task, number)
            self._parts.publish(container, "kill", signal=str(number))
        if not await _settled_within(live, KILL_BOUND_S if what == "kill" else self._stop_timeout(container)):
            await self._kill_and_settle(container, live)
        if what == "stop":
            self._parts.publish(container, "stop")

    # --- exit ---------------------------------------------------------------------------------

    async def _watch(self, container_id: str, live: Live, task: Task) -> None:
        status = await task.wait()
        self._parts.logs.ended(container_id)
        live.ended.set()
        health = live.health
        live.end_watchers()
        async with live.lock:
            try:
                await self._exited(container_id, live, status, health)
            finally:
                live.settled.set()

    async def _exited(self, container_id: str, live: Live, status: ExitStatus, health: Health | None) -> None:
        live.task = None
        # systemd may have taken the counter away before the supervisor read it
        if live.saw_oom and self._parts.cgroups.driver == "systemd":
            status = replace(status, oom_killed=True)
        view = self._view(container_id)
        container = view.container
        try:
            await self._parts.clean_after_exit(container, killed=bool(status.error))
        except (CoveError, OSError) as error:  # it has ended all the same, and who waits for that must know
            log.error("container %s has ended, but holds on: %s", container.short_id, error)
        endpoints = view.state.endpoints
        state = self._limits.ended(container, ended_state(view.state, status))
        if health is not None:
            state = msgspec.structs.replace(state, health=health.record())
        pause = None if self._ending else plan_restart(container.spec.restart, state)
        if pause is not None:
            state = msgspec.structs.replace(state, status="restarting")
        removed = container.spec.auto_remove and pause is None and not live.restarting
        if not removed:  # else its record goes below, before anybody's turn
            await self._parts.registry.set_state(container_id, state)
        if status.oom_killed and not live.saw_oom:  # the exit was seen before the kernel's event
            self._parts.publish(container, "oom")
        self._parts.publish(
            container,
            "die",
            exitCode=str(status.exit_code),
            execDuration=str(max(0, status.finished_ns - state.started_ns) // 10**9),
        )
        publish_run(self._parts, container, endpoints, begun=False)
        wake(live.next_exit, WaitResult(status.exit_code, status.error))
        if pause is not None:
            self._schedule_restart(container_id, live, pause)
        elif removed:
            await self._remove_locked(View(container, state), live, volumes=True)

    def _schedule_restart(self, container_id: str, live: Live, pause: float) -> None:
        def fire() -> None:
            live.restart_timer = None
            self._background.spawn(
                self._restart_after_exit(container_id, live), f"restarting {container_id[:12]}"
            )

        live.restart_timer = asyncio.get_running_loop().call_later(pause, fire)

    async def _restart_after_exit(self, container_id: str, live: Live) -> None:
        if live.resumed:
            await self._wait_resumed(container_id, live)
        resumed = self._parts.registry.get(container_id)
        if resumed is not None and resumed.state.status == "restarting":
            try:
                await self._start_pod(resumed)
            except CoveError as error:
                log.warning("the pod of container %s could not be started: %s", container_id[:12], error)
        async with live.lock:
            view = self._parts.registry.get(container_id)
            if view is None or view.state.status != "restarting":
                return
            state = view.state
            try:
                await self._launch(
                    view, live, restart_count=state.restart_count + 1, failures=state.failures_in_row
                )
            except Exception as error:
                told = None if isinstance(error, CoveError) else error
                log.warning(
                    "container %s could not be started again: %s", container_id[:12], error, exc_info=told
                )
                await self._retry_later(container_id, live, state)

    async def _wait_resumed(self, container_id: str, live: Live) -> None:
        """At a daemon's start, containers start in the order that they depend on each other; one that has waited
        in vain starts all the same: its restart policy is its owner's word, too."""
        view = self._parts.registry.get(container_id)
        live.resumed = False
        if view is not None and view.container.spec.extension.depends_on:
            try:
                await wait_ready(self._parts, view.container, self.health_word)
            except CoveError as error:
                log.warning("%s; it is started all the same", error)

    async def _retry_later(self, container_id: str, live: Live, before: State) -> None:
        """A restart that failed to launch counts as a failed run."""
        view = self._view(container_id)
        state = msgspec.structs.replace(
            view.state,
            status="restarting",
            wanted=True,
            exit_code=view.state.exit_code or 128,
            restart_count=before.restart_count + 1,
            failures_in_row=before.failures_in_row + 1,
        )
        pause = plan_restart(view.container.spec.restart, state)
        if pause is None:
            state = msgspec.structs.replace(state, status="exited")
        await self._parts.registry.set_state(container_id, state)
        if pause is not None:
            self._schedule_restart(container_id, live, pause)

    # --- signals ------------------------------------------------------------------------------

    async def kill(self, container_id: str, signal_name: str) -> None:
        """Send a signal; a SIGKILL is waited for. Conflict when the container doesn't run."""
        number = parse_signal(signal_name or "KILL")
        live = self.live(container_id)
        async with live.lock:
            view = self._view(container_id)
            if live.task is None:
                if view.state.status == "restarting" and number in (9, 15):
                    await self._end_restarting(view, live)
                    return
                raise Conflict(
                    f"cannot kill container: {container_id}: container {container_id} is not running"
                )
            if number in (9, parse_signal(view.container.stop_signal)):
                await self._unwant(view)
            await _send(live.task, number)
            if view.state.status == "paused" and number == 9:
                await self._thaw(view.container, live)
        self._parts.publish(view.container, "kill", signal=str(number))
        if number == 9:
            await _settled_within(live, KILL_BOUND_S)

    async def stop(self, container_id: str, *, timeout_s: float | None, signal_name: str) -> None:
        """The stop signal, then SIGKILL once `timeout_s` is over (-1: never). NotModified when it doesn't run."""
        live = self.live(container_id)
        async with live.lock:
            view = self._view(container_id)
            container = view.container
            number = parse_signal(signal_name or container.stop_signal)
            if live.task is None:
                if view.state.status == "restarting":
                    await self._end_restarting(view, live)
                    return
                raise NotModified(f"container {container.name} is not running")
            await self._unwant(view)
            await _send(live.task, number)
            if view.state.status == "paused":
                await self._thaw(container, live)
        self._parts.publish(container, "kill", signal=str(number))
        if timeout_s is None:
            timeout_s = self._stop_timeout(container)
        if not await _settled_within(live, timeout_s):
            await self._kill_and_settle(container, live)
        self._parts.publish(container, "stop")

    def _stop_timeout(self, container: Container) -> float:
        asked = container.spec.stop_timeout_s
        return float(asked) if asked is not None else self._parts.settings.default_stop_timeout_s

    async def restart(self, container_id: str, *, timeout_s: float | None, signal_name: str) -> None:
        """Stop when it runs, then start; a container with --rm isn't removed in between."""
        live = self.live(container_id)
        container = self._view(container_id).container
        live.restarting += 1
        try:
            with contextlib.suppress(NotModified):
                await self.stop(container_id, timeout_s=timeout_s, signal_name=signal_name)
        finally:
            live.restarting -= 1
        with contextlib.suppress(NotModified):
            await self.start(container_id)
        self._parts.publish(container, "restart")

    async def _unwant(self, view: View) -> None:
        """Commit that this end is asked for: no restart policy acts on it, even after a crash."""
        await self._parts.registry.set_state(
            view.container.id, msgspec.structs.replace(view.state, wanted=False)
        )

    async def _end_restarting(self, view: View, live: Live) -> None:
        live.cancel_restart()
        await self._parts.registry.set_state(
            view.container.id, msgspec.structs.replace(view.state, status="exited", wanted=False)
        )
        self._parts.publish(view.container, "stop")
        wake(live.next_exit, WaitResult(view.state.exit_code, view.state.error))

    async def _kill_and_settle(self, container: Container, live: Live) -> None:
        task = live.task
        if task is not None:
            await _send(task, 9)
            self._parts.publish(container, "kill", signal="9")
        if not await _settled_within(live, KILL_BOUND_S):
            await self._parts.kill_all(container)
            if not await _settled_within(live, KILL_BOUND_S):
                raise HostError(
                    f"container {container.short_id} did not end within {KILL_BOUND_S:.0f} s of SIGKILL: "
                    "a process of it hangs in the kernel; try again later"
                )

    # --- pause --------------------------------------------------------------------------------

    async def pause(self, container_id: str, *, held: bool = False) -> None:
        live = self.live(container_id)
        async with live.lock:
            view = self._view(container_id)
            container = view.container
            if view.state.status == "paused":
                raise Conflict(f"Container {container.id} is already paused")
            if live.task is None:
                raise Conflict(f"Container {container.id} is not running")
            await self._parts.freeze(container)
            await self._parts.registry.set_state(
                container.id, msgspec.structs.replace(view.state, status="paused", held=held)
            )
            self._parts.publish(container, "pause")

    async def unpause(self, container_id: str) -> None:
        live = self.live(container_id)
        async with live.lock:
            view = self._view(container_id)
            if view.state.status != "paused":
                raise Conflict(f"Container {view.container.id} is not paused")
            await self._thaw(view.container, live)

    async def _thaw(self, container: Container, live: Live) -> None:
        await self._parts.thaw(container)
        state = self._view(container.id).state
        if live.task is not None and state.status == "paused":
            await self._parts.registry.set_state(
                container.id, msgspec.structs.replace(state, status="running", held=False)
            )
        self._parts.publish(container, "unpause")

    # --- update -------------------------------------------------------------------------------

    async def update(
        self,
        container_id: str,
        given: Resources,
        restart: RestartPolicy | None,
        cleared: Collection[str] = (),
    ) -> Sequence[str]:
        """Change the limits that are given or cleared, and the restart policy; the record follows the kernel."""
        live = self.live(container_id)
        async with live.lock:
            view = self._view(container_id)
            container = view.container
            if view.state.status in ("removing", "dead"):
                raise Conflict("container is marked for removal and cannot be updated")
            if restart is not None and restart.name != "no" and container.spec.auto_remove:
                raise Invalid(
                    "Restart policy cannot be updated because AutoRemove is enabled for the container"
                )
            before = container.spec.resources
            merged = merge_resources(before, given, cleared)
            merged, warnings = check_resources(merged, self._parts.host.cgroups, update=True)
            if live.task is not None and (given != Resources() or cleared):
                await self._parts.update_limits(container, with_lifted_rates(before, merged))
            spec = msgspec.structs.replace(
                container.spec, resources=merged, restart=restart or container.spec.restart
            )
            changed = msgspec.structs.replace(container, spec=spec)
            await self._parts.registry.set_container(changed)
        self._parts.publish(changed, "update")
        return warnings

    # --- waiting ------------------------------------------------------------------------------

    def wait(self, container_id: str, condition: WaitCondition) -> WaitHandle:
        """Register a wait; it is complete before anything else happens to the container."""
        view = self._view(container_id)
        live = self.live(container_id)
        if condition == "removed":
            return live.wait_on(live.removed)
        running = view.state.status in ("running", "paused", "restarting")
        if condition == "not-running" and not running:
            return done_wait(WaitResult(view.state.exit_code, view.state.error))
        return live.wait_on(live.next_exit)

    # --- remove -------------------------------------------------------------------------------

    async def remove(self, container_id: str, *, force: bool, volumes: bool) -> None:
        """Remove; `force` kills first. Conflict when it runs and `force` isn't given."""
        live = self.live(container_id)
        while True:
            async with live.lock:
                view = self._view(container_id)
                if live.task is None:
                    if view.state.status == "restarting" and not force:
                        raise Conflict(_still_runs(view))
                    live.cancel_restart()
                    await self._remove_locked(view, live, volumes=volumes)
                    return
                if not force:
                    raise Conflict(_still_runs(view))
                await self._unwant(view)
                if view.state.status == "paused":
                    await _send(live.task, 9)
                    await self._thaw(view.container, live)
            await self._kill_and_settle(view.container, live)
            if self._parts.registry.get(container_id) is None:
                return  # --rm: its end removed it

    async def _remove_locked(self, view: View, live: Live, *, volumes: bool) -> None:
        container = view.container
        live.drop_pending()
        try:
            await remove_container(self._parts, container, volumes=volumes)
        finally:
            if self._parts.registry.get(container.id) is None:  # what failed after that is swept later
                self._lives.pop(container.id, None)
                self._parts.publish(container, "destroy")
                result = WaitResult(view.state.exit_code, view.state.error)
                wake(live.next_exit, result)
                wake(live.removed, result)

    # --- the daemon's own start and end -------------------------------------------------------

    def count_running(self) -> int:
        return sum(live.task is not None for live in self._lives.values())

    def resume_restart(self, container_id: str) -> None:
        """At a daemon's start: go on at once with a restart that was waiting."""
        live = self.live(container_id)
        live.resumed = True
        self._schedule_restart(container_id, live, 0.0)

    async def halt(self, container_id: str) -> None:
        """Kill a container and keep it: the daemon is being uninstalled."""
        live = self.live(container_id)
        async with live.lock:
            view = self._view(container_id)
            if live.task is None:
                if view.state.status == "restarting":
                    await self._end_restarting(view, live)
                return
            await self._unwant(view)
            if view.state.status == "paused":
                await _send(live.task, 9)
                await self._thaw(view.container, live)
        await self._kill_and_settle(view.container, live)

    async def stop_with_daemon(self, bound_s: float) -> None:
        """Stop every container, each within its own time and all within `bound_s` (negative: for ever). They stay
        wanted: the next daemon starts those that policies want."""
        self._ending = True
        running = []
        for container_id, live in self._lives.items():
            live.cancel_restart()
            if live.task is not None:
                running.append(container_id)
        await asyncio.gather(*(self._stop_with_daemon(container_id, bound_s) for container_id in running))

    async def _stop_with_daemon(self, container_id: str, bound_s: float) -> None:
        live = self.live(container_id)
        async with live.lock:
            view = self._parts.registry.get(container_id)
            if view is None or live.task is None:
                return
            await _send(live.task, parse_signal(view.container.stop_signal))
            if view.state.status == "paused":
                await self._thaw(view.container, live)
        asked = view.container.spec.stop_timeout_s
        time_s = float(asked) if asked is not None else self._parts.settings.default_stop_timeout_s
        if bound_s >= 0:
            time_s = min(time_s, bound_s) if time_s >= 0 else bound_s
        try:
            if not await _settled_within(live, time_s):
                await self._kill_and_settle(view.container, live)
        except CoveError as error:
            log.error("%s", error)

    def close(self) -> None:
        """Stop timers and hang up on pending clients; containers run on."""
        for live in self._lives.values():
            live.cancel_restart()
            live.drop_pending()


def ended_state(state: State, status: ExitStatus) -> State:
    """The state of a container that ran and has ended. Pure."""
    return msgspec.structs.replace(
        state,
        status="exited",
        pid=0,
        supervisor_pid=0,
        exit_code=status.exit_code,
        error=status.error,
        oom_killed=status.oom_killed,
        finished_ns=status.finished_ns,
        limited=(*state.limited, "memory")
        if status.oom_killed and "memory" not in state.limited
        else state.limited,
        failures_in_row=count_failure(state, status.finished_ns),
        endpoints=(),
        ports=(),
    )


def _still_runs(view: View) -> str:
    name = view.container.name
    if view.state.status == "paused":
        return (
            f'cannot remove container "{name}": container is paused and must be unpaused first: '
            "unpause it, or force remove"
        )
    what = "restarting" if view.state.status == "restarting" else "running"
    return (
        f'cannot remove container "{name}": container is {what}: '
        "stop the container before removing or force remove"
    )


async def _send(task: Task, number: int) -> None:
    """Signal a process that may have ended already: then its exit is about to be committed, as was wanted."""
    with contextlib.suppress(Conflict):
        await task.signal(number)


async def _hand_over(task: Task, late: Sequence[Attach]) -> None:
    """Serve the clients that attached while the start was under way."""
    for attach in late:
        try:
            await task.attach(attach)
        except CoveError:
            attach.sock.close()


async def _settled_within(live: Live, seconds: float) -> bool:
    """Whether the container's exit was committed in time; a negative bound waits for ever."""
    if seconds < 0:
        await live.settled.wait()
        return True
    try:
        async with asyncio.timeout(seconds):
            await live.settled.wait()
    except TimeoutError:
        return False
    return True
