"""policy: check a policy's file, show the one that counts, ask what it says of an image."""

from __future__ import annotations

from cove.cli import output
from cove.cli.client import query
from cove.cli.fail import CliError, Exit
from cove.cli.keys import read_text, use_packages
from cove.cli.options import Command
from cove.cli.shown import printable
from cove.model import wirejson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cove.cli.client import Client
    from cove.cli.options import Options

REFUSED = 1


def run_check(client: Client, options: Options) -> int:
    """cove policy check"""
    use_packages()
    from cove.model.errors import CoveError, Invalid
    from cove.signing.policy import parse_policy
    from cove.signing.verify import check_signers

    path = options.args[0]

    def read_file(name: str) -> str:
        try:
            return read_text(name, "file")
        except CliError as error:
            raise Invalid(str(error)) from None

    try:
        policy = parse_policy(read_text(path, "policy"), read_file, checks={"severity": _check_severity})
        check_signers(policy.signers)
    except CoveError as error:
        raise CliError(f"{path}: {error}", REFUSED) from None
    keys = len({wirejson.dumps(repr(signer)) for signer in policy.signers})
    print(f"{path}: good: {len(policy.scopes)} scopes, {keys} signers")
    return 0


def _check_severity(options: object) -> str:
    from cove.scan.severity import LEVELS

    return "" if options in LEVELS[1:] else f"expected one of {', '.join(LEVELS[1:])}"


def run_show(client: Client, options: Options) -> int:
    """cove policy show"""
    shown = client.get("/cove/v1/policy")
    if options.text("format") == "json":
        print(wirejson.dumps(shown))
        return 0
    if not shown["Rules"]:
        print("no policy: every image may be pulled and run")
        return 0
    print(printable(f"policy of {shown['Path']}, version {shown['Version'][:12]}"))
    rows = [
        {
            "Scope": rule["Scope"],
            "Rule": rule["Rule"] + (" (by name, too)" if rule["AcceptLocal"] else ""),
            "SignedBy": ", ".join(_who(one) for one in rule["SignedBy"]) or "-",
            "SignedAs": rule["SignedAs"] if rule["SignedBy"] else "-",
            "Checks": output.key_values(rule["Checks"]) or "-",
        }
        for rule in shown["Rules"]
    ]
    columns = (
        ("Scope", "SCOPE"),
        ("Rule", "RULE"),
        ("SignedBy", "SIGNED BY"),
        ("SignedAs", "SIGNED AS"),
        ("Checks", "CHECKS"),
    )
    output.print_rows(rows, columns, format="", quiet="")
    return 0


def _who(signer: dict[str, Any]) -> str:
    if "Key" in signer:
        return signer["Name"] or "a key"
    issuer = f" ({signer['Issuer']})" if signer["Issuer"] else ""
    return f"{signer['Identity']}{issuer}"


def run_test(client: Client, options: Options) -> int:
    """cove policy test"""
    image = options.args[0]
    told = client.get("/cove/v1/policy/test" + query({"image": image}))
    if options.text("format") == "json":
        print(wirejson.dumps(told))
    else:
        for one in told["Obligations"]:
            place = f" as {' or '.join(one['Repositories'])}" if one["Repositories"] else ""
            outcome = "fulfilled" if one["Fulfilled"] else f"not fulfilled: {one['Sentence']}"
            print(printable(f"{one['Scope']}: {one['Rule']}{place}: {outcome}"))
        print(printable(f"{image}: {'accepted' if told['Accepted'] else 'refused'}"))
    if not told["Accepted"]:
        raise Exit(REFUSED)
    return 0


_FORMAT = ("", "format", "str", "FORMAT", "text or json (default: text)")

COMMANDS = {
    "policy check": Command(
        "policy check",
        run_check,
        "FILE",
        "Check a policy's file and the keys that it names. Exit status: 0 it is good, 1 it isn't.",
        needed=1,
        example="cove policy check /etc/cove/policy.json",
    ),
    "policy show": Command(
        "policy show",
        run_show,
        "[OPTIONS]",
        "Show the policy that the daemon goes by (its configuration's image-policy).",
        flags=(_FORMAT,),
        example="cove policy show",
    ),
    "policy test": Command(
        "policy test",
        run_test,
        "[OPTIONS] IMAGE",
        "Say whether an image that is here may run, and why. Exit status: 0 it may, 1 it may not.",
        flags=(_FORMAT,),
        needed=1,
        example="cove policy test registry.example.org/app:1",
    ),
}
