"""login and logout: ask a registry whether it takes a user, and keep or forget what it took."""

from __future__ import annotations

import os
import sys

from cove.cli import credentials
from cove.cli.fail import CliError
from cove.cli.options import Command
from cove.cli.run import complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.cli.client import Client
    from cove.cli.options import Options

PASSWORD_MAX = 64 << 10


def run_login(client: Client, options: Options) -> int:
    """cove login"""
    server = credentials.server_key(options.args[0] if options.args else "")
    user, password = options.text("username"), options.text("password")
    if options.on("password-stdin"):
        if "password" in options:
            raise CliError("--password and --password-stdin: give one of the two")
        if not user:
            raise CliError("--password-stdin: expected a user beside it, e.g. -u ada --password-stdin")
        password = _read_password()
    elif "password" in options:
        complain("WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
    if not user and not password:
        known = credentials.find_credentials(server)
        if known is not None and known.get("username") and known.get("password"):
            print("Authenticating with existing credentials...")
            return _log_in(client, server, known)
    if not (user and password):
        user, password = _ask(user, password, server)
    return _log_in(client, server, {"username": user, "password": password, "serveraddress": server})


def _log_in(client: Client, server: str, credential: dict[str, str]) -> int:
    answer = client.post("/auth", credential) or {}
    kept = dict(credential)
    if answer.get("IdentityToken"):
        kept = {"username": credential["username"], "identitytoken": answer["IdentityToken"]}
    if path := credentials.save_credential(kept, server):
        complain(
            f"\nWARNING! Your credentials are stored unencrypted in '{path}'.\n"
            "Configure a credential helper to remove this warning. See\n"
            "https://docs.docker.com/go/credential-store/\n"
        )
    print(answer.get("Status") or "Login Succeeded")
    return 0


def run_logout(client: Client, options: Options) -> int:
    """cove logout"""
    server = credentials.server_key(options.args[0] if options.args else "")
    if not credentials.forget_credential(server):
        print(f"Not logged in to {server}")
        return 0
    print(f"Removing login credentials for {server}")
    return 0


def _read_password() -> str:
    data = os.read(0, PASSWORD_MAX + 1) if os.isatty(0) else sys.stdin.buffer.read(PASSWORD_MAX + 1)
    if len(data) > PASSWORD_MAX:
        raise CliError(f"--password-stdin: it has more than {PASSWORD_MAX} bytes")
    text = data.decode("utf-8", "surrogateescape")
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise CliError("--password-stdin: expected a password on standard input, and it is empty")
    return text


def _ask(user: str, password: str, server: str) -> tuple[str, str]:
    if not (os.isatty(0) and os.isatty(1)):
        raise CliError(
            "login: user and password can't be asked for, since this isn't a terminal; "
            "e.g. cove login -u ada --password-stdin <password-file"
        )
    import getpass

    if not user:
        print(f"Log in to {server}")
        user = input("Username: ").strip()
    if not user:
        raise CliError("login: expected a user name")
    if not password:
        password = getpass.getpass("Password: ")  # without echo
    if not password:
        raise CliError("login: expected a password")
    return user, password


COMMANDS = {
    "login": Command(
        "login",
        run_login,
        "[OPTIONS] [SERVER]",
        "Log in to a registry (default: Docker Hub).",
        flags=(
            ("u", "username", "str", "NAME", "Log in as NAME"),
            ("p", "password", "str", "PASSWORD", "With this password, which others may see; better by stdin"),
            ("", "password-stdin", "bool", "", "Read the password from standard input"),
        ),
        most=1,
        example="cove login -u ada registry.example:5000",
    ),
    "logout": Command(
        "logout",
        run_logout,
        "[SERVER]",
        "Forget what login kept for a registry (default: Docker Hub).",
        most=1,
        example="cove logout registry.example:5000",
    ),
}
