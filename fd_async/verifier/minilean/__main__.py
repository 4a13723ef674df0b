"""`python -m fd_async.verifier.minilean`: the checker as a REPL process."""

from __future__ import annotations

import os
import sys
import threading

from fd_async.verifier.minilean.protocol import main

STACK_BYTES = 256 * 1024 * 1024
RECURSION_LIMIT = 20_000


def _run() -> None:
    """Run in a thread with a large stack: deep terms recurse, and the budget must end them, not a crash."""
    status = [1]

    def body() -> None:
        status[0] = main()

    sys.setrecursionlimit(RECURSION_LIMIT)
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    sys.stdout.flush()
    os._exit(status[0])


_run()
