"""Referrers and searches: what strangers' documents say."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.image.registry.artifacts import (
    BLOBS_MAX,
    Artifact,
    describe,
    next_query,
    parse_artifact,
    parse_index,
    referrers_tag,
)
from cove.image.registry.search import Found, Wish, next_page, parse_catalog, parse_results, split_term
from cove.model.errors import Invalid

DIGEST = "sha256:" + "ab" * 32


def test_a_subject_s_referrers_have_a_tag_for_registries_without_the_api() -> None:
    assert referrers_tag(DIGEST) == "sha256-" + "ab" * 32
    assert referrers_tag("sha512:" + "c" * 128) == "sha512-" + "c" * 64


def test_an_artifact_is_described_by_its_manifest() -> None:
    document = {
        "config": {"mediaType": "application/x.config", "digest": DIGEST, "size": 2},
        "subject": {"digest": DIGEST, "size": 1},
        "annotations": {"a": "b"},
    }
    artifact = Artifact(manifest=json.dumps(document).encode())
    entry = describe(artifact, parse_artifact(artifact))
    assert (entry["artifactType"], entry["annotations"]) == ("application/x.config", {"a": "b"})
    assert entry["size"] == len(artifact.manifest)


@pytest.mark.parametrize(
    ("artifact", "sentence"),
    [
        (Artifact(manifest=b"{"), "manifest is malformed"),
        (Artifact(manifest=b"[" * 100_000), "manifest is malformed"),
        (Artifact(manifest=b'{"subject":{"digest":"md5:1","size":1}}'), "digest"),
        (Artifact(manifest=b"{}", blobs=(b"",) * (BLOBS_MAX + 1)), "the limit is 64"),
        (Artifact(manifest=b"{" + b" " * (5 << 20) + b"}"), "the limit is 4194304"),
    ],
)
def test_what_is_no_artifact_is_refused(artifact: Artifact, sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence):
        parse_artifact(artifact)


@given(st.binary(max_size=200))
def test_lists_are_read_or_refused(data: bytes) -> None:
    for read in (parse_index, parse_catalog, lambda text: parse_results(text, "")):
        try:
            read(data)
        except Invalid:
            pass


@given(st.text(max_size=100))
def test_links_lead_nowhere_else(link: str) -> None:
    query = next_query(f"<{link}>; rel=next")
    assert query == "" or (query.startswith("?") and query.isascii())


@pytest.mark.parametrize(
    ("link", "query"),
    [
        ('<https://x/v2/a/referrers/b?n=1&last=c>; rel="next"', "?n=1&last=c"),
        ("</v2/_catalog?last=c&n=1>; rel=next", "?last=c&n=1"),
        ('</v2/_catalog?last=c>; rel="prev"', ""),
        ("</v2/_catalog>; rel=next", ""),
        ("", ""),
    ],
)
def test_the_next_page(link: str, query: str) -> None:
    assert next_query(link) == query
    assert next_page(link) == ("c" if query else "")


@pytest.mark.parametrize(
    ("term", "found"),
    [
        ("debian", ("docker.io", "debian")),
        ("user/app", ("docker.io", "user/app")),
        ("docker.io/app", ("docker.io", "app")),
        ("r.example:5000/app", ("r.example:5000", "app")),
        ("localhost/team/app", ("localhost", "team/app")),
        ("r.example/", ("r.example", "")),
    ],
)
def test_a_term_names_its_registry(term: str, found: tuple[str, str]) -> None:
    assert split_term(term) == found


@pytest.mark.parametrize("term", ["", "  ", "https://r.example/app", "a\x1b[2J", "x" * 600])
def test_a_term_that_is_none_is_refused(term: str) -> None:
    with pytest.raises(Invalid):
        split_term(term)


def test_results_are_cleaned_of_what_a_terminal_acts_on() -> None:
    data = json.dumps(
        {
            "results": [
                {"name": "library/a\x1b[2J", "description": "x\ny", "star_count": 3, "is_official": True}
            ]
        }
    ).encode()
    (found,) = parse_results(data, "")
    assert found == Found(name="a [2J", description="x y", stars=3, official=True)
    assert Wish(term="a", stars=3, official=True).accepts(found)
    assert not Wish(term="a", stars=4).accepts(found) and not Wish(term="a", official=False).accepts(found)
