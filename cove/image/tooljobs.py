"""Jobs of the image tools, and their answers: what the daemon and a worker say to each other. No I/O."""

from __future__ import annotations

import msgspec

from cove.image.checktypes import Listing, Records, Report


class ToolMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of these jobs and answers."""


class CheckStore(ToolMessage, tag="check-store", frozen=True, kw_only=True):
    """Compare records and disk; `deep`: read every layer again. `running`: as find_problems has it."""

    root: str
    records: Records
    listing: Listing
    running: bool = False
    deep: bool = False


class Checked(ToolMessage, tag="checked", frozen=True, kw_only=True):
    report: Report


class Survey(ToolMessage, tag="survey", frozen=True, kw_only=True):
    """Where the bytes of a stack are: names of layers below `root`, lowest first."""

    root: str
    layers: tuple[str, ...]


class SizedPath(ToolMessage, frozen=True, kw_only=True):
    path: str
    bytes: int


class LayerFacts(ToolMessage, frozen=True, kw_only=True):
    """One layer: all its files, and those of them that nobody sees in the image."""

    files: int
    bytes: int
    hidden_files: int
    hidden_bytes: int
    whiteouts: int
    directories: tuple[SizedPath, ...]  # those with most in them, what is below them included
    largest: tuple[SizedPath, ...]


class Wasted(ToolMessage, frozen=True, kw_only=True):
    """A file or directory that a later layer replaced or deleted; layers count from the lowest."""

    path: str
    bytes: int
    layer: int
    by: int
    how: str


class Surveyed(ToolMessage, tag="surveyed", frozen=True, kw_only=True):
    layers: tuple[LayerFacts, ...]
    wasted: tuple[Wasted, ...]


class Compare(ToolMessage, tag="compare", frozen=True, kw_only=True):
    """What differs between two stacks."""

    root: str
    first: tuple[str, ...]
    second: tuple[str, ...]


class FileChange(ToolMessage, frozen=True, kw_only=True):
    path: str
    kind: str  # added, removed, changed
    type: str  # of what is there now, or was
    what: tuple[str, ...] = ()  # type, content, target, device, mode, owner, attributes, time
    size_before: int
    size_after: int


class Compared(ToolMessage, tag="compared", frozen=True, kw_only=True):
    changes: tuple[FileChange, ...]
    truncated: bool  # there are more


class ReadStack(ToolMessage, tag="read-stack", frozen=True, kw_only=True):
    """Write a stack to the data socket as one layer; `whole`: there is nothing below it."""

    root: str
    layers: tuple[str, ...]
    whole: bool
    opened: tuple[bytes, ...] | None = None  # keep only these, as slimming.py has it (None: everything)
    include: tuple[str, ...] = ()


class StackRead(ToolMessage, tag="stack-read", frozen=True, kw_only=True):
    pass


class Record(ToolMessage, tag="record", frozen=True, kw_only=True):
    """Tell what is opened on the overlay that the descriptor `tree` is in, until the data socket's end."""

    tree: int


class Recorded(ToolMessage, tag="recorded", frozen=True, kw_only=True):
    """Paths as the container sees them, files and directories, in no order."""

    opened: tuple[bytes, ...]
    lost: bool = False  # there were more than could be kept


class Slim(ToolMessage, tag="slim", frozen=True, kw_only=True):
    """What an image of a stack would keep and leave out. `opened` and `include`: see slimming.py."""

    root: str
    layers: tuple[str, ...]
    opened: tuple[bytes, ...]
    include: tuple[str, ...] = ()


class Share(ToolMessage, frozen=True, kw_only=True):
    """What of a directory, package or layer is kept, and what it has in all."""

    name: str
    kept_files: int
    kept_bytes: int
    files: int
    bytes: int


class Slimmed(ToolMessage, tag="slimmed", frozen=True, kw_only=True):
    kept_files: int
    kept_bytes: int
    files: int
    bytes: int
    layers: tuple[Share, ...]
    directories: tuple[Share, ...]
    packages: tuple[Share, ...]
    largest_left: tuple[SizedPath, ...]
    missing: tuple[str, ...]  # patterns that nothing matched


class DedupeLayers(ToolMessage, tag="dedupe", frozen=True, kw_only=True):
    """Have equal files of these layers share their blocks. `root` is the store, `staging` a directory in it."""

    root: str
    staging: str
    layers: tuple[str, ...]
    mounted: tuple[str, ...] = ()
    fresh: tuple[str, ...] | None = None
    dry_run: bool = False


class Deduped(ToolMessage, tag="deduped", frozen=True, kw_only=True):
    files: int  # that were looked at: of a name that several layers have
    compared: int  # pairs that were read
    joined: int
    saved_bytes: int
    kept: int  # equal files that stay, as both are mounted
    how: str  # hard links or extents


class BuildErofs(ToolMessage, tag="erofs", frozen=True, kw_only=True):
    """Make an EROFS image of the layer's directory `layer`, as the file `image` in the directory `staging`."""

    layer: str
    staging: str
    image: str


class ErofsBuilt(ToolMessage, tag="erofs-built", frozen=True, kw_only=True):
    bytes: int


ToolJob = CheckStore | Survey | Compare | ReadStack | Record | Slim | DedupeLayers | BuildErofs
ToolAnswer = Checked | Surveyed | Compared | StackRead | Recorded | Slimmed | Deduped | ErofsBuilt
