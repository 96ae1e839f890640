"""Parse a Dockerfile: bytes to typed instructions in stages. Pure.

What is wrong is raised as DockerfileError with its line, column and what would work; nothing is guessed. The rules
are those of BuildKit's frontend (docker/dockerfile 1.x with what its labs channel has made stable).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from cove.dockerfile import instructions as ins
from cove.dockerfile.errors import DockerfileError, Source, suggestion
from cove.dockerfile.expand import ExpansionError
from cove.dockerfile.lexer import Heredoc, LogicalLine, split_lines
from cove.dockerfile.mounts import mount_source, parse_mount
from cove.dockerfile.values import duration_ns
from cove.dockerfile.words import (
    Command,
    find_heredocs,
    heredoc_of,
    json_words,
    split_command,
    split_pairs,
    split_spaces,
    split_words,
)

MAX_STAGES = 500
MAX_WORDS = 2000  # in one instruction
_STAGE_NAME = re.compile(r"[a-z][a-z0-9-_.]*")
_ONBUILD = re.compile(r"(?i)^\s*ONBUILD\s*")
_FRONTEND = re.compile(r"(?:[\w.:-]+/)*dockerfile(?:-upstream)?(?::[\w.-]+)?(?:@sha256:[0-9a-f]{64})?")
_HEREDOC_KEYWORDS = ("ADD", "COPY", "RUN")
_TRUE = ("true", "")


def parse_dockerfile(data: bytes, name: str = "Dockerfile") -> ins.Dockerfile:
    """The whole file, with at least one stage. Raises DockerfileError."""
    lines = split_lines(data, name, _announced_heredocs)
    source = lines.source
    escape, _ = lines.directives.get("escape", ("\\", 0))
    syntax, syntax_line = lines.directives.get("syntax", ("", 0))
    check, check_line = lines.directives.get("check", ("", 0))
    if syntax and not _FRONTEND.fullmatch(syntax.split()[0]):
        problem = (
            f"syntax={syntax}: Cove builds docker/dockerfile's language itself and runs no other frontend"
        )
        raise source.error(problem, syntax_line, token=syntax)
    if not lines.logical:
        raise source.error("no instructions: the file is empty, or has comments only; begin with FROM")
    return ins.Dockerfile(
        source=source,
        escape=escape,
        syntax=syntax,
        check=check,
        check_line=check_line,
        empty_continuations=lines.empty_continuations,
        **_stages(source, [parse_instruction(line, source, escape) for line in lines.logical]),
    )


def parse_trigger(text: str, name: str, escape: str = "\\") -> ins.Instruction:
    """One ONBUILD trigger of a base image. Raises DockerfileError."""
    lines = split_lines(text.encode(errors="replace"), name, _announced_heredocs)
    if len(lines.logical) != 1:
        raise DockerfileError("an ONBUILD trigger must be one instruction", file=name)
    found = parse_instruction(lines.logical[0], lines.source, escape)
    if isinstance(found, ins.From | ins.OnBuild | ins.Maintainer):
        raise lines.source.error(f"{found.name} isn't allowed as an ONBUILD trigger", 1)
    return found


def parse_instruction(line: LogicalLine, source: Source, escape: str) -> ins.Instruction:
    """One instruction. Raises DockerfileError."""
    command = split_command(line.text, escape)
    parse = _PARSERS.get(command.keyword.upper())
    if parse is None:
        problem = f"unknown instruction: {command.keyword[:64]}{suggestion(command.keyword, _PARSERS)}"
        raise source.error(problem, line.line, line.end_line, command.keyword[:64])
    common = {
        "line": line.line, "end_line": line.end_line, "keyword": command.keyword, "text": line.text,
        "comments": line.comments,
    }  # fmt: skip
    try:
        return parse(_Request(line, command, escape), common)
    except (DockerfileError, ExpansionError) as error:
        token = error.text if isinstance(error, DockerfileError) else ""
        problem = error.problem if isinstance(error, DockerfileError) else str(error)
        raise source.error(problem, line.line, line.end_line, token, last="duplicate" in problem) from None


class _Request:
    """An instruction's text on its way to a type."""

    def __init__(self, line: LogicalLine, command: Command, escape: str) -> None:
        self.name, self.rest, self.escape = command.keyword.upper(), command.rest, escape
        self.text, self.heredocs = line.text, line.heredocs
        self._flags = command.flags

    def flags(self, texts: str = "", switches: str = "", lists: str = "") -> dict[str, Any]:
        """The flags by name; each of `lists` may come often. Raises DockerfileError."""
        known = {name: kind for kind, names in zip("tsl", (texts, switches, lists), strict=True)
                 for name in names.split()}  # fmt: skip
        found: dict[str, Any] = {}
        for flag in self._flags:
            written, equals, value = flag.partition("=")
            name = written[2:]
            if name not in known:
                has = ", ".join(f"--{each}" for each in known) or "none"
                hint = suggestion(name, known) or f": {self.name} has {has}"
                raise _at(f"unknown flag: {written}{hint}", written)
            if name in found and known[name] != "l":
                raise _at(f"duplicate flag specified: {written}", written)
            if known[name] == "s":
                if (equals and not value) or value.lower() not in ("true", "false", ""):
                    raise _at(f"expecting boolean value for flag {written}, not: {value}", flag)
                found[name] = value.lower() in _TRUE
            elif not equals:
                raise _at(f"missing a value on flag: {written}, e.g. {written}=…", written)
            elif known[name] == "l":
                found[name] = (*found.get(name, ()), value)
            else:
                found[name] = value
        return found

    def words_or_json(self) -> list[str]:
        """Words at spaces, or those of a JSON array."""
        listed = json_words(self.rest)
        words = split_spaces(self.rest) if listed is None else listed
        return self.bounded(words)

    def bounded(self, words: list[str]) -> list[str]:
        if len(words) > MAX_WORDS:
            raise DockerfileError(f"{self.name}: {len(words)} words are too many: at most {MAX_WORDS}")
        return words

    def one(self) -> str:
        """The whole rest, which must be there."""
        if not self.rest:
            raise DockerfileError(f"{self.name} requires exactly one argument")
        return self.rest

    def at_least_one(self) -> None:
        if not self.rest:
            raise DockerfileError(f"{self.name} requires at least one argument")


