"""Networks of other drivers: macvlan on a real parent, what this kernel lacks, and drivers of others."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import pytest

from cove.model.container import EndpointSpec, PortBinding
from cove.model.errors import Conflict, Invalid, NotFound, Unavailable
from cove.model.objects import IpamPool
from cove.network.drivers.parents import MacvlanDriver
from tests.nethelp import answering, ask, clean_host, container, go, inside, networks, outside, reachable, run

pytestmark = pytest.mark.needs_root
LAN = [IpamPool(subnet="198.18.1.0/24", gateway="198.18.1.2", ip_range="198.18.1.64/26")]
ON_LAN = (EndpointSpec(network="lan"),)


@pytest.fixture
def host() -> Iterator[None]:
    with clean_host():
        yield


def has(kind: str) -> bool:
    """Whether the kernel, or a module of its, makes such links. In the test's own namespace."""
    with outside({"ipvlan": 7, "vlan": 8}.get(kind, 9)) as machine:
        parent = ["link", machine.link] if kind in ("ipvlan", "vlan") else []
        run(
            "ip",
            "link",
            "add",
            *parent,
            "name",
            "cvkind",
            "type",
            kind,
            *(["id", "9"] if kind == "vlan" else []),
            check=False,
        )
        made = "cvkind" in run("ip", "link", "show")
        run("ip", "link", "del", "cvkind", check=False)
    return made


