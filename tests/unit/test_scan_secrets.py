"""Secrets: real forms are found, examples are not, nothing of a secret is kept, and no file makes it slow.

No secret here is anybody's: keys are made by the tests, tokens are made of random letters with the checksums that
their issuers give them.
"""

from __future__ import annotations

import base64
import json
import random
import string
import subprocess
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.scan.model import Secret
from cove.scan.rules import RULES, has_github_checksum
from cove.scan.secrets import SecretFinder, find_in_config, find_in_file
from tests.scankit import MemoryFile, scan

CHANCE = random.Random(11)
UPPER = string.ascii_uppercase
LETTERS = string.ascii_letters + string.digits


def letters(count: int, alphabet: str = LETTERS) -> str:
    return "".join(CHANCE.choice(alphabet) for _ in range(count))


def checked(prefix: str) -> str:
    """A token with GitHub's checksum."""
    base62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
    body = letters(30)
    number, digits = zlib.crc32(body.encode()), ""
    while number:
        number, digit = divmod(number, 62)
        digits = base62[digit] + digits
    return f"{prefix}_{body}{digits.rjust(6, '0')}"


def key(*arguments: str) -> str:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def found(text: str, path: str = "app/settings.py") -> list[str]:
    return [secret.rule for secret in find_in_file(path, text.encode())]


TOKENS = {
    "github-token": checked("ghp"),
    "npm-token": checked("npm"),
    "github-fine-token": f"github_pat_{letters(22)}_{letters(59)}",
    "gitlab-token": f"glpat-{letters(20)}",
    "slack-token": f"xoxb-{letters(12, string.digits)}-{letters(12, string.digits)}-{letters(24)}",
    "slack-webhook": f"https://hooks.slack.com/services/T{letters(8, UPPER)}/B{letters(8, UPPER)}/{letters(24)}",
    "stripe-key": f"sk_live_{letters(24)}",
    "pypi-token": "pypi-AgEIcHlwaS5vcmc" + letters(80),
    "docker-token": f"dckr_pat_{letters(27)}",
    "gcp-api-key": f"AIza{letters(35)}",
    "azure-storage-key": f"AccountKey={base64.b64encode(CHANCE.randbytes(64)).decode()};Suffix=core.windows.net",
    "azure-client-secret": f"{letters(3)}8Q~{letters(34)}",
    "digitalocean-token": f"dop_v1_{letters(64, '0123456789abcdef')}",
    "sendgrid-key": f"SG.{letters(22)}.{letters(43)}",
    "shopify-token": f"shpat_{letters(32, '0123456789abcdef')}",
    "huggingface-token": f"hf_{letters(34, string.ascii_letters)}",
    "anthropic-key": f"sk-ant-api03-{letters(93)}AA",
    "openai-key": f"sk-proj-{letters(40)}T3BlbkFJ{letters(40)}",
    "vault-token": f"hvs.{letters(95)}",
    "aws-key": f"AWS_ACCESS_KEY_ID=AKIA{letters(16, UPPER + '234567')}\nAWS_SECRET_ACCESS_KEY={letters(40)}",
}  # fmt: skip


@pytest.mark.parametrize("rule", list(TOKENS))
def test_tokens_are_found_by_the_form_that_their_issuer_published(rule: str) -> None:
    token = TOKENS[rule]
    for text in (f'key = "{token}"\n', f"export X={token}", f'{{"a": "{token}"}}', f"\n\n  {token}\n"):
        (secret,) = find_in_file("app/x", text.encode())
        assert secret.rule == rule and secret.line == text[: text.index(token)].count("\n") + 1
        assert token not in secret.masked and len(secret.masked) <= 20
    assert not found(f"x{token[: len(token) // 2]}")


def test_every_rule_has_a_case() -> None:
    assert {rule.name for rule in RULES} == {*TOKENS, "private-key", "putty-key"}