def _at(problem: str, token: str) -> DockerfileError:
    """An error whose place is found by `token` later."""
    return DockerfileError(problem, text=token)


def _announced_heredocs(text: str, escape: str) -> tuple[Heredoc, ...]:
    """The heredocs of a line, where the instruction can have any."""
    command = split_command(text, escape)
    while command.keyword.upper() == "ONBUILD":
        command = split_command(command.rest, escape)
    if command.keyword.upper() not in _HEREDOC_KEYWORDS or json_words(command.rest) is not None:
        return ()
    return find_heredocs(text)


def _stages(source: Source, parsed: Sequence[ins.Instruction]) -> dict[str, Any]:
    """The instructions before the first FROM, which are ARG, and the stages."""
    args: list[ins.Arg] = []
    stages: list[tuple[ins.From, list[ins.Instruction]]] = []
    for instruction in parsed:
        if isinstance(instruction, ins.From):
            stages.append((instruction, []))
            if len(stages) > MAX_STAGES:
                raise source.error(f"too many stages: at most {MAX_STAGES}", instruction.line)
        elif stages:
            stages[-1][1].append(instruction)
        elif isinstance(instruction, ins.Arg):
            args.append(instruction)
        else:
            problem = f"no build stage in current context: {instruction.name} before the first FROM (only ARG may be)"
            raise source.error(problem, instruction.line)
    if not stages:
        raise source.error("no build stage: the file has no FROM", parsed[-1].line)
    return {
        "args": tuple(args),
        "stages": tuple(
            ins.Stage(index=index, start=start, instructions=tuple(rest))
            for index, (start, rest) in enumerate(stages)
        ),
    }


# --- one function for each instruction -------------------------------------------------------

_Common = dict[str, Any]


def _from(request: _Request, common: _Common) -> ins.Instruction:
    flags = request.flags("platform")
    words = split_spaces(request.rest)
    if len(words) == 1:
        return ins.From(image=words[0], platform=flags.get("platform", ""), **common)
    if len(words) != 3 or words[1].lower() != "as":
        raise _at(
            "FROM requires either one or three arguments, e.g. FROM debian AS build",
            words[1] if words[1:] else "",
        )
    if not _STAGE_NAME.fullmatch(words[2].lower()):
        raise _at(
            f'invalid name for build stage: "{words[2]}", name can\'t start with a number or contain symbols',
            words[2],
        )
    return ins.From(
        image=words[0],
        stage=words[2].lower(),
        written_stage=words[2],
        written_as=words[1],
        platform=flags.get("platform", ""),
        **common,
    )


def _arg(request: _Request, common: _Common) -> ins.Instruction:
    request.flags()
    words = request.bounded(split_words(request.rest, request.escape))
    if not words:
        raise DockerfileError("ARG requires at least one argument")
    items: list[tuple[str, str | None]] = []
    for word in words:
        name, equals, value = word.partition("=")
        if not name:
            raise _at("ARG names can not be blank", word)
        items.append((name, value if equals else None))
    return ins.Arg(items=tuple(items), **common)


