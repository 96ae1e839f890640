"""Secrets: small contents that containers get in memory, and that nothing shows.

Owns DATA_ROOT/secrets and the keys `secrets/NAME` (a SecretRecord; for one that came with a container and belongs
to it, `secrets/ID`). A version of a content is a file of its own, `ID.VERSION`, 0600, written and synced before
the record that names it; what no record names is deleted at the next open. Neither a record nor an error ever
holds content, or a digest of it: a short secret could be guessed from that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from cove.model.base import Model
from cove.model.errors import Conflict, HostError, Invalid, NotFound
from cove.store.interface import Delete, Put, Store, absent

MAX_BYTES = 500 << 10  # Docker's bound
MAX_SECRETS = 10_000
_KEYS = "secrets/"
_NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,62}[a-zA-Z0-9])?")

_encode = msgspec.json.Encoder().encode


class SecretRecord(Model, frozen=True, kw_only=True):
    id: str
    name: str = ""  # "": it belongs to `owner`
    owner: str = ""  # a container's id
    created_ns: int
    updated_ns: int
    labels: dict[str, str] = {}
    size_bytes: int
    version: int = 1

    @property
    def key(self) -> str:
        return _KEYS + (self.name or self.id)


_decode = msgspec.json.Decoder(SecretRecord).decode


class Secrets:
    """All secrets of this daemon. Reads of records come from memory."""

    def __init__(self, root: Path, store: Store) -> None:
        self._root = root
        self._store = store
        self._records: dict[str, SecretRecord] = {}  # by name, or by id for one that belongs to a container
        self._lock = asyncio.Lock()  # of writers: they are few

    @classmethod
    async def open(cls, root: Path, store: Store, owners: Iterable[str]) -> Secrets:
        """Load the records; what belongs to a container that isn't among `owners` goes, for its create failed."""
        found = cls(root, store)
        known = set(owners)
        try:
            root.mkdir(mode=0o700, exist_ok=True)
            os.chmod(root, 0o700)
            for pair in await store.range(_KEYS):
                record = _decode(pair.value)
                if record.owner and record.owner not in known:
                    await store.txn([], [Delete(record.key)])
                    continue
                found._records[record.name or record.id] = record
            current = {found._path(record).name for record in found._records.values()}
            for name in os.listdir(root):
                if name not in current:
                    os.unlink(root / name)
        except OSError as error:
            raise HostError(f"secrets in {root}: {error.strerror}") from error
        return found

    def _path(self, record: SecretRecord) -> Path:
        return self._root / f"{record.id}.{record.version}"

    def list(self) -> Sequence[SecretRecord]:
        """Those that have a name, by it."""
        return sorted((r for r in self._records.values() if r.name), key=lambda record: record.name)

    def find(self, reference: str) -> SecretRecord:
        """By name, or by id. Raises NotFound."""
        record = self._records.get(reference)
        if record is None:
            record = next((r for r in self._records.values() if r.id == reference), None)
        if record is None:
            raise NotFound(
                f"No such secret: {reference[:80]}: cove secret ls lists them, cove secret create makes one"
            )
        return record

    def find_named(self, reference: str) -> SecretRecord:
        """By name, or by the id of one that has a name: what a container brought is nobody else's. Raises NotFound."""
        record = self.find(reference)
        if not record.name:
            raise NotFound(f"No such secret: {reference[:80]}: it belongs to a container")
        return record

    def read(self, reference: str) -> bytes:
        """The content. Raises NotFound, HostError. For any thread: an update may come between record and file."""
        while True:
            record = self.find(reference)
            try:
                return self._path(record).read_bytes()
            except OSError as error:
                if isinstance(error, FileNotFoundError) and self.find(reference) is not record:
                    continue
                raise HostError(f"secret {record.name or record.id}: {error.strerror}") from error

    async def create(
        self, name: str, content: bytes, labels: Mapping[str, str], *, owner: str = ""
    ) -> SecretRecord:
        """Make one; without a name it belongs to `owner`. Raises Invalid, Conflict."""
        if not owner and not _NAME.fullmatch(name):
            raise Invalid(
                f"secret name {name[:80]!r}: expected up to 64 letters, digits, '-', '_' and '.', e.g. db-password"
            )
        _check_size(content)
        now_ns = time.time_ns()
        record = SecretRecord(
            id=secrets.token_hex(16),
            name=name,
            owner=owner,
            created_ns=now_ns,
            updated_ns=now_ns,
            labels=dict(labels),
            size_bytes=len(content),
        )
        async with self._lock:
            if record.name in self._records:
                raise Conflict(
                    f"secret {name} exists already: cove secret update changes it, cove secret rm removes it"
                )
            if len(self._records) >= MAX_SECRETS:
                raise Conflict(f"there are {MAX_SECRETS} secrets, the most there can be: remove some")
            await self._write(record, content)
            await self._store.txn([absent(record.key)], [Put(record.key, _encode(record))])
            self._records[record.name or record.id] = record
        return record

    async def update(self, name: str, content: bytes) -> SecretRecord:
        """Give it new content; who delivers it to containers is told by the caller. Raises NotFound, Invalid."""
        _check_size(content)
        async with self._lock:
            old = self.find(name)
            record = msgspec.structs.replace(
                old, updated_ns=time.time_ns(), size_bytes=len(content), version=old.version + 1
            )
            await self._write(record, content)
            await self._store.txn([], [Put(record.key, _encode(record))])
            self._records[record.name or record.id] = record
            self._unlink(old)
        return record

    async def remove(self, name: str, in_use: Callable[[str], Sequence[str]]) -> SecretRecord:
        """Remove it. Raises NotFound, Conflict while a container has it."""
        async with self._lock:
            record = self.find(name)
            users = in_use(record.name)
            if users:
                shown = ", ".join(user[:12] for user in users[:5])
                raise Conflict(f"secret {record.name} is in use by {shown}: remove the container first")
            await self._forget(record)
        return record

    async def remove_owned(self, owner: str) -> None:
        """Remove what belongs to a container; nothing does, mostly."""
        owned = [record for record in self._records.values() if record.owner == owner]
        if owned:
            async with self._lock:
                for record in owned:
                    await self._forget(record)

    async def _forget(self, record: SecretRecord) -> None:
        await self._store.txn([], [Delete(record.key)])
        self._records.pop(record.name or record.id, None)
        self._unlink(record)

    def _unlink(self, record: SecretRecord) -> None:
        with contextlib.suppress(OSError):  # the next open deletes it
            self._path(record).unlink()

    async def _write(self, record: SecretRecord, content: bytes) -> None:
        path = self._path(record)
        try:
            await asyncio.to_thread(_write_synced, path, content)
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink()
            raise HostError(f"secret {record.name}: {error.strerror}") from error


def _check_size(content: bytes) -> None:
    if not 0 < len(content) <= MAX_BYTES:
        raise Invalid(f"a secret has 1 to {MAX_BYTES} bytes, and this one has {len(content)}")


def _write_synced(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
