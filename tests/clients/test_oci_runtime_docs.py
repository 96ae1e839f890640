"""docs/oci-runtime.md's examples do what the page says, in its order."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import leaks
from tests.clients.test_cli_docs import ROOT, examples, matches
from tests.system.oci_support import make_root, remove_cgroups


@pytest.fixture(autouse=True)
def cgroup_names() -> None:
    """Containers without a cgroupsPath have their id as the cgroup's name."""
    leaks.own_prefix("first")


def test_the_page_s_examples_print_what_it_says(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    make_root(bundle / "rootfs")
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    (bin_directory / "cove-runtime").write_text(
        f'#!/bin/sh\nexec {ROOT}/bin/cove-runtime --root {tmp_path}/state "$@"\n'
    )
    (bin_directory / "cove-runtime").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{bin_directory}:{os.environ['PATH']}",
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
    }
    try:
        for command, expected in [step for block in examples(ROOT / "docs/oci-runtime.md") for step in block]:
            result = subprocess.run(
                ["sh", "-c", command], env=environment, cwd=bundle, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=100, text=True,
            )  # fmt: skip
            actual = result.stdout.splitlines()
            if result.returncode:
                actual.append(f"[exit {result.returncode}]")
            assert matches(expected, actual), f"$ {command}\n{result.stdout}[exit {result.returncode}]"
    finally:
        subprocess.run([bin_directory / "cove-runtime", "delete", "--force", "web"], capture_output=True)
        for name in ("first", "web"):
            remove_cgroups(name)
