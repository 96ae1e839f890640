"""sign and verify: the daemon says what an image's manifest is and keeps signatures; keys are used here alone."""

from __future__ import annotations

import base64
import time

from cove.cli.client import query
from cove.cli.credentials import auth_headers
from cove.cli.fail import CliError
from cove.cli.keys import read_private_key, read_text, use_packages
from cove.cli.options import Command
from cove.cli.shown import printable
from cove.model import wirejson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cove.cli.client import Client
    from cove.cli.options import Options
    from cove.signing.types import Signature, Signer, Verdict

PATH = "/cove/v1/images/signatures"
NOT_SIGNED = 1
FORMS = ("tag", "referrer", "both", "bundle")


def parse_annotations(given: list[str]) -> dict[str, str]:
    """`-a key=value`, repeated. Raises CliError."""
    found = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals or not key:
            raise CliError(f"--annotation {one}: expected KEY=VALUE, e.g. -a commit=4fd12c9")
        found[key] = value
    return found


def run_sign(client: Client, options: Options) -> int:
    """cove sign"""
    use_packages()
    from cove.model.errors import CoveError
    from cove.signing.make import sign_bundle, sign_image
    from cove.signing.payload import repository_of

    image = options.args[0]
    if not options.text("key"):
        raise CliError("--key: is missing: give a private key, e.g. one that cove key generate made")
    annotations = parse_annotations(options.all("annotation"))
    form = options.text("format", "tag")
    if form not in FORMS:
        raise CliError(f"--format {form}: expected {', '.join(FORMS)}")
    shown = client.get(PATH + query({"image": image}))
    repository = options.text("as") or shown["Repository"]
    if not repository:
        raise CliError(
            f"{image} has {len(shown['Repositories'])} repositories' names: say with --as which one is signed, "
            "e.g. --as registry.example.org/app"
        )
    certificates = (
        read_text(options.text("certificate"), "--certificate") if options.text("certificate") else ""
    )
    key = read_private_key(options.text("key"))
    try:
        sign = sign_bundle if form == "bundle" else sign_image
        signature = sign(
            key, repository_of(repository), shown["Digest"], annotations, certificates=certificates
        )
    except CoveError as error:
        raise CliError(str(error)) from None
    body = {"Digest": shown["Digest"], "Signatures": [encode(signature)]}
    client.post(PATH + query({"image": image}), body)
    print(printable(f"signed {repository_of(repository)}@{shown['Digest']}"))
    if options.on("push"):
        asked = {
            "image": image,
            "format": "tag" if form == "bundle" else form,
        }  # a bundle is always a referrer
        told = client.request("POST", f"{PATH}/push" + query(asked), headers=auth_headers(image)).json()
        print(printable(f"pushed {told['Pushed']} signature{'s' if told['Pushed'] != 1 else ''} of {image}"))
    return 0


def encode(signature: Signature) -> dict[str, Any]:
    """A signature as the API takes it."""
    return {
        "MediaType": signature.media_type,
        "Content": base64.b64encode(signature.content).decode(),
        "Annotations": signature.annotations,
    }


def decode(shown: dict[str, Any]) -> Signature:
    """A signature as the API shows it."""
    from cove.signing.types import Signature

    return Signature(
        media_type=shown["MediaType"],
        content=base64.b64decode(shown["Content"]),
        annotations=shown["Annotations"],
    )


def collect_signers(options: Options) -> list[Signer]:
    """Whose signature counts, by the flags. Raises CliError."""
    from cove.signing.types import IdentityRequirement, KeyRequirement

    signers: list[Signer] = [
        KeyRequirement(pem=read_text(path, "--key"), name=path) for path in options.all("key")
    ]
    identity = {
        name: options.text(f"certificate-{flag}")
        for name, flag in (
            ("subject", "identity"),
            ("subject_pattern", "identity-pattern"),
            ("issuer", "oidc-issuer"),
            ("issuer_pattern", "oidc-issuer-pattern"),
        )
    }
    if any(identity.values()) or "ca" in options:
        if not options.text("ca"):
            raise CliError("--ca: is missing: give the authorities' certificates in PEM, e.g. --ca roots.pem")
        if not identity["subject"] and not identity["subject_pattern"]:
            raise CliError(
                "--certificate-identity: is missing: say whose certificate counts, e.g. ci@example.org"
            )
        log = options.text("log-key")
        signers.append(
            IdentityRequirement(
                roots=read_text(options.text("ca"), "--ca"),
                log_key=read_text(log, "--log-key") if log else "",
                **identity,
            )
        )
    if not signers:
        raise CliError("--key: is missing: say whose signature counts, by --key, or --ca and an identity")
    return signers


