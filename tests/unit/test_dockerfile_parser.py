"""What a Dockerfile's text means: accepted forms, and what is refused with which words at which place."""

from __future__ import annotations

import msgspec
import pytest

from cove.dockerfile import instructions as ins
from cove.dockerfile.errors import DockerfileError
from cove.dockerfile.lexer import MAX_BYTES, MAX_INSTRUCTIONS
from cove.dockerfile.parser import MAX_STAGES, parse_dockerfile, parse_trigger


def one(text: str) -> ins.Instruction:
    """The instruction after a FROM."""
    dockerfile = parse_dockerfile(f"FROM x\n{text}\n".encode())
    assert len(dockerfile.stages) == 1
    assert len(dockerfile.stages[0].instructions) == 1
    return dockerfile.stages[0].instructions[0]


def fields(instruction: ins.Instruction) -> dict[str, object]:
    """What an instruction says, without where it says it and without what is at its default."""
    base = set(ins.Instruction.__struct_fields__)
    defaults = {
        field.name: field.default
        for field in msgspec.structs.fields(instruction)
        if field.default is not msgspec.NODEFAULT
    }
    return {
        name: msgspec.json.decode(msgspec.json.encode(getattr(instruction, name)))
        for name in instruction.__struct_fields__
        if name not in base and getattr(instruction, name) != defaults.get(name, msgspec.UNSET)
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RUN make", {"words": ["make"], "shell": True}),
        ("run make", {"words": ["make"], "shell": True}),
        ("RUN   a  b ", {"words": ["a  b"], "shell": True}),
        ('RUN ["a", "b c"]', {"words": ["a", "b c"], "shell": False}),
        ("RUN ['a']", {"words": ["['a']"], "shell": True}),
        ('RUN ["a" , ] x', {"words": ['["a" , ] x'], "shell": True}),
        ("RUN a \\\n  b", {"words": ["a   b"], "shell": True}),
        ("RUN a \\\n# comment\n  # another\n  b", {"words": ["a   b"], "shell": True}),
        ("RUN a \\\n\n  b", {"words": ["a   b"], "shell": True}),
        ("RUN a \\  \n  b", {"words": ["a   b"], "shell": True}),
        ("RUN a\\\\", {"words": ["a\\\\"], "shell": True}),
        ("RUN --network=none a", {"words": ["a"], "shell": True, "network": "none"}),
        ("RUN --security=insecure -- --a", {"words": ["--a"], "shell": True, "security": "insecure"}),
        ("RUN --mount=type=cache,target=/x --mount=type=tmpfs,target=/y a",
         {"words": ["a"], "shell": True, "mounts": ["type=cache,target=/x", "type=tmpfs,target=/y"]}),
        ("RUN <<EOF\na\nb\nEOF",
         {"words": ["<<EOF"], "shell": True, "heredocs": [
             {"name": "EOF", "content": "a\nb\n", "expand": True, "chomp": False}]}),
        ("RUN cat <<-'A B' <<C\n\ta\n\tA B\nx\nC",
         {"words": ["cat <<-'A B' <<C"], "shell": True, "heredocs": [
             {"name": "A B", "content": "\ta\n", "expand": False, "chomp": True},
             {"name": "C", "content": "x\n", "expand": True, "chomp": False}]}),
        ('RUN ["a", "<<EOF"]', {"words": ["a", "<<EOF"], "shell": False}),
        ("RUN a <<< b", {"words": ["a <<< b"], "shell": True}),
        ("CMD", {"words": [], "shell": True}),
        ("CMD []", {"words": [], "shell": False}),
        ("ENTRYPOINT a b", {"words": ["a b"], "shell": True}),
        ("COPY a b", {"sources": ["a"], "target": "b"}),
        ('COPY ["a b", "c"]', {"sources": ["a b"], "target": "c"}),
        ("COPY --from=x --chown=1:2 --chmod=755 --link --parents --exclude=a --exclude=b c d",
         {"sources": ["c"], "target": "d", "source": "x", "owner": "1:2", "mode": "755", "link": True,
          "parents": True, "excludes": ["a", "b"]}),
        ("COPY --link=false a b", {"sources": ["a"], "target": "b"}),
        ("COPY a <<E /x/\nt\nE",
         {"sources": ["a"], "target": "/x/", "heredocs": [
             {"name": "E", "content": "t\n", "expand": True, "chomp": False}]}),
        ("ADD --checksum=sha256:a --keep-git-dir --unpack=false a b",
         {"sources": ["a"], "target": "b", "checksum": "sha256:a", "keep_git": True, "unpack": False}),
        ("ENV a=b c='d e' f=\"g h\" i=j\\ k",
         {"pairs": [{"name": "a", "value": "b", "legacy": False}, {"name": "c", "value": "'d e'", "legacy": False},
                    {"name": "f", "value": '"g h"', "legacy": False},
                    {"name": "i", "value": "j\\ k", "legacy": False}]}),
        ("ENV a b  c", {"pairs": [{"name": "a", "value": "b  c", "legacy": True}]}),
        ("ENV a=", {"pairs": [{"name": "a", "value": "", "legacy": False}]}),
        ('LABEL "a b"=c', {"pairs": [{"name": '"a b"', "value": "c", "legacy": False}]}),
        ("ARG a b=c d=", {"items": [["a", None], ["b", "c"], ["d", ""]]}),
        ("WORKDIR /a b", {"path": "/a b"}),
        ("USER a:b", {"user": "a:b"}),
        ("EXPOSE 80 22/udp", {"ports": ["22/udp", "80"]}),
        ("VOLUME /a /b", {"paths": ["/a", "/b"]}),
        ('VOLUME ["/a b"]', {"paths": ["/a b"]}),
        ('SHELL ["/bin/bash", "-c"]', {"words": ["/bin/bash", "-c"]}),
        ("STOPSIGNAL SIGTERM", {"signal": "SIGTERM"}),
        ("MAINTAINER A B <c@d>", {"author": "A B <c@d>"}),
        ("ONBUILD RUN  a", {"trigger": "RUN  a"}),
        ("ONBUILD RUN <<E\na\nE", {"trigger": "RUN <<E\na\nE"}),
        ("HEALTHCHECK NONE", {"test": ["NONE"]}),
        ("HEALTHCHECK cmd a b", {"test": ["CMD-SHELL", "a b"]}),
        ('HEALTHCHECK --interval=1m30s --timeout=500ms --start-period=1h --start-interval=2s --retries=3 CMD ["a"]',
         {"test": ["CMD", "a"], "interval_ns": 90 * 10**9, "timeout_ns": 5 * 10**8, "start_period_ns": 3600 * 10**9,
          "start_interval_ns": 2 * 10**9, "retries": 3}),
    ],
)  # fmt: skip
def test_an_instruction_is_understood(text: str, said: dict[str, object]) -> None:
    assert fields(one(text)) == said


