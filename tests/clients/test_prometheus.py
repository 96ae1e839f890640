"""Prometheus scrapes the daemon, and finds containers by it (`docker_sd_configs`) to scrape them, too."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.clients.dockercli import BOUND_S, eventually
from tests.clients.toolbox import require
from tests.daemon import Daemon
from tests.nethelp import free_port

CONFIG = """
global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}
scrape_configs:
  - job_name: cove
    static_configs: [{{targets: ["127.0.0.1:{metrics}"]}}]
  - job_name: containers
    fallback_scrape_protocol: PrometheusText0.0.4  # busybox tells no type
    docker_sd_configs:
      - host: {host}
        refresh_interval: 300ms
        filters: [{{name: label, values: [prometheus-job]}}]
    relabel_configs:
      - {{source_labels: [__meta_docker_container_label_prometheus_job], target_label: job}}
      - {{source_labels: [__meta_docker_container_name], regex: "/(.*)", target_label: container}}
      - {{source_labels: [__meta_docker_network_name], target_label: network}}
"""


@pytest.fixture
def metered(tmp_path: Path) -> Iterator[tuple[Daemon, int]]:
    """A daemon with metrics, and their port."""
    port = free_port()
    file = tmp_path / "daemon.json"
    file.write_text(json.dumps({"metrics-addr": f"127.0.0.1:{port}"}))
    with Daemon("--config-file", str(file)) as daemon:
        daemon.load_image()
        yield daemon, port


@contextmanager
def prometheus(directory: Path, config: str) -> Iterator[int]:
    """A running Prometheus; the port of its API."""
    program, port = require("prometheus") / "prometheus", free_port()
    (directory / "prometheus.yml").write_text(config)
    command = [
        str(program), f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield port
    except BaseException as error:
        error.add_note((directory / "log").read_text()[-2000:])
        raise
    finally:
        process.terminate()
        process.wait(BOUND_S)


def test_the_daemon_and_its_containers_are_scraped(metered: tuple[Daemon, int], tmp_path: Path) -> None:
    daemon, metrics = metered

    def query(expression: str) -> list[dict[str, Any]]:
        address = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(address, timeout=BOUND_S) as answer:
                return list(json.load(answer)["data"]["result"])
        except urllib.error.URLError:  # it doesn't listen yet, or isn't ready
            return []

    serve = "mkdir /www; echo 'sold_total 7' > /www/metrics; exec busybox httpd -f -p 9100 -h /www"
    shop = daemon.client.containers.run(
        "busybox",
        ["sh", "-c", serve],
        detach=True,
        name="shop",
        labels={"prometheus-job": "shop"},
        ports={"9100": None},
    )
    other = daemon.client.containers.run("busybox", "sleep 600", detach=True)
    try:
        with prometheus(tmp_path, CONFIG.format(metrics=metrics, host=daemon.host)) as port:
            eventually(lambda: query('up{job="cove"} == 1'))
            eventually(lambda: query("engine_daemon_container_states_containers{state='running'} == 2"))
            eventually(lambda: query("sold_total == 7"))
            [found] = query("sold_total")
            assert (
                found["metric"].items() >= {"container": "shop", "job": "shop", "network": "bridge"}.items()
            )
            shop.stop(timeout=0)
            eventually(lambda: not query("sold_total"))
    finally:
        for container in (shop, other):
            container.remove(force=True)
