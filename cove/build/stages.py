"""Which stages a build needs, and what each is built on. Pure.

FROM is resolved with the global ARGs to a stage above, an image, a named context or nothing (scratch); COPY --from
and RUN --mount=from= name stages by name or number, or images. What the target doesn't need isn't looked at again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import msgspec

from cove.build.request import BaseImage, NamedContext, NeededImage, PlanRequest, named_context
from cove.dockerfile import instructions as ins
from cove.dockerfile.errors import DockerfileError, suggestion
from cove.dockerfile.expand import Budget, Expansion, ExpansionError, Rules, expand
from cove.dockerfile.mounts import mount_source
from cove.dockerfile.parser import parse_trigger
from cove.dockerfile.values import Platform, parse_platform

MAX_TRIGGERS = 500  # of one base image


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage begins with, or what is copied from."""

    kind: Literal["scratch", "stage", "image", "context"]
    stage: int = -1
    image: NeededImage | None = None
    context: NamedContext | None = None


class Placed(msgspec.Struct, frozen=True):
    """An instruction of a stage; `trigger` when the base's ONBUILD has brought it."""

    instruction: ins.Instruction
    trigger: bool = False


class Resolver:
    """One Dockerfile with one request: global ARGs, bases, dependencies."""

    def __init__(
        self, dockerfile: ins.Dockerfile, request: PlanRequest, images: Mapping[str, BaseImage] | None = None
    ) -> None:
        request.check()
        self.dockerfile, self.request, self.images = dockerfile, request, images or {}
        self.budget = Budget()
        self.rules = Rules(escape=dockerfile.escape)
        self.platform = request.wanted()
        self.target = self._target()
        self.global_args = self._global_args()
        self._bases: dict[int, Base] = {}
        self._placed: dict[int, tuple[Placed, ...]] = {}

    def expand(self, at: ins.Instruction, word: str, env: Mapping[str, str]) -> Expansion:
        """The word with its variables replaced; errors have the instruction's line."""
        try:
            return expand(word, env, self.rules, self.budget)
        except ExpansionError as error:
            raise self.dockerfile.error(str(error), at, word) from None

    def _target(self) -> int:
        stages, wanted = self.dockerfile.stages, self.request.target
        if not wanted:
            return len(stages) - 1
        found = self.find_stage(wanted, len(stages))
        if found is None:
            names = [stage.name for stage in stages if stage.name]
            there = (
                f": there are {', '.join(names)}"
                if names
                else ": no stage has a name, use its number, e.g. 0"
            )
            hint = suggestion(wanted, names) or there
            raise DockerfileError(
                f'target stage "{wanted}" could not be found{hint}', file=self.dockerfile.source.name
            )
        return found

    def find_stage(self, name: str, before: int) -> int | None:
        """The last stage of this name, or with this number, among the first `before`."""
        for stage in reversed(self.dockerfile.stages[:before]):
            if stage.name and stage.name == name.lower():
                return stage.index
        if name.isascii() and name.isdecimal() and len(name) < 6 and int(name) < before:
            return int(name)
        return None

    def _global_args(self) -> dict[str, str]:
        """The predefined platform arguments and the ARGs before the first FROM, with their values."""
        stage = self.dockerfile.stages[self.target].name if not self.request.target else self.request.target
        args = platform_args(self.request.native(), self.platform, stage or "default")
        given = self.request.build_args
        args.update({name: given[name] for name in args if name in given})
        for instruction in self.dockerfile.args:
            for name, default in instruction.items:
                if name in given:
                    args[name] = given[name]
                elif default is not None:
                    args[name] = self.expand(instruction, default, args).text
        return args

    def stage_platform(self, stage: ins.Stage) -> Platform | None:
        """FROM --platform; None when it isn't given. Raises DockerfileError."""
        written = stage.start.platform
        if not written:
            return None
        result = self.expand(stage.start, written, self.global_args)
        if not result.text:
            hint = "".join(suggestion(name, self.global_args) for name in sorted(result.unset))
            raise self.dockerfile.error(
                f"empty platform value from expression {written}{hint}", stage.start, written
            )
        try:
            return parse_platform(result.text, self.request.native())
        except DockerfileError as error:
            raise self.dockerfile.error(error.problem, stage.start, written) from None

    def base(self, index: int) -> Base:
        """What the stage begins with. Raises DockerfileError."""
        if index not in self._bases:
            self._bases[index] = self._resolve_base(self.dockerfile.stages[index])
        return self._bases[index]

    def _resolve_base(self, stage: ins.Stage) -> Base:
        platform = self.stage_platform(stage)
        if stage.name and (context := named_context(self.request, stage.name)):
            return self._of_context(context, platform)
        result = self.expand(stage.start, stage.start.image, self.global_args)
        if not result.text:
            hint = "".join(suggestion(name, self.global_args) for name in sorted(result.unset))
            problem = f"base name ({stage.start.image}) should not be blank{hint}"
            raise self.dockerfile.error(problem, stage.start, stage.start.image)
        named = [
            other.index
            for other in self.dockerfile.stages[: stage.index]
            if other.name == result.text.lower()
        ]
        if named:
            return Base(kind="stage", stage=named[-1])
        return self._of_image(result.text, platform, stage.start)

    def source(self, name: str, stage: ins.Stage, at: ins.Instruction) -> Base:
        """What COPY --from=`name` or a mount's from=`name` in this stage means. Raises DockerfileError."""
        if "$" in name:
            problem = (
                "variables aren't replaced in from: give the image a stage of its own, FROM $IMAGE AS name"
            )
            raise self.dockerfile.error(problem, at, name)
        found = self.find_stage(name, stage.index)
        if found is not None:
            replaced = named_context(self.request, self.dockerfile.stages[found].name or "scratch")
            return self.base(found) if replaced else Base(kind="stage", stage=found)
        if name.lower() == stage.name or name == str(stage.index):
            raise self.dockerfile.error("circular dependency: a stage can't copy from itself", at, name)
        if self.find_stage(name, len(self.dockerfile.stages)) is not None:
            problem = f'cannot copy from stage "{name}", it needs to be defined before the current one'
            raise self.dockerfile.error(problem, at, name)
        if name.isascii() and name.isdecimal():
            raise self.dockerfile.error(
                f"invalid stage index {name}: there are 0 to {stage.index - 1}", at, name
            )
        return self._of_image(name, None, at)

    def _of_image(self, name: str, platform: Platform | None, at: ins.Instruction) -> Base:
        if name.lower() == "scratch":
            return Base(kind="scratch")
        if context := named_context(self.request, name):
            return self._of_context(context, platform)
        if len(name) > 4096 or any(char.isspace() or not char.isprintable() for char in name):
            raise self.dockerfile.error(f"{name[:64]!r} isn't the name of an image, e.g. debian:12", at)
        return Base(kind="image", image=self._needed(name, platform))

    def _of_context(self, context: NamedContext, platform: Platform | None) -> Base:
        if context.kind == "image":
            return Base(kind="image", image=self._needed(context.value, platform))
        return Base(kind="context", context=context)

    def _needed(self, reference: str, platform: Platform | None) -> NeededImage:
        other = platform is not None and platform != self.platform
        wanted = str(platform or self.platform)
        return NeededImage(
            reference=reference, platform=wanted, key=f"{reference} {wanted}" if other else reference
        )

    def instructions(self, index: int) -> tuple[Placed, ...]:
        """The stage's instructions; those that its base's ONBUILD brings come first. Raises DockerfileError."""
        chain = [index]  # down to a stage whose instructions are known, or that is on no stage
        while chain[-1] not in self._placed and (base := self.base(chain[-1])).kind == "stage":
            chain.append(base.stage)
        for each in reversed(chain):
            if each not in self._placed:
                self._placed[each] = self._instructions(self.dockerfile.stages[each], self.base(each))
        return self._placed[index]

    def _instructions(self, stage: ins.Stage, base: Base) -> tuple[Placed, ...]:
        if stage.name and named_context(self.request, stage.name):
            return ()  # the context of this name takes the stage's whole place
        own = tuple(map(Placed, stage.instructions))
        triggers: list[str] = []
        name = stage.start.image
        if base.kind == "stage":
            below = self._placed[base.stage]
            triggers = [
                each.instruction.trigger for each in below if isinstance(each.instruction, ins.OnBuild)
            ]
        elif base.image is not None and (image := self.images.get(base.image.key)) is not None:
            triggers, name = list(image.config.get("OnBuild") or ()), base.image.reference
        if len(triggers) > MAX_TRIGGERS:
            raise self.dockerfile.error(
                f"the base has more than {MAX_TRIGGERS} ONBUILD triggers", stage.start
            )
        return (*(Placed(self._trigger(text, name, stage), True) for text in triggers), *own)

    def _trigger(self, text: str, image: str, stage: ins.Stage) -> ins.Instruction:
        try:
            found = parse_trigger(text, f"ONBUILD of {image}", self.dockerfile.escape)
        except DockerfileError as error:
            problem = f"the base's trigger ONBUILD {text[:200]!r}: {error.problem}"
            raise self.dockerfile.error(problem, stage.start, stage.start.image) from None
        return msgspec.structs.replace(found, line=stage.start.line, end_line=stage.start.end_line)

    def dependencies(self, index: int) -> Iterator[Base]:
        """What the stage is built on and copies from, each as often as it is named. Raises DockerfileError."""
        yield self.base(index)
        stage = self.dockerfile.stages[index]
        for placed in self.instructions(index):
            for name in sources_of(placed.instruction):
                yield self.source(name, stage, placed.instruction)

    def reachable(self) -> tuple[int, ...]:
        """The stages that the target needs, and itself, in the file's order."""
        found: set[int] = set()
        waiting = [self.target]
        while waiting:
            index = waiting.pop()
            if index not in found:
                found.add(index)
                waiting += [base.stage for base in self.dependencies(index) if base.kind == "stage"]
        return tuple(sorted(found))


def sources_of(instruction: ins.Instruction) -> Iterable[str]:
    """The names that an instruction copies or mounts from, without those that are the build's own context."""
    if isinstance(instruction, ins.Run):
        return [name for mount in instruction.mounts if (name := mount_source(mount))]
    if isinstance(instruction, ins.Copy) and instruction.source:
        return [instruction.source]
    return []


def platform_args(native: Platform, wanted: Platform, stage: str) -> dict[str, str]:
    """The arguments that are there without ARG in FROM, and after ARG in a stage."""
    return {
        "BUILDPLATFORM": str(native),
        "BUILDOS": native.os,
        "BUILDOSVERSION": "",
        "BUILDARCH": native.architecture,
        "BUILDVARIANT": native.variant,
        "TARGETPLATFORM": str(wanted),
        "TARGETOS": wanted.os,
        "TARGETOSVERSION": "",
        "TARGETARCH": wanted.architecture,
        "TARGETVARIANT": wanted.variant,
        "TARGETSTAGE": stage,
    }
