"""docker with dockerd 20.10, skopeo and Cove itself push to `cove registry serve` and pull from it."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.clients.engines import Engine, running_engine
from tests.daemon import IMAGE
from tests.imagekit import File, make_oci_layout
from tests.registryserver import serving

BCRYPT = "$2y$10$abcdefghijklmnopqrstuuqflPDzB6gcMhKa1rZqKiun2YGL5sa2u"  # of "secret"


@pytest.fixture(scope="module", params=["dockerd", "cove"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    yield from running_engine(request.param)


def near(engine: Engine) -> Sequence[str]:
    """A program that starts another one in the engine's network."""
    return ["nsenter", "--net", "--target", str(engine._inner_pid)] if engine._inner_pid else []


@pytest.fixture
def docker(tmp_path: Path) -> Sequence[str]:
    program = shutil.which("docker")
    if program is None:
        pytest.skip("docker isn't installed")
    return [program, "--config", str(tmp_path / "docker-config")]


@pytest.mark.parametrize("options", [[], ["--tokens"]], ids=["basic", "tokens"])
def test_docker_logs_in_pushes_and_pulls(
    engine: Engine, docker: Sequence[str], tmp_path: Path, options: list[str]
) -> None:
    (tmp_path / "htpasswd").write_text(f"alice:{BCRYPT}\n")
    users = f"--htpasswd={tmp_path}/htpasswd"
    with serving(tmp_path / "root", users, *options, prefix=near(engine)) as registry:
        name = f"localhost:{registry.port}/team/app:1"

        def run(*words: str, good: bool = True) -> str:
            done = subprocess.run(
                [*docker, "-H", engine.host, *words], capture_output=True, text=True, timeout=100
            )
            assert (done.returncode == 0) is good, done.stdout + done.stderr
            return done.stdout + done.stderr

        run("tag", IMAGE, name)
        run("push", name, good=False)
        refused = run("login", "-u", "alice", "-p", "wrong", f"localhost:{registry.port}", good=False)
        assert "401" in refused or "unauthorized" in refused
        run("login", "-u", "alice", "-p", "secret", f"localhost:{registry.port}")
        pushed = run("push", name)
        digest = pushed.partition("digest: ")[2].split()[0]
        assert digest.startswith("sha256:"), pushed
        assert "Layer already exists" in run("push", name)
        other = name.replace("team/app:1", "team/other:2")
        run("tag", IMAGE, other)
        assert "Mounted from team/app" in run("push", other)
        run("rmi", name, other)
        run("pull", name)
        assert f"localhost:{registry.port}/team/app@{digest}" in run("inspect", name)
        assert run("run", "--rm", "--network=none", name, "echo", "hello").strip().endswith("hello")
        run("rmi", name)
        log = registry.log.read_text()
        assert "user=alice" in log and "secret" not in log


def test_skopeo_copies_there_and_back(tmp_path: Path) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo isn't installed")
    archive = tmp_path / "image.tar"
    archive.write_bytes(
        make_oci_layout(
            [[File("a", b"one" * 10_000)], [File("b", b"two")]],
            names=["app:1"],
            compress=gzip.compress,
            nested=True,
            platforms=("amd64", "arm64"),
        )
    )

    def skopeo(*words: str) -> str:
        done = subprocess.run(["skopeo", *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with serving(tmp_path / "root") as registry:
        where = f"docker://{registry.address}/deep/er/app:1"
        plain = ["--insecure-policy", "--dest-tls-verify=false", "--src-tls-verify=false"]
        skopeo("copy", *plain, "--all", f"oci-archive:{archive}", where)
        found = json.loads(skopeo("inspect", "--tls-verify=false", where))
        assert found["RepoTags"] == ["1"] and len(found["Layers"]) == 2
        skopeo("copy", *plain, "--format=v2s2", where, f"docker://{registry.address}/docker/app:2")
        skopeo("copy", *plain, f"docker://{registry.address}/docker/app:2", f"oci:{tmp_path}/oci:2")
        assert (tmp_path / "oci/index.json").exists()
        skopeo("delete", "--tls-verify=false", where)
        assert registry.ask("GET", "/v2/deep/er/app/manifests/1").status == 404
        tags = json.loads(
            skopeo("list-tags", "--tls-verify=false", f"docker://{registry.address}/docker/app")
        )
        assert tags["Tags"] == ["2"]
