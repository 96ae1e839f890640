"""docs/clients.md: its examples do what the page says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.clients.composekit import use_plugin
from tests.clients.dockercli import Docker
from tests.clients.test_cli_docs import ROOT, examples, matches
from tests.clients.toolbox import require

if TYPE_CHECKING:
    from tests.daemon import Daemon

PAGE = ROOT / "docs" / "clients.md"
SOCKET = "unix:///run/cove/docker.sock"


def test_the_page_s_examples_print_what_it_says(daemon: Daemon, tmp_path: Path) -> None:
    text = PAGE.read_text()
    project = tmp_path / "shop"
    project.mkdir()
    [compose_file] = re.findall(r"^```yaml\n(services:.*?)^```", text, re.M | re.S)
    (project / "compose.yaml").write_text(compose_file)
    docker = Docker(daemon.host)
    use_plugin(docker, require("compose2") / "docker-compose")
    steps = [step for block in examples(PAGE) for step in block]
    assert len(steps) > 6
    try:
        for command, expected in steps:
            done = subprocess.run(
                ["sh", "-c", command.replace(SOCKET, daemon.host)],
                env=docker.environment,
                cwd=project,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=100,
                text=True,
            )
            assert matches(expected, done.stdout.splitlines()), f"$ {command}\n{done.stdout}"
            assert done.returncode == 0, command
    finally:
        docker("compose", "--project-directory", str(project), "down", "--volumes", "--timeout", "0")
        docker.close()
