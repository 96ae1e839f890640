"""The device programs of a living v2 cgroup: which are attached, and their exchange, by bpf(2).

A start attaches its program by a plan's step; this is for changes. A cgroup may have several programs
(BPF_F_ALLOW_MULTI), of systemd's DeviceAllow for one, and an access has to pass them all.
"""

from __future__ import annotations

import ctypes
import errno
import os

from cove.model.errors import HostError

_SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_GET_FD_BY_ID, _PROG_QUERY = 5, 8, 9, 13, 16
_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE = 15, 6
_ALLOW_MULTI, _REPLACE = 2, 4  # the second since Linux 5.6
_MOST_PROGRAMS = 64  # BPF_CGROUP_MAX_PROGS
_libc = ctypes.CDLL(None, use_errno=True)


class _Load(ctypes.Structure):
    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_void_p),
        ("license", ctypes.c_char_p),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
    )


class _Attach(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint32)
        for name in ("target_fd", "attach_bpf_fd", "attach_type", "attach_flags", "replace_bpf_fd")
    )


class _Query(ctypes.Structure):
    """The whole of it: kernels from 6.17 on write the last field whatever size they are told."""

    _fields_ = (
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("prog_ids", ctypes.c_void_p),
        ("prog_cnt", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
        ("prog_attach_flags", ctypes.c_uint64),
        ("link_ids", ctypes.c_uint64),
        ("link_attach_flags", ctypes.c_uint64),
        ("revision", ctypes.c_uint64),
    )


def list_programs(directory: str) -> list[int]:
    """The ids of the device programs attached to the cgroup itself, the first attached first. Raises OSError."""
    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _query(group)
    finally:
        os.close(group)


def replace_programs(directory: str, program: bytes | None) -> None:
    """Put `program` (struct bpf_insn[]) in the place of all device programs of the cgroup; None: none from now on.

    There is no moment without a program: a single one is exchanged (BPF_F_REPLACE), of several the others go once the
    new one is there. A program that this process may not open (a security module's label) stays: it can only refuse
    more. Raises HostError.
    """
    opened: list[int] = []
    try:
        opened.append(group := os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        old = []
        for number in _query(group):
            try:
                old.append(_bpf(_PROG_GET_FD_BY_ID, (ctypes.c_uint32 * 3)(number)))
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOENT):
                    raise
        opened += old
        if program is not None:
            opened.append(new := _load(program))
            if len(old) == 1 and _attach(group, new, old[0]):
                return
            _attach(group, new)
        for each in old:
            _bpf(_PROG_DETACH, _Attach(group, each, _ATTACH_CGROUP_DEVICE))
    except OSError as error:
        raise HostError(f"cgroup {directory}: device rules can't be changed: {error.strerror}") from None
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _query(group: int) -> list[int]:
    ids = (ctypes.c_uint32 * _MOST_PROGRAMS)()
    query = _Query(
        target_fd=group,
        attach_type=_ATTACH_CGROUP_DEVICE,
        prog_ids=ctypes.addressof(ids),
        prog_cnt=_MOST_PROGRAMS,
    )
    _bpf(_PROG_QUERY, query)
    return list(ids[: query.prog_cnt])


def _load(program: bytes) -> int:
    instructions = ctypes.create_string_buffer(program, len(program))
    load = _Load(
        prog_type=_TYPE_CGROUP_DEVICE,
        insn_cnt=len(program) // 8,
        insns=ctypes.addressof(instructions),
        license=b"Apache",
    )
    return _bpf(_PROG_LOAD, load)


def _attach(group: int, program: int, instead_of: int | None = None) -> bool:
    """False when this kernel can't replace."""
    attach = _Attach(group, program, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI)
    if instead_of is not None:
        attach.attach_flags |= _REPLACE
        attach.replace_bpf_fd = instead_of
    try:
        _bpf(_PROG_ATTACH, attach)
    except OSError as error:
        if instead_of is not None and error.errno in (errno.EINVAL, errno.EPERM):
            return False  # Linux before 5.6, or attached with other flags
        raise
    return True


def _bpf(command: int, attributes: ctypes.Structure | ctypes.Array[ctypes.c_uint32]) -> int:
    number = _SYS_BPF.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    result = _libc.syscall(
        ctypes.c_long(number), ctypes.c_int(command), ctypes.byref(attributes), ctypes.sizeof(attributes)
    )
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)
