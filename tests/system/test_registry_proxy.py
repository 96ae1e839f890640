"""A cache of other registries: Debian's docker-registry behind it, and upstreams that fail, lie and change."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.registrykit import MANIFEST, HostileRegistry, Reply, Repository, Request, docker_registry, error
from tests.registryserver import Registry, digest_of, run_registry, serving


def image(repository: Repository, tag: str = "latest", size: int = 100_000) -> tuple[str, bytes]:
    """An image upstream: its manifest's digest, and its layer."""
    layer = os.urandom(size)
    return repository.add_image([(layer, layer, "+gzip")], tag), layer


def outcomes(registry: Registry) -> dict[str, int]:
    lines = registry.ask("GET", "/metrics").body.decode().splitlines()
    return {
        line.split('"')[1]: int(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("cove_registry_proxy_total")
    }


def test_what_debian_s_registry_has_is_fetched_once_and_outlives_it(tmp_path: Path) -> None:
    layer, config = os.urandom(300_000), b"{}"
    with serving(tmp_path / "cache", "--proxy=http://127.0.0.1:1") as unused:
        assert unused.ask("GET", "/v2/app/manifests/1").status == 502
    with docker_registry(tmp_path / "upstream") as host:
        for data in (layer, config):
            begun = urllib.request.urlopen(
                urllib.request.Request(f"http://{host}/v2/team/app/blobs/uploads/", b"", method="POST")
            )
            where = f"{begun.headers['Location']}&digest={digest_of(data)}"
            put = urllib.request.Request(
                where, data, {"Content-Type": "application/octet-stream"}, method="PUT"
            )
            assert urllib.request.urlopen(put).status == 201
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": digest_of(config),
                    "size": 2,
                },
                "layers": [{"mediaType": "application/x", "digest": digest_of(layer), "size": len(layer)}],
            }
        ).encode()
        url = f"http://{host}/v2/team/app/manifests/1"
        put = urllib.request.Request(url, manifest, {"Content-Type": MANIFEST}, method="PUT")
        assert urllib.request.urlopen(put).status == 201
        upstream = f"--proxy=up.test=http://{host}/team"
        with serving(tmp_path / "root", upstream, "--proxy-age=0s") as registry:
            for path in ("up.test/app/manifests/1", "app/manifests/1?ns=up.test"):
                answer = registry.ask("GET", f"/v2/{path}")
                assert (answer.status, answer.body) == (200, manifest)
            assert answer.headers["oci-namespace"] == "up.test"
            for data in (layer, config):
                path = f"/v2/up.test/app/blobs/{digest_of(data)}"
                assert registry.ask("HEAD", path).headers["content-length"] == str(len(data))
                assert registry.ask("GET", path).body == data
            assert registry.ask("GET", "/v2/up.test/app/tags/list").json()["tags"] == ["1"]
            assert registry.ask("GET", "/v2/up.test/none/manifests/1").status == 404
            assert registry.push_manifest("up.test/app", "2", manifest).status == 405
            assert registry.ask("POST", "/v2/up.test/app/blobs/uploads/").status == 405
            own = registry.push_image("own/app", "1", [b"pushed here"])
            assert registry.ask("GET", f"/v2/own/app/manifests/{own}").status == 200
    with serving(tmp_path / "root", upstream, "--proxy-age=0s") as registry:  # the upstream has gone
        answer = registry.ask("GET", "/v2/up.test/app/manifests/1")
        assert (answer.status, answer.body) == (200, manifest) and answer.headers["warning"].startswith(
            "299 - "
        )
        assert registry.ask("GET", f"/v2/up.test/app/blobs/{digest_of(layer)}").body == layer
        assert registry.ask("GET", "/v2/up.test/app/manifests/other").status == 502
        assert run_registry("check", f"--root={registry.root}").returncode == 0


