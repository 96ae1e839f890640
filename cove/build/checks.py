"""Check a Dockerfile for what builds but shouldn't be written so: BuildKit's build checks. Pure.

Names, sentences and conditions are BuildKit's (docs.docker.com/reference/build-checks); places have a column, too.
What is an error isn't found here: parsing and planning raise it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping

from cove.build.check_rules import CheckOptions, options_above, options_of, rule_url
from cove.build.request import BaseImage, PlanRequest
from cove.build.stages import Resolver, platform_args
from cove.dockerfile import instructions as ins
from cove.dockerfile.applying import apply_config, expanded
from cove.dockerfile.errors import DockerfileError, nearest
from cove.dockerfile.expand import MAX_CONTENT_CHARS, BudgetSpent, Expansion, ExpansionError, Rules, expand
from cove.dockerfile.findings import Finding
from cove.dockerfile.giturl import is_url, parse_git_url
from cove.dockerfile.ignore import DockerIgnore
from cove.dockerfile.mounts import parse_mount
from cove.dockerfile.values import expose_port, parse_platform
from cove.image.references import parse_reference
from cove.model.errors import Invalid

MAX_FINDINGS = 1000
_RESERVED = ("context", "scratch")
_SECRET = re.compile(
    r"(?i)(?:_|^)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|$)", re.ASCII
)
_NO_SECRET = re.compile(r"(?i)(?:_|^)(?:public|file|version)(?:_|$)", re.ASCII)
_ONLY_CD = re.compile(r"\s*cd\s+[^\s;&|]+\s*;?\s*")
_CONTENT = Rules(plain_quotes=True, max_chars=MAX_CONTENT_CHARS)


def check(
    dockerfile: ins.Dockerfile,
    request: PlanRequest,
    images: Mapping[str, BaseImage] | None = None,
    ignore: DockerIgnore | None = None,
) -> tuple[Finding, ...]:
    """The findings in the file's order, of all stages, or of those that `request.target` needs.

    With `images` variables of base images are known; without, only those that look like a slip of the pen are
    reported as undefined. With `ignore` copies of what it leaves out are. Raises DockerfileError.
    """
    findings, error = check_with_error(dockerfile, request, images, ignore)
    if error is not None:
        raise error
    return findings


def check_with_error(
    dockerfile: ins.Dockerfile,
    request: PlanRequest,
    images: Mapping[str, BaseImage] | None = None,
    ignore: DockerIgnore | None = None,
) -> tuple[tuple[Finding, ...], DockerfileError | None]:
    """The findings, and the error where the check had to stop (a FROM that names nothing, bad options)."""
    try:
        checker = _Checker(dockerfile, request, images or {}, ignore)
    except DockerfileError as error:
        return (), error
    try:
        checker.run()
    except DockerfileError as error:
        return checker.findings(), error
    return checker.findings(), None


class _Checker:
    def __init__(
        self,
        dockerfile: ins.Dockerfile,
        request: PlanRequest,
        images: Mapping[str, BaseImage],
        ignore: DockerIgnore | None,
    ) -> None:
        self._dockerfile, self._request, self._ignore = dockerfile, request, ignore
        self._options = options_of(dockerfile, request.build_args)
        self._resolver = Resolver(dockerfile, request, images)
        self._found: list[Finding] = []
        self._above: dict[int, CheckOptions] = {}
        self._stages: dict[int, _Scope] = {}

    def run(self) -> None:
        for line in self._dockerfile.empty_continuations:
            self._add_at("NoEmptyContinuation", "Empty continuation line", line, 1, line, CheckOptions())
        self._casing()
        self._names()
        self._froms()
        for instruction in self._dockerfile.args:
            self._description(instruction, [name for name, _ in instruction.items])
        reachable = (
            range(len(self._dockerfile.stages)) if not self._request.target else self._resolver.reachable()
        )
        for index in reachable:
            self._stages[index] = self._stage(index)

    def findings(self) -> tuple[Finding, ...]:
        """In the file's order, each once."""
        places = {
            (finding.line, finding.column, finding.rule, finding.message): finding for finding in self._found
        }
        return tuple(places[key] for key in sorted(places))[:MAX_FINDINGS]

    def _add(self, rule: str, message: str, at: ins.Instruction, *tokens: str) -> None:
        """A finding at the first of `tokens` that is there, or at the instruction."""
        source = self._dockerfile.source
        for token in tokens:
            place = source.place(token, at.line, at.end_line) if token else None
            if place is not None:
                place = place[0], place[1] + len(token) - len(token.lstrip())
                break
        else:
            error = source.error("", at.line)
            place = error.line, error.column
        above = self._above.setdefault(at.line, options_above(at))
        self._add_at(rule, message, *place, at.end_line, above)

    def _add_at(
        self, rule: str, message: str, line: int, column: int, end_line: int, above: CheckOptions
    ) -> None:
        if self._options.joined(above).wants(rule):
            self._found.append(
                Finding(
                    rule=rule,
                    message=message,
                    line=line,
                    column=column,
                    end_line=end_line,
                    url=rule_url(rule),
                )
            )

    # --- the whole file ---

    def _casing(self) -> None:
        written = [each for stage in self._dockerfile.stages for each in (stage.start, *stage.instructions)]
        lower = sum(each.keyword.islower() for each in written)
        upper = sum(each.keyword.isupper() for each in written)
        right, called = (str.lower, "lowercase") if lower > upper else (str.upper, "uppercase")
        for each in written:
            if each.keyword != right(each.keyword):
                self._add(
                    "ConsistentInstructionCasing",
                    f"Command '{each.keyword}' should match the case of the command majority ({called})",
                    each,
                )

    def _names(self) -> None:
        seen: set[str] = set()
        for stage in self._dockerfile.stages:
            start, name = stage.start, stage.name
            if start.written_stage != name:
                message = f"Stage name '{start.written_stage}' should be lowercase"
                self._add("StageNameCasing", message, start, start.written_stage)
            keyword = start.keyword
            right = start.written_as.lower() if keyword.islower() else start.written_as.upper()
            if start.written_as != right and keyword in (keyword.lower(), keyword.upper()):
                message = f"'{start.written_as}' and '{keyword}' keywords' casing do not match"
                self._add("FromAsCasing", message, start, f" {start.written_as} ")
            if name in _RESERVED:
                message = f'Stage name should not use the same name as reserved stage "{name}"'
                self._add("ReservedStageName", message, start, start.written_stage)
            if name and name in seen:
                message = f'Duplicate stage name "{name}", stage names should be unique'
                self._add("DuplicateStageName", message, start, start.written_stage)
            seen.add(name)
            if name:
                self._description(start, [name])

    def _description(self, at: ins.From | ins.Arg, names: list[str]) -> None:
        if not at.comments or at.comments[-1].split(" ")[0] in names:
            return
        example = names[0] if len(names) == 1 else "<arg_key>"
        message = f"Comment for {at.name} should follow the format: `# {example} <description>`"
        self._add("InvalidDefinitionDescription", message, at)

    def _froms(self) -> None:
        """FROM with the global ARGs: as given, and as if none were."""
        defaults = self._defaults()
        for stage in self._dockerfile.stages:
            start = stage.start
            for word in (start.image, start.platform):
                for name in sorted(self._expand(word, self._resolver.global_args).unset - self._declared()):
                    hint = nearest(name, sorted({*self._declared(), *self._resolver.global_args}))
                    message = (
                        f"FROM argument '{name}' is not declared{f' (did you mean {hint}?)' if hint else ''}"
                    )
                    self._add("UndefinedArgInFrom", message, start, f"${{{name}", f"${name}")
            if start.platform:
                self._platform(stage)
            if not _is_reference(self._expand(start.image, defaults).text):
                message = f"Default value for ARG {start.image} results in empty or invalid base image name"
                self._add("InvalidDefaultArgInFrom", message, start, start.image)

    def _platform(self, stage: ins.Stage) -> None:
        start = stage.start
        args = self._resolver.global_args
        result = self._expand(start.platform, args)
        if result.used == {"TARGETPLATFORM"} and not result.unset and result.text == args["TARGETPLATFORM"]:
            message = f"Setting platform to predefined {start.platform} in FROM is redundant"
            self._add(
                "RedundantTargetPlatform", f"{message} as this is the default behavior", start, start.platform
            )
        if result.used or result.unset:
            return
        try:
            platform = parse_platform(result.text, self._request.native())
        except DockerfileError:
            return
        if platform.os not in stage.name and platform.architecture not in stage.name:
            message = f'FROM --platform flag should not use constant value "{result.text}"'
            self._add("FromPlatformFlagConstDisallowed", message, start, start.platform)

    def _declared(self) -> set[str]:
        return {name for instruction in self._dockerfile.args for name, _ in instruction.items}

    def _defaults(self) -> dict[str, str]:
        """The global ARGs as if no build argument were given."""
        args = platform_args(self._request.native(), self._resolver.platform, "default")
        for instruction in self._dockerfile.args:
            for name, default in instruction.items:
                if default is not None:
                    args[name] = self._expand(default, args).text
        return args

    def _expand(self, word: str, env: Mapping[str, str], rules: Rules | None = None) -> Expansion:
        """The word with its variables; one that can't be expanded is planning's error, and nothing here."""
        try:
            return expand(word, env, rules or self._resolver.rules, self._resolver.budget)
        except BudgetSpent as error:
            raise _Spent(str(error), file=self._dockerfile.source.name) from None
        except ExpansionError:
            return Expansion("", (), frozenset(), frozenset())

    # --- one stage ---

    def _stage(self, index: int) -> _Scope:
        stage, base = self._dockerfile.stages[index], self._resolver.base(index)
        if base.kind == "stage":
            scope = self._stages[base.stage].child()
        else:
            image = self._resolver.images.get(base.image.key) if base.image else None
            scope = _Scope(
                dict(image.config) if image else {}, known=image is not None or base.kind == "scratch"
            )
            if image is not None and base.image is not None:
                wanted = parse_platform(base.image.platform, self._request.native())
                if (image.os, image.architecture) != (wanted.os, wanted.architecture):
                    actual = "/".join(filter(None, (image.os, image.architecture, image.variant)))
                    message = (
                        f'Base image {stage.start.image} was pulled with platform "{actual}", expected "{wanted}" for '
                        "current build"
                    )
                    self._add("InvalidBaseImagePlatform", message, stage.start, stage.start.image)
        for placed in self._resolver.instructions(index):
            self._instruction(scope, placed.instruction, stage)
        return scope

    def _instruction(self, scope: _Scope, at: ins.Instruction, stage: ins.Stage) -> None:
        def replace(word: str) -> Expansion:
            result = self._expand(word, scope.variables)
            self._undefined(scope, at, result)
            return result

        try:
            if isinstance(at, ins.Arg):
                self._arg(scope, at)
                return
            if isinstance(at, ins.Run):
                for mount in at.mounts:
                    parse_mount(mount, lambda word: replace(word).text)
            done = expanded(at, replace)
        except _Spent:
            raise
        except Invalid:
            return  # planning says what is wrong
        if isinstance(done, ins.Env | ins.Label):
            self._pairs(done)
        elif isinstance(done, ins.Copy):
            self._copy(scope, done)
        elif isinstance(done, ins.Expose):
            self._expose(scope, at)
        elif isinstance(done, ins.Maintainer):
            self._add(
                "MaintainerDeprecated", "Maintainer instruction is deprecated in favor of using label", at
            )
        elif isinstance(done, ins.Workdir):
            if not scope.workdir_set and not done.path.startswith("/"):
                message = (
                    f'Relative workdir "{done.path}" can have unexpected results if the base image changes'
                )
                self._add("WorkdirRelativePath", message, at)
            scope.workdir_set = True
        elif isinstance(done, ins.Run):
            self._run(done)
        self._only_once(scope, done)
        if isinstance(done, ins.Cmd | ins.Entrypoint) and done.shell and not scope.config.get("Shell"):
            why = "to prevent unintended behavior related to OS signals"
            self._add("JSONArgsRecommended", f"JSON arguments recommended for {at.keyword} {why}", at)
        apply_config(scope.config, done)
        if isinstance(done, ins.Env):
            scope.variables.update({pair.name: pair.value for pair in done.pairs})

    def _undefined(self, scope: _Scope, at: ins.Instruction, result: Expansion) -> None:
        for name in sorted(result.unset - scope.args):
            hint = nearest(name, scope.variables)
            if hint or scope.known:
                message = (
                    f"Usage of undefined variable '${name}'{f' (did you mean ${hint}?)' if hint else ''}"
                )
                self._add("UndefinedVar", message, at, f"${{{name}", f"${name}")

    def _arg(self, scope: _Scope, at: ins.Arg) -> None:
        self._description(at, [name for name, _ in at.items])
        given, global_args = self._request.build_args, self._resolver.global_args
        for name, default in at.items:
            self._no_secret("ARG", name, at)
            value = given.get(name)
            if value is None and default is not None:
                result = self._expand(default, scope.variables)
                self._undefined(scope, at, result)
                value = result.text
            elif value is None:
                value = global_args.get(name)
            if value is not None:
                scope.variables[name] = value
            scope.args.add(name)

    def _pairs(self, at: ins.Env | ins.Label) -> None:
        for pair in at.pairs:
            if pair.legacy:
                name = at.keyword
                message = f'"{name} key=value" should be used instead of legacy "{name} key value" format'
                self._add("LegacyKeyValueFormat", message, at)
            if isinstance(at, ins.Env):
                self._no_secret("ENV", pair.name, at)

    def _no_secret(self, what: str, name: str, at: ins.Instruction) -> None:
        if _SECRET.search(name) and not _NO_SECRET.search(name):
            message = f'Do not use ARG or ENV instructions for sensitive data ({what} "{name}")'
            self._add("SecretsUsedInArgOrEnv", message, at, name)

    def _copy(self, scope: _Scope, at: ins.Copy) -> None:
        for heredoc in at.heredocs:
            if heredoc.expand:
                self._undefined(scope, at, self._expand(heredoc.text(), scope.variables, _CONTENT))
        for source in at.sources:
            remote = is_url(source) or parse_git_url(source) is not None
            if remote:
                if isinstance(at, ins.Add) and not at.checksum and "checksum=" not in source:
                    message = (
                        f"ADD of {source[:100]} without --checksum: what is downloaded can change unseen"
                    )
                    self._add("RemoteAddWithoutChecksum", message, at, source)
            elif not at.source and self._is_ignored(source):
                verb = "Add" if isinstance(at, ins.Add) else "Copy"
                shown = posixpath.normpath(source)
                message = f'Attempting to {verb} file "{shown}" that is excluded by .dockerignore'
                self._add("CopyIgnoredFile", message, at, source)

    def _is_ignored(self, source: str) -> bool:
        """Whether a source is left out for sure: nothing says that a part of it is brought back."""
        if self._ignore is None or self._ignore.has_exclusions:
            return False
        path = posixpath.normpath(f"/{source}").lstrip("/")
        return self._ignore.matches(path) if path else self._ignore.leaves_all_out()

    def _expose(self, scope: _Scope, at: ins.Instruction) -> None:
        assert isinstance(at, ins.Expose)
        for word in (word for port in at.ports for word in self._expand(port, scope.variables).words):
            port = expose_port(word)
            if port.written_protocol != port.written_protocol.lower():
                message = f"Defined protocol '{word}' in EXPOSE instruction should be lowercase"
                self._add("ExposeProtoCasing", message, at, word)
            if port.mapped:
                message = (
                    f"EXPOSE instruction should not define an IP address or host-port mapping, found '{word}'"
                )
                self._add("ExposeInvalidFormat", message, at, word)

    def _run(self, at: ins.Run) -> None:
        if at.shell and not at.heredocs and _ONLY_CD.fullmatch(at.words[0]):
            message = "RUN cd changes the directory of this step only: use WORKDIR"
            self._add("ChangeDirectoryWithoutEffect", message, at)

    def _only_once(self, scope: _Scope, at: ins.Instruction) -> None:
        """Of CMD, ENTRYPOINT and HEALTHCHECK the last counts; the ones before it are reported."""
        if not isinstance(at, ins.Cmd | ins.Entrypoint | ins.HealthCheck):
            return
        before = scope.single.get(at.name)
        if before is not None:
            message = (
                f"Multiple {at.keyword} instructions should not be used in the same stage because only the last "
                "one will be used"
            )
            self._add("MultipleInstructionsDisallowed", message, before)
        scope.single[at.name] = at


class _Spent(DockerfileError):
    """Nothing more can be expanded: the check ends."""


class _Scope:
    """What is known inside a stage."""

    def __init__(self, config: dict[str, object], known: bool) -> None:
        self.config, self.known = config, known
        env = config.get("Env")
        self.variables = dict(str(item).partition("=")[::2] for item in env) if isinstance(env, list) else {}
        self.variables.setdefault("PATH", "")
        self.args: set[str] = set()
        self.workdir_set = False
        self.single: dict[str, ins.Instruction] = {}

    def child(self) -> _Scope:
        scope = _Scope(dict(self.config), self.known)
        scope.variables, scope.args, scope.workdir_set = (
            dict(self.variables),
            set(self.args),
            self.workdir_set,
        )
        return scope


def _is_reference(text: str) -> bool:
    if text.lower() == "scratch":
        return True
    try:
        parse_reference(text)
    except Invalid:
        return False
    return True
