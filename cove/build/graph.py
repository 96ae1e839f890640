"""A build as data: steps, what they take, and the image at the end. Pure.

The planner (from a Dockerfile now, from BuildKit's LLB later) makes a `Graph`; the solver runs it, gives each step
a key made of its definition and of its inputs' keys, and asks nobody what a Dockerfile is. A step is referred to by
its place in `Graph.steps`, and only refers to steps before it. What a step gives is a *snapshot* (layers, lowest
first, of an image or of what was built on one) or a *tree* (files to copy from: the context, a download, a clone).

Paths in steps are absolute, or relative to a tree's root. Nothing here is a default of an image: the planner has
applied environment, working directory, user and shell already.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from cove.dockerfile.findings import Finding


class Data(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of everything in a graph: comparable, and encoded canonically for keys."""


# --- sources ------------------------------------------------------------------------------


class Scratch(Data, tag="scratch", frozen=True, kw_only=True):
    """A snapshot without layers."""


class ImageSource(Data, tag="image", frozen=True, kw_only=True):
    """The snapshot of an image that is on record here."""

    image_id: str  # sha256:…
    reference: str = ""  # as the Dockerfile has it; not part of the key


class Context(Data, tag="context", frozen=True, kw_only=True):
    """The tree that the client sends; `name` is "" for the build's own, or that of `--build-context`."""

    name: str = ""


class Download(Data, tag="download", frozen=True, kw_only=True):
    """ADD of a URL: a tree with one file."""

    url: str
    checksum: str = ""  # sha256:…, checked
    name: str = ""  # the file's name in the tree; "" is the URL's last part


class Clone(Data, tag="clone", frozen=True, kw_only=True):
    """ADD of a git repository: a tree of its files."""

    url: str  # without the fragment
    ref: str = ""
    subdirectory: str = ""
    checksum: str = ""  # of the commit, checked; its first digits are enough
    keep_git: bool = False
    submodules: bool = True


class InlineFiles(Data, tag="inline", frozen=True, kw_only=True):
    """A tree of files whose contents are in the Dockerfile (heredocs)."""

    files: tuple[tuple[str, bytes], ...]


# --- steps that change files --------------------------------------------------------------


class Mount(Data, frozen=True, kw_only=True):
    """One `RUN --mount`."""

    kind: Literal["bind", "cache", "tmpfs", "secret", "ssh"]
    target: str
    source: int | None = None  # the step of `from=`; the step itself must be among the inputs
    source_path: str = "/"
    read_only: bool = False  # a bind that is written to (rw) loses what is written
    id: str = ""  # of a cache, a secret, an agent
    sharing: Literal["shared", "private", "locked"] = "shared"
    mode: int | None = None
    uid: int = 0
    gid: int = 0
    size_bytes: int = 0  # of a tmpfs; 0: no limit
    required: bool = False
    env: str = ""  # a secret as this variable, too (then `target` may be "")


class Exec(Data, tag="exec", frozen=True, kw_only=True):
    """Run a process on a snapshot; the snapshot with one more layer of what it changed."""

    base: int
    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = "/"
    mounts: tuple[Mount, ...] = ()
    network: Literal["", "default", "none", "host"] = ""
    security: Literal["", "sandbox", "insecure"] = ""
    files: tuple[
        tuple[str, bytes], ...
    ] = ()  # heredocs: read-only files, mode 0755, at these absolute paths (/dev/pipes/EOF)
    hidden_env: tuple[str, ...] = ()  # NAME=VALUE, set but not part of the key (proxy settings)
    hosts: tuple[str, ...] = ()  # NAME:ADDRESS for /etc/hosts


class Item(Data, frozen=True, kw_only=True):
    """One source of a Copy: a path or a wildcard (Go's filepath.Match) in a step's tree or snapshot."""

    source: int
    path: str  # absolute
    pivot: str = (
        ""  # with `parents`: `path` is below this directory (or wildcard), which isn't made at the target
    )
    unpack: bool = False  # an archive is unpacked at the target


class Copy(Data, tag="copy", frozen=True, kw_only=True):
    """COPY and ADD: copy items onto a snapshot; the snapshot with one more layer.

    With `link` the layer is made on nothing and independent of `base`, which only goes below it.
    """

    base: int
    items: tuple[Item, ...]
    target: str  # absolute; with a slash at its end a directory
    owner: str = ""  # --chown as written ("" is 0:0); names are looked up in the snapshot
    mode: str = ""  # --chmod as written: octal or symbolic
    excludes: tuple[str, ...] = ()
    link: bool = False
    parents: bool = False
    keep_owner: bool = False  # COPY --from: owners as they are in the source, unless `owner` says


class MakeDirectory(Data, tag="directory", frozen=True, kw_only=True):
    """WORKDIR: make a directory, and those above it, where it isn't there; no layer when it is."""

    base: int
    path: str
    owner: str = ""


Operation = Scratch | ImageSource | Context | Download | Clone | InlineFiles | Exec | Copy | MakeDirectory


class Origin(Data, frozen=True, kw_only=True):
    """Where a step was written; lines count from 1. For people: no part of any key."""

    stage: str = ""  # its name, or its number as text
    line: int = 0
    end_line: int = 0
    text: str = ""  # the instruction as it is shown: "RUN make"


class Step(Data, frozen=True, kw_only=True):
    operation: Operation
    origin: Origin = Origin()
    ignore_cache: bool = False

    def inputs(self) -> tuple[int, ...]:
        """The places of the steps that this one needs, each once, the base first."""
        operation = self.operation
        found: list[int] = []
        if isinstance(operation, Exec):
            found = [operation.base, *(m.source for m in operation.mounts if m.source is not None)]
        elif isinstance(operation, Copy):
            found = [operation.base, *(item.source for item in operation.items)]
        elif isinstance(operation, MakeDirectory):
            found = [operation.base]
        return tuple(dict.fromkeys(found))


# --- what comes out -----------------------------------------------------------------------


class Line(Data, frozen=True, kw_only=True):
    """One instruction, for the classic builder's `Step 2/7 : RUN make` and for progress."""

    text: str
    stage: str = ""
    step: int | None = None  # the step it became; None for one that only changes the configuration
    trigger: bool = False  # an ONBUILD instruction of the base, run at this stage's FROM


class HistoryItem(Data, frozen=True, kw_only=True):
    """An entry of the image's history beyond its base's. Without `step`, or when that step gave no layer, it is an
    `empty_layer`."""

    created_by: str
    comment: str = ""
    author: str = ""
    step: int | None = None


class Result(Data, frozen=True, kw_only=True):
    """The image to be made."""

    step: int  # whose snapshot it has
    config: dict[str, Any]  # the OCI configuration's `config`
    architecture: str
    variant: str = ""
    os: str = "linux"
    author: str = ""
    base_image_id: str = ""  # "" for one from scratch; its history comes first
    history: tuple[HistoryItem, ...] = ()


class Graph(Data, frozen=True, kw_only=True):
    """A whole build: only steps that the result needs."""

    steps: tuple[Step, ...]
    result: Result
    lines: tuple[Line, ...] = ()
    warnings: tuple[Finding, ...] = ()
