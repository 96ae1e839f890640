"""A daemon behind ssh(1): both command lines run `system dial-stdio` on the far side. ssh itself is a stand-in."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.daemon import IMAGE, ROOT

if TYPE_CHECKING:
    from tests.daemon import Daemon

STAND_IN = """#!/bin/sh
echo "$*" >>"$SSH_SAW"
while [ "$1" != docker ] && [ "$1" != cove ]; do shift; done
shift
unset DOCKER_HOST
exec env COVE_HOST="$FAR_HOST" "$COVE" "$@"
"""


@pytest.mark.parametrize("program", ["docker", "cove"])
def test_a_daemon_is_reached_through_ssh(daemon: Daemon, program: str, tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(STAND_IN)
    ssh.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{ROOT}/bin:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "COVE": str(ROOT / "bin" / "cove"),
        "FAR_HOST": daemon.host,
        "SSH_SAW": str(tmp_path / "saw"),
        "DOCKER_HOST": "ssh://alice@server:2222",
    }
    data = os.urandom(300_000)
    done = subprocess.run(
        [program, "run", "--rm", "-i", IMAGE, "cat"],
        env=environment,
        input=data,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == data
    for line in (tmp_path / "saw").read_text().splitlines():
        assert "server" in line and "2222" in line and line.endswith(f"{program} system dial-stdio")
