"""The tests of tests/lab, run in a virtual machine (docs/lab.md): one boot for each flavour, each result shown here.

The tests are known by reading their modules' text, since they can only be imported in there. A test with parameters
is one here: it fails where one of its cases does, and is skipped where all are.
"""

from __future__ import annotations

import ast
import shlex
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field

import pytest

from tests.lab.support import images, machine

LIMIT_S = 400.0
TESTS = images.ROOT / "tests"
# Besides tests/lab, these of the host's modules run on the other kernel, too.
SHARED = ("system/test_plan_run.py", "system/test_cgroups_v2.py")
pytestmark = pytest.mark.timeout(LIMIT_S + 1200)  # a boot, and the making of what it boots from
REPORT = b"\n== report of the lab\n"


def _find_tests(systemd: bool) -> list[str]:
    """`room/file.py::test` of each inner test of a flavour."""
    modules = sorted(path for path in TESTS.glob("lab/test_*.py"))
    chosen = [path for path in modules if path.name.startswith("test_systemd_") == systemd]
    if not systemd:
        chosen += [TESTS / name for name in SHARED]
    return [
        f"{path.relative_to(TESTS)}::{node.name}"
        for path in chosen
        for node in ast.parse(path.read_bytes()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]


@dataclass
class Results:
    """What a boot brought: each inner test's cases as (outcome, text), and all that the machine wrote."""

    cases: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    output: str = ""


def _boot(systemd: bool, wanted: list[str]) -> Results:
    """Run the inner tests in a machine and read their JUnit report, which comes behind their output."""
    written = bytearray()
    names = shlex.join(f"tests/{name}" for name in wanted)
    status = machine.run(
        f".venv/bin/python -m pytest -v --continue-on-collection-errors --junitxml=/tmp/report.xml {names}\n"
        f"status=$?; printf '%s' {shlex.quote(REPORT.decode())}; cat /tmp/report.xml; exit $status",
        write=written.extend,
        systemd=systemd,
        limit_s=LIMIT_S,
    )
    output, _, report = bytes(written).partition(REPORT)
    results = Results(output=output.decode(errors="replace"))
    if status in (machine.TIMED_OUT, machine.NO_STATUS) or not report:
        results.output = written.decode(errors="replace")
        return results
    for case in ElementTree.fromstring(report).iter("testcase"):
        module = case.get("classname", "").removeprefix("tests.").replace(".", "/")
        name = f"{module}.py::{case.get('name', '').partition('[')[0]}"
        outcome, text = "passed", ""
        for child in case:
            if child.tag in ("failure", "error"):
                outcome, text = "failed", f"{text}{child.text or child.get('message')}\n"
            elif child.tag == "skipped" and outcome == "passed":
                outcome, text = "skipped", child.get("message", "")
        results.cases.setdefault(name, []).append((outcome, text))
    return results


def _wanted(request: pytest.FixtureRequest, systemd: bool) -> list[str]:
    """The inner tests that this run of pytest has selected."""
    known = set(_find_tests(systemd))
    return [
        item.callspec.params["name"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path and hasattr(item, "callspec")
        if item.callspec.params["name"] in known
    ]


@pytest.fixture(scope="module")
def lab() -> None:
    """What a machine boots from is there; the first time it is made, which takes a minute."""
    try:
        machine.check_host(machine.MEMORY_MIB)
        images.make_kernel()
        images.make_root()
    except images.Missing as error:
        pytest.skip(f"no lab here: {error}")


@pytest.fixture(scope="module")
def plain(request: pytest.FixtureRequest, lab: None) -> Results:
    return _boot(False, _wanted(request, systemd=False))


@pytest.fixture(scope="module")
def with_systemd(request: pytest.FixtureRequest, lab: None) -> Results:
    return _boot(True, _wanted(request, systemd=True))


def _show(results: Results, name: str) -> None:
    cases = results.cases.get(name)
    assert cases, f"the machine brought no result of {name}:\n{results.output[-6000:]}"
    failures = [text for outcome, text in cases if outcome == "failed"]
    if failures:
        pytest.fail("in the lab:\n" + "\n".join(failures), pytrace=False)
    if all(outcome == "skipped" for outcome, _ in cases):
        pytest.skip(cases[0][1])


@pytest.mark.parametrize("name", _find_tests(systemd=False))
def test_in_the_lab(plain: Results, name: str) -> None:
    _show(plain, name)


@pytest.mark.parametrize("name", _find_tests(systemd=True))
def test_in_the_lab_with_systemd(with_systemd: Results, name: str) -> None:
    _show(with_systemd, name)


def test_the_exit_status_and_the_output_come_whole(lab: None) -> None:
    written = bytearray()
    status = machine.run("head -c 3000000 /dev/zero; exit 3", write=written.extend, limit_s=60)
    assert (status, bytes(written)) == (3, bytes(3_000_000))


def test_a_machine_that_hangs_or_dies_is_told_from_one_that_answers(lab: None) -> None:
    written = bytearray()
    assert machine.run("sleep 1000", write=written.extend, limit_s=0.5) == machine.TIMED_OUT
    assert machine.run("echo c >/proc/sysrq-trigger", write=written.extend) == machine.NO_STATUS
    assert b"sysrq triggered crash" in written
