"""Every example of docs/dockerfile.md is a Dockerfile that is parsed, checked without a finding, and planned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cove.build.check_rules import EXPERIMENTAL, RULES
from cove.build.checks import check
from cove.build.planner import BaseImage, PlanRequest, needed_images, plan_build
from cove.dockerfile.errors import DockerfileError
from cove.dockerfile.parser import KEYWORDS, parse_dockerfile

TEXT = (Path(__file__).parents[2] / "docs" / "dockerfile.md").read_text()
EXAMPLES = re.findall(r"```dockerfile\n(.*?)```", TEXT, re.DOTALL)
BASE = BaseImage(image_id="sha256:1", config={"Env": ["PATH=/bin"]})


@pytest.mark.parametrize("text", EXAMPLES)
def test_an_example_is_planned(text: str) -> None:
    dockerfile = parse_dockerfile(text.encode())
    request = PlanRequest()
    images: dict[str, BaseImage] = {}
    while needed := needed_images(dockerfile, request, images):
        images.update({need.key: BASE for need in needed})
    assert plan_build(dockerfile, request, images).steps
    assert check(dockerfile, request, images) == ()


def test_the_error_that_is_shown_is_the_real_one() -> None:
    shown = re.search(r"```text\n(Dockerfile:.*?)\n```", TEXT, re.DOTALL)
    assert shown is not None
    with pytest.raises(DockerfileError) as caught:
        parse_dockerfile(b"FROM debian\nRUN --mont=type=cache,target=/x make\n")
    assert str(caught.value) == shown[1]


def test_every_instruction_and_every_rule_is_there() -> None:
    for word in (*KEYWORDS, *RULES, *EXPERIMENTAL):
        assert word in TEXT
    assert len(EXAMPLES) > 6
