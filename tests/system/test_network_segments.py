"""Networks with more containers than one bridge has ports: one network to all, however many bridges it takes."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from cove.model.container import Endpoint, EndpointSpec, PortBinding
from cove.model.errors import Conflict
from cove.model.objects import IpamPool
from cove.network import options, segments
from cove.network.model import Alive, Attachment
from cove.network.networks import Networks
from tests.nethelp import (
    PATIENCE_S,
    SETTINGS,
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
BARE = replace(SETTINGS, pool_size=0)
WEB = PortBinding(container_port=80, host_port=8080)


@pytest.fixture
def host() -> Iterator[None]:
    with clean_host():
        yield


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bridges of two ports, two of which can be joined to a first one."""
    monkeypatch.setattr(segments, "FIRST_PORTS", 2)
    monkeypatch.setattr(segments, "FURTHER_PORTS", 2)
    monkeypatch.setattr(segments, "MOST_SEGMENTS", 2)


async def several(nets: Networks, stack: AsyncExitStack, count: int, network: str) -> list[Attachment]:
    on = (EndpointSpec(network=network),)
    return [await stack.enter_async_context(container(nets, f"c{i}", on=on)) for i in range(count)]


def bridges_of(bridge: str) -> set[str]:
    wanted = {segments.segment_name(bridge, number) for number in range(1, 4)}
    lines = run("ip", "-o", "link", "show", "type", "bridge").splitlines()
    return {line.split(":")[1].strip() for line in lines} & wanted


async def talks(one: Attachment, other: Endpoint) -> list[bool]:
    """Whether a container's neighbour is reached by IPv4 and IPv6."""
    ways = (
        asyncio.to_thread(inside, one.namespace, lambda a=address: reachable(a, 80, timeout_s=1.0))
        for address in (other.ipv4, other.ipv6)
    )
    return list(await asyncio.gather(*ways))


def test_containers_on_all_bridges_of_a_network_reach_each_other_the_host_and_the_outside(
    host: None, small: None, tmp_path: Path
) -> None:
    async def body() -> None:
        with outside() as machine:
            async with networks(tmp_path, BARE) as nets, AsyncExitStack() as stack:
                network = await nets.create("many", ipv6=True)
                found = await several(nets, stack, 5, "many")
                last = await nets.connect("last", (EndpointSpec(network="many"),), [WEB], "last")
                stack.push_async_callback(nets.disconnect, "last")
                stack.callback(os.close, last.namespace)
                assert len(bridges_of(network.bridge)) == 2
                with answering(last.namespace, 80, name="last"), answering(machine.namespace, 81, name="far"):
                    for one in found:  # from the first bridge, the second and its own
                        assert await talks(one, last.endpoints[0]) == [True, True]
                    with answering(found[0].namespace, 80, name="first"):
                        assert await talks(last, found[0].endpoints[0]) == [True, True]
                    for address, there in (
                        (machine.host_ipv4, machine.ipv4),
                        (machine.host_ipv6, machine.ipv6),
                    ):
                        came = await asyncio.to_thread(
                            inside, machine.namespace, lambda a=address: ask(a, 8080)
                        )
                        assert came == f"last {there}"
                        went = await asyncio.to_thread(inside, last.namespace, lambda a=there: ask(a, 81))
                        assert went == f"far {address}"
                    here = machine.host_ipv4
                    by_host = await asyncio.to_thread(inside, found[2].namespace, lambda: ask(here, 8080))
                    assert by_host.startswith("last")
                with pytest.raises(Conflict, match="all the endpoints that its 3 bridges can have"):
                    await nets.connect("seventh", (EndpointSpec(network="many"),), (), "seventh")
                assert len(nets.members(network.id)) == 6
                await stack.aclose()
                await nets._reaper.flush()
                await nets.remove("many")
                assert bridges_of(network.bridge) == set()
                assert "cvt" not in run("ip", "-o", "link", "show", "type", "veth")

    go(body)


