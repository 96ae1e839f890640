"""The client of registries against one that does as badly as it can."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, urlsplit

import pytest

from cove.image.registry.auth import Credentials
from cove.image.registry.endpoints import Endpoint
from cove.image.registry.messages import Timing
from cove.image.registry.tls import Trust
from cove.image.registry.transport import Broken, Client, Connections, Unreachable
from cove.model.errors import CoveError, Invalid, NotFound, Unauthorized, Unavailable
from tests.registrykit import Handler, HostileRegistry, Reply, Request, error

QUICK = Timing(
    connect_s=2,
    idle_s=0.5,
    head_s=1.0,
    document_s=2,
    window_s=0.5,
    least_bytes_per_s=50,
    attempts=3,
    backoff_s=0.01,
)
ADA = Credentials(username="ada", password="s3cret")
BASIC = "Basic " + base64.b64encode(b"ada:s3cret").decode()
Connect = Callable[..., Client]


def resolve(host: str, port: int) -> list[tuple[str, int]]:
    return [(found[4][0], port) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]  # type: ignore[misc]


def connect(url: str, credentials: Credentials | None = None, timing: Timing = QUICK) -> Client:
    connections = Connections(resolve, Trust([]), timing, "cove/test")
    return Client(connections, Endpoint(url=url, verify=False), credentials or Credentials(), "app")


def get(client: Client, path: str = "manifests/latest", limit: int = 1000) -> bytes:
    with client.request("GET", path) as answer:
        return answer.read(limit)


@pytest.fixture
def serve() -> Iterator[Callable[[Handler], HostileRegistry]]:
    running: list[HostileRegistry] = []

    def start(handler: Handler) -> HostileRegistry:
        running.append(HostileRegistry(handler).__enter__())
        return running[-1]

    yield start
    for registry in running:
        registry.__exit__()


Serve = Callable[[Handler], HostileRegistry]


def test_a_document_and_its_headers(serve: Serve) -> None:
    registry = serve(lambda r: Reply(body=b"hello", headers={"X-A": "b"}))
    client = connect(registry.url)
    for _ in range(3):
        assert get(client) == b"hello"
    assert {r.headers["user-agent"] for r in registry.requests} == {"cove/test"}
    assert registry.requests[0].target == "/v2/app/manifests/latest"


def test_too_large_a_document_is_refused_before_and_while_it_comes(serve: Serve) -> None:
    big = b"x" * 5000
    registry = serve(lambda r: Reply(body=big) if "told" in r.target else Reply(body=[big]))
    for name in ("told", "untold"):
        with pytest.raises(Invalid, match=r"the limit is|which is the limit"):
            get(connect(registry.url), name)


def test_a_failure_that_passes_is_tried_again(serve: Serve) -> None:
    replies = [Reply(500), Reply(429, {"Retry-After": "0"}), Reply(body=b"ok")]
    registry = serve(lambda r: replies.pop(0))
    assert get(connect(registry.url)) == b"ok"
    assert len(registry.requests) == 3


def test_a_failure_that_stays_ends_in_its_sentence(serve: Serve) -> None:
    registry = serve(lambda r: error(503, "UNAVAILABLE", "out of order"))
    with pytest.raises(Unavailable, match="answered with the status 503: unavailable: out of order"):
        get(connect(registry.url))
    assert len(registry.requests) == QUICK.attempts


def test_a_long_wait_that_is_asked_for_is_not_waited(serve: Serve) -> None:
    registry = serve(lambda r: Reply(429, {"Retry-After": "3600"}))
    with pytest.raises(Unavailable, match="no more requests for now"):
        get(connect(registry.url))
    assert len(registry.requests) == 1


def test_an_upload_is_not_repeated_unless_it_may_be(serve: Serve) -> None:
    registry = serve(lambda r: Reply(500))
    with pytest.raises(Unavailable):
        connect(registry.url).request("POST", "blobs/uploads/", body=b"x")
    assert len(registry.requests) == 1


def test_a_missing_document_is_not_asked_for_again(serve: Serve) -> None:
    registry = serve(lambda r: error(404, "MANIFEST_UNKNOWN", "manifest unknown"))
    with pytest.raises(NotFound, match=r"^manifest unknown: manifest unknown$"):
        get(connect(registry.url))
    assert len(registry.requests) == 1


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("stalls", "no byte came for 0.5 s"),
        ("drips", "bytes a second; the least is 50"),
        ("ends early", "the connection ended early"),
        ("stalls before", "no byte came for 0.5 s"),
        ("drips headers", "the connection broke|isn't HTTP|reset|remote end closed|the connection ended"),
    ],
)
def test_what_never_comes_ends(serve: Serve, what: str, sentence: str) -> None:
    def handler(_: Request) -> Reply:
        return {
            "stalls": lambda: Reply(body=registry.stall(20), length=100),
            "drips": lambda: Reply(body=registry.drip(b"x" * 1000, 0.1), length=1000),
            "ends early": lambda: Reply(body=[b"hello"], length=100),
            "stalls before": lambda: Reply(raw=registry.stall(20)),
            "drips headers": lambda: Reply(
                raw=registry.drip(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000, 0.1)
            ),
        }[what]()

    registry = serve(handler)
    begun = time.monotonic()
    with pytest.raises(Broken, match=sentence):
        get(connect(registry.url, timing=_once()))
    assert time.monotonic() - begun < 5


def _once() -> Timing:
    import msgspec

    return msgspec.structs.replace(QUICK, attempts=1)


@pytest.mark.parametrize("head", [b"A: " + b"x" * 100_000, b"A: b\r\n" * 200])
def test_headers_beyond_all_bounds(serve: Serve, head: bytes) -> None:
    registry = serve(lambda r: Reply(raw=[b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n"]))
    with pytest.raises((Broken, Unreachable)):
        get(connect(registry.url, timing=_once()))


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(Unreachable, match=f"^127.0.0.1:{port}: connection refused$"):
        get(connect(f"http://127.0.0.1:{port}"))


def test_a_name_that_nobody_knows() -> None:
    def nobody(host: str, port: int) -> list[tuple[str, int]]:
        raise OSError("no such name")

    client = Client(
        Connections(nobody, Trust([]), QUICK, "t"), Endpoint(url="https://r.invalid"), Credentials(), "app"
    )
    with pytest.raises(Unreachable, match=r"^r\.invalid: its name isn't known$"):
        get(client)


def test_redirects_lose_the_authorization_at_another_host(serve: Serve) -> None:
    other = serve(lambda r: Reply(body=b"blob"))

    def handler(r: Request) -> Reply:
        if r.headers.get("authorization") != BASIC:
            return Reply(401, {"WWW-Authenticate": "Basic realm=x"})
        return Reply(307, {"Location": f"{other.url}/blob?signed=1"})

    registry = serve(handler)
    assert get(connect(registry.url, ADA)) == b"blob"
    assert "authorization" not in other.requests[0].headers


def test_a_redirect_to_a_host_that_asks_for_a_password_gets_none(serve: Serve) -> None:
    other = serve(lambda r: Reply(401, {"WWW-Authenticate": "Basic realm=x"}))
    registry = serve(lambda r: Reply(307, {"Location": f"{other.url}/blob"}))
    with pytest.raises(Unauthorized):
        get(connect(registry.url, ADA))
    assert [r for r in other.requests if "authorization" in r.headers] == []


@pytest.mark.parametrize(("to", "sentence"), [("same", "in a circle"), ("next", "more than 5 times")])
def test_redirects_without_an_end(serve: Serve, to: str, sentence: str) -> None:
    def handler(r: Request) -> Reply:
        return Reply(302, {"Location": r.target if to == "same" else r.target + "x"})

    registry = serve(handler)
    with pytest.raises(Unavailable, match=sentence):
        get(connect(registry.url))
    assert len(registry.requests) <= 6


def token_service(r: Request) -> Reply:
    query = parse_qs(urlsplit(r.target).query)
    if r.headers.get("authorization", BASIC) != BASIC or query["scope"] != ["repository:app:pull"]:
        return Reply(401)
    return Reply(body=b'{"token": "t0ken"}')


def test_a_token_is_fetched_once_and_used(serve: Serve) -> None:
    realm = serve(token_service)

    def handler(r: Request) -> Reply:
        if r.headers.get("authorization") != "Bearer t0ken":
            challenge = f'Bearer realm="{realm.url}/token",service="s",scope="repository:app:pull"'
            return Reply(401, {"WWW-Authenticate": challenge})
        return Reply(body=b"ok")

    registry = serve(handler)
    client = connect(registry.url, ADA)
    threads = [threading.Thread(target=get, args=(client,)) for _ in range(4)]
    assert get(client) == b"ok"
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(realm.requests) == 1 and len(registry.requests) == 6
    assert not [r for r in registry.requests if r.headers.get("authorization") == BASIC]


@pytest.mark.parametrize(
    ("challenge", "kind", "sentence"),
    [
        ("Negotiate", Unauthorized, "doesn't know"),
        ("", Unauthorized, "doesn't know"),
        ('Bearer realm="file:///etc/passwd"', Unavailable, "names no http or https address"),
        ("Basic realm=x", Unauthorized, "wrong password"),
    ],
)
def test_a_401_that_never_ends(serve: Serve, challenge: str, kind: type[CoveError], sentence: str) -> None:
    registry = serve(lambda r: Reply(401, {"WWW-Authenticate": challenge} if challenge else {}))
    with pytest.raises(kind, match=sentence):
        get(connect(registry.url, ADA))
    assert len(registry.requests) <= 3


def test_a_realm_that_stalls_ends(serve: Serve) -> None:
    realm = serve(lambda r: Reply(raw=realm.stall(20)))
    registry = serve(lambda r: Reply(401, {"WWW-Authenticate": f'Bearer realm="{realm.url}"'}))
    with pytest.raises(Unavailable, match=r"token service can't be asked: .* no byte came for 0.5 s"):
        get(connect(registry.url, ADA))


def test_no_password_in_any_sentence(serve: Serve) -> None:
    for status in (400, 403, 404, 500):
        registry = serve(lambda r, status=status: error(status, "X", r.headers.get("authorization", "-")[:5]))  # type: ignore[misc]
        with pytest.raises(CoveError) as caught:
            get(connect(registry.url, ADA, _once()))
        assert "s3cret" not in str(caught.value)


def test_a_registry_that_redirects_a_token_request_gets_no_second_password(serve: Serve) -> None:
    other = serve(lambda r: Reply(body=b'{"token": "x"}'))
    realm = serve(lambda r: Reply(307, {"Location": other.url}))
    registry = serve(lambda r: Reply(401, {"WWW-Authenticate": f'Bearer realm="{realm.url}"'}))
    with pytest.raises(Unavailable, match="status 307"):
        get(connect(registry.url, ADA))
    assert other.requests == []
