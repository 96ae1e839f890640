"""Keys: read and written as cosign has them, and nothing else taken for one."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.model.errors import CoveError, Invalid, Unauthorized
from cove.signing import salsa
from cove.signing.keys import (
    KINDS,
    Kind,
    format_private_key,
    generate_key,
    is_encrypted,
    parse_private_key,
    parse_public_key,
)
from cove.signing.pem import format_pem, parse_pem

# made by cosign 2.6.5: COSIGN_PASSWORD=open-sesame cosign generate-key-pair
COSIGN_KEY = """\
-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----
eyJrZGYiOnsibmFtZSI6InNjcnlwdCIsInBhcmFtcyI6eyJOIjo2NTUzNiwiciI6
OCwicCI6MX0sInNhbHQiOiJQbURhcFFyZ0hSL1VKdE9SNkJFbndVL0pTOVJFdUxz
eEY5d2FuYytvTkVRPSJ9LCJjaXBoZXIiOnsibmFtZSI6Im5hY2wvc2VjcmV0Ym94
Iiwibm9uY2UiOiJlb1dtYmlZNXkyK0h3Tm9kMHRTa2tpL0E4b0plWW00RyJ9LCJj
aXBoZXJ0ZXh0IjoidmtxVEF2SjBqUHRqN3dPN0xhTzU3NGpCelFya1dzRmduN1Rv
Y0IxUDBEeGRVYy9rTnhPaWd2c25HSDdYYTlzbVBKbzIyeXJ3VjMxUkRWQ3VQU1Fi
bFhDWXMvQWQrY3drQ21mRVNJN0lRbzRhb3VqN3FDb1paYXh6TUs5MUVhVmlrSCtS
REFGajR1V0xBUkZUUmpIdU81dHNuQnI2Rm1zLzhMbDJPOGcxYVJOU0dTaXZsY2w5
QjVXWDloRFFnVnNWei8yaVIxbVEzWjNRYVE9PSJ9
-----END ENCRYPTED SIGSTORE PRIVATE KEY-----
"""
COSIGN_PUBLIC = """\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAESwY+o+9ZF3IdMrsyhfyjyWQiMFQk
bdKVzRZ9I5mNOcIrmKivafXTZZiv2dwBZAg2a3+xBwC9WW0LW6LYXGT67g==
-----END PUBLIC KEY-----
"""

# NaCl's own example (nacl-20110221, tests/secretbox.c)
BOX_KEY = bytes.fromhex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389")
BOX_NONCE = bytes.fromhex("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37")
BOX_MESSAGE = bytes.fromhex(
    "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffce5ecbaaf33bd751a1ac728d45e6c61296cdc3c01233561f4"
    "1db66cce314adb310e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde048977eb48f59ffd4924ca1c60902e52"
    "f0a089bc76897040e082f937763848645e0705"
)
BOX = bytes.fromhex(
    "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186ac0dfc17c98dce87b"
    "4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae90224368517acfeabd6bb3732bc0e9da"
    "99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74e355a5"
)


def test_secretbox_is_nacls() -> None:
    assert salsa.seal(BOX_MESSAGE, BOX_NONCE, BOX_KEY) == BOX
    assert salsa.unseal(BOX, BOX_NONCE, BOX_KEY) == BOX_MESSAGE
    for changed in (bytes([BOX[0] ^ 1]) + BOX[1:], BOX[:-1], BOX[:-1] + bytes([BOX[-1] ^ 1]), b""):
        assert salsa.unseal(changed, BOX_NONCE, BOX_KEY) is None


def test_a_key_of_cosigns_opens_with_its_password_alone() -> None:
    assert is_encrypted(COSIGN_KEY, "v.key")
    key = parse_private_key(COSIGN_KEY, b"open-sesame", "v.key")
    assert key.public.pem == COSIGN_PUBLIC
    with pytest.raises(Unauthorized, match=r"v\.key: the password isn't this key's, or the file was changed"):
        parse_private_key(COSIGN_KEY, b"open-sesam", "v.key")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_again(kind: Kind) -> None:
    key = generate_key(kind)
    again = parse_private_key(format_private_key(key, b"pw"), b"pw", "k")
    public = parse_public_key(key.public.pem, "k.pub")
    signature = again.sign(b"payload")
    assert public.verifies(signature, b"payload")
    assert not public.verifies(signature, b"payloaf")
    assert not generate_key(kind).public.verifies(signature, b"payload")
    assert len(public.fingerprint) == 64
    assert "PRIVATE" not in repr(key) and key.public.fingerprint[:12] in repr(key)


@pytest.mark.parametrize(
    "form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL]
)
def test_plain_keys_of_openssl_are_read(form: serialization.PrivateFormat) -> None:
    made = ec.generate_private_key(ec.SECP256R1())
    text = made.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
    parameters = format_pem("EC PARAMETERS", bytes.fromhex("06082a8648ce3d030107"))
    assert not is_encrypted(text, "k")
    assert parse_private_key(parameters + text, b"", "k").public.verifies(
        made.sign(b"x", ec.ECDSA(__import__("cryptography").hazmat.primitives.hashes.SHA256())), b"x"
    )


def test_other_kinds_of_keys_are_refused_by_name() -> None:
    curve = ec.generate_private_key(ec.SECP384R1())
    ring = rsa.generate_private_key(65537, 2048)
    for made, words in ((curve, "a key on the curve secp384r1"), (ring, "a key of the kind RSA")):
        private = made.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        public = (
            made.public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            .decode()
        )
        with pytest.raises(
            Invalid, match=f"k: {words}.* isn't supported; a key is ECDSA on P-256 or Ed25519"
        ):
            parse_private_key(private, b"", "k")
        with pytest.raises(Invalid, match=f"k: {words}.* isn't supported"):
            parse_public_key(public, "k")


def test_a_private_key_is_no_public_one() -> None:
    with pytest.raises(Invalid, match="it holds a private key: give the public one"):
        parse_public_key(format_private_key(generate_key("ed25519"), b""), "k")
    with pytest.raises(Invalid, match="expected a private key, found the PEM block PUBLIC KEY"):
        parse_private_key(COSIGN_PUBLIC, b"", "k")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "expected a PEM text"),
        ("x" * 70_000, "up to 65536 characters"),
        ("-----BEGIN PUBLIC KEY-----\nAAA\n-----END PUBLIC KEY-----", "isn't base64"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "isn't a key that can be read"),
        (format_pem("A", b"x") * 17, "more than 16 PEM blocks"),
        (format_pem("PUBLIC KEY", b"x") * 2, "expected one PEM block PUBLIC KEY"),
    ],
)
def test_texts_that_are_no_public_key(text: str, sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence):
        parse_public_key(text, "k.pub")


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (b"{", "is malformed"),
        (b'{"kdf":1}', "is malformed"),
        (
            b'{"kdf":{"name":"scrypt","params":{"N":1073741824,"r":8,"p":1},"salt":"AAAA"},'
            b'"cipher":{"name":"nacl/secretbox","nonce":"AAAA"},"ciphertext":"AAAA"}',
            r"scrypt \(1073741824, 8, 1\), expected scrypt \(65536, 8, 1\)",
        ),
        (
            b'{"kdf":{"name":"scrypt","params":{"N":65536,"r":8,"p":1},"salt":"AAAA"},'
            b'"cipher":{"name":"nacl/secretbox","nonce":"AAAA"},"ciphertext":"AAAA"}',
            "its nonce of 24 bytes",
        ),
    ],
)
def test_a_file_does_not_choose_how_long_it_takes(document: bytes, sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence):
        parse_private_key(format_pem("ENCRYPTED SIGSTORE PRIVATE KEY", document), b"", "k")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300), st.sampled_from(["PUBLIC KEY", "PRIVATE KEY", "CERTIFICATE", "EC PRIVATE KEY"]))
def test_no_text_breaks_the_parsers(inner: str, label: str) -> None:
    for text in (
        inner,
        f"-----BEGIN {label}-----{inner}-----END {label}-----",
        format_pem(label, inner.encode()),
    ):
        for parse in (
            lambda t: parse_public_key(t, "k"),
            lambda t: parse_private_key(t, b"", "k"),
            lambda t: parse_pem(t, "k"),
        ):
            try:
                parse(text)
            except CoveError:
                pass


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_pem_is_written_as_it_is_read(content: bytes) -> None:
    assert parse_pem(format_pem("X", content), "k") == [("X", content)]
