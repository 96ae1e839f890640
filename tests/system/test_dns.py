"""Containers on user-defined networks find each other by name: asked from within, by dnspython and busybox."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.flags
import dns.rcode
import pytest
from docker.models.containers import Container

from tests.daemon import Daemon
from tests.dnskit import (
    EMBEDDED,
    ResolvDaemon,
    address,
    answered,
    ask,
    eventually,
    fails,
    found,
    records,
    says,
    servers,
    upstream,
    within,
)

HOST_SERVER = "127.53.0.1"  # on the machine's loopback
RESOLV = f"nameserver {HOST_SERVER}\nsearch corp.example\noptions edns0\n"
_numbers = itertools.count()
Run = Callable[..., Container]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with ResolvDaemon(RESOLV) as running:
        running.load_image()
        yield running


@pytest.fixture
def net(daemon: Daemon) -> Iterator[Callable[..., str]]:
    """Makes networks, and removes them."""
    made = []

    def make(**options: Any) -> str:
        name = f"net{next(_numbers)}"
        made.append(daemon.client.networks.create(name, driver="bridge", **options))
        return name

    yield make
    for network in made:
        network.remove()


@pytest.fixture
def run(net: object, daemon: Daemon, image: str) -> Iterator[Run]:
    """Runs containers that sleep, and removes them before the networks go."""
    made: list[Container] = []

    def start(name: str, network: str, **options: Any) -> Container:
        container = daemon.client.containers.run(
            image,
            options.pop("command", ["sleep", "1000"]),
            name=name,
            network=network,
            detach=True,
            **options,
        )
        made.append(container)
        return container

    yield start
    for container in made:
        container.remove(force=True)


def resolv_of(container: Container) -> str:
    output: bytes = container.exec_run(["cat", "/etc/resolv.conf"]).output
    return output.decode()


# --- names ----------------------------------------------------------------------------------


def test_every_name_of_a_container_is_answered_in_both_families(net: Callable[..., str], run: Run) -> None:
    name = net(enable_ipv6=True)
    asking = run("asking", name)
    web = run("Web.1", name, hostname="front-end", ports={"80/tcp": None})
    v4, v6 = address(web, name), address(web, name, "GlobalIPv6Address")
    assert v4 and v6
    for known in ("Web.1", "web.1", web.short_id, "front-end", f"web.1.{name}", f"FRONT-END.{name}"):
        assert found(asking, known) == [v4], known
        assert found(asking, known, tcp=True) == [v4], known
        assert found(asking, known, "AAAA") == [v6], known
    assert found(asking, "web.1", "TXT") == []
    assert found(asking, "asking") == [address(asking, name)]
    reverse = ".".join(reversed(v4.split("."))) + ".in-addr.arpa"
    assert found(asking, reverse, "PTR") == [f"web.1.{name}."]
    assert found(asking, "_80._tcp.web.1", "SRV") == [f"0 0 80 web.1.{name}."]
    assert found(asking, f"_http._tcp.web.1.{name}", "SRV") == [f"0 0 80 web.1.{name}."]
    shown = asking.exec_run(["busybox", "nslookup", "web.1"]).output.decode()
    assert v4 in shown and v6 in shown


def test_a_name_without_an_ipv6_address_is_an_empty_answer_and_nobody_is_asked(
    net: Callable[..., str], run: Run
) -> None:
    name = net()
    asking = run("asking", name)
    with upstream(says("192.0.2.1"), HOST_SERVER) as server:
        assert found(asking, "asking", "AAAA") == []
        assert found(asking, f"asking.{name}", "HTTPS") == []
    assert server.asked == []


def test_containers_under_one_alias_are_all_answered_in_turn(
    net: Callable[..., str], daemon: Daemon, run: Run
) -> None:
    name = net()
    aliases = {name: daemon.client.api.create_endpoint_config(aliases=["pool", "Shared"])}
    members = [run(f"member{i}", name, networking_config=aliases) for i in range(3)]
    expected = sorted(address(member, name) for member in members)
    assert found(members[0], "pool") == found(members[0], f"shared.{name}") == expected
    firsts = set()
    for _ in range(200):
        firsts.add(str(ask(members[0], "pool").answer[0][0]))
        if len(firsts) == 3:
            break
    assert sorted(firsts) == expected
    members.pop().stop(timeout=0)
    assert found(members[0], "pool") == sorted(address(member, name) for member in members)


def test_names_of_other_networks_are_unknown(net: Callable[..., str], run: Run) -> None:
    front, back = net(), net()
    web, db = run("web", front), run("db", back)
    reverse = ".".join(reversed(address(db, back).split("."))) + ".in-addr.arpa"
    with upstream(fails(dns.rcode.NXDOMAIN), HOST_SERVER):
        for name, kind in (("db", "A"), (f"db.{back}", "A"), (db.short_id, "A"), (reverse, "PTR")):
            assert found(web, name, kind) is None
        assert found(db, "web") is None


def test_links_and_renames(net: Callable[..., str], daemon: Daemon, run: Run) -> None:
    name = net()
    db = run("db", name)
    linked = {name: daemon.client.api.create_endpoint_config(links={"db": "database"})}
    web = run("web", name, networking_config=linked)
    assert found(web, "database") == found(web, "db") == [address(db, name)]
    db.rename("store")
    assert found(web, "store") == [address(db, name)]
    with upstream(fails(dns.rcode.NXDOMAIN), HOST_SERVER):
        assert found(web, "db") is None


def test_a_container_joins_and_leaves_while_it_runs(
    net: Callable[..., str], daemon: Daemon, run: Run
) -> None:
    front = net()
    web = run("web", front)
    late = run("late", "bridge")
    assert EMBEDDED not in resolv_of(late)
    network = daemon.client.networks.get(front)
    network.connect(late, aliases=["newcomer"])
    assert resolv_of(late).startswith(f"nameserver {EMBEDDED}\n")
    assert found(late, "web") == [address(web, front)]
    assert found(web, "newcomer") == [address(late, front)]
    back = net()
    daemon.client.networks.get(back).connect(web)
    assert found(web, "web") in ([address(web, front)], [address(web, back)])
    network.disconnect(late)
    assert EMBEDDED not in resolv_of(late)
    with upstream(fails(dns.rcode.NXDOMAIN), HOST_SERVER):
        assert found(web, "newcomer") is None
    network.connect(late)
    assert found(late, "web") == [address(web, front)]


def test_a_container_that_shares_the_network_shares_the_names(
    net: Callable[..., str], daemon: Daemon, run: Run, image: str
) -> None:
    name = net()
    web = run("web", name)
    output = daemon.client.containers.run(
        image, ["busybox", "nslookup", f"web.{name}"], network_mode=f"container:{web.id}", remove=True
    )
    assert address(web, name).encode() in output


def test_the_first_instruction_resolves(
    net: Callable[..., str], daemon: Daemon, run: Run, image: str
) -> None:
    name = net()
    web = run("web", name)
    for _ in range(10):
        output = daemon.client.containers.run(
            image, ["busybox", "nslookup", f"web.{name}"], network=name, remove=True
        )
        assert address(web, name).encode() in output


def test_containers_that_end_at_once_start_all_the_same(
    net: Callable[..., str], daemon: Daemon, image: str
) -> None:
    body = {"Image": image, "Cmd": ["true"], "HostConfig": {"NetworkMode": net()}}
    for _ in range(60):
        container = daemon.http("POST", "/containers/create", body).json()["Id"]
        started = daemon.http("POST", f"/containers/{container}/start")
        waited = daemon.http("POST", f"/containers/{container}/wait")
        assert daemon.http("DELETE", f"/containers/{container}").status == 204
        assert started.status == 204 and waited.json()["StatusCode"] == 0, started.body


def test_resolv_conf_is_written_as_docker_writes_it(net: Callable[..., str], run: Run) -> None:
    name = net()
    with_host = run("host", name)
    assert resolv_of(with_host) == (
        f"nameserver {EMBEDDED}\nsearch corp.example\noptions edns0 ndots:0\n\n# ExtServers: [host({HOST_SERVER})]\n"
    )
    own = run("own", name, dns=["192.0.2.7"], dns_search=["a.example", "b.example"], dns_opt=["ndots:2"])
    assert resolv_of(own) == (
        f"nameserver {EMBEDDED}\nsearch a.example b.example\noptions ndots:2\n\n# ExtServers: [192.0.2.7]\n"
    )
    assert ask(own, "single").rcode() == dns.rcode.NXDOMAIN  # the client is to search
    for network in ("bridge", "host", "none"):
        assert EMBEDDED not in resolv_of(run(f"on-{network}", network))


def test_added_hosts_work_on_every_network(net: Callable[..., str], run: Run) -> None:
    extra = {"db.example": "192.0.2.9", "outside": "host-gateway"}
    for number, network in enumerate((net(), "bridge", "none")):
        hosts = run(f"c{number}", network, extra_hosts=extra).exec_run(["cat", "/etc/hosts"]).output.decode()
        assert "192.0.2.9\tdb.example" in hosts and "\toutside\n" in hosts


def test_port_53_stays_the_containers_own(net: Callable[..., str], run: Run) -> None:
    web = run("web", net())

    def bind() -> None:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with socket.socket(socket.AF_INET, kind) as own:
                own.bind(("0.0.0.0", 53))

    within(web, bind)
    with upstream(says("192.0.2.53"), "0.0.0.0", web):
        assert found(web, "web") != ["192.0.2.53"]


# --- other servers --------------------------------------------------------------------------


@pytest.fixture
def outside(net: Callable[..., str], run: Run) -> tuple[str, Container]:
    """A network, and a container on it that has servers of the test."""
    name = net()
    return name, run("servers", name)


def asking_of(run: Run, network: str, *addresses: str) -> Container:
    return run("asking", network, dns=list(addresses))


def test_what_is_unknown_is_asked_of_the_hosts_servers(net: Callable[..., str], run: Run) -> None:
    asking = run("asking", net())
    with upstream(says("192.0.2.1"), HOST_SERVER) as server:
        assert found(asking, "www.example.org") == ["192.0.2.1"]
        assert found(asking, "www.example.org", tcp=True) == ["192.0.2.1"]
    assert server.asked == [("www.example.org.", "A", False), ("www.example.org.", "A", True)]


def test_an_internal_network_asks_nobody_outside(net: Callable[..., str], run: Run) -> None:
    name = net(internal=True)
    asking = run("asking", name)
    with upstream(says("192.0.2.1"), HOST_SERVER) as server:
        assert ask(asking, "www.example.org").rcode() == dns.rcode.SERVFAIL
        assert found(asking, "asking") == [address(asking, name)]
    assert server.asked == []


def test_a_cut_answer_is_fetched_by_tcp(outside: tuple[str, Container], run: Run) -> None:
    network, at = outside
    many = [f"198.51.100.{i}" for i in range(60)]

    def reply(message: Any, tcp: bool) -> list[bytes]:
        response = records(message, *many if tcp else ())
        response.flags |= 0 if tcp else dns.flags.TC
        return [response.to_wire()]

    asking = asking_of(run, network, address(at, network))
    with upstream(reply, address(at, network), at) as server:
        assert found(asking, "many.example", use_edns=0, payload=4096) == sorted(many)
        assert [tcp for _, _, tcp in server.asked] == [False, True]
        small = ask(asking, "many.example")
        assert small.flags & dns.flags.TC and not small.answer
        assert found(asking, "many.example", tcp=True) == sorted(many)


def test_a_forged_answer_is_passed_over(outside: tuple[str, Container], run: Run) -> None:
    network, at = outside

    def reply(message: Any, tcp: bool) -> list[bytes]:
        forged = records(message, "203.0.113.66")
        forged.id = message.id ^ 0x5555
        other = records(dns.message.make_query("other.example", "A"), "203.0.113.66")
        other.id = message.id
        return [forged.to_wire(), other.to_wire(), b"", b"junk", records(message, "192.0.2.2").to_wire()]

    asking = asking_of(run, network, address(at, network))
    with upstream(reply, address(at, network), at):
        assert found(asking, "true.example") == ["192.0.2.2"]


@pytest.mark.parametrize("trouble", ["silent", "failing", "closed", "unreachable"])
def test_the_next_server_is_asked(outside: tuple[str, Container], run: Run, trouble: str) -> None:
    network, at = outside
    second = run("second", network)
    first = "192.0.2.255" if trouble == "unreachable" else address(at, network)
    asking = asking_of(run, network, first, address(second, network))
    replies = {"silent": lambda message, tcp: [], "failing": fails(dns.rcode.SERVFAIL)}
    with upstream(says("192.0.2.3"), address(second, network), second):
        if trouble not in replies:
            assert found(asking, "name.example") == ["192.0.2.3"]
            return
        with upstream(replies[trouble], address(at, network), at) as bad:
            for name in ("name.example", "again.example"):
                assert found(asking, name) == ["192.0.2.3"]
        # one that was silent isn't waited for again, one that failed is asked first
        assert len(bad.asked) == (1 if trouble == "silent" else 2)


def test_without_a_server_that_answers_the_answer_says_so(outside: tuple[str, Container], run: Run) -> None:
    network, at = outside
    asking = asking_of(run, network, address(at, network))
    assert ask(asking, "name.example").rcode() == dns.rcode.SERVFAIL  # nothing listens there
    with upstream(fails(dns.rcode.REFUSED), address(at, network), at):
        assert ask(asking, "name.example").rcode() == dns.rcode.REFUSED


# --- strangers ------------------------------------------------------------------------------


def test_a_flood_delays_nobody_else(net: Callable[..., str], run: Run) -> None:
    name = net()
    calm, wild = run("calm", name), run("wild", name, dns=["192.0.2.254"])
    query = dns.message.make_query("unknown.example", "A").to_wire()

    def flood() -> list[float]:
        """Some seconds' worth of queries at once, and how long others wait meanwhile."""
        waits = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((EMBEDDED, 53))
            for _ in range(20):
                for _ in range(1000):
                    sock.send(query)
                answer = ask(calm, "wild")
                assert answer.rcode() == dns.rcode.NOERROR
                waits.append(answer.time)
        return waits

    waits = within(wild, flood)
    assert sorted(waits)[len(waits) // 2] < 0.5, waits
    eventually(lambda: answered(wild, "calm"))  # it loses packets of its own, as long as its flood runs off


def test_packets_that_are_no_queries_harm_nothing(net: Callable[..., str], daemon: Daemon, run: Run) -> None:
    name = net()
    web = run("web", name)
    before = servers(daemon)

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((EMBEDDED, 53))
            for packet in (
                b"",
                b"x",
                b"\0" * 12,
                b"\xff" * 5000,
                b"\0\1\0\0\0\1\0\0\0\0\0\0\x3fa",
                b"\0" * 60000,
            ):
                sock.send(packet)
        for data in (b"", b"\0", b"\0\0", b"\0\5abc", b"\xff\xff" + b"a" * 70000):
            with socket.create_connection((EMBEDDED, 53), 5) as sock:
                sock.sendall(data)

    within(web, send)
    assert found(web, "web") == [address(web, name)]
    assert servers(daemon) == before


def test_idle_connections_are_bounded(net: Callable[..., str], run: Run) -> None:
    name = net()
    web = run("web", name)

    def hold() -> None:
        connections = [socket.create_connection((EMBEDDED, 53), 5) for _ in range(80)]
        try:
            ended = 0
            for connection in connections[64:]:
                connection.settimeout(5)
                ended += connection.recv(1) == b""
            assert ended == 16
        finally:
            for connection in connections:
                connection.close()

    within(web, hold)
    eventually(lambda: answered(web, "web", tcp=True))


def test_the_server_has_no_rights(net: Callable[..., str], daemon: Daemon, run: Run) -> None:
    run("web", net())
    broker, server = servers(daemon)
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{server}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert status["Uid"].split() == ["65534"] * 4 and status["NoNewPrivs"] == "1"
    assert all(int(status[key], 16) == 0 for key in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"))
    assert "CapEff:\t0000000000201000\n" in Path(f"/proc/{broker}/status").read_text()
