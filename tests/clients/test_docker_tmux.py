"""`docker run -it` as people have it: in a pane of tmux, resized, detached and attached to again."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.clients.dockercli import BOUND_S, Docker, clean, eventually

if TYPE_CHECKING:
    from tests.daemon import Daemon

pytestmark = pytest.mark.skipif(
    shutil.which("tmux") is None, reason="tmux isn't installed: apt-get install tmux"
)


class Tmux:
    """A server of its own with one session, 80 columns and 24 rows."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._command = ["tmux", "-S", str(directory / "tmux.sock"), "-f", "/dev/null"]
        self._environment = environment
        self("new-session", "-d", "-x", "80", "-y", "24", "sh")

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            [*self._command, *words], env=self._environment, capture_output=True, text=True, timeout=BOUND_S
        )
        assert done.returncode == 0, f"tmux {' '.join(words)}: {done.stderr}"
        return done.stdout

    def type(self, line: str) -> None:
        self("send-keys", "-l", line)
        self("send-keys", "Enter")

    def screen(self) -> list[str]:
        return [line.rstrip() for line in self("capture-pane", "-p").splitlines()]

    def runs(self, program: str) -> None:
        """Wait until the pane's foreground process is this."""
        eventually(lambda: self("display-message", "-p", "#{pane_current_command}").strip() == program)

    def shows(self, line: str) -> None:
        """Wait until a line of the screen is this."""
        eventually(lambda: line in self.screen())


@pytest.fixture
def docker(daemon: Daemon) -> Iterator[Docker]:
    docker = Docker(daemon.host)
    yield docker
    docker.close()
    clean(daemon.client)


def test_a_session_in_a_pane(docker: Docker, image: str, tmp_path: Path) -> None:
    tmux = Tmux(tmp_path, {**docker.environment, "PS1": "$ "})
    try:
        tmux.type(f"docker run -it --name pane {shlex.quote(image)} sh")
        tmux.shows("/ #")
        tmux.type("echo $((6*7)) $TERM; busybox stty size")
        tmux.shows("42 xterm")
        tmux.shows("24 80")
        tmux("resize-window", "-x", "100", "-y", "30")
        eventually(
            lambda: docker("exec", "pane", "busybox", "stty", "-F", "/dev/pts/0", "size").word == "30 100"
        )
        tmux("send-keys", "C-p", "C-q")
        tmux.runs("sh")
        assert docker("ps", "-q", "--filter", "name=pane").word
        tmux.type("clear; docker attach pane")
        tmux.runs("docker")
        tmux.type("echo again $((7*7)); exit 5")
        tmux.shows("again 49")
        tmux.runs("sh")
        tmux.type("echo ended $?")
        tmux.shows("ended 5")
        tmux.type("docker run --rm -it " + shlex.quote(image) + " busybox vi /etc/passwd")
        eventually(lambda: any("root:x:0:0" in line for line in tmux.screen()))
        tmux.type(":q")
        tmux.runs("sh")
        tmux.type("clear; echo left $?")
        tmux.shows("left 0")
    finally:
        tmux("kill-server")
