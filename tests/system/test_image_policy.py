"""The daemon's image policy: what isn't signed as it asks doesn't run, under no name, and the reason is told."""

from __future__ import annotations

import datetime
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cove.signing.keys import PrivateKey, generate_key
from cove.signing.make import sign_image
from tests.apikit import create, eventually, remove, start, state
from tests.buildkit import build
from tests.daemon import IMAGE, Daemon
from tests.imagekit import File, make_docker_archive
from tests.signkit import Authority
from tests.system.test_scan import load as load_layers
from tests.system.test_scan_vulns import ALL, LAYERS
from tests.system.test_signing import PATH, body_of, call_cove, load, signatures

TEAM = "registry.example.org/team"
KEY = generate_key("ecdsa-p256")


class PolicyDaemon(Daemon):
    """A daemon with a policy in a file of its own, which `write` replaces."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="cove-policy-"))
        self.policy = self.directory / "policy.json"
        self.key = self.directory / "release.pub"
        self.key.write_text(KEY.public.pem)
        self.write({"default": "accept"})
        super().__init__("--image-policy", str(self.policy))

    def write(self, document: object) -> None:
        self.policy.write_text(document if isinstance(document, str) else json.dumps(document))
        os.chmod(self.policy, 0o644)

    def use(self, document: object) -> None:
        """Write another policy and have it count."""
        self.write(document)
        answer = self.http("POST", "/cove/v1/reload")
        assert answer.status == 200, answer.body

    def stop(self) -> None:
        super().stop()
        for path in (self.policy, self.key):
            path.unlink(missing_ok=True)
        if self.directory.exists():
            self.directory.rmdir()


@pytest.fixture(scope="module")
def guarded() -> Iterator[PolicyDaemon]:
    with PolicyDaemon() as daemon:
        daemon.load_image()
        yield daemon


@pytest.fixture
def strict(guarded: PolicyDaemon) -> Iterator[dict[str, Any]]:
    """A policy that takes only what the team's key signed, in use; everything is accepted again after."""
    document = {
        "default": "reject",
        "scopes": {
            "docker.io/library": "accept",
            TEAM: {"signed-by": [{"key-file": str(guarded.key)}]},
        },
    }
    guarded.use(document)
    yield document
    guarded.use({"default": "accept"})


def tag(daemon: Daemon, source: str, repository: str, name: str = "1") -> str:
    answer = daemon.http("POST", f"/images/{source}/tag?repo={repository}&tag={name}")
    assert answer.status == 201, answer.body
    return f"{repository}:{name}"


def sign(
    daemon: Daemon, image: str, key: PrivateKey = KEY, *, as_: str = f"{TEAM}/app", of: str = ""
) -> None:
    digest = signatures(daemon, image)["Digest"]
    made = sign_image(key, as_, of or digest, {})
    assert daemon.http("POST", f"{PATH}?image={image}", body_of(digest, made)).status == 201


def forget(daemon: Daemon, *images: str) -> None:
    for image in images:
        daemon.http("DELETE", f"{PATH}?image={image}")
        daemon.http("DELETE", f"/images/{image}?force=1")


def refused(daemon: Daemon, image: str, *sentences: str, **more: Any) -> None:
    """Creating a container of the image is refused, and nothing of it stays."""
    answer = daemon.http("POST", "/containers/create", {"Image": image, "Cmd": ["true"], **more})
    assert answer.status == 403, answer.body
    assert answer.message.startswith("image "), answer.message
    for sentence in sentences:
        assert sentence in answer.message
    assert daemon.http("GET", "/containers/json?all=1").json() == []


def runs(daemon: Daemon, image: str) -> None:
    container = create(daemon, image, "true")
    start(daemon, container)
    assert daemon.http("POST", f"/containers/{container}/wait").json()["StatusCode"] == 0
    remove(daemon, container)


