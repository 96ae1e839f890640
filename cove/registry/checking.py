"""Check a registry: every file's digest, every link, and what nobody refers to. Also while it serves.

Problems are what a client would meet: missing or damaged content, an image without a blob that it needs, a tag that
leads nowhere. Notes are what costs space and nothing else: what the next sweep takes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from cove.registry.catalog import BLOB, Catalog
from cove.registry.content import Content
from cove.registry.sweep import _UNHELD


@dataclass(slots=True)
class Report:
    """What a check has found."""

    contents: int = 0
    content_bytes: int = 0
    manifests: int = 0
    tags: int = 0
    repositories: int = 0
    uploads: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(content: Content, catalog: Catalog, *, hashes: bool = True) -> Report:
    """Check everything; without `hashes` files are compared by size alone."""
    report = Report()
    catalog.db.execute("BEGIN")
    try:
        rows = catalog.db.execute("SELECT digest, size FROM contents ORDER BY digest").fetchall()
        report.problems += _links(catalog)
        unheld = catalog.db.execute(_UNHELD, (float("inf"), -1)).fetchall()
        for name in ("manifests", "tags", "repositories"):
            [number] = catalog.db.execute(f"SELECT count(*) FROM {name}").fetchone()  # noqa: S608 - the names above
            setattr(report, name, number)
    finally:
        catalog.db.execute("ROLLBACK")
    if unheld:
        size = sum(row[2] for row in unheld)
        report.notes.append(
            f"{len(unheld)} blobs ({size / 1e6:.1f} MB) belong to no repository: gc removes them"
        )
    for digest, size in rows:
        report.contents += 1
        report.content_bytes += size
        problem = _file(content, digest, size, hashes=hashes)
        if problem and catalog.find_content(digest) is not None:  # else it was swept meanwhile
            users = ", ".join(_users(catalog, digest)) or "nobody"
            report.problems.append(f"{problem}; it is needed by {users}")
    orphans = [each for each in content.digests() if catalog.find_content(each) is None]
    orphans = [each for each in orphans if catalog.find_content(each) is None and content.path(each).exists()]
    if orphans:
        report.notes.append(f"{len(orphans)} files of blobs are known to no repository: gc removes them")
    if thrown := [each for each in content.thrown() if catalog.find_content(each) is None]:
        report.notes.append(f"{len(thrown)} files are in the trash")
    report.uploads = sum(1 for entry in os.scandir(content.uploads) if entry.is_dir())
    return report


def _file(content: Content, digest: str, size: int, *, hashes: bool) -> str:
    """What is wrong with a content's file; ""."""
    path = content.path(digest)
    try:
        found = path.stat().st_size
        if found != size:
            return f"{digest} has {found} bytes, and should have {size}"
        if hashes and (real := content.hash(digest)) != digest:
            return f"{digest} is damaged: its content has the digest {real}"
    except FileNotFoundError:
        return f"{digest} is missing"
    except OSError as error:
        return f"{digest} can't be read: {error.strerror}"
    return ""


def _links(catalog: Catalog) -> Iterator[str]:
    """Links that lead nowhere."""
    for name, digest, blob in catalog.db.execute(
        "SELECT r.name, c.digest, n.digest FROM needs n JOIN repositories r ON r.id = n.repository "
        "JOIN contents c ON c.id = n.manifest WHERE n.kind = ? AND r.proxied = 0 AND NOT EXISTS ("
        "SELECT 1 FROM contents b JOIN members m ON m.content = b.id AND m.repository = n.repository "
        "WHERE b.digest = n.digest)",
        (BLOB,),
    ):
        yield f"{name}@{digest} needs {blob}, and {name} lacks it"
    for name, tag in catalog.db.execute(
        "SELECT r.name, t.name FROM tags t JOIN repositories r ON r.id = t.repository WHERE NOT EXISTS ("
        "SELECT 1 FROM manifests m WHERE m.repository = t.repository AND m.content = t.content)"
    ):
        yield f"{name}:{tag} leads to no manifest"
    for table in ("members", "manifests"):
        for (name,) in catalog.db.execute(
            f"SELECT r.name FROM {table} x JOIN repositories r ON r.id = x.repository "  # noqa: S608 - the names above
            "WHERE NOT EXISTS (SELECT 1 FROM contents c WHERE c.id = x.content)"
        ):
            yield f"{name} has content that the catalog doesn't know"
    for (result,) in catalog.db.execute("PRAGMA quick_check(5)"):
        if result != "ok":
            yield f"the catalog is damaged: {result}"


def _users(catalog: Catalog, digest: str) -> list[str]:
    rows = catalog.db.execute(
        "SELECT r.name FROM contents c JOIN members m ON m.content = c.id JOIN repositories r ON r.id = m.repository "
        "WHERE c.digest = ?1 UNION SELECT r.name FROM contents c JOIN manifests m ON m.content = c.id "
        "JOIN repositories r ON r.id = m.repository WHERE c.digest = ?1 LIMIT 5",
        (digest,),
    )
    return [row[0] for row in rows]


def render(report: Report) -> str:
    """The report as lines of text."""
    lines = [
        f"{report.repositories} repositories, {report.tags} tags, {report.manifests} manifests, "
        f"{report.contents} blobs and manifests on disk ({report.content_bytes / 1e6:.1f} MB), "
        f"{report.uploads} uploads under way"
    ]
    lines += [f"note: {each}" for each in report.notes]
    lines += [f"problem: {each}" for each in report.problems]
    lines.append("no problem found" if not report.problems else f"{len(report.problems)} problems found")
    return "\n".join(lines)
