"""`scripts/conformance.sh`: a table of what the conformance programs say of a runtime, beside runc's.

conformance.sh [--compare] [RUNTIME [PROGRAM …]]
"""

from __future__ import annotations

import os
import shutil
import sys
import time

from tests.conformance.programs import RUNTIME, Outcome, build, missing, run_programs
from tests.system.oci_support import find_runc


def main(arguments: list[str]) -> int:
    """Print the table; 1 where the programs can't be built, or a runtime does worse than runc beside it."""
    compare = "--compare" in arguments
    names = [each for each in arguments if each != "--compare"]
    runtime = (shutil.which(names[0]) or names[0]) if names else str(RUNTIME)
    reason = missing() or ("runc isn't installed" if compare and find_runc() is None else "")
    if reason:
        print(f"conformance: {reason}", file=sys.stderr)
        return 1
    began = time.monotonic()
    programs = build()
    programs = [each for each in programs if each in names[1:]] or programs
    print(f"conformance: built after {time.monotonic() - began:.0f} s", file=sys.stderr)
    ours = run_programs(programs, os.path.abspath(runtime))
    theirs = run_programs(programs, find_runc() or "") if compare else {}
    for name in programs:
        print(_line(name, ours[name], theirs.get(name)))
        for problem in ours[name].problems:
            print(f"    {problem}")
        for line in ours[name].err.splitlines() if ours[name].problems else []:
            print(f"    | {line}")
    score = {name: (ours[name].passed, -len(ours[name].problems)) for name in theirs}
    beside = {name: (theirs[name].passed, -len(theirs[name].problems)) for name in theirs}
    worse = [name for name in theirs if score[name] < beside[name]]
    better = [name for name in theirs if score[name] > beside[name]]
    print(f"{sum(not each.problems for each in ours.values())} of {len(ours)} programs found nothing", end="")
    print(f"; better than runc: {', '.join(better)}; worse: {', '.join(worse) or 'none'}" if compare else "")
    return 1 if worse else 0


def _line(name: str, ours: Outcome, theirs: Outcome | None) -> str:
    beside = "" if theirs is None else f"   runc {_counts(theirs)}"
    return f"{name:32} {_counts(ours):16}{beside}"


def _counts(outcome: Outcome) -> str:
    return f"{outcome.passed} ok" + (f", {len(outcome.problems)} not" if outcome.problems else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
