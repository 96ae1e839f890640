"""Images pushed to Debian's docker-registry and read by skopeo and umoci; and to registries that do badly."""

from __future__ import annotations

import base64
import gzip
import json
import os
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
import zstandard

from tests.daemon import Daemon
from tests.imagekit import Dir, File, Symlink, digest_of, make_docker_archive, make_layer, make_oci_layout
from tests.nanny import descendants
from tests.pushkit import Handler, PushRegistry, cut_off, fine, status
from tests.registrykit import docker_registry

OCI = "application/vnd.oci.image.manifest.v1+json"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
FILES = [
    Dir("etc"),
    File("etc/motd", b"hello\n"),
    Symlink("etc/link", "motd"),
    File("big", os.urandom(3 << 20)),
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Debian's docker-registry, open to everybody."""
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """docker-registry, for ada with the password s3cret alone."""
    directory = tmp_path_factory.mktemp("closed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import crypt

        hashed = crypt.crypt("s3cret", crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=1 << 5))
    (directory / "htpasswd").write_text(f"ada:{hashed}\n")
    with docker_registry(
        directory,
        REGISTRY_AUTH="htpasswd",
        REGISTRY_AUTH_HTPASSWD_REALM="test",
        REGISTRY_AUTH_HTPASSWD_PATH=str(directory / "htpasswd"),
    ) as host:
        yield host


def load(daemon: Daemon, archive: bytes) -> None:
    answer = daemon.http("POST", "/images/load", archive, headers={"Content-Type": "application/x-tar"})
    assert answer.status == 200 and b'"error"' not in answer.body, answer.body


def push(
    daemon: Daemon, name: str, tag: str = "latest", *, auth: dict[str, str] | None = None, **query: str
) -> list[dict[str, Any]]:
    """Push, and the lines of the answer."""
    text = "&".join(
        f"{key.replace('_', '-')}={value}" for key, value in {"tag": tag, **query}.items() if value
    )
    header = {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(auth or {}).encode()).decode()}
    answer = daemon.http("POST", f"/images/{name}/push?{text}", headers=header)
    assert answer.status == 200, answer.message
    return [json.loads(line) for line in answer.body.splitlines()]


