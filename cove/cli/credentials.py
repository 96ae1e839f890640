"""A user's credentials for registries: docker's config.json, and the credential helpers it names.

    {"auths": {"registry.example:5000": {"auth": base64 of user:password}, "https://index.docker.io/v1/": {}},
     "credsStore": "pass", "credHelpers": {"registry.example:5000": "pass"}}

The file is $DOCKER_CONFIG/config.json, or ~/.docker/config.json: what `docker login` wrote counts here, and the other
way round. Keys that nobody here knows stay as they are. A credential is a dictionary as the API takes it in
X-Registry-Auth: username and password, or identitytoken, or registrytoken, and serveraddress.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os

from cove.cli import credentialhelper
from cove.cli.credentialhelper import TOKEN_USER
from cove.cli.fail import CliError
from cove.model import wirejson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

DOCKER_HUB = "https://index.docker.io/v1/"
_HUB_NAMES = ("", "docker.io", "index.docker.io", "registry-1.docker.io")
FILE_MAX = 4 << 20


def config_file() -> str:
    """The path of docker's config.json, which needn't be there."""
    return os.path.join(os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker"), "config.json")


def server_key(server: str) -> str:
    """What a registry is called in the file: its host and port, or Docker Hub's address."""
    host = _host_of(server)
    return DOCKER_HUB if host in _HUB_NAMES else host


def registry_of(reference: str) -> str:
    """The registry's host in an image's name as people write it; docker.io where it has none."""
    head, slash, _ = reference.partition("/")
    if slash and (any(c in head for c in ".:") or head == "localhost" or head.lower() != head):
        return "docker.io" if head == "index.docker.io" else head
    return "docker.io"


def find_credentials(host: str) -> dict[str, str] | None:
    """What this user has for a registry (host and port; docker.io for Docker Hub), or None. CliError."""
    return _find(_read(), server_key(host))


def all_credentials() -> dict[str, dict[str, str]]:
    """What this user has for every registry the file names, as a build takes it in X-Registry-Config. CliError."""
    config = _read()
    keys = [*_table(config, "auths"), *_table(config, "credHelpers")]
    found = {key: _find(config, server_key(key)) for key in dict.fromkeys(keys)}
    return {key: credential for key, credential in found.items() if credential is not None}


def auth_headers(reference: str) -> dict[str, str]:
    """The header that takes along what the user has for an image's registry; none where there is nothing."""
    return encode_header(find_credentials(registry_of(reference)))


def encode_header(credential: dict[str, str] | None) -> dict[str, str]:
    """A credential as the header X-Registry-Auth (base64url of JSON); an empty one stands for nobody."""
    text = wirejson.dumps(credential or {})
    return {"X-Registry-Auth": base64.urlsafe_b64encode(text.encode("utf-8", "surrogateescape")).decode()}


def save_credential(credential: dict[str, str], server: str) -> str:
    """Keep a credential: in the helper that the file names for the server, or in the file. CliError.

    Returns the path of the file where the secret stands in it readably, else "".
    """
    key = server_key(server)
    user = TOKEN_USER if credential.get("identitytoken") else credential.get("username", "")
    secret = credential.get("identitytoken") or credential.get("password", "")
    helper = _helper_for(_read(), key)
    if helper:
        credentialhelper.store(helper, key, user, secret)
        entry: dict[str, str] = {}
    elif credential.get("identitytoken"):
        pair = f"{credential.get('username', '')}:"
        entry = {"auth": _base64(pair), "identitytoken": credential["identitytoken"]}
    else:
        entry = {"auth": _base64(f"{user}:{secret}")}

    def change(config: dict[str, Any]) -> None:
        config.setdefault("auths", {})[key] = entry

    path = _change(change)
    return "" if helper else path


