"""cosign verifies what Cove signs, and Cove what cosign signs, in Debian's docker-registry; skopeo carries both."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import http.client
import json
import os
import sqlite3
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cove.signing.keys import PrivateKey, format_private_key, generate_key, parse_private_key
from cove.signing.make import sign_image
from cove.signing.manifests import (
    MANIFEST_TYPE,
    Artifact,
    Subject,
    build_referrer,
    build_tagged,
    parse_manifest,
    signature_tag,
)
from cove.signing.types import IdentityRequirement, KeyRequirement, Question, Signature, Signer, Verdict
from cove.signing.verify import verify
from tests.apikit import eventually
from tests.buildkit import build
from tests.clients.toolbox import require
from tests.daemon import Daemon
from tests.imagekit import File, busybox_archive, make_docker_archive, make_layer
from tests.registrykit import HostileRegistry, Reply, Repository, Request, docker_registry, error
from tests.registryserver import serving
from tests.signkit import Authority
from tests.system.test_image_policy import PolicyDaemon
from tests.system.test_signing import body_of, call_cove, signatures

PASSWORD = "open-sesame"
NO_LOG = ("--insecure-ignore-tlog=true", "--allow-http-registry")


class Place:
    """A registry with one image, and the tools in a directory."""

    def __init__(self, host: str, directory: Path) -> None:
        self.host, self.directory = host, directory
        self.repository = f"{host}/team/app"
        archive = directory / "app.tar"
        archive.write_bytes(make_docker_archive([[File("a", b"a")]], names=["app:1"]))
        self.run(
            "skopeo",
            "copy",
            "--dest-tls-verify=false",
            f"docker-archive:{archive}",
            f"docker://{self.repository}:1",
        )
        self.manifest, self.media_type = self.get("manifests/1")
        self.digest = f"sha256:{hashlib.sha256(self.manifest).hexdigest()}"
        self.name = f"{self.repository}@{self.digest}"

    def run(self, *words: str, status: int = 0, **environment: str) -> str:
        """A program's output; its exit status has to be `status`."""
        done = subprocess.run(
            words,
            cwd=self.directory,
            env={**os.environ, "COSIGN_PASSWORD": PASSWORD, "HOME": str(self.directory), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert (done.returncode == 0) == (status == 0), (words, done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def cosign(self, *words: str, status: int = 0, **environment: str) -> str:
        return self.run(str(require("cosign") / "cosign"), *words, status=status, **environment)

    def get(self, path: str, repository: str = "team/app") -> tuple[bytes, str]:
        """A document of a repository, and its media type."""
        request = urllib.request.Request(
            f"http://{self.host}/v2/{repository}/{path}",
            headers={
                "Accept": f"{MANIFEST_TYPE}, application/vnd.oci.image.index.v1+json, "
                "application/vnd.docker.distribution.manifest.v2+json"
            },
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read(), answer.headers["Content-Type"]

    def put(self, path: str, data: bytes, kind: str) -> None:
        request = urllib.request.Request(
            f"http://{self.host}/v2/team/app/{path}", data, {"Content-Type": kind}, method="PUT"
        )
        urllib.request.urlopen(request, timeout=20).close()

    def push(self, artifact: Artifact, reference: str) -> None:
        for digest, content in artifact.blobs:
            begin = urllib.request.Request(
                f"http://{self.host}/v2/team/app/blobs/uploads/", b"", method="POST"
            )
            with urllib.request.urlopen(begin, timeout=20) as answer:
                location = answer.headers["Location"]
            joint = "&" if "?" in location else "?"
            whole = urllib.request.Request(
                f"{location}{joint}digest={digest}",
                content,
                {"Content-Type": "application/octet-stream"},
                method="PUT",
            )
            urllib.request.urlopen(whole, timeout=20).close()
        self.put(f"manifests/{reference}", artifact.manifest, MANIFEST_TYPE)

    def signatures(self, repository: str = "team/app") -> list[Signature]:
        """Those of the tag scheme."""
        data, _ = self.get(f"manifests/{signature_tag(self.digest)}", repository)
        return [
            layer.with_content(self.get(f"blobs/{layer.digest}", repository)[0])
            for layer in parse_manifest(data)
        ]

    def ask(self, signer: Signer, *signatures: Signature) -> Verdict:
        question = Question(digests=(self.digest,), repositories=(self.repository,), signers=(signer,))
        return verify(question, signatures, now_s=time.time())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    require("cosign")
    storage = tmp_path / "registry"
    storage.mkdir()
    with docker_registry(storage) as host:
        yield Place(host, tmp_path)


def write_key(place: Place, name: str = "cove") -> PrivateKey:
    key = generate_key("ecdsa-p256")
    (place.directory / f"{name}.key").write_text(format_private_key(key, PASSWORD.encode()))
    (place.directory / f"{name}.pub").write_text(key.public.pem)
    return key


def test_cove_verifies_what_cosign_signs(place: Place) -> None:
    place.cosign("generate-key-pair")
    place.cosign(
        "sign",
        "--key",
        "cosign.key",
        "--tlog-upload=false",
        "--allow-http-registry",
        "-y",
        "-a",
        "stage=x",
        place.name,
    )
    public = KeyRequirement(pem=(place.directory / "cosign.pub").read_text())
    verdict = place.ask(public, *place.signatures())
    assert verdict.signed, verdict
    assert verdict.findings[0].annotations == {"stage": "x"}
    assert (
        place.ask(KeyRequirement(pem=generate_key("ecdsa-p256").public.pem), *place.signatures()).reason
        == "wrong-key"
    )
    # and its key signs here, too
    private = (place.directory / "cosign.key").read_text()
    key = parse_private_key(private, PASSWORD.encode(), "cosign.key")
    made = sign_image(key, place.repository, place.digest, {})
    assert place.ask(public, made).signed


def test_cosign_verifies_what_cove_signs(place: Place) -> None:
    key = write_key(place)
    for count in (1, 2):  # the second beside the first
        before = place.signatures() if count == 2 else []
        made = sign_image(key, place.repository, place.digest, {"n": str(count)})
        place.push(build_tagged([*before, made]), signature_tag(place.digest))
    told = place.cosign("verify", "--key", "cove.pub", *NO_LOG, place.name)
    assert "The signatures were verified against the specified public key" in told
    found = json.loads(told[told.index("[{") :].splitlines()[0])
    assert [one["optional"] for one in found] == [{"n": "1"}, {"n": "2"}]
    assert found[0]["critical"]["identity"]["docker-reference"] == place.repository
    place.cosign("verify", "--key", "cove.pub", "-a", "n=2", *NO_LOG, place.name)
    place.cosign("verify", "--key", "cove.pub", "-a", "n=3", *NO_LOG, place.name, status=1)
    write_key(place, "other")
    place.cosign("verify", "--key", "other.pub", *NO_LOG, place.name, status=1)
    # with Cove's key file, cosign signs beside them
    place.cosign(
        "sign", "--key", "cove.key", "--tlog-upload=false", "--allow-http-registry", "-y", place.name
    )
    assert len(place.signatures()) == 3
    assert place.ask(KeyRequirement(pem=key.public.pem), *place.signatures()).signed


def test_an_ed25519_signature_of_coves(place: Place) -> None:
    key = generate_key("ed25519")
    (place.directory / "cove.pub").write_text(key.public.pem)
    place.push(
        build_tagged([sign_image(key, place.repository, place.digest, {})]), signature_tag(place.digest)
    )
    place.cosign("verify", "--key", "cove.pub", *NO_LOG, place.name)


def test_cosign_verifies_a_certificate_of_coves(place: Place) -> None:
    authority = Authority(now=datetime.datetime.now(datetime.UTC))
    issued = authority.issue("ci@example.org")
    made = sign_image(issued.key, place.repository, place.digest, {}, certificates=issued.pem + authority.pem)
    place.push(build_tagged([made]), signature_tag(place.digest))
    (place.directory / "roots.pem").write_text(authority.pem)
    wanted = ("verify", "--ca-roots", "roots.pem", "--insecure-ignore-sct", *NO_LOG)
    whom = ("--certificate-oidc-issuer", "https://login.example.org", "--certificate-identity")
    place.cosign(*wanted, *whom, "ci@example.org", place.name)
    place.cosign(*wanted, *whom, "eve@example.org", place.name, status=1)
    requirement = IdentityRequirement(roots=authority.pem, subject="ci@example.org")
    assert place.ask(requirement, *place.signatures()).signed


def test_referrers_in_a_registry_without_their_api(place: Place) -> None:
    key = write_key(place)
    subject = Subject(digest=place.digest, size=len(place.manifest), media_type=place.media_type)
    artifact = build_referrer(sign_image(key, place.repository, place.digest, {}), subject)
    place.push(artifact, artifact.digest)
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {
                "mediaType": MANIFEST_TYPE,
                "digest": artifact.digest,
                "size": len(artifact.manifest),
                "artifactType": artifact.artifact_type,
            }
        ],
    }
    tag = place.digest.replace(":", "-")
    place.put(f"manifests/{tag}", json.dumps(index).encode(), "application/vnd.oci.image.index.v1+json")
    place.cosign(
        "verify", "--key", "cove.pub", "--experimental-oci11", *NO_LOG, place.name, COSIGN_EXPERIMENTAL="1"
    )
    # and cosign's own, beside it
    place.cosign(
        "sign", "--key", "cove.key", "--tlog-upload=false", "--allow-http-registry", "-y",
        "--registry-referrers-mode", "oci-1-1", place.name, COSIGN_EXPERIMENTAL="1",
    )  # fmt: skip
    listed = json.loads(place.get(f"manifests/{tag}")[0])["manifests"]
    assert len(listed) == 2
    for one in listed:
        data, _ = place.get(f"manifests/{one['digest']}")
        [layer] = parse_manifest(data, subject=place.digest)
        signature = layer.with_content(place.get(f"blobs/{layer.digest}")[0])
        assert place.ask(KeyRequirement(pem=key.public.pem), signature).signed


def test_signatures_survive_skopeo(place: Place) -> None:
    key = write_key(place)
    place.push(
        build_tagged([sign_image(key, place.repository, place.digest, {})]), signature_tag(place.digest)
    )
    copy = ("skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false", "--preserve-digests")
    for tag in ("1", signature_tag(place.digest)):
        place.run(*copy, f"docker://{place.repository}:{tag}", f"docker://{place.host}/mirror/app:{tag}")
    assert place.signatures("mirror/app") == place.signatures()
    mirrored = f"{place.host}/mirror/app@{place.digest}"
    place.cosign("verify", "--key", "cove.pub", *NO_LOG, mirrored)
    question = Question(
        digests=(place.digest,),
        repositories=(f"{place.host}/mirror/app",),
        signers=(KeyRequirement(pem=key.public.pem),),
    )
    assert verify(question, place.signatures("mirror/app"), now_s=0).reason == "other-repository"


def test_bundles_of_cosign(place: Place) -> None:
    place.cosign("generate-key-pair")
    told = place.cosign(
        "sign", "--key", "cosign.key", "--tlog-upload=false", "--allow-http-registry", "-y",
        "--new-bundle-format", "--use-signing-config=false", place.name,
    )  # fmt: skip
    tag = place.digest.replace(":", "-")
    [one] = json.loads(place.get(f"manifests/{tag}")[0])["manifests"]
    [layer] = parse_manifest(place.get(f"manifests/{one['digest']}")[0], subject=place.digest)
    signature = layer.with_content(place.get(f"blobs/{layer.digest}")[0])
    public = KeyRequirement(pem=(place.directory / "cosign.pub").read_text())
    question = Question(digests=(place.digest,), signers=(public,))
    assert verify(question, [signature], now_s=0).signed, told
    assert verify(question, [signature], now_s=0).findings[0].digest == place.digest
    other = Question(
        digests=(place.digest,), signers=(KeyRequirement(pem=generate_key("ecdsa-p256").public.pem),)
    )
    assert verify(other, [signature], now_s=0).reason == "wrong-key"


def pull(daemon: Daemon, place: Place, reference: str = "") -> tuple[int, str]:
    """POST /images/create; the status, and the error that it or its stream says."""
    name = reference or f"{place.repository}:1"
    answer = daemon.http("POST", f"/images/create?fromImage={name}")
    lines = [json.loads(line) for line in answer.body.splitlines()]
    return answer.status, "".join(line.get("error", line.get("message", "")) for line in lines)


def listed(daemon: Daemon) -> list[str]:
    return [tag for one in daemon.http("GET", "/images/json").json() for tag in one["RepoTags"]]


def test_a_pull_asks_for_the_signatures_that_the_policy_wants(place: Place) -> None:
    place.cosign("generate-key-pair")
    with PolicyDaemon() as daemon:
        public = place.directory / "cosign.pub"
        rule = {"signed-by": [{"key-file": str(public)}]}
        daemon.use({"default": "reject", "scopes": {place.repository: rule}})
        _, sentence = pull(daemon, place)
        assert sentence == (
            f"image {place.repository}:1 is refused: the image policy of {place.repository} isn't fulfilled: "
            f"no signature of {place.digest} was found"
        )
        assert listed(daemon) == [] and not list((daemon.data_root / "images/blobs/sha256").iterdir())
        write_key(place, "other")
        sign = ("sign", "--tlog-upload=false", "--allow-http-registry", "-y", "--key")
        place.cosign(*sign, "other.key", place.name)
        assert "no signature was made with the key" in pull(daemon, place)[1]
        place.cosign(*sign, "cosign.key", place.name)
        assert pull(daemon, place) == (200, "")
        kept = daemon.http("GET", f"/cove/v1/images/signatures?image={place.repository}:1").json()
        assert kept["Digest"] == place.digest and len(kept["Signatures"]) == 2
        runs(daemon, f"{place.repository}:1", "a")
        runs(daemon, place.name, "a")
        runs(daemon, kept["Image"], "a")
        daemon.kill9()
        daemon.start()
        runs(daemon, place.name, "a")
        # pushed to where the policy takes nothing from, it is still what it is
        assert daemon.http("POST", f"/images/{place.name}/tag?repo={place.host}/copy/app&tag=1").status == 201
        assert b"error" not in daemon.http("POST", f"/images/{place.host}/copy/app/push?tag=1").body
        assert len(daemon.http("GET", f"/images/{place.name}/json").json()["RepoDigests"]) == 2
        runs(daemon, place.name, "a")
        runs(daemon, kept["Image"], "a")
        daemon.http("DELETE", f"/images/{place.host}/copy/app:1")
        # the same bytes under a name that nobody may use
        assert daemon.http("POST", f"/images/{place.name}/tag?repo=elsewhere.example/app&tag=1").status == 201
        runs(daemon, "elsewhere.example/app:1", "a")  # it is what the registry has, and signed
        daemon.http("DELETE", "/images/elsewhere.example/app:1")
        daemon.http("DELETE", f"/images/{place.repository}:1")
        assert daemon.http("GET", f"/cove/v1/images/signatures?image={kept['Image']}").status == 404
        # another repository of that registry isn't in the scope
        place.run(
            "skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false",
            f"docker://{place.repository}:1", f"docker://{place.host}/team/other:1",
        )  # fmt: skip
        assert "by default rejects it" in pull(daemon, place, f"{place.host}/team/other:1")[1]


def runs(daemon: Daemon, image: str, program: str) -> None:
    """A container of the image is made and started: as far as an image without a program goes."""
    answer = daemon.http("POST", "/containers/create", {"Image": image, "Cmd": [f"/{program}"]})
    assert answer.status == 201, answer.body
    container = answer.json()["Id"]
    started = daemon.http("POST", f"/containers/{container}/start")
    assert started.status != 403, started.body
    daemon.http("DELETE", f"/containers/{container}?force=1")


def test_an_image_for_several_platforms_is_signed_by_its_index(place: Place) -> None:
    place.cosign("generate-key-pair")
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {
                "mediaType": place.media_type,
                "digest": place.digest,
                "size": len(place.manifest),
                "platform": {"os": "linux", "architecture": "amd64"},
            }
        ],
    }
    data = json.dumps(index).encode()
    place.put("manifests/many", data, "application/vnd.oci.image.index.v1+json")
    name = f"{place.repository}@sha256:{hashlib.sha256(data).hexdigest()}"
    place.cosign("sign", "--tlog-upload=false", "--allow-http-registry", "-y", "--key", "cosign.key", name)
    with PolicyDaemon() as daemon:
        rule = {"signed-by": [{"key-file": str(place.directory / "cosign.pub")}]}
        daemon.use({"default": "reject", "scopes": {place.host: rule}})
        assert "no signature of" in pull(daemon, place)[1]  # the platform's own manifest isn't signed
        assert pull(daemon, place, f"{place.repository}:many") == (200, "")
        runs(daemon, f"{place.repository}:many", "a")
        runs(daemon, name, "a")


