"""Whether an image is signed as somebody asks: signatures, keys and certificates in, a verdict out.

Every signature is checked against every signer that the question names, and each gets its finding: what a person needs
to know is why the signature that was meant to count doesn't. What is signed is the manifest's digest; that the manifest
has that digest, and the layers what the manifest says, is checked where images are taken in, not here.
"""

from __future__ import annotations

import base64
import binascii
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
from cryptography import x509

from cove.model.errors import Invalid
from cove.signing.bundle import parse_bundle
from cove.signing.certificates import (
    Certificate,
    check_chain,
    matches_identity,
    parse_certificates,
    read_certificate,
)
from cove.signing.keys import KINDS, PublicKey, generate_key, parse_public_key
from cove.signing.log import check_entry, parse_entry
from cove.signing.payload import Claim, parse_payload, parse_statement, repository_of, same_annotations
from cove.signing.types import (
    BUNDLE_TYPE,
    CERTIFICATE_KEY,
    CHAIN_KEY,
    LOG_KEY,
    PER_IMAGE_MAX,
    SIGNATURE_KEY,
    Finding,
    IdentityRequirement,
    KeyRequirement,
    Question,
    Reason,
    Signature,
    Signer,
    Verdict,
    check_size,
)

# From what comes closest to a good signature to what says least: the first that is found is the verdict's reason.
_CLOSENESS: tuple[Reason, ...] = (
    "annotation",
    "other-repository",
    "other-image",
    "expired",
    "other-identity",
    "untrusted",
    "changed",
    "wrong-key",
    "malformed",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """A signature, taken apart: what was signed, by what, and what it claims."""

    signed: bytes
    signature: bytes
    claim: Claim
    certificate: Certificate | None
    chain: tuple[x509.Certificate, ...]
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    key: PublicKey
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Identity:
    wanted: IdentityRequirement
    roots: tuple[x509.Certificate, ...]
    log_key: PublicKey | None


def load_all() -> None:
    """Have loaded what cryptography would load at its first use: afterwards there may be no file to load it from."""
    for name in ("hazmat.backends.openssl.backend", "x509.verification", "x509.extensions", "x509.oid"):
        importlib.import_module(f"cryptography.{name}")
    data = b"anything"
    for kind in KINDS:
        key = generate_key(kind)
        assert key.public.verifies(key.sign(data), data), "the library can't do what it has to"


def check_signers(signers: Sequence[Signer]) -> None:
    """Raises Invalid for a key or a certificate that can't be read."""
    for signer in signers:
        _ready(signer)


def verify(question: Question, signatures: Sequence[Signature], *, now_s: float) -> Verdict:
    """The answer to the question. Raises Invalid only for what the question itself has wrong."""
    ready = [_ready(signer) for signer in question.signers]
    if not signatures:
        return Verdict(
            signed=False,
            reason="no-signature",
            sentence=f"no signature of {question.digests[0]} was found",
        )
    findings = []
    for signature in signatures[:PER_IMAGE_MAX]:
        finding = _check(question, ready, signature, now_s)
        findings.append(finding)
    ends = [finding.until_s for finding in findings if not finding.reason]
    if ends:
        return Verdict(signed=True, findings=tuple(findings), until_s=0 if 0 in ends else max(ends))
    closest = min(findings, key=lambda f: _CLOSENESS.index(f.reason) if f.reason in _CLOSENESS else 99)
    return Verdict(signed=False, reason=closest.reason, sentence=closest.sentence, findings=tuple(findings))


def describe(signature: Signature) -> Finding:
    """What a signature says of itself, unchecked."""
    try:
        read = _read(signature)
    except Invalid as error:
        return Finding(reason="malformed", sentence=str(error))
    return Finding(
        signer=read.certificate.shown if read.certificate else "",
        reference=read.claim.reference,
        digest=read.claim.digests[0],
        annotations={key: str(value) for key, value in read.claim.optional.items()},
    )


def _ready(signer: Signer) -> _Key | _Identity:
    if isinstance(signer, KeyRequirement):
        what = signer.name or "the key"
        key = parse_public_key(signer.pem, what)
        return _Key(key=key, name=signer.name or key.fingerprint[:16])
    what = signer.name or "the authority's certificates"
    return _Identity(
        wanted=signer,
        roots=tuple(parse_certificates(signer.roots, what)),
        log_key=parse_public_key(signer.log_key, f"{what}: the log's key") if signer.log_key else None,
    )


def _check(
    question: Question, signers: Sequence[_Key | _Identity], signature: Signature, now_s: float
) -> Finding:
    try:
        read = _read(check_size(signature))
    except Invalid as error:
        return Finding(reason="malformed", sentence=str(error))
    claim = read.claim
    finding = Finding(
        reference=claim.reference,
        digest=claim.digests[0],
        annotations={key: str(value) for key, value in claim.optional.items()},
    )
    failures: list[tuple[Reason, str]] = []
    who, until_s = "", 0.0
    for signer in signers:
        failure = (
            _check_key(read, signer) if isinstance(signer, _Key) else _check_identity(read, signer, now_s)
        )
        if failure is None:
            who = read.certificate.shown if isinstance(signer, _Identity) and read.certificate else ""
            if isinstance(signer, _Key):
                who = signer.name
            elif read.certificate and signer.log_key is None:
                until_s = read.certificate.until_s
            break
        failures.append(failure)
    else:
        reason, sentence = min(failures, key=lambda f: _CLOSENESS.index(f[0]))
        return _with(finding, reason, sentence)
    finding = msgspec.structs.replace(finding, signer=who, until_s=until_s)
    matching = [digest for digest in claim.digests if digest in question.digests]
    if not matching:
        return _with(
            finding,
            "other-image",
            f"the signature is of another image, {claim.digests[0]}, and this one is {question.digests[0]}: "
            "it was changed after it was signed, or the signature was put beside another",
        )
    if question.repositories and repository_of(claim.reference) not in question.repositories:
        shown = f"as {claim.reference}" if claim.reference else "without naming a repository"
        return _with(
            finding,
            "other-repository",
            f"it is signed {shown}, not as {' or '.join(question.repositories)}",
        )
    if not same_annotations(question.annotations, claim.optional):
        wanted = ", ".join(f"{key}={value}" for key, value in question.annotations.items())
        return _with(finding, "annotation", f"the signature lacks the annotations {wanted}")
    return _with(finding, "", "", digest=matching[0])


def _check_key(read: _Read, signer: _Key) -> tuple[Reason, str] | None:
    if signer.key.verifies(read.signature, read.signed):
        return None
    return (
        "wrong-key",
        f"no signature was made with the key {signer.name}, or what was signed has been changed",
    )


def _check_identity(read: _Read, signer: _Identity, now_s: float) -> tuple[Reason, str] | None:
    certificate = read.certificate
    if certificate is None:
        return "wrong-key", "the signature has no certificate, it was made with a key"
    if not certificate.key.verifies(read.signature, read.signed):
        return (
            "changed",
            "the certificate's key didn't make the signature: what was signed, or it, was changed",
        )
    time_s = now_s
    if signer.log_key is not None:
        if not read.log:
            return (
                "untrusted",
                "the signature has no entry of the transparency log, and the log's key is configured",
            )
        try:
            entry = parse_entry(read.log)
        except Invalid as error:
            return "malformed", str(error)
        if problem := check_entry(entry, signer.log_key, signature=read.signature, content=read.signed):
            return "untrusted", problem
        time_s = entry.time_s
    if problem := check_chain(certificate, read.chain, signer.roots, time_s):
        within = certificate.from_s <= time_s <= certificate.until_s
        reason: Reason = "untrusted" if within else "expired"
        return reason, f"the certificate of {certificate.shown or 'nobody'} isn't good: {problem}"
    if not matches_identity(certificate, signer.wanted):
        return "other-identity", f"it is signed by {certificate.shown}, not by {_shown(signer.wanted)}"
    return None


def _shown(wanted: IdentityRequirement) -> str:
    subject = wanted.subject or wanted.subject_pattern or "anybody"
    issuer = wanted.issuer or wanted.issuer_pattern
    return f"{subject} ({issuer})" if issuer else subject


def _read(signature: Signature) -> _Read:
    if signature.media_type == BUNDLE_TYPE:
        return _read_bundle(signature)
    notes = signature.annotations
    try:
        made = base64.b64decode(notes.get(SIGNATURE_KEY, ""), validate=True)
    except (binascii.Error, ValueError):
        raise Invalid(f"the annotation {SIGNATURE_KEY} isn't base64") from None
    if not made:
        raise Invalid(f"the signature's layer has no annotation {SIGNATURE_KEY}")
    leaf, chain = _certificates(notes.get(CERTIFICATE_KEY, ""), notes.get(CHAIN_KEY, ""))
    return _Read(
        signed=signature.content,
        signature=made,
        claim=parse_payload(signature.content),
        certificate=leaf,
        chain=chain,
        log=notes.get(LOG_KEY, ""),
    )


def _read_bundle(signature: Signature) -> _Read:
    bundle = parse_bundle(signature.content)
    if bundle.statement is None:
        raise Invalid(
            "the bundle signs the manifest's bytes: expected an envelope with a statement, as cosign 3 writes it"
        )
    leaf, chain = _certificates(bundle.certificate, bundle.chain)
    return _Read(
        signed=bundle.signed(b""),
        signature=bundle.signature,
        claim=parse_statement(bundle.statement),
        certificate=leaf,
        chain=chain,
        log="",
    )


def _certificates(leaf: str, chain: str) -> tuple[Certificate | None, tuple[x509.Certificate, ...]]:
    if not leaf.strip():
        return None, ()
    found = parse_certificates(leaf, "the signature's certificate")
    more = parse_certificates(chain, "the signature's chain") if chain.strip() else []
    return read_certificate(found[0], "the signature's certificate"), (*found[1:], *more)


def _with(
    finding: Finding, reason: Reason | Literal[""], sentence: str, *, signer: str = "", digest: str = ""
) -> Finding:
    """The same finding with another outcome."""
    return msgspec.structs.replace(
        finding,
        reason=reason,
        sentence=sentence,
        signer=signer or finding.signer,
        digest=digest or finding.digest,
    )
