"""The filter of system calls, run by a small interpreter, so that both machines are tested on either."""

from __future__ import annotations

import struct

import pytest

from fd_async.verifier.sandbox.syscalls import filter_path, filter_program, machine

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
THREAD_OF_GLIBC = (
    0x3D0F00  # CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM | SETTLS | PARENT_SETTID | CHILD_CLEARTID
)
CALLS = {  # read, write, mmap, execve, futex, exit_group, openat, prlimit64, getrandom, prctl
    "x86_64": ([0, 1, 9, 59, 202, 231, 257, 302, 318, 157], 56, [57, 58, 41, 53, 112, 109, 101, 272, 165, 321]),
    "aarch64": ([63, 64, 222, 221, 98, 94, 56, 261, 278, 167], 220, [198, 199, 157, 154, 117, 97, 40, 280]),
}


def verdict(program: bytes, number: int, arch: int, argument: int = 0) -> int:
    """Run classic BPF over one system call."""
    data = struct.pack("<IIQ6Q", number, arch, 0, argument, 0, 0, 0, 0, 0)
    steps = list(struct.iter_unpack("<HBBI", program))
    at, value = 0, 0
    while True:
        code, if_true, if_false, k = steps[at]
        at += 1
        if code == 0x06:
            return k
        if code == 0x20:
            (value,) = struct.unpack_from("<I", data, k)
            continue
        holds = {0x15: value == k, 0x35: value >= k, 0x45: bool(value & k)}[code]
        at += if_true if holds else if_false


@pytest.mark.parametrize("name", ARCH)
def test_computing_and_threads_are_allowed_and_the_rest_is_not(name: str) -> None:
    """A thread is a clone that says so; every other clone is a process."""
    program = filter_program(name)
    allowed, clone, refused = CALLS[name]
    assert {verdict(program, number, ARCH[name]) for number in allowed} == {ALLOW}
    assert {verdict(program, number, ARCH[name]) for number in [*refused, 425, 428, 442]} == {EPERM}
    assert verdict(program, clone, ARCH[name], THREAD_OF_GLIBC) == ALLOW
    assert verdict(program, clone, ARCH[name], 17) == EPERM  # fork of the C library: SIGCHLD alone
    assert verdict(program, clone, ARCH[name], 0x10000000) == EPERM  # a new user namespace
    assert verdict(program, 435, ARCH[name], THREAD_OF_GLIBC) == ENOSYS


def test_a_foreign_way_of_calling_kills() -> None:
    """32-bit calls and x32 have other numbers, so none of them is let through."""
    assert verdict(filter_program("x86_64"), 57, 0x40000003) == KILL
    assert verdict(filter_program("x86_64"), 0x40000000 + 57, ARCH["x86_64"]) == KILL
    assert verdict(filter_program("aarch64"), 1, 0x40000028) == KILL


@pytest.mark.parametrize("name", ARCH)
def test_every_jump_of_the_program_stays_in_it(name: str) -> None:
    """The kernel would refuse it otherwise, and the sandbox would not start."""
    steps = list(struct.iter_unpack("<HBBI", filter_program(name)))
    for at, (code, if_true, if_false, _) in enumerate(steps):
        assert code == 0x06 or at + 1 + max(if_true, if_false) < len(steps)


@pytest.mark.skipif(not machine(), reason="there is no filter for this machine")
def test_every_opening_reads_the_whole_program() -> None:
    """Many workers start at the same time and read it through the same path."""
    for _ in range(2):
        with open(filter_path(), "rb") as file:
            assert file.read() == filter_program(machine())
