"""Cove as an engine under test: the daemon of this checkout, in a room, with directories of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.engines import Engine, EngineError
from bench.procfs import Process

ROOT = Path(__file__).resolve().parent.parent


class Cove(Engine):
    """`python -m cove.daemon` of this checkout."""

    name = "Cove"

    def __init__(self, directory: Path, cgroup_parent: str) -> None:
        super().__init__(directory, cgroup_parent)
        self.run_dir = directory / "run"
        self.socket = self.run_dir / "docker.sock"
        self.environment = {"PYTHONPATH": str(ROOT)}

    def daemon_commands(self) -> list[list[str]]:
        if not (ROOT / "cove/daemon").exists():
            raise EngineError("cove/daemon isn't in this checkout")
        options = ["--data-root", str(self.directory / "data"), "--run-dir", str(self.run_dir)]
        options += ["--cgroup-parent", self.cgroup_parent, "--log-level", "warning", "--config-file="]
        return [[sys.executable, "-m", "cove.daemon", *options, "-H", f"unix://{self.socket}"]]

    def start_daemon(self, commands: object) -> None:
        assert self.room is not None
        self.run_dir.mkdir(mode=0o711, exist_ok=True)
        super().start_daemon(self.daemon_commands())

    def is_daemon(self, process: Process) -> bool:
        """The daemon and its workers: Python, but for the room's own first process."""
        return "python" in Path(process.program).name and process.inner_pids[1:] not in ((), (1,))

    def is_supervisor(self, process: Process) -> bool:
        """A supervisor runs from a memfd, in the room's pid namespace; in the container it has exec'ed."""
        name = process.program.removesuffix(" (deleted)")
        return len(process.inner_pids) == 2 and (name.startswith("/memfd:") or Path(name).name == "cove-init")


def find_cli() -> Path:
    """bin/cove of this checkout."""
    path = ROOT / "bin/cove"
    if not path.exists():
        raise EngineError("bin/cove isn't in this checkout: make setup")
    return path
