"""How a worker is started and how its end is told, in the sandbox or without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from fd_async.verifier.sandbox.room import Limits, launch_argv, signal_or_code


def test_limits_are_set_before_the_program_starts() -> None:
    """Each of them, in the process itself."""
    limits = Limits(nice=3, memory_gib=2.0, cpu_s=77, file_mib=5)
    code = (
        "import os, resource as r\n"
        "print([r.getrlimit(n) for n in (r.RLIMIT_AS, r.RLIMIT_CPU, r.RLIMIT_FSIZE, r.RLIMIT_CORE)], os.nice(0))"
    )
    run = [sys.executable, "-I", "-c", code]
    found = subprocess.run(launch_argv(run, limits=limits), capture_output=True, text=True, check=True).stdout
    assert found.strip() == f"{[(2 << 30,) * 2, (77, 77), (5 << 20,) * 2, (0, 0)]} {min(19, os.nice(0) + 3)}"


def test_a_signal_inside_is_told_as_a_signal() -> None:
    """bwrap ends with 128 + its number, and so does a program that says so itself."""
    assert signal_or_code(137, ("/usr/bin/bwrap", "--die-with-parent")) == -signal.SIGKILL
    assert signal_or_code(1, ("/usr/bin/bwrap",)) == 1
    assert signal_or_code(137, ()) == 137
    assert signal_or_code(-9, ("/usr/bin/bwrap",)) == -9
