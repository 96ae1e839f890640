"""The benchmark's result as text, Markdown and JSON, and the command line in front of it."""

from __future__ import annotations

import json

import pytest

from bench.__main__ import choose, main
from bench.cases import all_cases
from bench.stats import AtMostTimes, Row, TimesFaster
from bench.table import render_json, render_markdown, render_text

ROWS = [
    Row(
        what="exec | of `true`",
        unit="ms",
        cove=3.2,
        base=38.4,
        against="dockerd",
        targets=(TimesFaster(8),),
        note="exec create,\nstart",
    ),
    Row(
        what="life",
        unit="ms",
        cove=9.0,
        base=None,
        against="floor",
        targets=(AtMostTimes(2.5),),
        problem="no peer: gcc isn't installed",
    ),
    Row(what="load", unit="s", cove=None, base=2.6, against="dockerd", problem="no Cove: it ended"),
]
MACHINE = [("CPU", "a, 2 cores"), ("kernel", "6.1")]


def test_the_table_lines_up_and_says_both_sides() -> None:
    lines = render_text(ROWS).splitlines()
    column = lines[0].index("verdict")
    assert lines[2][column:] == "ok"
    assert lines[3][column:] == "no peer"
    assert lines[4][column:] == "failed"
    assert "dockerd 38.4 ms  12.0 times faster  ≥ 8 times faster" in lines[2]


def test_reasons_for_missing_sides_follow_the_table_once_each() -> None:
    text = render_text([*ROWS, ROWS[1]])
    assert text.count("no peer: gcc isn't installed") == 1
    assert "no Cove: it ended" in text
    assert "exec create, start" in text


def test_a_narrow_terminal_cuts_the_first_column_and_no_verdict() -> None:
    rows = [*ROWS, Row(what="x" * 60, unit="s", cove=1.0)]
    wide = max(map(len, render_text(rows).splitlines()[:6]))
    lines = render_text(rows, wide - 20).splitlines()
    assert lines[2].endswith("ok")
    assert lines[5].startswith("x" * 39 + "…")
    assert max(map(len, lines[:6])) <= wide - 20


def test_the_page_escapes_pipes_and_tells_the_machine() -> None:
    page = render_markdown(ROWS, MACHINE, quick=False)
    assert "| exec \\| of `true` | 3.20 ms | dockerd 38.4 ms | 12.0 times faster |" in page
    assert "| CPU | a, 2 cores |" in page
    assert "quick run" not in page
    assert "quick run" in render_markdown(ROWS, MACHINE, quick=True)


def test_json_has_every_row_with_its_verdict() -> None:
    found = json.loads(render_json(ROWS, MACHINE, quick=True))
    assert [row["verdict"] for row in found["rows"]] == ["ok", "no peer", "failed"]
    assert found["machine"]["kernel"] == "6.1"
    assert found["quick"] is True


def test_cases_have_names_of_their_own() -> None:
    names = [case.name for case in all_cases()]
    assert len(names) == len(set(names))


def test_only_keeps_the_order_of_the_table() -> None:
    cases = all_cases()
    chosen = choose(cases, [cases[3].name, cases[1].name])
    assert chosen == [cases[1], cases[3]]
    assert choose(cases, []) == cases


def test_an_unknown_case_is_named_with_those_that_exist() -> None:
    with pytest.raises(SystemExit, match=r"--only nothing: expected one of .*exec"):
        choose(all_cases(), ["nothing"])


def test_list_prints_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(all_cases())
