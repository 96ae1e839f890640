"""From the configuration to what the engine and the networks are told."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from cove.config.kinds import Size
from cove.config.load import read_text
from cove.config.read import Config
from cove.daemon.names import plan_names
from cove.engine.types import Settings
from cove.image.overlayfs import in_user_namespace
from cove.image.registry.endpoints import parse_mirror
from cove.logs.drivers import log_setup
from cove.model.container import LogConfig, Ulimit
from cove.model.errors import Invalid
from cove.network.model import NetworkSettings
from cove.rootless.ports import OutsidePorts
from cove.runtime.seccomp import parse_profile
from cove.runtime.subids import find_remap

OPTION_ICC = "com.docker.network.bridge.enable_icc"
OPTION_MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"


def find_native(given: Path | None) -> Path:
    """cove-init: as given, or from this checkout's build, or installed. Invalid when there is none."""
    here = Path(__file__).resolve().parent.parent
    candidates = [given] if given else [here.parent / "build/native/cove-init", here / "cove-init"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise Invalid(f"cove-init is missing at {candidates[0]}: build it with `make setup`")


def cgroup_driver(exec_options: Sequence[str]) -> Literal["cgroupfs", "systemd"]:
    """The driver that the last of exec-opts names, as dockerd's."""
    last = exec_options[-1] if exec_options else ""
    return "systemd" if last == "native.cgroupdriver=systemd" else "cgroupfs"


def is_debug(config: Config) -> bool:
    return config.switch("debug") or config.text("log-level") == "debug"


def reloadable_settings(settings: Settings, config: Config) -> Settings:
    """The settings with what a reload may change. Raises Invalid."""
    log = LogConfig(driver=config.text("log-driver"), options=config.pairs("log-opts"))
    log_setup(log, Path("/"))
    size = 0
    for option in config.words("storage-opts"):
        size = Size("").from_text(option.partition("=")[2])
    return replace(
        settings,
        debug=is_debug(config),
        labels=config.words("labels"),
        live_restore=config.switch("live-restore"),
        shutdown_timeout_s=float(config.number("shutdown-timeout")),
        default_stop_timeout_s=float(config.number("default-stop-timeout")),
        default_log_driver=log.driver,
        default_log_options=log.options,
        default_ulimits=tuple(
            Ulimit(name=name, soft=soft, hard=hard)
            for name, (soft, hard) in sorted(config.pairs("default-ulimits").items())
        ),
        default_shm_size_bytes=config.number("default-shm-size") if "default-shm-size" in config.given else 0,
        default_ipc_mode="shareable" if config.text("default-ipc-mode") == "shareable" else "",
        default_cgroupns_mode=config.text("default-cgroupns-mode"),
        default_storage_size_bytes=size,
        init=config.switch("init"),
        dns=config.words("dns"),
        dns_search=config.words("dns-search"),
        dns_options=config.words("dns-opts"),
        publish_address=config.text("ip"),
        host_gateways=config.words("host-gateway-ips"),
        build_cache_bytes=config.number("builder"),
        dedupe=config.switch("dedupe"),
        image_policy=config.text("image-policy"),
        registry_mirrors=_mirrors(config.words("registry-mirrors")),
        max_downloads=config.number("max-concurrent-downloads"),
        max_uploads=config.number("max-concurrent-uploads"),
        download_attempts=config.number("max-download-attempts"),
        insecure_registries=config.words("insecure-registries"),
    )


def _mirrors(entries: tuple[str, ...]) -> tuple[str, ...]:
    for entry in entries:
        parse_mirror(entry)
    return entries


def plan_settings(config: Config) -> tuple[Settings, NetworkSettings]:
    """The configuration as the engine and the networks want it. Raises Invalid."""
    run_dir = Path(os.path.abspath(config.text("run-dir")))
    remap = config.text("userns-remap")
    if remap and in_user_namespace():
        raise Invalid("userns-remap: a rootless daemon's containers are in its user namespace, leave it out")
    driver = cgroup_driver(config.words("exec-opts"))
    if driver == "systemd" and in_user_namespace():
        raise Invalid(
            "exec-opts native.cgroupdriver=systemd: a rootless daemon's containers are in the cgroup that it was "
            "given, leave it out"
        )
    names = plan_names(run_dir)
    parent = config.text("cgroup-parent") or ("" if driver == "systemd" else names.cgroup_parent)
    native = config.text("native")
    seccomp_name = config.text("seccomp-profile") or "builtin"
    settings = Settings(
        data_root=Path(os.path.abspath(config.text("data-root"))),
        run_dir=run_dir,
        native=find_native(Path(native) if native else None),
        cgroup_parent=parent.strip("/"),
        cgroup_driver=driver,
        scope_prefix=names.cgroup_parent,
        remap=find_remap(remap) if remap else None,
        no_new_privileges=config.switch("no-new-privileges"),
        seccomp_profile=read_profile(seccomp_name),
        seccomp_name=seccomp_name,
        cdi_spec_dirs=config.words("cdi-spec-dirs"),
    )
    return reloadable_settings(settings, config), plan_network(config, names.bridge, names.table)


def plan_network(config: Config, bridge: str, table: str) -> NetworkSettings:
    """What the networks are told; `bridge` and `table` are this daemon's names."""
    outside = OutsidePorts.inherited()
    ipv4, gateway4 = _split(config.text("bip"))
    ipv6, gateway6 = _split(config.text("bip6"))
    if not config.switch("ipv6"):
        ipv6, gateway6 = "none", ""
    options = {}
    if not config.switch("icc"):
        options[OPTION_ICC] = "false"
    if not config.switch("ip-masq"):
        options[OPTION_MASQUERADE] = "false"
    return NetworkSettings(
        bridge=config.text("bridge") or bridge,
        table=table,
        ipv4=ipv4,
        ipv6=ipv6,
        gateway4=gateway4,
        gateway6=gateway6,
        range4=config.text("fixed-cidr"),
        range6=config.text("fixed-cidr-v6"),
        mtu=config.number("mtu"),
        pool_size=config.number("network-pool"),
        bind_outside=outside.bind if outside is not None else None,
        bridge_options=options,
        default_options=config.pairs("default-network-opts"),
        default_address_pools=config.values["default-address-pools"],
        firewall=config.text("firewall"),
    )


def _split(interface: str) -> tuple[str, str]:
    """Subnet and gateway of ADDRESS/BITS; a subnet alone leaves the gateway open."""
    if not interface:
        return "", ""
    parsed = ipaddress.ip_interface(interface)
    gateway = "" if parsed.ip == parsed.network.network_address else str(parsed.ip)
    return str(parsed.network), gateway


def read_profile(name: str) -> str:
    """The profile's JSON; "" for builtin, "unconfined" as it is. Raises Invalid."""
    if name == "builtin":
        return ""
    if name == "unconfined":
        return name
    try:
        text = read_text(name, required=True)
        parse_profile(text)
    except Invalid as error:
        raise Invalid(
            f"seccomp-profile {name}: {error}: expected a profile's file, unconfined or builtin"
        ) from None
    return text
