"""Blobs and manifests on their way to a registry that does as badly as it can."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cove.image.registry import uploads
from cove.image.registry.auth import Credentials
from cove.image.registry.transport import Client
from cove.image.registry.uploads import Pushed, Source, Upload, mount_blob, parse_range, put_manifest
from cove.model.errors import CoveError, HostError, Invalid, Unauthorized, Unavailable
from tests.pushkit import Fault, Handler, PushRegistry, cut_off, digest_of, fine, forget, status
from tests.unit.test_registry_transport import connect

DATA = os.urandom(100_000)
DIGEST = digest_of(DATA)


@pytest.fixture
def registry() -> Iterator[PushRegistry]:
    with PushRegistry() as running:
        yield running


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    (tmp_path / "blob").write_bytes(b"before" + DATA + b"behind")
    fd = os.open(tmp_path / "blob", os.O_RDONLY)
    yield Source(fd, 6, size=len(DATA), digest=DIGEST)
    os.close(fd)


@pytest.fixture
def growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    """A source that comes by and by, for chunks of some 10,000 bytes."""
    monkeypatch.setattr(uploads, "CHUNK_MIN", 10_000)
    monkeypatch.setattr(uploads, "CHUNK_MAX", 30_000)
    path = tmp_path / "spool"
    path.touch()
    fd = os.open(path, os.O_RDONLY)
    found = Source(fd)

    def grow() -> None:
        for end in range(7_000, len(DATA) + 7_000, 7_000):
            with open(path, "ab") as file:
                file.write(DATA[end - 7_000 : end])
            found.grow(min(end, len(DATA)))
            time.sleep(0.002)
        found.grow(len(DATA), DIGEST)

    thread = threading.Thread(target=grow)
    thread.start()
    yield found
    thread.join()
    os.close(fd)


def push(client: Client, source: Source, mounts: tuple[str, ...] = (), *, anew: bool = False) -> Pushed:
    moved: list[int] = []
    for repository in mounts:
        if mount_blob(client, DIGEST, repository):
            return Pushed(DIGEST, len(DATA), "mounted")
    pushed = Upload(client, source, moved.append).run(anew=anew)
    if pushed.how == "pushed":
        assert moved and moved[-1] == len(DATA)
    return pushed


def check(registry: PushRegistry) -> None:
    assert registry.blobs["app"] == {DIGEST: DATA}
    assert not registry.uploads  # nothing half-made stays there


def test_a_blob_that_is_here_goes_in_one_piece_and_never_twice(
    registry: PushRegistry, source: Source
) -> None:
    client = connect(registry.url)
    assert push(client, source) == Pushed(DIGEST, len(DATA), "pushed")
    check(registry)
    assert registry.count("PATCH") == 0 and registry.count("PUT") == 1
    assert push(client, source).how == "exists"
    assert registry.count("POST") == 1
    assert push(client, source, anew=True).how == "pushed"


def test_a_blob_that_is_in_another_repository_is_mounted(registry: PushRegistry, source: Source) -> None:
    registry.blobs["team/base"] = {DIGEST: DATA}
    assert push(connect(registry.url), source, ("team/base",)) == Pushed(DIGEST, len(DATA), "mounted")
    check(registry)
    assert registry.count("PUT") == 0 and registry.count("POST", "from=team%2Fbase") == 1


def test_a_registry_that_mounts_nothing_gets_the_blob_and_forgets_the_uploads_it_began(
    registry: PushRegistry, source: Source
) -> None:
    assert push(connect(registry.url), source, ("gone", "gone2")).how == "pushed"
    check(registry)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 405, 500])
def test_a_mount_that_is_refused_is_no_failure(registry: PushRegistry, source: Source, code: int) -> None:
    registry.faults["POST"] = [status(code)] * (3 if code == 500 else 1)
    assert push(connect(registry.url), source, ("other",)).how == "pushed"
    check(registry)


def test_a_blob_that_is_still_being_made_goes_in_chunks(registry: PushRegistry, growing: Source) -> None:
    assert push(connect(registry.url), growing) == Pushed(DIGEST, len(DATA), "pushed")
    check(registry)
    ranges = [headers["Content-Range"] for headers in registry.headers_of("PATCH")]
    assert len(ranges) > 3 and ranges[0].startswith("0-")
    assert registry.headers_of("PUT")[0]["Content-Length"] == "0"


@pytest.mark.parametrize("kind", ["whole", "chunks"])
def test_an_upload_that_breaks_off_goes_on_where_it_stopped(
    registry: PushRegistry, kind: str, request: pytest.FixtureRequest
) -> None:
    source: Source = request.getfixturevalue("source" if kind == "whole" else "growing")
    method = "PUT" if kind == "whole" else "PATCH"
    registry.faults[method] = [cut_off(5_000), *([fine, cut_off(1_234)] if kind == "chunks" else [])]
    assert push(connect(registry.url), source).how == "pushed"
    check(registry)
    assert registry.count("POST") == 1  # one upload, from its beginning to its end
    assert any(h.get("Content-Range", "").startswith("5000-") for h in registry.headers_of("PATCH"))


def test_an_upload_that_the_registry_forgets_begins_anew(registry: PushRegistry, growing: Source) -> None:
    registry.faults["PATCH"] = [fine, forget(100)]
    assert push(connect(registry.url), growing).how == "pushed"
    check(registry)
    assert registry.count("POST") == 2


def test_a_registry_that_takes_no_chunks_gets_it_in_one_piece(
    registry: PushRegistry, growing: Source
) -> None:
    registry.faults["PATCH"] = [status(416), status(416)]
    assert push(connect(registry.url), growing).how == "pushed"
    check(registry)
    assert registry.count("PATCH") == 1 and registry.headers_of("PUT")[-1]["Content-Length"] == str(len(DATA))


def test_what_is_busy_is_asked_again(registry: PushRegistry, growing: Source) -> None:
    registry.faults = {
        "HEAD": [status(500)],
        "POST": [status(429, {"Retry-After": "0"})],
        "PATCH": [status(503), fine, status(429)],
        "PUT": [status(502)],
    }
    assert push(connect(registry.url), growing).how == "pushed"
    check(registry)


def test_a_put_whose_answer_is_lost_was_one(registry: PushRegistry, source: Source) -> None:
    def lost(handler: Handler) -> bool:
        handler.read_body()
        handler.registry.blobs["app"][DIGEST] = DATA
        handler.registry.uploads.clear()
        handler.close_connection = True
        return True

    registry.faults["PUT"] = [lost]
    assert push(connect(registry.url), source).how == "pushed"
    assert registry.count("PUT") == 1


@pytest.mark.parametrize(
    ("faults", "sentence"),
    [
        ({"PUT": [status(400, name="DIGEST_INVALID")] * 3}, "status 400: digest invalid"),
        ({"PUT": [status(413, name="SIZE_INVALID")]}, "status 413: size invalid"),
        ({"PUT": [status(507)]}, "status 507"),
        ({"PUT": [status(500)] * 9, "GET": [status(500)] * 9}, "status 500"),
        ({"POST": [status(429)] * 9}, "takes no more requests for now"),
        ({"PUT": [cut_off(0)] * 20}, "the connection ended before there was an answer"),
    ],
)
def test_a_registry_that_never_takes_it_is_told_in_a_sentence(
    registry: PushRegistry, source: Source, faults: dict[str, list[Fault]], sentence: str
) -> None:
    registry.faults = faults
    begun = time.monotonic()
    with pytest.raises(CoveError, match=sentence):
        push(connect(registry.url), source)
    assert time.monotonic() - begun < 20 and not registry.uploads


def test_a_registry_that_calls_it_something_else_is_not_believed(
    registry: PushRegistry, source: Source
) -> None:
    def wrong(handler: Handler) -> bool:
        handler.read_body()
        handler.answer(201, headers={"Docker-Content-Digest": "sha256:" + "0" * 64})
        return True

    registry.faults["PUT"] = [wrong]
    with pytest.raises(Unavailable, match=f"was sent {DIGEST} and says that it is"):
        push(connect(registry.url), source)


def test_a_stalled_registry_ends_in_time(registry: PushRegistry, source: Source) -> None:
    ended = threading.Event()

    def stall(handler: Handler) -> bool:
        ended.wait(10)
        handler.close_connection = True
        return True

    registry.faults = {"PUT": [stall] * 9, "GET": [stall] * 9, "HEAD": [fine, *[stall] * 20]}
    begun = time.monotonic()
    with pytest.raises(Unavailable, match=r"no byte came for 0.5 s|connection"):
        push(connect(registry.url), source)
    ended.set()
    assert time.monotonic() - begun < 15


def test_credentials_stay_with_the_registry_when_uploads_go_elsewhere(source: Source) -> None:
    with PushRegistry(password="ada:s3cret") as registry, PushRegistry() as other:
        registry.upload_base = other.url
        other.blobs["app"] = {}

        def begin(handler: Handler) -> bool:
            other.uploads["x"] = bytearray()
            handler.answer(202, headers={"Location": f"{other.url}/v2/app/blobs/uploads/x?sig=1"})
            return True

        registry.faults["POST"] = [fine, begin]  # the first one isn't identified yet
        ada = Credentials(username="ada", password="s3cret")
        assert push(connect(registry.url, ada), source).how == "pushed"
        assert other.blobs["app"] == {DIGEST: DATA}
        assert all("Authorization" not in headers for _, _, headers in other.log)
        assert all(headers.get("Authorization") for headers in registry.headers_of("POST")[1:])


def test_a_registry_that_never_accepts_the_password_is_not_asked_for_ever(source: Source) -> None:
    with PushRegistry(password="ada:other") as registry:
        ada = Credentials(username="ada", password="s3cret")
        with pytest.raises(Unauthorized, match="wrong password"):
            push(connect(registry.url, ada), source)
        assert len(registry.log) < 6


@pytest.mark.parametrize("location", ["", "ftp://x/y", "file:///etc/passwd", "http://[", "http://user@x/"])
def test_an_upload_s_address_that_is_none_is_not_followed(
    registry: PushRegistry, source: Source, location: str
) -> None:
    def begin(handler: Handler) -> bool:
        handler.answer(202, headers={"Location": location} if location else {})
        return True

    registry.faults["POST"] = [begin]
    with pytest.raises(Unavailable, match="gave no address for it"):
        push(connect(registry.url), source)


def test_a_source_that_fails_ends_the_upload(registry: PushRegistry, growing: Source) -> None:
    growing.fail(HostError("no space left"))
    with pytest.raises(HostError, match="no space left"):
        push(connect(registry.url), growing)
    assert not registry.uploads


def test_a_manifest_whose_blobs_are_gone_is_told_apart(registry: PushRegistry, source: Source) -> None:
    client = connect(registry.url)
    data = b'{"layers":[{"digest":"%s"}]}' % DIGEST.encode()
    with pytest.raises(Invalid, match="manifest blob unknown"):
        put_manifest(client, "latest", data, "application/x", digest_of(data))
    push(client, source)
    registry.faults["PUT"] = [status(500)]
    put_manifest(client, "latest", data, "application/x", digest_of(data))
    assert registry.manifests["app"]["latest"] == ("application/x", data)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0-0", 1),
        ("0-99", 100),
        ("bytes=0-9", 10),
        ("", None),
        ("1-9", None),
        ("0--1", None),
        ("0-" + "9" * 20, None),
    ],
)
def test_a_range_says_how_many_bytes_are_there(text: str, size: int | None) -> None:
    assert parse_range(text) == size
