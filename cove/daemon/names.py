"""What a daemon calls the host's objects. Pure."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_RUN_DIR = Path("/run/cove")


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What this daemon calls the host's objects; a daemon with another run dir gets other names."""

    bridge: str
    table: str
    cgroup_parent: str


def plan_names(run_dir: Path) -> Names:
    if run_dir == DEFAULT_RUN_DIR:
        return Names(bridge="cove0", table="cove", cgroup_parent="cove")
    tag = hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:8]
    return Names(bridge=f"cove-{tag}", table=f"cove-{tag}", cgroup_parent=f"cove-{tag}")