def test_a_registry_that_fails_is_told_from_an_image_without_signatures(place: Place) -> None:
    def answer(request: Request) -> Reply:
        if ".sig" in request.path:
            return error(500, "UNKNOWN", "out of order")
        return repository(request)

    repository = Repository("team/app")
    layer = make_layer([File("a", b"a")])
    repository.add_image([(layer, layer, "")], tag="1")
    with PolicyDaemon() as daemon, HostileRegistry(answer) as registry:
        rule = {"signed-by": [{"key": generate_key("ed25519").public.pem}]}
        daemon.use({"default": "reject", "scopes": {registry.host: rule}})
        told = daemon.http("POST", f"/images/create?fromImage={registry.host}/team/app:1").body.decode()
        assert "500" in told and "no signature" not in told, told
        assert registry.count("GET", "/blobs/") == 0


@pytest.fixture(params=["docker-registry", "cove registry serve"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A registry without the referrers API, and one that has it."""
    require("cosign")
    storage = tmp_path / "registry"
    storage.mkdir()
    if request.param == "docker-registry":
        with docker_registry(storage) as found:
            yield found
        return
    with serving(storage) as registry:
        yield f"127.0.0.1:{registry.port}"


@pytest.mark.parametrize("form", ["tag", "referrer", "both", "bundle"])
def test_what_is_pushed_cosign_verifies_and_another_machine_pulls(
    daemon: Daemon, host: str, form: str, tmp_path: Path
) -> None:
    image = f"{host}/team/app:1"
    archive = make_docker_archive([[File("a", b"a")]], names=[image])
    assert daemon.http("POST", "/images/load", archive).status == 200
    key = generate_key("ecdsa-p256")
    (tmp_path / "k.key").write_text(format_private_key(key, b""))
    (tmp_path / "k.pub").write_text(key.public.pem)
    call_cove(daemon, tmp_path, "sign", image, "--key", "k.key")
    early = call_cove(daemon, tmp_path, "sign", image, "--key", "k.key", "-a", "n=0", "--push", status=1)
    assert "push the image, and sign what is there then" in early.stderr
    pushed = daemon.http("POST", f"/images/{host}/team/app/push?tag=1")
    assert b"error" not in pushed.body, pushed.body
    for note in ("1", "2"):
        told = call_cove(
            daemon, tmp_path, "sign", image, "--key", "k.key", "-a", f"n={note}", "--push", "--format", form
        )
        assert f"of {image}\n" in told.stdout
    digest = signatures(daemon, image)["Digest"]
    cosign = [str(require("cosign") / "cosign"), "verify", "--key", "k.pub", *NO_LOG]
    if form == "referrer":
        cosign.append("--experimental-oci11")
    if form != "bundle":  # which is cosign 3's
        done = subprocess.run(
            [*cosign, f"{host}/team/app@{digest}"],
            cwd=tmp_path,
            env={**os.environ, "COSIGN_EXPERIMENTAL": "1", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
    # what is kept here is forgotten, and comes back from the registry
    daemon.http("DELETE", f"/cove/v1/images/signatures?image={image}")
    call_cove(daemon, tmp_path, "verify", image, "--key", "k.pub", status=1)
    back = call_cove(daemon, tmp_path, "verify", image, "--key", "k.pub", "-a", "n=2", "--registry")
    assert f"as {host}/team/app@{digest} n=2" in back.stdout
    daemon.http("DELETE", f"/images/{image}")
    with PolicyDaemon() as other:
        rule = {"signed-by": [{"key-file": str(tmp_path / "k.pub")}], "annotations": {"n": "1"}}
        other.use({"default": "reject", "scopes": {host: rule}})
        answer = other.http("POST", f"/images/create?fromImage={image}")
        assert b"error" not in answer.body, answer.body
        runs(other, image, "a")


def test_signatures_of_no_repository_are_pushed_nowhere(daemon: Daemon, host: str, tmp_path: Path) -> None:
    image = f"{host}/team/app:1"
    archive = make_docker_archive([[File("a", b"b")]], names=[image])
    assert daemon.http("POST", "/images/load", archive).status == 200
    image_id = signatures(daemon, image)["Image"]
    path = "/cove/v1/images/signatures"
    answer = daemon.http("POST", f"{path}/push?image={image}")
    assert answer.status == 404 and f"has no signature as {host}/team/app here" in answer.message
    for word in (image_id, image_id[7:], image_id[7:19]):
        for verb in ("push", "fetch"):
            answer = daemon.http("POST", f"{path}/{verb}?image={word}")
            assert (
                answer.status == 400
                and f"name the image by its repository, e.g. {host}/team/app" in answer.message
            )
    assert daemon.http("POST", f"{path}/push?image={image}&format=x").status == 400
    answer = daemon.http("POST", f"{path}/fetch?image={image}")
    assert answer.json() == {"Found": 0}
    daemon.http("DELETE", f"/images/{image}")


def kept(daemon: Daemon) -> int:
    """How many signatures a daemon that doesn't run has on record."""
    with contextlib.closing(sqlite3.connect(f"file:{daemon.data_root}/state.db?mode=ro", uri=True)) as store:
        [count] = store.execute("select count(*) from kv where key like 'images/signature/%'").fetchone()
    return int(count)


def test_killed_during_a_pull_that_was_accepted_nothing_stays(place: Place) -> None:
    """Signatures come before the layers; without their image they go at the next start."""
    place.cosign("generate-key-pair")
    place.cosign(
        "sign", "--tlog-upload=false", "--allow-http-registry", "-y", "--key", "cosign.key", place.name
    )
    [layer] = json.loads(place.manifest)["layers"]

    def answer(request: Request) -> Reply:
        """What the registry has; the layer never comes."""
        if layer["digest"] in request.path:
            return Reply(body=registry.stall(), length=layer["size"])
        try:
            data, kind = place.get(request.path.removeprefix("/v2/team/app/"))
        except urllib.error.HTTPError as failed:
            return error(failed.code, "UNKNOWN", "no such thing")
        return Reply(headers={"Content-Type": kind}, body=data)

    with PolicyDaemon() as daemon, HostileRegistry(answer) as registry:
        rule = {"signed-by": [{"key-file": str(place.directory / "cosign.pub")}], "signed-as": place.host}
        daemon.use({"default": "reject", "scopes": {registry.host: rule}})

        def pull_it() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                daemon.http("POST", f"/images/create?fromImage={registry.host}/team/app:1")

        thread = threading.Thread(target=pull_it)
        thread.start()
        eventually(lambda: registry.count("GET", layer["digest"]) > 0, "the layer is asked for")
        daemon.kill9()
        thread.join(60)
        assert kept(daemon) == 1
        daemon.start()
        assert listed(daemon) == []
        daemon.terminate()
        assert kept(daemon) == 0
        daemon.start()


def test_a_build_pulls_a_signed_base_and_no_other(host: str, tmp_path: Path) -> None:
    key = generate_key("ed25519")
    with PolicyDaemon() as daemon:
        base = f"{host}/team/base:1"
        assert daemon.http("POST", "/images/load", busybox_archive(base)).status == 200
        assert b"error" not in daemon.http("POST", f"/images/{host}/team/base/push?tag=1").body
        daemon.use({"default": "reject", "scopes": {host: {"signed-by": [{"key": key.public.pem}]}}})
        dockerfile = {"Dockerfile": f"FROM {base}\nRUN echo built\n"}
        daemon.http("DELETE", f"/images/{base}")
        assert f"image {base} is refused" in build(daemon, dockerfile).error
        assert listed(daemon) == []
        daemon.http("POST", "/images/load", busybox_archive(base))
        daemon.http("POST", f"/images/{host}/team/base/push?tag=1")
        digest = signatures(daemon, base)["Digest"]
        made = sign_image(key, f"{host}/team/base", digest, {})
        path = f"/cove/v1/images/signatures?image={base}"
        assert daemon.http("POST", path, body_of(digest, made)).status == 201
        assert daemon.http("POST", f"/cove/v1/images/signatures/push?image={base}").status == 200
        daemon.http("DELETE", f"/images/{base}")
        assert listed(daemon) == []
        assert "built" in build(daemon, dockerfile, t="x:1").text
        daemon.http("DELETE", "/images/x:1")
