"""Strangers' Dockerfiles: no error but DockerfileError, no cost beyond the text's size, one meaning."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cove.build.checks import check_with_error
from cove.build.planner import BaseImage, PlanRequest, needed_images, plan_build
from cove.dockerfile import instructions as ins
from cove.dockerfile.errors import DockerfileError
from cove.dockerfile.expand import ExpansionError, Rules, expand
from cove.dockerfile.giturl import parse_git_url
from cove.dockerfile.parser import KEYWORDS, parse_dockerfile
from tests.unit.dockerfile_printing import print_dockerfile

FILES = sorted((Path(__file__).parent.parent / "dockerfiles").glob("*.Dockerfile"))
BASE = BaseImage(image_id="sha256:1", config={"Env": ["PATH=/bin", "A=b"], "OnBuild": ["RUN x"]})

PIECES = [
    " ", "\n", "\\\n", "\t", "\r\n", "#", "<<EOF", "<<-'E'", "\nEOF\n", "\nE\n", "--", "--from=", "--mount=type=",
    "--chown=a", "=", "'", '"', "\\", "`", "$", "${", "}", ":-", ":?", "##*", "//", "[", "]", '["a", "b"]', ",", "a",
    "b/c", "scratch", "AS", "debian", "1", "\u00e9", "target=/x", "https://x/y", "git@h:p.git", "# escape=`\n",
    "# syntax=docker/dockerfile:1\n", "# check=skip=all\n", "cache", "$A", "${A}", "ENV A=b\n", "ARG B\n", "FROM x\n",
]  # fmt: skip
TEXTS = st.lists(
    st.sampled_from([*PIECES, *KEYWORDS, *(f"\n{word} " for word in KEYWORDS)]), max_size=40
).map("".join)


def everything(data: bytes) -> None:
    """Parse, check and plan; DockerfileError is the only way out."""
    try:
        dockerfile = parse_dockerfile(data)
        check_with_error(dockerfile, PlanRequest())
        request = PlanRequest(build_args={"B": "$A"})
        images: dict[str, BaseImage] = {}
        for _ in range(5):
            needed = needed_images(dockerfile, request, images)
            images.update({need.key: BASE for need in needed})
        msgspec.json.encode(plan_build(dockerfile, request, images))
    except DockerfileError as error:
        assert str(error).startswith("Dockerfile")
        assert error.line <= data.count(b"\n") + 1


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_any_words_of_the_language_are_taken_or_refused(text: str) -> None:
    everything(text.encode())
    everything(b"FROM x\n" + text.encode())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(data: bytes) -> None:
    everything(data)
    everything(b"FROM x\nRUN " + data)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FILES), st.integers(0, 10_000), st.integers(0, 50), st.sampled_from(PIECES))
def test_a_file_with_a_piece_cut_out_or_put_in_is_taken_or_refused(
    path: Path, at: int, cut: int, piece: str
) -> None:
    data = path.read_bytes()
    at %= len(data)
    everything(data[:at] + data[at + cut :])
    everything(data[:at] + piece.encode() + data[at:])


def meaning(dockerfile: ins.Dockerfile) -> object:
    """What a Dockerfile says, without where and how it is written."""

    def plain(at: ins.Instruction) -> object:
        fields = {"line": 0, "end_line": 0, "text": "", "comments": (), "keyword": at.name}
        if isinstance(at, ins.From):
            fields.update(written_stage="", written_as="")
        return msgspec.structs.replace(at, **fields)

    return (
        [plain(arg) for arg in dockerfile.args],
        [(plain(stage.start), [plain(each) for each in stage.instructions]) for stage in dockerfile.stages],
        (dockerfile.escape, dockerfile.syntax, dockerfile.check),
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_means_the_same_after_printing(path: Path) -> None:
    first = parse_dockerfile(path.read_bytes())
    assert meaning(parse_dockerfile(print_dockerfile(first).encode())) == meaning(first)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_any_text_that_is_taken_means_the_same_after_printing(text: str) -> None:
    try:
        first = parse_dockerfile(b"FROM x\n" + text.encode())
    except DockerfileError:
        return
    assert meaning(parse_dockerfile(print_dockerfile(first).encode())) == meaning(first)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join), st.booleans())
def test_any_word_is_expanded_or_refused(word: str, keep: bool) -> None:
    try:
        result = expand(word, {"A": "a b", "B": ""}, Rules(keep_unset=keep))
    except ExpansionError:
        return
    assert "".join(result.words) == "".join(result.text.split()) or not set(word).isdisjoint("'\"\\<")


@given(st.text(st.sampled_from("gith@:/.#?&=refsubdir-"), max_size=60))
def test_any_address_is_a_repository_or_not(text: str) -> None:
    for prefix in ("", "https://h/x.git", "git@h:", "github.com/"):
        try:
            parse_git_url(prefix + text, is_context=True)
        except DockerfileError:
            pass


@pytest.mark.parametrize(
    "text",
    [
        "FROM x\nENV A=" + "a" * 60_000 + "\n" + "ENV B=$A$A C=$A\n" * 9_000,
        "FROM x\nENV A=" + "a" * 100_000 + "\n" + "ENV B=${A##*a*a*a*a*a*a*b}\n" * 5_000,
        "FROM x\nENV A=" + "a" * 100_000 + "\n" + "ENV B=${A//a/}\n" * 5_000,
        "FROM x\nENV A=" + "a" * 100_000 + "\n" + "RUN x\n" * 9_000,
        "FROM x\n" + "RUN " + "<<E " * 200_000,
        "FROM x\nRUN " + "[" * 1_000_000,
        'FROM x\nRUN ["' + "\\" * 900_000,
        "FROM x\nENV " + "a=b " * 200_000,
        "FROM x\nLABEL a=" + "$" * 120_000,
        "FROM x\nLABEL a=" + "'" * 120_001,
        "FROM x AS s0\n" + "".join(f"FROM s{n} AS s{n + 1}\nONBUILD RUN x\n" for n in range(400)),
        "FROM x AS s0\n" + "ONBUILD RUN x\n" * 400 + "".join(f"FROM s0 AS t{n}\nRUN y\n" for n in range(400)),
        "FROM x AS s0\n" + "".join(f"FROM s{n} AS s{n + 1}\nCOPY --from=s{n} / /\n" for n in range(490)),
        "FROM x\nCOPY <<E /\n" + "$A" * 500_000 + "\nE\n",
        "\\\n" * 500_000,
        "FROM x\nRUN a" + "\\\n#" * 300_000,
        "#" * 1_000_000,
        "FROM x\nCOPY --chmod=" + "u+" * 500_000 + "z a b\n",
        "FROM x\nCOPY --chmod=u" + "+r" * 30 + "z a b\n",
        "FROM x\nHEALTHCHECK --interval=" + "1s" * 300_000 + "x CMD a\n",
        "FROM x\nRUN --mount=" + "a=b," * 200_000 + " x\n",
        "FROM " + "a" * 900_000 + "\n",
        "FROM x\nADD https://" + "a" * 900_000 + ".git /\n",
    ],
    ids=lambda text: text[:40].replace("\n", " ") + f"... {len(text)}",
)
def test_a_hostile_file_costs_little(text: str) -> None:
    start = time.process_time()
    everything(text.encode())
    assert time.process_time() - start < 8, "it should take one or two seconds"