def pushed(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What `aux` says; there must be no error."""
    assert not [line for line in lines if "error" in line], lines
    found: dict[str, Any] = next(line["aux"] for line in lines if "aux" in line)
    return found


def statuses(lines: list[dict[str, Any]]) -> list[str]:
    """The last word about each layer, in order of their first."""
    last: dict[str, str] = {}
    for line in lines:
        if line.get("id"):
            last[line["id"]] = line["status"]
    return list(last.values())


def name_it(daemon: Daemon, source: str, target: str) -> str:
    repository, _, tag = target.rpartition(":")
    assert daemon.http("POST", f"/images/{source}/tag?repo={repository}&tag={tag}").status == 201
    return target


def skopeo(*arguments: str) -> str:
    done = subprocess.run(["skopeo", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def raw_manifest(reference: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{reference}")
    )
    return found


@pytest.fixture(scope="module")
def app(daemon: Daemon) -> str:
    """An image of two plain layers."""
    load(daemon, make_docker_archive([FILES, [File("top", b"x" * 1000)]], names=["app:1"]))
    return "app:1"


def test_skopeo_and_umoci_read_what_was_pushed(
    daemon: Daemon, registry: str, app: str, tmp_path: Path
) -> None:
    name_it(daemon, app, f"{registry}/first/app:1")
    lines = push(daemon, f"{registry}/first/app", "1")
    assert lines[0] == {"status": f"The push refers to repository [{registry}/first/app]"}
    assert statuses(lines) == ["Pushed", "Pushed"]
    aux = pushed(lines)
    assert lines[-2] == {"status": f"1: digest: {aux['Digest']} size: {aux['Size']}"}
    assert lines[-1] == {"progressDetail": {}, "aux": {"Tag": "1", **{k: aux[k] for k in ("Digest", "Size")}}}
    manifest = raw_manifest(f"{registry}/first/app:1")
    assert manifest["mediaType"] == OCI
    assert [layer["mediaType"] for layer in manifest["layers"]] == [
        "application/vnd.oci.image.layer.v1.tar+gzip"
    ] * 2
    skopeo("copy", "--src-tls-verify=false", f"docker://{registry}/first/app:1", f"oci:{tmp_path}/oci:app")
    subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{tmp_path}/oci:app", str(tmp_path / "rootfs")],
        check=True,
        timeout=60,
    )
    assert (tmp_path / "rootfs" / "etc" / "link").read_bytes() == b"hello\n"
    assert (tmp_path / "rootfs" / "big").read_bytes() == FILES[3].data
    inspected = daemon.http("GET", f"/images/{registry}/first/app:1/json").json()
    assert f"{registry}/first/app@{aux['Digest']}" in inspected["RepoDigests"]
    assert (
        daemon.http("GET", f"/images/{registry}/first/app@{aux['Digest']}/json").json()["Id"]
        == inspected["Id"]
    )


def test_what_is_there_is_neither_compressed_nor_sent_again(daemon: Daemon, registry: str, app: str) -> None:
    name_it(daemon, app, f"{registry}/again/app:1")
    first = pushed(push(daemon, f"{registry}/again/app", "1"))
    begun = time.monotonic()
    lines = push(daemon, f"{registry}/again/app", "1")
    assert time.monotonic() - begun < 5
    assert statuses(lines) == ["Layer already exists"] * 2 and pushed(lines) == first
    name_it(daemon, app, f"{registry}/other/app:2")
    lines = push(daemon, f"{registry}/other/app", "2")
    assert all(text.startswith("Mounted from ") for text in statuses(lines)), lines
    assert pushed(lines)["Digest"] == first["Digest"]


def test_every_tag_of_a_name_is_pushed(daemon: Daemon, registry: str, app: str) -> None:
    for tag in ("a", "b"):
        name_it(daemon, app, f"{registry}/tags/app:{tag}")
    lines = push(daemon, f"{registry}/tags/app", "")
    assert [line["aux"]["Tag"] for line in lines if "aux" in line] == ["a", "b"]
    listed = json.loads(skopeo("list-tags", "--tls-verify=false", f"docker://{registry}/tags/app"))
    assert sorted(listed["Tags"]) == ["a", "b"]


def test_zstd_and_docker_s_own_manifest_on_request(
    daemon: Daemon, registry: str, app: str, tmp_path: Path
) -> None:
    name_it(daemon, app, f"{registry}/kinds/app:zstd")
    pushed(push(daemon, f"{registry}/kinds/app", "zstd", compression="zstd", compression_level="5"))
    manifest = raw_manifest(f"{registry}/kinds/app:zstd")
    assert {layer["mediaType"] for layer in manifest["layers"]} == {
        "application/vnd.oci.image.layer.v1.tar+zstd"
    }
    skopeo("copy", "--src-tls-verify=false", f"docker://{registry}/kinds/app:zstd", f"oci:{tmp_path}/oci:app")
    blob = (tmp_path / "oci" / "blobs" / "sha256" / manifest["layers"][0]["digest"][7:]).read_bytes()
    data = zstandard.ZstdDecompressor().decompressobj().decompress(blob)
    assert digest_of(data) == digest_of(make_layer(FILES))
    name_it(daemon, app, f"{registry}/kinds/app:docker")
    pushed(push(daemon, f"{registry}/kinds/app", "docker", format="docker"))
    manifest = raw_manifest(f"{registry}/kinds/app:docker")
    assert manifest["mediaType"] == DOCKER
    assert {layer["mediaType"] for layer in manifest["layers"]} == {
        "application/vnd.docker.image.rootfs.diff.tar.gzip"
    }


def test_what_came_compressed_goes_as_it_came(daemon: Daemon, registry: str) -> None:
    files = [File("came", os.urandom(10_000))]
    archive = make_oci_layout([files], names=[f"{registry}/came/app:1"], compress=gzip.compress)
    load(daemon, archive)
    pushed(push(daemon, f"{registry}/came/app", "1"))
    manifest = raw_manifest(f"{registry}/came/app:1")
    assert b'"digest": "%s"' % manifest["layers"][0]["digest"].encode() in archive
    assert "mediaType" not in manifest  # the archive's own one has none


def test_a_layer_that_no_registry_takes_is_compressed_anew(daemon: Daemon, registry: str) -> None:
    import lzma

    files = [File("came", os.urandom(10_000))]
    load(daemon, make_oci_layout([files], names=[f"{registry}/xz/app:1"], compress=lzma.compress))
    pushed(push(daemon, f"{registry}/xz/app", "1"))
    manifest = raw_manifest(f"{registry}/xz/app:1")
    assert manifest["layers"][0]["mediaType"].endswith("+gzip")


def test_the_sdk_and_the_event(daemon: Daemon, registry: str, app: str) -> None:
    name_it(daemon, app, f"{registry}/sdk/app:1")
    seen: list[Any] = []
    stream = daemon.client.api.events(decode=True, filters={"event": "push"})
    thread = threading.Thread(target=lambda: seen.append(next(stream)))
    thread.start()
    lines = list(daemon.client.images.push(f"{registry}/sdk/app", "1", stream=True, decode=True))
    assert pushed(lines)["Tag"] == "1"
    thread.join(20)
    stream.close()
    assert seen[0]["Actor"]["ID"] == f"{registry}/sdk/app:1"
    assert seen[0]["Actor"]["Attributes"]["name"] == f"{registry}/sdk/app"


def test_a_registry_with_passwords(daemon: Daemon, closed: str, app: str) -> None:
    name_it(daemon, app, f"{closed}/team/app:1")
    ada = {"username": "ada", "password": "s3cret"}
    pushed(push(daemon, f"{closed}/team/app", "1", auth=ada))
    for auth in (None, {"username": "ada", "password": "wr0ng-secret"}):
        lines = push(daemon, f"{closed}/team/app", "1", auth=auth)
        assert "cove login" in lines[-1]["error"], lines
    assert daemon.client.login("ada", "s3cret", registry=closed)["Status"] == "Login Succeeded"
    assert "s3cret" not in daemon.log_text() and "wr0ng-secret" not in daemon.log_text()


def test_what_isn_t_here_or_can_t_be_is_said(daemon: Daemon, registry: str, app: str) -> None:
    lines = push(daemon, f"{registry}/none/app", "1")
    assert lines[-1]["error"] == f"An image does not exist locally with the tag: {registry}/none/app:1"
    nobody = name_it(daemon, app, "127.0.0.1:1/x:1")
    lines = push(daemon, nobody.rpartition(":")[0], "1")
    assert "127.0.0.1:1" in lines[-1]["error"] and "connection refused" in lines[-1]["error"], lines
    for query, sentence in (
        ("tag=1&compression=lz4", "use gzip or zstd"),
        ("tag=1&compression-level=99", "gzip has 1 to 9"),
        ("tag=1&format=v1", "use oci or docker"),
        ("tag=1&platform={", "query parameter platform"),
    ):
        answer = daemon.http("POST", f"/images/{registry}/none/app/push?{query}")
        assert answer.status == 400 and sentence in answer.message, answer.message


# --- registries that do as badly as they can ----------------------------------------------


@pytest.fixture
def hostile() -> Iterator[PushRegistry]:
    with PushRegistry() as running:
        yield running


def test_an_upload_that_breaks_off_goes_on(daemon: Daemon, hostile: PushRegistry, app: str) -> None:
    name_it(daemon, app, f"{hostile.host}/app:1")
    hostile.faults = {"PUT": [cut_off(1 << 20)], "PATCH": [cut_off(100_000)], "POST": [status(500)]}
    aux = pushed(push(daemon, f"{hostile.host}/app", "1"))
    assert hostile.manifests["app"]["1"][1] == hostile.manifests["app"][aux["Digest"]][1]
    assert not hostile.uploads


def test_a_blob_that_vanished_is_sent_again(daemon: Daemon, hostile: PushRegistry, app: str) -> None:
    name_it(daemon, app, f"{hostile.host}/app:1")
    first = pushed(push(daemon, f"{hostile.host}/app", "1"))
    hostile.blobs["app"].clear()
    assert pushed(push(daemon, f"{hostile.host}/app", "1")) == first
    assert len(hostile.blobs["app"]) == 3

    def lie(handler: Handler) -> bool:
        handler.answer(200)
        return True

    hostile.blobs["app"].clear()
    hostile.faults["HEAD"] = [lie] * 3  # it says that they are there, until the manifest is put
    assert pushed(push(daemon, f"{hostile.host}/app", "1")) == first
    assert len(hostile.blobs["app"]) == 3


@pytest.mark.parametrize(
    ("faults", "sentence"),
    [
        ({"POST": [status(403)] * 9}, "denied: denied"),
        ({"POST": [status(401)] * 50}, "identification"),
        ({"PUT": [status(413)] * 9}, "status 413"),
        ({"PUT": [fine, fine, fine, status(400, name="MANIFEST_INVALID")]}, "manifest invalid"),
    ],
)
def test_a_registry_that_refuses_is_quoted(
    daemon: Daemon,
    hostile: PushRegistry,
    app: str,
    faults: dict[str, list[Callable[[Handler], bool]]],
    sentence: str,
) -> None:
    name_it(daemon, app, f"{hostile.host}/app:1")
    hostile.faults = faults
    lines = push(daemon, f"{hostile.host}/app", "1")
    assert sentence in lines[-1]["error"], lines
    assert lines[-1]["error"] == lines[-1]["errorDetail"]["message"]


def test_tokens_are_asked_for_what_is_done_with_them(daemon: Daemon, app: str) -> None:
    ada = {"username": "ada", "password": "s3cret"}
    with PushRegistry(password="ada:s3cret", tokens=True) as registry:
        for name in ("base", "team/app"):
            name_it(daemon, app, f"{registry.host}/{name}:1")
            lines = push(daemon, f"{registry.host}/{name}", "1", auth=ada)
            pushed(lines)
        assert statuses(lines) == ["Mounted from base"] * 2
        assert registry.tokens is not None
        scopes = [set(asked) for _, asked in registry.tokens]
        assert {"repository:base:pull,push"} in scopes
        assert {"repository:team/app:pull,push", "repository:base:pull"} in scopes
        assert not any(len(one) > 2 for one in scopes)
        lines = push(daemon, f"{registry.host}/base", "1", auth={"username": "ada", "password": "no"})
        assert "unknown user, or wrong password" in lines[-1]["error"]
        answer = daemon.http("POST", "/auth", {**ada, "serveraddress": registry.host})
        assert answer.status == 200


def test_a_large_layer_takes_little_memory(fresh_daemon: Daemon, hostile: PushRegistry) -> None:
    """192 MiB that don't get smaller; two thirds are at the registry when the processes are looked at."""
    daemon = fresh_daemon
    layer = [File(f"f{number}", os.urandom(32 << 20)) for number in range(6)]
    load(daemon, make_docker_archive([layer], names=[f"{hostile.host}/app:1"]))
    peaks: list[int] = []

    def look(handler: Handler) -> bool:
        if int(handler.headers.get("Content-Range", "0").partition("-")[0]) > 128 << 20 and not peaks:
            found = [_peak_kib(pid) for pid in (daemon.pid, *descendants(daemon.pid))]
            peaks.append(sum(found) >> 10)
        return False

    hostile.faults["PATCH"] = [look] * 100
    pushed(push(daemon, f"{hostile.host}/app", "1"))
    assert peaks and peaks[0] < 200, peaks


def _peak_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def loading(daemon: Daemon) -> list[str]:
    return os.listdir(daemon.data_root / "images" / "loading")


def test_a_daemon_that_is_killed_leaves_nothing_and_pushes_again(
    fresh_daemon: Daemon, hostile: PushRegistry
) -> None:
    daemon = fresh_daemon
    load(daemon, make_docker_archive([FILES], names=[f"{hostile.host}/app:1"]))
    held, go = threading.Event(), threading.Event()

    def hold(handler: Handler) -> bool:
        held.set()
        go.wait(30)
        return False

    hostile.faults = {"PUT": [hold], "PATCH": [hold]}

    def ask() -> None:
        with pytest.raises((OSError, Exception)):
            push(daemon, f"{hostile.host}/app", "1")

    thread = threading.Thread(target=ask)
    thread.start()
    assert held.wait(30)
    daemon.kill9()
    go.set()
    thread.join(30)
    daemon.start()
    assert loading(daemon) == []
    hostile.faults.clear()
    pushed(push(daemon, f"{hostile.host}/app", "1"))
    assert loading(daemon) == []


@pytest.mark.parametrize("victim", ["sends", "compresses"])
def test_a_worker_that_is_killed_ends_the_push_with_a_sentence(
    fresh_daemon: Daemon, hostile: PushRegistry, victim: str
) -> None:
    daemon = fresh_daemon
    layer = [File(f"f{number}", os.urandom(32 << 20)) for number in range(3)]
    load(daemon, make_docker_archive([layer], names=[f"{hostile.host}/app:1"]))

    def kill(handler: Handler) -> bool:
        for pid in descendants(daemon.pid):
            if b"cove.image.process" in _command(pid) and _is_nobody(pid) == (victim == "sends"):
                os.kill(pid, signal.SIGKILL)
        return False

    hostile.faults["POST"] = [kill]
    lines = push(daemon, f"{hostile.host}/app", "1")
    if victim == "sends" or "error" in lines[-1]:  # the one that compresses may have done its work already
        assert "worker process ended" in lines[-1]["error"], lines
    assert loading(daemon) == []
    pushed(push(daemon, f"{hostile.host}/app", "1"))


def _is_nobody(pid: int) -> bool:
    try:
        return (
            os.stat(f"/proc/{pid}").st_uid == 65534
            or "\nUid:\t65534" in Path(f"/proc/{pid}/status").read_text()
        )
    except OSError:
        return False


def test_an_image_that_is_removed_while_it_is_pushed_is_at_the_registry(
    daemon: Daemon, hostile: PushRegistry
) -> None:
    name = f"{hostile.host}/gone:1"
    load(daemon, make_docker_archive([[File("gone", os.urandom(5000))]], names=[name]))

    def remove(handler: Handler) -> bool:
        assert daemon.http("DELETE", f"/images/{name}").status == 200
        return False

    hostile.faults["POST"] = [remove]
    assert pushed(push(daemon, f"{hostile.host}/gone", "1"))["Tag"] == "1"
    assert "1" in hostile.manifests["gone"]
    assert daemon.http("GET", f"/images/{name}/json").status == 404


def test_a_client_that_leaves_ends_its_push(daemon: Daemon, hostile: PushRegistry, app: str) -> None:
    name_it(daemon, app, f"{hostile.host}/left:1")
    held, go = threading.Event(), threading.Event()

    def hold(handler: Handler) -> bool:
        held.set()
        go.wait(30)
        handler.close_connection = True
        return True

    hostile.faults = {"PUT": [hold] * 3, "PATCH": [hold] * 3}
    client = docker.APIClient(base_url=daemon.host, version="auto")
    stream = client.push(f"{hostile.host}/left", "1", stream=True)
    next(stream)
    assert held.wait(30)
    stream.close()
    client.close()
    go.set()
    deadline = time.monotonic() + 20
    while any(b"cove.image.process" in _command(pid) for pid in descendants(daemon.pid)):
        assert time.monotonic() < deadline, "a worker is still there"
        time.sleep(0.05)
    assert "1" not in hostile.manifests.get("left", {})


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
