"""The entry of a transparency log that comes with a signature: what it proves with the log's key. Pure but for the key.

cosign's annotation `bundle` has the entry and the log's promise (a *signed entry timestamp*: the log's signature of the
entry in canonical JSON, RFC 8785); the entry names the signature, the key or certificate and the payload's SHA-256
(sigstore/rekor, pkg/types/hashedrekord). Whether the log really has the entry (its inclusion proof) isn't asked.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cove.model.errors import Invalid
from cove.signing.keys import PublicKey


class _Entry(msgspec.Struct):
    body: str
    integrated_time: int = msgspec.field(name="integratedTime")
    index: int = msgspec.field(name="logIndex")
    log_id: str = msgspec.field(name="logID")


class _Promise(msgspec.Struct):
    timestamp: bytes = msgspec.field(name="SignedEntryTimestamp")
    payload: _Entry = msgspec.field(name="Payload")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """An entry as it came: its time is nothing before `check_entry` has said so."""

    body: bytes
    time_s: int
    index: int
    log_id: str  # hex
    promise: bytes


def parse_entry(text: str) -> LogEntry:
    """cosign's annotation. Raises Invalid."""
    try:
        found = msgspec.json.decode(text, type=_Promise)
        body = base64.b64decode(found.payload.body, validate=True)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Invalid(f"the transparency log's entry is malformed: {error}") from None
    entry = found.payload
    return LogEntry(
        body=body,
        time_s=entry.integrated_time,
        index=entry.index,
        log_id=entry.log_id,
        promise=found.timestamp,
    )


def check_entry(entry: LogEntry, log_key: PublicKey, *, signature: bytes, content: bytes) -> str:
    """Why the entry doesn't show that the log saw this signature at its time; "" if it does."""
    canonical = msgspec.json.encode(
        {
            "body": base64.b64encode(entry.body).decode(),
            "integratedTime": entry.time_s,
            "logID": entry.log_id,
            "logIndex": entry.index,
        }
    )  # in the order of RFC 8785, and without any text that would need its escapes
    if not log_key.verifies(entry.promise, canonical):
        return "the transparency log's key didn't sign its entry"
    if entry.log_id != _log_id(log_key):
        return "the transparency log's entry is of another log"
    try:
        body: Any = msgspec.json.decode(entry.body)
        spec = body["spec"]
        logged = base64.b64decode(spec["signature"]["content"], validate=True)
        digest = spec["data"]["hash"]["value"]
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError, RecursionError):
        return "the transparency log's entry is of a kind that isn't supported, expected a hashedrekord"
    if body.get("kind") != "hashedrekord":
        return f"the transparency log's entry is of the kind {str(body.get('kind'))[:40]!r}, expected a hashedrekord"
    if logged != signature or digest != hashlib.sha256(content).hexdigest():
        return "the transparency log's entry is about another signature"
    return ""


def _log_id(key: PublicKey) -> str:
    return hashlib.sha256(key.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
