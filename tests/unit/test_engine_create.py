"""Merging what was asked for with what the image says."""

from __future__ import annotations

import itertools

import pytest

from cove.engine.create import (
    PlannedMount,
    check_target,
    merge_args,
    merge_env,
    parse_signal,
    plan_container,
    plan_mounts,
    tmpfs_point,
    volume_names,
)
from cove.engine.names import check_name, choose_name, new_id
from cove.model.container import (
    Bind,
    Container,
    ContainerSpec,
    LogConfig,
    MountPoint,
    RestartPolicy,
    Tmpfs,
    Volume,
)
from cove.model.errors import Invalid
from cove.model.objects import Image, ImageConfig

ID = "ab" * 32


def spec(**fields: object) -> ContainerSpec:
    return ContainerSpec(image="debian", **fields)  # type: ignore[arg-type]


def container(asked: ContainerSpec, config: ImageConfig | None = None) -> Container:
    return plan_container(
        asked,
        Image(id="sha256:1", config=config or ImageConfig(command=("sh",))),
        container_id=ID,
        name="n",
        created_ns=1,
        mounts=(),
        log=LogConfig(driver="local"),
        host_name="metal",
    )


@pytest.mark.parametrize(
    ("entrypoint", "command", "expected"),
    [
        (None, None, (("/entry",), ("default",))),
        (None, ("x",), (("/entry",), ("x",))),
        (("mine",), None, (("mine",), ())),
        (("mine",), ("x",), (("mine",), ("x",))),
        ((), None, ((), ("default",))),
        (("",), ("x",), ((), ("x",))),
    ],
)
def test_an_entrypoint_of_the_callers_drops_the_images_command(
    entrypoint: tuple[str, ...] | None, command: tuple[str, ...] | None, expected: object
) -> None:
    config = ImageConfig(entrypoint=("/entry",), command=("default",))
    assert merge_args(spec(entrypoint=entrypoint, command=command), config) == expected


def test_nothing_to_run_is_refused() -> None:
    with pytest.raises(Invalid, match="no command specified"):
        merge_args(spec(), ImageConfig())
    with pytest.raises(Invalid, match="no command specified"):
        merge_args(spec(entrypoint=("",)), ImageConfig(entrypoint=("x",), command=("y",)))


def test_the_callers_environment_wins_and_a_bare_name_stays_to_remove_the_images() -> None:
    assert merge_env(("A=1", "B=2", "C=3"), ("B=9", "C", "D=")) == ("B=9", "C", "D=", "A=1")


def test_an_environment_entry_without_a_name_is_refused() -> None:
    with pytest.raises(Invalid, match="expected NAME=value"):
        merge_env((), ("=x",))


@pytest.mark.parametrize(
    ("text", "number"),
    [("9", 9), ("KILL", 9), ("SIGTERM", 15), ("sigusr1", 10), ("RTMIN+3", 37), ("RTMAX-1", 63)],
)
def test_signals_are_known_by_number_and_by_name(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["0", "65", "NOPE", "", "SIG", "RTMIN+99", "-9"])
def test_an_unknown_signal_is_refused_with_its_name(text: str) -> None:
    with pytest.raises(Invalid, match="Invalid signal"):
        parse_signal(text)


@pytest.mark.parametrize("target", ["relative", "/", "//", "/.", "", "/a/.."])
def test_a_mount_target_is_absolute_and_not_the_root(target: str) -> None:
    with pytest.raises(Invalid):
        check_target(target)


def test_mount_targets_are_cleaned() -> None:
    assert check_target("/a//b/../c/") == "/a/c"