def test_containers_that_are_kept_apart_are_so_across_bridges(
    host: None, small: None, tmp_path: Path
) -> None:
    async def body() -> None:
        async with networks(tmp_path, BARE) as nets, AsyncExitStack() as stack:
            network = await nets.create("apart", ipv6=True, options={options.ICC: "false"})
            found = await several(nets, stack, 6, "apart")
            gateway = network.ipam[0].gateway
            # from the first bridge to a second, between two further ones, and on one of them
            pairs = [(found[0], found[2]), (found[2], found[0]), (found[2], found[4]), (found[4], found[5])]
            for one in {id(other): other for _, other in pairs}.values():
                stack.enter_context(answering(one.namespace, 80, name="neighbour"))
            server = await asyncio.to_thread(lambda: socket.create_server((gateway, 7000)))
            with server:
                met = await asyncio.gather(*(talks(one, other.endpoints[0]) for one, other in pairs))
                assert met == [[False, False]] * 4
                for one in (found[0], found[2], found[4]):  # all reach the host

                    def knock() -> None:
                        socket.create_connection((gateway, 7000), PATIENCE_S).close()

                    await asyncio.to_thread(inside, one.namespace, knock)

    go(body)


def test_a_restarted_daemon_knows_which_bridge_a_container_is_on(
    host: None, small: None, tmp_path: Path
) -> None:
    async def body() -> None:
        on = (EndpointSpec(network="many"),)
        async with networks(tmp_path, BARE) as nets:
            network = await nets.create("many")
            living = {f"c{i}": await nets.connect(f"c{i}", on, (), f"c{i}") for i in range(3)}
            gone = await nets.connect("gone", on, (), "gone")
        os.close(gone.namespace)
        async with networks(tmp_path, BARE) as nets:
            await nets.reconcile({name: Alive(endpoints=a.endpoints) for name, a in living.items()})
            # one port is free on the second bridge, since what was there has gone
            async with container(nets, "new", on=on) as new:
                assert len(bridges_of(network.bridge)) == 1
                with answering(new.namespace, 80, name="new"):
                    for one in living.values():
                        address = new.endpoints[0].ipv4
                        assert await asyncio.to_thread(
                            inside, one.namespace, lambda a=address: reachable(a, 80)
                        )
            for name, one in living.items():
                os.close(one.namespace)
                await nets.disconnect(name)
            await nets._reaper.flush()
        async with networks(tmp_path, BARE) as nets:
            assert bridges_of(network.bridge) == set()  # nobody used it any more
            await nets.uninstall()

    go(body)


def test_1100_containers_are_on_one_network_in_bounded_time(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        async with networks(tmp_path, BARE) as nets, AsyncExitStack() as stack:
            network = await nets.create("crowd", ipam=[IpamPool(subnet="10.90.0.0/20")])
            on = (EndpointSpec(network="crowd"),)
            begin = time.monotonic()
            found: list[Attachment] = []

            async def some(first: int) -> None:
                for number in range(first, 1100, 8):
                    attachment = await nets.connect(f"c{number}", on, (), f"c{number}")
                    stack.callback(os.close, attachment.namespace)
                    found.append(attachment)

            await asyncio.gather(*(some(first) for first in range(8)))
            took_s = time.monotonic() - begin
            addresses = {attachment.endpoints[0].ipv4 for attachment in found}
            assert len(addresses) == len(nets.members(network.id)) == 1100
            assert len(bridges_of(network.bridge)) == 1
            with answering(found[-1].namespace, 80, name="last"):
                there = found[-1].endpoints[0].ipv4
                answer = await asyncio.to_thread(inside, found[0].namespace, lambda: ask(there, 80))
                assert answer == f"last {found[0].endpoints[0].ipv4}"
            begin = time.monotonic()
            for number in range(1100):
                await nets.disconnect(f"c{number}")
            await stack.aclose()
            await nets._reaper.flush()
            away_s = time.monotonic() - begin
            print(f"1100 endpoints made in {took_s:.1f} s and taken away in {away_s:.1f} s")
            assert took_s < 60 and away_s < 60

    go(body)
