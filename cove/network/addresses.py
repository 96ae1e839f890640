"""Which addresses and subnets are given out: pure bookkeeping.

Owns the rule "lowest free address first, never a living one". What is written to the store, and when,
is `networks`' business; an `AddressPool` is filled from there at start.
"""

from __future__ import annotations

import hashlib
import heapq
import ipaddress
from collections.abc import Collection, Iterable, Sequence

from cove.model.errors import Conflict, Invalid, Unavailable
from cove.model.objects import IpamPool
from cove.network.links import Address, Subnet

# As Docker's: 15 of 65,534 addresses, then 16 of 4,094.
DEFAULT_POOLS = (*((f"172.{i}.0.0/16", 16) for i in range(17, 32)), ("192.168.0.0/16", 20))
_MOST_TRIED = 1 << 16  # subnets of all pools, when one is looked for
_SMALLEST_PREFIX = {4: 30, 6: 126}


class AddressPool:
    """The addresses of one subnet of one network, in memory.

    The network's own, the broadcast, the gateway's and the auxiliary addresses are never given out. A pool
    holds only what is in use: a /64 costs no more than its containers.
    """

    def __init__(
        self,
        subnet: Subnet,
        gateway: Address,
        *,
        ip_range: Subnet | None = None,
        auxiliary: Collection[Address] = (),
        network: str = "",
    ) -> None:
        self.subnet = subnet
        self.gateway = gateway
        self._network = network or str(subnet)
        span = ip_range or subnet
        self._version = type(gateway)
        self._first = int(span.network_address)
        self._last = int(span.broadcast_address)
        reserved = {int(subnet.network_address), int(gateway), *map(int, auxiliary)}
        if subnet.version == 4:
            reserved.add(int(subnet.broadcast_address))
        self._reserved = frozenset(reserved)
        self._used: set[int] = set()
        self._next = self._first  # everything from here on was never given out by take()
        self._freed: list[int] = []  # a heap of what came back below `_next`; may name used ones

    def __len__(self) -> int:
        """How many addresses are in use."""
        return len(self._used)

    def __contains__(self, address: Address) -> bool:
        return int(address) in self._used

    def take(self) -> Address:
        """The lowest free address. Raises Conflict when there is none."""
        while self._freed:
            candidate = heapq.heappop(self._freed)
            if candidate not in self._used:
                return self._give(candidate)
        while self._next <= self._last:
            candidate = self._next
            self._next += 1
            if candidate not in self._used and candidate not in self._reserved:
                return self._give(candidate)
        prefix = max(self.subnet.prefixlen - 1, 1)
        larger = self.subnet.supernet(new_prefix=prefix)
        raise Conflict(
            f"network {self._network} has no free address left in {self.subnet} ({len(self._used)} in use): "
            f"remove a container, or create a network with a larger subnet, e.g. --subnet {larger}"
        )

    def take_exactly(self, address: Address) -> Address:
        """This very address. Raises Invalid when it can't be given out, Conflict when it is in use."""
        if address not in self.subnet:
            raise Invalid(
                f"address {address} isn't in network {self._network}'s subnet {self.subnet}: "
                f"choose one in there, e.g. {self.gateway + 1}"
            )
        if int(address) in self._reserved:
            raise Invalid(f"address {address} of network {self._network} is reserved: choose another one")
        if int(address) in self._used:
            raise Conflict(f"Address already in use: {address} of network {self._network}")
        return self._give(int(address))

    def free(self, address: Address) -> None:
        """Take an address back; one that isn't in use is fine."""
        number = int(address)
        if number in self._used:
            self._used.remove(number)
            if self._first <= number < self._next:
                heapq.heappush(self._freed, number)

    def _give(self, number: int) -> Address:
        self._used.add(number)
        return self._version(number)


