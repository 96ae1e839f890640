"""Networks over time: repair at start, restart, crash, uninstall, foreign firewalls, several networks."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cove.model.container import EndpointSpec, PortBinding
from cove.model.errors import Conflict, Forbidden, NotFound, Unavailable
from cove.model.objects import IpamPool
from cove.network import foreign, upkeep
from cove.network.model import Alive, FeatureMissing
from tests.nethelp import (
    DEFAULT,
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
WEB = PortBinding(container_port=80, host_port=8080)


@pytest.fixture
def host() -> Iterator[None]:
    with clean_host():
        yield


def bridge_ports(bridge: str = "cvtest0") -> list[str]:
    return [
        line.split(":")[1].split("@")[0].strip()
        for line in run("ip", "-o", "link", "show", "master", bridge).splitlines()
    ]


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for something the kernel does behind; the bound is generous, and the wait is short."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


# --- addresses and the pool ----------------------------------------------------------------


def test_an_endpoint_has_addresses_routes_and_settings_like_dockers(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        async with networks(tmp_path) as nets, container(nets, "one") as one:
            [endpoint] = one.endpoints
            assert (endpoint.ipv4, endpoint.ipv4_prefix, endpoint.gateway4) == (
                "10.213.0.2",
                16,
                "10.213.0.1",
            )
            assert (endpoint.ipv6, endpoint.ipv6_prefix, endpoint.gateway6) == ("fd13::2", 64, "fd13::1")
            assert endpoint.mac == "02:42:0a:d5:00:02"
            assert endpoint.interface == "eth0"
            shown = inside(one.namespace, lambda: run("ip", "addr"))
            assert "10.213.0.2/16 brd 10.213.255.255" in shown
            assert "inet6 fd13::2/64 scope global nodad" in shown
            assert not [line for line in shown.splitlines() if "scope global" in line and "tentative" in line]
            assert "127.0.0.1/8" in shown
            assert "link/ether 02:42:0a:d5:00:02" in shown
            routes = inside(one.namespace, lambda: run("ip", "route") + run("ip", "-6", "route"))
            assert "default via 10.213.0.1 dev eth0" in routes
            assert "default via fd13::1 dev eth0" in routes

    go(body)


def test_a_stopped_containers_address_is_given_out_again_and_never_a_living_ones(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        async with networks(tmp_path, replace(SETTINGS, pool_size=0)) as nets:
            async with container(nets, "one") as one, container(nets, "two") as two:
                assert [c.endpoints[0].ipv4 for c in (one, two)] == ["10.213.0.2", "10.213.0.3"]
            await nets._reaper.flush()
            async with container(nets, "three") as three:
                assert three.endpoints[0].ipv4 == "10.213.0.2"

    go(body)


def test_the_pool_fills_behind_and_many_starts_at_once_all_get_addresses_of_their_own(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        async with networks(tmp_path, replace(SETTINGS, pool_size=2)) as nets:
            await nets._pool.wait_full()
            assert len(nets._pool.names()) == 2
            attachments = await asyncio.gather(*(nets.connect(f"c{i}", DEFAULT, (), "h") for i in range(20)))
            try:
                assert len({a.endpoints[0].ipv4 for a in attachments}) == 20
                assert len(nets.members(nets.find_network("bridge").id)) == 20
            finally:
                for number, attachment in enumerate(attachments):
                    os.close(attachment.namespace)
                    await nets.disconnect(f"c{number}")
                    await nets.disconnect(f"c{number}")
            await nets._reaper.flush()
            await nets._pool.wait_full()
            assert set(bridge_ports()) == nets._pool.names()
            assert await nets._store.range("addresses/") == []

    go(body)


def test_a_cancelled_connect_leaves_nothing(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        async with networks(tmp_path, replace(SETTINGS, pool_size=0)) as nets:
            for delay in (0.0, 0.0002, 0.0005, 0.001, 0.002):
                task = asyncio.get_running_loop().create_task(nets.connect("one", DEFAULT, (WEB,), "one"))
                await asyncio.sleep(delay)
                task.cancel()
                [result] = await asyncio.gather(task, return_exceptions=True)
                if not isinstance(result, BaseException):
                    os.close(result.namespace)
                    await nets.disconnect("one")
            await nets._reaper.flush()
            await eventually(lambda: bridge_ports() == [], "an interface was left")
            assert await nets._store.range("addresses/") == []
            assert nets._publishing.held() == []

    go(body)


# --- restart, crash, repair ----------------------------------------------------------------


def test_living_containers_keep_ports_and_addresses_over_a_restart(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        with outside() as machine:
            async with networks(tmp_path) as nets:
                attachment = await nets.connect("web", DEFAULT, (WEB,), "web")
                gone = await nets.connect(
                    "gone", DEFAULT, (PortBinding(container_port=80, host_port=8081),), "gone"
                )
                ids = [n.id for n in nets.list_networks()]
            os.close(gone.namespace)
            with answering(attachment.namespace, 80, name="web"):
                # Without a daemon, the kernel goes on.
                assert await asyncio.to_thread(ask, "127.0.0.1", 8080) == "web 10.213.0.1"
                async with networks(tmp_path) as nets:
                    assert [n.id for n in nets.list_networks()] == ids
                    alive = {"web": Alive(endpoints=attachment.endpoints, ports=attachment.ports)}
                    await nets.reconcile(alive)
                    for address in ("127.0.0.1", "::1", machine.host_ipv4, machine.host_ipv6):
                        assert (await asyncio.to_thread(ask, address, 8080)).startswith("web ")
                    table = run("nft", "list", "table", "inet", "cvtest")
                    assert "8080" in table
                    assert "8081" not in table
                    keys = [item.key for item in await nets._store.range("addresses/")]
                    assert sorted(key.rsplit("/", 1)[1] for key in keys) == ["10.213.0.2", "fd13::2"]
                    async with container(nets, "next") as other:
                        assert other.endpoints[0].ipv4 != attachment.endpoints[0].ipv4
                    with pytest.raises(Conflict, match="connected already"):
                        await nets.connect("web", DEFAULT, (), "web")
                    os.close(attachment.namespace)
                    await nets.disconnect("web")
                    await nets._reaper.flush()
                    assert "8080" not in run("nft", "list", "table", "inet", "cvtest")

    go(body)


def test_a_start_repairs_what_was_damaged(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        with outside() as machine:
            async with networks(tmp_path) as nets:
                attachment = await nets.connect("web", DEFAULT, (WEB,), "web")
            run("nft", "flush", "chain", "inet", "cvtest", "published")
            run("nft", "delete", "chain", "inet", "cvtest", "raw")
            run("ip", "addr", "del", "10.213.0.1/16", "dev", "cvtest0")
            run("ip", "addr", "add", "10.99.0.1/24", "dev", "cvtest0")
            run("ip", "link", "set", "cvtest0", "down")
            run("sysctl", "-qw", "net.ipv4.ip_forward=0")
            async with networks(tmp_path) as nets:
                await nets.reconcile({"web": Alive(endpoints=attachment.endpoints, ports=attachment.ports)})
                with answering(attachment.namespace, 80, name="web"):
                    answer = await asyncio.to_thread(
                        inside, machine.namespace, lambda: ask(machine.host_ipv4, 8080)
                    )
                    assert answer == f"web {machine.ipv4}"
                assert "10.99.0.1" not in run("ip", "addr", "show", "cvtest0")
                os.close(attachment.namespace)
                await nets.disconnect("web")

    go(body)


def test_a_flushed_rule_set_is_noticed_and_made_again(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        async with networks(tmp_path) as nets, container(nets, "web", WEB) as web:
            with answering(web.namespace, 80, name="web"):
                run("nft", "flush", "ruleset")
                assert not await asyncio.to_thread(reachable, "127.0.0.1", 8080, timeout_s=0.5)
                await nets.check()
                assert await asyncio.to_thread(ask, "127.0.0.1", 8080) == "web 10.213.0.1"

    go(body)


def test_a_table_of_another_shape_is_replaced(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        run("nft", "add", "table", "inet", "cvtest")
        run("nft", "add", "map", "inet", "cvtest", "any4", "{ type inet_service : ipv4_addr; }")
        async with networks(tmp_path) as nets, container(nets, "web", WEB) as web:
            with answering(web.namespace, 80, name="web"):
                assert await asyncio.to_thread(ask, "127.0.0.1", 8080) == "web 10.213.0.1"

    go(body)


CRASHING = """
import asyncio, os, sys
from pathlib import Path
from cove.model.container import EndpointSpec, PortBinding
from cove.network.networks import Networks
from cove.store.sqlite import SqliteStore
from tests.nethelp import SETTINGS

