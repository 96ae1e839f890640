"""Verdicts: what counts as signed, and why the rest doesn't."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.model.errors import Invalid
from cove.signing.bundle import build_bundle, encode_pae
from cove.signing.keys import PrivateKey, generate_key
from cove.signing.make import sign_bundle, sign_image
from cove.signing.payload import build_payload, parse_payload, parse_statement, repository_of
from cove.signing.types import (
    BUNDLE_TYPE,
    CERTIFICATE_KEY,
    LOG_KEY,
    SIGNATURE_KEY,
    SIMPLE_TYPE,
    IdentityRequirement,
    KeyRequirement,
    Question,
    Signature,
    Verdict,
    decode_signature,
    encode_signature,
)
from cove.signing.verify import check_signers, describe, verify
from tests.signkit import DAY, NOW_S, Authority

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
REPOSITORY = "registry.example.org/team/app"
KEY = generate_key("ecdsa-p256")
AUTHORITY = Authority()


def ask(
    *signatures: Signature, key: PrivateKey = KEY, now_s: float = NOW_S, question: Question | None = None
) -> Verdict:
    asked = question or Question(
        digests=(DIGEST,),
        repositories=(REPOSITORY,),
        signers=(KeyRequirement(pem=key.public.pem, name="release"),),
    )
    return verify(asked, signatures, now_s=now_s)


def identity(**changes: str) -> Question:
    wanted = {
        "roots": AUTHORITY.pem,
        "subject": "ci@example.org",
        "issuer": "https://login.example.org",
    } | changes
    return Question(digests=(DIGEST,), repositories=(REPOSITORY,), signers=(IdentityRequirement(**wanted),))


def certified(**more: object) -> Signature:
    issued = AUTHORITY.issue(**more)  # type: ignore[arg-type]
    return sign_image(issued.key, REPOSITORY, DIGEST, {}, certificates=issued.pem)


@pytest.mark.parametrize("kind", ["ecdsa-p256", "ed25519"])
def test_a_good_signature(kind: str) -> None:
    key = generate_key(kind)  # type: ignore[arg-type]
    verdict = ask(sign_image(key, REPOSITORY, DIGEST, {"commit": "4fd12c9"}), key=key)
    assert verdict.signed and not verdict.reason
    [finding] = verdict.findings
    assert (finding.signer, finding.reference, finding.digest) == ("release", REPOSITORY, DIGEST)
    assert finding.annotations == {"commit": "4fd12c9"}


def test_without_any() -> None:
    verdict = ask()
    assert (verdict.signed, verdict.reason) == (False, "no-signature")
    assert DIGEST in verdict.sentence


def test_the_wrong_key() -> None:
    verdict = ask(sign_image(generate_key("ecdsa-p256"), REPOSITORY, DIGEST, {}))
    assert (verdict.signed, verdict.reason) == (False, "wrong-key")


def test_a_changed_payload() -> None:
    good = sign_image(KEY, REPOSITORY, OTHER, {})
    moved = msgspec.structs.replace(good, content=good.content.replace(b"b" * 64, b"a" * 64))
    assert ask(moved).reason == "wrong-key"


def test_a_signature_of_another_image_put_beside_this_one() -> None:
    verdict = ask(sign_image(KEY, REPOSITORY, OTHER, {}))
    assert verdict.reason == "other-image"
    assert OTHER in verdict.sentence and DIGEST in verdict.sentence


def test_a_signature_as_another_repository() -> None:
    good = sign_image(KEY, "registry.example.org/team/debug", DIGEST, {})
    assert ask(good).reason == "other-repository"
    anywhere = Question(digests=(DIGEST,), signers=(KeyRequirement(pem=KEY.public.pem),))
    assert ask(good, question=anywhere).signed


def test_annotations_that_are_asked_for() -> None:
    question = Question(
        digests=(DIGEST,), signers=(KeyRequirement(pem=KEY.public.pem),), annotations={"stage": "release"}
    )
    assert ask(sign_image(KEY, REPOSITORY, DIGEST, {"stage": "release", "x": "y"}), question=question).signed
    verdict = ask(sign_image(KEY, REPOSITORY, DIGEST, {"stage": "test"}), question=question)
    assert verdict.reason == "annotation" and "stage=release" in verdict.sentence


def test_one_good_signature_among_bad_ones_is_enough() -> None:
    bad = [sign_image(generate_key("ed25519"), REPOSITORY, DIGEST, {}) for _ in range(3)]
    verdict = ask(*bad, sign_image(KEY, REPOSITORY, DIGEST, {}))
    assert verdict.signed
    assert [finding.reason for finding in verdict.findings] == ["wrong-key"] * 3 + [""]


def test_the_reason_is_the_closest_one() -> None:
    verdict = ask(
        Signature(media_type=SIMPLE_TYPE, content=b"{", annotations={SIGNATURE_KEY: "AAAA"}),
        sign_image(generate_key("ed25519"), REPOSITORY, DIGEST, {}),
        sign_image(KEY, "registry.example.org/other", DIGEST, {}),
    )
    assert verdict.reason == "other-repository"


# --- certificates ---------------------------------------------------------------------------


def test_a_certificate_of_the_authority() -> None:
    verdict = ask(certified(), question=identity())
    assert verdict.signed, verdict
    assert verdict.findings[0].signer == "ci@example.org (https://login.example.org)"


@pytest.mark.parametrize(
    ("subject", "wanted"),
    [
        ("ci@example.org", {"subject": "", "subject_pattern": "*@example.org"}),
        (
            "https://ci.example.org/team/app/.ci/release@refs/tags/v1",
            {"subject": "", "subject_pattern": "https://ci.example.org/team/app/*@refs/tags/*"},
        ),
        ("ci@example.org", {"issuer": "", "issuer_pattern": "https://*.example.org"}),
        ("ci@example.org", {"issuer": ""}),
    ],
)
def test_patterns_of_identities(subject: str, wanted: dict[str, str]) -> None:
    assert ask(certified(subject=subject), question=identity(**wanted)).signed


@pytest.mark.parametrize(
    "wanted",
    [
        {"subject": "ci@example.com"},
        {"subject": "", "subject_pattern": "*@example.com"},
        {"subject": "", "subject_pattern": "?i@example.org"},  # only * is special
        {"subject": "", "subject_pattern": "[c]i@example.org"},
        {"subject": "", "subject_pattern": "CI@example.org"},
        {"issuer": "https://login.example.com"},
        {"issuer": "", "issuer_pattern": "http://*"},
    ],
)
def test_other_identities(wanted: dict[str, str]) -> None:
    verdict = ask(certified(), question=identity(**wanted))
    assert verdict.reason == "other-identity"
    assert "signed by ci@example.org (https://login.example.org), not by" in verdict.sentence


def test_an_expired_certificate() -> None:
    signature = certified(begin=-2 * DAY, end=-DAY)
    verdict = ask(signature, question=identity())
    assert verdict.reason == "expired"
    assert "it holds from 2026-04-29T12:00:00Z to 2026-04-30T12:00:00Z" in verdict.sentence
    assert ask(signature, question=identity(), now_s=NOW_S - 86400 - 3600).signed
    assert ask(certified(begin=DAY, end=2 * DAY), question=identity()).reason == "expired"


def test_certificates_that_lead_to_no_authority() -> None:
    stranger = Authority()  # with the same names
    issued = stranger.issue()
    signature = sign_image(issued.key, REPOSITORY, DIGEST, {}, certificates=issued.pem)
    assert ask(signature, question=identity()).reason == "untrusted"
    itself = issued.pem + stranger.pem  # bringing its own root along helps nobody
    signature = sign_image(issued.key, REPOSITORY, DIGEST, {}, certificates=itself)
    assert ask(signature, question=identity()).reason == "untrusted"
    lone = AUTHORITY.issue()
    alone = "".join(lone.pem.partition("-----END CERTIFICATE-----\n")[:2])
    signature = sign_image(lone.key, REPOSITORY, DIGEST, {}, certificates=alone)
    assert ask(signature, question=identity()).reason == "untrusted"  # the one between is missing


def test_a_certificate_for_something_else() -> None:
    from cryptography.x509.oid import ExtendedKeyUsageOID

    server = ask(certified(usage=ExtendedKeyUsageOID.SERVER_AUTH), question=identity())
    assert server.reason == "untrusted" and "code signing" in server.sentence
    assert ask(certified(usage=None), question=identity()).reason == "untrusted"


def test_a_signer_cannot_issue_certificates() -> None:
    signer = AUTHORITY.issue()
    below = Authority(name="below", middle_key=signer.key.key)  # type: ignore[arg-type]
    issued = below.issue("root@example.org")
    chain = issued.pem.split("-----END CERTIFICATE-----\n")[0] + "-----END CERTIFICATE-----\n" + signer.pem
    signature = sign_image(issued.key, REPOSITORY, DIGEST, {}, certificates=chain)
    verdict = ask(signature, question=identity(subject="root@example.org"))
    assert verdict.reason == "untrusted"


def test_a_certificate_beside_a_signature_of_another_key() -> None:
    good = certified()
    forged = sign_image(generate_key("ecdsa-p256"), REPOSITORY, DIGEST, {})
    notes = {**good.annotations, SIGNATURE_KEY: forged.annotations[SIGNATURE_KEY]}
    assert ask(msgspec.structs.replace(good, annotations=notes), question=identity()).reason == "changed"
    with pytest.raises(Invalid, match="the certificate is of another key"):
        sign_image(KEY, REPOSITORY, DIGEST, {}, certificates=AUTHORITY.issue().pem)


def test_a_key_is_no_certificate() -> None:
    assert ask(sign_image(KEY, REPOSITORY, DIGEST, {}), question=identity()).reason == "wrong-key"
    either = Question(
        digests=(DIGEST,),
        repositories=(REPOSITORY,),
        signers=(*identity().signers, KeyRequirement(pem=KEY.public.pem)),
    )
    assert ask(sign_image(KEY, REPOSITORY, DIGEST, {}), question=either).signed
    assert ask(certified(), question=either).signed


# --- the transparency log -------------------------------------------------------------------

LOG = generate_key("ecdsa-p256")


def logged(
    signature: Signature, *, time_s: int, key: PrivateKey = LOG, of: Signature | None = None
) -> Signature:
    about = of or signature
    body = {
        "apiVersion": "0.0.1",
        "kind": "hashedrekord",
        "spec": {
            "data": {"hash": {"algorithm": "sha256", "value": hashlib.sha256(about.content).hexdigest()}},
            "signature": {"content": about.annotations[SIGNATURE_KEY], "publicKey": {"content": ""}},
        },
    }
    entry = {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "integratedTime": time_s,
        "logID": key.public.fingerprint,
        "logIndex": 7,
    }
    promise = key.sign(json.dumps(entry, separators=(",", ":"), sort_keys=True).encode())
    text = json.dumps({"SignedEntryTimestamp": base64.b64encode(promise).decode(), "Payload": entry})
    return msgspec.structs.replace(signature, annotations={**signature.annotations, LOG_KEY: text})


def test_the_logs_time_counts_for_a_certificate_that_has_ended_since() -> None:
    short = certified(begin=-2 * DAY, end=-2 * DAY + datetime.timedelta(minutes=10))
    question = identity(log_key=LOG.public.pem)
    then_s = int(NOW_S - 2 * 86400 + 60)
    assert ask(logged(short, time_s=then_s), question=question).signed
    assert ask(short, question=question).reason == "untrusted"
    assert ask(logged(short, time_s=then_s + 3600), question=question).reason == "expired"
    other = generate_key("ecdsa-p256")
    assert ask(logged(short, time_s=then_s, key=other), question=question).reason == "untrusted"
    elsewhere = logged(short, time_s=then_s, of=sign_image(KEY, REPOSITORY, DIGEST, {}))
    verdict = ask(elsewhere, question=question)
    assert verdict.reason == "untrusted" and "about another signature" in verdict.sentence
    changed = logged(short, time_s=then_s)
    notes = dict(changed.annotations)
    notes[LOG_KEY] = notes[LOG_KEY].replace(str(then_s), str(then_s + 1))
    assert ask(msgspec.structs.replace(changed, annotations=notes), question=question).reason == "untrusted"


# --- bundles --------------------------------------------------------------------------------


def statement(digest: str = DIGEST, *, predicate: str = "https://sigstore.dev/cosign/sign/v1") -> bytes:
    return json.dumps(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": REPOSITORY, "digest": {"sha256": digest.removeprefix("sha256:")}}],
            "predicateType": predicate,
            "predicate": {},
        }
    ).encode()


def bundled(content: bytes, key: PrivateKey = KEY) -> Signature:
    made = key.sign(encode_pae("application/vnd.in-toto+json", content))
    return Signature(media_type=BUNDLE_TYPE, content=build_bundle(content, made, hint="release"))


def test_a_bundle_with_a_statement() -> None:
    assert ask(bundled(statement())).signed
    assert ask(bundled(statement(OTHER))).reason == "other-image"
    assert ask(bundled(statement(), key=generate_key("ecdsa-p256"))).reason == "wrong-key"
    # a statement of where the image comes from is signed, too, and says something else
    verdict = ask(bundled(statement(predicate="https://slsa.dev/provenance/v1")))
    assert verdict.reason == "malformed" and "isn't a signature of an image" in verdict.sentence


def test_a_bundle_of_our_own() -> None:
    made = sign_bundle(KEY, REPOSITORY, DIGEST, {"n": "1"})
    verdict = ask(made)
    assert verdict.signed and verdict.findings[0].annotations == {"n": "1"}
    assert ask(sign_bundle(KEY, f"{REPOSITORY}x", DIGEST, {})).reason == "other-repository"
    issued = AUTHORITY.issue()
    certified = sign_bundle(issued.key, REPOSITORY, DIGEST, {}, certificates=issued.pem)
    assert ask(certified, question=identity()).reason == "untrusted"  # the one between isn't in it
    with pytest.raises(Invalid, match="the certificate is of another key"):
        sign_bundle(KEY, REPOSITORY, DIGEST, {}, certificates=issued.pem)


def test_pae_is_dsses() -> None:  # secure-systems-lab/dsse, protocol.md, "Test vectors"
    assert (
        encode_pae("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


# --- payloads and shapes ----------------------------------------------------------------------


def test_the_payload_is_cosigns() -> None:
    assert build_payload("r.example/app", DIGEST, {}) == (
        b'{"critical":{"identity":{"docker-reference":"r.example/app"},"image":{"docker-manifest-digest":"'
        + DIGEST.encode()
        + b'"},"type":"cosign container image signature"},"optional":null}'
    )
    with pytest.raises(Invalid, match="isn't a manifest's digest"):
        build_payload("r.example/app", "sha256:abc", {})
    with pytest.raises(Invalid, match="65 annotations; a signature has up to 64"):
        build_payload("r.example/app", DIGEST, {str(i): "" for i in range(65)})


@pytest.mark.parametrize(
    ("reference", "repository"),
    [
        ("registry.example.org/team/app", "registry.example.org/team/app"),
        ("registry.example.org:5000/app:1", "registry.example.org:5000/app"),
        ("registry.example.org/app@sha256:" + "a" * 64, "registry.example.org/app"),
        ("index.docker.io/library/debian", "docker.io/library/debian"),
        ("debian", "docker.io/library/debian"),
        ("team/app:1", "docker.io/team/app"),
        ("localhost/app", "localhost/app"),
        ("", ""),
    ],
)
def test_repositories_of_references(reference: str, repository: str) -> None:
    assert repository_of(reference) == repository


def test_a_question_that_cannot_be_read_says_which_key() -> None:
    with pytest.raises(Invalid, match="ops key: expected a PEM text"):
        check_signers([KeyRequirement(pem="?", name="ops key")])
    with pytest.raises(Invalid, match="the authority's certificates: expected certificates"):
        check_signers([IdentityRequirement(roots=KEY.public.pem)])


def test_a_record_is_what_was_kept() -> None:
    signature = certified()
    assert decode_signature(encode_signature(signature)) == signature
    turned = msgspec.structs.replace(signature, annotations=dict(reversed(signature.annotations.items())))
    assert encode_signature(turned) == encode_signature(signature)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([SIMPLE_TYPE, BUNDLE_TYPE]),
    st.binary(max_size=400)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["critical", "image", "subject", "mediaType", "dsseEnvelope", "signatures"])
                | st.text(max_size=8),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode()),
    st.dictionaries(
        st.sampled_from([SIGNATURE_KEY, CERTIFICATE_KEY, LOG_KEY, "x"]), st.text(max_size=60), max_size=3
    ),
)
def test_no_signature_breaks_the_verifier_or_passes(kind: str, content: bytes, notes: dict[str, str]) -> None:
    signature = Signature(media_type=kind, content=content, annotations=notes)  # type: ignore[arg-type]
    for question in (None, identity(), identity(log_key=LOG.public.pem)):
        assert not ask(signature, question=question).signed
    describe(signature)
    for parse in (parse_payload, parse_statement):
        try:
            parse(content)
        except Invalid:
            pass


def test_documents_that_are_too_deep_or_too_large() -> None:
    deep = b'{"critical":' + b"[" * 50_000
    assert (
        ask(Signature(media_type=SIMPLE_TYPE, content=deep, annotations={SIGNATURE_KEY: "AAAA"})).reason
        == "malformed"
    )
    large = Signature(media_type=SIMPLE_TYPE, content=b"x" * 200_000, annotations={SIGNATURE_KEY: "AAAA"})
    assert "up to 131072 bytes" in ask(large).sentence
