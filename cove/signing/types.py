"""Signatures as they are kept and handed on, and what is asked of them. No I/O."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from cove.model.base import Model
from cove.model.errors import Invalid

SIMPLE_TYPE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIGNATURE_KEY = "dev.cosignproject.cosign/signature"
CERTIFICATE_KEY = "dev.sigstore.cosign/certificate"
CHAIN_KEY = "dev.sigstore.cosign/chain"
LOG_KEY = "dev.sigstore.cosign/bundle"

CONTENT_MAX = 128 << 10  # bytes of one signature's content
ANNOTATIONS_MAX = 64 << 10  # bytes of its annotations
PER_IMAGE_MAX = 64


class Signature(Model, frozen=True, kw_only=True):
    """One signature, as a registry has it: a blob and what its descriptor says.

    A simple one's content is the payload that was signed, and the signature is among the annotations (sigstore/cosign,
    specs/SIGNATURE_SPEC.md); a bundle's content is the whole bundle (specs/BUNDLE_SPEC.md).
    """

    media_type: Literal[
        "application/vnd.dev.cosign.simplesigning.v1+json", "application/vnd.dev.sigstore.bundle.v0.3+json"
    ]
    content: bytes
    annotations: dict[str, str] = {}


class KeyRequirement(Model, frozen=True, kw_only=True, tag="key"):
    """Signed by the owner of this key."""

    pem: str
    name: str = ""  # how the policy calls it


class IdentityRequirement(Model, frozen=True, kw_only=True, tag="identity"):
    """Signed with a certificate of one of these authorities, made out to this subject.

    `subject` and `issuer` are compared whole; of the patterns, `*` stands for any characters. Without an issuer any is
    taken, for an authority of one's own writes none.
    """

    roots: str  # PEM
    subject: str = ""
    subject_pattern: str = ""
    issuer: str = ""
    issuer_pattern: str = ""
    log_key: str = ""  # PEM: the transparency log's, whose time counts then
    name: str = ""


Signer = KeyRequirement | IdentityRequirement


class Question(Model, frozen=True, kw_only=True):
    """Is one of these digests signed, as one of these repositories, by one of these signers?

    `repositories` empty: whatever repository a signature names. `annotations` have to be in it.
    """

    digests: tuple[str, ...]
    repositories: tuple[str, ...] = ()
    signers: tuple[Signer, ...]
    annotations: dict[str, str] = {}


Reason = Literal[
    "no-signature",
    "wrong-key",
    "changed",
    "other-image",
    "other-repository",
    "other-identity",
    "expired",
    "untrusted",
    "annotation",
    "malformed",
]


class Finding(Model, frozen=True, kw_only=True):
    """What became of one signature; `reason` "" is a good one."""

    signer: str = ""  # the key's name or fingerprint, or the certificate's subject
    reference: str = ""  # the repository that it names
    digest: str = ""
    annotations: dict[str, str] = {}
    reason: Reason | Literal[""] = ""
    sentence: str = ""
    until_s: float = 0  # a certificate's end, where it has to hold now


class Verdict(Model, frozen=True, kw_only=True):
    """The answer: the first good signature decides; otherwise the reason that comes closest."""

    signed: bool
    reason: Reason | Literal[""] = ""
    sentence: str = ""
    findings: tuple[Finding, ...] = ()
    until_s: float = 0  # when a good answer has to be asked for again; 0: never


def check_size(signature: Signature) -> Signature:
    """The same. Raises Invalid for one that is too large to be kept."""
    if len(signature.content) > CONTENT_MAX:
        raise Invalid(
            f"a signature's content has up to {CONTENT_MAX} bytes, this one has {len(signature.content)}"
        )
    size = sum(len(k.encode()) + len(v.encode()) for k, v in signature.annotations.items())
    if size > ANNOTATIONS_MAX:
        raise Invalid(f"a signature's annotations have up to {ANNOTATIONS_MAX} bytes, these have {size}")
    return signature


def encode_signature(signature: Signature) -> bytes:
    """As the store's value; the same signature gives the same bytes."""
    ordered = msgspec.structs.replace(signature, annotations=dict(sorted(signature.annotations.items())))
    return msgspec.json.encode(ordered)


def decode_signature(data: bytes) -> Signature:
    """What `encode_signature` wrote. Raises msgspec's errors."""
    return msgspec.json.decode(data, type=Signature)
