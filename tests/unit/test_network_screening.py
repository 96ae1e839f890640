"""The screen in front of published ports as data: which chains refuse, what stands in its tables, what disturbs."""

from __future__ import annotations

import struct

import pytest

from cove.network.firewalld import _KNOWN
from cove.network.model import Published
from cove.network.netlink import parse_attributes, zero_terminated
from cove.network.rules import BridgeRules, plan_add, plan_flush, plan_table
from cove.network.screening import loop_of, plan_screen, refuses_the_rest
from cove.network.watch import matters

WEB = Published(protocol="tcp", host_ip="0.0.0.0", host_port=8080, address="10.0.0.2", port=80)


def listing(*rules: str) -> str:
    body = "\n".join(f"\t\t{rule} # handle {number}" for number, rule in enumerate(rules, 5))
    head = "chain c { # handle 1\n\t\ttype filter hook input priority 0; policy accept;"
    return f"table inet t {{\n\t{head}\n{body}\n\t}}\n}}\n"


@pytest.mark.parametrize(
    ("rules", "refuses"),
    [
        ([], False),
        (["tcp dport 22 accept"], False),
        (["tcp dport 22 drop"], False),
        (["drop"], True),
        (["counter drop"], True),
        (["drop", "tcp dport 22 accept"], False),
        (["reject with icmpx admin-prohibited"], True),
        (['limit rate 3/minute log prefix "[BLOCK] "', "counter reject"], True),
        (["jump end"], True),
        (["iifname eth0 jump end"], False),
        (["jump loop"], False),
    ],
)
def test_a_chain_refuses_when_its_last_rule_takes_all_that_is_left(rules: list[str], refuses: bool) -> None:
    chains = {"c": listing(*rules), "end": listing("drop"), "loop": listing("jump loop")}
    assert refuses_the_rest("c", chains.__getitem__) == refuses


def test_screened_ports_stand_in_the_screens_sets_too_and_others_dont() -> None:
    def places(screened: bool) -> list[str]:
        requests = plan_add("cove", [WEB], screened=screened)
        return [zero_terminated(parse_attributes(r.body, 4)[1]) for r in requests]

    assert places(False) == ["cove"]
    assert places(True) == ["cove", "cove-screen"]
    assert len(plan_flush("cove", screened=True)) == len(plan_flush("cove")) + 4


def test_only_containers_and_the_loop_are_translated_at_once() -> None:
    bridge = BridgeRules(bridge="br-1", subnets=())
    plain, screened = (
        plan_table("cove", [bridge], guard=False, screened=s).splitlines() for s in (False, True)
    )
    assert "add rule inet cove prerouting fib daddr type local jump published" in plain
    inner = f'{{ "{loop_of("cove")[1]}", "br-1" }}'
    assert f"add rule inet cove prerouting iifname {inner} fib daddr type local jump published" in screened
    for line in plan_screen("cove", ["br-1"]).splitlines():
        if " dup to " in line:
            assert f"iifname != {inner} ct state new" in line and line.endswith("drop")


def test_daemons_side_by_side_have_loops_of_their_own_whose_names_fit() -> None:
    names = {*loop_of("cove"), *loop_of("cove-1a2b3c4d")}
    assert len(names) == 4
    assert all(len(name) <= 15 for name in names)


def test_elements_that_come_and_go_disturb_nobody() -> None:
    def message(kind: int, size: int = 20) -> bytes:
        return struct.pack("=IHHII", size, kind, 0, 1, 0).ljust(size, b"\0")

    elements = message(0x0A0C) + message(0x0A0E, 36) + message(0x0A0F)
    assert not matters(elements)
    assert matters(elements + message(0x0A02))  # a table is deleted
    for cut in (b"", message(0x0A02)[:10], struct.pack("=IHHII", 3, 0x0A02, 0, 0, 0)):
        assert not matters(cut)


def test_bridges_are_found_in_firewalld_s_chain_however_it_words_the_jump() -> None:
    chain = """table inet firewalld {
        chain filter_FORWARD_ZONES {
                iifname "cove0" goto filter_FWD_trusted # handle 9
                iifname "br-1" goto filter_FWD_public
                goto filter_FWD_public
        }
    }"""
    assert _KNOWN.findall(chain) == ["cove0"]