def test_a_tag_that_moves_is_seen_after_its_age_and_costs_a_head_otherwise(tmp_path: Path) -> None:
    repository = Repository()
    first, _ = image(repository)
    with (
        HostileRegistry(repository) as upstream,
        serving(tmp_path / "root", f"--proxy={upstream.url}", "--proxy-age=2s") as registry,
    ):
        for _ in range(3):
            assert registry.ask("GET", "/v2/app/manifests/latest").headers["docker-content-digest"] == first
        assert (upstream.count("GET", "manifests"), upstream.count("HEAD", "manifests")) == (1, 0)
        time.sleep(2.1)
        assert registry.ask("GET", "/v2/app/manifests/latest").headers["docker-content-digest"] == first
        assert (upstream.count("GET", "manifests"), upstream.count("HEAD", "manifests")) == (1, 1)
        second, _ = image(repository)
        time.sleep(2.1)
        assert registry.ask("GET", "/v2/app/manifests/latest").headers["docker-content-digest"] == second
        assert registry.ask("GET", f"/v2/app/manifests/{first}").status == 200
        assert outcomes(registry)["hit"] >= 3


def test_two_who_ask_for_one_blob_cause_one_download_and_follow_it(tmp_path: Path) -> None:
    repository = Repository()
    _, layer = image(repository, size=2 << 20)
    half, go = threading.Event(), threading.Event()

    def slowly(request: Request) -> Reply:
        if digest_of(layer) in request.target and request.method == "GET":

            def body() -> object:
                yield layer[: 1 << 20]
                half.set()
                assert go.wait(20)
                yield layer[1 << 20 :]

            return Reply(body=body(), length=len(layer))
        return repository(request)

    with (
        HostileRegistry(slowly) as upstream,
        serving(tmp_path / "root", f"--proxy={upstream.url}") as registry,
    ):
        path = f"/v2/app/blobs/{digest_of(layer)}"
        with ThreadPoolExecutor(4) as pool, registry.connect() as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert half.wait(20)
            seen = b""
            while len(seen) < 900_000:  # what is there is sent on before the rest has come
                seen += sock.recv(1 << 16)
            others = [pool.submit(registry.ask, "GET", path) for _ in range(3)]
            part = registry.ask("GET", path, headers={"Range": "bytes=100-199"})
            assert (part.status, part.body) == (206, layer[100:200])
            go.set()
            for other in others:
                answer = other.result()
                assert (answer.body, answer.headers["content-length"]) == (layer, str(len(layer)))
        assert upstream.count("GET", digest_of(layer)) == 1
        assert registry.ask("GET", path).body == layer
        assert upstream.count("GET", digest_of(layer)) == 1


def test_a_blob_that_is_not_what_its_name_says_is_given_to_nobody_whole(tmp_path: Path) -> None:
    repository = Repository()
    _, layer = image(repository)
    wrong = bytes(reversed(layer))

    def lying(request: Request) -> Reply:
        if digest_of(layer) in request.target:
            return Reply(body=wrong)
        return repository(request)

    with (
        HostileRegistry(lying) as upstream,
        serving(tmp_path / "root", f"--proxy={upstream.url}") as registry,
    ):
        for _ in range(2):
            with registry.connect() as sock:
                sock.sendall(
                    f"GET /v2/app/blobs/{digest_of(layer)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
                )
                seen = b""
                try:
                    while data := sock.recv(1 << 16):
                        seen += data
                except ConnectionResetError:
                    pass
            head, _, body = seen.partition(b"\r\n\r\n")
            assert len(body) < len(wrong) or head.startswith(b"HTTP/1.1 502")
        assert [*(registry.root / "uploads").iterdir()] == []
        manifest, _ = next(iter(repository.manifests.values()))
        assert manifest
        found = run_registry("check", f"--root={registry.root}")
        assert found.returncode == 0 and "0 blobs" in found.stdout


