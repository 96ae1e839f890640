"""macvlan and ipvlan: containers as machines of their own on the network behind one of the host's links, the parent.

Options as Docker's: `parent` (a link, or LINK.VLAN, which is made where it is missing), `macvlan_mode`, `ipvlan_mode`
and `ipvlan_flag`. Without a parent the network is internal, on a dummy link of its own. The host itself can't reach
such containers over their parent: that is how the kernel does it. No port is published for them, and no rule made.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from cove.model.container import EndpointSpec
from cove.model.errors import Conflict, HostError, Invalid, Unavailable
from cove.model.objects import Network
from cove.network import links
from cove.network.namespaces import InterfacePlan
from cove.network.netlink import Netlink, NetlinkError, Request
from cove.network.options import is_link_name

PARENT = "parent"
_MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}  # linux/if_link.h
_IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}
_IPVLAN_FLAGS = {"bridge": 0, "private": 1, "vepa": 2}


@dataclass(frozen=True, slots=True)
class _Vlan:
    """What LINK.VLAN says."""

    link: str
    number: int


class _ParentDriver:
    """What both have in common."""

    kind = ""

    def plan(self, network: Network, existing: Sequence[Network]) -> Network:
        self.link_request(network, "", 0, "", 0, 0)  # its options, checked
        parent = network.options.get(PARENT, "")
        if parent in ("", f"dm-{network.id[:12]}"):
            parent = f"dm-{network.id[:12]}"
            network = msgspec.structs.replace(network, internal=True)
        if not is_link_name(parent) or parent == "lo":
            raise Invalid(
                f"option {PARENT}: {parent!r} isn't a link's name: expected one such as eth0 or eth0.20"
            )
        for other in existing:
            if other.bridge == parent:
                raise Conflict(
                    f"network {other.name} is already using parent interface {parent}: name another one"
                )
        return msgspec.structs.replace(network, bridge=parent)

    def check_endpoint(self, network: Network, spec: EndpointSpec) -> None:
        """Both take what every endpoint may have."""

    def has_mac(self, network: Network) -> bool:
        return True

    def routes_by_link(self, network: Network) -> bool:
        return False

    def apply(self, netlink: Netlink, network: Network) -> bool:
        made = self._apply_parent(netlink, network)
        try:
            self._probe(netlink, network)
        except BaseException:
            if made:
                netlink.batch([links.delete_link(network.bridge)])
            raise
        return made

    def remove(self, netlink: Netlink, network: Network) -> None:
        netlink.batch([links.delete_link(network.bridge)])

    def make(self, netlink: Netlink, network: Network, plan: InterfacePlan, namespace: int) -> None:
        parent = self._parent(netlink, network)
        mtu = plan.mtu or parent.mtu
        netlink.batch([self.link_request(network, plan.name, parent.index, plan.mac, mtu, namespace)])

    def link_request(
        self, network: Network, name: str, parent: int, mac: str, mtu: int, namespace: int
    ) -> Request:
        """The link as a request; a namespace 0 is the host's. Raises Invalid for options that can't be."""
        raise NotImplementedError

    def _parent(self, netlink: Netlink, network: Network) -> links.Link:
        parent = links.find_link(netlink, network.bridge)
        if parent is None:
            raise HostError(
                f"network {network.name}: parent interface {network.bridge} is gone: plug it in, or make it again"
            )
        return parent

    def _apply_parent(self, netlink: Netlink, network: Network) -> bool:
        parent = links.find_link(netlink, network.bridge)
        if parent is not None:
            return False
        if PARENT not in network.options:
            request = links.make_dummy(network.bridge)
            lacks = "a network without a parent needs dummy interfaces (CONFIG_DUMMY)"
        else:
            vlan = _parse_vlan(network.bridge)
            below = links.find_link(netlink, vlan.link) if vlan is not None else None
            if vlan is None or below is None:
                raise Invalid(f"option {PARENT}: this host has no interface {network.bridge}: see `ip link`")
            request = links.make_vlan(network.bridge, below.index, vlan.number)
            lacks = f"parent {network.bridge} needs VLAN interfaces (CONFIG_VLAN_8021Q)"
        try:
            netlink.batch([request])
        except NetlinkError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise Unavailable(f"{lacks}, which this kernel lacks: name a parent that exists") from None
            raise
        made = self._parent(netlink, network)
        netlink.batch([links.set_up(made.index, link_local=False)])
        return True

    def _probe(self, netlink: Netlink, network: Network) -> None:
        """Make such an interface once, and remove it: what the kernel refuses is better known now than at a start."""
        parent = self._parent(netlink, network)
        name = f"cvp{secrets.token_hex(4)}"
        try:
            netlink.batch([self.link_request(network, name, parent.index, "", 0, 0)])
        except NetlinkError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise Unavailable(
                    f'network driver "{self.kind}" needs a kernel with CONFIG_{self.kind.upper()}, which this one '
                    "lacks: use a bridge network"
                ) from None
            raise HostError(
                f"parent interface {network.bridge} takes no {self.kind} interfaces: {error}"
            ) from None
        netlink.batch([links.delete_link(name)])


class MacvlanDriver(_ParentDriver):
    """Each container has a hardware address of its own on the parent's network."""

    kind = "macvlan"

    def link_request(
        self, network: Network, name: str, parent: int, mac: str, mtu: int, namespace: int
    ) -> Request:
        mode = _choose(network.options, "macvlan_mode", _MACVLAN_MODES, "bridge")
        return links.make_macvlan(name, parent, mode, mac=mac, mtu=mtu, namespace=namespace)


class IpvlanDriver(_ParentDriver):
    """All containers have the parent's hardware address, and are told apart by their IP addresses."""

    kind = "ipvlan"

    def link_request(
        self, network: Network, name: str, parent: int, mac: str, mtu: int, namespace: int
    ) -> Request:
        mode = _choose(network.options, "ipvlan_mode", _IPVLAN_MODES, "l2")
        flag = _choose(network.options, "ipvlan_flag", _IPVLAN_FLAGS, "bridge")
        return links.make_ipvlan(name, parent, mode, flag, mtu=mtu, namespace=namespace)

    def check_endpoint(self, network: Network, spec: EndpointSpec) -> None:
        if spec.mac:
            raise Invalid(
                f"mac-address {spec.mac}: ipvlan interfaces do not support custom mac address assignment; leave it "
                "out, or use macvlan"
            )

    def has_mac(self, network: Network) -> bool:
        return False

    def routes_by_link(self, network: Network) -> bool:
        return network.options.get("ipvlan_mode", "l2") != "l2"


def _choose(options: Mapping[str, str], key: str, values: Mapping[str, int], default: str) -> int:
    value = options.get(key, "") or default
    if value not in values:
        raise Invalid(f"option {key}: {value!r}: expected one of {', '.join(values)}")
    return values[value]


def _parse_vlan(name: str) -> _Vlan | None:
    link, dot, number = name.rpartition(".")
    if not dot or not link or not number.isascii() or not number.isdigit() or not 0 < int(number) < 4095:
        return None
    return _Vlan(link, int(number))
