"""NaCl's secretbox: the cipher that cosign's private keys are encrypted with. Pure.

XSalsa20 with Poly1305 (D. J. Bernstein, "Cryptography in NaCl", 2009; "Extending the Salsa20 nonce", 2011). A key file
has a few hundred bytes, so the cipher is plain Python; the authenticator is the cryptography package's.
"""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.poly1305 import Poly1305

KEY_BYTES, NONCE_BYTES, TAG_BYTES = 32, 24, 16
_CONSTANTS = struct.unpack("<4I", b"expand 32-byte k")
_MASK = 0xFFFFFFFF
# the columns, then the rows: each quarter round's four words (the Salsa20 specification, sections 3 to 7)
_ROUNDS = (
    (0, 4, 8, 12),
    (5, 9, 13, 1),
    (10, 14, 2, 6),
    (15, 3, 7, 11),
    (0, 1, 2, 3),
    (5, 6, 7, 4),
    (10, 11, 8, 9),
    (15, 12, 13, 14),
)


def seal(message: bytes, nonce: bytes, key: bytes) -> bytes:
    """The tag and the encrypted message, as crypto_secretbox gives them."""
    first = _stream(key, nonce, 32 + len(message))
    encrypted = bytes(a ^ b for a, b in zip(message, first[32:], strict=True))
    return Poly1305.generate_tag(first[:32], encrypted) + encrypted


def unseal(box: bytes, nonce: bytes, key: bytes) -> bytes | None:
    """The message; None where the key is another one, or the box was changed."""
    tag, encrypted = box[:TAG_BYTES], box[TAG_BYTES:]
    first = _stream(key, nonce, 32 + len(encrypted))
    try:
        Poly1305.verify_tag(first[:32], encrypted, tag)
    except InvalidSignature:
        return None
    return bytes(a ^ b for a, b in zip(encrypted, first[32:], strict=True))


def _stream(key: bytes, nonce: bytes, length: int) -> bytes:
    assert len(key) == KEY_BYTES and len(nonce) == NONCE_BYTES
    inner = _core(_words(key, nonce[:16]), added=False)
    subkey = struct.pack("<8I", *(inner[i] for i in (0, 5, 10, 15, 6, 7, 8, 9)))  # HSalsa20
    blocks = bytearray()
    for counter in range((length + 63) // 64):
        block = _core(_words(subkey, nonce[16:] + struct.pack("<Q", counter)), added=True)
        blocks += struct.pack("<16I", *block)
    return bytes(blocks[:length])


def _words(key: bytes, middle: bytes) -> list[int]:
    k, n, c = struct.unpack("<8I", key), struct.unpack("<4I", middle), _CONSTANTS
    return [c[0], *k[:4], c[1], *n, c[2], *k[4:], c[3]]


def _core(start: list[int], *, added: bool) -> list[int]:
    """Salsa20's 20 rounds; `added`: with the start added, as the stream cipher has it."""
    x = list(start)
    for _ in range(10):
        for a, b, c, d in _ROUNDS:
            x[b] ^= _rotated(x[a] + x[d], 7)
            x[c] ^= _rotated(x[b] + x[a], 9)
            x[d] ^= _rotated(x[c] + x[b], 13)
            x[a] ^= _rotated(x[d] + x[c], 18)
    return [(a + b) & _MASK for a, b in zip(x, start, strict=True)] if added else x


def _rotated(value: int, bits: int) -> int:
    value &= _MASK
    return ((value << bits) | (value >> (32 - bits))) & _MASK
