"""Tokens of the registry's own: signed words that say who somebody is and what they may do, for five minutes. Pure.

    base64url(JSON) . base64url(HMAC-SHA256 of that)

What they may do is what the policy allowed when the token was given, and no more than was asked for (scopes, as in
distribution's docs/content/spec/auth/scope.md: repository:NAME:pull,push).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from collections.abc import Iterable

import msgspec

from cove.registry.access import ACTIONS, Caller, Policy
from cove.registry.names import parse_name
from cove.registry.refusals import Refused

LIFETIME_S = 300
SCOPES_MAX = 50


class _Claims(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    until_s: float
    grants: list[tuple[str, list[str]]]
    catalog: bool = False


class Tokens:
    """One server's tokens; another start has another key."""

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key or secrets.token_bytes(32)

    def give(self, policy: Policy, name: str, scopes: Iterable[str], now_s: float) -> str:
        """A token for what is both asked for and allowed."""
        grants: dict[str, set[str]] = {}
        catalog = False
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            repository, _, actions = rest.rpartition(":")
            if kind == "registry" and repository == "catalog":
                catalog = True
            if kind.partition("(")[0] != "repository":
                continue
            try:
                parse_name(repository)
            except Refused:
                continue
            wanted = set(ACTIONS) if "*" in actions.split(",") else set(actions.split(",")) & set(ACTIONS)
            allowed = {each for each in wanted if policy.may(Caller(name=name), each, repository)}
            grants.setdefault(repository, set()).update(allowed)
        claims = _Claims(
            name=name,
            until_s=now_s + LIFETIME_S,
            grants=[(each, sorted(actions)) for each, actions in sorted(grants.items())],
            catalog=catalog,
        )
        body = _encode(msgspec.json.encode(claims))
        return f"{body}.{_encode(self._sign(body))}"

    def read(self, token: str, now_s: float) -> Caller | None:
        """Who a token speaks for; None: it isn't one of ours, or too old."""
        body, dot, signature = token.partition(".")
        try:
            if not dot or not hmac.compare_digest(_decode(signature), self._sign(body)):
                return None
            claims = msgspec.json.decode(_decode(body), type=_Claims)
        except (ValueError, binascii.Error, msgspec.MsgspecError):
            return None
        if claims.until_s < now_s:
            return None
        grants = tuple((each, frozenset(actions)) for each, actions in claims.grants)
        return Caller(name=claims.name, grants=grants, catalog=claims.catalog)

    def _sign(self, body: str) -> bytes:
        return hmac.digest(self._key, body.encode(), "sha256")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
