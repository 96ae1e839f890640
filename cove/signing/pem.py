"""PEM texts from strangers, bounded: what blocks there are (RFC 7468). Pure, and without cryptography."""

from __future__ import annotations

import base64
import binascii
import re

from cove.model.errors import Invalid

TEXT_MAX = 64 << 10
BLOCKS_MAX = 16
_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,64})-----([A-Za-z0-9+/=\s]*?)-----END \1-----")


def parse_pem(text: str, what: str) -> list[tuple[str, bytes]]:
    """Every block: its label and its content. Raises Invalid, naming `what`, for a text with none or too many."""
    if len(text) > TEXT_MAX:
        raise Invalid(f"{what}: a PEM text has up to {TEXT_MAX} characters, this one has {len(text)}")
    found: list[tuple[str, bytes]] = []
    for match in _BLOCK.finditer(text):
        if len(found) == BLOCKS_MAX:
            raise Invalid(f"{what}: more than {BLOCKS_MAX} PEM blocks in one text")
        try:
            found.append((match[1], base64.b64decode("".join(match[2].split()), validate=True)))
        except binascii.Error:
            raise Invalid(f"{what}: the PEM block {match[1]} isn't base64") from None
    if not found:
        raise Invalid(f"{what}: expected a PEM text, which begins with -----BEGIN")
    return found


def format_pem(label: str, content: bytes) -> str:
    """One block."""
    encoded = base64.b64encode(content).decode()
    lines = [encoded[at : at + 64] for at in range(0, len(encoded), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])
