"""The Docker Engine API over a fake engine: statuses, shapes, versions, filters, streams."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any
from urllib.parse import quote, urlencode

import docker
import docker.errors
import msgspec
import pytest

from cove.api.docker import ROUTES
from cove.engine.health import Health, ProbeResult
from cove.engine.types import View, WaitResult
from cove.image.registry import PullEvent, PullOptions
from cove.image.registry.push import PushedTag, PushEvent, PushOptions
from cove.logs.model import LogLine, LogUnreadable
from cove.model import errors
from cove.model.container import StepFailure
from cove.model.errors import CoveError, HostError, Invalid, NotFound
from cove.model.objects import Event
from tests.unit.fakes_engine import IMAGE, TIMEOUT_S, ApiFixture, request_bytes, serving

MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
RAW = "application/vnd.docker.raw-stream"


@pytest.fixture
def api() -> Iterator[ApiFixture]:
    with serving() as fixture:
        yield fixture


# --- versions, errors, headers ------------------------------------------------------------


def test_ping_tells_what_clients_negotiate_by(api: ApiFixture) -> None:
    answer = api.ask("GET", "/_ping")
    assert answer.body == b"OK"
    wanted = {
        "api-version": "1.55",
        "builder-version": "1",
        "docker-experimental": "false",
        "ostype": "linux",
        "swarm": "inactive",
        "content-type": "text/plain; charset=utf-8",
    }
    assert wanted.items() <= answer.headers.items()
    assert answer.headers["server"].startswith("Cove/")
    assert api.ask("HEAD", "/_ping").headers["api-version"] == "1.55"


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/version", 200, ""),
        ("/v1.24/version", 200, ""),
        ("/v1.55/version", 200, ""),
        ("/v1.56/version", 400, "client version 1.56 is too new. Maximum supported API version is 1.55"),
        ("/v1.99/version", 400, "client version 1.99 is too new. Maximum supported API version is 1.55"),
        (
            "/v1.23/version",
            400,
            "client version 1.23 is too old. Minimum supported API version is 1.24, "
            "please upgrade your client to a newer version",
        ),
        ("/v1/version", 400, "client version 1 is too old."),
        ("/v1.x/version", 400, "invalid API version 'v1.x'"),
        ("/v1.40", 404, "page not found"),
        ("/volumes/a/b/c/d", 404, "get a/b/c/d: no such volume"),
        ("/verson", 404, "page not found"),
        ("/", 404, "page not found"),
    ],
)
def test_paths_and_versions(api: ApiFixture, path: str, status: int, message: str) -> None:
    answer = api.ask("GET", path)
    assert answer.status == status
    if message:
        assert answer.message.startswith(message)


def test_every_error_class_has_a_status() -> None:
    from cove.api.errors import status_of

    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.CoveError)]
    assert {kind.__name__: status_of(kind("x")) for kind in kinds} == {
        "CoveError": 500,
        "NotFound": 404,
        "Conflict": 409,
        "Invalid": 400,
        "NotModified": 304,
        "Forbidden": 403,
        "Unauthorized": 401,
        "Unavailable": 503,
        "NotImplementedHere": 501,
        "HostError": 500,
    }
    assert status_of(LogUnreadable("x")) == 501


@pytest.mark.parametrize(
    ("method", "path"), sorted({(m, p.replace("{name}", "nothing")) for m, p, _ in ROUTES})
)
def test_every_route_answers_without_an_object(api: ApiFixture, method: str, path: str) -> None:
    if path in ("/events", "/images/load"):
        return  # an endless stream, and one that takes an empty body; tested below
    answer = api.ask(method, path)
    assert answer.status != 500
    if answer.status >= 400 and method != "HEAD":
        assert answer.message


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/services", 503),
        ("GET", "/swarm", 503),
        ("POST", "/swarm/init", 501),
        ("GET", "/plugins/web/json", 404),
    ],
)
def test_what_is_missing_says_so(api: ApiFixture, method: str, path: str, status: int) -> None:
    answer = api.ask(method, path)
    assert answer.status == status
    assert len(answer.message) > 20


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        (
            {"Content-Type": "text/plain"},
            "unsupported Content-Type header (text/plain): must be 'application/json'",
        ),
        ({"Content-Type": ""}, "malformed Content-Type header ()"),
    ],
)
def test_a_body_must_say_that_it_is_json(api: ApiFixture, headers: dict[str, str], message: str) -> None:
    answer = api.ask("POST", "/volumes/create", b"{}", headers)
    assert answer.status == 400
    assert answer.message.startswith(message)


# --- containers ---------------------------------------------------------------------------


def test_a_container_from_create_to_remove(api: ApiFixture) -> None:
    container_id = api.create("web", Cmd=["sleep", "1"])
    assert api.ask("POST", "/containers/web/start").status == 204
    assert api.ask("POST", "/containers/web/start").status == 304
    assert api.ask("POST", "/containers/web/kill?signal=USR1").status == 204
    assert api.ask("DELETE", "/containers/web").status == 409
    assert api.ask("POST", "/v1.41/containers/web/stop?t=3&signal=INT").status == 204
    assert api.ask("POST", "/containers/web/stop").status == 304
    assert api.ask("POST", "/containers/web/restart?t=-1&signal=INT").status == 204
    assert api.ask("POST", "/containers/web/rename?name=app").status == 204
    assert api.ask("DELETE", f"/containers/{container_id[:12]}?v=1&force=true").status == 204
    assert api.engine.calls[1:] == [
        ("kill", "USR1"),
        ("stop", 3.0, ""),  # the signal came with API 1.42
        ("restart", -1.0, "INT"),
        ("remove", True, True, False),
    ]


def test_docker_s_wording_reaches_clients(api: ApiFixture) -> None:
    container_id = api.create("web")
    answer = api.ask("POST", "/containers/create?name=web", {"Image": "debian"})
    assert answer.status == 409
    assert answer.message == (
        f'Conflict. The container name "/web" is already in use by container "{container_id}". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )
    assert api.ask("GET", "/containers/x/json").message == "No such container: x"
    assert api.ask("POST", "/containers/create", {"Image": "x"}).message == "No such image: x:latest"


@pytest.mark.parametrize(
    ("method", "target", "message"),
    [
        ("POST", "/containers/web/stop?t=soon", "query parameter t: expected an integer, got 'soon'"),
        ("POST", "/containers/web/resize?h=24", "resize: the query parameters h and w are needed"),
        ("POST", "/containers/web/resize?h=24&w=70000", "query parameter w: must be from 0 to 65535"),
        ("GET", "/containers/json?all=perhaps", "query parameter all: expected true or false, got 'perhaps'"),
        ("GET", "/containers/json?filters=x", "invalid filter: expected JSON"),
        (
            "GET",
            '/containers/json?filters={"colour":["red"]}',
            "invalid filter 'colour', expected one of ancestor",
        ),
        (
            "GET",
            '/containers/json?filters={"status":["up"]}',
            "invalid filter 'status=up', expected one of created",
        ),
        ("GET", '/containers/json?filters={"exited":["x"]}', "invalid filter 'exited=x'"),
        ("GET", "/containers/json?limit=%zz", "invalid URL escape '%zz'"),
        ("GET", "/containers/web/logs", "Bad parameters: you must choose at least one stream"),
        ("GET", "/containers/web/logs?stdout=1&tail=few", "query parameter tail: expected a number of lines"),
        ("GET", "/containers/web/logs?stdout=1&since=today", "invalid value for \"since\": 'today'"),
        ("POST", "/containers/web/wait?condition=done", 'invalid condition: "done"'),
        ("GET", "/containers/web/archive", "bad parameter: path"),
        ("POST", "/containers/web/attach", "attach: at least one of the query parameters stream and logs"),
        ("POST", "/containers/web/attach?stream=1&detachKeys=ctrl-?", "Invalid detach keys"),
        ("POST", "/containers/web/exec", "invalid JSON: got EOF while reading request body"),
        ("GET", "/events?since=9&until=8", "`since` time (9) cannot be after `until` time (8)"),
        ("GET", "/system/df?type=wine", "unknown object type: wine"),
        ("GET", "/images/get", "images/get: the query parameter names is needed"),
        ("POST", "/images/debian/tag?tag=x", "query parameter repo: a name is needed"),
    ],
)
def test_a_wrong_query_is_a_400_with_one_sentence(
    api: ApiFixture, method: str, target: str, message: str
) -> None:
    api.create("web")
    answer = api.ask(method, target.replace('"', "%22").replace("{", "%7B").replace("}", "%7D"))
    assert answer.status == 400
    assert answer.message.startswith(message)


def test_inspect_shows_the_request_the_defaults_and_what_was_decided(api: ApiFixture) -> None:
    api.create(
        "web",
        Env=["A=b"],
        Labels={"k": "v"},
        ExposedPorts={"80/tcp": {}, "81/tcp": {}},
        HostConfig={
            "Binds": ["/srv:/data"],
            "Memory": 10 << 20,
            "PortBindings": {"80/tcp": [{"HostPort": "8080"}]},
            "CapAdd": ["NET_ADMIN"],
        },
    )
    found = api.ask("GET", "/containers/web/json?size=1").json
    assert found["Name"] == "/web"
    assert found["Image"] == IMAGE.id
    assert found["SizeRw"] == 5
    assert found["Config"]["Env"] == ["PATH=/bin", "A=b"]
    assert found["Config"]["Cmd"] == ["bash"]
    assert found["Config"]["AttachStdin"] is False
    host = found["HostConfig"]
    assert host["Binds"] == ["/srv:/data"]
    assert (host["Memory"], host["MemorySwap"]) == (10 << 20, 20 << 20)
    assert host["PortBindings"] == {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}
    assert host["CapAdd"] == ["NET_ADMIN"]
    assert (host["NetworkMode"], host["IpcMode"], host["ShmSize"]) == ("bridge", "private", 64 << 20)
    assert host["RestartPolicy"] == {"Name": "no", "MaximumRetryCount": 0}
    assert "/proc/kcore" in host["MaskedPaths"]
    assert found["NetworkSettings"]["Ports"] == {}
    assert found["NetworkSettings"]["Networks"]["bridge"]["IPAddress"] == ""
    assert found["State"]["StartedAt"] == "0001-01-01T00:00:00Z"

    api.ask("POST", "/containers/web/start")
    found = api.ask("GET", "/containers/web/json").json
    assert "SizeRw" not in found
    network = found["NetworkSettings"]
    assert network["Ports"] == {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "81/tcp": None}
    assert network["Networks"]["bridge"]["IPAddress"] == "172.30.0.2" and "IPAddress" not in network
    older = api.ask("GET", "/v1.51/containers/web/json").json
    assert older["NetworkSettings"]["IPAddress"] == "172.30.0.2" and older["Config"]["OnBuild"] is None
    assert found["State"]["Running"] is True
    assert found["State"]["StartedAt"].endswith("Z")


def test_the_shapes_of_older_versions(api: ApiFixture) -> None:
    api.create("web")
    new = api.ask("GET", "/v1.44/containers/web/json").json["NetworkSettings"]["Networks"]["bridge"]
    old = api.ask("GET", "/v1.43/containers/web/json").json["NetworkSettings"]["Networks"]["bridge"]
    assert "DNSNames" in new
    assert "DNSNames" not in old
    assert "VirtualSize" in api.ask("GET", "/v1.43/images/json").json[0]
    assert "VirtualSize" not in api.ask("GET", "/v1.44/images/json").json[0]
    assert api.ask("GET", "/v1.50/images/json").json[0]["Containers"] == -1
    assert api.ask("GET", "/v1.55/images/json").json[0]["Containers"] == 1
    assert "Hostname" in api.ask("GET", "/v1.49/images/debian/json").json["Config"]
    assert "Hostname" not in api.ask("GET", "/v1.50/images/debian/json").json["Config"]
    assert "EnableIPv4" not in api.ask("GET", "/v1.47/networks/bridge").json
    assert api.ask("GET", "/v1.48/networks/bridge").json["EnableIPv4"] is True


def names(api: ApiFixture, filters: Any = None, **query: str) -> list[str]:
    if filters is not None:
        query["filters"] = json.dumps(filters)
    answer = api.ask("GET", "/containers/json?" + urlencode(query))
    assert answer.status == 200, answer.body
    return [entry["Names"][0].removeprefix("/") for entry in answer.json]


def test_a_list_s_filters(api: ApiFixture) -> None:
    api.create("one", Labels={"a": "1", "b": ""}, HostConfig={"Binds": ["data:/d"]})
    api.create("two", Labels={"a": "2"}, ExposedPorts={"90/udp": {}})
    three = api.create("three", HostConfig={"PortBindings": {"80/tcp": [{"HostPort": "8080"}]}})
    api.ask("POST", "/containers/three/start")
    api.ask("POST", "/containers/two/start")
    api.ask("POST", "/containers/two/stop")

    assert names(api) == ["three"]
    assert names(api, all="1") == ["three", "two", "one"]
    assert names(api, limit="2") == ["three", "two"]
    assert names(api, {"status": ["exited", "created"]}) == ["two", "one"]
    assert names(api, {"status": {"exited": True, "running": False}}) == ["two"]
    assert names(api, {"label": ["a"]}, all="1") == ["two", "one"]
    assert names(api, {"label": ["a=1", "b"]}, all="1") == ["one"]
    assert names(api, {"name": ["^/t"]}, all="1") == ["three", "two"]
    assert names(api, {"name": ["("]}, all="1") == []
    assert names(api, {"id": [three[:8]]}, all="1") == ["three"]
    assert names(api, {"ancestor": ["debian"]}, all="1") == ["three", "two", "one"]
    assert names(api, {"ancestor": ["nothing"]}, all="1") == []
    assert names(api, {"before": ["two"]}, all="1") == ["one"]
    assert names(api, {"since": ["two"]}, all="1") == ["three"]
    assert names(api, {"volume": ["data"]}, all="1") == ["one"]
    assert names(api, {"volume": ["/d"]}, all="1") == ["one"]
    assert names(api, {"network": ["bridge"]}, all="1") == ["three", "two", "one"]
    assert names(api, {"network": ["host"]}, all="1") == []
    assert names(api, {"publish": ["8000-9000/tcp"]}, all="1") == ["three"]
    assert names(api, {"expose": ["90/udp"]}, all="1") == ["two"]
    assert names(api, {"exited": ["143"]}, all="1") == ["two"]
    assert names(api, {"health": ["none"]}, all="1") == ["three", "two", "one"]
    assert names(api, {"is-task": ["true"]}, all="1") == []
    assert api.ask("GET", "/containers/json?filters=%7B%22before%22%3A%5B%22x%22%5D%7D").status == 404


def test_a_list_entry_is_what_docker_ps_needs(api: ApiFixture) -> None:
    api.create(
        "web", Cmd=["sh", "-c", "a b"], HostConfig={"PortBindings": {"80/tcp": [{"HostPort": "8080"}]}}
    )
    api.ask("POST", "/containers/web/start")
    entry = api.ask("GET", "/containers/json?size=1").json[0]
    assert entry["Command"] == "sh -c 'a b'"
    assert entry["Ports"] == [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}]
    assert entry["Status"].startswith("Up ")
    assert entry["Image"] == "debian"
    assert entry["SizeRw"] == 5
    assert entry["NetworkSettings"]["Networks"]["bridge"]["IPAddress"] == "172.30.0.2"


def test_an_image_whose_name_moved_on_is_shown_by_its_id(api: ApiFixture) -> None:
    api.create("web")
    api.engine.images.images.clear()
    assert api.ask("GET", "/containers/json?all=1").json[0]["Image"] == IMAGE.id


def test_a_wait_sends_its_header_before_its_result(api: ApiFixture) -> None:
    api.create("web")
    client = api.connect()
    client.send(request_bytes("POST", "/containers/web/wait?condition=next-exit"))
    assert client.head()[0] == 200
    api.call(api.engine.waits["next-exit"].set_result, WaitResult(3, "it broke"))
    assert json.loads(client.chunk()) == {"StatusCode": 3, "Error": {"Message": "it broke"}}
    assert client.chunk() == b""
    assert api.ask("POST", "/containers/x/wait").status == 404


def test_health_is_shown_where_there_is_a_check(api: ApiFixture) -> None:
    container_id = api.create("web", Healthcheck={"Test": ["CMD", "true"]})
    api.ask("POST", "/containers/web/start")
    result = ProbeResult(started_ns=10**9, ended_ns=2 * 10**9, exit_code=1, output="no")
    health = Health(status="unhealthy", failing_streak=4)
    health.results.append(result)
    api.engine.healths[container_id] = health
    assert api.ask("GET", "/containers/web/json").json["State"]["Health"] == {
        "Status": "unhealthy",
        "FailingStreak": 4,
        "Log": [
            {"Start": "1970-01-01T00:00:01Z", "End": "1970-01-01T00:00:02Z", "ExitCode": 1, "Output": "no"}
        ],
    }
    assert api.ask("GET", "/containers/json").json[0]["Status"].endswith("(unhealthy)")
    assert names(api, {"health": ["unhealthy"]}) == ["web"]
    assert names(api, {"health": ["none", "healthy"]}) == []


def test_unused_images_are_pruned(api: ApiFixture) -> None:
    assert api.ask("POST", "/images/prune").json == {"ImagesDeleted": None, "SpaceReclaimed": 0}
    answer = api.ask("POST", "/images/prune?filters=" + quote('{"dangling":["false"]}'))
    assert answer.json == {"ImagesDeleted": [{"Deleted": IMAGE.id}], "SpaceReclaimed": 1000}


def test_updates_change_limits_and_restart_policy(api: ApiFixture) -> None:
    api.create("web")
    body = {"Memory": 10 << 20, "RestartPolicy": {"Name": "always"}}
    assert api.ask("POST", "/containers/web/update", body).json == {"Warnings": []}
    _, resources, restart = api.engine.calls[-1]
    assert (resources.memory_bytes, resources.memory_swap_bytes, restart.name) == (10 << 20, 0, "always")
    assert (
        api.ask("POST", "/containers/web/update", {"Memory": "x"}).message
        == "Memory: expected integer, got string"
    )


def test_prune_takes_filters(api: ApiFixture) -> None:
    api.create("keep", Labels={"keep": ""})
    gone = api.create("gone")
    filters = quote(json.dumps({"label!": ["keep"]}))
    answer = api.ask("POST", f"/containers/prune?filters={filters}")
    assert answer.json == {"ContainersDeleted": [gone], "SpaceReclaimed": 0}


# --- streams ------------------------------------------------------------------------------

LINES = [LogLine(1, 1_700_000_000_000_000_000, b"out\n"), LogLine(2, 1_700_000_000_500_000_000, b"err\n")]


def test_logs_are_framed_unless_a_terminal_wrote_them(api: ApiFixture) -> None:
    api.create("plain")
    api.create("tty", Tty=True)
    api.engine.log = LINES
    framed = b"\x01\0\0\0\0\0\0\x04out\n\x02\0\0\0\0\0\0\x04err\n"
    answer = api.ask("GET", "/containers/plain/logs?stdout=1&stderr=1")
    assert (answer.body, answer.headers["content-type"]) == (framed, MULTIPLEXED)
    answer = api.ask("GET", "/v1.41/containers/plain/logs?stdout=1")
    assert (answer.body, answer.headers["content-type"]) == (framed, RAW)
    answer = api.ask("GET", "/containers/tty/logs?stdout=1&timestamps=1")
    assert answer.headers["content-type"] == RAW
    assert answer.body == b"2023-11-14T22:13:20.000000000Z out\n2023-11-14T22:13:20.500000000Z err\n"


def test_a_log_query_reaches_the_reader(api: ApiFixture) -> None:
    api.create("web")
    api.ask("GET", "/containers/web/logs?stderr=1&tail=7&since=1700000000.5&until=2023-11-15T00:00:00Z")
    _, query = api.engine.calls[-1]
    assert (query.stdout, query.stderr, query.tail, query.follow) == (False, True, 7, False)
    assert query.since_ns == 1_700_000_000_500_000_000
    assert query.until_ns == 1_700_006_400_000_000_000


def test_many_log_lines_arrive_in_order(api: ApiFixture) -> None:
    api.create("web", Tty=True)
    api.engine.log = [LogLine(1, 1, b"%d\n" % number) for number in range(50_000)]
    answer = api.ask("GET", "/containers/web/logs?stdout=1")
    assert answer.body == b"".join(line.data for line in api.engine.log)


def test_an_unreadable_log_has_a_status(api: ApiFixture) -> None:
    api.create("web")
    api.engine.log_error = LogUnreadable("configured logging driver does not support reading")
    for follow in "01":
        answer = api.ask("GET", f"/containers/web/logs?stdout=1&follow={follow}")
        assert answer.status == 501
        assert "does not support reading" in answer.message


def test_stats_come_with_and_without_a_predecessor(api: ApiFixture) -> None:
    api.create("web")
    stopped = api.ask("GET", "/containers/web/stats?stream=0").json
    assert stopped["memory_stats"] == {}
    api.ask("POST", "/containers/web/start")
    once = api.ask("GET", "/containers/web/stats?stream=0&one-shot=1").json
    assert once["memory_stats"]["usage"] == 4096
    assert once["memory_stats"]["limit"] == 1 << 30
    assert once["cpu_stats"]["online_cpus"] == 2
    assert once["preread"] == "0001-01-01T00:00:00Z"
    client = api.connect()
    client.send(request_bytes("GET", "/containers/web/stats"))
    assert client.head()[0] == 200
    first, second = json.loads(client.chunk()), json.loads(client.chunk())
    assert second["preread"] == first["read"]
    assert second["precpu_stats"] == first["cpu_stats"]


def test_pressure_is_told_where_the_kernel_tells_it(api: ApiFixture) -> None:
    api.create("web")
    api.ask("POST", "/containers/web/start")
    docker = api.ask("GET", "/containers/web/stats?stream=0&one-shot=1").json
    zero = {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 0}
    assert docker["pressure_stats"] == {"memory": {"some": {**zero, "avg10": 1.5, "total": 70}, "full": zero}}
    whole = api.ask("GET", "/cove/v1/stats?container=web").json
    assert whole["memory"]["pressure"]["some"]["total_us"] == 70 and whole["cpu"]["pressure"] is None
    assert api.ask("GET", "/cove/v1/stats?container=none").status == 404
    assert api.ask("GET", "/cove/v1/stats").message.startswith("container: is missing: name one, e.g. ")


def test_stats_end_with_their_container(api: ApiFixture) -> None:
    api.create("web")
    client = api.connect()
    client.send(request_bytes("GET", "/containers/web/stats"))
    assert client.head()[0] == 200
    client.chunk()
    api.ask("DELETE", "/containers/web")
    while client.chunk():
        pass


def test_events_stream_as_they_happen(api: ApiFixture) -> None:
    client = api.connect()
    client.send(request_bytes("GET", "/events?filters=%7B%22type%22%3A%5B%22volume%22%5D%7D"))
    assert client.head()[0] == 200
    api.ask("POST", "/networks/create", {"Name": "back"})
    api.ask("POST", "/volumes/create", {"Name": "data"})
    event = json.loads(client.chunk())
    assert (event["Type"], event["Action"], event["Actor"]["ID"]) == ("volume", "create", "data")


def test_past_events_are_replayed_and_the_stream_ends_at_until(api: ApiFixture) -> None:
    event = Event(
        kind="container", action="die", actor_id="c", attributes={"image": "debian"}, time_ns=5 * 10**9
    )
    api.call(api.engine.events.publish, event)
    answer = api.ask("GET", "/v1.51/events?since=1&until=9")
    assert json.loads(answer.body) == {
        "status": "die",
        "id": "c",
        "from": "debian",
        "Type": "container",
        "Action": "die",
        "Actor": {"ID": "c", "Attributes": {"image": "debian"}},
        "scope": "local",
        "time": 5,
        "timeNano": 5_000_000_000,
    }


def test_files_go_in_and_out_with_their_facts(api: ApiFixture) -> None:
    api.create("web")
    answer = api.ask("HEAD", "/containers/web/archive?path=/etc/hosts")
    fact = json.loads(base64.b64decode(answer.headers["x-docker-container-path-stat"]))
    assert fact == {
        "name": "hosts",
        "size": 3,
        "mode": 0o644,
        "mtime": "2023-11-14T22:13:20Z",
        "linkTarget": "",
    }
    answer = api.ask("GET", "/containers/web/archive?path=/etc/hosts")
    assert (answer.body, answer.headers["content-type"]) == (b"tar", "application/x-tar")
    api.call(api.engine.go.set)
    answer = api.ask(
        "PUT", "/containers/web/archive?path=/srv", b"tar" * 1000, {"Content-Type": "application/x-tar"}
    )
    assert answer.status == 200
    assert api.engine.received == b"tar" * 1000


def test_an_exec_from_create_to_inspect(api: ApiFixture) -> None:
    api.create("web")
    assert api.ask("POST", "/containers/web/exec", {"Cmd": []}).message == "No exec command specified"
    exec_id = api.ask("POST", "/containers/web/exec", {"Cmd": ["ls", "-l"], "User": "me"}).json["Id"]
    assert api.ask("POST", f"/exec/{exec_id}/start", {"Detach": True}).status == 200
    found = api.ask("GET", f"/exec/{exec_id}/json").json
    assert found["ExitCode"] == 0
    assert found["ProcessConfig"] == {
        "tty": False,
        "entrypoint": "ls",
        "arguments": ["-l"],
        "privileged": False,
        "user": "me",
    }
    assert api.ask("POST", f"/exec/{exec_id}/start", {"Detach": True}).status == 409
    assert api.ask("POST", f"/exec/{exec_id}/resize?h=1&w=2").status == 200


# --- images, volumes, networks, system ----------------------------------------------------


def test_images_are_listed_and_filtered(api: ApiFixture) -> None:
    def found(filters: Any) -> int:
        text = quote(json.dumps(filters))
        return len(api.ask("GET", f"/images/json?filters={text}").json)

    assert api.ask("GET", "/images/json").json[0]["RepoTags"] == ["debian:latest"]
    assert found({"reference": ["debian"]}) == 1
    assert found({"reference": ["deb*:la*"]}) == 1
    assert found({"reference": ["ubuntu", "x/*"]}) == 0
    assert found({"reference": ["[*"]}) == 0
    assert found({"dangling": ["true"]}) == 0
    assert found({"label": ["from=image"]}) == 1
    assert found({"before": ["debian"]}) == 0
    assert found({"until": ["2020-01-01T00:00:00Z"]}) == 0


def test_an_image_is_inspected_tagged_and_removed(api: ApiFixture) -> None:
    found = api.ask("GET", "/images/debian:latest/json").json
    assert found["RootFS"] == {"Type": "layers", "Layers": list(IMAGE.diff_ids)}
    assert found["Config"]["Cmd"] == ["bash"]
    assert api.ask("GET", "/images/debian/history").json[0]["CreatedBy"] == "mmdebstrap"
    assert api.ask("POST", "/images/debian/tag?repo=a/b&tag=c").status == 201
    api.create("web")
    assert api.ask("DELETE", "/images/debian").status == 409
    assert api.ask("DELETE", "/images/debian?force=1").json == [
        {"Untagged": "debian:latest"},
        {"Deleted": IMAGE.id},
    ]
    assert api.ask("GET", "/images/debian/json").message == "No such image: debian:latest"


def test_archives_of_images_go_in_and_out(api: ApiFixture) -> None:
    assert api.ask("GET", "/images/get?names=debian&names=debian:latest").body == b"tar:debian,debian:latest"
    assert api.ask("GET", "/images/get?names=debian,nothing").status == 404
    answer = api.ask("POST", "/images/load", b"a" * 300_000, {"Content-Type": "application/x-tar"})
    assert json.loads(answer.body) == {"stream": "Loaded image: debian:latest\n"}
    assert api.engine.images.received == b"a" * 300_000
    api.engine.images.load_error = Invalid("it isn't an image archive")
    answer = api.ask("POST", "/images/load", b"x", {"Content-Type": "application/x-tar"})
    message = "it isn't an image archive"
    assert (answer.status, json.loads(answer.body)) == (
        200,
        {"errorDetail": {"message": message}, "error": message},
    )


def test_a_container_s_changes_and_all_of_its_files_are_told(api: ApiFixture) -> None:
    container = api.create("web")
    assert api.ask("GET", f"/containers/{container}/changes").json == [
        {"Path": "/etc", "Kind": 0},
        {"Path": "/etc/new", "Kind": 1},
    ]
    assert api.ask("GET", f"/containers/{container}/export").body == b"tar:all"
    assert api.ask("GET", "/containers/nobody/export").status == 404


def test_a_failing_load_after_progress_is_told_in_the_stream(api: ApiFixture) -> None:
    async def load(chunks: Any) -> Any:
        from cove.image.types import LayerProgress

        yield LayerProgress(id="abc", current=1, total=2)
        raise HostError("the disk is full")

    api.engine.images.load = load  # type: ignore[method-assign]
    answer = api.ask("POST", "/images/load", b"x", {"Content-Type": "application/x-tar"})
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert lines[0]["progressDetail"] == {"current": 1, "total": 2}
    assert lines[1] == {"errorDetail": {"message": "the disk is full"}, "error": "the disk is full"}


def pulling(api: ApiFixture, *events: PullEvent | CoveError) -> list[tuple[str, PullOptions]]:
    """Have pulls give these events; what was asked for."""
    asked: list[tuple[str, PullOptions]] = []

    async def run() -> AsyncGenerator[PullEvent, None]:
        for event in events:
            if isinstance(event, CoveError):
                raise event
            yield event

    def pull(reference: str, options: PullOptions) -> AsyncGenerator[PullEvent, None]:
        asked.append((reference, options))
        return run()

    api.engine.images.pull = pull  # type: ignore[attr-defined]
    return asked


def test_a_pull_tells_docker_s_lines(api: ApiFixture) -> None:
    asked = pulling(
        api,
        PullEvent(status="Pulling from library/debian", id="latest"),
        PullEvent(status="Pulling fs layer", id="abc"),
        PullEvent(status="Downloading", id="abc", current=1, total=2),
        PullEvent(status="Status: Downloaded newer image for debian:latest"),
    )
    auth = base64.urlsafe_b64encode(
        b'{"username": "ada", "password": "s3cret", "serveraddress": "x"}'
    ).decode()
    answer = api.ask(
        "POST",
        "/images/create?fromImage=debian&tag=latest&platform=linux/arm64",
        headers={"X-Registry-Auth": auth.rstrip("=")},
    )
    assert [json.loads(line) for line in answer.body.splitlines()] == [
        {"status": "Pulling from library/debian", "id": "latest"},
        {"status": "Pulling fs layer", "progressDetail": {}, "id": "abc"},
        {
            "status": "Downloading",
            "progressDetail": {"current": 1, "total": 2},
            "progress": "1/2 B",
            "id": "abc",
        },
        {"status": "Status: Downloaded newer image for debian:latest"},
    ]
    ((reference, options),) = asked
    assert (reference, options.platform, options.all_tags) == ("debian:latest", "linux/arm64", False)
    assert (options.credentials.username, options.credentials.password) == ("ada", "s3cret")


def test_a_pull_that_fails_is_a_status_at_first_and_a_line_later(api: ApiFixture) -> None:
    asked = pulling(api, NotFound("manifest for x:1 not found"))
    answer = api.ask("POST", f"/images/create?fromImage=x&tag=sha256:{'a' * 64}")
    assert (answer.status, answer.message) == (404, "manifest for x:1 not found")
    pulling(api, PullEvent(status="Pulling from x", id="1"), HostError("no space left"))
    lines = api.ask("POST", "/images/create?fromImage=x:1").body.splitlines()
    assert json.loads(lines[1]) == {"errorDetail": {"message": "no space left"}, "error": "no space left"}
    assert asked[0][0] == f"x@sha256:{'a' * 64}"


def test_a_pull_without_a_tag_is_of_all_tags(api: ApiFixture) -> None:
    asked = pulling(api)
    assert api.ask("POST", "/images/create?fromImage=x").status == 200
    assert asked[0][1].all_tags


def test_a_push_tells_docker_s_lines(api: ApiFixture) -> None:
    asked: list[tuple[str, PushOptions]] = []

    async def push(reference: str, options: PushOptions) -> AsyncGenerator[Any, None]:
        asked.append((reference, options))
        yield PushEvent(status="The push refers to repository [x/app]")
        yield PushEvent(status="Preparing", id="abc")
        yield PushEvent(status="Pushing", id="abc", current=1, total=2)
        yield PushedTag(reference="x/app:1", image_id=IMAGE.id, tag="1", digest="sha256:d", size=9)

    api.engine.images.push = push  # type: ignore[method-assign]
    answer = api.ask("POST", "/images/x/app/push?tag=1&compression=zstd&compression-level=7")
    assert [json.loads(line) for line in answer.body.splitlines()] == [
        {"status": "The push refers to repository [x/app]"},
        {"status": "Preparing", "progressDetail": {}, "id": "abc"},
        {"status": "Pushing", "progressDetail": {"current": 1, "total": 2}, "progress": "1/2 B", "id": "abc"},
        {"status": "1: digest: sha256:d size: 9"},
        {"progressDetail": {}, "aux": {"Tag": "1", "Digest": "sha256:d", "Size": 9}},
    ]
    ((reference, options),) = asked
    assert (reference, options.all_tags, options.wanted.compression, options.wanted.level) == (
        "x/app:1",
        False,
        "zstd",
        7,
    )


def test_a_push_that_fails_is_a_line_of_its_stream(api: ApiFixture) -> None:
    lines = api.ask("POST", "/images/x/push?tag=1").body.splitlines()
    assert json.loads(lines[1])["error"] == "An image does not exist locally with the tag: x:1"


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("", "term: expected some words"),
        ("term=http://x/y", "should not have a scheme"),
        ("term=x&limit=101", "must be from 0 to 100"),
        ('term=x&filters={"stars":["many"]}', "invalid filter"),
        ('term=x&filters={"colour":["red"]}', "colour"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(api: ApiFixture, query: str, sentence: str) -> None:
    answer = api.ask("GET", f"/images/search?{query}")
    assert answer.status == 400 and sentence in answer.message


def test_a_search_answers_as_docker_does(api: ApiFixture) -> None:
    assert json.loads(api.ask("GET", "/images/search?term=deb").body) == [
        {
            "star_count": 7,
            "is_official": True,
            "name": "debian",
            "is_automated": False,
            "description": "a system",
        }
    ]


@pytest.mark.parametrize(
    "header", ["!", "YQ", *(base64.b64encode(x).decode() for x in (b"[1]", b"[" * 9999))]
)
def test_credentials_that_are_none_are_told_without_them(api: ApiFixture, header: str) -> None:
    pulling(api)
    answer = api.ask("POST", "/images/create?fromImage=x&tag=1", headers={"X-Registry-Auth": header})
    assert answer.status == 400 and answer.message.startswith("X-Registry-Auth: expected base64url")


def test_the_log_driver_is_shown_as_clients_need_it(api: ApiFixture) -> None:
    def shown(name: str) -> str:
        return str(api.ask("GET", f"/containers/{name}/json").json["HostConfig"]["LogConfig"]["Type"])

    api.create("none-named")
    api.create("named", HostConfig={"LogConfig": {"Type": "local"}})
    assert (shown("none-named"), shown("named")) == ("json-file", "local")


def test_an_import_answers_with_the_image(api: ApiFixture) -> None:
    answer = api.ask(
        "POST", "/images/create?fromSrc=-&repo=a&tag=b", b"tar", {"Content-Type": "application/x-tar"}
    )
    assert json.loads(answer.body) == {"status": IMAGE.id}
    assert api.engine.images.received == b"tar"


def test_volumes_are_made_listed_and_removed(api: ApiFixture) -> None:
    made = api.ask("POST", "/volumes/create", {"Name": "data", "Labels": {"a": "b"}})
    assert (made.status, made.json["Name"], made.json["Labels"]) == (201, "data", {"a": "b"})
    assert (
        api.ask("GET", "/volumes?filters=%7B%22label%22%3A%5B%22a%3Db%22%5D%7D").json["Volumes"][0]
        == made.json
    )
    assert api.ask("GET", "/volumes?filters=%7B%22name%22%3A%5B%22x%22%5D%7D").json["Volumes"] == []
    api.create("web", HostConfig={"Binds": ["data:/d"]})
    assert "volume is in use" in api.ask("DELETE", "/volumes/data").message
    api.ask("DELETE", "/containers/web")
    assert api.ask("DELETE", "/volumes/data").status == 204
    assert api.ask("DELETE", "/volumes/data").status == 404
    assert api.ask("DELETE", "/volumes/data?force=1").status == 204


def test_pruned_volumes_are_the_anonymous_ones_since_1_42(api: ApiFixture) -> None:
    api.ask("POST", "/volumes/create", {"Name": "data"})
    assert api.ask("POST", "/v1.42/volumes/prune").json["VolumesDeleted"] is None
    assert api.ask("POST", "/v1.41/volumes/prune").json["VolumesDeleted"] == ["data"]


def test_networks_are_made_joined_left_and_removed(api: ApiFixture) -> None:
    body = {"Name": "back", "IPAM": {"Config": [{"Subnet": "172.31.0.0/16"}]}, "Labels": {"a": "b"}}
    made = api.ask("POST", "/networks/create", body)
    assert made.status == 201
    container_id = api.create("web")
    endpoint = {"Container": "web", "EndpointConfig": {"Aliases": ["db"]}}
    assert api.ask("POST", "/networks/back/connect", endpoint).status == 200
    _, reference, spec = api.engine.calls[-1]
    assert (reference, spec.network, spec.aliases) == (container_id, made.json["Id"], ("db",))
    assert api.ask("POST", "/networks/back/disconnect", {"Container": "web", "Force": True}).status == 200
    assert api.engine.calls[-1] == ("disconnect", container_id, made.json["Id"], True)
    assert api.ask("GET", "/networks/back").json["Containers"] == {}
    custom = api.ask("GET", "/networks?filters=%7B%22type%22%3A%5B%22custom%22%5D%7D").json
    assert [network["Name"] for network in custom] == ["back"]
    assert api.ask("POST", "/networks/prune").json == {"NetworksDeleted": ["back"]}
    assert api.ask("DELETE", "/networks/back").status == 404


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "Name: a network needs a name"),
        ({"Name": "x", "IPAM": {"Config": [{}]}}, "IPAM.Config[0].Subnet"),
        ({"Name": "x", "IPAM": {"Driver": "dhcp"}}, "IPAM.Driver"),
        ({"Name": "x", "IPAM": {"Config": {}}}, "IPAM.Config: expected array, got object"),
        ({"Name": "x", "EnableIPv6": "yes"}, "EnableIPv6: expected boolean, got string"),
    ],
)
def test_a_wrong_network_is_refused_with_its_path(api: ApiFixture, body: Any, message: str) -> None:
    answer = api.ask("POST", "/networks/create", body)
    assert answer.status == 400
    assert answer.message.startswith(message)


def test_disk_use_is_chosen_by_type(api: ApiFixture) -> None:
    api.ask("POST", "/volumes/create", {"Name": "data"})
    found = api.ask("GET", "/system/df").json
    assert found["LayersSize"] == 1000
    assert found["Volumes"][0]["UsageData"] == {"Size": 7, "RefCount": 0}
    assert api.ask("GET", "/system/df?type=image").json["Volumes"] is None


def test_a_plan_is_shown_step_by_step(api: ApiFixture) -> None:
    answer = api.ask("POST", "/cove/v1/plan", {"Image": "debian"})
    assert answer.status == 200
    assert [(s["section"], s["describe"]) for s in answer.json["steps"]] == [
        ("before", "make directory /x"),
        ("clone", "clone the process"),
        ("child", "set the host name to h"),
    ]
    assert all(step["why"] for step in answer.json["steps"])
    assert api.ask("POST", "/cove/v1/plan", {"Image": "x"}).status == 404
    assert api.ask("GET", "/cove/v1/ping").json["name"] == "cove"


def test_a_container_s_plan_has_the_step_at_which_its_start_failed(api: ApiFixture) -> None:
    made = api.ask("POST", "/containers/create?name=web", {"Image": "debian"}).json["Id"]
    answer = api.ask("GET", "/cove/v1/plan?container=web").json
    assert answer["failed"] is None
    assert len(answer["steps"]) == 3
    for describe, step in (("set the host name to h", 2), ("set the host name to other", None)):
        failure = StepFailure(section="child", index=0, describe=describe, errno=1)
        state = msgspec.structs.replace(api.engine.views[made].state, failure=failure)
        api.engine.views[made] = View(api.engine.views[made].container, state)
        assert api.ask("GET", "/cove/v1/plan?container=web").json["failed"] == {
            "step": step,
            "section": "child",
            "describe": describe,
            "errno": 1,
            "name": "EPERM",
            "text": "Operation not permitted",
        }
    assert api.ask("GET", "/cove/v1/plan?container=none").status == 404
    assert api.ask("GET", "/cove/v1/plan").message.startswith("container: is missing: name one, e.g. ")


# --- the SDK for Python -------------------------------------------------------------------


def test_the_docker_sdk_for_python_works(api: ApiFixture) -> None:
    client = docker.DockerClient(base_url=f"unix://{api.path}", version="auto", timeout=int(TIMEOUT_S))
    try:
        assert client.ping()
        assert client.version()["ApiVersion"] == "1.55"
        container = client.containers.create(
            "debian",
            ["sleep", "1"],
            name="sdk",
            ports={"80/tcp": 8080, "81/udp": None},
            volumes={"/srv": {"bind": "/data", "mode": "ro"}},
            environment={"A": "b"},
            mem_limit="64m",
            labels=["x"],
            tmpfs={"/t": "size=1m"},
            ulimits=[docker.types.Ulimit(name="nofile", soft=10, hard=20)],
            restart_policy={"Name": "on-failure", "MaximumRetryCount": 2},
            extra_hosts={"db": "192.0.2.9"},
            stdin_open=True,
        )
        container.start()
        container.reload()
        assert container.status == "running"
        assert container.attrs["HostConfig"]["Memory"] == 64 << 20
        assert [c.name for c in client.containers.list()] == ["sdk"]
        api.engine.log = LINES
        assert container.logs() == b"out\nerr\n"
        assert container.logs(stderr=False, timestamps=True).startswith(b"2023-11-14T")
        code, output = container.exec_run(["true"], socket=False)
        assert (code, output) == (0, b"")
        container.stop(timeout=1)
        container.remove()
        with pytest.raises(docker.errors.NotFound):
            client.containers.get("sdk")
        with pytest.raises(docker.errors.ImageNotFound):
            client.images.get("nothing")
        assert client.images.get("debian").tags == ["debian:latest"]
        client.volumes.create("data").remove()
        assert {n.name for n in client.networks.list()} == {"bridge", "host", "none"}
        until = time.time() + 1
        assert [e["Type"] for e in client.events(since=1, until=int(until), decode=True)].count("volume") == 2
    finally:
        client.close()
