"""What a person may write for an image."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.image.references import (
    id_prefix,
    is_image_id,
    parse_reference,
    parse_tagged,
)
from cove.model.errors import Invalid

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("debian", "docker.io/library/debian:latest", "debian:latest"),
        ("debian:12", "docker.io/library/debian:12", "debian:12"),
        ("library/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("index.docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("user/app:1.0_x-y", "docker.io/user/app:1.0_x-y", "user/app:1.0_x-y"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost:5000/a/b:t", "localhost:5000/a/b:t", "localhost:5000/a/b:t"),
        ("Registry.Example/app", "Registry.Example/app:latest", "Registry.Example/app:latest"),
        ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"),
        ("a__b/c---d.e", "docker.io/a__b/c---d.e:latest", "a__b/c---d.e:latest"),
    ],
)
def test_a_familiar_name_stands_for_a_full_one(text: str, full: str, familiar: str) -> None:
    reference = parse_reference(text).with_default_tag()
    assert f"{reference.name}:{reference.tag}" == full
    assert reference.familiar == familiar


def test_a_digest_replaces_the_default_tag() -> None:
    reference = parse_reference(f"debian@sha256:{HEX}").with_default_tag()
    assert (reference.tag, reference.digest) == ("", f"sha256:{HEX}")
    assert reference.familiar == f"debian@sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid reference format"),
        ("Debian", "invalid reference format: repository name (library/Debian) must be lowercase"),
        ("a//b", "invalid reference format"),
        ("-a", "invalid reference format"),
        ("a:", "invalid reference format"),
        ("a:b:c", "invalid reference format"),
        ("a:" + "t" * 129, "invalid reference format"),
        ("a b", "invalid reference format"),
        ("a\n", "invalid reference format"),
        ("a@sha256:abc", "invalid reference format"),
        ("a@sha256:" + "a" * 40, "invalid checksum digest length"),
        ("a@md5:" + "a" * 32, "unsupported digest algorithm"),
        ("x/" * 127 + "xx", "repository name must not be more than 255 characters"),
        (HEX, f"invalid repository name ({HEX}), cannot specify 64-byte hexadecimal strings"),
    ],
)
def test_a_bad_reference_is_refused_in_dockers_words(text: str, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_reference(text)
    assert str(caught.value) == message


def test_a_tag_cannot_be_given_to_a_digest() -> None:
    with pytest.raises(Invalid, match="refusing to create a tag with a digest reference"):
        parse_tagged(f"debian@sha256:{HEX}")


def test_ids_and_their_prefixes_are_told_from_names() -> None:
    assert is_image_id(f"sha256:{HEX}") and is_image_id(HEX)
    assert id_prefix("sha256:01ab") == id_prefix("01ab") == "01ab"
    assert id_prefix("debian") == id_prefix("01AB") == ""


@given(st.text(alphabet="aA0/:@.-_[]\n é", max_size=40))
def test_what_is_accepted_reads_back_as_the_same_reference(text: str) -> None:
    try:
        reference = parse_reference(text)
    except Invalid:
        return
    assert parse_reference(reference.familiar) == reference
