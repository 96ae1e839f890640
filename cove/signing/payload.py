"""What a signature says: the simple signing payload, and the statement of a bundle. Pure.

Sources: containers/image, docs/containers-signature.5.md; sigstore/cosign, specs/SIGNATURE_SPEC.md, "Payloads";
in-toto, spec/v1/statement.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from cove.model.errors import Invalid

COSIGN = "cosign container image signature"
ATOMIC = "atomic container signature"
STATEMENTS = ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1")
SIGNING_PREDICATES = ("https://sigstore.dev/cosign/sign/v1",)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]{64}")
_ANNOTATIONS_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What was signed: an image, by its manifest's digest, as a repository ("": any), and more."""

    digests: tuple[str, ...]
    reference: str = ""
    optional: Mapping[str, Any] = field(default_factory=dict)


class _Identity(msgspec.Struct):
    reference: str = msgspec.field(name="docker-reference", default="")


class _Image(msgspec.Struct):
    digest: str = msgspec.field(name="docker-manifest-digest")


class _Critical(msgspec.Struct):
    identity: _Identity
    image: _Image
    type: str


class _Payload(msgspec.Struct):
    critical: _Critical
    optional: dict[str, Any] | None = None


class _Subject(msgspec.Struct):
    digest: dict[str, str]
    name: str = ""
    annotations: dict[str, Any] | None = None


class _Statement(msgspec.Struct):
    type: str = msgspec.field(name="_type")
    subject: list[_Subject]
    predicate_type: str = msgspec.field(name="predicateType")


def build_payload(reference: str, digest: str, annotations: Mapping[str, str]) -> bytes:
    """What `cosign sign` signs: the repository's full name and the manifest's digest. Raises Invalid."""
    if not _DIGEST.fullmatch(digest):
        raise Invalid(f"{digest[:80]!r} isn't a manifest's digest, e.g. sha256:<64 hex digits>")
    if len(annotations) > _ANNOTATIONS_MAX:
        raise Invalid(f"{len(annotations)} annotations; a signature has up to {_ANNOTATIONS_MAX}")
    return msgspec.json.encode(
        {
            "critical": {
                "identity": {"docker-reference": reference},
                "image": {"docker-manifest-digest": digest},
                "type": COSIGN,
            },
            "optional": dict(sorted(annotations.items())) or None,
        }
    )


def parse_payload(data: bytes) -> Claim:
    """A simple signing payload's claim. Raises Invalid."""
    try:
        found = msgspec.json.decode(data, type=_Payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the signed payload is malformed: {error}") from None
    critical = found.critical
    if critical.type not in (COSIGN, ATOMIC):
        raise Invalid(f"the signed payload is of the type {critical.type[:80]!r}, expected {COSIGN!r}")
    if not _DIGEST.fullmatch(critical.image.digest):
        raise Invalid(
            f"the signed payload names the digest {critical.image.digest[:80]!r}, expected a sha256 one"
        )
    return Claim(
        digests=(critical.image.digest,),
        reference=critical.identity.reference,
        optional=found.optional or {},
    )


def build_statement(reference: str, digest: str, annotations: Mapping[str, str]) -> bytes:
    """What cosign 3 signs: a statement of in-toto about the manifest. The subject's name is ours: the repository, which
    cosign leaves out. Raises Invalid."""
    build_payload(reference, digest, annotations)  # the same rules
    subject: dict[str, Any] = {
        "name": reference,
        "digest": {"sha256": digest.removeprefix("sha256:")},
    }
    if annotations:
        subject["annotations"] = dict(sorted(annotations.items()))
    return msgspec.json.encode(
        {
            "_type": STATEMENTS[0],
            "subject": [subject],
            "predicateType": SIGNING_PREDICATES[0],
            "predicate": {},
        }
    )


def parse_statement(data: bytes) -> Claim:
    """A statement of in-toto that signs images. Raises Invalid for another one, e.g. of where an image comes from."""
    try:
        found = msgspec.json.decode(data, type=_Statement)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the signed statement is malformed: {error}") from None
    if found.type not in STATEMENTS or found.predicate_type not in SIGNING_PREDICATES:
        raise Invalid(
            f"the signed statement says {found.predicate_type[:120]!r}, which isn't a signature of an image "
            f"({SIGNING_PREDICATES[0]})"
        )
    digests = tuple(
        f"sha256:{subject.digest['sha256']}"
        for subject in found.subject
        if _HEX.fullmatch(subject.digest.get("sha256", ""))
    )
    if not digests:
        raise Invalid("the signed statement has no subject with a sha256 digest")
    names = {subject.name for subject in found.subject if subject.name}
    merged: dict[str, Any] = {}
    for subject in found.subject:
        merged.update(subject.annotations or {})
    return Claim(digests=digests, reference=names.pop() if len(names) == 1 else "", optional=merged)


def repository_of(reference: str) -> str:
    """The repository that a payload's reference names, as Cove writes it: without tag and digest, Docker Hub's host as
    docker.io."""
    name = reference.partition("@")[0]
    head, slash, last = name.rpartition("/")
    name = f"{head}{slash}{last.partition(':')[0]}"
    for host in ("index.docker.io/", "registry-1.docker.io/"):
        if name.startswith(host):
            name = "docker.io/" + name.removeprefix(host)
    first = name.partition("/")[0]
    if "/" not in name:
        return f"docker.io/library/{name}" if name else ""
    if not any(mark in first for mark in ".:") and first != "localhost":
        return f"docker.io/{name}"
    return name


def same_annotations(wanted: Mapping[str, str], found: Mapping[str, Any]) -> bool:
    """Whether a signature has all that is asked for."""
    return all(found.get(key) == value for key, value in wanted.items())
