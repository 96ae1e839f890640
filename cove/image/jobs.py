"""What the daemon and a worker say to each other. No I/O.

A worker gets one job, sends any number of reports and then exactly one answer; bytes of archives go over
a socket of their own. Paths of files are text with surrogateescape, as Python has them.
"""

from __future__ import annotations

import msgspec

from cove.image.registry.messages import Fetch
from cove.image.scantypes import ScanAnswer, ScanJob
from cove.image.tooljobs import ToolAnswer, ToolJob
from cove.image.treeindex import FileEntry
from cove.image.types import Limits, PathStat
from cove.model import errors
from cove.model.errors import CoveError, HostError
from cove.signing.types import Question, Signature, Verdict


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of jobs and answers."""


# --- jobs ---------------------------------------------------------------------------------


class Unpack(Message, tag="unpack", frozen=True, kw_only=True):
    """Read an archive of images (`single`: of one layer's files) from the data socket into `staging`."""

    staging: str
    known: tuple[str, ...] = ()  # digests that need not be unpacked again
    single: bool = False
    budget_bytes: int
    limits: Limits


class SaveMember(Message, frozen=True, kw_only=True):
    """One member of an archive to be written: its text, a blob, or a layer by its frame."""

    name: str
    size: int
    data: bytes = b""
    blob: str = ""  # hex digits
    layer: str = ""
    moved: bool = False
    digest: str = ""  # what the content's digest has to be
    directory: bool = False


class Save(Message, tag="save", frozen=True, kw_only=True):
    """Write an archive of `members` to the data socket."""

    root: str
    members: tuple[SaveMember, ...]


class KeptLayer(Message, frozen=True, kw_only=True):
    """A layer to be compressed: kept as files and frame, or as a blob that is compressed in another way."""

    name: str
    diff_id: str
    moved: bool = False
    blob: str = ""  # hex digits
    compression: str = ""  # of the blob


class Compress(Message, tag="compress", frozen=True, kw_only=True):
    """Write layers, compressed, one behind the other to the descriptor `output`; each is reported (LayerCompressed)."""

    root: str
    layers: tuple[KeptLayer, ...]
    compression: str  # gzip or zstd
    level: int
    output: int
    budget_bytes: int


class BindMount(Message, frozen=True, kw_only=True):
    source: str
    subpath: str = ""  # below the source, which is the root for it
    layers: tuple[str, ...] = ()  # it is an image, of these layers, lowest first
    target: str
    readonly: bool = False


class OverlayPlace(Message, tag="overlay", frozen=True, kw_only=True):
    """A stopped container's tree."""

    lower: tuple[str, ...]
    layers_dir: str
    upper: str = ""
    work: str = ""
    mounts: tuple[BindMount, ...] = ()


class RunningPlace(Message, tag="running", frozen=True, kw_only=True):
    """A running container's tree; the pidfd is handed over at the fixed number."""


Place = OverlayPlace | RunningPlace


class StatPath(Message, tag="stat", frozen=True, kw_only=True):
    place: Place
    path: str


class ReadArchive(Message, tag="read", frozen=True, kw_only=True):
    """`bare`: the directory's entries without it, their names without one in front."""

    place: Place
    path: str
    bare: bool = False


class WriteArchive(Message, tag="write", frozen=True, kw_only=True):
    place: Place
    path: str
    owner: tuple[int, int] | None = None
    keep_kind: bool = False
    limits: Limits


class CopyUp(Message, tag="copy-up", frozen=True, kw_only=True):
    place: Place
    path: str
    destination: str


class ReadLayer(Message, tag="layer", frozen=True, kw_only=True):
    """Write a writable layer to the data socket as an image's layer; paths are relative to it (delta.py)."""

    upper: str
    opaque: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


class AttachMount(Message, tag="attach-mount", frozen=True, kw_only=True):
    """Attach a detached tree of mounts, the descriptor `tree`, at a path of a running container."""

    target: str
    tree: int


class DetachMounts(Message, tag="detach-mounts", frozen=True, kw_only=True):
    """Detach mounts of a running container: their ids by target."""

    mounts: dict[str, int]


class VerifySignatures(Message, tag="verify-signatures", frozen=True, kw_only=True):
    """Answer a question about signatures; without any, whether the question's keys can be read. `root` is empty."""

    root: str
    question: Question
    signatures: tuple[Signature, ...]
    now_s: float


class Adopt(Message, tag="adopt", frozen=True, kw_only=True):
    """Make a layer of the directory `0` in `staging` (adopt.py)."""

    staging: str
    opaque: tuple[bytes, ...] = ()
    left_out: tuple[bytes, ...] = ()
    clamp_ns: int | None = None


class PackedItem(Message, tag="packed", frozen=True, kw_only=True):
    """A source of a copy that is data: its entries, their paths relative to it (b"" is itself)."""

    name: bytes  # what it is called at the target, where that is a directory
    shown: bytes  # as it was found in its tree: what --parents keeps
    directory: bool
    unpack: bool = False  # ADD: an archive is unpacked
    entries: tuple[FileEntry, ...]


class TreeItem(Message, tag="tree", frozen=True, kw_only=True):
    """A source of a copy that is a path or wildcard in a snapshot."""

    tree: int
    path: bytes
    pivot: bytes = b""  # --parents: what of the path isn't made at the target
    unpack: bool = False


class CopyFiles(Message, tag="copy-files", frozen=True, kw_only=True):
    """Copy items onto a snapshot (`lower`), and make a layer of what that changed: `0` in `staging` (treecopy.py)."""

    staging: str
    layers_dir: str
    lower: tuple[str, ...]  # lowest first; () is an empty tree
    trees: tuple[tuple[str, ...], ...] = ()  # snapshots to copy from
    items: tuple[PackedItem | TreeItem, ...] = ()
    packs: tuple[int, ...] = ()  # descriptors, by the numbers that entries have
    target: bytes
    directory_only: bool = False  # WORKDIR: make the target, copy nothing
    owner: tuple[int, int] | None = None
    keep_owner: bool = False
    mode: str = ""
    excludes: tuple[str, ...] = ()
    parents: bool = False
    clamp_ns: int | None = None
    budget_bytes: int
    limits: Limits


class DigestItems(Message, tag="digest-items", frozen=True, kw_only=True):
    """The digest of the files that items in snapshots stand for."""

    staging: str
    layers_dir: str
    trees: tuple[tuple[str, ...], ...]
    items: tuple[TreeItem, ...]
    excludes: tuple[str, ...] = ()
    parents: bool = False
    owner: bool = False


class IndexContext(Message, tag="index-context", frozen=True, kw_only=True):
    """Read an archive from the data socket into the pack `pack` and the index `index` below `staging`."""

    staging: str
    budget_bytes: int
    limits: Limits


class CloneRepository(Message, tag="clone", frozen=True, kw_only=True):
    """Clone a repository with the host's git into `pack` and `index` below `staging` (cloning.py)."""

    staging: str
    url: str
    shown: str  # the address without what may be secret
    ref: str = ""
    subdirectory: str = ""
    checksum: str = ""  # what the commit begins with
    keep_git: bool = False
    submodules: bool = True
    header: str = ""  # of the Authorization
    budget_bytes: int
    limits: Limits


class UnpackBlob(Message, tag="unpack-blob", frozen=True, kw_only=True):
    """Unpack one layer that comes as a blob: what the file `partial` has first, then the data socket, which is written
    behind it. Nothing of it counts unless digest and size are right."""

    staging: str
    digest: str
    size: int
    partial: int  # a descriptor; its first `offset` bytes are here
    offset: int = 0
    budget_bytes: int
    limits: Limits


Job = (
    Unpack
    | UnpackBlob
    | Save
    | Compress
    | ReadLayer
    | StatPath
    | ReadArchive
    | WriteArchive
    | CopyUp
    | AttachMount
    | DetachMounts
    | ToolJob
    | ScanJob
    | VerifySignatures
    | Adopt
    | CopyFiles
    | DigestItems
    | IndexContext
    | CloneRepository
    | Fetch
)


# --- reports and answers ------------------------------------------------------------------


class Progress(Message, tag="progress", frozen=True, kw_only=True):
    """So much of a member of the archive was read."""

    name: str
    current: int
    total: int


class LayerCompressed(Message, tag="layer-compressed", frozen=True, kw_only=True):
    """So much of a layer (by its place in the job) is in the output from `offset` on; with `digest`, all of it."""

    number: int
    offset: int
    size: int
    digest: str = ""


class Member(Message, frozen=True, kw_only=True):
    """One member of an archive of images. What it is in says which of the fields are set."""

    name: str
    digest: str = ""
    size: int = 0
    link: str = ""  # another member's name
    data: bytes | None = None  # content that was small enough to be kept
    known: bool = False
    layer: int = -1  # the number of the directory it was unpacked into
    diff_id: str = ""
    compression: str = ""  # of the blob
    unpacked_bytes: int = 0
    tar_bytes: int = 0
    opaque: tuple[str, ...] = ()
    moved: int = 0


class Unpacked(Message, tag="unpacked", frozen=True, kw_only=True):
    members: tuple[Member, ...]


class Found(Message, tag="found", frozen=True, kw_only=True):
    """The path's facts; with ReadArchive the archive follows on the data socket."""

    stat: PathStat


class Adopted(Message, tag="adopted", frozen=True, kw_only=True):
    """The new layer; None: nothing was changed."""

    member: Member | None


class Digested(Message, tag="digested", frozen=True, kw_only=True):
    digest: str


class Cloned(Message, tag="cloned", frozen=True, kw_only=True):
    commit: str


class Done(Message, tag="done", frozen=True, kw_only=True):
    pass


class Failed(Message, tag="failed", frozen=True, kw_only=True):
    """The job failed: a class of cove.model.errors by name, and its sentence."""

    error: str
    sentence: str


class MountAttached(Message, tag="attached", frozen=True, kw_only=True):
    mount_id: int


class Verified(Message, tag="verified", frozen=True, kw_only=True):
    verdict: Verdict


Answer = (
    Progress
    | ScanAnswer
    | LayerCompressed
    | Unpacked
    | Found
    | MountAttached
    | Verified
    | Adopted
    | Digested
    | Cloned
    | Done
    | Failed
    | ToolAnswer
)


def decode_job(data: bytes) -> Job:
    """A job as the daemon wrote it."""
    job: Job = msgspec.json.decode(data, type=Job)
    return job


def decode_answer(data: bytes) -> Answer:
    """A report or an answer; a worker that lies about its shape is an error of msgspec's."""
    answer: Answer = msgspec.json.decode(data, type=Answer)
    return answer


def failure(error: CoveError) -> Failed:
    """An error as a message."""
    return Failed(error=type(error).__name__, sentence=str(error))


def raise_failure(failed: Failed) -> None:
    """Raise the error that a worker reported."""
    kind = getattr(errors, failed.error, HostError)
    raise (kind if isinstance(kind, type) and issubclass(kind, CoveError) else HostError)(failed.sentence)
