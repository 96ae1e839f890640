"""Published ports of a running container, changed while connections go through them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cove.model.container import EndpointSpec, PortBinding
from cove.model.errors import Conflict
from cove.network.model import PortInUse
from tests.nethelp import PATIENCE_S, answering, ask, clean_host, container, go, inside, networks, reachable

pytestmark = pytest.mark.needs_root
WEB = PortBinding(container_port=80, host_port=8080)


def tcp(host_port: int, container_port: int = 80, host_ip: str = "") -> PortBinding:
    return PortBinding(container_port=container_port, host_port=host_port, host_ip=host_ip)


def shown(ports: tuple[PortBinding, ...]) -> list[str]:
    return [f"{p.host_ip}:{p.host_port}:{p.container_port}/{p.protocol}" for p in ports]


@pytest.fixture
def host() -> Iterator[None]:
    with clean_host():
        yield


def test_a_port_is_added_and_one_removed_while_the_others_connection_lasts(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        async with networks(tmp_path) as nets, container(nets, "web", WEB, tcp(8081, 81)) as web:
            server = inside(web.namespace, lambda: socket.create_server(("0.0.0.0", 80)))
            with server, socket.create_connection(("127.0.0.1", 8080), PATIENCE_S) as client:
                peer, _ = server.accept()
                with peer:
                    ports = await nets.republish("web", [WEB, tcp(9000, 81)])
                    assert shown(ports) == [
                        "0.0.0.0:8080:80/tcp", ":::8080:80/tcp", "0.0.0.0:9000:81/tcp", ":::9000:81/tcp",
                    ]  # fmt: skip
                    client.sendall(b"still here")
                    peer.settimeout(PATIENCE_S)
                    assert peer.recv(64) == b"still here"
            with answering(web.namespace, 81, name="web"):
                for address in ("127.0.0.1", "::1"):
                    assert (await asyncio.to_thread(ask, address, 9000)).startswith("web")
                    assert not await asyncio.to_thread(reachable, address, 8081)
            with socket.create_server(("0.0.0.0", 8081)):
                pass  # the host's again

    go(body)


def test_one_host_port_leads_to_another_port_of_the_container_from_now_on(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        async with networks(tmp_path) as nets, container(nets, "web", WEB) as web:
            with answering(web.namespace, 80, name="old"), answering(web.namespace, 81, name="new"):
                assert (await asyncio.to_thread(ask, "127.0.0.1", 8080)).startswith("old")
                await nets.republish("web", [tcp(8080, 81)])
                assert (await asyncio.to_thread(ask, "127.0.0.1", 8080)).startswith("new")
                # from every address to one, by the same number
                assert shown(await nets.republish("web", [tcp(8080, 80, "127.0.0.1")])) == [
                    "127.0.0.1:8080:80/tcp"
                ]
                assert (await asyncio.to_thread(ask, "127.0.0.1", 8080)).startswith("old")
                assert not await asyncio.to_thread(reachable, "::1", 8080)

    go(body)


def test_a_refused_change_leaves_all_as_it_was(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        async with (
            networks(tmp_path) as nets,
            container(nets, "other", tcp(7000)),
            container(nets, "web", WEB, tcp(8081)) as web,
        ):
            with pytest.raises(
                PortInUse, match=r"Bind for 0\.0\.0\.0:7000 failed: port is already allocated"
            ):
                await nets.republish("web", [WEB, tcp(9000), tcp(7000)])
            with answering(web.namespace, 80, name="web"):
                for address in ("127.0.0.1", "::1"):
                    for port in (8080, 8081):
                        assert (await asyncio.to_thread(ask, address, port)).startswith("web")
                    assert not await asyncio.to_thread(reachable, address, 9000)
            with pytest.raises(OSError), socket.create_server(("0.0.0.0", 8081)):
                pass
            assert shown(await nets.republish("web", [])) == []
            assert not await asyncio.to_thread(reachable, "127.0.0.1", 8080)

    go(body)


def test_a_chosen_port_stays_and_an_internal_network_publishes_none(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        async with networks(tmp_path) as nets:
            async with container(nets, "web", tcp(0)) as web:
                chosen = web.ports[0].host_port
                ports = await nets.republish("web", [tcp(0), tcp(0)])
                assert [p.host_port for p in ports[:2]] == [chosen, chosen]
                assert ports[2].host_port == ports[3].host_port != chosen
            await nets.create("inner", internal=True)
            async with container(nets, "db", on=(EndpointSpec(network="inner"),)):
                with pytest.raises(Conflict, match="no network that publishes ports"):
                    await nets.republish("db", [WEB])
            with pytest.raises(Conflict):
                await nets.republish("gone", [WEB])

    go(body)
