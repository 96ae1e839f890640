"""The lines of a Dockerfile: directives, comments, continuations and heredocs. Pure.

From bytes to *logical lines*: one instruction each, continuations joined, with the heredocs that belong to it. What
an instruction means is parser.py's. The rules are BuildKit's (docs/dockerfile.md; docs.docker.com/reference/dockerfile,
"Format", "Parser directives", "Here-Documents"). Bounds: a file of 1 MiB (BuildKit's line of 64 KiB would forbid
heredocs that people have; a file of that size isn't written by hand), 10,000 instructions.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from cove.dockerfile.errors import DockerfileError, Source

MAX_BYTES = 1 << 20
MAX_INSTRUCTIONS = 10_000
_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*$")
_DIRECTIVES = ("syntax", "escape", "check")


class Heredoc(msgspec.Struct, frozen=True, kw_only=True):
    """One here-document of an instruction."""

    name: str
    content: str = ""  # as written, with the tabs that `chomp` takes away
    expand: bool = True  # the name has no quotes: variables in the content are replaced
    chomp: bool = False  # <<-: tabs at the beginning of lines go

    def text(self) -> str:
        """The content as the instruction gets it."""
        return re.sub(r"(?m)^\t+", "", self.content) if self.chomp else self.content


class LogicalLine(msgspec.Struct, frozen=True, kw_only=True):
    """One instruction: the text in one line, and the lines that it takes in the file, heredocs included."""

    text: str
    line: int
    end_line: int
    comments: tuple[str, ...] = ()  # the comments directly above it, without `#`
    heredocs: tuple[Heredoc, ...] = ()


class Lines(msgspec.Struct, frozen=True, kw_only=True):
    source: Source
    logical: tuple[LogicalLine, ...]
    directives: dict[str, tuple[str, int]]  # syntax, escape, check: the value and its line
    empty_continuations: tuple[int, ...]  # lines that are empty inside a continuation


# Which heredocs an instruction announces: its text and the escape character in; errors are plain Invalid.
FindHeredocs = Callable[[str, str], tuple[Heredoc, ...]]


def decode_lines(data: bytes, name: str) -> Source:
    """The text as lines without their ends. Raises DockerfileError: too large, or not UTF-8."""
    if len(data) > MAX_BYTES:
        raise DockerfileError(f"{len(data)} bytes are too many: at most {MAX_BYTES}", file=name)
    lines: list[str] = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            text = raw.decode(errors="replace")
            if not text.lstrip().startswith("#"):
                column = len(raw[: error.start].decode(errors="replace")) + 1
                raise DockerfileError(
                    "not UTF-8: save the file in that encoding",
                    file=name,
                    line=number,
                    column=column,
                    text=text,
                ) from None
        if "\0" in text:
            at = text.index("\0")
            raise DockerfileError("a NUL byte", file=name, line=number, column=at + 1, text=text)
        lines.append(text)
    if lines and not lines[-1]:
        lines.pop()  # what follows the last end of line is no line
    return Source(name, tuple(lines))


def split_lines(data: bytes, name: str, find_heredocs: FindHeredocs) -> Lines:
    """The logical lines of a Dockerfile. Raises DockerfileError."""
    return _Splitter(decode_lines(data, name), find_heredocs).run()


class _Splitter:
    """One pass over the lines; `_at` is the index of the next one."""

    def __init__(self, source: Source, find_heredocs: FindHeredocs) -> None:
        self._source, self._find = source, find_heredocs
        self._at = 0
        self._directives: dict[str, tuple[str, int]] = {}
        self._in_head = True  # directives may still follow
        self._escape = "\\"
        self._empty: list[int] = []

    def run(self) -> Lines:
        logical: list[LogicalLine] = []
        comments: list[str] = []
        lines = self._source.lines
        while self._at < len(lines):
            line = lines[self._at].rstrip("\r").lstrip()
            self._at += 1
            if self._directive(line):
                continue
            if line.startswith("#"):
                comment = line[1:].strip()
                comments = [*comments, comment] if comment else []
                continue
            if not line:
                comments = []
                continue
            start = self._at
            text = self._joined(line)
            if not text.strip():
                continue
            logical.append(self._instruction(text, start, comments))
            comments = []
            if len(logical) > MAX_INSTRUCTIONS:
                raise self._source.error(f"too many instructions: at most {MAX_INSTRUCTIONS}", start)
        return Lines(
            source=self._source,
            logical=tuple(logical),
            directives=self._directives,
            empty_continuations=tuple(self._empty),
        )

    def _directive(self, line: str) -> bool:
        match = _DIRECTIVE.match(line) if self._in_head else None
        name = match[1].lower() if match else ""
        if match is None or name not in _DIRECTIVES:
            self._in_head = False
            return False
        if name in self._directives:
            raise self._source.error(f"only one {name} parser directive can be used", self._at)
        self._directives[name] = (match[2], self._at)
        if name == "escape":
            if match[2] not in ("\\", "`"):
                problem = f"invalid escape token '{match[2]}': expected \\ or `"
                raise self._source.error(problem, self._at, token=match[2], last=True)
            self._escape = match[2]
        return True

    def _joined(self, line: str) -> str:
        """The line with those that continue it, without comments and empty ones between them."""
        parts = []
        lines = self._source.lines
        line, more = self._continuation(line)
        parts.append(line)
        while more and self._at < len(lines):
            line = lines[self._at].rstrip("\r")
            self._at += 1
            stripped = line.lstrip()
            if stripped.startswith("#"):
                continue
            if not stripped:
                self._empty.append(self._at)
                continue
            line, more = self._continuation(line)
            parts.append(line)
        return "".join(parts)

    def _continuation(self, line: str) -> tuple[str, bool]:
        """The line without the escape character at its end, and whether there was one that isn't escaped."""
        end = line.rstrip(" \t")
        if end.endswith(self._escape) and not end.endswith(2 * self._escape):
            return end[:-1], True
        return line, False

    def _instruction(self, text: str, start: int, comments: list[str]) -> LogicalLine:
        end_of_text = self._at
        try:
            announced = self._find(text, self._escape) if "<<" in text else ()
        except DockerfileError as error:
            raise self._source.error(error.problem, start, end_of_text, "<<") from None
        heredocs = tuple(self._heredoc(heredoc, start, end_of_text) for heredoc in announced)
        return LogicalLine(
            text=text.strip(), line=start, end_line=self._at, comments=tuple(comments), heredocs=heredocs
        )

    def _heredoc(self, heredoc: Heredoc, start: int, end_of_text: int) -> Heredoc:
        lines = self._source.lines
        for at in range(self._at, len(lines)):
            line = lines[at].rstrip("\r")
            if (line.lstrip("\t") if heredoc.chomp else line) == heredoc.name:
                content = "".join(f"{text}\n" for text in lines[self._at : at])
                self._at = at + 1
                return msgspec.structs.replace(heredoc, content=content)
        problem = f"unterminated heredoc: no line {heredoc.name!r} follows"
        raise self._source.error(problem, start, end_of_text, heredoc.name)
