"""The registry's door: who a request comes from, and what is said to those who may not do what they ask for.

A caller is known by the name in its client certificate, by user and password (Basic), or by a token that this server
gave. Passwords that were right are remembered for some minutes, hashed with a key of this process, since each request
brings its password again and hashing takes long on purpose. Wrong ones are answered late, later with each one of that
client, and only so many at a time.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import logging
import secrets
import time
from collections import OrderedDict
from email.utils import formatdate
from urllib.parse import parse_qsl

from cove.api.http import Request, Response, json_response
from cove.model.errors import Invalid
from cove.registry.access import Caller, Policy
from cove.registry.passwords import Passwords, is_name
from cove.registry.refusals import Refused, not_found
from cove.registry.tokens import LIFETIME_S, SCOPES_MAX, Tokens

log = logging.getLogger("cove.registry")

REMEMBERED = 1024
REMEMBERED_S = 300.0
FIRST_DELAY_S, LONGEST_DELAY_S = 0.25, 8.0
FORGIVEN_S = 120.0  # without a wrong password
WAITING_MAX = 8  # wrong passwords of one client whose answer is due
CLIENTS_MAX = 10_000
HASHES_AT_ONCE = 2
NOBODY = "Og=="  # ":", what containers/image sends without credentials
FORM_BYTES_MAX = 64 << 10


class Login:
    """Identifies callers, and applies the policy."""

    def __init__(self, policy: Policy, passwords: Passwords | None = None, *, tokens: bool = False) -> None:
        self._policy = policy
        self._passwords = passwords or Passwords()
        self._tokens = Tokens() if tokens else None
        self._key = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, float] = OrderedDict()  # passwords that were right, and until when
        self._wrong: OrderedDict[str, list[float]] = (
            OrderedDict()
        )  # by client: number, time of the last, waiting
        self._hashing = asyncio.Semaphore(HASHES_AT_ONCE)
        self.failures = 0

    @property
    def asks(self) -> bool:
        """Whether anybody can log in."""
        return self._policy.users

    @property
    def closed(self) -> bool:
        """Whether somebody must log in to see anything at all."""
        return (
            self._policy.users
            and not self._policy.anonymous
            and not any("*" in (*rule.pull, *rule.push) for rule in self._policy.rules)
        )

    def may(self, caller: Caller, action: str, name: str) -> bool:
        return self._policy.may(caller, action, name)

    async def identify(self, request: Request, client: str) -> Caller:
        """Who asks; nobody in particular without credentials. Refused: 401, 429."""
        header = request.headers.get("authorization", "")
        kind, _, value = header.partition(" ")
        if kind.lower() == "basic" and self._passwords and value.strip() != NOBODY:
            return Caller(name=await self._check_basic(request, client, value.strip()))
        if kind.lower() == "bearer" and self._tokens is not None:
            caller = self._tokens.read(value.strip(), time.time())
            if caller is None:
                raise self._unauthorized(request, "the token is none of this server's, or has expired", "")
            return caller
        if name := _certificate_name(request):
            return Caller(name=name)
        return Caller()

    def refuse(self, request: Request, caller: Caller, action: str, name: str, source: str = "") -> Refused:
        """401 for whoever could get further with a login or another token, 403 for everybody else. `source`: a
        repository that is to be read, too."""
        what = f"{action} {name}" if name else "look around here"
        if not self._policy.users:
            return Refused(403, "DENIED", f"nobody may {what}: there are no users, and the rules say so")
        if not caller.name:
            return self._unauthorized(request, f"log in to {what}", _scope(action, name))
        if caller.grants is not None and self._policy.may(Caller(name=caller.name), action, name):
            scope = f"{_scope(action, name)} {_scope('pull', source)}".strip()
            return self._unauthorized(request, f"the token isn't for this: {what}", scope)
        return Refused(403, "DENIED", f"{caller.name} may not {what}")

    async def serve_token(self, request: Request, client: str) -> Response:
        """GET and POST /token: docker's token protocol, and its OAuth2 form with a password. Refused: 401, 404."""
        if self._tokens is None:
            raise not_found("this registry gives out no tokens (--tokens)")
        if request.method == "POST":
            try:
                async with asyncio.timeout(30):
                    form = parse_qsl(
                        (await request.body.read_all(FORM_BYTES_MAX)).decode(), max_num_fields=100
                    )
            except (ValueError, Invalid, TimeoutError):
                raise Refused(400, "UNSUPPORTED", "expected a form") from None
            fields = dict(form)
            if fields.get("grant_type") != "password":
                raise Refused(400, "UNSUPPORTED", "grant_type: expected password")
            name = fields.get("username", "")
            await self._check(request, client, name, fields.get("password", "").encode())
            scopes = [word for key, value in form if key == "scope" for word in value.split()]
        else:
            scopes = [word for value in request.query.all("scope") for word in value.split()]
            caller = await self.identify(request, client)
            name = caller.name
        if not name and self.closed:
            raise self._unauthorized(request, "log in for a token", "", basic=True)
        now_s = time.time()
        token = self._tokens.give(self._policy, name, scopes[:SCOPES_MAX], now_s)
        body = {
            "token": token,
            "access_token": token,
            "expires_in": LIFETIME_S,
            "issued_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s)),
        }
        response = json_response(body)
        response.headers = {"Cache-Control": "no-store", "Expires": formatdate(0, usegmt=True)}
        return response

    # --- passwords ----------------------------------------------------------------------------

    async def _check_basic(self, request: Request, client: str, value: str) -> str:
        try:
            name, colon, password = base64.b64decode(value, validate=True).partition(b":")
            user = name.decode()
        except (binascii.Error, ValueError):
            colon, user, password = b"", "", b""
        if not colon:
            raise self._unauthorized(request, "the Authorization header is malformed", "")
        await self._check(request, client, user, password)
        return user

    async def _check(self, request: Request, client: str, user: str, password: bytes) -> None:
        """Refused: 401 after a while, 429."""
        now_s = time.monotonic()
        proof = hmac.digest(self._key, user.encode() + b"\0" + password, "sha256")
        if (until_s := self._right.get(proof)) is not None and until_s > now_s:
            return
        record = self._wrong.get(client)
        if record is not None and record[2] >= WAITING_MAX:
            raise Refused(
                429,
                "TOOMANYREQUESTS",
                "too many wrong passwords from this address at once",
                headers={"Retry-After": str(int(LONGEST_DELAY_S))},
            )
        async with self._hashing:
            right = await asyncio.to_thread(self._passwords.check, user, password)
        if right:
            self._right[proof] = now_s + REMEMBERED_S
            if len(self._right) > REMEMBERED:
                self._right.popitem(last=False)
            return
        self.failures += 1
        log.warning("a wrong user or password came from %s", client)
        await self._delay(client, now_s)
        raise self._unauthorized(request, "unknown user, or wrong password", "", basic=True)

    async def _delay(self, client: str, now_s: float) -> None:
        record = self._wrong.pop(client, [0.0, 0.0, 0.0])
        if now_s - record[1] > FORGIVEN_S:
            record[0] = 0.0
        self._wrong[client] = record
        record[:2] = [record[0] + 1, now_s]
        if len(self._wrong) > CLIENTS_MAX:
            self._wrong.popitem(last=False)
        record[2] += 1
        try:
            await asyncio.sleep(min(FIRST_DELAY_S * 2 ** min(record[0] - 1, 10), LONGEST_DELAY_S))
        finally:
            record[2] -= 1

    def _unauthorized(self, request: Request, message: str, scope: str, *, basic: bool = False) -> Refused:
        host = request.headers.get("host", "")
        if not host or not all(each.isalnum() or each in ".:-[]" for each in host):
            host = "localhost"
        if self._tokens is not None and not basic:
            scheme = "https" if request.about_client("ssl_object") is not None else "http"
            challenge = f'Bearer realm="{scheme}://{host}/token",service="{host}"'
            if scope:
                challenge += f',scope="{scope}"'
        else:
            challenge = f'Basic realm="{host}"'
        return Refused(401, "UNAUTHORIZED", message, headers={"WWW-Authenticate": challenge})


def _scope(action: str, name: str) -> str:
    if not name:
        return ""
    return f"repository:{name}:{ {'push': 'pull,push', 'delete': 'delete'}.get(action, 'pull') }"


def _certificate_name(request: Request) -> str:
    """The common name of the certificate that TLS has verified; ""."""
    found = request.about_client("peercert") or {}
    names = [value for entry in found.get("subject", ()) for key, value in entry if key == "commonName"]
    return str(names[0]) if names and is_name(str(names[0])) else ""
