"""What the registry refuses: a status, one of the specification's codes, and a sentence.

The specification ("Error Codes") has a closed list of codes; the sentence says which value is wrong and which works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cove.api.http import JSON, Response, encode_json

CODES = frozenset(
    "BLOB_UNKNOWN BLOB_UPLOAD_INVALID BLOB_UPLOAD_UNKNOWN DIGEST_INVALID MANIFEST_BLOB_UNKNOWN MANIFEST_INVALID "
    "MANIFEST_UNKNOWN NAME_INVALID NAME_UNKNOWN SIZE_INVALID UNAUTHORIZED DENIED UNSUPPORTED TOOMANYREQUESTS".split()
)


class Refused(Exception):
    """Ends a request with an answer of its own; `details` makes an error of each, with the same code."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        details: Sequence[object] = (),
    ) -> None:
        assert code in CODES, code
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers, self.details = headers, details

    def response(self) -> Response:
        """The answer that says it."""
        error: dict[str, object] = {"code": self.code, "message": visible(self.message)}
        errors = [{**error, "detail": detail} for detail in self.details] or [error]
        return Response(self.status, encode_json({"errors": errors}) + b"\n", JSON, self.headers)


def visible(text: str) -> str:
    """Without control characters: what strangers wrote ends up on terminals."""
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text)


def refuse_http(status: int, message: str) -> Response:
    """What is refused before there is a request: malformed HTTP, a crashed handler."""
    return Refused(status, "UNSUPPORTED", message).response()


def not_found(message: str) -> Refused:
    return Refused(404, "NAME_UNKNOWN", message)


def invalid_name(message: str) -> Refused:
    return Refused(400, "NAME_INVALID", message)


def invalid_digest(message: str) -> Refused:
    return Refused(400, "DIGEST_INVALID", message)


def unknown_repository(name: str) -> Refused:
    return Refused(404, "NAME_UNKNOWN", f"there is no repository {name}: a push makes one")


def unknown_blob(name: str, digest: str) -> Refused:
    return Refused(404, "BLOB_UNKNOWN", f"{name} has no blob {digest}")


def unknown_manifest(name: str, reference: str) -> Refused:
    return Refused(404, "MANIFEST_UNKNOWN", f"{name} has no manifest {reference}")


def unknown_upload() -> Refused:
    return Refused(
        404, "BLOB_UPLOAD_UNKNOWN", "no such upload: it is complete, was cancelled or expired, or never was"
    )


def full_disk(message: str) -> Refused:
    return Refused(507, "DENIED", message)
