"""`cove registry gc` and `check`: open a registry's directory as its user, look after it, tell the result."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from cove.model.errors import Invalid
from cove.registry.catalog import Catalog
from cove.registry.checking import check, render
from cove.registry.content import Content
from cove.registry.identity import become, enter, plan_identity
from cove.registry.options import parse_duration, plan_root
from cove.registry.sweep import describe, sweep


@contextmanager
def _opened(options: argparse.Namespace) -> Iterator[tuple[Content, Catalog]]:
    root = plan_root(options)
    if not (root / "catalog.db").exists():
        raise Invalid(f"there is no registry in {root}: name its directory with --root")
    identity = plan_identity(options.run_as, root)
    root = enter(root, identity)
    become(identity)
    catalog = Catalog(root / "catalog.db")
    try:
        yield Content(root), catalog
    finally:
        catalog.close()


def run_gc(options: argparse.Namespace) -> int:
    """Sweep once, and say what went."""
    grace_s = parse_duration("--grace", options.grace)
    with _opened(options) as (content, catalog):
        swept = sweep(content, catalog, grace_s=grace_s, untagged=options.untagged, dry_run=options.dry_run)
    print(describe(swept, dry_run=options.dry_run))
    return 0


def run_check(options: argparse.Namespace) -> int:
    """Check, and say what was found; 1 when something is wrong."""
    with _opened(options) as (content, catalog):
        report = check(content, catalog, hashes=not options.fast)
    print(render(report))
    return 1 if report.problems else 0
