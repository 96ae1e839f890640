"""Print instructions as a Dockerfile that means the same. Pure.

For `parse(print(x)) == x`, which tests hold the parser to: upper case, one line
for each instruction, flags in one order, heredocs as they are.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from cove.dockerfile import instructions as ins


def print_dockerfile(dockerfile: ins.Dockerfile) -> str:
    """The whole file, its directives first."""
    directives = [("syntax", dockerfile.syntax), ("check", dockerfile.check)]
    if dockerfile.escape != "\\":
        directives.append(("escape", dockerfile.escape))
    out = [f"# {name}={value}" for name, value in directives if value]
    every: list[ins.Instruction] = [*dockerfile.args]
    for stage in dockerfile.stages:
        every += [stage.start, *stage.instructions]
    return "\n".join([*out, *(print_instruction(each) for each in every)]) + "\n"


def print_instruction(instruction: ins.Instruction) -> str:
    """One instruction, with its heredocs below it."""
    body = " ".join(filter(None, [*map(_flag, _flags(instruction)), *_arguments(instruction)]))
    heredocs = instruction.heredocs if isinstance(instruction, ins.Run | ins.Copy) else ()
    tail = "".join(f"\n{heredoc.content}{heredoc.name}" for heredoc in heredocs)
    return f"{instruction.name} {body}".rstrip() + tail


def _flag(flag: str) -> str:
    """A flag in quotes where it needs them; it lost them when it was read."""
    if not any(char.isspace() or char in "\"'\\`" for char in flag):
        return flag
    # In quotes the other quote is a character like others; the escape character isn't used here, it can be either.
    return "".join(
        f"'{char}'" if char == '"' or char.isspace() else f'"{char}"' if char == "'" else char
        for char in flag
    )


def _flags(at: ins.Instruction) -> Iterable[str]:
    if isinstance(at, ins.From):
        yield from _texts({"platform": at.platform})
    elif isinstance(at, ins.Run):
        yield from (f"--mount={mount}" for mount in at.mounts)
        yield from _texts({"network": at.network, "security": at.security})
    elif isinstance(at, ins.Copy):
        yield from _texts({"from": at.source, "chown": at.owner, "chmod": at.mode})
        if isinstance(at, ins.Add):
            yield from _texts({"checksum": at.checksum})
            switches = {"link": at.link or None, "keep-git-dir": at.keep_git, "unpack": at.unpack}
        else:
            switches = {"link": at.link or None, "parents": at.parents or None}
        yield from (f"--{name}={str(value).lower()}" for name, value in switches.items() if value is not None)
        yield from (f"--exclude={pattern}" for pattern in at.excludes)
    elif isinstance(at, ins.HealthCheck):
        times = {
            "interval": at.interval_ns,
            "timeout": at.timeout_ns,
            "start-period": at.start_period_ns,
            "start-interval": at.start_interval_ns,
        }
        yield from (f"--{name}={value}ns" for name, value in times.items() if value)
        if at.retries:
            yield f"--retries={at.retries}"


def _texts(flags: dict[str, str]) -> Iterable[str]:
    return (f"--{name}={value}" for name, value in flags.items() if value)


def _arguments(at: ins.Instruction) -> Iterable[str]:
    if isinstance(at, ins.From):
        return [at.image, *(["AS", at.stage] if at.stage else [])]
    if isinstance(at, ins.Arg):
        return [name if value is None else f"{name}={value}" for name, value in at.items]
    if isinstance(at, ins.Env | ins.Label):
        return [
            f"{pair.name} {pair.value}" if pair.legacy else f"{pair.name}={pair.value}" for pair in at.pairs
        ]
    if isinstance(at, ins.CommandLine):
        # A text that begins like a flag comes behind --.
        text = at.words[0] if at.shell and at.words else ""
        return [*(["--"] if text.startswith("--") else []), text] if at.shell else [_json(at.words)]
    if isinstance(at, ins.Copy):
        announced = [f"<<{'-' * heredoc.chomp}{_heredoc_name(heredoc)}" for heredoc in at.heredocs]
        plain = [*at.sources, *announced, at.target]
        return plain if at.heredocs else [_json(plain)]
    if isinstance(at, ins.Volume):
        return [_json(at.paths)]
    if isinstance(at, ins.Shell):
        return [_json(at.words)]
    if isinstance(at, ins.Expose):
        return at.ports
    if isinstance(at, ins.HealthCheck):
        kind, *words = at.test
        return {"NONE": ["NONE"], "CMD": ["CMD", _json(words)]}.get(kind, ["CMD", *words])
    return [
        getattr(at, field)
        for kind, field in (
            (ins.Workdir, "path"),
            (ins.User, "user"),
            (ins.StopSignal, "signal"),
            (ins.Maintainer, "author"),
            (ins.OnBuild, "trigger"),
        )
        if isinstance(at, kind)
    ]


def _heredoc_name(heredoc: ins.Heredoc) -> str:
    return heredoc.name if heredoc.expand else f"'{heredoc.name}'"


def _json(words: Iterable[str]) -> str:
    return msgspec.json.encode(list(words)).decode()
