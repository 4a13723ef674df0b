"""The system calls that a program in the sandbox may not make, as a seccomp filter.

A checker computes: it starts threads, never processes, and talks through the pipes it was born with. So creating a
process, leaving the process group, and every socket are refused, besides what has been a way out of namespaces before.
So are owners and modes of files: as root outside, nobody inside owns root's devices.
"""

from __future__ import annotations

import errno
import functools
import os
import platform
import struct
import sys

_CLONE_THREAD = 0x10000
_ALLOW = 0x7FFF0000
_KILL = 0x80000000
_ERRNO = 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NR, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_X32 = 0x40000000

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE = {"x86_64": 56, "aarch64": 220}
_NEWER = {  # the same number on every machine
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "clone3": 435,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "fchmodat2": 452,
    "setxattrat": 463,
}
_REFUSED = {
    "x86_64": {
        "socket": 41,
        "socketpair": 53,
        "fork": 57,
        "vfork": 58,
        "chmod": 90,
        "fchmod": 91,
        "chown": 92,
        "fchown": 93,
        "lchown": 94,
        "ptrace": 101,
        "syslog": 103,
        "setpgid": 109,
        "setsid": 112,
        "personality": 135,
        "pivot_root": 155,
        "chroot": 161,
        "mount": 165,
        "umount2": 166,
        "setxattr": 188,
        "lsetxattr": 189,
        "fsetxattr": 190,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "fchownat": 260,
        "fchmodat": 268,
        "unshare": 272,
        "perf_event_open": 298,
        "name_to_handle_at": 303,
        "open_by_handle_at": 304,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "bpf": 321,
        "userfaultfd": 323,
    },
    "aarch64": {
        "setxattr": 5,
        "lsetxattr": 6,
        "fsetxattr": 7,
        "umount2": 39,
        "mount": 40,
        "pivot_root": 41,
        "chroot": 51,
        "fchmod": 52,
        "fchmodat": 53,
        "fchownat": 54,
        "fchown": 55,
        "personality": 92,
        "unshare": 97,
        "syslog": 116,
        "ptrace": 117,
        "setpgid": 154,
        "setsid": 157,
        "socket": 198,
        "socketpair": 199,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "perf_event_open": 241,
        "name_to_handle_at": 264,
        "open_by_handle_at": 265,
        "setns": 268,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "bpf": 280,
        "userfaultfd": 282,
    },
}


def machine() -> str:
    """Name the machine that the filter is for; empty where there is none (namespaces alone hold the sandbox then)."""
    name = platform.machine()
    return name if name in _REFUSED and sys.maxsize > 2**32 and sys.byteorder == "little" else ""


def filter_program(name: str) -> bytes:
    """Return the classic BPF program for a machine, as `bwrap --seccomp` reads it.

    Foreign architectures kill. `clone` passes only for threads; `clone3` hides its flags in memory, so it is said not
    to exist and the C library takes `clone`.
    """
    refused = sorted([*_REFUSED[name].values(), *(nr for call, nr in _NEWER.items() if call != "clone3")])
    code = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _AUDIT_ARCH[name]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NR),
    ]
    if name == "x86_64":
        code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    code += [
        (_EQUAL, 0, 1, _NEWER["clone3"]),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        (_EQUAL, 0, 4, _CLONE[name]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 0, 1, _CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]
    code += [(_EQUAL, len(refused) - place, 0, nr) for place, nr in enumerate(refused)]
    code += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    return b"".join(struct.pack("<HBBI", *step) for step in code)


@functools.cache
def _filter_descriptor() -> int:
    """Hold the program in memory that no file system shows, for as long as this process lives."""
    descriptor = os.memfd_create("syscalls", os.MFD_CLOEXEC)
    os.write(descriptor, filter_program(machine()))
    return descriptor


def filter_path() -> str:
    """Return where a child of this process can open the program; every opening starts at its first byte."""
    return f"/proc/{os.getpid()}/fd/{_filter_descriptor()}"
