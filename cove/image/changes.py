"""Dockerfile instructions as changes of a configuration (`docker import --change`, `commit --change`).

Pure: text and a configuration's `config` object in, a new object out. The language is cove.dockerfile's; which
instructions there are is moby's (builder/dockerfile, BuildFromConfig).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cove.dockerfile.applying import apply_config, expanded
from cove.dockerfile.errors import DockerfileError
from cove.dockerfile.expand import Budget, Expansion, ExpansionError, expand
from cove.dockerfile.lexer import split_lines
from cove.dockerfile.parser import KEYWORDS, parse_instruction
from cove.dockerfile.words import split_command
from cove.model.errors import Invalid

_ALLOWED = frozenset(
    "CMD ENTRYPOINT ENV EXPOSE HEALTHCHECK LABEL ONBUILD STOPSIGNAL USER VOLUME WORKDIR".split()
)


def apply_changes(config: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The `config` object of an image configuration after the instructions. Invalid."""
    result = dict(config)
    text = "\n".join(changes)
    try:
        lines = split_lines(text.encode(), "--change", lambda *_: ())
    except UnicodeEncodeError:
        raise Invalid("--change: not UTF-8") from None
    escape, _ = lines.directives.get("escape", ("\\", 0))
    budget = Budget()
    cmd_was_set = False
    for line in lines.logical:
        command = split_command(line.text, escape)
        name = command.keyword.upper()
        if name not in _ALLOWED and name in KEYWORDS:
            raise Invalid(f"{name} is not a valid change command")
        if not command.rest and name in _ALLOWED:
            raise Invalid(f"{name} requires at least one argument")
        instruction = parse_instruction(line, lines.source, escape)
        env = dict(item.partition("=")[::2] for item in result.get("Env") or ())

        def replace(word: str, env: dict[str, str] = env) -> Expansion:
            return expand(word, env, budget=budget)

        try:
            apply_config(result, expanded(instruction, replace), cmd_was_set=cmd_was_set)
        except (DockerfileError, ExpansionError) as error:
            problem = error.problem if isinstance(error, DockerfileError) else str(error)
            raise lines.source.error(problem, line.line, line.end_line) from None
        cmd_was_set = cmd_was_set or name == "CMD"
    return result
