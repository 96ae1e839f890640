"""The history texts of an image, as BuildKit writes them. Pure.

"RUN |1 V=2 /bin/sh -c make # buildkit", "COPY a b # buildkit", "ENV A=1", "CMD [\"sh\"]": the same words, because
tools read them (docker history, scanners that rebuild a Dockerfile from an image).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cove.dockerfile import instructions as ins
from cove.dockerfile.applying import command_words

COMMENT = "buildkit.dockerfile.v0"


def run_text(words: Sequence[str], args: Mapping[str, str]) -> str:
    """RUN: the arguments in scope, how many they are, and the command."""
    scope = [f"{name}={value}" for name, value in args.items()]
    counted = [f"|{len(scope)}", *scope] if scope else []
    return f"RUN {' '.join([*counted, *words])} # buildkit"


def copy_text(instruction: ins.Copy) -> str:
    """COPY and ADD, expanded."""
    flags = ["--parents"] if instruction.parents else []
    flags += [f"--chown={instruction.owner}"] if instruction.owner else []
    flags += [f"--chmod={instruction.mode}"] if instruction.mode else []
    name = "ADD" if isinstance(instruction, ins.Add) else "COPY"
    heredocs = [f"<<{heredoc.name}" for heredoc in instruction.heredocs]
    return f"{' '.join([name, *flags, *instruction.sources, *heredocs, instruction.target])} # buildkit"


def config_text(config: Mapping[str, object], instruction: ins.Instruction) -> str:
    """An expanded instruction that only changes the configuration; "" for one that leaves no history."""
    if isinstance(instruction, ins.Env | ins.Label):
        name = "ENV" if isinstance(instruction, ins.Env) else "LABEL"
        return " ".join([name, *(f"{pair.name}={pair.value}" for pair in instruction.pairs)])
    if isinstance(instruction, ins.Cmd | ins.Entrypoint):
        name = "CMD" if isinstance(instruction, ins.Cmd) else "ENTRYPOINT"
        return f"{name} {_quoted(command_words(dict(config), instruction))}"
    if isinstance(instruction, ins.User):
        return f"USER {instruction.user}"
    if isinstance(instruction, ins.Expose):
        return f"EXPOSE {_listed(instruction.ports)}"
    if isinstance(instruction, ins.Volume):
        return f"VOLUME {_listed(instruction.paths)}"
    if isinstance(instruction, ins.Shell):
        return f"SHELL {_listed(instruction.words)}"
    if isinstance(instruction, ins.StopSignal):
        return f"STOPSIGNAL {instruction.signal}"
    if isinstance(instruction, ins.Maintainer):
        return f"MAINTAINER {instruction.author}"
    if isinstance(instruction, ins.HealthCheck):
        return _health(instruction)
    return ""


def arg_text(items: Sequence[tuple[str, str | None]]) -> str:
    """ARG, with the values that apply."""
    return " ".join(["ARG", *(name if value is None else f"{name}={value}" for name, value in items)])


def _listed(words: Sequence[str]) -> str:
    return f"[{' '.join(words)}]"


def _quoted(words: Sequence[str]) -> str:
    """A list as Go's %q has it."""
    return _listed([_quote(word) for word in words])


_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\a": "\\a", "\b": "\\b", "\f": "\\f",
            "\v": "\\v"}  # fmt: skip


def _quote(text: str) -> str:
    out = []
    for char in text:
        if char in _ESCAPES:
            out.append(_ESCAPES[char])
        elif char.isprintable():
            out.append(char)
        else:
            code = ord(char)
            out.append(
                f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
            )
    return f'"{"".join(out)}"'


def _health(instruction: ins.HealthCheck) -> str:
    fields = {
        "Test": _listed(instruction.test),
        "Interval": _go_duration(instruction.interval_ns),
        "Timeout": _go_duration(instruction.timeout_ns),
        "StartPeriod": _go_duration(instruction.start_period_ns),
        "StartInterval": _go_duration(instruction.start_interval_ns),
        "Retries": str(instruction.retries),
    }
    return f"HEALTHCHECK {{{' '.join(f'{name}:{value}' for name, value in fields.items())}}}"


def _go_duration(nanoseconds: int) -> str:
    """As Go prints a time.Duration: 1m30s, 1.5s, 100ms."""
    if nanoseconds == 0:
        return "0s"
    if nanoseconds < 10**9:
        return f"{nanoseconds / 10**6:f}".rstrip("0").rstrip(".") + "ms"
    seconds, rest = divmod(nanoseconds, 10**9)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    text = f"{seconds}{fraction}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text
