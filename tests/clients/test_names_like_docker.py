"""Names on a network: the C library's resolver and dnspython find with Cove what they find with dockerd."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dns.exception
import pytest
from docker.models.containers import Container

from tests.clients.engines import ENGINES, Engine, running_engine
from tests.dnskit import EMBEDDED, address, found
from tests.imagekit import Dir, Entry, File, make_docker_archive

IMAGE = "names:1"
NETWORK = "shop"


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    for running in running_engine(request.param):
        running.load(resolver_archive())
        yield running


def resolver_archive() -> bytes:
    """An image with this machine's getent(1), sleep(1), cat(1) and the libraries that they load."""
    files = {Path(f"/usr/bin/{name}") for name in ("getent", "sleep", "cat")}
    for program in sorted(files):
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        files |= {Path(path) for path in re.findall(r"(/\S+) \(0x", listed)}
    entries: list[Entry] = [Dir("etc"), File("etc/nsswitch.conf", b"hosts: files dns\n")]
    entries += [File(str(path)[1:], path.read_bytes(), mode=0o755) for path in sorted(files)]
    return make_docker_archive([entries], names=[IMAGE])


@pytest.fixture
def containers(engine: Engine) -> Iterator[dict[str, Container]]:
    network = engine.client.networks.create(NETWORK, driver="bridge")
    made: dict[str, Container] = {}
    run = ["docker", "run", "--detach", "--network", NETWORK]
    try:
        for name, options in (
            ("web", ["--network-alias", "front", "--hostname", "www"]),
            ("web2", ["--network-alias", "front"]),
            ("db", ["--link", "web:backend", "--dns-search", "corp.example"]),
        ):
            command = [*run, "--name", name, *options, IMAGE, "sleep", "1000"]
            made[name] = engine.client.containers.get(engine.run(command, {}).strip())
        yield made
    finally:
        for container in made.values():
            container.remove(force=True)
        network.remove()


def test_the_c_library_finds_containers(containers: dict[str, Container]) -> None:
    web, db = containers["web"], containers["db"]
    for name in ("web", "front", "backend", web.short_id, f"web.{NETWORK}"):
        result = db.exec_run(["getent", "ahostsv4", name])
        assert result.exit_code == 0, (name, result.output)
        assert address(web, NETWORK).encode() in result.output, name
    assert (
        db.exec_run(["getent", "hosts", address(web, NETWORK)]).output.split()[1] == f"web.{NETWORK}".encode()
    )
    assert address(web, NETWORK).encode() in web.exec_run(["getent", "ahostsv4", "www"]).output


def said(container: Container, name: str, kind: str = "A", *, tcp: bool = False) -> list[str] | None:
    """What is found, asked again as clients do: dockerd's server isn't always there at once."""
    for _ in range(2):
        with contextlib.suppress(dns.exception.Timeout):
            return found(container, name, kind, tcp=tcp)
    return found(container, name, kind, tcp=tcp)


def test_questions_are_answered_alike(containers: dict[str, Container]) -> None:
    web, web2, db = containers.values()
    v4 = address(web, NETWORK)
    for tcp in (False, True):
        assert said(db, "web", tcp=tcp) == said(db, f"web.{NETWORK}", tcp=tcp) == [v4]
        assert said(db, "front", tcp=tcp) == sorted([v4, address(web2, NETWORK)])
        assert said(db, "web", "AAAA", tcp=tcp) == []
        assert said(db, "web", "MX", tcp=tcp) == []
        reverse = ".".join(reversed(v4.split("."))) + ".in-addr.arpa"
        assert said(db, reverse, "PTR", tcp=tcp) == [f"web.{NETWORK}."]


def test_resolv_conf_says_the_same(containers: dict[str, Container]) -> None:
    lines = containers["db"].exec_run(["cat", "/etc/resolv.conf"]).output.decode().splitlines()
    assert sorted(lines[:3]) == [f"nameserver {EMBEDDED}", "options ndots:0", "search corp.example"]
