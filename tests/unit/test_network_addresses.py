"""Addresses and subnets: lowest free first, never a living one, and clear words at the end."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.model.errors import Conflict, Invalid, Unavailable
from cove.model.objects import IpamPool
from cove.network.addresses import (
    DEFAULT_POOLS,
    AddressPool,
    check_pools,
    choose_from_pools,
    choose_subnet_6,
    mac_of,
    overlapping,
    parse_link_local,
    parse_mac,
    parse_pool,
    parse_subnet,
)

net, ip = ipaddress.ip_network, ipaddress.ip_address


def pool(subnet: str = "10.1.0.0/29") -> AddressPool:
    return parse_pool(IpamPool(subnet=subnet), network="web")


def test_addresses_are_given_out_lowest_first_without_gateway_network_and_broadcast() -> None:
    addresses = pool()
    assert [str(addresses.take()) for _ in range(5)] == [f"10.1.0.{i}" for i in range(2, 7)]
    with pytest.raises(
        Conflict, match=r"no free address left in 10\.1\.0\.0/29 \(5 in use\).*--subnet 10\.1\.0\.0/28"
    ):
        addresses.take()


def test_a_freed_address_is_the_next_one_when_it_is_the_lowest() -> None:
    addresses = pool()
    taken = [addresses.take() for _ in range(4)]
    addresses.free(taken[2])
    addresses.free(taken[0])
    addresses.free(taken[0])
    assert [addresses.take() for _ in range(3)] == [taken[0], taken[2], ip("10.1.0.6")]


def test_an_address_asked_for_is_given_once() -> None:
    addresses = pool()
    assert addresses.take_exactly(ip("10.1.0.2")) == ip("10.1.0.2")
    with pytest.raises(Conflict, match="Address already in use"):
        addresses.take_exactly(ip("10.1.0.2"))
    assert addresses.take() == ip("10.1.0.3")
    for bad in ("10.1.0.1", "10.1.0.0", "10.1.0.7", "10.2.0.1"):
        with pytest.raises(Invalid):
            addresses.take_exactly(ip(bad))


def test_ipv6_has_no_broadcast_and_a_64_costs_only_what_is_used() -> None:
    addresses = pool("fd00:1::/64")
    assert [str(addresses.take()) for _ in range(2)] == ["fd00:1::2", "fd00:1::3"]
    small = pool("fd00:1::/126")
    assert [str(small.take()) for _ in range(2)] == ["fd00:1::2", "fd00:1::3"]


def test_a_range_bounds_what_is_chosen_but_not_what_is_asked_for() -> None:
    addresses = parse_pool(
        IpamPool(subnet="10.1.0.0/24", gateway="10.1.0.128", ip_range="10.1.0.128/31"), network="web"
    )
    assert str(addresses.take()) == "10.1.0.129"
    with pytest.raises(Conflict):
        addresses.take()
    assert str(addresses.take_exactly(ip("10.1.0.5"))) == "10.1.0.5"
    addresses.free(ip("10.1.0.5"))
    with pytest.raises(Conflict):
        addresses.take()


@given(st.lists(st.tuples(st.sampled_from(["take", "free", "exact"]), st.integers(0, 15)), max_size=80))
def test_no_living_address_is_ever_given_out_and_none_is_lost(steps: list[tuple[str, int]]) -> None:
    addresses = pool("10.1.0.0/28")
    usable = {ip(f"10.1.0.{i}") for i in range(2, 15)}
    living: set[object] = set()
    for step, number in steps:
        address = ip(f"10.1.0.{number}")
        if step == "take":
            if len(living) == len(usable):
                with pytest.raises(Conflict):
                    addresses.take()
                continue
            given_out = addresses.take()
            assert given_out == min(usable - living)
            living.add(given_out)
        elif step == "free":
            addresses.free(address)
            living.discard(address)
        elif address in usable and address not in living:
            living.add(addresses.take_exactly(address))
        else:
            with pytest.raises((Conflict, Invalid)):
                addresses.take_exactly(address)
        assert len(addresses) == len(living)


def test_the_first_free_subnet_is_chosen_and_default_routes_dont_count() -> None:
    taken = [
        net("0.0.0.0/0"),
        net("172.17.5.0/24"),
        net("172.16.0.0/15"),
        net("172.18.0.1/32"),
        net("fd00::/8"),
    ]
    assert choose_from_pools(DEFAULT_POOLS, 4, taken) == net("172.19.0.0/16")
    with pytest.raises(Unavailable, match="--subnet"):
        choose_from_pools(DEFAULT_POOLS, 4, [net("172.16.0.0/12"), net("192.168.0.0/16")])


def test_pools_give_their_subnets_in_order_in_the_size_that_they_or_a_caller_name() -> None:
    pools = [("10.8.0.0/22", 24), ("fd42::/32", 64), ("10.9.0.0/16", 28)]
    assert choose_from_pools(pools, 4, []) == net("10.8.0.0/24")
    assert choose_from_pools(pools, 4, [net("10.8.0.0/23")]) == net("10.8.2.0/24")
    assert choose_from_pools(pools, 4, [net("10.8.0.0/22")]) == net("10.9.0.0/28")
    assert choose_from_pools(pools, 4, [net("10.8.0.0/25")], prefix=26) == net("10.8.0.128/26")
    assert choose_from_pools(pools, 6, [net("fd42::/64")]) == net("fd42:0:0:1::/64")
    assert choose_from_pools(pools[:1], 6, []) is None
    for wrong in (("10.8.0.0/22", 20), ("10.8.0.0/22", 31), ("10.8.0.1/22", 24), ("127.0.0.0/8", 24)):
        with pytest.raises(Invalid, match="default-address-pools"):
            check_pools([wrong])
    check_pools(pools)


def test_an_ipv6_subnet_follows_from_its_seed_and_avoids_what_is_taken() -> None:
    first = choose_subnet_6("seed", [])
    assert first == choose_subnet_6("seed", [])
    assert first.prefixlen == 64
    assert first.subnet_of(net("fd00::/8"))  # type: ignore[arg-type]
    assert choose_subnet_6("other", []) != first
    assert overlapping(choose_subnet_6("seed", [first]), [first]) is None


@pytest.mark.parametrize(
    "bad", ["10.1.0.5/24", "nonsense", "", "127.0.0.0/8", "224.0.0.0/24", "10.1.0.0/31", "169.254.0.0/16"]
)
def test_a_bad_subnet_is_refused_with_its_field(bad: str) -> None:
    with pytest.raises(Invalid, match="subnet"):
        parse_subnet(bad)


@pytest.mark.parametrize(
    "pool",
    [
        IpamPool(subnet="10.1.0.0/24", gateway="10.2.0.1"),
        IpamPool(subnet="10.1.0.0/24", gateway="10.1.0.0"),
        IpamPool(subnet="10.1.0.0/24", gateway="fd00::1"),
        IpamPool(subnet="10.1.0.0/24", ip_range="10.1.0.0/16"),
        IpamPool(subnet="10.1.0.0/24", ip_range="fd00::/64"),
    ],
)
def test_a_gateway_or_range_outside_the_subnet_is_refused(pool: IpamPool) -> None:
    with pytest.raises(Invalid, match=r"gateway|ip-range"):
        parse_pool(pool, network="web")


def test_hardware_addresses() -> None:
    assert mac_of(ip("172.17.0.2")) == "02:42:ac:11:00:02"
    assert mac_of(ip("fd00::2")).startswith("02:42:")
    assert parse_mac("02-42-AC-11-00-02") == "02:42:ac:11:00:02"
    for bad in ("", "02:42:ac:11:00", "02:42:ac:11:00:0g", "01:00:5e:00:00:01", "2:42:ac:11:0:2"):
        with pytest.raises(Invalid, match="mac-address"):
            parse_mac(bad)


def test_auxiliary_addresses_are_never_given_out() -> None:
    pool = parse_pool(
        IpamPool(subnet="10.1.0.0/29", auxiliary={"router": "10.1.0.2", "spare": "10.1.0.4"}), network="n"
    )
    assert [str(pool.take()) for _ in range(3)] == ["10.1.0.3", "10.1.0.5", "10.1.0.6"]
    with pytest.raises(Conflict):
        pool.take()
    with pytest.raises(Invalid, match="is reserved"):
        pool.take_exactly(ipaddress.ip_address("10.1.0.4"))


@pytest.mark.parametrize("address", ["10.2.0.1", "10.1.0.0", "x", "fd00::1", "10.1.0.1"])
def test_an_auxiliary_address_that_can_t_be_is_refused_by_its_name(address: str) -> None:
    with pytest.raises(Invalid, match="aux-address"):
        parse_pool(IpamPool(subnet="10.1.0.0/29", auxiliary={"router": address}), network="n")


def test_a_link_local_address_brings_its_network() -> None:
    assert str(parse_link_local("169.254.8.8")) == "169.254.8.8/16"
    assert str(parse_link_local("fe80::8")) == "fe80::8/64"
    for wrong in ("10.1.0.1", "x", "fd00::1"):
        with pytest.raises(Invalid, match="link-local-ip"):
            parse_link_local(wrong)
