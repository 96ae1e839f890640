"""Published ports on a real kernel: who reaches them, from where, and what is seen of the caller."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cove.model.container import PortBinding
from cove.model.errors import HostError, Invalid
from cove.network.model import PortInUse
from tests.nethelp import (
    DEFAULT,
    PATIENCE_S,
    answering,
    ask,
    clean_host,
    container,
    go,
    inside,
    networks,
    outside,
    reachable,
    run,
)

pytestmark = pytest.mark.needs_root


@pytest.fixture
def host() -> Iterator[None]:
    with clean_host():
        yield


def test_a_published_port_is_reached_from_outside_with_the_source_address_kept(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        with outside() as machine:
            async with (
                networks(tmp_path) as nets,
                container(nets, "web", PortBinding(container_port=80, host_port=8080)) as web,
            ):
                with answering(web.namespace, 80, name="web"):
                    for address, source in (
                        (machine.host_ipv4, machine.ipv4),
                        (machine.host_ipv6, machine.ipv6),
                    ):
                        answer = await asyncio.to_thread(
                            inside, machine.namespace, lambda a=address: ask(a, 8080)
                        )
                        assert answer == f"web {source}"

    go(body)


def test_a_published_port_is_reached_from_the_hosts_own_addresses_and_its_loopback(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        with outside() as machine:
            async with (
                networks(tmp_path) as nets,
                container(nets, "web", PortBinding(container_port=80, host_port=8080)) as web,
            ):
                with answering(web.namespace, 80, name="web"):
                    assert await asyncio.to_thread(ask, machine.host_ipv4, 8080) == f"web {machine.host_ipv4}"
                    assert await asyncio.to_thread(ask, machine.host_ipv6, 8080) == f"web {machine.host_ipv6}"
                    assert await asyncio.to_thread(ask, "127.0.0.1", 8080) == "web 10.213.0.1"
                    assert await asyncio.to_thread(ask, "::1", 8080) == "web fd13::1"

    go(body)


def test_udp_ports_work_from_outside_the_host_and_both_loopbacks(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        with outside() as machine:
            port = PortBinding(container_port=53, host_port=5353, protocol="udp")
            async with networks(tmp_path) as nets, container(nets, "dns", port) as dns:
                with answering(dns.namespace, 53, kind="udp", name="dns"):
                    for address, source in (
                        (machine.host_ipv4, machine.ipv4),
                        (machine.host_ipv6, machine.ipv6),
                    ):
                        answer = await asyncio.to_thread(
                            inside, machine.namespace, lambda a=address: ask(a, 5353, kind="udp")
                        )
                        assert answer == f"dns {source}"
                    assert await asyncio.to_thread(ask, "127.0.0.1", 5353, kind="udp") == "dns 10.213.0.1"
                    assert await asyncio.to_thread(ask, "::1", 5353, kind="udp") == "dns fd13::1"

    go(body)


def test_a_udp_client_that_sent_before_the_port_was_published_reaches_the_new_container(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        with outside() as machine:
            async with networks(tmp_path) as nets:
                port = PortBinding(container_port=53, host_port=5353, protocol="udp")

                def early() -> socket.socket:
                    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    sock.settimeout(20)
                    sock.sendto(b"?", (machine.host_ipv4, 5353))
                    return sock

                with await asyncio.to_thread(inside, machine.namespace, early) as client:
                    for name in ("first", "second"):
                        async with container(nets, name, port) as dns:
                            with answering(dns.namespace, 53, kind="udp", name=name):
                                # It keeps sending, as such clients do: that is what keeps the old entry alive.
                                client.settimeout(0.2)
                                deadline = time.monotonic() + PATIENCE_S
                                while True:
                                    client.sendto(b"?", (machine.host_ipv4, 5353))
                                    try:
                                        data, _ = await asyncio.to_thread(client.recvfrom, 2048)
                                        break
                                    except OSError:
                                        assert time.monotonic() < deadline, "the old entry is still used"
                                assert data.decode() == f"{name} {machine.ipv4}"

    go(body)


def test_a_container_reaches_its_own_published_port_and_another_containers(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        with outside() as machine:
            async with (
                networks(tmp_path) as nets,
                container(nets, "web", PortBinding(container_port=80, host_port=8080)) as web,
                container(nets, "client") as client,
            ):
                with answering(web.namespace, 80, name="web"):
                    for namespace in (web.namespace, client.namespace):
                        for address, gateway in (
                            (machine.host_ipv4, "10.213.0.1"),
                            (machine.host_ipv6, "fd13::1"),
                        ):
                            answer = await asyncio.to_thread(
                                inside, namespace, lambda a=address: ask(a, 8080)
                            )
                            assert answer == f"web {gateway}"
                    direct = await asyncio.to_thread(
                        inside, client.namespace, lambda: ask(web.endpoints[0].ipv4, 80)
                    )
                    assert direct == f"web {client.endpoints[0].ipv4}"

    go(body)


def test_a_port_on_the_hosts_loopback_is_out_of_reach_for_others(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        with outside() as machine:
            port = PortBinding(container_port=80, host_port=8080, host_ip="127.0.0.1")
            async with networks(tmp_path) as nets, container(nets, "web", port) as web:
                with answering(web.namespace, 80, name="web"):
                    assert await asyncio.to_thread(ask, "127.0.0.1", 8080) == "web 10.213.0.1"
                    assert not await asyncio.to_thread(
                        inside, machine.namespace, lambda: reachable(machine.host_ipv4, 8080)
                    )
                    # A neighbour can send a frame for 127.0.0.1 to the host when it routes that there.
                    inside(machine.namespace, lambda: run("ip", "addr", "del", "127.0.0.1/8", "dev", "lo"))
                    inside(
                        machine.namespace,
                        lambda: run("ip", "route", "replace", "127.0.0.1", "via", machine.host_ipv4),
                    )
                    inside(
                        machine.namespace,
                        lambda: run(
                            "ip", "route", "del", "local", "127.0.0.1", "table", "local", check=False
                        ),
                    )
                    inside(
                        machine.namespace, lambda: run("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
                    )
                    assert not await asyncio.to_thread(
                        inside, machine.namespace, lambda: reachable("127.0.0.1", 8080)
                    )

    go(body)


def test_an_unpublished_port_is_out_of_reach_for_a_machine_that_routes_to_the_container(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        with outside() as machine:
            async with (
                networks(tmp_path) as nets,
                container(nets, "web", PortBinding(container_port=80, host_port=8080)) as web,
            ):
                with answering(web.namespace, 80, name="web"), answering(web.namespace, 81, name="private"):
                    for address in (web.endpoints[0].ipv4, web.endpoints[0].ipv6):
                        for port in (80, 81):
                            assert not await asyncio.to_thread(
                                inside, machine.namespace, lambda a=address, p=port: reachable(a, p)
                            )

    go(body)


def test_a_container_reaches_the_outside_and_is_seen_there_as_the_host(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        with outside() as machine:
            async with networks(tmp_path) as nets, container(nets, "client") as client:
                with answering(machine.namespace, 9000, name="outside"):
                    for address, seen in (
                        (machine.ipv4, machine.host_ipv4),
                        (machine.ipv6, machine.host_ipv6),
                    ):
                        answer = await asyncio.to_thread(
                            inside, client.namespace, lambda a=address: ask(a, 9000)
                        )
                        assert answer == f"outside {seen}"

    go(body)


def test_a_port_of_another_container_is_refused_in_dockers_words_and_nothing_is_left(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        async with (
            networks(tmp_path) as nets,
            container(nets, "one", PortBinding(container_port=80, host_port=8080)),
        ):
            wanted = (
                PortBinding(container_port=81, host_port=8081),
                PortBinding(container_port=80, host_port=8080),
            )
            with pytest.raises(
                PortInUse, match=r"Bind for 0\.0\.0\.0:8080 failed: port is already allocated"
            ):
                await nets.connect("two", DEFAULT, wanted, "two")
            assert nets.members(nets.find_network("bridge").id) == [
                ("one", nets.members(nets.find_network("bridge").id)[0][1])
            ]
            async with container(nets, "three", wanted[0]) as three:
                assert {port.host_port for port in three.ports} == {8081}
            # A host address of its own doesn't help while every address is taken.
            narrow = PortBinding(container_port=80, host_port=8080, host_ip="127.0.0.1")
            with pytest.raises(PortInUse, match=r"Bind for 127\.0\.0\.1:8080 failed"):
                await nets.connect("two", DEFAULT, (narrow,), "two")

    go(body)


def test_a_port_of_another_program_is_refused_and_ours_are_refused_to_it(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        async with networks(tmp_path) as nets:
            with socket.socket() as foreign:
                foreign.bind(("0.0.0.0", 8080))
                foreign.listen()
                with pytest.raises(
                    PortInUse, match=r"failed to bind host port 0\.0\.0\.0:8080/tcp: address already in use"
                ):
                    await nets.connect(
                        "one", DEFAULT, (PortBinding(container_port=80, host_port=8080),), "one"
                    )
            async with container(nets, "one", PortBinding(container_port=80, host_port=8080)):
                with socket.socket() as foreign:
                    foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    with pytest.raises(OSError):
                        foreign.bind(("0.0.0.0", 8080))
            with socket.socket() as foreign:
                foreign.bind(("0.0.0.0", 8080))

    go(body)


def test_a_port_that_only_old_connections_hold_is_published(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        async with networks(tmp_path) as nets:
            with socket.socket() as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind(("127.0.0.1", 8080))
                server.listen()
                with socket.create_connection(("127.0.0.1", 8080), timeout=20) as client:
                    accepted, _ = server.accept()
                    accepted.close()  # the server closes first: TIME_WAIT is on its side
                    assert client.recv(1) == b""
            async with container(nets, "web", PortBinding(container_port=80, host_port=8080)) as web:
                assert {port.host_port for port in web.ports} == {8080}

    go(body)


def test_port_zero_and_ranges_choose_free_ports_the_same_for_both_families(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        async with networks(tmp_path) as nets:
            async with container(nets, "one", PortBinding(container_port=80)) as one:
                assert [port.host_ip for port in one.ports] == ["0.0.0.0", "::"]
                assert len({port.host_port for port in one.ports}) == 1
                low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
                assert low <= one.ports[0].host_port <= high
            ranged = PortBinding(container_port=80, host_port=8080, host_port_end=8081)
            async with container(nets, "one", ranged) as one, container(nets, "two", ranged) as two:
                assert (one.ports[0].host_port, two.ports[0].host_port) == (8080, 8081)
                with pytest.raises(PortInUse):
                    await nets.connect("three", DEFAULT, (ranged,), "three")

    go(body)


def test_an_address_that_the_host_doesnt_have_is_refused(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        async with networks(tmp_path) as nets:
            for host_ip, error in (("198.51.100.7", HostError), ("no address", Invalid)):
                with pytest.raises(error):
                    await nets.connect(
                        "x", DEFAULT, (PortBinding(container_port=80, host_port=8080, host_ip=host_ip),), "x"
                    )

    go(body)


def test_206_ports_are_published_quickly_and_all_answer(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        async with networks(tmp_path) as nets:
            ports = tuple(PortBinding(container_port=80, host_port=20000 + i) for i in range(206))
            begin = time.perf_counter()
            attachment = await nets.connect("web", DEFAULT, ports, "web")
            took = time.perf_counter() - begin
            try:
                assert took < 2.0, f"{took:.3f} s"  # 0.02 s on an idle machine; the bound is for a loaded one
                with answering(attachment.namespace, 80, name="web"):
                    for port in (20000, 20100, 20205):
                        assert await asyncio.to_thread(ask, "127.0.0.1", port) == "web 10.213.0.1"
                        assert await asyncio.to_thread(ask, "::1", port) == "web fd13::1"
            finally:
                os.close(attachment.namespace)
            await nets.disconnect("web")
            assert "20000" not in run("nft", "list", "table", "inet", "cvtest")

    go(body)
