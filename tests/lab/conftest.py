"""Tests that run inside the lab's machine (docs/lab.md); tests/system/test_lab.py boots it and shows their results.

test_systemd_*.py run with systemd as process 1, all others on a machine without. On the host nothing here is
collected. Each test must leave the machine as it found it (tests/leaks.py).
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.leaks import no_leaks

__all__ = ["no_leaks"]

collect_ignore_glob = []
if not os.environ.get("COVE_LAB"):
    collect_ignore_glob = ["test_*.py"]
elif Path("/run/systemd/system").is_dir():
    collect_ignore_glob = ["test_[!s]*.py"]
else:
    collect_ignore_glob = ["test_systemd_*.py"]