def test_unsigned_is_refused_and_signed_runs(guarded: PolicyDaemon, strict: object) -> None:
    image = tag(guarded, IMAGE, f"{TEAM}/app")
    refused(guarded, image, f"the image policy of {TEAM} isn't fulfilled: no signature of sha256:")
    sign(guarded, image)
    runs(guarded, image)
    runs(guarded, signatures(guarded, image)["Image"])  # by its id, too
    test = guarded.http("GET", f"/cove/v1/policy/test?image={image}").json()
    assert test["Accepted"] and [one["Scope"] for one in test["Obligations"]] == [TEAM]
    forget(guarded, image)


def test_wrong_keys_and_moved_signatures_are_refused(guarded: PolicyDaemon, strict: object) -> None:
    image = tag(guarded, IMAGE, f"{TEAM}/app")
    sign(guarded, image, generate_key("ecdsa-p256"))
    refused(guarded, image, "no signature was made with the key")
    sign(guarded, image, of="sha256:" + "d" * 64)  # the key's own, of an older manifest
    refused(guarded, image, "the signature is of another image, sha256:" + "d" * 64)
    sign(guarded, image, as_=f"{TEAM}/debug")
    refused(guarded, image, f"it is signed as {TEAM}/debug, not as {TEAM}/app")
    forget(guarded, image)


def test_certificates_are_checked_behind_the_workers_walls(guarded: PolicyDaemon) -> None:
    authority = Authority(now=datetime.datetime.now(datetime.UTC))
    rule = {
        "signed-by": [
            {"ca": authority.pem, "identity": "ci@example.org", "issuer": "https://login.example.org"}
        ]
    }
    guarded.use({"default": rule})
    digest = signatures(guarded, IMAGE)["Digest"]

    def certify(subject: str) -> None:
        issued = authority.issue(subject)
        made = sign_image(issued.key, "docker.io/library/busybox", digest, {}, certificates=issued.pem)
        assert guarded.http("POST", f"{PATH}?image={IMAGE}", body_of(digest, made)).status == 201

    certify("eve@example.org")
    refused(
        guarded, IMAGE, "it is signed by eve@example.org (https://login.example.org), not by ci@example.org"
    )
    certify("ci@example.org")
    runs(guarded, IMAGE)
    guarded.use({"default": "accept"})
    guarded.http("DELETE", f"{PATH}?image={IMAGE}")


def test_another_name_helps_nobody(guarded: PolicyDaemon, strict: object) -> None:
    """Names are given by anybody; the image's own signature decides, under each of them."""
    unsigned = load(guarded, f"{TEAM}/evil:1")
    refused(guarded, unsigned, "no signature")
    official = tag(guarded, unsigned, "docker.io/library/official")  # a scope that is accepted
    refused(guarded, "official:1", "no signature")
    guarded.http("DELETE", f"/images/{unsigned}")
    refused(
        guarded, "official:1", "the image policy by default rejects it"
    )  # accepted for what is pulled from there
    elsewhere = tag(guarded, "official:1", "localhost/x")
    refused(guarded, elsewhere, "by default rejects it")
    image_id = signatures(guarded, "official:1")["Image"]
    for word in (image_id, image_id.removeprefix("sha256:"), image_id[7:19]):
        refused(guarded, word, "by default rejects it")
    forget(guarded, official, elsewhere, "official:1")


def test_a_good_image_under_another_repository_of_the_same_key(guarded: PolicyDaemon, strict: object) -> None:
    image = tag(guarded, IMAGE, f"{TEAM}/app")
    sign(guarded, image)
    runs(guarded, image)
    other = tag(guarded, image, f"{TEAM}/gateway")
    refused(guarded, other, f"it is signed as {TEAM}/app, not as {TEAM}/gateway")
    refused(guarded, image, "not as")  # the image has a name now that it isn't signed as
    guarded.http("DELETE", f"/images/{other}")
    runs(guarded, image)
    forget(guarded, image)


