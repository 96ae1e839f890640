"""Completion: the words come from the command tables and the daemon, and the shells' scripts work."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cove.cli.client import Client
from cove.cli.completion import SHELLS, complete
from tests.unit.cli_fake_daemon import ROOT, FakeDaemon, run_cove


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(
        tmp_path / "d.sock",
        {
            "GET /containers/json": lambda _: (200, [{"Names": ["/web"]}, {"Names": ["/worker"]}]),
            "GET /images/json": lambda _: (200, [{"RepoTags": ["debian:latest"]}, {"RepoTags": None}]),
            "GET /volumes": lambda _: (200, {"Volumes": [{"Name": "data"}]}),
            "GET /networks": lambda _: (200, [{"Name": "bridge"}]),
        },
    )
    yield fake
    fake.close()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["re"], ["recreate", "registry", "rename", "restart"]),
        (["volume", "c"], ["create"]),
        (["run", "--mem"], ["--memory", "--memory-reservation", "--memory-swap", "--memory-swappiness"]),
        (["-H", "unix:///x", "stop", "w"], ["web", "worker"]),
        (["stop", "web", "wo"], ["worker"]),
        (["run", "--name", "x", "d"], ["debian:latest"]),
        (["run", "-it", "debian", ""], []),
        (["cp", "w"], ["web:", "worker:"]),
        (["volume", "rm", ""], ["data"]),
        (["network", "rm", ""], ["bridge"]),
        (["completion", "z"], ["zsh"]),
        (["nonsense", ""], []),
    ],
)
def test_the_next_word_is_found(daemon: FakeDaemon, words: list[str], found: list[str]) -> None:
    assert complete(words, Client(daemon.address)) == found


def test_without_a_daemon_nothing_is_said(tmp_path: Path) -> None:
    result = run_cove("completion", "words", "--", "stop", "w", host=f"unix://{tmp_path}/none")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"\n", b"")


@pytest.mark.parametrize(
    ("line", "found"),
    [("cove stop wo", "worker"), ("cove stop ", "web worker"), ("cove rmi debian:la", "latest")],
)
def test_bash_completes_by_the_printed_script(
    daemon: FakeDaemon, tmp_path: Path, line: str, found: str
) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    (tmp_path / "cove").symlink_to(ROOT / "bin" / "cove")
    script = SHELLS["bash"] + f"COMP_LINE='{line}' COMP_POINT={len(line)}; _cove; " + 'echo "${COMPREPLY[@]}"'
    result = subprocess.run(
        [bash, "--norc", "-c", script],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "COVE_HOST": daemon.address},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout == f"{found}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_printed(shell: str) -> None:
    result = run_cove("completion", shell)
    assert (result.returncode, result.stdout.decode()) == (0, SHELLS[shell])
    program = shutil.which(shell)
    if program is not None:
        subprocess.run([program, "-n"], input=result.stdout, timeout=60, check=True)


def test_another_shell_is_refused() -> None:
    result = run_cove("completion", "csh")
    assert result.stderr == b"error: csh: expected bash, zsh or fish, e.g. cove completion bash\n"
