"""The store on one machine: SQLite, one connection, used inline on the event loop.

Owns `state.db`, its lock file, and two tasks (expiry of leases, write-behind to the disk). A
transaction takes some tens of microseconds, less than handing it to a thread would, so it runs where it
is called; no other statement can come between, which is what makes it atomic towards other callers.

Durability (docs/decisions/0002-store.md): a call that returned is in the kernel's hands, so kill -9
loses nothing. It is on the disk at most SYNC_DELAY_S later, by a thread that syncs the write-ahead log
and moves it into the database; a power cut in between loses those last changes, never the consistency.

Order that must hold: lock file, then database, at open; the reverse at close. `synchronous` stays at
NORMAL at least: below that, a power cut while the log is reused could mix old pages with new ones.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import logging
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from cove.model.errors import Conflict, HostError, Invalid, NotFound, Unavailable
from cove.store.clock import Clock, MonotonicClock
from cove.store.history import HISTORY_CHANGES, History
from cove.store.interface import (
    MAX_OPERATIONS,
    MAX_TRANSACTION_BYTES,
    Change,
    Closed,
    Compacted,
    Compare,
    CreateRevision,
    Delete,
    DeletePrefix,
    Exists,
    Get,
    KeyValue,
    Lease,
    ModRevision,
    Op,
    Put,
    TxnResult,
    Value,
    Version,
    Watch,
)

APPLICATION_ID = 0x436F7665  # "Cove", in the database's header (sqlite.org/pragma.html#pragma_application_id)
SCHEMA_VERSION = 1
SYNC_DELAY_S = 0.5
CHECKPOINT_BYTES = 8 << 20  # size of the write-ahead log at which it is moved into the database

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER NOT NULL);
INSERT INTO meta VALUES (1, 1);
CREATE TABLE kv (
    key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL, create_revision INTEGER NOT NULL,
    mod_revision INTEGER NOT NULL, version INTEGER NOT NULL, lease INTEGER NOT NULL
);
CREATE INDEX kv_lease ON kv (lease) WHERE lease != 0;
CREATE TABLE leases (id INTEGER PRIMARY KEY, ttl_s REAL NOT NULL);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""  # noqa: S608 - constants only
_FALLOC_FL_KEEP_SIZE = 1  # linux/falloc.h
_COLUMNS = "key, value, create_revision, mod_revision, version, lease"
_SELECT = f"SELECT {_COLUMNS} FROM kv WHERE key = ?"  # noqa: S608 - constants only
_SELECT_RANGE = f"SELECT {_COLUMNS} FROM kv WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"  # noqa: S608
_SELECT_FROM = f"SELECT {_COLUMNS} FROM kv WHERE key >= ? ORDER BY key LIMIT ?"  # noqa: S608
_SELECT_LEASED = f"SELECT {_COLUMNS} FROM kv WHERE lease = ? AND lease != 0 ORDER BY key"  # noqa: S608
_INSERT = f"INSERT INTO kv ({_COLUMNS}) VALUES (?, ?, ?, ?, 1, ?)"  # noqa: S608
_UPDATE = "UPDATE kv SET value = ?, mod_revision = ?, version = ?, lease = ? WHERE key = ?"
_DELETE = "DELETE FROM kv WHERE key = ?"

_log = logging.getLogger(__name__)


class SqliteStore:
    """`cove.store.interface.Store` in one file. Made by `open`; one process at a time."""

    def __init__(
        self,
        path: Path,
        lock: int,
        db: sqlite3.Connection,
        behind: sqlite3.Connection,
        clock: Clock,
        history: int,
    ) -> None:
        self._path = path
        self._lock = lock
        self._db = db
        self._behind = behind  # used by the write-behind thread alone, while the loop goes on
        self._execute = db.execute
        self._revision: int = db.execute("SELECT revision FROM meta").fetchone()[0]
        self._history = History(self._revision, history)
        self._clock = clock
        self._leases: dict[int, SqliteLease] = {}
        self._leases_changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._dirty = asyncio.Event()
        self._closed = False
        for lease_id, ttl_s in db.execute("SELECT id, ttl_s FROM leases"):
            self._leases[lease_id] = SqliteLease(self, lease_id, ttl_s, clock.now() + ttl_s)
        self._tasks = [
            asyncio.create_task(self._expire_leases(), name="store: leases"),
            asyncio.create_task(self._write_behind(), name="store: write-behind"),
        ]

    @classmethod
    async def open(
        cls, path: Path, *, clock: Clock | None = None, history: int = HISTORY_CHANGES
    ) -> SqliteStore:
        """Open the database, making it when missing; `history` is how many changes watches can go back.

        Raises Conflict when another process has it open, HostError when it is damaged or isn't Cove's,
        Unavailable when a newer Cove wrote it. What is there is never overwritten.
        """
        lock = _take_lock(path)
        with ExitStack() as undo, _host_errors(path):
            undo.callback(os.close, lock)
            db = undo.enter_context(closing(_connect(path)))
            behind = undo.enter_context(closing(_connect(path)))
            _prepare(path, db)
            # A connection learns at its first read that there is a log to check point.
            behind.execute("SELECT revision FROM meta").fetchall()
            _reserve_log(Path(f"{path}-wal"))
            store = cls(path, lock, db, behind, clock or MonotonicClock(), history)
            undo.pop_all()
        return store

    # --- reading --------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        return self._revision

    async def get(self, key: str) -> KeyValue | None:
        with self._open():
            return self._find(key)

    async def range(self, prefix: str, *, limit: int = 0, revision: int = 0) -> list[KeyValue]:
        with self._open():
            if revision > self._revision:
                raise Invalid(f"revision {revision} is still to come; the newest is {self._revision}")
            if not revision or revision == self._revision:
                return self._find_range(prefix, limit)
            if revision < self._history.compacted:
                raise Compacted(
                    f"revision {revision} is no longer in the history;"
                    f" the oldest is {self._history.compacted}"
                )
            state = {pair.key: pair for pair in self._find_range(prefix, 0)}
            self._history.undo(prefix, revision, state)
            pairs = sorted(state.values(), key=lambda pair: pair.key)
            return pairs[:limit] if limit else pairs

    def watch(self, prefix: str, from_revision: int = 0) -> Watch:
        with self._open():
            return self._history.watch(prefix, from_revision)

    # --- writing --------------------------------------------------------------------------

    async def txn(
        self, compare: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        with self._open():
            _check_operations(then)
            _check_operations(otherwise)
            succeeded = all(map(self._holds, compare))
            results = self._run(then if succeeded else otherwise)
            return TxnResult(succeeded, self._revision, results)

    async def lease(self, ttl_s: float) -> Lease:
        if not 0 < ttl_s < 1e9:
            raise Invalid(f"a lease of {ttl_s} s isn't possible: give it more than 0 and less than 1e9 s")
        with self._open():
            lease = SqliteLease(self, secrets.randbits(62) | 1, ttl_s, self._clock.now() + ttl_s)
            self._execute("INSERT INTO leases VALUES (?, ?)", (lease.id, ttl_s))
            self._leases[lease.id] = lease
            self._leases_changed.set()
            self._dirty.set()
            return lease

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._history.close()
        self._closing.set()
        self._leases_changed.set()
        self._dirty.set()
        try:
            await asyncio.gather(*self._tasks)
        finally:
            # What a checkpoint can't write now (disk full) stays in the log and is found at the next open.
            with suppress(sqlite3.Error):
                await asyncio.to_thread(self._checkpoint, self._db, "TRUNCATE")
            self._behind.close()
            self._db.close()
            os.close(self._lock)

    # --- inside ---------------------------------------------------------------------------

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Refuse after close; take back a transaction that fails; tell the host's errors in a sentence."""
        if self._closed:
            raise Closed(f"the store {self._path} is closed")
        try:
            with _host_errors(self._path):
                yield
        except BaseException:
            if self._db.in_transaction:
                with suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors
                    self._execute("ROLLBACK")
            raise

    def _find(self, key: str) -> KeyValue | None:
        row = self._execute(_SELECT, (key,)).fetchone()
        return KeyValue(*row) if row is not None else None

    def _find_range(self, prefix: str, limit: int) -> list[KeyValue]:
        end = prefix_end(prefix)
        count = limit or -1
        if end is None:
            rows = self._execute(_SELECT_FROM, (prefix, count))
        else:
            rows = self._execute(_SELECT_RANGE, (prefix, end, count))
        return [KeyValue(*row) for row in rows]

    def _holds(self, compare: Compare) -> bool:
        pair = self._find(compare.key)
        match compare:
            case ModRevision():
                return (pair.mod_revision if pair else 0) == compare.equals
            case CreateRevision():
                return (pair.create_revision if pair else 0) == compare.equals
            case Exists():
                return pair is not None
            case Value():
                return pair is not None and pair.value == compare.equals
            case Version():
                return (pair.version if pair else 0) == compare.equals

    def _run(self, operations: Sequence[Op]) -> tuple[KeyValue | int | None, ...]:
        """Run a branch in one SQLite transaction and publish what it changed."""
        changes: list[Change] = []
        revision = self._revision + 1
        results: list[KeyValue | int | None] = []
        for operation in operations:
            match operation:
                case Get():
                    results.append(self._find(operation.key))
                case Put():
                    self._put(operation, revision, changes)
                    results.append(None)
                case Delete():
                    pair = self._find(operation.key)
                    results.append(self._delete((pair,) if pair else (), revision, changes))
                case DeletePrefix():
                    pairs = self._find_range(operation.prefix, 0)
                    results.append(self._delete(pairs, revision, changes))
        self._commit(revision, changes)
        return tuple(results)

    def _put(self, put: Put, revision: int, changes: list[Change]) -> None:
        if put.lease and put.lease not in self._leases:
            raise NotFound(f"lease {put.lease} of key {put.key!r} has ended: take a new one")
        previous = self._find(put.key)
        self._begin(changes)
        if previous is None:
            self._execute(_INSERT, (put.key, put.value, revision, revision, put.lease))
            current = KeyValue(put.key, put.value, revision, revision, 1, put.lease)
        else:
            version = previous.version + 1
            self._execute(_UPDATE, (put.value, revision, version, put.lease, put.key))
            current = KeyValue(put.key, put.value, previous.create_revision, revision, version, put.lease)
        changes.append(Change(revision, put.key, current, previous))

    def _delete(self, pairs: Sequence[KeyValue], revision: int, changes: list[Change]) -> int:
        for pair in pairs:
            self._begin(changes)
            self._execute(_DELETE, (pair.key,))
            changes.append(Change(revision, pair.key, None, pair))
        return len(pairs)

    def _begin(self, changes: Sequence[Change]) -> None:
        """Open SQLite's transaction before the first write; reads alone need none."""
        if not changes and not self._db.in_transaction:
            self._execute("BEGIN IMMEDIATE")

    def _commit(self, revision: int, changes: list[Change]) -> None:
        if not changes:
            return
        self._execute("UPDATE meta SET revision = ?", (revision,))
        self._execute("COMMIT")
        self._revision = revision
        self._dirty.set()
        self._history.append(changes)

    # --- leases ---------------------------------------------------------------------------

    def renew(self, lease: SqliteLease) -> None:
        """Move a lease's end; for SqliteLease. Raises NotFound when it has ended."""
        with self._open():
            if lease.id not in self._leases:
                raise NotFound(f"lease {lease.id} has ended: take a new one")
            lease.deadline = self._clock.now() + lease.ttl_s
            self._leases_changed.set()

    def revoke(self, lease: SqliteLease) -> None:
        """Delete a lease and its keys in one revision; for SqliteLease. Ended already is fine."""
        with self._open():
            if lease.id not in self._leases:
                return
            changes: list[Change] = []
            revision = self._revision + 1
            self._execute("BEGIN IMMEDIATE")
            self._execute("DELETE FROM leases WHERE id = ?", (lease.id,))
            pairs = [KeyValue(*row) for row in self._execute(_SELECT_LEASED, (lease.id,)).fetchall()]
            self._delete(pairs, revision, changes)
            if changes:
                self._commit(revision, changes)
            else:
                self._execute("COMMIT")
            del self._leases[lease.id]
            self._leases_changed.set()

    async def _expire_leases(self) -> None:
        """Revoke each lease at its deadline, until the store closes."""
        retry_at: float | None = None
        while not self._closing.is_set():
            self._leases_changed.clear()
            deadlines = [lease.deadline for lease in self._leases.values()]
            next_at = min(deadlines, default=None)
            if retry_at is not None and next_at is not None:
                next_at = max(next_at, retry_at)
            await self._clock.wait(next_at, self._leases_changed)
            now = self._clock.now()
            retry_at = None
            for lease in [lease for lease in self._leases.values() if lease.deadline <= now]:
                if self._closing.is_set():
                    return
                try:
                    self.revoke(lease)
                except HostError as error:
                    _log.error("a lease couldn't be ended, trying again in a second: %s", error)
                    retry_at = now + 1.0

    # --- the disk -------------------------------------------------------------------------

    async def _write_behind(self) -> None:
        """Bring what was committed onto the disk, soon after it happened, without stopping the loop."""
        while not self._closing.is_set():
            await self._dirty.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(SYNC_DELAY_S):
                    await self._closing.wait()
            self._dirty.clear()
            try:
                await asyncio.to_thread(self._sync)
            except (OSError, sqlite3.Error) as error:
                _log.error("the store %s couldn't be synced to the disk: %s", self._path, error)

    def _sync(self) -> None:
        """In a thread: sync the write-ahead log, or move it into the database when it has grown."""
        log = os.open(f"{self._path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(log).st_size < CHECKPOINT_BYTES:
                os.fdatasync(log)
                return
        finally:
            os.close(log)
        # PASSIVE never waits for the writer, and the writer doesn't wait for it.
        self._checkpoint(self._behind, "PASSIVE")

    @staticmethod
    def _checkpoint(connection: sqlite3.Connection, mode: str) -> None:
        connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()


class SqliteLease:
    """A lease of a SqliteStore; see `cove.store.interface.Lease`."""

    def __init__(self, store: SqliteStore, lease_id: int, ttl_s: float, deadline: float) -> None:
        self._store = store
        self._id = lease_id
        self._ttl_s = ttl_s
        self.deadline = deadline  # by the store's clock

    @property
    def id(self) -> int:
        return self._id

    @property
    def ttl_s(self) -> float:
        return self._ttl_s

    async def keep_alive(self) -> None:
        self._store.renew(self)

    async def revoke(self) -> None:
        self._store.revoke(self)


def prefix_end(prefix: str) -> str | None:
    """The first key after all keys with the prefix, in order of UTF-8 bytes; None: there is none."""
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return None
    last = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if last == 0xD800 else last)  # surrogates aren't characters