def test_a_start_is_asked_again(guarded: PolicyDaemon) -> None:
    """Of a container that is there already, when the policy or the signatures have changed since."""
    image = tag(guarded, IMAGE, f"{TEAM}/app")
    container = create(guarded, image, "sleep", "1000")
    document = {"default": "reject", "scopes": {TEAM: {"signed-by": [{"key-file": str(guarded.key)}]}}}
    guarded.use(document)
    answer = guarded.http("POST", f"/containers/{container}/start")
    assert answer.status == 403 and "no signature of sha256:" in answer.message
    assert state(guarded, container)["Status"] in ("created", "exited")
    sign(guarded, image)
    start(guarded, container)
    guarded.http("DELETE", f"{PATH}?image={image}")
    assert guarded.http("POST", f"/containers/{container}/restart?t=0").status == 403
    guarded.use({"default": "accept"})
    start(guarded, container)
    guarded.use({"default": "reject"})
    assert state(guarded, container)["Running"]  # what runs goes on
    guarded.http("POST", f"/containers/{container}/kill")
    eventually(lambda: not state(guarded, container)["Running"])
    assert guarded.http("POST", f"/containers/{container}/start").status == 403
    guarded.use({"default": "accept"})
    remove(guarded, container)
    forget(guarded, image)


def test_an_image_that_is_mounted_is_asked_too(guarded: PolicyDaemon, strict: object) -> None:
    image = tag(guarded, IMAGE, f"{TEAM}/app")
    sign(guarded, image)
    data = load(guarded, "data:1")
    mounts = [{"Type": "image", "Source": data, "Target": "/data"}]
    refused(guarded, image, "image data:1 is refused", HostConfig={"Mounts": mounts})
    forget(guarded, image, data)


def test_what_is_made_of_a_good_image_is_another_one(guarded: PolicyDaemon, strict: object) -> None:
    image = tag(guarded, IMAGE, f"{TEAM}/app")
    sign(guarded, image)
    container = create(guarded, image, "sh", "-c", "echo x >/x")
    start(guarded, container)
    guarded.http("POST", f"/containers/{container}/wait")
    assert guarded.http("POST", f"/commit?container={container}&repo={TEAM}/app&tag=2", {}).status == 201
    remove(guarded, container)
    refused(guarded, f"{TEAM}/app:2", "no signature")
    forget(guarded, image, f"{TEAM}/app:2")


def test_a_build_runs_nothing_of_a_base_that_is_refused(guarded: PolicyDaemon, strict: object) -> None:
    """The base has to fulfil the policy; what is built of it has to be signed in its turn."""
    base = tag(guarded, IMAGE, f"{TEAM}/base")
    dockerfile = f"FROM {base}\nRUN echo built >/built\n"
    stopped = build(guarded, {"Dockerfile": dockerfile}, t=f"{TEAM}/app:1")
    assert f"image {base} is refused: the image policy of {TEAM}" in stopped.error
    assert "Running in" not in stopped.text
    sign(guarded, base, as_=f"{TEAM}/base")
    assert build(guarded, {"Dockerfile": dockerfile}, t=f"{TEAM}/app:1").image
    refused(guarded, f"{TEAM}/app:1", "no signature")
    sign(guarded, f"{TEAM}/app:1")
    runs(guarded, f"{TEAM}/app:1")
    forget(guarded, f"{TEAM}/app:1", base)
    guarded.http("POST", "/build/prune?all=1")


def test_a_severity_is_asked_of_the_scanner(guarded: PolicyDaemon) -> None:
    load_layers(guarded, "app:1", list(LAYERS))
    guarded.use({"default": {"checks": {"severity": "critical"}}})
    refused(guarded, "app:1", "severity can't be told: there is no database of vulnerabilities yet")
    assert guarded.http("POST", "/cove/v1/vulns/import", ALL).status == 200
    refused(guarded, "app:1", "it has known vulnerabilities of the level critical or worse: 1 critical")
    refused(guarded, "app:1", "1 critical")  # from memory, the same
    runs(guarded, IMAGE)
    guarded.write({"default": {"checks": {"severity": "awful"}}})
    answer = guarded.http("POST", "/cove/v1/reload")
    assert (
        "default.checks.severity: expected one of negligible, low, medium, high, critical" in answer.message
    )
    guarded.use({"default": "accept"})
    forget(guarded, "app:1")


