"""Where a repository's registry is asked: mirrors first, then the registry itself. Pure.

Docker's rules: Docker Hub is registry-1.docker.io; a registry on the loopback network, or one that was declared
insecure (by host, host and port, or network), is tried by https without a look at its certificate, then by http.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

import msgspec

from cove.image.references import DEFAULT_DOMAIN
from cove.model.errors import Invalid

DOCKER_HUB_HOST = "registry-1.docker.io"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One address of a registry's API; `/v2/…` goes behind `url`."""

    url: str  # scheme, host, port and perhaps a path, without a slash at its end
    mirror: bool = False  # no credentials go there, and any failure of it means the next one
    verify: bool = True  # the certificate has to be right
    namespace: str = ""  # the registry that a mirror is asked for (`?ns=`, as containerd does)

    @property
    def host(self) -> str:
        """Host and, if written, port."""
        return urlsplit(self.url).netloc


class Registries(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon is told of registries: `URL` or `HOST=URL` for mirrors, hosts and networks without TLS."""

    mirrors: tuple[str, ...] = ()
    insecure: tuple[str, ...] = ()


def plan_endpoints(domain: str, registries: Registries) -> tuple[Endpoint, ...]:
    """The addresses to ask for a repository of `domain` (as in a Reference), in this order."""
    found: list[Endpoint] = []
    for entry in registries.mirrors:
        host, url = parse_mirror(entry)
        if host == domain:
            insecure = is_insecure(urlsplit(url).netloc, registries.insecure)
            namespace = "" if domain == DEFAULT_DOMAIN else domain
            found.append(Endpoint(url=url, mirror=True, verify=not insecure, namespace=namespace))
    host = DOCKER_HUB_HOST if domain == DEFAULT_DOMAIN else domain
    if domain != DEFAULT_DOMAIN and is_insecure(domain, registries.insecure):
        found += [Endpoint(url=f"https://{host}", verify=False), Endpoint(url=f"http://{host}", verify=False)]
    else:
        found.append(Endpoint(url=f"https://{host}"))
    return tuple(found)


def parse_mirror(entry: str) -> tuple[str, str]:
    """`URL` (of Docker Hub) or `HOST=URL` as registry and URL. Invalid."""
    head, equals, tail = entry.partition("=")
    host, url = (head, tail) if equals and "://" not in head else (DEFAULT_DOMAIN, entry)
    parts = urlsplit(url)
    try:
        port_ok = parts.port is None or parts.port > 0
    except ValueError:
        port_ok = False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_ok:
        raise Invalid(
            f"registry-mirrors: {entry!r} is no mirror: expected URL, e.g. https://mirror.example.com, or HOST=URL"
        )
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise Invalid(
            f"registry-mirrors: {host}: a mirror's URL has no user, query or fragment, "
            "e.g. https://mirror.example.com"
        )
    if host == "index.docker.io":
        host = DEFAULT_DOMAIN
    return host, f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def is_insecure(host: str, insecure: Sequence[str]) -> bool:
    """Whether a host (perhaps with a port) may be spoken to without TLS, or with a certificate nobody signed."""
    name = urlsplit(f"//{host}").hostname or ""
    if host in insecure or name in insecure:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost"
    return address.is_loopback or any(_contains(entry, address) for entry in insecure)


def _contains(entry: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what credentials are bound to. Invalid for a URL that can't be asked."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise Invalid(f"{url[:200]!r} is no URL that a registry is asked by: http:// or https:// and a host")
    if "@" in parts.netloc:
        raise Invalid("a registry's URL with a user in it isn't followed")
    return parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80)
