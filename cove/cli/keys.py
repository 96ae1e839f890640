"""Keys: make a pair of files, and show a private key's public one. A key never leaves this process."""

from __future__ import annotations

import os

from cove.cli.fail import CliError
from cove.cli.options import Command
from cove.cli.run import complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cove.cli.client import Client
    from cove.cli.options import Options
    from cove.signing.keys import PrivateKey

PASSWORD_VARIABLE = "COSIGN_PASSWORD"  # noqa: S105 - a variable's name, cosign's
FILE_MAX = 1 << 20


def use_packages() -> None:
    """Let the installation's packages be imported: the command line starts without them, and only keys need any."""
    import site

    site.main()


def read_text(path: str, what: str) -> str:
    """A file's text, bounded. Raises CliError."""
    try:
        with open(path, "rb") as file:
            content = file.read(FILE_MAX + 1)
    except OSError as error:
        raise CliError(f"{what} {path}: {error.strerror}") from None
    if len(content) > FILE_MAX:
        raise CliError(
            f"{what} {path}: it has more than {FILE_MAX >> 10} KiB, which no key or certificate has"
        )
    return content.decode("utf-8", "replace")


def read_private_key(path: str) -> PrivateKey:
    """The key of a file; its password is COSIGN_PASSWORD's, or is asked for. Raises CliError."""
    use_packages()
    from cove.model.errors import CoveError
    from cove.signing.keys import is_encrypted, parse_private_key

    text = read_text(path, "--key")
    try:
        password = find_password(path, twice=False) if is_encrypted(text, path) else b""
        return parse_private_key(text, password, path)
    except CoveError as error:
        raise CliError(str(error)) from None


def find_password(path: str, *, twice: bool) -> bytes:
    """The password of an encrypted key. Raises CliError where nobody can be asked."""
    given = os.environ.get(PASSWORD_VARIABLE)
    if given is not None:
        return given.encode("utf-8", "surrogateescape")
    import getpass

    if not os.isatty(0):
        raise CliError(f"{path}: the key has a password: set {PASSWORD_VARIABLE}, or run this in a terminal")
    first = getpass.getpass(f"Password of {path}: ")
    if twice and getpass.getpass("The same again: ") != first:
        raise CliError("the two passwords differ: nothing was written")
    return first.encode("utf-8", "surrogateescape")


def write_new(path: str, text: str, mode: int) -> None:
    """Write a file that wasn't there. Raises CliError."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise CliError(f"{path} is there already and stays: name others with --output-prefix") from None
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}") from None
    with os.fdopen(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def run_generate(client: Client, options: Options) -> int:
    """cove key generate"""
    use_packages()
    from cove.signing.keys import KINDS, format_private_key, generate_key

    kind = options.text("type", "ecdsa-p256")
    if kind not in KINDS:
        raise CliError(f"--type {kind}: expected {' or '.join(KINDS)}")
    prefix = options.text("output-prefix", "cove")
    private, public = f"{prefix}.key", f"{prefix}.pub"
    for path in (private, public):
        if os.path.lexists(path):
            raise CliError(f"{path} is there already and stays: name others with --output-prefix")
    password = b"" if options.on("no-password") else find_password(private, twice=True)
    if not password:
        complain(f"warning: {private} has no password: whoever reads the file can sign with it")
    key = generate_key(kind)
    write_new(private, format_private_key(key, password), 0o600)
    try:
        write_new(public, key.public.pem, 0o644)
    except CliError:
        os.unlink(private)
        raise
    print(f"{private}  the private key: keep it, and keep it to yourself")
    print(f"{public}  the public key, SHA-256 {key.public.fingerprint}")
    return 0


def run_public(client: Client, options: Options) -> int:
    """cove key public"""
    print(read_private_key(options.args[0]).public.pem, end="")
    return 0


COMMANDS = {
    "key generate": Command(
        "key generate",
        run_generate,
        "[OPTIONS]",
        "Make a key pair to sign images with: PREFIX.key, as cosign has it, and PREFIX.pub.",
        flags=(
            (
                "",
                "output-prefix",
                "str",
                "PREFIX",
                "Write PREFIX.key and PREFIX.pub (default: cove)",
            ),
            ("", "type", "str", "KIND", "ecdsa-p256 or ed25519 (default: ecdsa-p256)"),
            ("", "no-password", "bool", "", "Ask for no password; $COSIGN_PASSWORD gives one without asking"),
        ),
        example="cove key generate --output-prefix release",
    ),
    "key public": Command(
        "key public",
        run_public,
        "FILE",
        "Print the public key of a private one.",
        needed=1,
        example="cove key public release.key",
    ),
}
