"""Health checks: a probe of the container at intervals, and what its results say.

Deciding (`after_probe`) is pure; the loop and the probe are the doing. A probe is a command run in the container,
or a connection made in its network namespace (`probes.py`). The state of a running container lives in memory: a
new daemon starts over with `starting`, as Docker's does. Rules are Docker's (Dockerfile reference, HEALTHCHECK;
moby, daemon/health.go).

    starting ──success──> healthy ──`retries` failures in a row──> unhealthy ──success──> healthy
    (failures within the start period don't count until the first success)
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from cove.engine import probes
from cove.engine.parts import Parts
from cove.engine.start import StartRefused, launch_exec
from cove.engine.types import ExecSpec
from cove.model.container import Container, HealthCheck, HealthRecord, ProbeResult
from cove.model.errors import CoveError
from cove.runtime.launch import Attach, Task

KEPT_RESULTS = 5
MAX_OUTPUT = 4096
_S = 10**9
DEFAULT_INTERVAL_NS = 30 * _S
DEFAULT_TIMEOUT_NS = 30 * _S
DEFAULT_START_INTERVAL_NS = 5 * _S
DEFAULT_RETRIES = 3
_SHELL = ("/bin/sh", "-c")

HealthStatus = Literal["starting", "healthy", "unhealthy"]


@dataclass(slots=True)
class Health:
    """What is known of a running container's health."""

    status: HealthStatus = "starting"
    failing_streak: int = 0
    results: deque[ProbeResult] = field(default_factory=lambda: deque(maxlen=KEPT_RESULTS))
    was_healthy: bool = False  # in this run

    def record(self) -> HealthRecord:
        """What is kept once the run has ended."""
        return HealthRecord(failing_streak=self.failing_streak, results=tuple(self.results))


def healthcheck_json(health: HealthCheck) -> dict[str, Any]:
    """What was given, as Docker's API and image configurations have it: a zero is left out."""
    found = {
        "Test": list(health.test),
        "Interval": health.interval_ns,
        "Timeout": health.timeout_ns,
        "StartPeriod": health.start_period_ns,
        "StartInterval": health.start_interval_ns,
        "Retries": health.retries,
    }
    return {name: value for name, value in found.items() if value}


def ended_health(record: HealthRecord) -> Health:
    """The health of a container that doesn't run: unhealthy, whatever it was, as Docker has it."""
    return Health(
        status="unhealthy",
        failing_streak=record.failing_streak,
        results=deque(record.results, maxlen=KEPT_RESULTS),
    )