def forget_credential(server: str) -> bool:
    """Let go of a server's credential in the file and in its helper; whether there was one. CliError."""
    key = server_key(server)
    config = _read()
    helper = _helper_for(config, key)
    names = [name for name in _table(config, "auths") if server_key(name) == key]
    known = bool(names) or bool(helper and credentialhelper.get(helper, key))
    if not known:
        return False
    if helper:
        credentialhelper.erase(helper, key)

    def change(config: dict[str, Any]) -> None:
        for name in [name for name in _table(config, "auths") if server_key(name) == key]:
            del config["auths"][name]

    if names:
        _change(change)
    return True


# --- one server ---------------------------------------------------------------------------


def _find(config: dict[str, Any], key: str) -> dict[str, str] | None:
    helper = _helper_for(config, key)
    if helper:
        found = credentialhelper.get(helper, key)
        if found is None:
            return None
        user, secret = found
        if user == TOKEN_USER:
            return {"identitytoken": secret, "serveraddress": key}
        return {"username": user, "password": secret, "serveraddress": key}
    auths = _table(config, "auths")
    name = key if key in auths else next((name for name in auths if server_key(name) == key), None)
    return None if name is None else _decode_entry(name, auths[name], key)


def _decode_entry(name: str, entry: object, key: str) -> dict[str, str] | None:
    if not isinstance(entry, dict):
        raise CliError(f"{config_file()}: auths: {name}: expected an object with auth; log in again")
    found = {
        field: str(entry[field])
        for field in ("username", "password", "identitytoken", "registrytoken")
        if entry.get(field)
    }
    if entry.get("auth"):
        try:
            text = base64.b64decode(str(entry["auth"]), validate=True).decode()
            user, colon, password = text.partition(":")
            if not colon:
                raise ValueError
        except (ValueError, binascii.Error):
            raise CliError(
                f"{config_file()}: auths: {name}: auth isn't user:password in base64; log in again"
            ) from None
        found["username"] = user
        if password.strip("\0"):
            found["password"] = password.strip("\0")
    return {**found, "serveraddress": key} if found else None


def _helper_for(config: dict[str, Any], key: str) -> str:
    helpers = _table(config, "credHelpers")
    for name, helper in helpers.items():
        if server_key(name) == key:
            return str(helper)
    return str(config.get("credsStore") or "")


def _host_of(server: str) -> str:
    rest = server.removeprefix("https://").removeprefix("http://")
    return rest.partition("/")[0]


def _base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()


# --- the file -----------------------------------------------------------------------------


def _table(config: dict[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    if found is not None and not isinstance(found, dict):
        raise CliError(f"{config_file()}: {name}: expected an object, e.g. {{}}")
    return found or {}


def _read() -> dict[str, Any]:
    path = config_file()
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}") from None
    if len(data) > FILE_MAX:
        raise CliError(f"{path}: it has more than {FILE_MAX} bytes; is this docker's config.json?")
    try:
        found = wirejson.loads(data.decode()) if data.strip() else {}
        if not isinstance(found, dict):
            raise ValueError("expected an object")
    except ValueError as error:
        raise CliError(f"{path}: it isn't JSON: {error}; mend it, or move it away") from None
    return found


def _change(change: Callable[[dict[str, Any]], None]) -> str:
    """Change the file under a lock and put it in place in one step; its path."""
    import json

    shown = config_file()
    path = os.path.realpath(shown)
    directory = os.path.dirname(path)
    temporary = f"{path}.{os.getpid()}.new"
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with _locked(directory):
            config = _read()
            change(config)
            data = json.dumps(config, indent="\t", ensure_ascii=False).encode("utf-8", "surrogateescape")
            try:
                with open(temporary, "xb", opener=_private) as file:
                    with contextlib.suppress(OSError):  # a user's file that root changes stays the user's
                        found = os.stat(path)
                        os.fchown(file.fileno(), found.st_uid, found.st_gid)
                    file.write(data + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
    except OSError as error:
        raise CliError(f"{shown}: it can't be written: {error.strerror}") from None
    return shown


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    import fcntl

    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
