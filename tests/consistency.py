"""One question: do the API, the store, the files, the processes and the kernel's objects of a daemon agree?

    check_consistent(daemon)      # fails with every disagreement, each a line

What is taken back behind the callers' backs (links, addresses, trash) gets its time: the question is asked again
until everything agrees or BOUND_S is over. Nothing may be changing meanwhile but such things.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import leaks
from tests.daemon import Daemon
from tests.nanny import descendants

BOUND_S = 60.0
_POOL_MOST = 32
_CGROUPS = Path("/sys/fs/cgroup")
_MAPS = ("any4", "any6", "host4", "host6")
_ALIVE = ("running", "paused")


@dataclass(frozen=True)
class Supervisor:
    """A cove-init process: its title is the id of its container or exec; its child is the first process."""

    pid: int
    title: str
    children: tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """What the store holds, by key."""

    pairs: dict[str, bytes]

    def below(self, prefix: str) -> dict[str, bytes]:
        return {k.removeprefix(prefix): v for k, v in self.pairs.items() if k.startswith(prefix)}

    def objects(self, prefix: str) -> dict[str, dict[str, Any]]:
        return {k: json.loads(v) for k, v in self.below(prefix).items()}


def check_consistent(daemon: Daemon) -> None:
    """Fail with all that doesn't agree, once it has had its time to."""
    deadline = time.monotonic() + BOUND_S
    pause_s = 0.02
    while True:
        found = sorted(problems(daemon))
        if not found:
            return
        assert time.monotonic() < deadline, "not consistent:\n  " + "\n  ".join(found)
        time.sleep(pause_s)  # what goes behind is told by nobody
        pause_s = min(pause_s * 1.5, 0.5)


def problems(daemon: Daemon) -> Iterator[str]:
    """Every disagreement, now."""
    stored = read_store(daemon.data_root / "state.db")
    states = stored.objects("states/")
    alive = {i: s for i, s in states.items() if s.get("status", "created") in _ALIVE}
    supervisors = list(find_supervisors(daemon))
    yield from _check_records(daemon, stored, states)
    yield from _check_processes(daemon, alive, supervisors)
    yield from _check_directories(daemon, stored, states)
    yield from _check_cgroups(daemon, alive)
    yield from _check_volumes(daemon, stored)
    yield from _check_images(daemon, stored)
    yield from _check_networks(daemon, stored, alive)
    yield from _check_ports(daemon, alive)
    for line in leaks.snapshot():
        if line.startswith("mount ") and f"{daemon.data_root}/" in line:
            yield f"mounted on the host: {line}"