def probe_args(check: HealthCheck | None, shell: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The command of a probe; () when there is none to run."""
    test = check.test if check is not None else ()
    if len(test) < 2 or test[0] == "NONE":
        return ()
    if test[0] == "CMD-SHELL":
        return (*(shell or _SHELL), test[1])
    return test[1:] if test[0] == "CMD" else ()


def after_probe(health: Health, result: ProbeResult, check: HealthCheck, since_start_ns: int) -> None:
    """Take a result in: status and streak as they are from now on."""
    health.results.append(result)
    if result.exit_code == 0:
        health.failing_streak = 0
        health.status = "healthy"
        health.was_healthy = True
        return
    if health.status == "starting" and since_start_ns < check.start_period_ns:
        return
    health.failing_streak += 1
    if health.failing_streak >= (check.retries or DEFAULT_RETRIES):
        health.status = "unhealthy"


def pause_ns(health: Health, check: HealthCheck, since_start_ns: int) -> int:
    """How long until the next probe: shorter within the start period, as long as it's starting."""
    if health.status == "starting" and since_start_ns < check.start_period_ns:
        return check.start_interval_ns or DEFAULT_START_INTERVAL_NS
    return check.interval_ns or DEFAULT_INTERVAL_NS


async def watch_health(
    parts: Parts,
    container_id: str,
    task: Task,
    show: Callable[[Health], None],
    on_unhealthy: Callable[[Health], None],
) -> None:
    """Probe until cancelled; `show` is given the state that later probes change in place, `on_unhealthy` is
    called when it has become unhealthy. The record is read at each turn: an update may have changed the check."""
    health = Health()
    started_ns = time.time_ns()
    while True:
        view = parts.registry.get(container_id)
        check = view.container.healthcheck if view is not None else None
        if view is None or check is None or not is_checked(parts, view.container):
            return
        show(health)
        await asyncio.sleep(pause_ns(health, check, time.time_ns() - started_ns) / _S)
        view = parts.registry.get(container_id)
        if view is None or view.state.status != "running" or view.container.healthcheck is None:
            continue  # paused: a probe would hang
        check = view.container.healthcheck
        before = health.status
        result = await run_probe(parts, view.container, task, check)
        parts.meters.health_checks += 1
        parts.meters.health_checks_failed += result.exit_code != 0
        after_probe(health, result, check, result.started_ns - started_ns)
        if health.status != before:
            parts.publish(view.container, f"health_status: {health.status}")
            if health.status == "unhealthy":
                on_unhealthy(health)


def is_checked(parts: Parts, container: Container) -> bool:
    """Whether there is anything to probe."""
    check = container.healthcheck
    return check is not None and (check.probe is not None or bool(_args(parts, container, check)))


def _args(parts: Parts, container: Container, check: HealthCheck) -> tuple[str, ...]:
    return probe_args(check, parts.images.image_by_id(container.image_id).config.shell)


async def run_probe(parts: Parts, container: Container, task: Task, check: HealthCheck) -> ProbeResult:
    """Run one probe to its end or its timeout."""
    started_ns = time.time_ns()
    timeout_s = (check.timeout_ns or DEFAULT_TIMEOUT_NS) / _S
    try:
        async with asyncio.timeout(timeout_s):
            if check.probe is not None:
                exit_code, output = await probes.run_probe(parts.prober, task.pidfd, check.probe)
            else:
                exit_code, output = await _run_command(
                    parts, container.id, task, _args(parts, container, check)
                )
    except TimeoutError:
        exit_code, output = -1, f"Health check exceeded timeout ({timeout_s:g}s)"
    except StartRefused as refused:
        exit_code, output = -1, str(refused.cause)
    except CoveError as error:
        exit_code, output = -1, str(error)
    return ProbeResult(started_ns=started_ns, ended_ns=time.time_ns(), exit_code=exit_code, output=output)


async def _run_command(parts: Parts, container_id: str, task: Task, args: tuple[str, ...]) -> tuple[int, str]:
    """The exit code and the output of a command; it's killed when this is cancelled."""
    directory = parts.settings.exec_dir("health-" + secrets.token_hex(16))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    probe: Task | None = None
    try:
        view = parts.registry.find(container_id)
        spec = ExecSpec(args=args, attach_stdout=True, attach_stderr=True)
        client = Attach(sock=theirs)
        probe = await launch_exec(
            parts, view, task, spec, directory, [client], keep_stdin=False, rows=0, cols=0
        )
        output = await _read_output(ours)
        return (await probe.wait()).exit_code, output
    finally:
        ours.close()
        theirs.close()
        if probe is not None and probe.exited is None:
            await _end(probe)
        shutil.rmtree(directory, ignore_errors=True)


async def _read_output(sock: socket.socket) -> str:
    """All output, of which the first MAX_OUTPUT bytes are kept, and "..." where there was more."""
    loop = asyncio.get_running_loop()
    kept = bytearray()
    more = False
    while piece := await loop.sock_recv(sock, 65536):
        more = more or len(kept) + len(piece) > MAX_OUTPUT
        kept += piece[: MAX_OUTPUT - len(kept)]
    return kept.decode("utf-8", "replace") + ("..." if more else "")


async def _end(probe: Task) -> None:
    try:
        await probe.signal(9)
    except CoveError:
        return  # it has just ended
    await probe.wait()
