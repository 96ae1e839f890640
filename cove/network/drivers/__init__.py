"""Network drivers beside `bridge`: how a container's interface comes to be where no bridge of the host's is behind it.

The bridge driver has rules, ports and a pool of ready namespaces, and is the network room itself. Every other driver
is an object with the few methods of `NetworkDriver`. Those of Cove are macvlan and ipvlan; others are found as entry
points of the group `cove.network_drivers` (a class without arguments), when a network that names one is made or loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from cove.model.container import EndpointSpec
from cove.model.errors import NotFound
from cove.model.objects import Network
from cove.network.drivers.parents import IpvlanDriver, MacvlanDriver
from cove.network.namespaces import InterfacePlan
from cove.network.netlink import Netlink

log = logging.getLogger(__name__)

ENTRY_POINTS = "cove.network_drivers"
BUILT_IN = ("macvlan", "ipvlan")


class NetworkDriver(Protocol):
    """What a driver has to be able to do. Methods with a `netlink` block, in a thread of the host's namespace."""

    def plan(self, network: Network, existing: Sequence[Network]) -> Network:
        """The record of a new network, completed: `bridge` is the link that its interfaces hang on.

        An `mtu` 0 is that link's. Pure. Raises Invalid, Conflict.
        """

    def check_endpoint(self, network: Network, spec: EndpointSpec) -> None:
        """Refuse what an endpoint can't have. Pure. Raises Invalid."""

    def has_mac(self, network: Network) -> bool:
        """Whether an endpoint has a hardware address of its own."""

    def routes_by_link(self, network: Network) -> bool:
        """Whether the default route leads to the link as such, and not to a gateway."""

    def apply(self, netlink: Netlink, network: Network) -> bool:
        """Make what the network needs on the host; there already is fine. True: its link was made by this call.

        Raises Unavailable when this kernel can't, Invalid, HostError.
        """

    def remove(self, netlink: Netlink, network: Network) -> None:
        """Remove the link that `apply` made. Raises HostError."""

    def make(self, netlink: Netlink, network: Network, plan: InterfacePlan, namespace: int) -> None:
        """Make the interface `plan.name`, still down, in a namespace (a descriptor). Raises HostError."""


_BUILT_IN: dict[str, NetworkDriver] = {"macvlan": MacvlanDriver(), "ipvlan": IpvlanDriver()}


def find_driver(name: str) -> NetworkDriver:
    """A driver by its name. Raises NotFound."""
    driver = _BUILT_IN.get(name)
    if driver is not None:
        return driver
    from importlib.metadata import entry_points  # 20 ms, which nobody else has to wait for

    for entry in entry_points(group=ENTRY_POINTS, name=name):
        try:
            found: NetworkDriver = entry.load()()
        except Exception as error:  # a stranger's module may fail in any way
            log.error("network driver %s can't be loaded: %s", name, error)
            continue
        return found
    raise NotFound(
        f'network driver "{name}" isn\'t available: could not find plugin {name}; use bridge, macvlan or ipvlan'
    )
