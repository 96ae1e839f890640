"""The build checks: what is found, where, and what skips it."""

from __future__ import annotations

import pytest

from cove.build.check_rules import EXPERIMENTAL, RULES, CheckOptions, parse_options, refuse_findings, rule_url
from cove.build.checks import check, check_with_error
from cove.build.request import BaseImage, PlanRequest
from cove.dockerfile.errors import DockerfileError
from cove.dockerfile.findings import Finding, findings_text, summary_text
from cove.dockerfile.ignore import DockerIgnore
from cove.dockerfile.parser import parse_dockerfile

KNOWN = {
    "debian": BaseImage(image_id="sha256:1", config={"Env": ["PATH=/bin", "JAVA_HOME=/j"]}),
    "arm": BaseImage(image_id="sha256:2", config={}, architecture="arm64"),
}


def found(
    text: str, request: PlanRequest | None = None, ignore: str = "", images: bool = True
) -> list[tuple[int, int, str, str]]:
    findings = check(
        parse_dockerfile(text.encode()),
        request or PlanRequest(),
        KNOWN if images else None,
        DockerIgnore(ignore) if ignore else None,
    )
    return [(each.line, each.column, each.rule, each.message) for each in findings]


SIGNALS = "to prevent unintended behavior related to OS signals"
ONCE = "instructions should not be used in the same stage because only the last one will be used"

