"""What the daemon and a worker that speaks with a registry say to each other. No I/O.

The worker gets a `Fetch` job and then commands, each with an id of its own, and answers each exactly once, in any
order; in between it asks for addresses, since it has no file to look names up in.
"""

from __future__ import annotations

import msgspec

from cove.image.registry.auth import Credentials
from cove.image.registry.endpoints import Endpoint


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of commands and replies."""


class Timing(Message, frozen=True, kw_only=True):
    """How long a registry is waited for; seconds, and bytes per second."""

    connect_s: float = 15.0
    idle_s: float = 30.0  # between two bytes
    head_s: float = 60.0  # for a whole answer's head
    document_s: float = 120.0  # for a whole small answer
    window_s: float = 30.0  # over which the least speed is measured
    least_bytes_per_s: int = 1024
    attempts: int = 5  # at a thing, without any progress
    patience_s: float = (
        90.0  # that attempts which fail may take together, waits that were asked for not counted
    )
    backoff_s: float = 0.5  # doubling
    retry_after_max_s: float = 60.0


class Fetch(Message, tag="fetch", frozen=True, kw_only=True):
    """The job: speak with the registry of one repository; `root` is an empty directory, all that the worker sees."""

    endpoints: tuple[Endpoint, ...]
    repository: str
    credentials: Credentials
    timing: Timing
    user_agent: str
    root: str


# --- commands -----------------------------------------------------------------------------


class GetDocument(Message, tag="get", frozen=True, kw_only=True):
    """A small document: `path` in the repository, e.g. manifests/latest."""

    id: int
    path: str
    limit: int
    accept: str = ""
    method: str = "GET"


class StreamBlob(Message, tag="stream", frozen=True, kw_only=True):
    """Write a blob from `offset` on to the socket that comes with the command, in order, and close it."""

    id: int
    digest: str
    size: int
    offset: int = 0
    foreign: bool = False
    connections: int = 4  # at a time, for a large blob


class Addresses(Message, tag="addresses", frozen=True, kw_only=True):
    """What `Lookup` asked for: numeric addresses, none when the name isn't known."""

    id: int
    addresses: tuple[str, ...]


class BlobForm(Message, frozen=True, kw_only=True):
    """A form in which a blob may be at the registry; `mounts` are repositories there that have it."""

    digest: str
    size: int
    mounts: tuple[str, ...] = ()


class PushBlob(Message, tag="push-blob", frozen=True, kw_only=True):
    """Find a blob in one of its forms in the repository, mount it, or send it: `file` says that a descriptor comes with
    the command, which has the bytes from `offset` on; without `digest` they are still being written (`Grow`)."""

    id: int
    forms: tuple[BlobForm, ...] = ()
    file: bool = False
    offset: int = 0
    size: int = 0
    digest: str = ""
    anew: bool = False  # send it even if the registry says that it is there


class Grow(Message, tag="grow", frozen=True, kw_only=True):
    """So much of what `PushBlob` with this id sends is written; with `digest`, all of it. `failed`: it ends here."""

    id: int
    size: int = 0
    digest: str = ""
    failed: bool = False


class PutManifest(Message, tag="put-manifest", frozen=True, kw_only=True):
    """Put a manifest under a tag or its own digest."""

    id: int
    reference: str
    data: bytes
    media_type: str
    digest: str


class GetUrl(Message, tag="get-url", frozen=True, kw_only=True):
    """Write what a URL gives to the file that comes with the command; no registry's, nobody is told who asks."""

    id: int
    url: str
    limit_bytes: int


Command = GetDocument | StreamBlob | PushBlob | Grow | PutManifest | GetUrl | Addresses


# --- replies ------------------------------------------------------------------------------


class Lookup(Message, tag="lookup", frozen=True, kw_only=True):
    """Ask for the addresses of a host."""

    id: int
    host: str
    port: int


class Document(Message, tag="document", frozen=True, kw_only=True):
    """A document, not verified."""

    id: int
    data: bytes
    media_type: str = ""
    digest: str = ""  # Docker-Content-Digest
    link: str = ""  # Link, where there is more
    size: int = -1  # Content-Length


class Streamed(Message, tag="streamed", frozen=True, kw_only=True):
    """The blob was written to its end."""

    id: int


class BlobMoved(Message, tag="blob-moved", frozen=True, kw_only=True):
    """So many bytes of a blob that is being pushed are there; no answer yet."""

    id: int
    current: int


class BlobPushed(Message, tag="blob-pushed", frozen=True, kw_only=True):
    """The blob is in the repository: `how` is exists, mounted (from `source`) or pushed; or it is missing there, and no
    bytes came with the command."""

    id: int
    digest: str
    size: int
    how: str
    source: str = ""


class ManifestPut(Message, tag="manifest-put", frozen=True, kw_only=True):
    """The manifest is there; `subject` is the digest that the registry lists it as a referrer of, or ""."""

    id: int
    subject: str


class UrlWritten(Message, tag="url-written", frozen=True, kw_only=True):
    """All of it was written."""

    id: int
    size: int
    modified: str = ""  # Last-Modified
    media_type: str = ""


class CommandFailed(Message, tag="command-failed", frozen=True, kw_only=True):
    """A command failed: a class of cove.model.errors by name, and its sentence."""

    id: int
    error: str
    sentence: str


Reply = Lookup | Document | Streamed | BlobMoved | BlobPushed | ManifestPut | UrlWritten | CommandFailed


def decode_command(data: bytes) -> Command:
    """A command as the daemon wrote it."""
    command: Command = msgspec.json.decode(data, type=Command)
    return command


def decode_reply(data: bytes) -> Reply:
    """A reply; a worker that lies about its shape is an error of msgspec's."""
    reply: Reply = msgspec.json.decode(data, type=Reply)
    return reply