async def main(path):
    store = await SqliteStore.open(path / "state.db")
    nets = await Networks.open(store, settings=SETTINGS, run_dir=path)
    await nets._pool.wait_full()
    await nets.connect("one", [EndpointSpec(network="bridge")], [PortBinding(container_port=80, host_port=8080)], "one")
    print("ready", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main(Path(sys.argv[1])))
"""


def test_a_killed_daemon_leaks_no_namespace_and_the_next_one_frees_what_it_held(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        daemon = subprocess.Popen(
            [sys.executable, "-c", CRASHING, str(tmp_path)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        with daemon:
            try:
                assert daemon.stdout is not None
                assert daemon.stdout.readline() == b"ready\n"
            finally:
                daemon.send_signal(signal.SIGKILL)
        # No process and no mount holds a namespace now: the kernel frees them, and the interfaces with them.
        await eventually(lambda: bridge_ports() == [], "the kernel kept an interface of the killed daemon")
        async with networks(tmp_path) as nets:
            assert "8080" in run("nft", "list", "table", "inet", "cvtest")
            await nets.reconcile({})
            assert "8080" not in run("nft", "list", "table", "inet", "cvtest")
            assert await nets._store.range("addresses/") == []
            async with container(nets, "two", WEB) as two:
                assert {port.host_port for port in two.ports} == {8080}

    go(body)


def test_reconcile_deletes_an_interface_whose_container_is_gone_while_something_holds_its_namespace(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        async with networks(tmp_path) as nets:
            attachment = await nets.connect("one", DEFAULT, (), "one")
        try:
            async with networks(tmp_path) as nets:
                assert attachment.endpoints[0].host_interface in bridge_ports()
                await nets.reconcile({})
                assert attachment.endpoints[0].host_interface not in bridge_ports()
        finally:
            os.close(attachment.namespace)

    go(body)


@pytest.mark.parametrize("forwarding", ["0", "1"])
def test_uninstall_leaves_the_host_as_it_was(host: None, tmp_path: Path, forwarding: str) -> None:
    async def body() -> None:
        run(
            "sysctl", "-qw", f"net.ipv4.ip_forward={forwarding}", f"net.ipv6.conf.all.forwarding={forwarding}"
        )
        run("iptables-nft", "-P", "FORWARD", "DROP")

        def state() -> str:
            return (
                run("ip", "-o", "link")
                + run("ip", "addr")
                + run("ip", "route", "show", "table", "all")
                + run("nft", "list", "ruleset")
                + run("iptables-nft", "-S")
                + run("ip6tables-legacy", "-S")
                + run("iptables-legacy", "-S")
            )

        before = state()
        async with networks(tmp_path) as nets:
            await nets.create("extra", ipv6=True)
            attachment = await nets.connect("web", (*DEFAULT, EndpointSpec(network="extra")), (WEB,), "web")
            assert state() != before
            os.close(attachment.namespace)
            await nets.uninstall()
        assert state() == before

    go(body)


def test_forwarding_is_switched_off_again_only_when_cove_switched_it_on_and_nobody_counts_on_it(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        def forwarding() -> str:
            return Path("/proc/sys/net/ipv4/ip_forward").read_text().strip()

        run("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
        async with networks(tmp_path):
            assert forwarding() == "1"
        async with networks(tmp_path) as nets:  # a restart doesn't forget who it was
            await nets.uninstall()
        assert forwarding() == "0"
        async with networks(tmp_path) as nets:
            run("iptables-nft", "-P", "FORWARD", "DROP")
            await nets.uninstall()
        assert forwarding() == "1"
        assert "guard" not in run("nft", "list", "ruleset")

    go(body)


# --- other firewalls -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_a_forward_policy_of_drop_doesnt_cut_containers_off(host: None, tmp_path: Path, kind: str) -> None:
    async def body() -> None:
        for command in (f"iptables-{kind}", f"ip6tables-{kind}"):
            run(command, "-P", "FORWARD", "DROP")
        with outside() as machine:
            async with networks(tmp_path) as nets, container(nets, "web", WEB) as web:
                with (
                    answering(web.namespace, 80, name="web"),
                    answering(machine.namespace, 9000, name="outside"),
                ):
                    for there, here in ((machine.ipv4, machine.host_ipv4), (machine.ipv6, machine.host_ipv6)):
                        answer = await asyncio.to_thread(
                            inside, machine.namespace, lambda a=here: ask(a, 8080)
                        )
                        assert answer == f"web {there}"
                        answer = await asyncio.to_thread(inside, web.namespace, lambda a=there: ask(a, 9000))
                        assert answer == f"outside {here}"
                # What others may not do, they still may not.
                assert "-P FORWARD DROP" in run(f"iptables-{kind}", "-S")
                rules = run(f"iptables-{kind}", "-S", "FORWARD").splitlines()
                assert [r for r in rules if "cvtest0" in r and "ACCEPT" in r]
                await nets.uninstall()
            for command in (f"iptables-{kind}", f"ip6tables-{kind}"):
                assert run(command, "-S", "FORWARD").splitlines() == ["-P FORWARD DROP"]

    go(body)


@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_a_firewall_that_starts_to_drop_later_is_noticed(host: None, tmp_path: Path, kind: str) -> None:
    async def body() -> None:
        with outside() as machine:
            async with networks(tmp_path) as nets, container(nets, "client") as client:
                with answering(machine.namespace, 9000, name="outside"):
                    run(f"iptables-{kind}", "-P", "FORWARD", "DROP")
                    if kind == "legacy":  # of nf_tables the kernel tells, and nobody has to look
                        assert not await asyncio.to_thread(
                            inside, client.namespace, lambda: reachable(machine.ipv4, 9000)
                        )
                        await nets.check()
                        await nets.check()
                    answer = await asyncio.to_thread(
                        inside, client.namespace, lambda: ask(machine.ipv4, 9000)
                    )
                    assert answer == f"outside {machine.host_ipv4}"
                rules = [r for r in run(f"iptables-{kind}", "-S", "FORWARD").splitlines() if "cvtest0" in r]
                assert len(rules) == 2, "rules were added twice"

    go(body)


def test_a_new_networks_bridge_is_let_through_too_and_a_removed_ones_rules_go(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        run(
            "nft",
            "add table inet admin; add chain inet admin onward { type filter hook forward priority 0; policy drop; }",
        )
        async with networks(tmp_path) as nets:
            extra = await nets.create("extra")
            assert extra.bridge in run("nft", "list", "table", "inet", "admin")
            await nets.remove("extra")
            assert extra.bridge not in run("nft", "list", "table", "inet", "admin")
            assert "cvtest0" in run("nft", "list", "table", "inet", "admin")

    go(body)


def test_a_host_whose_iptables_legacy_is_missing_is_warned(
    host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        run("iptables-legacy", "-P", "FORWARD", "DROP")
        monkeypatch.setattr(foreign.shutil, "which", lambda command: None)
        async with networks(tmp_path):
            pass
        assert "iptables-legacy isn't installed" in caplog.text.replace("%s", "iptables-legacy")

    go(body)


# --- networks of one's own -----------------------------------------------------------------


def test_networks_are_isolated_but_for_published_ports(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        with outside() as machine:
            async with networks(tmp_path) as nets:
                await nets.create("front", ipv6=True)
                on_front = (EndpointSpec(network="front"),)
                async with (
                    container(nets, "web", WEB, on=on_front) as web,
                    container(nets, "other") as other,
                    container(nets, "peer", on=on_front) as peer,
                ):
                    with answering(web.namespace, 80, name="web"):
                        target = web.endpoints[0]
                        for address in (target.ipv4, target.ipv6):
                            assert await asyncio.to_thread(
                                inside,
                                peer.namespace,
                                lambda a=address: reachable(a, 80, timeout_s=PATIENCE_S),
                            )
                            assert not await asyncio.to_thread(
                                inside, other.namespace, lambda a=address: reachable(a, 80)
                            )
                        answer = await asyncio.to_thread(
                            inside, other.namespace, lambda: ask(machine.host_ipv4, 8080)
                        )
                        assert answer.startswith("web ")
                with pytest.raises(Forbidden):
                    async with container(nets, "web", on=on_front):
                        await nets.remove("front")
                front = await nets.remove("front")
                assert front.bridge not in run("ip", "link") + run("nft", "list", "ruleset")

    go(body)


def test_an_internal_network_reaches_its_own_containers_and_the_host_and_nothing_else(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        with outside() as machine:
            async with networks(tmp_path) as nets:
                await nets.create("closed", internal=True)
                closed = (EndpointSpec(network="closed"),)
                async with (
                    container(nets, "db", WEB, on=closed) as db,
                    container(nets, "app", on=closed) as app,
                ):
                    assert db.ports == ()
                    assert db.endpoints[0].gateway4 == ""
                    with answering(db.namespace, 80, name="db"), answering(machine.namespace, 9000):
                        assert (
                            await asyncio.to_thread(
                                inside, app.namespace, lambda: ask(db.endpoints[0].ipv4, 80)
                            )
                        ).startswith("db")
                        gateway = nets.find_network("closed").ipam[0].gateway
                        inside(app.namespace, lambda: run("ip", "route", "add", "default", "via", gateway))
                        assert not await asyncio.to_thread(
                            inside, app.namespace, lambda: reachable(machine.ipv4, 9000)
                        )

    go(body)


def test_a_container_on_two_networks_has_two_interfaces_and_one_default_route(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        async with networks(tmp_path) as nets:
            pool = IpamPool(subnet="10.77.0.0/24", gateway="10.77.0.254", ip_range="10.77.0.128/25")
            await nets.create("back", ipam=[pool])
            both = (
                EndpointSpec(network="back", ipv4="10.77.0.9", mac="02-42-00-00-00-99", aliases=("db",)),
                EndpointSpec(network="bridge"),
            )
            async with container(nets, "one", on=both) as one:
                back, default = one.endpoints
                assert (back.interface, back.ipv4, back.mac, back.gateway4, back.aliases) == (
                    "eth0",
                    "10.77.0.9",
                    "02:42:00:00:00:99",
                    "10.77.0.254",
                    ("db",),
                )
                assert (default.interface, default.gateway4) == ("eth1", "")
                shown = inside(one.namespace, lambda: run("ip", "addr", "show", "dev", "eth0"))
                assert "inet6" not in shown
                with pytest.raises(Conflict, match="Address already in use"):
                    await nets.connect("two", both[:1], (), "two")
                async with container(nets, "three", on=(EndpointSpec(network="back"),)) as three:
                    assert three.endpoints[0].ipv4 == "10.77.0.128"
            # The address comes back as soon as it is asked for again: a restart of the container.
            async with container(nets, "one", on=both) as one:
                assert one.endpoints[0].ipv4 == "10.77.0.9"

    go(body)


def test_a_running_container_is_connected_to_a_network_and_disconnected(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        async with networks(tmp_path) as nets, container(nets, "one") as one:
            extra = await nets.create("extra", ipv6=True)
            held = await nets.attach("one", EndpointSpec(network="extra"), one.namespace)
            endpoint = held.endpoints[-1]
            assert (endpoint.interface, endpoint.gateway4) == ("eth1", "")
            assert endpoint.ipv4 in inside(one.namespace, lambda: run("ip", "addr", "show", "dev", "eth1"))
            assert [name for name, _ in nets.members(extra.id)] == ["one"]
            with pytest.raises(Forbidden, match="already connected"):
                await nets.attach("one", EndpointSpec(network="extra"), one.namespace)
            await nets.detach("one", "extra")
            with pytest.raises(NotFound, match="is not connected"):
                await nets.detach("one", "extra")
            await eventually(
                lambda: "eth1" not in inside(one.namespace, lambda: run("ip", "link")), "the interface stayed"
            )
            await nets._reaper.flush()
            await nets.remove("extra")

    go(body)


def test_a_network_with_inter_container_traffic_off_keeps_its_containers_apart(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        async with networks(tmp_path) as nets:
            await nets.create("apart", options={"com.docker.network.bridge.enable_icc": "false"})
            apart = (EndpointSpec(network="apart"),)
            async with container(nets, "one", WEB, on=apart) as one, container(nets, "two", on=apart) as two:
                with answering(one.namespace, 80, name="one"):
                    assert not await asyncio.to_thread(
                        inside, two.namespace, lambda: reachable(one.endpoints[0].ipv4, 80)
                    )
                    assert await asyncio.to_thread(reachable, "127.0.0.1", 8080, timeout_s=PATIENCE_S)

    go(body)


def test_a_full_network_says_so_and_frees_up_when_a_container_goes(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        async with networks(tmp_path) as nets:
            await nets.create("tiny", ipam=[IpamPool(subnet="10.77.0.0/30")])
            tiny = (EndpointSpec(network="tiny"),)
            async with container(nets, "one", on=tiny):
                with pytest.raises(
                    Conflict, match=r"network tiny has no free address left in 10\.77\.0\.0/30"
                ):
                    await nets.connect("two", tiny, (), "two")
            async with container(nets, "two", on=tiny) as two:
                assert two.endpoints[0].ipv4 == "10.77.0.2"

    go(body)


def test_two_daemons_live_side_by_side_on_one_host(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        other = replace(SETTINGS, bridge="cvtest1", table="cvtest-b", ipv4="", ipv6="")
        async with networks(tmp_path / "a") as one, networks(tmp_path / "b", other) as two:
            async with container(one, "web", WEB) as first, container(two, "web") as second:
                assert second.endpoints[0].ipv4.startswith("172.17.")
                assert second.endpoints[0].ipv6.startswith("fd")
                with answering(first.namespace, 80, name="first"):
                    gateway = one.gateways()[0]
                    answer = await asyncio.to_thread(inside, second.namespace, lambda: ask(gateway, 8080))
                    assert answer.startswith("first ")
            await two.uninstall()
            assert "cvtest0" in run("ip", "link")

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    go(body)


def test_a_kernel_without_nf_tables_keeps_host_and_none(
    host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        def refuse(table: str) -> None:
            raise FeatureMissing("bridge networks need nf_tables, which this kernel lacks (CONFIG_NF_TABLES)")

        monkeypatch.setattr(upkeep, "Firewall", refuse)
        async with networks(tmp_path) as nets:
            assert [n.name for n in nets.list_networks()] == ["bridge", "host", "none"]
            for call in (nets.connect("one", DEFAULT, (), "one"), nets.create("extra")):
                with pytest.raises(Unavailable, match="CONFIG_NF_TABLES"):
                    await call
            await nets.reconcile({})
            await nets.disconnect("one")
            await nets.check()

    go(body)


def test_a_foreign_link_with_the_bridges_name_is_refused_with_a_way_out(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        run("ip", "link", "add", "cvtest0", "type", "veth", "peer", "name", "cvtest9")
        with pytest.raises(Exception, match="cvtest0 exists and isn't a bridge"):
            async with networks(tmp_path):
                pass

    go(body)


def test_a_network_is_found_by_nobody_until_it_is_on_record(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        async with networks(tmp_path, replace(SETTINGS, pool_size=0)) as nets:
            making = asyncio.create_task(nets.create("apart"))
            while "apart" not in {network.name for network in nets._holdings.making.values()}:
                await asyncio.sleep(0)
            with pytest.raises(NotFound):
                await nets.remove("apart")
            with pytest.raises(NotFound):
                await nets.connect("one", (EndpointSpec(network="apart"),), (), "one")
            with pytest.raises(Conflict, match="already exists"):
                await nets.create("apart")
            made = await making
            assert nets.find_network("apart") == made
            await nets.remove("apart")
            assert await nets._store.get(f"networks/{made.id}") is None

    go(body)


def test_an_address_of_a_connecting_that_was_cut_off_is_free_after_the_restart(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        settings = replace(SETTINGS, pool_size=0)
        async with networks(tmp_path, settings) as nets:
            made = await nets.create("apart")
            attachment = await nets.connect("one", DEFAULT, (), "one")
            also = await nets.attach("one", EndpointSpec(network="apart"), attachment.namespace)
            address = next(e.ipv4 for e in also.endpoints if e.network_id == made.id)
        try:
            async with networks(tmp_path, settings) as nets:
                await nets.reconcile({"one": Alive(endpoints=attachment.endpoints, ports=())})  # as on record
                keys = [item.key for item in await nets._store.range("addresses/")]
                assert [key for key in keys if made.id in key] == []
                assert len(keys) == 2
                wanted = EndpointSpec(network="apart", ipv4=address)
                async with container(nets, "two", on=(wanted,)) as two:
                    assert two.endpoints[0].ipv4 == address
                await nets.disconnect("one")
        finally:
            os.close(attachment.namespace)

    go(body)
