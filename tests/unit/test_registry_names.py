"""What a registry's paths, names, digests, ranges, rules and tokens mean; fuzzed, since strangers write them."""

from __future__ import annotations

import json
import posixpath
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.model.errors import Invalid
from cove.registry.access import ACTIONS, DELETE, PULL, PUSH, Caller, Policy, Rule
from cove.registry.documents import OCI_INDEX, OCI_MANIFEST, parse_document
from cove.registry.names import (
    METHODS,
    Base,
    Blob,
    Catalog,
    Manifest,
    Referrers,
    Tags,
    Upload,
    Uploads,
    parse_digest,
    parse_target,
)
from cove.registry.options import parse_duration, parse_size
from cove.registry.pull import parse_range
from cove.registry.push import parse_content_range
from cove.registry.refusals import CODES, Refused
from cove.registry.rules import parse_policy
from cove.registry.tokens import LIFETIME_S, Tokens
from cove.registry.upstreams import choose, parse_upstreams

HEX = "ab" * 32
DIGEST = f"sha256:{HEX}"
UUID = "01234567-89ab-cdef-0123-456789abcdef"

tricky = st.sampled_from(["manifests", "blobs", "uploads", "tags", "list", "referrers", "v2"])
parts = tricky | st.from_regex(r"[a-z0-9]{1,9}((\.|_|__|-+)[a-z0-9]{1,9}){0,3}", fullmatch=True)
names = st.lists(parts, min_size=1, max_size=5).map("/".join).filter(lambda name: len(name) <= 255)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/v2", Base()),
        ("/v2/", Base()),
        ("/v2/_catalog", Catalog()),
        ("/v2/app/manifests/1.0", Manifest("app", tag="1.0")),
        (f"/v2/team/app/manifests/{DIGEST}", Manifest("team/app", digest=DIGEST)),
        (f"/v2/app/blobs/{DIGEST}", Blob("app", DIGEST)),
        ("/v2/app/blobs/uploads/", Uploads("app")),
        ("/v2/app/blobs/uploads", Uploads("app")),
        (f"/v2/blobs/uploads/blobs/uploads/{UUID}", Upload("blobs/uploads", UUID)),
        ("/v2/tags/list/tags/list", Tags("tags/list")),
        (f"/v2/app/referrers/{DIGEST}", Referrers("app", DIGEST)),
    ],
)
def test_paths_mean_what_the_specification_says(path: str, target: object) -> None:
    assert parse_target(path) == target


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/", 404, "NAME_UNKNOWN"),
        ("/v1/search", 404, "NAME_UNKNOWN"),
        ("/v2/App/manifests/1", 400, "NAME_INVALID"),
        ("/v2/../etc/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a//b/manifests/1", 400, "NAME_INVALID"),
        ("/v2//manifests/1", 400, "NAME_INVALID"),
        ("/v2/a\0b/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a\n/manifests/1", 400, "NAME_INVALID"),
        (f"/v2/{'a' * 256}/manifests/1", 400, "NAME_INVALID"),
        (f"/v2/a/manifests/{'t' * 129}", 400, "MANIFEST_INVALID"),
        ("/v2/a/manifests/..", 400, "MANIFEST_INVALID"),
        ("/v2/a/blobs/sha256:../../../etc/passwd", 404, "NAME_UNKNOWN"),
        ("/v2/a/blobs/sha256:" + "../" * 10, 404, "NAME_UNKNOWN"),
        ("/v2/a/blobs/sha256:" + "." * 64, 400, "DIGEST_INVALID"),
        ("/v2/a/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", 400, "DIGEST_INVALID"),
        (f"/v2/a/blobs/sha512:{HEX}", 400, "DIGEST_INVALID"),
        (f"/v2/a/blobs/sha256:{HEX.upper()}", 400, "DIGEST_INVALID"),
        (f"/v2/a/blobs/{DIGEST}\n", 400, "DIGEST_INVALID"),
        ("/v2/a/blobs/uploads/../../x", 404, "NAME_UNKNOWN"),
        ("/v2/a/blobs/uploads/passwd", 404, "BLOB_UPLOAD_UNKNOWN"),
    ],
)
def test_paths_that_are_none_are_refused(path: str, status: int, code: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_target(path)
    assert (caught.value.status, caught.value.code) == (status, code)


@given(
    st.text(max_size=300)
    | st.text(alphabet="/abmv2.:_-%" + string.hexdigits, max_size=120).map("/v2/".__add__)
)
def test_no_path_gets_past_the_grammar(path: str) -> None:
    """What comes out can be put into a file's path or a log as it is."""
    try:
        target = parse_target(path)
    except Refused as refused:
        assert refused.code in CODES and 400 <= refused.status < 500
        assert refused.response().body.isascii() or refused.response().body.decode().isprintable
        return
    name = getattr(target, "name", "a")
    assert posixpath.normpath(f"/{name}") == f"/{name}" and len(name) <= 255 and name == name.lower()
    for field in ("digest", "session", "tag"):
        value = getattr(target, field, "")
        assert "/" not in value and value != ".." and value.isascii() and (value.isprintable() or not value)
    assert METHODS[type(target)]


@given(
    names,
    st.sampled_from(["manifests/x", f"blobs/{DIGEST}", "blobs/uploads/", "tags/list", f"referrers/{DIGEST}"]),
)
def test_every_name_of_the_grammar_is_found_again(name: str, rest: str) -> None:
    assert parse_target(f"/v2/{name}/{rest}").name == name  # type: ignore[union-attr]


@given(st.text(max_size=40), st.integers(0, 10_000))
def test_any_range_lies_within_the_blob(text: str, size: int) -> None:
    for header in (text, f"bytes={text}"):
        try:
            part = parse_range(header, size)
        except Refused as refused:
            assert refused.status == 416
            continue
        if part is not None:
            first, length = part
            assert first >= 0 and length > 0 and first + length <= size


@given(st.text(alphabet="0123456789-bytes= /*", max_size=40))
def test_any_content_range_is_a_range_or_a_416(text: str) -> None:
    try:
        first, length = parse_content_range(text)
    except Refused as refused:
        assert refused.status == 416
        return
    assert (first is None) == (length is None) == (not text)
    assert first is None or (first >= 0 and length is not None and length > 0)


FIELDS = "schemaVersion mediaType config layers manifests subject digest size annotations artifactType blobs".split()
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.just(DIGEST),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(json_values, st.sampled_from(["", OCI_MANIFEST, OCI_INDEX, "text/plain"]))
def test_any_document_is_a_manifest_or_refused(value: object, kind: str) -> None:
    try:
        document = parse_document(json.dumps(value).encode(), kind)
    except Refused as refused:
        assert (refused.status, refused.code) == (400, "MANIFEST_INVALID")
        return
    for digest in (*document.blobs, *document.children, *document.elsewhere):
        parse_digest(digest)


def test_deep_and_large_documents_are_refused() -> None:
    for data in (b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"", b'{"schemaVersion": 2, "layers": 1}'):
        with pytest.raises(Refused):
            parse_document(data, OCI_MANIFEST)


def test_the_first_rule_that_fits_decides() -> None:
    policy = Policy(
        users=True,
        anonymous=(PULL,),
        rules=(
            Rule(pattern="team/*/private", push=("alice",)),
            Rule(pattern="team/**", pull=("@users",), push=("bob",), delete=("bob",)),
        ),
    )
    alice, bob, nobody = Caller(name="alice"), Caller(name="bob"), Caller()
    for caller, action, name, allowed in (
        (alice, PUSH, "team/a/private", True),
        (alice, PULL, "team/a/private", True),
        (bob, PULL, "team/a/private", False),
        (alice, PUSH, "team/a/b/private", False),
        (bob, PUSH, "team/a/b/private", True),
        (alice, PULL, "team/x", True),
        (alice, DELETE, "team/x", False),
        (nobody, PULL, "team/x", False),
        (nobody, PULL, "teams/x", True),
        (nobody, PUSH, "teams/x", False),
        (alice, PUSH, "teams/x", True),
    ):
        assert policy.may(caller, action, name) is allowed, (caller.name, action, name)
    assert not Policy(read_only=True).may(alice, PUSH, "x") and Policy(read_only=True).may(nobody, PULL, "x")
    assert Policy().may(nobody, PUSH, "x") and not Policy(said=True).may(nobody, PULL, "x")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"rules": []}, "rules: unknown"),
        ({"anonymous": "all"}, "expected none, pull or push"),
        ({"rule": [{"repositories": 1}]}, "rule 1: expected repositories"),
        ({"rule": [{"repositories": "**", "write": []}]}, "rule 1: expected repositories"),
        ({"rule": [{"repositories": "**", "push": "alice"}]}, "push: expected a list"),
        ({"rule": [{"repositories": "**", "push": ["a:b"]}]}, "'a:b' is no user's name"),
    ],
)
def test_wrong_rules_are_named(raw: dict[str, object], words: str) -> None:
    with pytest.raises(Invalid, match=re.escape(words)):
        parse_policy(raw, "file", "", users=True, read_only=False)


