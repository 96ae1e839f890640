"""Sigstore bundles: a signature and what it is checked with, in one JSON document (protobuf-specs, bundle.proto).

Of a bundle two kinds of content are known: a DSSE envelope whose statement names the image, which is what cosign 3
writes, and a bare signature of the image's manifest. Both are read; the first is written.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import msgspec

from cove.model.errors import Invalid
from cove.signing.pem import format_pem
from cove.signing.types import BUNDLE_TYPE

STATEMENT_TYPE = "application/vnd.in-toto+json"
_VERSIONS = (
    BUNDLE_TYPE,
    "application/vnd.dev.sigstore.bundle+json;version=0.1",
    "application/vnd.dev.sigstore.bundle+json;version=0.2",
    "application/vnd.dev.sigstore.bundle+json;version=0.3",
)


class _Certificate(msgspec.Struct):
    raw: bytes = msgspec.field(name="rawBytes")


class _Chain(msgspec.Struct):
    certificates: list[_Certificate]


class _Key(msgspec.Struct):
    hint: str = ""


class _LogId(msgspec.Struct):
    key_id: bytes = msgspec.field(name="keyId", default=b"")


class _Promise(msgspec.Struct):
    timestamp: bytes = msgspec.field(name="signedEntryTimestamp")


class _Entry(msgspec.Struct):
    body: bytes = msgspec.field(name="canonicalizedBody", default=b"")
    time: str | int = msgspec.field(name="integratedTime", default=0)
    index: str | int = msgspec.field(name="logIndex", default=0)
    log_id: _LogId | None = msgspec.field(name="logId", default=None)
    promise: _Promise | None = msgspec.field(name="inclusionPromise", default=None)


class _Material(msgspec.Struct):
    certificate: _Certificate | None = None
    chain: _Chain | None = msgspec.field(name="x509CertificateChain", default=None)
    key: _Key | None = msgspec.field(name="publicKey", default=None)
    entries: list[_Entry] | None = msgspec.field(name="tlogEntries", default=None)


class _EnvelopeSignature(msgspec.Struct):
    sig: bytes
    keyid: str = ""


class _Envelope(msgspec.Struct):
    payload: bytes
    type: str = msgspec.field(name="payloadType")
    signatures: list[_EnvelopeSignature]


class _Digest(msgspec.Struct):
    algorithm: str
    digest: bytes


class _Message(msgspec.Struct):
    signature: bytes
    digest: _Digest | None = msgspec.field(name="messageDigest", default=None)


class _Bundle(msgspec.Struct):
    media_type: str = msgspec.field(name="mediaType")
    material: _Material = msgspec.field(name="verificationMaterial")
    envelope: _Envelope | None = msgspec.field(name="dsseEnvelope", default=None)
    message: _Message | None = msgspec.field(name="messageSignature", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle, read. `statement` is the envelope's payload; without one the manifest itself was signed."""

    signature: bytes
    statement: bytes | None
    certificate: str = ""  # PEM
    chain: str = ""

    def signed(self, manifest: bytes) -> bytes:
        """The bytes that the signature is of."""
        return encode_pae(STATEMENT_TYPE, self.statement) if self.statement is not None else manifest


def encode_pae(kind: str, payload: bytes) -> bytes:
    """What a DSSE signature is of (secure-systems-lab/dsse, protocol.md)."""
    return f"DSSEv1 {len(kind.encode())} {kind} {len(payload)} ".encode() + payload


def parse_bundle(data: bytes) -> Bundle:
    """Raises Invalid for what isn't one, or has another content."""
    try:
        found = msgspec.json.decode(data, type=_Bundle)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the signature's bundle is malformed: {error}") from None
    if found.media_type not in _VERSIONS:
        raise Invalid(f"the bundle is of the type {found.media_type[:100]!r}, expected {BUNDLE_TYPE}")
    material = found.material
    certificates = [one.raw for one in material.chain.certificates] if material.chain else []
    if material.certificate is not None:
        certificates.insert(0, material.certificate.raw)
    certificate = format_pem("CERTIFICATE", certificates[0]) if certificates else ""
    chain = "".join(format_pem("CERTIFICATE", one) for one in certificates[1:])
    if found.envelope is not None:
        if len(found.envelope.signatures) != 1 or found.envelope.type != STATEMENT_TYPE:
            raise Invalid("the bundle's envelope needs one signature of an in-toto statement")
        return Bundle(
            signature=found.envelope.signatures[0].sig,
            statement=found.envelope.payload,
            certificate=certificate,
            chain=chain,
        )
    if found.message is not None:
        return Bundle(signature=found.message.signature, statement=None, certificate=certificate, chain=chain)
    raise Invalid("the bundle has neither dsseEnvelope nor messageSignature")


def build_bundle(statement: bytes, signature: bytes, *, hint: str = "", certificate: bytes = b"") -> bytes:
    """A bundle of a signed statement; `certificate` is DER, else `hint` tells which key it was."""
    material: dict[str, Any] = (
        {"certificate": {"rawBytes": base64.b64encode(certificate).decode()}}
        if certificate
        else {"publicKey": {"hint": hint}}
    )
    return msgspec.json.encode(
        {
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": material,
            "dsseEnvelope": {
                "payload": base64.b64encode(statement).decode(),
                "payloadType": STATEMENT_TYPE,
                "signatures": [{"sig": base64.b64encode(signature).decode()}],
            },
        }
    )
