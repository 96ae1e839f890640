"""`cove plan` against a real daemon and real bundles: differences, failed starts, bundles of ordinary users."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cove.runtime.default_spec import default_spec
from tests.clients.test_cli_terminal import cove
from tests.unit.cli_fake_daemon import ROOT, run_cove
from tests.unit.test_cli_run import BOUND_S, Terminal

if TYPE_CHECKING:
    from tests.daemon import Daemon

NOBODY = 65534


@pytest.fixture(autouse=True)
def clean(daemon: Daemon) -> Iterator[None]:
    yield
    for container in daemon.client.containers.list(all=True):
        container.remove(force=True, v=True)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def make_bundle(directory: Path, **changes: Any) -> Path:
    (directory / "rootfs").mkdir(parents=True)
    config = default_spec(False)
    config["root"].update(changes)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def succeed(result: subprocess.CompletedProcess[bytes]) -> str:
    assert (result.returncode, result.stderr) == (0, b"")
    return result.stdout.decode()


# --- differences --------------------------------------------------------------------------------------


def test_a_difference_shows_what_more_flags_change(daemon: Daemon, image: str) -> None:
    flags = "--privileged --network host"
    lines = succeed(cove(daemon, "plan", "--against", flags, image, "true")).splitlines()
    assert lines[:2] == ["--- as given", f"+++ with {flags}"]
    removed = [line.split(maxsplit=2)[2] for line in lines[2:] if line.startswith("- ")]
    added = [line.split(maxsplit=2)[2] for line in lines[2:] if line.startswith("+ ")]
    assert "hide /proc/kcore" in removed
    assert any(line.startswith("install a system call filter") for line in removed)
    assert any(line.startswith("join the namespaces network") for line in removed)
    assert any(line.startswith("make device ") for line in added)
    assert not set(removed) & set(added)
    assert "tells about the host, or lets it be changed" in [line.strip() for line in lines]


def test_a_difference_is_data_for_programs(daemon: Daemon, image: str) -> None:
    result = cove(daemon, "plan", "--format", "json", "--against", "--read-only", image)
    found = json.loads(succeed(result))["differences"]
    assert {"RootReadonly"} <= {step["kind"] for step in found if step["change"] == "+"}
    assert all(step["why"] for step in found)
    assert succeed(cove(daemon, "plan", "--against", "-it", "--read-only", image)).startswith("---")
    assert succeed(cove(daemon, "plan", "--against", "--rm", image)) == "The two plans are the same.\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--against", "--privilegd", "x"],
            "--against: --privilegd: plan has no such flag; did you mean --privileged?",
        ),
        (["--against", "--format json", "x"], "--against: --format is no flag of create"),
        (["--against", "'", "x"], "quote it as for a shell"),
        ([], "plan: expected an image, --bundle DIR, or --failed CONTAINER"),
        (["--failed"], "--failed: expected one container"),
        (["--failed", "--memory", "5m", "x"], "--memory: it has no place beside --failed"),
        (["--bundle", "/b", "x"], "unexpected argument 'x' beside --bundle"),
    ],
)
def test_what_does_not_go_together_is_refused(daemon: Daemon, arguments: list[str], words: str) -> None:
    result = cove(daemon, "plan", *arguments)
    assert result.returncode == 125
    assert words in result.stderr.decode()


def test_a_difference_has_colours_on_a_terminal_alone(bundle: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", readonly=False)
    arguments = ["plan", "--bundle", str(bundle), "--against", str(other)]
    with Terminal(arguments, "unix:///nonexistent") as terminal:
        terminal.expect(b"\x1b[31m- ")
        assert terminal.process.wait(BOUND_S) == 0
    text = succeed(run_cove(*arguments, host="unix:///nonexistent"))
    assert "make the root filesystem read-only" in text
    assert "\x1b" not in text


# --- failed starts ------------------------------------------------------------------------------------


def failed_step(daemon: Daemon, name: str) -> tuple[list[str], dict[str, Any]]:
    """The marked line with the next two, and what the daemon says."""
    lines = succeed(cove(daemon, "plan", "--failed", name)).splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("> "))
    answer = json.loads(succeed(cove(daemon, "plan", "--failed", "--format", "json", name)))
    failed = answer["failed"]
    assert lines[at].split(maxsplit=2)[1:] == [str(failed["step"] + 1), failed["describe"]]
    assert answer["steps"][failed["step"]]["describe"] == failed["describe"]
    return lines[at : at + 3], failed


@pytest.mark.parametrize(
    ("flags", "command", "step", "name", "text"),
    [
        ([], ["no-such-program"], "run no-such-program", "ENOENT", "No such file or directory"),
        (["-w", "/etc/passwd"], ["true"], "change to /etc/passwd", "ENOTDIR", "Not a directory"),
        (
            ["--sysctl", "net.ipv4.ip_forward=many"],
            ["true"],
            "set sysctl net.ipv4.ip_forward = many",
            "EINVAL",
            "Invalid argument",
        ),
    ],
)
def test_the_step_at_which_a_start_failed_is_marked(
    daemon: Daemon, image: str, flags: list[str], command: list[str], step: str, name: str, text: str
) -> None:
    assert cove(daemon, "run", "--name", "web", *flags, image, *command).returncode != 0
    lines, failed = failed_step(daemon, "web")
    assert lines[0].endswith(step)
    assert lines[1].strip() == f"failed: {name}, {text}"
    assert lines[2].startswith("        ")
    assert (failed["section"], failed["name"], failed["text"]) == ("child", name, text)


def test_a_start_that_works_forgets_the_failure_before_it(daemon: Daemon, image: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    bind = f"{place}:/etc/passwd"
    assert cove(daemon, "run", "--name", "web", "-v", bind, image, "true").returncode != 0
    lines, _ = failed_step(daemon, "web")
    assert lines[0].endswith(f"bind {place} -> /etc/passwd recursive")
    place.rmdir()
    place.write_text("root:x:0:0::/:/bin/sh\n")
    assert cove(daemon, "start", "-a", "web").returncode == 0
    assert succeed(cove(daemon, "plan", "--failed", "web")).endswith("No step of its last start failed.\n")
    unknown = cove(daemon, "plan", "--failed", "none")
    assert (unknown.returncode, unknown.stderr) == (1, b"error: No such container: none\n")


# --- bundles ------------------------------------------------------------------------------------------


def test_a_bundle_is_explained_without_a_daemon(bundle: Path) -> None:
    text = succeed(run_cove("plan", "--bundle", str(bundle), host="unix:///nonexistent"))
    assert f"use {bundle}/rootfs as the root\n" in text
    assert "keep capabilities 0x20000420\n" in text
    assert "kill, net_bind_service, audit_write" in text
    assert "wait for the start of sh" in text
    assert text.index("before:") < text.index("clone:") < text.index("child:") < text.index("exit:")
    count = succeed(
        run_cove("plan", "--format", "{{len .steps}}", "--bundle", str(bundle), host="unix:///nonexistent")
    )
    assert int(count) > 40


def test_an_ordinary_user_gets_the_plan_that_root_would_get(bundle: Path) -> None:
    for directory in (bundle, *bundle.parents):
        if not directory.stat().st_mode & 0o001:
            directory.chmod(0o755)
    command = [str(ROOT / "bin/cove"), "plan", "--bundle", str(bundle)]
    if not os.access(ROOT, os.X_OK) or ROOT.stat().st_mode & 0o005 != 0o005:
        pytest.skip("this checkout can't be read by an ordinary user")
    ours = subprocess.run(command, capture_output=True, timeout=BOUND_S)
    theirs = subprocess.run(command, capture_output=True, timeout=BOUND_S, user=NOBODY, group=NOBODY)
    assert theirs.stderr == b""
    assert theirs.stdout == ours.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "JSON specification file config.json not found"),
        ("{", "config.json: is no JSON: it ends too early"),
        (
            {"linux": {"namespaces": [{"type": "netns"}]}},
            'config.json: linux.namespaces[0].type: "netns" is no namespace',
        ),
        ({"root": {"path": "nothing"}}, "invalid rootfs"),
    ],
)
def test_a_wrong_bundle_is_refused_by_its_path(bundle: Path, text: Any, words: str) -> None:
    config = bundle / "config.json"
    if isinstance(text, dict):
        config.write_text(json.dumps(json.loads(config.read_text()) | text))
    elif text is None:
        config.unlink()
    else:
        config.write_text(text)
    result = run_cove("plan", "--bundle", str(bundle), host="unix:///nonexistent")
    assert result.returncode == 1
    assert result.stdout == b""
    assert result.stderr.decode().startswith(f"error: --bundle {bundle}: {words}")
    assert result.stderr.count(b"\n") == 1


def test_warnings_of_a_bundle_are_told_beside_the_plan(bundle: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["capabilities"]["bounding"].append("CAP_NEW")
    (bundle / "config.json").write_text(json.dumps(config))
    result = run_cove("plan", "--bundle", str(bundle), host="unix:///nonexistent")
    assert result.returncode == 0
    assert result.stderr == (
        b"warning: config.json: process.capabilities.bounding: left out, for they are unknown: CAP_NEW\n"
    )
