"""Let the host's own INPUT rules decide who reaches published ports. Pure; docs/decisions says why so.

A published port is translated before the INPUT hook, which therefore never sees it. With screening it is left alone
at first, so that its connection's first packet goes the way of any packet for this host, through every INPUT chain.
Behind the last of them a chain of Cove's waits. What arrives there was let in: the packet is sent round a loop of two
linked interfaces (`dup`, nft(8)), and is translated as it comes in again. The connection is known by then, and all
further packets take the straight way. Neither the client's address nor the daemon's life matter.

    wire → prerouting → INPUT: the host's chains → Cove's: dup, drop
      ╰─ loop (a veth pair) → prerouting: dnat → FORWARD → container

`dup` is there for the families ip and ip6, not for inet: one small table of each.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence

FAMILIES = ("ip", "ip6")
# firewalld drops an IPv6 packet whose sender isn't behind the link that it came by (IPv6_rpfilter, at filter + 10),
# by a lookup that takes the mark into account: meanwhile the loop's packets have one whose routes lead into the loop.
LOOP_MARK, LOOP_ROUTES, AFTER_FIREWALLD = 0xC07D, 127, 20
AFTER_ALL_OTHERS = 290  # the kernel's own helpers come at 300 (netfilter_ipv4.h)
# Where the packet is said to go: any address of no use elsewhere, since the loop asks for no neighbour.
_VIA = {"ip": "192.0.0.8", "ip6": "fe80::1"}  # RFC 7600's dummy address
LOOP_ADDRESS = "192.0.0.8/32"  # without one, the kernel refuses packets of a link by rp_filter
LOOP_MAC = "02:42:00:00:00:01"  # of both ends: each takes what the other sends for its own
LOOP_MTU = 65535
_SET_TYPES = {
    "ip": {"any": "inet_proto . inet_service", "host": "ipv4_addr . inet_proto . inet_service"},
    "ip6": {"any": "inet_proto . inet_service", "host": "ipv6_addr . inet_proto . inet_service"},
}
_FINAL = re.compile(r"(?:counter )?(?:log(?: .*)? )?(?:drop|reject(?: with .*)?)")
_JUMP = re.compile(r"(?:counter )?(?:jump|goto) (\S+)")
_DEEPEST = 8


def table_of(table: str) -> str:
    """The name of the two tables that go with `table`."""
    return f"{table}-screen"


def loop_of(table: str) -> tuple[str, str]:
    """The loop's ends: what is sent into the first comes out of the second."""
    name = f"cvs{zlib.crc32(table.encode()):08x}"
    return f"{name}o", f"{name}i"


def plan_screen(table: str, bridges: Sequence[str]) -> str:
    """The text that makes or repairs both tables; their sets keep their elements."""
    out, into = loop_of(table)
    inner = ", ".join(f'"{name}"' for name in (into, *bridges))
    lines = []
    for family in FAMILIES:
        name = f"{family} {table_of(table)}"
        lines.append(f"add table {name}")
        lines += [f"add set {name} {key} {{ type {kind}; }}" for key, kind in _SET_TYPES[family].items()]
        hook = f"{{ type filter hook input priority {AFTER_ALL_OTHERS}; policy accept; }}"
        lines.append(f"add chain {name} input {hook}")
        lines.append(f"flush table {name}")
        new = f"iifname != {{ {inner} }} ct state new fib daddr type local"
        passed = f'dup to {_VIA[family]} device "{out}" drop'
        lines.append(f"add rule {name} input {new} {family} daddr . meta l4proto . th dport @host {passed}")
        lines.append(f"add rule {name} input {new} meta l4proto . th dport @any {passed}")
    name = f"ip6 {table_of(table)}"
    lines += [
        f"add chain {name} entered {{ type filter hook prerouting priority mangle; policy accept; }}",
        f"add chain {name} checked {{ type filter hook prerouting priority {AFTER_FIREWALLD}; policy accept; }}",
        f'add rule {name} entered iifname "{into}" meta mark 0 meta mark set {LOOP_MARK}',
        f'add rule {name} checked iifname "{into}" meta mark {LOOP_MARK} meta mark set 0',
    ]
    return "\n".join(lines) + "\n"


def plan_no_screen(table: str) -> str:
    """The text that removes both tables; those that are gone are fine (they are made first)."""
    names = [f"{family} {table_of(table)}" for family in FAMILIES]
    return "".join(f"add table {name}\ndelete table {name}\n" for name in names)


def refuses_the_rest(chain: str, list_chain: Callable[[str], str], *, depth: int = 0) -> bool:
    """Whether a chain's last rule drops or rejects whatever came that far; `list_chain` gives a chain as nft's text."""
    rules = [line.partition(" # handle ")[0].strip() for line in list_chain(chain).splitlines()]
    rules = [
        rule for rule in rules if rule and not rule.startswith(("table ", "chain ", "type ", "}", "comment "))
    ]
    if not rules:
        return False
    if _FINAL.fullmatch(rules[-1]):
        return True
    jump = _JUMP.fullmatch(rules[-1])
    return jump is not None and depth < _DEEPEST and refuses_the_rest(jump[1], list_chain, depth=depth + 1)
