"""The errors of Cove: one class for each thing a caller can do about it.

Errors carry facts and one sentence a person can act on. The API maps classes to HTTP codes
in one table of its own; nothing below the API knows HTTP.
"""

from __future__ import annotations


class CoveError(Exception):
    """Root of every error that Cove raises on purpose; `code` is stable across releases."""

    code = "error"


class NotFound(CoveError):
    """A named object doesn't exist: name another one, or create it."""

    code = "not-found"


class Conflict(CoveError):
    """The object's state, or another object, forbids the call: change that first."""

    code = "conflict"


class Invalid(CoveError):
    """The caller's input is wrong: send other input."""

    code = "invalid"


class NotModified(CoveError):
    """The object is already in the state that was asked for: nothing to do."""

    code = "not-modified"


class Forbidden(CoveError):
    """The operation is refused by configuration or policy."""

    code = "forbidden"


class Unauthorized(CoveError):
    """Somebody else, a registry, doesn't know the caller: give other credentials."""

    code = "unauthorized"


class Unavailable(CoveError):
    """This host or build can't do it: the sentence names the missing feature."""

    code = "unavailable"


class NotImplementedHere(CoveError):
    """A part of the API that this release doesn't have."""

    code = "not-implemented"


class HostError(CoveError):
    """The host failed (disk full, kernel refused, process died): the sentence says where."""

    code = "host-error"
