"""A build's failure: which step, and what a person needs to see of it. No I/O."""

from __future__ import annotations

from cove.build.graph import Step
from cove.model.errors import CoveError, Invalid


class BuildFailed(Invalid):
    """A step failed. `exit_code` is its process's, or 0 when it wasn't a process that failed."""

    code = "build-failed"

    def __init__(
        self, message: str, *, step: int = -1, line: int = 0, text: str = "", exit_code: int = 0
    ) -> None:
        super().__init__(message)
        self.step = step
        self.line = line
        self.text = text
        self.exit_code = exit_code


def failed_at(number: int, step: Step, error: CoveError, prefix: str = "") -> BuildFailed:
    """An error as that of a step."""
    if isinstance(error, BuildFailed):
        return error
    return BuildFailed(f"{prefix}{error}", step=number, line=step.origin.line, text=step.origin.text)


def exit_message(args: tuple[str, ...], code: int) -> str:
    """What Docker says of a RUN that failed."""
    return f"The command '{' '.join(args)}' returned a non-zero code: {code}"
