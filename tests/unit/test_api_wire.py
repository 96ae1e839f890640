"""Request bodies by shape: names in any case, as Go's encoding/json takes them."""

from __future__ import annotations

import pytest

from cove.api.docker import wire
from cove.model.errors import Invalid


def test_a_field_is_found_whatever_the_case_of_its_name() -> None:
    body = wire.decode(
        b'{"image": "x", "hostConfig": {"portbindings": {"80/tcp": [{"hostip": "::1"}]}, "MEMORY": 5},'
        b' "networkingconfig": {"endpointsConfig": {"Image": {"ipamconfig": {"ipv4address": "1.2.3.4"}}}}}',
        wire.CreateBody,
    )
    assert body.image == "x"
    assert body.host_config is not None
    assert body.host_config.memory == 5
    assert body.host_config.port_bindings == {"80/tcp": [wire.PortBinding(host_ip="::1")]}
    assert body.networking_config is not None
    endpoints = body.networking_config.endpoints_config
    assert endpoints is not None
    endpoint = endpoints["Image"]
    assert endpoint is not None and endpoint.ipam_config == wire.IpamConfig(ipv4_address="1.2.3.4")


def test_keys_that_are_data_keep_their_case() -> None:
    body = wire.decode(
        b'{"image": "x", "Labels": {"IMAGE": "1", "image": "2", "Image": "3"}}', wire.CreateBody
    )
    assert body.labels == {"IMAGE": "1", "image": "2", "Image": "3"}


def test_of_a_name_in_two_spellings_the_last_one_counts() -> None:
    assert wire.decode(b'{"Image": "one", "image": "two"}', wire.CreateBody).image == "two"
    assert wire.decode(b'{"image": "one", "Image": "two"}', wire.CreateBody).image == "two"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"hostconfig": {"memory": "1g"}}', "HostConfig.Memory: expected integer, got string"),
        (b'{"hostconfig": []}', "HostConfig: expected object, got array"),
        (b'{"image": "x"', "invalid JSON: unexpected end of the request body"),
    ],
)
def test_a_wrong_type_is_told_with_the_field_s_own_name(data: bytes, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        wire.decode(data, wire.CreateBody)
    assert str(caught.value) == message
