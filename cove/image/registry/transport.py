"""HTTP with registries: one exchange, and a client of one endpoint that identifies itself, follows and tries again.

Blocking, for the threads of a worker process. A registry is a stranger: everything is bounded in time and size.
Redirects are followed here (GET and HEAD, five at most, never from https to http, and the Authorization stays with the
host it was meant for). What is tried again: a connection that broke, 429 (after Retry-After) and 5xx.
"""

from __future__ import annotations

import email.utils
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from typing import Any
from urllib.parse import urljoin, urlsplit

import msgspec
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError
from urllib3.response import BaseHTTPResponse

from cove.image.registry.auth import TOKEN_BYTES_MAX, Authorizer, Credentials, parse_challenges
from cove.image.registry.endpoints import Endpoint, origin_of
from cove.image.registry.messages import Timing
from cove.model.errors import CoveError, Forbidden, Invalid, NotFound, Unauthorized, Unavailable

REDIRECTS_MAX = 5
ERROR_BYTES_MAX = 64 << 10
_PIECE = 1 << 20
_ADDRESSES_MAX = 4
AGAIN = frozenset((429, 500, 502, 503, 504))  # what may be otherwise a moment later
_IDEMPOTENT = frozenset(("GET", "HEAD"))

Body = bytes | Callable[[], Iterable[bytes]]  # a function is called anew for every attempt
Resolve = Callable[[str, int], list[tuple[str, int]]]  # host and port to numeric addresses; OSError


class Unreachable(Unavailable):
    """No HTTP answer came: another endpoint may be asked instead."""


class Broken(Unavailable):
    """The connection ended, stood still or was too slow in the middle."""


