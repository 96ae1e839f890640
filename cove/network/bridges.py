"""Bridges and the host's settings for them: make, repair and remove. Blocking.

Runs in a thread whose network namespace is the host's; everything is idempotent, so that a start of the
daemon is a repair. Order that must hold: a bridge's settings before its addresses, its addresses before
forwarding is switched on.
"""

from __future__ import annotations

import errno
import logging
from pathlib import Path

from cove.model.errors import HostError
from cove.network import links
from cove.network.links import Route
from cove.network.model import BridgePlan, FeatureMissing
from cove.network.namespaces import write_setting
from cove.network.netlink import Netlink, NetlinkError

log = logging.getLogger(__name__)

DEFAULT_MTU = 1500
_RTF_DEFAULT, _RTF_ADDRCONF = 0x00010000, 0x00040000  # linux/ipv6_route.h


def apply_bridge(netlink: Netlink, plan: BridgePlan) -> int:
    """Make or repair a bridge; returns the link's index. Raises FeatureMissing, HostError."""
    link = links.find_link(netlink, plan.name)
    if link is None:
        try:
            netlink.batch([links.make_bridge(plan.name, plan.mac, plan.mtu)])
        except NetlinkError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise FeatureMissing(
                    "bridge networks need bridges, which this kernel lacks (CONFIG_BRIDGE)"
                ) from None
            raise
        link = links.find_link(netlink, plan.name)
    if link is None or link.kind != "bridge":
        raise HostError(
            f"link {plan.name} exists and isn't a bridge: remove it, or give Cove another name for its bridge"
        )
    try:
        write_setting(f"net/ipv4/conf/{plan.name}/route_localnet", "1")
        for key, value in (("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0")):
            write_setting(f"net/ipv6/conf/{plan.name}/{key}", value)
    except OSError as error:
        log.warning("settings of bridge %s can't be written: %s", plan.name, error)
    present = links.addresses_of(netlink, link.index)
    requests = [links.delete_address(link.index, a) for a in present if a not in plan.addresses]
    requests += [links.add_address(link.index, a) for a in plan.addresses if a not in present]
    netlink.batch([links.set_up(link.index), *requests])
    return link.index


def remove_bridge(netlink: Netlink, name: str) -> None:
    """Remove a bridge; one that is gone is fine."""
    netlink.batch([links.delete_link(name)])


def default_mtu(netlink: Netlink, routes: list[Route]) -> int:
    """The MTU of the default route's link, so that nothing is lost in a tunnel; 1500 without one."""
    for route in routes:
        if route.destination.prefixlen == 0 and route.gateway is not None and route.link:
            link = links.find_link_by_index(netlink, route.link)
            if link is not None and 1280 <= link.mtu <= 65535:
                return link.mtu
    return DEFAULT_MTU


def has_ipv6() -> bool:
    """Whether the kernel has IPv6 and this host uses it."""
    return _read("net/ipv6/conf/all/disable_ipv6") == "0"


def enable_forwarding(*, ipv6: bool) -> bool:
    """Let the host forward packets; True when it didn't before. A host that refuses gets a warning."""
    changed = False
    try:
        if _read("net/ipv4/ip_forward") == "0":
            write_setting("net/ipv4/ip_forward", "1")
            changed = True
        if ipv6 and _read("net/ipv6/conf/all/forwarding") == "0":
            _keep_router_advertisements()
            write_setting("net/ipv6/conf/all/forwarding", "1")
            changed = True
    except OSError as error:
        log.warning(
            "forwarding can't be switched on (%s): containers reach this host and each other only; "
            "set net.ipv4.ip_forward=1 and net.ipv6.conf.all.forwarding=1",
            error,
        )
    return changed


def disable_forwarding() -> None:
    """Undo enable_forwarding."""
    write_setting("net/ipv4/ip_forward", "0")
    write_setting("net/ipv6/conf/all/forwarding", "0")


def _keep_router_advertisements() -> None:
    """A host that forwards forgets its own IPv6 default route unless accept_ra is 2 (ip-sysctl.rst)."""
    for line in Path("/proc/thread-self/net/ipv6_route").read_text().splitlines():
        fields = line.split()
        wanted = _RTF_DEFAULT | _RTF_ADDRCONF
        if int(fields[8], 16) & wanted == wanted and _read(f"net/ipv6/conf/{fields[9]}/accept_ra") == "1":
            write_setting(f"net/ipv6/conf/{fields[9]}/accept_ra", "2")
            log.info("link %s keeps its IPv6 default route while this host forwards: accept_ra=2", fields[9])


def _read(key: str) -> str:
    try:
        return Path("/proc/sys", key).read_text().strip()
    except OSError:
        return ""
