"""Links: what they put into a hosts file and into the environment."""

from __future__ import annotations

import msgspec
import pytest

from cove.engine.links import (
    check_linked,
    has_links,
    link_names,
    linked_hosts,
    parse_link,
    settle_links,
    shown_links,
    with_link_variables,
    without_link,
)
from cove.engine.types import View
from cove.model.container import Container, ContainerSpec, Endpoint, EndpointSpec, State
from cove.model.errors import Conflict, Invalid, NotFound

ON_BRIDGE = Endpoint(network_id="n0", network_name="bridge", ipv4="172.17.0.2", ipv6="fd00::2")
ON_BACK = Endpoint(network_id="n1", network_name="back", ipv4="10.0.0.2")


def made(name: str, spec: ContainerSpec | None = None, **more: object) -> Container:
    base = Container(
        id=name[0] * 64,
        name=name,
        created_ns=1,
        image_id="sha256:0",
        image_name="x",
        spec=spec or ContainerSpec(image="x"),
        args=("sh",),
        hostname=name[0] * 12,
    )
    return msgspec.structs.replace(base, **more)


DB = View(
    made("db", env=("PATH=/bin", "USER=me", "A=1=2"), exposed_ports=("9000/udp", "5432/tcp")),
    State(status="running", pid=5, endpoints=(ON_BRIDGE, ON_BACK)),
)


def find(name: str) -> View:
    if name in (DB.container.name, DB.container.id):
        return DB
    raise NotFound(f"No such container: {name}")


def settled(*links: str, mode: str = "default") -> ContainerSpec:
    return settle_links(ContainerSpec(image="x", links=links, network_mode=mode), find)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("db", ("db", "db")), ("db:store", ("db", "store")), ("/db:/web/store", ("db", "store"))],
)
def test_a_link_is_a_container_and_an_alias(text: str, parsed: tuple[str, str]) -> None:
    assert parse_link(text) == parsed


@pytest.mark.parametrize("text", ["", ":", ":x", "db:", "db:a:b", "db:a b", "db:a\nb"])
def test_what_is_no_link_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Invalid, match=r"e\.g\. db:database"):
        parse_link(text)


def test_a_legacy_link_keeps_the_id_of_its_container() -> None:
    assert settled("db:store", "db:store").links == (f"{DB.container.id}:store",)


def test_a_link_to_what_is_not_there_is_refused() -> None:
    with pytest.raises(Invalid, match="could not get container for gone: No such container: gone"):
        settled("gone:x")


def test_a_link_without_a_network_is_refused_and_on_a_named_network_it_is_the_endpoint_s() -> None:
    with pytest.raises(Invalid, match="leave one out"):
        settled("db", mode="host")
    assert settled("db", mode="back").links == ()


def test_a_linked_container_has_its_alias_its_host_name_and_its_name() -> None:
    web = made("web", settled("db:store"))
    own = [Endpoint(network_id="n0", network_name="bridge", ipv4="172.17.0.3")]
    assert linked_hosts(web, own, find) == [
        ("172.17.0.2", "store dddddddddddd db"),
        ("fd00::2", "store dddddddddddd db"),
    ]


def test_a_link_of_another_network_is_no_business_of_the_hosts_file() -> None:
    endpoint = EndpointSpec(network="back", links=("db:store", "later:soon"))
    web = made("web", ContainerSpec(image="x", network_mode="back", endpoints=(endpoint,)))
    own = [Endpoint(network_id="n1", network_name="back", ipv4="10.0.0.3")]
    assert linked_hosts(web, own, find) == [] and not has_links(web)


def test_the_variables_of_a_legacy_link_are_docker_s_and_the_container_s_own_win() -> None:
    web = made("web", settled("db:my-store"), env=("MY_STORE_ENV_USER=mine",))
    assert with_link_variables(web, find).env == (
        "MY_STORE_PORT=tcp://172.17.0.2:5432",
        "MY_STORE_PORT_5432_TCP=tcp://172.17.0.2:5432",
        "MY_STORE_PORT_5432_TCP_ADDR=172.17.0.2",
        "MY_STORE_PORT_5432_TCP_PORT=5432",
        "MY_STORE_PORT_5432_TCP_PROTO=tcp",
        "MY_STORE_PORT_9000_UDP=udp://172.17.0.2:9000",
        "MY_STORE_PORT_9000_UDP_ADDR=172.17.0.2",
        "MY_STORE_PORT_9000_UDP_PORT=9000",
        "MY_STORE_PORT_9000_UDP_PROTO=udp",
        "MY_STORE_NAME=/web/my-store",
        "MY_STORE_ENV_A=1=2",
        "MY_STORE_ENV_USER=mine",
    )


def test_a_legacy_link_needs_its_container_to_run() -> None:
    web = made("web", settled("db"))
    check_linked(web, find)
    stopped = View(DB.container, State(status="exited"))
    with pytest.raises(Conflict, match="Cannot link to a non running container: /db AS /web/db"):
        check_linked(web, lambda name: stopped)


def test_links_are_shown_from_both_sides_and_taken_away_by_alias() -> None:
    web = made("web", settled("db:store", "db:second"))
    assert shown_links(web, find) == ["/db:/web/store", "/db:/web/second"]
    assert link_names([View(web, State()), DB]) == {DB.container.id: ("/web/store", "/web/second")}
    assert shown_links(without_link(web, "store"), find) == ["/db:/web/second"]
    with pytest.raises(NotFound):
        without_link(web, "third")
