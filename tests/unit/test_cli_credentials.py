"""docker's config.json and its credential helpers: what is found, kept and forgotten, and what goes wrong."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cove.cli import credentialhelper, credentials
from cove.cli.fail import CliError
from tests.unit.cli_fake_daemon import FakeDaemon, run_cove

HUB = "https://index.docker.io/v1/"
ADA = base64.b64encode(b"ada:se:cret").decode()

HELPER = """#!/bin/sh
# keeps one secret a server, in files below its own directory
dir=${0%/*}/kept; mkdir -p "$dir"
name() { tr -c 'a-z0-9\\n' _; }
case $1 in
store) body=$(cat); server=$(printf %s "$body" | sed 's/.*"ServerURL":"\\([^"]*\\)".*/\\1/')
	printf %s "$body" >"$dir/$(printf %s "$server" | name)" ;;
get) file="$dir/$(name)"; [ -f "$file" ] || { echo 'credentials not found in native keychain'; exit 1; }; cat "$file" ;;
erase) rm -f "$dir/$(name)" ;;
esac
"""


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a config.json that isn't there yet."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return tmp_path / "docker" / "config.json"


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that puts a credential helper into PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def add(name: str, text: str) -> None:
        path = directory / f"docker-credential-{name}"
        path.write_text(text)
        path.chmod(0o755)

    return add


def write(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))


@pytest.mark.parametrize(
    ("reference", "host"),
    [
        ("debian", "docker.io"),
        ("user/app:1", "docker.io"),
        ("docker.io/library/debian", "docker.io"),
        ("index.docker.io/user/app", "docker.io"),
        ("localhost/app", "localhost"),
        ("registry.example/app", "registry.example"),
        ("127.0.0.1:5000/a/b@sha256:" + "0" * 64, "127.0.0.1:5000"),
        ("[::1]:5000/app", "[::1]:5000"),
    ],
)
def test_an_image_s_registry_is_known_by_its_name(reference: str, host: str) -> None:
    assert credentials.registry_of(reference) == host


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("registry.example:5000", "registry.example:5000"),
        ("https://registry.example:5000/v1/", "registry.example:5000"),
        ("http://registry.example:5000", "registry.example:5000"),
        (HUB, "docker.io"),
        (HUB, "index.docker.io"),
        ("docker.io", "registry-1.docker.io"),
    ],
)
def test_a_login_is_found_however_the_file_writes_the_server(config: Path, key: str, host: str) -> None:
    write(config, {"auths": {key: {"auth": ADA}}})
    found = credentials.find_credentials(host)
    assert found is not None and (found["username"], found["password"]) == ("ada", "se:cret")
    assert credentials.find_credentials("other.example") is None


def test_tokens_and_old_fields_are_credentials_too(config: Path) -> None:
    write(
        config,
        {
            "auths": {
                "a.example": {"identitytoken": "t1", "auth": base64.b64encode(b"ada:").decode()},
                "b.example": {"registrytoken": "t2"},
                "c.example": {"username": "u", "password": "p"},
                "d.example": {},
            }
        },
    )
    assert credentials.all_credentials() == {
        "a.example": {"identitytoken": "t1", "username": "ada", "serveraddress": "a.example"},
        "b.example": {"registrytoken": "t2", "serveraddress": "b.example"},
        "c.example": {"username": "u", "password": "p", "serveraddress": "c.example"},
    }
    header = credentials.auth_headers("b.example/app")["X-Registry-Auth"]
    assert json.loads(base64.urlsafe_b64decode(header))["registrytoken"] == "t2"
    assert credentials.auth_headers("debian") == {"X-Registry-Auth": base64.urlsafe_b64encode(b"{}").decode()}


def test_a_login_is_kept_readable_for_its_user_alone_and_beside_what_else_is_there(config: Path) -> None:
    write(config, {"auths": {"b.example": {"auth": ADA}}, "HttpHeaders": {"X": "1"}, "psFormat": "table ü"})
    config.chmod(0o644)
    path = credentials.save_credential({"username": "ada", "password": "se:cret"}, "https://a.example/v2/")
    assert path == str(config) and config.stat().st_mode & 0o777 == 0o600
    assert json.loads(config.read_text()) == {
        "auths": {"b.example": {"auth": ADA}, "a.example": {"auth": ADA}},
        "HttpHeaders": {"X": "1"},
        "psFormat": "table ü",
    }
    assert os.listdir(config.parent) == ["config.json"]
    assert credentials.forget_credential("a.example") and not credentials.forget_credential("a.example")
    assert list(json.loads(config.read_text())["auths"]) == ["b.example"]


def test_a_file_behind_a_link_stays_behind_it(config: Path, tmp_path: Path) -> None:
    write(tmp_path / "real.json", {})
    config.parent.mkdir()
    config.symlink_to(tmp_path / "real.json")
    credentials.save_credential({"username": "a", "identitytoken": "tok"}, "")
    assert config.is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["auths"][HUB]["identitytoken"] == "tok"


def test_a_helper_keeps_what_the_file_then_does_not_have(config: Path, helpers: Any) -> None:
    helpers("kept", HELPER)
    write(config, {"credsStore": "kept", "credHelpers": {"b.example": "missing"}})
    assert credentials.find_credentials("a.example") is None
    assert credentials.save_credential({"username": "ada", "password": "s3cret"}, "a.example") == ""
    assert "s3cret" not in config.read_text()
    found = credentials.find_credentials("a.example")
    assert found == {"username": "ada", "password": "s3cret", "serveraddress": "a.example"}
    credentials.save_credential({"identitytoken": "tok"}, "a.example")
    assert credentials.find_credentials("a.example") == {"identitytoken": "tok", "serveraddress": "a.example"}
    assert credentials.forget_credential("a.example")
    assert credentials.find_credentials("a.example") is None
    assert json.loads(config.read_text())["auths"] == {}
    with pytest.raises(CliError, match=r"docker-credential-missing isn't in PATH: install it, or"):
        credentials.find_credentials("b.example")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("#!/bin/sh\necho locked; exit 3", "docker-credential-odd get: locked"),
        ("#!/bin/sh\nexit 3", "docker-credential-odd get: exit status 3"),
        ("#!/bin/sh\necho rubbish", "got something else"),
        ('#!/bin/sh\necho \'{"Username":1,"Secret":"hidden"}\'', "got something else"),
        ("#!/bin/sh\nhead -c 100000 /dev/zero; sleep 60", "its answer has more than 65536 bytes"),
        ("#!/bin/sh\nexec sleep 60", "no answer within 0.5 s"),
        ("#!/bin/sh\nexec >&-; exec sleep 60", "it doesn't end"),
        ("not a program", "docker-credential-odd Exec format error"),
    ],
)
def test_a_helper_that_fails_is_named(
    config: Path, helpers: Any, monkeypatch: pytest.MonkeyPatch, text: str, sentence: str
) -> None:
    monkeypatch.setattr(credentialhelper, "TIMEOUT_S", 0.5)
    helpers("odd", text)
    write(config, {"credHelpers": {"a.example": "odd"}})
    with pytest.raises(CliError) as error:
        credentials.find_credentials("a.example")
    assert sentence in str(error.value) and "hidden" not in str(error.value)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ("{", "it isn't JSON"),
        ("[]", "expected an object"),
        ({"auths": []}, "auths: expected an object"),
        ({"auths": {"a.example": "x"}}, "auths: a.example: expected an object"),
        ({"auths": {"a.example": {"auth": "???"}}}, "isn't user:password in base64; log in again"),
        ({"auths": {"a.example": {"auth": base64.b64encode(b"nocolon").decode()}}}, "isn't user:password"),
        ({"credHelpers": {"a.example": "../x"}}, "is no credential helper's name"),
        (" " * (5 << 20), "has more than"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_the_place(config: Path, document: object, sentence: str) -> None:
    write(config, document)
    with pytest.raises(CliError) as error:
        credentials.find_credentials("a.example")
    assert sentence in str(error.value)


# --- the commands -------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path / "d.sock")
    yield daemon
    daemon.close()


def call(fake: FakeDaemon, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    env = {"DOCKER_CONFIG": os.environ["DOCKER_CONFIG"]}
    return run_cove(*arguments, host=fake.address, env=env, input=stdin)


def test_login_and_logout_as_docker_prints_them(fake: FakeDaemon, config: Path) -> None:
    fake.handlers["POST /auth"] = lambda request: (200, {"Status": "Login Succeeded", "IdentityToken": ""})
    done = call(fake, "login", "-u", "ada", "--password-stdin", "http://a.example:5000/", stdin=b"s3cret\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"Login Succeeded\n"
    assert b"stored unencrypted in '%s'" % str(config).encode() in done.stderr
    assert fake.find("POST", "/auth").json() == {
        "username": "ada",
        "password": "s3cret",
        "serveraddress": "a.example:5000",
    }
    again = call(fake, "login", "a.example:5000")
    assert again.stdout.startswith(b"Authenticating with existing credentials...\nLogin Succeeded")
    out = call(fake, "logout", "a.example:5000")
    assert out.stdout == b"Removing login credentials for a.example:5000\n"
    assert call(fake, "logout").stdout == b"Not logged in to https://index.docker.io/v1/\n"


def test_a_token_is_kept_instead_of_the_password(fake: FakeDaemon, config: Path) -> None:
    fake.handlers["POST /auth"] = lambda request: (200, {"Status": "Login Succeeded", "IdentityToken": "tok"})
    done = call(fake, "login", "-u", "ada", "-p", "s3cret")
    assert b"WARNING! Using --password via the CLI is insecure." in done.stderr
    assert json.loads(config.read_text())["auths"][HUB]["identitytoken"] == "tok"
    assert base64.b64encode(b"ada:s3cret").decode() not in config.read_text()


def test_a_refused_login_keeps_nothing(fake: FakeDaemon, config: Path) -> None:
    fake.handlers["POST /auth"] = lambda request: (401, {"message": "wrong password"})
    done = call(fake, "login", "-u", "ada", "-p", "s3cret", "a.example")
    assert done.returncode == 1 and b"error: wrong password" in done.stderr and not config.exists()


@pytest.mark.parametrize(
    ("arguments", "stdin", "sentence"),
    [
        (["--password-stdin"], b"x", b"expected a user beside it"),
        (["-u", "a", "-p", "x", "--password-stdin"], b"x", b"give one of the two"),
        (["-u", "a", "--password-stdin"], b"\n", b"standard input, and it is empty"),
        (["-u", "a"], b"", b"this isn't a terminal"),
    ],
)
def test_a_login_that_makes_no_sense_asks_nobody(
    fake: FakeDaemon, arguments: list[str], stdin: bytes, sentence: bytes
) -> None:
    done = call(fake, "login", *arguments, stdin=stdin)
    assert done.returncode == 125 and sentence in done.stderr and not fake.requests
