"""Options of the drivers that send lines on: what they mean, and how wrong ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cove.logs.destinations import (
    Address,
    Destination,
    Fluentd,
    Gelf,
    Journald,
    Syslog,
    Tls,
    parse_destination,
)
from cove.logs.drivers import is_readable, log_setup, merge_defaults
from cove.model.container import LogConfig
from cove.model.errors import Invalid

HERE = Path("/log")


def parse(driver: str, *options: str) -> Destination:
    given = dict(option.split("=", 1) for option in options)
    log_setup(LogConfig(driver=driver, options=given), HERE)
    return parse_destination(driver, given)


def tcp(host: str, port: int, tls: Tls | None = None) -> Address:
    return Address(kind="tcp", host=host, port=port, tls=tls)


@pytest.mark.parametrize(
    ("driver", "options", "expected"),
    [
        ("journald", [], Journald()),
        ("syslog", [], Syslog(address=None, facility=3, format="")),
        (
            "syslog",
            ["syslog-address=udp://192.0.2.1", "syslog-facility=local7", "syslog-format=rfc3164"],
            Syslog(address=Address(kind="udp", host="192.0.2.1", port=514), facility=23, format="rfc3164"),
        ),
        (
            "syslog",
            ["syslog-address=tcp+tls://[2001:db8::1]:6514", "syslog-tls-skip-verify=", "syslog-facility=16"],
            Syslog(address=tcp("2001:db8::1", 6514, Tls(verify=False)), facility=16, format=""),
        ),
        (
            "syslog",
            ["syslog-address=unixgram:///dev/log", "syslog-format=rfc5424micro"],
            Syslog(address=Address(kind="unixgram", path="/dev/log"), facility=3, format="rfc5424micro"),
        ),
        (
            "gelf",
            ["gelf-address=udp://log.example:12201"],
            Gelf(address=Address(kind="udp", host="log.example", port=12201)),
        ),
        (
            "gelf",
            ["gelf-address=udp://[::1]:1", "gelf-compression-type=zlib", "gelf-compression-level=-1"],
            Gelf(address=Address(kind="udp", host="::1", port=1), compression="zlib", level=-1),
        ),
        (
            "gelf",
            ["gelf-address=tcp://h:9", "gelf-tcp-max-reconnect=3", "gelf-tcp-reconnect-delay=5"],
            Gelf(address=tcp("h", 9), retry_s=5.0),
        ),
        ("fluentd", [], Fluentd(address=tcp("127.0.0.1", 24224))),
        ("fluentd", ["fluentd-address=log.example:1234"], Fluentd(address=tcp("log.example", 1234))),
        ("fluentd", ["fluentd-address=tls://h"], Fluentd(address=tcp("h", 24224, Tls()))),
        (
            "fluentd",
            [
                "fluentd-address=unix:///run/f.sock",
                "fluentd-async=true",
                "fluentd-buffer-limit=8m",
                "fluentd-retry-wait=1m1.5s",
                "fluentd-max-retries=5",
                "fluentd-sub-second-precision=1",
                "fluentd-request-ack=T",
                "fluentd-async-reconnect-interval=500ms",
                "fluentd-write-timeout=2s",
                "fluentd-read-timeout=0",
            ],
            Fluentd(
                address=Address(kind="unix", path="/run/f.sock"),
                nanoseconds=True,
                acknowledge=True,
                retry_s=61.5,
                reconnect_s=0.5,
                write_timeout_s=2.0,
            ),
        ),
    ],
)
def test_options_are_docker_s(driver: str, options: list[str], expected: Destination) -> None:
    assert parse(driver, *options) == expected


@pytest.mark.parametrize(
    ("driver", "options", "message"),
    [
        ("syslog", ["colour=red"], "unknown log opt 'colour' for syslog log driver"),
        ("syslog", ["max-size=1m"], "unknown log opt 'max-size' for syslog log driver"),
        ("syslog", ["syslog-address=http://h"], "unsupported scheme: 'http'"),
        ("syslog", ["syslog-address=tcp://h:70000"], "syslog-address=tcp://h:70000: invalid port"),
        ("syslog", ["syslog-address=unix://"], "expected an absolute path"),
        ("syslog", ["syslog-facility=lunch"], "invalid syslog facility"),
        ("syslog", ["syslog-facility=24"], "invalid syslog facility"),
        ("syslog", ["syslog-format=xml"], "Invalid syslog format"),
        ("syslog", ["syslog-tls-cert=/c.pem"], "syslog-tls-cert and syslog-tls-key belong together"),
        ("gelf", [], "gelf-address is a required parameter"),
        ("gelf", ["gelf-address=unix:///x"], "gelf: endpoint needs to be TCP or UDP"),
        ("gelf", ["gelf-address=udp://h"], "gelf: please provide gelf-address as proto://host:port"),
        ("gelf", ["gelf-address=tcp://h:1", "gelf-compression-type=gzip"], "only supported on UDP"),
        ("gelf", ["gelf-address=udp://h:1", "gelf-compression-level=10"], 'unknown value "10" for log opt'),
        ("gelf", ["gelf-address=udp://h:1", "gelf-compression-type=lz"], 'unknown value "lz" for log opt'),
        ("gelf", ["gelf-address=udp://h:1", "gelf-tcp-max-reconnect=1"], "is only valid for TCP"),
        ("gelf", ["gelf-address=tcp://h:1", "gelf-tcp-reconnect-delay=-1"], "must be a positive integer"),
        ("fluentd", ["fluentd-address=http://h"], "invalid fluentd-address .*unsupported scheme: 'http'"),
        ("fluentd", ["fluentd-address=tcp://h/path"], "should not contain a path element"),
        ("fluentd", ["fluentd-address=unix:///"], "path is empty"),
        ("fluentd", ["fluentd-address=h:x"], "invalid port"),
        ("fluentd", ["fluentd-retry-wait=soon"], "invalid value for fluentd-retry-wait: soon"),
        ("fluentd", ["fluentd-write-timeout=-1s"], "must be a duration that is non-negative"),
        ("fluentd", ["fluentd-async-reconnect-interval=1m"], "must be between 100ms and 10s"),
        ("fluentd", ["fluentd-buffer-limit=lots"], "invalid value for fluentd-buffer-limit"),
        ("fluentd", ["fluentd-max-retries=-1"], "invalid value for fluentd-max-retries"),
        ("fluentd", ["fluentd-async=perhaps"], "invalid boolean value for fluentd-async"),
        ("journald", ["syslog-address="], "unknown log opt 'syslog-address' for journald log driver"),
        ("journald", ["cache-max-size=x"], "invalid value for cache-max-size: x"),
        ("journald", ["cache-disabled=x"], "invalid boolean value for cache-disabled"),
        ("journald", ["labels-regex=("], "invalid value for labels-regex"),
        ("awslogs", [], "no log driver named 'awslogs' is registered: CloudWatch"),
        ("splunk", [], "no log driver named 'splunk' is registered: .*Fluent Bit"),
    ],
)
def test_wrong_options_are_refused_as_docker_does(driver: str, options: list[str], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        parse(driver, *options)


def test_the_local_copy_has_its_own_options() -> None:
    options = {"cache-max-size": "1m", "cache-max-file": "3", "cache-compress": "false"}
    settings = log_setup(LogConfig(driver="fluentd", options=options), HERE)
    assert (settings.driver, settings.max_size_bytes, settings.max_files, settings.compress) == (
        "local",
        10**6,
        3,
        False,
    )
    assert is_readable(LogConfig(driver="fluentd", options=options))
    assert not is_readable(LogConfig(driver="fluentd", options={"cache-disabled": "true"}))


def test_the_daemon_s_options_count_for_its_own_driver_and_for_every_local_copy() -> None:
    default = LogConfig(
        driver="json-file", options={"max-size": "1m", "max-file": "2", "cache-max-size": "9m"}
    )
    assert merge_defaults(LogConfig(), default) == default
    own = LogConfig(driver="json-file", options={"max-size": "3m"})
    assert merge_defaults(own, default).options == default.options | {"max-size": "3m"}
    other = LogConfig(driver="gelf", options={"gelf-address": "udp://h:1"})
    assert merge_defaults(other, default).options == other.options | {"cache-max-size": "9m"}
