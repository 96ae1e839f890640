"""Options of bridge networks and endpoints, with real packets: who reaches whom, and by which address."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from cove.model.container import EndpointSpec, PortBinding
from cove.model.errors import Conflict, Invalid
from cove.model.objects import IpamPool
from cove.network import options
from tests.nethelp import (
    Machine,
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
WEB = PortBinding(container_port=80, host_port=8080)


@pytest.fixture
def host() -> Iterator[None]:
    with clean_host():
        yield


def on(*names: str, **more: object) -> tuple[EndpointSpec, ...]:
    return tuple(EndpointSpec(network=name, **more) for name in names)  # type: ignore[arg-type]


async def asks(namespace: int, address: str, port: int) -> str:
    """The answer to a connection from a namespace, or "" when nothing answers."""

    def body() -> str:
        return ask(address, port) if reachable(address, port) else ""

    return await asyncio.to_thread(inside, namespace, body)


async def shows(namespace: int, *command: str) -> str:
    return await asyncio.to_thread(inside, namespace, lambda: run(*command))


def test_containers_of_two_subnets_of_one_network_talk_and_get_out(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        with outside() as machine:
            async with networks(tmp_path) as nets:
                pools = [
                    IpamPool(subnet="10.77.0.0/30"),
                    IpamPool(subnet="10.78.0.0/24"),
                    IpamPool(subnet="fd77::/64"),
                ]
                await nets.create("two", ipam=pools)
                async with container(nets, "a", on=on("two")) as a, container(nets, "b", on=on("two")) as b:
                    [first], [second] = a.endpoints, b.endpoints
                    assert (first.ipv4, first.gateway4) == ("10.77.0.2", "10.77.0.1")
                    assert (second.ipv4, second.ipv4_prefix, second.gateway4) == (
                        "10.78.0.2",
                        24,
                        "10.78.0.1",
                    )
                    with answering(b.namespace, 80, name="b"), answering(machine.namespace, 81, name="far"):
                        assert (await asks(a.namespace, second.ipv4, 80)).startswith("b ")
                        assert (await asks(a.namespace, second.ipv6, 80)).startswith("b ")
                        for namespace in (a.namespace, b.namespace):
                            assert await asks(namespace, machine.ipv4, 81) == f"far {machine.host_ipv4}"
                    fixed = on("two", ipv4="10.78.0.77")
                    async with container(nets, "c", on=fixed) as c:
                        assert (c.endpoints[0].ipv4, c.endpoints[0].gateway4) == ("10.78.0.77", "10.78.0.1")

    go(body)


def test_a_network_of_ipv6_alone_publishes_and_gets_out(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        with outside() as machine:
            async with networks(tmp_path) as nets:
                await nets.create("six", ipv4=False, ipv6=True)
                async with container(nets, "a", WEB, on=on("six")) as a:
                    [endpoint] = a.endpoints
                    assert (endpoint.ipv4, endpoint.gateway4) == ("", "") and endpoint.gateway6
                    assert "inet " not in await shows(a.namespace, "ip", "addr", "show", "eth0")
                    with answering(a.namespace, 80, name="a"), answering(machine.namespace, 81, name="far"):
                        assert await asks(machine.namespace, machine.host_ipv6, 8080) == f"a {machine.ipv6}"
                        assert await asks(a.namespace, machine.ipv6, 81) == f"far {machine.host_ipv6}"

    go(body)


def test_without_icc_containers_dont_talk_not_even_by_way_of_the_host(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        async with networks(tmp_path) as nets:
            await nets.create("apart", ipv6=True, options={options.ICC: "false"})
            async with (
                container(nets, "a", on=on("apart")) as a,
                container(nets, "b", WEB, on=on("apart")) as b,
            ):
                gateway = b.endpoints[0].gateway4
                with answering(b.namespace, 80, name="b"):
                    there = (b.endpoints[0].ipv4, b.endpoints[0].ipv6)
                    assert await asyncio.gather(*(asks(a.namespace, address, 80) for address in there)) == [
                        "",
                        "",
                    ]
                    # its own root could send what is for the neighbour to the host, as a router
                    await shows(
                        a.namespace, "ip", "route", "add", f"{b.endpoints[0].ipv4}/32", "via", gateway
                    )
                    by_host = ((there[0], 80), (gateway, 8080))
                    assert await asyncio.gather(*(asks(a.namespace, *place) for place in by_host)) == ["", ""]
                    assert (await asyncio.to_thread(ask, "127.0.0.1", 8080)).startswith("b ")

    go(body)


def routed_by(machine: Machine, subnet: str) -> None:
    """Let a machine outside send what is for containers to the host."""
    gateway = machine.host_ipv6 if ":" in subnet else machine.host_ipv4
    inside(machine.namespace, lambda: run("ip", "route", "replace", subnet, "via", gateway))


@pytest.mark.parametrize(
    ("mode", "published", "unpublished", "by_host", "source"),
    [
        ("nat", False, False, True, "host"),
        ("nat-unprotected", True, True, True, "host"),
        ("routed", True, False, False, "container"),
    ],
)
def test_a_gateway_mode_says_what_is_reached_from_outside_and_who_is_seen_there(
    host: None, tmp_path: Path, mode: str, published: bool, unpublished: bool, by_host: bool, source: str
) -> None:
    async def body() -> None:
        with outside() as machine:
            async with networks(tmp_path) as nets:
                modes = {options.GATEWAY_MODE[4]: mode, options.GATEWAY_MODE[6]: mode}
                network = await nets.create("net", ipv6=True, options=modes)
                for pool in network.ipam:
                    routed_by(machine, pool.subnet)
                async with container(nets, "a", WEB, on=on("net")) as a, container(nets, "other") as other:
                    [endpoint] = a.endpoints
                    with (
                        answering(a.namespace, 80, name="a"),
                        answering(a.namespace, 90, name="a"),
                        answering(machine.namespace, 81, name="far"),
                    ):
                        for address, at_host, at_home in (
                            (endpoint.ipv4, machine.host_ipv4, machine.ipv4),
                            (endpoint.ipv6, machine.host_ipv6, machine.ipv6),
                        ):
                            answers = await asyncio.gather(
                                asks(machine.namespace, address, 80),
                                asks(machine.namespace, address, 90),
                                asks(machine.namespace, at_host, 8080),
                                asks(other.namespace, address, 90),
                                asks(a.namespace, at_home, 81),
                            )
                            assert [bool(answer) for answer in answers[:4]] == [
                                published, unpublished, by_host, False,
                            ]  # fmt: skip
                            seen = {"host": at_host, "container": address}[source]
                            assert answers[4] == f"far {seen}"
                    if mode == "routed":
                        assert [(p.host_ip, p.host_port) for p in a.ports] == [("0.0.0.0", 0), ("::", 0)]
                        assert await nets.republish("a", []) == ()
                        with answering(a.namespace, 70, name="a"):
                            assert not await asks(machine.namespace, endpoint.ipv4, 70)

    go(body)


def test_a_trusted_link_reaches_every_port_and_another_one_none(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        with outside(1) as trusted, outside(2) as other:
            async with networks(tmp_path) as nets:
                network = await nets.create("net", options={options.TRUSTED: trusted.link})
                for machine in (trusted, other):
                    routed_by(machine, network.ipam[0].subnet)
                async with container(nets, "a", on=on("net")) as a:
                    with answering(a.namespace, 90, name="a"):
                        assert await asks(trusted.namespace, a.endpoints[0].ipv4, 90)
                        assert not await asks(other.namespace, a.endpoints[0].ipv4, 90)

    go(body)


def test_ports_are_bound_and_packets_leave_by_the_addresses_that_a_network_names(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        with outside() as machine:
            run("ip", "addr", "add", "198.18.1.77/24", "dev", machine.link)
            async with networks(tmp_path) as nets:
                named = {options.BINDING: "127.0.0.1", options.HOST_ADDRESS[4]: "198.18.1.77"}
                await nets.create("net", options=named)
                await nets.create("plain", options={options.MASQUERADE: "false"})
                async with container(nets, "a", WEB, on=on("net")) as a:
                    assert [(p.host_ip, p.host_port) for p in a.ports] == [("127.0.0.1", 8080)]
                    with answering(a.namespace, 80, name="a"), answering(machine.namespace, 81, name="far"):
                        assert await asyncio.to_thread(ask, "127.0.0.1", 8080)
                        assert not await asks(machine.namespace, machine.host_ipv4, 8080)
                        assert await asks(a.namespace, machine.ipv4, 81) == "far 198.18.1.77"
                async with container(nets, "b", on=on("plain")) as b:
                    with answering(machine.namespace, 82, name="far"):
                        source = b.endpoints[0].ipv4
                        assert await asks(b.namespace, machine.ipv4, 82) == f"far {source}"

    go(body)


def test_an_isolated_network_has_no_address_of_the_host(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        async with networks(tmp_path) as nets:
            network = await nets.create("alone", internal=True, options={options.GATEWAY_MODE[4]: "isolated"})
            async with (
                container(nets, "a", on=on("alone")) as a,
                container(nets, "b", on=on("alone")) as b,
            ):
                assert a.endpoints[0].gateway4 == ""
                assert "inet " not in run("ip", "addr", "show", network.bridge)
                with answering(b.namespace, 80, name="b"):
                    assert await asks(a.namespace, b.endpoints[0].ipv4, 80)

    go(body)


def test_an_interface_has_the_name_and_the_settings_that_were_asked_for(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        async with networks(tmp_path) as nets:
            await nets.create("net", options={options.PREFIX: "lan", options.MTU: "900"})
            asked = {
                options.INTERFACE: "uplink",
                options.SYSCTLS: "net.ipv4.conf.IFNAME.log_martians=1,net.ipv4.neigh.IFNAME.ucast_solicit=7",
            }
            both = (EndpointSpec(network="bridge", driver_options=asked), EndpointSpec(network="net"))
            async with container(nets, "a", on=both) as a:
                assert [endpoint.interface for endpoint in a.endpoints] == ["uplink", "lan0"]
                links = await shows(a.namespace, "ip", "link")
                assert "uplink@" in links and "lan0@" in links and "mtu 900" in links
                read = await shows(
                    a.namespace,
                    "sysctl",
                    "-n",
                    "net.ipv4.conf.uplink.log_martians",
                    "net.ipv4.neigh.uplink.ucast_solicit",
                )
                assert read.split() == ["1", "7"]
            twice = tuple(
                EndpointSpec(network=n, driver_options={options.INTERFACE: "x"}) for n in ("bridge", "net")
            )
            with pytest.raises(Conflict, match="interface name x is taken"):
                await nets.connect("b", twice, (), "b")
            unknown = {options.SYSCTLS: "net.ipv4.conf.IFNAME.no_such_thing=1"}
            with pytest.raises(Invalid, match="no_such_thing"):
                await nets.connect("b", (EndpointSpec(network="net", driver_options=unknown),), (), "b")
            assert nets.members(nets.find_network("net").id) == []

    go(body)


def test_the_highest_priority_has_the_default_route_and_the_ports_also_live(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        async with networks(tmp_path) as nets:
            await nets.create("low")
            await nets.create("high")
            await nets.create("top", ipv6=True)
            both = (EndpointSpec(network="low"), EndpointSpec(network="high", gateway_priority=1))
            async with container(nets, "a", WEB, on=both) as a:
                low, high = a.endpoints
                assert low.gateway4 == "" and high.gateway4

                async def way_out(*, ipv6: bool = False) -> str:
                    return await shows(a.namespace, "ip", "-6" if ipv6 else "-4", "route", "show", "default")

                assert high.gateway4 in await way_out()
                with answering(a.namespace, 80, name="a"):
                    assert await asyncio.to_thread(ask, "127.0.0.1", 8080)
                    held = await nets.attach(
                        "a", EndpointSpec(network="top", gateway_priority=9), a.namespace
                    )
                    assert [bool(e.gateway4) for e in held.endpoints] == [False, False, True]
                    assert held.endpoints[2].gateway4 in await way_out()
                    assert held.endpoints[2].gateway6 in await way_out(ipv6=True)
                    assert {p.host_ip for p in held.ports} == {"0.0.0.0", "::"}
                    for address in ("127.0.0.1", "::1"):
                        assert await asyncio.to_thread(ask, address, 8080)
                    held = await nets.detach("a", "top", a.namespace)
                    assert [bool(e.gateway4) for e in held.endpoints] == [False, True]
                    assert high.gateway4 in await way_out()
                    assert await asyncio.to_thread(ask, "127.0.0.1", 8080)
                    await nets.detach("a", "high", a.namespace)
                    held = await nets.detach("a", "low", a.namespace)
                    assert (held.endpoints, held.ports) == ((), ())
                    held = await nets.attach("a", EndpointSpec(network="low"), a.namespace)
                    assert held.ports[0].host_port == 8080
                    assert await asyncio.to_thread(ask, "127.0.0.1", 8080)

    go(body)
