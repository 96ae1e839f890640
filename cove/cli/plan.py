"""plan: what isolating a container would do to the host, step by step, without doing it.

The plan is of an image and the flags of create (the daemon makes it), of a container whose last start failed (the
daemon knows the step), or of an OCI bundle (the OCI runtime makes it; no daemon is asked). Two plans are compared
here, by what their steps do.
"""

from __future__ import annotations

import os
import sys

from cove.cli import createbody
from cove.cli.client import query
from cove.cli.fail import CliError
from cove.cli.options import Command, Options, parse_arguments
from cove.cli.runflags import CREATE_FLAGS
from cove.cli.shown import for_terminal, printable
from cove.model import wirejson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cove.cli.client import Client

    Paint = Callable[[str, str], str]  # text, the code of a colour

_DIM, _RED, _GREEN = "2", "31", "32"


def run_plan(client: Client, options: Options) -> int:
    """cove plan"""
    from cove.cli.output import paint

    check_sources(options)
    against, form = options.text("against"), options.text("format")
    if against:
        one, other = "as given", f"with {against}"
        if options.text("bundle"):
            one, other = options.text("bundle"), against
        second = changed_options(options, against)
        plans = [find_plan(client, each)["steps"] for each in (options, second)]
        answer: dict[str, Any] = {"differences": compare(*plans)}
        text = render_difference(answer["differences"], one, other, paint)
    else:
        answer = find_plan(client, options)
        text = render_plan(answer["steps"], paint, answer.get("failed"))
        if options.on("failed"):
            text += render_failure(answer["failed"], paint)
    sys.stdout.write(for_terminal(shaped(answer, form)) if form else text)
    return 0


def check_sources(options: Options) -> None:
    """One source, and what fits it; CliError otherwise."""
    bundle, failed, given = options.text("bundle"), options.on("failed"), bool(options.args)
    allowed = {"bundle", "against", "format"} if bundle else {"failed", "format"} if failed else None
    if allowed is not None:
        flag = "--bundle" if bundle else "--failed"
        for name in options.given:
            if name not in allowed and name != flag[2:]:
                raise CliError(f"--{name}: it has no place beside {flag}; leave one of them out")
    if bundle and given:
        raise CliError(
            f"plan: unexpected argument {options.args[0]!r} beside --bundle; leave one of them out"
        )
    if failed and len(options.args) != 1:
        raise CliError("--failed: expected one container, e.g. cove plan --failed web")
    if not bundle and not given:
        raise CliError("plan: expected an image, --bundle DIR, or --failed CONTAINER, e.g. cove plan debian")


def find_plan(client: Client, options: Options) -> dict[str, Any]:
    """The answer of whoever makes this plan: {"steps": [...], "warnings": [...]}, and "failed" for a container."""
    if options.text("bundle"):
        return bundle_plan(options.text("bundle"))
    if options.on("failed"):
        found: dict[str, Any] = client.get("/cove/v1/plan" + query({"container": options.args[0]}))
        return found
    body = createbody.build_body(options, os.environ, detach=True)
    made: dict[str, Any] = client.post("/cove/v1/plan" + query({"name": options.text("name")}), body)
    return made


def changed_options(options: Options, text: str) -> Options:
    """The same command line with another bundle, or with more flags, which replace or, where they may be repeated,
    follow those given."""
    import shlex

    changed = Options()
    if options.text("bundle"):
        changed.given = {"bundle": text}
        return changed
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise CliError(f"--against {text!r}: {str(error).lower()}; quote it as for a shell") from None
    try:
        more = parse_arguments(COMMANDS["plan"], words)
    except CliError as error:
        raise CliError(f"--against: {error}") from None
    for name in ("bundle", "failed", "against", "format"):
        if name in more.given:
            raise CliError(f"--against: --{name} is no flag of create; give e.g. --against '--privileged'")
    changed.args = more.args or options.args
    changed.given = dict(options.given)
    for name, value in more.given.items():
        changed.given[name] = options.all(name) + value if isinstance(value, list) else value
    return changed


# --- bundles ----------------------------------------------------------------------------------------


