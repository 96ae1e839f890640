"""The database of vulnerabilities: SQLite, written by one import at a time into a copy, read by scans.

Knows its tables and nothing of where the file lies. An import is one transaction of a file that nobody reads yet: what
is wrong in it leaves no trace. An entry is told by its source and its key, and replaced when its `modified` is newer.

    advisory   what it is: an Advisory without its packages    affected   by package: which versions
    source     what was imported, when                         meta       format
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import msgspec

from cove.scan.advisory import Advisory, Affected
from cove.scan.ecosystems import concerns
from cove.scan.model import Wire

FORMAT = 1
OSV, TRACKER = "OSV", "Debian security tracker"
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE advisory (n INTEGER PRIMARY KEY, source TEXT NOT NULL, key TEXT NOT NULL, modified TEXT NOT NULL,
    body BLOB NOT NULL, UNIQUE (source, key));
CREATE TABLE affected (name TEXT NOT NULL, ecosystem TEXT NOT NULL, n INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX affected_by_name ON affected (name, ecosystem);
CREATE INDEX affected_by_advisory ON affected (n);
CREATE TABLE source (name TEXT PRIMARY KEY, imported TEXT NOT NULL, entries INTEGER NOT NULL, newest TEXT NOT NULL)
    WITHOUT ROWID;
"""
_encode = msgspec.json.encode
_advisory = msgspec.json.Decoder(Advisory)
_affected = msgspec.json.Decoder(Affected)


class Counts(Wire, frozen=True, kw_only=True):
    """What an import did."""

    read: int = 0
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0


class Writer:
    """One import into a connection; `commit` makes it count."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._db.isolation_level = None
        self._db.execute("BEGIN")
        if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name='meta'").fetchone():
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            self._db.execute("INSERT INTO meta VALUES ('format', ?)", (str(FORMAT),))
        self.read = self.added = self.changed = self.unchanged = self.removed = 0
        self._touched: dict[str, str] = {}

    def put(self, source: str, advisory: Advisory, *, key: str = "") -> None:
        """Take an entry in, unless what is there is as new."""
        self.read += 1
        key = key or advisory.id
        self._touched[source] = max(self._touched.get(source, ""), advisory.modified)
        row = self._db.execute(
            "SELECT n, modified FROM advisory WHERE source=? AND key=?", (source, key)
        ).fetchone()
        if row is not None:
            number, modified = row
            if advisory.modified and modified >= advisory.modified:
                self.unchanged += 1
                return
            self._db.execute("DELETE FROM affected WHERE n=?", (number,))
            self._db.execute(
                "UPDATE advisory SET modified=?, body=? WHERE n=?",
                (advisory.modified, _encode(_without_packages(advisory)), number),
            )
            self.changed += 1
        else:
            number = self._db.execute(
                "INSERT INTO advisory (source, key, modified, body) VALUES (?, ?, ?, ?)",
                (source, key, advisory.modified, _encode(_without_packages(advisory))),
            ).lastrowid
            self.added += 1
        if not advisory.withdrawn:
            self._db.executemany(
                "INSERT INTO affected VALUES (?, ?, ?, ?)",
                [(one.name, one.ecosystem, number, _encode(one)) for one in advisory.affected],
            )

    def forget(self, source: str) -> None:
        """Take out everything of a source whose next import is whole again."""
        self._db.execute("DELETE FROM affected WHERE n IN (SELECT n FROM advisory WHERE source=?)", (source,))
        self.removed += self._db.execute("DELETE FROM advisory WHERE source=?", (source,)).rowcount
        self._touched.setdefault(source, "")

    def commit(self, now: str) -> Counts:
        """End the import; `now` is its time, RFC 3339."""
        for source, newest in self._touched.items():
            (count,) = self._db.execute("SELECT count(*) FROM advisory WHERE source=?", (source,)).fetchone()
            before = self._db.execute("SELECT newest FROM source WHERE name=?", (source,)).fetchone()
            newest = max(newest, before[0] if before else "")
            self._db.execute(
                "INSERT OR REPLACE INTO source VALUES (?, ?, ?, ?)", (source, now, count, newest)
            )
        self._db.execute("DELETE FROM source WHERE entries=0")
        self._db.execute("COMMIT")
        return Counts(
            read=self.read,
            added=self.added,
            changed=self.changed,
            unchanged=self.unchanged,
            removed=self.removed,
        )


def _without_packages(advisory: Advisory) -> Advisory:
    return msgspec.structs.replace(advisory, affected=())


class Reader:
    """Look-ups in a database."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._db.execute("PRAGMA temp_store=MEMORY")
        self._db.execute("SELECT count(*) FROM source").fetchone()  # has the file opened
        self._advisory = lru_cache(maxsize=20_000)(self._read_advisory)

    def find(self, ecosystem: str, name: str) -> Iterator[tuple[str, Advisory, Affected]]:
        """What concerns a package: where it is from, the advisory, which versions."""
        base = ecosystem.partition(":")[0]
        rows = self._db.execute(
            "SELECT ecosystem, n, body FROM affected WHERE name=? AND ecosystem>=? AND ecosystem<? ORDER BY n",
            (name, base, base + ";"),  # ";" comes after ":"
        ).fetchall()
        for found, number, body in rows:
            if concerns(found, ecosystem):
                source, advisory = self._advisory(number)
                yield source, advisory, _affected.decode(body)

    def _read_advisory(self, number: int) -> tuple[str, Advisory]:
        source, body = self._db.execute("SELECT source, body FROM advisory WHERE n=?", (number,)).fetchone()
        return source, _advisory.decode(body)

    def sources(self) -> list[dict[str, Any]]:
        """What was imported."""
        rows = self._db.execute("SELECT name, imported, entries, newest FROM source ORDER BY name")
        return [
            {"Name": name, "Imported": imported, "Entries": entries, "Newest": newest}
            for name, imported, entries, newest in rows
        ]

    def ecosystems(self) -> dict[str, int]:
        """By ecosystem: how many packages' entries there are. Reads an index whole: some tenths of a second."""
        rows = self._db.execute("SELECT ecosystem, count(*) FROM affected GROUP BY ecosystem")
        found: dict[str, int] = {}
        for ecosystem, count in rows:
            base = ecosystem.partition(":")[0]
            found[base] = found.get(base, 0) + count
        return dict(sorted(found.items()))


def write_all(writer: Writer, source: str, entries: Iterable[tuple[str, Advisory]]) -> None:
    """Take in entries with their keys."""
    for key, advisory in entries:
        writer.put(source, advisory, key=key)