def read_store(path: Path) -> Stored:
    """Every pair that is committed, read beside the daemon."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10) as database:
        pairs = dict(database.execute("SELECT key, value FROM kv"))
    database.close()
    return Stored({key: bytes(value) for key, value in pairs.items()})


def find_supervisors(daemon: Daemon) -> Iterator[Supervisor]:
    """The daemon's cove-init processes; zombies aren't."""
    parents: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for pid in descendants(daemon.nanny_pid):
        try:
            name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
            state, parent = rest.split()[:2]
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state in "ZX":
            continue
        parents.setdefault(int(parent), []).append(pid)
        if name == "cove-init" and command[0] == b"cove-init" and len(command) > 1:
            names[pid] = command[1].decode()
    for pid, title in names.items():
        yield Supervisor(pid, title, tuple(parents.get(pid, ())))


def _differ(what: str, one: Iterable[str], where: str, other: Iterable[str], elsewhere: str) -> Iterator[str]:
    first, second = set(one), set(other)
    for name in first - second:
        yield f"{what} {name} is in {where}, not in {elsewhere}"
    for name in second - first:
        yield f"{what} {name} is in {elsewhere}, not in {where}"


def _check_records(daemon: Daemon, stored: Stored, states: dict[str, dict[str, Any]]) -> Iterator[str]:
    containers = stored.objects("containers/")
    listed = {c["Id"]: c for c in daemon.http("GET", "/containers/json?all=1").json()}
    yield from _differ("container", containers, "the store", states, "the stored states")
    yield from _differ("container", containers, "the store", listed, "the API's list")
    names = {name: owner.decode() for name, owner in stored.below("names/").items()}
    expected = {c["name"]: i for i, c in containers.items()}
    if names != expected:
        yield f"the stored names are {names}, the containers' are {expected}"
    for container_id, shown in listed.items():
        state = states.get(container_id, {}).get("status", "created")
        if shown["State"] != state:
            yield f"container {container_id} is {shown['State']} by the API, {state} in the store"
        if state == "removing":
            yield f"container {container_id} is being removed still"


def _check_processes(
    daemon: Daemon, alive: dict[str, dict[str, Any]], supervisors: list[Supervisor]
) -> Iterator[str]:
    execs: dict[str, int] = {}
    for container_id, state in alive.items():
        answer = daemon.http("GET", f"/containers/{container_id}/json")
        if answer.status != 200:
            continue
        shown = answer.json()
        if shown["State"]["Pid"] != state.get("pid"):
            yield f"container {container_id}: pid {shown['State']['Pid']} by the API, {state.get('pid')} stored"
        for exec_id in shown["ExecIDs"] or ():
            seen = daemon.http("GET", f"/exec/{exec_id}/json")
            if seen.status == 200 and seen.json()["Running"]:
                execs[exec_id] = seen.json()["Pid"]
    wanted = {i: s["pid"] for i, s in alive.items()} | execs
    titles = [supervisor.title for supervisor in supervisors]
    for title in {title for title in titles if titles.count(title) > 1}:
        yield f"{titles.count(title)} supervisors serve {title}"
    yield from _differ("process", wanted, "the records of what runs", titles, "the supervisors")
    for supervisor in supervisors:
        if supervisor.title in wanted and wanted[supervisor.title] not in supervisor.children:
            yield (
                f"{supervisor.title}: process {wanted[supervisor.title]} isn't a child of its supervisor "
                f"{supervisor.pid}, which has {supervisor.children}"
            )
        recorded = alive.get(supervisor.title, {}).get("supervisor_pid", supervisor.pid)
        if recorded != supervisor.pid:
            yield f"{supervisor.title}: its supervisor is {supervisor.pid}, recorded is {recorded}"
    directories = os.listdir(daemon.run_dir / "exec")
    yield from _differ("exec", execs, "what runs", directories, "the run dir")


def _check_directories(daemon: Daemon, stored: Stored, states: dict[str, dict[str, Any]]) -> Iterator[str]:
    made = os.listdir(daemon.data_root / "containers")
    yield from _differ("container", states, "the store", made, "DATA_ROOT/containers")
    for container_id in made:
        inside = set(os.listdir(daemon.data_root / "containers" / container_id))
        if not inside >= {"upper", "work", "merged", "log"}:
            yield f"the directory of container {container_id} has {sorted(inside)} only"
    for container_id in os.listdir(daemon.run_dir / "containers"):
        directory = daemon.run_dir / "containers" / container_id
        status = states.get(container_id, {}).get("status", "created")
        if container_id not in states:
            yield f"state directory of {container_id}, which isn't a container"
        elif status in _ALIVE and not (directory / "control.sock").exists():
            yield f"container {container_id} is {status} without a control socket"
    for name in os.listdir(daemon.data_root / "trash"):
        yield f"trash {name} isn't deleted"


def _check_cgroups(daemon: Daemon, alive: dict[str, dict[str, Any]]) -> Iterator[str]:
    found = set()
    for hierarchy in _CGROUPS.iterdir():
        parent = hierarchy / daemon.names.cgroup_parent
        if hierarchy.is_symlink() or not parent.is_dir():
            continue
        for directory in (parent, parent / "guarded"):
            if directory.is_dir():
                found |= {e.name for e in os.scandir(directory) if e.is_dir() and e.name != "guarded"}
    yield from _differ("cgroup", found, "the kernel", alive, "the records of what runs")


def _check_volumes(daemon: Daemon, stored: Stored) -> Iterator[str]:
    records = stored.below("volumes/")
    listed = {v["Name"] for v in daemon.http("GET", "/volumes").json()["Volumes"] or ()}
    made = os.listdir(daemon.data_root / "volumes")
    yield from _differ("volume", records, "the store", listed, "the API's list")
    yield from _differ("volume", records, "the store", made, "DATA_ROOT/volumes")
    for owner in stored.below("loose/"):
        yield f"the volumes of container {owner} are noted as loose"
    for name in stored.below("volumes-removed/"):
        yield f"the removal of volume {name} isn't finished"


def _check_images(daemon: Daemon, stored: Stored) -> Iterator[str]:
    images = stored.objects("images/config/")
    layers = stored.objects("images/layer/")
    root = daemon.data_root / "images"
    listed = {i["Id"] for i in daemon.http("GET", "/images/json").json()}
    shown = {record["id"] for record in images.values() if not record.get("hidden")}
    yield from _differ("image", shown, "the store", listed, "the API's list")
    for name, image_id in stored.below("images/name/").items():
        if image_id.decode().removeprefix("sha256:") not in images:
            yield f"image name {name} means {image_id.decode()}, which isn't there"
    names = {layer["name"] for layer in layers.values()}
    yield from _differ("layer", names | {"0"}, "the store", os.listdir(root / "layers"), "images/layers")
    blobs = {record["id"] for record in images.values()} | {r["manifest"] for r in images.values()}
    for name, record in stored.objects("images/digest/").items():
        blobs |= set(record["documents"])
        if record["image"].removeprefix("sha256:") not in images:
            yield f"the digest {name} means {record['image']}, which isn't there"
    blobs |= {layer["blob"] for layer in layers.values() if layer.get("compression")}
    kept = {f"sha256:{name}" for name in os.listdir(root / "blobs" / "sha256")}
    yield from _differ("blob", blobs, "the store", kept, "images/blobs")
    for directory in ("loading", "trash"):
        for name in os.listdir(root / directory):
            yield f"images/{directory}/{name} was left"
    for name in os.listdir(root / "frames"):
        if name.removesuffix(".moved") not in names:
            yield f"frame {name} belongs to no layer"


def _check_networks(daemon: Daemon, stored: Stored, alive: dict[str, dict[str, Any]]) -> Iterator[str]:
    records = stored.objects("networks/")
    listed = {n["Id"] for n in daemon.http("GET", "/networks").json()}
    yield from _differ("network", records, "the store", listed, "the API's list")
    bridges = {n["bridge"] for n in records.values() if n.get("driver", "bridge") == "bridge"}
    links = {name for _, name in socket.if_nameindex()}
    for bridge in bridges - links:
        yield f"bridge {bridge} isn't there"
    for bridge in stored.below("bridges/"):
        yield f"bridge {bridge} is noted as one without a network"
    for link in links - bridges:
        if link.startswith(daemon.names.bridge):
            yield f"bridge {link} belongs to no network"
    endpoints = [(i, e) for i, s in alive.items() for e in s.get("endpoints", ())]
    addresses = {
        f"{e['network_id']}/{e[family]}": i
        for i, e in endpoints
        for family in ("ipv4", "ipv6")
        if e.get(family)
    }
    stored_addresses = {key: owner.decode() for key, owner in stored.below("addresses/").items()}
    yield from _differ("address", addresses, "what runs", stored_addresses, "the store")
    for key, owner in stored_addresses.items():
        if addresses.get(key, owner) != owner:
            yield f"address {key} is {owner}'s in the store, {addresses[key]}'s in truth"
    ports = {
        os.path.basename(path): bridge
        for bridge in bridges & links
        for path in _listed(Path("/sys/class/net", bridge, "brif"))
    }
    known = {e["host_interface"]: i for i, e in endpoints}
    for name in set(known) - set(ports):
        yield f"link {name} of container {known[name]} isn't on a bridge"
    spare = set(ports) - set(known)
    if len(spare) > _POOL_MOST or any(ports[name] != daemon.names.bridge for name in spare):
        yield f"links that belong to nobody: {sorted(spare)}"


def _listed(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _check_ports(daemon: Daemon, alive: dict[str, dict[str, Any]]) -> Iterator[str]:
    wanted = set()
    for state in alive.values():
        routed = next((e for e in state.get("endpoints", ()) if e.get("gateway4") or e.get("gateway6")), None)
        for port in state.get("ports", ()) if routed else ():
            host = port.get("host_ip", "")
            address = routed.get("ipv6" if ":" in host else "ipv4", "")
            if address and host != "::1":
                at = "*" if host in ("", "0.0.0.0", "::") else host
                wanted.add(
                    f"{at} {port.get('protocol', 'tcp')} {port['host_port']} > {address} {port['container_port']}"
                )
    yield from _differ("port", wanted, "what runs", read_elements(daemon.names.table), "nftables")


def read_elements(table: str) -> set[str]:
    """The elements of the four maps, as lines."""
    found = set()
    done = subprocess.run(["nft", "-j", "list", "table", "inet", table], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for item in json.loads(done.stdout)["nftables"]:
        chosen = item.get("map")
        if chosen is None or chosen["name"] not in _MAPS:
            continue
        for key, value in chosen.get("elem", ()):
            parts = [str(part) for part in key["concat"]]
            host = "*" if chosen["name"].startswith("any") else parts.pop(0)
            address, port = value["concat"]
            found.add(f"{host} {parts[0]} {parts[1]} > {address} {port}")
    return found
