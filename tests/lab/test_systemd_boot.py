"""What the lab promises with systemd as process 1."""

from __future__ import annotations

import subprocess
from pathlib import Path


def test_systemd_runs_and_answers_over_dbus() -> None:
    assert Path("/proc/1/comm").read_text() == "systemd\n"
    done = subprocess.run(
        ["systemctl", "is-system-running", "--wait"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "running\n", subprocess.getoutput("systemctl --no-pager list-units --failed")
    busctl = ["busctl", "get-property", "org.freedesktop.systemd1", "/org/freedesktop/systemd1"]
    answer = subprocess.run(
        [*busctl, "org.freedesktop.systemd1.Manager", "Version"], capture_output=True, timeout=60
    )
    assert answer.stdout.startswith(b's "25')
