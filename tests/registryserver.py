"""A `cove registry serve` of a test's own: started, asked, killed, started again on the same directory.

with serving(tmp_path / "root") as registry:
    registry.ask("GET", "/v2/").status
    registry.push_blob("app", b"data")
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BOUND_S = 30.0
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> object:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error's code."""
        return json.loads(self.body)["errors"][0]["code"]

    @property
    def message(self) -> str:
        return json.loads(self.body)["errors"][0]["message"]


class Registry:
    """A running server; its standard error is kept in a file."""

    def __init__(
        self,
        root: Path,
        options: Sequence[str] = (),
        *,
        listen: str = "127.0.0.1:0",
        prefix: Sequence[str] = (),
    ) -> None:
        """`prefix`: a program that starts it somewhere else, e.g. nsenter."""
        self.root = root
        self.prefix = [*prefix]
        self.options = [*options]
        self.listen = listen
        self.log = root.parent / f"{root.name}.log"
        self.start()

    def start(self) -> None:
        """Start it, again on the same port if it was started before."""
        with open(self.log, "ab") as log:
            begin = log.tell()
            self.process = subprocess.Popen(
                [
                    *self.prefix,
                    sys.executable,
                    "-P",
                    "-m",
                    "cove.registry",
                    "serve",
                    f"--root={self.root}",
                    f"--listen={self.listen}",
                    "--reserve=1m",
                    *self.options,
                ],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + BOUND_S
        while True:
            words = self.log.read_bytes()[begin:].decode()
            if found := re.search(r"answers on (\S+:\d+)", words):
                self.address = found[1].rstrip(",")
                self.listen = self.address
                return
            assert self.process.poll() is None, f"the registry ended: {words}"
            assert time.monotonic() < deadline, f"the registry said {words!r}"
            time.sleep(0.01)

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(BOUND_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    # --- asking -------------------------------------------------------------------------------

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=BOUND_S)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        """A raw connection."""
        return socket.create_connection(("127.0.0.1", self.port), BOUND_S)

    def begin(self, name: str) -> str:
        """A new upload's location."""
        answer = self.ask("POST", f"/v2/{name}/blobs/uploads/")
        assert answer.status == 202, answer
        return answer.headers["location"]

    def push_blob(self, name: str, data: bytes) -> str:
        """A blob in one request; its digest."""
        digest = digest_of(data)
        answer = self.ask("POST", f"/v2/{name}/blobs/uploads/?digest={digest}", data)
        assert answer.status == 201, answer
        return digest

    def push_manifest(self, name: str, reference: str, manifest: bytes, kind: str = OCI_MANIFEST) -> Answer:
        return self.ask("PUT", f"/v2/{name}/manifests/{reference}", manifest, {"Content-Type": kind})

    def push_image(self, name: str, tag: str, layers: Sequence[bytes], **more: object) -> str:
        """A whole image; its manifest's digest."""
        config = json.dumps({"architecture": "amd64", "os": "linux", "n": tag}).encode()
        for data in (config, *layers):
            self.push_blob(name, data)
        manifest = make_manifest(config, layers, **more)
        answer = self.push_manifest(name, tag, manifest)
        assert answer.status == 201, answer
        return digest_of(manifest)


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def describe(data: bytes, kind: str) -> dict[str, object]:
    return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}


def make_manifest(config: bytes, layers: Sequence[bytes], **more: object) -> bytes:
    """An image's manifest; `more` are fields of it."""
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": describe(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [describe(layer, "application/vnd.oci.image.layer.v1.tar+gzip") for layer in layers],
            **more,
        }
    ).encode()


@contextlib.contextmanager
def serving(
    root: Path, *options: str, listen: str = "127.0.0.1:0", prefix: Sequence[str] = ()
) -> Iterator[Registry]:
    registry = Registry(root, options, listen=listen, prefix=prefix)
    try:
        yield registry
    finally:
        if registry.process.poll() is None:
            registry.stop()


def run_registry(*words: str) -> subprocess.CompletedProcess[str]:
    """`python -m cove.registry WORDS`."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "cove.registry", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