def _pairs(kind: Callable[..., ins.Instruction]) -> Callable[[_Request, _Common], ins.Instruction]:
    def parse(request: _Request, common: _Common) -> ins.Instruction:
        request.flags()
        request.at_least_one()
        pairs = split_pairs(request.name, request.rest, request.escape)
        if not pairs:
            raise DockerfileError(f"{request.name} requires at least one argument")
        if len(pairs) > MAX_WORDS:
            raise DockerfileError(f"{request.name}: {len(pairs)} pairs are too many: at most {MAX_WORDS}")
        return kind(pairs=pairs, **common)

    return parse


def _command_line(request: _Request) -> dict[str, Any]:
    listed = json_words(request.rest)
    if listed is not None:
        return {"words": tuple(request.bounded(listed)), "shell": False}
    return {"words": (request.rest,) if request.rest else (), "shell": True}


def _run(request: _Request, common: _Common) -> ins.Instruction:
    flags = request.flags(texts="network security", lists="mount")
    network, security = flags.get("network", ""), flags.get("security", "")
    if network not in ("", "default", "none", "host"):
        raise _at(f'invalid network mode "{network}": expected default, none or host', network)
    if security not in ("", "sandbox", "insecure"):
        raise _at(f'security "{security}" is not valid: expected sandbox or insecure', security)
    mounts = flags.get("mount", ())
    if len(mounts) > 100:
        raise DockerfileError("too many mounts: at most 100 in one RUN")
    for mount in mounts:
        mount_source(mount)
        if "$" not in mount:
            try:
                parse_mount(mount, lambda value: value)
            except DockerfileError as error:
                raise _at(error.problem, mount) from None
    line = _command_line(request)
    if not line["words"]:
        raise DockerfileError("RUN requires at least one argument, e.g. RUN make")
    return ins.Run(
        **line, heredocs=request.heredocs, mounts=mounts, network=network, security=security, **common
    )


def _cmd(request: _Request, common: _Common) -> ins.Instruction:
    request.flags()
    return ins.Cmd(**_command_line(request), **common)


def _entrypoint(request: _Request, common: _Common) -> ins.Instruction:
    request.flags()
    return ins.Entrypoint(**_command_line(request), **common)


def _copy(request: _Request, common: _Common) -> ins.Instruction:
    flags = request.flags("chown chmod from", "link parents", "exclude")
    return ins.Copy(
        **_sources(request),
        source=flags.get("from", ""),
        owner=flags.get("chown", ""),
        mode=flags.get("chmod", ""),
        link=flags.get("link", False),
        parents=flags.get("parents", False),
        excludes=flags.get("exclude", ()),
        **common,
    )


def _add(request: _Request, common: _Common) -> ins.Instruction:
    flags = request.flags("chown chmod checksum", "link keep-git-dir unpack", "exclude")
    return ins.Add(
        **_sources(request),
        owner=flags.get("chown", ""),
        mode=flags.get("chmod", ""),
        checksum=flags.get("checksum", ""),
        link=flags.get("link", False),
        keep_git=flags.get("keep-git-dir"),
        unpack=flags.get("unpack"),
        excludes=flags.get("exclude", ()),
        **common,
    )


def _sources(request: _Request) -> dict[str, Any]:
    words = request.words_or_json()
    if len(words) < 2:
        raise DockerfileError(
            f"{request.name} requires at least two arguments, but only {'one was' if words else 'none was'} provided. "
            f"Destination could not be determined, e.g. {request.name} . /app"
        )
    *sources, target = words
    if not request.heredocs:
        return {"sources": tuple(sources), "target": target}
    by_name = {heredoc.name: heredoc for heredoc in request.heredocs}
    try:
        announced = [(word, heredoc_of(word)) for word in sources]
        is_heredoc = heredoc_of(target) is not None
    except ExpansionError:
        problem = f"the name of a heredoc in {request.name} has no spaces, e.g. {request.name} <<EOF /file"
        raise _at(problem, "<<") from None
    if is_heredoc:
        raise _at(f"{request.name} cannot accept a heredoc as a destination", target)
    return {
        "sources": tuple(word for word, heredoc in announced if heredoc is None),
        "heredocs": tuple(
            by_name[heredoc.name]
            for _, heredoc in announced
            if heredoc is not None and heredoc.name in by_name
        ),
        "target": target,
    }


def _workdir(request: _Request, common: _Common) -> ins.Instruction:
    request.flags()
    return ins.Workdir(path=request.one(), **common)


def _user(request: _Request, common: _Common) -> ins.Instruction:
    request.flags()
    return ins.User(user=request.one(), **common)