def _check_operations(operations: Sequence[Op]) -> None:
    """Refuse what etcd would refuse: too much, bad keys, a key written twice."""
    if len(operations) > MAX_OPERATIONS:
        raise Invalid(f"{len(operations)} operations in one transaction; {MAX_OPERATIONS} are the limit")
    written: set[str] = set()
    prefixes: list[str] = []
    size = 0
    for operation in operations:
        match operation:
            case Put() | Delete():
                if operation.key in written:
                    raise Invalid(f"key {operation.key!r} is written twice in one transaction")
                written.add(operation.key)
                size += len(operation.key)
                if isinstance(operation, Put):
                    _check_key(operation.key)
                    size += len(operation.value)
            case DeletePrefix():
                prefixes.append(operation.prefix)
            case Get():
                pass
    if size > MAX_TRANSACTION_BYTES:
        raise Invalid(f"{size} bytes in one transaction; {MAX_TRANSACTION_BYTES} are the limit")
    if prefixes:
        for key in written:
            if key.startswith(tuple(prefixes)):
                raise Invalid(f"key {key!r} is written twice in one transaction: by itself and by its prefix")
        for index, prefix in enumerate(prefixes):
            if any(prefix.startswith(other) for at, other in enumerate(prefixes) if at != index):
                raise Invalid(f"prefix {prefix!r} is deleted twice in one transaction")


