"""`logs -f` goes on behind the last line it wrote, whatever the next connection tells again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cove.cli.follow import Place

Line = tuple[int, int, bytes]  # stream, nanoseconds since some second, text


def stamped(line: Line) -> bytes:
    return b"2026-01-02T03:04:05.%09dZ %b" % (line[1], line[2])


def told(lines: list[Line], since: str) -> list[Line]:
    """What a daemon tells of a log from a time on: by the beginnings of its lines."""
    if not since:
        return lines
    second, _, fraction = since.partition(".")
    low = (int(second) - 1767323045) * 10**9 + int(fraction)
    return [line for line in lines if line[1] >= low]


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.integers(0, 3)), max_size=12),
    st.lists(st.integers(0, 12), max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_every_line_is_written_once(shape: list[tuple[int, int]], breaks: list[int]) -> None:
    clock = {1: 0, 2: 0}
    lines: list[Line] = []
    for number, (stream, step) in enumerate(shape):  # per stream in order, across streams not
        clock[stream] += step * 1000
        lines.append((stream, clock[stream], b"line %d\n" % number))
    written: list[tuple[int, bytes]] = []
    place = Place(lambda stream, data: written.append((stream, data)))
    for end in [*breaks, len(lines)]:
        place.begin()
        for line in told(lines[: max(end, len(written))], place.since()):
            place.take(line[0], stamped(line))
    assert written == [(stream, text) for stream, _, text in lines]


def test_times_are_shown_when_they_are_wanted_and_a_terminal_s_lines_are_put_together() -> None:
    written: list[bytes] = []
    place = Place(lambda stream, data: written.append(data), timestamps=True)
    place.take_raw(stamped((1, 1, b"on"))[:20])
    place.take_raw(stamped((1, 1, b"one\r\n"))[20:] + stamped((1, 2, b"$ ")))
    assert written == [stamped((1, 1, b"one\r\n"))]
    place.end_raw()
    assert written[1:] == [stamped((1, 2, b"$ "))]


def test_what_is_no_line_of_the_log_is_passed_on() -> None:
    written: list[bytes] = []
    Place(lambda stream, data: written.append(data)).take(2, b"Error grabbing logs: x\n")
    assert written == [b"Error grabbing logs: x\n"]
