"""Plan one mount of an OCI config: options become flags, attributes and data. Pure.

Options are those of the runtime specification (config.md, "Linux mount options"), and mean what mount(8) says.
For a new filesystem an r… form is the option itself, for nothing lies below it yet. A bind has two sets of
attributes: one of the mount itself, one of the whole tree, which wins where both speak, as in runc.

Binds are made from detached clones (open_tree(2)), so that attributes are set before anybody sees the
mount. A bind that is to stay a peer (shared) or a follower (slave) of its source, or is from another mount
namespace, or is idmapped, is cloned by the caller and handed over: the child's own tree is private, nobody's peer,
and an idmap needs the rights of the source's owner. So is one of a volume's subpath, which is looked up within
the volume.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from cove.model.errors import Invalid, Unavailable
from cove.runtime import capabilities, oci
from cove.runtime.facts import Host
from cove.runtime.plan_cgroups import NO_RESOURCES, joined_directories, visible_names
from cove.runtime.plan_inputs import Slot, Slots
from cove.runtime.plan_namespaces import has_user_namespace
from cove.runtime.steps import AttachTree, Bind, CopyUp, MakeSymlink, MountIn, Step

# mount(2)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS = 0x1, 0x2, 0x4, 0x8, 0x10
MS_REMOUNT, MS_MANDLOCK, MS_DIRSYNC, MS_NOSYMFOLLOW = 0x20, 0x40, 0x80, 0x100
MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_REC, MS_SILENT = 0x400, 0x800, 0x1000, 0x4000, 0x8000
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
MS_RELATIME, MS_I_VERSION, MS_STRICTATIME, MS_LAZYTIME = 1 << 21, 1 << 23, 1 << 24, 1 << 25
# mount_setattr(2)
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8
ATTR_NOATIME, ATTR_STRICTATIME, ATTR_NODIRATIME, ATTR_ATIME_MASK = 0x10, 0x20, 0x80, 0x70
ATTR_NOSYMFOLLOW = 0x200000

_SYS_ADMIN = capabilities.mask(("CAP_SYS_ADMIN",))
_FLAGS = {  # option -> (MS_* to set, MS_* to clear)
    "defaults": (0, 0),
    "ro": (MS_RDONLY, 0),
    "rw": (0, MS_RDONLY),
    "nosuid": (MS_NOSUID, 0),
    "suid": (0, MS_NOSUID),
    "nodev": (MS_NODEV, 0),
    "dev": (0, MS_NODEV),
    "noexec": (MS_NOEXEC, 0),
    "exec": (0, MS_NOEXEC),
    "nosymfollow": (MS_NOSYMFOLLOW, 0),
    "symfollow": (0, MS_NOSYMFOLLOW),
    "noatime": (MS_NOATIME, MS_STRICTATIME | MS_RELATIME),
    "atime": (0, MS_NOATIME),
    "nodiratime": (MS_NODIRATIME, 0),
    "diratime": (0, MS_NODIRATIME),
    "relatime": (MS_RELATIME, MS_STRICTATIME | MS_NOATIME),
    "norelatime": (0, MS_RELATIME),
    "strictatime": (MS_STRICTATIME, MS_NOATIME | MS_RELATIME),
    "nostrictatime": (0, MS_STRICTATIME),
    # of the filesystem itself: a bind passes them over, as the kernel does
    "sync": (MS_SYNCHRONOUS, 0),
    "async": (0, MS_SYNCHRONOUS),
    "dirsync": (MS_DIRSYNC, 0),
    "lazytime": (MS_LAZYTIME, 0),
    "nolazytime": (0, MS_LAZYTIME),
    "iversion": (MS_I_VERSION, 0),
    "noiversion": (0, MS_I_VERSION),
    "mand": (MS_MANDLOCK, 0),
    "nomand": (0, MS_MANDLOCK),
    "silent": (MS_SILENT, 0),
    "loud": (0, MS_SILENT),
}
# option of a bind -> (MOUNT_ATTR_* to set, to clear). The times are one choice of three, of which relatime is 0 and
# the kernel's default: it is what is left when another is taken back (mount_setattr(2), MOUNT_ATTR__ATIME).
_ATTRIBUTES = {
    "ro": (ATTR_RDONLY, 0),
    "rw": (0, ATTR_RDONLY),
    "nosuid": (ATTR_NOSUID, 0),
    "suid": (0, ATTR_NOSUID),
    "nodev": (ATTR_NODEV, 0),
    "dev": (0, ATTR_NODEV),
    "noexec": (ATTR_NOEXEC, 0),
    "exec": (0, ATTR_NOEXEC),
    "noatime": (ATTR_NOATIME, ATTR_ATIME_MASK),
    "atime": (0, ATTR_ATIME_MASK),
    "nodiratime": (ATTR_NODIRATIME, 0),
    "diratime": (0, ATTR_NODIRATIME),
    "relatime": (0, ATTR_ATIME_MASK),
    "norelatime": (0, ATTR_ATIME_MASK),
    "strictatime": (ATTR_STRICTATIME, ATTR_ATIME_MASK),
    "nostrictatime": (0, ATTR_ATIME_MASK),
    "nosymfollow": (ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, ATTR_NOSYMFOLLOW),
}
_RECURSIVE = {f"r{name}": name for name in _ATTRIBUTES}
_PROPAGATION = {
    "private": MS_PRIVATE,
    "slave": MS_SLAVE,
    "shared": MS_SHARED,
    "unbindable": MS_UNBINDABLE,
    "rprivate": MS_PRIVATE | MS_REC,
    "rslave": MS_SLAVE | MS_REC,
    "rshared": MS_SHARED | MS_REC,
    "runbindable": MS_UNBINDABLE | MS_REC,
}
ROOT_PROPAGATION = _PROPAGATION
_WORDS = frozenset({"bind", "rbind", "remount", "idmap", "ridmap", "tmpcopyup"})
# the specification's table, for `features`
KNOWN_OPTIONS = tuple(sorted({*_FLAGS, *_RECURSIVE, *_PROPAGATION, *_WORDS}))

RECURSIVE_SINCE = (5, 12)
_IDMAP_SINCE, _NOSYMFOLLOW_SINCE = (5, 12), (5, 14)

_DATA_BYTES = 4000  # mount(2): one page, in which mode= and a label find room, too

# another container's file system: a bind can't reach into another mount namespace, the daemon can
_FOREIGN = re.compile(r"/proc/[0-9]+/root/")

# what may be mounted over below /proc (lxcfs, CRIU), as by runc; anything else could fool the checks that go by /proc
_PROC_FILES = frozenset(
    f"/proc/{name}"
    for name in (
        "cpuinfo diskstats loadavg meminfo slabinfo stat swaps uptime sys/kernel/ns_last_pid sys/crypto/fips_enabled"
    ).split()
)
# these have labels of their own, or none
_UNLABELLED = frozenset({"proc", "sysfs", "mqueue"})


class Attributes(NamedTuple):
    """MOUNT_ATTR_* to set and to clear."""

    set: int = 0
    clear: int = 0

    def add(self, to_set: int, to_clear: int) -> Attributes:
        """A later option takes an earlier one back."""
        kept_set, kept_clear = self.set & ~to_clear, self.clear & ~to_set
        return Attributes(kept_set | to_set, kept_clear | to_clear)


class Options(NamedTuple):
    flags: int  # MS_* of a new filesystem, the r… forms among them
    own: Attributes  # of a bind: of the mount itself
    all: Attributes  # of a bind: of all mounts below it, too
    propagation: int  # MS_SHARED …, with MS_REC for the whole tree; 0: not named
    data: str  # what isn't an option of every filesystem, in its order
    bind: bool
    recursive: bool  # rbind
    remount: bool
    idmap: bool
    idmap_all: bool
    copy_up: bool


@lru_cache(maxsize=512)
def parse_options(options: tuple[str, ...]) -> Options:
    """Split options by what they are for. Any option is taken: who asks knows what can't be."""
    flags, propagation, data = 0, 0, []
    own, everything = Attributes(), Attributes()
    for option in options:
        name = _RECURSIVE.get(option, option)
        if name in _FLAGS:
            to_set, to_clear = _FLAGS[name]
            flags = flags & ~to_clear | to_set
        if option in _RECURSIVE:
            everything = everything.add(*_ATTRIBUTES[name])
        elif option in _ATTRIBUTES:
            own = own.add(*_ATTRIBUTES[option])
        elif option in _PROPAGATION:
            propagation = _PROPAGATION[option]
        elif option not in _FLAGS and option not in _WORDS:
            data.append(option)
    return Options(
        flags=flags,
        own=own,
        all=everything,
        propagation=propagation,
        data=",".join(data),
        bind="bind" in options or "rbind" in options,
        recursive="rbind" in options,
        remount="remount" in options,
        idmap="idmap" in options or "ridmap" in options,
        idmap_all="ridmap" in options,
        copy_up="tmpcopyup" in options,
    )


