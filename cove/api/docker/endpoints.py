"""The part of a create body that networks are about: endpoints, addresses, ports, names. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from cove.api.docker import wire
from cove.api.docker.mounts import string_map
from cove.engine.links import parse_link
from cove.model.container import EndpointSpec, PortBinding
from cove.model.errors import Invalid
from cove.model.lines import is_word, parse_address
from cove.network.options import parse_interface, parse_sysctls

Strings = Sequence[str] | None
_MAC = re.compile(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}")
_PORT = re.compile(r"(\d{1,5})(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_HOST_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
MAX_EXPOSED = 4096  # ports of one container
_MAC_WARNING = (
    "The container-wide MacAddress field is now deprecated. "
    "It should be specified in EndpointsConfig instead."
)


_ENDPOINT_SYSCTLS = "com.docker.network.endpoint.sysctls"
_INTERFACE_SYSCTL = re.compile(r"net\.([^.]+)\.([^.]+)\.(eth[^.]*)\.(.+)")


def interface_sysctls(
    sysctls: dict[str, str], endpoints: tuple[EndpointSpec, ...], mode: str, version: int
) -> tuple[dict[str, str], tuple[EndpointSpec, ...], str]:
    """Settings of eth0 go to the main network's endpoint, as API versions before 1.48 had it, with a warning.

    An interface isn't there yet when the others are set. Raises Invalid.
    """
    moved, kept = {}, {}
    for key, value in sysctls.items():
        match = _INTERFACE_SYSCTL.fullmatch(key)
        if match is None:
            kept[key] = value
            continue
        if version >= 1048:
            raise Invalid(
                f"HostConfig.Sysctls: interface specific sysctl setting {key!r} must be supplied using driver option "
                f"'{_ENDPOINT_SYSCTLS}'"
            )
        if match[3] != "eth0":
            raise Invalid(
                f"HostConfig.Sysctls: unable to determine network endpoint for sysctl {key}, use driver option "
                f"'{_ENDPOINT_SYSCTLS}' to set per-interface sysctls"
            )
        moved[key] = f"net.{match[1]}.{match[2]}.IFNAME.{match[4]}={value}"
    if not moved:
        return sysctls, endpoints, ""
    main = next((e for e in endpoints if e.network == mode), None) or EndpointSpec(network=mode)
    option = ",".join(moved.values())
    given = main.driver_options.get(_ENDPOINT_SYSCTLS)
    options = {**main.driver_options, _ENDPOINT_SYSCTLS: f"{option},{given}" if given else option}
    changed = msgspec.structs.replace(main, driver_options=options)
    warning = f'Migrated sysctl "{",".join(moved)}" to DriverOpts{{"{_ENDPOINT_SYSCTLS}":"{option}"}}.'
    return kept, (changed, *(e for e in endpoints if e is not main)), warning


def decode_network_mode(host: wire.HostConfig) -> str:
    mode = host.network_mode or "default"
    if mode == "container:" or "\0" in mode:
        raise Invalid(
            "HostConfig.NetworkMode: Invalid network mode: invalid container format container:<name|id>"
        )
    return mode


def decode_endpoints(body: wire.CreateBody, mode: str, version: int) -> tuple[tuple[EndpointSpec, ...], str]:
    configs = dict((body.networking_config or wire.NetworkingConfig()).endpoints_config or {})
    if version < 1044 and len(configs) > 1:
        raise Invalid(
            "NetworkingConfig.EndpointsConfig: Container cannot be created with multiple network endpoints: "
            + ", ".join(configs)
        )
    mac, warning = body.mac_address or "", ""
    own_network = mode in ("host", "none") or mode.startswith("container:")
    found = []
    for name, config in configs.items():
        given = config or wire.EndpointConfig()
        if version < 1044:  # as older versions, which had neither
            given = msgspec.structs.replace(given, mac_address=None)
        if version < 1048:
            given = msgspec.structs.replace(given, gw_priority=None)
        found.append(decode_endpoint(name, given, f"NetworkingConfig.EndpointsConfig[{name!r}]"))
    if mac:
        _check_mac(mac, "MacAddress")
        if version >= 1052:
            raise Invalid(
                "MacAddress: container-wide MAC address no longer supported; use endpoint-specific MAC address instead"
            )
        if own_network:
            if version < 1044:
                raise Invalid("MacAddress: conflicting options: mac-address and the network mode")
        else:
            index = next((i for i, e in enumerate(found) if e.network == mode or version < 1044), None)
            if index is None:
                found.insert(0, EndpointSpec(network=mode, mac=mac))
            elif found[index].mac not in ("", mac):
                raise Invalid(
                    "MacAddress: the container-wide MAC address must match the endpoint-specific MAC address "
                    "for the main network, or be left empty"
                )
            else:
                found[index] = msgspec.structs.replace(found[index], mac=mac)
        if version >= 1044:
            warning = _MAC_WARNING
    if own_network and any(e.ipv4 or e.ipv6 or e.aliases for e in found):
        raise Invalid(
            f"NetworkingConfig.EndpointsConfig: addresses and aliases need a network of Cove's, not '{mode}'"
        )
    if own_network:
        found = [endpoint for endpoint in found if endpoint.network != mode]
    return tuple(found), warning


def decode_endpoint(network: str, config: wire.EndpointConfig, path: str) -> EndpointSpec:
    """One network attachment as asked for. Raises `Invalid`."""
    ipam = config.ipam_config or wire.IpamConfig()
    if not network:
        raise Invalid(f"{path}: a network's name is needed, e.g. bridge")
    driver_options = string_map(config.driver_opts)
    try:
        parse_interface(driver_options)
        parse_sysctls(driver_options)
    except Invalid as error:
        raise Invalid(f"{path}.DriverOpts: {error}") from None
    return EndpointSpec(
        network=network,
        aliases=tuple(config.aliases or ()),
        ipv4=decode_address(ipam.ipv4_address, f"{path}.IPAMConfig.IPv4Address", 4),
        ipv6=decode_address(ipam.ipv6_address, f"{path}.IPAMConfig.IPv6Address", 6),
        mac=_check_mac(config.mac_address or "", f"{path}.MacAddress"),
        link_local=tuple(
            _link_local(text, f"{path}.IPAMConfig.LinkLocalIPs[{i}]")
            for i, text in enumerate(ipam.link_local_ips or ())
        ),
        links=decode_links(config.links, f"{path}.Links"),
        driver_options=driver_options,
        gateway_priority=config.gw_priority or 0,
    )


def _check_mac(mac: str, path: str) -> str:
    if mac and not _MAC.fullmatch(mac):
        raise Invalid(f"{path}: invalid MAC address: {mac}, e.g. 02:42:ac:11:00:02")
    return mac.replace("-", ":").lower()


def decode_address(text: str | None, path: str, version: int = 0) -> str:
    if not text:
        return ""
    try:
        address = parse_address(text)
    except ValueError:
        raise Invalid(
            f"{path}: invalid IP address: {text}, e.g. {'fd00::2' if version == 6 else '192.0.2.2'}"
        ) from None
    if version and address.version != version:
        raise Invalid(f"{path}: invalid IPv{version} address: {text}")
    return str(address)


def decode_links(entries: Strings, path: str) -> tuple[str, ...]:
    for index, entry in enumerate(entries or ()):
        try:
            parse_link(entry)
        except Invalid as error:
            raise Invalid(f"{path}[{index}]: {error}") from None
    return tuple(entries or ())


def _link_local(text: str, path: str) -> str:
    address = decode_address(text, path)
    if not address or "%" in address or not parse_address(address).is_link_local:
        raise Invalid(f"{path}: invalid link-local address: {text}, e.g. 169.254.8.8 or fe80::8")
    return address


def decode_extra_hosts(entries: Strings) -> tuple[str, ...]:
    for index, entry in enumerate(entries or ()):
        name, colon, address = entry.partition(":")
        if not is_word(name) or not colon or not address:
            raise Invalid(
                f'HostConfig.ExtraHosts[{index}]: bad format for add-host: "{entry}", e.g. db:192.0.2.2'
            )
        if address != "host-gateway":
            decode_address(address.strip("[]"), f"HostConfig.ExtraHosts[{index}]")
    return tuple(entries or ())


def parse_port(text: str, path: str) -> tuple[int, str]:
    match = _PORT.fullmatch(text)
    if match is None or not 0 < int(match[1]) <= 65535:
        raise Invalid(f'{path}: invalid port specification: "{text}", e.g. 80/tcp')
    return int(match[1]), (match[2] or "tcp").lower()


def decode_exposed(entries: Iterable[str]) -> tuple[str, ...]:
    """`80`, `53/udp` or `8000-8010/tcp`, each port by itself."""
    found: dict[str, None] = {}
    for text in entries:
        ports, slash, protocol = text.partition("/")
        first, dash, last = ports.partition("-")
        low, proto = parse_port(f"{first}{slash}{protocol}", "ExposedPorts")
        high = parse_port(last, "ExposedPorts")[0] if dash else low
        if high < low or len(found) + high - low >= MAX_EXPOSED:
            raise Invalid(
                f'ExposedPorts: invalid port specification: "{text}", e.g. 8000-8010/tcp; '
                f"at most {MAX_EXPOSED} ports can be exposed"
            )
        found.update(dict.fromkeys(f"{port}/{proto}" for port in range(low, high + 1)))
    return tuple(found)


def decode_ports(host: wire.HostConfig) -> tuple[PortBinding, ...]:
    found = []
    for key, bindings in (host.port_bindings or {}).items():
        port, protocol = parse_port(key, "HostConfig.PortBindings")
        # an empty list means "any address, any port", as the reference daemon fills it in
        for binding in bindings or [wire.PortBinding()]:
            path = f"HostConfig.PortBindings[{key!r}]"
            low, high = _host_port(binding.host_port or "", path)
            found.append(
                PortBinding(
                    container_port=port,
                    protocol=protocol,  # type: ignore[arg-type]
                    host_ip=decode_address(binding.host_ip, f"{path}.HostIp"),
                    host_port=low,
                    host_port_end=high,
                )
            )
    return tuple(found)


def _host_port(text: str, path: str) -> tuple[int, int]:
    if not text:
        return 0, 0
    match = _HOST_PORT.fullmatch(text)
    low = int(match[1]) if match else -1
    high = int(match[2]) if match and match[2] else 0
    if low < 0 or low > 65535 or high > 65535 or (high and (high < low or not low)):
        raise Invalid(f'{path}.HostPort: invalid port specification: "{text}", e.g. 8080 or 8080-8090')
    return low, 0 if high == low else high
