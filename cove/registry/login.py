"""The registry's door: who a request comes from, and what is said to those who may not do what they ask for."""

from __future__ import annotations

from cove.api.http import Request, Response
from cove.registry.access import Caller, Policy
from cove.registry.refusals import Refused, not_found


class Login:
    """Identifies callers, and applies the policy."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def closed(self) -> bool:
        return self._policy.users and not self._policy.anonymous

    async def identify(self, request: Request, client: str) -> Caller:
        """Who asks. Refused: 401."""
        return Caller()

    def may(self, caller: Caller, action: str, name: str) -> bool:
        return self._policy.may(caller, action, name)

    def refuse(self, request: Request, caller: Caller, action: str, name: str) -> Refused:
        """403: nobody can log in here."""
        return Refused(
            403,
            "DENIED",
            f"nobody may {action or 'read'} {name or 'here'} without a login, and there are no users",
        )

    async def serve_token(self, request: Request, client: str) -> Response:
        """Refused: there is no token server."""
        raise not_found("this registry gives out no tokens")
