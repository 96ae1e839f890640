"""What a starting daemon finds: adopt what runs, settle what ended, start what policies want.

Truth is on the host: a supervisor that answers is a running container, an `exit` file tells how one
ended while no daemon watched, neither means that it was killed (or that the machine went down). A
supervisor whose start was never acknowledged (the record doesn't say running) is ended: its caller
was told nothing, and its endpoints are in no record.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence, Set

import msgspec

from cove.engine.lifecycle import Lifecycle, ended_state
from cove.engine.notices import publish_run
from cove.engine.parts import Parts
from cove.engine.recreate import begin_recoveries, end_recoveries
from cove.engine.removal import remove_container, sweep_orphans
from cove.engine.restart import plan_restart, wants_start_after_boot
from cove.engine.types import View
from cove.model.container import State
from cove.model.errors import Conflict, CoveError, HostError
from cove.network.model import Alive
from cove.runtime.launch import ExitStatus, Task, end_unanswering, read_exit, reconnect

log = logging.getLogger("cove.engine")

_RUNS = ("running", "paused")


async def reconcile(parts: Parts, lifecycle: Lifecycle) -> list[str]:
    """Bring records and host together; returns the containers that restart policies want started.

    Trouble with one container is logged and recorded as its error; the others are served all the same.
    """
    await sweep_orphans(parts)
    unfinished = await begin_recoveries(parts)
    spared = {one.record.old for one in unfinished if one.wants_old}
    views = parts.registry.views()
    found = await asyncio.gather(*(_find_task(parts, view) for view in views))
    adopted = [(view, task) for view, (task, _) in zip(views, found, strict=True) if task is not None]
    ended = [(view, why) for view, (task, why) in zip(views, found, strict=True) if task is None]
    await _free_cgroups(parts, {parts.cgroup(view.container) for view, _ in adopted})
    await parts.networks.reconcile(
        {v.container.id: Alive(endpoints=v.state.endpoints, ports=v.state.ports) for v, _ in adopted}
    )
    parts.volumes.mounts.settle(view.container.id for view, _ in adopted)
    await _settle_secrets(parts, [view for view, _ in adopted])
    for view, task in adopted:
        await _adopt(parts, lifecycle, view, task)
        parts.naming.adopt(view, task)
    parts.naming.start()
    for view, _ in ended:
        parts.logs.follow(view.container, running=False)
    parts.logs.shipper.resume()
    starts = [
        view.container.id
        for view, why in ended
        if await _settle(parts, view, why, spared=view.container.id in spared)
    ]
    starts += await end_recoveries(parts, lifecycle, unfinished)
    return [i for i in dict.fromkeys(starts) if parts.registry.get(i) is not None]


async def _settle_secrets(parts: Parts, running: Sequence[View]) -> None:
    """Secrets stay in memory for running containers alone; one may have been updated and not been delivered."""
    await parts.secret_files.sweep(view.container.id for view in running)
    for view in running:
        try:
            await parts.secret_files.refresh(view.container, parts.settings.remap)
        except CoveError as error:
            log.error("%s", error)


async def _find_task(parts: Parts, view: View) -> tuple[Task | None, str]:
    """The container's task, if it runs and its start was acknowledged; else why its supervisor is gone."""
    state_dir = parts.settings.state_dir(view.container.id)
    try:
        task = await reconnect(state_dir)
    except HostError as error:
        log.error("container %s: %s", view.container.short_id, error)
        pid = end_unanswering(state_dir.name)
        return None, f"the container's supervisor (process {pid}) did not answer and was killed"
    if task is not None and view.state.status not in _RUNS:
        with contextlib.suppress(Conflict):
            await task.signal(9)
        await task.wait()
        task = None
    return task, "the container's supervisor was gone when the daemon started, and its processes with it"


async def _free_cgroups(parts: Parts, running: Set[str]) -> None:
    """No cgroup but those of running containers; what lives in one whose supervisor is gone is killed."""
    for path in parts.cgroups.list_containers():
        if path not in running:
            await _free_cgroup(parts, path)


async def _free_cgroup(parts: Parts, path: str) -> None:
    try:
        await parts.cgroups.kill(path)
        await parts.cgroups.remove(path)
    except CoveError as error:
        log.error("a cgroup without a container stays: %s", error)


async def _adopt(parts: Parts, lifecycle: Lifecycle, view: View, task: Task) -> None:
    frozen = parts.is_frozen(view.container)
    status = "paused" if frozen else "running"
    if status != view.state.status:  # the daemon died between the freezer and the record
        if view.state.status == "running" and frozen:
            try:
                await parts.thaw(view.container)
            except CoveError as error:
                log.error("container %s stays frozen: %s", view.container.short_id, error)
        elif view.state.status == "paused":
            await parts.registry.set_state(
                view.container.id, msgspec.structs.replace(view.state, status="running")
            )
    lifecycle.adopt(view.container, lifecycle.live(view.container.id), task)
    if view.state.held and frozen:  # the daemon died during a commit
        try:
            await lifecycle.unpause(view.container.id)
        except CoveError as error:
            log.error("container %s stays paused: %s", view.container.short_id, error)


async def _settle(parts: Parts, view: View, why_gone: str, *, spared: bool = False) -> bool:
    """Record how a container ended while nobody watched; whether it's to be started again. --rm leaves alone who is
    `spared`."""
    container, state = view
    removed = container.spec.auto_remove and not spared
    ran = state.status in _RUNS
    if ran:
        status = read_exit(parts.settings.state_dir(container.id)) or _killed(why_gone)
        try:
            await parts.clean_after_exit(container, killed=bool(status.error))
        except (CoveError, OSError) as error:  # the other containers must not suffer from it
            log.error("container %s has ended, but holds on: %s", container.short_id, error)
        endpoints = state.endpoints
        state = ended_state(state, status)
        if not removed:
            await parts.registry.set_state(container.id, state)
        parts.publish(
            container,
            "die",
            exitCode=str(status.exit_code),
            execDuration=str(max(0, status.finished_ns - state.started_ns) // 10**9),
        )
        publish_run(parts, container, endpoints, begun=False)
        if removed:
            await _remove(parts, View(container, state))
            return False
        if plan_restart(container.spec.restart, state) is not None:
            await _mark_restarting(parts, container.id, state)
            return True
    elif state.status == "removing":
        await _remove(parts, view)
        return False
    elif state.status == "restarting":
        return True
    elif state.has_been_started and removed:
        await _remove(parts, view)
        return False
    if wants_start_after_boot(container.spec.restart, state):
        await _mark_restarting(parts, container.id, state)
        return True
    return False


def _killed(why: str) -> ExitStatus:
    return ExitStatus(exit_code=137, oom_killed=False, finished_ns=time.time_ns(), error=why)


async def _mark_restarting(parts: Parts, container_id: str, state: State) -> None:
    await parts.registry.set_state(
        container_id, msgspec.structs.replace(state, status="restarting", wanted=True)
    )


async def _remove(parts: Parts, view: View) -> None:
    try:
        await remove_container(parts, view.container, volumes=True)
        parts.publish(view.container, "destroy")
    except CoveError as error:
        log.warning("container %s could not be removed: %s", view.container.short_id, error)
