"""firewalld: put Cove's bridges into its zone `trusted`, or what containers send out is rejected. Blocking.

firewalld's FORWARD chain ends with a reject, and lets through what its zones name; an unknown interface belongs to the
default zone, which forwards nothing. dockerd makes a zone and a policy of its own in firewalld's permanent
configuration; `trusted`, which firewalld always has, accepts the same without a change of what is stored: bridges are
added to the running configuration, and again after a reload, which forgets them. Who reaches containers is decided by
Cove's own table.

Which bridges are in is seen in firewalld's chain, without asking it: firewall-cmd takes a third of a second.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from collections.abc import Sequence

from cove.model.errors import HostError
from cove.network.firewall import Chain, Firewall

log = logging.getLogger(__name__)

ZONE = "trusted"
_TABLE, _CHAIN = "firewalld", "filter_FORWARD_ZONES"
_KNOWN = re.compile(r'iifname "([^"]+)" goto filter_FWD_' + ZONE)
_TIMEOUT_S = 20


def join_zone(firewall: Firewall, bridges: Sequence[str], chains: Sequence[Chain]) -> list[str]:
    """Add the bridges that are missing; returns them. None where firewalld isn't, or has no nftables. HostError."""
    if not bridges or not any(chain.table == _TABLE and chain.name == _CHAIN for chain in chains):
        return []
    listed = firewall.run(f"list chain inet {_TABLE} {_CHAIN}\n")
    missing = [bridge for bridge in bridges if bridge not in _KNOWN.findall(listed)]
    for bridge in missing:
        _command(f"--zone={ZONE}", f"--change-interface={bridge}")
    return missing


def leave_zone(firewall: Firewall, bridges: Sequence[str]) -> None:
    """Take bridges out again; those that aren't in are fine."""
    chains = firewall.chains()
    if not any(chain.table == _TABLE and chain.name == _CHAIN for chain in chains):
        return
    known = _KNOWN.findall(firewall.run(f"list chain inet {_TABLE} {_CHAIN}\n"))
    for bridge in bridges:
        if bridge in known:
            _command(f"--zone={ZONE}", f"--remove-interface={bridge}")


def _command(*arguments: str) -> None:
    command = shutil.which("firewall-cmd")
    if command is None:
        raise HostError(
            "firewalld rejects what containers send out, and firewall-cmd isn't installed to tell it"
        )
    try:
        done = subprocess.run(
            [command, *arguments],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"firewall-cmd failed: {error}") from None
    if done.returncode != 0:
        raise HostError(f"firewall-cmd {' '.join(arguments)} failed: {done.stderr.strip()[:200]}")
