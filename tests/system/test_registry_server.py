"""A registry as its clients meet it: uploads, ranges, lists, deletions, limits; over a real socket."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cove.cli.registry import COMMANDS
from cove.registry.options import parse_options
from tests.registryserver import (
    OCI_INDEX,
    ROOT,
    Registry,
    describe,
    digest_of,
    make_manifest,
    run_registry,
    serving,
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with serving(tmp_path_factory.mktemp("registry") / "root") as running:
        yield running


def test_a_blob_in_chunks_goes_on_where_the_server_says(registry: Registry) -> None:
    data = os.urandom(100_000)
    where = registry.begin("chunks/app")
    first = registry.ask("PATCH", where, data[:60_000], {"Content-Range": "0-59999"})
    assert (first.status, first.headers["range"]) == (202, "0-59999")
    wrong = registry.ask("PATCH", where, data[70_000:], {"Content-Range": "70000-99999"})
    assert (wrong.status, wrong.code) == (416, "BLOB_UPLOAD_INVALID")
    assert wrong.headers["range"] == "0-59999"
    status = registry.ask("GET", where)
    assert (status.status, status.headers["range"]) == (204, "0-59999")
    done = registry.ask(
        "PUT", f"{where}?digest={digest_of(data)}", data[60_000:], {"Content-Range": "60000-99999"}
    )
    assert done.status == 201
    assert registry.ask("GET", done.headers["location"]).body == data
    assert registry.ask("GET", where).code == "BLOB_UPLOAD_UNKNOWN"


def test_a_body_that_breaks_off_is_kept_and_the_upload_survives_a_kill(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    with serving(tmp_path / "root") as registry:
        where = registry.begin("resume/app")
        with registry.connect() as sock:
            head = f"PATCH {where} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
            sock.sendall(head.encode() + data[: 2 << 20])
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(100) == b""
        registry.kill()
        registry.start()
        offset = int(registry.ask("GET", where).headers["range"].removeprefix("0-")) + 1
        assert offset == 2 << 20
        assert registry.ask("PATCH", where, data[offset:]).status == 202
        done = registry.ask("PUT", f"{where}?digest={digest_of(data, 'sha512')}")
        assert done.status == 201
        assert registry.ask("GET", done.headers["location"]).body == data


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=990-", 206, slice(990, 1000)),
        ("bytes=-5", 206, slice(995, 1000)),
        ("bytes=10-5000", 206, slice(10, 1000)),
        ("bytes=0-1,5-6", 200, slice(0, 1000)),
        ("lines=1-2", 200, slice(0, 1000)),
        ("bytes=1000-", 416, None),
        ("bytes=5-2", 416, None),
        ("bytes=-0", 416, None),
    ],
)
def test_ranges_of_a_blob(registry: Registry, asked: str, status: int, part: slice | None) -> None:
    data = bytes(number % 251 for number in range(1000))
    path = f"/v2/ranges/app/blobs/{registry.push_blob('ranges/app', data)}"
    answer = registry.ask("GET", path, headers={"Range": asked})
    assert answer.status == status
    if part is None:
        assert answer.headers["content-range"] == "bytes */1000"
    else:
        assert answer.body == data[part]
    etag = registry.ask("HEAD", path).headers["etag"]
    assert registry.ask("GET", path, headers={"If-None-Match": etag}).status == 304
    other = registry.ask("GET", path, headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    assert (other.status, other.body) == (200, data)


def test_tags_come_in_pages_and_in_order(registry: Registry) -> None:
    tags = [f"v{number:02}" for number in range(25)] + ["A", "z_", "latest"]
    config, layer = b"{}", b"layer"
    for data in (config, layer):
        registry.push_blob("pages/app", data)
    manifest = make_manifest(config, [layer])
    for tag in tags:
        assert registry.push_manifest("pages/app", tag, manifest).status == 201
    found: list[str] = []
    path = "/v2/pages/app/tags/list?n=10"
    for _ in range(3):
        answer = registry.ask("GET", path)
        found += answer.json()["tags"]
        path = answer.headers.get("link", "").partition(">")[0].removeprefix("<")
    assert (found, path) == (sorted(tags), "")
    empty = registry.ask("GET", "/v2/pages/app/tags/list?n=0")
    assert (empty.json()["tags"], "link" in empty.headers) == ([], False)
    assert registry.ask("GET", "/v2/pages/app/tags/list?n=x").status == 400
    assert registry.ask("GET", "/v2/pages/none/tags/list").code == "NAME_UNKNOWN"
    assert "pages/app" in registry.ask("GET", "/v2/_catalog").json()["repositories"]


def test_referrers_carry_types_and_annotations_and_can_be_filtered(registry: Registry) -> None:
    image = registry.push_image("refer/app", "1", [b"layer of refer"])
    config = b"{}"
    registry.push_blob("refer/app", config)
    subject = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": image, "size": 7}
    for kind in ("text/a", "text/b"):
        signed = make_manifest(config, [], subject=subject, artifactType=kind, annotations={"k": kind})
        answer = registry.push_manifest("refer/app", digest_of(signed), signed)
        assert (answer.status, answer.headers["oci-subject"]) == (201, image)
    whole = registry.ask("GET", f"/v2/refer/app/referrers/{image}")
    assert whole.headers["content-type"] == OCI_INDEX
    assert {each["artifactType"] for each in whole.json()["manifests"]} == {"text/a", "text/b"}
    one = registry.ask("GET", f"/v2/refer/app/referrers/{image}?artifactType=text%2Fb")
    assert one.headers["oci-filters-applied"] == "artifactType"
    assert [each["annotations"] for each in one.json()["manifests"]] == [{"k": "text/b"}]


def test_a_manifest_whose_blobs_are_missing_is_refused_by_their_names(registry: Registry) -> None:
    manifest = make_manifest(b"not there", [b"nor this"])
    answer = registry.push_manifest("sparse/app", "1", manifest)
    assert (answer.status, answer.code) == (400, "MANIFEST_BLOB_UNKNOWN")
    details = [each["detail"]["digest"] for each in answer.json()["errors"]]
    assert details == [digest_of(b"not there"), digest_of(b"nor this")]
    assert registry.ask("GET", "/v2/sparse/app/manifests/1").code == "MANIFEST_UNKNOWN"


def test_a_blob_that_an_image_needs_is_not_deleted(registry: Registry) -> None:
    image = registry.push_image("used/app", "1", [b"a layer in use"])
    blob = f"/v2/used/app/blobs/{digest_of(b'a layer in use')}"
    answer = registry.ask("DELETE", blob)
    assert (answer.status, answer.code) == (405, "UNSUPPORTED") and image in answer.message
    assert registry.ask("DELETE", f"/v2/used/app/manifests/{image}").status == 202
    assert registry.ask("GET", "/v2/used/app/manifests/1").status == 404
    assert registry.ask("DELETE", blob).status == 202
    assert registry.ask("HEAD", blob).status == 404


def test_docker_s_own_kinds_of_manifests_are_kept(registry: Registry) -> None:
    config, layer = b'{"docker": 1}', b"a docker layer"
    for data in (config, layer):
        registry.push_blob("docker/app", data)
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = make_manifest(config, [layer]).replace(
        b"application/vnd.oci.image.manifest.v1+json", kind.encode()
    )
    assert registry.push_manifest("docker/app", "1", manifest, kind).status == 201
    many = "application/vnd.docker.distribution.manifest.list.v2+json"
    index = json.dumps(
        {"schemaVersion": 2, "mediaType": many, "manifests": [describe(manifest, kind)]}
    ).encode()
    assert registry.push_manifest("docker/app", "all", index, many).status == 201
    answer = registry.ask("GET", "/v2/docker/app/manifests/all")
    assert (answer.headers["content-type"], answer.body) == (many, index)
    old = b'{"schemaVersion": 1, "name": "x", "fsLayers": []}'
    refused = registry.push_manifest(
        "docker/app", "old", old, "application/vnd.docker.distribution.manifest.v1+json"
    )
    assert refused.code == "MANIFEST_INVALID"


def test_the_server_is_not_root_and_its_files_are_its_own(registry: Registry) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    words = Path(f"/proc/{registry.process.pid}/status").read_text()
    assert "Uid:\t65534\t65534\t65534\t65534" in words
    assert "CapEff:\t0000000000000000" in words and "NoNewPrivs:\t1" in words
    found = registry.root.stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (65534, 0o700)


def test_a_client_that_speaks_tls_is_told_at_once(registry: Registry) -> None:
    with registry.connect() as sock:
        sock.settimeout(2)
        sock.sendall(bytes.fromhex("16030100c6010000c20303"))
        assert sock.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_what_is_in_the_way_is_told(registry: Registry, tmp_path: Path) -> None:
    taken = run_registry("serve", f"--root={tmp_path}/other", f"--listen={registry.address}")
    assert taken.returncode == 1
    assert f"port {registry.port} is taken: another process listens on 127.0.0.1" in taken.stderr
    same = run_registry("serve", f"--root={registry.root}", "--listen=127.0.0.1:0")
    assert "is served from" in same.stderr and same.returncode == 1
    open_ = run_registry("serve", f"--root={tmp_path}/other", "--listen=0.0.0.0:0")
    assert "nobody would have to log in" in open_.stderr and not (tmp_path / "other").exists()


def test_it_ends_when_told_and_answers_what_is_under_way(tmp_path: Path) -> None:
    with serving(tmp_path / "root") as registry:
        where = registry.begin("app")
        with registry.connect() as sock:
            sock.sendall(
                f"PATCH {where} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n".encode() + b"12345"
            )
            while not (registry.root / "uploads" / where.rpartition("/")[2] / "data").stat().st_size:
                pass  # it is being read
            registry.process.terminate()
            sock.sendall(b"67890")
            assert sock.recv(1000).startswith(b"HTTP/1.1 202 ")
        assert registry.process.wait(20) == 0
        registry.start()
        assert registry.ask("GET", where).headers["range"] == "0-9"


def test_an_ordinary_user_serves_too(tmp_path: Path) -> None:
    """No root, no user to become: by the command line, on two addresses, one of them a socket."""
    if os.geteuid() != 0:
        pytest.skip("it is root that can become somebody else for this")
    directory = Path(tempfile.mkdtemp(prefix="cove-registry-"))
    try:
        os.chown(directory, 65534, 65534)
        prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        unix = directory / "socket"
        with serving(directory / "root", f"--listen=unix://{unix}", prefix=prefix) as registry:
            registry.push_image("app", "1", [b"layer"])
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(unix))
                sock.sendall(b"GET /v2/app/tags/list HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b'{"name":"app","tags":["1"]}' in sock.recv(1 << 16)
            assert registry.stop() == 0
            assert not unix.exists()
    finally:
        shutil.rmtree(directory)


def test_the_command_line_becomes_the_registry(tmp_path: Path) -> None:
    with serving(tmp_path / "root") as registry:
        registry.push_image("app", "1", [b"layer"])
        program = ROOT / "bin/cove"

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([program, "registry", *words], capture_output=True, text=True, timeout=60)

        checked = run("check", "--root", str(registry.root), "--fast")
        assert (checked.returncode, checked.stdout.splitlines()[-1]) == (0, "no problem found")
        assert run("gc", f"--root={registry.root}", "--dry-run").stdout == "would remove 0 blobs (0.0 MB)\n"
        taken = run("serve", "--listen", registry.address, f"--root={tmp_path}/other")
        assert taken.returncode == 1 and f"port {registry.port} is taken" in taken.stderr
        missing = run("gc", "--root", str(tmp_path / "none"))
        assert missing.returncode == 1 and "there is no registry in" in missing.stderr
        assert run("serve", "--lisen=x").returncode == 125


def test_both_tables_of_options_are_one() -> None:
    """The command line's table, which help and completion know, and the parser of the process that it becomes."""
    for name, command in COMMANDS.items():
        verb = name.removeprefix("registry ")
        for _, flag, kind, _, _ in command.flags:
            words = [f"--{flag}"] if kind == "bool" else [f"--{flag}=x"]
            value = getattr(parse_options([verb, *words]), flag.replace("-", "_"))
            assert value == (True if kind == "bool" else ["x"] if kind == "list" else "x"), flag
        known = {each.replace("_", "-") for each in vars(parse_options([verb]))} - {"command"}
        assert known == {flag[1] for flag in command.flags}
