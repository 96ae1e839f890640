"""A registry of the tests' own that takes pushes, and misbehaves as it is told.

with PushRegistry() as registry:
    registry.faults["PATCH"] = [cut_off(1000)]     # each is used once, in this order
    ... registry.host, registry.blobs, registry.log
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

Fault = Callable[["Handler"], bool]  # whether it has answered (or broken the connection) itself


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One request; `registry` is the PushRegistry."""

    protocol_version = "HTTP/1.1"
    registry: PushRegistry

    def _any(self) -> None:
        registry = self.registry
        parts = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.route = parts.path
        self.taken = 0
        with registry.lock:
            registry.log.append((self.command, self.path, dict(self.headers.items())))
            waiting = registry.faults.get(self.command) or []
            fault = waiting.pop(0) if waiting else None
        if fault is not None and fault(self):
            return
        if not self._allowed():
            return
        kind = self.route.removeprefix(f"/v2/{registry.repository_of(self.route)}/").partition("/")[0]
        if self.route == "/v2/":
            self.answer(200)
        elif kind == "blobs":
            self._blobs()
        elif kind == "manifests":
            self._manifests()
        elif kind == "referrers" and registry.referrers is not None:
            found = {"schemaVersion": 2, "mediaType": INDEX, "manifests": registry.referrers}
            self.answer(200, json.dumps(found).encode(), {"Content-Type": INDEX})
        else:
            self.error(404, "NAME_UNKNOWN")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _any

    def _allowed(self) -> bool:
        if self.registry.tokens is not None:
            return self._has_token()
        wanted = self.registry.password
        given = self.headers.get("Authorization", "")
        if not wanted or given == "Basic " + base64.b64encode(wanted.encode()).decode():
            return True
        self.read_body()
        self.error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="test"'})
        return False

    def _has_token(self) -> bool:
        """Bearer tokens as distribution's token.md has them; the token is the list of its scopes, in base64."""
        tokens = self.registry.tokens
        assert tokens is not None
        given = self.headers.get("Authorization", "")
        if self.route == "/token":
            scopes = list(parse_qs(urlsplit(self.path).query).get("scope", []))
            tokens.append((given, scopes))
            if given != "Basic " + base64.b64encode(self.registry.password.encode()).decode():
                self.error(401, "UNAUTHORIZED")
            else:
                token = base64.urlsafe_b64encode(" ".join(scopes).encode()).decode()
                self.answer(200, json.dumps({"token": token}).encode())
            return False
        repository = self.registry.repository_of(self.route)
        needed = [f"repository:{repository}:pull{'' if self.command in ('GET', 'HEAD') else ',push'}"]
        if "from" in self.query:
            needed.append(f"repository:{self.query['from']}:pull")
        have = base64.urlsafe_b64decode(given.removeprefix("Bearer ") + "==").decode().split()
        pairs = {
            (name.rpartition(":")[0], action)
            for name in have
            for action in name.rpartition(":")[2].split(",")
        }
        if all((n.rpartition(":")[0], a) in pairs for n in needed for a in n.rpartition(":")[2].split(",")):
            return True
        self.read_body()
        realm = f'Bearer realm="{self.registry.url}/token",service="test",scope="{" ".join(needed)}"'
        self.error(401, "UNAUTHORIZED", {"WWW-Authenticate": realm})
        return False

    def _blobs(self) -> None:
        registry = self.registry
        repository = registry.repository_of(self.route)
        own = registry.blobs.setdefault(repository, {})
        rest = self.route.partition("/blobs/")[2]
        if self.command == "POST":
            mounted = registry.blobs.get(self.query.get("from", ""), {}).get(self.query.get("mount", ""))
            if mounted is not None:
                own[digest_of(mounted)] = mounted
                self.answer(201, headers={"Location": "/", "Docker-Content-Digest": digest_of(mounted)})
                return
            token = secrets.token_hex(4)
            registry.uploads[token] = bytearray()
            self.answer(202, headers={"Location": self.location(repository, token), "Range": "0-0"})
        elif rest.startswith("uploads/"):
            self._upload(repository, rest.removeprefix("uploads/"))
        elif rest in own:
            self.answer(200, own[rest], {"Docker-Content-Digest": rest})
        else:
            self.error(404, "BLOB_UNKNOWN")

    def _upload(self, repository: str, token: str) -> None:
        upload = self.registry.uploads.get(token)
        if upload is None:
            self.read_body()
            self.error(404, "BLOB_UPLOAD_UNKNOWN")
            return
        here = {"Location": self.location(repository, token)}
        if self.command in ("PATCH", "PUT"):
            start = self.headers.get("Content-Range", "").partition("-")[0]
            if start and int(start) != len(upload):
                self.read_body()
                self.answer(416, headers={**here, "Range": f"0-{max(0, len(upload) - 1)}"})
                return
            self.read_body(upload)
        if self.command == "PUT":
            if digest_of(upload) != self.query["digest"]:
                self.error(400, "DIGEST_INVALID")
                return
            self.registry.blobs[repository][digest_of(upload)] = bytes(upload)
            del self.registry.uploads[token]
            self.answer(201, headers={"Location": "/", "Docker-Content-Digest": self.query["digest"]})
        elif self.command == "DELETE":
            del self.registry.uploads[token]
            self.answer(204)
        else:
            status = 202 if self.command == "PATCH" else 204
            self.answer(status, headers={**here, "Range": f"0-{max(0, len(upload) - 1)}"})

    def _manifests(self) -> None:
        registry = self.registry
        repository = registry.repository_of(self.route)
        own = registry.manifests.setdefault(repository, {})
        reference = self.route.partition("/manifests/")[2]
        if self.command == "PUT":
            data = self.read_body()
            kind = self.headers.get("Content-Type", "")
            document = json.loads(data)
            for one in [document.get("config"), *document.get("layers", [])]:
                if one and one["digest"] not in registry.blobs.get(repository, {}):
                    self.error(404, "MANIFEST_BLOB_UNKNOWN")
                    return
            if reference != registry.lose_manifests:
                for name in (reference, digest_of(data)):
                    own[name] = (kind, data)
            more = {"Docker-Content-Digest": digest_of(data)}
            if "subject" in document and registry.referrers is not None:
                more["OCI-Subject"] = document["subject"]["digest"]
                entry = {
                    "mediaType": kind,
                    "digest": digest_of(data),
                    "size": len(data),
                    "artifactType": document.get("artifactType", ""),
                }
                if entry not in registry.referrers:
                    registry.referrers.append(entry)
            self.answer(201, headers=more)
        elif reference in own:
            kind, data = own[reference]
            self.answer(200, data, {"Content-Type": kind, "Docker-Content-Digest": digest_of(data)})
        else:
            self.error(404, "MANIFEST_UNKNOWN")

    def location(self, repository: str, token: str) -> str:
        return (
            f"{self.registry.upload_base}/v2/{repository}/blobs/uploads/{token}?state={secrets.token_hex(2)}"
        )

    def read_body(self, into: bytearray | None = None, limit: int = -1) -> bytes:
        """The body, or its first `limit` bytes."""
        whole = bytearray()
        target = whole if into is None else into
        left = int(self.headers.get("Content-Length", "0"))
        left = left if limit < 0 else min(left, limit)
        while left:
            piece = self.rfile.read(min(left, 1 << 16))
            if not piece:
                break
            target += piece
            left -= len(piece)
        return bytes(whole)

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        text = json.dumps({"errors": [{"code": code, "message": code.lower().replace("_", " ")}]})
        self.answer(status, text.encode(), headers)

    def log_message(self, *_: object) -> None:
        pass