def _maintainer(request: _Request, common: _Common) -> ins.Instruction:
    request.flags()
    return ins.Maintainer(author=request.one(), **common)


def _stop_signal(request: _Request, common: _Common) -> ins.Instruction:
    request.flags()
    return ins.StopSignal(signal=request.one(), **common)


def _expose(request: _Request, common: _Common) -> ins.Instruction:
    request.flags()
    request.at_least_one()
    return ins.Expose(ports=tuple(sorted(request.bounded(split_spaces(request.rest)))), **common)


def _volume(request: _Request, common: _Common) -> ins.Instruction:
    request.flags()
    words = [word.strip() for word in request.words_or_json()]
    if not words:
        raise DockerfileError("VOLUME requires at least one argument")
    if not all(words):
        raise DockerfileError("VOLUME specified can not be an empty string")
    return ins.Volume(paths=tuple(words), **common)


def _shell(request: _Request, common: _Common) -> ins.Instruction:
    request.flags()
    request.at_least_one()
    words = json_words(request.rest)
    if words is None:
        raise DockerfileError(
            'SHELL requires the arguments to be in JSON form, e.g. SHELL ["/bin/bash", "-c"]'
        )
    if not words:
        raise DockerfileError("SHELL requires at least one argument")
    return ins.Shell(words=tuple(request.bounded(words)), **common)


def _on_build(request: _Request, common: _Common) -> ins.Instruction:
    request.flags()
    request.at_least_one()
    inner = split_command(request.rest, request.escape)
    trigger = inner.keyword.upper()
    if trigger == "ONBUILD":
        raise DockerfileError("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("FROM", "MAINTAINER"):
        raise _at(f"{trigger} isn't allowed as an ONBUILD trigger", inner.keyword)
    if trigger not in _PARSERS:
        raise _at(
            f"unknown instruction: {inner.keyword[:64]}{suggestion(trigger, _PARSERS)}", inner.keyword[:64]
        )
    text = _ONBUILD.sub("", request.text)
    heredocs = "".join(f"\n{heredoc.content}{heredoc.name}" for heredoc in request.heredocs)
    return ins.OnBuild(trigger=text + heredocs, **common)


def _health_check(request: _Request, common: _Common) -> ins.Instruction:
    request.at_least_one()
    kind, *rest = request.rest.split(maxsplit=1)
    if kind.upper() == "NONE":
        request.flags()
        if rest:
            raise _at("HEALTHCHECK NONE takes no arguments", rest[0])
        return ins.HealthCheck(test=("NONE",), **common)
    flags = request.flags("interval timeout start-period start-interval retries")
    if kind.upper() != "CMD":
        raise _at(f'Unknown type "{kind[:64]}" in HEALTHCHECK (try CMD)', kind[:64])
    listed = json_words(rest[0]) if rest else None
    if not rest or listed == []:
        raise DockerfileError(
            "Missing command after HEALTHCHECK CMD, e.g. HEALTHCHECK CMD curl -f http://localhost/"
        )
    retries = flags.get("retries", "") or "0"
    if not (retries.isascii() and retries.isdecimal() and len(retries) < 10):
        raise _at(f"HEALTHCHECK: --retries={retries}: expected a number that isn't negative, e.g. 3", retries)

    def times(name: str) -> int:
        text = flags.get(name, "")
        try:
            return duration_ns(f"HEALTHCHECK: --{name}", text) if text else 0
        except DockerfileError as error:
            raise _at(error.problem, f"--{name}") from None

    return ins.HealthCheck(
        test=("CMD", *listed) if listed is not None else ("CMD-SHELL", rest[0]),
        interval_ns=times("interval"),
        timeout_ns=times("timeout"),
        start_period_ns=times("start-period"),
        start_interval_ns=times("start-interval"),
        retries=int(retries),
        **common,
    )


_PARSERS: dict[str, Callable[[_Request, _Common], ins.Instruction]] = {
    "ADD": _add,
    "ARG": _arg,
    "CMD": _cmd,
    "COPY": _copy,
    "ENTRYPOINT": _entrypoint,
    "ENV": _pairs(ins.Env),
    "EXPOSE": _expose,
    "FROM": _from,
    "HEALTHCHECK": _health_check,
    "LABEL": _pairs(ins.Label),
    "MAINTAINER": _maintainer,
    "ONBUILD": _on_build,
    "RUN": _run,
    "SHELL": _shell,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
KEYWORDS = tuple(_PARSERS)


def without_place(instruction: ins.Instruction) -> ins.Instruction:
    """The instruction without where it was written: what two equal ones have in common."""
    return msgspec.structs.replace(instruction, line=0, end_line=0, text="", comments=())