def bundle_plan(directory: str) -> dict[str, Any]:
    """The plan of an OCI bundle by the OCI runtime of this checkout; its warnings go to standard error."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    program = f"{root}/bin/cove-runtime"
    answer, status, messages = _call([program, "--log-format", "json", "plan", "--bundle", directory])
    last = ""
    for line in messages.splitlines():
        try:
            entry = wirejson.loads(line)
            last, level = str(entry["msg"]), entry["level"]
        except (ValueError, TypeError, KeyError):
            last, level = line, "error"
        if level == "warning":
            print(for_terminal(f"warning: {last}"), file=sys.stderr)
    if status:
        raise CliError(f"--bundle {directory}: {last or f'{program} ended with status {status}'}", 1)
    plan: dict[str, Any] = wirejson.loads(answer)
    return plan


def _call(command: list[str]) -> tuple[str, int, str]:
    """Standard output, exit status and standard error of a program whose errors are a few lines at most."""
    pipes = [os.pipe(), os.pipe()]
    actions = [(os.POSIX_SPAWN_DUP2, ends[1], number) for number, ends in enumerate(pipes, 1)]
    try:
        child = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
    except OSError as error:
        raise CliError(f"{command[0]}: {error.strerror}; run sh scripts/setup.sh run") from None
    texts = []
    for reader, writer in pipes:
        os.close(writer)
        with open(reader, encoding="utf-8", errors="replace") as file:
            texts.append(file.read())
    _, status = os.waitpid(child, 0)
    return texts[0], os.waitstatus_to_exitcode(status), texts[1]


# --- what is shown ----------------------------------------------------------------------------------


def shaped(answer: dict[str, Any], form: str) -> str:
    """The answer by --format."""
    from cove.cli.output import render_value

    return (wirejson.pretty(answer) if form == "json" else render_value(form, answer)) + "\n"


def render_plan(steps: list[dict[str, Any]], paint: Paint, failed: dict[str, Any] | None = None) -> str:
    """Numbered steps below the heading of their section; a reason follows the last step that it is for.

    A planned container has no id yet: the API's 64 zeros are shown as ID. The step that failed is marked.
    """
    lines: list[str] = []
    width = len(str(len(steps)))
    at = failed["step"] if failed else None
    for number, step in enumerate(steps, 1):
        following = steps[number] if number < len(steps) else {}
        if number == 1 or step["section"] != steps[number - 2]["section"]:
            lines += ["", f"{step['section']}:"] if lines else [f"{step['section']}:"]
        fails = failed is not None and at == number - 1
        line = f"{'>' if fails else ' '} {number:>{width}}  {named(step['describe'])}"
        lines.append(paint(line, _RED) if fails else line)
        if failed is not None and fails:
            lines.append(paint(f"  {'':>{width}}    failed: {failed['name']}, {failed['text']}", _RED))
        why = step.get("why")
        if why and (fails or (following.get("why"), following.get("section")) != (why, step["section"])):
            lines.append(paint(f"  {'':>{width}}    {why}", _DIM))
    return "\n".join(lines) + "\n" if lines else ""


def render_failure(failed: dict[str, Any] | None, paint: Paint) -> str:
    """What can't be shown at a step."""
    if failed is None:
        return "\nNo step of its last start failed.\n"
    if failed["step"] is None:
        gone = f"{failed['section']}: {named(failed['describe'])}: {failed['name']}, {failed['text']}"
        return (
            "\n"
            + paint(f"Its last start failed at a step that isn't in this plan any more: {gone}", _RED)
            + "\n"
        )
    return ""


def named(text: str) -> str:
    """A step's words, which may hold a stranger's paths and arguments, for people."""
    return printable(text.replace("0" * 64, "ID").replace("0" * 12, "ID"))


def compare(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What one plan has (`-`) and the other one hasn't (`+`), in the order of both; `number` counts in its own plan."""
    from difflib import SequenceMatcher

    one, other = ([(step["section"], step["describe"]) for step in steps] for steps in (before, after))
    found: list[dict[str, Any]] = []
    for tag, low, high, other_low, other_high in SequenceMatcher(
        None, one, other, autojunk=False
    ).get_opcodes():
        if tag == "equal":
            continue
        for change, steps, first, last in (("-", before, low, high), ("+", after, other_low, other_high)):
            found += [{"change": change, "number": at + 1, **steps[at]} for at in range(first, last)]
    return found


def render_difference(differences: list[dict[str, Any]], one: str, other: str, paint: Paint) -> str:
    """Lines as of diff(1) below the heading of their section, each with its reason."""
    if not differences:
        return "The two plans are the same.\n"
    lines = [paint(f"--- {named(one)}", _RED), paint(f"+++ {named(other)}", _GREEN)]
    width = len(str(max(step["number"] for step in differences)))
    for index, step in enumerate(differences):
        before = differences[index - 1] if index else {}
        following = differences[index + 1] if index + 1 < len(differences) else {}
        if step["section"] != before.get("section"):
            lines += ["", f"{step['section']}:"]
        line = f"{step['change']} {step['number']:>{width}}  {named(step['describe'])}"
        lines.append(paint(line, _RED if step["change"] == "-" else _GREEN))
        shared = [following.get(key) == step.get(key) for key in ("why", "section")]
        if step.get("why") and not all(shared):
            lines.append(paint(f"  {'':>{width}}    {step['why']}", _DIM))
    return "\n".join(lines) + "\n"


COMMANDS = {
    "plan": Command(
        "plan",
        run_plan,
        "[OPTIONS] IMAGE [COMMAND] [ARG...] | --bundle DIR | --failed CONTAINER",
        "Print the steps that would isolate a container, each with its reason. Takes the flags of create.",
        flags=(
            *CREATE_FLAGS,
            (
                "",
                "against",
                "str",
                "FLAGS",
                "Print only what changes with these flags added, e.g. '--privileged --network host'; "
                "with --bundle: another bundle's directory",
            ),
            (
                "",
                "bundle",
                "str",
                "DIR",
                "Explain an OCI bundle, a directory with config.json; no daemon is asked",
            ),
            (
                "",
                "failed",
                "bool",
                "",
                "Explain a CONTAINER, and mark the step at which its last start failed",
            ),
            (
                "",
                "format",
                "str",
                "FORMAT",
                "json or a template, e.g. '{{len .steps}}' (default: numbered text)",
            ),
        ),
        most=-1,
        stops=True,
        example="cove plan --read-only debian\ncove plan --against --privileged debian",
    ),
}