def run_verify(client: Client, options: Options) -> int:
    """cove verify"""
    use_packages()
    from cove.model.errors import CoveError
    from cove.signing.payload import repository_of
    from cove.signing.types import Question
    from cove.signing.verify import verify

    image = options.args[0]
    kind = options.text("format", "text")
    if kind not in ("text", "json"):
        raise CliError(f"--format {kind}: expected text or json")
    signers = collect_signers(options)
    annotations = parse_annotations(options.all("annotation"))
    if options.on("registry"):
        client.request("POST", f"{PATH}/fetch" + query({"image": image}), headers=auth_headers(image)).read()
    shown = client.get(PATH + query({"image": image}))
    repositories: tuple[str, ...] = ()
    if not options.on("any-repository"):
        wanted = options.text("as") or shown["Repository"]
        repositories = (repository_of(wanted),) if wanted else tuple(shown["Repositories"])
    question = Question(
        digests=tuple(shown["Digests"]),
        repositories=repositories,
        signers=tuple(signers),
        annotations=annotations,
    )
    try:
        verdict = verify(question, [decode(one) for one in shown["Signatures"]], now_s=time.time())
    except CoveError as error:
        raise CliError(str(error)) from None
    if kind == "json":
        print(wirejson.dumps(verdict_json(image, shown, verdict)))
    else:
        print_verdict(image, verdict)
    return 0 if verdict.signed else NOT_SIGNED


def verdict_json(image: str, shown: dict[str, Any], verdict: Verdict) -> dict[str, Any]:
    """The verdict for programs."""
    return {
        "Image": image,
        "Digest": shown["Digest"],
        "Signed": verdict.signed,
        "Reason": verdict.reason,
        "Sentence": verdict.sentence,
        "Signatures": [
            {
                "Signer": one.signer,
                "Reference": one.reference,
                "Digest": one.digest,
                "Annotations": one.annotations,
                "Reason": one.reason,
                "Sentence": one.sentence,
            }
            for one in verdict.findings
        ],
    }


def print_verdict(image: str, verdict: Verdict) -> None:
    """The verdict for people: on standard output if it is good, else as an error."""
    for one in verdict.findings:
        if not one.reason:
            notes = "".join(f" {key}={value}" for key, value in sorted(one.annotations.items()))
            print(
                printable(f"{image}: signed by {one.signer} as {one.reference or 'any'}@{one.digest}{notes}")
            )
    if not verdict.signed:
        raise CliError(f"{image}: {verdict.reason}: {verdict.sentence}", NOT_SIGNED)


COMMANDS = {
    "sign": Command(
        "sign",
        run_sign,
        "[OPTIONS] IMAGE",
        "Sign an image's manifest. The key stays here; the signature is kept with the image.",
        flags=(
            ("", "key", "str", "FILE", "Sign with this private key; $COSIGN_PASSWORD is its password"),
            ("", "certificate", "str", "FILE", "Add the key's certificate and its chain, in PEM"),
            ("a", "annotation", "list", "KEY=VALUE", "Say more in the signature, e.g. -a commit=4fd12c9"),
            (
                "",
                "push",
                "bool",
                "",
                "Put its signatures into the image's registry, which must have the image",
            ),
            ("", "format", "str", "FORM", "tag, referrer, both, or bundle: cosign 3's (default: tag)"),
            ("", "as", "str", "REPOSITORY", "Sign it as this repository (default: the image's name)"),
        ),
        needed=1,
        example="cove sign registry.example.org/app:1 --key release.key",
    ),
    "verify": Command(
        "verify",
        run_verify,
        "[OPTIONS] IMAGE",
        "Check whether an image is signed. Exit status: 0 it is, 1 it isn't, 125 that can't be told.",
        flags=(
            ("", "key", "list", "FILE", "Take a signature of this public key"),
            ("", "ca", "str", "FILE", "Take certificates of these authorities, in PEM"),
            ("", "certificate-identity", "str", "NAME", "of whom: an address or URI, e.g. ci@example.org"),
            ("", "certificate-identity-pattern", "str", "PATTERN", "the same with *, e.g. '*@example.org'"),
            ("", "certificate-oidc-issuer", "str", "URL", "who knows them, e.g. https://login.example.org"),
            ("", "certificate-oidc-issuer-pattern", "str", "PATTERN", "the same with *"),
            ("", "log-key", "str", "FILE", "Take the time of the transparency log that has this public key"),
            ("a", "annotation", "list", "KEY=VALUE", "Want this in the signature"),
            (
                "",
                "as",
                "str",
                "REPOSITORY",
                "Want a signature as this repository (default: the image's name)",
            ),
            ("", "registry", "bool", "", "Fetch what the image's registry has of signatures first"),
            ("", "any-repository", "bool", "", "Take a signature whatever repository it names"),
            ("", "format", "str", "FORMAT", "text or json (default: text)"),
        ),
        needed=1,
        example="cove verify registry.example.org/app:1 --key release.pub",
    ),
}
