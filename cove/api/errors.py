"""The one table from the model's error classes to HTTP statuses."""

from __future__ import annotations

from cove.api.http import Response, error_response
from cove.model import errors

STATUS: dict[type[errors.CoveError], int] = {
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Invalid: 400,
    errors.NotModified: 304,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.Unavailable: 503,
    errors.NotImplementedHere: 501,
    errors.HostError: 500,
    errors.CoveError: 500,
}


def status_of(error: errors.CoveError) -> int:
    """The status of the nearest class in the table."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return 500


def response_of(error: errors.CoveError) -> Response:
    """`{"message": …}` with the error's sentence; a 304 has no body."""
    status = status_of(error)
    if status == 304:
        return Response(304)
    return error_response(status, str(error) or error.code)
