"""A registry of what this machine's images are: read-only, filled from the daemon when somebody asks.

    client ──GET NAME:TAG──> public server ──image?──> daemon     the same image as last time: serve it
                                  │
                                  └──push NAME:TAG──> daemon ──> inner server (loopback, a password of this process)

The daemon pushes what is asked for to an address that only it has the password of; layers and configurations that its
store has as they came are linked, so that costs a manifest. A tag is asked about each time: what the daemon calls so
now is what is served. The daemon's socket is root's: a process that was forked before root was given up speaks to it.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import logging
import os
import secrets
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote, urlencode

from cove.image.references import DEFAULT_DOMAIN
from cove.registry.names import Blob, Manifest, Referrers, Tags, Upload, Uploads
from cove.registry.refusals import Refused, unknown_manifest

if TYPE_CHECKING:
    from cove.registry.store import Store

log = logging.getLogger("cove.registry")
Local = Manifest | Blob | Uploads | Upload | Tags | Referrers
USER = "daemon"
ASK_S = 20.0
PUSH_S = 600.0
ANSWER_BYTES_MAX = 4 << 20


class Asker(Protocol):
    """Who speaks to the daemon: DaemonClient, or sharing.Broker in front of one."""

    def image(self, reference: str) -> str: ...

    def push(self, reference: str, target: str) -> str: ...


class DaemonClient:
    """Asks the daemon at a unix socket. Blocking."""

    def __init__(self, path: str, password: str) -> None:
        self._path = path
        credentials = json.dumps({"username": USER, "password": password}).encode()
        self._auth = base64.urlsafe_b64encode(credentials).decode()

    def image(self, reference: str) -> str:
        """The id of the image that is called so; "" without one, or without a daemon."""
        status, body = self._ask("GET", f"/images/{quote(reference, safe='')}/json", ASK_S)
        if status != 200:
            return ""
        return str(json.loads(body).get("Id", ""))

    def push(self, reference: str, target: str) -> str:
        """Have it push this image to HOST:PORT/NAME:TAG; why it didn't, or "". The name there is gone afterwards."""
        repository, _, tag = target.rpartition(":")
        query = urlencode({"repo": repository, "tag": tag})
        status, body = self._ask("POST", f"/images/{quote(reference, safe='')}/tag?{query}", ASK_S)
        if status != 201:
            return _message(body)
        try:
            query = urlencode({"tag": tag})
            where = f"/images/{quote(repository, safe='')}/push?{query}"
            status, body = self._ask("POST", where, PUSH_S, {"X-Registry-Auth": self._auth})
            if status != 200:
                return _message(body)
            for line in body.splitlines():
                if line.strip() and (error := json.loads(line).get("error")):
                    return str(error)
            return ""
        finally:
            self._ask("DELETE", f"/images/{quote(target, safe='')}?noprune=1", ASK_S)

    def _ask(
        self, method: str, path: str, timeout_s: float, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("daemon", timeout=timeout_s)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.sock.settimeout(timeout_s)
            connection.sock.connect(self._path)
            connection.request(method, path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            message = (
                f"the daemon at {self._path} can't be asked: {getattr(error, 'strerror', None) or error}"
            )
            return 0, json.dumps({"message": message}).encode()
        finally:
            connection.close()


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return "the daemon refused without a word"


class Source:
    """Fills a store with the images that are asked for."""

    def __init__(self, asker: Asker, store: Store, inner: str) -> None:
        """`inner` is the address, HOST:PORT, that the daemon pushes to."""
        self._asker = asker
        self._store = store
        self._inner = inner
        self._served: dict[tuple[str, str], str] = {}  # name and tag: the image's id when it was pushed
        self._pushing: dict[tuple[str, str], asyncio.Task[None]] = {}

    def locate(self, target: Local, namespace: str) -> Local:
        """The target by its full name: docker.io/library/debian; `namespace` is ?ns=, a client's registry."""
        first, slash, _ = target.name.partition("/")
        if namespace:
            name = f"{namespace}/{target.name}"
        elif slash and ("." in first or first == "localhost"):
            name = target.name
        else:
            name = f"{DEFAULT_DOMAIN}/{target.name if slash else f'library/{target.name}'}"
        return replace(target, name=name)

    async def fill(self, target: Manifest) -> None:
        """Have the store hold what the daemon calls so now. Refused: 404, 502."""
        key = target.name, target.tag
        task = self._pushing.get(key)
        if task is None:
            task = self._pushing[key] = asyncio.get_running_loop().create_task(self._fill(*key))
            task.add_done_callback(lambda _: self._pushing.pop(key, None))
        await asyncio.shield(task)

    async def _fill(self, name: str, tag: str) -> None:
        reference = f"{name}:{tag}"
        image = await asyncio.to_thread(self._asker.image, reference)
        known = self._store.catalog.find_manifest(name, tag=tag)
        if not image:
            self._served.pop((name, tag), None)
            if known is not None:
                await self._store.delete_tag(name, tag)
            raise unknown_manifest(name, tag)
        if known is not None and self._served.get((name, tag)) == image:
            return
        problem = await asyncio.to_thread(self._asker.push, reference, f"{self._inner}/{reference}")
        if problem:
            log.warning("the daemon didn't push %s: %s", reference, problem)
            raise Refused(
                502, "UNSUPPORTED", f"the daemon of this machine could not push {reference}: {problem}"
            )
        self._served[name, tag] = image


def new_password() -> str:
    return secrets.token_urlsafe(24)


def default_socket() -> str:
    """Where the daemon answers without being told otherwise."""
    return f"{os.environ.get('COVE_RUN_DIR') or '/run/cove'}/docker.sock"
