"""The instructions of a Dockerfile as types: what was written, before any variable is replaced. Pure, no behaviour.

Words keep their quotes and variables; flags have lost their quotes. Which fields variables are replaced in is the
planner's knowledge (docs.docker.com/reference/dockerfile, "Environment replacement").
"""

from __future__ import annotations

import msgspec

from cove.dockerfile.errors import DockerfileError, Source
from cove.dockerfile.lexer import Heredoc
from cove.dockerfile.words import Pair


class Instruction(msgspec.Struct, frozen=True, kw_only=True):
    """What every instruction has. Lines count from 1; `text` is the instruction in one line, without heredocs."""

    line: int
    end_line: int
    keyword: str  # as written, for its case
    text: str
    comments: tuple[str, ...] = ()  # directly above it

    @property
    def name(self) -> str:
        return self.keyword.upper()


class From(Instruction, frozen=True, kw_only=True):
    image: str
    stage: str = ""  # lower case
    written_stage: str = ""
    written_as: str = ""
    platform: str = ""


class Arg(Instruction, frozen=True, kw_only=True):
    items: tuple[tuple[str, str | None], ...]  # None: no default


class Env(Instruction, frozen=True, kw_only=True):
    pairs: tuple[Pair, ...]


class Label(Instruction, frozen=True, kw_only=True):
    pairs: tuple[Pair, ...]


class CommandLine(Instruction, frozen=True, kw_only=True):
    """RUN, CMD and ENTRYPOINT: the words of the JSON form, or one text for the shell."""

    words: tuple[str, ...]
    shell: bool  # the text is the shell's argument


class Run(CommandLine, frozen=True, kw_only=True):
    heredocs: tuple[Heredoc, ...] = ()
    mounts: tuple[str, ...] = ()  # the values of --mount as written
    network: str = ""
    security: str = ""


class Cmd(CommandLine, frozen=True, kw_only=True):
    pass


class Entrypoint(CommandLine, frozen=True, kw_only=True):
    pass


class Copy(Instruction, frozen=True, kw_only=True):
    """COPY, and what ADD has of it."""

    sources: tuple[str, ...]  # those that aren't heredocs
    target: str
    heredocs: tuple[Heredoc, ...] = ()
    source: str = ""  # --from
    owner: str = ""
    mode: str = ""
    link: bool = False
    parents: bool = False
    excludes: tuple[str, ...] = ()


class Add(Copy, frozen=True, kw_only=True):
    checksum: str = ""
    keep_git: bool | None = None
    unpack: bool | None = None


class Workdir(Instruction, frozen=True, kw_only=True):
    path: str


class User(Instruction, frozen=True, kw_only=True):
    user: str


class Expose(Instruction, frozen=True, kw_only=True):
    ports: tuple[str, ...]  # sorted, as BuildKit does


class Volume(Instruction, frozen=True, kw_only=True):
    paths: tuple[str, ...]


class Shell(Instruction, frozen=True, kw_only=True):
    words: tuple[str, ...]


class StopSignal(Instruction, frozen=True, kw_only=True):
    signal: str


class Maintainer(Instruction, frozen=True, kw_only=True):
    author: str


class OnBuild(Instruction, frozen=True, kw_only=True):
    trigger: str  # the instruction's text, heredocs behind it


class HealthCheck(Instruction, frozen=True, kw_only=True):
    """`test` as the image's configuration has it: NONE, CMD and words, or CMD-SHELL and a text. Times in ns."""

    test: tuple[str, ...]
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0
    retries: int = 0


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """FROM and the instructions that follow it."""

    index: int
    start: From
    instructions: tuple[Instruction, ...]

    @property
    def name(self) -> str:
        """Its name, in lower case; "" when it has none."""
        return self.start.stage


class Dockerfile(msgspec.Struct, frozen=True, kw_only=True):
    """A whole file; at least one stage."""

    source: Source
    args: tuple[Arg, ...]  # before the first FROM
    stages: tuple[Stage, ...]
    escape: str = "\\"
    syntax: str = ""  # the directive's value
    check: str = ""
    check_line: int = 0
    empty_continuations: tuple[int, ...] = ()

    def error(
        self, problem: str, at: Instruction | None = None, token: str = "", last: bool = False
    ) -> DockerfileError:
        """An error at this instruction, at `token` in it where that is found."""
        if at is None:
            return self.source.error(problem)
        return self.source.error(problem, at.line, at.end_line, token, last)
