"""Devices by name, by both command lines."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import IMAGE, ROOT, Daemon

COVE = str(ROOT / "bin" / "cove")
BOUND_S = 60.0


@pytest.fixture(scope="module")
def device_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory: Path = tmp_path_factory.mktemp("cdi")
    for kind, names in (("vendor.example/thing", ("one", "two")), ("nvidia.com/gpu", ("0", "1", "all"))):
        devices = [{"name": name, "containerEdits": {"env": [f"D_{kind[0]}_{name}=yes"]}} for name in names]
        spec = {"cdiVersion": "0.6.0", "kind": kind, "devices": devices}
        (directory / f"{kind.partition('/')[0]}.json").write_text(json.dumps(spec))
    with Daemon("--cdi-spec-dir", str(directory)) as running:
        running.load_image()
        yield running


@pytest.mark.parametrize("program", ["docker", COVE])
@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (
            ["--device", "vendor.example/thing=one", "--device", "vendor.example/thing=two"],
            {"D_v_one", "D_v_two"},
        ),
        (["--device", "vendor.example/thing=one", "--device", "/dev/null:/dev/mine"], {"D_v_one"}),
        (["--gpus", "all"], {"D_n_all"}),
        (["--gpus", "2"], {"D_n_0", "D_n_1"}),
        (["--gpus", "device=1"], {"D_n_1"}),
    ],
)
def test_a_container_gets_the_devices_that_are_named(
    device_daemon: Daemon, program: str, flags: list[str], names: set[str]
) -> None:
    done = subprocess.run(
        [program, "run", "--rm", *flags, IMAGE, "sh", "-c", "set"],
        env={**os.environ, "DOCKER_HOST": device_daemon.host}, capture_output=True, text=True, timeout=BOUND_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {line.partition("=")[0] for line in done.stdout.splitlines() if line.startswith("D_")} == names
