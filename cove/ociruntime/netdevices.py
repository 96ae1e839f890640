"""Move network devices of the host into a container's network namespace (config-linux.md, "Network Devices", 1.3).

Order that must hold: every device is looked at before the first is moved; a device's addresses are read before the
move, which takes them away, and given back after it, and then it comes up.

Nobody moves a device back: when the namespace ends, the kernel gives back those that are hardware and removes the
others (network_namespaces(7)).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Mapping

from cove.model.errors import Invalid
from cove.network.links import (
    Link,
    add_address,
    find_link,
    find_link_by_index,
    move_link,
    permanent_addresses_of,
    set_up,
)
from cove.network.netlink import NETLINK_ROUTE, Netlink
from cove.runtime.oci import NetDevice

_CLONE_NEWNET = 0x40000000
_MOST_NUMBERS = 1000  # tried for a template


def move_devices(pid: int, devices: Mapping[str, NetDevice]) -> None:
    """Move them to the namespace of the process `pid`. Raises Invalid for a device or a name that can't be, and
    NetlinkError where the kernel refuses."""
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with Netlink(NETLINK_ROUTE) as outside, _open_inside(namespace) as inside:
            found = [_find(outside, inside, name, device.name or name) for name, device in devices.items()]
            for link, wanted in found:
                _move(outside, inside, link, wanted, namespace)
    finally:
        os.close(namespace)


def _find(outside: Netlink, inside: Netlink, name: str, wanted: str) -> tuple[Link, str]:
    place = f"linux.netDevices.{name}"
    link = find_link(outside, name)
    if link is None:
        raise Invalid(f"{place}: this host has no network device {name}: `ip link` lists what there is")
    if "%d" not in wanted and find_link(inside, wanted) is not None:
        raise Invalid(
            f"{place}: the container's network namespace has a device {wanted} already: give another name, or a "
            f"template like {wanted[:10]}%d"
        )
    return link, wanted


def _move(outside: Netlink, inside: Netlink, link: Link, wanted: str, namespace: int) -> None:
    if "%d" in wanted:
        names = (wanted.replace("%d", str(number)) for number in range(_MOST_NUMBERS))
        wanted = next(name for name in names if find_link(inside, name) is None)
    addresses = permanent_addresses_of(outside, link.index)
    outside.batch([move_link(link.index, wanted, namespace)])
    moved = find_link(inside, wanted) or find_link_by_index(inside, link.index)
    assert moved is not None, wanted
    inside.batch([*(add_address(moved.index, address) for address in addresses), set_up(moved.index)])


def _open_inside(namespace: int) -> Netlink:
    """A socket belongs to the namespace of the thread that opens it: this one ends with that."""
    answer: list[Netlink | OSError] = []

    def open_socket() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace, _CLONE_NEWNET) < 0:
            answer.append(OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())))
            return
        try:
            answer.append(Netlink(NETLINK_ROUTE))
        except OSError as error:
            answer.append(error)

    thread = threading.Thread(target=open_socket)
    thread.start()
    thread.join()
    if isinstance(answer[0], OSError):
        raise answer[0]
    return answer[0]