def is_bind(mount: oci.Mount) -> bool:
    return mount.type == "bind" or parse_options(mount.options).bind


def plan_mount(
    mount: oci.Mount, config: oci.Config, host: Host, slots: Slots, *, all_cgroups: bool = False
) -> Iterator[Step]:
    """The steps of one mount; `all_cgroups`: it is in every v1 hierarchy (PlanFacts). Raises Invalid for what
    can't be, Unavailable for what this kernel lacks."""
    target = _clean(mount.destination)
    options = parse_options(mount.options)
    _check(mount, target, options, config, host)
    if options.remount:
        flags = options.flags | MS_REMOUNT | (MS_BIND if is_bind(mount) else 0)
        data = "" if is_bind(mount) else options.data
        yield MountIn(fstype=mount.type, source=mount.source, target=target, flags=flags, data=data)
    elif is_bind(mount):
        yield _plan_bind(mount, target, options, config, host, slots)
    elif mount.type == "cgroup":
        yield from _plan_cgroup_mount(target, options, config, host, all_cgroups)
    else:
        writable = bool(options.flags & MS_RDONLY) and _fills_up(mount, target, config)
        yield _plan_filesystem(mount, target, config.linux.mount_label, writable=writable)


def finish_mounts(config: oci.Config) -> Iterator[Step]:
    """What is read-only once everything lies in it: a /dev, and a tmpfs with mount points in it."""
    for mount in config.mounts:
        options = parse_options(mount.options)
        target = _clean(mount.destination)
        if options.flags & MS_RDONLY and _fills_up(mount, target, config):
            yield MountIn(fstype="", source="", target=target, flags=options.flags | MS_REMOUNT | MS_BIND)