def test_a_download_that_breaks_off_goes_on_where_it_stopped(tmp_path: Path) -> None:
    repository = Repository()
    _, layer = image(repository, size=500_000)
    ranges: list[str] = []

    def breaking(request: Request) -> Reply:
        if digest_of(layer) in request.target:
            ranges.append(request.headers.get("range", ""))
            if len(ranges) == 1:
                return Reply(body=[layer[:200_000]], length=len(layer))
        return repository(request)

    with (
        HostileRegistry(breaking) as upstream,
        serving(tmp_path / "root", f"--proxy={upstream.url}") as registry,
    ):
        assert registry.ask("GET", f"/v2/app/blobs/{digest_of(layer)}").body == layer
        assert ranges == ["", "bytes=200000-"]


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (Reply(500), 502),
        (error(404, "MANIFEST_UNKNOWN", "no"), 404),
        (error(401, "UNAUTHORIZED", "no"), 403),
        (Reply(body=b"not json", headers={"Content-Type": MANIFEST}), 502),
        (Reply(body=b"x" * (5 << 20), headers={"Content-Type": MANIFEST}), 502),
        (Reply(302, {"Location": "/v2/app/manifests/1"}), 502),
        (Reply(raw=[b"rubbish\r\n\r\n"]), 502),
    ],
)
def test_an_upstream_that_misbehaves_is_told_in_a_sentence(tmp_path: Path, reply: Reply, status: int) -> None:
    with (
        HostileRegistry(lambda request: reply) as upstream,
        serving(tmp_path / "root", f"--proxy={upstream.url}") as registry,
    ):
        answer = registry.ask("GET", "/v2/app/manifests/1")
        assert answer.status == status and answer.message
        assert registry.ask("GET", "/v2/").status == 200


def test_credentials_go_to_their_upstream_and_into_no_log(tmp_path: Path) -> None:
    repository = Repository()
    image(repository)
    word = base64.b64encode(b"robot:very-secret").decode()

    def guarded(request: Request) -> Reply:
        if request.headers.get("authorization") != f"Basic {word}":
            return Reply(401, {"WWW-Authenticate": 'Basic realm="x"'})
        return repository(request)

    with HostileRegistry(guarded) as upstream:
        (tmp_path / "config.json").write_text(json.dumps({"auths": {upstream.host: {"auth": word}}}))
        options = [f"--proxy={upstream.url}", f"--proxy-credentials={tmp_path}/config.json"]
        with serving(tmp_path / "root", *options) as registry:
            assert registry.ask("GET", "/v2/app/manifests/latest").status == 200
            registry.stop()
            assert "very-secret" not in registry.log.read_text() and word not in registry.log.read_text()
        with serving(tmp_path / "other", f"--proxy={upstream.url}") as registry:
            assert registry.ask("GET", "/v2/app/manifests/latest").code == "DENIED"


def test_docker_hub_s_short_names_are_its_library(tmp_path: Path) -> None:
    repository = Repository("library/app")
    digest, _ = image(repository)
    with (
        HostileRegistry(repository) as upstream,
        serving(tmp_path / "root", f"--proxy=docker.io={upstream.url}") as registry,
    ):
        for path in (
            "docker.io/app/manifests/latest",
            "docker.io/library/app/manifests/latest",
            "app/manifests/latest?ns=docker.io",
        ):
            assert registry.ask("GET", f"/v2/{path}").headers["docker-content-digest"] == digest
        assert upstream.count("GET", "manifests") == 1
        assert registry.ask("GET", "/v2/other/app/manifests/1").code == "MANIFEST_UNKNOWN"


def test_kill_9_in_a_download_leaves_nothing_and_the_next_server_fetches_it(tmp_path: Path) -> None:
    repository = Repository()
    _, layer = image(repository, size=600_000)
    half = threading.Event()
    with HostileRegistry(repository) as upstream:

        def halting(request: Request) -> Reply:
            if digest_of(layer) in request.target and not half.is_set():

                def body() -> object:
                    yield layer[:300_000]
                    half.set()
                    yield from upstream.stall()

                return Reply(body=body(), length=len(layer))
            return repository(request)

        upstream.handler = halting
        with serving(tmp_path / "root", f"--proxy={upstream.url}") as registry:
            path = f"/v2/app/blobs/{digest_of(layer)}"
            with registry.connect() as sock:
                sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert half.wait(20) and sock.recv(1 << 16)
                registry.kill()
            registry.start()
            assert [*(registry.root / "uploads").iterdir()] == []
            assert run_registry("check", f"--root={registry.root}").returncode == 0
            assert registry.ask("GET", path).body == layer