def test_a_pods_own_image_is_the_daemons(guarded: PolicyDaemon, strict: object) -> None:
    assert guarded.http("POST", "/cove/v1/pods?name=p", {}).status == 201
    assert guarded.http("POST", "/cove/v1/pods/start?name=p").status == 204
    guarded.http("DELETE", "/cove/v1/pods?name=p&force=1")
    program = make_docker_archive([[File("cove-init", b"#!/bin/sh\n")]], names=["cove.local/pod:1"])
    guarded.http("POST", "/images/load", program)  # by its name nothing is the daemon's
    refused(guarded, "cove.local/pod:1", "by default rejects it")
    forget(guarded, "cove.local/pod:1")


def test_a_bad_policy_changes_nothing(guarded: PolicyDaemon, strict: dict[str, Any]) -> None:
    image = tag(guarded, IMAGE, f"{TEAM}/app")
    cases: list[tuple[object, str]] = [
        ("{", f"image-policy {guarded.policy}: it isn't JSON"),
        ({"default": "perhaps"}, "Invalid enum value 'perhaps'"),
        (
            {"default": {"signed-by": [{"key-file": "/nowhere.pub"}]}},
            "/nowhere.pub: No such file or directory",
        ),
        (
            {
                "default": {
                    "signed-by": [{"key": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"}]
                }
            },
            "isn't a key that can be read",
        ),
        ({"default": {"signed-by": [{"key": KEY.public.pem}], "checks": {"mood": 1}}}, "has no check 'mood'"),
    ]
    for document, sentence in cases:
        guarded.write(document)
        answer = guarded.http("POST", "/cove/v1/reload")
        assert answer.status == 400 and sentence in answer.message, answer.body
        refused(guarded, image, "no signature")
    guarded.write(strict)
    os.chmod(guarded.policy, 0o666)
    answer = guarded.http("POST", "/cove/v1/reload")
    assert answer.status == 400 and "others than its owner may write it (mode 0666)" in answer.message
    guarded.policy.unlink()
    assert guarded.http("POST", "/cove/v1/reload").status == 400
    refused(guarded, image, "no signature")
    guarded.write(strict)
    forget(guarded, image)


def test_without_its_policy_a_daemon_does_not_start() -> None:
    with PolicyDaemon() as daemon:
        daemon.terminate()
        daemon.write("{")
        with pytest.raises(AssertionError, match=r"image-policy .*: it isn't JSON"):
            daemon.start()
        daemon.write({"default": "accept"})
        daemon.start()


def test_the_command_line_tells(guarded: PolicyDaemon, strict: object, tmp_path: Path) -> None:
    shown = call_cove(guarded, tmp_path, "policy", "show").stdout
    assert f"policy of {guarded.policy}" in shown and str(guarded.key) in shown
    image = tag(guarded, IMAGE, f"{TEAM}/app")
    told = call_cove(guarded, tmp_path, "policy", "test", image, status=1).stdout
    assert f"{TEAM}: signed as {TEAM}/app: not fulfilled: no signature of" in told
    assert told.endswith(f"{image}: refused\n")
    sign(guarded, image)
    told = call_cove(guarded, tmp_path, "policy", "test", image).stdout
    assert told == f"{TEAM}: signed as {TEAM}/app: fulfilled\n{image}: accepted\n"
    assert (
        "good: 2 scopes, 1 signers"
        in call_cove(guarded, tmp_path, "policy", "check", str(guarded.policy)).stdout
    )
    (tmp_path / "bad.json").write_text('{"default": "perhaps"}')
    bad = call_cove(guarded, tmp_path, "policy", "check", "bad.json", status=1)
    assert "bad.json: Invalid enum value 'perhaps' - at `$.default`" in bad.stderr
    done = call_cove(guarded, tmp_path, "run", "--rm", "official:9", "true", status=125)
    assert done.stderr
    forget(guarded, image)


def test_the_daemon_loads_no_cryptography(guarded: PolicyDaemon, strict: object) -> None:
    image = tag(guarded, IMAGE, f"{TEAM}/app")
    sign(guarded, image)
    runs(guarded, image)
    mapped = Path(f"/proc/{guarded.pid}/maps").read_text()
    assert "cryptography" not in mapped
    forget(guarded, image)
