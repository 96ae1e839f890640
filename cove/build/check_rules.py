"""The checks' names, addresses and options: which are on, and by whom they are skipped. Pure.

`# check=skip=A,B;experimental=C;error=true` at the top of the file, the same behind `--build-arg
BUILDKIT_DOCKERFILE_CHECK=`, and `# check=skip=A` directly above one instruction
(docs.docker.com/build/checks). Rules that Docker doesn't have are experimental, so that no file that passes there
fails here.
"""

from __future__ import annotations

import re

import msgspec

from cove.dockerfile import instructions as ins
from cove.dockerfile.errors import DockerfileError
from cove.dockerfile.findings import Finding

_URL = "https://docs.docker.com/go/dockerfile/rule/"
OVERRIDE = "BUILDKIT_DOCKERFILE_CHECK"  # the build argument
RULES = (
    "StageNameCasing", "FromAsCasing", "NoEmptyContinuation", "ConsistentInstructionCasing", "DuplicateStageName",
    "ReservedStageName", "JSONArgsRecommended", "MaintainerDeprecated", "UndefinedArgInFrom", "WorkdirRelativePath",
    "UndefinedVar", "MultipleInstructionsDisallowed", "LegacyKeyValueFormat", "InvalidBaseImagePlatform",
    "RedundantTargetPlatform", "SecretsUsedInArgOrEnv", "InvalidDefaultArgInFrom", "FromPlatformFlagConstDisallowed",
    "CopyIgnoredFile", "ExposeProtoCasing", "ExposeInvalidFormat",
)  # fmt: skip
OWN_RULES = ("RemoteAddWithoutChecksum", "ChangeDirectoryWithoutEffect")
EXPERIMENTAL = ("InvalidDefinitionDescription", *OWN_RULES)


class CheckOptions(msgspec.Struct, frozen=True):
    """Which rules count."""

    skip: frozenset[str] = frozenset()  # "all" is every rule
    experimental: frozenset[str] = frozenset()
    error: bool = False  # findings fail the build

    def wants(self, rule: str) -> bool:
        if rule in EXPERIMENTAL:
            return rule in self.experimental or "all" in self.experimental
        return rule not in self.skip and "all" not in self.skip

    def joined(self, other: CheckOptions) -> CheckOptions:
        """With what a comment above an instruction adds."""
        return CheckOptions(self.skip | other.skip, self.experimental | other.experimental, self.error)


def parse_options(text: str) -> CheckOptions:
    """The value of the directive. Raises DockerfileError."""
    found: dict[str, frozenset[str]] = {}
    error = False
    for part in filter(None, map(str.strip, text.split(";"))):
        key, equals, value = part.partition("=")
        key, value = key.strip(), value.strip()
        if not equals or key not in ("skip", "experimental", "error"):
            raise DockerfileError(
                f'invalid check option "{part[:80]}": expected skip=RULE,…, experimental=RULE,… or error=true'
            )
        if key == "error":
            if value.lower() not in ("true", "false", "1", "0"):
                raise DockerfileError(
                    f'invalid check option "{part[:80]}": expected error=true or error=false'
                )
            error = value.lower() in ("true", "1")
        else:
            found[key] = frozenset(filter(None, map(str.strip, value.split(","))))
    none: frozenset[str] = frozenset()
    return CheckOptions(found.get("skip", none), found.get("experimental", none), error)


def options_of(dockerfile: ins.Dockerfile, build_args: dict[str, str]) -> CheckOptions:
    """What the file or the build argument says. Raises DockerfileError."""
    if OVERRIDE in build_args:
        return parse_options(build_args[OVERRIDE])
    try:
        return parse_options(dockerfile.check)
    except DockerfileError as error:
        raise dockerfile.source.error(error.problem, dockerfile.check_line) from None


def options_above(instruction: ins.Instruction) -> CheckOptions:
    """What a comment directly above the instruction says; one that is no directive says nothing."""
    for comment in instruction.comments:
        match = re.fullmatch(r"check\s*=\s*(\S+).*", comment, re.IGNORECASE)
        if match:
            try:
                return parse_options(match[1])
            except DockerfileError:
                return CheckOptions()
    return CheckOptions()


def rule_url(rule: str) -> str:
    """Where the rule is explained; "" for one of Cove's own, which docs/dockerfile.md explains."""
    if rule in OWN_RULES or rule == "InvalidBaseImagePlatform":
        return ""
    return f"{_URL}{re.sub(r'(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])', '-', rule).lower()}/"


def refuse_findings(
    dockerfile: ins.Dockerfile, build_args: dict[str, str], findings: tuple[Finding, ...]
) -> None:
    """Raise DockerfileError where the file wants findings to fail the build (error=true) and there are any."""
    if findings and options_of(dockerfile, build_args).error:
        first = findings[0]
        rules = ", ".join(dict.fromkeys(finding.rule for finding in findings))
        problem = f"lint violation found for rules: {rules} (the file says check=error=true): {first.message}"
        raise dockerfile.source.error(problem, first.line)
