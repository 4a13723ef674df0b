"""Becomes another command after leaving a guard behind: `python child.py PARENT_PID COMMAND...`.

The guard sends the command one SIGTERM when the parent dies, so that a sweep that is killed leaves no run that nobody
watches: the run writes its checkpoint and ends. The kernel's own signal for this (PR_SET_PDEATHSIG) comes once for
every thread of the parent, and a second request would cost the checkpoint.
"""

from __future__ import annotations

import os
import select
import signal
import sys


def main() -> None:
    """Replace this process, unless the parent is gone already."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of this file; the command sets its own
    owner, command = int(sys.argv[1]), sys.argv[2:]
    try:
        owner_fd = os.pidfd_open(owner)
    except ProcessLookupError:
        sys.exit(130)
    if os.getppid() != owner:
        sys.exit(130)
    own_fd = os.pidfd_open(os.getpid())
    between = os.fork()
    if between == 0:
        if os.fork() == 0:  # a grandchild, which the command does not know
            guard(owner_fd, own_fd)
        os._exit(0)
    os.waitpid(between, 0)
    os.execvp(command[0], command)


def guard(owner_fd: int, own_fd: int) -> None:
    """Wait until the owner or the command ends."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):  # whoever reads the command's output must not wait for the guard
        os.dup2(nothing, descriptor)
    ends = select.poll()
    ends.register(owner_fd, select.POLLIN)
    ends.register(own_fd, select.POLLIN)
    ended = {descriptor for descriptor, _ in ends.poll()}
    if own_fd not in ended:
        signal.pidfd_send_signal(own_fd, signal.SIGTERM)
    os._exit(0)


if __name__ == "__main__":
    main()
