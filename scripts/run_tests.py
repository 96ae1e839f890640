"""Run the test suite section by section, and say at the end what failed.

Sections run in this order: lint, then pytest on tests/unit, tests/system and tests/clients
(cove-init's own tests and its fuzzer are among them). A test that fails runs once more by
itself, because the machine may be shared: a pass then is reported as flaky, a second
failure fails the run. Nothing runs in parallel: system tests share the kernel.

Also a pytest plugin (`-p run_tests`): it writes the outcome of each test to $COVE_TEST_REPORT.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = ("lint", "unit", "system", "clients")
RETRIED = ("unit", "system", "clients")
# A run takes some ten minutes on 2 cores; these bounds only end what hangs, also where the machine is busy.
WHOLE_LIMIT_S = 4200.0
SECTION_LIMIT_S = {"lint": 600, "unit": 900, "system": 2400, "clients": 1200}
MOST_RETRIES = 20


@dataclass
class Outcome:
    """What one section came to."""

    section: str
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    flaky: list[str] = field(default_factory=list)


# --- the pytest plugin --------------------------------------------------------------------


def pytest_runtest_logreport(report: Any) -> None:
    """Append one line for every finished test; setup and teardown count when they fail."""
    if report.when != "call" and report.outcome == "passed":
        return
    _write_report(report.nodeid, "error" if report.when != "call" and report.failed else report.outcome)


def pytest_collectreport(report: Any) -> None:
    """A module that can't be imported is a failed test of that module's name."""
    if report.failed:
        _write_report(report.nodeid, "error")


def _write_report(nodeid: str, outcome: str) -> None:
    with open(os.environ["COVE_TEST_REPORT"], "a", encoding="utf-8") as out:
        out.write(json.dumps([nodeid, outcome]) + "\n")


# --- running ------------------------------------------------------------------------------


def run_command(arguments: list[str], limit_s: float, env: dict[str, str] | None = None) -> int:
    """Run a command of this checkout with its output shown; 124 when it took too long."""
    with subprocess.Popen(arguments, cwd=ROOT, env=env, stdin=subprocess.DEVNULL) as process:
        try:
            return process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            print(f"test: {' '.join(arguments[:4])} …: not done after {limit_s:.0f} s, stopped", flush=True)
            process.send_signal(signal.SIGINT)  # pytest's fixtures take down what they made
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
            return 124


def run_pytest(targets: list[str], limit_s: float) -> tuple[int, dict[str, str]]:
    """pytest's exit status, and each test's worst outcome."""
    with tempfile.NamedTemporaryFile("r", prefix="cove-test-", encoding="utf-8") as report:
        env = dict(os.environ, COVE_TEST_REPORT=report.name, PYTHONPATH=str(ROOT / "scripts"))
        command = [sys.executable, "-m", "pytest", "-p", "run_tests", "-rs", "--durations=5", *targets]
        status = run_command(command, limit_s, env)
        outcomes: dict[str, str] = {}
        for line in report:
            nodeid, outcome = json.loads(line)
            if outcomes.get(nodeid) not in ("failed", "error"):
                outcomes[nodeid] = outcome
    return status, outcomes


def run_section(section: str, deadline: float) -> Outcome:
    """Run one section and, where it may be retried, its failed tests again by themselves."""
    outcome = Outcome(section)
    started = time.monotonic()
    print(f"\n== {section}", flush=True)
    limit_s = max(1.0, min(SECTION_LIMIT_S[section], deadline - started))
    if section == "lint":
        if run_command(["sh", "scripts/lint.sh"], limit_s):
            outcome.failed.append("scripts/lint.sh")
    else:
        status, outcomes = run_pytest([f"tests/{section}"], limit_s)
        for result in outcomes.values():
            outcome.counts[result] = outcome.counts.get(result, 0) + 1
        outcome.failed = [name for name, result in outcomes.items() if result in ("failed", "error")]
        if status not in (0, 1) or (status == 1 and not outcome.failed):
            outcome.failed.append(f"pytest tests/{section} (exit status {status})")
        elif section in RETRIED and len(outcome.failed) <= MOST_RETRIES:
            for name in list(outcome.failed):
                print(f"\n== once more: {name}", flush=True)
                again, _ = run_pytest([name], max(1.0, min(limit_s, deadline - time.monotonic())))
                if again == 0:
                    outcome.failed.remove(name)
                    outcome.flaky.append(name)
    outcome.seconds = time.monotonic() - started
    return outcome


def summarize(outcomes: list[Outcome]) -> str:
    """The closing lines: what failed and what was flaky, then one line of counts."""
    lines = []
    for outcome in outcomes:
        lines += [f"FAILED: {name}" for name in outcome.failed]
        lines += [f"flaky: {name}" for name in outcome.flaky]
    counts: dict[str, int] = {}
    for outcome in outcomes:
        for result, count in outcome.counts.items():
            counts[result] = counts.get(result, 0) + count
    flaky = sum(len(outcome.flaky) for outcome in outcomes)
    failed = sum(len(outcome.failed) for outcome in outcomes)
    parts = [f"{outcome.section} {outcome.seconds:.0f} s" for outcome in outcomes]
    passed = counts.get("passed", 0) + flaky
    lines.append(
        f"test: {'FAILED' if failed else 'passed'}: {passed} passed, {failed} failed, {flaky} flaky, "
        f"{counts.get('skipped', 0)} skipped ({', '.join(parts)})"
    )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run the sections named, or all; 0 when nothing failed twice, 2 on a wrong name."""
    unknown = [name for name in arguments if name not in SECTIONS]
    if unknown:
        print(f"test: {unknown[0]}: expected one of {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    deadline = time.monotonic() + WHOLE_LIMIT_S
    outcomes = [
        run_section(section, deadline) for section in SECTIONS if not arguments or section in arguments
    ]
    print("\n" + summarize(outcomes), flush=True)
    return 1 if any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