class Answer:
    """An answer whose head is here; a context manager that gives the connection back or ends it."""

    def __init__(self, response: BaseHTTPResponse, url: str, timing: Timing) -> None:
        self._response = response
        self._timing = timing
        self.url = url
        self.status = response.status
        self.headers = response.headers

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def length(self) -> int | None:
        """Content-Length; None where there is none."""
        text = self.headers.get("Content-Length", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

    def close(self) -> None:
        """Done with it. A body that wasn't read to its end costs the connection."""
        self._response.close()
        self._response.release_conn()

    def read(self, limit: int) -> bytes:
        """The whole body. Invalid when it is larger than `limit` bytes; Broken."""
        if (self.length or 0) > limit:
            raise Invalid(f"{_host(self.url)} sent a document of {self.length} bytes; the limit is {limit}")
        data = bytearray()
        deadline = time.monotonic() + self._timing.document_s
        for piece in self.pieces():
            data += piece
            if len(data) > limit:
                raise Invalid(
                    f"{_host(self.url)} sent a document of more than {limit} bytes, which is the limit"
                )
            if time.monotonic() > deadline:
                raise Broken(
                    f"{_host(self.url)} took more than {self._timing.document_s:g} s for a small document"
                )
        return bytes(data)

    def drain(self) -> None:
        """Read a small body away, so that the connection can be used again."""
        if (self.length or ERROR_BYTES_MAX + 1) <= ERROR_BYTES_MAX:
            try:
                self.read(ERROR_BYTES_MAX)
            except (Broken, Invalid):
                pass

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes, as it was sent. Broken: it ended early, stood still or was slower than is allowed."""
        timing = self._timing
        waited = 0.0  # only the time spent waiting for the network counts
        window = 0
        wanted = self.length
        while True:
            begun = time.monotonic()
            try:
                piece: bytes = self._response.read1(_PIECE, decode_content=False)
            except (HTTPError, HTTPException, OSError, ValueError) as error:
                raise Broken(f"{_host(self.url)}: {describe(error, timing)}") from None
            waited += time.monotonic() - begun
            if not piece:
                break
            window += len(piece)
            if wanted is not None:
                wanted -= len(piece)
            if waited >= timing.window_s:
                if window < timing.least_bytes_per_s * waited:
                    raise Broken(
                        f"{_host(self.url)} sent {window / waited:.0f} bytes a second; "
                        f"the least is {timing.least_bytes_per_s}"
                    )
                waited, window = 0.0, 0
            yield piece
        if wanted:
            raise Broken(f"{_host(self.url)}: the connection ended {wanted} bytes early")


class Connections:
    """Connections to any host, kept and used again. For several threads."""

    def __init__(
        self,
        resolve: Resolve,
        contexts: Callable[[str, bool], ssl.SSLContext],
        timing: Timing,
        user_agent: str,
        *,
        size: int = 32,
    ) -> None:
        """`contexts`: host (with its port, if written) and whether its certificate counts, to how TLS is spoken."""
        self.timing = timing
        self._user_agent = user_agent
        self._contexts = contexts
        self._size = size
        self._lock = threading.Lock()
        self._pools: dict[tuple[str, str, int, bool], HTTPConnectionPool] = {}
        self._plain, self._secure = _connection_kinds(resolve, timing)

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] = b"",
        *,
        verify: bool = True,
    ) -> Answer:
        """One request and the head of its answer. Unreachable, Broken, Invalid (the URL)."""
        scheme, host, port = origin_of(url)
        if not url.isprintable() or not url.isascii() or " " in url:
            raise Invalid(f"{url[:200]!r} is no URL that a registry is asked by")
        parts = urlsplit(url)
        target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        pool = self._pool(scheme, host, port, verify, parts.netloc)
        timing = self.timing
        try:
            response = pool.urlopen(
                method,
                target,
                body=body or None,
                headers={"User-Agent": self._user_agent, "Accept-Encoding": "identity", **headers},
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                assert_same_host=False,
                timeout=urllib3.Timeout(connect=timing.connect_s, read=timing.idle_s),
            )
        except (HTTPError, HTTPException, OSError, ValueError) as error:
            sentence = f"{_host(url)}: {describe(error, timing)}"
            raise (Unreachable if _never_asked(error) else Broken)(sentence) from None
        return Answer(response, url, timing)

    def _pool(self, scheme: str, host: str, port: int, verify: bool, netloc: str) -> HTTPConnectionPool:
        with self._lock:
            pool = self._pools.get((scheme, host, port, verify))
            if pool is None:
                pool = self._new_pool(scheme, host, port, verify, netloc)
                self._pools[scheme, host, port, verify] = pool
        return pool

    def _new_pool(self, scheme: str, host: str, port: int, verify: bool, netloc: str) -> HTTPConnectionPool:
        shown = f"[{host}]" if ":" in host else host
        if scheme == "http":
            pool = HTTPConnectionPool(shown, port, maxsize=self._size)
            pool.ConnectionCls = self._plain
            return pool
        secure = HTTPSConnectionPool(
            shown,
            port,
            maxsize=self._size,
            ssl_context=self._contexts(netloc, verify),
            assert_hostname=None if verify else False,
        )
        secure.ConnectionCls = self._secure
        return secure


class Client:
    """One endpoint of a registry for one repository. For several threads."""

    def __init__(
        self, connections: Connections, endpoint: Endpoint, credentials: Credentials, repository: str
    ) -> None:
        """`repository` is the path alone, e.g. library/debian; "" for requests that aren't about one."""
        self._connections = connections
        self.endpoint = endpoint
        self.repository = repository
        self._origin = origin_of(endpoint.url)
        given = Credentials() if endpoint.mirror else credentials
        self._authorizer = Authorizer(endpoint.url, given, self._ask)

    @property
    def timing(self) -> Timing:
        return self._connections.timing

    def url(self, path: str) -> str:
        """`manifests/latest` in the repository, `/v2/…` at the registry, or a URL (a Location) as an absolute URL."""
        if "://" in path:
            return path
        if not path.startswith("/"):
            path = f"/v2/{self.repository}/{path}"
        if self.endpoint.namespace:
            path += f"{'&' if '?' in path else '?'}ns={self.endpoint.namespace}"
        return self.endpoint.url + path

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        actions: str = "pull",
        scope: str = "",
        expect: Collection[int] = (200,),
        again: bool | None = None,
    ) -> Answer:
        """A request and its answer, of a status in `expect`; any other is raised as an error.

        `actions` on the repository ("pull", "pull,push") and what `scope` names besides are asked a token for. `again`:
        whether a failure is tried again (default: for GET and HEAD). Unreachable, Broken, NotFound, Unauthorized,
        Forbidden, Invalid, Unavailable.
        """
        wanted = f"repository:{self.repository}:{actions}" if self.repository else ""
        wanted = f"{wanted} {scope}".strip()
        repeat = method in _IDEMPOTENT if again is None else again
        tries = Tries(self.timing)
        while True:
            try:
                answer = self._follow(method, self.url(path), dict(headers or {}), body, wanted)
            except (Broken, Unreachable) as error:
                if not repeat or isinstance(error, Unreachable) or not tries.again():
                    raise
                continue
            if answer.status in expect:
                return answer
            with answer:
                if repeat and answer.status in AGAIN and tries.again(answer.headers.get("Retry-After", "")):
                    continue
                raise self.error(answer)

    def _follow(self, method: str, url: str, headers: dict[str, str], body: Body, scope: str) -> Answer:
        seen: list[str] = []
        while True:
            answer = self._identified(method, url, headers, body, scope)
            location = answer.headers.get("Location", "")
            if answer.status not in (301, 302, 303, 307, 308) or not location or method not in _IDEMPOTENT:
                return answer
            answer.close()
            seen.append(url)
            url = next_url(url, location, seen)

    def _identified(self, method: str, url: str, headers: dict[str, str], body: Body, scope: str) -> Answer:
        """A request with the Authorization that its host may see, asked for again when that isn't enough."""
        own = origin_of(url) == self._origin
        verify = self.endpoint.verify or not own
        used = self._authorizer.header(scope) if own else ""
        for last in (False, False, True):
            extra = {"Authorization": used} if used else {}
            data = body if isinstance(body, bytes) else body()
            answer = self._connections.send(method, url, {**headers, **extra}, data, verify=verify)
            if answer.status != 401 or not own or last:
                return answer
            challenges = parse_challenges(answer.headers.getlist("WWW-Authenticate"))
            with answer:
                answer.drain()
                if choose := self._authorizer.answer(challenges, scope, used):
                    used = choose
        raise AssertionError("the loop returns")

    def _ask(self, method: str, url: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        """A token's request: no redirect is followed, since a password or a token is in it."""
        own = origin_of(url) == self._origin
        tries = Tries(self.timing)
        while True:
            try:
                verify = self.endpoint.verify or not own
                with self._connections.send(method, url, headers, body, verify=verify) as answer:
                    if answer.status in AGAIN and tries.again(answer.headers.get("Retry-After", "")):
                        continue
                    return answer.status, answer.read(TOKEN_BYTES_MAX)
            except (Broken, Unreachable) as error:
                if isinstance(error, Unreachable) or not tries.again():
                    raise Unavailable(f"the registry's token service can't be asked: {error}") from None

    def error(self, answer: Answer) -> CoveError:
        """What an answer's status and body come to."""
        try:
            data = answer.read(ERROR_BYTES_MAX)
        except (Broken, Invalid):
            data = b""
        return status_error(answer.status, data, _host(answer.url))


class Tries:
    """The attempts at one thing: `again` waits and says whether there is another; `progress` begins anew."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self.progress()

    def progress(self) -> None:
        self._failures = 0
        self._since_s = time.monotonic()

    def again(self, retry_after: str = "") -> bool:
        self._failures += 1
        timing = self._timing
        if self._failures >= timing.attempts or time.monotonic() - self._since_s > timing.patience_s:
            return False
        wait_s = timing.backoff_s * 2 ** (self._failures - 1)
        if retry_after:
            asked_s = parse_retry_after(retry_after, time.time())
            if asked_s > timing.retry_after_max_s:
                return False
            wait_s = max(wait_s, asked_s)
        begun = time.monotonic()
        time.sleep(wait_s)
        self._since_s += time.monotonic() - begun
        return True


def parse_retry_after(text: str, now_s: float) -> float:
    """Retry-After in seconds from now: a number or a date (RFC 9110, 10.2.3); 0 for anything else."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:10])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now_s)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def next_url(url: str, location: str, seen: Collection[str]) -> str:
    """Where a redirect leads. Unavailable for one that isn't followed."""
    if len(seen) > REDIRECTS_MAX:
        raise Unavailable(f"{_host(url)} redirects more than {REDIRECTS_MAX} times")
    try:
        found = urljoin(url, location)
        scheme, _, _ = origin_of(found)
    except (ValueError, Invalid):
        raise Unavailable(f"{_host(url)} redirects to what is no http or https address") from None
    if scheme == "http" and urlsplit(url).scheme == "https":
        raise Unavailable(f"{_host(url)} redirects from https to http, which isn't followed")
    if found in seen:
        raise Unavailable(f"{_host(url)} redirects in a circle")
    return found


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct):
    errors: list[_Error] | None = None


