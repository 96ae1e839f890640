"""The HTTP server on a real socket: framing, order, bounds, leaving clients, hijacking."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from cove.api import connection
from tests.unit.fakes_engine import TIMEOUT_S, ApiFixture, request_bytes, serving


@pytest.fixture(scope="module")
def shared() -> Iterator[ApiFixture]:
    with serving() as fixture:
        yield fixture


@pytest.fixture
def api() -> Iterator[ApiFixture]:
    with serving() as fixture:
        yield fixture


def wait_for(condition: Callable[[], bool]) -> bool:
    """Poll what has no event of its own; bounded."""
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


PING = b"GET /_ping HTTP/1.1\r\nHost: cove\r\n\r\n"


# --- framing ------------------------------------------------------------------------------


def test_a_connection_serves_many_requests(shared: ApiFixture) -> None:
    client = shared.connect()
    for _ in range(3):
        client.send(PING)
        assert client.answer().body == b"OK"


def test_pipelined_requests_are_answered_in_order(shared: ApiFixture) -> None:
    client = shared.connect()
    client.send(PING + b"GET /version HTTP/1.1\r\n\r\n" + b"GET /nothing HTTP/1.1\r\n\r\n" + PING)
    assert client.answer().body == b"OK"
    assert client.answer().json["ApiVersion"] == "1.55"
    assert client.answer().status == 404
    assert client.answer().body == b"OK"


def test_a_request_may_arrive_byte_by_byte(shared: ApiFixture) -> None:
    client = shared.connect()
    for byte in request_bytes("POST", "/volumes/create", {"Name": "slow"}):
        client.send(bytes([byte]))
    assert client.answer().json["Name"] == "slow"


def test_bodies_with_a_length_and_chunked_ones_are_the_same(shared: ApiFixture) -> None:
    client = shared.connect()
    head = b"POST /volumes/create HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    client.send(head + b'8\r\n{"Name":\r\n7;x=y\r\n"chunk"\r\n1\r\n}\r\n0\r\n\r\n' + PING)
    assert client.answer().json["Name"] == "chunk"
    assert client.answer().body == b"OK"


def test_head_answers_without_a_body(shared: ApiFixture) -> None:
    client = shared.connect()
    client.send(b"HEAD /_ping HTTP/1.1\r\n\r\n" + PING)
    answer = client.answer(method="HEAD")
    assert (answer.status, answer.headers["api-version"]) == (200, "1.55")
    assert client.answer().body == b"OK"


def test_an_http_1_0_client_is_answered_and_the_connection_closed(shared: ApiFixture) -> None:
    client = shared.connect()
    client.send(b"GET /_ping HTTP/1.0\r\n\r\n")
    assert client.rest().endswith(b"\r\n\r\nOK")


def test_an_http_1_0_client_gets_streams_without_chunks(shared: ApiFixture) -> None:
    client = shared.connect()
    client.send(b"GET /images/debian/get HTTP/1.0\r\n\r\n")
    head, _, body = client.rest().partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head
    assert body == b"tar:debian"


def test_connection_close_is_obeyed(shared: ApiFixture) -> None:
    client = shared.connect()
    client.send(b"GET /_ping HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert client.answer().headers["connection"] == "close"
    assert client.rest() == b""


def test_100_continue_is_sent_once_the_body_is_wanted(shared: ApiFixture) -> None:
    client = shared.connect()
    body = b'{"Name": "later"}'
    client.send(
        b"POST /volumes/create HTTP/1.1\r\nContent-Type: application/json\r\n"
        b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    assert client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(body)
    assert client.answer().json["Name"] == "later"


def test_a_request_that_fails_first_gets_no_100_continue(shared: ApiFixture) -> None:
    client = shared.connect()
    client.send(b"POST /nothing HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (404, "close")


@pytest.mark.parametrize(
    "wire",
    [
        b"HELLO\r\n\r\n",
        b"GET /_ping\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\nNo colon\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"h%d: v\r\n" % i for i in range(200)) + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_malformed_requests_get_a_400_and_the_end(shared: ApiFixture, wire: bytes) -> None:
    client = shared.connect()
    client.send(wire)
    answer = client.answer()
    assert answer.status == 400
    assert answer.message
    client.sock.shutdown(socket.SHUT_WR)
    assert client.rest() == b""


def test_a_head_without_end_is_refused_at_its_bound(shared: ApiFixture) -> None:
    client = shared.connect()
    client.send(b"GET / HTTP/1.1\r\nX: " + b"a" * (connection.MAX_HEAD_BYTES + 1))
    assert client.answer().status == 431


def test_a_head_that_never_comes_is_refused_at_its_time(
    shared: ApiFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.05)
    client = shared.connect()
    client.send(b"GET /_ping HTT")
    assert client.answer().status == 408


def test_a_malformed_chunk_in_a_body_is_a_400(shared: ApiFixture) -> None:
    client = shared.connect()
    client.send(
        b"POST /volumes/create HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    )
    answer = client.answer()
    assert answer.status == 400
    assert "chunk" in answer.message


def test_a_body_above_the_limit_is_refused_before_it_is_sent(shared: ApiFixture) -> None:
    client = shared.connect()
    client.send(
        b"POST /volumes/create HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 5000000\r\n\r\n"
    )
    answer = client.answer()
    assert answer.status == 400
    assert "5000000 bytes, the limit is 4194304" in answer.message


def test_a_chunked_body_above_the_limit_is_refused_while_it_is_sent(shared: ApiFixture) -> None:
    client = shared.connect()
    client.send(
        b"POST /volumes/create HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    for _ in range(66):
        client.send(piece)
    answer = client.answer()
    assert answer.status == 400
    assert "larger than the limit" in answer.message


def test_the_answer_to_an_unread_upload_can_be_read_before_the_upload_ends(shared: ApiFixture) -> None:
    client = shared.connect()
    client.send(b"PUT /containers/nothing/archive?path=/ HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n")
    client.send(b"x" * 300_000)
    assert client.answer().message == "No such container: nothing"


# --- back-pressure and leaving clients ----------------------------------------------------


def test_a_slow_reader_holds_an_upload_back(api: ApiFixture) -> None:
    api.create("web")
    client = api.connect()
    client.send(b"PUT /containers/web/archive?path=/ HTTP/1.1\r\nContent-Length: 100000000\r\n\r\nfirst")
    assert api.engine.entered.wait(TIMEOUT_S)
    client.sock.setblocking(False)
    sent = 0
    end = time.monotonic() + TIMEOUT_S
    blocked_since = 0.0
    while time.monotonic() < end:  # until the socket takes nothing for a while
        try:
            sent += client.sock.send(b"x" * 65536)
            blocked_since = 0.0
        except BlockingIOError:
            blocked_since = blocked_since or time.monotonic()
            if time.monotonic() - blocked_since > 0.5:
                break
            time.sleep(0.01)
    assert sent < 8 << 20, "the server took in megabytes that nobody read"
    client.close()
    api.call(api.engine.go.set)
    assert api.engine.ended.wait(TIMEOUT_S)


def test_a_client_that_leaves_in_an_upload_ends_it_with_an_error(api: ApiFixture) -> None:
    api.create("web")
    api.call(api.engine.go.set)
    client = api.connect()
    client.send(b"PUT /containers/web/archive?path=/ HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf")
    assert api.engine.entered.wait(TIMEOUT_S)
    client.close()
    assert api.engine.ended.wait(TIMEOUT_S)
    assert api.engine.received == b"half"


def test_a_client_that_leaves_a_followed_log_cancels_it(api: ApiFixture) -> None:
    api.create("web")
    client = api.connect()
    client.send(b"GET /containers/web/logs?stdout=1&follow=1 HTTP/1.1\r\n\r\n")
    assert client.head()[0] == 200
    client.close()
    assert api.engine.ended.wait(TIMEOUT_S)


def test_a_client_that_leaves_a_wait_cancels_it(api: ApiFixture) -> None:
    api.create("web")
    client = api.connect()
    client.send(b"POST /containers/web/wait HTTP/1.1\r\n\r\n")
    assert client.head()[0] == 200
    client.close()
    assert api.engine.ended.wait(TIMEOUT_S)


def test_a_client_that_leaves_events_frees_its_listener(api: ApiFixture) -> None:
    client = api.connect()
    client.send(b"GET /events HTTP/1.1\r\n\r\n")
    assert client.head()[0] == 200
    assert len(api.engine.events.streams) == 1
    client.close()
    assert wait_for(lambda: not api.engine.events.streams)


def test_a_change_runs_to_its_end_without_its_client(api: ApiFixture) -> None:
    container_id = api.create("web")
    client = api.connect()
    client.send(b"POST /containers/web/pause HTTP/1.1\r\n\r\n")
    assert api.engine.entered.wait(TIMEOUT_S)
    client.close()
    api.ask("GET", "/_ping")  # the loop has seen the close by now, or will before `go`
    api.call(api.engine.go.set)
    assert wait_for(lambda: api.engine.views[container_id].state.status == "paused")


def test_a_half_closed_client_still_gets_its_answer(shared: ApiFixture) -> None:
    client = shared.connect()
    client.send(PING + PING)
    client.sock.shutdown(socket.SHUT_WR)
    assert client.answer().body == b"OK"
    assert client.answer().body == b"OK"
    assert client.rest() == b""


def test_a_half_closed_client_gets_a_finite_stream(shared: ApiFixture) -> None:
    client = shared.connect()
    client.send(b"GET /images/debian/get HTTP/1.1\r\n\r\n")
    client.sock.shutdown(socket.SHUT_WR)
    assert client.answer().body == b"tar:debian"


def test_a_request_cut_in_its_head_is_dropped(shared: ApiFixture) -> None:
    client = shared.connect()
    client.send(b"GET /_pi")
    client.sock.shutdown(socket.SHUT_WR)
    assert client.rest() == b""


def test_the_server_ends_streams_when_it_closes() -> None:
    with serving() as api:
        api.create("web")
        client = api.connect()
        client.send(b"GET /events HTTP/1.1\r\n\r\n")
        assert client.head()[0] == 200
        idle = api.connect()
        idle.send(PING)
        idle.answer()
        api.run(api.server.close(grace_s=TIMEOUT_S))
        assert client.rest() == b"0\r\n\r\n"
        assert idle.rest() == b""


def test_a_failing_handler_answers_500_and_tells_no_secrets(api: ApiFixture) -> None:
    api.engine.images.find_image = None  # type: ignore[assignment, method-assign]
    answer = api.ask("GET", "/images/debian/json")
    assert answer.status == 500
    assert "NoneType" not in answer.message


# --- hijacking ----------------------------------------------------------------------------

ATTACH = "/containers/web/attach?stream=1&stdin=1&stdout=1&stderr=1"
UPGRADE = {"Connection": "Upgrade", "Upgrade": "tcp"}


def test_an_upgraded_attach_is_a_raw_stream_that_survives_half_close(api: ApiFixture) -> None:
    api.create("web", OpenStdin=True)
    client = api.connect()
    client.send(request_bytes("POST", ATTACH, headers=UPGRADE))
    status, headers = client.head()
    assert status == 101
    assert headers["upgrade"] == "tcp"
    assert headers["content-type"] == "application/vnd.docker.multiplexed-stream"
    assert "content-length" not in headers
    client.send(b"one")
    assert client.exactly(3) == b"one"
    client.send(b"two")
    client.sock.shutdown(socket.SHUT_WR)
    assert client.rest() == b"two<end 6>"


def test_bytes_sent_before_the_upgrade_is_answered_reach_the_container(api: ApiFixture) -> None:
    api.create("web", OpenStdin=True)
    client = api.connect()
    client.send(request_bytes("POST", ATTACH, headers=UPGRADE) + b"GET early\r\n\r\n")
    client.sock.shutdown(socket.SHUT_WR)
    assert client.head()[0] == 101
    assert client.rest() == b"GET early\r\n\r\n<end 13>"


def test_a_client_without_upgrade_gets_a_plain_200_and_the_same_stream(api: ApiFixture) -> None:
    api.create("web", OpenStdin=True)
    client = api.connect()
    client.send(request_bytes("POST", "/v1.24" + ATTACH) + b"early")
    status, headers = client.head()
    assert (status, headers["content-type"]) == (200, "application/vnd.docker.raw-stream")
    client.send(b"late")
    client.sock.shutdown(socket.SHUT_WR)
    assert client.rest() == b"earlylate<end 9>"


def test_a_hijack_follows_an_earlier_request_of_the_same_connection(api: ApiFixture) -> None:
    api.create("web", OpenStdin=True)
    client = api.connect()
    client.send(PING + request_bytes("POST", ATTACH, headers=UPGRADE) + b"x")
    assert client.answer().body == b"OK"
    assert client.head()[0] == 101
    client.sock.shutdown(socket.SHUT_WR)
    assert client.rest() == b"x<end 1>"


def test_a_large_early_input_is_handed_over_whole(api: ApiFixture) -> None:
    api.create("web", OpenStdin=True)
    client = api.connect()
    data = bytes(range(256)) * 4096
    client.send(request_bytes("POST", ATTACH, headers=UPGRADE))
    assert client.head()[0] == 101
    received = b""
    for at in range(0, len(data), 65536):
        client.send(data[at : at + 65536])
        received += client.exactly(65536)
    assert received == data


def test_what_is_wrong_before_an_attach_has_a_status(api: ApiFixture) -> None:
    answer = api.ask("POST", "/containers/nothing/attach?stream=1", headers=UPGRADE)
    assert (answer.status, answer.message) == (404, "No such container: nothing")


def test_a_failure_after_the_header_is_written_where_output_would_be(api: ApiFixture) -> None:
    from cove.model.errors import Conflict

    api.create("web")
    api.engine.attach_error = Conflict("it ended")
    client = api.connect()
    client.send(request_bytes("POST", ATTACH, headers=UPGRADE))
    assert client.head()[0] == 101
    assert client.rest() == b"\x01\x00\x00\x00\x00\x00\x00\x0ait ended\r\n"


def test_an_exec_is_started_on_a_hijacked_connection_with_its_json_body(api: ApiFixture) -> None:
    api.create("web")
    answer = api.ask("POST", "/containers/web/exec", {"Cmd": ["cat"], "AttachStdin": True, "Tty": True})
    exec_id = answer.json["Id"]
    client = api.connect()
    body = {"Detach": False, "Tty": True, "ConsoleSize": [24, 80]}
    client.send(request_bytes("POST", f"/exec/{exec_id}/start", body, UPGRADE) + b"in")
    status, headers = client.head()
    assert (status, headers["content-type"]) == (101, "application/vnd.docker.raw-stream")
    client.sock.shutdown(socket.SHUT_WR)
    assert client.rest() == b"in<end 2>"
    assert ("exec_start", False, 24, 80) in api.engine.calls


def test_an_exec_that_cannot_start_tells_it_in_its_stream(api: ApiFixture) -> None:
    api.create("web")
    exec_id = api.ask("POST", "/containers/web/exec", {"Cmd": ["missing"]}).json["Id"]
    client = api.connect()
    client.send(request_bytes("POST", f"/exec/{exec_id}/start", {}, UPGRADE))
    assert client.head()[0] == 101
    assert client.rest()[8:] == b"exec: missing: executable file not found in $PATH\r\n"
    answer = api.ask("POST", f"/exec/{exec_id}/start", {"Detach": True})
    assert answer.status == 400