CASES: list[tuple[str, list[tuple[int, int, str, str]]]] = [
    ("FROM scratch AS Bad\n", [(1, 17, "StageNameCasing", "Stage name 'Bad' should be lowercase")]),
    ("FROM base as base2\n", [(1, 11, "FromAsCasing", "'as' and 'FROM' keywords' casing do not match")]),
    ("from base AS b\n", [(1, 11, "FromAsCasing", "'AS' and 'from' keywords' casing do not match")]),
    ("FROM scratch\nCOPY a \\\n\n  b\n", [(3, 1, "NoEmptyContinuation", "Empty continuation line")]),
    ("FROM scratch\ncopy a b\nCOPY c d\n",
     [(2, 1, "ConsistentInstructionCasing",
       "Command 'copy' should match the case of the command majority (uppercase)")]),
    ("frOM scratch as b\nfrom scratch as c\n",
     [(1, 1, "ConsistentInstructionCasing",
       "Command 'frOM' should match the case of the command majority (lowercase)")]),
    ("from scratch\ncopy a b\n", []),
    ("FROM scratch AS b\nFROM scratch AS b\n",
     [(2, 17, "DuplicateStageName", 'Duplicate stage name "b", stage names should be unique')]),
    ("FROM scratch AS context\n",
     [(1, 17, "ReservedStageName", 'Stage name should not use the same name as reserved stage "context"')]),
    ("FROM debian\nCMD a\nENTRYPOINT b\n",
     [(2, 1, "JSONArgsRecommended", f"JSON arguments recommended for CMD {SIGNALS}"),
      (3, 1, "JSONArgsRecommended", f"JSON arguments recommended for ENTRYPOINT {SIGNALS}")]),
    ('FROM debian\nSHELL ["/bin/bash", "-c"]\nCMD a\n', []),
    ('FROM debian\nCMD ["a"]\n', []),
    ("FROM debian\nMAINTAINER a\n",
     [(2, 1, "MaintainerDeprecated", "Maintainer instruction is deprecated in favor of using label")]),
    ("ARG VERSION=1\nFROM debian:$VERSIO-x\n",
     [(2, 6, "InvalidDefaultArgInFrom",
       "Default value for ARG debian:$VERSIO-x results in empty or invalid base image name"),
      (2, 13, "UndefinedArgInFrom", "FROM argument 'VERSIO' is not declared (did you mean VERSION?)")]),
    ("ARG V=1\nFROM --platform=${TARGETPLATFORM}${X} debian:$V\n",
     [(2, 34, "UndefinedArgInFrom", "FROM argument 'X' is not declared")]),
    ("FROM scratch\nWORKDIR app\nWORKDIR more\n",
     [(2, 1, "WorkdirRelativePath", 'Relative workdir "app" can have unexpected results if the base image changes')]),
    ("FROM scratch AS a\nWORKDIR /app\nFROM a\nWORKDIR sub\n", []),
    ("FROM debian\nCOPY $foo .\nARG foo=bar\nRUN echo $foo\n",
     [(2, 6, "UndefinedVar", "Usage of undefined variable '$foo'")]),
    ("FROM debian\nARG DIR_ASSETS=a\nCOPY ${DIR_ASSET} .\n",
     [(3, 6, "UndefinedVar", "Usage of undefined variable '$DIR_ASSET' (did you mean $DIR_ASSETS?)")]),
    ("FROM debian\nENV PATH=$PAHT:/x\n",
     [(2, 10, "UndefinedVar", "Usage of undefined variable '$PAHT' (did you mean $PATH?)")]),
    ("FROM debian\nCOPY <<E /x\n$JAVA_HOME $Y\nE\n", [(3, 12, "UndefinedVar", "Usage of undefined variable '$Y'")]),
    ("FROM debian AS b\nARG foo\nFROM b\nCOPY ${foo} $JAVA_HOME /x\n", []),
    ("FROM debian\nARG A=$B\n", [(2, 7, "UndefinedVar", "Usage of undefined variable '$B'")]),
    ("FROM elsewhere\nENV A=$JAVA_HOME\n", []),
    ("FROM elsewhere\nENV A=$PAHT\n",
     [(2, 7, "UndefinedVar", "Usage of undefined variable '$PAHT' (did you mean $PATH?)")]),
    ('FROM scratch\nENTRYPOINT ["a"]\nCMD ["a"]\nHEALTHCHECK NONE\nENTRYPOINT ["b"]\nCMD ["b"]\nHEALTHCHECK CMD []x\n',
     [(2, 1, "MultipleInstructionsDisallowed", f"Multiple ENTRYPOINT {ONCE}"),
      (3, 1, "MultipleInstructionsDisallowed", f"Multiple CMD {ONCE}"),
      (4, 1, "MultipleInstructionsDisallowed", f"Multiple HEALTHCHECK {ONCE}")]),
    ('FROM scratch AS a\nCMD ["a"]\nFROM a\nCMD ["b"]\n', []),
    ("FROM scratch\nENV a b\nLABEL c d\n",
     [(2, 1, "LegacyKeyValueFormat", '"ENV key=value" should be used instead of legacy "ENV key value" format'),
      (3, 1, "LegacyKeyValueFormat", '"LABEL key=value" should be used instead of legacy "LABEL key value" format')]),
    ("FROM --platform=$TARGETPLATFORM debian\n",
     [(1, 17, "RedundantTargetPlatform",
       "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior")]),
    ("FROM scratch\nARG SECRET_A\nENV api_key=1 password=b x=c\nARG PUBLIC_KEY key_file auth_version\n",
     [(2, 5, "SecretsUsedInArgOrEnv",
       'Do not use ARG or ENV instructions for sensitive data (ARG "SECRET_A")'),
      (3, 5, "SecretsUsedInArgOrEnv", 'Do not use ARG or ENV instructions for sensitive data (ENV "api_key")'),
      (3, 15, "SecretsUsedInArgOrEnv", 'Do not use ARG or ENV instructions for sensitive data (ENV "password")')]),
    ("FROM --platform=linux/amd64 debian\n",
     [(1, 17, "FromPlatformFlagConstDisallowed",
       'FROM --platform flag should not use constant value "linux/amd64"')]),
    ("FROM --platform=linux/amd64 debian AS my-amd64\n", []),
    ("FROM arm\n",
     [(1, 6, "InvalidBaseImagePlatform",
       'Base image arm was pulled with platform "linux/arm64", expected "linux/amd64" for current build')]),
    ("FROM scratch\nEXPOSE 80/TcP 443/tcp\n",
     [(2, 8, "ExposeProtoCasing", "Defined protocol '80/TcP' in EXPOSE instruction should be lowercase")]),
    ("FROM scratch\nEXPOSE 127.0.0.1:80:80 5000:5000 8000\n",
     [(2, 8, "ExposeInvalidFormat",
       "EXPOSE instruction should not define an IP address or host-port mapping, found '127.0.0.1:80:80'"),
      (2, 24, "ExposeInvalidFormat",
       "EXPOSE instruction should not define an IP address or host-port mapping, found '5000:5000'")]),
    ("# check=experimental=InvalidDefinitionDescription\n# bad\nARG foo=bar\n# base is it\nFROM scratch AS base\n"
     "# bad\nARG a b\n# old\n\nARG c\n",
     [(3, 1, "InvalidDefinitionDescription", "Comment for ARG should follow the format: `# foo <description>`"),
      (7, 1, "InvalidDefinitionDescription",
       "Comment for ARG should follow the format: `# <arg_key> <description>`")]),
    ("# check=experimental=all\nFROM scratch\nADD https://x.example/y /\nRUN cd /x\n"
     "ADD https://x.example/z.git?checksum=0123456 /\n",
     [(3, 5, "RemoteAddWithoutChecksum",
       "ADD of https://x.example/y without --checksum: what is downloaded can change unseen"),
      (4, 1, "ChangeDirectoryWithoutEffect", "RUN cd changes the directory of this step only: use WORKDIR")]),
    ("FROM scratch\nADD https://x.example/y /\nRUN cd /x\n", []),
    ("# check=skip=all\nFROM scratch as x\ncopy a b\n", []),
    ("# check=skip=FromAsCasing, ConsistentInstructionCasing\nFROM scratch as x\ncopy a b\n", []),
    ("FROM scratch\n# check=skip=WorkdirRelativePath // why\nWORKDIR a\n", []),
    ("FROM scratch\n# check=skip=UndefinedVar\nWORKDIR a\n",
     [(3, 1, "WorkdirRelativePath", 'Relative workdir "a" can have unexpected results if the base image changes')]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_what_should_not_be_written_so_is_found_at_its_place(
    text: str, expected: list[tuple[int, int, str, str]]
) -> None:
    assert found(text) == expected


def test_every_rule_has_a_case() -> None:
    rules = {finding[2] for _, expected in CASES for finding in expected} | {"CopyIgnoredFile"}
    assert rules == {*RULES, *EXPERIMENTAL}


@pytest.mark.parametrize(
    ("ignore", "expected"),
    [
        ("a", [(2, 6, 'Attempting to Copy file "a" that is excluded by .dockerignore'),
               (3, 5, 'Attempting to Add file "a/b" that is excluded by .dockerignore')]),
        ("a\n!a/b", []),
        (".*", []),
        ("*", [(2, 6, 'Attempting to Copy file "a" that is excluded by .dockerignore'),
               (3, 5, 'Attempting to Add file "a/b" that is excluded by .dockerignore'),
               (4, 6, 'Attempting to Copy file "." that is excluded by .dockerignore')]),
    ],
)  # fmt: skip
def test_a_copy_of_what_is_left_out_is_found(ignore: str, expected: list[tuple[int, int, str]]) -> None:
    text = "FROM scratch\nCOPY a /\nADD ./a/b /\nCOPY . /\nCOPY --from=debian a /\n"
    assert [(line, column, message) for line, column, _, message in found(text, ignore=ignore)] == expected


def test_only_the_stages_of_a_target_are_checked() -> None:
    text = "FROM debian AS one\nENV a b\nFROM debian AS two\nENV c d\n"
    assert [line for line, *_ in found(text)] == [2, 4]
    assert [line for line, *_ in found(text, PlanRequest(target="one"))] == [2]


def test_the_build_argument_takes_the_directives_place() -> None:
    text = "# check=skip=all\nFROM scratch as x\n"
    request = PlanRequest(build_args={"BUILDKIT_DOCKERFILE_CHECK": "skip=none"})
    assert [rule for _, _, rule, _ in found(text, request)] == ["FromAsCasing"]


def test_findings_fail_the_build_where_the_file_says_so() -> None:
    dockerfile = parse_dockerfile(b"# check=error=true\nFROM scratch as x\n")
    findings = check(dockerfile, PlanRequest())
    with pytest.raises(DockerfileError, match="Dockerfile:2:1: lint violation found for rules: FromAsCasing"):
        refuse_findings(dockerfile, {}, findings)
    refuse_findings(dockerfile, {}, ())
    refuse_findings(parse_dockerfile(b"FROM scratch as x\n"), {}, findings)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", CheckOptions()),
        ("skip=A,B", CheckOptions(frozenset("AB"))),
        (" skip = A , B ; error = true ", CheckOptions(frozenset("AB"), error=True)),
        ("experimental=all;skip=A", CheckOptions(frozenset("A"), frozenset({"all"}))),
    ],
)
def test_options_are_read(text: str, options: CheckOptions) -> None:
    assert parse_options(text) == options