class Subnets:
    """The subnets of one network, of both families: from the first of a family that has room, an address."""

    def __init__(self, pools: Iterable[AddressPool]) -> None:
        self.pools = tuple(pools)

    def __contains__(self, version: int) -> bool:
        return any(pool.subnet.version == version for pool in self.pools)

    @property
    def versions(self) -> list[int]:
        return sorted({pool.subnet.version for pool in self.pools})

    def take(self, version: int) -> Address:
        """The lowest free address of a family. Raises Conflict when there is none."""
        pools = [pool for pool in self.pools if pool.subnet.version == version]
        for pool in pools[:-1]:
            try:
                return pool.take()
            except Conflict:
                continue
        return pools[-1].take()

    def take_exactly(self, address: Address) -> Address:
        """This very address. Raises Invalid when it can't be given out, Conflict when it is in use."""
        pool = self.pool_of(address)
        if pool is None:
            pool = next(pool for pool in self.pools if pool.subnet.version == address.version)
        return pool.take_exactly(address)

    def free(self, address: Address) -> None:
        """Take an address back; one that isn't in use, or of no subnet here, is fine."""
        pool = self.pool_of(address)
        if pool is not None:
            pool.free(address)

    def pool_of(self, address: Address) -> AddressPool | None:
        return next((pool for pool in self.pools if address in pool.subnet), None)


def parse_pool(pool: IpamPool, *, network: str) -> AddressPool:
    """An IPAM pool as its network's record or a caller has it. Raises Invalid with the field's name."""
    subnet = parse_subnet(pool.subnet)
    gateway: Address = subnet[1]
    if pool.gateway:
        gateway = _parse_within(pool.gateway, subnet, "gateway")
    ip_range = None
    if pool.ip_range:
        ip_range = parse_subnet(pool.ip_range, field="ip-range")
        if ip_range.version != subnet.version or not (ip_range[0] in subnet and ip_range[-1] in subnet):
            raise Invalid(
                f"ip-range {ip_range} isn't part of subnet {subnet}: choose a smaller one within it"
            )
    auxiliary = {
        name: _parse_within(value, subnet, f"aux-address {name}") for name, value in pool.auxiliary.items()
    }
    if gateway in auxiliary.values():
        raise Invalid(f"aux-address {gateway} of network {network} is the gateway's: name another one")
    return AddressPool(subnet, gateway, ip_range=ip_range, auxiliary=auxiliary.values(), network=network)


def parse_subnet(value: str, *, field: str = "subnet", unspecified: bool = False) -> Subnet:
    """A subnet that can hold a gateway and a container. Raises Invalid.

    `unspecified`: 0.0.0.0/N and ::/N are fine, and stand for a free subnet of that size.
    """
    try:
        subnet = ipaddress.ip_network(value)
    except ValueError as error:
        raise Invalid(f"{field} {value!r}: {error}; expected a network such as 10.1.0.0/24") from None
    if field == "subnet" and subnet.prefixlen > _SMALLEST_PREFIX[subnet.version]:
        raise Invalid(
            f"subnet {subnet} is too small: a gateway and a container "
            f"need /{_SMALLEST_PREFIX[subnet.version]} or larger"
        )
    if subnet.network_address.is_unspecified and not (unspecified and subnet.prefixlen):
        raise Invalid(f"{field} {subnet} is no network of its own: choose a private one such as 10.1.0.0/24")
    if subnet.is_loopback or subnet.is_multicast or subnet.is_link_local:
        raise Invalid(f"{field} {subnet} has a special meaning: choose a private one such as 10.1.0.0/24")
    return subnet


def parse_address(value: str, *, field: str, version: int) -> Address:
    """An address of one family. Raises Invalid with the field's name."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        address = None
    if address is None or address.version != version:
        example = "10.1.0.5" if version == 4 else "fd00:1::5"
        raise Invalid(f"{field} {value!r} isn't an IPv{version} address: expected one such as {example}")
    return address


def parse_link_local(value: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    """A link-local address with its network (RFC 3927, RFC 4291). Raises Invalid."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        address = None
    if address is None or not address.is_link_local:
        raise Invalid(f"link-local-ip {value!r}: expected an address such as 169.254.8.8 or fe80::8")
    return ipaddress.ip_interface(f"{address}/{16 if address.version == 4 else 64}")


