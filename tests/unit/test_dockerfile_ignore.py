"""The patterns of .dockerignore, with moby/patternmatcher's meaning."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.dockerfile.ignore import MAX_PATTERNS, DockerIgnore, IgnoreError


@pytest.mark.parametrize(
    ("pattern", "out", "stays"),
    [
        ("a", "a a/b a/b/c", "b ab b/a"),
        ("/a/", "a a/b", "b/a"),
        ("./a//b/../c", "a/c a/c/d", "a a/b"),
        ("a/b", "a/b a/b/c", "a b a/bc"),
        ("*", "a a/b .x", ""),
        ("*/*", "a/b a/b/c", "a"),
        ("*.go", "x.go .go x.go/y", "a/x.go xgo"),
        ("a*b*c", "abc axbxc", "ab/c acb"),
        ("a?c", "abc a☺c", "ac a/c abbc"),
        ("**", "a a/b", ""),
        ("**/", "a a/b", ""),
        ("**/**", "a a/b/c", ""),
        ("a/**", "a/b a/b/c", "a ab"),
        ("**/a", "a b/a b/c/a a/x b/a/x", "ba b/ca"),
        ("**/a/b", "a/b x/a/b x/a/b/y", "a xa/b"),
        ("**/a/*", "a/b x/a/b", "a x/a"),
        ("**/a/**", "a/b x/a/b/c", "a x/a"),
        ("**/a/**/b", "a/b a/x/b y/a/x/z/b", "a b xa/b"),
        ("**/a*/**/*b", "ax/cb y/ax/z/b", "a b/a"),
        ("**x", "x ax a/x bx/c", "xa"),
        ("a**/*.txt", "a/f.txt a/d/f.txt a.txt/x", "ab/f"),
        ("a**b", "ab a/b a/x/b", "axb"),
        ("a/*.txt**", "a/f.txt a/f.txtx a/f.txt/y", "a/f"),
        ("[a-c]x", "ax bx", "dx x"),
        ("[^a-c]x", "dx", "ax"),
        ("\\*", "*", "a"),
        ("\\!a", "!a", "a"),
        ("\\#a", "#a", "a"),
        ("a(b)|c+.{d}^$", "a(b)|c+.{d}^$", "a"),
    ],
)
def test_a_pattern_leaves_out_paths_and_what_is_below_them(pattern: str, out: str, stays: str) -> None:
    ignore = DockerIgnore(pattern)
    assert [path for path in out.split() if not ignore.matches(path)] == []
    assert [path for path in stays.split() if ignore.matches(path)] == []


@pytest.mark.parametrize(
    ("text", "path", "out"),
    [
        ("*.md\n!README.md", "README.md", False),
        ("*.md\n!README.md", "OTHER.md", True),
        ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", True),
        ("*.md\nREADME-secret.md\n!README*.md", "README-secret.md", False),
        ("!a\na", "a", True),
        ("docs\n!docs/README.md", "docs/README.md", False),
        ("docs\n!docs/README.md", "docs/x", True),
        ("**\n!a/b", "a/b/c", False),
        ("**\n!a/b\na/b/c", "a/b/c", True),
        ("# a\n\n  b  \n#c", "b", True),
        ("# a\n", "a", False),
        ("! a", "a", False),
        ("\ufeffa", "a", True),
        ("a\r\nb\r\n", "a", True),
        (".", "a", False),
        ("/", "a", False),
        ("*", ".", False),
    ],
)
def test_the_last_line_that_matches_counts(text: str, path: str, out: bool) -> None:
    assert DockerIgnore(text).matches(path) is out


@pytest.mark.parametrize(
    ("text", "skipped"),
    [
        ("a", True),
        ("a\n!a/b/c", False),
        ("a\n!b/c", True),
        ("a\n!**/x", False),
        ("a\n!*/x", False),
        ("a\n!b*/x", False),
        ("a\n!a", False),
        ("b", False),
    ],
)
def test_a_directory_is_skipped_where_nothing_below_it_comes_back(text: str, skipped: bool) -> None:
    assert DockerIgnore(text).skips("a") is skipped


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n!", 'x:2: illegal exclusion pattern "!": a path must follow, e.g. !README.md'),
        ("[", "x:1: syntax error in pattern '[': an open [ or a \\ at the end"),
        ("a\\", "x:1: syntax error in pattern 'a\\\\': an open [ or a \\ at the end"),
        ("[b-a]", "x:1: syntax error in pattern '[b-a]'"),
        ("[]", "x:1: syntax error in pattern '[]'"),
        ("[x-]", "x:1: syntax error in pattern '[x-]'"),
        ("a" * 5000, "x:1: a pattern of more than 4096 characters"),
        ("a\n" * (MAX_PATTERNS + 1), f"x: too many patterns: at most {MAX_PATTERNS}"),
        ("a" * (1 << 21), "x: 2097152 characters are too many: at most 1048576"),
    ],
)
def test_a_line_that_is_no_pattern_is_named(text: str, message: str) -> None:
    with pytest.raises(IgnoreError) as caught:
        DockerIgnore(text, "x")
    assert message in str(caught.value)


def _plain(pattern: str, path: str) -> bool:
    """What patternmatcher's own translation to a regular expression says of one path."""
    units = re.findall(r"\*\*/?|.", pattern, re.DOTALL)
    if units[0].startswith("**") and "*" not in pattern[2:] and "?" not in pattern:
        suffix = pattern[2:]
        return path.endswith(suffix) or (suffix[:1] == "/" and path == suffix[1:])
    out = ""
    for place, unit in enumerate(units):
        if unit.startswith("**"):
            out += ".*" if place == len(units) - 1 else "(.*/)?"
        else:
            out += {"*": "[^/]*", "?": "[^/]"}.get(unit, re.escape(unit))
    return re.fullmatch(out, path, re.DOTALL) is not None


@given(
    st.lists(st.sampled_from(["a", "b", "/", "*", "**", "**/", "?"]), min_size=1, max_size=8).map("".join),
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=4),
)
def test_any_pattern_means_what_the_plain_translation_means(pattern: str, names: list[str]) -> None:
    cleaned = "/".join(name for name in pattern.split("/") if name)
    if not cleaned:
        return
    expected = any(_plain(cleaned, "/".join(names[:count])) for count in range(1, len(names) + 1))
    assert DockerIgnore(cleaned).matches("/".join(names)) is expected


@given(st.text())
def test_any_text_is_taken_or_refused_with_a_line(text: str) -> None:
    try:
        DockerIgnore(text, "file").matches("some/path.txt")
    except IgnoreError as error:
        assert str(error).startswith("file")


def test_a_strangers_patterns_cost_what_their_length_says() -> None:
    start = time.process_time()
    ignore = DockerIgnore("\n".join(["*a" * 300 + "b", "**/a*/" * 300 + "b", "a**" * 300 + "b"]))
    assert not ignore.matches("a" * 2000)
    assert not ignore.matches("/".join(["aa"] * 700))
    assert time.process_time() - start < 5


def test_twenty_thousand_paths_are_matched_in_a_moment() -> None:
    lines = [
        ".git",
        "node_modules",
        "**/*.pyc",
        "dist/**",
        "!dist/keep",
        "*.log",
        "docs/*.md",
        "!docs/README.md",
    ]
    ignore = DockerIgnore("\n".join(lines * 5))
    start = time.process_time()
    assert not any(ignore.matches(f"src/pkg{n % 100}/mod{n % 37}/file{n}.py") for n in range(20_000))
    assert time.process_time() - start < 3
