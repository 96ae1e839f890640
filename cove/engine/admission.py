"""Which images may be pulled and run: the policy of this daemon, and what it has decided already.

Asked before an image is pulled, when a container is created, and at every start, restarts by policy included. What was
decided is remembered by image, names and policy, so that a verified image starts at no cost; signatures themselves are
checked in a worker (image/signatures.py).
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cove.image.images import Images
from cove.image.references import Reference, id_prefix, parse_reference
from cove.image.registry import Documents, PullCheck
from cove.image.registry.signatures import fetch_signatures
from cove.model.container import Container
from cove.model.errors import CoveError, Forbidden, Invalid
from cove.model.objects import Image
from cove.model.waiting import NamedLocks
from cove.signing.policy import (
    DOCUMENT_MAX,
    CheckOptions,
    Obligation,
    Policy,
    parse_policy,
    plan_obligations,
    plan_pull,
)
from cove.signing.types import Question, Signature, Signer

_REMEMBERED = 4096
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A further condition that a policy can name. All texts say what is wrong, "" nothing.

    `options` looks at the options when a policy is read; `holds` at an image, with them; `stamp` is another value when
    what was found may not hold any more.
    """

    options: CheckOptions
    holds: Callable[[Image, Any], Awaitable[str]]
    stamp: Callable[[], str] = lambda: ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one obligation; `problem` "" is fulfilled, until `until_s` (0: for good)."""

    obligation: Obligation
    problem: str = ""
    reason: str = ""
    until_s: float = 0


class Admission:
    """See the module. Without a policy everything may run."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._checks: dict[str, Check] = {}
        self._own: Callable[[Image], bool] = lambda image: False
        self._admitted: dict[tuple[object, ...], float] = {}
        self._one_at_a_time = NamedLocks()
        self.policy: Policy | None = None
        self.path = ""

    def register(self, name: str, check: Check) -> None:
        """Let policies ask for a check by this name."""
        self._checks[name] = check

    def except_own(self, is_own: Callable[[Image], bool]) -> None:
        """Have the images that are the daemon's own work run whatever the policy says."""
        self._own = is_own

    async def read(self, path: str) -> Policy | None:
        """The policy of a file, its keys read as well; None for no file. Raises Invalid."""
        if not path:
            return None
        try:
            known = {name: check.options for name, check in self._checks.items()}
            policy = parse_policy(read_policy_file(path), read_policy_file, checks=known)
            await check_keys(self._images, policy.signers)
        except Invalid as error:
            raise Invalid(f"image-policy {path}: {error}") from None
        return policy

    def use(self, path: str, policy: Policy | None) -> None:
        """Go by this policy from here on; containers that run stay."""
        self.path, self.policy = path, policy
        self._admitted.clear()

    async def check(self, image: Image, used: str) -> None:
        """Return if the image may run, used by this name or id. Raises Forbidden with the reason."""
        policy = self.policy
        if policy is None:
            return
        stamps = tuple(self._checks[name].stamp() for name in sorted(policy.checks))
        key = (image.id, used, image.names, image.repo_digests, self._images.signatures.changes, *stamps)
        until_s = self._admitted.get(key)
        if until_s is not None and (not until_s or time.time() < until_s):
            return
        async with self._one_at_a_time.alone(image.id):
            if key in self._admitted and self._admitted[key] == 0:
                return
            outcomes = await self.judge(image, used)
            for outcome in outcomes:
                if outcome.problem:
                    _log.warning("image policy: %s", refusal(used or image.id, outcome))
                    raise Forbidden(refusal(used or image.id, outcome))
            if self.policy is policy:
                if len(self._admitted) >= _REMEMBERED:
                    self._admitted.clear()
                ends = [outcome.until_s for outcome in outcomes if outcome.until_s]
                self._admitted[key] = min(ends, default=0)

    async def check_container(self, container: Container) -> None:
        """The same for all images of a container: its own, and those that it mounts."""
        if self.policy is None:
            return
        if container.image_id:  # a build's step has none: the build has asked for its base
            await self.check(self._images.image_by_id(container.image_id), container.image_name)
        for point in container.mounts:
            if point.image_id:
                await self.check(self._images.image_by_id(point.image_id), point.image)

    async def judge(self, image: Image, used: str) -> list[Outcome]:
        """What becomes of every obligation of an image, by the policy of now."""
        if self.policy is None or self._own(image):
            return []
        obligations = plan_obligations(
            self.policy,
            pulled=_repositories(image.repo_digests),
            named=_repositories(image.names),
            used=used_repository(image, used),
        )
        digests = self._images.image_digests(image)
        signatures: Sequence[Signature] | None = None
        outcomes = []
        for obligation in obligations:
            if obligation.rule.signers and signatures is None:
                signatures = [found for _, found in await self._images.signatures.list(digests)]
            outcome = await self._fulfil(obligation, digests, signatures or ())
            if not outcome.problem:
                outcome = await self._further(outcome, image)
            outcomes.append(outcome)
        return outcomes

    @property
    def pull_check(self) -> PullCheck | None:
        """What a pull has to ask before it fetches a layer; None without a policy."""
        return self._check_pull if self.policy is not None else None

    async def _check_pull(
        self, reference: Reference, digest: str, manifest: bytes, index_digest: str, documents: Documents
    ) -> None:
        """Return if an image of a registry may be pulled; its signatures are kept where any are asked for. Raises
        Forbidden, and what its registry makes of being asked for signatures."""
        policy = self.policy
        if policy is None:
            return
        digests = tuple(one for one in (index_digest, digest) if one)
        [obligation] = plan_pull(policy, reference.name)
        found: list[tuple[str, Signature]] = []
        if obligation.rule.signers:
            found = await fetch_signatures(documents, digests)
        outcome = await self._fulfil(obligation, digests, [signature for _, signature in found])
        if outcome.problem:
            sentence = refusal(reference.familiar, outcome)
            _log.warning("image policy, pull: %s", sentence)
            raise Forbidden(sentence)
        for one in digests:
            await self._images.signatures.hold(one, [s for kept, s in found if kept == one])

    async def _fulfil(
        self, obligation: Obligation, digests: Sequence[str], signatures: Sequence[Signature]
    ) -> Outcome:
        rule = obligation.rule
        if rule.reject:
            return Outcome(obligation=obligation, problem="it is rejected", reason="rejected")
        if not rule.signers:
            return Outcome(obligation=obligation)
        question = Question(
            digests=tuple(digests),
            repositories=obligation.signed_names,
            signers=rule.signers,
            annotations=dict(rule.annotations),
        )
        verdict = await self._images.signatures.verify(question, signatures)
        return Outcome(
            obligation=obligation,
            problem="" if verdict.signed else verdict.sentence,
            reason=verdict.reason,
            until_s=verdict.until_s,
        )

    async def _further(self, outcome: Outcome, image: Image) -> Outcome:
        for name, options in outcome.obligation.rule.checks.items():
            try:
                problem = await self._checks[name].holds(image, options)
            except CoveError as error:
                problem = f"{name} can't be told: {error}"
            if problem:
                return Outcome(obligation=outcome.obligation, problem=problem, reason=name)
        return outcome


