"""The store's interface: keys, revisions, transactions, watches and leases, with etcd's semantics.

Owns the words that every implementation shares; holds no state and does no I/O. Whoever writes
against this module can't tell whether SQLite or etcd is behind it, so a rule of etcd's is a rule
here too (etcd.io/docs/v3.5/learning/api):

- A transaction that writes gets the next revision, and everything it writes shares that one. A
  transaction that changes nothing (a delete of a missing key included) takes no revision.
- A key may be written once in a transaction. Operations run in order; a Get sees the puts before it.
- `version` counts the writes since the key was created; a deletion starts over.
- A watch delivers each change once, in order of revision, from the revision it asks for. It never
  skips one: when a change it should have seen is gone from the history, it raises Compacted, and the
  caller lists again and watches from the revision after the listing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from cove.model.errors import Invalid, Unavailable

MAX_OPERATIONS = 1024  # of one branch of a transaction; etcd is to be run with --max-txn-ops=1024
MAX_TRANSACTION_BYTES = 1_500_000  # of keys and values; etcd's --max-request-bytes is 1.5 MiB


class Compacted(Invalid):
    """A revision is no longer in the history: list the keys again and go on from there."""

    code = "compacted"


class Closed(Unavailable):
    """The store was closed; nothing can be read or written through it any more."""

    code = "store-closed"


class KeyValue(msgspec.Struct, frozen=True, gc=False):
    """A key with its value. `lease` is the id of the lease it belongs to, or 0."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


# --- what a transaction compares ----------------------------------------------------------


class Value(msgspec.Struct, frozen=True, gc=False):
    """True when the key exists and has this value."""

    key: str
    equals: bytes


class ModRevision(msgspec.Struct, frozen=True, gc=False):
    """True when the key was last written at this revision; 0 means that it doesn't exist."""

    key: str
    equals: int


class CreateRevision(msgspec.Struct, frozen=True, gc=False):
    """True when the key was created at this revision; 0 means that it doesn't exist."""

    key: str
    equals: int


class Version(msgspec.Struct, frozen=True, gc=False):
    """True when the key was written this often since its creation; 0 means that it doesn't exist."""

    key: str
    equals: int


class Exists(msgspec.Struct, frozen=True, gc=False):
    """True when the key exists (etcd: its create revision is greater than 0)."""

    key: str


Compare = Value | ModRevision | CreateRevision | Version | Exists


def absent(key: str) -> CreateRevision:
    """The comparison that holds when the key doesn't exist."""
    return CreateRevision(key, 0)


# --- what a transaction does --------------------------------------------------------------


class Put(msgspec.Struct, frozen=True, gc=False):
    """Write a key. With a `lease` (Lease.id) the key goes when the lease ends; 0 takes it off any lease."""

    key: str
    value: bytes
    lease: int = 0


class Delete(msgspec.Struct, frozen=True, gc=False):
    """Delete a key; a missing one is fine."""

    key: str


class DeletePrefix(msgspec.Struct, frozen=True, gc=False):
    """Delete every key that starts with the prefix ("" means all)."""

    prefix: str


class Get(msgspec.Struct, frozen=True, gc=False):
    """Read a key as the operations before this one left it."""

    key: str


Op = Put | Delete | DeletePrefix | Get


class TxnResult(msgspec.Struct, frozen=True):
    """What a transaction did.

    `succeeded` says which branch ran. `revision` is the store's after it. `results` has one entry for
    each operation of that branch: Put → None, Get → KeyValue or None, deletions → how many keys went.
    """

    succeeded: bool
    revision: int
    results: tuple[KeyValue | int | None, ...] = ()

    def found(self, index: int) -> KeyValue | None:
        """The result of the Get at `index` of the branch that ran."""
        result = self.results[index]
        assert not isinstance(result, int), "the operation at this index isn't a Get"
        return result


class Change(msgspec.Struct, frozen=True):
    """One key's change: `current` is None when it was deleted, `previous` None when it was created."""

    revision: int
    key: str
    current: KeyValue | None
    previous: KeyValue | None


class Watch(Protocol):
    """A running watch: iterate over it, and call `aclose` (or use contextlib.aclosing) when done."""

    def __aiter__(self) -> AsyncIterator[Change]: ...

    async def __anext__(self) -> Change:
        """The next change. Raises Compacted, and Closed when the store is closed."""
        ...

    async def aclose(self) -> None: ...


class Lease(Protocol):
    """A lifetime that keys can share: when it ends, they vanish together, in one revision."""

    @property
    def id(self) -> int: ...

    @property
    def ttl_s(self) -> float: ...

    async def keep_alive(self) -> None:
        """Let the lease live for another `ttl_s` from now. Raises NotFound when it has ended."""
        ...

    async def revoke(self) -> None:
        """End the lease now; one that has ended already is fine."""
        ...


class Store(Protocol):
    """See the module. A call that returned has committed; one that raised has changed nothing.

    Every method raises Closed after `close`, and HostError when the host fails (disk full, bad disk).
    """

    @property
    def revision(self) -> int:
        """The revision of the last write seen; 1 in a new store, as in etcd."""
        ...

    async def get(self, key: str) -> KeyValue | None: ...

    async def range(self, prefix: str, *, limit: int = 0, revision: int = 0) -> list[KeyValue]:
        """The keys that start with `prefix`, in order of their UTF-8 bytes.

        `limit` 0 means all. `revision` 0 means now, another one the state as of that revision: Compacted
        when that's too old, Invalid when it is still to come.
        """
        ...

    async def txn(
        self, compare: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        """Run `then` when all comparisons hold, else `otherwise`, atomically.

        Raises Invalid for a key written twice or too large a request, NotFound for a lease that has ended.
        """
        ...

    def watch(self, prefix: str, from_revision: int = 0) -> Watch:
        """Watch keys from a revision on, inclusive; 0 means changes made after this call."""
        ...

    async def lease(self, ttl_s: float) -> Lease:
        """Grant a lease. After a restart of the store a lease lives for another `ttl_s`, as in etcd."""
        ...

    async def close(self) -> None:
        """Write everything to the disk and end every watch with Closed. Idempotent."""
        ...
