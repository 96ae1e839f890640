"""The OCI runtime specification's own conformance programs: built, run against a runtime, and read.

They are runtime-tools' `validation/*` (go.mod pins the version), each a main package that makes bundles, calls the
runtime by $RUNTIME and prints TAP. What they don't say themselves is arranged around them: a root directory for the
runtime's state (by a wrapper script), a TMPDIR for their bundles, a mount namespace (a container without one of its
own mounts on the host, and runc leaves that there), and an end in bounded time. They put cgroups at
fixed places, /cgrouptest and /testdir, so the programs that do run one after the other, under a lock of the machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.system.oci_support import hierarchies

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = ROOT / "bin/cove-runtime"
MODULE = "github.com/opencontainers/runtime-tools"
BUILT = ROOT / "build/conformance"
OLDEST_GO = (1, 21)
BUILD_BOUND_S = 600.0
BOUND_S = 90.0
AT_ONCE = 2
_CGROUPS = ("cgrouptest", "testdir/cgrouptest/container", "testdir/cgrouptest", "testdir")


@dataclass(frozen=True)
class Outcome:
    """What a program found: how many checks held, and each thing that didn't, in its own words."""

    passed: int
    problems: tuple[str, ...]
    err: str


def missing() -> str:
    """Why the programs can't be built here; ""."""
    path = os.environ.get("PATH", "") + ":/usr/local/go/bin"
    go = shutil.which("go", path=path)
    if go is None:
        return "Go isn't installed"
    words = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"go(\d+)\.(\d+)", words)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_GO:
        return f"{words.strip()} is too old: {MODULE} needs Go {OLDEST_GO[0]}.{OLDEST_GO[1]}"
    return ""


def build() -> list[str]:
    """Build what isn't built (Go's cache knows), and give the programs' names; RuntimeError with Go's last words."""
    BUILT.mkdir(parents=True, exist_ok=True)
    path = os.environ.get("PATH", "") + ":/usr/local/go/bin"
    here = Path(__file__).parent
    # As runtime-tools' Makefile has it, /runtimetest is static: it runs in roots without a C library.
    environment = {
        **os.environ,
        "PATH": path,
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly",
        "GOWORK": "off",
    }
    with open(BUILT / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        targets = [f"{MODULE}/validation/...", f"{MODULE}/cmd/runtimetest"]
        _go(["go", "build", "-ldflags=-s -w", "-o", f"{BUILT}/bin/", *targets], here, environment)
        source = _go(["go", "list", "-m", "-f", "{{.Dir}}", MODULE], here, environment).strip()
        for archive in Path(source).glob("rootfs-*.tar.gz"):
            shutil.copyfile(archive, BUILT / "bin" / archive.name)
    return sorted(
        path.name for path in (BUILT / "bin").iterdir() if path.suffix == "" and path.name != "runtimetest"
    )


def run_programs(names: Sequence[str], runtime: str) -> dict[str, Outcome]:
    """Run these against a runtime, AT_ONCE at a time, and clear up behind each."""
    # The longest chain first: those that share their cgroups.
    ordered = sorted(names, key=lambda name: (not _shares_cgroups(name), name))
    chain = [name for name in ordered if _shares_cgroups(name)]
    with machine_lock(), ThreadPoolExecutor(AT_ONCE) as pool:
        chained = pool.submit(lambda: [run_program(name, runtime) for name in chain])
        others = {name: pool.submit(run_program, name, runtime) for name in ordered if name not in chain}
        found = dict(zip(chain, chained.result(), strict=True))
        found.update((name, future.result()) for name, future in others.items())
    return {name: found[name] for name in names}


def run_program(name: str, runtime: str) -> Outcome:
    """Run one to its end, or BOUND_S; its containers, bundles and cgroups are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="cove-conformance-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)  # a user namespace's root has to pass
        wrapper = Path(directory, "runtime")
        wrapper.write_text(f'#!/bin/sh\nexec {runtime} --root {directory}/state "$@"\n')
        wrapper.chmod(0o755)
        temporary = Path(directory, "tmp")
        temporary.mkdir()
        environment = {
            **os.environ,
            "RUNTIME": str(wrapper),
            "TMPDIR": str(temporary),
            "COVE_RUNTIME_WARM": "0",
        }
        child = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "slave", BUILT / "bin" / name],
            cwd=BUILT / "bin", env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        )  # fmt: skip
        try:
            out, err = child.communicate(timeout=BOUND_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            out, err = child.communicate()
            err += f"not done after {BOUND_S:.0f} s"
        finally:
            _delete_containers(str(wrapper), Path(directory, "state"))
    if _shares_cgroups(name):
        _remove_cgroups()
    return read_tap(out, err, child.returncode)


def read_tap(out: str, err: str, status: int) -> Outcome:
    """Read TAP as these programs print it: a failure can also be an exit status, or a bare diagnostic."""
    passed = 0
    problems: list[str] = []
    for line in out.splitlines():
        found = re.match(r"(not ok|ok) \d+ - (.*)", line)
        if found is None:
            # A diagnostic belongs to the check above it; without one it is all that the program says.
            loose = re.match(r'\s+"error": "(.*?)(\\n.*)?",?$', line)
            if loose is not None and not passed and not problems:
                problems.append(loose[1])
        elif found[1] == "ok":
            passed += 1
        else:
            problems.append(found[2])
    if status:
        problems.append(f"exit status {status}")
    return Outcome(passed, tuple(problems), err)


def _shares_cgroups(name: str) -> bool:
    return name.startswith("linux_cgroups_") or name in ("delete_resources", "delete_only_create_resources")


def _go(command: list[str], directory: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["nice", *command], cwd=directory, env=environment, capture_output=True, text=True, timeout=BUILD_BOUND_S,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:2])}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


@contextlib.contextmanager
def machine_lock() -> Iterator[None]:
    """Nobody else on this machine runs the programs meanwhile."""
    with open("/run/lock/cove-conformance", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _delete_containers(runtime: str, state: Path) -> None:
    names = [path.name for path in state.iterdir() if not path.name.startswith("~")] if state.exists() else []
    for name in names:
        subprocess.run(
            [runtime, "delete", "--force", name], capture_output=True, timeout=BOUND_S, check=False
        )


def _remove_cgroups() -> None:
    for hierarchy in hierarchies():
        for name in _CGROUPS:
            with contextlib.suppress(OSError):
                os.rmdir(hierarchy / name)
