"""Nothing that a container, an image or an error says may steer the terminal of who reads it."""

from __future__ import annotations

import os

import pytest

from cove.cli import output
from cove.cli.containerlist import container_row
from cove.cli.run import complain
from cove.cli.shown import printable

_CLEAR = "\x1b[2J\x1b]0;title\x07"


def test_what_steers_a_terminal_is_written_out() -> None:
    assert printable("plain, ünïcode ✓") == "plain, ünïcode ✓"
    assert printable("a\x1b[31m\x07\r\n") == r"a\x1b[31m\x07\r\n"
    assert printable("\x9b31m \u202e\udc80 a\tb\nc", "\n\t") == "\\x9b31m \\u202e\\udc80 a\tb\nc"


def test_a_table_shows_an_images_command_without_its_escape_sequences() -> None:
    summary = {"Id": "a" * 64, "Command": f"sh -c {_CLEAR}\nx", "Created": 0, "Names": ["/web"], "Image": "i"}
    row = container_row(summary, 0.0, whole=True)
    table = output.render_table(["COMMAND", "NAMES"], [[row["Command"], row["Names"]], [_CLEAR, "x"]])
    assert "\x1b" not in table and "\x07" not in table and table.count("\n") == 3
    assert r"\x1b[2J" in table


def test_an_error_is_shown_without_escape_sequences(capfd: pytest.CaptureFixture[str]) -> None:
    complain(f"error: no such file {_CLEAR}\nsecond line")
    assert capfd.readouterr().err == "error: no such file \\x1b[2J\\x1b]0;title\\x07\nsecond line\n"


def test_templates_are_printable_on_a_terminal_and_exact_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"Command": f"{_CLEAR}\t"}]
    output.print_rows(rows, [("Command", "COMMAND")], format="{{.Command}}")
    assert capsys.readouterr().out == f"{_CLEAR}\t\n"
    monkeypatch.setattr(os, "isatty", lambda _fd: True)
    output.print_rows(rows, [("Command", "COMMAND")], format="{{.Command}}")
    assert capsys.readouterr().out == "\\x1b[2J\\x1b]0;title\\x07\t\n"
