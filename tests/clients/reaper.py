"""The cleaner that testcontainers start beside their containers: programs/gosdk/reaper as an image."""

from __future__ import annotations

from tests.clients.engines import Engine
from tests.clients.toolbox import require
from tests.imagekit import Dir, File, make_docker_archive

NAME = "cove-clients/reaper:1"


def load_reaper(engine: Engine) -> str:
    """Load it, and return its name."""
    program = (require("gosdk") / "reaper").read_bytes()
    layer = [Dir("var"), Dir("var/run"), Dir("tmp", 0o1777), File("reaper", program, mode=0o755)]
    engine.load(make_docker_archive([layer], names=[NAME], config={"Entrypoint": ["/reaper"]}))
    return NAME
