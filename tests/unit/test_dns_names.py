"""What a container is answered, by what the server was told: names, networks, links, services."""

from __future__ import annotations

import dns.message
import pytest

from cove.engine.resolving import plan_client, plan_records, shown_servers
from cove.model.container import Container, ContainerSpec, Endpoint, EndpointSpec
from cove.model.objects import Network
from cove.network.dns import wire
from cove.network.dns.names import Client, Directory, Joined, Port, Record

WEB = Record(
    "n1", "c1", ("web", "aaaaaaaaaaaa", "www"), ("10.1.0.2", "fd00::2"), (Port(80, "tcp", ("80", "http")),)
)
WEB2 = Record("n1", "c2", ("web2", "www"), ("10.1.0.3",), (Port(80, "tcp", ("80", "http")),))
DB = Record("n2", "c3", ("db", "web"), ("10.2.0.2",))
BOTH = Client("me", (Joined("n1", "front"), Joined("n2", "b.ack")))


@pytest.fixture
def directory() -> Directory:
    made = Directory()
    for record in (WEB, WEB2, DB):
        made.put(record)
    return made


def ask(directory: Directory, client: Client, name: str, kind: str = "A") -> list[str] | None:
    """The answers as text, sorted; None: forwarded."""
    query = wire.parse_query(dns.message.make_query(name, kind).to_wire())
    found = directory.find(client, query)
    if found is None:
        return None
    message = dns.message.from_wire(wire.build_reply(query, 0, found.answers, found.additional))
    return sorted(str(rdata) for rrset in message.answer for rdata in rrset)


@pytest.mark.parametrize(
    ("name", "kind", "answers"),
    [
        ("web", "A", ["10.1.0.2"]),
        ("WEB", "A", ["10.1.0.2"]),
        ("web", "AAAA", ["fd00::2"]),
        ("web2", "AAAA", []),  # known, without such an address: nobody else is asked
        ("web", "MX", []),
        ("web", "ANY", ["10.1.0.2", "fd00::2"]),
        ("www", "A", ["10.1.0.2", "10.1.0.3"]),
        ("www.front", "A", ["10.1.0.2", "10.1.0.3"]),
        ("web.b.ack", "A", ["10.2.0.2"]),
        ("aaaaaaaaaaaa", "A", ["10.1.0.2"]),
        ("db.front", "A", None),
        ("nobody", "A", None),
        ("web.example.com", "A", None),
        ("2.0.1.10.in-addr.arpa", "PTR", ["web.front."]),
        ("2.0.2.10.in-addr.arpa", "PTR", ["db.b.ack."]),
        ("9.0.1.10.in-addr.arpa", "PTR", None),
        ("_http._tcp.www", "SRV", ["0 0 80 web.front.", "0 0 80 web2.front."]),
        ("_80._tcp.web.front", "SRV", ["0 0 80 web.front."]),
        ("_80._udp.web", "SRV", []),
        ("_80._tcp.nobody", "SRV", None),
        ("_80", "SRV", None),
    ],
)
def test_answers(directory: Directory, name: str, kind: str, answers: list[str] | None) -> None:
    assert ask(directory, BOTH, name, kind) == answers


def test_nothing_is_told_of_networks_that_the_client_is_not_on(directory: Directory) -> None:
    stranger = Client("x", (Joined("n2", "b.ack"),))
    assert ask(directory, stranger, "web") == ["10.2.0.2"]
    for name in ("www", "web.front", "_80._tcp.www", "aaaaaaaaaaaa"):
        assert ask(directory, stranger, name) is None
    assert ask(directory, stranger, "2.0.1.10.in-addr.arpa", "PTR") is None


def test_a_link_is_a_name_for_its_owner_alone(directory: Directory) -> None:
    linked = Client("me", (Joined("n1", "front", {"backend": "web2"}),))
    assert ask(directory, linked, "backend") == ["10.1.0.3"]
    assert ask(directory, linked, "backend.front") == ["10.1.0.3"]
    assert ask(directory, BOTH, "backend") is None


def test_a_record_that_goes_or_changes_leaves_nothing(directory: Directory) -> None:
    directory.put(Record("n1", "c1", ("renamed",), ("10.1.0.9",)))
    assert ask(directory, BOTH, "renamed") == ["10.1.0.9"]
    assert ask(directory, BOTH, "aaaaaaaaaaaa") is None
    assert ask(directory, BOTH, "2.0.1.10.in-addr.arpa", "PTR") is None
    for key in directory.entries():
        directory.drop(*key)
    directory.drop("n1", "c1")
    assert directory.entries() == [] and ask(directory, BOTH, "web") is None


