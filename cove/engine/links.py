"""Links: another container's names in a container's hosts file, and the legacy variables beside them.

A legacy link (`--link`, on the default bridge) names its container by id from create on, as renames must
not break it; its container has to run when the linking one starts. It follows a linked container that is started
again, as a hosts file is written anew. Links on other networks are the DNS server's (`resolving`). The names,
variables and rules are Docker's ("Legacy container links" in its manual;
moby, daemon/container_operations_unix.go and daemon/links). Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from cove.engine.types import View
from cove.model.container import Container, ContainerSpec, Endpoint
from cove.model.errors import Conflict, CoveError, Invalid, NotFound
from cove.model.lines import is_word

Find = Callable[[str], View]
Host = tuple[str, str]  # an address and the names that it has


def parse_link(text: str) -> tuple[str, str]:
    """`CONTAINER:ALIAS`, or `CONTAINER` whose name is the alias. Raises Invalid."""
    container, colon, alias = text.removeprefix("/").partition(":")
    alias = alias.rsplit("/", 1)[-1] if colon else container  # inspect shows /child:/parent/alias
    if not container or not alias or ":" in alias or not is_word(alias):
        raise Invalid(f"bad format for links: {text}: expected CONTAINER:ALIAS, e.g. db:database")
    return container, alias


def settle_links(spec: ContainerSpec, find: Find) -> ContainerSpec:
    """The spec of a new container, its legacy links by id. Raises Invalid."""
    if spec.network_mode not in ("default", "bridge"):
        if spec.links and (
            spec.network_mode in ("host", "none") or spec.network_mode.startswith("container:")
        ):
            raise Invalid(
                "conflicting options: links need a network of the container's own, not "
                f"'{spec.network_mode}': leave one out"
            )
        # Clients send the links of a named network in both places; those of the endpoint count.
        return msgspec.structs.replace(spec, links=()) if spec.links else spec
    settled = []
    for link in spec.links:
        name, alias = parse_link(link)
        try:
            child = find(name).container
        except NotFound as error:
            raise Invalid(f"could not get container for {name}: {error}") from error
        if child.spec.network_mode == "host":
            raise Invalid(
                f"conflicting options: {name} has the host's network and can't be linked: "
                "localhost's services are reached by the name host-gateway (--add-host)"
            )
        settled.append(f"{child.id}:{alias}")
    return msgspec.structs.replace(spec, links=tuple(dict.fromkeys(settled))) if settled else spec


def check_linked(container: Container, find: Find) -> None:
    """The containers of legacy links run. Raises Conflict, NotFound."""
    for link in container.spec.links:
        child_id, alias = parse_link(link)
        child = find(child_id)
        if child.state.status not in ("running", "paused"):
            raise Conflict(
                f"Cannot link to a non running container: /{child.container.name} AS "
                f"/{container.name}/{alias}: start it first"
            )


def linked_hosts(container: Container, endpoints: Sequence[Endpoint], find: Find) -> list[Host]:
    """What a hosts file says of the linked containers that run now."""
    of_endpoint = {e.network: e.links for e in container.spec.endpoints if e.links}
    found: list[Host] = []
    for endpoint in endpoints:
        if endpoint.network_name != "bridge":
            continue  # the DNS server knows them there
        own = of_endpoint.get("bridge", ()) or of_endpoint.get(endpoint.network_id, ())
        for link in (*container.spec.links, *own):
            name, alias = parse_link(link)
            try:
                child = find(name)
            except CoveError:
                continue  # not there (yet)
            names = " ".join(dict.fromkeys((alias, child.container.hostname, child.container.name)))
            for peer in child.state.endpoints:
                if peer.network_id == endpoint.network_id:
                    found += [(address, names) for address in (peer.ipv4, peer.ipv6) if address]
    return found


def with_link_variables(container: Container, find: Find) -> Container:
    """The container with the variables of its legacy links; its own win."""
    if not container.spec.links:
        return container
    made: list[str] = []
    for link in container.spec.links:
        child_id, alias = parse_link(link)
        try:
            made += link_variables(find(child_id), alias, container.name)
        except CoveError:
            continue  # removed since
    own = {entry.partition("=")[0] for entry in container.env}
    added = [entry for entry in made if entry.partition("=")[0] not in own]
    return msgspec.structs.replace(container, env=(*added, *container.env))


def link_variables(child: View, alias: str, parent: str) -> list[str]:
    """`ALIAS_NAME`, `ALIAS_PORT_80_TCP_ADDR` … and `ALIAS_ENV_X` for each variable X of the linked container."""
    prefix = alias.upper().replace("-", "_")
    address = next((e.ipv4 for e in child.state.endpoints if e.network_name == "bridge"), "")
    found = []
    ports = sorted(
        child.container.exposed_ports, key=lambda port: int(port.partition("/")[0].partition("-")[0])
    )
    for index, port in enumerate(ports):
        number, _, protocol = port.partition("/")
        url = f"{protocol}://{address}:{number}"
        name = f"{prefix}_PORT_{number}_{protocol.upper()}"
        if index == 0:
            found.append(f"{prefix}_PORT={url}")
        found += [
            f"{name}={url}",
            f"{name}_ADDR={address}",
            f"{name}_PORT={number}",
            f"{name}_PROTO={protocol}",
        ]
    found.append(f"{prefix}_NAME=/{parent}/{alias}")
    for entry in child.container.env:
        key, _, value = entry.partition("=")
        if key not in ("HOME", "PATH"):
            found.append(f"{prefix}_ENV_{key}={value}")
    return found


def has_links(container: Container) -> bool:
    """Whether its hosts file names linked containers."""
    return bool(container.spec.links) or any(
        endpoint.links for endpoint in container.spec.endpoints if endpoint.network in ("bridge", "default")
    )


def link_names(views: Iterable[View]) -> dict[str, Sequence[str]]:
    """The further names that legacy links give: container id → "/parent/alias" …"""
    found: dict[str, Sequence[str]] = {}
    for view in views:
        for link in view.container.spec.links:
            child, alias = parse_link(link)
            found[child] = (*found.get(child, ()), f"/{view.container.name}/{alias}")
    return found


def shown_links(container: Container, find: Find) -> list[str]:
    """The legacy links, with the names that their containers have now."""
    found = []
    for link in container.spec.links:
        child_id, alias = parse_link(link)
        try:
            found.append(f"/{find(child_id).container.name}:/{container.name}/{alias}")
        except NotFound:
            continue  # removed since
    return found


def without_link(container: Container, alias: str) -> Container:
    """The container without one of its legacy links. Raises NotFound."""
    left = tuple(link for link in container.spec.links if parse_link(link)[1] != alias)
    if len(left) == len(container.spec.links):
        raise NotFound(f"Could not find link /{container.name}/{alias}")
    return msgspec.structs.replace(container, spec=msgspec.structs.replace(container.spec, links=left))
