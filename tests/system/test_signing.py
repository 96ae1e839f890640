"""Signatures of images on this machine: made by the command line's key, kept with the image, gone with it."""

from __future__ import annotations

import base64
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cove.signing.keys import format_private_key, generate_key
from cove.signing.make import sign_image
from cove.signing.types import Signature
from tests.daemon import Daemon
from tests.imagekit import File, make_docker_archive
from tests.signkit import Authority

COVE = str(Path(__file__).parents[2] / "bin/cove")
PATH = "/cove/v1/images/signatures"
Cove = Callable[..., "subprocess.CompletedProcess[str]"]


def call_cove(
    daemon: Daemon, directory: Path, *words: str, status: int = 0, password: str | None = ""
) -> subprocess.CompletedProcess[str]:
    """bin/cove in a directory, with the daemon; the exit status has to be `status`."""
    environment = {**os.environ, "COVE_HOST": daemon.host, "COVE_RUN_DIR": str(daemon.run_dir)}
    environment.pop("COSIGN_PASSWORD", None)
    if password is not None:
        environment["COSIGN_PASSWORD"] = password
    done = subprocess.run(
        [COVE, *words],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, (words, done.returncode, done.stdout, done.stderr)
    return done


def load(daemon: Daemon, name: str, content: bytes = b"") -> str:
    """Load an image of one file; its name again."""
    archive = make_docker_archive([[File("a", content or name.encode())]], names=[name])
    assert daemon.http("POST", "/images/load", archive).status == 200
    return name


def signatures(daemon: Daemon, image: str) -> dict[str, Any]:
    answer = daemon.http("GET", f"{PATH}?image={image}")
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json()
    return found


def body_of(digest: str, *given: Signature) -> dict[str, Any]:
    return {
        "Digest": digest,
        "Signatures": [
            {
                "MediaType": one.media_type,
                "Content": base64.b64encode(one.content).decode(),
                "Annotations": one.annotations,
            }
            for one in given
        ],
    }


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A directory with a.key, a.pub, b.key and b.pub."""
    for name in "ab":
        key = generate_key("ecdsa-p256")
        (tmp_path / f"{name}.key").write_text(format_private_key(key, b""))
        (tmp_path / f"{name}.pub").write_text(key.public.pem)
    return tmp_path


def test_sign_and_verify(daemon: Daemon, keys: Path) -> None:
    image = load(daemon, "signed:1")
    missing = call_cove(daemon, keys, "verify", image, "--key", "a.pub", status=1)
    assert "signed:1: no-signature: no signature of sha256:" in missing.stderr
    done = call_cove(daemon, keys, "sign", image, "--key", "a.key", "-a", "commit=4fd12c9")
    digest = signatures(daemon, image)["Digest"]
    assert done.stdout == f"signed docker.io/library/signed@{digest}\n"
    good = call_cove(daemon, keys, "verify", image, "--key", "a.pub", "--key", "b.pub")
    assert good.stdout == f"signed:1: signed by a.pub as docker.io/library/signed@{digest} commit=4fd12c9\n"
    wrong = call_cove(daemon, keys, "verify", image, "--key", "b.pub", status=1)
    assert "wrong-key: no signature was made with the key b.pub" in wrong.stderr
    call_cove(daemon, keys, "verify", image, "--key", "a.pub", "-a", "commit=4fd12c9")
    other = call_cove(daemon, keys, "verify", image, "--key", "a.pub", "-a", "commit=0", status=1)
    assert "annotation: the signature lacks the annotations commit=0" in other.stderr
    shown = daemon.http("GET", f"/images/{image}/json").json()["Cove"]["Signatures"]
    assert [one["Reference"] for one in shown] == ["docker.io/library/signed"]
    assert shown[0]["Annotations"] == {"commit": "4fd12c9"} and shown[0]["Digest"] == digest
    answer = daemon.http("DELETE", f"{PATH}?image={image}")
    assert answer.json() == {"Removed": 1}
    assert "Cove" not in daemon.http("GET", f"/images/{image}/json").json()
    call_cove(daemon, keys, "verify", image, "--key", "a.pub", status=1)
    daemon.http("DELETE", f"/images/{image}")


def test_a_signature_is_of_a_repository(daemon: Daemon, keys: Path) -> None:
    image = load(daemon, "registry.example.org/team/app:1")
    call_cove(daemon, keys, "sign", image, "--key", "a.key")
    daemon.http("POST", f"/images/{image}/tag?repo=registry.example.org/team/root&tag=1")
    moved = call_cove(daemon, keys, "verify", "registry.example.org/team/root:1", "--key", "a.pub", status=1)
    assert (
        "other-repository: it is signed as registry.example.org/team/app, not as "
        "registry.example.org/team/root" in moved.stderr
    )
    call_cove(
        daemon, keys, "verify", "registry.example.org/team/root:1", "--key", "a.pub", "--any-repository"
    )
    image_id = signatures(daemon, image)["Image"]
    asked = call_cove(daemon, keys, "sign", image_id, "--key", "a.key", status=125)
    assert "has 2 repositories' names: say with --as which one is signed" in asked.stderr
    call_cove(daemon, keys, "sign", image_id, "--key", "a.key", "--as", "registry.example.org/team/root")
    call_cove(daemon, keys, "verify", "registry.example.org/team/root:1", "--key", "a.pub")
    for name in (image, "registry.example.org/team/root:1"):
        daemon.http("DELETE", f"/images/{name}")


def test_certificates(daemon: Daemon, keys: Path) -> None:
    import datetime

    image = load(daemon, "certified:1")
    authority = Authority(now=datetime.datetime.now(datetime.UTC))
    issued = authority.issue("ci@example.org")
    (keys / "ci.key").write_text(format_private_key(issued.key, b""))
    (keys / "ci.pem").write_text(issued.pem)
    (keys / "roots.pem").write_text(authority.pem)
    call_cove(daemon, keys, "sign", image, "--key", "ci.key", "--certificate", "ci.pem")
    wanted = ("verify", image, "--ca", "roots.pem", "--certificate-identity", "ci@example.org")
    assert "signed by ci@example.org (https://login.example.org)" in call_cove(daemon, keys, *wanted).stdout
    issuer = call_cove(daemon, keys, *wanted, "--certificate-oidc-issuer", "https://x.example", status=1)
    assert "other-identity: it is signed by ci@example.org (https://login.example.org)" in issuer.stderr
    anybody = call_cove(daemon, keys, "verify", image, "--ca", "roots.pem", status=125)
    assert "--certificate-identity: is missing" in anybody.stderr
    old = authority.issue("ci@example.org", key=issued.key, end=datetime.timedelta(seconds=-1))
    daemon.http("DELETE", f"{PATH}?image={image}")
    (keys / "ci.pem").write_text(old.pem)
    call_cove(daemon, keys, "sign", image, "--key", "ci.key", "--certificate", "ci.pem")
    expired = call_cove(daemon, keys, *wanted, "--format", "json", status=1)
    assert '"Signed":false,"Reason":"expired"' in expired.stdout
    daemon.http("DELETE", f"/images/{image}")


def test_keys_are_made_once_and_for_their_owner_alone(daemon: Daemon, tmp_path: Path) -> None:
    call_cove(daemon, tmp_path, "key", "generate", password="pw")
    private, public = tmp_path / "cove.key", tmp_path / "cove.pub"
    assert private.stat().st_mode & 0o777 == 0o600
    assert "ENCRYPTED SIGSTORE PRIVATE KEY" in private.read_text()
    shown = call_cove(daemon, tmp_path, "key", "public", "cove.key", password="pw")
    assert shown.stdout == public.read_text()
    before = private.read_text()
    again = call_cove(daemon, tmp_path, "key", "generate", password="pw", status=125)
    assert "cove.key is there already and stays" in again.stderr and private.read_text() == before
    private.unlink()
    call_cove(daemon, tmp_path, "key", "generate", password="pw", status=125)
    assert not private.exists()
    nobody = call_cove(daemon, tmp_path, "key", "generate", "--output-prefix", "x", password=None, status=125)
    assert "set COSIGN_PASSWORD, or run this in a terminal" in nobody.stderr
    assert not list(tmp_path.glob("x.*"))


def test_bad_input_is_refused_and_nothing_kept(daemon: Daemon, keys: Path) -> None:
    image = load(daemon, "bad:1")
    digest = signatures(daemon, image)["Digest"]
    good = sign_image(generate_key("ed25519"), "docker.io/library/bad", digest, {})
    one = body_of(digest, good)["Signatures"][0]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"Digest": digest}, "Signatures: expected 1 to 64, got 0"),
        ({"Digest": digest, "Signatures": [one] * 65}, "Signatures: expected 1 to 64, got 65"),
        ({"Digest": digest, "Signatures": [{**one, "MediaType": "text/html"}]}, "MediaType: expected"),
        ({"Digest": digest, "Signatures": [{**one, "Content": "?"}]}, "Content: expected the signed content"),
        ({"Digest": digest, "Signatures": [{**one, "Content": ""}]}, "Content: is empty"),
        (
            {"Digest": digest, "Signatures": [{**one, "Content": base64.b64encode(bytes(200_000)).decode()}]},
            "a signature's content has up to 131072 bytes, this one has 200000",
        ),
        (
            {"Digest": digest, "Signatures": [{**one, "Annotations": {"x": "y" * 70_000}}]},
            "a signature's annotations have up to 65536 bytes",
        ),
        ({"Digest": "sha256:" + "0" * 64, "Signatures": [one]}, "isn't a manifest of bad:1"),
    ]
    for body, sentence in cases:
        answer = daemon.http("POST", f"{PATH}?image={image}", body)
        assert answer.status == 400 and sentence in answer.message, (answer.body, sentence)
    assert daemon.http("POST", f"{PATH}?image=none:1", body_of(digest, good)).status == 404
    assert daemon.http("GET", PATH).status == 400
    assert signatures(daemon, image)["Signatures"] == []
    daemon.http("DELETE", f"/images/{image}")


def test_signatures_are_counted(daemon: Daemon) -> None:
    image = load(daemon, "many:1")
    digest = signatures(daemon, image)["Digest"]
    key = generate_key("ed25519")
    many = [sign_image(key, "docker.io/library/many", digest, {"n": str(n)}) for n in range(65)]
    assert daemon.http("POST", f"{PATH}?image={image}", body_of(digest, *many[:60])).json() == {"Added": 60}
    assert daemon.http("POST", f"{PATH}?image={image}", body_of(digest, *many[:60])).json() == {"Added": 0}
    answer = daemon.http("POST", f"{PATH}?image={image}", body_of(digest, *many[60:]))
    assert answer.status == 409 and "has 60 signatures already; the limit is 64" in answer.message
    assert len(signatures(daemon, image)["Signatures"]) == 60
    daemon.http("DELETE", f"/images/{image}")


def test_signatures_go_with_the_image_and_outlive_the_daemon(fresh_daemon: Daemon, keys: Path) -> None:
    daemon = fresh_daemon
    image = load(daemon, "kept:1")
    daemon.http("POST", f"/images/{image}/tag?repo=kept&tag=2")
    call_cove(daemon, keys, "sign", image, "--key", "a.key")
    daemon.kill9()
    daemon.start()
    call_cove(daemon, keys, "verify", image, "--key", "a.pub")
    daemon.http("DELETE", f"/images/{image}")
    call_cove(daemon, keys, "verify", "kept:2", "--key", "a.pub")
    daemon.http("DELETE", "/images/kept:2")
    load(daemon, "kept:1")
    assert signatures(daemon, image)["Signatures"] == []
    daemon.restart()
    assert signatures(daemon, image)["Signatures"] == []


def test_killed_while_signing_what_was_acknowledged_is_there(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    image = load(daemon, "killed:1")
    digest = signatures(daemon, image)["Digest"]
    key = generate_key("ed25519")
    acknowledged = 0

    def sign() -> None:
        nonlocal acknowledged
        for n in range(60):
            one = sign_image(key, "docker.io/library/killed", digest, {"n": str(n)})
            try:
                if daemon.http("POST", f"{PATH}?image={image}", body_of(digest, one)).status != 201:
                    return
            except OSError:
                return
            acknowledged += 1

    thread = threading.Thread(target=sign)
    thread.start()
    while acknowledged < 5 and thread.is_alive():
        pass
    daemon.kill9()
    thread.join(60)
    daemon.start()
    kept = len(signatures(daemon, image)["Signatures"])
    assert acknowledged >= 5 and kept in (acknowledged, acknowledged + 1)
    daemon.http("DELETE", f"/images/{image}")
    load(daemon, "killed:1")
    assert signatures(daemon, image)["Signatures"] == []
