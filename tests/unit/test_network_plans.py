"""Rules, records, netlink messages and what a container reads: all of it data, no kernel needed."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.model.container import Endpoint
from cove.model.errors import Conflict, Forbidden, Invalid, NotFound
from cove.model.objects import IpamPool, Network
from cove.network import files, options, records
from cove.network.model import Published
from cove.network.netlink import attribute, each_attribute, nested, parse_attributes, text, zero_terminated
from cove.network.rules import BridgeRules, map_of, plan_add, plan_flush, plan_table
from cove.network.statistics import parse_interfaces

net = ipaddress.ip_network


# --- rules ---------------------------------------------------------------------------------


def rules(*networks: BridgeRules, guard: bool = False) -> list[str]:
    lines = plan_table("cove", networks, guard=guard).splitlines()
    return [line.removeprefix("add rule inet cove ") for line in lines if line.startswith("add rule")]


def bridge(name: str = "cove0", *, internal: bool = False) -> BridgeRules:
    return BridgeRules(bridge=name, subnets=(net("10.1.0.0/24"), net("fd00::/64")), internal=internal)


def test_the_table_keeps_its_elements_and_makes_its_chains_anew() -> None:
    text_ = plan_table("cove", [bridge()], guard=False)
    assert "flush table inet cove" in text_
    assert "flush map" not in text_
    assert "delete" not in text_


def test_nothing_is_translated_for_the_loopback_before_the_kernel_could_drop_it() -> None:
    listed = rules(bridge())
    chain = [rule for rule in listed if rule.startswith("prerouting ")]
    assert chain[0] == "prerouting ip daddr 127.0.0.0/8 return"
    assert 'raw iifname "cove0" ip daddr 127.0.0.0/8 drop' in listed


def test_what_isnt_a_reply_or_published_is_dropped_last() -> None:
    chain = [rule for rule in rules(bridge()) if rule.startswith("to_bridge ")]
    assert chain == [
        "to_bridge ct state established,related accept",
        "to_bridge ct status dnat accept",
        "to_bridge ip daddr . meta l4proto . th dport @open4 accept",
        "to_bridge ip6 daddr . meta l4proto . th dport @open6 accept",
        "to_bridge drop",
    ]


def test_an_internal_networks_drops_come_before_any_accept_and_it_isnt_masqueraded() -> None:
    forward = [
        rule for rule in rules(bridge(), bridge("closed", internal=True)) if rule.startswith("forward ")
    ]
    assert forward[:2] == [
        'forward iifname "closed" oifname != "closed" drop',
        'forward oifname "closed" iifname != "closed" drop',
    ]
    assert not [
        r for r in rules(bridge("closed", internal=True)) if 'oifname != "closed"' in r and "masquerade" in r
    ]


def test_the_guard_is_there_only_when_forwarding_was_off() -> None:
    assert "guard drop" in rules(bridge(), guard=True)
    assert not [rule for rule in rules(bridge()) if rule.startswith("guard ")]


def published(**changes: object) -> Published:
    values = {"protocol": "tcp", "host_ip": "0.0.0.0", "host_port": 8080, "address": "10.1.0.2", "port": 80}
    return Published(**{**values, **changes})  # type: ignore[arg-type]


def test_a_published_port_is_one_element_of_the_map_of_its_kind() -> None:
    cases = {
        "any4": published(),
        "any6": published(host_ip="::", address="fd00::2"),
        "host4": published(host_ip="192.0.2.1"),
        "host6": published(host_ip="2001:db8::1", address="fd00::2"),
    }
    assert {map_of(entry): entry for entry in cases.values()} == cases


def test_an_elements_key_is_padded_part_by_part() -> None:
    [request] = plan_add("cove", [published(host_ip="192.0.2.1", protocol="udp")])
    elements = parse_attributes(request.body, 4)[3]
    element = parse_attributes(parse_attributes(elements)[1])
    key = parse_attributes(element[1])[1]
    data = parse_attributes(element[2])[1]
    assert key == bytes([192, 0, 2, 1]) + b"\x11\0\0\0" + struct.pack(">H", 8080) + b"\0\0"
    assert data == bytes([10, 1, 0, 2]) + struct.pack(">H", 80) + b"\0\0"


def test_an_open_port_of_a_routed_container_and_an_sctp_port_are_elements_too() -> None:
    opened = published(host_port=0, protocol="sctp", address="10.1.0.2", port=90)
    assert map_of(opened) == "open4"
    [request] = plan_add("cove", [opened])
    assert bytes([10, 1, 0, 2, 132, 0, 0, 0]) + struct.pack(">H", 90) in request.body
    [request] = plan_add("cove", [published(protocol="sctp")])
    assert bytes([132, 0, 0, 0]) + struct.pack(">H", 8080) in request.body


def test_many_elements_are_split_into_messages_that_fit_an_attribute() -> None:
    requests = plan_add(
        "cove", [published(host_port=port, host_ip="::", address="fd00::2") for port in range(1, 5001)]
    )
    assert len(requests) > 1
    assert all(len(request.body) < 65536 for request in requests)
    assert sum(len(list(each_attribute(parse_attributes(r.body, 4)[3]))) for r in requests) == 5000
    assert len(plan_flush("cove")) == 6


# --- netlink -------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=300)), max_size=20))
def test_attributes_are_read_back_as_they_were_written(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(attribute(kind, value) for kind, value in pairs)
    assert len(data) % 4 == 0
    assert list(each_attribute(data)) == pairs
    [(kind, value)] = each_attribute(nested(5, *(attribute(k, v) for k, v in pairs)))
    assert (kind, list(each_attribute(value))) == (5, pairs)


@given(st.binary(max_size=200))
def test_whatever_bytes_arrive_are_read_without_an_error(data: bytes) -> None:
    parse_attributes(data)


def test_a_string_attribute_ends_at_its_zero() -> None:
    assert zero_terminated(parse_attributes(text(3, "cove0"))[3]) == "cove0"


# --- records -------------------------------------------------------------------------------

DEFAULT = Network(
    id="a" * 64,
    name="bridge",
    driver="bridge",
    created_ns=1,
    bridge="cove0",
    ipam=(IpamPool(subnet="172.17.0.0/16", gateway="172.17.0.1"),),
)


def plan(name: str = "web", **changes: object) -> Network:
    values: dict[str, object] = {
        "id": "b" * 64,
        "now_ns": 5,
        "driver": "bridge",
        "ipam": (),
        "ipv4": True,
        "ipv6": False,
        "internal": False,
        "attachable": False,
        "labels": {},
        "options": {},
        "existing": [DEFAULT],
        "taken": [],
        "default_mtu": 1400,
        "address_pools": (),
        "seed": "seed",
    }
    return records.plan_network(name, **{**values, **changes})  # type: ignore[arg-type]


def test_a_network_gets_a_free_subnet_its_gateway_and_a_bridge() -> None:
    network = plan(taken=[net("172.18.0.0/24")])
    assert network.ipam == (IpamPool(subnet="172.19.0.0/16", gateway="172.19.0.1"),)
    assert (network.bridge, network.mtu, network.ipv6) == ("br-bbbbbbbbbbbb", 1400, False)
    dual = plan(ipv6=True)
    assert dual.ipv6
    assert [parsed.split(":")[0][:2] for parsed in (dual.ipam[1].subnet,)] == ["fd"]
    assert records.bridge_plan(dual).mac == "02:42:ac:12:00:01"


def test_a_network_has_several_subnets_of_each_family_or_only_ipv6() -> None:
    wanted = ["10.9.0.0/24", "fd00:9::/64", "10.10.0.0/24", "fd00:a::/64"]
    network = plan(ipam=[IpamPool(subnet=subnet) for subnet in wanted])
    assert [pool.subnet for pool in network.ipam] == [wanted[0], wanted[2], wanted[1], wanted[3]]
    addresses = [str(address) for address in records.bridge_plan(network).addresses]
    assert addresses == ["10.9.0.1/24", "10.10.0.1/24", "fd00:9::1/64", "fd00:a::1/64"]
    alone = plan(ipv4=False, ipv6=True)
    assert (alone.ipv4, alone.ipv6, len(alone.ipam)) == (False, True, 1)
    assert plan(options={options.ENABLE_IP[6]: "true"}).ipv6


def test_a_free_subnet_has_the_size_that_is_asked_for() -> None:
    pools = (("10.64.0.0/16", 24),)
    network = plan(ipam=[IpamPool(subnet="0.0.0.0/26"), IpamPool(subnet="0.0.0.0/26")], address_pools=pools)
    assert [pool.subnet for pool in network.ipam] == ["10.64.0.0/26", "10.64.0.64/26"]
    assert plan(address_pools=pools).ipam[0].subnet == "10.64.0.0/24"


def test_an_address_isnt_on_the_bridge_where_that_is_inhibited_or_the_network_isolated() -> None:
    inhibited = plan(ipv6=True, options={options.INHIBIT: "true"})
    assert [a.version for a in records.bridge_plan(inhibited).addresses] == [6]
    isolated = plan(internal=True, options={options.GATEWAY_MODE[4]: "isolated"})
    assert records.bridge_plan(isolated).addresses == ()


@pytest.mark.parametrize("text", ["net.ipv4.conf.eth0.forwarding=1", "kernel.x=1", "net.ipv4.conf.IFNAME.x"])
def test_settings_of_an_endpoint_are_its_own_interfaces_only(text: str) -> None:
    with pytest.raises(Invalid, match="IFNAME"):
        options.parse_sysctls({options.SYSCTLS: text})
    good = "net.ipv4.conf.IFNAME.log_martians=1, net.ipv6.conf.IFNAME.hop_limit=7"
    assert options.parse_sysctls({options.SYSCTLS: good}) == (
        ("net/ipv4/conf/IFNAME/log_martians", "1"),
        ("net/ipv6/conf/IFNAME/hop_limit", "7"),
    )


def test_ipv4_comes_first_whatever_the_order_asked_for() -> None:
    pools = [IpamPool(subnet="fd00:9::/64"), IpamPool(subnet="10.9.0.0/24", gateway="10.9.0.9")]
    network = plan(ipam=pools)
    assert [(pool.subnet, pool.gateway) for pool in network.ipam] == [
        ("10.9.0.0/24", "10.9.0.9"),
        ("fd00:9::/64", "fd00:9::1"),
    ]
    assert network.ipv6


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (Invalid, {"name": "a/b"}),
        (Invalid, {"name": ""}),
        (Conflict, {"name": "bridge"}),
        (Forbidden, {"driver": "host"}),
        (Forbidden, {"ipam": [IpamPool(subnet="172.17.9.0/24")]}),
        (Forbidden, {"ipam": [IpamPool(subnet="10.0.0.0/24"), IpamPool(subnet="10.0.0.0/16")]}),
        (Invalid, {"ipam": [IpamPool(subnet=f"10.{i}.0.0/24") for i in range(33)]}),
        (Invalid, {"ipam": [IpamPool(subnet="10.0.0.0/24")], "ipv4": False}),
        (Invalid, {"ipv4": False}),
        (Invalid, {"ipam": [IpamPool(subnet="0.0.0.0/0")]}),
        (Invalid, {"ipam": [IpamPool(subnet="", gateway="10.0.0.1")]}),
        (Invalid, {"options": {"com.docker.network.driver.mtu": "67"}}),
        (Invalid, {"options": {"com.docker.network.driver.mtu": "100"}, "ipv6": True}),
        (Invalid, {"options": {options.GATEWAY_MODE[4]: "bridge"}}),
        (Invalid, {"options": {options.GATEWAY_MODE[4]: "isolated"}}),
        (Invalid, {"options": {options.GATEWAY_MODE[6]: "routed"}, "internal": True}),
        (Invalid, {"options": {options.BINDING: "fd00::1"}}),
        (Invalid, {"options": {options.TRUSTED: "eth0:a b"}}),
        (Invalid, {"options": {options.PREFIX: "0eth"}}),
        (Invalid, {"options": {"com.docker.network.driver.mtu": "x"}}),
        (Invalid, {"options": {"com.docker.network.bridge.name": "much-too-long-a-name"}}),
        (Conflict, {"options": {"com.docker.network.bridge.name": "cove0"}}),
        (Invalid, {"options": {"com.docker.network.bridge.enable_icc": "maybe"}}),
    ],
)
def test_what_cant_be_is_refused(error: type[Exception], changes: dict[str, object]) -> None:
    with pytest.raises(error):
        plan(**{"name": "web", **changes})  # type: ignore[arg-type]


def test_networks_are_found_by_name_id_and_unique_prefix() -> None:
    networks = [DEFAULT, plan("web"), plan("app", id="b1" * 32)]
    assert records.find_network(networks, "default").name == "bridge"
    assert records.find_network(networks, "a" * 64).name == "bridge"
    assert records.find_network(networks, "bb").name == "web"
    with pytest.raises(Invalid, match="ambiguous"):
        records.find_network(networks, "b")
    for missing in ("", "nothing", "c"):
        with pytest.raises(NotFound):
            records.find_network(networks, missing)


# --- files and statistics ------------------------------------------------------------------


def test_the_hosts_file_names_the_container_by_each_address_and_the_extra_hosts() -> None:
    endpoint = Endpoint(network_id="n", network_name="bridge", ipv4="172.17.0.2", ipv6="fd00::2")
    made = files.hosts_file(
        "web",
        "example.org",
        [endpoint],
        ["db:10.0.0.5", "six=[fd00::9]", "host.docker.internal:host-gateway"],
        ["172.17.0.1", "fd00::1"],
    )
    assert made.splitlines()[0] == "127.0.0.1\tlocalhost"
    assert made.splitlines()[6:] == [
        "10.0.0.5\tdb",
        "fd00::9\tsix",
        "172.17.0.1\thost.docker.internal",
        "fd00::1\thost.docker.internal",
        "172.17.0.2\tweb.example.org web",
        "fd00::2\tweb.example.org web",
    ]


@pytest.mark.parametrize("bad", ["db", ":10.0.0.1", "db:", "db:nowhere", "d b:10.0.0.1", "db:host-gateway"])
def test_a_bad_extra_host_is_refused(bad: str) -> None:
    with pytest.raises(Invalid, match="add-host"):
        files.hosts_file("web", "", [], [bad])


RESOLV = """# made by someone
nameserver 127.0.0.53
nameserver 192.0.2.53
nameserver 2001:db8::53
search a b
options ndots:2
"""


def test_the_hosts_resolver_is_taken_over_without_its_loopback() -> None:
    assert files.resolv_file(RESOLV) == "nameserver 192.0.2.53\nsearch a b\noptions ndots:2\n"
    assert "nameserver 2001:db8::53" in files.resolv_file(RESOLV, ipv6=True)
    assert "nameserver 127.0.0.53" in files.resolv_file(RESOLV, host_network=True)


def test_public_resolvers_stand_in_when_none_is_left() -> None:
    assert files.resolv_file("nameserver ::1\n") == "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"
    assert files.resolv_file("", ipv6=True).count("nameserver") == 4
    assert files.only_stub_resolver("nameserver 127.0.0.53\noptions edns0\n")
    assert not files.only_stub_resolver(RESOLV)


def test_what_the_caller_asks_for_replaces_the_hosts() -> None:
    made = files.resolv_file(RESOLV, dns=["10.0.0.1"], search=["."], options=["rotate"])
    assert made == "nameserver 10.0.0.1\noptions rotate\n"
    with pytest.raises(Invalid, match="not an ip address"):
        files.resolv_file(RESOLV, dns=["dns.example"])
    assert files.hostname_file("web") == "web\n"


def test_interface_counters_are_read_without_the_loopback() -> None:
    content = """Inter-|   Receive          |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0       0
  eth0:12345678      10    1    2    0     0          0         0     4567      20    3    4    0     0       0       0
"""
    [eth0] = parse_interfaces(content)
    assert (eth0.name, eth0.rx_bytes, eth0.rx_packets, eth0.rx_errors, eth0.rx_dropped) == (
        "eth0",
        12345678,
        10,
        1,
        2,
    )
    assert (eth0.tx_bytes, eth0.tx_packets, eth0.tx_errors, eth0.tx_dropped) == (4567, 20, 3, 4)
