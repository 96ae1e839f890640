"""From Dockerfiles to graphs: golden graphs of whole files, and the rules one by one.

The files are tests/dockerfiles/*.Dockerfile, their graphs tests/golden/build/*.json; COVE_GOLDEN=write makes these
again, and a change of them is reviewed like code.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cove.build import graph
from cove.build.planner import BaseImage, PlanRequest, needed_images, plan_build
from cove.dockerfile.errors import DockerfileError
from cove.dockerfile.parser import parse_dockerfile

FILES = Path(__file__).parent.parent / "dockerfiles"
GOLDEN = Path(__file__).parent.parent / "golden" / "build"

CONFIGS: dict[str, dict[str, Any]] = {
    "onbuild:1": {
        "Env": ["PATH=/bin", "X=y"],
        "OnBuild": ["COPY --from=busybox /bin/sh /sh", "RUN echo $X", "WORKDIR app"],
        "WorkingDir": "/base",
        "User": "someone",
        "Cmd": ["base"],
    },
}
REQUESTS: dict[str, PlanRequest] = {
    "platforms": PlanRequest(platform="linux/arm/v7", target="final"),
    "proxies-and-network": PlanRequest(
        build_args={"HTTP_PROXY": "http://p", "no_proxy": "x"}, network="none", hosts=("db:10.0.0.1",)
    ),
    "reproducible": PlanRequest(build_args={"SOURCE_DATE_EPOCH": "1700000000"}),
    "nginx-like": PlanRequest(
        build_args={"ENABLED_MODULES": "brotli geoip"}, contexts={"builder": "docker-image://b"}
    ),
    "stage-reuse": PlanRequest(no_cache_stages=("b",)),
    "ci-matrix": PlanRequest(target="reports", no_cache=True),
    "go-service": PlanRequest(platform="linux/arm64", build_args={"VERSION": "1.0"}, labels={"team": "a"}),
    "args": PlanRequest(build_args={"TAG_PREFIX": "w", "HTTP_PROXY": "http://p", "https_proxy": "http://s"}),
    "context-and-links": PlanRequest(
        contexts={"shared": "../shared", "nginx:1": "docker-image://nginx@sha256:1"}
    ),
}


def base_image(reference: str) -> BaseImage:
    """An image that any reference means, with what most have."""
    config = CONFIGS.get(reference, {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["/bin/sh"]})
    return BaseImage(image_id=f"sha256:{reference}", config=config)


def plan(text: str | bytes, request: PlanRequest | None = None) -> graph.Graph:
    dockerfile = parse_dockerfile(text.encode() if isinstance(text, str) else text)
    request = request or PlanRequest()
    images: dict[str, BaseImage] = {}
    while needed := needed_images(dockerfile, request, images):
        images.update({need.key: base_image(need.reference) for need in needed})
    return plan_build(dockerfile, request, images)


def operations(found: graph.Graph, kind: type[Any]) -> list[Any]:
    return [step.operation for step in found.steps if isinstance(step.operation, kind)]


@pytest.mark.parametrize("path", sorted(FILES.glob("*.Dockerfile")), ids=lambda path: path.stem)
def test_the_graph_of_a_file_is_what_it_was(path: Path) -> None:
    found = plan(path.read_bytes(), REQUESTS.get(path.stem))
    shown = msgspec.json.format(msgspec.json.encode(found), indent=1).decode() + "\n"
    golden = GOLDEN / f"{path.stem}.json"
    if os.environ.get("COVE_GOLDEN") == "write":
        golden.write_text(shown)
    assert shown == golden.read_text(), f"the plan of {path.name} changed: review it, then COVE_GOLDEN=write"


@pytest.mark.parametrize("path", sorted(FILES.glob("*.Dockerfile")), ids=lambda path: path.stem)
def test_a_step_refers_to_steps_before_it_only_and_every_step_is_needed(path: Path) -> None:
    found = plan(path.read_bytes(), REQUESTS.get(path.stem))
    for place, step in enumerate(found.steps):
        assert all(0 <= source < place for source in step.inputs())
    needed, waiting = set(), [found.result.step]
    while waiting:
        place = waiting.pop()
        needed.add(place)
        waiting += found.steps[place].inputs()
    assert needed == set(range(len(found.steps)))


def test_only_what_the_target_needs_is_planned() -> None:
    text = "FROM a AS one\nRUN 1\nFROM b AS two\nRUN 2\nFROM one AS three\nRUN 3\nFROM c\nRUN 4\n"
    dockerfile = parse_dockerfile(text.encode())
    for target, images, commands in (
        ("", ["c"], ["4"]),
        ("three", ["a"], ["1", "3"]),
        ("TWO", ["b"], ["2"]),
        ("0", ["a"], ["1"]),
    ):
        request = PlanRequest(target=target)
        assert [need.reference for need in needed_images(dockerfile, request)] == images
        assert [each.args[-1] for each in operations(plan(text, request), graph.Exec)] == commands


def test_images_that_a_trigger_names_are_asked_for_once_the_base_is_known() -> None:
    dockerfile = parse_dockerfile(b"FROM onbuild:1\n")
    request = PlanRequest()
    first = needed_images(dockerfile, request)
    assert [need.key for need in first] == ["onbuild:1"]
    second = needed_images(dockerfile, request, {"onbuild:1": base_image("onbuild:1")})
    assert [need.key for need in second] == ["busybox"]


def test_an_image_for_another_platform_has_a_key_of_its_own() -> None:
    dockerfile = parse_dockerfile(b"FROM --platform=$BUILDPLATFORM a AS x\nFROM a\nCOPY --from=x / /\n")
    needed = needed_images(dockerfile, PlanRequest(platform="linux/arm/v7"))
    assert [(need.reference, need.platform, need.key) for need in needed] == [
        ("a", "linux/amd64", "a linux/amd64"),
        ("a", "linux/arm/v7", "a"),
    ]


def test_an_entrypoint_drops_the_bases_command_but_not_its_own_stages() -> None:
    assert "Cmd" not in plan('FROM a\nENTRYPOINT ["e"]').result.config
    assert plan('FROM a\nCMD ["c"]\nENTRYPOINT ["e"]').result.config["Cmd"] == ["c"]
    assert "Cmd" not in plan('FROM a AS b\nCMD ["c"]\nFROM b\nENTRYPOINT ["e"]').result.config


def test_proxy_settings_are_neither_in_the_key_nor_in_the_history() -> None:
    request = PlanRequest(build_args={"http_proxy": "http://user:secret@p"})
    found = plan("FROM a\nRUN b", request)
    run = operations(found, graph.Exec)[0]
    assert run.hidden_env == ("HTTP_PROXY=http://user:secret@p", "http_proxy=http://user:secret@p")
    assert run.env == ("PATH=/usr/bin:/bin",)
    assert "secret" not in str(found.result)
    declared = plan("FROM a\nARG http_proxy\nRUN b", request)
    assert operations(declared, graph.Exec)[0].env[1] == "http_proxy=http://user:secret@p"


def test_the_later_of_env_and_arg_counts_and_only_env_stays_in_the_image() -> None:
    found = plan("FROM a\nENV V=env\nRUN 1\nARG V=arg\nRUN 2\nENV V=$V-env\nRUN 3")
    assert [run.env[1] for run in operations(found, graph.Exec)] == ["V=env", "V=arg", "V=arg-env"]
    assert found.result.config["Env"] == ["PATH=/usr/bin:/bin", "V=arg-env"]


@pytest.mark.parametrize(
    ("text", "request_", "message"),
    [
        ("FROM a AS b", PlanRequest(target="c"), 'target stage "c" could not be found: there are b'),
        ("FROM a", PlanRequest(target="1"), 'target stage "1" could not be found: no stage has a name, use its '
                                            "number, e.g. 0"),
        ("FROM $X", None, "Dockerfile:1:6: base name ($X) should not be blank"),
        ("ARG VERSION=1\nFROM $VERSIO", None, "Dockerfile:2:6: base name ($VERSIO) should not be blank (did you mean "
                                              "VERSION?)"),
        ("FROM --platform=sun a", None, "Dockerfile:1:17: 'sun' is no known system or architecture, e.g. linux/amd64"),
        ("FROM --platform=$X a", None, "Dockerfile:1:17: empty platform value from expression $X"),
        ("FROM a\nCOPY --from=0 a b", None, "Dockerfile:2:13: circular dependency: a stage can't copy from itself"),
        ("FROM a\nCOPY --from=1 a b\nFROM c\nCOPY --from=0 / /", None,
         'Dockerfile:2:13: cannot copy from stage "1", it needs to be defined before the current one'),
        ("FROM a\nFROM b\nCOPY --from=7 a b", None, "Dockerfile:3:13: invalid stage index 7: there are 0 to 0"),
        ("FROM a\nCOPY --from=$X a b", None, "Dockerfile:2:13: variables aren't replaced in from: give the image a "
                                             "stage of its own, FROM $IMAGE AS name"),
        ("FROM a\nRUN --mount=from=$X,target=/y b", None,
         "Dockerfile:2:1: 'from' doesn't support variable expansion, define alias stage instead"),
        ("FROM a\nRUN --mount=target=/ b", None, 'Dockerfile:2:13: invalid mount target "/": expected a directory '
                                                 "below /"),
        ('FROM a\nENV A="${B:?must be set}"', None, "Dockerfile:2:7: B: must be set"),
        ("FROM a\nENV A=${B", None, "Dockerfile:2:7: missing '}' at the end of a substitution, e.g. ${NAME:-value}"),
        ("FROM a\nCOPY https://x/y z", None, "Dockerfile:2:6: source can't be a URL for COPY: use ADD"),
        ("FROM a\nCOPY git@x:y.git z", None, "Dockerfile:2:6: source can't be a git ref for COPY: use ADD"),
        ("FROM a\nADD --checksum=sha256:1 https://x/y z", None,
         "Dockerfile:2:5: checksum sha256:1: expected sha256: and 64 hexadecimal digits"),
        ("FROM a\nADD --checksum=sha256:1 y z", None, "Dockerfile:2:5: checksum requires HTTP(S) or Git sources"),
        ("FROM a\nCOPY --chmod=888 b c", None,
         "Dockerfile:2:1: invalid chmod parameter: '888': expected octal up to 07777 or letters, e.g. 0755 or "
         "u=rwX,go=rX"),
        ("FROM a\nEXPOSE 70000", None, "Dockerfile:2:1: Invalid containerPort: 70000: expected 1 to 65535, e.g. "
                                       "80/tcp or 8000-8010"),
        ("FROM a\nSTOPSIGNAL 99", None, "Dockerfile:2:1: STOPSIGNAL: '99' isn't a signal, e.g. SIGTERM or 15"),
        ("FROM a\nENV A=" + "x" * 60000 + "\nENV A=$A$A\nENV A=$A$A\nENV A=$A$A", None,
         "Dockerfile:4:7: variables make more than 131072 characters of one value"),
        ("FROM a\nENV A=" + "${X:-" * 60 + "}" * 60, None, "substitutions more than 50 deep in one another"),
        ("FROM a\nENV A=" + "x" * 130000 + "".join(f"\nENV A{n}=$A" for n in range(200)), None,
         "the variables of stage 0 are larger than 1048576 bytes together"),
    ],
)  # fmt: skip
def test_a_plan_that_cant_be_is_refused_with_its_place(
    text: str, request_: PlanRequest | None, message: str
) -> None:
    with pytest.raises(DockerfileError) as caught:
        plan(text, request_)
    assert message in str(caught.value)