def test_macvlan_containers_are_machines_on_the_parents_network(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        with outside() as machine:
            async with networks(tmp_path) as nets:
                network = await nets.create(
                    "lan",
                    driver="macvlan",
                    ipam=LAN,
                    options={"parent": machine.link, "macvlan_mode": "bridge"},
                )
                assert (network.bridge, network.link_made) == (machine.link, False)
                with pytest.raises(Conflict, match="already using parent interface"):
                    await nets.create("again", driver="macvlan", options={"parent": machine.link})
                fixed = (EndpointSpec(network="lan", ipv4="198.18.1.99", mac="02:42:00:00:00:99"),)
                port = PortBinding(container_port=80, host_port=8080)
                async with (
                    container(nets, "a", on=ON_LAN) as a,
                    container(nets, "b", port, on=fixed) as b,
                ):
                    assert a.endpoints[0].ipv4 == "198.18.1.64"
                    assert b.ports == ()  # as with Docker: it has the whole machine's ports anyway
                    with answering(b.namespace, 80, name="b"), answering(machine.namespace, 81, name="far"):
                        for one in (a.namespace, machine.namespace):
                            assert await asyncio.to_thread(inside, one, lambda: reachable("198.18.1.99", 80))
                        seen = await asyncio.to_thread(inside, a.namespace, lambda: ask(machine.ipv4, 81))
                        assert seen == f"far {a.endpoints[0].ipv4}"
                        assert not reachable("198.18.1.99", 80)  # the host itself is kept out by the kernel
                    assert "default via 198.18.1.2" in inside(a.namespace, lambda: run("ip", "route"))
                    assert "02:42:00:00:00:99" in inside(
                        b.namespace, lambda: run("ip", "link", "show", "eth0")
                    )
                await nets._reaper.flush()
                await nets.remove("lan")
                assert machine.link in run("ip", "link")

    go(body)


def test_a_running_container_is_connected_to_a_macvlan_network_and_disconnected(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        with outside() as machine:
            async with networks(tmp_path) as nets:
                await nets.create("lan", driver="macvlan", ipam=LAN, options={"parent": machine.link})
                web = PortBinding(container_port=80, host_port=8080)
                async with container(nets, "a", web) as a:
                    held = await nets.attach(
                        "a", EndpointSpec(network="lan", gateway_priority=1), a.namespace
                    )
                    assert held.endpoints[1].gateway4 == "198.18.1.2"
                    assert [p.host_ip for p in held.ports] == ["::"]  # IPv4 goes by the other network now
                    assert "eth1" in inside(a.namespace, lambda: run("ip", "link"))
                    held = await nets.detach("a", "lan", a.namespace)
                    assert {p.host_ip for p in held.ports} == {"0.0.0.0", "::"}
                    assert "eth1" not in inside(a.namespace, lambda: run("ip", "link"))
                    held = await nets.attach("a", EndpointSpec(network="lan"), a.namespace)
                    assert held.endpoints[1].ipv4 == "198.18.1.64"

    go(body)


@pytest.mark.parametrize("mode", ["l2", "l3", "l3s"])
def test_ipvlan_containers_share_the_parents_hardware_address(host: None, tmp_path: Path, mode: str) -> None:
    if not has("ipvlan"):
        pytest.skip("this kernel has no ipvlan (CONFIG_IPVLAN)")

    async def body() -> None:
        with outside() as machine:
            async with networks(tmp_path) as nets:
                options = {"parent": machine.link, "ipvlan_mode": mode}
                await nets.create("lan", driver="ipvlan", ipam=LAN, options=options)
                with pytest.raises(Invalid, match="do not support custom mac address"):
                    await nets.connect("x", (EndpointSpec(network="lan", mac="02:42:00:00:00:99"),), (), "x")
                async with container(nets, "a", on=ON_LAN) as a, container(nets, "b", on=ON_LAN) as b:
                    assert a.endpoints[0].mac == ""
                    route = inside(a.namespace, lambda: run("ip", "route", "show", "default"))
                    assert ("via 198.18.1.2" in route) == (mode == "l2")
                    assert "dev eth0" in route
                    there = b.endpoints[0].ipv4
                    with answering(b.namespace, 80, name="b"):
                        seen = await asyncio.to_thread(inside, a.namespace, lambda: ask(there, 80))
                        assert seen == f"b {a.endpoints[0].ipv4}"
                        if mode == "l2":  # the others need a route on the machine outside
                            assert await asyncio.to_thread(
                                inside, machine.namespace, lambda: reachable(there, 80)
                            )

    go(body)


def test_a_vlan_of_the_parent_is_made_and_goes_with_its_network(host: None, tmp_path: Path) -> None:
    if not has("vlan"):
        pytest.skip("this kernel has no VLAN interfaces (CONFIG_VLAN_8021Q)")

    async def body() -> None:
        with outside() as machine:
            async with networks(tmp_path) as nets:
                parent = f"{machine.link}.20"
                network = await nets.create("lan", driver="macvlan", ipam=LAN, options={"parent": parent})
                assert network.link_made
                async with container(nets, "a", on=ON_LAN), container(nets, "b", on=ON_LAN) as b:
                    assert "eth0" in inside(b.namespace, lambda: run("ip", "link"))
                await nets.remove("lan")
                assert parent not in run("ip", "link")

    go(body)


def test_a_network_without_a_parent_is_internal(host: None, tmp_path: Path) -> None:
    if not has("dummy"):
        pytest.skip("this kernel has no dummy interfaces (CONFIG_DUMMY)")

    async def body() -> None:
        async with networks(tmp_path) as nets:
            network = await nets.create("lan", driver="macvlan", ipam=LAN)
            assert network.internal and network.bridge in run("ip", "link")
            async with container(nets, "a", on=ON_LAN) as a, container(nets, "b", on=ON_LAN) as b:
                assert a.endpoints[0].gateway4 == ""
                there = b.endpoints[0].ipv4
                with answering(b.namespace, 80, name="b"):
                    assert await asyncio.to_thread(inside, a.namespace, lambda: reachable(there, 80))
            await nets.remove("lan")
            assert network.bridge not in run("ip", "link")

    go(body)


def test_what_the_kernel_lacks_is_told_when_the_network_is_made(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        with outside() as machine:
            async with networks(tmp_path) as nets:
                lacking = {
                    "ipvlan": ("ipvlan", {"parent": machine.link}, "CONFIG_IPVLAN"),
                    "vlan": ("macvlan", {"parent": f"{machine.link}.20"}, "CONFIG_VLAN_8021Q"),
                    "dummy": ("macvlan", {}, "CONFIG_DUMMY"),
                }
                for kind, (driver, options, what) in lacking.items():
                    if has(kind):
                        continue
                    with pytest.raises(Unavailable, match=what):
                        await nets.create("lan", driver=driver, options=options)
                    assert [network.name for network in nets.list_networks()] == ["bridge", "host", "none"]
                for options in (
                    {"parent": "nosuch0"},
                    {"parent": "lo"},
                    {"parent": machine.link, "macvlan_mode": "l2"},
                ):
                    with pytest.raises(Invalid):
                        await nets.create("lan", driver="macvlan", options=options)
                with pytest.raises(NotFound, match="could not find plugin overlay"):
                    await nets.create("lan", driver="overlay")

    go(body)


class Elsewhere(MacvlanDriver):
    """A driver of somebody else."""


def test_a_driver_of_others_is_found_by_its_entry_point_and_missed_when_it_has_left(
    host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = importlib.metadata.EntryPoint(
        "elsewhere", f"{Elsewhere.__module__}:{Elsewhere.__qualname__}", "cove.network_drivers"
    )
    found = [entry]
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda *, group, name: [e for e in found if (e.group, e.name) == (group, name)],
    )

    async def body() -> None:
        with outside() as machine:
            async with networks(tmp_path) as nets:
                await nets.create("lan", driver="elsewhere", ipam=LAN, options={"parent": machine.link})
                async with container(nets, "a", on=ON_LAN) as a:
                    assert a.endpoints[0].ipv4 == "198.18.1.64"
            found.clear()
            async with networks(tmp_path) as nets:
                assert nets.find_network("lan").driver == "elsewhere"
                with pytest.raises(Unavailable, match="needs the driver elsewhere"):
                    await nets.connect("a", ON_LAN, (), "a")
                await nets.remove("lan")

    go(body)
