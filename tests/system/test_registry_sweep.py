"""Garbage collection and the checker of a registry, while it serves and after it was killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.registryserver import ROOT, Registry, digest_of, make_manifest, run_registry, serving


def gc(registry: Registry, *words: str) -> str:
    done = run_registry("gc", f"--root={registry.root}", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(registry: Registry) -> subprocess.CompletedProcess[str]:
    return run_registry("check", f"--root={registry.root}")


def test_gc_frees_what_nobody_needs_and_nothing_else(tmp_path: Path) -> None:
    with serving(tmp_path / "root") as registry:
        kept = registry.push_image("a/app", "1", [b"shared", b"kept"])
        gone = registry.push_image("b/app", "1", [b"shared", b"gone"])
        pending = registry.push_blob("c/app", b"its manifest comes later")
        assert registry.ask("DELETE", f"/v2/b/app/manifests/{gone}").status == 202
        assert "would remove 0 blobs" not in gc(registry, "--dry-run", "--grace=0s")
        assert registry.ask("GET", f"/v2/b/app/blobs/{digest_of(b'gone')}").status == 200
        assert "removed 0 blobs" in gc(registry)  # all are younger than the grace
        assert registry.ask("GET", f"/v2/c/app/blobs/{pending}").status == 200
        told = gc(registry, "--grace=0s")
        assert "2 empty repositories" in told, told
        for path in (
            f"b/app/blobs/{digest_of(b'gone')}",
            f"c/app/blobs/{pending}",
            f"b/app/manifests/{gone}",
        ):
            assert registry.ask("GET", f"/v2/{path}").status == 404
        assert not (registry.root / "blobs/sha256" / digest_of(b"gone")[7:]).exists()
        for data in (b"shared", b"kept"):
            assert registry.ask("GET", f"/v2/a/app/blobs/{digest_of(data)}").body == data
        assert registry.ask("GET", f"/v2/a/app/manifests/{kept}").status == 200
        found = check(registry)
        assert found.returncode == 0 and "no problem found" in found.stdout and "note:" not in found.stdout


def test_untagged_manifests_go_on_request_with_what_is_said_of_them(tmp_path: Path) -> None:
    with serving(tmp_path / "root") as registry:
        old = registry.push_image("app", "latest", [b"old"], annotations={"n": "1"})
        new = registry.push_image("app", "latest", [b"new"], annotations={"n": "2"})
        registry.push_blob("app", b"{}")
        said = {}
        for about in (old, new):
            signature = make_manifest(
                b"{}", [], subject={"mediaType": "x/y", "digest": about, "size": 1}, artifactType="a/b"
            )
            assert registry.push_manifest("app", digest_of(signature), signature).status == 201
            said[about] = digest_of(signature)
        gc(registry, "--grace=0s")
        assert registry.ask("GET", f"/v2/app/manifests/{old}").status == 200
        assert "2 untagged manifests" in gc(registry, "--grace=0s", "--untagged")
        status = {
            each: registry.ask("GET", f"/v2/app/manifests/{each}").status
            for each in (old, new, *said.values())
        }
        assert status == {old: 404, new: 200, said[old]: 404, said[new]: 200}


def test_the_checker_names_what_is_missing_and_what_is_damaged(tmp_path: Path) -> None:
    with serving(tmp_path / "root") as registry:
        registry.push_image("app", "1", [b"to be damaged", b"to be lost"])
        blobs = registry.root / "blobs/sha256"
        (blobs / digest_of(b"to be damaged")[7:]).write_bytes(b"to be dAmaged")
        (blobs / digest_of(b"to be lost")[7:]).unlink()
        (blobs / ("0" * 64)).write_bytes(b"from nowhere")
        found = check(registry)
        assert found.returncode == 1
        assert f"{digest_of(b'to be damaged')} is damaged" in found.stdout
        assert f"{digest_of(b'to be lost')} is missing; it is needed by app" in found.stdout
        assert "1 files of blobs are known to no repository" in found.stdout
        lost = registry.ask("GET", f"/v2/app/blobs/{digest_of(b'to be lost')}")
        assert (lost.status, lost.code) == (404, "BLOB_UNKNOWN")
        registry.push_blob("app", b"to be lost")  # a push puts it right
        assert registry.ask("GET", f"/v2/app/blobs/{digest_of(b'to be lost')}").body == b"to be lost"
        gc(registry)
        assert not (blobs / ("0" * 64)).exists()


@pytest.mark.parametrize("row_first", [True, False])
def test_a_sweep_that_was_killed_between_file_and_row_is_undone(tmp_path: Path, row_first: bool) -> None:
    with serving(tmp_path / "root") as registry:
        digest = registry.push_blob("app", b"on its way out")
        registry.kill()
        file, trash = (
            registry.root / "blobs/sha256" / digest[7:],
            registry.root / "trash" / f"sha256-{digest[7:]}",
        )
        file.rename(trash)
        if row_first:
            with contextlib.closing(sqlite3.connect(registry.root / "catalog.db")) as db:
                db.execute("DELETE FROM members")
                db.execute("DELETE FROM contents")
                db.commit()
        registry.start()
        status = registry.ask("GET", f"/v2/app/blobs/{digest}").status
        assert (status, file.exists(), trash.exists()) == (
            (404, False, False) if row_first else (200, True, False)
        )


def test_kill_9_during_pushes_and_sweeps_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """Pushers, deleters and sweeps without pause; the server and the sweeper are killed again and again."""
    acknowledged: dict[str, list[str]] = {}
    stop = threading.Event()
    shared = [os.urandom(2000 + number) for number in range(6)]

    def push(registry: Registry, worker: int) -> None:
        rng = random.Random(worker)
        number = 0
        while not stop.is_set():
            number += 1
            layers = [*rng.sample(shared, 3), os.urandom(rng.choice((10, 5000, 300_000)))]
            name, tag = f"storm/app{worker}", f"v{number}"
            with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):
                digest = registry.push_image(name, tag, layers)
                acknowledged[f"{name}:{tag}"] = [digest, *(digest_of(each) for each in layers)]
                if number % 3 == 0:
                    gone = acknowledged.pop(f"{name}:{tag}")
                    registry.ask("DELETE", f"/v2/{name}/manifests/{gone[0]}")

    def sweep(registry: Registry) -> None:
        rng = random.Random(99)
        while not stop.is_set():
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "cove.registry",
                    "gc",
                    f"--root={registry.root}",
                    "--grace=3s",
                    "--untagged",
                ],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.DEVNULL,
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.choice((0.2, 0.3, 0.4, 5.0)))
            process.kill()
            process.wait()

    with serving(tmp_path / "root") as registry:
        threads = [threading.Thread(target=push, args=(registry, worker)) for worker in range(4)]
        threads.append(threading.Thread(target=sweep, args=(registry,)))
        for thread in threads:
            thread.start()
        rng = random.Random(5)
        for _ in range(8):
            time.sleep(rng.uniform(0.5, 1.6))
            registry.kill()
            registry.start()
        stop.set()
        for thread in threads:
            thread.join(60)
        found = check(registry)
        assert found.returncode == 0, found.stdout
        assert len(acknowledged) > 20
        for name, (manifest, *blobs) in acknowledged.items():
            repository, _, tag = name.partition(":")
            answer = registry.ask("GET", f"/v2/{repository}/manifests/{tag}")
            assert answer.status == 200 and digest_of(answer.body) == manifest, name
            for blob in blobs:
                assert digest_of(registry.ask("GET", f"/v2/{repository}/blobs/{blob}").body) == blob, name
        gc(registry, "--grace=0s", "--untagged")
        found = check(registry)
        assert found.returncode == 0 and "note:" not in found.stdout, found.stdout
        assert json.loads(registry.ask("GET", "/v2/_catalog").body)["repositories"]
