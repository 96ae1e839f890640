"""Policies: what a document means, and which obligations an image has by where it came from and how it is called."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.engine.admission import used_repository
from cove.model.errors import Invalid
from cove.model.objects import Image
from cove.signing.keys import generate_key
from cove.signing.policy import Policy, parse_policy, plan_obligations, plan_pull
from cove.signing.types import IdentityRequirement, KeyRequirement
from tests.signkit import Authority

KEY = generate_key("ed25519").public.pem
TEAM, DEBIAN, EVIL = "registry.example.org/team/app", "docker.io/library/debian", "evil.example/app"
SIGNED = {"signed-by": [{"key": KEY}]}


def no_file(path: str) -> str:
    raise Invalid(f"{path}: No such file or directory")


def policy(default: object, **scopes: object) -> Policy:
    return parse(
        default=default, scopes={name.replace("__", "/").replace("_", "."): v for name, v in scopes.items()}
    )


def severity(options: Any) -> str:
    return "" if options == "high" else "expected high"


def parse(**document: Any) -> Policy:
    return parse_policy(json.dumps(document), no_file, checks={"severity": severity})


STRICT = policy("reject", docker_io__library="accept", registry_example_org__team=SIGNED)


def obliged(
    found: Policy, *, pulled: tuple[str, ...] = (), named: tuple[str, ...] = (), used: str = ""
) -> list[str]:
    """Each obligation as scope=verdict@repository."""
    told = []
    for one in plan_obligations(found, pulled=pulled, named=named, used=used):
        kind = "reject" if one.rule.reject else "signed" if one.rule.signers else "accept"
        told.append(f"{one.rule.scope}={kind}@{'|'.join(one.repositories)}")
    return told


def test_the_longest_scope_counts() -> None:
    found = policy(
        "reject",
        registry_example_org="accept",
        registry_example_org__team=SIGNED,
        registry_example_org__team__app__debug="reject",
    )
    assert found.find("registry.example.org/other").scope == "registry.example.org"
    assert found.find("registry.example.org/team").scope == "registry.example.org/team"
    assert found.find("registry.example.org/team/app").scope == "registry.example.org/team"
    assert found.find("registry.example.org/team/app/debug/x").reject
    assert found.find("registry.example.org/teams").scope == "registry.example.org"
    assert found.find("registry.example.org.evil.example/team").scope == "default"
    assert found.find("registry.example.org:5000/team").scope == "default"


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        # where it was pulled from decides
        ({"pulled": (DEBIAN,), "named": (DEBIAN,), "used": DEBIAN}, [f"docker.io/library=accept@{DEBIAN}"]),
        ({"pulled": (TEAM,), "named": (TEAM,), "used": TEAM}, [f"registry.example.org/team=signed@{TEAM}"]),
        ({"pulled": (EVIL,), "named": (EVIL,), "used": EVIL}, [f"default=reject@{EVIL}"]),
        # by id it is the same
        ({"pulled": (TEAM,), "named": (TEAM,)}, [f"registry.example.org/team=signed@{TEAM}"]),
        ({"pulled": (EVIL,)}, [f"default=reject@{EVIL}"]),
        # a name that was given here, to what came from elsewhere
        ({"named": (DEBIAN,), "used": DEBIAN}, [f"default=reject@{DEBIAN}"]),
        ({"named": (TEAM,), "used": TEAM}, [f"registry.example.org/team=signed@{TEAM}"]),
        (
            {"pulled": (EVIL,), "named": (EVIL, DEBIAN), "used": DEBIAN},
            [f"default=reject@{DEBIAN}"],
        ),
        (
            {"pulled": (DEBIAN,), "named": (DEBIAN, TEAM), "used": TEAM},
            [f"docker.io/library=accept@{DEBIAN}", f"registry.example.org/team=signed@{TEAM}"],
        ),
        # and the other way round: another name takes nothing away
        (
            {"pulled": (TEAM,), "named": (TEAM, DEBIAN), "used": DEBIAN},
            [f"registry.example.org/team=signed@{TEAM}"],
        ),
        ({"pulled": (DEBIAN,), "named": ("docker.io/library/mine",)}, [f"docker.io/library=accept@{DEBIAN}"]),
        ({"pulled": (DEBIAN,), "named": ("localhost/mine",), "used": "localhost/mine"},
         [f"docker.io/library=accept@{DEBIAN}"]),
        # built or loaded here
        ({"named": ("localhost/mine",), "used": "localhost/mine"}, ["default=reject@localhost/mine"]),
        ({}, ["default=reject@"]),
        ({"named": ("localhost/a", "localhost/b")}, ["default=reject@localhost/a|localhost/b"]),
        # the same bytes are elsewhere, too: pushed there, or found there by another pull
        ({"pulled": (DEBIAN, EVIL), "named": (DEBIAN, EVIL), "used": DEBIAN}, [f"docker.io/library=accept@{DEBIAN}"]),
        ({"pulled": (EVIL, "localhost:5000/x"), "named": (EVIL,)}, [f"default=reject@{EVIL}|localhost:5000/x"]),
    ],
)  # fmt: skip
def test_obligations(facts: dict[str, Any], told: list[str]) -> None:
    assert obliged(STRICT, **facts) == told


def test_a_default_that_wants_signatures_wants_them_as_what_is_used() -> None:
    found = policy(SIGNED)
    app, debug = "r.example/app", "r.example/debug"
    for facts, names in (
        ({"pulled": (debug,), "named": (debug, app), "used": app}, (app,)),
        ({"pulled": (debug,), "named": (debug, app), "used": debug}, (debug,)),
        ({"pulled": (debug, app), "named": (debug,)}, (debug, app)),  # by its id
        ({"named": (debug, app)}, (debug, app)),
        ({}, ()),
    ):
        [one] = plan_obligations(found, **{"pulled": (), "named": (), "used": "", **facts})  # type: ignore[arg-type]
        assert one.signed_names == names


def test_a_scope_may_take_names_for_granted() -> None:
    lax = policy("reject", localhost={"accept-local": True})
    assert obliged(lax, named=("localhost/mine",), used="localhost/mine") == [
        "localhost=accept@localhost/mine"
    ]
    assert obliged(lax, named=("other.example/mine",)) == ["default=reject@other.example/mine"]


def test_a_scope_that_rejects_does_so_under_every_name() -> None:
    found = policy("accept", evil_example="reject")
    assert obliged(found, named=(EVIL,), used=EVIL) == [
        f"evil.example=reject@{EVIL}",
        f"default=accept@{EVIL}",
    ]
    assert obliged(found, pulled=(EVIL,), named=("localhost/x",), used="localhost/x") == [
        f"evil.example=reject@{EVIL}",
        "default=accept@localhost/x",
    ]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([TEAM, DEBIAN, EVIL, "localhost/x"]), max_size=3),
    st.lists(st.sampled_from([TEAM, DEBIAN, EVIL, "localhost/x"]), max_size=3),
    st.sampled_from(["", TEAM, DEBIAN, EVIL, "localhost/x"]),
)
def test_more_names_never_make_an_image_more_acceptable(
    pulled: list[str], named: list[str], used: str
) -> None:
    """Only a signature, or another place where it was pulled from, does."""

    def hard(told: list[str]) -> set[str]:
        return {one for one in told if "=accept" not in one}

    bare = obliged(STRICT, pulled=tuple(pulled))
    more = obliged(STRICT, pulled=tuple(pulled), named=tuple(named), used=used)
    assert more  # an image without any obligation would run
    rejected = any("=reject" in one for one in bare)
    signed = any("=signed" in one for one in more)
    assert not rejected or any("=reject" in one for one in more) or signed
    assert {one for one in hard(bare) if "=signed" in one} <= hard(more)


def test_who_signed_and_as_what() -> None:
    authority = Authority().pem
    found = parse(
        default="reject",
        scopes={
            "mirror.example.org/library": {**SIGNED, "signed-as": "docker.io/library"},
            "any.example.org": {**SIGNED, "signed-as": "any"},
            "ci.example.org": {
                "signed-by": [
                    {"ca": authority, "identity-pattern": "*@example.org", "issuer": "https://x"},
                    {"key": KEY},
                ],
                "annotations": {"stage": "release"},
                "checks": {"severity": "high"},
            },
        },
    )
    mirror = found.find("mirror.example.org/library/debian")
    assert mirror.signed_names("mirror.example.org/library/debian") == (DEBIAN,)
    assert found.find("any.example.org/x").signed_names("any.example.org/x") == ()
    ci = found.find("ci.example.org/x")
    assert ci.signed_names("ci.example.org/x") == ("ci.example.org/x",)
    assert isinstance(ci.signers[0], IdentityRequirement) and ci.signers[0].issuer == "https://x"
    assert isinstance(ci.signers[1], KeyRequirement)
    assert (ci.annotations, ci.checks) == ({"stage": "release"}, {"severity": "high"})
    assert [one.signed_names for one in plan_pull(found, "ci.example.org/x")] == [("ci.example.org/x",)]


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({}, "missing required field `default`"),
        ({"default": "maybe"}, "Invalid enum value 'maybe' - at `$.default`"),
        ({"default": "accept", "scope": {}}, "unknown field `scope`"),
        ({"default": "accept", "scopes": {"debian": "accept"}}, "'debian' isn't a registry's host"),
        ({"default": "accept", "scopes": {"docker.io/": "accept"}}, "isn't a registry's host"),
        ({"default": "accept", "scopes": {"Docker.io": "accept"}}, "isn't a registry's host"),
        ({"default": "accept", "scopes": {"r.example/a:1": "accept"}}, "isn't a registry's host"),
        ({"default": {"signed-by": []}}, "default.signed-by: expected 1 to 16 signers, got 0"),
        ({"default": {"signed-by": [{"key": KEY}] * 17}}, "expected 1 to 16 signers, got 17"),
        ({"default": {"signed-by": [{}]}}, r"default.signed-by\[0\]: expected key-file or key"),
        ({"default": {"signed-by": [{"key": "x"}]}}, r"default.signed-by\[0\].key: expected a PEM text"),
        ({"default": {"signed-by": [{"key": KEY, "key-file": "/k"}]}}, "give one of them"),
        ({"default": {"signed-by": [{"key-file": "k.pub"}]}}, "expected an absolute path"),
        ({"default": {"signed-by": [{"key-file": "/k.pub"}]}}, "/k.pub: No such file or directory"),
        ({"default": {"signed-by": [{"key": KEY, "identity": "x"}]}}, "either a key, or a ca with an identity"),
        ({"default": {"signed-by": [{"ca": KEY}]}}, r"default.signed-by\[0\].identity: is missing"),
        ({"default": {**SIGNED, "signed-as": "docker.io"}}, "default.signed-as: expected repository, any"),
        ({"default": {**SIGNED, "checks": {"mood": 1}}}, "no check 'mood'; there are severity"),
        ({"default": {**SIGNED, "checks": {"severity": 7}}}, "default.checks.severity: expected high"),
        ({"default": {"signed_by": []}}, "unknown field `signed_by`"),
        ({"default": "accept", "scopes": {f"h{n}.example": "accept" for n in range(1001)}}, "the limit is 1000"),
    ],
)  # fmt: skip
def test_documents_that_say_nothing_clear(document: dict[str, Any], sentence: str) -> None:
    with pytest.raises(
        Invalid, match=sentence.replace("$", r"\$").replace("`$.", "`$.") if "$" in sentence else sentence
    ):
        parse(**document)


def test_what_is_not_json() -> None:
    for text in ("", "{", "[]", "\0", '{"default": ' + "[" * 20_000):
        with pytest.raises(Invalid):
            parse_policy(text, no_file)
    with pytest.raises(Invalid, match="up to 1048576 characters"):
        parse_policy(" " * (1 << 20) + "{}", no_file)


def test_a_version_changes_with_a_key_that_a_file_holds() -> None:
    text = json.dumps({"default": {"signed-by": [{"key-file": "/k.pub"}]}})
    one, two = (generate_key("ed25519").public.pem for _ in range(2))
    first = parse_policy(text, lambda path: one)
    assert first.version == parse_policy(text, lambda path: one).version
    assert first.version != parse_policy(text, lambda path: two).version


@pytest.mark.parametrize(
    ("used", "repository"),
    [
        ("debian", DEBIAN),
        ("debian:latest", DEBIAN),
        ("docker.io/library/debian", DEBIAN),
        ("registry.example.org/team/app@sha256:" + "c" * 64, TEAM),
        ("sha256:" + "ab" * 32, ""),
        ("ab" * 32, ""),
        ("abab", ""),
        ("sha256:abab", ""),
        ("gone:1", "docker.io/library/gone"),
    ],
)
def test_the_name_that_is_used(used: str, repository: str) -> None:
    image = Image(id="sha256:" + "ab" * 32, names=("debian:latest",))
    assert used_repository(image, used) == repository
