"""What a bridge network's options and an endpoint's driver options say, in Docker's words. Pure.

Options that no one here knows are kept in the record and mean nothing, as with Docker.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cove.model.errors import Invalid

NAME = "com.docker.network.bridge.name"
ICC = "com.docker.network.bridge.enable_icc"
MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
BINDING = "com.docker.network.bridge.host_binding_ipv4"
GATEWAY_MODE = {
    4: "com.docker.network.bridge.gateway_mode_ipv4",
    6: "com.docker.network.bridge.gateway_mode_ipv6",
}
INHIBIT = "com.docker.network.bridge.inhibit_ipv4"
TRUSTED = "com.docker.network.bridge.trusted_host_interfaces"
MTU = "com.docker.network.driver.mtu"
PREFIX = "com.docker.network.container_iface_prefix"
HOST_ADDRESS = {4: "com.docker.network.host_ipv4", 6: "com.docker.network.host_ipv6"}
ENABLE_IP = {4: "com.docker.network.enable_ipv4", 6: "com.docker.network.enable_ipv6"}
INTERFACE = "com.docker.network.endpoint.ifname"
SYSCTLS = "com.docker.network.endpoint.sysctls"

NAT, UNPROTECTED, ROUTED, ISOLATED = "nat", "nat-unprotected", "routed", "isolated"
_MODES = (NAT, UNPROTECTED, ROUTED, ISOLATED)
_LINK_NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,14}")
_PREFIX = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,10}")  # 15 bytes less a number of four digits
_SYSCTL = re.compile(r"net\.(?:ipv4|ipv6|mpls)\.(?:conf|neigh|input)\.IFNAME\.[a-z0-9_]{1,64}")
_TRUE, _FALSE = ("true", "1"), ("false", "0")
_MOST_SYSCTLS = 64
_MOST_TRUSTED = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeOptions:
    """The options of a bridge network, with Docker's defaults."""

    icc: bool = True
    masquerade: bool = True
    inhibit_ipv4: bool = False
    mode_4: str = NAT
    mode_6: str = NAT
    binding_ipv4: str = ""  # published ports without an address of their own are bound to this one
    host_4: str = ""  # what leaves has this source address, instead of the outgoing link's
    host_6: str = ""
    trusted: tuple[str, ...] = ()  # links of the host from which every port of every container is reached
    prefix: str = "eth"

    def mode(self, version: int) -> str:
        return self.mode_4 if version == 4 else self.mode_6

    def host(self, version: int) -> str:
        return self.host_4 if version == 4 else self.host_6


def parse_bridge_options(options: Mapping[str, str]) -> BridgeOptions:
    """Raises Invalid with the option's name."""
    binding = options.get(BINDING, "")
    prefix = options.get(PREFIX, "") or "eth"
    if not _PREFIX.fullmatch(prefix):
        raise Invalid(
            f"option {PREFIX}: {prefix!r}: expected a letter, then 10 letters or digits at most, e.g. net"
        )
    return BridgeOptions(
        icc=parse_switch(options, ICC, default=True),
        masquerade=parse_switch(options, MASQUERADE, default=True),
        inhibit_ipv4=parse_switch(options, INHIBIT, default=False),
        mode_4=_parse_mode(options, 4),
        mode_6=_parse_mode(options, 6),
        binding_ipv4=_parse_host(binding, BINDING, 4),
        host_4=_parse_host(options.get(HOST_ADDRESS[4], ""), HOST_ADDRESS[4], 4),
        host_6=_parse_host(options.get(HOST_ADDRESS[6], ""), HOST_ADDRESS[6], 6),
        trusted=_parse_trusted(options.get(TRUSTED, "")),
        prefix=prefix,
    )


def parse_switch(options: Mapping[str, str], key: str, *, default: bool) -> bool:
    """A boolean option. Raises Invalid."""
    value = options.get(key, "").lower()
    if not value:
        return default
    if value not in _TRUE + _FALSE:
        raise Invalid(f"option {key}: {options[key]!r} isn't a boolean: expected true or false")
    return value in _TRUE


def parse_mtu(options: Mapping[str, str], default: int, *, ipv6: bool) -> int:
    """The MTU of a network's interfaces. Raises Invalid."""
    value = options.get(MTU, "")
    if not value:
        return default
    least = 1280 if ipv6 else 68  # RFC 8200, RFC 791
    if not value.isascii() or not value.isdigit() or len(value) > 5 or not least <= int(value) <= 65535:
        raise Invalid(f"option {MTU}: {value!r}: expected {least} to 65535 bytes, e.g. 1450")
    return int(value)


def parse_bridge_name(options: Mapping[str, str], default: str) -> str:
    """The name of a network's bridge on the host. Raises Invalid."""
    name = options.get(NAME, "") or default
    if not is_link_name(name):
        raise Invalid(f"option {NAME}: {name!r} isn't a link's name: 15 letters or digits at most")
    return name


def is_link_name(name: str) -> bool:
    return _LINK_NAME.fullmatch(name) is not None


def parse_interface(driver_options: Mapping[str, str]) -> str:
    """The name that an endpoint's interface is asked to have in the container, or "". Raises Invalid."""
    name = driver_options.get(INTERFACE, "")
    if name and (not is_link_name(name) or name in ("lo", "all", "default")):
        raise Invalid(
            f"option {INTERFACE}: {name!r} isn't an interface's name: 15 letters or digits at most, e.g. eth1"
        )
    return name


def parse_sysctls(driver_options: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """An interface's settings as (path below /proc/sys with IFNAME for its name, value). Raises Invalid."""
    text = driver_options.get(SYSCTLS, "")
    found = []
    for part in text.split(",") if text else ():
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not _SYSCTL.fullmatch(key) or not value.isprintable() or len(value) > 256:
            raise Invalid(
                f"option {SYSCTLS}: {part[:80]!r}: expected settings of one interface by the name IFNAME, "
                "e.g. net.ipv4.conf.IFNAME.log_martians=1"
            )
        found.append((key.replace(".", "/"), value.strip()))
    if len(found) > _MOST_SYSCTLS:
        raise Invalid(f"option {SYSCTLS}: {len(found)} settings: {_MOST_SYSCTLS} at most")
    return tuple(found)


def _parse_mode(options: Mapping[str, str], version: int) -> str:
    value = options.get(GATEWAY_MODE[version], "") or NAT
    if value not in _MODES:
        raise Invalid(f"option {GATEWAY_MODE[version]}: {value!r}: expected one of {', '.join(_MODES)}")
    return value


def _parse_host(value: str, key: str, version: int) -> str:
    if not value:
        return ""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        address = None
    if address is None or address.version != version or "%" in value:
        raise Invalid(f"option {key}: {value!r} isn't an IPv{version} address of this host")
    return str(address)


def _parse_trusted(value: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(":") if name.strip())
    for name in names:
        if not is_link_name(name):
            raise Invalid(f"option {TRUSTED}: {name!r} isn't a link's name; names are separated by colons")
    if len(names) > _MOST_TRUSTED:
        raise Invalid(f"option {TRUSTED}: {len(names)} links: {_MOST_TRUSTED} at most")
    return names
