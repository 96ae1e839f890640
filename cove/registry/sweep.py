"""Free what no repository needs: mark in the catalog, sweep the files; also while the registry serves.

What is marked and what is taken is decided in one transaction that holds the catalog's write lock, a hundred contents
at a time: a push whose commit comes before keeps its blobs, one that comes after finds them gone and uploads them. A
push that is under way relies on blobs that no manifest names yet: each blob notes when somebody was last told of it
(a HEAD, a mount, an upload), and what is younger than the grace stays.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from cove.model.errors import Invalid
from cove.registry.catalog import CHILD, Catalog
from cove.registry.content import Content, remove_tree

GRACE_S = 3600.0
BATCH = 100

_UNNEEDED = """
members.at < ? AND NOT EXISTS (
    SELECT 1 FROM contents c JOIN needs n ON n.repository = members.repository AND n.digest = c.digest
    WHERE c.id = members.content
)
"""
_UNHELD = """
SELECT id, digest, size FROM contents c WHERE c.at < ?
AND NOT EXISTS (SELECT 1 FROM members m WHERE m.content = c.id)
AND NOT EXISTS (SELECT 1 FROM manifests m WHERE m.content = c.id) LIMIT ?
"""
_EMPTY = """
DELETE FROM repositories AS r WHERE NOT EXISTS (SELECT 1 FROM members m WHERE m.repository = r.id)
AND NOT EXISTS (SELECT 1 FROM manifests m WHERE m.repository = r.id)
"""


@dataclass(slots=True)
class Swept:
    """What a sweep has taken, or would take."""

    manifests: int = 0
    links: int = 0  # blobs that a repository had and didn't need
    contents: int = 0
    content_bytes: int = 0  # the contents' sizes
    orphans: int = 0  # files that the catalog doesn't know
    repositories: int = 0
    uploads: int = 0


class _DryRun(Exception):
    """Rolls a transaction back."""


def sweep(
    content: Content,
    catalog: Catalog,
    *,
    grace_s: float = GRACE_S,
    untagged: bool = False,
    dry_run: bool = False,
    upload_expiry_s: float = 24 * 3600.0,
) -> Swept:
    """Sweep once. `untagged`: also manifests that no tag leads to, by themselves, by an index or as a subject."""
    swept = Swept()
    oldest_s = time.time() - grace_s
    with contextlib.suppress(_DryRun), catalog.writing():
        if untagged:
            swept.manifests = _drop_untagged(catalog, oldest_s)
        swept.links = catalog.db.execute(f"DELETE FROM members WHERE {_UNNEEDED}", (oldest_s,)).rowcount  # noqa: S608
        if dry_run:
            rows = catalog.db.execute(_UNHELD, (oldest_s, -1)).fetchall()
            swept.contents, swept.content_bytes = len(rows), sum(row[2] for row in rows)
            catalog.db.executemany("DELETE FROM contents WHERE id = ?", [(row[0],) for row in rows])
            swept.repositories = catalog.db.execute(_EMPTY).rowcount
            gone = {row[1] for row in rows}
            swept.orphans = sum(
                each not in gone and catalog.find_content(each) is None for each in content.digests()
            )
            raise _DryRun
    if dry_run:
        return swept
    while _take_batch(content, catalog, oldest_s, swept):
        pass
    with catalog.writing():
        swept.repositories = catalog.db.execute(_EMPTY).rowcount
    _take_orphans(content, catalog, swept)
    swept.uploads = _take_uploads(content, upload_expiry_s)
    return swept


def _take_batch(content: Content, catalog: Catalog, oldest_s: float, swept: Swept) -> bool:
    with catalog.writing():
        rows = catalog.db.execute(_UNHELD, (oldest_s, BATCH)).fetchall()
        for number, digest, size in rows:
            content.throw(digest)
            catalog.db.execute("DELETE FROM contents WHERE id = ?", (number,))
            swept.contents += 1
            swept.content_bytes += size
    content.empty_trash([row[1] for row in rows])
    return bool(rows)


def _take_orphans(content: Content, catalog: Catalog, swept: Swept) -> None:
    """Files without a row: with the write lock in hand, nobody is about to add one."""
    candidates = [each for each in content.digests() if catalog.find_content(each) is None]
    for begin in range(0, len(candidates), BATCH):
        taken = []
        with catalog.writing():
            for digest in candidates[begin : begin + BATCH]:
                if catalog.find_content(digest) is None:
                    content.throw(digest)
                    taken.append(digest)
        content.empty_trash(taken)
        swept.orphans += len(taken)


def _take_uploads(content: Content, expiry_s: float) -> int:
    """Abandoned uploads, where no server is there to look after them."""
    try:
        fd = content.lock()
    except Invalid:
        return 0
    try:
        count = 0
        for entry in os.scandir(content.uploads):
            path = Path(entry.path)
            with contextlib.suppress(OSError):
                newest_s = max((each.stat().st_mtime for each in path.iterdir()), default=0.0)
                if time.time() - newest_s > expiry_s:
                    remove_tree(path)
                    count += 1
        return count
    finally:
        os.close(fd)


def _drop_untagged(catalog: Catalog, oldest_s: float) -> int:
    """In a transaction: manifests that nothing with a tag leads to; how many."""
    dropped = 0
    for (repository,) in catalog.db.execute("SELECT id FROM repositories").fetchall():
        rows = catalog.db.execute(
            "SELECT m.content, c.digest, m.subject, m.at FROM manifests m JOIN contents c ON c.id = m.content "
            "WHERE m.repository = ?",
            (repository,),
        ).fetchall()
        by_digest = {digest: number for number, digest, _, _ in rows}
        subjects = {number: subject for number, _, subject, _ in rows}
        tagged = {
            row[0]
            for row in catalog.db.execute("SELECT content FROM tags WHERE repository = ?", (repository,))
        }
        children: dict[int, list[int]] = {}
        for manifest, digest in catalog.db.execute(
            "SELECT manifest, digest FROM needs WHERE repository = ? AND kind = ?", (repository, CHILD)
        ):
            if digest in by_digest:
                children.setdefault(manifest, []).append(by_digest[digest])
        for number, subject in subjects.items():
            if subject in by_digest:  # whoever keeps the subject keeps what is said of it
                children.setdefault(by_digest[subject], []).append(number)
        kept: set[int] = set()
        waiting = [number for number, _, _, at_s in rows if number in tagged or at_s >= oldest_s]
        while waiting:
            number = waiting.pop()
            if number not in kept:
                kept.add(number)
                waiting += children.get(number, [])
        for number in subjects.keys() - kept:
            catalog.drop_manifest(repository, number)
            dropped += 1
    return dropped


def describe(swept: Swept, *, dry_run: bool) -> str:
    """One sentence for a person."""
    begin = "would remove" if dry_run else "removed"
    parts = [f"{swept.contents} blobs ({swept.content_bytes / 1e6:.1f} MB)"]
    for count, what in (
        (swept.manifests, "untagged manifests"),
        (swept.links, "links of repositories to blobs that they don't need"),
        (swept.orphans, "files that nobody knows"),
        (swept.repositories, "empty repositories"),
        (swept.uploads, "abandoned uploads"),
    ):
        if count:
            parts.append(f"{count} {what}")
    return f"{begin} {', '.join(parts)}"
