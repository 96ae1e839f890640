"""Plan a build: a Dockerfile, a request and its base images to a Graph. Pure.

First the stages that the target needs (stages.py), then each of them, in the file's order, instruction by
instruction: its words expanded with the stage's variables (ENV and ARG, the later one counts), the configuration
changed, and for RUN, COPY, ADD and WORKDIR a step. Nothing is read, resolved or run; what the text can't say (image
configurations) is an argument.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from cove.build import graph
from cove.build.history import COMMENT, arg_text, config_text, copy_text, run_text
from cove.build.request import BaseImage, NamedContext, NeededImage, PlanRequest
from cove.build.stages import Base, Placed, Resolver
from cove.dockerfile import instructions as ins
from cove.dockerfile.applying import DEFAULT_SHELL, apply_config, expanded, working_dir
from cove.dockerfile.errors import DockerfileError
from cove.dockerfile.expand import MAX_CONTENT_CHARS, ExpansionError, Rules, expand
from cove.dockerfile.giturl import GitSource, is_url, parse_git_url
from cove.dockerfile.mounts import RunMount, parse_mount
from cove.dockerfile.values import Platform
from cove.dockerfile.words import heredoc_of

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_ENV_BYTES = (
    1 << 20
)  # the kernel takes no more of arguments and variables than a quarter of the stack's limit
MAX_STEPS = 10_000
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
_CONTENT = Rules(plain_quotes=True, max_chars=MAX_CONTENT_CHARS)
_PIPES = "/dev/pipes/"

__all__ = ["BaseImage", "NeededImage", "PlanRequest", "needed_images", "plan_build"]


def needed_images(
    dockerfile: ins.Dockerfile, request: PlanRequest, images: Mapping[str, BaseImage] | None = None
) -> tuple[NeededImage, ...]:
    """The images that the target needs and that `images` doesn't have yet; () when `plan_build` can begin.

    Ask again with what was found: ONBUILD triggers of an image can name further images. Raises DockerfileError.
    """
    resolver = Resolver(dockerfile, request, images)
    found: dict[str, NeededImage] = {}
    for index in resolver.reachable():
        for base in resolver.dependencies(index):
            if base.image is not None and base.image.key not in resolver.images:
                found[base.image.key] = base.image
    return tuple(found.values())


def plan_build(
    dockerfile: ins.Dockerfile, request: PlanRequest, images: Mapping[str, BaseImage]
) -> graph.Graph:
    """The steps of the target and what it needs, and the image at the end.

    `images` has every image that `needed_images` names, by its key. Raises DockerfileError.
    """
    return _Planner(Resolver(dockerfile, request, images)).plan()


class _Stage:
    """What is known after each instruction of one stage."""

    def __init__(self, name: str, snapshot: int, platform: Platform, config: dict[str, Any]) -> None:
        self.name, self.snapshot, self.platform, self.config = name, snapshot, platform, config
        self.variables = dict(_split_env(item) for item in config.get("Env") or ())
        self.args: dict[str, str] = {}  # declared ARGs with their values, for the history
        self.history: list[graph.HistoryItem] = []
        self.author = ""
        self.base_image_id = ""
        self.cmd_was_set = False
        self.ignore_cache = False

    def child(self, name: str) -> _Stage:
        """A stage that begins where this one ends; its ONBUILD triggers are no part of it."""
        config = {key: value for key, value in self.config.items() if key != "OnBuild"}
        stage = _Stage(name, self.snapshot, self.platform, config)
        stage.variables, stage.args = dict(self.variables), dict(self.args)
        stage.history, stage.author, stage.base_image_id = [*self.history], self.author, self.base_image_id
        return stage

    @property
    def working_dir(self) -> str:
        return working_dir(self.config, "")

    def env(self) -> tuple[str, ...]:
        return tuple(f"{name}={value}" for name, value in self.variables.items())


class _Planner:
    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._dockerfile, self._request = resolver.dockerfile, resolver.request
        self._steps: list[graph.Step] = []
        self._sources: dict[tuple[str, str], int] = {}  # steps of images, contexts and scratch, each once
        self._lines: list[graph.Line] = []
        self._stages: dict[int, _Stage] = {}

    def plan(self) -> graph.Graph:
        for instruction in self._dockerfile.args:
            self._lines.append(graph.Line(text=instruction.text))
        for index in self._resolver.reachable():
            self._stages[index] = self._stage(index)
        target = self._stages[self._resolver.target]
        config = dict(target.config)
        if self._request.labels:
            config["Labels"] = {**(config.get("Labels") or {}), **self._request.labels}
        platform = self._resolver.platform if self._request.platform else target.platform
        result = graph.Result(
            step=target.snapshot,
            config=config,
            architecture=platform.architecture,
            variant=platform.variant,
            os=platform.os,
            author=target.author,
            base_image_id=target.base_image_id,
            history=tuple(target.history),
        )
        return graph.Graph(steps=tuple(self._steps), result=result, lines=tuple(self._lines))

    # --- where a stage begins ---

    def _stage(self, index: int) -> _Stage:
        written, base = self._dockerfile.stages[index], self._resolver.base(index)
        name = written.name or str(index)
        origin = self._origin(name, written.start)
        if base.kind == "stage":
            stage = self._stages[base.stage].child(name)
        else:
            snapshot, config, platform = self._begin(base, origin)
            stage = _Stage(name, snapshot, platform, config)
            stage.base_image_id = self._resolver.images[base.image.key].image_id if base.image else ""
        stage.ignore_cache = self._request.no_cache or name in self._request.no_cache_stages
        self._lines.append(graph.Line(text=written.start.text, stage=name, step=stage.snapshot))
        if "PATH" not in stage.variables and stage.platform.os != "windows":
            stage.variables["PATH"] = DEFAULT_PATH
            stage.config["Env"] = [*(stage.config.get("Env") or ()), f"PATH={DEFAULT_PATH}"]
        for placed in self._resolver.instructions(index):
            self._instruction(stage, written, placed)
        return stage

    def _begin(self, base: Base, origin: graph.Origin) -> tuple[int, dict[str, Any], Platform]:
        """The snapshot, configuration and platform that FROM gives."""
        if base.image is not None:
            image = self._resolver.images[base.image.key]
            config = {key: value for key, value in image.config.items() if key != "OnBuild"}
            return self._source(base, origin), config, Platform(image.os, image.architecture, image.variant)
        scratch = self._once(("scratch", ""), graph.Scratch(), origin)
        if base.kind == "scratch":
            return scratch, {}, self._resolver.platform
        copy = graph.Copy(
            base=scratch, items=(graph.Item(source=self._source(base, origin), path="/"),), target="/"
        )
        return self._add(copy, origin, False), {}, self._resolver.platform

    def _source(self, base: Base, origin: graph.Origin) -> int:
        """The step of what is copied or mounted from."""
        if base.kind == "stage":
            return self._stages[base.stage].snapshot
        if base.image is not None:
            image = self._resolver.images[base.image.key]
            operation = graph.ImageSource(image_id=image.image_id, reference=base.image.reference)
            return self._once(("image", base.image.key), operation, origin)
        if base.context is not None:
            return self._context(base.context, origin)
        return self._once(("scratch", ""), graph.Scratch(), origin)

    def _context(self, context: NamedContext, origin: graph.Origin) -> int:
        if context.kind == "git":
            source = parse_git_url(context.value, is_context=True)
            assert source is not None
            return self._once(("git", context.value), clone_of(source, "", None), origin)
        return self._once(("context", context.value), graph.Context(name=context.value), origin)

    def _once(self, key: tuple[str, str], operation: graph.Operation, origin: graph.Origin) -> int:
        if key not in self._sources:
            self._sources[key] = self._add(operation, origin, False)
        return self._sources[key]

    def _add(self, operation: graph.Operation, origin: graph.Origin, ignore_cache: bool) -> int:
        if len(self._steps) >= MAX_STEPS:
            raise self._dockerfile.error(f"too many steps: at most {MAX_STEPS} in one build")
        self._steps.append(graph.Step(operation=operation, origin=origin, ignore_cache=ignore_cache))
        return len(self._steps) - 1

    def _origin(self, stage: str, at: ins.Instruction, text: str = "") -> graph.Origin:
        return graph.Origin(stage=stage, line=at.line, end_line=at.end_line, text=text or at.text)

    # --- instructions ---

    def _instruction(self, stage: _Stage, written: ins.Stage, placed: Placed) -> None:
        at = placed.instruction
        origin = self._origin(stage.name, at)
        before = stage.snapshot
        try:
            if isinstance(at, ins.Arg):
                self._arg(stage, at)
            elif isinstance(at, ins.Run):
                self._run(stage, written, at, origin)
            else:
                done = expanded(at, lambda word: self._resolver.expand(at, word, stage.variables))
                if isinstance(done, ins.Copy):
                    self._copy(stage, written, done, origin)
                elif isinstance(done, ins.Workdir):
                    self._workdir(stage, done, origin)
                else:
                    self._configure(stage, done)
        except DockerfileError as error:
            raise error if error.line else self._dockerfile.error(error.problem, at, error.text) from None
        except ExpansionError as error:
            raise self._dockerfile.error(str(error), at) from None
        step = stage.snapshot if stage.snapshot != before else None
        self._lines.append(graph.Line(text=at.text, stage=stage.name, step=step, trigger=placed.trigger))
        if sum(map(len, stage.variables.values())) > MAX_ENV_BYTES:
            problem = f"the variables of stage {stage.name} are larger than {MAX_ENV_BYTES} bytes together"
            raise self._dockerfile.error(problem, at)

    def _remember(self, stage: _Stage, text: str, step: int | None = None) -> None:
        stage.history.append(graph.HistoryItem(created_by=text, comment=COMMENT, step=step))

    def _arg(self, stage: _Stage, at: ins.Arg) -> None:
        given, global_args = self._request.build_args, self._resolver.global_args
        shown: list[tuple[str, str | None]] = []
        for name, default in at.items:
            if name in given:
                value: str | None = given[name]
            elif default is not None:
                value = self._resolver.expand(at, default, stage.variables).text
            else:
                value = global_args.get(name)
            if value is not None:
                stage.variables[name] = value
            stage.args[name] = stage.variables.get(name, "")
            shown.append((name, value))
        self._remember(stage, arg_text(shown))

    def _configure(self, stage: _Stage, at: ins.Instruction) -> None:
        text = config_text(stage.config, at)
        if isinstance(at, ins.Maintainer):
            stage.author = at.author
        else:
            apply_config(stage.config, at, cmd_was_set=stage.cmd_was_set)
        if isinstance(at, ins.Env):
            stage.variables.update({pair.name: pair.value for pair in at.pairs})
        stage.cmd_was_set = stage.cmd_was_set or isinstance(at, ins.Cmd)
        if text:
            self._remember(stage, text)

    def _workdir(self, stage: _Stage, at: ins.Workdir, origin: graph.Origin) -> None:
        apply_config(stage.config, at)
        path = stage.working_dir
        step = None
        if path != "/":
            operation = graph.MakeDirectory(
                base=stage.snapshot, path=path, owner=stage.config.get("User") or ""
            )
            step = stage.snapshot = self._add(operation, origin, stage.ignore_cache)
        self._remember(stage, f"WORKDIR {path}", step)

    def _run(self, stage: _Stage, written: ins.Stage, at: ins.Run, origin: graph.Origin) -> None:
        words, files = _command_of(at)
        self._resolver.budget.spend(
            2 * sum(map(len, stage.variables.values()))
        )  # in the step, and in the history
        if at.shell:
            words = (*(stage.config.get("Shell") or DEFAULT_SHELL), " ".join(words))
        operation = graph.Exec(
            base=stage.snapshot,
            args=words,
            env=stage.env(),
            user=stage.config.get("User") or "",
            working_dir=stage.working_dir,
            mounts=tuple(self._mount(stage, written, at, text, origin) for text in at.mounts),
            network=at.network or self._request.network,  # type: ignore[arg-type]
            security=at.security,  # type: ignore[arg-type]
            files=files,
            hidden_env=self._proxies(stage),
            hosts=self._request.hosts,
        )
        stage.snapshot = self._add(operation, origin, stage.ignore_cache)
        self._remember(stage, run_text(words, {**stage.args, **self._now(stage)}), stage.snapshot)

    def _now(self, stage: _Stage) -> dict[str, str]:
        """The declared ARGs with what the environment says by now."""
        return {name: stage.variables[name] for name in stage.args if name in stage.variables}

    def _proxies(self, stage: _Stage) -> tuple[str, ...]:
        """The predefined proxy arguments that no ARG or ENV of the stage has, in both cases of letters."""
        found: dict[str, str] = {}
        for name, value in sorted(self._request.build_args.items()):
            if name.lower() in _PROXIES:
                found.update({name.upper(): value, name.lower(): value})
        return tuple(f"{name}={value}" for name, value in found.items() if name not in stage.variables)

    def _mount(
        self, stage: _Stage, written: ins.Stage, at: ins.Run, text: str, origin: graph.Origin
    ) -> graph.Mount:
        mount = parse_mount(text, lambda value: self._resolver.expand(at, value, stage.variables).text)
        target = mount.target
        if mount.kind not in ("secret", "ssh") or target:
            target = posixpath.normpath(posixpath.join(stage.working_dir, target))
            target = "/" + target.lstrip("/")
            if target == "/":
                raise DockerfileError(
                    f'invalid mount target "{mount.target or "/"}": expected a directory below /', text=text
                )
        if mount.kind in ("secret", "ssh"):
            return _secret(mount, target) if mount.kind == "secret" else _agent(mount, target)
        source: int | None = None
        if mount.kind in ("bind", "cache") and mount.source_stage:
            source = self._source(self._resolver.source(mount.source_stage, written, at), origin)
        elif mount.kind == "bind":
            source = self._once(("context", ""), graph.Context(), origin)
        return graph.Mount(
            kind=mount.kind,
            target=target,
            source=source,
            source_path=posixpath.normpath(f"/{mount.source}").replace("//", "/")
            if source is not None
            else "/",
            read_only=mount.read_only,
            id=(mount.id or target) if mount.kind == "cache" else "",
            sharing=mount.sharing or "shared",
            mode=mount.mode,
            uid=mount.uid or 0,
            gid=mount.gid or 0,
            size_bytes=mount.size_bytes,
        )

    # --- COPY and ADD ---

    def _copy(self, stage: _Stage, written: ins.Stage, at: ins.Copy, origin: graph.Origin) -> None:
        base = self._resolver.source(at.source, written, at) if at.source else None
        items: list[graph.Item] = []
        for source in at.sources:
            items.append(self._item(at, source, base, origin))
        if at.heredocs:
            files = tuple((heredoc.name, self._content(stage, at, heredoc)) for heredoc in at.heredocs)
            tree = self._add(graph.InlineFiles(files=files), origin, False)
            items += [graph.Item(source=tree, path=f"/{name}") for name, _ in files]
        if not items:
            raise DockerfileError(f"{at.name} has no source, e.g. {at.name} . /app")
        operation = graph.Copy(
            base=stage.snapshot,
            items=tuple(items),
            target=_target(stage.working_dir, at.target),
            owner=at.owner,
            mode=at.mode,
            excludes=at.excludes,
            link=at.link,
            parents=at.parents,
            keep_owner=base is not None and base.kind in ("stage", "image"),
        )
        stage.snapshot = self._add(operation, origin, stage.ignore_cache)
        self._remember(stage, copy_text(at), stage.snapshot)

    def _content(self, stage: _Stage, at: ins.Copy, heredoc: Any) -> bytes:
        text: str = heredoc.text()
        if heredoc.expand:
            text = expand(text, stage.variables, _CONTENT, self._resolver.budget).text
        return text.encode()

    def _item(self, at: ins.Copy, source: str, base: Base | None, origin: graph.Origin) -> graph.Item:
        git = parse_git_url(source)
        remote = git is not None or is_url(source)
        if remote and not isinstance(at, ins.Add):
            raise DockerfileError(
                f"source can't be {'a git ref' if git else 'a URL'} for COPY: use ADD", text=source
            )
        if isinstance(at, ins.Add) and at.checksum:
            _check_checksum(at, remote, git is not None)
        if git is not None:
            assert isinstance(at, ins.Add)
            clone = clone_of(git, at.checksum, at.keep_git)
            return graph.Item(source=self._add(clone, origin, False), path="/")
        if remote:
            assert isinstance(at, ins.Add)
            name = _file_name(source)
            download = graph.Download(url=source, checksum=at.checksum, name=name)
            step = self._add(download, origin, False)
            return graph.Item(source=step, path=f"/{name}", unpack=bool(at.unpack))
        step = self._source(base, origin) if base else self._once(("context", ""), graph.Context(), origin)
        unpack = isinstance(at, ins.Add) and at.unpack is not False
        pivot = ""
        if at.parents:
            before, dot, after = source.partition("/./")
            if dot:
                pivot, source = _clean(before), after
        return graph.Item(source=step, path=_clean(source), pivot=pivot, unpack=unpack)


def _split_env(item: str) -> tuple[str, str]:
    name, _, value = item.partition("=")
    return name, value


def _clean(path: str) -> str:
    """An absolute path in a tree, without . and .."""
    return "/" + posixpath.normpath(f"/{path}").lstrip("/")


def _target(directory: str, written: str) -> str:
    """The absolute target; a slash at its end says that it is a directory."""
    path = "/" + posixpath.normpath(posixpath.join(directory, written)).lstrip("/")
    is_directory = written in ("", ".", "..") or written.endswith(("/", "/.", "/.."))
    return f"{path}/" if is_directory and path != "/" else path


def _command_of(at: ins.Run) -> tuple[tuple[str, ...], tuple[tuple[str, bytes], ...]]:
    """The words of a RUN, and the files that its heredocs need.

    A heredoc alone is the script: with #! a file that is run, else the shell's argument. Others are the shell's own.
    """
    if not at.heredocs or not at.shell:
        return at.words, ()
    text, first = at.words[0], at.heredocs[0]
    if heredoc_of(text) is not None:
        content = first.text()
        if not content.startswith("#!"):
            return (content,), ()
        path = f"{_PIPES}{first.name}"
        if "/" in first.name or first.name in (".", ".."):
            raise DockerfileError(f"a heredoc with #! is a file: {first.name!r} can't be its name, e.g. EOF")
        return (path,), ((path, content.encode()),)
    return ("".join([text, *(f"\n{heredoc.content}{heredoc.name}" for heredoc in at.heredocs)]),), ()


def _secret(mount: RunMount, target: str) -> graph.Mount:
    identity = mount.source or mount.id or posixpath.basename(mount.target)
    if not target and mount.env is None:
        target = f"/run/secrets/{posixpath.basename(identity)}"
    return graph.Mount(
        kind="secret",
        target=target,
        id=identity,
        required=mount.required,
        mode=0o400 if mount.mode is None else mount.mode,
        uid=mount.uid or 0,
        gid=mount.gid or 0,
        env=mount.env or "",
        read_only=True,
    )


def _agent(mount: RunMount, target: str) -> graph.Mount:
    return graph.Mount(
        kind="ssh",
        target=target,
        id=mount.id or "default",
        required=mount.required,
        mode=0o600 if mount.mode is None else mount.mode,
        uid=mount.uid or 0,
        gid=mount.gid or 0,
    )


def clone_of(source: GitSource, checksum: str, keep_git: bool | None) -> graph.Clone:
    if checksum and source.checksum and checksum != source.checksum:
        raise DockerfileError(
            f"checksum mismatch: --checksum={checksum} and {source.checksum} in the address"
        )
    if keep_git is not None and source.keep_git is not None and keep_git != source.keep_git:
        raise DockerfileError("inconsistent keep-git-dir: the flag and the address differ")
    return graph.Clone(
        url=source.url,
        ref=source.ref,
        subdirectory=source.subdirectory,
        checksum=checksum or source.checksum,
        keep_git=bool(source.keep_git if keep_git is None else keep_git),
        submodules=source.submodules,
    )


def _check_checksum(at: ins.Add, remote: bool, git: bool) -> None:
    if len(at.sources) + len(at.heredocs) != 1:
        raise DockerfileError("checksum can't be specified for multiple sources", text="--checksum")
    if not remote:
        raise DockerfileError("checksum requires HTTP(S) or Git sources", text="--checksum")
    kind, _, digits = at.checksum.rpartition(":")
    hexadecimal = bool(digits) and not digits.strip("0123456789abcdef")
    if not git and not (kind == "sha256" and hexadecimal and len(digits) == 64):
        raise DockerfileError(
            f"checksum {at.checksum[:80]}: expected sha256: and 64 hexadecimal digits", text="--checksum"
        )
    if git and (kind or not hexadecimal or not 4 <= len(digits) <= 64):
        raise DockerfileError(f"checksum {at.checksum[:80]} isn't a commit: expected 4 to 64 hexadecimal digits",
                              text="--checksum")  # fmt: skip


def _file_name(url: str) -> str:
    """The last part of the URL's path, which is the file's name in a directory."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise DockerfileError(f"{url[:200]!r} isn't a URL", text=url) from None
    if not parts.hostname:
        raise DockerfileError(f"{url[:200]!r} names no host, e.g. https://example.com/file", text=url)
    name = posixpath.basename(parts.path)
    return name if name not in ("", ".", "..") else "__unnamed__"
