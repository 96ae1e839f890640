"""Clients built from package registries, once: kept by the content of what pins them, found by the tests.

Each directory of programs/ pins one client or a few (go.mod and go.sum, or package.json and package-lock.json) and may
hold a program of ours that drives a client's library. What is made of it lies in CACHE/NAME-DIGEST, so that a second
run finds it. `scripts/clients.sh` builds all, tests only look: what can't be had on a machine is a test's skip.

    compose = require("compose2") / "docker-compose"     # skips the test where it couldn't be built
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).with_name("programs")
CACHE = Path(os.environ.get("COVE_CACHE") or "/var/cache/cove") / "clients"
BUILD_BOUND_S = 900.0
KEPT_S = 14 * 86400.0
_GO_DIRECTORIES = ("/usr/local/go/bin", "/usr/lib/go/bin")


class Unavailable(Exception):
    """A client can't be had on this machine; the sentence says why."""


@dataclass(frozen=True, kw_only=True)
class GoBuild:
    """Programs of one Go module: `packages` maps a program's name to its package (`./x`: one of ours)."""

    name: str
    packages: Mapping[str, str]
    linked: Sequence[str] = ()  # -X
    tags: str = ""

    def find_problem(self) -> str:
        """Why it can't be built here; ""."""
        go = _find("go")
        if go is None:
            return "Go isn't installed"
        wanted = re.search(r"^go (\d+)\.(\d+)(?:\.(\d+))?", (self.source / "go.mod").read_text(), re.M)
        words = _run([go, "env", "GOVERSION"], PROGRAMS)
        found = re.match(r"go(\d+)\.(\d+)(?:\.(\d+))?", words)
        assert wanted is not None
        if found is None or _numbers(found) < _numbers(wanted):
            return f"{words.strip()} is too old: {self.name} needs {wanted[0]}"
        return ""

    @property
    def source(self) -> Path:
        return PROGRAMS / self.name

    def build(self, target: Path) -> None:
        environment = {
            "CGO_ENABLED": "0",
            "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false",
            "GOWORK": "off",
            "GOTOOLCHAIN": "local",
        }
        flags = " ".join(["-s", "-w", *(f"-X {each}" for each in self.linked)])
        go = _find("go") or "go"
        for program, package in self.packages.items():
            command = [
                go,
                "build",
                "-tags",
                self.tags,
                "-ldflags",
                flags,
                "-o",
                str(target / program),
                package,
            ]
            _run(command, self.source, environment)


@dataclass(frozen=True, kw_only=True)
class NodeModules:
    """node_modules as a lock file has them; scripts of packages don't run."""

    name: str

    def find_problem(self) -> str:
        for tool in ("node", "npm"):
            if _find(tool) is None:
                return f"{tool} isn't installed"
        return ""

    @property
    def source(self) -> Path:
        return PROGRAMS / self.name

    def build(self, target: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(self.source / name, target / name)
        _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], target)


Build = GoBuild | NodeModules
BUILDS: Sequence[Build] = (
    GoBuild(
        name="compose2",
        packages={"docker-compose": "github.com/docker/compose/v2/cmd"},
        linked=["github.com/docker/compose/v2/internal.Version=v2.40.3"],
    ),
    GoBuild(
        name="compose5",
        packages={"docker-compose": "github.com/docker/compose/v5/cmd"},
        linked=["github.com/docker/compose/v5/internal.Version=v5.5.1"],
    ),
    NodeModules(name="node"),
    GoBuild(name="traefik", packages={"routes": "."}),
    GoBuild(
        name="prometheus",
        packages={"prometheus": "github.com/prometheus/prometheus/cmd/prometheus"},
        tags="remove_all_sd,enable_moby_sd",
    ),
    GoBuild(name="cosign", packages={"cosign": "github.com/sigstore/cosign/v2/cmd/cosign"}),
    GoBuild(name="act", packages={"act": "github.com/nektos/act"}),
    GoBuild(
        name="registry",
        packages={"conformance": "github.com/opencontainers/distribution-spec/conformance"},
    ),
    GoBuild(name="gosdk", packages={"walk": "./walk", "reaper": "./reaper"}),
)


def require(name: str) -> Path:
    """The directory of what was built; skips the test where it wasn't."""
    [build] = [each for each in BUILDS if each.name == name]
    target = target_of(build)
    if not target.is_dir():
        reason = (
            build.find_problem() or "it isn't built: sh scripts/clients.sh builds it, or says why it can't"
        )
        pytest.skip(f"{name}: {reason}")
    return target


def target_of(build: Build) -> Path:
    """Where what is made of a build's source lies; a program's command line is part of what it is made of."""
    digest = hashlib.sha256(repr(build).encode())
    for path in sorted(build.source.rglob("*")):
        if path.suffix in (".go", ".mod", ".sum", ".json"):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(build.source)} {len(content)}\n".encode() + content)
    return CACHE / f"{build.name}-{digest.hexdigest()[:16]}"


def make(build: Build) -> Path:
    """Build it where that wasn't done, and return its directory. Raises Unavailable."""
    target = target_of(build)
    if target.is_dir():
        os.utime(target)
        return target
    if problem := build.find_problem():
        raise Unavailable(problem)
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f".{build.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return target
        made = Path(tempfile.mkdtemp(prefix=f".{build.name}-", dir=CACHE))
        try:
            build.build(made)
            made.chmod(0o755)
            made.rename(target)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    _forget_old(build)
    return target


def main() -> int:
    """Build all; a line for each that takes time or can't be had. What is missing is no failure: tests skip."""
    for build in BUILDS:
        began = time.monotonic()
        if not target_of(build).is_dir():
            print(f"clients: building {build.name}", flush=True)
        try:
            make(build)
        except Unavailable as error:
            print(f"clients: {build.name} can't be had: {error}", file=sys.stderr)
        else:
            took_s = time.monotonic() - began
            if took_s > 1:
                print(f"clients: built {build.name} in {took_s:.0f} s", flush=True)
    return 0


def _forget_old(build: Build) -> None:
    """Remove what an older checkout had made of it, once nobody has used that for long."""
    for path in CACHE.glob(f"{build.name}-" + "[0-9a-f]" * 16):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > KEPT_S:
                shutil.rmtree(path, ignore_errors=True)


def _find(program: str) -> str | None:
    return shutil.which(program, path=":".join([os.environ.get("PATH", "/usr/bin:/bin"), *_GO_DIRECTORIES]))


def _numbers(match: re.Match[str]) -> tuple[int, ...]:
    return tuple(int(number or 0) for number in match.groups())


def _run(command: Sequence[str], directory: Path, environment: Mapping[str, str] | None = None) -> str:
    """What a program printed; Unavailable with its last words where it failed."""
    try:
        done = subprocess.run(
            [_find(command[0]) or command[0], *command[1:]],
            cwd=directory,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_BOUND_S,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{' '.join(command[:2])} wasn't done after {BUILD_BOUND_S:.0f} s") from error
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise Unavailable(f"{' '.join(command[:2])}: {' / '.join(words) or 'it failed without a word'}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
