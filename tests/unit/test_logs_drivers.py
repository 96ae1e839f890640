"""What log drivers and their options mean, and how wrong ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cove.logs.drivers import log_setup
from cove.logs.model import LogSettings
from cove.model.container import LogConfig
from cove.model.errors import Invalid

HERE = Path("/var/lib/cove/containers/x/log")


def setup(driver: str = "", **options: str) -> LogSettings:
    return log_setup(
        LogConfig(driver=driver, options={name.replace("_", "-"): value for name, value in options.items()}),
        HERE,
    )


def test_logs_are_bounded_by_default() -> None:
    expected = LogSettings(
        driver="local", directory=HERE, max_size_bytes=20 * 1024 * 1024, max_files=5, compress=True
    )
    assert setup() == setup("local") == expected
    assert setup("json-file").max_size_bytes == 20 * 1024 * 1024


def test_none_keeps_nothing_and_takes_any_option() -> None:
    assert setup("none", anything="x") == LogSettings(
        driver="none", directory=None, max_size_bytes=0, max_files=1
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10m", 10**7),
        ("10M", 10**7),
        ("1.5k", 1500),
        ("10mb", 10**7),
        ("2MiB", 2 * 10**6),
        ("512", 512),
        ("7b", 7),
    ],
)
def test_sizes_are_docker_s(text: str, size: int) -> None:
    assert setup(max_size=text).max_size_bytes == size


@pytest.mark.parametrize(
    "text", ["", "m", "-1", "0", "10x", "1.2.3m", "10 000", "1e3", "ten", "9" * 30, "10mbb", "١m"]
)
def test_a_bad_size_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match=r"invalid value for max-size: .*e\.g\. 10m"):
        setup(max_size=text)


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "1001", "many", "9" * 30, "³"])
def test_a_bad_number_of_files_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match=r"invalid value for max-file: .*from 1 to 1000"):
        setup(max_file=text)


@pytest.mark.parametrize(
    ("driver", "options", "message"),
    [
        ("sys/log", {}, "logger: no log driver named 'sys/log' is registered"),
        ("local", {"colour": "red"}, "unknown log opt 'colour' for local log driver"),
        ("json-file", {"colour": "red"}, "unknown log opt 'colour' for json-file log driver"),
        ("local", {"compress": "perhaps"}, "invalid boolean value for compress: perhaps"),
        ("local", {"compress": "true", "max_file": "1"}, "compress cannot be true"),
        ("local", {"mode": "fast"}, "logger: logging mode not supported: fast"),
        ("local", {"max_buffer_size": "4m"}, "only supported with 'mode=non-blocking'"),
    ],
)
def test_wrong_options_are_refused_as_docker_does(driver: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        setup(driver, **options)


def test_options_of_docker_s_are_accepted() -> None:
    settings = setup(
        "json-file",
        max_size="10m",
        max_file="3",
        compress="true",
        labels="a,b",
        env="X",
        tag="{{.Name}}",
        mode="non-blocking",
        max_buffer_size="4m",
    )
    assert (settings.max_size_bytes, settings.max_files) == (10**7, 3)
