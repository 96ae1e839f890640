"""Who one is at a registry: challenges, and the tokens and passwords that answer them.

Sources: RFC 9110 (11.6.1), RFC 6750, and distribution's docs/content/spec/auth/{token,oauth}.md. A password goes to
the registry that asked for it and to the realm which that registry names, nowhere else; an identity token to the
realm only. The realm of a registry that is spoken to by https has to be https as well.
"""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

import msgspec

from cove.image.registry.endpoints import origin_of
from cove.model.errors import Invalid, Unauthorized, Unavailable

TOKEN_BYTES_MAX = 256 << 10
_LEAST_LIFE_S = 60.0  # token.md: a token that says nothing lives a minute
_EARLY_S = 5.0
_LONGEST_LIFE_S = 3600.0
_CHALLENGES_MAX = 16
_SCHEME = re.compile(r"\s*,?\s*([A-Za-z][A-Za-z0-9_-]*)(?:\s+|$)")
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z][A-Za-z0-9_-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))\s*')


class Credentials(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client gives for one registry; any of them may be missing."""

    username: str = ""
    password: str = ""
    identity_token: str = ""  # an OAuth2 refresh token
    registry_token: str = ""  # a Bearer token, used as it is

    def __repr__(self) -> str:
        return "Credentials(…)"

    @property
    def basic(self) -> str:
        """The value of a Basic authorization, or ""."""
        if not self.username and not self.password:
            return ""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to identify oneself that a registry offers; `scheme` in lower case."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""
    error: str = ""


def parse_challenges(values: Sequence[str]) -> list[Challenge]:
    """The challenges of WWW-Authenticate headers; what is malformed ends the reading of its header."""
    found: list[Challenge] = []
    for value in values[:_CHALLENGES_MAX]:
        place = 0
        while place < len(value) and len(found) < _CHALLENGES_MAX:
            match = _SCHEME.match(value, place)
            if match is None:
                break
            place = match.end()
            parameters: dict[str, str] = {}
            while (pair := _PARAMETER.match(value, place)) is not None:
                text = pair[2] if pair[2] is not None else pair[3]
                parameters.setdefault(pair[1].lower(), re.sub(r"\\(.)", r"\1", text))
                place = pair.end()
            wanted = {key: parameters.get(key, "") for key in ("realm", "service", "scope", "error")}
            found.append(Challenge(match[1].lower(), **wanted))
    return found


def choose_challenge(challenges: Sequence[Challenge]) -> Challenge | None:
    """The best one that Cove can answer: a token before a password."""
    for scheme in ("bearer", "basic"):
        for challenge in challenges:
            if challenge.scheme == scheme:
                return challenge
    return None


def check_realm(realm: str, asked_by: str) -> None:
    """Whether a token may be asked for at `realm`, which the registry at the URL `asked_by` named. Unavailable."""
    try:
        scheme, _, _ = origin_of(realm)
    except Invalid:
        scheme = ""
    host = urlsplit(asked_by).netloc
    if not scheme or not realm.isprintable():
        raise Unavailable(f"the registry {host} names no http or https address that gives tokens")
    if scheme == "http" and urlsplit(asked_by).scheme == "https":
        raise Unavailable(f"the registry {host} names a realm without TLS, which gets no credentials")


def merge_scopes(asked: str, wanted: str) -> str:
    """The scopes to ask for: the challenge's, and those that the work ahead needs, each once."""
    return " ".join(sorted({*asked.split(), *wanted.split()}))


class _TokenAnswer(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A Bearer token and when, on the monotonic clock, it stops being used."""

    text: str
    until_s: float

    def __repr__(self) -> str:
        return "Token(…)"


def parse_token(data: bytes, now_s: float) -> Token:
    """What a realm answered. Unavailable when there is no token in it."""
    try:
        answer = msgspec.json.decode(data, type=_TokenAnswer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Unavailable("the registry's token service gave no token: its answer is malformed") from None
    text = answer.token or answer.access_token or ""
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise Unavailable("the registry's token service gave no token")
    life_s = min(max(answer.expires_in or 0.0, _LEAST_LIFE_S), _LONGEST_LIFE_S)
    return Token(text, now_s + life_s - _EARLY_S)


Ask = Callable[
    [str, str, dict[str, str], bytes], tuple[int, bytes]
]  # method, URL, headers, body: status, body


class Authorizer:
    """The Authorization of requests to one endpoint. For several threads; `ask` is one exchange without any."""

    def __init__(
        self, url: str, credentials: Credentials, ask: Ask, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._url = url
        self._credentials = credentials
        self._ask = ask
        self._clock = clock
        self._lock = threading.Lock()
        self._challenge: Challenge | None = None
        self._tokens: dict[str, Token] = {}

    def header(self, scope: str) -> str:
        """The Authorization for a request that needs `scope`, as far as one is known to be wanted; else ""."""
        with self._lock:
            challenge = self._challenge
            if challenge is None:
                return ""
            if challenge.scheme == "basic":
                return self._credentials.basic
            return self._bearer(challenge, merge_scopes("", scope))

    def answer(self, challenges: Sequence[Challenge], scope: str, used: str) -> str:
        """The Authorization that answers a 401 on a request sent with `used`. Unauthorized: there is none."""
        challenge = choose_challenge(challenges)
        if challenge is None:
            raise Unauthorized("the registry asks for an identification that Cove doesn't know")
        with self._lock:
            if challenge.scheme == "basic":
                self._challenge = challenge
                if not self._credentials.basic:
                    raise Unauthorized("no basic auth credentials")
                if used:
                    raise Unauthorized("unknown user, or wrong password")
                return self._credentials.basic
            check_realm(challenge.realm, self._url)
            key = merge_scopes(challenge.scope, scope)
            known = self._tokens.get(key)
            if known is not None and used == f"Bearer {known.text}":
                del self._tokens[key]  # it was taken back, or it isn't enough
            self._challenge = challenge
            return self._bearer(challenge, key)

    def _bearer(self, challenge: Challenge, key: str) -> str:
        if self._credentials.registry_token:
            return f"Bearer {self._credentials.registry_token}"
        known = self._tokens.get(key)
        if known is None or known.until_s <= self._clock():
            known = self._tokens[key] = self._fetch(challenge, key)
        return f"Bearer {known.text}"

    def _fetch(self, challenge: Challenge, scope: str) -> Token:
        credentials = self._credentials
        if credentials.identity_token:
            form = {
                "grant_type": "refresh_token",
                "service": challenge.service,
                "client_id": "cove",
                "scope": scope,
                "refresh_token": credentials.identity_token,
            }
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            status, data = self._ask("POST", challenge.realm, headers, urlencode(form).encode())
        else:
            query: list[tuple[str, str]] = [("service", challenge.service)] if challenge.service else []
            query += [("scope", one) for one in scope.split()]
            headers = {}
            if credentials.basic:
                query.append(("account", credentials.username))
                headers["Authorization"] = credentials.basic
            realm = challenge.realm.partition("#")[0]
            url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}" if query else realm
            status, data = self._ask("GET", url, headers, b"")
        if status in (400, 401, 403):
            raise Unauthorized("the registry's token service refused: unknown user, or wrong password")
        if status != 200:
            raise Unavailable(f"the registry's token service answered with the status {status}")
        return parse_token(data, self._clock())
