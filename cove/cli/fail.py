"""The one exception of the command line: a sentence and an exit status."""

from __future__ import annotations

# docker's: the daemon, or the command line itself, refused.
REFUSED = 125


class CliError(Exception):
    """Ends the command: `str(error)` goes to standard error, `status` becomes the exit status."""

    def __init__(self, message: str, status: int = REFUSED) -> None:
        super().__init__(message)
        self.status = status


class ApiError(CliError):
    """The daemon answered with an error; `http` is its status code."""

    def __init__(self, message: str, http: int) -> None:
        super().__init__(message, 1)
        self.http = http


class Exit(Exception):
    """Ends the command with an exit status and nothing to say."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status
