"""The same calls to Cove and to Debian's dockerd: the same statuses, and answers of the same shape.

A shape is the names and types of an answer, without its values. Where the two differ for a reason, KNOWN has
it; a difference that isn't there, and one there that is gone, fail.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from tests.clients.engines import Engine, running_engine

VERSION = "1.41"  # what Debian 12's dockerd speaks
BOUND_S = 60.0
_ID = re.compile(r"[0-9a-f]{64}")


class Call(NamedTuple):
    label: str
    method: str
    path: str
    body: Any = None


class Known(NamedTuple):
    """Differences that have a reason: of calls and JSON paths ("status" for that), as regular expressions."""

    label: str
    path: str
    reason: str


class Seen(NamedTuple):
    status: int
    shape: dict[str, str]  # JSON path -> type


def filters(**values: list[str]) -> str:
    return quote(json.dumps({name.replace("_", "-"): value for name, value in values.items()}))


BODY: dict[str, Any] = {
    "Image": "busybox",
    "Cmd": ["sh", "-c", "echo out; echo err >&2; exec sleep 600"],
    "Labels": {"a": "b"},
    "Env": ["A=b"],
    "ExposedPorts": {"80/tcp": {}, "90/udp": {}},
    "Healthcheck": {"Test": ["CMD", "true"], "Interval": 3600 * 10**9},
    "StopSignal": "SIGKILL",
    "StopTimeout": 1,
    "HostConfig": {
        "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]},
        "Memory": 64 << 20,
        "Mounts": [
            {"Type": "volume", "Source": "data", "Target": "/data"},
            {"Type": "tmpfs", "Target": "/t"},
        ],
        "Binds": ["/usr:/host:ro"],
        "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 1},
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}},
    },
    "NetworkingConfig": {"EndpointsConfig": {"bridge": {}}},
}
NETWORK = {"Name": "walk", "Labels": {"n": "1"}, "IPAM": {"Config": [{"Subnet": "10.213.9.0/24"}]}}
CALLS = (
    Call("ping", "GET", "/_ping"),
    Call("version", "GET", "/version"),
    Call("info", "GET", "/info"),
    Call("empty list", "GET", "/containers/json?all=1"),
    Call("volume create", "POST", "/volumes/create", {"Name": "data", "Labels": {"v": "1"}}),
    Call("volume inspect", "GET", "/volumes/data"),
    Call("volume list", "GET", "/volumes"),
    Call("volume missing", "GET", "/volumes/nosuch"),
    Call("network create", "POST", "/networks/create", NETWORK),
    Call("network create again", "POST", "/networks/create", {**NETWORK, "CheckDuplicate": True}),
    Call("network inspect", "GET", "/networks/walk"),
    Call("network list", "GET", "/networks?filters=" + filters(name=["walk"])),
    Call("network missing", "GET", "/networks/nosuch"),
    Call("image inspect", "GET", "/images/busybox/json"),
    Call("image list", "GET", "/images/json"),
    Call("image history", "GET", "/images/busybox/history"),
    Call("image missing", "GET", "/images/nosuch/json"),
    Call("create", "POST", "/containers/create?name=web", BODY),
    Call("create again", "POST", "/containers/create?name=web", BODY),
    Call("create of a missing image", "POST", "/containers/create", {"Image": "nosuch"}),
    Call("create with a bad name", "POST", "/containers/create?name=" + quote("a b"), BODY),
    Call("create with bad JSON", "POST", "/containers/create", b'{"Image": '),
    Call("create with a wrong type", "POST", "/containers/create", {"Image": 5}),
    Call("create with a bad policy", "POST", "/containers/create",
         {"Image": "busybox", "HostConfig": {"RestartPolicy": {"Name": "sometimes"}}}),
    Call("inspect before the start", "GET", "/containers/web/json"),
    Call("stop before the start", "POST", "/containers/web/stop"),
    Call("kill before the start", "POST", "/containers/web/kill"),
    Call("pause before the start", "POST", "/containers/web/pause"),
    Call("top before the start", "GET", "/containers/web/top"),
    Call("exec before the start", "POST", "/containers/web/exec", {"Cmd": ["true"]}),
    Call("resize before the start", "POST", "/containers/web/resize?h=10&w=10"),
    Call("start", "POST", "/containers/web/start"),
    Call("start again", "POST", "/containers/web/start"),
    Call("inspect", "GET", "/containers/web/json"),
    Call("inspect with size", "GET", "/containers/web/json?size=1"),
    Call("list", "GET", "/containers/json"),
    Call("list with size", "GET", "/containers/json?size=1&limit=1"),
    Call("list filtered", "GET", "/containers/json?filters=" + filters(label=["a=b"], status=["running"])),
    Call("list with a bad filter", "GET", "/containers/json?filters=" + filters(nosuch=["x"])),
    Call("list with a bad status", "GET", "/containers/json?filters=" + filters(status=["nosuch"])),
    Call("list before nobody", "GET", "/containers/json?filters=" + filters(before=["nosuch"])),
    Call("list with bad filters", "GET", "/containers/json?filters=x"),
    Call("network connect", "POST", "/networks/walk/connect",
         {"Container": "web", "EndpointConfig": {"Aliases": ["w"]}}),
    Call("network connect again", "POST", "/networks/walk/connect", {"Container": "web"}),
    Call("network connect of nobody", "POST", "/networks/walk/connect", {"Container": "nosuch"}),
    Call("network inspect with members", "GET", "/networks/walk"),
    Call("network removal in use", "DELETE", "/networks/walk"),
    Call("inspect on two networks", "GET", "/containers/web/json"),
    Call("network disconnect", "POST", "/networks/walk/disconnect", {"Container": "web"}),
    Call("network disconnect again", "POST", "/networks/walk/disconnect", {"Container": "web"}),
    Call("top", "GET", "/containers/web/top"),
    Call("top with arguments", "GET", "/containers/web/top?ps_args=" + quote("-o pid,args")),
    Call("top with bad arguments", "GET", "/containers/web/top?ps_args=" + quote("-o nosuch")),
    Call("stats", "GET", "/containers/web/stats?stream=0"),
    Call("stats once", "GET", "/containers/web/stats?stream=0&one-shot=1"),
    Call("changes", "GET", "/containers/web/changes"),
    Call("logs without a stream", "GET", "/containers/web/logs"),
    Call("archive", "HEAD", "/containers/web/archive?path=/etc"),
    Call("archive of nothing", "HEAD", "/containers/web/archive?path=/nosuch"),
    Call("archive get of nothing", "GET", "/containers/web/archive?path=/nosuch"),
    Call("archive without a path", "GET", "/containers/web/archive"),
    Call("archive put into nothing", "PUT", "/containers/web/archive?path=/nosuch", b""),
    Call("archive put into a file", "PUT", "/containers/web/archive?path=/etc/hostname", b""),
    Call("exec create", "POST", "/containers/web/exec", {"Cmd": ["sleep", "600"], "AttachStdout": True}),
    Call("exec inspect", "GET", "/exec/{Id}/json"),
    Call("exec start detached", "POST", "/exec/{Id}/start", {"Detach": True}),
    Call("exec inspect running", "GET", "/exec/{Id}/json"),
    Call("exec start again", "POST", "/exec/{Id}/start", {"Detach": True}),
    Call("exec without a command", "POST", "/containers/web/exec", {"Cmd": []}),
    Call("exec of nobody", "GET", "/exec/nosuch/json"),
    Call("resize without a size", "POST", "/containers/web/resize"),
    Call("kill with a bad signal", "POST", "/containers/web/kill?signal=NOSUCH"),
    Call("kill with a harmless signal", "POST", "/containers/web/kill?signal=WINCH"),
    Call("rename", "POST", "/containers/web/rename?name=renamed"),
    Call("rename to the same", "POST", "/containers/renamed/rename?name=renamed"),
    Call("rename to nothing", "POST", "/containers/renamed/rename?name="),
    Call("update", "POST", "/containers/renamed/update", {"Memory": 128 << 20, "MemorySwap": 256 << 20}),
    Call("update with a bad policy", "POST", "/containers/renamed/update", {"RestartPolicy": {"Name": "sometimes"}}),
    Call("pause", "POST", "/containers/renamed/pause"),
    Call("pause again", "POST", "/containers/renamed/pause"),
    Call("exec in a paused one", "POST", "/containers/renamed/exec", {"Cmd": ["true"]}),
    Call("unpause", "POST", "/containers/renamed/unpause"),
    Call("unpause again", "POST", "/containers/renamed/unpause"),
    Call("removal while it runs", "DELETE", "/containers/renamed"),
    Call("volume removal in use", "DELETE", "/volumes/data"),
    Call("image removal in use", "DELETE", "/images/busybox"),
    Call("df", "GET", "/system/df"),
    Call("stop", "POST", "/containers/renamed/stop?t=0"),
    Call("stop again", "POST", "/containers/renamed/stop"),
    Call("wait", "POST", "/containers/renamed/wait"),
    Call("wait for what can't be", "POST", "/containers/renamed/wait?condition=nosuch"),
    Call("inspect of a stopped one", "GET", "/containers/renamed/json"),
    Call("stats of a stopped one", "GET", "/containers/renamed/stats?stream=0"),
    Call("list of exited ones", "GET", "/containers/json?filters=" + filters(status=["exited"])),
    Call("removal", "DELETE", "/containers/renamed?v=1"),
    Call("removal again", "DELETE", "/containers/renamed"),
    Call("start of nobody", "POST", "/containers/nosuch/start"),
    Call("network removal", "DELETE", "/networks/walk"),
    Call("network removal of a built-in one", "DELETE", "/networks/bridge"),
    Call("volume removal", "DELETE", "/volumes/data"),
    Call("volume removal again", "DELETE", "/volumes/data"),
    Call("volume removal of nothing by force", "DELETE", "/volumes/nosuch?force=1"),
    Call("prune of containers", "POST", "/containers/prune"),
    Call("prune of volumes", "POST", "/volumes/prune"),
    Call("prune of networks", "POST", "/networks/prune"),
    Call("prune of images", "POST", "/images/prune"),
    Call("prune with a bad filter", "POST", "/containers/prune?filters=" + filters(nosuch=["x"])),
    Call("events", "GET", "/events?since=1&until={now}&filters=" + filters(type=["container"], event=["die"])),
    Call("swarm", "GET", "/swarm"),
    Call("services", "GET", "/services"),
    Call("swarm leave", "POST", "/swarm/leave"),
    Call("plugins", "GET", "/plugins"),
    Call("plugin missing", "GET", "/plugins/nosuch/json"),
    Call("no such path", "GET", "/nosuch"),
)  # fmt: skip


def ask(engine: Engine, call: Call, saved: dict[str, str]) -> tuple[int, bytes]:
    path = call.path.replace("{Id}", saved.get("Id", "")).replace("{now}", str(int(time.time()) + 1))
    connection = http.client.HTTPConnection("localhost", timeout=BOUND_S)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(BOUND_S)
    connection.sock.connect(str(engine.socket))
    raw = isinstance(call.body, bytes)
    body = call.body if raw or call.body is None else json.dumps(call.body).encode()
    kind = "application/x-tar" if call.method == "PUT" else "application/json"
    try:
        connection.request(
            call.method, f"/v{VERSION}{path}", body, {"Content-Type": kind} if body is not None else {}
        )
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def describe(value: Any, path: str, found: dict[str, str]) -> None:
    if isinstance(value, dict):
        found[path] = "object"
        for key, item in value.items():
            describe(item, f"{path}.{_ID.sub('ID', key)}", found)
    elif isinstance(value, list):
        found[path] = "array"
        for item in value:
            describe(item, f"{path}[]", found)
    else:
        names = {bool: "boolean", int: "number", float: "number", str: "string", type(None): "null"}
        found[path] = names[type(value)]


def walk(engine: Engine) -> dict[str, Seen]:
    """Everything that one engine answers."""
    seen: dict[str, Seen] = {}
    saved: dict[str, str] = {}
    for call in CALLS:
        status, body = ask(engine, call, saved)
        shape: dict[str, str] = {}
        text = body.decode(errors="replace").strip()
        if text.startswith(("{", "[")):
            for line in text.splitlines() if call.label == "events" else [text]:
                describe(json.loads(line), "$", shape)
            if call.label == "exec create":
                saved["Id"] = json.loads(text)["Id"]
        seen[call.label] = Seen(status, shape)
    return seen


KNOWN = (
    Known("create with (bad JSON|a wrong type)", "status", "400 for what the client did wrong: dockerd says 500"),
    Known("list before nobody|list with bad filters", "status", "404 and 400: dockerd 20.10 says 500"),
    Known("network disconnect again", "status", "404: it isn't on that network; dockerd 20.10 says 500"),
    Known("archive put into a file", "status", "400: dockerd 20.10 says 500"),
    Known("unpause again", "status", "409, as for a pause that is there already: dockerd 20.10 says 500"),
    Known("wait for what can't be", "status|.*", "400, as dockerd since 23: 20.10 waits for the exit"),
    Known("info", r"\$\.(CDISpecDirs|KernelMemory|KernelMemoryTCP|RegistryConfig|Runtimes)\b.*",
          "what each one has: devices, limits of older kernels, registries, runtimes"),
    Known("network .*", r".*IPAM\.Config\[\]\.Gateway", "the gateway that was chosen is told: dockerd 20.10 keeps it"),
    Known("image inspect", r"\$\.GraphDriver\.Data\..*", "no layer is mounted on the host"),
    Known("image list|df", r".*RepoDigests(\[\])?", "a loaded image has its manifest's: dockerd 20.10 has none"),
    Known("inspect.*", r"\$\.GraphDriver\.Data\.(ID|LowerDir|MergedDir)", "not mounted on the host (decisions/0004)"),
    Known("inspect.*", r"\$\.HostConfig\.(Blkio\w+|Devices|Dns\w*|Ulimits)", "[] as its CLI sends: dockerd has null"),
    Known("inspect.*", r"\$\.HostConfig\.KernelMemory(TCP)?", "gone with 1.42 and 1.52, shown where given"),
    Known("inspect.*", r".*\.GwPriority", "shown in every version, as dockerd does since 28"),
    Known("stats.*", r"\$\.os_type", "shown in every version, as dockerd does since 29"),
    Known("stats.*", r"\$\.blkio_stats\.\w+", "null where there is nothing, as dockerd has on cgroup v2"),
    Known("stats.*", r"\$\.memory_stats\.(failcnt|stats\..*)", "all that the kernel tells, and zeros"),
    Known("stats.*", r"\$\.pids_stats\.limit", "no limit is the largest number, as dockerd has on cgroup v2"),
    Known("update", r"\$\.Warnings", "always a list"),
    Known("wait", r"\$\.Error", "left out where there is none, as dockerd does since 23"),
    Known("df", r"\$\.BuildCache", "an empty list: there is no build cache"),
    Known("df|list with size", r".*\.SizeRw", "also where it is 0"),
    Known("prune of volumes", r"\$\.VolumesDeleted", "null where nothing was, as for the other kinds"),
    Known("events", r"\$\.Actor\.Attributes\.execDuration", "as dockerd has since 23"),
)  # fmt: skip


@pytest.fixture(scope="module")
def both() -> Iterator[dict[str, dict[str, Seen]]]:
    """What the two engines answer, one after the other."""
    found = {}
    for name in ("dockerd", "cove"):
        engines = running_engine(name)
        found[name] = walk(next(engines))
        assert next(engines, None) is None
    yield found


def test_answers_have_dockerd_s_statuses_and_shapes(both: dict[str, dict[str, Seen]]) -> None:
    unknown = []
    used = set()
    for label, ours in both["cove"].items():
        theirs = both["dockerd"][label]
        differences = (
            [("status", str(ours.status), str(theirs.status))] if ours.status != theirs.status else []
        )
        for path in sorted(ours.shape.keys() | theirs.shape.keys()):
            mine, other = ours.shape.get(path, "nothing"), theirs.shape.get(path, "nothing")
            if mine != other:
                differences.append((path, mine, other))
        for path, mine, other in differences:
            known = next(
                (k for k in KNOWN if re.fullmatch(k.label, label) and re.fullmatch(k.path, path)), None
            )
            if known is None:
                unknown.append(f"{label}: {path}: {mine}, dockerd has {other}")
            else:
                used.add(known)
    assert not unknown, "\n".join(unknown)
    assert not [known for known in KNOWN if known not in used], "no longer different"


def test_errors_are_sentences_of_one_shape(both: dict[str, dict[str, Seen]]) -> None:
    failed = {label: seen for label, seen in both["cove"].items() if seen.status >= 400}
    assert len(failed) > 30
    assert all(seen.shape in ({"$": "object", "$.message": "string"}, {}) for seen in failed.values()), failed
