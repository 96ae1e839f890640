"""The benchmark's numbers: verdicts, ratios, turns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.stats import (
    AtMost,
    AtMostTimes,
    Row,
    Samples,
    Target,
    TimesFaster,
    TimesMore,
    exit_status,
    interleave,
    judge,
    ratio,
    significant,
    spread,
)


def row(
    cove: float | None, base: float | None, *targets: Target, more: bool = False, problem: str = ""
) -> Row:
    return Row(
        what="a",
        unit="ms",
        cove=cove,
        base=base,
        against="peer",
        targets=targets,
        more_is_better=more,
        problem=problem,
    )


@pytest.mark.parametrize(
    ("target", "cove", "base", "verdict"),
    [
        (AtMostTimes(2.5), 10.0, 4.0, "ok"),
        (AtMostTimes(2.5), 10.1, 4.0, "missed"),
        (TimesFaster(8), 25.0, 200.0, "ok"),
        (TimesFaster(8), 25.1, 200.0, "missed"),
        (TimesMore(15), 150.0, 10.0, "ok"),
        (TimesMore(15), 149.0, 10.0, "missed"),
        (AtMost(60, "MiB"), 60.0, None, "ok"),
        (AtMost(60, "MiB"), 60.1, None, "missed"),
        (AtMostTimes(2.5), 10.0, None, "no peer"),
    ],
)
def test_a_target_holds_up_to_its_limit(
    target: Target, cove: float, base: float | None, verdict: str
) -> None:
    assert judge(row(cove, base, target)) == verdict


def test_a_row_without_cove_failed_whatever_its_peer() -> None:
    assert judge(row(None, 4.0, AtMostTimes(2.5))) == "failed"


def test_a_row_without_target_has_no_verdict() -> None:
    assert judge(row(1.0, 2.0)) == "-"


def test_a_missed_target_counts_before_a_missing_peer() -> None:
    assert judge(row(2000.0, None, AtMost(1024, "KiB"), AtMostTimes(0.1))) == "missed"


def test_the_exit_status_tells_missed_from_missing() -> None:
    good, missed = row(1.0, 4.0, AtMostTimes(2)), row(9.0, 4.0, AtMostTimes(2))
    assert exit_status([good]) == 0
    assert exit_status([good, missed]) == 1
    assert exit_status([good, missed, row(1.0, None, AtMostTimes(2))]) == 2
    assert exit_status([good, row(1.0, None, problem="no peer: dockerd isn't installed")]) == 2


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (row(10.0, 4.0, AtMostTimes(2.5)), "2.50 times"),
        (row(10.0, 200.0, TimesFaster(8)), "20.0 times faster"),
        (row(300.0, 10.0, more=True), "30.0 times more"),
        (row(None, 10.0), ""),
        (row(10.0, None), ""),
    ],
)
def test_a_ratio_reads_in_the_direction_of_its_target(shown: Row, text: str) -> None:
    assert ratio(shown) == text


def test_sides_with_different_amounts_to_do_get_no_ratio() -> None:
    uneven = Row(what="a", unit="ms", cove=20.0, base=10.0, against="dockerd", comparable=False)
    assert ratio(uneven) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0342, "0.0342"), (0.25, "0.250"), (2.514, "2.51"), (31.24, "31.2"), (1043.4, "1043")],
)
def test_numbers_show_three_digits(value: float, text: str) -> None:
    assert significant(value) == text


def test_the_spread_is_the_middle_half() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 100.0]) == "2.00 to 4.00"


def test_sides_take_turns() -> None:
    order: list[str] = []

    def side(name: str) -> Iterator[float]:
        order.append(name)
        yield 1.0

    samples = interleave(3, {"a": lambda: side("a"), "b": lambda: side("b")})
    assert order == ["a", "b"] * 3
    assert samples.values == {"a": [1.0] * 3, "b": [1.0] * 3}


def test_a_side_that_fails_is_left_out_and_the_others_go_on() -> None:
    calls = 0

    def flaky() -> Iterator[float]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError("the daemon ended")
        yield 1.0

    samples = interleave(4, {"bad": flaky, "good": lambda: [2.0]}, (OSError,))
    assert samples.median("bad") is None
    assert samples.problems == {"bad": "the daemon ended"}
    assert samples.values["good"] == [2.0] * 4
    assert calls == 2


def test_a_failure_that_nobody_expects_is_not_swallowed() -> None:
    def broken() -> Iterator[float]:
        raise KeyError("bug")
        yield 0.0

    with pytest.raises(KeyError):
        interleave(1, {"a": broken}, (OSError,))


def test_samples_describe_themselves() -> None:
    samples = Samples({"few": [4.0], "many": [1.0, 2.0, 3.0, 4.0, 5.0], "none": []})
    assert samples.describe("few", "ms") == "few 4.00 ms"
    assert samples.describe("many", "ms") == "many 3.00 ms (middle half 2.00 to 4.00)"
    assert samples.describe("none", "ms") == "none none"
