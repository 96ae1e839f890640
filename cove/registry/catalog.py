"""Which repository has which blobs, manifests and tags: SQLite, one file, one transaction for each change.

    contents      what lies in blobs/, verified, by digest
    repositories  names; `proxied` ones may lack blobs, since another registry has them
    members       blobs of a repository: pushed to it, or mounted; `at` is when somebody last relied on it
    manifests     manifests of a repository, with what listings of referrers tell of them
    needs         what a manifest names: blobs that must be there, and what may be missing
    tags          names of manifests

Write-ahead log and synchronous=FULL: a change is on disk when its call returns, and readers, also those of
another process (`cove registry gc`, `check`), see only whole changes. Changes that move files do so inside the
transaction: see content.py. A `Catalog` belongs to one thread at a time; the server has one to read and one to write.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cove.model.errors import HostError
from cove.registry.documents import Document
from cove.registry.refusals import Refused, unknown_blob, unknown_manifest, unknown_repository

VERSION = 1
BUSY_S = 20.0
BLOB, CHILD, ELSEWHERE = 0, 1, 2  # kinds of `needs`: only the first must be there

_SCHEMA = """
CREATE TABLE contents (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, at REAL NOT NULL);
CREATE TABLE repositories (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, proxied INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE members (
    repository INTEGER NOT NULL, content INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (repository, content)
) WITHOUT ROWID;
CREATE INDEX members_content ON members (content);
CREATE TABLE manifests (
    repository INTEGER NOT NULL, content INTEGER NOT NULL, at REAL NOT NULL, media_type TEXT NOT NULL,
    subject TEXT NOT NULL, artifact_type TEXT NOT NULL, annotations BLOB NOT NULL, PRIMARY KEY (repository, content)
) WITHOUT ROWID;
CREATE INDEX manifests_content ON manifests (content);
CREATE INDEX manifests_subject ON manifests (repository, subject) WHERE subject != '';
CREATE TABLE needs (
    repository INTEGER NOT NULL, manifest INTEGER NOT NULL, digest TEXT NOT NULL, kind INTEGER NOT NULL,
    PRIMARY KEY (repository, manifest, digest, kind)
) WITHOUT ROWID;
CREATE INDEX needs_digest ON needs (repository, digest);
CREATE TABLE tags (
    repository INTEGER NOT NULL, name TEXT NOT NULL, content INTEGER NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (repository, name)
) WITHOUT ROWID;
CREATE INDEX tags_content ON tags (repository, content);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A manifest of a repository."""

    digest: str
    size: int
    media_type: str
    artifact_type: str = ""
    annotations: Mapping[str, str] | None = None
    at_s: float = 0.0


class Catalog:
    """One connection to catalog.db."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Raises HostError for a file that isn't a catalog, or one of a newer Cove."""
        try:
            mode = "rwc" if create else "rw"
            self.db = sqlite3.connect(
                f"file:{_quoted(path)}?mode={mode}",
                uri=True,
                timeout=BUSY_S,
                isolation_level=None,
                check_same_thread=False,
            )
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=FULL")
            self.db.execute("PRAGMA cache_size=-4096")
            version = self.db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and create:
                with self.writing():
                    if self.db.execute("PRAGMA user_version").fetchone()[0] == 0:
                        for statement in _SCHEMA.split(";"):
                            self.db.execute(statement)
                        self.db.execute(f"PRAGMA user_version={VERSION}")
            elif version != VERSION:
                raise HostError(
                    f"{path} has version {version}, this release reads {VERSION}: use the newer Cove"
                )
        except sqlite3.Error as error:
            raise HostError(f"the registry's catalog {path} can't be opened: {error}") from error

    def close(self) -> None:
        self.db.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction that holds the write lock from its start. Raises HostError (disk full, lock not had)."""
        try:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self.db.execute("ROLLBACK")
                raise
            self.db.execute("COMMIT")
        except sqlite3.Error as error:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise HostError(f"the registry's catalog: {error}") from error

    # --- reading ------------------------------------------------------------------------------

    def has_repository(self, name: str) -> bool:
        return self._repository(name) is not None

    def find_blob(self, name: str, digest: str) -> tuple[int, float] | None:
        """Size in bytes of a repository's blob, and when somebody last relied on it."""
        row = self.db.execute(
            "SELECT c.size, m.at FROM repositories r JOIN contents c ON c.digest = ?2 "
            "JOIN members m ON m.repository = r.id AND m.content = c.id WHERE r.name = ?1",
            (name, digest),
        ).fetchone()
        return None if row is None else (row[0], row[1])

    def find_content(self, digest: str) -> int | None:
        """The size of content, of whichever repository."""
        row = self.db.execute("SELECT size FROM contents WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else int(row[0])

    def holders(self, digest: str) -> list[str]:
        """Names of the repositories that have this blob."""
        rows = self.db.execute(
            "SELECT r.name FROM contents c JOIN members m ON m.content = c.id "
            "JOIN repositories r ON r.id = m.repository WHERE c.digest = ? ORDER BY r.name LIMIT 1000",
            (digest,),
        )
        return [row[0] for row in rows]

    def find_manifest(self, name: str, *, tag: str = "", digest: str = "") -> Found | None:
        """A manifest by tag or digest."""
        if tag:
            query = (
                "SELECT c.digest, c.size, m.media_type, t.at FROM repositories r "
                "JOIN tags t ON t.repository = r.id AND t.name = ?2 JOIN contents c ON c.id = t.content "
                "JOIN manifests m ON m.repository = r.id AND m.content = c.id WHERE r.name = ?1"
            )
        else:
            query = (
                "SELECT c.digest, c.size, m.media_type, m.at FROM repositories r JOIN contents c ON c.digest = ?2 "
                "JOIN manifests m ON m.repository = r.id AND m.content = c.id WHERE r.name = ?1"
            )
        row = self.db.execute(query, (name, tag or digest)).fetchone()
        return None if row is None else Found(digest=row[0], size=row[1], media_type=row[2], at_s=row[3])

    def tags(self, name: str, *, after: str, most: int) -> list[str] | None:
        """Tags in ASCII order, behind `after`; None: no such repository."""
        repository = self._repository(name)
        if repository is None:
            return None
        rows = self.db.execute(
            "SELECT name FROM tags WHERE repository = ? AND name > ? ORDER BY name LIMIT ?",
            (repository, after, most),
        )
        return [row[0] for row in rows]

    def repositories(self, *, after: str, most: int) -> list[str]:
        """Names that have a manifest, in ASCII order, behind `after`."""
        rows = self.db.execute(
            "SELECT name FROM repositories r WHERE name > ? AND "
            "EXISTS (SELECT 1 FROM manifests m WHERE m.repository = r.id) ORDER BY name LIMIT ?",
            (after, most),
        )
        return [row[0] for row in rows]

    def referrers(self, name: str, digest: str, *, artifact_type: str, after: str, most: int) -> list[Found]:
        """Manifests whose subject is this digest, by their own digest."""
        rows = self.db.execute(
            "SELECT c.digest, c.size, m.media_type, m.artifact_type, m.annotations FROM repositories r "
            "JOIN manifests m ON m.repository = r.id AND m.subject = ?2 AND m.subject != '' "
            "JOIN contents c ON c.id = m.content "
            "WHERE r.name = ?1 AND c.digest > ?4 AND (?3 = '' OR m.artifact_type = ?3) ORDER BY c.digest LIMIT ?5",
            (name, digest, artifact_type, after, most),
        )
        return [
            Found(
                digest=row[0],
                size=row[1],
                media_type=row[2],
                artifact_type=row[3],
                annotations=msgspec.json.decode(row[4]),
            )
            for row in rows
        ]

    def totals(self) -> tuple[int, int, int]:
        """How many repositories, how many contents, and their bytes."""
        [repositories] = self.db.execute("SELECT count(*) FROM repositories").fetchone()
        number, size = self.db.execute("SELECT count(*), coalesce(sum(size), 0) FROM contents").fetchone()
        return repositories, number, size

    # --- writing ------------------------------------------------------------------------------

    def add_blob(self, name: str, digest: str, size: int, place: Callable[[bool], None] | None) -> None:
        """Make content a blob of a repository. `place` moves it to its place, told whether the registry should have it
        there already (None: it must, of another repository; Refused where it hasn't any more)."""
        with self.writing():
            content = self._add_content(digest, size, place)
            if content is None:
                raise unknown_blob(name, digest)
            self._add_member(self._add_repository(name), content)

    def add_cached(self, name: str, digest: str, size: int, place: Callable[[bool], None] | None) -> bool:
        """Make content a blob of a proxied repository; False: `place` is None, and the registry lacks it."""
        with self.writing():
            content = self._add_content(digest, size, place)
            if content is not None:
                self._add_member(self._add_repository(name, proxied=True), content)
        return content is not None

    def needs(self, name: str, digest: str) -> bool:
        """Whether a manifest of this repository names this digest."""
        row = self.db.execute(
            "SELECT 1 FROM repositories r JOIN needs n ON n.repository = r.id AND n.digest = ?2 WHERE r.name = ?1",
            (name, digest),
        ).fetchone()
        return row is not None

    def set_tag(self, name: str, tag: str, digest: str) -> None:
        """Let a tag of a proxied repository lead to a manifest that it has, from now on."""
        with self.writing():
            self.db.execute(
                "INSERT OR REPLACE INTO tags SELECT r.id, ?2, c.id, ?4 FROM repositories r, contents c "
                "WHERE r.name = ?1 AND c.digest = ?3",
                (name, tag, digest, time.time()),
            )

    def touch(self, name: str, digest: str) -> bool:
        """Note that somebody relies on a blob; False: it has gone meanwhile."""
        with self.writing():
            row = self.db.execute(
                "UPDATE members SET at = ? WHERE repository = (SELECT id FROM repositories WHERE name = ?) "
                "AND content = (SELECT id FROM contents WHERE digest = ?) RETURNING 1",
                (time.time(), name, digest),
            ).fetchone()
        return row is not None

    def put_manifest(
        self,
        name: str,
        digest: str,
        size: int,
        document: Document,
        tags: Sequence[str],
        place: Callable[[bool], None],
        *,
        proxied: bool = False,
    ) -> None:
        """Make a document a manifest of a repository, and give it these tags. Refused: MANIFEST_BLOB_UNKNOWN, with
        every blob that it needs and the repository lacks, unless another registry has them (`proxied`)."""
        with self.writing():
            repository = self._add_repository(name, proxied=proxied)
            lacking = [each for each in document.blobs if not self._has_member(repository, each)]
            if lacking and not proxied:
                raise Refused(
                    400,
                    "MANIFEST_BLOB_UNKNOWN",
                    f"{name} lacks {len(lacking)} of the blobs that the manifest names: push them first",
                    details=[{"digest": each} for each in lacking[:100]],
                )
            content = self._add_content(digest, size, place)
            assert content is not None
            now_s = time.time()
            self.db.execute("DELETE FROM needs WHERE repository = ? AND manifest = ?", (repository, content))
            self.db.execute(
                "INSERT OR REPLACE INTO manifests VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    repository,
                    content,
                    now_s,
                    document.media_type,
                    document.subject,
                    document.artifact_type,
                    msgspec.json.encode(document.annotations),
                ),
            )
            named = ((BLOB, document.blobs), (CHILD, document.children), (ELSEWHERE, document.elsewhere))
            self.db.executemany(
                "INSERT INTO needs VALUES (?, ?, ?, ?)",
                [(repository, content, each, kind) for kind, digests in named for each in digests],
            )
            self.db.executemany(
                "INSERT OR REPLACE INTO tags VALUES (?, ?, ?, ?)",
                [(repository, tag, content, now_s) for tag in tags],
            )

    def delete_tag(self, name: str, tag: str) -> None:
        """Refused: 404."""
        with self.writing():
            repository = self._wanted_repository(name)
            row = self.db.execute(
                "DELETE FROM tags WHERE repository = ? AND name = ? RETURNING 1", (repository, tag)
            ).fetchone()
            if row is None:
                raise unknown_manifest(name, tag)

    def delete_manifest(self, name: str, digest: str) -> None:
        """With the tags that it has. Refused: 404."""
        with self.writing():
            repository = self._wanted_repository(name)
            content = self._content(digest)
            if content is None or not self.drop_manifest(repository, content):
                raise unknown_manifest(name, digest)

    def drop_manifest(self, repository: int, content: int) -> bool:
        """In a transaction: the manifest's rows; False: there was none."""
        row = self.db.execute(
            "DELETE FROM manifests WHERE repository = ? AND content = ? RETURNING 1", (repository, content)
        ).fetchone()
        self.db.execute("DELETE FROM needs WHERE repository = ? AND manifest = ?", (repository, content))
        self.db.execute("DELETE FROM tags WHERE repository = ? AND content = ?", (repository, content))
        return row is not None

    def delete_blob(self, name: str, digest: str) -> None:
        """Refused: 404, and UNSUPPORTED for one that a manifest of the repository needs."""
        with self.writing():
            repository = self._wanted_repository(name)
            user = self.db.execute(
                "SELECT c.digest FROM needs n JOIN contents c ON c.id = n.manifest "
                "WHERE n.repository = ? AND n.digest = ? AND n.kind = ? LIMIT 1",
                (repository, digest, BLOB),
            ).fetchone()
            content = self._content(digest)
            if content is None or not self._has_member(repository, digest):
                raise unknown_blob(name, digest)
            if user is not None:
                raise Refused(
                    405,
                    "UNSUPPORTED",
                    f"{digest} is needed by the manifest {user[0]} of {name}: delete that manifest first",
                    headers={"Allow": "GET, HEAD"},
                )
            self.db.execute("DELETE FROM members WHERE repository = ? AND content = ?", (repository, content))

    # --- parts --------------------------------------------------------------------------------

    def _repository(self, name: str) -> int | None:
        row = self.db.execute("SELECT id FROM repositories WHERE name = ?", (name,)).fetchone()
        return None if row is None else int(row[0])

    def _wanted_repository(self, name: str) -> int:
        found = self._repository(name)
        if found is None:
            raise unknown_repository(name)
        return found

    def _add_repository(self, name: str, *, proxied: bool = False) -> int:
        found = self._repository(name)
        if found is not None:
            return found
        row = (name, proxied)
        return int(
            self.db.execute("INSERT INTO repositories (name, proxied) VALUES (?, ?)", row).lastrowid or 0
        )

    def _content(self, digest: str) -> int | None:
        row = self.db.execute("SELECT id FROM contents WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else int(row[0])

    def _add_content(self, digest: str, size: int, place: Callable[[bool], None] | None) -> int | None:
        found = self._content(digest)
        if found is not None:
            if place is not None:
                place(True)
            self.db.execute("UPDATE contents SET at = ? WHERE id = ?", (time.time(), found))
            return found
        if place is None:
            return None
        place(False)
        row = (digest, size, time.time())
        return int(
            self.db.execute("INSERT INTO contents (digest, size, at) VALUES (?, ?, ?)", row).lastrowid or 0
        )

    def _add_member(self, repository: int, content: int) -> None:
        self.db.execute("INSERT OR REPLACE INTO members VALUES (?, ?, ?)", (repository, content, time.time()))

    def _has_member(self, repository: int, digest: str) -> bool:
        row = self.db.execute(
            "SELECT 1 FROM contents c JOIN members m ON m.content = c.id AND m.repository = ? WHERE c.digest = ?",
            (repository, digest),
        ).fetchone()
        return row is not None


def _quoted(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
