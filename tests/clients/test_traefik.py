"""Traefik's Docker provider follows the containers of both engines (programs/traefik drives the provider itself)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.clients.dockercli import Running
from tests.clients.engines import ENGINES, Engine, running_engine
from tests.clients.toolbox import require

LABELS = {
    "traefik.enable": "true",
    "traefik.http.routers.shop.rule": "Host(`shop.example`)",
    "traefik.http.services.shop.loadbalancer.server.port": "8080",
}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    yield from running_engine(request.param)


def next_routes(provider: Running, wanted: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The provider's next configuration that is as wanted."""
    while True:
        line = provider.line()
        assert line, "the provider ended"
        if not line.startswith(b"{"):
            continue
        found = dict(json.loads(line))
        if wanted(found):
            return found


def test_routes_follow_the_containers(engine: Engine) -> None:
    program = require("traefik") / "routes"
    containers = engine.client.containers
    other = containers.run("busybox", "sleep 600", detach=True)  # not enabled
    with Running([str(program)], {**os.environ, "DOCKER_HOST": engine.host}, stdin=False) as provider:
        next_routes(provider, lambda found: not found.get("routers"))
        network = engine.client.networks.create("edge")
        labels = {**LABELS, "traefik.docker.network": "edge"}
        shop = containers.run("busybox", "sleep 600", detach=True, labels=labels, network="edge")
        try:
            found = next_routes(provider, lambda found: "shop" in found.get("routers", {}))
            shop.reload()
            address = shop.attrs["NetworkSettings"]["Networks"]["edge"]["IPAddress"]
            assert found["routers"]["shop"]["rule"] == "Host(`shop.example`)"
            assert found["services"]["shop"]["loadBalancer"]["servers"] == [{"url": f"http://{address}:8080"}]
            shop.stop(timeout=0)
            next_routes(provider, lambda found: "shop" not in found.get("routers", {}))
        finally:
            for container in (shop, other):
                container.remove(force=True)
            network.remove()