@pytest.mark.parametrize(
    "text",
    [
        "AKIAIOSFODNN7EXAMPLE wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",  # AWS's documentation
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",  # GitHub's documentation: its checksum is wrong
        "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "npm_000000000000000000000000000000000000",
        "AIzaSyXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX",
        "glpat-aaaaaaaaaaaaaaaaaaaa",
        "sk_live_your_key_goes_here_and_is_long",
        "-----BEGIN PRIVATE KEY-----\nMII...\n-----END PRIVATE KEY-----",
        "-----BEGIN RSA PRIVATE KEY-----\\n<your key>",
        "if line.startswith('-----BEGIN RSA PRIVATE KEY-----'):",
        "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA0Z3VS5JJcds3xfn/ygWyF8PbnGy0AHB7\n",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEogIBAAKCAQEA6NF8iallvQVp22WDkTkyrtvp9eWW6A8YVr+kz4TjGYe7gHzI\n",
        "the word AKIA and 40 letters 0123456789012345678901234567890123456789",
    ],
)
def test_examples_are_nobody_s_secrets(text: str) -> None:
    assert not found(text)


def test_private_keys_of_every_kind() -> None:
    rsa = key("genrsa", "-traditional", "2048")
    cases = {
        "RSA PRIVATE KEY": rsa,
        "PRIVATE KEY": key("genpkey", "-algorithm", "ed25519").replace("\n", "\n"),
        "EC PRIVATE KEY": key("ecparam", "-genkey", "-name", "prime256v1", "-noout"),
    }
    for kind, text in cases.items():
        (secret,) = find_in_file("k", text.encode())
        assert (secret.rule, secret.masked, secret.line) == ("private-key", kind, 1)
    body = rsa.splitlines()[1]
    (secret,) = find_in_file("k.json", json.dumps({"type": "service_account", "private_key": rsa}).encode())
    assert secret.rule == "private-key" and body not in repr(secret)
    headers = rsa.replace(
        "-----\n", "-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0123456789ABCDEF\n\n", 1
    )
    assert found(headers) == ["private-key"]
    assert found(rsa.replace("\n", "\r\n")) == ["private-key"]
    assert found(f"a: |\n  {rsa}".replace("\n", "\n  ")) == ["private-key"]
    assert found(rsa + rsa) == ["private-key"] * 2
    putty = "PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\nComment: c\nPublic-Lines: 1\n" \
        f"{letters(64)}\nPrivate-Lines: 1\n{letters(44)}\n"  # fmt: skip
    assert found(putty) == ["putty-key"]


def test_a_key_of_openssh(tmp_path: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "id")], check=True, timeout=60
    )
    (secret,) = find_in_file("root/.ssh/id_ed25519", (tmp_path / "id").read_bytes())
    assert secret.masked == "OPENSSH PRIVATE KEY"
    assert not found((tmp_path / "id.pub").read_text())


@pytest.mark.parametrize(
    ("path", "text", "rule"),
    [
        ("root/.netrc", "machine example.org login me password hunter2hunter2", "netrc"),
        ("root/.docker/config.json", '{"auths": {"r.example": {"auth": "bWU6aHVudGVyMg=="}}}', "docker-login"),
        ("root/.git-credentials", "https://me:hunter2@git.example.org\n", "git-credentials"),
        ("home/a/.aws/credentials", "[default]\naws_secret_access_key = " + letters(40), "aws-credentials"),
        ("root/.kube/config", "users:\n- user:\n    client-key-data: TFMwdExTMUNSVWRKVGlC\n", "kube-config"),
        ("root/.npmrc", "//registry.example/:_authToken=0123-4567-89ab", "npmrc"),
        ("root/.pypirc", "[pypi]\nusername = me\npassword = hunter2\n", "pypirc"),
        ("etc/pip.conf", "[global]\nindex-url = https://me:hunter2@pypi.example/simple\n", "pypirc"),
        ("root/.pgpass", "db:5432:app:me:hunter2\n", "pgpass"),
        ("root/.my.cnf", "[client]\npassword=hunter2\n", "my-cnf"),
        ("root/.cargo/credentials.toml", '[registry]\ntoken = "cio0123456789"\n', "cargo-credentials"),
        ("root/.terraform.d/credentials.tfrc.json", '{"credentials":{"x":{"token":"abcdefgh.x"}}}', "terraform-token"),
        ("etc/shadow", "a:*:19000:::::\nroot:$y$j9T$abcdefghijk$" + letters(40) + ":19000::\n", "password-hash"),
    ],
)  # fmt: skip
def test_files_that_hold_logins(path: str, text: str, rule: str) -> None:
    assert [s.rule for s in find_in_file(path, text.encode())] == [rule]
    assert not found(text, "app/other.txt")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("root/.docker/config.json", '{"auths": {"r.example": {}}, "credsStore": "pass"}'),
        ("root/.npmrc", "//registry.example/:_authToken=${NPM_TOKEN}\n"),
        ("etc/shadow", "root:*:19000:0:99999:7:::\ndaemon:!:19000::\n"),
        ("etc/pip.conf", "[global]\nindex-url = https://pypi.example/simple\n"),
        ("root/.kube/config", "clusters:\n- cluster:\n    certificate-authority-data: TFMwdExTMUNS\n"),
    ],
)
def test_files_without_a_login_in_them(path: str, text: str) -> None:
    assert not found(text, path)


