"""Arguments: Docker's conventions for flags."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.cli import main
from cove.cli.fail import CliError
from cove.cli.options import Command, nearest, parse_arguments, render_help
from cove.cli.run import COMMANDS as RUN
from cove.cli.runflags import RUN_FLAGS
from tests.unit.cli_fake_daemon import ROOT


def run(*arguments: str) -> tuple[dict[str, object], list[str]]:
    options = parse_arguments(RUN["run"], arguments)
    return options.given, options.args


def test_short_flags_combine() -> None:
    assert run("-itd", "debian") == ({"interactive": True, "tty": True, "detach": True}, ["debian"])
    assert run("-iteA=b", "debian") == ({"interactive": True, "tty": True, "env": ["A=b"]}, ["debian"])
    assert run("-dp8080:80", "-p=81", "-p", "82", "x")[0] == {
        "detach": True,
        "publish": ["8080:80", "81", "82"],
    }


def test_long_flags_take_a_value_after_a_space_or_an_equals_sign() -> None:
    assert run("--name", "a", "--memory=1g", "--init=false", "x")[0] == {
        "name": "a",
        "memory": "1g",
        "init": False,
    }


def test_flags_end_at_the_image() -> None:
    assert run("--rm", "debian", "ls", "--rm", "-la") == ({"rm": True}, ["debian", "ls", "--rm", "-la"])


def test_flags_end_at_two_dashes() -> None:
    assert run("--rm", "--", "--odd-image") == ({"rm": True}, ["--odd-image"])


def test_other_commands_take_flags_anywhere() -> None:
    command = main.load_command("containers", "rm")
    options = parse_arguments(command, ["web", "-f", "db", "-v"])
    assert (options.args, options.given) == (["web", "db"], {"force": True, "volumes": True})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--memry", "1g", "x"], "--memry: run has no such flag; did you mean --memory?"),
        (["-y", "x"], "-y: run has no such flag; cove run --help lists the flags"),
        (["--name"], "--name: expected a value: --name NAME"),
        (["-e"], "-e: expected a value: -e NAME=VALUE"),
        (["--rm=perhaps", "x"], "--rm=perhaps: expected true or false, e.g. --rm=false"),
        (["--cpu-shares", "many", "x"], "--cpu-shares many: expected a whole number, e.g. --cpu-shares 10"),
        (["--rm"], "run: expected at least 1 argument: cove run [OPTIONS] IMAGE [COMMAND] [ARG...]"),
    ],
)
def test_an_error_names_the_input_and_a_way_out(arguments: list[str], sentence: str) -> None:
    with pytest.raises(CliError) as error:
        run(*arguments)
    assert str(error.value) == sentence
    assert error.value.status == 125


def test_too_many_arguments_are_refused() -> None:
    command = main.load_command("containers", "rename")
    with pytest.raises(CliError, match="unexpected argument 'c'"):
        parse_arguments(command, ["a", "b", "c"])


@given(st.lists(st.text(max_size=12), max_size=8))
def test_no_arguments_break_the_parser(arguments: list[str]) -> None:
    try:
        options = parse_arguments(RUN["run"], arguments)
    except CliError as error:
        assert str(error)
    else:
        assert options.args


def test_no_two_flags_share_a_name() -> None:
    for command in every_command():
        longs = [flag[1] for flag in command.flags]
        shorts = [flag[0] for flag in command.flags if flag[0]]
        assert len(set(longs)) == len(longs), command.name
        assert len(set(shorts)) == len(shorts), command.name
        assert {flag[2] for flag in command.flags} <= {"bool", "str", "list", "int"}, command.name


def every_command() -> list[Command]:
    found = {}
    for name, module, _ in main.COMMANDS:
        found[name] = main.load_command(module, name)
    for group, (_, members) in main.GROUPS.items():
        for word, (module, name) in members.items():
            found[f"{group} {word}"] = main.load_command(module, name)
    return list(found.values())


def test_every_command_has_help_with_an_example() -> None:
    for command in every_command():
        text = render_help(command)
        assert text.startswith(f"Usage: cove {command.name}"), command.name
        assert "Example:\n  " in text, command.name
        assert "cove" in command.example, command.name


def test_every_flag_of_run_that_is_shown_says_what_it_does() -> None:
    shown = [flag for flag in RUN_FLAGS if flag[4]]
    assert len(shown) > 80
    for short, long, kind, value, _ in shown:
        assert kind == "bool" or value, long
        assert len(short) <= 1


@pytest.mark.parametrize(("word", "known"), [("memry", "memory"), ("nmae", "name"), ("x", ""), ("zzzz", "")])
def test_nearest_finds_slips_of_the_finger(word: str, known: str) -> None:
    assert nearest(word, ["memory", "name", "network"]) == known


def test_help_of_the_process_in_the_container_stays_its_own() -> None:
    command = RUN["run"]
    assert main.wants_help(command, ["--help"])
    assert main.wants_help(command, ["--name", "a", "--help"])
    assert not main.wants_help(command, ["debian", "ls", "--help"])
    assert not main.wants_help(command, ["--", "--help"])


def test_the_reference_page_is_what_help_prints() -> None:
    result = subprocess.run(
        [sys.executable, "-P", "scripts/cli_reference.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    page = (ROOT / "docs" / "cli-reference.md").read_text()
    assert page == result.stdout, "run: python -P scripts/cli_reference.py >docs/cli-reference.md"


def test_every_example_of_help_is_a_valid_command() -> None:
    for command in every_command():
        for line in command.example.splitlines():
            if not line.startswith("cove ") or command.name == "daemon":
                continue
            words = shlex.split(line)[1:]
            found, rest = main.find_command(words)
            assert found is command, line
            parse_arguments(found, rest)
