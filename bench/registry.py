"""Debian's docker-registry in an engine's room, on its loopback: what every engine pushes to and pulls from."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from bench.engines import Engine, EngineError
from bench.peers import find_program

FIRST_PORT = 5100
START_TIMEOUT_S = 20.0
CONFIG = """\
version: 0.1
log: {{level: info, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}, cache: {{blobdescriptor: inmemory}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""
_ports = itertools.count(FIRST_PORT)


class Registry:
    """One docker-registry over `storage`; several may serve one storage that nobody writes to."""

    def __init__(self, engine: Engine, directory: Path, storage: Path) -> None:
        assert engine.room is not None
        self.port = next(_ports)
        self.storage = storage
        self._engine = engine
        directory.mkdir(parents=True, exist_ok=True)
        storage.mkdir(parents=True, exist_ok=True)
        config = directory / f"registry-{self.port}.yml"
        config.write_text(CONFIG.format(root=storage, port=self.port))
        log = directory / f"registry-{self.port}.log"
        program = find_program("docker-registry", "docker-registry")
        environment = {"OTEL_TRACES_EXPORTER": "none"}
        self._pid = engine.room.start([program, "serve", str(config)], log, environment)
        deadline = time.monotonic() + START_TIMEOUT_S
        while "listening on" not in (text := log.read_text(errors="replace")):
            if time.monotonic() > deadline:
                raise EngineError(f"docker-registry doesn't start; its log says: {text.strip()[-300:]}")
            time.sleep(0.01)

    def name(self, image: str) -> str:
        """What an image is called here."""
        return f"127.0.0.1:{self.port}/{image}"

    def close(self) -> None:
        room = self._engine.room
        if room is not None:
            room.kill(self._pid)
