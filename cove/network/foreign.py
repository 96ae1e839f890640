"""Rules of others that would drop what Cove forwards: see them, and let Cove's bridges through.

In netfilter a drop is final, whatever another table accepts. dockerd sets the policy of iptables' FORWARD
to DROP, and so do ufw and many a hand-written rule set. So each foreign forward chain with the policy drop
gets two rules for each of Cove's bridges, at its end: an explicit drop of the administrator still counts,
only the policy doesn't. What may reach a bridge is decided by Cove's own table.

Two kinds of chains exist, and a host may have both: those of nf_tables (iptables-nft too) and those of the
older xtables, which only the iptables-legacy commands can change. Blocking.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cove.model.errors import HostError
from cove.network.firewall import Chain, Firewall

log = logging.getLogger(__name__)

_LEGACY = (("ip_tables_names", "iptables-legacy"), ("ip6_tables_names", "ip6tables-legacy"))
_COMMAND_TIMEOUT_S = 20
_RULE = re.compile(r'^\s*(iifname|oifname) "([^"]+)" (?:counter )?accept # handle (\d+)$')


def let_through(firewall: Firewall, bridges: Sequence[str], chains: Sequence[Chain]) -> list[str]:
    """Add what is missing for `bridges`; returns a sentence for each chain that was changed."""
    changed = []
    for chain in chains:
        if not chain.forward_drop or chain.table == firewall.table:
            continue
        where = f"{chain.family} {chain.table} {chain.name}"
        present = {(key, bridge) for key, bridge, _ in _own_rules(firewall, where)}
        wanted = [(key, bridge) for bridge in bridges for key in ("iifname", "oifname")]
        missing = [pair for pair in wanted if pair not in present]
        if missing:
            firewall.run("".join(f'add rule {where} {k} "{b}" counter accept\n' for k, b in missing))
            changed.append(f"chain {where} drops by default: Cove's bridges were let through")
    for command in _legacy_commands():
        absent = _missing_legacy(command, bridges)
        for rule in absent:
            _run(command, "-A", "FORWARD", *rule)
        if absent:
            changed.append(f"{command}'s FORWARD drops by default: Cove's bridges were let through")
    return changed


def let_out(firewall: Firewall, loop: str, chains: Sequence[Chain]) -> list[str]:
    """As let_through, for what OUTPUT chains would keep out of the screen's loop: others' packets, let in already."""
    changed = []
    for chain in chains:
        if not (chain.output and chain.drops) or chain.table == firewall.table:
            continue
        where = f"{chain.family} {chain.table} {chain.name}"
        if all(rule[:2] != ("oifname", loop) for rule in _own_rules(firewall, where)):
            firewall.run(f'add rule {where} oifname "{loop}" counter accept\n')
            changed.append(f"chain {where} drops by default: what goes to published ports was let through")
    for command in _legacy_commands():
        listed = _run(command, "-S", "OUTPUT").splitlines()
        if "-P OUTPUT DROP" in listed and f"-A OUTPUT -o {loop} -j ACCEPT" not in listed:
            _run(command, "-A", "OUTPUT", "-o", loop, "-j", "ACCEPT")
            changed.append(
                f"{command}'s OUTPUT drops by default: what goes to published ports was let through"
            )
    return changed


def find_refusing_legacy() -> str:
    """The first INPUT chain of the older iptables that drops or rejects the rest; "" when there is none."""
    for command in _legacy_commands():
        listed = _run(command, "-S", "INPUT").splitlines()
        final = listed[-1].split() if listed else []
        if "-P INPUT DROP" in listed or (
            final[:3] in (["-A", "INPUT", "-j"],) and final[3] in ("DROP", "REJECT")
        ):
            return f"{command} INPUT"
    return ""


def take_back(firewall: Firewall, bridges: Sequence[str]) -> None:
    """Remove every rule that let_through added for `bridges`, whatever the chains' policies are now."""
    for chain in firewall.chains():
        if chain.table == firewall.table:
            continue
        where = f"{chain.family} {chain.table} {chain.name}"
        if chain.name not in ("FORWARD", "OUTPUT") and not chain.forward_drop and not chain.output:
            continue
        handles = [handle for _, bridge, handle in _own_rules(firewall, where) if bridge in bridges]
        if handles:
            firewall.run("".join(f"delete rule {where} handle {handle}\n" for handle in handles))
    for command in _legacy_commands():
        for name in ("FORWARD", "OUTPUT"):
            listed = _run(command, "-S", name).splitlines()
            for rule in _legacy_rules(bridges):
                if " ".join(("-A", name, *rule)) in listed:
                    _run(command, "-D", name, *rule)


def _own_rules(firewall: Firewall, where: str) -> list[tuple[str, str, str]]:
    """(iifname or oifname, bridge, handle) of the rules of a chain that look like Cove's."""
    rules = []
    for line in firewall.run(f"list chain {where}\n").splitlines():
        found = _RULE.match(line)
        if found:
            rules.append((found[1], found[2], found[3]))
    return rules


def _legacy_commands() -> list[str]:
    """The commands of those families whose xtables have a filter table in this namespace."""
    commands = []
    for names, command in _LEGACY:
        try:
            present = "filter" in Path(f"/proc/thread-self/net/{names}").read_text().split()
        except OSError:
            continue
        if not present:
            continue
        if shutil.which(command) is None:
            log.warning(
                "this host has rules of the older iptables, and %s isn't installed: "
                "if they drop forwarded packets, bridge networks don't reach other machines",
                command,
            )
            continue
        commands.append(command)
    return commands


def _legacy_rules(bridges: Sequence[str]) -> list[tuple[str, ...]]:
    return [(flag, bridge, "-j", "ACCEPT") for bridge in bridges for flag in ("-i", "-o")]


def _missing_legacy(command: str, bridges: Sequence[str]) -> list[tuple[str, ...]]:
    listed = _run(command, "-S", "FORWARD").splitlines()
    if "-P FORWARD DROP" not in listed:
        return []
    return [rule for rule in _legacy_rules(bridges) if " ".join(("-A", "FORWARD", *rule)) not in listed]


def _run(command: str, *arguments: str) -> str:
    try:
        done = subprocess.run(
            [command, "-w", "10", *arguments], capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"{command} failed: {error}") from None
    if done.returncode != 0:
        raise HostError(f"{command} {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout
