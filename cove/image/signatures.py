"""The signatures of this machine's images: kept beside their records, held and taken away with the image.

    images/signature/HEX/SIGNATURE   a Signature; HEX is the digest that it is of, SIGNATURE the SHA-256 of its record

They are small and live in the store alone, so that one transaction adds or removes them. Nothing here believes them: a
worker checks them (`verify`), for the daemon loads no cryptography.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import msgspec

from cove.image.jobs import Verified, VerifySignatures
from cove.image.records import hex_of
from cove.image.worker import Worker
from cove.model.errors import Conflict
from cove.signing.types import (
    PER_IMAGE_MAX,
    Question,
    Signature,
    Verdict,
    check_size,
    decode_signature,
    encode_signature,
)
from cove.store.interface import MAX_OPERATIONS, Delete, Put, Store

SIGNATURE = "images/signature/"
_log = logging.getLogger(__name__)


class Signatures:
    """See the module. Its owner says which digests images have."""

    def __init__(self, store: Store, empty: Path) -> None:
        """`empty` is a directory without anything in it: all that a worker sees."""
        self._store = store
        self._empty = empty
        self._known: dict[str, dict[str, None]] = {}  # by digest: the keys' last parts, in order
        self.changes = 0  # counts what was added and removed: whoever remembers a verdict compares it

    async def read(self, wanted: Collection[str]) -> None:
        """Read the keys, and remove those of digests that no image has: what a crash left."""
        orphans = []
        for item in await self._store.range(SIGNATURE):
            subject, _, name = item.key.removeprefix(SIGNATURE).partition("/")
            if f"sha256:{subject}" in wanted:
                self._known.setdefault(f"sha256:{subject}", {})[name] = None
            else:
                orphans.append(item.key)
        await self._delete(orphans)

    def count(self, digests: Iterable[str]) -> int:
        """How many signatures these digests have."""
        return sum(len(self._known.get(digest, ())) for digest in digests)

    async def list(self, digests: Iterable[str]) -> list[tuple[str, Signature]]:
        """Every signature of these digests, each with its digest."""
        found = []
        for digest in digests:
            if digest not in self._known:
                continue
            for item in await self._store.range(f"{SIGNATURE}{hex_of(digest)}/"):
                try:
                    found.append((digest, decode_signature(item.value)))
                except msgspec.MsgspecError as error:
                    _log.error("a signature of %s can't be read and is passed over: %s", digest, error)
        return found

    async def add(self, digest: str, signatures: Sequence[Signature]) -> int:
        """Keep signatures of a digest; how many are new. Raises Invalid, and Conflict when there are too many.

        The caller holds the images' lock, and has seen that an image has this digest.
        """
        known = self._known.get(digest, {})
        fresh: dict[str, bytes] = {}
        for signature in signatures:
            value = encode_signature(check_size(signature))
            name = hashlib.sha256(value).hexdigest()
            if name not in known:
                fresh[name] = value
        if len(known) + len(fresh) > PER_IMAGE_MAX:
            raise Conflict(f"{digest} has {len(known)} signatures already; the limit is {PER_IMAGE_MAX}")
        prefix = f"{SIGNATURE}{hex_of(digest)}/"
        for name, value in fresh.items():
            await self._store.txn([], [Put(prefix + name, value)])
            self._known.setdefault(digest, {})[name] = None
            self.changes += 1
        return len(fresh)

    async def hold(self, digest: str, signatures: Sequence[Signature]) -> None:
        """Keep what a registry has of an image that is about to come: as many as there is room for. What doesn't come
        leaves them to the next start."""
        room = PER_IMAGE_MAX - len(self._known.get(digest, ()))
        if len(signatures) > room:
            _log.warning("%s has %d signatures, %d of them are kept", digest, len(signatures), max(room, 0))
        with contextlib.suppress(Conflict):
            await self.add(digest, signatures[: max(room, 0)])

    async def forget(self, digests: Iterable[str]) -> int:
        """Forget the signatures of these digests; how many there were."""
        keys = []
        for digest in digests:
            keys += [f"{SIGNATURE}{hex_of(digest)}/{name}" for name in self._known.pop(digest, ())]
        await self._delete(keys)
        return len(keys)

    async def _delete(self, keys: Sequence[str]) -> None:
        self.changes += len(keys)
        for start in range(0, len(keys), MAX_OPERATIONS):
            await self._store.txn([], [Delete(key) for key in keys[start : start + MAX_OPERATIONS]])

    async def verify(self, question: Question, signatures: Sequence[Signature]) -> Verdict:
        """The answer to a question about an image's signatures; in a worker. Raises Invalid, HostError."""
        job = VerifySignatures(
            root=str(self._empty),
            question=question,
            signatures=tuple(signatures),
            now_s=time.time(),
        )
        async with Worker(job) as worker:
            answer = await worker.last()
        assert isinstance(answer, Verified)
        return answer.verdict
