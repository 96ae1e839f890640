"""bin/cove-runtime beside runc: the same bundle, the same verbs, the same that a caller sees.

Compared are exit status, standard output, the container's status afterwards, and whether there is a message.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.oci_support import Box, Done, find_runc, opened, wait_until

pytestmark = pytest.mark.skipif(find_runc() is None, reason="runc isn't installed: apt-get install runc")


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with opened(tmp_path_factory.mktemp("oci")) as made:
        yield made


def seen(done: Done) -> tuple[int, str, bool]:
    return done.status, done.out, bool(done.err)


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (["echo", "hello"], 0),
        (["sh", "-c", "echo out; echo err >&2; exit 7"], 7),
        (["sh", "-c", "id -u; id -g; pwd; hostname; umask; cat /proc/1/comm; ls /proc/self/fd | wc -l"], 0),
        (["sh", "-c", "grep -E '^(Cap|NoNew)' /proc/self/status; ulimit -n"], 0),
        (["sh", "-c", "touch /x; touch /proc/sys/kernel/domainname; cat /proc/kcore | wc -c"], 0),
        (["sh", "-c", "mount | sed 's/ (.*//' | grep -v ' on / ' | sort"], 0),
        (["sh", "-c", "ls -l /dev | grep -v kcore | awk '{print $1, $NF}' | sort"], 0),
        # runc joins the empty v2 tree of a hybrid host, too
        (["sh", "-c", "grep -v ^0:: /proc/self/cgroup | grep -c /box$"], 0),
        (["cat"], 0),
        (["nosuch"], 1),
        (["/nosuch"], 1),
        (["/etc/passwd"], 1),
    ],
)
def test_run_ends_with_the_same_output_and_status(box: Box, args: list[str], status: int) -> None:
    box.configure(args)
    ours, theirs = (box.call(which, "run", "one", stdin="typed\n") for which in ("cove", "runc"))
    assert seen(ours) == seen(theirs)
    assert ours.status == status
    assert box.ids("cove") == []


_PROGRAMS = ("nosuch", "/nosuch", "/etc/passwd")
_WORDS = ("executable file not found in $PATH", "no such file or directory", "permission denied")


@pytest.mark.parametrize(("program", "words"), list(zip(_PROGRAMS, _WORDS, strict=True)))
def test_a_program_that_cant_run_is_told_in_words_that_dockerd_knows(
    box: Box, program: str, words: str
) -> None:
    box.configure([program])
    for which in ("cove", "runc"):
        error = box.call(which, "create", "one").error
        assert words in error and program in error, which
        assert box.ids(which) == []


def _prepare(box: Box, which: str, state: str) -> None:
    """Bring the container `one` into a state."""
    if state == "none":
        return
    program = ["true"] if state == "stopped" else ["sleep", "1000"]
    box.configure(program)
    assert box.call(which, "create", "one").status == 0
    if state != "created":
        assert box.call(which, "start", "one").status == 0
    if state == "paused":
        assert box.call(which, "pause", "one").status == 0
    if state == "stopped":
        wait_until(lambda: box.status(which, "one") == "stopped", "its end")


@pytest.mark.parametrize("state", ["none", "created", "running", "paused", "stopped"])
@pytest.mark.parametrize(
    "verb",
    [
        ["start", "one"],
        ["kill", "one", "KILL"],
        ["kill", "--all", "one", "9"],
        ["kill", "one", "NOSUCH"],
        ["delete", "one"],
        ["delete", "--force", "one"],
        ["pause", "one"],
        ["resume", "one"],
        ["exec", "one", "sh", "-c", "echo hello; exit 3"],
        ["update", "--pids-limit", "50", "one"],
        ["create", "one"],
    ],
    ids=lambda verb: "-".join(verb[:3]),
)
def test_each_verb_means_the_same_in_each_state(box: Box, state: str, verb: list[str]) -> None:
    results: list[Any] = []
    for which in ("runc", "cove"):
        _prepare(box, which, state)
        box.configure(["sleep", "1000"])
        done = box.call(which, *verb)
        if verb[0] == "kill" and done.status == 0 and state != "stopped":
            wait_until(lambda which=which: box.status(which, "one") == "stopped", "its end")  # type: ignore[misc]
        results.append((done.status, done.out, box.status(which, "one")))
        box.call(which, "delete", "--force", "one")
    assert results[1] == results[0]


def test_state_and_list_show_the_same(box: Box) -> None:
    shown: dict[str, Any] = {}
    for which in ("runc", "cove"):
        box.configure(
            ["sleep", "1000"], lambda config: config.update(annotations={"org.example.key": "value"})
        )
        assert box.call(which, "create", "one").status == 0
        state, listed = box.call(which, "state", "one").json(), box.call(which, "list", "-f", "json").json()
        assert state["pid"] == listed[0]["pid"] == int(box.call(which, "ps", "-f", "json", "one").json()[0])
        table = box.call(which, "list").out.splitlines()
        box.call(which, "delete", "--force", "one")
        for each in (state, listed[0]):
            each["ociVersion"] = each["ociVersion"].removesuffix("-dev")  # runc tells its own
            assert each.pop("pid") > 1 and each.pop("created").endswith("Z")
        shown[which] = (list(state.items()), listed, table[0].split(), len(table))
    assert shown["cove"] == shown["runc"]


def test_spec_writes_the_same_config(box: Box, tmp_path: Path) -> None:
    for arguments in ([], ["--rootless"]):
        written = {}
        for which in ("runc", "cove"):
            directory = tmp_path / f"{which}{len(arguments)}"
            directory.mkdir()
            assert box.call(which, "spec", "--bundle", str(directory), *arguments).status == 0
            again = box.call(which, "spec", "--bundle", str(directory))
            assert again.status == 1 and "config.json exists" in again.error
            text = (directory / "config.json").read_text()
            written[which] = [line for line in text.splitlines() if "ociVersion" not in line]
        assert written["cove"] == written["runc"]