INDEX = "application/vnd.oci.image.index.v1+json"


class PushRegistry:
    """The registry; content by repository."""

    def __init__(self, *, password: str = "", tokens: bool = False, referrers: bool = False) -> None:
        """`password` is user:password, asked for itself or for `tokens`; `referrers`: the API for them is there."""
        self.password = password
        self.tokens: list[tuple[str, list[str]]] | None = (
            [] if tokens else None
        )  # Authorization and scopes asked
        self.referrers: list[dict[str, Any]] | None = [] if referrers else None
        self.blobs: dict[str, dict[str, bytes]] = {}
        self.manifests: dict[str, dict[str, tuple[str, bytes]]] = {}
        self.uploads: dict[str, bytearray] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.log: list[tuple[str, str, dict[str, str]]] = []
        self.lock = threading.Lock()
        self.upload_base = ""
        self.lose_manifests = ""  # a tag whose manifests are taken and not kept
        kind = type("Own", (Handler,), {"registry": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> PushRegistry:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @staticmethod
    def repository_of(path: str) -> str:
        rest = path.removeprefix("/v2/")
        for part in ("/blobs/", "/manifests/", "/referrers/", "/tags/"):
            rest = rest.partition(part)[0]
        return rest

    def count(self, method: str, part: str = "") -> int:
        with self.lock:
            return sum(1 for m, path, _ in self.log if m == method and part in path)

    def headers_of(self, method: str, part: str = "") -> list[dict[str, str]]:
        with self.lock:
            return [headers for m, path, headers in self.log if m == method and part in path]


def status(code: int, headers: dict[str, str] | None = None, name: str = "DENIED") -> Fault:
    """Answer with this status."""

    def fault(handler: Handler) -> bool:
        handler.read_body()
        handler.error(code, name, headers)
        return True

    return fault


def cut_off(size: int) -> Fault:
    """Take so many bytes of an upload's body, keep them, and close the connection."""

    def fault(handler: Handler) -> bool:
        token = handler.route.rpartition("/")[2]
        handler.read_body(handler.registry.uploads[token], size)
        handler.close_connection = True
        return True

    return fault


def forget(size: int) -> Fault:
    """The same, and the upload is forgotten."""

    def fault(handler: Handler) -> bool:
        token = handler.route.rpartition("/")[2]
        handler.read_body(None, size)
        handler.registry.uploads.pop(token, None)
        handler.close_connection = True
        return True

    return fault


def fine(handler: Handler) -> bool:
    return False
