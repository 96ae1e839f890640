"""The screen on the host: is there an INPUT chain that refuses, and the loop and the tables of `screening`. Blocking.

Runs in the reaper's thread; everything is idempotent.
"""

from __future__ import annotations

import ipaddress
import logging

from cove.model.errors import HostError
from cove.network import foreign, links
from cove.network.firewall import Chain, Firewall
from cove.network.model import FeatureMissing
from cove.network.namespaces import write_setting
from cove.network.netlink import Netlink
from cove.network.screening import (
    LOOP_ADDRESS,
    LOOP_MAC,
    LOOP_MARK,
    LOOP_MTU,
    LOOP_ROUTES,
    loop_of,
    plan_no_screen,
    refuses_the_rest,
    table_of,
)

log = logging.getLogger(__name__)


def find_refusing(firewall: Firewall) -> str:
    """The first INPUT chain of others that lets in only what it names, e.g. "ip filter INPUT"; "": there is none."""
    own = (firewall.table, table_of(firewall.table))
    for chain in firewall.chains():
        if chain.input and chain.table not in own and _refuses(firewall, chain):
            return f"{chain.family} {chain.table} {chain.name}"
    return foreign.find_refusing_legacy()


def _refuses(firewall: Firewall, chain: Chain) -> bool:
    def list_chain(name: str) -> str:
        return firewall.run(f"list chain {chain.family} {chain.table} {name}\n")

    try:
        return chain.drops or refuses_the_rest(chain.name, list_chain)
    except FeatureMissing:
        raise
    except HostError:  # gone since, or with an expression that this libnftables can't show
        return False


def apply_loop(netlink: Netlink, table: str) -> None:
    """Make or repair the loop. Raises HostError."""
    out, into = loop_of(table)
    if links.find_link(netlink, out) is None:
        netlink.batch([links.make_loop(out, into, LOOP_MAC, LOOP_MTU)])
    ends = [links.find_link(netlink, name) for name in (out, into)]
    indexes = [end.index for end in ends if end is not None]
    if len(indexes) != 2:
        raise HostError(f"the loop {out} is incomplete: remove the link, it is made again")
    try:
        # Clients' addresses are those of other links: strict filtering (1, also by "all") would drop them.
        write_setting(f"net/ipv4/conf/{into}/rp_filter", "2")
        write_setting(f"net/ipv6/conf/{into}/accept_ra", "0")
    except OSError as error:
        log.warning("settings of loop %s can't be written: %s", into, error)
    netlink.batch(
        [
            *(links.set_up(index) for index in indexes),
            links.add_address(indexes[1], ipaddress.ip_interface(LOOP_ADDRESS)),
            links.route_by_mark(LOOP_MARK, LOOP_ROUTES),
            links.default_route_of(LOOP_ROUTES, indexes[1]),
        ]
    )


def remove_screen(netlink: Netlink, firewall: Firewall) -> None:
    """Remove tables and loop; what is gone is fine."""
    firewall.run(plan_no_screen(firewall.table))
    netlink.batch(
        [
            links.delete_link(loop_of(firewall.table)[0]),
            links.route_by_mark(LOOP_MARK, LOOP_ROUTES, remove=True),
        ]
    )