@pytest.mark.parametrize(
    ("text", "image", "stage", "platform"),
    [
        ("FROM debian", "debian", "", ""),
        ("from debian as Build", "debian", "build", ""),
        (
            "FROM --platform=$BUILDPLATFORM a:b@sha256:c AS x-1_2.3",
            "a:b@sha256:c",
            "x-1_2.3",
            "$BUILDPLATFORM",
        ),
        ("FROM\tscratch", "scratch", "", ""),
    ],
)
def test_from_names_an_image_a_stage_and_a_platform(text: str, image: str, stage: str, platform: str) -> None:
    start = parse_dockerfile(text.encode()).stages[0].start
    assert (start.image, start.stage, start.platform) == (image, stage, platform)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "Dockerfile: no instructions: the file is empty, or has comments only; begin with FROM"),
        ("# only\n", "Dockerfile: no instructions: the file is empty, or has comments only; begin with FROM"),
        ("FORM debian", "Dockerfile:1:1: unknown instruction: FORM (did you mean FROM?)\n"
                        "   1 | FORM debian\n     | ^"),
        ("FROM x\n  RNU a", "Dockerfile:2:3: unknown instruction: RNU (did you mean RUN?)\n"
                            "   2 |   RNU a\n     |   ^"),
        ("FROM x\nXYZ", "Dockerfile:2:1: unknown instruction: XYZ\n   2 | XYZ\n     | ^"),
        ("RUN a", "Dockerfile:1:1: no build stage in current context: RUN before the first FROM (only ARG may be)\n"
                  "   1 | RUN a\n     | ^"),
        ("ARG a", "Dockerfile:1:1: no build stage: the file has no FROM\n   1 | ARG a\n     | ^"),
        ("FROM", "Dockerfile:1:1: FROM requires either one or three arguments, e.g. FROM debian AS build\n"
                 "   1 | FROM\n     | ^"),
        ("FROM a b", "Dockerfile:1:8: FROM requires either one or three arguments, e.g. FROM debian AS build\n"
                     "   1 | FROM a b\n     |        ^"),
        ("FROM a AS 1b", 'Dockerfile:1:11: invalid name for build stage: "1b", name can\'t start with a number or '
                         "contain symbols\n   1 | FROM a AS 1b\n     |           ^"),
        ("FROM --plaform=x a", "Dockerfile:1:6: unknown flag: --plaform (did you mean platform?)\n"
                               "   1 | FROM --plaform=x a\n     |      ^"),
        ("FROM x\nCOPY --from a b", "Dockerfile:2:6: missing a value on flag: --from, e.g. --from=…\n"
                                    "   2 | COPY --from a b\n     |      ^"),
        ("FROM x\nCOPY --from=a --from=b c d", "Dockerfile:2:15: duplicate flag specified: --from\n"
                                               "   2 | COPY --from=a --from=b c d\n     |               ^"),
        ("FROM x\nCOPY --link=maybe c d", "Dockerfile:2:6: expecting boolean value for flag --link, not: maybe\n"
                                          "   2 | COPY --link=maybe c d\n     |      ^"),
        ("FROM x\nWORKDIR --a b", "Dockerfile:2:9: unknown flag: --a: WORKDIR has none\n"
                                  "   2 | WORKDIR --a b\n     |         ^"),
        ("FROM x\nCOPY a", "Dockerfile:2:1: COPY requires at least two arguments, but only one was provided. "
                           "Destination could not be determined, e.g. COPY . /app\n   2 | COPY a\n     | ^"),
        ("FROM x\nADD", "Dockerfile:2:1: ADD requires at least two arguments, but only none was provided. "
                        "Destination could not be determined, e.g. ADD . /app\n   2 | ADD\n     | ^"),
        ("FROM x\nCOPY a <<E\nE", "Dockerfile:2:8: COPY cannot accept a heredoc as a destination\n"
                                  "   2 | COPY a <<E\n     |        ^"),
        ("FROM x\nCOPY <<'a b' /c\na b", "Dockerfile:2:6: the name of a heredoc in COPY has no spaces, e.g. COPY <<EOF "
                                         "/file\n   2 | COPY <<'a b' /c\n     |      ^"),
        ("FROM x\nRUN <<E\na", "Dockerfile:2:7: unterminated heredoc: no line 'E' follows\n"
                               "   2 | RUN <<E\n     |       ^"),
        ('FROM x\nRUN ["a", 1]', "Dockerfile:2:1: when using JSON array syntax, arrays must be comprised of strings "
                                 'only, e.g. ["a", "b"]\n   2 | RUN ["a", 1]\n     | ^'),
        ('FROM x\nCMD ["a\\u0000"]', "Dockerfile:2:1: a NUL character in a JSON string: no argument of a process can "
                                      'have one\n   2 | CMD ["a\\u0000"]\n     | ^'),
        ("FROM x\nRUN", "Dockerfile:2:1: RUN requires at least one argument, e.g. RUN make\n   2 | RUN\n     | ^"),
        ("FROM x\nRUN --network=lan a", 'Dockerfile:2:15: invalid network mode "lan": expected default, none or '
                                        "host\n   2 | RUN --network=lan a\n     |               ^"),
        ("FROM x\nRUN --mount=type=chache,target=/x a",
         'Dockerfile:2:13: unsupported mount type "chache" (did you mean cache?): expected bind, cache, tmpfs, '
         "secret, ssh\n   2 | RUN --mount=type=chache,target=/x a\n     |             ^"),
        ("FROM x\nRUN \\\n  --mount=target=/x,form=y \\\n  a",
         "Dockerfile:3:11: unexpected key 'form' in 'target=/x,form=y' (did you mean from?)\n"
         "   3 |   --mount=target=/x,form=y \\\n     |           ^"),
        ("FROM x\nENV a", "Dockerfile:2:1: ENV must have two arguments, e.g. ENV a=value\n   2 | ENV a\n     | ^"),
        ("FROM x\nENV a=b c", 'Dockerfile:2:1: can\'t find = in "c": must be of the form name=value\n'
                              "   2 | ENV a=b c\n     | ^"),
        ("FROM x\nENV =b", "Dockerfile:2:1: ENV names can not be blank: =b\n   2 | ENV =b\n     | ^"),
        ("FROM x\nARG =b", "Dockerfile:2:5: ARG names can not be blank\n   2 | ARG =b\n     |     ^"),
        ("FROM x\nARG", "Dockerfile:2:1: ARG requires at least one argument\n   2 | ARG\n     | ^"),
        ("FROM x\nSHELL bash", "Dockerfile:2:1: SHELL requires the arguments to be in JSON form, e.g. SHELL "
                               '["/bin/bash", "-c"]\n   2 | SHELL bash\n     | ^'),
        ("FROM x\nVOLUME []", "Dockerfile:2:1: VOLUME requires at least one argument\n   2 | VOLUME []\n     | ^"),
        ("FROM x\nONBUILD FROM a", "Dockerfile:2:9: FROM isn't allowed as an ONBUILD trigger\n"
                                   "   2 | ONBUILD FROM a\n     |         ^"),
        ("FROM x\nONBUILD ONBUILD RUN a", "Dockerfile:2:1: Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed\n"
                                          "   2 | ONBUILD ONBUILD RUN a\n     | ^"),
        ("FROM x\nHEALTHCHECK", "Dockerfile:2:1: HEALTHCHECK requires at least one argument\n"
                                "   2 | HEALTHCHECK\n     | ^"),
        ("FROM x\nHEALTHCHECK true", 'Dockerfile:2:13: Unknown type "true" in HEALTHCHECK (try CMD)\n'
                                     "   2 | HEALTHCHECK true\n     |             ^"),
        ("FROM x\nHEALTHCHECK --interval=5 CMD a",
         "Dockerfile:2:13: HEALTHCHECK: --interval: '5' isn't a duration, e.g. 30s or 1m30s\n"
         "   2 | HEALTHCHECK --interval=5 CMD a\n     |             ^"),
        ("# escape=x\nFROM a", "Dockerfile:1:10: invalid escape token 'x': expected \\ or `\n"
                               "   1 | # escape=x\n     |          ^"),
        ("# escape=`\n# escape=\\\nFROM a", "Dockerfile:2:1: only one escape parser directive can be used\n"
                                            "   2 | # escape=\\\n     | ^"),
        ("# syntax=me/other:1\nFROM a",
         "Dockerfile:1:10: syntax=me/other:1: Cove builds docker/dockerfile's language itself and runs no other "
         "frontend\n   1 | # syntax=me/other:1\n     |          ^"),
        ("FROM a\0", "Dockerfile:1:7: a NUL byte\n   1 | FROM a�\n     |       ^"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place_and_what_would_work(text: str, error: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        parse_dockerfile(text.encode())
    assert str(caught.value) == error


def test_the_escape_directive_makes_the_backquote_continue_lines() -> None:
    dockerfile = parse_dockerfile(b"# escape=`\nFROM x\nRUN dir C:\\ `\n  more\nCOPY a c:\\b\\\n")
    run, copy = dockerfile.stages[0].instructions
    assert isinstance(run, ins.Run)
    assert run.words == ("dir C:\\   more",)
    assert isinstance(copy, ins.Copy)
    assert copy.target == "c:\\b\\"


def test_directives_end_at_the_first_line_that_is_none() -> None:
    dockerfile = parse_dockerfile(b"# syntax=docker/dockerfile:1.7\n#\n# escape=`\nFROM x\nRUN a \\\n b\n")
    assert (dockerfile.syntax, dockerfile.escape) == ("docker/dockerfile:1.7", "\\")
    assert fields(dockerfile.stages[0].instructions[0])["words"] == ["a  b"]


@pytest.mark.parametrize(
    "syntax",
    [
        "docker/dockerfile",
        "docker/dockerfile:1-labs",
        "mirror.example:5000/docker/dockerfile:1",
        "docker/dockerfile-upstream:master",
        f"docker/dockerfile:1@sha256:{'0' * 64}",
    ],
)
def test_every_spelling_of_dockers_frontend_is_taken(syntax: str) -> None:
    assert parse_dockerfile(f"# syntax={syntax}\nFROM x".encode()).syntax == syntax


def test_lines_and_comments_stay_with_their_instruction() -> None:
    dockerfile = parse_dockerfile(
        b"\xef\xbb\xbf# gone\n\n# what it is\nFROM x\r\n\r\nRUN a \\\r\n  b\r\nCOPY <<E /x\r\nt\r\nE\r\nUSER y"
    )
    start = dockerfile.stages[0].start
    run, copy, user = dockerfile.stages[0].instructions
    assert (start.line, start.comments) == (4, ("what it is",))
    assert (run.line, run.end_line, run.text) == (6, 7, "RUN a   b")
    assert (copy.line, copy.end_line) == (8, 10)
    assert isinstance(copy, ins.Copy)
    assert copy.heredocs[0].content == "t\r\n"
    assert user.line == 11


def test_an_empty_line_in_a_continuation_is_remembered_for_the_check() -> None:
    assert parse_dockerfile(b"FROM x\nRUN a \\\n\n  b\n").empty_continuations == (3,)


def test_a_comment_in_another_encoding_is_no_mistake_but_an_instruction_is() -> None:
    parse_dockerfile(b"# M\xfcller\nFROM x\n")
    with pytest.raises(DockerfileError, match=r"Dockerfile:2:8: not UTF-8: save the file in that encoding"):
        parse_dockerfile(b"FROM x\nLABEL a\xfc=b\n")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"FROM x\n" + b"#" * MAX_BYTES, f"{MAX_BYTES + 7} bytes are too many: at most {MAX_BYTES}"),
        (b"FROM x\n" * (MAX_STAGES + 1), f"too many stages: at most {MAX_STAGES}"),
        (
            b"FROM x\n" + b"USER a\n" * (MAX_INSTRUCTIONS + 1),
            f"too many instructions: at most {MAX_INSTRUCTIONS}",
        ),
        (b"FROM x\nVOLUME " + b"a " * 2001, "VOLUME: 2001 words are too many: at most 2000"),
        (b"FROM x\nRUN " + b"--mount=target=/x " * 101 + b"a", "too many mounts: at most 100 in one RUN"),
    ],
)
def test_every_bound_is_named(data: bytes, message: str) -> None:
    with pytest.raises(DockerfileError, match=message):
        parse_dockerfile(data)


def test_a_trigger_is_one_instruction_that_may_be_one() -> None:
    assert fields(parse_trigger("RUN <<E\na\nE", "x")) == {
        "words": ["<<E"],
        "shell": True,
        "heredocs": [{"name": "E", "content": "a\n", "expand": True, "chomp": False}],
    }
    for text, message in (
        ("RUN a\nRUN b", "an ONBUILD trigger must be one instruction"),
        ("", "an ONBUILD trigger must be one instruction"),
        ("FROM x", "FROM isn't allowed as an ONBUILD trigger"),
    ):
        with pytest.raises(DockerfileError, match=message):
            parse_trigger(text, "x")