def _parse_within(value: str, subnet: Subnet, field: str) -> Address:
    address = parse_address(value, field=field, version=subnet.version)
    if address not in subnet or address == subnet.network_address:
        raise Invalid(f"{field} {address} isn't a host's address in subnet {subnet}: choose e.g. {subnet[1]}")
    return address


def overlapping(subnet: Subnet, taken: Iterable[Subnet]) -> Subnet | None:
    """The first of `taken` that shares an address with `subnet`, or None. Default routes don't count."""
    for other in taken:
        if other.version == subnet.version and other.prefixlen and other.overlaps(subnet):
            return other
    return None


def check_pools(pools: Sequence[tuple[str, int]]) -> None:
    """Refuse default address pools that can't be: (base, prefix length of each subnet). Raises Invalid."""
    for base, size in pools:
        network = parse_subnet(base, field="default-address-pools: base")
        if not network.prefixlen <= size <= _SMALLEST_PREFIX[network.version]:
            raise Invalid(
                f"default-address-pools: size {size} of {network}: expected a prefix length from "
                f"{network.prefixlen} to {_SMALLEST_PREFIX[network.version]}"
            )


def choose_from_pools(
    pools: Sequence[tuple[str, int]], version: int, taken: Iterable[Subnet], *, prefix: int = 0
) -> Subnet | None:
    """The first free subnet of a family, in the pools' order; None where the pools have none of that family.

    `prefix`: the subnet's prefix length, instead of the pools' own. Raises Unavailable when all are taken.
    """
    listed = [other for other in taken if other.version == version and other.prefixlen]
    tried = 0
    some = False
    for base, size in pools:
        network = ipaddress.ip_network(base)
        wanted = prefix or size
        if network.version != version or wanted < network.prefixlen:
            continue
        some = True
        number, step = int(network.network_address), 1 << (network.max_prefixlen - wanted)
        while number <= int(network.broadcast_address) and tried < _MOST_TRIED:
            tried += 1
            candidate: Subnet = type(network)((number, wanted))
            other = overlapping(candidate, listed)
            if other is None:
                return candidate
            # on with the first one behind whatever is in the way
            number = (max(int(other.broadcast_address), number) // step + 1) * step
    if not some and not prefix:
        return None
    raise Unavailable(
        "all predefined address pools have been fully subnetted: name a free subnet, "
        f"e.g. --subnet {'10.1.0.0/24' if version == 4 else 'fd00:1::/64'}"
    )


def choose_subnet_6(seed: str, taken: Iterable[Subnet]) -> Subnet:
    """A unique local /64 (RFC 4193) that follows from `seed`: the same seed gives the same subnet."""
    listed = list(taken)
    for attempt in range(64):
        digest = hashlib.sha256(f"{seed} {attempt}".encode()).digest()
        candidate = ipaddress.IPv6Network((b"\xfd" + digest[:7] + bytes(8), 64))
        if overlapping(candidate, listed) is None:
            return candidate
    raise Unavailable("no free IPv6 subnet was found: name one, e.g. --subnet fd00:1::/64")


def mac_of(address: Address) -> str:
    """The hardware address that goes with an IPv4 address, as Docker makes it: 02:42 and its four bytes."""
    if address.version == 4:
        return "02:42:" + address.packed.hex(":")
    return "02:42:" + hashlib.sha256(address.packed).digest()[:4].hex(":")


def parse_mac(value: str) -> str:
    """A unicast hardware address in lower case with colons. Raises Invalid."""
    parts = value.lower().replace("-", ":").split(":")
    if len(parts) != 6 or any(len(part) != 2 or set(part) - set("0123456789abcdef") for part in parts):
        raise Invalid(f"mac-address {value!r}: expected six bytes such as 02:42:ac:11:00:02")
    if int(parts[0], 16) & 1:
        raise Invalid(f"mac-address {value!r} is a multicast address: use an even first byte, e.g. 02")
    return ":".join(parts)
