"""Users' passwords: files in, answers out.

Taken are Apache's htpasswd files with bcrypt (`htpasswd -B`: $2y$, $2b$, $2a$), and the hashes of crypt(5) that
libxcrypt knows and that are slow to guess: yescrypt ($y$), sha512crypt ($6$), sha256crypt ($5$). Refused by name: MD5
($apr1$, $1$), unsalted SHA-1 ({SHA}), DES and cleartext. A password file of `--user` holds the password itself, in
its first line. The hashing is libcrypt's crypt_r(3), in a thread: it takes tens of milliseconds, on purpose.
"""

from __future__ import annotations

import contextlib
import ctypes
import hmac
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from cove.model.errors import Invalid, Unavailable

FILE_BYTES_MAX = 4 << 20
PASSWORD_BYTES_MAX = 1024
_DATA_BYTES = 64 << 10  # struct crypt_data has 32768
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}", re.ASCII)
_KINDS = ("$2a$", "$2b$", "$2y$", "$5$", "$6$", "$y$")
_DUMMY = "$2y$10$abcdefghijklmnopqrstuuO4PE/aE5aBEGi8q6ciCHQ7KyO3Z4mmG"  # of nobody: what an unknown user is checked by


class Passwords:
    """Users by name, each with a hash, or a password of its own file."""

    def __init__(self) -> None:
        self._hashes: dict[str, str] = {}
        self._plain: dict[str, bytes] = {}
        self._key = secrets.token_bytes(32)
        self._crypt: Callable[[bytes, str], str] | None = None

    def __bool__(self) -> bool:
        return bool(self._hashes or self._plain)

    def add_htpasswd(self, path: Path) -> None:
        """Raises Invalid with the line that isn't taken."""
        for number, line in enumerate(_read(path, "--htpasswd").splitlines(), 1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            name, colon, hashed = text.partition(":")
            where = f"--htpasswd {path}, line {number}"
            if not colon or not _NAME.fullmatch(name):
                raise Invalid(f"{where}: expected NAME:HASH, with a name of letters, digits and . _ @ + -")
            if not hashed.startswith(_KINDS):
                raise Invalid(
                    f"{where}: {name}'s hash is of a kind that isn't taken; make it anew with htpasswd -B, or with "
                    "mkpasswd (yescrypt, sha512crypt)"
                )
            self._hashes[name] = hashed
        if self._hashes:
            self._crypt = _load_crypt()

    def add_user(self, text: str) -> None:
        """`NAME:FILE`. Raises Invalid."""
        name, colon, path = text.partition(":")
        if not colon or not _NAME.fullmatch(name):
            raise Invalid(f"--user {text[:80]}: expected NAME:FILE, e.g. ci:/etc/cove/ci.password")
        password = (_read(Path(path), "--user").splitlines() or [""])[0]
        if not password:
            raise Invalid(f"--user {name}: {path} has no password in its first line")
        self._plain[name] = self._digest(password.encode())

    def add(self, name: str, password: str) -> None:
        """A user of this process's own."""
        self._plain[name] = self._digest(password.encode())

    def check(self, name: str, password: bytes) -> bool:
        """Whether this is the user's password. As slow for a user that doesn't exist. Blocks: for a thread."""
        if len(password) > PASSWORD_BYTES_MAX or b"\0" in password:
            return False
        right = False
        if self._crypt is not None:
            hashed = self._hashes.get(name, _DUMMY)
            right = hmac.compare_digest(self._crypt(password, hashed), hashed) and name in self._hashes
        same = hmac.compare_digest(self._plain.get(name, b""), self._digest(password))
        return right or same

    def _digest(self, password: bytes) -> bytes:
        return hmac.digest(self._key, password, "sha256")


def _read(path: Path, flag: str) -> str:
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise Invalid(f"{flag} {path}: larger than {FILE_BYTES_MAX >> 20} MiB")
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it isn't UTF-8"
        raise Invalid(f"{flag} {path}: {reason}") from None


def _load_crypt() -> Callable[[bytes, str], str]:
    """crypt_r(3). Raises Unavailable without libcrypt."""
    library = None
    for name in ("libcrypt.so.1", "libcrypt.so.2"):
        with contextlib.suppress(OSError):
            library = library or ctypes.CDLL(name)
    if library is None:
        raise Unavailable(
            "--htpasswd needs libcrypt.so.1; install it (Debian: libcrypt1), or use --user NAME:FILE"
        )
    crypt_r = library.crypt_r
    crypt_r.restype = ctypes.c_char_p
    crypt_r.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)

    def crypt(password: bytes, setting: str) -> str:
        data = ctypes.create_string_buffer(_DATA_BYTES)
        found: bytes | None = crypt_r(password, setting.encode(), data)
        return (found or b"*0").decode("latin-1")

    return crypt


def is_name(text: str) -> bool:
    """Whether this can be a user's name."""
    return _NAME.fullmatch(text) is not None


def parse_names(names: Sequence[str]) -> None:
    """Raises Invalid for what can't be a user's name in a rule."""
    for name in names:
        if name not in ("*", "@users") and not _NAME.fullmatch(name):
            raise Invalid(
                f"{name!r} is no user's name; there are also * (anybody) and @users (whoever has logged in)"
            )