def test_packages_own_files_and_tests_of_libraries_are_passed_over() -> None:
    pem = key("genpkey", "-algorithm", "ed25519").encode()
    result = scan(
        {
            "var/lib/dpkg/info/thing.list": b"/.\n/usr/share/thing/sample.pem\n/etc/thing.pem\n",
            "usr/share/thing/sample.pem": pem,
            "usr/local/lib/python3.12/test/certdata/key.pem": pem,
            "app/node_modules/tls/test/key.pem": pem,
            "etc/thing.pem": pem,
            "app/test/key.pem": pem,
            "app/binary": b"\0" + pem,
        }
    )
    assert [secret.path for secret in result.secrets] == ["app/test/key.pem", "etc/thing.pem"]
    assert all(pem.split(b"\n")[1].decode() not in repr(secret) for secret in result.secrets)


def test_secrets_in_the_configuration() -> None:
    token = TOKENS["github-token"]
    config = {
        "config": {
            "Env": ["PATH=/usr/bin", "DB_PASSWORD=s3cr3t-and-long", "EMPTY_PASSWORD=", "API_KEY=${KEY}", f"X={token}",
                    "PASSWORD_FILE=/run/secrets/x", "GPG_KEY=A035C8C19219BA821ECEA86B64E628F8D684696D",
                    "MY_TOKEN=https://issuer.example"]
        },
        "history": [
            {"created_by": "RUN |1 NPM_TOKEN=0123456789abcdef /bin/sh -c npm ci"},
            {"created_by": f"RUN /bin/sh -c git clone https://{token}@github.com/a/b"},
            {"created_by": "ENV PYTHON_VERSION=3.12.1"},
            {},
        ],
    }  # fmt: skip
    secrets = find_in_config(json.dumps(config).encode())
    assert [(s.rule, s.path, s.line) for s in secrets] == [
        ("environment", "ENV DB_PASSWORD", 2),
        ("github-token", "ENV X", 5),
        ("history", "history NPM_TOKEN", 1),
        ("github-token", "history", 2),
    ]
    shown = repr(secrets)
    assert "s3cr3t" not in shown and "0123456789abcdef" not in shown and token not in shown
    assert find_in_config(b"{}") == [] and find_in_config(b'{"config": null, "history": null}') == []


def test_the_checksum_is_github_s() -> None:
    assert has_github_checksum(b"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")  # github.blog, 2021-04-05
    assert not has_github_checksum(b"ghp_zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ0mLq18")


# --- hostile -------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=3000),
    st.sampled_from(["x", "root/.netrc", "root/.npmrc", "etc/shadow", "root/.kube/config"]),
)
def test_any_bytes_are_looked_at(data: bytes, path: str) -> None:
    for secret in find_in_file(path, data):
        assert isinstance(secret, Secret)


@pytest.mark.parametrize(
    "unit",
    [anchor for rule in RULES for anchor in rule.anchors]
    + [b"AKIAAAAAAAAAAAAAAAAAAAAA ", b"-----BEGIN PRIVATE KEY-----\n", b"-----BEGIN PRIVATE KEY-----" + b" " * 2000,
       b"-----BEGIN PRIVATE KEY-----\nA: b\n", b"PuTTY-User-Key-File-2: a\nPrivate-Lines: 1\n", b"https://a:",
       b"password ", b"password =", b"_auth", b":", b"a:b:c:d:", b"\"auth\":", b"aws_secret_access_key = "],
)  # fmt: skip
def test_a_file_full_of_one_thing_takes_no_time(unit: bytes) -> None:
    data = unit * ((4 << 20) // len(unit))
    for path in ("x", "root/.netrc", "root/.npmrc", "etc/pip.conf", "root/.pgpass", "root/.git-credentials"):
        finder = SecretFinder()
        begun = time.process_time()
        finder.look(MemoryFile(path, data))
        assert time.process_time() - begun < 5
        assert len(finder.found) <= 20
