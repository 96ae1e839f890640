"""Registries, decided: where to ask, what a challenge and a document mean, where a redirect may lead."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.image.registry import documents
from cove.image.registry.auth import (
    Authorizer,
    Challenge,
    Credentials,
    check_realm,
    parse_challenges,
    parse_token,
)
from cove.image.registry.documents import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    ImageManifest,
    Index,
    Platform,
    choose_manifest,
    parse_manifest,
    parse_platform,
)
from cove.image.registry.endpoints import Registries, parse_mirror, plan_endpoints
from cove.image.registry.transport import Tries, next_url, parse_retry_after, status_error
from cove.image.types import Limits
from cove.model.errors import CoveError, Forbidden, Invalid, NotFound, Unauthorized, Unavailable

HEX = "sha256:" + "a" * 64
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def urls(domain: str, mirrors: tuple[str, ...] = (), insecure: tuple[str, ...] = ()) -> list[str]:
    found = plan_endpoints(domain, Registries(mirrors=mirrors, insecure=insecure))
    return [f"{'m ' if e.mirror else ''}{e.url}{'' if e.verify else ' unverified'}" for e in found]


def test_docker_hub_is_asked_by_its_own_host_after_its_mirrors() -> None:
    mirrors = ("https://a.example/", "ghcr.io=https://b.example/ghcr", "docker.io=http://127.0.0.1:5000")
    assert urls("docker.io", mirrors) == [
        "m https://a.example",
        "m http://127.0.0.1:5000 unverified",
        "https://registry-1.docker.io",
    ]
    assert urls("ghcr.io", mirrors) == ["m https://b.example/ghcr", "https://ghcr.io"]
    assert plan_endpoints("ghcr.io", Registries(mirrors=mirrors))[0].namespace == "ghcr.io"


@pytest.mark.parametrize(
    ("domain", "insecure", "open_"),
    [
        ("localhost:5000", (), True),
        ("127.0.0.1:5000", (), True),
        ("[::1]:5000", (), True),
        ("10.1.2.3", ("10.0.0.0/8",), True),
        ("r.example:5000", ("r.example:5000",), True),
        ("r.example:5000", ("r.example",), True),
        ("r.example:5000", ("r.example:5001", "10.0.0.0/8"), False),
        ("10.1.2.3", (), False),
    ],
)
def test_only_a_declared_or_a_local_registry_goes_without_tls(
    domain: str, insecure: tuple[str, ...], open_: bool
) -> None:
    found = urls(domain, (), insecure)
    assert found == (
        [f"https://{domain} unverified", f"http://{domain} unverified"] if open_ else [f"https://{domain}"]
    )


@pytest.mark.parametrize(
    "entry", ["a.example", "ftp://a", "https://u:p@a", "https://a?x=1", "x=y", "https://a:99999"]
)
def test_a_mirror_that_is_none_is_told(entry: str) -> None:
    with pytest.raises(Invalid, match="registry-mirrors: "):
        parse_mirror(entry)


def test_challenges_are_read_as_they_are_written() -> None:
    values = [
        'Bearer realm="https://auth.example/token?a=b,c",service="r",scope="repository:x:pull,push"',
        'Basic realm="R \\"q\\"", Bearer realm=https://b.example',
    ]
    assert parse_challenges(values) == [
        Challenge("bearer", "https://auth.example/token?a=b,c", "r", "repository:x:pull,push"),
        Challenge("basic", 'R "q"'),
        Challenge("bearer", "https://b.example"),
    ]


@given(st.lists(st.text(max_size=200), max_size=4))
def test_any_challenge_is_read_without_an_exception(values: list[str]) -> None:
    assert len(parse_challenges(values)) <= 32


@pytest.mark.parametrize(
    "realm", ["", "file:///etc/passwd", "//x/y", "ftp://x", "http://auth.example", "https://u@a"]
)
def test_a_realm_that_gets_no_credentials(realm: str) -> None:
    with pytest.raises(Unavailable, match=r"^the registry r\.example names "):
        check_realm(realm, "https://r.example")


def test_tokens_are_kept_by_scope_and_asked_for_anew_when_they_end() -> None:
    asked: list[str] = []
    now = [0.0]

    def ask(method: str, url: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        asked.append(f"{method} {url} {headers.get('Authorization', '')} {body.decode()}".strip())
        return 200, json.dumps({"token": f"t{len(asked)}", "expires_in": 100}).encode()

    authorizer = Authorizer("https://r", Credentials(username="u", password="p"), ask, lambda: now[0])
    challenge = [Challenge("bearer", "https://a/t", "r", "repository:x:pull")]
    assert authorizer.header("repository:x:pull") == ""
    assert authorizer.answer(challenge, "repository:x:pull", "") == "Bearer t1"
    assert authorizer.header("repository:x:pull") == "Bearer t1"
    now[0] = 96
    assert authorizer.header("repository:x:pull") == "Bearer t2"
    assert authorizer.answer(challenge, "repository:x:pull", "Bearer t2") == "Bearer t3"
    assert asked[0] == "GET https://a/t?service=r&scope=repository%3Ax%3Apull&account=u Basic dTpw"


def test_an_identity_token_goes_to_the_realm_by_post() -> None:
    asked: list[tuple[str, bytes]] = []

    def ask(method: str, url: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        asked.append((method, body))
        return 200, b'{"access_token": "t"}'

    authorizer = Authorizer("https://r", Credentials(identity_token="idt"), ask)
    assert authorizer.answer([Challenge("bearer", "https://a/t", "r", "s")], "", "") == "Bearer t"
    assert asked == [
        ("POST", b"grant_type=refresh_token&service=r&client_id=cove&scope=s&refresh_token=idt"),
    ]
    assert "idt" not in repr(Credentials(identity_token="idt"))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"token": 1}', b'{"token": "a\\nb"}', b"[" * 100_000])
def test_what_is_no_token_is_told(data: bytes) -> None:
    with pytest.raises(Unavailable, match="gave no token"):
        parse_token(data, 0)


def descriptor(**fields: Any) -> dict[str, Any]:
    return {"digest": HEX, "size": 1, "mediaType": LAYER, **fields}


def manifest(**fields: Any) -> bytes:
    config = descriptor(mediaType=OCI_CONFIG)
    return json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [descriptor()], **fields}
    ).encode()


def test_manifests_and_indexes_are_told_apart() -> None:
    assert isinstance(parse_manifest(manifest(), OCI_MANIFEST, Limits()), ImageManifest)
    assert isinstance(
        parse_manifest(manifest(mediaType=""), "text/plain; charset=utf-8", Limits()), ImageManifest
    )
    index = json.dumps({"schemaVersion": 2, "manifests": [descriptor()]}).encode()
    assert isinstance(parse_manifest(index, DOCKER_LIST, Limits()), Index)


@pytest.mark.parametrize(
    ("data", "media_type", "sentence"),
    [
        (b"", OCI_MANIFEST, "malformed"),
        (b"[" * 200_000, OCI_MANIFEST, "malformed"),
        (manifest(), DOCKER_MANIFEST, "and the registry says"),
        (manifest(mediaType="text/html"), "text/html", "is no image that Cove knows"),
        (b'{"schemaVersion": 1}', "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1"),
        (b'{"schemaVersion": 1, "fsLayers": []}', "application/json", "schema 1"),
        (manifest(manifests=[]), OCI_MANIFEST, "one of an index and a manifest"),
        (manifest(layers=[descriptor()] * 128), OCI_MANIFEST, "the limit is 127"),
        (manifest(layers=[descriptor(size=-1)]), OCI_MANIFEST, "impossible size"),
        (manifest(layers=[descriptor(digest="md5:aa")]), OCI_MANIFEST, "only sha256"),
        (manifest(layers=[descriptor(mediaType="text/html")]), OCI_MANIFEST, "no layer's"),
        (manifest(config=descriptor(size=1 << 40, mediaType=OCI_CONFIG)), OCI_MANIFEST, "the limit is"),
        (
            manifest(config=descriptor(mediaType="application/x-sig")),
            OCI_MANIFEST,
            "an artifact and no image",
        ),
        (
            json.dumps({"schemaVersion": 2, "manifests": [descriptor()] * 1001}).encode(),
            OCI_INDEX,
            "the limit is 1000",
        ),
    ],
)
def test_a_document_that_is_refused(data: bytes, media_type: str, sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence):
        parse_manifest(data, media_type, Limits())


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_any_json_is_a_document_or_invalid(value: object) -> None:
    try:
        parse_manifest(json.dumps(value).encode(), OCI_MANIFEST, Limits())
    except Invalid:
        pass


def offer(system: str, architecture: str, variant: str = "", **fields: Any) -> Descriptor:
    platform = Platform(os=system, architecture=architecture, variant=variant)
    return Descriptor(digest=HEX, size=len(variant), media_type=OCI_MANIFEST, platform=platform, **fields)


@pytest.mark.parametrize(
    ("wanted", "offers", "chosen"),
    [
        ("linux/arm/v7", [("arm", "v5"), ("arm", "v6"), ("arm", "v7")], 2),
        ("linux/arm/v6", [("arm", "v5"), ("arm", "v6"), ("arm", "v7")], 1),
        ("linux/arm", [("arm", "v6"), ("arm", "v8")], 0),
        ("linux/arm64", [("arm", "v7"), ("arm64", "v8")], 1),
        ("linux/aarch64", [("arm64", "")], 0),
        ("linux/amd64", [("386", ""), ("amd64", ""), ("amd64", "v3")], 1),
        ("linux/amd64/v3", [("amd64", "v4"), ("amd64", ""), ("amd64", "v2")], 1),
        ("", [("arm64", ""), ("amd64", "")], 1),
    ],
)
def test_the_best_variant_is_chosen(wanted: str, offers: list[tuple[str, str]], chosen: int) -> None:
    entries = tuple(offer("linux", *pair) for pair in offers)
    index = Index(digest=HEX, media_type=OCI_INDEX, manifests=entries)
    assert choose_manifest(index, parse_platform(wanted, "amd64")) is entries[chosen]


def test_attestations_and_other_systems_are_passed_over() -> None:
    entries = (
        offer("linux", "amd64", annotations={"vnd.docker.reference.type": "attestation-manifest"}),
        offer("unknown", "unknown"),
        offer("windows", "amd64"),
    )
    with pytest.raises(NotFound, match=r"no matching manifest for linux/amd64 .*windows/amd64"):
        choose_manifest(
            Index(digest=HEX, media_type=OCI_INDEX, manifests=entries), parse_platform("", "amd64")
        )


@pytest.mark.parametrize("text", ["a/b/c/d", "linux/", "Linux amd64", "x" * 40])
def test_a_platform_that_is_none_is_told(text: str) -> None:
    with pytest.raises(Invalid, match="platform: "):
        parse_platform(text, "amd64")


@pytest.mark.parametrize(
    ("location", "sentence"),
    [
        ("https://r/a", "in a circle"),
        ("http://r/b", "from https to http"),
        ("file:///etc/passwd", "no http or https"),
        ("https://u:p@r/", "no http or https"),
        ("https://[", "no http or https"),
    ],
)
def test_a_redirect_that_is_not_followed(location: str, sentence: str) -> None:
    with pytest.raises(Unavailable, match=sentence):
        next_url("https://r/a", location, ["https://r/a"])


def test_redirects_are_counted_and_resolved() -> None:
    assert next_url("https://r/a/b", "../c?x=1", ["https://r/a/b"]) == "https://r/c?x=1"
    with pytest.raises(Unavailable, match="more than 5 times"):
        next_url("https://r/a", "https://r/z", [f"https://r/{n}" for n in range(6)])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7), ("Wed, 21 Oct 2015 07:28:00 GMT", 30), ("soon", 0), ("-1", 0), ("9" * 400, 9999999999)],
)
def test_retry_after(text: str, seconds: float) -> None:
    assert parse_retry_after(text, 1445412450) == seconds


@pytest.mark.parametrize(
    ("status", "kind", "sentence"),
    [
        (401, Unauthorized, "unauthorized: authentication required"),
        (403, Forbidden, "denied: requested access to the resource is denied"),
        (404, NotFound, "not found"),
        (418, Unavailable, "r answered with the status 418"),
    ],
)
def test_a_status_is_an_error_of_its_class(status: int, kind: type[CoveError], sentence: str) -> None:
    found = status_error(status, b"<html>", "r")
    assert type(found) is kind and str(found) == sentence


def test_what_a_registry_says_is_one_printable_line() -> None:
    data = msgspec.json.encode({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no\x1b[31m\nsuch"}]})
    assert str(status_error(404, data, "r")) == "manifest unknown: no [31m such"
    assert documents.digest_of(b"").endswith("b855")


def test_attempts_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from cove.image.registry.messages import Timing

    slept: list[float] = []
    monkeypatch.setattr("cove.image.registry.transport.time.sleep", slept.append)
    tries = Tries(Timing(attempts=3))
    assert [tries.again(), tries.again("3"), tries.again()] == [True, True, False]
    assert slept == [0.5, 3.0]
    assert not Tries(Timing()).again("3600")
