"""Further bridges of a network that has more containers than a Linux bridge has ports. Blocking, idempotent.

The first bridge of a network has its addresses and is what rules know. Each further one, a segment, is joined to the
first by a pair of interfaces, the trunk: a star, so that frames find one way only. To containers, to the host and to
the rules it is one network: what a segment's container sends to the host arrives on the first bridge.

Where containers are kept apart, a segment's ports are isolated from each other as those of the first are, and the
trunk's near end counts as such a port: what comes from a segment goes to the host and to nobody else.

Segments are found by their names alone, 1, 2, 3 …, and removed from the last to the first: a crash leaves no gap.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from dataclasses import dataclass

from cove.model.errors import HostError
from cove.network import links
from cove.network.namespaces import write_setting
from cove.network.netlink import Netlink

log = logging.getLogger(__name__)

# The kernel's BR_MAX_PORTS is 1 << 10 and port number 0 isn't used (net/bridge/br_private.h): 1,023 ports. The first
# bridge keeps some of them for trunks; each segment has one for its own end of its trunk.
MOST_SEGMENTS = 63
FIRST_PORTS = 1023 - MOST_SEGMENTS
FURTHER_PORTS = 1022
# As many neighbours as a host with such networks may have, in all namespaces together; the kernel's default is 1,024.
_NEIGHBOURS = {"gc_thresh1": 8192, "gc_thresh2": 49152, "gc_thresh3": 65536}


@dataclass(frozen=True, slots=True)
class Segment:
    """A bridge on the host: its link's index, and the host ends of the containers' interfaces on it."""

    index: int
    ports: set[str]


def segment_name(bridge: str, number: int) -> str:
    """The name of a network's further bridge; 14 bytes at most."""
    return f"cvb{zlib.crc32(bridge.encode()):08x}.{number}"


def trunk_names(bridge: str, number: int) -> tuple[str, str]:
    """The trunk's ends: on the network's first bridge, and on the segment."""
    name = f"cvt{zlib.crc32(bridge.encode()):08x}.{number}"
    return f"{name}a", f"{name}b"


def apply_segment(netlink: Netlink, bridge: str, number: int, *, mtu: int, isolated: bool) -> int:
    """Make or repair a segment; returns its link's index. Raises HostError."""
    name = segment_name(bridge, number)
    near, far = trunk_names(bridge, number)
    first = links.find_link(netlink, bridge)
    if first is None:
        raise HostError(f"bridge {bridge} is gone: restart the daemon, which makes it again")
    if links.find_link(netlink, name) is None:
        netlink.batch([links.make_bridge(name, _mac_of(name), mtu)])
    segment = links.find_link(netlink, name)
    if segment is None or segment.kind != "bridge":
        raise HostError(f"link {name} exists and isn't a bridge: remove it")
    try:
        write_setting(f"net/ipv6/conf/{name}/disable_ipv6", "1")
    except OSError as error:
        log.warning("settings of bridge %s can't be written: %s", name, error)
    if links.find_link(netlink, near) is None:
        netlink.batch([links.make_pair(near, far, mtu)])
    netlink.batch(
        [
            # The kernel answers for any address of the host on any link: the gateway would have two answers.
            links.set_up(segment.index, neighbours=False),
            links.enslave(near, first.index, mtu),
            links.enslave(far, segment.index, mtu),
            # No hairpin: a broadcast would come back to the segment, whose bridge would then look for its sender there.
            links.port_flags(near, hairpin=False, isolated=isolated),
        ]
    )
    return segment.index


def find_segments(netlink: Netlink, bridge: str) -> list[links.Link]:
    """The segments that a network has now, in order."""
    found = []
    for number in range(1, MOST_SEGMENTS + 1):
        link = links.find_link(netlink, segment_name(bridge, number))
        if link is None:
            break
        found.append(link)
    return found


def remove_segments(netlink: Netlink, bridge: str, *, beyond: int = 0) -> None:
    """Remove a network's segments but the first `beyond` ones; those that are gone are fine."""
    for number in range(len(find_segments(netlink, bridge)), beyond, -1):
        netlink.batch(
            [
                links.delete_link(trunk_names(bridge, number)[0]),
                links.delete_link(segment_name(bridge, number)),
            ]
        )


def allow_neighbours() -> None:
    """Let the kernel know more neighbours, where it is set to fewer; only the host's own namespace has the settings."""
    for key, least in _NEIGHBOURS.items():
        for family in ("ipv4", "ipv6"):
            path = f"net/{family}/neigh/default/{key}"
            try:
                with open(f"/proc/sys/{path}") as file:
                    if int(file.read()) < least:
                        write_setting(path, str(least))
            except (OSError, ValueError) as error:
                log.debug("%s can't be raised: %s", path, error)


def _mac_of(name: str) -> str:
    return "06:42:" + hashlib.sha256(name.encode()).digest()[:4].hex(":")