def _fills_up(mount: oci.Mount, target: str, config: oci.Config) -> bool:
    """Whether a new filesystem has to be writable until the mounts and devices in it are made."""
    options = parse_options(mount.options)
    if mount.type != "tmpfs" or options.bind or options.remount:
        return False
    below = target.rstrip("/") + "/"
    return target == "/dev" or any(_clean(other.destination).startswith(below) for other in config.mounts)


@lru_cache(maxsize=512)
def _clean(destination: str) -> str:
    """As an absolute path without empty parts, . and .. ; a relative one starts at / (config.md, "Mounts")."""
    parts: list[str] = []
    for part in destination.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def _check(mount: oci.Mount, target: str, options: Options, config: oci.Config, host: Host) -> None:
    """What can't be, and what this host can't do."""
    # the host's own may be bound there, as for a container with the host's pid namespace in a user namespace
    is_proc = _clean(mount.source) == "/proc" if is_bind(mount) else mount.type == "proc"
    if (target == "/proc" and not is_proc) or (target.startswith("/proc/") and target not in _PROC_FILES):
        raise Invalid(f'"{target}" cannot be mounted because it is inside /proc')
    if target == "/":
        raise Invalid(f"{_name(mount, config)}.destination: the root is not mounted upon, e.g. use /data")
    bind, kernel = is_bind(mount), f"this is {host.kernel[0]}.{host.kernel[1]}"
    where = f"{_name(mount, config)}.options"
    if bind:
        # those of a file system (mode=755) come with binds, too, and the kernel passes over them there
        wrong = [word for word in options.data.split(",") if word and "=" not in word]
        if wrong:
            raise Invalid(f"{where}: a bind has no option {wrong[0]!r}, leave it out")
        if not options.remount and not mount.source.startswith("/"):
            raise Invalid(f"{_name(mount, config)}.source {mount.source!r}: an absolute path, e.g. /srv/data")
        if any(options.all) and host.kernel < RECURSIVE_SINCE:
            word = next(option for option in mount.options if option in _RECURSIVE)
            raise Unavailable(f"{where}: {word} needs Linux 5.12, {kernel}: use {word[1:]}")
        if (options.own.set | options.all.set) & ATTR_NOSYMFOLLOW and host.kernel < _NOSYMFOLLOW_SINCE:
            raise Unavailable(f"{where}: nosymfollow of a bind needs Linux 5.14, {kernel}: leave it out")
    elif not options.remount and mount.type != "cgroup" and mount.type not in host.filesystems:
        raise Unavailable(
            f"mount {mount.destination}: this kernel has no filesystem {mount.type!r} (/proc/filesystems)"
        )
    if len(options.data.encode()) > _DATA_BYTES:
        size = len(options.data.encode())
        raise Invalid(f"{where}: {size} bytes for the file system, the kernel takes {_DATA_BYTES}: use fewer")
    if options.copy_up and (bind or mount.type != "tmpfs" or options.remount):
        raise Invalid(f"{where}: tmpcopyup is for a tmpfs, leave it out or set the type to tmpfs")
    if options.idmap or mount.uid_mappings or mount.gid_mappings:
        _check_idmap(mount, options, config, host)
    if config.linux.mount_label and "selinux" not in host.security_modules:
        raise Unavailable("linux.mountLabel: SELinux is not enabled on this host, leave it out")
    if '"' in config.linux.mount_label:
        raise Invalid(f"linux.mountLabel {config.linux.mount_label!r}: a label has no quotation marks")


