"""GET /metrics on an address of its own: the daemon's counters in Prometheus' text format.

Names are dockerd's where it has them (`engine_daemon_…`), Cove's own begin with `cove_`. `?containers=1` adds what each
running container uses. Nothing else is served there, and nobody is asked who they are: bind it to loopback or a
network of trusted hosts.
"""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cove import __version__
from cove.api.http import TEXT, Request, Response, error_response
from cove.api.listener import HttpServer
from cove.metrics.exposition import CONTENT_TYPE, Page
from cove.model.errors import CoveError

if TYPE_CHECKING:
    from cove.engine.engine import Engine
    from cove.engine.types import ContainerStats

LAG_PERIOD_S = 1.0


class MetricsServer(HttpServer):
    """Serves one engine's metrics; watches the event loop's lag while it is open."""

    def __init__(self, engine: Engine, count_connections: Callable[[], int]) -> None:
        super().__init__(self._serve)
        self._engine = engine
        self._count_connections = count_connections
        self._timer: asyncio.TimerHandle | None = None
        self._expected_s = 0.0
        self._watch_lag()

    def _watch_lag(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        if self._expected_s:
            self._engine.meters.lag(max(0.0, now_s - self._expected_s))
        self._expected_s = now_s + LAG_PERIOD_S
        self._timer = loop.call_at(self._expected_s, self._watch_lag)

    async def close(self, grace_s: float = 1.0) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await super().close(grace_s)

    async def _serve(self, request: Request) -> Response:
        if request.path != "/metrics":
            return error_response(404, "page not found: the metrics are at /metrics")
        if request.method not in ("GET", "HEAD"):
            return Response(405, b"", TEXT, {"Allow": "GET, HEAD"})
        try:
            containers = request.query.flag("containers")
        except CoveError as error:
            return error_response(400, str(error))
        page = Page()
        _daemon(page, self._engine, self._count_connections())
        _work(page, self._engine)
        _process(page)
        if containers:
            await _containers(page, self._engine)
        return Response(200, page.render(), CONTENT_TYPE)


def _daemon(page: Page, engine: Engine, connections: int) -> None:
    """What dockerd tells by the same names."""
    info = engine.info()
    page.family(
        "engine_daemon_engine_info",
        "gauge",
        "The information related to the engine and the OS it is running on",
    )
    labels = {
        "architecture": info.architecture,
        "commit": "",
        "daemon_id": info.id,
        "graphdriver": "overlay2",
        "kernel": info.kernel,
        "os": info.operating_system,
        "os_type": "linux",
        "os_version": info.os_version,
        "version": __version__,
    }
    page.sample("engine_daemon_engine_info", 1, labels)
    page.single("engine_daemon_engine_cpus_cpus", "gauge", "The number of cpus of the host", info.cpus)
    page.single("engine_daemon_engine_memory_bytes", "gauge", "The host's memory in bytes", info.memory_bytes)
    name = "engine_daemon_container_states_containers"
    page.family(name, "gauge", "The count of containers in various states")
    for state, count in (("paused", info.paused), ("running", info.running), ("stopped", info.stopped)):
        page.sample(name, count, {"state": state})
    page.single(
        "engine_daemon_events_total", "counter", "The number of events logged", engine.events.published
    )
    listeners = len(engine.events.streams)
    page.single(
        "engine_daemon_events_subscribers_total", "gauge", "The current subscribers to events", listeners
    )
    page.single("cove_images", "gauge", "Images, those without a name too", info.images)
    page.single("cove_networks", "gauge", "Networks", len(engine.networks.list_networks()))
    page.single("cove_volumes", "gauge", "Volumes", len(engine.volumes.list()))
    page.single(
        "cove_supervisors",
        "gauge",
        "Supervisors of containers and execs that run",
        engine.count_supervisors(),
    )
    page.single("cove_store_revision", "counter", "Changes committed to the store", engine.store_revision)
    page.single("cove_api_connections", "gauge", "Connections of clients to the API", connections)


def _work(page: Page, engine: Engine) -> None:
    """What was done since the start."""
    meters = engine.meters
    name = "engine_daemon_container_actions_seconds"
    page.family(name, "histogram", "The number of seconds it takes to process each container action")
    for action, found in meters.actions.items():
        page.histogram(name, found, {"action": action})
    page.single(
        "engine_daemon_health_checks_total", "counter", "The number of health checks", meters.health_checks
    )
    page.single(
        "engine_daemon_health_checks_failed_total",
        "counter",
        "Health checks that failed",
        meters.health_checks_failed,
    )
    page.family(
        "cove_container_start_seconds", "histogram", "Time from a start's decision to the running process"
    )
    page.histogram("cove_container_start_seconds", meters.starts)
    page.single(
        "cove_container_starts_failed_total", "counter", "Starts that were refused", meters.starts_failed
    )
    page.family("cove_exec_start_seconds", "histogram", "The same of execs")
    page.histogram("cove_exec_start_seconds", meters.exec_starts)
    page.single(
        "cove_exec_starts_failed_total", "counter", "Execs that were refused", meters.exec_starts_failed
    )
    logs = engine.log_totals()
    page.single("cove_log_messages_sent_total", "counter", "Messages that receivers have taken", logs.sent)
    page.single(
        "cove_log_lost_bytes_total", "counter", "Bytes rotated away before they were sent", logs.lost_bytes
    )
    page.single("cove_log_receivers_away", "gauge", "Logs whose receiver takes nothing", logs.away)
    page.family("cove_api_requests_total", "counter", "Answered requests; 499: the client had left")
    for (method, route, status), count in meters.requests.items():
        page.sample("cove_api_requests_total", count, {"method": method, "route": route, "code": str(status)})
    page.family(
        "cove_api_request_seconds",
        "summary",
        "Time to the end of the answer; streams last as their clients do",
    )
    for (method, route), (total, number) in meters.request_seconds.items():
        page.sample("cove_api_request_seconds_sum", total, {"method": method, "route": route})
        page.sample("cove_api_request_seconds_count", int(number), {"method": method, "route": route})
    page.family("cove_loop_lag_seconds", "histogram", "How late the event loop was, looked at once a second")
    page.histogram("cove_loop_lag_seconds", meters.loop_lag)
    page.single(
        "cove_loop_lag_max_seconds", "gauge", "The longest since the last scrape", meters.loop_lag_max_s
    )
    meters.loop_lag_max_s = 0.0


def _process(page: Page) -> None:
    """The daemon's own process, by the names of Prometheus' client libraries."""
    times = os.times()
    page.single("process_cpu_seconds_total", "counter", "User and system CPU time", times.user + times.system)
    with open("/proc/self/statm", encoding="ascii") as file:
        size, resident = (int(word) * resource.getpagesize() for word in file.read().split()[:2])
    page.single("process_resident_memory_bytes", "gauge", "Resident memory", resident)
    page.single("process_virtual_memory_bytes", "gauge", "Virtual memory", size)
    page.single("process_open_fds", "gauge", "Open descriptors", len(os.listdir("/proc/self/fd")))
    page.single("process_max_fds", "gauge", "Most descriptors", resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    page.single("process_start_time_seconds", "gauge", "When the process began, since the epoch", _STARTED_S)
    page.family("python_info", "gauge", "Python's version")
    page.sample("python_info", 1, {"version": platform.python_version()})


_STARTED_S = time.time()


async def _containers(page: Page, engine: Engine) -> None:
    """What the running containers use; the loop goes on between them."""
    found = []
    for view in engine.list():
        if view.state.pid:
            found.append((view, await engine.stats(view.container.id)))
            await asyncio.sleep(0)

    def receive(stats: ContainerStats) -> int:
        return sum(interface.rx_bytes for interface in stats.interfaces)

    def transmit(stats: ContainerStats) -> int:
        return sum(interface.tx_bytes for interface in stats.interfaces)

    families: tuple[tuple[str, str, str, Callable[[ContainerStats], float]], ...] = (
        ("cpu_seconds_total", "counter", "CPU time", lambda s: s.cgroup.cpu.usage_ns / 1e9),
        ("memory_usage_bytes", "gauge", "Memory in use", lambda s: s.cgroup.memory.usage_bytes),
        ("memory_limit_bytes", "gauge", "Memory limit, 0: none", lambda s: s.cgroup.memory.limit_bytes),
        ("pids", "gauge", "Processes and threads", lambda s: s.cgroup.pids.current),
        ("network_receive_bytes_total", "counter", "Bytes that came in", receive),
        ("network_transmit_bytes_total", "counter", "Bytes that went out", transmit),
    )
    for name, kind, text, value in families:
        page.family(f"cove_container_{name}", kind, text)
        for view, stats in found:
            labels = {
                "id": view.container.id,
                "name": view.container.name,
                "image": view.container.image_name,
            }
            page.sample(f"cove_container_{name}", value(stats), labels)