@pytest.mark.parametrize("text", ["x", "skip", "error=maybe", "only=A"])
def test_options_that_are_none_are_refused(text: str) -> None:
    dockerfile = parse_dockerfile(f"# check={text}\nFROM scratch\n".encode())
    findings, error = check_with_error(dockerfile, PlanRequest())
    assert findings == ()
    assert "Dockerfile:1:1: invalid check option" in str(error)


def test_findings_come_with_the_error_that_ends_the_check() -> None:
    findings, error = check_with_error(parse_dockerfile(b"FROM scratch as x\nFROM $Y\n"), PlanRequest())
    assert [finding.rule for finding in findings][:1] == ["FromAsCasing"]
    assert "base name ($Y) should not be blank" in str(error)


def test_the_address_of_a_rule_is_dockers() -> None:
    base = "https://docs.docker.com/go/dockerfile/rule"
    assert rule_url("JSONArgsRecommended") == f"{base}/json-args-recommended/"
    assert rule_url("SecretsUsedInArgOrEnv") == f"{base}/secrets-used-in-arg-or-env/"
    assert rule_url("RemoteAddWithoutChecksum") == ""


def test_findings_are_shown_with_the_line_and_a_caret() -> None:
    lines = ["FROM scratch AS Bad"]
    finding = Finding(rule="R", message="Say it.", line=1, column=17, url="https://x/")
    assert findings_text([finding], lines) == (
        "WARNING: R - https://x/\nSay it.\nDockerfile:1:17\n   1 | FROM scratch AS Bad\n     |                 ^\n"
    )
    assert findings_text([], lines) == ""
    assert summary_text([]) == "Check complete, no warnings found."
    assert summary_text([finding]) == "Check complete, 1 warning has been found!"
    assert summary_text([finding] * 2) == "Check complete, 2 warnings have been found!"