def status_error(status: int, data: bytes, host: str) -> CoveError:
    """An answer's status and body (distribution-spec, "Error codes") as an error with one sentence."""
    try:
        errors = msgspec.json.decode(data, type=_Errors).errors or []
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        errors = []
    said = ""
    if errors:
        code, message = _clean(errors[0].code.lower().replace("_", " ")), _clean(errors[0].message)
        said = f"{code}: {message}" if code and message else code or message
    if status == 401:
        return Unauthorized(said or "unauthorized: authentication required")
    if status == 403:
        return Forbidden(said or "denied: requested access to the resource is denied")
    if status == 404:
        return NotFound(said or "not found")
    if status == 429:
        return Unavailable(
            f"{said or 'toomanyrequests'}: {host} takes no more requests for now: try again later"
        )
    return Unavailable(f"{host} answered with the status {status}{': ' + said if said else ''}")


def _clean(text: str) -> str:
    """A stranger's text as a part of a sentence."""
    return "".join(c if c.isprintable() else " " for c in text[:300]).strip()


def _host(url: str) -> str:
    return urlsplit(url).netloc[:260]


def _never_asked(error: Exception) -> bool:
    """Whether the connection was never made: nothing was asked, so another way may be taken."""
    cause: BaseException | None = error
    for _ in range(8):
        if isinstance(
            cause, NewConnectionError | NameResolutionError | urllib3.exceptions.ConnectTimeoutError
        ):
            return True
        if isinstance(cause, ssl.SSLError | urllib3.exceptions.SSLError):
            return True
        if cause is None:
            return False
        cause = cause.__cause__ or cause.__context__
    return False


