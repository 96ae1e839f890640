"""Published ports and the host's own firewall: whose rules decide, and what a reload of them does."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cove.model.container import PortBinding
from cove.network import upkeep
from tests.nethelp import (
    DEFAULT,
    PATIENCE_S,
    SETTINGS,
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
DNS = PortBinding(container_port=53, host_port=5353, protocol="udp")
# What ufw makes of "default deny incoming", and firewalld of its zones: the last word is a chain's, or a rule's.
UFW = """
table inet hostfw {
    chain input { type filter hook input priority filter; policy drop; jump ufw-before; jump ufw-user; }
    chain ufw-before {
        iif lo accept
        ct state established,related accept
        ct state invalid drop
        meta l4proto ipv6-icmp accept
    }
    chain ufw-user { }
}
"""
FIREWALLD = """
table inet hostfw {
    chain input {
        type filter hook input priority filter + 10; policy accept;
        jump ufw-before
        jump ufw-user
        goto last
    }
    chain ufw-before { iif lo accept; ct state established,related accept; meta l4proto ipv6-icmp accept; }
    chain ufw-user { }
    chain last { counter log prefix "refused " reject with icmpx admin-prohibited; }
}
"""


@pytest.fixture
def host() -> Iterator[None]:
    with clean_host():
        yield


def load(text: str) -> None:
    run("sh", "-c", f"nft -f - <<'END'\n{text}\nEND")


async def answer(machine: Machine, address: str, port: int = 8080, kind: str = "tcp") -> str:
    def body() -> str:
        try:
            return ask(address, port, kind=kind, timeout_s=1.5)
        except OSError:
            return ""

    return await asyncio.to_thread(inside, machine.namespace, body)


async def eventually(condition: str, machine: Machine, expected: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (found := await answer(machine, condition)) != expected:
        assert time.monotonic() < deadline, f"{found!r} instead of {expected!r}"


@pytest.mark.parametrize("rules", [UFW, FIREWALLD], ids=["ufw", "firewalld"])
def test_the_hosts_rules_decide_who_reaches_a_published_port_and_clients_keep_their_address(
    host: None, tmp_path: Path, rules: str
) -> None:
    async def body() -> None:
        load(rules)
        run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")  # as ufw and many a distribution have it
        with outside() as machine:
            async with (
                networks(tmp_path) as nets,
                container(nets, "web", WEB, DNS) as web,
                container(nets, "other") as other,
            ):
                assert nets.firewall() == "host: inet hostfw input"
                with (
                    answering(web.namespace, 80, name="web"),
                    answering(web.namespace, 53, kind="udp", name="dns"),
                ):
                    closed = [answer(machine, a) for a in (machine.host_ipv4, machine.host_ipv6)]
                    closed.append(answer(machine, machine.host_ipv4, 5353, "udp"))
                    assert await asyncio.gather(*closed) == ["", "", ""]
                    # the host itself and containers aren't clients from outside
                    assert (await asyncio.to_thread(ask, machine.host_ipv4, 8080)).startswith("web")
                    assert (await asyncio.to_thread(ask, "127.0.0.1", 8080)).startswith("web")
                    by_neighbour = await asyncio.to_thread(
                        inside, other.namespace, lambda: ask(machine.host_ipv4, 8080)
                    )
                    assert by_neighbour.startswith("web")
                    run("nft", "add rule inet hostfw ufw-user tcp dport 8080 accept")
                    run("nft", "add rule inet hostfw ufw-user udp dport 5353 accept")
                    assert await answer(machine, machine.host_ipv4) == f"web {machine.ipv4}"
                    assert await answer(machine, machine.host_ipv6) == f"web {machine.ipv6}"
                    assert await answer(machine, machine.host_ipv4, 5353, "udp") == f"dns {machine.ipv4}"
                    for _ in range(50):
                        assert await answer(machine, machine.host_ipv4) == f"web {machine.ipv4}"
                    run("nft", "flush chain inet hostfw ufw-user")
                    assert await answer(machine, machine.host_ipv4) == ""

    go(body)


@pytest.mark.parametrize("command", ["iptables-nft", "iptables-legacy"])
def test_rules_of_iptables_decide_too(host: None, tmp_path: Path, command: str) -> None:
    async def body() -> None:
        run(command, "-A", "INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT")
        run(command, "-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "ACCEPT")
        run(command, "-P", "INPUT", "DROP")
        with outside() as machine:
            async with networks(tmp_path) as nets, container(nets, "web", WEB) as web:
                assert nets.firewall().startswith("host: ")
                with answering(web.namespace, 80, name="web"):
                    assert await answer(machine, machine.host_ipv4) == ""
                    run(command, "-A", "INPUT", "-p", "tcp", "--dport", "8080", "-j", "ACCEPT")
                    assert await answer(machine, machine.host_ipv4) == f"web {machine.ipv4}"

    go(body)


def test_a_connection_outlives_the_rule_that_let_it_in_and_the_daemon(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        load(UFW)
        run("nft", "add rule inet hostfw ufw-user tcp dport 8080 accept")
        with outside() as machine:
            async with networks(tmp_path) as nets:
                web = await nets.connect("web", DEFAULT, [WEB], "web")
                server = inside(web.namespace, lambda: socket.create_server(("0.0.0.0", 80)))
                address = (machine.host_ipv4, 8080)
                client = inside(machine.namespace, lambda: socket.create_connection(address, PATIENCE_S))
                peer, _ = server.accept()
            # the daemon is gone, and so is the rule
            run("nft", "flush chain inet hostfw ufw-user")
            with server, client, peer:
                payload = b"x" * 300_000  # large segments, not only the first packet
                sending = asyncio.to_thread(client.sendall, payload)
                receiving = asyncio.to_thread(receive, peer, len(payload))
                await asyncio.gather(sending, receiving)
            os.close(web.namespace)

    def receive(peer: socket.socket, wanted: int) -> None:
        peer.settimeout(PATIENCE_S)
        while wanted > 0:
            wanted -= len(peer.recv(65536))

    go(body)


def test_a_host_that_lets_nothing_out_by_default_still_takes_clients_in(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        load(UFW + "add rule inet hostfw ufw-user tcp dport 8080 accept\n")
        run("nft", "add chain inet hostfw output { type filter hook output priority 0; policy drop; }")
        with outside() as machine:
            async with networks(tmp_path) as nets, container(nets, "web", WEB) as web:
                with answering(web.namespace, 80, name="web"):
                    assert await answer(machine, machine.host_ipv4) == f"web {machine.ipv4}"

    go(body)


def test_what_the_daemon_is_told_counts_whatever_the_host_has(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        with outside() as machine:
            async with networks(tmp_path, replace(SETTINGS, firewall="host")) as nets:
                assert nets.firewall() == "host: asked for"
                async with container(nets, "web", WEB) as web:
                    with answering(web.namespace, 80, name="web"):
                        assert await answer(machine, machine.host_ipv4) == f"web {machine.ipv4}"
                        load(UFW)
                        assert await answer(machine, machine.host_ipv4) == ""
            async with (
                networks(tmp_path, replace(SETTINGS, firewall="docker")) as nets,
                container(nets, "web", WEB) as web,
            ):
                assert nets.firewall() == "docker"
                with answering(web.namespace, 80, name="web"):
                    assert await answer(machine, machine.host_ipv4) == f"web {machine.ipv4}"
                assert "cvtest-screen" not in run("nft", "list", "tables")

    go(body)


def test_a_firewall_that_comes_later_is_asked_and_one_that_left_isnt_any_more(
    host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        with outside() as machine:
            async with networks(tmp_path) as nets, container(nets, "web", WEB) as web:
                assert nets.firewall() == "docker"
                with answering(web.namespace, 80, name="web"):
                    assert await answer(machine, machine.host_ipv4) == f"web {machine.ipv4}"
                    load(UFW)  # nobody calls check: the kernel tells
                    await eventually(machine.host_ipv4, machine, "")
                    assert nets.firewall() == "host: inet hostfw input"
                    run("nft", "delete table inet hostfw")
                    await nets.check()
                    assert nets.firewall().startswith("host")  # it may be back in a moment
                    monkeypatch.setattr(upkeep, "_CALM_S", 0.0)
                    await nets.check()
                    assert nets.firewall() == "docker"
                    assert await answer(machine, machine.host_ipv4) == f"web {machine.ipv4}"

    go(body)


def test_after_a_flush_of_all_rules_ports_are_published_again_by_themselves(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        load(UFW)
        run("nft", "add rule inet hostfw ufw-user tcp dport 8080 accept")
        with outside() as machine:
            async with networks(tmp_path) as nets, container(nets, "web", WEB) as web:
                with answering(web.namespace, 80, name="web"):
                    assert await answer(machine, machine.host_ipv4) == f"web {machine.ipv4}"
                    # what nftables.service does on a reload: all in one transaction
                    load("flush ruleset\n" + UFW + "\nadd rule inet hostfw ufw-user tcp dport 8080 accept\n")
                    for address, source in (
                        (machine.host_ipv4, machine.ipv4),
                        (machine.host_ipv6, machine.ipv6),
                    ):
                        await eventually(address, machine, f"web {source}")

    go(body)


def test_others_rules_are_as_before_once_the_daemon_is_gone(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        load(UFW + "add chain inet hostfw out { type filter hook output priority 0; policy drop; }\n")
        run("nft", "add table ip mine")
        run("nft", "add chain ip mine forwarded { type filter hook forward priority 0; policy drop; }")
        before = run("nft", "list", "ruleset")
        async with networks(tmp_path) as nets, container(nets, "web", WEB):
            assert run("nft", "list", "ruleset") != before
            await nets.uninstall()
        assert run("nft", "list", "ruleset") == before
        assert "cvs" not in run("ip", "-o", "link")

    go(body)


def test_without_a_refusing_chain_no_rule_of_others_is_touched(host: None, tmp_path: Path) -> None:
    async def body() -> None:
        run("nft", "add table inet other")
        run("nft", "add chain inet other input { type filter hook input priority 0; }")
        run("nft", "add rule inet other input tcp dport 22 accept")
        before = run("nft", "list", "table", "inet", "other")
        async with networks(tmp_path) as nets, container(nets, "web", WEB):
            await nets.create("more")
            await nets.check()
            assert nets.firewall() == "docker"
            assert run("nft", "list", "table", "inet", "other") == before

    go(body)


def test_a_screened_connection_costs_no_more_than_a_fraction_of_a_millisecond(
    host: None, tmp_path: Path
) -> None:
    async def body() -> None:
        took = {}
        with outside() as machine:

            def connect_often() -> float:
                begin = time.monotonic()
                for _ in range(200):
                    assert reachable(machine.host_ipv4, 8080)
                return (time.monotonic() - begin) / 200 * 1000

            for mode in ("docker", "host"):
                settings = replace(SETTINGS, firewall=mode)
                async with networks(tmp_path, settings) as nets, container(nets, "web", WEB) as web:
                    with answering(web.namespace, 80, name="web"):
                        took[mode] = await asyncio.to_thread(inside, machine.namespace, connect_often)
        print(f"ms for a connection: {took}")
        assert took["host"] < took["docker"] + 2.0

    go(body)