def _check_key(key: str) -> None:
    if not key or "\0" in key:
        raise Invalid(f"{key!r} isn't a key: a key has one character at least, and no NUL")
    if not key.isascii():
        try:
            key.encode()
        except UnicodeEncodeError as error:
            raise Invalid(f"{key!r} isn't a key: it isn't valid Unicode") from error


# --- opening ------------------------------------------------------------------------------


def _take_lock(path: Path) -> int:
    """flock(2) of a file beside the database; it ends with the process, however that ends."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HostError(f"the store's lock {lock_path} can't be opened: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise Conflict(
            f"the store {path} is in use by another Cove daemon:"
            " stop that one, or give this one another --data-root"
        ) from None
    return lock


def _connect(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # before SQLite holds locks on it
    connection = sqlite3.connect(
        f"file:{_quoted(path)}?mode=rw",
        uri=True,
        isolation_level=None,  # transactions are written out here
        check_same_thread=False,
        cached_statements=64,
        timeout=5.0,
    )
    connection.execute("PRAGMA synchronous = NORMAL").fetchall()
    return connection


def _prepare(path: Path, db: sqlite3.Connection) -> None:
    """Check whose database this is and whether it is whole; make the tables in a new one."""
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if tables and application != APPLICATION_ID:
        raise HostError(
            f"{path} is a database of another program (application id {application:#x}): "
            "move it away, or give the daemon another --data-root"
        )
    if version > SCHEMA_VERSION:
        raise Unavailable(
            f"{path} was written by a newer Cove (schema {version}, this one knows {SCHEMA_VERSION}): "
            "run that version, or give the daemon another --data-root"
        )
    db.execute("PRAGMA journal_mode = WAL").fetchall()
    db.execute("PRAGMA wal_autocheckpoint = 0").fetchall()  # _write_behind does that, off the loop
    if not tables:
        db.executescript(_SCHEMA)
        return
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise HostError(f"the store {path} is damaged ({verdict}): restore it from a backup, or move it away")


def _reserve_log(log: Path) -> None:
    """Give the write-ahead log all its blocks at once, beyond its end (fallocate(2) with KEEP_SIZE): on a disk that
    fills up later, exits are still recorded and things can be removed, some hundred transactions long."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        if fallocate(descriptor, _FALLOC_FL_KEEP_SIZE, 0, CHECKPOINT_BYTES) != 0:
            reason = os.strerror(ctypes.get_errno())
            _log.warning("no space is set aside for a full disk: %s: %s", log, reason)
    finally:
        os.close(descriptor)


def _quoted(path: Path) -> str:
    """A path in a file: URI (sqlite.org/uri.html)."""
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


@contextmanager
def _host_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeEncodeError as error:
        raise Invalid(f"{error.object!r} isn't a key: it isn't valid Unicode") from error
    except OSError as error:
        raise HostError(f"the store {path} can't be opened: {error.strerror}") from error
    except sqlite3.Error as error:
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:
            case sqlite3.SQLITE_FULL:
                told = "the disk is full; nothing was changed: free some space and try again"
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                told = f"it is damaged ({error}): restore it from a backup, or move it away"
            case _:
                told = f"the host failed ({error}); nothing was changed"
        raise HostError(f"the store {path}: {told}") from error
