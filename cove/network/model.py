"""Values of the network room: settings, attachments, host bindings, and the names of the built-in networks.

No I/O. Everything is frozen. Addresses are text at the room's border (as in `cove.model`) and
`ipaddress` objects within.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cove.model.container import Endpoint, PortBinding
from cove.model.errors import HostError, Unavailable

BRIDGE = "bridge"
HOST = "host"
NONE = "none"
BUILT_IN = (BRIDGE, HOST, NONE)


class PortInUse(HostError):
    """A published port is taken, by another container or by a process of the host: choose another one."""

    code = "port-in-use"


class FeatureMissing(Unavailable):
    """The kernel lacks what bridge networks need; `host` and `none` keep working."""

    code = "network-feature-missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """What a daemon is told about its networks.

    `bridge` names the default bridge's link (15 bytes at most), `table` the nftables table (family inet);
    both must be this daemon's own. `ipv4` and `ipv6` are the default bridge's subnets, e.g.
    "172.30.0.0/16" and "fd00:1::/64"; "" chooses a free one, and `ipv6` "none" leaves IPv6 out. `mtu` 0
    takes the one of the default route's link. `pool_size` is how many namespaces are kept ready.

    `bind_outside` is a rootless daemon's: (protocol, address, port) -> a descriptor of a socket that is bound in the
    network namespace of the user, not in the daemon's; what arrives there is relayed. Raises OSError.

    `gateway4`, `gateway6` are the default bridge's own addresses ("": the first), `range4`, `range6` the parts of its
    subnets that addresses are given out of, `bridge_options` its options; `default_options` are those of every new
    network, by driver. `default_address_pools` are pairs of a network and the prefix length of the subnets in it;
    none: Docker's own.
    `firewall` is auto, docker or host.
    """

    bridge: str = "cove0"
    table: str = "cove"
    ipv4: str = ""
    ipv6: str = ""
    mtu: int = 0
    pool_size: int = 4
    bind_outside: Callable[[str, str, int], int] | None = None
    gateway4: str = ""
    gateway6: str = ""
    range4: str = ""
    range6: str = ""
    bridge_options: Mapping[str, str] = field(default_factory=dict)
    default_options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    default_address_pools: tuple[tuple[str, int], ...] = ()
    firewall: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A container's connection to its networks.

    `namespace` is a descriptor of the ready network namespace; whoever receives the attachment closes it
    once a process lives in there. `ports` are the published ports with the host ports that were chosen, one
    for each address family: an asked-for `host_ip` "" comes back as "0.0.0.0" and "::".
    """

    namespace: int
    endpoints: tuple[Endpoint, ...]
    ports: tuple[PortBinding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    """What a container that survived a restart of the daemon holds: see `Networks.reconcile`."""

    endpoints: Sequence[Endpoint] = field(default_factory=tuple)
    ports: Sequence[PortBinding] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One published port of one address family, as the rule set knows it: numeric addresses as text.

    `host_port` 0: the host has no part in it, the container's own address and port are reached (routed networks).
    """

    protocol: str
    host_ip: str  # "0.0.0.0" or "::": every address of the host
    host_port: int
    address: str
    port: int

    @property
    def version(self) -> int:
        return 6 if ":" in self.address else 4

    @property
    def direct(self) -> bool:
        return self.host_port == 0

    @property
    def wildcard(self) -> bool:
        return self.host_ip in ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgePlan:
    """A bridge as it has to be: `addresses` are its own, the gateways of its network."""

    name: str
    mac: str
    mtu: int
    addresses: tuple[ipaddress.IPv4Interface | ipaddress.IPv6Interface, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceStatistics:
    """Counters of one interface since it was made (/proc/PID/net/dev, proc_net(5))."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int
