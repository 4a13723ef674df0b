"""Becomes another command after asking for a SIGTERM when its parent dies: `python -m ... PARENT_PID COMMAND...`.

So a sweep that is killed leaves no run behind that nobody watches: the run writes its checkpoint and ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replace this process, unless the parent is gone already."""
    owner, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != owner:
        sys.exit(130)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
