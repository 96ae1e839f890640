"""Names go on while the daemon or its DNS server is killed, and nothing of the server stays when nobody needs it."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator

import dns.message
import pytest
from docker.models.containers import Container

from tests.daemon import Daemon
from tests.dnskit import EMBEDDED, address, answered, eventually, found, pid_of, servers, within

NETWORK = "front"


@pytest.fixture
def pair(fresh_daemon: Daemon, image: str) -> Iterator[tuple[Daemon, Container, Container]]:
    """A daemon of the test's own, with two containers on a network."""
    network = fresh_daemon.client.networks.create(NETWORK, driver="bridge")
    made = [sleeper(fresh_daemon, image, name) for name in ("web", "db")]
    for container in made:
        container.reload()
    yield fresh_daemon, made[0], made[1]
    for container in made:
        container.remove(force=True)
    network.remove()


def sleeper(daemon: Daemon, image: str, name: str) -> Container:
    return daemon.client.containers.run(image, ["sleep", "1000"], name=name, network=NETWORK, detach=True)


class Asking:
    """Asks for a name all the time, in a container; every question waits for its answer."""

    def __init__(self, container: Container, name: str) -> None:
        self.count, self.trouble = 0, ""
        self._stop = threading.Event()
        self._container, self._query = container, dns.message.make_query(name, "A").to_wire()
        self._thread = threading.Thread(target=lambda: within(container, self._ask))

    def __enter__(self) -> Asking:
        self._thread.start()
        self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive() and not self.trouble, self.trouble

    def go_on(self) -> None:
        """A good number of further answers have come."""
        wanted = self.count + 50
        eventually(lambda: self.count >= wanted or bool(self.trouble))

    def _ask(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(20)
            sock.connect((EMBEDDED, 53))
            while not self._stop.is_set():
                sock.send(self._query)
                try:
                    answer = dns.message.from_wire(sock.recv(512))
                except TimeoutError:
                    self.trouble = f"question {self.count} was lost"
                    return
                if len(answer.answer) != 1:
                    self.trouble = f"question {self.count} was answered by {answer}"
                    return
                self.count += 1


def test_no_query_is_lost_when_the_daemon_is_killed(pair: tuple[Daemon, Container, Container]) -> None:
    daemon, web, _ = pair
    with Asking(web, "db") as asking:
        before = servers(daemon)
        daemon.kill9()
        asking.go_on()
        daemon.start()
        asking.go_on()
        daemon.restart()
        asking.go_on()
    assert servers(daemon) == before


@pytest.mark.parametrize("which", [0, 1])
def test_no_query_is_lost_when_the_server_is_killed(
    pair: tuple[Daemon, Container, Container], which: int
) -> None:
    daemon, web, _ = pair
    with Asking(web, "db") as asking:
        before = servers(daemon)
        os.kill(before[which], signal.SIGKILL)
        asking.go_on()
    eventually(lambda: len(servers(daemon)) == 2)
    assert not set(servers(daemon)) & set(before)


def test_no_query_is_lost_when_the_server_is_killed_under_a_later_daemon(
    pair: tuple[Daemon, Container, Container], image: str
) -> None:
    daemon, web, _ = pair
    daemon.kill9()
    daemon.start()
    late = sleeper(daemon, image, "late")  # what the new daemon tells was taken in by the old server
    try:
        eventually(lambda: found(web, "late") == [address(late, NETWORK)])
        with Asking(web, "late") as asking:
            os.kill(servers(daemon)[0], signal.SIGKILL)
            asking.go_on()
        assert answered(late, "db")
    finally:
        late.remove(force=True)


def test_names_come_back_when_both_were_killed(pair: tuple[Daemon, Container, Container]) -> None:
    daemon, web, db = pair
    daemon.kill9()
    for pid in servers(daemon):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not servers(daemon))
    daemon.start()
    eventually(lambda: answered(web, "db"))
    assert found(web, "db", tcp=True) == [address(db, NETWORK)]
    rules = within(web, lambda: os.popen("nft list table ip cove_dns").read())
    assert rules.count("53") == 4  # those of the sockets that are gone are gone


def test_what_changed_while_no_daemon_was_there_is_told_by_the_next(
    pair: tuple[Daemon, Container, Container],
) -> None:
    daemon, web, db = pair
    pid = pid_of(db)
    daemon.kill9()
    os.kill(pid, signal.SIGKILL)
    assert answered(web, "db")  # nobody has told
    daemon.start()
    eventually(lambda: not answered(web, "db"))
    assert answered(web, "web")


def test_the_server_ends_with_the_last_container_when_no_daemon_is_there(
    pair: tuple[Daemon, Container, Container],
) -> None:
    daemon, web, db = pair
    pids = [pid_of(container) for container in (web, db)]
    daemon.kill9()
    os.kill(pids[0], signal.SIGKILL)
    assert answered(db, "db") and len(servers(daemon)) == 2
    os.kill(pids[1], signal.SIGKILL)
    eventually(lambda: not servers(daemon))
    daemon.start()
    assert not servers(daemon)
    web.start()
    eventually(lambda: answered(web, "web"))


def test_a_daemon_without_such_containers_has_no_server(fresh_daemon: Daemon, image: str) -> None:
    for network in ("bridge", "host", "none"):
        fresh_daemon.client.containers.run(image, ["true"], network=network, remove=True)
    fresh_daemon.restart()
    assert not servers(fresh_daemon)


def test_a_stopped_container_frees_its_network(pair: tuple[Daemon, Container, Container]) -> None:
    daemon, web, _ = pair
    namespace = os.readlink(f"/proc/{pid_of(web)}/ns/net")
    web.stop(timeout=0)
    for pid in (*servers(daemon), daemon.pid):
        links = (_target(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
        assert namespace not in links
    # a socket in there would keep the namespace, and with it the container's end of the pair, which the host's tells
    eventually(lambda: len(_peers(daemon)) == 1)


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""


def _peers(daemon: Daemon) -> list[str]:
    """The links that containers' ends hang on at the network's bridge."""
    shown = daemon.client.networks.get(NETWORK)
    bridge = shown.attrs["Options"].get("com.docker.network.bridge.name") or _bridge_of(shown.id, daemon)
    return os.listdir(f"/sys/class/net/{bridge}/brif")


def _bridge_of(network_id: str, daemon: Daemon) -> str:
    gateway = daemon.client.networks.get(network_id).attrs["IPAM"]["Config"][0]["Gateway"]
    for line in os.popen("ip -o -4 addr").read().splitlines():
        if f" {gateway}/" in line:
            return line.split()[1]
    raise AssertionError(f"no bridge has {gateway}")
