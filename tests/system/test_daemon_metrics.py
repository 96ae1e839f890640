"""The metrics endpoint, read as Prometheus reads it."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.daemon import IMAGE, Daemon

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Scraped:
    """A daemon with metrics, and its configuration file."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.file = directory / "daemon.json"
        self.file.write_text(json.dumps({"metrics-addr": f"127.0.0.1:{self.port}"}))
        self.daemon = Daemon("--config-file", str(self.file))

    def get(
        self, path: str = "/metrics", method: str = "GET", port: int = 0
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=30)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def scrape(self, path: str = "/metrics") -> Samples:
        status, headers, body = self.get(path)
        assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        found: Samples = {}
        for family in text_string_to_metric_families(body.decode()):
            assert family.documentation and family.type != "unknown", family.name
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in found, "twice the same"
                found[key] = sample.value
        return found


def value(samples: Samples, name: str, /, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    found = Scraped(tmp_path_factory.mktemp("metrics"))
    with found.daemon:
        found.daemon.load_image()
        yield found


def test_work_is_counted(scraped: Scraped) -> None:
    daemon = scraped.daemon
    before = scraped.scrape()
    for _ in range(3):
        daemon.client.containers.run(IMAGE, ["true"], remove=True)
    check = {"Test": ["CMD", "true"], "Interval": 50_000_000}
    container = daemon.client.containers.run(IMAGE, ["sleep", "1000"], detach=True, healthcheck=check)
    try:
        container.exec_run(["true"])
        with pytest.raises(Exception, match="not found"):
            daemon.client.containers.run(IMAGE, ["nothing-there"])
        deadline = time.monotonic() + 30
        while not value(after := scraped.scrape(), "engine_daemon_health_checks_total"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        daemon.client.containers.prune()
        container.remove(force=True)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert grown("engine_daemon_container_actions_seconds_count", action="start") == 4
    assert grown("engine_daemon_container_actions_seconds_bucket", action="create", le="+Inf") == 5
    assert (
        grown("cove_container_start_seconds_count") == 4 and grown("cove_container_starts_failed_total") == 1
    )
    assert grown("cove_exec_start_seconds_count") >= 1
    assert grown("engine_daemon_events_total") > 20
    assert value(after, "engine_daemon_container_states_containers", state="running") == 1
    assert value(after, "cove_supervisors") >= 1
    route = {"method": "POST", "route": "/containers/{name}/start", "code": "204"}
    assert value(after, "cove_api_requests_total", **route) == 4
    assert value(after, "process_resident_memory_bytes") > 10 << 20


def test_dockerds_names_are_there(scraped: Scraped) -> None:
    names = {name for name, _ in scraped.scrape()}
    assert names >= {
        "engine_daemon_engine_info",
        "engine_daemon_engine_cpus_cpus",
        "engine_daemon_engine_memory_bytes",
        "engine_daemon_container_states_containers",
        "engine_daemon_container_actions_seconds_bucket",
        "engine_daemon_events_total",
        "engine_daemon_events_subscribers_total",
        "engine_daemon_health_checks_total",
        "engine_daemon_health_checks_failed_total",
    }


def test_containers_tell_what_they_use_when_asked(scraped: Scraped) -> None:
    assert not any(name.startswith("cove_container_cpu") for name, _ in scraped.scrape())
    container = scraped.daemon.client.containers.run(
        IMAGE, ["sh", "-c", "while :; do :; done"], detach=True, name="odd", mem_limit="64m"
    )
    try:
        labels = {"id": container.id, "name": "odd", "image": IMAGE}
        deadline = time.monotonic() + 30
        while (
            value(
                found := scraped.scrape("/metrics?containers=1"), "cove_container_cpu_seconds_total", **labels
            )
            < 0.05
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert value(found, "cove_container_memory_limit_bytes", **labels) == 64 << 20
        assert value(found, "cove_container_pids", **labels) >= 1
        assert ("cove_container_network_receive_bytes_total", frozenset(labels.items())) in found
    finally:
        container.remove(force=True)


def test_nothing_else_is_served_there(scraped: Scraped) -> None:
    assert scraped.get("/")[0] == scraped.get("/containers/json")[0] == scraped.get("/v1.43/info")[0] == 404
    assert scraped.get(method="POST")[0] == 405
    assert scraped.get("/metrics?containers=perhaps")[0] == 400
    assert scraped.get(method="HEAD")[2] == b""
    assert scraped.daemon.http("GET", "/metrics").status == 404, "the API's sockets don't serve them"


def test_a_reload_moves_the_endpoint_or_says_why_not(scraped: Scraped) -> None:
    other = free_port()
    try:
        scraped.file.write_text(json.dumps({"metrics-addr": f"127.0.0.1:{other}"}))
        assert scraped.daemon.http("POST", "/cove/v1/reload").json() == {
            "reloaded": ["metrics-addr"],
            "waiting": [],
        }
        assert scraped.get(port=other)[0] == 200
        with pytest.raises(ConnectionRefusedError):
            scraped.get()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            scraped.file.write_text(json.dumps({"metrics-addr": f"127.0.0.1:{taken.getsockname()[1]}"}))
            answer = scraped.daemon.http("POST", "/cove/v1/reload")
            assert answer.status == 400 and "Address already in use" in answer.message
        assert scraped.get(port=other)[0] == 200
    finally:
        scraped.file.write_text(json.dumps({"metrics-addr": f"127.0.0.1:{scraped.port}"}))
        assert scraped.daemon.http("POST", "/cove/v1/reload").status == 200
    assert scraped.get()[0] == 200
