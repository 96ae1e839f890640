"""Who may do what at a registry: passwords, tokens, certificates, rules; and TLS of its own."""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.imagekit import File, make_oci_layout
from tests.registryserver import Answer, Registry, digest_of, run_registry, serving
from tests.tlskit import Authority

BCRYPT = "$2y$10$abcdefghijklmnopqrstuuqflPDzB6gcMhKa1rZqKiun2YGL5sa2u"  # of "secret"
RULES = """
[[rule]]
repositories = "public/**"
pull = ["*"]
push = ["alice"]
delete = ["alice"]

[[rule]]
repositories = "team/*"
pull = ["@users"]
push = ["bob"]

[[rule]]
repositories = "**"
"""


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "htpasswd").write_text(f"# users\nalice:{BCRYPT}\n")
    (tmp_path / "bob").write_text("bob's own\n")
    (tmp_path / "rules.toml").write_text(RULES)
    return [
        f"--htpasswd={tmp_path}/htpasswd",
        f"--user=bob:{tmp_path}/bob",
        f"--policy={tmp_path}/rules.toml",
    ]


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


ALICE, BOB = basic("alice", "secret"), basic("bob", "bob's own")


def push(registry: Registry, name: str, headers: dict[str, str]) -> Answer:
    data = name.encode()
    return registry.ask("POST", f"/v2/{name}/blobs/uploads/?digest={digest_of(data)}", data, headers)


def test_rules_say_who_may_do_what(tmp_path: Path, files: list[str]) -> None:
    with serving(tmp_path / "root", *files) as registry:
        for name, headers, status in (
            ("public/app", ALICE, 201),
            ("public/app", BOB, 403),
            ("public/app", {}, 401),
            ("team/app", BOB, 201),
            ("team/app", ALICE, 403),
            ("team/sub/app", BOB, 403),
            ("other", ALICE, 403),
        ):
            assert push(registry, name, headers).status == status, (name, headers)
        for name, headers, status in (
            ("public/app", {}, 200),
            ("team/app", {}, 401),
            ("team/app", ALICE, 200),
        ):
            path = f"/v2/{name}/blobs/{digest_of(name.encode())}"
            assert registry.ask("GET", path, headers=headers).status == status, (name, headers)
        blob = f"/v2/team/app/blobs/{digest_of(b'team/app')}"
        assert registry.ask("DELETE", blob, headers=BOB).status == 403
        refused = registry.ask("GET", blob)
        assert refused.headers["www-authenticate"].startswith('Basic realm="127.0.0.1')
        assert refused.code == "UNAUTHORIZED"
        # what one may not read can't be mounted into what one may write
        stolen = registry.ask(
            "POST", f"/v2/public/app/blobs/uploads/?mount={digest_of(b'team/app')}&from=other", headers=ALICE
        )
        assert stolen.status == 202
        mounted = registry.ask(
            "POST",
            f"/v2/public/app/blobs/uploads/?mount={digest_of(b'team/app')}&from=team/app",
            headers=ALICE,
        )
        assert mounted.status == 201


def test_wrong_passwords_are_answered_late_and_leave_no_trace(tmp_path: Path, files: list[str]) -> None:
    with serving(tmp_path / "root", *files) as registry:
        began = time.monotonic()
        for user, password in (("alice", "guess-1"), ("nobody", "guess-2"), ("bob", "")):
            answer = registry.ask("GET", "/v2/", headers=basic(user, password))
            assert (answer.status, answer.message) == (401, "unknown user, or wrong password")
        assert time.monotonic() - began > 0.25 + 0.5 + 1.0
        assert registry.ask("GET", "/v2/", headers=ALICE).status == 200
        began = time.monotonic()
        for _ in range(20):
            assert registry.ask("GET", "/v2/", headers=ALICE).status == 200
        assert time.monotonic() - began < 1.0  # hashed once, not each time
        metrics = registry.ask("GET", "/metrics", headers=BOB).body
        assert b"cove_registry_logins_failed_total 3" in metrics
        registry.stop()
        log = registry.log.read_text()
        assert "guess" not in log and "secret" not in log and "own" not in log and "Basic" not in log
        assert "user=alice" in log


def test_tokens_hold_what_was_asked_for_and_allowed(tmp_path: Path, files: list[str]) -> None:
    with serving(tmp_path / "root", *files, "--tokens") as registry:
        challenge = push(registry, "public/app", {}).headers["www-authenticate"]
        assert challenge == (
            f'Bearer realm="http://{registry.address}/token",service="{registry.address}",'
            'scope="repository:public/app:pull,push"'
        )

        def token(headers: dict[str, str], *scopes: str) -> dict[str, str]:
            query = "&".join(f"scope={scope}" for scope in scopes)
            answer = registry.ask("GET", f"/token?service=x&{query}", headers=headers)
            assert answer.status == 200, answer
            return {"Authorization": f"Bearer {json.loads(answer.body)['token']}"}

        alice = token(ALICE, "repository:public/app:pull,push", "repository:team/app:pull,push")
        assert push(registry, "public/app", alice).status == 201
        assert push(registry, "team/app", alice).status == 403
        assert push(registry, "public/other", alice).status == 401  # another token would do
        bob = token(BOB, "repository:team/app:*")
        assert push(registry, "team/app", bob).status == 201
        anonymous = token({}, "repository:public/app:pull,push")
        assert push(registry, "public/app", anonymous).status == 401
        path = f"/v2/public/app/blobs/{digest_of(b'public/app')}"
        assert registry.ask("GET", path, headers=anonymous).status == 200
        body, _, signature = alice["Authorization"].partition(".")
        for forged in (f"{body}x.{signature}", f"{body}.{signature[:-2]}AA", "Bearer x", "Bearer é.é"):
            refused = registry.ask(
                "GET", path, headers={"Authorization": forged.encode("latin-1").decode("latin-1")}
            )
            assert refused.status == 401, forged


