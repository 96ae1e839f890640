"""Credential helpers: programs named docker-credential-NAME that keep a user's passwords.

The protocol is github.com/docker/docker-credential-helpers': one of `get`, `store`, `erase` as the argument, a server
or a JSON object on standard input, a JSON object or a sentence on standard output, exit status 0 for success. A
helper is the user's own program and may ask the user something, so it has a minute; no error shows what it said
beyond its first line.
"""

from __future__ import annotations

import os

from cove.cli.fail import CliError
from cove.cli.shown import printable
from cove.model import wirejson

TIMEOUT_S = 60.0
ANSWER_MAX = 64 << 10
TOKEN_USER = "<token>"  # noqa: S105 - a helper's word for "the secret is an identity token"
_NOT_FOUND = "credentials not found in native keychain"


def get(name: str, server: str) -> tuple[str, str] | None:
    """The user and the secret that helper NAME has for a server; None where it has none. CliError."""
    status, text = _run(name, "get", server)
    if status:
        if _NOT_FOUND in text:
            return None
        raise CliError(f"docker-credential-{name} get: {_first_line(text) or f'exit status {status}'}")
    try:
        found = wirejson.loads(text)
        user, secret = found["Username"], found["Secret"]
        if not isinstance(user, str) or not isinstance(secret, str):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise CliError(
            f'docker-credential-{name} get: expected {{"Username": …, "Secret": …}} and got something else'
        ) from None
    return (user, secret) if user or secret else None


def store(name: str, server: str, user: str, secret: str) -> None:
    """Give a secret to helper NAME. CliError."""
    body = wirejson.dumps({"ServerURL": server, "Username": user, "Secret": secret})
    status, text = _run(name, "store", body)
    if status:
        raise CliError(f"docker-credential-{name} store: {_first_line(text) or f'exit status {status}'}")


def erase(name: str, server: str) -> None:
    """Let helper NAME forget a server; that it knows none is no error. CliError."""
    status, text = _run(name, "erase", server)
    if status and _NOT_FOUND not in text:
        raise CliError(f"docker-credential-{name} erase: {_first_line(text) or f'exit status {status}'}")


def _run(name: str, action: str, text: str) -> tuple[int, str]:
    """Exit status and output of a helper. It is ended when it takes too long or says too much."""
    import select
    import subprocess
    import time

    if not name or "/" in name or not name.isprintable():
        raise CliError(
            f"config.json: {name!r} is no credential helper's name, e.g. pass for docker-credential-pass"
        )
    program = f"docker-credential-{name}"
    try:
        process = subprocess.Popen([program, action], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    except OSError as error:
        what = "isn't in PATH" if isinstance(error, FileNotFoundError) else error.strerror
        raise CliError(
            f"{program} {what}: install it, or take it out of credsStore and credHelpers in config.json"
        ) from None
    assert process.stdin is not None and process.stdout is not None
    answer = b""
    deadline_s = time.monotonic() + TIMEOUT_S
    try:
        try:
            process.stdin.write(text.encode("utf-8", "surrogateescape"))
            process.stdin.close()
        except BrokenPipeError:
            pass  # it doesn't want to know; its answer says why
        while True:
            ready, _, _ = select.select([process.stdout], [], [], max(0, deadline_s - time.monotonic()))
            if not ready:
                raise CliError(f"{program} {action}: no answer within {TIMEOUT_S:g} s")
            piece = os.read(process.stdout.fileno(), 4096)
            if not piece:
                break
            answer += piece
            if len(answer) > ANSWER_MAX:
                raise CliError(f"{program} {action}: its answer has more than {ANSWER_MAX} bytes")
        try:
            status = process.wait(max(0.1, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise CliError(f"{program} {action}: it doesn't end") from None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    return status, answer.decode("utf-8", "replace").strip()


def _first_line(text: str) -> str:
    return printable(text.partition("\n")[0])[:200]
