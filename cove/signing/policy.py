"""Policies: which images may be pulled and run, by their repositories. Pure; files are read by who is handed in.

    {"default": "reject",
     "scopes": {"docker.io/library": "accept",
                "registry.example.org/team": {"signed-by": [{"key-file": "/etc/cove/release.pub"}]}}}

A scope is a registry's host or a repository's full name up to a slash; the longest that fits a repository counts. What
grants, and what only restricts, is `plan_obligations`: a name is given to an image by anybody, where it was pulled from
is not, so a name alone never makes an image acceptable.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from cove.model.errors import Invalid
from cove.signing.pem import parse_pem
from cove.signing.types import IdentityRequirement, KeyRequirement, Signer

DOCUMENT_MAX = 1 << 20
SCOPES_MAX = 1000
SIGNERS_MAX = 16
DEFAULT = "default"
_SCOPE = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::[0-9]{1,5})?(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
)
_CHECK = re.compile(r"[a-z][a-z0-9-]{0,40}")

ReadFile = Callable[[str], str]
CheckOptions = Callable[[Any], str]  # why options of a check are wrong, or ""
_NO_CHECKS: Mapping[str, CheckOptions] = {}


class _SignerDocument(msgspec.Struct, forbid_unknown_fields=True, rename="kebab"):
    key: str = ""
    key_file: str = ""
    ca: str = ""
    ca_file: str = ""
    identity: str = ""
    identity_pattern: str = ""
    issuer: str = ""
    issuer_pattern: str = ""
    log_key: str = ""
    log_key_file: str = ""


class _RuleDocument(msgspec.Struct, forbid_unknown_fields=True, rename="kebab"):
    signed_by: list[_SignerDocument] | None = None
    signed_as: str = "repository"
    annotations: dict[str, str] | None = None
    accept_local: bool = False
    checks: dict[str, Any] | None = None


class _Document(msgspec.Struct, forbid_unknown_fields=True, rename="kebab"):
    default: Literal["accept", "reject"] | _RuleDocument
    scopes: dict[str, Literal["accept", "reject"] | _RuleDocument] | None = None
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a scope asks of its images. Without signers they are accepted, or rejected."""

    scope: str  # "default", or a prefix of repositories' names
    reject: bool = False
    signers: tuple[Signer, ...] = ()
    signed_as: str = "repository"  # "any", or the prefix that stands for the scope in signatures
    annotations: Mapping[str, str] = field(default_factory=dict)
    accept_local: bool = False  # a name is enough
    checks: Mapping[str, Any] = field(default_factory=dict)  # further conditions by name, with their options

    def signed_names(self, repository: str) -> tuple[str, ...]:
        """The repositories as which an image of this one may be signed; () for any."""
        if self.signed_as == "any":
            return ()
        if self.signed_as == "repository":
            return (repository,)
        return (self.signed_as + repository.removeprefix(self.scope),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy; `version` is another one whenever anything in it is, files it names included."""

    default: Rule
    scopes: Mapping[str, Rule]
    version: str

    def find(self, repository: str) -> Rule:
        """The rule of the longest scope that a repository's full name is in."""
        parts = repository.split("/")
        for count in range(len(parts), 0, -1):
            rule = self.scopes.get("/".join(parts[:count]))
            if rule is not None:
                return rule
        return self.default

    @property
    def checks(self) -> frozenset[str]:
        """The further conditions that any rule has."""
        return frozenset(name for rule in self.rules for name in rule.checks)

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (self.default, *self.scopes.values())

    @property
    def signers(self) -> tuple[Signer, ...]:
        return tuple(signer for rule in self.rules for signer in rule.signers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Obligation:
    """One thing that an image has to fulfil: a rule, as one of these repositories (none: it has no name)."""

    rule: Rule
    repositories: tuple[str, ...] = ()

    @property
    def signed_names(self) -> tuple[str, ...]:
        """The repositories of which a signature has to name one; () for any."""
        names = [self.rule.signed_names(repository) for repository in self.repositories]
        return tuple(name for one in names for name in one) if all(names) else ()


def parse_policy(
    text: str, read_file: ReadFile, *, checks: Mapping[str, CheckOptions] = _NO_CHECKS
) -> Policy:
    """Raises Invalid, naming the field. `checks` are those that are known here, each with what looks at its options."""
    if len(text) > DOCUMENT_MAX:
        raise Invalid(f"a policy has up to {DOCUMENT_MAX} characters, this one has {len(text)}")
    try:
        found = msgspec.json.decode(text, type=_Document)
    except msgspec.ValidationError as error:
        raise Invalid(str(error)) from None
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Invalid(f"it isn't JSON: {error}") from None
    documents = found.scopes or {}
    if len(documents) > SCOPES_MAX:
        raise Invalid(f"scopes: {len(documents)} of them; the limit is {SCOPES_MAX}")
    scopes = {}
    for scope, document in documents.items():
        if not _SCOPE.fullmatch(scope) or not _is_host(scope.partition("/")[0]):
            raise Invalid(
                f"scopes: {scope[:100]!r} isn't a registry's host or a repository's full name, "
                "e.g. docker.io/library or registry.example.org:5000/team"
            )
        scopes[scope] = _rule(scope, f"scopes.{scope}", document, read_file, checks)
    default = _rule(DEFAULT, DEFAULT, found.default, read_file, checks)
    content = msgspec.json.encode(
        [text, [msgspec.to_builtins(s) for r in (default, *scopes.values()) for s in r.signers]]
    )
    return Policy(default=default, scopes=scopes, version=hashlib.sha256(content).hexdigest())


def plan_obligations(
    policy: Policy, *, pulled: Sequence[str], named: Sequence[str], used: str
) -> list[Obligation]:
    """What an image has to fulfil to run: all of these.

    `pulled` are the repositories that it was pulled from or pushed to, by digest; `named` those that its tags are of;
    `used` the one that the caller wrote, "" for an id. All in full.

    - Where it was pulled from decides: the rule of each such repository that is in a scope. That the same bytes are in
      a repository of no scope as well, where somebody pushed them perhaps, takes nothing away.
    - A name restricts: a scope that rejects, or asks for signatures, does so under whatever name an image is used or
      kept; a good signature names the repository, so it grants as well. A scope that accepts grants nothing by a name
      alone, unless it says `accept-local`.
    - An image that nothing granted is the default's: as it is called, or by its id as one that it was pulled from.
    """
    found: dict[tuple[str, ...], Obligation] = {}

    def add(rule: Rule, *repositories: str) -> None:
        found.setdefault((rule.scope, *repositories), Obligation(rule=rule, repositories=repositories))

    granted = False
    for repository in pulled:
        if (rule := policy.find(repository)) is not policy.default:
            add(rule, repository)
            granted = granted or not rule.reject
    names = tuple(dict.fromkeys((used, *named) if used else named))
    for repository in names:
        rule = policy.find(repository)
        if rule is policy.default:
            continue
        if rule.reject:
            add(rule, repository)
        elif rule.signers or rule.accept_local:
            add(rule, repository)
            granted = True
    if not granted:
        add(policy.default, *((used,) if used else pulled or names))
    return list(found.values())


def plan_pull(policy: Policy, repository: str) -> list[Obligation]:
    """What an image of a registry has to fulfil before a layer of it is fetched."""
    return [Obligation(rule=policy.find(repository), repositories=(repository,))]


def _is_host(text: str) -> bool:
    return text == "localhost" or any(mark in text for mark in ".:")


def _rule(
    scope: str,
    where: str,
    document: Literal["accept", "reject"] | _RuleDocument,
    read_file: ReadFile,
    known: Mapping[str, CheckOptions],
) -> Rule:
    if isinstance(document, str):
        return Rule(scope=scope, reject=document == "reject")
    signed_as = document.signed_as
    if signed_as not in ("repository", "any") and (scope == DEFAULT or not _SCOPE.fullmatch(signed_as)):
        raise Invalid(
            f"{where}.signed-as: expected repository, any, or (in a scope) the name that stands for the scope in "
            f"signatures, got {signed_as[:100]!r}"
        )
    if document.signed_by is not None and not 0 < len(document.signed_by) <= SIGNERS_MAX:
        raise Invalid(
            f"{where}.signed-by: expected 1 to {SIGNERS_MAX} signers, got {len(document.signed_by)}"
        )
    for name, options in (document.checks or {}).items():
        if not _CHECK.fullmatch(name) or name not in known:
            hint = f"there are {', '.join(sorted(known))}" if known else "there are none"
            raise Invalid(f"{where}.checks: this release has no check {name[:60]!r}; {hint}")
        if problem := known[name](options):
            raise Invalid(f"{where}.checks.{name}: {problem}")
    return Rule(
        scope=scope,
        signers=tuple(
            _signer(one, f"{where}.signed-by[{number}]", read_file)
            for number, one in enumerate(document.signed_by or ())
        ),
        signed_as=signed_as,
        annotations=document.annotations or {},
        accept_local=document.accept_local,
        checks=document.checks or {},
    )


def _signer(document: _SignerDocument, where: str, read_file: ReadFile) -> Signer:
    key = _text(document.key, document.key_file, f"{where}.key", read_file)
    ca = _text(document.ca, document.ca_file, f"{where}.ca", read_file)
    log = _text(document.log_key, document.log_key_file, f"{where}.log-key", read_file)
    name = document.key_file or document.ca_file
    whose = (document.identity, document.identity_pattern, document.issuer, document.issuer_pattern, ca, log)
    if key:
        if any(whose):
            raise Invalid(f"{where}: either a key, or a ca with an identity, not both")
        return KeyRequirement(pem=key, name=name)
    if not ca:
        raise Invalid(f"{where}: expected key-file or key (PEM), or ca-file or ca with an identity")
    if not (document.identity or document.identity_pattern):
        raise Invalid(f"{where}.identity: is missing: say whose certificates count, e.g. ci@example.org")
    return IdentityRequirement(
        roots=ca,
        subject=document.identity,
        subject_pattern=document.identity_pattern,
        issuer=document.issuer,
        issuer_pattern=document.issuer_pattern,
        log_key=log,
        name=name,
    )


def _text(inline: str, path: str, where: str, read_file: ReadFile) -> str:
    """A PEM text, from the policy or from the file that it names."""
    if inline and path:
        raise Invalid(f"{where} and {where}-file: give one of them")
    if not path:
        if inline:
            parse_pem(inline, where)
        return inline
    if not path.startswith("/"):
        raise Invalid(f"{where}-file: {path[:100]!r}: expected an absolute path, e.g. /etc/cove/release.pub")
    text = read_file(path)
    parse_pem(text, f"{where}-file {path}")
    return text