def _check_idmap(mount: oci.Mount, options: Options, config: oci.Config, host: Host) -> None:
    where = _name(mount, config)
    if not is_bind(mount) or options.remount:
        raise Invalid(f"{where}: only a bind can be idmapped, add the option bind or leave the mappings out")
    if bool(mount.uid_mappings) != bool(mount.gid_mappings):
        missing = "gidMappings" if mount.uid_mappings else "uidMappings"
        raise Invalid(f"{where}.{missing}: uidMappings and gidMappings go together, add it")
    if not mount.uid_mappings and not config.linux.uid_mappings:
        raise Invalid(
            f"{where}.options: idmap needs uidMappings and gidMappings, of the mount or of linux, "
            'e.g. [{"containerID": 0, "hostID": 100000, "size": 65536}]'
        )
    if host.kernel < _IDMAP_SINCE:
        raise Unavailable(
            f"{where}: an idmapped mount needs Linux 5.12, this is {host.kernel[0]}.{host.kernel[1]}"
        )


def _name(mount: oci.Mount, config: oci.Config) -> str:
    return (
        f"mounts[{config.mounts.index(mount)}]" if mount in config.mounts else f"mounts: {mount.destination}"
    )


@lru_cache(maxsize=512)
def _plan_filesystem(mount: oci.Mount, target: str, label: str, *, writable: bool) -> Step:
    options = parse_options(mount.options)
    data = options.data
    if label and mount.type not in _UNLABELLED:
        data = ",".join(filter(None, (data, f'context="{label}"')))
    flags = options.flags & ~MS_RDONLY if writable else options.flags
    # new, it is private, and follows nobody
    propagation = options.propagation if options.propagation & (MS_SHARED | MS_UNBINDABLE) else 0
    source = mount.source or mount.type
    if options.copy_up:
        return CopyUp(target=target, flags=flags, data=data, source=source, propagation=propagation)
    keep_mode = mount.type == "tmpfs" and not any(word.startswith("mode=") for word in data.split(","))
    return MountIn(
        fstype=mount.type,
        source=source,
        target=target,
        flags=flags,
        data=data,
        propagation=propagation,
        keep_mode=int(keep_mode),
    )


