"""The files that Cove writes for a container and binds into it: hosts, hostname, resolv.conf.

Written anew at each start, into the container's directory; what they say is decided in
cove.network.files. A container that joins another's network shares that one's files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cove.engine.resolving import shown_servers
from cove.model.container import Container, Endpoint
from cove.model.errors import HostError
from cove.network.dns.names import Client
from cove.network.files import (
    RESOLVED_FILE,
    embedded_resolv_file,
    hostname_file,
    hosts_file,
    only_stub_resolver,
    resolv_file,
)


@dataclass(frozen=True, slots=True)
class ContainerFiles:
    """Host paths of the three files."""

    hosts: str
    hostname: str
    resolv: str


def existing_files(directory: Path) -> ContainerFiles:
    """Where the files of a container lie. Touches nothing."""
    return ContainerFiles(
        str(directory / "hosts"), str(directory / "hostname"), str(directory / "resolv.conf")
    )


def write_files(
    directory: Path,
    container: Container,
    endpoints: Sequence[Endpoint],
    gateways: Sequence[str],
    linked: Sequence[tuple[str, str]] = (),
    client: Client | None = None,
) -> ContainerFiles:
    """Write the three. `gateways` are the default bridge's own addresses, `linked` the linked containers'
    addresses and names, `client` what the embedded DNS server knows of one that asks it. Raises HostError, Invalid."""
    spec = container.spec
    on_host = spec.network_mode == "host"
    hosts = (
        _read("/etc/hosts") + _added_hosts(container, gateways)
        if on_host
        else hosts_file(container.hostname, spec.domainname, endpoints, spec.extra_hosts, gateways, linked)
    )
    if client is not None:
        resolv = embedded_resolv_file(
            host_resolv(), shown_servers(client), search=spec.dns_search, options=spec.dns_options
        )
    else:
        resolv = resolv_file(
            host_resolv(),
            dns=spec.dns,
            search=spec.dns_search,
            options=spec.dns_options,
            ipv6=any(endpoint.ipv6 for endpoint in endpoints),
            host_network=on_host,
        )
    files = existing_files(directory)
    for path, content in (
        (files.hosts, hosts),
        (files.hostname, hostname_file(container.hostname)),
        (files.resolv, resolv),
    ):
        _write(path, content)
    return files


def host_resolver_file() -> str:
    """The host's own, with whatever stub it names."""
    return _read("/etc/resolv.conf")


def host_resolv() -> str:
    """The host's resolver configuration; systemd-resolved's real one where the usual file names its stub."""
    text = _read("/etc/resolv.conf")
    return _read(RESOLVED_FILE) if only_stub_resolver(text) else text


def _added_hosts(container: Container, gateways: Sequence[str]) -> str:
    """The lines of --add-host alone, for a container that has the host's own file."""
    with_added = hosts_file("", "", (), container.spec.extra_hosts, gateways)
    return with_added[len(hosts_file("", "", (), (), ())) :]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(1 << 20)
    except OSError:
        return ""


def _write(path: str, content: str) -> None:
    """In place, so that a bind of an earlier start sees it too; a fresh container has no file yet."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            os.write(fd, content.encode("utf-8", "surrogateescape"))
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from error