def test_a_name_too_long_for_an_answer_is_left_out() -> None:
    directory = Directory()
    directory.put(Record("n", "c", ("x" * 64,), ("10.1.0.2",), (Port(80, "tcp", ("80",)),)))
    client = Client("me", (Joined("n", "front"),))
    assert ask(directory, client, "2.0.1.10.in-addr.arpa", "PTR") == []


# --- from a container's record --------------------------------------------------------------

NETWORKS = {
    "n0": Network(id="n0", name="bridge", driver="bridge", created_ns=0),
    "n1": Network(id="n1", name="front", driver="bridge", created_ns=0),
    "n2": Network(id="n2", name="inner", driver="bridge", created_ns=0, internal=True),
}
HOST = "nameserver 127.0.0.53\nnameserver 9.9.9.9\nsearch corp.example\n"


def endpoint(network_id: str, address: str = "10.0.0.2") -> Endpoint:
    return Endpoint(
        network_id=network_id, network_name=NETWORKS[network_id].name, ipv4=address, aliases=("Api",)
    )


def container(**spec: object) -> Container:
    return Container(
        id="abcdef012345" + "0" * 52,
        name="web",
        created_ns=0,
        image_id="",
        image_name="",
        hostname="Host",
        exposed_ports=("80/tcp", "5000-5001/udp"),
        spec=ContainerSpec(image="", **spec),  # type: ignore[arg-type]
        args=(),
    )


def client(made: Container, *endpoints: Endpoint, loopback: bool = True) -> Client | None:
    return plan_client(made, endpoints, NETWORKS.__getitem__, HOST, loopback=loopback)


def test_who_is_on_the_default_bridge_alone_asks_the_hosts_servers() -> None:
    assert client(container(), endpoint("n0")) is None
    assert plan_records(container(), [endpoint("n0")]) == ()


def test_names_and_ports_of_a_container() -> None:
    [record] = plan_records(container(), [endpoint("n0"), endpoint("n1")])
    assert record.names == ("web", "abcdef012345", "host", "api")
    assert [(port.number, port.protocol) for port in record.ports] == [
        (80, "tcp"),
        (5000, "udp"),
        (5001, "udp"),
    ]
    assert record.ports[0].names == ("80", "http")


@pytest.mark.parametrize(
    ("spec", "networks", "loopback", "servers"),
    [
        ({}, ("n1",), True, ["host(127.0.0.53)", "host(9.9.9.9)"]),
        ({}, ("n1",), False, ["host(9.9.9.9)"]),
        ({}, ("n2",), True, []),
        ({}, ("n2", "n0"), True, ["host(127.0.0.53)", "host(9.9.9.9)"]),
        ({"dns": ("1.1.1.1", "127.0.0.11")}, ("n2",), True, ["1.1.1.1"]),
        (
            {"dns": ("1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4")},
            ("n1",),
            True,
            ["1.1.1.1", "1.1.1.2", "1.1.1.3"],
        ),
    ],
)
def test_which_servers_are_asked(
    spec: dict[str, object], networks: tuple[str, ...], loopback: bool, servers: list[str]
) -> None:
    made = client(container(**spec), *(endpoint(network) for network in networks), loopback=loopback)
    assert made is not None and shown_servers(made) == servers


def test_aliases_of_links_go_by_network() -> None:
    linking = container(
        network_mode="front",
        endpoints=(EndpointSpec(network="front", links=("DB:Database", "f" * 64 + ":x")),),
    )
    made = client(linking, endpoint("n1"))
    assert made is not None and made.networks[0].links == {"database": "db", "x": "f" * 12}


def test_thousands_of_links_fit_into_a_message() -> None:
    many = tuple(f"{'d' * 200}{i}:{'a' * 200}{i}" for i in range(2000))
    linking = container(network_mode="front", endpoints=(EndpointSpec(network="front", links=many),))
    made = client(linking, endpoint("n1"))
    assert made is not None and 50 < len(made.networks[0].links) < 200


def test_thousands_of_aliases_fit_into_a_message() -> None:
    many = Endpoint(
        network_id="n1",
        network_name="front",
        ipv4="10.0.0.2",
        aliases=tuple(f"a{i}" * 20 for i in range(5000)),
    )
    [record] = plan_records(container(), [many])
    assert sum(map(len, record.names)) < 64 << 10 and record.names[0] == "web"