def refusal(shown: str, outcome: Outcome) -> str:
    """The sentence for people who are refused an image."""
    rule = outcome.obligation.rule
    place = "by default" if rule.scope == "default" else f"of {rule.scope}"
    if outcome.reason == "rejected":
        return f"image {shown} is refused: the image policy {place} rejects it"
    return f"image {shown} is refused: the image policy {place} isn't fulfilled: {outcome.problem}"


def used_repository(image: Image, used: str) -> str:
    """The repository, in full, that a caller's word for an image names; "" for an id."""
    try:
        reference = parse_reference(used).with_default_tag()
    except CoveError:
        return ""
    if reference.familiar in image.names or reference.digest:
        return reference.name
    prefix = id_prefix(used)
    if prefix and image.id.removeprefix("sha256:").startswith(prefix):
        return ""
    return reference.name


async def check_keys(images: Images, signers: Sequence[Signer]) -> None:
    """Raises Invalid for a key or certificate that can't be read; in a worker."""
    if signers:
        await images.signatures.verify(Question(digests=("",), signers=tuple(signers)), ())


def read_policy_file(path: str) -> str:
    """A policy, or a key that it names: a regular file that nobody but its owner may write. Raises Invalid."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Invalid(f"{path}: {error.strerror}") from None
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Invalid(f"{path}: expected a regular file")
        if found.st_mode & 0o022:
            raise Invalid(
                f"{path}: others than its owner may write it (mode {found.st_mode & 0o7777:04o}): chmod go-w {path}"
            )
        data = file.read(DOCUMENT_MAX + 1)
    if len(data) > DOCUMENT_MAX:
        raise Invalid(f"{path}: is larger than the limit of {DOCUMENT_MAX} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Invalid(f"{path}: byte {error.start} isn't UTF-8") from None


def outcome_json(outcome: Outcome) -> Mapping[str, Any]:
    """An outcome for the API."""
    rule = outcome.obligation.rule
    return {
        "Scope": rule.scope,
        "Repositories": list(outcome.obligation.repositories),
        "Rule": "reject" if rule.reject else "signed" if rule.signers else "accept",
        "SignedAs": list(outcome.obligation.signed_names),
        "Checks": sorted(rule.checks),
        "Fulfilled": not outcome.problem,
        "Reason": outcome.reason,
        "Sentence": outcome.problem,
    }


def _repositories(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(parse_reference(name).name for name in names))
