"""What every vLLM process of an engine does first.

vLLM builds the handlers of its logging configuration early in each of its processes; `open_handler` is named there.
In a child it gives the process its own session, so that Ctrl-C on the terminal reaches only the controller; sends
stray output to the log file, so that it never tears the live view; and ends the process when the controller is gone,
so that `kill -9` leaves nothing behind.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import threading
from pathlib import Path

_FORMAT = "%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s"
_adopted = False


def logging_config(log_file: Path, owner_pid: int) -> str:
    """Return vLLM's logging configuration as JSON (`VLLM_LOGGING_CONFIG_PATH` names the file that holds it)."""
    handler = {"()": f"{__name__}.open_handler", "path": str(log_file), "owner_pid": owner_pid}
    return json.dumps(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"file": handler},
            "loggers": {"vllm": {"handlers": ["file"], "level": "INFO", "propagate": False}},
        }
    )


def open_handler(path: str, owner_pid: int) -> logging.Handler:
    """Open the log file; in a child process of `owner_pid`, adopt the rules of the module docstring as well."""
    global _adopted
    if os.getpid() != owner_pid and not _adopted:
        _adopted = True
        _adopt(path, owner_pid)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(_FORMAT))
    return handler


def _adopt(path: str, owner_pid: int) -> None:
    if os.getpid() != os.getpgrp():
        os.setsid()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    try:
        owner = os.pidfd_open(owner_pid)
    except ProcessLookupError:
        os._exit(1)
    threading.Thread(target=_end_with, args=(owner,), daemon=True, name="end-with-controller").start()


def _end_with(owner: int) -> None:
    """Wait until the controller's process is gone, then kill this one."""
    poll = select.poll()
    poll.register(owner, select.POLLIN)
    while not poll.poll():
        pass
    os.kill(os.getpid(), signal.SIGKILL)
