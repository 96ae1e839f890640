"""The three files that name things in a container: hosts, hostname and resolv.conf. Pure.

Same content as Docker makes: moby's libnetwork/etchosts and libnetwork/internal/resolvconf.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from cove.model.container import Endpoint
from cove.model.errors import Invalid
from cove.model.lines import is_word, parse_address

FALLBACK_NAMESERVERS = ("8.8.8.8", "8.8.4.4")
FALLBACK_NAMESERVERS_6 = ("2001:4860:4860::8888", "2001:4860:4860::8844")
# Where systemd-resolved keeps the real servers when /etc/resolv.conf names its own stub.
RESOLVED_FILE = "/run/systemd/resolve/resolv.conf"
HOST_GATEWAY = "host-gateway"
EMBEDDED_SERVER = "127.0.0.11"

_HOSTS = (
    ("127.0.0.1", "localhost"),
    ("::1", "localhost ip6-localhost ip6-loopback"),
    ("fe00::", "ip6-localnet"),
    ("ff00::", "ip6-mcastprefix"),
    ("ff02::1", "ip6-allnodes"),
    ("ff02::2", "ip6-allrouters"),
)


def hosts_file(
    hostname: str,
    domainname: str,
    endpoints: Sequence[Endpoint],
    extra_hosts: Sequence[str],
    gateways: Sequence[str] = (),
    linked: Sequence[tuple[str, str]] = (),
) -> str:
    """/etc/hosts. `extra_hosts` are "name:address" (or "name=address"); the address "host-gateway" stands
    for `gateways`, the default bridge's own addresses. `linked` are addresses and names of linked
    containers. Raises Invalid."""
    lines = list(_HOSTS)
    for extra in extra_hosts:
        name, addresses = parse_extra_host(extra, gateways)
        lines += [(address, name) for address in addresses]
    names = hostname if not domainname else f"{hostname}.{domainname} {hostname}"
    for endpoint in endpoints:
        lines += [(address, names) for address in (endpoint.ipv4, endpoint.ipv6) if address and hostname]
    lines += linked
    return "".join(f"{address}\t{name}\n" for address, name in lines)


def parse_extra_host(value: str, gateways: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """One --add-host: its name, and its address (host-gateway may stand for two). Raises Invalid."""
    at = min((i for i in (value.find(":"), value.find("=")) if i >= 0), default=-1)
    name, address = value[:at], value[at + 1 :].strip("[]")
    if at <= 0 or not address or not is_word(name):
        raise Invalid(f"bad format for add-host: {value!r}: expected name:address, e.g. db:10.1.0.5")
    if address == HOST_GATEWAY:
        if not gateways:
            raise Invalid(
                "add-host: host-gateway needs the default bridge, which this host doesn't have: "
                "name an address"
            )
        return name, tuple(gateways)
    try:
        return name, (str(parse_address(address)),)
    except ValueError:
        raise Invalid(
            f"invalid IP address in add-host: {address!r}: expected one such as 10.1.0.5, or host-gateway"
        ) from None


def hostname_file(hostname: str) -> str:
    """/etc/hostname."""
    return f"{hostname}\n"


def only_stub_resolver(host_text: str) -> bool:
    """Whether a resolv.conf names just systemd-resolved's stub: then RESOLVED_FILE is the one to use."""
    return _nameservers(host_text) == ["127.0.0.53"]


def embedded_resolv_file(
    host_text: str,
    servers: Sequence[str],
    *,
    search: Sequence[str] = (),
    options: Sequence[str] = (),
) -> str:
    """/etc/resolv.conf of a container that asks the embedded DNS server; `servers` are those that it asks itself, as
    a comment shows them. Raises Invalid."""
    domains, wanted = _domains_and_options(host_text, search, options)
    if not any(option.startswith("ndots:") for option in wanted):
        wanted.append("ndots:0")
    lines = [f"nameserver {EMBEDDED_SERVER}"]
    if domains:
        lines.append("search " + " ".join(domains))
    lines += ["options " + " ".join(wanted), "", f"# ExtServers: [{' '.join(servers)}]"]
    return "".join(f"{line}\n" for line in lines)


def ndots_given(host_text: str, options: Sequence[str]) -> bool:
    """Whether the caller or the host says when a name is to be searched for in other domains."""
    return any(option.startswith("ndots:") for option in options or _last_words(host_text, "options"))


def host_servers(host_text: str, *, loopback: bool) -> list[str]:
    """The servers that a resolv.conf names; those on loopback addresses only if they can be reached."""
    found = []
    for server in _nameservers(host_text):
        try:
            address = parse_address(server)
        except ValueError:
            continue
        if not address.is_unspecified and (loopback or not address.is_loopback):
            found.append(server)
    return found


def resolv_file(
    host_text: str,
    *,
    dns: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
    ipv6: bool = False,
    host_network: bool = False,
) -> str:
    """/etc/resolv.conf, from the host's and what the caller asked for.

    A nameserver on the host's loopback can't be reached from a container and is left out, unless the
    container shares the host's network; so are IPv6 ones when the container has no IPv6. When none is left,
    public ones are used. A `search` of "." alone means none. Raises Invalid for a bad address.
    """
    for server in dns:
        _check_nameserver(server)
    domains, wanted = _domains_and_options(host_text, search, options)
    servers = list(dns) or [s for s in _nameservers(host_text) if host_network or _reachable(s, ipv6)]
    if not servers and not host_network:
        servers = [*FALLBACK_NAMESERVERS, *(FALLBACK_NAMESERVERS_6 if ipv6 else ())]
    lines = [f"nameserver {server}" for server in servers]
    if domains:
        lines.append("search " + " ".join(domains))
    if wanted:
        lines.append("options " + " ".join(wanted))
    return "".join(f"{line}\n" for line in lines)


def _domains_and_options(
    host_text: str, search: Sequence[str], options: Sequence[str]
) -> tuple[list[str], list[str]]:
    for field, words in (("dns-search", search), ("dns-option", options)):
        for word in words:
            if not is_word(word):
                raise Invalid(f"--{field} {word!r}: expected one word of printable characters")
    domains = list(search) or _last_words(host_text, "search") or _last_words(host_text, "domain")
    return [] if domains == ["."] else domains, list(options) or _last_words(host_text, "options")


def _nameservers(text: str) -> list[str]:
    return [words[1] for words in _lines(text) if words[0] == "nameserver" and len(words) > 1]


def _last_words(text: str, keyword: str) -> list[str]:
    found: list[str] = []
    for words in _lines(text):
        if words[0] == keyword:
            found = words[1:]
    return found


def _lines(text: str) -> list[list[str]]:
    """The words of each line that isn't a comment (resolv.conf(5): "#" or ";" in the first column)."""
    return [line.split() for line in text.splitlines() if line.strip() and line.lstrip()[0] not in "#;"]


def _reachable(server: str, ipv6: bool) -> bool:
    try:
        address = parse_address(server)
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified:
        return False
    if address.version == 6:
        return ipv6 and not (isinstance(address, ipaddress.IPv6Address) and address.scope_id)
    return True


def _check_nameserver(server: str) -> None:
    try:
        parse_address(server)
    except ValueError:
        raise Invalid(f"{server} is not an ip address: --dns expects one such as 10.1.0.5") from None