def test_the_callers_mounts_win_over_inherited_ones_and_these_over_the_images_volumes() -> None:
    names = (f"v{n}" for n in itertools.count())
    mounts = plan_mounts(
        spec(
            mounts=(
                Bind(source="/src", target="/a/"),
                Volume(name="", target="/b"),
                Volume(name="n", target="/e"),
            )
        ),
        ImageConfig(volumes=("/a", "/c", "/d")),
        [
            MountPoint(kind="bind", target="/a", source="/x"),
            MountPoint(kind="bind", target="/c", source="/y"),
        ],
        lambda: next(names),
    )
    assert mounts == [
        PlannedMount(Bind(source="/src", target="/a"), False),
        PlannedMount(Volume(name="v0", target="/b"), True),
        PlannedMount(Volume(name="n", target="/e"), False),
        MountPoint(kind="bind", target="/c", source="/y"),
        PlannedMount(Volume(name="v1", target="/d"), True),
    ]


def test_two_mounts_of_the_callers_on_one_target_are_refused() -> None:
    with pytest.raises(Invalid, match="Duplicate mount point: /a"):
        plan_mounts(
            spec(mounts=(Tmpfs(target="/a"), Bind(source="/s", target="/a/"))), ImageConfig(), [], str
        )


def test_a_tmpfs_gets_its_size_and_mode_unless_options_name_them() -> None:
    assert tmpfs_point(Tmpfs(target="/t", size_bytes=65536)).options == ("size=65536", "mode=1777")
    assert tmpfs_point(Tmpfs(target="/t", size_bytes=1, options=("size=9k", "mode=700"))).options == (
        "size=9k",
        "mode=700",
    )


def test_the_record_has_the_images_defaults_overlaid() -> None:
    config = ImageConfig(
        command=("sh",),
        env=("PATH=/bin",),
        user="app",
        working_dir="/srv",
        labels={"a": "1", "b": "1"},
        stop_signal="INT",
    )
    made = container(spec(labels={"b": "2"}, env=("X=y",)), config)
    assert made.args == ("sh",)
    assert made.env == ("X=y", "PATH=/bin")
    assert (made.user, made.working_dir, made.stop_signal) == ("app", "/srv", "INT")
    assert made.labels == {"a": "1", "b": "2"}
    assert made.hostname == ID[:12]


def test_host_network_and_host_uts_have_the_hosts_name() -> None:
    assert container(spec(network_mode="host", hostname="x")).hostname == "metal"
    assert container(spec(uts_mode="host")).hostname == "metal"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"auto_remove": True, "restart": RestartPolicy(name="always")}, "AutoRemove"),
        ({"restart": RestartPolicy(name="always", maximum_retries=3)}, "maximum retry count"),
        ({"restart": RestartPolicy(name="on-failure", maximum_retries=-1)}, "cannot be negative"),
        ({"working_dir": "rel"}, "absolute path"),
        ({"stop_signal": "SIGNOPE"}, "Invalid signal"),
        ({"stop_timeout_s": -2}, "stop timeout"),
        ({"command": ("a\0b",)}, "NUL"),
    ],
)
def test_what_makes_no_sense_together_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(Invalid, match=words):
        container(spec(**fields))


@pytest.mark.parametrize("name", ["a", "", "-ab", "a b", "a/b", "é" * 3, "x" * 256, "ab\n"])
def test_a_name_that_docker_refuses_is_refused(name: str) -> None:
    with pytest.raises(Invalid, match="Invalid container name"):
        check_name(name)


def test_a_leading_slash_of_a_name_is_passed_over() -> None:
    assert check_name("/web-1.x_y") == "web-1.x_y"


def test_chosen_names_are_free_and_valid() -> None:
    taken: set[str] = set()
    for _ in range(200):
        name = choose_name(taken)
        assert name not in taken
        assert check_name(name) == name
        taken.add(name)


def test_ids_are_64_hex_digits() -> None:
    made = new_id()
    assert len(made) == 64
    assert int(made, 16) > 0


def test_every_volume_of_a_create_is_claimed_whoever_names_it() -> None:
    asked = spec(mounts=(Volume(name="data", target="/data"), Bind(source="/b", target="/b")))
    inherited = [MountPoint(kind="volume", target="/shared", name="shared")]
    planned = plan_mounts(asked, ImageConfig(volumes=("/made",)), inherited, lambda: "anonymous")
    assert volume_names(planned) == {"data", "shared", "anonymous"}