def _plan_bind(
    mount: oci.Mount, target: str, options: Options, config: oci.Config, host: Host, slots: Slots
) -> Step:
    propagation = options.propagation
    uid_mappings, gid_mappings = mount.uid_mappings, mount.gid_mappings
    if options.idmap and not uid_mappings:
        uid_mappings, gid_mappings = config.linux.uid_mappings, config.linux.gid_mappings
    if (
        propagation & (MS_SHARED | MS_SLAVE)
        or mount.subpath
        or mount.layers
        or uid_mappings
        # the root of a user namespace may pass fewer directories than the caller, unless that one is an ordinary user
        or (has_user_namespace(config) and host.capabilities & _SYS_ADMIN)
        or _FOREIGN.match(mount.source)
    ):
        slot = Slot(
            kind="tree",
            path=mount.source,
            recursive=options.recursive,
            subpath=mount.subpath,
            layers=mount.layers,
            userxattr=bool(mount.layers) and host.in_user_namespace,
            uid_mappings=uid_mappings,
            gid_mappings=gid_mappings,
            idmap_recursive=options.idmap_all,
        )
        return AttachTree(
            slot=slots.add(slot),
            target=target,
            recursive=int(options.recursive),
            attr_set=options.own.set,
            attr_clear=options.own.clear,
            # what the host has cloned is a peer until it is told otherwise, with all that is mounted below
            propagation=(propagation or MS_PRIVATE) | (MS_REC if options.recursive else 0),
            recursive_set=options.all.set,
            recursive_clear=options.all.clear,
        )
    return Bind(
        source=mount.source,
        target=target,
        recursive=int(options.recursive),
        attr_set=options.own.set,
        attr_clear=options.own.clear,
        propagation=0
        if propagation & MS_PRIVATE
        else propagation,  # private already, as all of the child's tree
        recursive_set=options.all.set,
        recursive_clear=options.all.clear,
    )


def _plan_cgroup_mount(
    target: str, options: Options, config: oci.Config, host: Host, all_cgroups: bool
) -> Iterator[Step]:
    """v2: the tree, which starts at the container's cgroup in a cgroup namespace; without one, an ordinary
    container is shown its own cgroup alone. v1: the container's own cgroup of each hierarchy that it joined,
    below the host's tmpfs with its mount points and links.

    That tmpfs is bound read-only and not recursively: no superblock, no directories to make. Where the
    container may write, or a user namespace keeps what is mounted below from being left out, it gets a tmpfs
    of its own.
    """
    layout, path = host.cgroups, config.linux.cgroups_path
    readonly = options.flags & MS_RDONLY
    attributes = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC | (ATTR_RDONLY if readonly else 0)
    if layout.version == 2:
        own = any(namespace.type == "cgroup" for namespace in config.linux.namespaces)
        if own or not path or not readonly:
            yield MountIn(fstype="cgroup2", source="cgroup", target=target, flags=options.flags)
        else:
            source = f"{layout.root}/{path.strip('/')}"
            yield Bind(source=source, target=target, recursive=0, attr_set=attributes)
        return
    borrowed = readonly and not (has_user_namespace(config) or host.in_user_namespace)
    if borrowed:
        yield Bind(source=layout.root, target=target, recursive=0, attr_set=attributes)
    else:
        flags = options.flags & ~MS_RDONLY
        yield MountIn(fstype="tmpfs", source="tmpfs", target=target, flags=flags, data="mode=755,size=1024k")
    resources = config.linux.resources or NO_RESOURCES
    if path:
        for hierarchy, directory in joined_directories(
            layout, path, resources, everything=all_cgroups or not readonly
        ):
            yield Bind(
                source=directory, target=f"{target}/{hierarchy.directory}", recursive=0, attr_set=attributes
            )
    if not borrowed:
        for name, directory in visible_names(layout):
            yield MakeSymlink(target=directory, path=f"{target}/{name}")
        if readonly:
            flags = options.flags | MS_REMOUNT | MS_BIND
            yield MountIn(fstype="", source="", target=target, flags=flags)
