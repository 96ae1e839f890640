"""The JSON that clients of the Docker Engine API send: shapes only (moby, api/docs/v1.55.yaml).

Every field may be null or missing, which mean the same, as they do to the reference daemon;
unknown fields are passed over, and told to who asks for them. A field's name may be written in
any case (docker-py sends `detachKeys`), as Go's encoding/json has it. Meaning and limits are
decode.py's; fields.py says which fields have none.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec

from cove.api.http import Request
from cove.model.errors import Invalid

_IRREGULAR = {
    "uts_mode": "UTSMode",
    "container_id_file": "ContainerIDFile",
    "blkio_device_read_iops": "BlkioDeviceReadIOps",
    "blkio_device_write_iops": "BlkioDeviceWriteIOps",
    "io_maximum_iops": "IOMaximumIOps",
    "io_maximum_bandwidth": "IOMaximumBandwidth",
    "kernel_memory_tcp": "KernelMemoryTCP",
    "device_ids": "DeviceIDs",
    "ipam_config": "IPAMConfig",
    "ipam": "IPAM",
    "ipv4_address": "IPv4Address",
    "ipv6_address": "IPv6Address",
    "link_local_ips": "LinkLocalIPs",
    "enable_ipv4": "EnableIPv4",
    "enable_ipv6": "EnableIPv6",
    "ip_range": "IPRange",
    "ip_address": "IPAddress",
    "ip_prefix_len": "IPPrefixLen",
    "ipv6_gateway": "IPv6Gateway",
    "global_ipv6_address": "GlobalIPv6Address",
    "global_ipv6_prefix_len": "GlobalIPv6PrefixLen",
    "dns_names": "DNSNames",
    "network_id": "NetworkID",
    "endpoint_id": "EndpointID",
}


def _rename(name: str) -> str:
    return _IRREGULAR.get(name) or "".join(part.capitalize() for part in name.split("_"))


class Wire(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, rename=_rename
):
    """Base: null and missing are the same. A body with unknown fields is decoded again, without them."""


Int = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]  # Go's int64
Strings = list[str] | None
StringMap = dict[str, str | None] | None
Words = str | list[str] | None  # a command: a list, or one word


class Health(Wire, frozen=True, kw_only=True):
    test: Words = None
    interval: Int | None = None
    timeout: Int | None = None
    start_period: Int | None = None
    start_interval: Int | None = None
    retries: Int | None = None


class WeightDevice(Wire, frozen=True, kw_only=True):
    path: str | None = None
    weight: Int | None = None


class ThrottleDevice(Wire, frozen=True, kw_only=True):
    path: str | None = None
    rate: Int | None = None


class DeviceMapping(Wire, frozen=True, kw_only=True):
    path_on_host: str | None = None
    path_in_container: str | None = None
    cgroup_permissions: str | None = None


class DeviceRequest(Wire, frozen=True, kw_only=True):
    driver: str | None = None
    count: Int | None = None
    device_ids: Strings = None
    capabilities: list[list[str]] | None = None
    options: StringMap = None


class Ulimit(Wire, frozen=True, kw_only=True):
    name: str | None = None
    soft: Int | None = None
    hard: Int | None = None


class RestartPolicy(Wire, frozen=True, kw_only=True):
    name: str | None = None
    maximum_retry_count: Int | None = None


class Resources(Wire, frozen=True, kw_only=True):
    """The part of HostConfig that `update` also takes."""

    cpu_shares: Int | None = None
    memory: Int | None = None
    nano_cpus: Int | None = None
    cgroup_parent: str | None = None
    blkio_weight: Int | None = None
    blkio_weight_device: list[WeightDevice] | None = None
    blkio_device_read_bps: list[ThrottleDevice] | None = None
    blkio_device_write_bps: list[ThrottleDevice] | None = None
    blkio_device_read_iops: list[ThrottleDevice] | None = None
    blkio_device_write_iops: list[ThrottleDevice] | None = None
    cpu_period: Int | None = None
    cpu_quota: Int | None = None
    cpu_realtime_period: Int | None = None
    cpu_realtime_runtime: Int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    devices: list[DeviceMapping] | None = None
    device_cgroup_rules: Strings = None
    device_requests: list[DeviceRequest] | None = None
    kernel_memory: Int | None = None
    kernel_memory_tcp: Int | None = None
    memory_reservation: Int | None = None
    memory_swap: Int | None = None
    memory_swappiness: Int | None = None
    oom_kill_disable: bool | None = None
    pids_limit: Int | None = None
    ulimits: list[Ulimit] | None = None
    cpu_count: Int | None = None
    cpu_percent: Int | None = None
    io_maximum_iops: Int | None = None
    io_maximum_bandwidth: Int | None = None
    init: bool | None = None
    disk_quota: Int | None = None  # of older versions of the API


class UpdateBody(Resources, frozen=True, kw_only=True):
    restart_policy: RestartPolicy | None = None


class LogConfig(Wire, frozen=True, kw_only=True):
    type: str | None = None
    config: StringMap = None


class PortBinding(Wire, frozen=True, kw_only=True):
    host_ip: str | None = None
    host_port: str | None = None


class BindOptions(Wire, frozen=True, kw_only=True):
    propagation: str | None = None
    non_recursive: bool | None = None
    create_mountpoint: bool | None = None
    read_only_non_recursive: bool | None = None
    read_only_force_recursive: bool | None = None


class DriverConfig(Wire, frozen=True, kw_only=True):
    name: str | None = None
    options: StringMap = None


class VolumeOptions(Wire, frozen=True, kw_only=True):
    no_copy: bool | None = None
    labels: StringMap = None
    driver_config: DriverConfig | None = None
    subpath: str | None = None


class TmpfsOptions(Wire, frozen=True, kw_only=True):
    size_bytes: Int | None = None
    mode: Int | None = None
    options: list[list[str]] | None = None


class ImageOptions(Wire, frozen=True, kw_only=True):
    subpath: str | None = None


class Mount(Wire, frozen=True, kw_only=True):
    type: str | None = None
    source: str | None = None
    target: str | None = None
    read_only: bool | None = None
    consistency: str | None = None
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: TmpfsOptions | None = None
    image_options: ImageOptions | None = None
    cluster_options: dict[str, Any] | None = None


class HostConfig(Resources, frozen=True, kw_only=True):
    binds: Strings = None
    container_id_file: str | None = None
    log_config: LogConfig | None = None
    network_mode: str | None = None
    port_bindings: dict[str, list[PortBinding] | None] | None = None
    restart_policy: RestartPolicy | None = None
    auto_remove: bool | None = None
    volume_driver: str | None = None
    volumes_from: Strings = None
    console_size: list[Int] | None = None
    annotations: StringMap = None
    cap_add: Strings = None
    cap_drop: Strings = None
    cgroupns_mode: str | None = None
    dns: Strings = None
    dns_options: Strings = None
    dns_search: Strings = None
    extra_hosts: Strings = None
    group_add: Strings = None
    ipc_mode: str | None = None
    cgroup: str | None = None
    links: Strings = None
    oom_score_adj: Int | None = None
    pid_mode: str | None = None
    privileged: bool | None = None
    publish_all_ports: bool | None = None
    readonly_rootfs: bool | None = None
    security_opt: Strings = None
    storage_opt: StringMap = None
    tmpfs: StringMap = None
    uts_mode: str | None = None
    userns_mode: str | None = None
    shm_size: Int | None = None
    sysctls: StringMap = None
    runtime: str | None = None
    isolation: str | None = None
    mounts: list[Mount] | None = None
    masked_paths: Strings = None
    readonly_paths: Strings = None
    capabilities: Strings = None  # of older versions of the API


class IpamConfig(Wire, frozen=True, kw_only=True):
    ipv4_address: str | None = None
    ipv6_address: str | None = None
    link_local_ips: Strings = None


class EndpointConfig(Wire, frozen=True, kw_only=True):
    ipam_config: IpamConfig | None = None
    links: Strings = None
    mac_address: str | None = None
    aliases: Strings = None
    driver_opts: StringMap = None
    gw_priority: Int | None = None
    # what an inspect says of an endpoint, and clients send back with it
    network_id: str | None = None
    endpoint_id: str | None = None
    gateway: str | None = None
    ip_address: str | None = None
    ip_prefix_len: Int | None = None
    ipv6_gateway: str | None = None
    global_ipv6_address: str | None = None
    global_ipv6_prefix_len: Int | None = None
    dns_names: Strings = None


class NetworkingConfig(Wire, frozen=True, kw_only=True):
    endpoints_config: dict[str, EndpointConfig | None] | None = None


class Config(Wire, frozen=True, kw_only=True):
    hostname: str | None = None
    domainname: str | None = None
    user: str | None = None
    attach_stdin: bool | None = None
    attach_stdout: bool | None = None
    attach_stderr: bool | None = None
    exposed_ports: dict[str, dict[str, Any] | None] | None = None
    tty: bool | None = None
    open_stdin: bool | None = None
    stdin_once: bool | None = None
    env: Strings = None
    cmd: Words = None
    healthcheck: Health | None = None
    image: str | None = None
    volumes: dict[str, dict[str, Any] | None] | None = None
    working_dir: str | None = None
    entrypoint: Words = None
    network_disabled: bool | None = None
    mac_address: str | None = None
    on_build: Strings = None
    labels: StringMap = None
    stop_signal: str | None = None
    stop_timeout: Int | None = None
    shell: Words = None
    args_escaped: bool | None = None


class CreateBody(Config, frozen=True, kw_only=True):
    host_config: HostConfig | None = None
    networking_config: NetworkingConfig | None = None
    cove: StringMap = None  # Cove's own settings (extension.py)
    cove_secret_data: StringMap = None  # contents of secrets in base64, by target: never kept, never shown


class AuthBody(Wire, frozen=True, kw_only=True):
    username: str | None = msgspec.field(default=None, name="username")
    password: str | None = msgspec.field(default=None, name="password")
    email: str | None = msgspec.field(default=None, name="email")
    serveraddress: str | None = msgspec.field(default=None, name="serveraddress")
    auth: str | None = msgspec.field(default=None, name="auth")
    identitytoken: str | None = msgspec.field(default=None, name="identitytoken")
    registrytoken: str | None = msgspec.field(default=None, name="registrytoken")


class ExecCreateBody(Wire, frozen=True, kw_only=True):
    user: str | None = None
    privileged: bool | None = None
    tty: bool | None = None
    console_size: list[Int] | None = None
    attach_stdin: bool | None = None
    attach_stderr: bool | None = None
    attach_stdout: bool | None = None
    detach: bool | None = None
    detach_keys: str | None = None
    env: Strings = None
    working_dir: str | None = None
    cmd: Words = None


class ExecStartBody(Wire, frozen=True, kw_only=True):
    detach: bool | None = None
    tty: bool | None = None
    console_size: list[Int] | None = None


class VolumeBody(Wire, frozen=True, kw_only=True):
    name: str | None = None
    driver: str | None = None
    driver_opts: StringMap = None
    labels: StringMap = None
    cluster_volume_spec: dict[str, Any] | None = None


class IpamPoolBody(Wire, frozen=True, kw_only=True):
    subnet: str | None = None
    ip_range: str | None = None
    gateway: str | None = None
    auxiliary_addresses: StringMap = None


class IpamBody(Wire, frozen=True, kw_only=True):
    driver: str | None = None
    config: list[IpamPoolBody] | None = None
    options: StringMap = None


class NetworkBody(Wire, frozen=True, kw_only=True):
    name: str | None = None
    check_duplicate: bool | None = None
    driver: str | None = None
    scope: str | None = None
    enable_ipv4: bool | None = None
    enable_ipv6: bool | None = None
    ipam: IpamBody | None = None
    internal: bool | None = None
    attachable: bool | None = None
    ingress: bool | None = None
    config_only: bool | None = None
    config_from: dict[str, str | None] | None = None
    options: StringMap = None
    labels: StringMap = None


class ConnectBody(Wire, frozen=True, kw_only=True):
    container: str | None = None
    endpoint_config: EndpointConfig | None = None


class DisconnectBody(Wire, frozen=True, kw_only=True):
    container: str | None = None
    force: bool | None = None


W = TypeVar("W")

MAX_UNKNOWN = 16  # unknown fields that are told of one body
_NAME_CHARS = 64  # and how much of each name
_TYPE_NAMES = {"int": "integer", "str": "string", "bool": "boolean", "float": "number"}
_MISMATCH = re.compile(r"Expected (.+?), got (.+)")
_UNKNOWN = "Object contains unknown field"
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}
_fields_of: dict[Any, dict[str, tuple[str, Any]]] = {}


def _fields(shape: Any) -> dict[str, tuple[str, Any]]:
    """The fields of a shape by their names in lower case: (name, type)."""
    found = _fields_of.get(shape)
    if found is None:
        found = _fields_of[shape] = {
            field.encode_name.lower(): (field.encode_name, field.type)
            for field in msgspec.structs.fields(shape)
        }
    return found


def _respell(value: Any, shape: Any, path: str, unknown: list[str]) -> Any:
    """`value` with the names of `shape`'s fields as they are written here; the last one of a name wins.

    Fields that `shape` doesn't have are left out; those that say something come into `unknown`.
    """
    if isinstance(shape, type) and issubclass(shape, Wire):
        if not isinstance(value, dict):
            return value
        fields = _fields(shape)
        found = {}
        for key, item in value.items():
            known = fields.get(key.lower())
            here = f"{path}.{key[:_NAME_CHARS]}" if path else key[:_NAME_CHARS]
            if known is not None:
                found[known[0]] = _respell(
                    item, known[1], f"{path}.{known[0]}" if path else known[0], unknown
                )
            elif item and len(unknown) < MAX_UNKNOWN:
                unknown.append(here)
        return found
    for kind in get_args(shape):  # a union, list[X] or dict[str, X]
        if isinstance(value, list) and get_origin(shape) is list:
            return [_respell(item, kind, f"{path}[{index}]", unknown) for index, item in enumerate(value)]
        if isinstance(value, dict) and get_origin(shape) is dict:
            inner = get_args(shape)[1]
            return {
                key: _respell(item, inner, f"{path}[{key[:_NAME_CHARS]!r}]", unknown)
                for key, item in value.items()
            }
        if isinstance(value, dict | list):
            value = _respell(value, kind, path, unknown)
    return value


def decode(data: bytes, shape: type[W], unknown: list[str] | None = None) -> W:
    """`data` as `shape`. Raises `Invalid` with the JSON path for a wrong type.

    The paths of fields that nobody knows come into `unknown`, up to MAX_UNKNOWN of them.
    """
    decoder = _decoders.get(shape)
    if decoder is None:
        decoder = _decoders[shape] = msgspec.json.Decoder(shape)
    try:
        try:
            value: W = decoder.decode(data)
        except msgspec.ValidationError as error:
            if not str(error).startswith(_UNKNOWN):
                raise
            known = _respell(msgspec.json.decode(data), shape, "", [] if unknown is None else unknown)
            value = decoder.decode(msgspec.json.encode(known))
    except msgspec.ValidationError as error:
        raise Invalid(_explain(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        text = str(error)
        if "trailing characters" in text:
            raise Invalid("unexpected content after JSON") from None
        if "truncated" in text:
            raise Invalid("invalid JSON: unexpected end of the request body") from None
        raise Invalid(f"invalid JSON: {text.removeprefix('JSON is malformed: ')}") from None
    except RecursionError:
        raise Invalid("invalid JSON: nested too deeply") from None
    return value


def _explain(message: str) -> str:
    """msgspec's sentence as path, expectation, finding; it never holds a value of the body."""
    text, _, path = message.partition(" - at `")
    path = path.rstrip("`").removeprefix("$").removeprefix(".")
    if match := _MISMATCH.fullmatch(text):
        wanted = [w.strip(" `") for w in match[1].strip("`").split("|")]
        names = " or ".join(_TYPE_NAMES.get(w, w) for w in wanted if w != "null")
        got = match[2].strip("`")
        text = f"expected {names}, got {_TYPE_NAMES.get(got, got)}"
    else:
        text = (text[:1].lower() + text[1:]).replace("`int`", "an integer")
    return f"{path or 'request body'}: {text}"


async def read(
    request: Request, shape: type[W], *, required: bool = False, unknown: list[str] | None = None
) -> W:
    """The request's JSON body as `shape`; an empty body is an empty object unless `required`.

    `unknown` takes the paths of fields that `shape` doesn't have.
    """
    content_type = request.headers.get("content-type", "")
    if request.body.empty:
        if required:
            raise Invalid("invalid JSON: got EOF while reading request body")
        return decode(b"{}", shape)
    media_type = content_type.partition(";")[0].strip().lower()
    if not media_type:
        raise Invalid("malformed Content-Type header (): it's missing, expected application/json")
    if media_type != "application/json":
        raise Invalid(f"unsupported Content-Type header ({content_type}): must be 'application/json'")
    data = await request.body.read_all()
    if not data.strip():
        raise Invalid("invalid JSON: got EOF while reading request body")
    if data.strip() == b"null":
        return decode(b"{}", shape)
    return decode(data, shape, unknown)