def test_skopeo_logs_in_by_password_and_by_token(tmp_path: Path, files: list[str]) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo isn't installed")
    layout = tmp_path / "layout"
    (tmp_path / "image.tar").write_bytes(make_oci_layout([[File("a", b"x" * 1000)]], names=["app:1"]))
    for options in ([], ["--tokens"]):
        with serving(tmp_path / f"root{len(options)}", *files, *options) as registry:
            where = f"docker://{registry.address}/public/app:1"
            common = [
                "skopeo",
                "copy",
                "--insecure-policy",
                "--dest-tls-verify=false",
                "--src-tls-verify=false",
            ]
            source = f"oci-archive:{tmp_path}/image.tar"
            refused = subprocess.run([*common, source, where], capture_output=True, text=True, timeout=60)
            assert refused.returncode != 0
            subprocess.run(
                [*common, "--dest-creds=alice:secret", source, where],
                check=True,
                capture_output=True,
                timeout=60,
            )
            subprocess.run([*common, where, f"dir:{layout}"], check=True, capture_output=True, timeout=60)
            assert (layout / "manifest.json").exists()
            shutil.rmtree(layout)


def test_a_certificate_of_its_own_is_trusted_by_its_authority(tmp_path: Path) -> None:
    with serving(tmp_path / "root", "--tls=self", "--tls-name=registry.test") as registry:
        authority = registry.root / "tls/ca.pem"
        assert "ca.pem /etc/docker/certs.d/localhost:" in registry.log.read_text()
        first = authority.read_bytes()
        context = ssl.create_default_context(cafile=str(authority))
        url = f"https://localhost:{registry.port}/v2/"
        assert urllib.request.urlopen(url, context=context, timeout=20).status == 200
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(url, timeout=20)
        data = b"x" * (3 << 20)
        request = urllib.request.Request(
            f"https://127.0.0.1:{registry.port}/v2/app/blobs/uploads/?digest={digest_of(data)}",
            data,
            method="POST",
        )
        assert urllib.request.urlopen(request, context=context, timeout=20).status == 201
        blob = f"https://127.0.0.1:{registry.port}/v2/app/blobs/{digest_of(data)}"
        assert urllib.request.urlopen(blob, context=context, timeout=20).read() == data
        registry.kill()
        registry.start()
        assert authority.read_bytes() == first
        assert urllib.request.urlopen(url, context=context, timeout=20).status == 200


def test_clients_are_known_by_their_certificates(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "test")
    server, client = authority.issue("server", "serverAuth"), authority.issue("carol", "clientAuth")
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nrepositories = "**"\npush = ["carol"]\n')
    options = [
        f"--tls-cert={server}/cert.pem",
        f"--tls-key={server}/key.pem",
        f"--tls-client-ca={authority.certificate}",
        f"--policy={rules}",
    ]
    with serving(tmp_path / "root", *options) as registry:
        context = ssl.create_default_context(cafile=str(authority.certificate))
        context.load_cert_chain(client / "cert.pem", client / "key.pem")
        data = b"carol's"
        request = urllib.request.Request(
            f"https://localhost:{registry.port}/v2/app/blobs/uploads/?digest={digest_of(data)}",
            data,
            method="POST",
        )
        assert urllib.request.urlopen(request, context=context, timeout=20).status == 201
        with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
            nobody = ssl.create_default_context(cafile=str(authority.certificate))
            urllib.request.urlopen(f"https://localhost:{registry.port}/v2/", context=nobody, timeout=20)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--user=bob:/nonexistent"], "--user /nonexistent: No such file"),
        (["--user=bob"], "expected NAME:FILE"),
        (["--tokens"], "there are no users who could log in"),
        (["--tls-cert=/x"], "--tls-cert FILE together with --tls-key FILE"),
        (["--anonymous=all"], "expected none, pull or push"),
        (["--listen=127.0.0.1:x"], "expected HOST:PORT"),
        (["--reserve=1x"], "expected a number and b, k, m, g or t"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: list[str], words: str) -> None:
    done = run_registry("serve", f"--root={tmp_path}/root", *options)
    assert done.returncode == 1 and words in done.stderr
    assert not (tmp_path / "root").exists()


def test_hashes_that_are_quick_to_guess_are_refused(tmp_path: Path) -> None:
    for hashed in ("$apr1$abcdefgh$0123456789012345678901", "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "plain"):
        (tmp_path / "htpasswd").write_text(f"x:{hashed}\n")
        done = run_registry("serve", f"--root={tmp_path}/root", f"--htpasswd={tmp_path}/htpasswd")
        assert done.returncode == 1 and "line 1: x's hash is of a kind that isn't taken" in done.stderr
        assert hashed not in done.stderr
