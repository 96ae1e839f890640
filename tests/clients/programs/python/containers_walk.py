"""Goes through testcontainers for Python, and prints a line for each step that held. It ends without stopping its last
container, whose id it prints: that is the cleaner's."""

from __future__ import annotations

import os
import tempfile
import urllib.request
from pathlib import Path

from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network
from testcontainers.core.wait_strategies import (
    HealthcheckWaitStrategy,
    HttpWaitStrategy,
    LogMessageWaitStrategy,
)

IMAGE = "busybox:latest"
PAGES = "busybox httpd -f -p 80 -h /www"


def page(container: DockerContainer) -> str:
    address = f"{container.get_container_host_ip()}:{container.get_exposed_port(80)}"
    with urllib.request.urlopen(f"http://{address}/index.html", timeout=30) as answer:
        return str(answer.read().decode())


def http() -> None:
    container = DockerContainer(IMAGE).with_command(PAGES).with_exposed_ports(80).with_env("A", "b")
    container.with_copy_into_container(b"welcome", "/www/index.html")
    with container.waiting_for(HttpWaitStrategy(80, "/index.html").with_poll_interval(0.05)):
        assert page(container) == "welcome"
        done = container.exec(["sh", "-c", "echo $A; exit 2"])
        assert (done.exit_code, done.output) == (2, b"b\n")
        with tempfile.TemporaryDirectory() as directory:
            container.copy_from_container("/www/index.html", Path(directory) / "page")
            assert (Path(directory) / "page").read_text() == "welcome"


def logs() -> None:
    container = DockerContainer(IMAGE).with_command(["sh", "-c", "echo ready; echo bad >&2; exec sleep 600"])
    with container.waiting_for(LogMessageWaitStrategy("ready").with_poll_interval(0.05)):
        assert container.get_logs()[0] == b"ready\n"


def health() -> None:
    check = {"test": ["CMD", "true"], "interval": 200_000_000}
    container = DockerContainer(IMAGE).with_command("sleep 600").with_kwargs(healthcheck=check)
    with container.waiting_for(HealthcheckWaitStrategy().with_poll_interval(0.05)):
        assert container.get_wrapped_container().attrs["Config"]["Healthcheck"]["Test"] == ["CMD", "true"]


def network() -> None:
    with Network() as shared:
        served = DockerContainer(IMAGE).with_command(PAGES).with_network(shared).with_network_aliases("pages")
        served.with_copy_into_container(b"inside", "/www/index.html")
        asking = DockerContainer(IMAGE).with_command("sleep 600").with_network(shared)
        with served, asking:
            done = asking.exec(["wget", "-q", "-O", "-", "http://pages/index.html"])
            assert (done.exit_code, done.output) == (0, b"inside")


def main() -> None:
    for step in (http, logs, health, network):
        step()
        print(step.__name__, flush=True)
    left = DockerContainer(IMAGE).with_command("sleep 600").start()
    print(left.get_wrapped_container().id, flush=True)
    os._exit(0)  # as a test run that is killed: nothing is stopped at the end


if __name__ == "__main__":
    main()
