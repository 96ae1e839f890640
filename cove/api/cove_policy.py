"""/cove/v1/policy: which images this daemon pulls and runs, and what it says of one of them."""

from __future__ import annotations

from typing import Any

from cove.api.docker.context import Api
from cove.api.http import Request, Response, json_response
from cove.api.router import Route
from cove.engine.admission import outcome_json
from cove.model.errors import Invalid
from cove.signing.policy import Rule
from cove.signing.types import KeyRequirement, Signer


def signer_json(signer: Signer) -> dict[str, Any]:
    if isinstance(signer, KeyRequirement):
        return {"Key": signer.pem, "Name": signer.name}
    return {
        "Identity": signer.subject or signer.subject_pattern,
        "Issuer": signer.issuer or signer.issuer_pattern,
        "Name": signer.name,
        "Log": bool(signer.log_key),
    }


def rule_json(rule: Rule) -> dict[str, Any]:
    return {
        "Scope": rule.scope,
        "Rule": "reject" if rule.reject else "signed" if rule.signers else "accept",
        "SignedBy": [signer_json(signer) for signer in rule.signers],
        "SignedAs": rule.signed_as,
        "Annotations": dict(rule.annotations),
        "AcceptLocal": rule.accept_local,
        "Checks": dict(rule.checks),
    }


async def show(api: Api, request: Request) -> Response:
    """The policy that counts; without one `Rules` is empty, and everything is accepted."""
    admission = api.engine.admission
    policy = admission.policy
    return json_response(
        {
            "Path": admission.path,
            "Version": policy.version if policy else "",
            "Rules": [rule_json(rule) for rule in policy.rules] if policy else [],
        }
    )


async def test(api: Api, request: Request) -> Response:
    """What the policy says of an image that is here, used by the name that the query gives."""
    name = request.query.get("image")
    if not name:
        raise Invalid("image: is missing: name one, e.g. /cove/v1/policy/test?image=debian")
    image = api.engine.images.find_image(name)
    outcomes = await api.engine.admission.judge(image, name)
    return json_response(
        {
            "Image": image.id,
            "Accepted": not any(outcome.problem for outcome in outcomes),
            "Obligations": [outcome_json(outcome) for outcome in outcomes],
        }
    )


ROUTES: tuple[Route[Api], ...] = (
    ("GET", "/cove/v1/policy", show),
    ("GET", "/cove/v1/policy/test", test),
)
