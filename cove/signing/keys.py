"""Keys: ECDSA on P-256 and Ed25519, from PEM and to it, and what they sign.

Private keys: PKCS #8 (RFC 5958), SEC 1 (RFC 5915), and cosign's encrypted ones: a PKCS #8 key in a secretbox whose key
scrypt makes of a password (sigstore/cosign, pkg/cosign/keys.go; secure-systems-lab/go-securesystemslib, encrypted).
A signature of ECDSA is ASN.1 DER over SHA-256, one of Ed25519 is the plain kind (RFC 8032, not Ed25519ph).
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from dataclasses import dataclass
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

from cove.model.errors import Invalid, Unauthorized
from cove.signing import salsa
from cove.signing.pem import format_pem, parse_pem

Kind = Literal["ecdsa-p256", "ed25519"]
KINDS: tuple[Kind, ...] = ("ecdsa-p256", "ed25519")
ENCRYPTED = ("ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY")
_PLAIN = ("PRIVATE KEY", "EC PRIVATE KEY")
# (N, r, p): those that the library of the format knows; others would let a file choose how long we compute
_SCRYPT = ((1 << 15, 8, 1), (1 << 16, 8, 1), (1 << 17, 8, 1))
_SCRYPT_MEMORY = 256 << 20
_NO_KEY = "a key is ECDSA on P-256 or Ed25519, e.g. one that `cove key generate` makes"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key that signatures are checked with."""

    key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

    @property
    def pem(self) -> str:
        """As SubjectPublicKeyInfo in PEM."""
        return format_pem("PUBLIC KEY", self._der)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of its SubjectPublicKeyInfo, in hex: how people tell keys apart."""
        return hashlib.sha256(self._der).hexdigest()

    @property
    def _der(self) -> bytes:
        return self.key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether this key made the signature of these bytes."""
        try:
            if isinstance(self.key, ed25519.Ed25519PublicKey):
                self.key.verify(signature, data)
            else:
                self.key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A private key; nothing shows it."""

    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"PrivateKey({self.public.fingerprint[:12]})"

    @property
    def public(self) -> PublicKey:
        return PublicKey(self.key.public_key())

    def sign(self, data: bytes) -> bytes:
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            return self.key.sign(data)
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))


def generate_key(kind: Kind) -> PrivateKey:
    """A new key."""
    if kind == "ed25519":
        return PrivateKey(ed25519.Ed25519PrivateKey.generate())
    return PrivateKey(ec.generate_private_key(ec.SECP256R1()))


def parse_public_key(text: str, what: str) -> PublicKey:
    """A public key in PEM. Raises Invalid, naming `what`."""
    blocks = parse_pem(text, what)
    label, content = blocks[0]
    if len(blocks) != 1 or label != "PUBLIC KEY":
        hint = "it holds a private key: give the public one" if label.endswith("PRIVATE KEY") else _NO_KEY
        raise Invalid(f"{what}: expected one PEM block PUBLIC KEY, found {label}; {hint}")
    try:
        found = serialization.load_der_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise Invalid(f"{what}: the block PUBLIC KEY isn't a key that can be read; {_NO_KEY}") from None
    return public_key(found, what)


def public_key(found: PublicKeyTypes, what: str) -> PublicKey:
    """A key of the cryptography package as ours. Raises Invalid for another kind."""
    if isinstance(found, ed25519.Ed25519PublicKey):
        return PublicKey(found)
    if isinstance(found, ec.EllipticCurvePublicKey) and isinstance(found.curve, ec.SECP256R1):
        return PublicKey(found)
    raise Invalid(f"{what}: {_describe(found)} isn't supported; {_NO_KEY}")


def is_encrypted(text: str, what: str) -> bool:
    """Whether a private key's PEM needs a password. Raises Invalid."""
    return parse_pem(text, what)[0][0] in ENCRYPTED


def parse_private_key(text: str, password: bytes, what: str) -> PrivateKey:
    """A private key in PEM; `password` counts for an encrypted one. Raises Invalid, Unauthorized (the password)."""
    blocks = [block for block in parse_pem(text, what) if block[0] != "EC PARAMETERS"]
    if len(blocks) != 1:
        raise Invalid(f"{what}: expected one private key, found {len(blocks)} PEM blocks")
    label, content = blocks[0]
    if label in ENCRYPTED:
        content = _decrypted(content, password, what)
    elif label not in _PLAIN:
        raise Invalid(f"{what}: expected a private key, found the PEM block {label}; {_NO_KEY}")
    try:
        found: PrivateKeyTypes = serialization.load_der_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Invalid(f"{what}: the block {label} isn't a private key that can be read; {_NO_KEY}") from None
    if isinstance(found, ed25519.Ed25519PrivateKey):
        return PrivateKey(found)
    if isinstance(found, ec.EllipticCurvePrivateKey) and isinstance(found.curve, ec.SECP256R1):
        return PrivateKey(found)
    raise Invalid(f"{what}: {_describe(found)} isn't supported; {_NO_KEY}")


def format_private_key(key: PrivateKey, password: bytes) -> str:
    """The key as cosign writes it, encrypted with the password (which may be empty)."""
    plain = key.key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    n, r, p = _SCRYPT[1]
    salt, nonce = secrets.token_bytes(32), secrets.token_bytes(salsa.NONCE_BYTES)
    box = salsa.seal(plain, nonce, _derived(password, salt, n, r, p))
    document = {
        "kdf": {
            "name": "scrypt",
            "params": {"N": n, "r": r, "p": p},
            "salt": base64.b64encode(salt).decode(),
        },
        "cipher": {"name": "nacl/secretbox", "nonce": base64.b64encode(nonce).decode()},
        "ciphertext": base64.b64encode(box).decode(),
    }
    return format_pem(ENCRYPTED[0], msgspec.json.encode(document))


class _Parameters(msgspec.Struct):
    n: int = msgspec.field(name="N")
    r: int
    p: int


class _Kdf(msgspec.Struct):
    name: str
    params: _Parameters
    salt: bytes


class _Cipher(msgspec.Struct):
    name: str
    nonce: bytes


class _Box(msgspec.Struct):
    kdf: _Kdf
    cipher: _Cipher
    ciphertext: bytes


def _decrypted(content: bytes, password: bytes, what: str) -> bytes:
    try:
        box = msgspec.json.decode(content, type=_Box)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"{what}: the encrypted key is malformed: {error}") from None
    chosen = (box.kdf.params.n, box.kdf.params.r, box.kdf.params.p)
    if box.kdf.name != "scrypt" or chosen not in _SCRYPT:
        raise Invalid(
            f"{what}: it is encrypted with {box.kdf.name[:32]} {chosen}, expected scrypt (65536, 8, 1)"
        )
    if box.cipher.name != "nacl/secretbox" or len(box.cipher.nonce) != salsa.NONCE_BYTES:
        raise Invalid(
            f"{what}: it is encrypted with {box.cipher.name[:32]}, expected nacl/secretbox and its nonce of 24 bytes"
        )
    plain = salsa.unseal(box.ciphertext, box.cipher.nonce, _derived(password, box.kdf.salt, *chosen))
    if plain is None:
        raise Unauthorized(f"{what}: the password isn't this key's, or the file was changed")
    return plain


def _derived(password: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, dklen=salsa.KEY_BYTES, maxmem=_SCRYPT_MEMORY)


def _describe(found: object) -> str:
    if isinstance(found, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        return f"a key on the curve {found.curve.name}"
    return f"a key of the kind {type(found).__name__.removeprefix('_').removesuffix('Key')}"
