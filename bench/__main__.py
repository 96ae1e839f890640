"""`python -m bench`: run the cases, print one table, and say in the exit status what came of it.

    --only CASE   run this case only; may be given several times (see --list)
    --list        print the cases
    --json        print JSON instead of the table
    --write       also rewrite docs/benchmarks.md
    --quick       fewer samples and containers, within two minutes (as QUICK=1 in the environment)

Exit status: 0 every target holds; 1 one is missed; 2 a side is missing or a case failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence

from bench.cases import Case, all_cases
from bench.context import Bench
from bench.cove import ROOT
from bench.machine import describe_machine, load_average
from bench.stats import Row, exit_status
from bench.table import render_json, render_markdown, render_text

PAGE = ROOT / "docs/benchmarks.md"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    cases = all_cases()
    if options.list:
        for case in cases:
            print(f"{case.name:14} {case.title}")
        return 0
    chosen = choose(cases, options.only)
    if os.geteuid() != 0:
        print("bench: must be root: the engines, the floor and their namespaces need it", file=sys.stderr)
        return 2
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, leave)
    quick = options.quick or os.environ.get("QUICK", "") not in ("", "0")
    with Bench(quick=quick) as bench:
        machine = describe_machine(bench.directory)
        rows = [row for case in chosen for row in run_case(bench, case)]
        machine.append(("load after", load_average()))
    if options.json:
        print(render_json(rows, machine, quick=quick), end="")
    else:
        for name, value in machine:
            print(f"{name}: {value}")
        print()
        print(render_text(rows, shutil.get_terminal_size((0, 0)).columns), end="")
    if options.write:
        PAGE.write_text(render_markdown(rows, machine, quick=quick))
    return exit_status(rows)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench", description="Measure Cove beside dockerd, runc and the floor."
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="CASE", help="run this case, e.g. exec"
    )
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--quick", action="store_true", help="end within two minutes")
    parser.add_argument("--write", action="store_true", help=f"rewrite {PAGE.relative_to(ROOT)}")
    return parser.parse_args(arguments)


def choose(cases: Sequence[Case], names: Sequence[str]) -> list[Case]:
    """The cases with these names; all without a name. SystemExit names what isn't there."""
    known = {case.name for case in cases}
    for name in names:
        if name not in known:
            raise SystemExit(f"bench: --only {name}: expected one of {', '.join(sorted(known))}")
    return [case for case in cases if not names or case.name in names]


def run_case(bench: Bench, case: Case) -> list[Row]:
    """The rows of one case; one that broke becomes a row that says so. Progress goes to standard error."""
    begin = time.monotonic()
    print(f"{case.name} … ", end="", file=sys.stderr, flush=True)
    try:
        rows = list(case.run(bench))
    except Exception as error:
        rows = [Row(what=case.title, unit="ms", cove=None, problem=f"{type(error).__name__}: {error}")]
    print(f"{time.monotonic() - begin:.1f} s", file=sys.stderr, flush=True)
    return rows


def leave(signum: int, _frame: object) -> None:
    """Turn a signal into an exception, so that everything is taken down."""
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    sys.exit(main())