def describe(error: BaseException, timing: Timing) -> str:
    """What went wrong with a connection, without addresses of objects and without what was sent."""
    cause: BaseException | None = error
    for _ in range(8):
        if cause is None:
            break
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate isn't trusted: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed: {(cause.reason or 'handshake').lower().replace('_', ' ')}"
        if isinstance(cause, urllib3.exceptions.IncompleteRead | IncompleteRead):
            return "the connection ended early"
        if isinstance(cause, NameResolutionError | socket.gaierror):
            return "its name isn't known"
        if type(cause) is urllib3.exceptions.ConnectTimeoutError:
            return f"no connection within {timing.connect_s:g} s"
        if isinstance(cause, urllib3.exceptions.ReadTimeoutError | TimeoutError):
            return f"no byte came for {timing.idle_s:g} s"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        if isinstance(cause, RemoteDisconnected) or any(
            isinstance(a, RemoteDisconnected) for a in cause.args
        ):
            return "the connection ended before there was an answer"
        cause = cause.__cause__ or cause.__context__
    if isinstance(
        error, urllib3.exceptions.LocationParseError | urllib3.exceptions.HTTPError | HTTPException
    ):
        return f"the answer isn't HTTP as it should be ({type(error).__name__})"
    return "the connection broke"


def _connection_kinds(resolve: Resolve, timing: Timing) -> tuple[type[HTTPConnection], type[HTTPSConnection]]:
    """Connections that look names up by `resolve`, and whose answers' heads have a deadline."""

    def connect(connection: HTTPConnection) -> socket.socket:
        failure: OSError = socket.gaierror(socket.EAI_NONAME, "no address")
        try:
            addresses = resolve(connection.host.strip("[]"), connection.port or 0)
        except OSError as error:
            raise NameResolutionError(connection.host, connection, socket.gaierror(str(error))) from error
        for address in addresses[:_ADDRESSES_MAX]:
            try:
                found = socket.create_connection(address, timing.connect_s)
            except OSError as error:
                failure = error
                continue
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return found
        if isinstance(failure, TimeoutError):
            raise urllib3.exceptions.ConnectTimeoutError(connection, "connect") from failure
        raise NewConnectionError(connection, "connect") from failure

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return connect(self)

        def getresponse(self) -> Any:
            with _deadline(self.sock, timing.head_s):
                return super().getresponse()

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            try:
                super().connect()
            except (OSError, HTTPError) as error:  # whatever ends the handshake: nothing was asked
                raise NewConnectionError(self, "connect") from error

        def _new_conn(self) -> socket.socket:
            return connect(self)

        def getresponse(self) -> Any:
            with _deadline(self.sock, timing.head_s):
                return super().getresponse()

    return Plain, Secure


class _deadline:  # noqa: N801
    """Shut the socket down when the time is over: headers that drip in never run into a timeout between bytes."""

    def __init__(self, connection: Any, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._socket = connection

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _end(self) -> None:
        try:
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        except (OSError, TypeError):
            pass