def test_a_token_is_good_for_what_it_was_given_for_and_for_a_while() -> None:
    tokens, policy = Tokens(b"k" * 32), Policy(users=True, anonymous=(PULL,))
    text = tokens.give(
        policy, "", ["repository:a/b:pull,push", "repository:A:pull", "x", "registry:catalog:*"], 100.0
    )
    caller = tokens.read(text, 100.0 + LIFETIME_S)
    assert caller is not None and caller.grants == (("a/b", frozenset({PULL})),) and caller.catalog
    assert policy.may(caller, PULL, "a/b") and not policy.may(caller, PULL, "other")
    assert tokens.read(text, 101.0 + LIFETIME_S) is None
    assert Tokens().read(text, 100.0) is None
    full = tokens.read(tokens.give(policy, "x", ["repository:a/b:*"], 0.0), 0.0)
    assert full is not None and full.grants == (("a/b", frozenset(ACTIONS)),)


@given(st.text(max_size=200))
def test_no_text_is_a_token(text: str) -> None:
    assert Tokens(b"k" * 32).read(text, 0.0) is None


def test_which_registry_a_name_belongs_to() -> None:
    upstreams = parse_upstreams(
        ["docker.io=https://hub.test", "ghcr.io=https://g.test/mirror/", "https://all.test"]
    )
    for name, namespace, here, there in (
        ("docker.io/debian", "", "docker.io/library/debian", "library/debian"),
        ("debian", "docker.io", "docker.io/library/debian", "library/debian"),
        ("ghcr.io/a/b", "", "ghcr.io/a/b", "mirror/a/b"),
        ("a/b", "ghcr.io", "ghcr.io/a/b", "mirror/a/b"),
        ("a/b", "unknown.test", "a/b", "a/b"),
        ("docker.io", "", "docker.io", "docker.io"),
    ):
        found, upstream = choose(upstreams, name, namespace)
        assert upstream is not None and (found, upstream.remote(found)) == (here, there)
    assert choose(upstreams[:1], "a/b", "") == ("a/b", None)
    for wrong in ("ftp://x", "https://", "https://u:p@x", "a/b=https://x", "https://x?y", "https://x/UP"):
        with pytest.raises(Invalid, match="--proxy"):
            parse_upstreams([wrong])
    with pytest.raises(Invalid, match="already"):
        parse_upstreams(["https://a.test", "https://b.test"])


def test_sizes_and_times() -> None:
    assert [parse_size("--x", each) for each in ("1", "2k", "3MB", "1g")] == [1, 2048, 3 << 20, 1 << 30]
    assert [parse_duration("--x", each) for each in ("1s", "2m", "3h", "1d")] == [1, 120, 10800, 86400]
    for wrong in ("", "-1", "1.5g", "10x"):
        with pytest.raises(Invalid, match="--x"):
            parse_size("--x", wrong)
        with pytest.raises(Invalid, match="--x"):
            parse_duration("--x", wrong)
