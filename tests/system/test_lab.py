"""The tests of tests/lab, run in a virtual machine (docs/lab.md): one boot for each flavour, each result shown here.

The tests are known by reading their modules' text, since they can only be imported in there. A test with parameters
is one here: it fails where one of its cases does, and is skipped where all are.
"""

from __future__ import annotations

import ast
import shlex
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.lab.support import images, machine

LIMIT_S = 900.0  # a minute and a half, where nobody else wants the processors
TESTS = images.ROOT / "tests"
# Besides tests/lab, these of the host's modules run on the other kernel, too.
SHARED = ("system/test_plan_run.py", "system/test_cgroups_v2.py", "system/test_network_drivers.py")
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


@pytest.fixture(scope="module")
def lab() -> None:
    """What a machine boots from is there; the first time it is made, which takes a minute."""
    try:
        machine.check_host(2 * machine.MEMORY_MIB)
        images.make_kernel()
        images.make_root()
    except images.Missing as error:
        pytest.skip(f"no lab here: {error}")


@pytest.fixture(scope="module")
def booted(request: pytest.FixtureRequest, lab: None) -> dict[bool, Results]:
    """The results of the tests that this run of pytest has selected, by `systemd`.

    Both flavours run at once: each keeps one processor busy.
    """
    wanted: dict[bool, list[str]] = {}
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.originalname == test_in_the_lab.__name__:
            parameters: dict[str, Any] = dict(item.callspec.params)
            wanted.setdefault(parameters["systemd"], []).append(parameters["name"])
    with ThreadPoolExecutor(len(wanted)) as pool:
        boots = {systemd: pool.submit(_boot, systemd, names) for systemd, names in wanted.items()}
    return {systemd: boot.result() for systemd, boot in boots.items()}


def _show(results: Results, name: str) -> None:
    cases = results.cases.get(name)
    assert cases, f"the machine brought no result of {name}:\n{results.output[-6000:]}"
    failures = [text for outcome, text in cases if outcome == "failed"]
    if failures:
        pytest.fail("in the lab:\n" + "\n".join(failures), pytrace=False)
    if all(outcome == "skipped" for outcome, _ in cases):
        pytest.skip(cases[0][1])


@pytest.mark.parametrize(
    ("systemd", "name"),
    [pytest.param(systemd, name, id=name) for systemd in (False, True) for name in _find_tests(systemd)],
)
def test_in_the_lab(booted: dict[bool, Results], systemd: bool, name: str) -> None:
    _show(booted[systemd], name)


def test_the_exit_status_and_the_output_come_whole(lab: None) -> None:
    written = bytearray()
    status = machine.run("head -c 3000000 /dev/zero; exit 3", write=written.extend, limit_s=300)
    assert (status, bytes(written)) == (3, bytes(3_000_000))


def test_a_machine_that_hangs_or_dies_is_told_from_one_that_answers(lab: None) -> None:
    written = bytearray()
    assert machine.run("sleep 1000", write=written.extend, limit_s=0.5) == machine.TIMED_OUT
    assert machine.run("echo c >/proc/sysrq-trigger", write=written.extend) == machine.NO_STATUS
    assert b"sysrq triggered crash" in written
